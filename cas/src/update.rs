//! Rule U: how every object that changes is changed.
//!
//! Read; decide on what was read; write with a new rev and a fresh nonce, if it is still what was read; send the same
//! bytes until the store says yes or no. After a no, read: our nonce means yes, else decide again on what is there now.
//!
//! - The etag always comes from a read in which the decision was made, so a decision never outlives what it saw.
//! - `decide` may be called again after one of its own writes happened and was built upon by another session's edit (the
//!   answer was lost, a label was changed on top). It has to recognise its own work and say [`Next::Already`].
//! - A future that is dropped leaves a write that may still happen. With an [`Operation`] it stays registered in the
//!   session: the pin does not move, and the next write of the same object waits, until it is settled.

use serde::Serialize;
use serde::de::DeserializeOwned;
use types::{Change, Nonce, SessionId, VolumeId};

use crate::codec;
use crate::error::Error;
use crate::keys;
use crate::objects::{Condition, Key};
use crate::record::Record;
use crate::session::Operation;
use crate::settle::{self, Settled};
use crate::store::{Store, Stored};

/// How many times others may get between a read and its write before the caller is told.
const MAX_ROUNDS: u32 = 64;

/// The pause between rounds grows by the store's first pause divided by this (2 ms).
const ROUND_PAUSES: u32 = 25;

/// What to do with an object after a look at it.
#[derive(Debug)]
pub enum Next<T> {
    /// Write this in its place.
    Write(T),
    /// It says already what it should.
    Already,
}

/// An object that rule U changes.
pub(crate) trait Versioned: Serialize + DeserializeOwned + Send + Sync {
    /// Counts the write and marks it as this one.
    fn stamp(&mut self, nonce: Nonce);
    /// Returns the mark of the last write.
    fn nonce(&self) -> Nonce;
    /// Checks what was read or is about to be written.
    fn check(&self, key: &Key) -> Result<(), Error>;
}

impl Versioned for Record {
    fn stamp(&mut self, nonce: Nonce) {
        self.rev = self.rev.next();
        self.nonce = nonce;
    }

    fn nonce(&self) -> Nonce {
        self.nonce
    }

    fn check(&self, key: &Key) -> Result<(), Error> {
        Self::check(self, key)
    }
}

/// Changes a record by rule U.
///
/// Writes that add references pass the operation whose pin protects them; edits that add none need no operation, and
/// when they happen late they are just late.
pub async fn update<F>(
    store: &Store,
    operation: Option<&Operation>,
    id: &VolumeId,
    decide: F,
) -> Result<Change<Stored<Record>>, Error>
where
    F: FnMut(&Stored<Record>) -> Result<Next<Record>, Error> + Send,
{
    swap(store, operation, &keys::volume(id), decide).await?.ok_or_else(|| Error::NoVolume { id: id.clone() })
}

/// The same, beginning with what the caller has just read or written of it: a round trip less. Where that is not so any
/// more the store refuses the write, and the record is read.
pub(crate) async fn update_from<F>(
    operation: &Operation,
    begun: Stored<Record>,
    decide: F,
) -> Result<Change<Stored<Record>>, Error>
where
    F: FnMut(&Stored<Record>) -> Result<Next<Record>, Error> + Send,
{
    let (store, id) = (operation.session().store(), begun.value.id.clone());
    let changed = swap_from(store, Some(operation), &keys::volume(&id), Some(begun), decide).await?;
    changed.ok_or(Error::NoVolume { id })
}

/// Writes a record again as it is, if `session` owns it. A write of an earlier process of the session that is still on its
/// way then finds another record and does not happen.
pub async fn touch(
    store: &Store,
    session: &SessionId,
    id: &VolumeId,
) -> Result<Change<Stored<Record>>, Error> {
    update(store, None, id, |current| {
        let ours = current.value.owner == Some(*session);
        Ok(if ours { Next::Write(current.value.clone()) } else { Next::Already })
    })
    .await
}

/// Changes any object by rule U; `None` if it is not there.
pub(crate) async fn swap<T, F>(
    store: &Store,
    operation: Option<&Operation>,
    key: &Key,
    decide: F,
) -> Result<Option<Change<Stored<T>>>, Error>
where
    T: Versioned,
    F: FnMut(&Stored<T>) -> Result<Next<T>, Error> + Send,
{
    swap_from(store, operation, key, None, decide).await
}

async fn swap_from<T, F>(
    store: &Store,
    operation: Option<&Operation>,
    key: &Key,
    begun: Option<Stored<T>>,
    mut decide: F,
) -> Result<Option<Change<Stored<T>>>, Error>
where
    T: Versioned,
    F: FnMut(&Stored<T>) -> Result<Next<T>, Error> + Send,
{
    if let Some(operation) = operation {
        operation.session().settle_writes_of(key).await?;
    }
    let read = match begun {
        Some(begun) => Some(begun),
        None => store.read::<T>(key).await?,
    };
    let Some(mut current) = read else { return Ok(None) };
    for round in 0..MAX_ROUNDS {
        current.value.check(key)?;
        let mut next = match decide(&current)? {
            Next::Already => return Ok(Some(Change::Already(current))),
            Next::Write(next) => next,
        };
        let nonce = Nonce::random();
        next.stamp(nonce);
        next.check(key)?;
        let bytes = codec::encode(key, &next)?;
        let condition = Condition::IfMatch(current.etag);
        let write = settle::put(store, key, &bytes, &condition);
        let settled = match operation {
            Some(operation) => operation.registered(key, nonce, &bytes, &condition, write).await?,
            None => write.await?,
        };
        match settled {
            Settled::Written(etag) => {
                return Ok(Some(Change::Made(Stored { value: next, etag, modified: current.modified })));
            }
            Settled::Absent => return Err(Error::Gone { key: key.clone() }),
            Settled::Refused => {}
        }
        current = settle::read(store, key).await?.ok_or_else(|| Error::Gone { key: key.clone() })?;
        if current.value.nonce() == nonce {
            return Ok(Some(Change::Made(current)));
        }
        let pause = store.retry().first / ROUND_PAUSES * round.min(16) * rand::random_range(0..=2);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    Err(Error::Contended { key: key.clone() })
}

/// Puts a new object; the object that is there instead if there is one that this call did not put.
pub(crate) async fn create<T: Versioned>(
    store: &Store,
    key: &Key,
    value: T,
) -> Result<Result<Stored<T>, Stored<T>>, Error> {
    value.check(key)?;
    let bytes = codec::encode(key, &value)?;
    for _ in 0..MAX_ROUNDS {
        match settle::put(store, key, &bytes, &Condition::IfAbsent).await? {
            Settled::Written(etag) => {
                let modified = types::Timestamp::default();
                return Ok(Ok(Stored { value, etag, modified }));
            }
            Settled::Refused | Settled::Absent => {}
        }
        // Gone again at once: a purged record was collected between the two calls. Then the id is free.
        if let Some(found) = settle::read::<T>(store, key).await? {
            found.value.check(key)?;
            return Ok(if found.value.nonce() == value.nonce() { Ok(found) } else { Err(found) });
        }
    }
    Err(Error::Contended { key: key.clone() })
}

/// Helps the compiler to see that a registered write is a future of a settled outcome.
pub(crate) trait Write: Future<Output = Result<Settled, Error>> + Send {}
impl<F: Future<Output = Result<Settled, Error>> + Send> Write for F {}
