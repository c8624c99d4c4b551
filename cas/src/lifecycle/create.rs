//! Create and fork: a record without references first, its first version after the session was confirmed live.

use types::{Birth, Change, Epoch};

use crate::entry::{Entry, Heads, Role, tips};
use crate::error::Error;
use crate::guard::{Claim, check_owner};
use crate::keys;
use crate::record::{NewRecord, Record, State};
use crate::references;
use crate::session::{self, Operation};
use crate::store::{Store, Stored};
use crate::update::{Next, create, update, update_from};

/// Puts the record `{creating, owner, origin, request}` if its id is free. Done by the hub, or by the node itself.
///
/// `Already` when this request's record is there: in whatever state, and of whatever owner, so the caller looks. While it
/// is still being created and its owner is fenced or gone, it is given to the new owner.
pub async fn begin_create(store: &Store, new: NewRecord) -> Result<Change<Stored<Record>>, Error> {
    begin_create_born(store, new, Birth::random()).await
}

/// The same with the birth given, for a caller that makes the copy at the same time. A record that is there already has
/// its own.
pub async fn begin_create_born(
    store: &Store,
    new: NewRecord,
    birth: Birth,
) -> Result<Change<Stored<Record>>, Error> {
    let (id, owner, node, request) = (new.id.clone(), new.owner, new.node.clone(), new.request.clone());
    let record = Record { birth, ..new.into_record(store.clock().now()) };
    let found = match create(store, &keys::volume(&id), record).await? {
        Ok(made) => return Ok(Change::Made(made)),
        Err(found) => found,
    };
    if found.value.request != request {
        return Err(Error::OtherRequest { id });
    }
    let before = found.value.owner;
    let abandoned = match before {
        Some(before) if before == owner => false,
        Some(before) => session::is_fenced(store, &before).await?,
        None => true,
    };
    if found.value.state != State::Creating || !abandoned {
        return Ok(Change::Already(found));
    }
    update(store, None, &id, |current| {
        let record = &current.value;
        if record.state != State::Creating || record.owner != before || record.request != request {
            return Ok(Next::Already);
        }
        let mut next = record.clone();
        next.owner = Some(owner);
        next.node = Some(node.clone());
        next.epoch = record.epoch.next();
        next.holders.insert(owner.pool);
        Ok(Next::Write(next))
    })
    .await
}

/// Gives a record its first version, if it has one, and makes it live. `Ok` is the moment the creation may be answered.
///
/// Confirms first that the session lives, by a read that begins after the record was known: a record can be made for a
/// session that was fenced before, and nobody would ever take that one from it. `heads` are proven under `operation`
/// (written by it, or confirmed by [`references::confirm_version`]).
pub async fn finish_create(
    operation: &Operation,
    claim: &Claim,
    heads: Option<Heads>,
    label: &str,
) -> Result<Change<Stored<Record>>, Error> {
    operation.session().confirm_live().await?;
    first_version(operation, claim, None, heads, label, false).await
}

/// A record that was begun, and whose session was seen to live by a read that began after that.
#[derive(Debug)]
pub struct Confirmed(Stored<Record>);

impl Confirmed {
    /// Returns the record.
    pub fn record(&self) -> &Record {
        &self.0.value
    }
}

/// The first half of [`finish_begun`], which may go on while the caller makes what the version is.
pub async fn confirm_begun(operation: &Operation, begun: Stored<Record>) -> Result<Confirmed, Error> {
    operation.session().confirm_live().await?;
    Ok(Confirmed(begun))
}

/// Finishes a record that was just begun and is as it was confirmed: the write goes to the store without another read of
/// it. What holds of [`finish_create`] holds here.
pub async fn finish_begun(
    operation: &Operation,
    Confirmed(begun): Confirmed,
    heads: Option<Heads>,
    label: &str,
) -> Result<Change<Stored<Record>>, Error> {
    let claim = Claim::of(&begun.value);
    first_version(operation, &claim, Some(begun), heads, label, false).await
}

/// Sets the first head; a sealed record loses its owner in the same write.
pub(super) async fn first_version(
    operation: &Operation,
    claim: &Claim,
    begun: Option<Stored<Record>>,
    heads: Option<Heads>,
    label: &str,
    seal: bool,
) -> Result<Change<Stored<Record>>, Error> {
    let session = operation.session();
    let time = session.store_time();
    let wanted = heads.as_ref().map(tips).unwrap_or_default();
    let decide = |current: &Stored<Record>| {
        let record = &current.value;
        session.observe(current.modified);
        if record.birth != claim.birth {
            let (expected, found) = (claim.birth, record.birth);
            return Err(Error::OtherBirth { id: claim.id.clone(), expected, found });
        }
        let by_me = if seal { record.owner.is_none() } else { record.owner == Some(session.id()) };
        if record.state == State::Live && record.epoch == claim.epoch && by_me && record.head_tips() == wanted
        {
            return Ok(Next::Already);
        }
        if record.state != State::Creating {
            return Err(Error::WrongState { id: claim.id.clone(), state: record.state });
        }
        check_owner(record, &session.id(), claim).map_err(|reason| super::lost(&claim.id, reason))?;
        let mut next = record.clone();
        if let Some(heads) = &heads {
            references::check(operation, record, heads)?;
            let entry =
                Entry::new(&claim.id, heads.clone(), None, time, Role::Event, label, epoch_of(record))?;
            next.head = Some(entry.id);
            next.entries.push(entry);
        }
        next.state = State::Live;
        if seal {
            next.owner = None;
            next.holders.clear();
        }
        Ok(Next::Write(next))
    };
    match begun {
        Some(begun) => update_from(operation, begun, decide).await,
        None => update(session.store(), Some(operation), &claim.id, decide).await,
    }
}

fn epoch_of(record: &Record) -> Epoch {
    record.epoch
}
