//! A cut through several volumes: read-only snapshots of all of them in one transaction of the pool, then each sealed.
//!
//! The kernel takes the snapshots that wait for one commit in it, while nobody can write. Snapshots taken in a row rarely
//! share a commit, so all threads begin at once, after a commit that leaves little to flush. Whether they shared one is
//! read from the snapshots themselves; where they did not, they are dropped and taken again.

use std::collections::BTreeMap;
use std::sync::{Arc, Barrier};

use btrfs::{Dir, subvolume};
use cas::Role;
use cas::record::RecordKind;
use proto::convert::{InvalidField, required};
use proto::node::groups_server::Groups;
use proto::node::{self as wire, SealGroupRequest, SealGroupResponse, SealVersionResponse};
use tonic::{Request, Response, Status};
use types::{RequestId, VersionId, VolumeId};

use crate::deaths::{self, Point};
use crate::error::Error;
use crate::local::{self, Marks, Taken};
use crate::locks::VolumeGuard;
use crate::node::Node;
use crate::seal::SealRequest;
use crate::service::NodeService;
use crate::sync::{Manner, SyncRequest};
use crate::volume::Volume;

/// How often a cut is tried before the caller is told to come back.
const ATTEMPTS: u32 = 24;

/// A group is for the volumes of one application; each takes a thread for a moment.
const MOST_MEMBERS: usize = 32;

/// A member of a group that is to be sealed.
#[derive(Debug, Clone)]
pub struct Member {
    /// Which volume.
    pub volume: VolumeId,
    /// The new record.
    pub sealed: VolumeId,
    /// The request that makes it.
    pub request: RequestId,
    /// What its maker attaches.
    pub attributes: BTreeMap<String, String>,
}

/// A sealed group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedGroup {
    /// The version of each member.
    pub versions: Vec<VersionId>,
    /// The transaction that they share; nothing where a retry found them sealed.
    pub transaction: Option<u64>,
    /// How often the cut was tried.
    pub attempts: u32,
}

struct Cut {
    taken: Vec<(Marks, Taken)>,
    transaction: u64,
    attempts: u32,
}

impl Node {
    /// Seals the present states of several volumes, cut in one transaction.
    ///
    /// # Errors
    /// One is not this node's or busy, no cut succeeded, or pool or store failed.
    pub async fn seal_group(
        self: &Arc<Self>,
        members: Vec<Member>,
        kind: RecordKind,
    ) -> Result<SealedGroup, Error> {
        let node = Arc::clone(self);
        self.detached("seal a group", async move { node.seal_group_now(members, kind).await }).await
    }

    async fn seal_group_now(
        self: &Arc<Self>,
        members: Vec<Member>,
        kind: RecordKind,
    ) -> Result<SealedGroup, Error> {
        let mut there = 0;
        for member in &members {
            there += usize::from(cas::record::read(self.store(), &member.sealed).await?.is_some());
        }
        let mut result = SealedGroup { versions: Vec::new(), transaction: None, attempts: 0 };
        let versions = if there == 0 {
            let cut = Box::pin(self.publish_cut(&members)).await?;
            (result.transaction, result.attempts) = (Some(cut.1), cut.2);
            cut.0.into_iter().map(Some).collect()
        } else {
            // Begun before, and the versions of then are published: what is missing is sealed from the same point.
            self.versions_of_begun(&members).await?
        };
        for (member, version) in members.into_iter().zip(versions) {
            let request = SealRequest {
                id: member.volume,
                version,
                sealed: member.sealed,
                request: member.request,
                kind,
                attributes: member.attributes,
            };
            result.versions.push(Box::pin(self.seal(request)).await?.into_inner());
        }
        Ok(result)
    }

    /// A group of which some members are sealed was cut before a crash. The entries of that cut carry its label, so those
    /// that are missing are found on their timelines.
    async fn versions_of_begun(&self, members: &[Member]) -> Result<Vec<Option<VersionId>>, Error> {
        let label = label(members);
        let mut versions = Vec::with_capacity(members.len());
        for member in members {
            let record = cas::record::read(self.store(), &member.volume).await?;
            let record = record.ok_or_else(|| Error::NoRecord { volume: member.volume.clone() })?.value;
            let entries = cas::timeline::entries(self.store(), &record).await?;
            let entry = entries.iter().rev().find(|entry| entry.label == label);
            versions.push(entry.and_then(cas::Entry::version));
        }
        for (member, version) in members.iter().zip(&versions) {
            if version.is_none() && cas::record::read(self.store(), &member.sealed).await?.is_none() {
                return Err(Error::NoHead { volume: member.volume.clone() });
            }
        }
        Ok(versions)
    }

    /// Cuts and publishes: an entry on each timeline, with a label that leads from one to the others.
    async fn publish_cut(self: &Arc<Self>, members: &[Member]) -> Result<(Vec<VersionId>, u64, u32), Error> {
        let session = self.session()?;
        let mut volumes: Vec<Arc<Volume>> = Vec::with_capacity(members.len());
        let mut guards: Vec<VolumeGuard> = Vec::with_capacity(members.len());
        for member in members {
            let volume = self.volumes().get(&member.volume)?;
            volume.claim(session.id())?;
            guards.push(self.locks().try_acquire(&member.volume, "group snapshot")?);
            volumes.push(volume);
        }
        for volume in &volumes {
            if !volume.facts().unsettled.is_empty() {
                // A write that was sent may have happened. What follows must know.
                self.settle_locked(volume).await?;
            }
            volume.syncs.close();
        }
        let cut = self.cut(members.iter().map(|member| member.volume.clone()).collect()).await?;
        let request = SyncRequest { role: Role::Manual, label: label(members) };
        let manner = Manner { shares: true, ..Manner::default() };
        let syncs = volumes
            .iter()
            .zip(&cut.taken)
            .map(|(volume, (live, taken))| self.sync_taken(volume, &request, manner, live, taken));
        // All of them, also after a failure: each cleans up after itself.
        let synced: Vec<_> = futures::future::join_all(syncs).await;
        let versions = synced.into_iter().map(|synced| Ok(synced?.version)).collect::<Result<_, Error>>()?;
        drop(guards);
        Ok((versions, cut.transaction, cut.attempts))
    }

