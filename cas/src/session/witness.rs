//! Confirming packs of others for an operation while it runs elsewhere: rule R (c), one pack at a time.

use std::sync::Arc;

use types::PackId;

use super::{Operation, Session};
use crate::error::Error;
use crate::gc::Pin;
use crate::keys;

/// Looks at packs under an operation's pin and notes them there. It does not keep the operation: when that has ended,
/// nothing is confirmed any more.
#[derive(Debug, Clone)]
pub struct Witness {
    session: Session,
    operation: u64,
    pin: Arc<Pin>,
}

impl Operation {
    /// Makes a witness of this operation.
    pub fn witness(&self) -> Witness {
        Witness { session: self.session().clone(), operation: self.number(), pin: self.pin() }
    }
}

impl Witness {
    /// Tells if a reference to a pack is proven already: this operation keeps it, or looked it up.
    pub fn proves(&self, pack: &PackId) -> bool {
        let holds = self.session.holds();
        let Some(open) = holds.operations.get(&self.operation) else { return false };
        let own = pack.session == self.session.id() && pack.seq >= open.hold.low;
        own && holds.acknowledged.contains(pack) || open.confirmed.contains(pack)
    }

    /// Looks a pack up in the store, now. Returns its length, if a reference to it may be written: it is there, and the
    /// operation's pin allows it.
    ///
    /// # Errors
    /// The store could not be asked.
    pub async fn confirm(&self, pack: &PackId) -> Result<Option<u64>, Error> {
        if !self.pin.allows(pack) {
            return Ok(None);
        }
        let size = match self.session.store().objects().head(&keys::pack(pack)).await {
            Ok(meta) => meta.size,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut holds = self.session.holds();
        let Some(open) = holds.operations.get_mut(&self.operation) else { return Ok(None) };
        // The operation may have moved on to a newer pin meanwhile.
        if !open.pin.allows(pack) {
            return Ok(None);
        }
        open.confirmed.insert(pack.clone());
        Ok(Some(size))
    }
}
