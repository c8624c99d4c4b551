//! The volumes of this node, by id, and which of them the hub has not heard of yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use types::VolumeId;

use crate::error::Error;
use crate::volume::Volume;

/// All volumes of a node. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Volumes(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    volumes: BTreeMap<VolumeId, Arc<Volume>>,
    touched: BTreeSet<VolumeId>,
}

impl Volumes {
    /// Finds a volume.
    ///
    /// # Errors
    /// It is not here.
    pub fn get(&self, id: &VolumeId) -> Result<Arc<Volume>, Error> {
        self.find(id).ok_or_else(|| Error::NotHere { volume: id.clone() })
    }

    /// Finds a volume that may not be here.
    pub fn find(&self, id: &VolumeId) -> Option<Arc<Volume>> {
        self.lock().volumes.get(id).cloned()
    }

    /// All of them, by id.
    pub fn all(&self) -> Vec<Arc<Volume>> {
        self.lock().volumes.values().cloned().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().volumes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a volume, or replaces what was known of it. File calls that are under way stay counted.
    pub fn insert(&self, mut volume: Volume) -> Arc<Volume> {
        let mut table = self.lock();
        if let Some(before) = table.volumes.get(&volume.id) {
            volume.share_gate(before);
        }
        let volume = Arc::new(volume);
        table.touched.insert(volume.id.clone());
        table.volumes.insert(volume.id.clone(), Arc::clone(&volume));
        volume
    }

    /// Forgets a volume that is gone.
    pub fn remove(&self, id: &VolumeId) {
        let mut table = self.lock();
        table.touched.insert(id.clone());
        table.volumes.remove(id);
    }

    /// Notes that the hub should hear of this volume.
    pub fn touch(&self, id: &VolumeId) {
        self.lock().touched.insert(id.clone());
    }

    /// What the hub has not heard of: those that changed, and those that are gone.
    pub fn take_touched(&self) -> (Vec<Arc<Volume>>, Vec<VolumeId>) {
        let mut table = self.lock();
        let touched = std::mem::take(&mut table.touched);
        let mut changed = Vec::new();
        let mut gone = Vec::new();
        for id in touched {
            match table.volumes.get(&id) {
                Some(volume) => changed.push(Arc::clone(volume)),
                None => gone.push(id),
            }
        }
        (changed, gone)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}
