//! Sync: the present state of a volume becomes a durable version.
//!
//! Read-only snapshot → difference to base → packs, each acknowledged → `snap/<version>` committed in the pool → one
//! conditional write of the record → base turns. A crash before the write leaves garbage; after it, a head that is among
//! the local snapshots, which the next start recognises. Where nothing changed, nothing is written.

mod queue;

use std::sync::Arc;
use std::time::{Duration, Instant};

use btrfs::Dir;
use cas::lifecycle::{self, Publication};
use cas::tree::{Parent, Written};
use cas::{Claim, Known, Operation, Role, VersionRef};
use types::{EntryId, Epoch, MemberName, VersionId, VolumeId};

use crate::changes::{changes, told};
use crate::error::Error;
use crate::layout::Place;
use crate::local::{self, Marks, Taken};
use crate::metrics;
use crate::node::Node;
use crate::volume::{Base, Facts, Head, Standing, Volume};

use queue::Joined;
pub(crate) use queue::SyncQueue;

/// What the entry on the timeline says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncRequest {
    /// How long it stays.
    pub role: Role,
    /// What people read.
    pub label: String,
}

impl SyncRequest {
    /// A sync that nobody gave a name.
    pub fn plain() -> Self {
        Self { role: Role::Sync, label: String::new() }
    }

    fn is_plain(&self) -> bool {
        *self == Self::plain()
    }
}

/// How a sync goes about it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manner {
    /// The owner is none in the same write.
    pub(crate) release: bool,
    /// It may wait a moment for other volumes, to fill a pack with them. Where somebody waits for it, it waits for nobody.
    pub(crate) shares: bool,
}

/// What a sync did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Synced {
    /// The durable version.
    pub version: VersionId,
    /// Its point on the timeline.
    pub entry: EntryId,
    /// Whether anything was written.
    pub changed: bool,
    /// Bytes written to the store, without the record.
    pub bytes_uploaded: u64,
    /// Objects written to the store, the record included.
    pub objects_written: u64,
    /// Files that differ from the version before.
    pub files_changed: u64,
    /// The whole tree was walked.
    pub full_scan: bool,
    /// How long it took.
    pub took: Duration,
    /// The owner's epoch.
    pub epoch: Epoch,
}

/// How a tree relates to the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    /// Nothing was written since.
    Clean,
    /// The kernel can say what changed.
    Related,
    /// It has to be walked.
    Unrelated,
}

/// Decides what a snapshot of live needs. The increment is only right where base was taken from live, or live was cloned
/// from base.
fn relate(base: Option<&Base>, base_parent: Option<btrfs::Uuid>, live: &Marks, taken: &Taken) -> Relation {
    let Some(base) = base else { return Relation::Unrelated };
    if base_parent != Some(live.uuid) && live.parent != Some(base.uuid) {
        return Relation::Unrelated;
    }
    if base.roots == taken.roots { Relation::Clean } else { Relation::Related }
}

impl Node {
    /// Makes the present state durable, or joins a sync of the same kind that has not taken its snapshot yet.
    ///
    /// # Errors
    /// The volume is not this node's, another operation has it, or pool or store failed.
    pub async fn sync(self: &Arc<Self>, id: &VolumeId, request: SyncRequest) -> Result<Synced, Error> {
        self.sync_as(id, request, Manner::default()).await
    }

    /// The same for one of several volumes that nobody waits for: their packs are shared.
    pub(crate) async fn sync_with_others(self: &Arc<Self>, id: &VolumeId) -> Result<Synced, Error> {
        self.sync_as(id, SyncRequest::plain(), Manner { shares: true, ..Manner::default() }).await
    }

    async fn sync_as(
        self: &Arc<Self>,
        id: &VolumeId,
        request: SyncRequest,
        manner: Manner,
    ) -> Result<Synced, Error> {
        let volume = self.volumes().get(id)?;
        let mut receiver = match volume.syncs.join(&request) {
            Joined::Follow(receiver) => receiver,
            Joined::Refused => return Err(Error::Busy { volume: id.clone(), running: "another sync" }),
            Joined::Lead(sender) => {
                let receiver = sender.subscribe();
                let node = Arc::clone(self);
                let lead = self.detached("sync", async move {
                    let result = node.run_sync(&volume, &request, manner).await.map_err(Arc::new);
                    sender.send_replace(Some(result));
                    Ok(())
                });
                lead.await?;
                receiver
            }
        };
        let outcome = receiver.wait_for(Option::is_some).await.map_err(|_| Error::ShuttingDown)?.clone();
        outcome.expect("it was waited for").map_err(Error::Shared)
    }

