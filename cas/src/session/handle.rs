//! The session of this process: join or resume, beat, pin, end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, MutexGuard};

use bytes::Bytes;
use tokio::sync::Mutex;
use types::{NodeName, Nonce, PoolId, Rev, SessionId, Timestamp};

use super::holds::{Ended, Hold, Holds};
use super::packs::PACK_BLOCK;
use super::{SessionRecord, SessionState};
use crate::VersionRef;
use crate::codec;
use crate::error::Error;
use crate::gc::{self, Pin};
use crate::keys;
use crate::objects::{Condition, Etag, Key};
use crate::record;
use crate::settle::{self, Settled};
use crate::store::{Store, Stored};
use crate::update::{create, touch};

/// How often the collection may move on while a session joins, before joining is an error.
const MAX_JOIN_ROUNDS: u32 = 100;

/// How often a write of the session's object is sent again after a refusal that nobody's write explains.
const MAX_SEND_ROUNDS: u32 = 8;

/// A live session, held by one process. Clones are handles of the same one.
#[derive(Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    store: Store,
    id: SessionId,
    nonce: Nonce,
    node: NodeName,
    key: Key,
    /// Serialises the writes of the session's object.
    written: Mutex<Written>,
    /// Never locked across an await.
    holds: std::sync::Mutex<Holds>,
}

/// The session's object as this process last wrote it.
struct Written {
    record: SessionRecord,
    etag: Etag,
    /// A write whose outcome is not known. It comes first.
    pending: Option<(SessionRecord, Bytes)>,
}

/// What a beat wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// The count.
    pub beat: u64,
    /// The pin that everybody sees now.
    pub pin: u64,
    /// The `low` that everybody sees now.
    pub low: u64,
}

/// How taking up a session after a restart ended.
#[derive(Debug)]
pub enum Resumed {
    /// It goes on.
    Live(Session),
    /// It was fenced. Join a new one; then per volume acquire again or make an orphan.
    Fenced,
    /// Another process has taken it up since: this pool is a clone, or went back in time. Join a new one.
    Stolen,
    /// It is not in the store. Join a new one, and drop nothing.
    Gone,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({})", self.0.id)
    }
}

impl Session {
    /// Joins the store: reads `gc`, creates the session with that pin, and reads `gc` again until it stood still.
    ///
    /// A session of this number that is not this call's is [`Error::SessionTaken`]; the pool then takes the next number.
    pub async fn join(
        store: &Store,
        pool: PoolId,
        number: u64,
        node: &NodeName,
        host: &str,
    ) -> Result<Self, Error> {
        let id = SessionId { pool, number };
        let key = keys::session(&id);
        let pin = gc::read_pin(store).await?;
        let record = SessionRecord {
            format: codec::FORMAT,
            id,
            rev: Rev(1),
            nonce: Nonce::random(),
            node: node.clone(),
            host: host.chars().take(255).collect(),
            state: SessionState::Live,
            pin: pin.epoch,
            low: 1,
            reserved: 1 + PACK_BLOCK,
            beat: 1,
        };
        let Ok(stored) = create(store, &key, record).await? else {
            return Err(Error::SessionTaken { session: id });
        };
        let modified = store.objects().head(&key).await?.modified;
        let session = Self::new(store, Stored { modified, ..stored }, pin, 1, None);
        // An operation that began under the first pin may have missed a condemnation between the read and the create.
        for _ in 0..MAX_JOIN_ROUNDS {
            let pin = gc::read_pin(store).await?;
            let moved = pin.epoch != session.pin().epoch;
            session.holds().pin = Arc::new(pin);
            if !moved {
                return Ok(session);
            }
            session.write(|_| {}).await?;
        }
        Err(Error::Contended { key: keys::gc() })
    }

    /// Joins under the number after every one that the pool used.
    pub async fn join_next(
        store: &Store,
        pool: PoolId,
        after: u64,
        node: &NodeName,
        host: &str,
    ) -> Result<Self, Error> {
        let used = super::list_pool(store, pool).await?;
        let mut number = used.last().map_or(0, |session| session.value.id.number).max(after) + 1;
        for _ in 0..MAX_JOIN_ROUNDS {
            match Self::join(store, pool, number, node, host).await {
                Err(Error::SessionTaken { .. }) => number += 1,
                joined => return joined,
            }
        }
        Err(Error::Contended { key: keys::session(&SessionId { pool, number }) })
    }

