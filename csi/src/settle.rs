//! What a copy is, decided from its record: at start, after the session was fenced, and after a write whose outcome was
//! not known. Nothing is dropped without a tombstone of the same birth or a place where everything in it is listed.

use std::sync::Arc;

use btrfs::Dir;
use cas::entry::data_head;
use cas::lifecycle;
use cas::record::State;
use cas::{Claim, Operation, Record, references, timeline};
use types::{Epoch, PackId, SessionId, VersionId, VolumeId};

use crate::about::About;
use crate::acquire::head_of;
use crate::error::Error;
use crate::layout::{self, OLD_PREFIX, Place};
use crate::local::{self, Taken};
use crate::node::Node;
use crate::volume::{Base, Head, Standing, Volume};

/// What is to be done with a copy that has a live tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// This session owns it.
    Keep(Epoch),
    /// Nobody does, and the head is behind live: take it again.
    TakeAgain,
    /// Somebody else went on from here, or this pool went back in time.
    Lost,
    /// Nobody was told that it exists; the retry of its request makes it anew.
    Unfinished,
    /// It was deleted.
    Tombstone,
    /// Nobody can say.
    Quarantine(&'static str),
}

/// Decides. `fenced`: the record's owner is a session that is fenced. `covered`: the head is among the versions behind
/// live (rule G).
pub(crate) fn judge(
    record: Option<&Record>,
    about: &About,
    me: SessionId,
    fenced: bool,
    covered: bool,
) -> Verdict {
    if about.unborn && record.is_none_or(|record| record.birth != about.birth) {
        return Verdict::Unfinished;
    }
    let Some(record) = record else { return Verdict::Quarantine("the store has no record of it") };
    if record.birth != about.birth {
        return Verdict::Quarantine("the store's record of this id is another volume's");
    }
    match record.state {
        State::Deleted | State::Purged => Verdict::Tombstone,
        State::Creating => Verdict::Unfinished,
        State::Live => match record.owner {
            Some(owner) if owner == me && covered => Verdict::Keep(record.epoch),
            None if covered => Verdict::TakeAgain,
            Some(_) if fenced && covered => Verdict::TakeAgain,
            Some(_) | None => Verdict::Lost,
        },
    }
}

impl Node {
    /// Looks at the record and makes the copy what it should be. The caller has the lock.
    pub(crate) async fn settle_locked(self: &Arc<Self>, volume: &Arc<Volume>) -> Result<(), Error> {
        let session = self.session()?;
        // What was sent and not answered is sent again, until it is known how it ended.
        session.settle().await?;
        self.settle_release(volume).await?;
        let stored = cas::record::read(self.store(), &volume.id).await?;
        let record = stored.as_ref().map(|stored| &stored.value);
        let owner = record.and_then(|record| record.owner);
        let fenced = match owner {
            Some(owner) if owner != session.id() => cas::session::is_fenced(self.store(), &owner).await?,
            Some(_) | None => false,
        };
        let covered = record.is_some_and(|record| self.known(volume).covers(&record.head_tips()));
        let about = volume.facts().about;
        let verdict = judge(record, &about, session.id(), fenced, covered);
        tracing::debug!(volume = %volume.id, ?verdict, "settled");
        if about.unborn && matches!(verdict, Verdict::Keep(_) | Verdict::TakeAgain | Verdict::Lost) {
            // Its record names a version of it: it was made, and the crash came before that was noted.
            let about = About { unborn: false, ..about.clone() };
            self.set_about(&volume.id, &about).await?;
            volume.update(|facts| facts.about = about);
        }
        match (verdict, record) {
            (Verdict::Keep(epoch), Some(record)) => {
                volume.update(|facts| facts.standing = Standing::Owned { session: session.id(), epoch });
                self.catch_up(volume, record).await?;
            }
            (Verdict::TakeAgain, Some(record)) => self.take_again(volume, record).await?,
            (Verdict::Lost, Some(record)) => self.lose(volume, record, owner == Some(session.id())).await?,
            (Verdict::Tombstone, _) => self.bury(volume).await?,
            (Verdict::Unfinished, _) => {
                // Another node may be making it from the same record; that one is of another birth.
                let elsewhere = record.is_some_and(|record| record.birth != about.birth);
                if owner == Some(session.id()) || fenced || record.is_none() || elsewhere {
                    self.drop_copy(volume, false).await?;
                }
            }
            (Verdict::Quarantine(reason), _) => {
                tracing::warn!(volume = %volume.id, reason, "the copy is kept as it is");
                volume.update(|facts| facts.standing = Standing::Quarantined { reason: reason.to_owned() });
            }
            (verdict @ (Verdict::Keep(_) | Verdict::TakeAgain | Verdict::Lost), None) => {
                unreachable!("{verdict:?} needs a record");
            }
        }
        self.volumes().touch(&volume.id);
        Ok(())
    }

