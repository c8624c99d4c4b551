//! Which entries of a timeline go, decided by age and role. Pure.
//!
//! Time is the store's. It may be too early (nothing is thinned that should be), never too late. At most two entries
//! go with one write, so a clock that jumps a year costs two entries at the most before somebody sees it.

use std::collections::BTreeSet;
use std::time::Duration;

use types::{EntryId, Timestamp};

use crate::entry::{Entry, Role};

/// How many entries one write of a record may remove.
pub const MAX_REMOVED: usize = 2;

/// How many manual entries stay.
pub const MAX_MANUAL: usize = 5;

/// How many steps stay, and for how long.
pub const MAX_STEPS: usize = 1000;
const STEP_AGE: Duration = Duration::from_secs(7 * DAY_SECONDS);

const HOUR_SECONDS: u64 = 3600;
const DAY_SECONDS: u64 = 24 * HOUR_SECONDS;
/// Younger than this, every sync stays.
const SYNC_ALL: Duration = Duration::from_secs(HOUR_SECONDS);
/// Younger than this, the newest sync of every hour.
const SYNC_HOURLY: Duration = Duration::from_secs(DAY_SECONDS);
/// Younger than this, the newest sync of every day; older, none.
const SYNC_DAILY: Duration = Duration::from_secs(7 * DAY_SECONDS);

/// Returns the entries to remove, oldest first. `entries` are oldest first; `kept` never go (the head, branch tips, pins).
pub fn plan(entries: &[Entry], kept: &BTreeSet<EntryId>, now: Timestamp) -> Vec<EntryId> {
    // A manual entry or step is over its number when that many newer ones of its role follow.
    let mut newer_manual = 0;
    let mut newer_steps = 0;
    let mut buckets: BTreeSet<(u64, i64)> = BTreeSet::new();
    let mut gone: Vec<EntryId> = Vec::new();
    for entry in entries.iter().rev() {
        let age = now.since(entry.time);
        let goes = match entry.role {
            Role::Event => false,
            Role::Manual => {
                newer_manual += 1;
                newer_manual > MAX_MANUAL
            }
            Role::Step => {
                newer_steps += 1;
                newer_steps > MAX_STEPS || age > STEP_AGE
            }
            Role::Sync => {
                let seconds = if age <= SYNC_ALL {
                    None
                } else if age <= SYNC_HOURLY {
                    Some(HOUR_SECONDS)
                } else {
                    Some(DAY_SECONDS)
                };
                match seconds {
                    None => false,
                    Some(seconds) => {
                        let (at, _) = entry.time.seconds_and_nanos();
                        let width = i64::try_from(seconds).expect("a day fits i64");
                        // The newest of a bucket stays; `insert` is false for every other.
                        age > SYNC_DAILY || !buckets.insert((seconds, at.div_euclid(width)))
                    }
                }
            }
        };
        if goes && !kept.contains(&entry.id) {
            gone.push(entry.id);
        }
    }
    gone.reverse();
    gone.truncate(MAX_REMOVED);
    gone
}
