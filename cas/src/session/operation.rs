//! An operation: from the first byte read or written for it until its record write is settled. It holds the pin.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use types::{Nonce, PackId};

use super::Session;
use super::holds::{Hold, Open, Unsettled};
use crate::VersionRef;
use crate::error::Error;
use crate::gc::Pin;
use crate::objects::{Condition, Key};
use crate::settle::Settled;
use crate::update::Write;

/// A running operation of a session. While it is held, garbage collection spares what it wrote and what it confirmed.
///
/// Dropping it ends it. A write that it sent and that is not settled goes on holding the pin by itself.
#[derive(Debug)]
#[must_use = "an operation that is dropped protects nothing"]
pub struct Operation {
    session: Session,
    number: u64,
}

impl Session {
    /// Begins an operation under the session's newest pin.
    pub fn begin(&self) -> Result<Operation, Error> {
        let mut holds = self.holds();
        self.check_not_ended(&holds)?;
        let number = holds.next_operation;
        holds.next_operation += 1;
        let hold = Hold { epoch: holds.pin.epoch, low: holds.next_pack };
        let pin = Arc::clone(&holds.pin);
        holds
            .operations
            .insert(number, Open { hold, pin, confirmed: BTreeSet::new(), versions: HashSet::new() });
        Ok(Operation { session: self.clone(), number })
    }
}

impl Operation {
    /// Returns its session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Returns what it must avoid.
    pub fn pin(&self) -> Arc<Pin> {
        self.open(|open| Arc::clone(&open.pin))
    }

    /// Moves on to the session's newest pin, so that a long operation does not stop garbage collection. `relied_on` are
    /// all packs of others that it refers to so far; if one of them is condemned now, it stays where it was.
    pub fn recheck<'a>(&self, relied_on: impl IntoIterator<Item = &'a PackId>) -> Result<(), Error> {
        let mut holds = self.session.holds();
        let pin = Arc::clone(&holds.pin);
        let open = holds.operations.get_mut(&self.number).expect("an operation is open until it is dropped");
        let mut relied_on: BTreeSet<&PackId> = relied_on.into_iter().collect();
        relied_on.extend(&open.confirmed);
        let packs: Vec<PackId> = relied_on.into_iter().filter(|pack| !pin.allows(pack)).cloned().collect();
        if !packs.is_empty() {
            return Err(Error::Condemned { packs });
        }
        open.hold.epoch = pin.epoch;
        open.pin = pin;
        Ok(())
    }

    /// Notes packs that were found in the store or in a record after the pin, and are not condemned there.
    pub(crate) fn confirm(&self, packs: impl IntoIterator<Item = PackId>) {
        self.open(|open| open.confirmed.extend(packs));
    }

    /// Notes versions of which every pack was confirmed.
    pub(crate) fn confirm_versions<'a>(&self, trees: impl IntoIterator<Item = &'a VersionRef>) {
        self.open(|open| open.versions.extend(trees.into_iter().map(|tree| tree.manifest.clone())));
    }

    /// Tells if every pack of a version was confirmed.
    pub(crate) fn confirmed(&self, tree: &VersionRef) -> bool {
        self.open(|open| open.versions.contains(&tree.manifest))
    }

    /// Tells if a new reference to `pack` is proven (rule R, a and c).
    pub(crate) fn proves(&self, pack: &PackId) -> bool {
        let holds = self.session.holds();
        let open = holds.operations.get(&self.number).expect("an operation is open until it is dropped");
        let own = pack.session == self.session.id() && pack.seq >= open.hold.low;
        own && holds.acknowledged.contains(pack) || open.confirmed.contains(pack)
    }

    /// Runs a conditional write, registered with the session from before its first request until it is settled.
    pub(crate) async fn registered(
        &self,
        key: &Key,
        nonce: Nonce,
        bytes: &Bytes,
        condition: &Condition,
        write: impl Write,
    ) -> Result<Settled, Error> {
        let name = (key.clone(), nonce);
        let hold = self.open(|open| open.hold);
        let (bytes, condition) = (bytes.clone(), condition.clone());
        let unsettled = Unsettled { bytes, condition, hold, operation: self.number };
        self.session.holds().unsettled.insert(name.clone(), unsettled);
        // A future that is dropped here leaves the registration, which is what it is for.
        let settled = write.await;
        if !matches!(settled, Err(Error::Unsettled { .. })) {
            self.session.holds().unsettled.remove(&name);
        }
        settled
    }

    fn open<T>(&self, look: impl FnOnce(&mut Open) -> T) -> T {
        let mut holds = self.session.holds();
        look(holds.operations.get_mut(&self.number).expect("an operation is open until it is dropped"))
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.session.holds().operations.remove(&self.number);
    }
}
