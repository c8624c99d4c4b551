//! What happens to a volume, one function a paragraph of PROTOCOL.md §2. Rules U, G and R are inside.
//!
//! Every function can be called twice; the second call says `Already`. Each decision is made on what was read in the
//! same round, and recognises its own work when the answer to it was lost and somebody wrote on top.

mod acquire;
mod create;
mod delete;
mod publish;
mod rehome;
mod restore;
mod seal;
mod settings;

pub use acquire::{Acquired, acquire, forget_copy, release, unseat};
pub use create::{Confirmed, begin_create, begin_create_born, confirm_begun, finish_begun, finish_create};
pub use delete::{Authority, delete, delete_where, purge, undelete};
pub use publish::{Publication, Published, publish};
pub use rehome::{Right, rehome};
pub use restore::{Restored, Target, keep_branch, restore_head};
pub use seal::{NewSealed, make_orphan, seal};
pub use settings::{
    Exchanged, Taken, exchange_attributes, remove_branch, set_attributes, set_branch, set_pin, set_quota,
};

use std::time::Duration;

use types::{SessionId, Timestamp, VolumeId};

use crate::entry::Entry;
use crate::error::{Error, LostReason};
use crate::guard::{self, Claim, Known};
use crate::record::{Record, RecordKind};
use crate::session::Operation;
use crate::store::Stored;
use crate::thin;
use crate::upkeep::upkeep;

/// Rule G as this crate's error.
fn guard(record: &Record, session: &SessionId, claim: &Claim, known: &Known) -> Result<(), Error> {
    check_volume(record)?;
    guard::check(record, session, claim, known).map_err(|reason| lost(&record.id, reason))
}

fn lost(id: &VolumeId, reason: LostReason) -> Error {
    Error::Lost { id: id.clone(), reason }
}

/// Refuses what is sealed.
fn check_volume(record: &Record) -> Result<(), Error> {
    match record.kind {
        RecordKind::Volume => Ok(()),
        RecordKind::Snapshot | RecordKind::Template | RecordKind::Bundle | RecordKind::Orphan => {
            Err(Error::Sealed { id: record.id.clone() })
        }
    }
}

/// Makes `entry` the head, and thins.
fn grow(record: &mut Record, entry: Entry, now: Timestamp) {
    record.head = Some(entry.id);
    record.entries.push(entry);
    let plan = thin::plan(record, now);
    thin::apply(record, &plan);
}

/// The time of an entry that follows those there are: never before them, whichever store or pool told it, and never the
/// same, so that times put a timeline in order.
fn time_after(record: &Record, now: Timestamp) -> Timestamp {
    let newest = record.entries.iter().map(|entry| entry.time).max();
    newest.map_or(now, |time| now.max(time.plus(Duration::from_nanos(1))))
}

/// Keeps the record small after it has grown. What was published is durable whether or not this succeeds; what it
/// does not do is done after the next publish.
async fn keep_small(operation: &Operation, claim: &Claim, record: Stored<Record>) -> Stored<Record> {
    match Box::pin(upkeep(operation, claim, record.clone())).await {
        Ok(kept) => kept,
        Err(error) => {
            tracing::warn!(volume = %claim.id, %error, "older entries stay in the record until the next publish");
            record
        }
    }
}
