//! Create: the record first (creating, without references), then the tree, then the record's first version. What is made
//! from a version that is in the pool is a [fork](crate::fork), and moves no data.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use btrfs::GroupId;
use cas::entry::data_head;
use cas::lifecycle::{self, Confirmed};
use cas::record::{NewRecord, Origin, Quota, RecordKind, State};
use cas::{Claim, Operation, Record, Session, Stored, VersionRef, references, timeline};
use types::{Birth, Change, Domain, EntryId, MemberName, PackId, RequestId, VersionId, VolumeId};

use crate::about::About;
use crate::account::{enforce, measured};
use crate::error::Error;
use crate::layout::STAGING;
use crate::local::{self, Taken};
use crate::materialise::Staged;
use crate::node::Node;
use crate::quota_class::QuotaClass;
use crate::volume::{Base, Facts, Head, Standing, Volume};

/// What is to be made.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// Its id, made from the request.
    pub id: VolumeId,
    /// The request that makes it.
    pub request: RequestId,
    /// What it begins as; nothing: an empty directory.
    pub origin: Option<(VolumeId, VersionId)>,
    /// Its limit; none is unlimited, which somebody asked for.
    pub limit_bytes: Option<u64>,
    /// Its dedup domain, if not that of its origin.
    pub domain: Option<Domain>,
    /// What the creator attaches.
    pub attributes: BTreeMap<String, String>,
}

/// What a volume is made from.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    id: VolumeId,
    pub(crate) tree: VersionRef,
    /// As it was read by the operation that makes the volume.
    record: Stored<Record>,
    entry: EntryId,
}

/// A volume that is here now.
#[derive(Debug)]
pub(crate) struct Created {
    /// By this call, or before it.
    pub(crate) change: Change<Arc<Volume>>,
    /// Its record as this call wrote it.
    pub(crate) record: Option<Stored<Record>>,
}

impl Created {
    pub(crate) fn before(volume: Arc<Volume>) -> Self {
        Self { change: Change::Already(volume), record: None }
    }
}

/// A new tree with its version, in its place, not yet in the record.
struct Built {
    base: Base,
}

impl Node {
    /// Makes a volume. The same request again finds what the first one made.
    ///
    /// # Errors
    /// The id is taken, the origin is not there, or pool or store failed.
    pub async fn create(self: &Arc<Self>, request: CreateRequest) -> Result<Change<Arc<Volume>>, Error> {
        Ok(Box::pin(self.create_told(request)).await?.change)
    }

    /// The same, with the record of what was made.
    ///
    /// # Errors
    /// Those of [`Self::create`].
    pub(crate) async fn create_told(self: &Arc<Self>, request: CreateRequest) -> Result<Created, Error> {
        let guard = self.locks().try_acquire(&request.id, "create")?;
        let node = Arc::clone(self);
        self.detached("create", async move {
            let _guard = guard;
            node.create_locked(request).await
        })
        .await
    }

    async fn create_locked(self: &Arc<Self>, request: CreateRequest) -> Result<Created, Error> {
        let session = self.session()?;
        if let Some(volume) = self.volumes().find(&request.id)
            && matches!(volume.facts().standing, Standing::Owned { .. })
        {
            return Ok(Created::before(self.created_before(&request, volume).await?));
        }
        let operation = session.begin()?;
        if let Some((_, version)) = &request.origin
            && let Some(loan) = self.shelf().lend(version)
            && let Some(forked) = Box::pin(self.fork_here(&session, &operation, &request, loan)).await?
        {
            return Ok(forked);
        }
        let (room, source) = tokio::join!(self.pool().require_room(), self.source(&request));
        room?;
        let source = source?;
        // Without a limit while it is filled; nobody can write to it before it is answered.
        let group = self.new_group(None).await?;
        // What is staged is nobody's yet, so the record may be written meanwhile.
        let (begun, staged) = tokio::join!(
            self.begin(&session, &request, source.as_ref(), Birth::random()),
            self.stage(source.as_ref(), group)
        );
        let (record, staged) = match (begun, staged) {
            (Ok(record), Ok(staged)) => (record, staged),
            (begun, staged) => {
                if let Ok(staged) = &staged {
                    self.unstage(&staged.name).await;
                }
                self.drop_group(group).await;
                staged?;
                begun?;
                unreachable!("one of the two failed");
            }
        };
        if record.value.state == State::Live {
            // Made by an attempt whose answer was lost; the copy went with a crash or is on its way here.
            self.unstage(&staged.name).await;
            self.drop_group(group).await;
            return Ok(Created::before(self.acquire_locked(&request.id, false).await?));
        }
        let mut about = About {
            birth: record.value.birth,
            group: group.map(GroupId::number),
            limit_bytes: request.limit_bytes,
            offset_bytes: 0,
            unborn: false,
            class: QuotaClass::of(&request.attributes),
            releasing: false,
        };
        let claim = Claim::of(&record.value);
        let finished = self.finish(&operation, record, &mut about, staged, source.as_ref()).await;
        let (record, base) = match finished {
            Ok(finished) => finished,
            Err(error) => {
                self.abandon(&request.id, group, &error).await;
                return Err(error);
            }
        };
        let change = Change::Made(self.born(&session, &claim, &record.value, about, base));
        Ok(Created { change, record: Some(record) })
    }

