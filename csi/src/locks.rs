//! One lifecycle operation at a time on a volume; the others are told so at once. Waiting would hide a stuck one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use types::VolumeId;

use crate::error::Error;

/// Which volumes have an operation going on, and which operation that is.
#[derive(Debug, Clone, Default)]
pub struct Locks(Arc<Mutex<BTreeMap<VolumeId, &'static str>>>);

/// The right to run a lifecycle operation on one volume; given back on drop.
#[derive(Debug)]
pub struct VolumeGuard {
    locks: Locks,
    id: VolumeId,
}

impl Locks {
    /// Takes the volume for `operation`, or says which other operation has it.
    ///
    /// # Errors
    /// [`Error::Busy`]: another operation runs on the volume.
    pub fn try_acquire(&self, id: &VolumeId, operation: &'static str) -> Result<VolumeGuard, Error> {
        let mut held = self.0.lock().expect("no code panics while it holds this lock");
        if let Some(running) = held.get(id) {
            return Err(Error::Busy { volume: id.clone(), running });
        }
        held.insert(id.clone(), operation);
        Ok(VolumeGuard { locks: self.clone(), id: id.clone() })
    }

    /// Returns the operation that runs on the volume.
    pub fn running(&self, id: &VolumeId) -> Option<&'static str> {
        self.0.lock().expect("no code panics while it holds this lock").get(id).copied()
    }
}

impl Drop for VolumeGuard {
    fn drop(&mut self) {
        self.locks.0.lock().expect("no code panics while it holds this lock").remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{Classify as _, Kind};

    #[test]
    fn a_second_operation_on_a_volume_is_told_aborted_and_by_whom() {
        let (locks, id): (_, VolumeId) = (Locks::default(), "vol-1".parse().unwrap());
        let guard = locks.try_acquire(&id, "restore").unwrap();
        let error = locks.try_acquire(&id, "sync").unwrap_err();
        assert_eq!(error.kind(), Kind::Aborted);
        assert!(error.to_string().contains("restore"), "{error}");
        assert!(locks.try_acquire(&"vol-2".parse().unwrap(), "sync").is_ok());
        drop(guard);
        assert!(locks.try_acquire(&id, "sync").is_ok());
    }
}