    /// Nobody owns it and nobody went on from here.
    async fn take_again(self: &Arc<Self>, volume: &Arc<Volume>, record: &Record) -> Result<(), Error> {
        let at_head =
            volume.facts().base.map(|base| base.tree.version) == head_of(record).ok().map(|h| h.tree.version);
        // A file call that came in before the place was lost may still write.
        let closed = volume.close().await?;
        let given_up = record.owner.is_none() && at_head && !self.is_written(volume).await?;
        if given_up && self.require_unmounted(&volume.id).is_ok() {
            // A release that died between the record and the copy.
            volume.update(|facts| facts.standing = Standing::Relative);
            return self.drop_copy(volume, true).await;
        }
        drop(closed);
        let session = self.session()?;
        let acquired =
            lifecycle::acquire(&session, &volume.id, &record.head_tips(), false).await?.into_inner();
        tracing::info!(volume = %volume.id, epoch = %acquired.claim.epoch, "taken again");
        volume.update(|facts| {
            facts.standing = Standing::Owned { session: session.id(), epoch: acquired.claim.epoch };
        });
        self.catch_up(volume, &acquired.record.value).await
    }

    /// The record's head is behind live. Where it is not the base, a crash came between the record and the pool.
    async fn catch_up(self: &Arc<Self>, volume: &Arc<Volume>, record: &Record) -> Result<(), Error> {
        let Ok(head) = head_of(record) else { return Ok(()) };
        let base = volume.facts().base;
        if base.as_ref().is_none_or(|base| base.tree.version != head.tree.version)
            && let Some(loan) = self.shelf().lend_of(&volume.id, &head.tree.version)
        {
            let (id, place) = (volume.id.clone(), loan.place().clone());
            let (related, uuid, roots) = self
                .pool()
                .run(move |root| {
                    let snapshot = root.open_beneath(place.path())?;
                    let related = is_related(root, &place, &local::live(root, &id)?)?;
                    Ok((related, local::marks(&snapshot)?.uuid, local::roots(&snapshot)?))
                })
                .await?;
            let new = Base { place: loan.place().clone(), tree: head.tree.clone(), uuid, roots };
            if related {
                // A sync whose base had not turned yet.
                self.turn_base(volume, new).await?;
            } else {
                // A restore whose tree had not been swapped yet.
                self.finish_restore(volume, record, head.clone(), new).await?;
            }
        }
        let unsettled = volume.update(|facts| {
            facts.head = Some(head);
            facts.trouble.clear();
            facts.swap_pending = false;
            std::mem::take(&mut facts.unsettled)
        });
        for place in unsettled {
            self.put_away(&place).await?;
        }
        Ok(())
    }

    async fn finish_restore(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        record: &Record,
        head: Head,
        base: Base,
    ) -> Result<(), Error> {
        tracing::info!(volume = %volume.id, "a restore that was interrupted is finished");
        if self.is_written(volume).await? {
            self.keep_aside(volume, layout::DATA, record.epoch, "written during a restore").await?;
        }
        let group = volume.facts().about.group.map(local::group);
        let staged = self.materialise(record, &base.tree, group).await?;
        let entry = head.entry;
        self.swap(volume, &staged.name, base, entry).await?;
        self.pool().commit().await
    }