    /// Takes a session up after a restart of its process: the same session, so nothing moves.
    ///
    /// `remembered` is the [`Self::nonce`] that this pool saved when it last took the session up; `None` where that
    /// memory is lost, and then the store is believed. Save the new nonce before the session is used: a crash in between
    /// looks like a clone, and costs a new session.
    pub async fn resume(store: &Store, id: SessionId, remembered: Option<Nonce>) -> Result<Resumed, Error> {
        let Some(found) = super::read(store, &id).await? else { return Ok(Resumed::Gone) };
        if found.value.state == SessionState::Fenced {
            return Ok(Resumed::Fenced);
        }
        if remembered.is_some_and(|nonce| nonce != found.value.nonce) {
            return Ok(Resumed::Stolen);
        }
        let key = keys::session(&id);
        let before = found.value;
        let record = SessionRecord {
            rev: before.rev.next(),
            nonce: Nonce::random(),
            beat: before.beat + 1,
            reserved: before.reserved + PACK_BLOCK,
            ..before.clone()
        };
        let bytes = codec::encode(&key, &record)?;
        let settled = settle::put(store, &key, &bytes, &Condition::IfMatch(found.etag)).await?;
        let stored = match settled {
            Settled::Written(etag) => Stored { value: record, etag, modified: found.modified },
            Settled::Absent => return Ok(Resumed::Gone),
            Settled::Refused => match settle::read::<SessionRecord>(store, &key).await? {
                None => return Ok(Resumed::Gone),
                Some(now) if now.value.state == SessionState::Fenced => return Ok(Resumed::Fenced),
                Some(now) if now.value.nonce == record.nonce => now,
                Some(_) => return Ok(Resumed::Stolen),
            },
        };
        // What the process before this one sent may still land, so its pin and its packs are held until `raise` has
        // moved every record that it may have been writing.
        let inherited = Hold { epoch: before.pin, low: before.low };
        let pin = gc::read_pin(store).await?;
        let modified = store.objects().head(&key).await?.modified;
        let stored = Stored { modified, ..stored };
        Ok(Resumed::Live(Self::new(store, stored, pin, before.reserved, Some(inherited))))
    }

    fn new(
        store: &Store,
        stored: Stored<SessionRecord>,
        pin: Pin,
        next_pack: u64,
        inherited: Option<Hold>,
    ) -> Self {
        let holds = Holds {
            ended: None,
            pin: Arc::new(pin),
            next_pack,
            reserved: stored.value.reserved,
            next_operation: 1,
            operations: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            inherited,
            acknowledged: BTreeSet::new(),
            built: VecDeque::new(),
            store_time: (stored.modified, store.clock().monotonic()),
        };
        let Stored { value: record, etag, .. } = stored;
        Self(Arc::new(Inner {
            store: store.clone(),
            id: record.id,
            nonce: record.nonce,
            node: record.node.clone(),
            key: keys::session(&record.id),
            written: Mutex::new(Written { record, etag, pending: None }),
            holds: std::sync::Mutex::new(holds),
        }))
    }

    /// Returns its id.
    pub fn id(&self) -> SessionId {
        self.0.id
    }

    /// Returns what this process is known by; the pool saves it for [`Self::resume`].
    pub fn nonce(&self) -> Nonce {
        self.0.nonce
    }

    /// Returns the node's name.
    pub fn node(&self) -> &NodeName {
        &self.0.node
    }

    /// Returns its store.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Returns what a new operation would avoid. Dedup indexes drop what it does not allow.
    pub fn pin(&self) -> Arc<Pin> {
        Arc::clone(&self.holds().pin)
    }

    /// Returns a time that the store's clock has passed, however wrong this machine's is.
    pub fn store_time(&self) -> Timestamp {
        self.holds().time(self.0.store.clock().monotonic())
    }