    /// Notes a volume that was made and is this session's.
    pub(crate) fn born(
        &self,
        session: &Session,
        claim: &Claim,
        record: &Record,
        about: About,
        base: Base,
    ) -> Arc<Volume> {
        let facts = Facts {
            standing: Standing::Owned { session: session.id(), epoch: claim.epoch },
            head: record.head.map(|entry| Head { entry, tree: base.tree.clone() }),
            base: Some(base),
            origin: record.origin.clone(),
            last_sync: Some(self.store().clock().now()),
            settings_of: crate::settings::born_with(&record.attributes, claim.epoch),
            ..Facts::new(about, record.domain.clone())
        };
        tracing::info!(volume = %record.id, "created");
        self.volumes().insert(Volume::new(record.id.clone(), facts))
    }

    /// A volume of this id is here already: this request's, or another's.
    async fn created_before(
        &self,
        request: &CreateRequest,
        volume: Arc<Volume>,
    ) -> Result<Arc<Volume>, Error> {
        let record = cas::record::get(self.store(), &request.id).await?.value;
        let exists = |why: &str| Error::Exists { volume: request.id.clone(), why: why.to_owned() };
        if record.request != request.request {
            return Err(exists("another request made it"));
        }
        let origin = |record: &Record| {
            let origin = record.origin.as_ref()?;
            Some((origin.volume.clone(), *origin.versions.get(&MemberName::data())?))
        };
        if origin(&record) != request.origin {
            return Err(exists("it has another origin"));
        }
        Ok(volume)
    }

    pub(crate) async fn source(&self, request: &CreateRequest) -> Result<Option<Source>, Error> {
        let Some((id, version)) = &request.origin else { return Ok(None) };
        let record = cas::record::read(self.store(), id).await?;
        let record = record.ok_or_else(|| Error::NoRecord { volume: id.clone() })?;
        let missing = || Error::NoVersion { volume: id.clone(), version: *version };
        let entry =
            timeline::find_version(self.store(), &record.value, version).await?.ok_or_else(missing)?;
        let tree = entry.heads.get(&MemberName::data()).ok_or_else(missing)?.clone();
        Ok(Some(Source { id: id.clone(), tree, record, entry: entry.id }))
    }

    pub(crate) async fn begin(
        &self,
        session: &Session,
        request: &CreateRequest,
        source: Option<&Source>,
        birth: Birth,
    ) -> Result<Stored<Record>, Error> {
        let domain = match (&request.domain, source) {
            (Some(domain), _) => domain.clone(),
            (None, Some(source)) => source.record.value.domain.clone(),
            (None, None) => Domain::default_domain(),
        };
        let new = NewRecord {
            id: request.id.clone(),
            kind: RecordKind::Volume,
            domain,
            owner: session.id(),
            node: self.name().clone(),
            origin: source.map(|source| Origin {
                volume: source.id.clone(),
                entry: Some(source.entry),
                versions: cas::entry::tips(&data_head(source.tree.clone())),
            }),
            request: request.request.clone(),
            quota: Quota { limit_bytes: request.limit_bytes, charge_bytes: 0 },
            attributes: request.attributes.clone(),
        };
        let record = lifecycle::begin_create_born(self.store(), new, birth).await?.into_inner();
        let exists = |why: &str| Error::Exists { volume: request.id.clone(), why: why.to_owned() };
        match (record.value.state, record.value.owner) {
            (State::Creating | State::Live, Some(owner)) if owner == session.id() => Ok(record),
            (State::Live, None) => Ok(record),
            (State::Creating | State::Live, Some(owner)) => {
                Err(Error::Owned { volume: request.id.clone(), owner })
            }
            (State::Creating, None) => {
                Err(Error::Busy { volume: request.id.clone(), running: "another create" })
            }
            (State::Deleted | State::Purged, _) => {
                Err(exists("it was deleted, and an id is never used twice"))
            }
        }
    }

