//! Release and acquire: how a volume changes hands. A move is both; hibernation is the first alone.

use std::collections::BTreeSet;

use types::{Birth, Change, Epoch, SessionId, Timestamp, VolumeId};

use super::publish::is_released;
use crate::entry::Tips;
use crate::error::Error;
use crate::guard::{Claim, Known};
use crate::record::{self, Record, State, Takeover};
use crate::session::{self, Operation, Session};
use crate::store::{Store, Stored};
use crate::update::{Next, update};

/// How many owners in a row may turn out to be fenced before the caller is told.
const MAX_OWNERS: u32 = 16;

/// A volume that is this session's now.
#[derive(Debug, Clone)]
pub struct Acquired {
    /// The record.
    pub record: Stored<Record>,
    /// What the session holds from now on.
    pub claim: Claim,
    /// The owner that it was taken from: none, a fenced one, this session in an earlier life, or by force a live one.
    pub from: Option<SessionId>,
}

/// Gives a volume up. The caller has closed its gates, holds no mount, and has committed; `clean` is what its live state
/// is, and must be the head. Reopening is acquiring again.
pub async fn release(
    operation: &Operation,
    claim: &Claim,
    known: &Known,
    clean: &Tips,
) -> Result<Change<Stored<Record>>, Error> {
    let session = operation.session();
    update(session.store(), Some(operation), &claim.id, |current| {
        let record = &current.value;
        if is_released(record, claim) && record.head_tips() == *clean {
            return Ok(Next::Already);
        }
        super::guard(record, &session.id(), claim, known)?;
        if record.head_tips() != *clean {
            return Err(Error::HeadMoved { id: claim.id.clone() });
        }
        Ok(Next::Write(Record { owner: None, ..record.clone() }))
    })
    .await
}

/// Takes a volume: its head lies materialised in staging as `prepared` (empty before its first version).
///
/// Allowed when nobody owns it, when its owner is fenced, when this session owned it in an earlier life, or by an
/// operator's `force`. Raises the epoch, which ends every write that an earlier owner has under way. Confirms afterwards,
/// by a read that begins after the write, that the session lives: only then may the caller rename into place.
pub async fn acquire(
    session: &Session,
    id: &VolumeId,
    prepared: &Tips,
    force: bool,
) -> Result<Change<Acquired>, Error> {
    let operation = session.begin()?;
    let mut fenced: BTreeSet<SessionId> = BTreeSet::new();
    let mut attempted: Option<(Birth, Epoch)> = None;
    let mut from = None;
    let mut time = None;
    let mut rounds = 0;
    let changed = loop {
        let changed = update(session.store(), Some(&operation), id, |current| {
            let record = &current.value;
            session.observe(current.modified);
            let time = *time.get_or_insert_with(|| session.store_time());
            super::check_volume(record)?;
            if record.state != State::Live {
                return Err(Error::WrongState { id: id.clone(), state: record.state });
            }
            let mine = record.owner == Some(session.id());
            if mine && attempted == Some((record.birth, record.epoch)) {
                return Ok(Next::Already);
            }
            if let Some(owner) = record.owner
                && !mine
                && !force
                && !fenced.contains(&owner)
            {
                return Err(Error::Owned { id: id.clone(), owner });
            }
            if record.head_tips() != *prepared {
                return Err(Error::HeadMoved { id: id.clone() });
            }
            let mut next = record.clone();
            next.takeover = takeover(record, session, time);
            next.owner = Some(session.id());
            next.node = Some(session.node().clone());
            next.epoch = record.epoch.next();
            next.holders.insert(session.id().pool);
            from = record.owner;
            attempted = Some((next.birth, next.epoch));
            Ok(Next::Write(next))
        });
        match changed.await {
            Err(Error::Owned { owner, .. })
                if rounds < MAX_OWNERS && session::is_fenced(session.store(), &owner).await? =>
            {
                fenced.insert(owner);
                rounds += 1;
            }
            changed => break changed?,
        }
    };
    session.confirm_live().await?;
    let acquired = |record: Stored<Record>| Acquired { claim: Claim::of(&record.value), record, from };
    // `Already` inside is this call's own write, found again.
    Ok(Change::Made(acquired(changed.into_inner())))
}

/// What the record says of how `session` gets the volume: from another pool's session, or from nobody after it was taken
/// from one. A pool that takes its own volume again has everything that it wrote.
fn takeover(record: &Record, session: &Session, time: Timestamp) -> Option<Box<Takeover>> {
    let me = session.id();
    match (record.owner, &record.takeover) {
        (Some(owner), _) if owner.pool != me.pool => Some(record.taken_from(owner, Some(me), time)),
        (None, Some(away))
            if away.by.is_none() && away.epoch == record.epoch && away.from.pool != me.pool =>
        {
            let away = Takeover::clone(away);
            Some(Box::new(Takeover { by: Some(me), epoch: record.epoch.next(), ..away }))
        }
        (_, before) => before.clone(),
    }
}

/// Takes a volume from a fenced session and gives it to nobody: U(owner = it → none, epoch+1).
pub async fn unseat(
    store: &Store,
    id: &VolumeId,
    fenced: &SessionId,
) -> Result<Change<Stored<Record>>, Error> {
    let owner = record::get(store, id).await?.value.owner;
    if owner == Some(*fenced) && !session::is_fenced(store, fenced).await? {
        return Err(Error::Owned { id: id.clone(), owner: *fenced });
    }
    update(store, None, id, |current| {
        let record = &current.value;
        if record.owner != Some(*fenced) {
            return Ok(Next::Already);
        }
        let takeover = Some(record.taken_from(*fenced, None, store.clock().now()));
        Ok(Next::Write(Record { owner: None, epoch: record.epoch.next(), takeover, ..record.clone() }))
    })
    .await
}

/// Notes that this pool dropped its copy. A record goes away only when no pool holds one.
pub async fn forget_copy(session: &Session, id: &VolumeId) -> Result<Change<Stored<Record>>, Error> {
    let me = session.id();
    update(session.store(), None, id, |current| {
        let record = &current.value;
        if record.owner == Some(me) {
            return Err(Error::Owned { id: id.clone(), owner: me });
        }
        if !record.holders.contains(&me.pool) {
            return Ok(Next::Already);
        }
        let mut next = record.clone();
        next.holders.remove(&me.pool);
        Ok(Next::Write(next))
    })
    .await
}
