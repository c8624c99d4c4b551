//! What happens to a volume, one function a paragraph of PROTOCOL.md §2. Rules U, G and R are inside.
//!
//! Every function can be called twice; the second call says `Already`. Each decision is made on what was read in the
//! same round, and recognises its own work when the answer to it was lost and somebody wrote on top.

mod acquire;
mod create;
mod delete;
mod publish;
mod restore;
mod seal;
mod settings;

pub use acquire::{Acquired, acquire, forget_copy, release, unseat};
pub use create::{begin_create, finish_create};
pub use delete::{Authority, delete, purge, undelete};
pub use publish::{Publication, Published, publish};
pub use restore::{Restored, Target, restore_head};
pub use seal::{NewSealed, make_orphan, seal};
pub use settings::{
    Exchanged, exchange_attributes, remove_branch, set_attributes, set_branch, set_pin, set_quota,
};

use types::{SessionId, VolumeId};

use crate::entry::Entry;
use crate::error::{Error, LostReason};
use crate::guard::{self, Claim, Known};
use crate::record::{Record, RecordKind};
use crate::thin;

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
fn grow(record: &mut Record, entry: Entry, now: types::Timestamp) {
    record.head = Some(entry.id);
    record.entries.push(entry);
    let gone = thin::plan(&record.entries, &record.kept_entries(), now);
    record.entries.retain(|entry| !gone.contains(&entry.id));
}
