//! Publish: the one conditional write that makes a version durable.
//!
//! Before it: packs acknowledged, `snap/<version>` committed locally. After it: answer durable, turn base. A crash before
//! it leaves garbage; a crash after it leaves a head that is among the local snapshots, which rule G accepts.

use types::{Change, EntryId};

use crate::entry::{Entry, Heads, Role, tips};
use crate::error::Error;
use crate::guard::{Claim, Known};
use crate::record::{Record, State};
use crate::references;
use crate::session::Operation;
use crate::store::Stored;
use crate::update::{Next, update};

/// What is to become durable.
#[derive(Debug, Clone)]
pub struct Publication {
    /// The new version of every member.
    pub heads: Heads,
    /// Why.
    pub role: Role,
    /// What is said about it.
    pub label: String,
    /// Give the volume up in the same write. The caller has closed its gates and holds no mount.
    pub release: bool,
    /// The squota charge now.
    pub charge_bytes: Option<u64>,
}

/// What is durable now.
#[derive(Debug, Clone)]
pub struct Published {
    /// The record.
    pub record: Stored<Record>,
    /// The entry that stands for it: the new one, or the head if nothing had changed.
    pub entry: EntryId,
}

/// Publishes by U(G, head := heads, entry, thin).
///
/// A sync that changed nothing writes nothing and is `Already`. With another role it makes a new entry of the same version,
/// unless the head says the same with the same label: that is a call whose answer was lost.
///
/// [`Error::Lost`] means that live becomes an orphan ([`super::make_orphan`]); [`Error::Unsettled`] that it is not known
/// yet, and that the next call on this volume finds out.
pub async fn publish(
    operation: &Operation,
    claim: &Claim,
    known: &Known,
    publication: Publication,
) -> Result<Change<Published>, Error> {
    let session = operation.session();
    let wanted = tips(&publication.heads);
    // One time for all attempts, so that the same head before gives the same entry.
    let mut time = None;
    let mut attempted: Vec<EntryId> = Vec::new();
    let mut stands = None;
    let changed = update(session.store(), Some(operation), &claim.id, |current| {
        let record = &current.value;
        session.observe(current.modified);
        let time = *time.get_or_insert_with(|| session.store_time());
        // An attempt of ours happened, its answer was lost, and somebody edited the record on top of it.
        if let Some(entry) = attempted.iter().rev().find(|entry| record.entry(entry).is_some()) {
            let released = record.owner != Some(session.id()) || record.epoch != claim.epoch;
            if !publication.release || released {
                stands = Some(*entry);
                return Ok(Next::Already);
            }
        }
        // The same for a release that needed no entry, and for one that is asked for again.
        let same = record.head.is_some() && record.head_tips() == wanted;
        if publication.release && same && is_released(record, claim) {
            stands = record.head;
            return Ok(Next::Already);
        }
        super::guard(record, &session.id(), claim, known)?;
        references::check(operation, record, &publication.heads)?;
        let mut next = record.clone();
        if let Some(charge_bytes) = publication.charge_bytes {
            next.quota.charge_bytes = charge_bytes;
        }
        if publication.release {
            next.owner = None;
        }
        if same && (publication.role == Role::Sync || head_says(record, &publication)) {
            stands = record.head;
            return Ok(if publication.release { Next::Write(next) } else { Next::Already });
        }
        let Publication { heads, role, label, .. } = &publication;
        let time = super::time_after(record, time);
        let entry = Entry::new(&claim.id, heads.clone(), record.head, time, *role, label, claim.epoch)?;
        if record.entry(&entry.id).is_some() {
            return Err(Error::Invalid {
                what: format!("entry {}", entry.id),
                rule: "an entry is made once",
            });
        }
        attempted.push(entry.id);
        stands = Some(entry.id);
        super::grow(&mut next, entry, session.store_time());
        Ok(Next::Write(next))
    });
    let published = |record: Stored<Record>, stands: Option<EntryId>| {
        let entry = stands.or(record.value.head).expect("a published volume has a head");
        Published { record, entry }
    };
    Ok(match changed.await? {
        Change::Made(record) => {
            // Only the owner may: a publish that also released has to leave it to the next one.
            let record =
                if publication.release { record } else { super::keep_small(operation, claim, record).await };
            Change::Made(published(record, stands))
        }
        Change::Already(record) => Change::Already(published(record, stands)),
    })
}

/// Tells if the head was published for the same reason with the same label.
fn head_says(record: &Record, publication: &Publication) -> bool {
    let head = record.head.and_then(|head| record.entry(&head));
    head.is_some_and(|head| head.role == publication.role && head.label == publication.label)
}

/// Tells if this claim was given up by a release: nothing else takes the owner away and leaves the epoch.
pub(super) fn is_released(record: &Record, claim: &Claim) -> bool {
    record.birth == claim.birth
        && record.state == State::Live
        && record.owner.is_none()
        && record.epoch == claim.epoch
}
