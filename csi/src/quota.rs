//! The limit of a volume: in its record first, so that it means the same on every node, then in the pool.

use std::sync::Arc;

use cas::lifecycle;
use types::VolumeId;

use crate::about::About;
use crate::error::Error;
use crate::local;
use crate::node::Node;
use crate::quota_class::QuotaClass;
use crate::volume::Volume;

impl Node {
    /// Sets the limit; `None` is unlimited.
    ///
    /// # Errors
    /// The volume is not this node's, or pool or store failed.
    pub async fn set_quota(
        self: &Arc<Self>,
        id: &VolumeId,
        limit_bytes: Option<u64>,
    ) -> Result<Arc<Volume>, Error> {
        self.set_quota_if(id, limit_bytes, None).await
    }

    /// The same, if `before` is absent or the limit that the record says.
    ///
    /// # Errors
    /// Those of [`Self::set_quota`], and [`Error::Late`].
    pub async fn set_quota_if(
        self: &Arc<Self>,
        id: &VolumeId,
        limit_bytes: Option<u64>,
        before: Option<Option<u64>>,
    ) -> Result<Arc<Volume>, Error> {
        let volume = self.volumes().get(id)?;
        volume.claim(self.session()?.id())?;
        let guard = self.locks().try_acquire(id, "set quota")?;
        let node = Arc::clone(self);
        self.detached("set quota", async move {
            let _guard = guard;
            if let Some(before) = before {
                let found = cas::record::get(node.store(), &volume.id).await?.value.quota.limit_bytes;
                // A repeat whose first answer was lost finds what it wants.
                if found != before && found != limit_bytes {
                    return Err(Error::Late { volume: volume.id.clone(), moved: "limit" });
                }
            }
            lifecycle::set_quota(node.store(), &volume.id, limit_bytes).await?;
            let about = About { limit_bytes, ..volume.facts().about };
            node.hold_to(&volume, about).await?;
            Ok(volume)
        })
        .await
    }

    /// Lets the class that the record says hold here.
    ///
    /// # Errors
    /// Another operation has the volume, or the pool failed.
    pub async fn set_quota_class(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        class: QuotaClass,
    ) -> Result<(), Error> {
        if volume.facts().about.class == class {
            return Ok(());
        }
        let guard = self.locks().try_acquire(&volume.id, "set quota class")?;
        let (node, volume) = (Arc::clone(self), Arc::clone(volume));
        self.detached("set quota class", async move {
            let _guard = guard;
            let about = About { class, ..volume.facts().about };
            node.hold_to(&volume, about).await?;
            tracing::info!(volume = %volume.id, class = class.as_str(), "quota class set");
            Ok(())
        })
        .await
    }

    /// Makes the kernel keep what `about` says, then notes it.
    async fn hold_to(&self, volume: &Volume, about: About) -> Result<(), Error> {
        let (id, facts) = (volume.id.clone(), about.clone());
        self.pool()
            .run(move |root| {
                local::limit(root, &facts, facts.kernel_limit())?;
                local::set_about(root, &id, &facts)
            })
            .await?;
        self.pool().commit().await?;
        volume.update(|facts| facts.about = about);
        self.volumes().touch(&volume.id);
        Ok(())
    }
}
