//! Restore-to: a volume's tree becomes that of an earlier entry. The record moves before the tree is swapped, and what
//! was there stays as a branch. A start that finds a clean base behind a head that is among the snapshots swaps.

use std::path::Path;
use std::sync::Arc;

use cas::lifecycle::{self, Target};
use cas::{Record, Store, VersionRef, timeline};
use types::{EntryId, MemberName, VersionId, VolumeId};

use crate::basis::Basis;
use crate::deaths::{Point, pass};
use crate::error::Error;
use crate::layout::{self, DATA, OLD_PREFIX, STAGING};
use crate::local;
use crate::materialise::Staged;
use crate::node::Node;
use crate::sync::{Manner, SyncRequest};
use crate::volume::{Base, Head, Volume};

/// Which point of the timeline is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// This one.
    Entry(EntryId),
    /// The newest at this version.
    Version(VersionId),
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoredTo {
    /// The head now.
    pub version: VersionId,
    /// Its point on the timeline.
    pub entry: EntryId,
    /// The branch that holds what was there before.
    pub branch: String,
    /// A mount still shows the old tree.
    pub restart_to_see_it: bool,
}

impl Node {
    /// Makes the volume's tree that of an earlier entry.
    ///
    /// # Errors
    /// There is no such entry, the volume is not this node's, or pool or store failed.
    pub async fn restore(self: &Arc<Self>, id: &VolumeId, wanted: Wanted) -> Result<RestoredTo, Error> {
        self.restore_if(id, wanted, Basis::default()).await
    }

    /// The same, if the record is still what the order was decided on.
    ///
    /// # Errors
    /// Those of [`Self::restore`], and [`Error::Late`].
    pub async fn restore_if(
        self: &Arc<Self>,
        id: &VolumeId,
        wanted: Wanted,
        basis: Basis,
    ) -> Result<RestoredTo, Error> {
        let volume = self.volumes().get(id)?;
        let guard = self.locks().try_acquire(id, "restore")?;
        let node = Arc::clone(self);
        let work = async move {
            let _guard = guard;
            let result = Box::pin(node.restore_locked(&volume, wanted, basis)).await;
            if let Err(error) = &result {
                node.note_failure(&volume, error);
            }
            result
        };
        self.detached("restore", Box::pin(work)).await
    }

    async fn restore_locked(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        wanted: Wanted,
        basis: Basis,
    ) -> Result<RestoredTo, Error> {
        let session = self.session()?;
        let claim = volume.claim(session.id())?;
        // Before anything moves: a wish for an entry that is not there changes nothing.
        let record = cas::record::get(self.store(), &volume.id).await?.value;
        basis.check(&record)?;
        let (entry, tree) = find(self.store(), &record, wanted).await?;
        // From the last sync to the swap nothing may be written through file calls: it would be in no version.
        let _closed = volume.close().await?;
        self.sync_locked(volume, &SyncRequest::plain(), Manner::default()).await?;
        let group = volume.facts().about.group.map(local::group);
        let unlimited = volume.facts().about;
        let about = unlimited.clone();
        // The tree that is being made counts too until the other one is gone; the limit must not stop it half way.
        self.pool().run(move |root| local::limit(root, &unlimited, None)).await?;
        let made = async {
            let staged = self.materialise(&record, &tree, group).await?;
            self.base_of(&volume.id, &staged, &tree).await.map(|base| (staged, base))
        }
        .await;
        let limited = self.pool().run(move |root| local::limit(root, &about, about.kernel_limit())).await;
        let (staged, base) = made?;
        limited?;
        let kept_before = self.shelf().keep(&base.place);
        self.pool().commit().await?;
        let operation = session.begin()?;
        let known = self.known(volume);
        let moved =
            lifecycle::restore_head(&operation, &claim, &known, Target::Entry(entry), "restored").await;
        let moved = match moved {
            Ok(moved) => moved,
            Err(error) => {
                self.unstage(&staged.name).await;
                if matches!(error, cas::Error::Unsettled { .. }) {
                    // It may still happen; then the next start, or the next operation, swaps.
                    volume.update(|facts| facts.swap_is_pending(base.place.clone()));
                } else if !kept_before {
                    self.put_away(&base.place).await?;
                }
                return Err(error.into());
            }
        };
        let (version, place) = (base.tree.version, base.place.clone());
        // From here on live is behind the record. Whatever stops the swap, the next operation finishes it first.
        volume.update(|facts| facts.swap_is_pending(base.place.clone()));
        let restart_to_see_it = self.swap(volume, &staged.name, base, moved.entry).await?;
        volume.update(|facts| {
            facts.unsettled.clear();
            facts.swap_pending = false;
        });
        if !kept_before {
            self.put_away(&place).await?;
        }
        self.pool().commit().await?;
        tracing::info!(volume = %volume.id, version = %version.short(), restart_to_see_it, "restored");
        Ok(RestoredTo {
            version,
            entry: moved.entry,
            branch: moved.branch.unwrap_or_default(),
            restart_to_see_it,
        })
    }

