//! A store that fails on demand, around any other: for fault tests and crash enumeration.
//!
//! ```
//! # use std::sync::Arc;
//! # use cas::objects::{CallKind, Condition, Fault, FaultStore, MemoryStore, Objects as _};
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let disk = MemoryStore::new();
//! let store = FaultStore::new(Arc::new(disk.clone()));
//! store.at_write(0, Fault::LostAnswer); // the first put or delete happens, and its caller does not hear of it
//! let key = "vol/a".parse().unwrap();
//! assert!(store.put(&key, "x".into(), &Condition::IfAbsent).await.is_err());
//! assert_eq!(disk.get(&key).await.unwrap().bytes, "x");
//! assert_eq!(store.counts().of(CallKind::Put), 1);
//! # });
//! ```
//!
//! To die at every point of an operation: run it once without faults and read [`Counts::calls`], then for each of
//! [`crashes`]`(calls)` make a new world, say [`FaultStore::at_call`], run it under [`FaultStore::until_death`], and look at
//! the inner store with a new process's eyes.

use std::collections::BTreeMap;
use std::fmt;
use std::future;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::{CallKind, Condition, Etag, Key, Meta, Object, ObjectError, Objects, Page, Traffic};

/// A call that is about to be made, as a plan sees it.
#[derive(Debug, Clone)]
pub struct Call {
    /// How many calls of any kind came before it.
    pub index: u64,
    /// How many calls of its kind came before it.
    pub nth: u64,
    /// How many puts and deletes came before it.
    pub writes_before: u64,
    /// What it is.
    pub kind: CallKind,
    /// Its key, or the prefix of a list.
    pub key: String,
    /// What a put carries.
    pub bytes: Bytes,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// Nothing: the call is made.
    #[default]
    None,
    /// Not made; the answer is `Unavailable` (a timeout before it arrived, a 503).
    Unavailable,
    /// Not made; the store asks for fewer requests (a 503 SlowDown, a 429).
    Busy,
    /// Made; the answer is lost and the caller gets `Unavailable`.
    LostAnswer,
    /// A write that is on its way: the caller gets `Unavailable`, and it arrives at [`FaultStore::deliver_held`].
    /// For a read, the same as `Unavailable`.
    Held,
    /// Made twice, as a proxy would that sends again; the caller hears the second answer.
    Duplicate,
    /// Not made; the answer of a put is 412. For any other call, the same as `Unavailable`.
    Precondition,
    /// Not made; the answer of a put is 409. For any other call, the same as `Unavailable`.
    Conflict,
    /// Made after a pause.
    Delay(Duration),
    /// Nothing is said until the plans end ([`FaultStore::heal`]); then it is made.
    Stall,
    /// Made, with half of the bytes lost on the way: a put stores the first half and says that it went well, a get or
    /// ranged get returns it. No implementation does this; what reads has to find it. For any other call, nothing.
    Truncate,
    /// The process dies before the call is made: it and all later calls never answer.
    DieBefore,
    /// The process dies after the call was made, before it hears of it: it and all later calls never answer.
    DieAfter,
}

/// Both sides of each of `calls` calls, as places to die.
pub fn crashes(calls: u64) -> impl Iterator<Item = (u64, Fault)> {
    (0..calls).flat_map(|index| [(index, Fault::DieBefore), (index, Fault::DieAfter)])
}

/// How often each call was made, and what it carried. Calls that a fault kept from being made count too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    by_kind: BTreeMap<CallKind, u64>,
    /// Bytes that puts carried.
    pub bytes_written: u64,
    /// Bytes that gets and ranged gets returned.
    pub bytes_read: u64,
    /// Calls that met a fault.
    pub faults: u64,
}

impl Counts {
    /// How many calls of `kind` were made.
    pub fn of(&self, kind: CallKind) -> u64 {
        self.by_kind.get(&kind).copied().unwrap_or(0)
    }

    /// How many calls were made.
    pub fn calls(&self) -> u64 {
        self.by_kind.values().sum()
    }

    /// How many puts and deletes were made.
    pub fn writes(&self) -> u64 {
        self.of(CallKind::Put) + self.of(CallKind::Delete)
    }
}

type Plan = Box<dyn FnMut(&Call) -> Fault + Send>;

#[derive(Default)]
struct State {
    counts: Counts,
    plan: Option<Plan>,
    held: Vec<Held>,
}

