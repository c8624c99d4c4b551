//! Delete: what is here is published, the record becomes a tombstone, and only then the copy goes. A volume that is not
//! there is deleted already.

use std::collections::BTreeMap;
use std::sync::Arc;

use cas::lifecycle::{self, Authority};
use cas::record::State;
use types::{Change, VolumeId};

use crate::error::Error;
use crate::node::Node;
use crate::sync::{Manner, SyncRequest};
use crate::volume::{Standing, Volume};

impl Node {
    /// Deletes a volume.
    ///
    /// # Errors
    /// It is mounted or another node's, or pool or store failed.
    pub async fn delete(self: &Arc<Self>, id: &VolumeId) -> Result<Change, Error> {
        self.delete_where(id, BTreeMap::new()).await
    }

    /// The same where the record's attributes are as `expected` (`None`: not there) when it becomes a tombstone.
    ///
    /// # Errors
    /// They are not, or those of [`Self::delete`].
    pub async fn delete_where(
        self: &Arc<Self>,
        id: &VolumeId,
        expected: BTreeMap<String, Option<String>>,
    ) -> Result<Change, Error> {
        let guard = self.locks().try_acquire(id, "delete")?;
        let (node, id) = (Arc::clone(self), id.clone());
        self.detached("delete", async move {
            let _guard = guard;
            node.delete_locked(&id, &expected).await
        })
        .await
    }

    async fn delete_locked(
        self: &Arc<Self>,
        id: &VolumeId,
        expected: &BTreeMap<String, Option<String>>,
    ) -> Result<Change, Error> {
        let session = self.session()?;
        self.require_unmounted(id)?;
        let volume = self.volumes().find(id);
        // Before anything is written: what is refused has not happened.
        let _deletion = match &volume {
            Some(_) => Some(self.begin_deletion().await?),
            None => None,
        };
        let Some(record) = cas::record::read(self.store(), id).await? else {
            return match volume {
                // No tombstone: nobody may say that this copy is not needed.
                Some(_) => Err(Error::NoRecord { volume: id.clone() }),
                None => Ok(Change::Already(())),
            };
        };
        let record = record.value;
        if matches!(record.state, State::Deleted | State::Purged) {
            self.bury_locked(&record).await?;
            return Ok(Change::Already(()));
        }
        let owned = volume.as_ref().filter(|volume| volume.claim(session.id()).is_ok());
        // To the end: what is written after the last publication is in no version.
        let _closed = match owned {
            Some(volume) => Some(volume.close().await?),
            None => None,
        };
        let authority = match owned {
            Some(volume) => {
                self.publish_last(volume).await?;
                Authority::Owner(session.id())
            }
            // Owned by this session without a copy: one that was never finished, or that a crash took.
            None if record.owner == Some(session.id()) => Authority::Owner(session.id()),
            None => Authority::Unowned,
        };
        let deleted =
            lifecycle::delete_where(self.store(), id, Some(record.birth), authority, expected).await;
        let deleted = match deleted {
            Err(cas::Error::Owned { owner, .. }) => return Err(Error::Owned { volume: id.clone(), owner }),
            deleted => deleted?,
        };
        tracing::info!(volume = %id, "deleted");
        if let Some(volume) = volume {
            // The look at the beginning may be old by now, and a mounted tree is never destroyed. The tombstone stands: the
            // copy goes when its last mount is gone.
            let unmounted = self.require_unmounted(id).is_ok();
            let standing =
                if unmounted { Standing::Relative } else { Standing::Fenced { epoch: record.epoch } };
            volume.update(|facts| facts.standing = standing);
            if unmounted {
                self.drop_copy(&volume, false).await?;
            }
        }
        Ok(match deleted {
            Change::Made(_) => Change::Made(()),
            Change::Already(_) => Change::Already(()),
        })
    }

    /// A deleted volume can come back, so what is here is in it.
    async fn publish_last(self: &Arc<Self>, volume: &Arc<Volume>) -> Result<(), Error> {
        match self.sync_locked(volume, &SyncRequest::plain(), Manner::default()).await {
            Ok(_) => Ok(()),
            // Somebody else's by now: the tombstone will say so too.
            Err(Error::Cas(cas::Error::Lost { .. })) => Err(Error::Fenced { volume: volume.id.clone() }),
            Err(error) => Err(error),
        }
    }
}
