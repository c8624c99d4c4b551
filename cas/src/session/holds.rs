//! What keeps a session's pin and `low` where they are: operations, unsettled writes, and a life before a restart.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use types::{Nonce, PackId, Timestamp};

use crate::gc::Pin;
use crate::objects::{Condition, Key};
use crate::{Location, VersionRef};

/// How many put versions are remembered until they are published.
const MAX_BUILT: usize = 1024;

/// What may be relied on by something unfinished: the epoch whose condemned set it avoided, and the first pack number
/// that it may have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hold {
    pub(super) epoch: u64,
    pub(super) low: u64,
}

/// An operation that has begun and not ended.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) hold: Hold,
    pub(super) pin: Arc<Pin>,
    /// Packs of others that were confirmed under `pin`.
    pub(super) confirmed: BTreeSet<PackId>,
    /// Manifests of versions of which every pack was.
    pub(super) versions: HashSet<Location>,
}

/// A conditional write that may still happen.
#[derive(Debug, Clone)]
pub(super) struct Unsettled {
    pub(super) bytes: Bytes,
    pub(super) condition: Condition,
    pub(super) hold: Hold,
    /// The operation that sent it; once that has ended, nobody waits for the answer.
    pub(super) operation: u64,
}

/// How a session ended for its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Fenced,
    Stolen,
}

/// The memory of a session's process.
#[derive(Debug)]
pub(super) struct Holds {
    pub(super) ended: Option<Ended>,
    /// What a new operation avoids.
    pub(super) pin: Arc<Pin>,
    pub(super) next_pack: u64,
    pub(super) reserved: u64,
    pub(super) next_operation: u64,
    pub(super) operations: BTreeMap<u64, Open>,
    pub(super) unsettled: BTreeMap<(Key, Nonce), Unsettled>,
    /// What a process before this one may have left in flight.
    pub(super) inherited: Option<Hold>,
    /// Packs of this session whose upload was answered, from `low` on.
    pub(super) acknowledged: BTreeSet<PackId>,
    /// Versions that this process put, and what each was built on: it names that one's packs too.
    pub(super) built: VecDeque<(VersionRef, VersionRef)>,
    /// A time of the store and when it was that.
    pub(super) store_time: (Timestamp, Instant),
}

impl Holds {
    /// Returns what the session's object may say: nothing unfinished relies on less.
    pub(super) fn hold(&self) -> Hold {
        let holds = self.operations.values().map(|open| open.hold);
        let holds = holds.chain(self.unsettled.values().map(|write| write.hold)).chain(self.inherited);
        let now = Hold { epoch: self.pin.epoch, low: self.next_pack };
        holds.fold(now, |least, hold| Hold {
            epoch: least.epoch.min(hold.epoch),
            low: least.low.min(hold.low),
        })
    }

    /// Notes what a version was built on. Only the newest count: a version is published when it was put.
    pub(super) fn note_built(&mut self, tree: &VersionRef, base: &VersionRef) {
        if self.built.len() >= MAX_BUILT {
            self.built.pop_front();
        }
        self.built.push_back((tree.clone(), base.clone()));
    }

    /// Learns a time of the store. It only moves the estimate forward.
    pub(super) fn observe(&mut self, modified: Timestamp, now: Instant) {
        if modified > self.time(now) {
            self.store_time = (modified, now);
        }
    }

    /// Returns a time that the store's clock has passed.
    pub(super) fn time(&self, now: Instant) -> Timestamp {
        let (time, at) = self.store_time;
        time.plus(now.saturating_duration_since(at))
    }
}
