//! The object `gc`, as far as those who write references must know it: the epoch, and what may be deleted.
//!
//! A session's pin is such an epoch. The collection dooms nothing before every live session has pinned the epoch whose
//! condemned set it is about to delete from, so whoever avoids the set of its own pin is safe (PROTOCOL.md §2).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use types::{Nonce, PackId, Rev};

use crate::error::Error;
use crate::keys;
use crate::store::Store;

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
    /// Evacuated packs and the packs that their live frames went to.
    pub relocations: BTreeMap<PackId, BTreeSet<PackId>>,
}

/// What an operation may not refer to, and the epoch that says so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pin {
    /// The collection's epoch when this was read.
    pub epoch: u64,
    /// Condemned or doomed then.
    pub avoided: BTreeSet<PackId>,
}

impl Pin {
    /// Tells if a reference to `pack` may be written under this pin.
    pub fn allows(&self, pack: &PackId) -> bool {
        !self.avoided.contains(pack)
    }
}

/// Reads the collection's state as a pin.
pub async fn read_pin(store: &Store) -> Result<Pin, Error> {
    Ok(match store.read::<Gc>(&keys::gc()).await? {
        None => Pin::default(),
        Some(stored) => {
            let Gc { epoch, condemned, doomed, .. } = stored.value;
            Pin { epoch, avoided: condemned.into_iter().chain(doomed).collect() }
        }
    })
}
