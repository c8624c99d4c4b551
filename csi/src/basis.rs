//! What an order was decided on. Orders are requests: one that comes late, of a hub that is gone or over a connection that
//! broke, would undo what was acknowledged since. It finds another record than the one it was decided on, and is refused.

use cas::Record;
use types::{EntryId, Epoch, VolumeId};

use crate::error::Error;

/// What the record said when an order was decided on. What is absent was not looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Basis {
    /// Its epoch.
    pub epoch: Option<Epoch>,
    /// Its head.
    pub head: Option<EntryId>,
}

impl Basis {
    /// Refuses an order that was decided on another head or epoch.
    ///
    /// # Errors
    /// [`Error::Late`].
    pub(crate) fn check(&self, record: &Record) -> Result<(), Error> {
        self.check_epoch(&record.id, record.epoch)?;
        if self.head.is_none_or(|head| record.head == Some(head)) {
            return Ok(());
        }
        Err(Error::Late { volume: record.id.clone(), moved: "head" })
    }

    /// Refuses an order that was decided on another epoch.
    ///
    /// # Errors
    /// [`Error::Late`].
    pub(crate) fn check_epoch(&self, volume: &VolumeId, epoch: Epoch) -> Result<(), Error> {
        if self.epoch.is_none_or(|decided| decided == epoch) {
            return Ok(());
        }
        Err(Error::Late { volume: volume.clone(), moved: "epoch" })
    }
}
