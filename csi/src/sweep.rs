//! The sweep: which of all volumes were written to, and a sync of each that was.
//!
//! Ten thousand volumes are looked at with one search of the tree of roots, not with a call for each. It is as of the last
//! commit, so the sweep begins with one. Where a volume's live tree stands there is remembered, and believed only while
//! the tree of roots still has that subvolume in that directory under that name: after a restore, which exchanges two
//! subvolumes, the volume is looked at by itself again. So is one with nested subvolumes.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use btrfs::Dir;
use btrfs::subvolume::{self, Root};
use futures::StreamExt as _;
use types::{Classify as _, Kind};

use crate::error::Error;
use crate::layout::DATA;
use crate::local;
use crate::node::Node;
use crate::volume::Volume;

/// How many volumes one pass syncs at a time. More would only queue for the pool's door.
const SYNCS: usize = 4;

/// Where a volume's live subvolume stands in the tree of roots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// The subvolume.
    id: u64,
    /// The inode of the volume's directory.
    dir_inode: u64,
}

impl Spot {
    /// Finds it in the pool.
    fn find(root: &Dir, volume: &Volume) -> Result<Self, Error> {
        let live = local::live(root, &volume.id)?;
        let directory = local::directory(root, &volume.id)?;
        Ok(Self { id: subvolume::id(&live)?, dir_inode: directory.stat()?.st_ino })
    }

    /// When this spot's subvolume last changed, if it still stands there and alone.
    fn changed(self, roots: &HashMap<u64, Root>, pool_id: u64) -> Option<u64> {
        let root = roots.get(&self.id)?;
        let link = root.link.as_ref()?;
        let stands =
            link.dir_inode == self.dir_inode && link.parent_id == pool_id && link.name == OsStr::new(DATA);
        (stands && !root.has_children && !root.deleted).then_some(root.ctransid)
    }
}

impl Node {
    /// Syncs the volumes that were written to. Those with an interval of their own are synced by it.
    pub async fn sync_all(self: &Arc<Self>) {
        let Some(me) = self.session_id() else { return };
        let mut owned = self.volumes().all();
        owned.retain(|volume| volume.claim(me).is_ok() && volume.look(|facts| facts.sync_interval.is_none()));
        if owned.is_empty() {
            return;
        }
        // What is still in the page cache does not show without a flush, so there is one for all of them first.
        if let Err(error) = self.pool().commit_with_data().await {
            tracing::warn!(%error, "the pool cannot be flushed; volumes are synced as they look");
        }
        let written = match self.written(owned).await {
            Ok(written) => written,
            Err(error) => {
                tracing::warn!(%error, "the pool's subvolumes cannot be listed; the next sweep tries again");
                return;
            }
        };
        futures::stream::iter(written)
            .for_each_concurrent(SYNCS, |volume| async move {
                match self.sync_with_others(&volume.id).await {
                    Ok(_) => {}
                    Err(error) if error.kind() == Kind::Aborted => {}
                    Err(error) => tracing::warn!(volume = %volume.id, %error, "not synced"),
                }
            })
            .await;
    }

    /// Returns those of `volumes` that were written to since their bases, as of the pool's last commit.
    pub(crate) async fn written(&self, volumes: Vec<Arc<Volume>>) -> Result<Vec<Arc<Volume>>, Error> {
        self.pool()
            .run(move |root| {
                let pool_id = subvolume::id(root)?;
                let roots: HashMap<u64, Root> =
                    subvolume::roots(root)?.into_iter().map(|root| (root.id, root)).collect();
                Ok(volumes.into_iter().filter(|volume| is_written(root, &roots, pool_id, volume)).collect())
            })
            .await
    }
}

/// Whether a volume was written to. One that cannot be looked at counts as written: its sync says what is wrong.
fn is_written(root: &Dir, roots: &HashMap<u64, Root>, pool_id: u64, volume: &Volume) -> bool {
    let mut spot = volume.spot.lock().expect("no code panics while it holds this lock");
    if let Some(changed) = spot.and_then(|spot| spot.changed(roots, pool_id)) {
        return volume.look(|facts| {
            let Some(base) = &facts.base else { return true };
            base.roots.len() != 1 || base.roots.get(Path::new("")) != Some(&changed)
        });
    }
    *spot = Spot::find(root, volume).ok();
    drop(spot);
    let base = volume.look(|facts| facts.base.as_ref().map(|base| base.roots.clone()));
    let now = local::live(root, &volume.id).and_then(|live| local::roots(&live));
    match (base, now) {
        (Some(base), Ok(now)) => base != now,
        (None, _) | (_, Err(_)) => true,
    }
}
