//! Release: what is new is published, the record has no owner any more, and only then the copy goes.

use std::sync::Arc;

use types::{Epoch, VersionId, VolumeId};

use crate::about::About;
use crate::basis::Basis;
use crate::error::Error;
use crate::local;
use crate::node::Node;
use crate::sync::{Manner, SyncRequest};
use crate::volume::{Standing, Volume};

/// What a volume was when it was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// The durable head.
    pub version: VersionId,
    /// The epoch that ended.
    pub epoch: Epoch,
}

impl Node {
    /// Publishes what is new, then gives the volume up. Its base stays as a relative where `keep_copy` asks for it.
    ///
    /// # Errors
    /// It is mounted or not this node's, or pool or store failed; then it is still this node's.
    pub async fn release(self: &Arc<Self>, id: &VolumeId, keep_copy: bool) -> Result<Released, Error> {
        self.release_if(id, keep_copy, Basis::default()).await
    }

    /// The same, if the volume is still held under the epoch that the order was decided on.
    ///
    /// # Errors
    /// Those of [`Self::release`], and [`Error::Late`].
    pub async fn release_if(
        self: &Arc<Self>,
        id: &VolumeId,
        keep_copy: bool,
        basis: Basis,
    ) -> Result<Released, Error> {
        let volume = self.volumes().get(id)?;
        let guard = self.locks().try_acquire(id, "release")?;
        let node = Arc::clone(self);
        self.detached("release", async move {
            let _guard = guard;
            node.release_locked(&volume, keep_copy, basis).await
        })
        .await
    }

    async fn release_locked(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        keep_copy: bool,
        basis: Basis,
    ) -> Result<Released, Error> {
        let claim = volume.claim(self.session()?.id())?;
        basis.check_epoch(&volume.id, claim.epoch)?;
        self.require_unmounted(&volume.id)?;
        let _closed = volume.close().await?;
        // Before the record's write is sent: it may arrive in the next life of this node, after somebody has written.
        self.note_release(&volume.id, true).await?;
        self.pool().commit().await?;
        let manner = Manner { release: true, ..Manner::default() };
        let synced = match self.sync_locked(volume, &SyncRequest::plain(), manner).await {
            Ok(synced) => synced,
            Err(error) => {
                if !matches!(error, Error::Cas(cas::Error::Unsettled { .. })) {
                    self.note_release(&volume.id, false).await?;
                }
                return Err(error);
            }
        };
        tracing::info!(volume = %volume.id, version = %synced.version.short(), keep_copy, "released");
        volume.update(|facts| facts.standing = Standing::Relative);
        // Somebody may have mounted it since the look above. The record is given up, so what they write is an orphan; it
        // must not be deleted under them.
        if let Err(error) = self.require_unmounted(&volume.id) {
            volume.update(|facts| facts.standing = Standing::Fenced { epoch: synced.epoch });
            return Err(error);
        }
        self.drop_copy(volume, keep_copy).await?;
        Ok(Released { version: synced.version, epoch: synced.epoch })
    }

    /// Notes in the pool whether a release may be under way.
    async fn note_release(&self, id: &VolumeId, releasing: bool) -> Result<(), Error> {
        let volume = id.clone();
        self.pool()
            .run(move |root| match local::about(root, &volume)? {
                Some(about) => local::set_about(root, &volume, &About { releasing, ..about }),
                None => Ok(()),
            })
            .await
    }

    /// Makes sure that a release which an earlier life of this node may have sent cannot happen any more: the record gets
    /// another state, if it is still ours.
    pub(crate) async fn settle_release(&self, volume: &Volume) -> Result<(), Error> {
        let about = volume.facts().about;
        if !about.releasing {
            return Ok(());
        }
        match cas::update::touch(self.store(), &self.session()?.id(), &volume.id).await {
            Ok(_) | Err(cas::Error::NoVolume { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.note_release(&volume.id, false).await?;
        volume.update(|facts| facts.about.releasing = false);
        Ok(())
    }

    /// Refuses what must not be done under a mount.
    ///
    /// # Errors
    /// [`Error::Mounted`].
    pub(crate) fn require_unmounted(&self, id: &VolumeId) -> Result<(), Error> {
        let points = self.pool().mounts_below(&crate::layout::volume(id))?;
        if points.is_empty() { Ok(()) } else { Err(Error::Mounted { volume: id.clone(), points }) }
    }

    /// Drops the live tree, which the caller knows to be safe elsewhere. With `keep_base` its base stays as a relative.
    pub(crate) async fn drop_copy(self: &Arc<Self>, volume: &Volume, keep_base: bool) -> Result<(), Error> {
        let id = volume.id.clone();
        let facts = volume.facts();
        if keep_base && let Some(base) = &facts.base {
            let (place, kept) = (base.place.clone(), id.clone());
            // With its group: the base's bytes are charged there, and so is whatever grows from it.
            let about = facts.about.clone();
            self.pool()
                .run(move |root| {
                    local::drop_live(root, &kept)?;
                    drop(local::make_directory(root, &kept)?);
                    local::set_about(root, &kept, &about)?;
                    local::set_base(root, &kept, &place)
                })
                .await?;
            self.volumes().touch(&id);
        } else {
            let mut free = self.shelf().rebase(&id, None);
            free.extend(self.shelf().of_volume(&id).into_iter().filter(|place| self.shelf().release(place)));
            let gone = id.clone();
            self.pool()
                .run(move |root| {
                    local::drop_live(root, &gone)?;
                    local::delete_places(root, &free)
                })
                .await?;
            self.volumes().remove(&id);
            self.forget_holding(id);
            self.drop_group(facts.about.group.map(local::group)).await;
        }
        Ok(())
    }

    /// Tells the record that this pool has no copy any more. Nothing waits for it: a holder too many only delays the
    /// removal of a tombstone.
    fn forget_holding(self: &Arc<Self>, id: VolumeId) {
        let node = Arc::clone(self);
        self.tasks().spawn(async move {
            let Ok(session) = node.session() else { return };
            match cas::lifecycle::forget_copy(&session, &id).await {
                Ok(_) | Err(cas::Error::Owned { .. } | cas::Error::NoVolume { .. }) => {}
                Err(error) => {
                    tracing::debug!(volume = %id, %error, "the record still names this pool as a holder");
                }
            }
        });
    }
}
