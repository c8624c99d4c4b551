//! Repair: where the store's copy of a version is damaged and this pool still has a snapshot of it, the snapshot is put
//! into new packs, and every record that holds the version names those. Nothing is believed: the snapshot is read whole, and
//! counts only if it is the very same version.

use std::collections::BTreeMap;
use std::sync::Arc;

use cas::gc::Pin;
use cas::lifecycle::{self, Right};
use cas::timeline::{self, Point};
use cas::{Cache, Reader, VersionRef, Writer};
use types::{MemberName, VersionId, VolumeId};

use crate::changes::told;
use crate::error::Error;
use crate::layout::Place;
use crate::node::Node;
use crate::volume::Volume;

/// Memory for nodes while a version is verified.
const COLD_BYTES: usize = 32 << 20;

/// What a repair did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Versions that were damaged in the store and are whole again.
    pub versions: Vec<VersionId>,
    /// Damaged versions of the timeline that this pool has no snapshot of, or only one that is not that version.
    pub lost: Vec<VersionId>,
    /// Records that name the new packs.
    pub records: Vec<VolumeId>,
    /// Bytes that were written.
    pub bytes_uploaded: u64,
}

impl Node {
    /// Verifies the versions of a volume's timeline, and repairs those that are damaged from local snapshots.
    ///
    /// # Errors
    /// The volume is not this node's, or pool or store failed.
    pub async fn repair(self: &Arc<Self>, id: &VolumeId) -> Result<Repaired, Error> {
        let volume = self.volumes().get(id)?;
        volume.claim(self.session()?.id())?;
        let guard = self.locks().try_acquire(id, "repair")?;
        let node = Arc::clone(self);
        self.detached("repair", async move {
            let _guard = guard;
            node.repair_locked(&volume).await
        })
        .await
    }

    async fn repair_locked(self: &Arc<Self>, volume: &Arc<Volume>) -> Result<Repaired, Error> {
        let record = cas::record::get(self.store(), &volume.id).await?.value;
        let mut trees = BTreeMap::<VersionId, VersionRef>::new();
        for entry in timeline::entries(self.store(), &record).await? {
            if let Some(tree) = entry.heads.get(&MemberName::data()) {
                trees.insert(tree.version, tree.clone());
            }
        }
        // Nothing from memory: what is proved is what others would read.
        let reader = Reader::new(self.store().clone(), Cache::new(COLD_BYTES));
        let mut repaired = Repaired::default();
        for (version, tree) in trees {
            let report = reader.verify(&tree).await?;
            if report.is_whole() {
                continue;
            }
            // Nothing new may refer to what is damaged.
            let avoided = report.damages.iter().filter_map(|damage| damage.pack().cloned()).collect();
            self.known_bytes().index().follow(&Pin { epoch: 0, avoided, ..Pin::default() });
            tracing::warn!(volume = %volume.id, version = %version.short(), damages = report.damages.len(), "damaged in the store");
            match self.snapshot_of(volume, &version) {
                Some(place) => self.put_again(volume, &place, version, &mut repaired).await?,
                None => repaired.lost.push(version),
            }
        }
        Ok(repaired)
    }

    /// A snapshot in the pool that is named by this version.
    fn snapshot_of(&self, volume: &Volume, version: &VersionId) -> Option<Place> {
        if let Some(base) = volume.facts().base.filter(|base| base.tree.version == *version) {
            return Some(base.place);
        }
        self.shelf().lend(version).map(|loan| loan.place().clone())
    }

    async fn put_again(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        place: &Place,
        version: VersionId,
        repaired: &mut Repaired,
    ) -> Result<(), Error> {
        let loan = self.shelf().lend_place(place);
        let session = self.session()?;
        let claim = volume.claim(session.id())?;
        let operation = session.begin()?;
        let path = place.clone();
        let tree = self.pool().run(move |root| Ok(told(root.open_beneath(path.path())?)?)).await?;
        // Without a parent and without looking for what is stored already: everything is read and written once more.
        let writer = Writer::new(
            self.store().clone(),
            session.clone(),
            volume.facts().domain,
            Arc::clone(self.cache()),
            Default::default(),
        );
        let written = writer.put_told(tree, None).await?;
        drop(loan);
        repaired.bytes_uploaded += written.bytes_uploaded;
        if written.tree.version != version {
            tracing::error!(volume = %volume.id, version = %version.short(), found = %written.tree.version.short(), "the snapshot is not that version: it cannot repair it");
            repaired.lost.push(version);
            return Ok(());
        }
        let known = self.known(volume);
        lifecycle::rehome(&operation, &volume.id, Right::Owner(&claim, &known), &written.tree).await?;
        volume.update(|facts| {
            for tree in [
                facts.base.as_mut().map(|base| &mut base.tree),
                facts.head.as_mut().map(|head| &mut head.tree),
            ]
            .into_iter()
            .flatten()
            {
                if tree.version == version {
                    *tree = written.tree.clone();
                }
            }
        });
        repaired.versions.push(version);
        repaired.records.push(volume.id.clone());
        // Snapshots, templates and sleeping volumes that are this version have nobody else to repair them.
        for other in cas::record::list(self.store()).await? {
            let other = other.value;
            if other.id == volume.id || other.owner.is_some() || other.domain != volume.facts().domain {
                continue;
            }
            let point = Point::Version(version);
            if timeline::find(self.store(), &other, &point).await?.is_none_or(|found| found.place.is_some()) {
                continue;
            }
            match lifecycle::rehome(&operation, &other.id, Right::Unowned, &written.tree).await {
                Ok(_) => repaired.records.push(other.id),
                // Taken since it was read: its owner repairs it.
                Err(
                    cas::Error::Owned { .. } | cas::Error::WrongState { .. } | cas::Error::NoVersion { .. },
                ) => {}
                Err(error) => return Err(error.into()),
            }
        }
        tracing::info!(volume = %volume.id, version = %version.short(), records = repaired.records.len(), "repaired from a local snapshot");
        Ok(())
    }
}