enum Held {
    Put(Key, Bytes, Condition),
    Delete(Key),
}

/// How much of a call's bytes gets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    Whole,
    Half,
}

impl Cut {
    fn of(self, bytes: &Bytes) -> Bytes {
        match self {
            Self::Whole => bytes.clone(),
            Self::Half => bytes.slice(..bytes.len() / 2),
        }
    }
}

/// A store around another that counts calls and fails by plan. Clones share everything.
#[derive(Clone)]
pub struct FaultStore {
    inner: Arc<dyn Objects>,
    state: Arc<Mutex<State>>,
    dead: watch::Sender<bool>,
    /// How often the plans were ended.
    healed: watch::Sender<u64>,
}

impl FaultStore {
    /// Goes between a caller and `inner`, with no faults.
    pub fn new(inner: Arc<dyn Objects>) -> Self {
        Self { inner, state: Arc::default(), dead: watch::Sender::new(false), healed: watch::Sender::new(0) }
    }

    /// The store behind the faults.
    pub fn inner(&self) -> &Arc<dyn Objects> {
        &self.inner
    }

    /// Decides each call's fate by `plan`, in the order in which calls begin. Replaces any plan before it.
    pub fn plan(&self, plan: impl FnMut(&Call) -> Fault + Send + 'static) {
        self.lock().plan = Some(Box::new(plan));
    }

    /// Plans one fault, for the call with this index since the last [`reset`](Self::reset).
    pub fn at_call(&self, index: u64, fault: Fault) {
        self.plan(move |call| if call.index == index { fault } else { Fault::None });
    }

    /// Plans one fault, for the `n`th put or delete, counted from 0.
    pub fn at_write(&self, n: u64, fault: Fault) {
        self.plan(
            move |call| if call.kind.is_write() && call.writes_before == n { fault } else { Fault::None },
        );
    }

    /// Plans one fault, for the `n`th call of `kind` whose key begins with `prefix`, counted from 0.
    pub fn at(&self, kind: CallKind, prefix: &str, n: u64, fault: Fault) {
        let prefix = prefix.to_owned();
        let mut seen = 0;
        self.plan(move |call| {
            let matches = call.kind == kind && call.key.starts_with(&prefix);
            seen += u64::from(matches);
            if matches && seen == n + 1 { fault } else { Fault::None }
        });
    }

    /// Plans `fault` for every call of `kind` whose key begins with `prefix`.
    pub fn every(&self, kind: CallKind, prefix: &str, fault: Fault) {
        let prefix = prefix.to_owned();
        self.plan(
            move |call| if call.kind == kind && call.key.starts_with(&prefix) { fault } else { Fault::None },
        );
    }

    /// Plans faults that a caller must survive, for `percent` of the calls; the same `seed` plans the same ones.
    pub fn random(&self, seed: u64, percent: u8) {
        self.plan(move |call| {
            let hash = blake3::hash(format!("{seed} {}", call.index).as_bytes());
            let [roll, which, ..] = *hash.as_bytes();
            if u32::from(roll) * 100 >= u32::from(percent) * 256 {
                return Fault::None;
            }
            let faults: &[Fault] = if call.kind == CallKind::Put {
                &[Fault::Unavailable, Fault::LostAnswer, Fault::Duplicate, Fault::Conflict]
            } else {
                &[Fault::Unavailable, Fault::LostAnswer]
            };
            faults[usize::from(which) % faults.len()]
        });
    }

    /// Ends all plans, and lets what they stalled go on. The dead stay dead.
    pub fn heal(&self) {
        self.lock().plan = None;
        self.healed.send_modify(|times| *times += 1);
    }

    /// What was called since the beginning or the last [`reset`](Self::reset).
    pub fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    /// Counts from zero again, and returns what had been counted.
    pub fn reset(&self) -> Counts {
        std::mem::take(&mut self.lock().counts)
    }

    /// Lets the writes arrive that [`Fault::Held`] kept on their way, in their order, and returns what the store would
    /// have said to each.
    pub async fn deliver_held(&self) -> Vec<Result<(), ObjectError>> {
        let held = std::mem::take(&mut self.lock().held);
        self.deliver(held).await
    }

    /// The same with the last one first.
    pub async fn deliver_held_reordered(&self) -> Vec<Result<(), ObjectError>> {
        let mut held = std::mem::take(&mut self.lock().held);
        held.reverse();
        self.deliver(held).await
    }