    async fn run_sync(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        request: &SyncRequest,
        manner: Manner,
    ) -> Result<Synced, Error> {
        let _turn = volume.syncs.turn.lock().await;
        let guard = self.locks().try_acquire(&volume.id, "sync");
        let _guard = guard.inspect_err(|_| volume.syncs.close())?;
        self.sync_locked(volume, request, manner).await
    }

    /// Syncs a volume that the caller has the lock of.
    pub(crate) async fn sync_locked(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        request: &SyncRequest,
        manner: Manner,
    ) -> Result<Synced, Error> {
        if !volume.facts().unsettled.is_empty() {
            // A write that was sent may have happened. What follows must know.
            self.settle_locked(volume).await?;
        }
        volume.claim(self.session()?.id())?;
        volume.syncs.close();
        let id = volume.id.clone();
        let (live, taken) = self
            .pool()
            .run(move |root| {
                let live = local::live(root, &id)?;
                Ok((local::marks(&live)?, local::take(root, &id, &live)?))
            })
            .await?;
        self.sync_taken(volume, request, manner, &live, &taken).await
    }

    /// Publishes a snapshot that was just taken of live, by a caller that has the volume's lock.
    pub(crate) async fn sync_taken(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        request: &SyncRequest,
        manner: Manner,
        live: &Marks,
        taken: &Taken,
    ) -> Result<Synced, Error> {
        let started = Instant::now();
        let publish = async {
            let session = self.session()?;
            let claim = volume.claim(session.id())?;
            let operation = session.begin()?;
            let sync =
                Sync { node: self, volume, operation: &operation, claim: &claim, request, manner, started };
            sync.publish(live, taken).await
        };
        let result = Box::pin(publish).await;
        metrics::synced(self, &result, started.elapsed());
        if let Err(error) = &result {
            let (id, name) = (volume.id.clone(), taken.name.clone());
            if let Err(undo) = self.pool().run(move |root| local::drop_taken(root, &id, &name)).await {
                tracing::warn!(volume = %volume.id, error = %undo, "a snapshot could not be dropped; the next start sweeps it");
            }
            self.note_failure(volume, error);
        } else {
            volume.update(|facts| facts.trouble.clear());
        }
        self.volumes().touch(&volume.id);
        result
    }

    /// Notes what a failed publication says about the volume's place in the line.
    pub(crate) fn note_failure(&self, volume: &Volume, error: &Error) {
        volume.update(|facts| {
            facts.trouble = proto::status::message(error);
            if let (Error::Cas(cas::Error::Lost { .. }), Standing::Owned { epoch, .. }) = (error, &facts.standing) {
                tracing::warn!(volume = %volume.id, %error, "the volume was taken over; what is here becomes an orphan");
                facts.standing = Standing::Fenced { epoch: *epoch };
            }
        });
        if matches!(error, Error::Cas(cas::Error::Fenced { .. } | cas::Error::Stolen { .. })) {
            self.suspect_fenced();
        }
    }

    /// The versions behind live: base, and the committed snapshots.
    pub(crate) fn known(&self, volume: &Volume) -> Known {
        let base = volume.facts().base.map(|base| base.tree.version);
        let snaps = self.shelf().of_volume(&volume.id).into_iter().filter_map(|place| place.version());
        Known::data(base.into_iter().chain(snaps))
    }

    /// Finds what changed in a snapshot and stores it. `None` for the base: everything is read.
    pub(crate) async fn store_tree(
        self: &Arc<Self>,
        operation: &Operation,
        facts: &Facts,
        volume: &VolumeId,
        taken: &Taken,
        base: Option<&Base>,
        shares: bool,
    ) -> Result<Written, Error> {
        let (id, name, place) = (volume.clone(), taken.name.clone(), base.map(|base| base.place.clone()));
        let (tree, changes) = self
            .pool()
            .run(move |root| {
                let tree = local::directory(root, &id)?.open_dir(crate::layout::SNAP)?.open_dir(&name)?;
                let changes = match &place {
                    Some(place) => found(&id, changes(&root.open_beneath(place.path())?, &tree)),
                    None => None,
                };
                Ok((told(tree)?, changes))
            })
            .await?;
        let parent = match (base, changes) {
            (Some(base), Some(changes)) => Some(Parent { tree: base.tree.clone(), changes }),
            _ => None,
        };
        if parent.is_none() {
            self.learn_relatives(&facts.domain).await;
        }
        let written = self.writer(operation, &facts.domain, shares).put_told(tree, parent).await?;
        self.tell_hooks(&facts.domain, &written);
        Ok(written)
    }