    async fn stage(
        self: &Arc<Self>,
        source: Option<&Source>,
        group: Option<GroupId>,
    ) -> Result<Staged, Error> {
        match source {
            Some(source) => self.materialise(&source.record.value, &source.tree, group).await,
            None => {
                let name = self.pool().run(move |root| local::stage_empty(root, group)).await?;
                Ok(Staged { name, same: None })
            }
        }
    }

    async fn finish(
        self: &Arc<Self>,
        operation: &Operation,
        record: Stored<Record>,
        about: &mut About,
        staged: Staged,
        source: Option<&Source>,
    ) -> Result<(Stored<Record>, Base), Error> {
        let id = &record.value.id;
        // What an attempt before this one left; nobody was told of it.
        let stale = id.clone();
        self.pool().run(move |root| local::drop_live(root, &stale)).await?;
        let Built { base } = self.build(operation, &record, about, staged, source).await?;
        // A fork is charged for what it writes from now on, whether it was cloned here or came from the store.
        *about = self.set_limit(id, about.clone(), 0).await?;
        self.pool().commit().await?;
        let confirmed = self.confirm_record(operation, record, source).await?;
        let record = self.finish_record(operation, confirmed, source, base.tree.clone()).await?;
        Ok((record, base))
    }

    /// Proves what a record that was just begun is about to refer to, and that this session may write it.
    pub(crate) async fn confirm_record(
        &self,
        operation: &Operation,
        begun: Stored<Record>,
        source: Option<&Source>,
    ) -> Result<Confirmed, Error> {
        if let Some(source) = source {
            let packs: BTreeSet<PackId> = self
                .reader()
                .manifest(&source.tree)
                .await?
                .packs
                .iter()
                .map(|pack| (*pack.pack).clone())
                .collect();
            let version = &source.tree.version;
            match references::confirm_listed(operation, &source.record.value, version, &packs).await {
                // The collection is about to rewrite one of them: wait for it.
                Err(cas::Error::Condemned { .. }) => {
                    references::confirm_version(operation, &source.id, version, &packs).await?;
                }
                confirmed => drop(confirmed?),
            }
        }
        Ok(lifecycle::confirm_begun(operation, begun).await?)
    }

    /// Gives a record that was confirmed its first version, which is committed here.
    pub(crate) async fn finish_record(
        &self,
        operation: &Operation,
        confirmed: Confirmed,
        source: Option<&Source>,
        tree: VersionRef,
    ) -> Result<Stored<Record>, Error> {
        let label = if source.is_some() { "forked" } else { "created" };
        let heads = Some(data_head(tree));
        Ok(lifecycle::finish_begun(operation, confirmed, heads, label).await?.into_inner())
    }

    /// Gives what is staged its facts, its base and its place.
    async fn build(
        self: &Arc<Self>,
        operation: &Operation,
        record: &Stored<Record>,
        about: &About,
        staged: Staged,
        source: Option<&Source>,
    ) -> Result<Built, Error> {
        let (id, about) = (record.value.id.clone(), about.clone());
        match (&staged.same, source) {
            (Some(loan), Some(source)) => {
                let (place, name) = (loan.place().clone(), staged.name.clone());
                self.shelf().rebase(&id, Some(&place));
                let link = place.clone();
                let (uuid, roots) = self
                    .pool()
                    .run(move |root| {
                        drop(local::make_directory(root, &id)?);
                        local::set_about(root, &id, &about)?;
                        local::set_base(root, &id, &link)?;
                        local::move_in(root, &name, &id)?;
                        let roots = local::roots(&local::live(root, &id)?)?;
                        Ok((local::marks(&root.open_beneath(link.path())?)?.uuid, roots))
                    })
                    .await?;
                Ok(Built { base: Base { place, tree: source.tree.clone(), uuid, roots } })
            }
            (_, source) => {
                let taken = self.take_staged(&id, &about, &staged.name).await?;
                let tree = match source {
                    Some(source) => source.tree.clone(),
                    None => {
                        let facts = Facts::new(about, record.value.domain.clone());
                        self.store_tree(operation, &facts, &id, &taken, None, false).await?.tree
                    }
                };
                let base = self.settle_in(&id, &staged.name, taken, tree).await?;
                Ok(Built { base })
            }
        }
    }