    async fn deliver(&self, held: Vec<Held>) -> Vec<Result<(), ObjectError>> {
        let mut answers = Vec::new();
        for write in held {
            answers.push(match write {
                Held::Put(key, bytes, condition) => self.inner.put(&key, bytes, &condition).await.map(drop),
                Held::Delete(key) => self.inner.delete(&key).await,
            });
        }
        answers
    }

    /// Tells if a fault has killed the process.
    pub fn is_dead(&self) -> bool {
        *self.dead.borrow()
    }

    /// Kills the process now: no call that begins later is ever answered.
    pub fn kill(&self) {
        self.dead.send_replace(true);
    }

    /// Lets the process live again: later calls are made. Those that never answered never will.
    pub fn revive(&self) {
        self.dead.send_replace(false);
    }

    /// Runs `operation` to its end, or until a planned death: then it is dropped where it stands, and `None` returned.
    pub async fn until_death<T>(&self, operation: impl Future<Output = T>) -> Option<T> {
        let mut dead = self.dead.subscribe();
        tokio::select! {
            biased;
            _ = dead.wait_for(|dead| *dead) => None,
            answer = operation => Some(answer),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a plan panicked")
    }

    /// Counts a call and decides its fate.
    fn begin(&self, kind: CallKind, key: &str, bytes: &Bytes) -> Fault {
        let mut state = self.lock();
        let call = Call {
            index: state.counts.calls(),
            nth: state.counts.of(kind),
            writes_before: state.counts.writes(),
            kind,
            key: key.to_owned(),
            bytes: bytes.clone(),
        };
        *state.counts.by_kind.entry(kind).or_default() += 1;
        state.counts.bytes_written += bytes.len() as u64;
        let fault = state.plan.as_mut().map_or(Fault::None, |plan| plan(&call));
        state.counts.faults += u64::from(fault != Fault::None);
        fault
    }

    /// Makes one call through its fault. `held` is what is kept of a write that is on its way.
    async fn call<T, F>(
        &self,
        kind: CallKind,
        key: &str,
        bytes: &Bytes,
        held: Option<Held>,
        made: impl Fn(Cut) -> F + Send + Sync,
    ) -> Result<(T, Cut), ObjectError>
    where
        T: Send,
        F: Future<Output = Result<T, ObjectError>> + Send,
    {
        if self.is_dead() {
            return future::pending().await;
        }
        // Before the plan is asked: one that ends in between lets it go on.
        let mut healed = self.healed.subscribe();
        let fault = self.begin(kind, key, bytes);
        let unavailable = || ObjectError::Unavailable {
            what: format!("{kind:?} {key}"),
            source: format!("planned fault: {fault:?}").into(),
        };
        let refused = |refusal: fn(Key) -> ObjectError| match (kind, key.parse()) {
            (CallKind::Put, Ok(key)) => refusal(key),
            _ => unavailable(),
        };
        let whole = |answer| (answer, Cut::Whole);
        match fault {
            Fault::None => made(Cut::Whole).await.map(whole),
            Fault::Truncate => made(Cut::Half).await.map(|answer| (answer, Cut::Half)),
            Fault::Unavailable => Err(unavailable()),
            Fault::Busy => Err(ObjectError::Busy {
                what: format!("{kind:?} {key}"),
                source: format!("planned fault: {fault:?}").into(),
            }),
            Fault::LostAnswer => {
                drop(made(Cut::Whole).await);
                Err(unavailable())
            }
            Fault::Held => {
                self.lock().held.extend(held);
                Err(unavailable())
            }
            Fault::Duplicate => {
                drop(made(Cut::Whole).await);
                made(Cut::Whole).await.map(whole)
            }
            Fault::Precondition => Err(refused(|key| ObjectError::Precondition { key })),
            Fault::Conflict => Err(refused(|key| ObjectError::Conflict { key })),
            Fault::Delay(pause) => {
                tokio::time::sleep(pause).await;
                made(Cut::Whole).await.map(whole)
            }
            Fault::Stall => {
                // The sender is this store's, which the caller holds.
                drop(healed.changed().await);
                made(Cut::Whole).await.map(whole)
            }
            Fault::DieBefore => {
                self.dead.send_replace(true);
                future::pending().await
            }
            Fault::DieAfter => {
                drop(made(Cut::Whole).await);
                self.dead.send_replace(true);
                future::pending().await
            }
        }
    }

    fn read(&self, bytes: &Bytes) {
        self.lock().counts.bytes_read += bytes.len() as u64;
    }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultStore").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
impl Objects for FaultStore {
    async fn get(&self, key: &Key) -> Result<Object, ObjectError> {
        let get = |_| self.inner.get(key);
        let (mut object, cut) = self.call(CallKind::Get, key.as_str(), &Bytes::new(), None, get).await?;
        object.bytes = cut.of(&object.bytes);
        object.meta.size = object.bytes.len() as u64;
        self.read(&object.bytes);
        Ok(object)
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let get = |_| self.inner.get_range(key, range.clone());
        let (bytes, cut) = self.call(CallKind::GetRange, key.as_str(), &Bytes::new(), None, get).await?;
        let bytes = cut.of(&bytes);
        self.read(&bytes);
        Ok(bytes)
    }

    async fn head(&self, key: &Key) -> Result<Meta, ObjectError> {
        let head = |_| self.inner.head(key);
        Ok(self.call(CallKind::Head, key.as_str(), &Bytes::new(), None, head).await?.0)
    }

    async fn put(&self, key: &Key, bytes: Bytes, condition: &Condition) -> Result<Etag, ObjectError> {
        let put = |cut: Cut| self.inner.put(key, cut.of(&bytes), condition);
        let held = Held::Put(key.clone(), bytes.clone(), condition.clone());
        Ok(self.call(CallKind::Put, key.as_str(), &bytes, Some(held), put).await?.0)
    }

    async fn delete(&self, key: &Key) -> Result<(), ObjectError> {
        let held = Held::Delete(key.clone());
        let delete = |_| self.inner.delete(key);
        let ((), _) = self.call(CallKind::Delete, key.as_str(), &Bytes::new(), Some(held), delete).await?;
        Ok(())
    }

    async fn list(&self, prefix: &str, after: Option<&Key>) -> Result<Page, ObjectError> {
        let list = |_| self.inner.list(prefix, after);
        Ok(self.call(CallKind::List, prefix, &Bytes::new(), None, list).await?.0)
    }

    fn describe(&self) -> String {
        format!("{} (with planned faults)", self.inner.describe())
    }

    fn traffic(&self) -> Traffic {
        self.inner.traffic()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{MemoryStore, contract};

    fn key() -> Key {
        "vol/a".parse().unwrap()
    }

    fn stores() -> (MemoryStore, FaultStore) {
        let disk = MemoryStore::new();
        (disk.clone(), FaultStore::new(Arc::new(disk)))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn without_faults_the_contract_is_kept() {
        contract::check(&stores().1).await;
    }

    #[tokio::test]
    async fn each_fault_of_a_put_answers_and_writes_as_it_says() {
        for (fault, answer, written) in [
            (Fault::None, "ok", true),
            (Fault::Unavailable, "unavailable", false),
            (Fault::Busy, "busy", false),
            (Fault::LostAnswer, "unavailable", true),
            (Fault::Held, "unavailable", false),
            (Fault::Duplicate, "precondition", true),
            (Fault::Precondition, "precondition", false),
            (Fault::Conflict, "conflict", false),
            (Fault::Delay(Duration::from_millis(1)), "ok", true),
            (Fault::Truncate, "ok", true),
            (Fault::DieBefore, "dead", false),
            (Fault::DieAfter, "dead", true),
        ] {
            let (disk, store) = stores();
            store.at_write(0, fault);
            let key = key();
            let put = store.put(&key, "x".into(), &Condition::IfAbsent);
            let heard = match store.until_death(put).await {
                None => "dead",
                Some(Ok(_)) => "ok",
                Some(Err(ObjectError::Unavailable { .. })) => "unavailable",
                Some(Err(ObjectError::Busy { .. })) => "busy",
                Some(Err(ObjectError::Precondition { .. })) => "precondition",
                Some(Err(ObjectError::Conflict { .. })) => "conflict",
                Some(Err(error)) => panic!("{error}"),
            };
            assert_eq!(heard, answer, "{fault:?}");
            assert_eq!(disk.head(&key).await.is_ok(), written, "{fault:?}");
        }
    }

    #[tokio::test]
    async fn a_stalled_write_is_made_when_the_plans_end() {
        let (disk, store) = stores();
        store.at_write(0, Fault::Stall);
        let key = key();
        let put = store.put(&key, "x".into(), &Condition::IfAbsent);
        tokio::pin!(put);
        assert!(futures::poll!(&mut put).is_pending());
        assert!(disk.head(&key).await.is_err(), "nothing was made");
        store.heal();
        put.await.unwrap();
        assert!(disk.head(&key).await.is_ok());
    }

    #[tokio::test]
    async fn a_held_write_arrives_when_it_is_delivered() {
        let (disk, store) = stores();
        store.at_write(0, Fault::Held);
        store.put(&key(), "late".into(), &Condition::IfAbsent).await.unwrap_err();
        disk.put(&key(), "early".into(), &Condition::IfAbsent).await.unwrap();
        let answers = store.deliver_held().await;
        assert!(answers[0].as_ref().is_err_and(ObjectError::is_precondition));
    }

    #[tokio::test]
    async fn held_writes_arrive_in_another_order_if_so_wanted() {
        let (disk, store) = stores();
        store.every(CallKind::Put, "", Fault::Held);
        let other: Key = "vol/b".parse().unwrap();
        for (key, bytes) in [(key(), "first"), (key(), "second"), (other.clone(), "third")] {
            store.put(&key, bytes.into(), &Condition::IfAbsent).await.unwrap_err();
        }
        let answers: Vec<bool> = store.deliver_held_reordered().await.iter().map(Result::is_ok).collect();
        assert_eq!(answers, [true, true, false]);
        assert_eq!(disk.get(&key()).await.unwrap().bytes, "second");
        assert_eq!(disk.get(&other).await.unwrap().bytes, "third");
    }

    #[tokio::test]
    async fn what_is_cut_on_the_way_is_half_of_it() {
        let (disk, store) = stores();
        store.at_write(0, Fault::Truncate);
        store.put(&key(), "12345678".into(), &Condition::IfAbsent).await.unwrap();
        assert_eq!(disk.get(&key()).await.unwrap().bytes, "1234");
        store.every(CallKind::Get, "", Fault::Truncate);
        let object = store.get(&key()).await.unwrap();
        assert_eq!((object.bytes.as_ref(), object.meta.size), (&b"12"[..], 2));
        store.every(CallKind::GetRange, "", Fault::Truncate);
        assert_eq!(store.get_range(&key(), 0..4).await.unwrap(), "12");
    }

    #[tokio::test]
    async fn a_process_is_killed_between_two_calls() {
        let (_, store) = stores();
        store.kill();
        assert!(store.is_dead());
        assert!(store.until_death(store.get(&key())).await.is_none());
    }

    #[tokio::test]
    async fn the_dead_make_no_more_calls_until_they_are_revived() {
        let (disk, store) = stores();
        store.at_call(1, Fault::DieBefore);
        let key = key();
        let put = store.put(&key, "1".into(), &Condition::IfAbsent);
        assert!(store.until_death(put).await.unwrap().is_ok());
        assert!(store.until_death(store.delete(&key)).await.is_none());
        assert!(store.until_death(store.delete(&key)).await.is_none());
        assert!(disk.head(&key).await.is_ok());
        store.heal();
        store.revive();
        store.delete(&key).await.unwrap();
    }

    #[tokio::test]
    async fn calls_and_bytes_are_counted() {
        let (_, store) = stores();
        store.put(&key(), "12345".into(), &Condition::IfAbsent).await.unwrap();
        store.get(&key()).await.unwrap();
        store.get_range(&key(), 1..3).await.unwrap();
        store.list("vol/", None).await.unwrap();
        let counts = store.reset();
        assert_eq!((counts.calls(), counts.writes(), counts.bytes_written, counts.bytes_read), (4, 1, 5, 7));
        assert_eq!(store.counts(), Counts::default());
    }

    #[tokio::test]
    async fn random_faults_lose_no_increment() {
        let (disk, store) = stores();
        disk.put(&key(), "0".into(), &Condition::IfAbsent).await.unwrap();
        for seed in 0..10 {
            store.random(seed, 30);
            contract::increment(&store, &key(), 3, 5).await;
        }
        assert!(disk.get(&key()).await.unwrap().bytes.starts_with(b"150 "));
        assert!(store.counts().faults > 50);
    }
}
