//! The object `gc`, as far as those who write references must know it: the epoch, and what may be deleted.
//!
//! A session's pin is such an epoch. The collection dooms nothing before every live session has pinned the epoch whose
//! condemned set it is about to delete from, so whoever avoids the set of its own pin is safe (PROTOCOL.md §2).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use types::{Nonce, PackId, Rev};

use super::moved::Moves;
use crate::codec;
use crate::error::Error;
use crate::keys;
use crate::objects::Key;
use crate::store::Store;
use crate::update::Versioned;

/// What the collection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing.
    Idle,
    /// It waits for all pins; then it marks again.
    Condemned,
    /// It deletes.
    Doomed,
}

/// The object `gc`. An absent one is a store that never collected: epoch 0, idle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gc {
    /// The format of this object.
    pub format: u32,
    /// Counts the writes.
    pub rev: Rev,
    /// Tells this write from every other.
    pub nonce: Nonce,
    /// Counts the condemnations.
    pub epoch: u64,
    /// What is going on.
    pub phase: Phase,
    /// May become doomed; must gain no reference.
    pub condemned: BTreeSet<PackId>,
    /// Is being deleted.
    pub doomed: BTreeSet<PackId>,
    /// Doomed packs that were evacuated, and where their live frames went: what their `moved/` objects will say.
    pub relocations: BTreeMap<PackId, Moves>,
}

impl Gc {
    /// Returns what an absent object says.
    pub(crate) fn never() -> Self {
        Self {
            format: codec::FORMAT,
            rev: Rev(0),
            nonce: Nonce::random(),
            epoch: 0,
            phase: Phase::Idle,
            condemned: BTreeSet::new(),
            doomed: BTreeSet::new(),
            relocations: BTreeMap::new(),
        }
    }
}

impl Versioned for Gc {
    fn stamp(&mut self, nonce: Nonce) {
        self.rev = self.rev.next();
        self.nonce = nonce;
    }

    fn nonce(&self) -> Nonce {
        self.nonce
    }

    fn check(&self, key: &Key) -> Result<(), Error> {
        let empty = match self.phase {
            Phase::Idle => self.condemned.is_empty() && self.doomed.is_empty(),
            Phase::Condemned => self.doomed.is_empty(),
            Phase::Doomed => self.condemned.is_empty(),
        };
        if !empty || !self.relocations.keys().all(|pack| self.doomed.contains(pack)) {
            return Err(Error::corrupt(key, "its sets do not fit its phase"));
        }
        Ok(())
    }
}

/// What an operation may not refer to, and the epoch that says so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pin {
    /// The collection's epoch when this was read.
    pub epoch: u64,
    /// Condemned or doomed then.
    pub avoided: BTreeSet<PackId>,
    /// Those of them that are doomed and whose live frames are in new packs: what a listed version uses of them stays.
    pub evacuated: BTreeSet<PackId>,
}

impl Pin {
    /// Tells if a reference to `pack` may be written under this pin.
    pub fn allows(&self, pack: &PackId) -> bool {
        !self.avoided.contains(pack)
    }

    /// Tells if a version that a record lists, and that needs `pack`, may be referred to by another record. Not while the
    /// pack is condemned: its live frames may be being copied, and this version may be thinned before they are counted.
    pub fn allows_listed(&self, pack: &PackId) -> bool {
        self.allows(pack) || self.evacuated.contains(pack)
    }
}

/// Reads the collection's state as a pin.
pub async fn read_pin(store: &Store) -> Result<Pin, Error> {
    Ok(match store.read::<Gc>(&keys::gc()).await? {
        None => Pin::default(),
        Some(stored) => {
            let Gc { epoch, condemned, doomed, relocations, .. } = stored.value;
            let avoided = condemned.into_iter().chain(doomed).collect();
            Pin { epoch, avoided, evacuated: relocations.into_keys().collect() }
        }
    })
}