    /// Turns a volume's base to `place` and deletes the snapshots that nobody needs any more.
    pub(crate) async fn turn_base(&self, volume: &Volume, base: Base) -> Result<(), Error> {
        let (id, place) = (volume.id.clone(), base.place.clone());
        let free = self.shelf().rebase(&id, Some(&place));
        volume.update(|facts| facts.base = Some(base));
        self.pool()
            .run(move |root| {
                local::set_base(root, &id, &place)?;
                local::delete_places(root, &free)
            })
            .await
    }
}

/// What the kernel found, or nothing where it cannot say.
fn found<E: std::fmt::Display>(
    id: &VolumeId,
    changes: Result<cas::tree::Changes, E>,
) -> Option<cas::tree::Changes> {
    changes.inspect_err(|reason| tracing::info!(volume = %id, %reason, "the whole tree is read")).ok()
}

/// One sync, once its snapshot is taken.
struct Sync<'a> {
    node: &'a Arc<Node>,
    volume: &'a Arc<Volume>,
    operation: &'a Operation,
    claim: &'a Claim,
    request: &'a SyncRequest,
    manner: Manner,
    started: Instant,
}

impl Sync<'_> {
    async fn publish(&self, live: &Marks, taken: &Taken) -> Result<Synced, Error> {
        let facts = self.volume.facts();
        let base = facts.base.as_ref();
        let relation = relate(base, self.base_parent(base).await?, live, taken);
        let at_head =
            |tree: &VersionRef| facts.head.as_ref().is_some_and(|head| head.tree.version == tree.version);
        let (tree, written) = match (relation, base) {
            (Relation::Clean, Some(base)) => (base.tree.clone(), None),
            (Relation::Related, Some(_)) => self.store(&facts, taken, base).await?,
            _ => self.store(&facts, taken, None).await?,
        };
        let full_scan = written.as_ref().is_some_and(|written| written.full_scan);
        if self.request.is_plain() && at_head(&tree) {
            return self.unchanged(&facts, tree, taken, relation, full_scan).await;
        }
        let place = self.keep(taken, &tree.version, relation, base).await?;
        self.node.pool().commit().await?;
        let (about, id) = (facts.about.clone(), self.volume.id.clone());
        let charge = self.node.pool().run(move |root| Ok(about.charge(local::used(root, &about)?))).await?;
        let publication = Publication {
            heads: cas::entry::data_head(tree.clone()),
            role: self.request.role,
            label: self.request.label.clone(),
            release: self.manner.release,
            charge_bytes: Some(charge),
        };
        let known = self.node.known(self.volume);
        let published = lifecycle::publish(self.operation, self.claim, &known, publication).await;
        let published = match published {
            Ok(published) => published,
            Err(error) => {
                self.give_up(&place, &error).await;
                return Err(error.into());
            }
        };
        let changed = published.is_made();
        self.volume.note_use();
        let published = published.into_inner();
        // What the record lists. The same tree may lie in other packs that nothing names.
        let listed = published.record.value.entry(&published.entry);
        let listed = listed.and_then(|entry| entry.heads.get(&MemberName::data()));
        let tree = listed.filter(|listed| listed.version == tree.version).cloned().unwrap_or(tree);
        tracing::info!(volume = %id, version = %tree.version.short(), entry = %published.entry.short(), "synced");
        let base = Base { place, tree: tree.clone(), uuid: taken.marks.uuid, roots: taken.roots.clone() };
        let base = if relation == Relation::Clean { facts.base.clone().unwrap_or(base) } else { base };
        let unsettled = self.volume.update(|facts| {
            facts.head = Some(Head { entry: published.entry, tree: tree.clone() });
            facts.last_sync = Some(self.node.store().clock().now());
            std::mem::take(&mut facts.unsettled)
        });
        let place = base.place.clone();
        self.node.turn_base(self.volume, base).await?;
        for place in unsettled {
            self.node.put_away(&place).await?;
        }
        if relation == Relation::Clean {
            self.drop_taken(taken).await?;
        } else if self.request.role != Role::Manual {
            // What people asked for by name stays near, for forks of it. The rest stays while it is a base.
            self.node.put_away(&place).await?;
        }
        let (bytes, objects) = written.as_ref().map_or((0, 0), |w| (w.bytes_uploaded, w.objects_written));
        Ok(Synced {
            version: tree.version,
            entry: published.entry,
            changed,
            bytes_uploaded: bytes,
            objects_written: objects + u64::from(changed),
            files_changed: written.map_or(0, |w| w.files_changed),
            full_scan,
            took: self.started.elapsed(),
            epoch: self.claim.epoch,
        })
    }

    async fn store(
        &self,
        facts: &Facts,
        taken: &Taken,
        base: Option<&Base>,
    ) -> Result<(VersionRef, Option<Written>), Error> {
        let (id, shares) = (&self.volume.id, self.manner.shares);
        let written = self.node.store_tree(self.operation, facts, id, taken, base, shares).await?;
        Ok((written.tree.clone(), Some(written)))
    }

    /// Nothing to publish: the tree is the head's. At most the base turns, so that the next look is cheap.
    async fn unchanged(
        &self,
        facts: &Facts,
        tree: VersionRef,
        taken: &Taken,
        relation: Relation,
        full_scan: bool,
    ) -> Result<Synced, Error> {
        let head = facts.head.as_ref().expect("only the head's tree is unchanged");
        if self.manner.release {
            let tips = cas::entry::tips(&cas::entry::data_head(head.tree.clone()));
            lifecycle::release(self.operation, self.claim, &self.node.known(self.volume), &tips).await?;
        }
        if relation == Relation::Clean {
            self.drop_taken(taken).await?;
        } else {
            let place = self.name(taken, &tree.version).await?;
            // As the record lists it: what a full scan just put is named by nothing, and the next increment names its base.
            let tree = head.tree.clone();
            let base = Base { place, tree, uuid: taken.marks.uuid, roots: taken.roots.clone() };
            self.node.turn_base(self.volume, base).await?;
        }
        self.volume.update(|facts| facts.last_sync = Some(self.node.store().clock().now()));
        Ok(Synced {
            version: head.tree.version,
            entry: head.entry,
            changed: false,
            bytes_uploaded: 0,
            objects_written: u64::from(self.manner.release),
            files_changed: 0,
            full_scan,
            took: self.started.elapsed(),
            epoch: self.claim.epoch,
        })
    }

    /// Gives the snapshot its name; of a clean volume the base is that snapshot already.
    async fn keep(
        &self,
        taken: &Taken,
        version: &VersionId,
        relation: Relation,
        base: Option<&Base>,
    ) -> Result<Place, Error> {
        let place = match (relation, base) {
            (Relation::Clean, Some(base)) => base.place.clone(),
            _ => self.name(taken, version).await?,
        };
        // Until the record names it nothing else holds it.
        self.node.shelf().keep(&place);
        Ok(place)
    }

    async fn name(&self, taken: &Taken, version: &VersionId) -> Result<Place, Error> {
        let (id, name, version) = (self.volume.id.clone(), taken.name.clone(), *version);
        self.node.pool().run(move |root| local::name_taken(root, &id, &name, &version)).await
    }

    async fn drop_taken(&self, taken: &Taken) -> Result<(), Error> {
        let (id, name) = (self.volume.id.clone(), taken.name.clone());
        self.node.pool().run(move |root| local::drop_taken(root, &id, &name)).await
    }

    /// Publishing failed. Where it may still have happened, the snapshot stays: the head may be what it holds.
    async fn give_up(&self, place: &Place, error: &cas::Error) {
        if matches!(error, cas::Error::Unsettled { .. }) {
            self.volume.update(|facts| facts.unsettled.push(place.clone()));
        } else if let Err(error) = self.node.put_away(place).await {
            tracing::warn!(volume = %self.volume.id, %error, "a snapshot could not be dropped; the next start sweeps it");
        }
    }

    async fn base_parent(&self, base: Option<&Base>) -> Result<Option<btrfs::Uuid>, Error> {
        let Some(base) = base else { return Ok(None) };
        let place = base.place.clone();
        self.node
            .pool()
            .run(move |root: &Dir| Ok(local::marks(&root.open_beneath(place.path())?)?.parent))
            .await
    }
}

impl Node {
    /// Stops keeping a snapshot for its own sake, and deletes it if nobody else needs it.
    pub(crate) async fn put_away(&self, place: &Place) -> Result<(), Error> {
        if !self.shelf().release(place) {
            return Ok(());
        }
        let places = [place.clone()];
        self.pool().run(move |root| local::delete_places(root, &places)).await
    }

    /// Whether anything was written since the base, for sure: before something is dropped.
    pub(crate) async fn is_written(&self, volume: &Volume) -> Result<bool, Error> {
        // Not `commit_with_data`: this is about what is known, not about what was promised.
        self.pool().run(|root| Ok(btrfs::commit::sync_all(root)?)).await?;
        self.is_dirty(volume).await
    }

    /// Whether anything was written since the base, as far as the kernel knows without a flush.
    pub(crate) async fn is_dirty(&self, volume: &Volume) -> Result<bool, Error> {
        let Some(base) = volume.look(|facts| facts.base.as_ref().map(|base| base.roots.clone())) else {
            return Ok(true);
        };
        let id = volume.id.clone();
        self.pool().run(move |root| Ok(local::roots(&local::live(root, &id)?)? != base)).await
    }
}