    async fn cut(&self, volumes: Vec<VolumeId>) -> Result<Cut, Error> {
        let mut transactions = Vec::new();
        for attempts in 1..=ATTEMPTS {
            self.pool().commit().await?;
            let ids = volumes.clone();
            let taken = self.pool().run(move |root| take_together(root, &ids)).await?;
            transactions = taken.iter().map(|(_, _, transaction)| *transaction).collect::<Vec<u64>>();
            let first = transactions.first().copied().unwrap_or(0);
            if transactions.iter().all(|transaction| *transaction == first) {
                let taken = taken.into_iter().map(|(live, taken, _)| (live, taken)).collect();
                return Ok(Cut { taken, transaction: first, attempts });
            }
            let names: Vec<(VolumeId, String)> =
                volumes.iter().cloned().zip(taken.into_iter().map(|(_, taken, _)| taken.name)).collect();
            self.pool().run(move |root| drop_all(root, &names)).await?;
        }
        tracing::info!(?transactions, "volumes could not be cut in one transaction");
        Err(Error::NoCut { attempts: ATTEMPTS })
    }
}

/// What entries of one cut have in common: a hash of what it makes.
fn label(members: &[Member]) -> String {
    let mut hasher = blake3::Hasher::new();
    for member in members {
        hasher.update(member.sealed.as_str().as_bytes()).update(b"\0");
    }
    format!("group {}", &hasher.finalize().to_hex()[..16])
}

fn drop_all(root: &Dir, names: &[(VolumeId, String)]) -> Result<(), Error> {
    names.iter().try_for_each(|(id, name)| local::drop_taken(root, id, name))
}

/// Takes one snapshot of each volume, all at once, and answers in which transaction each was taken.
fn take_together(root: &Dir, volumes: &[VolumeId]) -> Result<Vec<(Marks, Taken, u64)>, Error> {
    let barrier = Barrier::new(volumes.len());
    let take = |id: &VolumeId| -> Result<(Marks, Taken, u64), Error> {
        let opened = local::live(root, id).and_then(|live| Ok((local::marks(&live)?, live)));
        // Everybody comes to the barrier, or nobody leaves it.
        barrier.wait();
        let (marks, live) = opened?;
        let taken = local::take(root, id, &live)?;
        let snapshot = local::directory(root, id)?.open_dir(crate::layout::SNAP)?.open_dir(&taken.name)?;
        let transaction = subvolume::info(&snapshot)?.otransid;
        Ok((marks, taken, transaction))
    };
    let results: Vec<Result<(Marks, Taken, u64), Error>> = std::thread::scope(|scope| {
        let deaths = deaths::here();
        let spawn = |id| {
            let deaths = deaths.clone();
            scope.spawn(move || deaths.enter(|| take(id)))
        };
        let threads: Vec<_> = volumes.iter().map(spawn).collect();
        let joined = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined.map(|joined| joined.unwrap_or(Err(Error::Panicked { operation: "a snapshot" }))).collect()
    });
    deaths::pass(Point::GroupTaken)?;
    if results.iter().all(Result::is_ok) {
        return results.into_iter().collect();
    }
    for (id, result) in volumes.iter().zip(&results) {
        if let Ok((_, taken, _)) = result {
            local::drop_taken(root, id, &taken.name)?;
        }
    }
    results.into_iter().collect()
}

#[tonic::async_trait]
impl Groups for NodeService {
    async fn seal_group(
        &self,
        request: Request<SealGroupRequest>,
    ) -> Result<Response<SealGroupResponse>, Status> {
        let message = request.into_inner();
        let malformed = |field, reason: &str| InvalidField::Malformed { field, reason: reason.to_owned() };
        let kind = match message.kind() {
            wire::RecordKind::Snapshot => RecordKind::Snapshot,
            wire::RecordKind::Template => RecordKind::Template,
            wire::RecordKind::Bundle => RecordKind::Bundle,
            wire::RecordKind::Unspecified | wire::RecordKind::Volume | wire::RecordKind::Orphan => {
                return Err(malformed("kind", "a snapshot, template or bundle is sealed").into());
            }
        };
        if message.members.is_empty() || message.members.len() > MOST_MEMBERS {
            return Err(malformed("members", "a group has 1 to 32").into());
        }
        let mut members: Vec<Member> = Vec::with_capacity(message.members.len());
        for member in message.members {
            let volume: VolumeId = required("members.volume_id", &member.volume_id)?;
            if members.iter().any(|other| other.volume == volume) {
                return Err(malformed("members", "a volume is in it twice").into());
            }
            members.push(Member {
                volume,
                sealed: required("members.sealed_id", &member.sealed_id)?,
                request: required("members.request_id", &member.request_id)?,
                attributes: member.attributes.into_iter().collect(),
            });
        }
        let ids: Vec<VolumeId> = members.iter().map(|member| member.sealed.clone()).collect();
        let group = self.node().seal_group(members, kind).await?;
        let sealed = ids.into_iter().zip(group.versions).map(|(sealed, version)| SealVersionResponse {
            sealed_id: sealed.to_string(),
            version: version.to_string(),
        });
        Ok(Response::new(SealGroupResponse {
            sealed: sealed.collect(),
            transaction: group.transaction.unwrap_or(0),
            attempts: group.attempts,
        }))
    }
}
