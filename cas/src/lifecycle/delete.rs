//! Delete, undelete, purge. A tombstone names a birth; only one of the same birth permits dropping a local copy.

use std::collections::BTreeMap;
use std::time::Duration;

use types::{Birth, Change, SessionId, Timestamp, VolumeId};

use super::settings::differs;
use crate::error::Error;
use crate::record::{self, Record, State};
use crate::session;
use crate::store::{Store, Stored};
use crate::update::{Next, update};

/// By whose right a volume is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// Nobody owns it, or a fenced session does.
    Unowned,
    /// This session owns it, and has published what it holds.
    Owner(SessionId),
    /// An operator's, with the loss said: what a live owner has not published becomes an orphan when it finds out.
    Force,
}

/// Makes a tombstone: U(live → deleted, owner none, epoch+1). Entries stay roots until it is purged.
pub async fn delete(
    store: &Store,
    id: &VolumeId,
    birth: Option<Birth>,
    authority: Authority,
) -> Result<Change<Stored<Record>>, Error> {
    delete_where(store, id, birth, authority, &BTreeMap::new()).await
}

/// The same where attributes are as expected (`None`: not there) in the record that the tombstone replaces: whoever sets one
/// before is not overlooked, and whoever comes after finds the tombstone.
pub async fn delete_where(
    store: &Store,
    id: &VolumeId,
    birth: Option<Birth>,
    authority: Authority,
    expected: &BTreeMap<String, Option<String>>,
) -> Result<Change<Stored<Record>>, Error> {
    let owner = record::get(store, id).await?.value.owner;
    let fenced = match (authority, owner) {
        (Authority::Unowned, Some(owner)) => session::is_fenced(store, &owner).await?.then_some(owner),
        (Authority::Unowned, None) | (Authority::Owner(_) | Authority::Force, _) => None,
    };
    update(store, None, id, |current| {
        let record = &current.value;
        check_birth(record, birth)?;
        match record.state {
            State::Deleted | State::Purged => return Ok(Next::Already),
            State::Live | State::Creating => {}
        }
        if let Some(key) = differs(record, expected) {
            let found = record.attributes.get(&key).cloned().unwrap_or_default();
            return Err(Error::AttributeDiffers { id: id.clone(), key, found });
        }
        if let Some(owner) = record.owner {
            let allowed = match authority {
                Authority::Force => true,
                Authority::Owner(me) => owner == me,
                Authority::Unowned => fenced == Some(owner),
            };
            if !allowed {
                return Err(Error::Owned { id: id.clone(), owner });
            }
        }
        let next =
            Record { state: State::Deleted, owner: None, epoch: record.epoch.next(), ..record.clone() };
        Ok(Next::Write(next))
    })
    .await
}

/// Brings a deleted volume back, owned by nobody.
pub async fn undelete(
    store: &Store,
    id: &VolumeId,
    birth: Option<Birth>,
) -> Result<Change<Stored<Record>>, Error> {
    update(store, None, id, |current| {
        let record = &current.value;
        check_birth(record, birth)?;
        match record.state {
            State::Live => Ok(Next::Already),
            // One that was never finished has nothing to come back to, but is no less a volume.
            State::Deleted => Ok(Next::Write(Record { state: State::Live, ..record.clone() })),
            State::Creating | State::Purged => Err(Error::WrongState { id: id.clone(), state: record.state }),
        }
    })
    .await
}

/// Gives up the entries of a volume that has been deleted for `grace`. `now` is the store's time
/// ([`session::Session::store_time`]).
pub async fn purge(
    store: &Store,
    id: &VolumeId,
    birth: Birth,
    grace: Duration,
    now: Timestamp,
) -> Result<Change<Stored<Record>>, Error> {
    update(store, None, id, |current| {
        let record = &current.value;
        check_birth(record, Some(birth))?;
        match record.state {
            State::Purged => return Ok(Next::Already),
            // Every later write of the tombstone lengthens the grace; none shortens it.
            State::Deleted if now.since(current.modified) >= grace => {}
            State::Deleted | State::Live | State::Creating => {
                return Err(Error::WrongState { id: id.clone(), state: record.state });
            }
        }
        let mut next = record.clone();
        next.state = State::Purged;
        next.head = None;
        next.entries.clear();
        next.older.clear();
        next.branches.clear();
        next.pins.clear();
        Ok(Next::Write(next))
    })
    .await
}

fn check_birth(record: &Record, birth: Option<Birth>) -> Result<(), Error> {
    match birth {
        Some(expected) if expected != record.birth => {
            Err(Error::OtherBirth { id: record.id.clone(), expected, found: record.birth })
        }
        Some(_) | None => Ok(()),
    }
}