    /// It was deleted, and the copy goes, but for a mount. What is in it and was never published stays as an orphan: the
    /// deletion was forced on an owner that lived.
    async fn bury(self: &Arc<Self>, volume: &Arc<Volume>) -> Result<(), Error> {
        let epoch = match volume.facts().standing {
            Standing::Owned { epoch, .. } | Standing::Fenced { epoch } => epoch,
            Standing::Relative | Standing::Quarantined { .. } => Epoch(0),
        };
        // Not a relative yet: it is looked at again until its last mount is gone.
        volume.update(|facts| facts.standing = Standing::Fenced { epoch });
        if self.require_unmounted(&volume.id).is_err() {
            return Ok(());
        }
        let _closed = volume.close().await?;
        if self.is_written(volume).await? {
            self.keep_aside(volume, layout::DATA, epoch, "deleted before it was published").await?;
        }
        tracing::info!(volume = %volume.id, "the copy of a deleted volume is dropped");
        volume.update(|facts| facts.standing = Standing::Relative);
        self.drop_copy(volume, false).await
    }

    /// Keeps what is here and listed nowhere as an orphan, then drops the copy. While it is mounted it stays.
    async fn lose(self: &Arc<Self>, volume: &Arc<Volume>, record: &Record, mine: bool) -> Result<(), Error> {
        let epoch = match volume.facts().standing {
            Standing::Owned { epoch, .. } | Standing::Fenced { epoch } => epoch,
            Standing::Relative | Standing::Quarantined { .. } => Epoch(0),
        };
        volume.update(|facts| facts.standing = Standing::Fenced { epoch });
        if self.require_unmounted(&volume.id).is_err() {
            return Ok(());
        }
        let closed = volume.close().await?;
        // Where the head could not be loaded the last time, nothing is left here to keep.
        if self.has_live(volume).await? {
            let listed = match volume.facts().base {
                Some(base) => {
                    timeline::find_version(self.store(), record, &base.tree.version).await?.is_some()
                }
                None => false,
            };
            if !listed || self.is_written(volume).await? {
                self.keep_aside(volume, layout::DATA, epoch, "its owner lost its place").await?;
            }
            self.drop_copy(volume, true).await?;
        }
        volume.update(|facts| facts.standing = Standing::Relative);
        // What is loaded closes it again.
        drop(closed);
        if mine {
            // This pool went back in time. The head is loaded again; until it is, this is looked at again.
            tracing::warn!(volume = %volume.id, "the copy is of another time than its record; the head is loaded again");
            if let Err(error) = self.acquire_locked(&volume.id, false).await {
                volume.update(|facts| facts.standing = Standing::Fenced { epoch });
                return Err(error);
            }
        }
        Ok(())
    }

    async fn has_live(&self, volume: &Volume) -> Result<bool, Error> {
        let id = volume.id.clone();
        self.pool()
            .run(move |root| match local::live(root, &id) {
                Ok(_) => Ok(true),
                Err(Error::NotHere { .. }) => Ok(false),
                Err(error) => Err(error),
            })
            .await
    }

    /// Stores a tree of the volume's directory as a branch of the volume, or as an orphan record where its place is lost,
    /// unless its version is listed already.
    async fn keep_aside(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        tree: &str,
        epoch: Epoch,
        reason: &str,
    ) -> Result<Option<VersionId>, Error> {
        let session = self.session()?;
        let operation = session.begin()?;
        let (id, name) = (volume.id.clone(), tree.to_owned());
        let facts = volume.facts();
        let base = facts.base.clone();
        let (taken, related) = self
            .pool()
            .run(move |root| {
                let tree = local::directory(root, &id)?.open_dir(&name)?;
                let related = match &base {
                    Some(base) => is_related(root, &base.place, &tree)?,
                    None => false,
                };
                Ok((local::take(root, &id, &tree)?, related))
            })
            .await?;
        let base = facts.base.as_ref().filter(|_| related);
        let kept = async {
            // The orphan will name the base's packs. Where nothing lists the base any more, collection may have them.
            let base = match base {
                Some(base) if self.is_listed(&operation, &volume.id, base).await? => Some(base),
                Some(_) | None => None,
            };
            let written = self.store_tree(&operation, &facts, &volume.id, &taken, base, false).await?;
            let record = cas::record::read(self.store(), &volume.id).await?;
            if let Some(record) = record
                && timeline::find_version(self.store(), &record.value, &written.tree.version).await?.is_some()
            {
                return Ok(None);
            }
            let version = written.tree.version;
            let heads = data_head(written.tree);
            if let Ok(claim) = volume.claim(session.id()) {
                // Still ours: it stands beside the line.
                let known = self.known(volume);
                let branch = lifecycle::keep_branch(&operation, &claim, &known, heads, reason).await?;
                tracing::warn!(volume = %volume.id, ?branch, version = %version.short(), reason, "kept as a branch");
                return Ok(Some(version));
            }
            let lost = Claim { id: volume.id.clone(), birth: facts.about.birth, epoch };
            let orphan = lifecycle::make_orphan(&operation, &lost, &facts.domain, heads, reason).await?.into_inner();
            tracing::warn!(volume = %volume.id, orphan = %orphan.value.id, version = %version.short(), reason, "kept as an orphan");
            Ok(Some(version))
        }
        .await;
        self.drop_snapshot(volume, &taken).await;
        kept
    }

