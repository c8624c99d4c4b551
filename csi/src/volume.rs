//! A volume as this node has it: what it knows, and what keeps calls on it apart.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use btrfs::Uuid;
use cas::record::Origin;
use cas::{Claim, VersionRef};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use types::{Domain, EntryId, Epoch, SessionId, Timestamp, VolumeId};

use crate::about::About;
use crate::clone::Roots;
use crate::error::Error;
use crate::layout::Place;
use crate::sweep::Spot;
use crate::sync::SyncQueue;

/// How long a file call waits for a lifecycle operation that has closed the volume, and the other way round.
const GATE_WAIT: Duration = Duration::from_secs(10);

/// What this node is to a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// A session of this pool owns the record. One that is not the present session was fenced, and the volume has to be
    /// taken again before anything is published.
    Owned {
        /// Which one.
        session: SessionId,
        /// The fencing token.
        epoch: Epoch,
    },
    /// Snapshots of a volume that is elsewhere, kept for later. There is no live tree.
    Relative,
    /// The place in the line was lost. Live is kept until it is safe in an orphan.
    Fenced {
        /// The epoch that was lost.
        epoch: Epoch,
    },
    /// Nobody can say what this is: there is no record of its birth. Never dropped by the node.
    Quarantined {
        /// Why.
        reason: String,
    },
}

/// The durable head, as of this node's last look at the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The point on the timeline.
    pub entry: EntryId,
    /// The tree there.
    pub tree: VersionRef,
}

/// The read-only snapshot that live grew from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Where it is.
    pub place: Place,
    /// What it holds.
    pub tree: VersionRef,
    /// Its uuid: whether live grew from it is asked of the kernel.
    pub uuid: Uuid,
    /// When something in it last changed.
    pub roots: Roots,
}

/// What is known of a volume.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The copy's own facts, as they are in the pool.
    pub about: About,
    /// What this node is to it.
    pub standing: Standing,
    /// Where its packs belong.
    pub domain: Domain,
    /// Its durable head.
    pub head: Option<Head>,
    /// What the next sync is a difference to.
    pub base: Option<Base>,
    /// Where it came from.
    pub origin: Option<Origin>,
    /// When it was last known to be durable as it stands.
    pub last_sync: Option<Timestamp>,
    /// How often it is synced, where that is not the node's interval.
    pub sync_interval: Option<Duration>,
    /// Under which epoch the settings in its record were acted upon.
    pub settings_of: Option<Epoch>,
    /// A restore moved the record, or may have, and its tree is not in its place yet.
    pub swap_pending: bool,
    /// A mount still shows a tree that a restore replaced.
    pub restart_to_see_it: bool,
    /// Snapshots whose publication was sent and not answered: they stay until the next one is.
    pub unsettled: Vec<Place>,
    /// What went wrong last, in words; empty when all is well.
    pub trouble: String,
}

impl Facts {
    /// The facts of a copy that nothing else is known of.
    pub fn new(about: About, domain: Domain) -> Self {
        Self {
            about,
            standing: Standing::Relative,
            domain,
            head: None,
            base: None,
            origin: None,
            last_sync: None,
            sync_interval: None,
            settings_of: None,
            swap_pending: false,
            restart_to_see_it: false,
            unsettled: Vec::new(),
            trouble: String::new(),
        }
    }
}

impl Facts {
    /// Notes that live is to be replaced by the snapshot at `place`, unless the record says otherwise. Until that is
    /// settled nothing is written to it.
    pub(crate) fn swap_is_pending(&mut self, place: Place) {
        self.unsettled.push(place);
        self.swap_pending = true;
    }
}

/// A volume on this node.
#[derive(Debug)]
pub struct Volume {
    /// Which one.
    pub id: VolumeId,
    facts: Mutex<Facts>,
    /// Where live was found last, for the sweep.
    pub(crate) spot: Mutex<Option<Spot>>,
    /// When it was last used since this process began.
    used: Mutex<Option<Instant>>,
    /// File calls share it, an operation that takes live away or swaps it has it alone.
    gate: Arc<RwLock<()>>,
    /// Syncs that wait for their snapshot.
    pub(crate) syncs: SyncQueue,
}

impl Volume {
    /// Makes one of what is known.
    pub fn new(id: VolumeId, facts: Facts) -> Self {
        Self {
            id,
            facts: Mutex::new(facts),
            spot: Mutex::default(),
            used: Mutex::new(Some(Instant::now())),
            gate: Arc::default(),
            syncs: SyncQueue::default(),
        }
    }

    /// Makes one that a start found: nobody has used it yet.
    pub fn found(id: VolumeId, facts: Facts) -> Self {
        Self { used: Mutex::default(), ..Self::new(id, facts) }
    }

    /// Keeps the gate of what was known before under this id.
    pub(crate) fn share_gate(&mut self, before: &Self) {
        self.gate = Arc::clone(&before.gate);
    }

    /// Notes that somebody uses it now.
    pub fn note_use(&self) {
        *self.used.lock().expect("no code panics while it holds this lock") = Some(Instant::now());
    }

    /// When it was last used since this process began; nothing: not since then.
    pub fn last_use(&self) -> Option<Instant> {
        *self.used.lock().expect("no code panics while it holds this lock")
    }

    /// What is known now.
    pub fn facts(&self) -> Facts {
        self.facts.lock().expect("no code panics while it holds this lock").clone()
    }

    /// Looks at what is known, without a copy of it: for loops over all volumes.
    pub fn look<T>(&self, look: impl FnOnce(&Facts) -> T) -> T {
        look(&self.facts.lock().expect("no code panics while it holds this lock"))
    }

    /// Changes what is known.
    pub fn update<T>(&self, change: impl FnOnce(&mut Facts) -> T) -> T {
        change(&mut self.facts.lock().expect("no code panics while it holds this lock"))
    }

    /// What this session may publish under.
    ///
    /// # Errors
    /// It may not.
    pub fn claim(&self, me: SessionId) -> Result<Claim, Error> {
        self.look(|facts| match facts.standing {
            Standing::Owned { session, epoch } if session == me => {
                Ok(Claim { id: self.id.clone(), birth: facts.about.birth, epoch })
            }
            Standing::Owned { .. } | Standing::Fenced { .. } => {
                Err(Error::Fenced { volume: self.id.clone() })
            }
            Standing::Relative | Standing::Quarantined { .. } => {
                Err(Error::NotOwned { volume: self.id.clone() })
            }
        })
    }

    /// Lets a file call in.
    ///
    /// # Errors
    /// A lifecycle operation has the volume for itself, longer than a caller wants to wait; or another tree is about to
    /// take the place of this one, and what is written would go with it.
    pub async fn enter(&self) -> Result<OwnedRwLockReadGuard<()>, Error> {
        self.note_use();
        let busy = |running| Error::Busy { volume: self.id.clone(), running };
        let entered = tokio::time::timeout(GATE_WAIT, Arc::clone(&self.gate).read_owned()).await;
        let entered = entered.map_err(|_| busy("an operation that has it closed"))?;
        if self.facts().swap_pending {
            return Err(busy("a restore whose outcome is not known yet"));
        }
        Ok(entered)
    }

    /// Waits for the file calls that are under way, and lets no other in.
    ///
    /// # Errors
    /// A file call takes longer than an operation wants to wait.
    pub async fn close(&self) -> Result<OwnedRwLockWriteGuard<()>, Error> {
        let closed = tokio::time::timeout(GATE_WAIT, Arc::clone(&self.gate).write_owned()).await;
        closed.map_err(|_| Error::Busy { volume: self.id.clone(), running: "a file call" })
    }
}