    /// The read-only snapshot that the staged tree grew from, or a fresh one of it. It is the volume's own: a start that
    /// finds the record's head among these knows that a restore was cut short, and not that the pool went back in time.
    async fn base_of(&self, id: &VolumeId, staged: &Staged, tree: &VersionRef) -> Result<Base, Error> {
        let (id, name, version) = (id.clone(), staged.name.clone(), tree.version);
        let same = staged.same.as_ref().map(|loan| loan.place().clone());
        let same = same.filter(|place| place.owner().as_ref() == Some(&id));
        let (place, uuid, roots) = self
            .pool()
            .run(move |root| {
                let staged = root.open_dir(STAGING)?.open_dir(&name)?;
                if let Some(place) = same {
                    let uuid = local::marks(&root.open_beneath(place.path())?)?.uuid;
                    return Ok((place, uuid, local::roots(&staged)?));
                }
                let taken = local::take(root, &id, &staged)?;
                let place = local::name_taken(root, &id, &taken.name, &version)?;
                Ok((place, taken.marks.uuid, taken.roots))
            })
            .await?;
        Ok(Base { place, tree: tree.clone(), uuid, roots })
    }

    /// Puts the staged tree into the place of live, in one step. Returns true where a mount still shows the old one, which
    /// is then kept.
    pub(crate) async fn swap(
        self: &Arc<Self>,
        volume: &Volume,
        staged: &str,
        base: Base,
        entry: EntryId,
    ) -> Result<bool, Error> {
        let (id, staged) = (volume.id.clone(), staged.to_owned());
        // With the mark of the last sync in its name: whether it was written to afterwards is then asked without a scan.
        let mark = volume.facts().base.and_then(|base| base.roots.get(Path::new("")).copied()).unwrap_or(0);
        let old = format!("{OLD_PREFIX}{}.{mark}", layout::fresh());
        let name = old.clone();
        self.pool()
            .run(move |root| {
                let directory = local::directory(root, &id)?;
                // Beside live first: what is in staging is swept at a start, and after the swap that would be the old tree.
                root.open_dir(STAGING)?.rename(&staged, &directory, &name)?;
                pass(Point::BesideLive)?;
                directory.exchange(&name, &directory, DATA)?;
                pass(Point::Exchanged)
            })
            .await?;
        volume.update(|facts| facts.head = Some(Head { entry, tree: base.tree.clone() }));
        self.turn_base(volume, base).await?;
        self.volumes().touch(&volume.id);
        let path = format!("{}/{old}", layout::volume(&volume.id));
        let mounted = !self.pool().mounts_below(&path)?.is_empty();
        volume.update(|facts| facts.restart_to_see_it = mounted);
        if !mounted {
            let id = volume.id.clone();
            self.pool()
                .run(move |root| {
                    crate::pool::remove_tree(&local::directory(root, &id)?, old.as_ref())?;
                    pass(Point::OldDeleted)
                })
                .await?;
        }
        Ok(mounted)
    }
}

/// Finds the entry and its tree, in the record or in a page of older entries.
async fn find(store: &Store, record: &Record, wanted: Wanted) -> Result<(EntryId, VersionRef), Error> {
    let volume = &record.id;
    let entry = match wanted {
        Wanted::Entry(entry) => timeline::find_entry(store, record, &entry)
            .await?
            .ok_or_else(|| Error::NoEntry { volume: volume.clone(), entry })?,
        Wanted::Version(version) => timeline::find_version(store, record, &version)
            .await?
            .ok_or_else(|| Error::NoVersion { volume: volume.clone(), version })?,
    };
    let tree =
        entry.heads.get(&MemberName::data()).ok_or_else(|| Error::NoHead { volume: volume.clone() })?;
    Ok((entry.id, tree.clone()))
}