    /// Confirms what a new record may share with a volume's base (rule R, c). `false`: nothing, its bytes are put again.
    async fn is_listed(&self, operation: &Operation, id: &VolumeId, base: &Base) -> Result<bool, Error> {
        let confirmed = async {
            let manifest = self.reader().manifest(&base.tree).await?;
            let packs = manifest.packs.iter().map(|needed| PackId::clone(&needed.pack)).collect();
            references::confirm_version(operation, id, &base.tree.version, &packs).await
        };
        match confirmed.await {
            Ok(_) => Ok(true),
            Err(
                cas::Error::NoVolume { .. }
                | cas::Error::NoVersion { .. }
                | cas::Error::WrongState { .. }
                | cas::Error::Condemned { .. },
            ) => Ok(false),
            Err(cas::Error::Tree(error)) if error.is_damage() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn drop_snapshot(&self, volume: &Volume, taken: &Taken) {
        let (id, name) = (volume.id.clone(), taken.name.clone());
        if let Err(error) = self.pool().run(move |root| local::drop_taken(root, &id, &name)).await {
            tracing::warn!(volume = %volume.id, %error, "a snapshot could not be dropped; the next start sweeps it");
        }
    }

    /// Deletes the trees that restores replaced, once no mount shows them. What was still written to them is kept.
    pub(crate) async fn drop_old_trees(self: &Arc<Self>, volume: &Arc<Volume>) -> Result<(), Error> {
        let id = volume.id.clone();
        for name in self.pool().run(move |root| old_trees(root, &id)).await? {
            if !self.pool().mounts_below(&format!("{}/{name}", layout::volume(&volume.id)))?.is_empty() {
                continue;
            }
            let (id, old) = (volume.id.clone(), name.clone());
            let written = self
                .pool()
                .run(move |root| {
                    btrfs::commit::sync_all(root)?;
                    let roots = local::roots(&local::directory(root, &id)?.open_dir(&old)?)?;
                    let mark = old.rsplit_once('.').and_then(|(_, mark)| mark.parse::<u64>().ok());
                    Ok(roots.len() > 1 || roots.values().next().copied() != mark)
                })
                .await?;
            if written {
                let epoch = volume.claim(self.session()?.id()).map_or(Epoch(0), |claim| claim.epoch);
                self.keep_aside(volume, &name, epoch, "written under a mount after a restore").await?;
            }
            let (id, old) = (volume.id.clone(), name);
            self.pool()
                .run(move |root| crate::pool::remove_tree(&local::directory(root, &id)?, old.as_ref()))
                .await?;
        }
        let id = volume.id.clone();
        let left = self.pool().run(move |root| old_trees(root, &id)).await?;
        volume.update(|facts| facts.restart_to_see_it = !left.is_empty());
        self.volumes().touch(&volume.id);
        Ok(())
    }
}

/// The trees that restores replaced.
fn old_trees(root: &Dir, id: &VolumeId) -> Result<Vec<String>, Error> {
    let directory = match local::directory(root, id) {
        Err(Error::NotHere { .. }) => return Ok(Vec::new()),
        directory => directory?,
    };
    let names = directory.entries()?.into_iter().filter_map(|name| name.into_string().ok());
    Ok(names.filter(|name| name.starts_with(OLD_PREFIX)).collect())
}

/// Whether a snapshot was taken from a tree, or the tree cloned from it.
fn is_related(root: &Dir, place: &Place, live: &Dir) -> Result<bool, Error> {
    let (snapshot, live) = (local::marks(&root.open_beneath(place.path())?)?, local::marks(live)?);
    Ok(snapshot.parent == Some(live.uuid) || live.parent == Some(snapshot.uuid))
}