    /// Notes that `tree` was put as an increment of `base`, whose packs it names: a record may list it only where it may
    /// list the base (rule R).
    pub(crate) fn note_built(&self, tree: &VersionRef, base: &VersionRef) {
        if tree != base {
            self.holds().note_built(tree, base);
        }
    }

    /// Returns what a version that this process put was built on.
    pub(crate) fn built_on(&self, tree: &VersionRef) -> Option<VersionRef> {
        let holds = self.holds();
        holds.built.iter().rev().find(|(built, _)| built == tree).map(|(_, base)| base.clone())
    }

    pub(crate) fn observe(&self, modified: Timestamp) {
        self.holds().observe(modified, self.0.store.clock().monotonic());
    }

    pub(super) fn holds(&self) -> MutexGuard<'_, Holds> {
        self.0.holds.lock().expect("no holder of this lock panics")
    }

    pub(super) fn check_not_ended(&self, holds: &Holds) -> Result<(), Error> {
        match holds.ended {
            None => Ok(()),
            Some(Ended::Fenced) => Err(Error::Fenced { session: self.0.id }),
            Some(Ended::Stolen) => Err(Error::Stolen { session: self.0.id }),
        }
    }

    fn end(&self, ended: Ended) -> Error {
        self.holds().ended.get_or_insert(ended);
        match ended {
            Ended::Fenced => Error::Fenced { session: self.0.id },
            Ended::Stolen => Error::Stolen { session: self.0.id },
        }
    }

    /// Tells everybody that this process lives, and what its operations hold. Learns here that it was fenced or cloned.
    pub async fn beat(&self) -> Result<Beat, Error> {
        self.write(|_| {}).await
    }

    /// Reads the session by a read that begins now. An answer from before the caller learned of something proves nothing
    /// about it.
    pub async fn confirm_live(&self) -> Result<(), Error> {
        self.check_not_ended(&self.holds())?;
        let found = super::read(&self.0.store, &self.0.id).await?;
        let Some(found) = found else { return Err(Error::NoSession { session: self.0.id }) };
        self.observe(found.modified);
        if found.value.state == SessionState::Fenced {
            return Err(self.end(Ended::Fenced));
        }
        if found.value.nonce != self.0.nonce {
            return Err(self.end(Ended::Stolen));
        }
        Ok(())
    }

    /// Follows the garbage collection: reads `gc`, lets new operations avoid what it condemned, and pins what every
    /// unfinished operation knows of. Settles first what nobody waits for any more. Call it every few seconds.
    ///
    /// Returns the new pin, from which dedup indexes drop what it does not allow.
    pub async fn raise(&self) -> Result<Arc<Pin>, Error> {
        let pin = gc::read_pin(&self.0.store).await?;
        {
            let mut holds = self.holds();
            self.check_not_ended(&holds)?;
            if pin.epoch < holds.pin.epoch {
                let reason =
                    format!("its epoch {} is before {}: the store went back", pin.epoch, holds.pin.epoch);
                return Err(Error::corrupt(&keys::gc(), reason));
            }
            if *holds.pin != pin {
                holds.pin = Arc::new(pin);
            }
        }
        let told = self.0.written.lock().await.record.pin;
        if self.pin().epoch > told {
            self.settle().await?;
            self.settle_inherited().await?;
            self.write(|_| {}).await?;
        }
        // The only clock that entries and thinning know is the store's, and this machine may have slept.
        let modified = self.0.store.objects().head(&self.0.key).await?.modified;
        self.observe(modified);
        Ok(self.pin())
    }

    /// Settles the writes whose operations have ended without an answer.
    pub async fn settle(&self) -> Result<(), Error> {
        let left: Vec<_> = {
            let holds = self.holds();
            let abandoned =
                holds.unsettled.iter().filter(|(_, write)| !holds.operations.contains_key(&write.operation));
            abandoned.map(|(name, write)| (name.clone(), write.clone())).collect()
        };
        for (name, write) in left {
            settle::put(&self.0.store, &name.0, &write.bytes, &write.condition).await?;
            self.holds().unsettled.remove(&name);
        }
        Ok(())
    }

    /// Settles earlier writes of one object before it is written again.
    pub(crate) async fn settle_writes_of(&self, key: &Key) -> Result<(), Error> {
        let left: Vec<_> = {
            let holds = self.holds();
            self.check_not_ended(&holds)?;
            let of_key = holds.unsettled.iter().filter(|((of, _), _)| of == key);
            of_key.map(|(name, write)| (name.clone(), write.clone())).collect()
        };
        for (name, write) in left {
            settle::put(&self.0.store, key, &write.bytes, &write.condition).await?;
            self.holds().unsettled.remove(&name);
        }
        Ok(())
    }

    /// Makes sure that nothing of an earlier process of this session can land: every record that it could write, which
    /// is every record that it owns, gets a new state.
    async fn settle_inherited(&self) -> Result<(), Error> {
        if self.holds().inherited.is_none() {
            return Ok(());
        }
        for id in record::ids(&self.0.store).await? {
            match touch(&self.0.store, &self.0.id, &id).await {
                // A record that went meanwhile cannot be written to either.
                Ok(_) | Err(Error::NoVolume { .. } | Error::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.holds().inherited = None;
        Ok(())
    }

    pub(super) async fn reserve_packs(&self) -> Result<(), Error> {
        self.write(|record| record.reserved += PACK_BLOCK).await.map(|_| ())
    }

    /// Ends the session for good, when the process has released everything and will not come back as this one.
    pub async fn close(&self) -> Result<(), Error> {
        if let Some(operation) = self.holds().operations.keys().next() {
            let what = format!("session {} has the open operation {operation}", self.0.id);
            return Err(Error::Invalid { what, rule: "a session is closed after its operations" });
        }
        self.settle().await?;
        self.write(|record| record.state = SessionState::Fenced).await?;
        self.holds().ended = Some(Ended::Fenced);
        Ok(())
    }

    /// Writes the session's object: the change, the next beat, and what is held.
    async fn write(&self, change: impl FnOnce(&mut SessionRecord)) -> Result<Beat, Error> {
        let mut written = self.0.written.lock().await;
        self.check_not_ended(&self.holds())?;
        if written.pending.is_some() {
            self.send(&mut written).await?;
        }
        let mut next = written.record.clone();
        change(&mut next);
        next.rev = next.rev.next();
        next.beat += 1;
        {
            let mut holds = self.holds();
            let Hold { epoch, low } = holds.hold();
            // Never back: a hold that began later holds no less than what was told before.
            next.pin = next.pin.max(epoch);
            next.low = next.low.max(low);
            holds.acknowledged.retain(|pack| pack.seq >= low);
        }
        let bytes = codec::encode(&self.0.key, &next)?;
        written.pending = Some((next, bytes));
        self.send(&mut written).await?;
        let record = &written.record;
        Ok(Beat { beat: record.beat, pin: record.pin, low: record.low })
    }

    /// Settles the pending write of the session's object.
    async fn send(&self, written: &mut Written) -> Result<(), Error> {
        let Some((record, bytes)) = written.pending.clone() else { return Ok(()) };
        for _ in 0..MAX_SEND_ROUNDS {
            let condition = Condition::IfMatch(written.etag.clone());
            let etag = match settle::put(&self.0.store, &self.0.key, &bytes, &condition).await? {
                Settled::Written(etag) => etag,
                Settled::Absent => return Err(Error::NoSession { session: self.0.id }),
                Settled::Refused => {
                    let now = settle::read::<SessionRecord>(&self.0.store, &self.0.key).await?;
                    let Some(now) = now else { return Err(Error::NoSession { session: self.0.id }) };
                    if now.value == record {
                        now.etag
                    } else if now.value.state == SessionState::Fenced {
                        return Err(self.end(Ended::Fenced));
                    } else if now.value == written.record {
                        // Nobody wrote: something between here and the store answered for it.
                        written.etag = now.etag;
                        continue;
                    } else {
                        return Err(self.end(Ended::Stolen));
                    }
                }
            };
            written.etag = etag;
            self.holds().reserved = record.reserved;
            written.record = record;
            written.pending = None;
            return Ok(());
        }
        Err(Error::Contended { key: self.0.key.clone() })
    }
}