    /// Makes a volume's directory and takes the snapshot that will be its base, which also writes what was restored.
    pub(crate) async fn take_staged(
        &self,
        id: &VolumeId,
        about: &About,
        staged: &str,
    ) -> Result<Taken, Error> {
        let (id, about, staged) = (id.clone(), about.clone(), staged.to_owned());
        self.pool()
            .run(move |root| {
                drop(local::make_directory(root, &id)?);
                local::set_about(root, &id, &about)?;
                local::take(root, &id, &root.open_dir(STAGING)?.open_dir(&staged)?)
            })
            .await
    }

    /// Names the snapshot, notes it as the base, and puts the staged tree into its place.
    pub(crate) async fn settle_in(
        &self,
        id: &VolumeId,
        staged: &str,
        taken: Taken,
        tree: VersionRef,
    ) -> Result<Base, Error> {
        let (volume, staged, version) = (id.clone(), staged.to_owned(), tree.version);
        let name = taken.name.clone();
        let place = self
            .pool()
            .run(move |root| {
                let place = local::name_taken(root, &volume, &name, &version)?;
                local::set_base(root, &volume, &place)?;
                local::move_in(root, &staged, &volume)?;
                Ok(place)
            })
            .await?;
        let free = self.shelf().rebase(id, Some(&place));
        self.pool().run(move |root| local::delete_places(root, &free)).await?;
        Ok(Base { place, tree, uuid: taken.marks.uuid, roots: taken.roots })
    }

    /// A create failed after something was put in place. Where the record may still become live, the copy stays: the
    /// retry or the next start finds it.
    pub(crate) async fn abandon(&self, id: &VolumeId, group: Option<GroupId>, error: &Error) {
        if !matches!(error, Error::Cas(cas::Error::Unsettled { .. })) {
            self.uproot(id, group).await;
        }
    }

    /// Drops a copy that nobody was told of.
    pub(crate) async fn uproot(&self, id: &VolumeId, group: Option<GroupId>) {
        let free = self.shelf().rebase(id, None);
        let gone = id.clone();
        let undone = self
            .pool()
            .run(move |root| {
                local::drop_live(root, &gone)?;
                local::delete_places(root, &free)
            })
            .await;
        if let Err(undo) = undone {
            tracing::warn!(volume = %id, error = %undo, "a half-made volume could not be dropped; the next start does it");
        }
        self.drop_group(group).await;
    }

    /// Sets the limit of a copy so that as much is left as elsewhere, where `charged` bytes count for it now.
    pub(crate) async fn set_limit(&self, id: &VolumeId, about: About, charged: u64) -> Result<About, Error> {
        let id = id.clone();
        self.pool().run(move |root| enforce(root, &id, measured(root, about, charged)?)).await
    }

    /// Notes what a copy's group is charged here beyond the `charged` bytes that count for it.
    pub(crate) async fn note_offset(
        &self,
        id: &VolumeId,
        about: About,
        charged: u64,
    ) -> Result<About, Error> {
        let id = id.clone();
        self.pool()
            .run(move |root| {
                let about = measured(root, about, charged)?;
                local::set_about(root, &id, &about)?;
                Ok(about)
            })
            .await
    }

    /// Makes a quota group, where there are quotas.
    pub(crate) async fn new_group(&self, limit_bytes: Option<u64>) -> Result<Option<GroupId>, Error> {
        if !self.pool().has_quota() {
            return Ok(None);
        }
        self.pool().run(move |root| Ok(Some(local::group(local::make_group(root, limit_bytes)?)))).await
    }

    /// Removes a quota group that turned out not to be needed. One that still has members goes when they are cleaned.
    pub(crate) async fn drop_group(&self, group: Option<GroupId>) {
        let Some(group) = group else { return };
        let dropped = self.pool().run(move |root| Ok(btrfs::quota::remove_group(root, group)?)).await;
        if let Err(error) = dropped {
            tracing::debug!(%group, %error, "the quota group stays until its members are cleaned");
            self.add_spare_group(group);
        }
    }
}
