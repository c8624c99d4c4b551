//! A store over a network: every request bounded in time, reads tried again and hedged, writes sent once, all counted.
//!
//! A read changes nothing, so it may be sent again after a failure, and a second time while the first is late. A write
//! is sent exactly once: whoever knows what it means sends the same bytes again (PROTOCOL.md, rule U).

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{Either, select};
use tokio::time::Instant;

use super::hedge::{Class, Hedge};
use super::{CallKind, Condition, Etag, Key, Meta, Object, ObjectError, Objects, Page, Traffic};
use crate::pauses::Pauses;
use crate::store::Retry;

/// How long things may take.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// What any request may take. For the bytes that it moves it has more: a line of [`BYTES_PER_SECOND`].
    attempt: Duration,
    /// How often a read is tried where the store fails; where it asks for fewer requests, only time counts.
    tries: u32,
    /// Pauses between the tries of a read. No try begins after the patience in it.
    pauses: Retry,
}

const PATIENCE: Patience = Patience {
    attempt: Duration::from_secs(15),
    tries: 4,
    pauses: Retry {
        first: Duration::from_millis(100),
        longest: Duration::from_secs(3),
        patience: Duration::from_secs(20),
    },
};

/// The slowest line on which a pack still arrives.
const BYTES_PER_SECOND: u64 = 1 << 20;

/// What is assumed of an object that is read whole: small objects have at most this.
const WHOLE_BYTES: u64 = 1 << 20;

/// A store around one that is reached over a network. Clones share what they learn and count.
#[derive(Clone)]
pub struct PatientStore {
    inner: Arc<dyn Objects>,
    hedge: Arc<Mutex<Hedge>>,
    traffic: Arc<Mutex<Traffic>>,
    patience: Patience,
}

impl fmt::Debug for PatientStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PatientStore").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// A request, for what its fate depends on.
#[derive(Debug, Clone, Copy)]
struct Ask<'a> {
    kind: CallKind,
    /// The key, or the prefix of a list.
    target: &'a str,
    /// How many bytes it moves, as far as that is known before.
    bytes: u64,
}

impl PatientStore {
    /// Goes around `inner`, which makes one attempt a call.
    pub fn new(inner: Arc<dyn Objects>) -> Self {
        Self { inner, hedge: Arc::default(), traffic: Arc::default(), patience: PATIENCE }
    }

    fn count(&self, count: impl FnOnce(&mut Traffic)) {
        count(&mut self.traffic.lock().expect("no holder of this lock panics"));
    }

    fn hedge<T>(&self, with: impl FnOnce(&mut Hedge) -> T) -> T {
        with(&mut self.hedge.lock().expect("no holder of this lock panics"))
    }

    /// Sends one request.
    async fn attempt<T>(
        &self,
        ask: Ask<'_>,
        request: impl Future<Output = Result<T, ObjectError>>,
    ) -> Result<T, ObjectError> {
        let carried = if ask.kind.is_write() { ask.bytes } else { 0 };
        self.count(|traffic| traffic.sent(ask.kind, carried));
        let bound = self.patience.attempt + Duration::from_secs(ask.bytes / BYTES_PER_SECOND);
        let answer = tokio::time::timeout(bound, request).await.unwrap_or_else(|_| {
            let what = format!("{} {} in {}", ask.kind.as_str(), ask.target, self.describe());
            Err(ObjectError::Unavailable { what, source: format!("no answer in {bound:?}").into() })
        });
        if let Err(error) = &answer
            && error.is_outcome_unknown()
        {
            let busy = matches!(error, ObjectError::Busy { .. });
            if busy {
                self.hedge(Hedge::slow_down);
            }
            self.count(|traffic| {
                traffic.failed += 1;
                traffic.busy += u64::from(busy);
            });
        }
        answer
    }

    /// Sends a read, and once more if it is late; the first answer that says something counts.
    async fn once<T, F>(&self, ask: Ask<'_>, read: &(impl Fn() -> F + Sync)) -> Result<T, ObjectError>
    where
        F: Future<Output = Result<T, ObjectError>> + Send,
    {
        let class = Class::of(ask.kind, ask.bytes);
        let began = Instant::now();
        let after = self.hedge(|hedge| hedge.begin(class));
        let first = Box::pin(self.attempt(ask, read()));
        let answer = match select(first, Box::pin(tokio::time::sleep(after))).await {
            Either::Left((answer, _)) => answer,
            Either::Right(((), first)) if !self.hedge(Hedge::spend) => first.await,
            Either::Right(((), first)) => {
                self.count(|traffic| traffic.hedges += 1);
                let second = Box::pin(self.attempt(ask, read()));
                match select(first, second).await {
                    Either::Left((Err(error), second)) if error.is_outcome_unknown() => second.await,
                    Either::Left((answer, _)) => answer,
                    Either::Right((Err(error), first)) if error.is_outcome_unknown() => first.await,
                    Either::Right((answer, _)) => {
                        self.count(|traffic| traffic.hedges_won += 1);
                        answer
                    }
                }
            }
        };
        if answer.is_ok() {
            self.hedge(|hedge| hedge.note(class, began.elapsed()));
        }
        answer
    }

    /// Makes a read until it is answered, or patience is over.
    async fn read<T, F>(&self, ask: Ask<'_>, read: impl Fn() -> F + Sync) -> Result<T, ObjectError>
    where
        F: Future<Output = Result<T, ObjectError>> + Send,
    {
        let mut pauses = Pauses::new(self.patience.pauses);
        let mut tries = 1;
        loop {
            let error = match self.once(ask, &read).await {
                Err(error @ (ObjectError::Unavailable { .. } | ObjectError::Busy { .. })) => error,
                answer => return answer,
            };
            if matches!(error, ObjectError::Unavailable { .. }) {
                tries += 1;
            }
            if tries > self.patience.tries || !pauses.pause().await {
                return Err(error);
            }
            self.count(|traffic| traffic.retries += 1);
        }
    }
}

#[async_trait]
impl Objects for PatientStore {
    async fn get(&self, key: &Key) -> Result<Object, ObjectError> {
        let ask = Ask { kind: CallKind::Get, target: key.as_str(), bytes: WHOLE_BYTES };
        let object = self.read(ask, || self.inner.get(key)).await?;
        self.count(|traffic| traffic.bytes_read += object.bytes.len() as u64);
        Ok(object)
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let bytes = range.end.saturating_sub(range.start);
        let ask = Ask { kind: CallKind::GetRange, target: key.as_str(), bytes };
        let bytes = self.read(ask, || self.inner.get_range(key, range.clone())).await?;
        self.count(|traffic| traffic.bytes_read += bytes.len() as u64);
        Ok(bytes)
    }

    async fn head(&self, key: &Key) -> Result<Meta, ObjectError> {
        let ask = Ask { kind: CallKind::Head, target: key.as_str(), bytes: 0 };
        self.read(ask, || self.inner.head(key)).await
    }

    async fn put(&self, key: &Key, bytes: Bytes, condition: &Condition) -> Result<Etag, ObjectError> {
        let ask = Ask { kind: CallKind::Put, target: key.as_str(), bytes: bytes.len() as u64 };
        self.attempt(ask, self.inner.put(key, bytes, condition)).await
    }

    async fn delete(&self, key: &Key) -> Result<(), ObjectError> {
        // Sent again, a delete could remove an object that was made in between.
        let ask = Ask { kind: CallKind::Delete, target: key.as_str(), bytes: 0 };
        self.attempt(ask, self.inner.delete(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>) -> Result<Page, ObjectError> {
        let ask = Ask { kind: CallKind::List, target: prefix, bytes: 0 };
        self.read(ask, || self.inner.list(prefix, after)).await
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn traffic(&self) -> Traffic {
        self.traffic.lock().expect("no holder of this lock panics").clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{Fault, FaultStore, MemoryStore, contract};

    fn key() -> Key {
        "pack/a".parse().unwrap()
    }

    /// Everything a hundred times faster.
    async fn stores() -> (FaultStore, PatientStore) {
        let faults = FaultStore::new(Arc::new(MemoryStore::new()));
        faults.put(&key(), "12345".into(), &Condition::IfAbsent).await.unwrap();
        faults.reset();
        let Patience { attempt, tries, pauses } = PATIENCE;
        let pauses = Retry {
            first: pauses.first / 100,
            longest: pauses.longest / 100,
            patience: pauses.patience / 100,
        };
        let patience = Patience { attempt: attempt / 100, tries, pauses };
        (faults.clone(), PatientStore { patience, ..PatientStore::new(Arc::new(faults)) })
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn the_contract_is_kept() {
        contract::check(&PatientStore::new(Arc::new(MemoryStore::new()))).await;
    }

    #[tokio::test]
    async fn a_read_that_stalls_costs_what_most_reads_take() {
        let (faults, _) = stores().await;
        let store = PatientStore::new(Arc::new(faults.clone()));
        for _ in 0..50 {
            store.get_range(&key(), 0..5).await.unwrap();
        }
        faults.reset();
        // The first of the next requests never answers.
        faults.plan(
            |call| {
                if call.index == 0 { Fault::Delay(Duration::from_secs(3_600)) } else { Fault::None }
            },
        );
        let began = Instant::now();
        assert_eq!(store.get_range(&key(), 1..3).await.unwrap(), "23");
        // 50 ms; the rest is for a machine that has other things to do.
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        let traffic = store.traffic();
        assert_eq!((traffic.hedges, traffic.hedges_won, traffic.retries), (1, 1, 0));
        assert_eq!(faults.counts().of(CallKind::GetRange), 2);
    }

    #[tokio::test]
    async fn a_store_that_never_answers_is_given_up_in_time() {
        let (faults, store) = stores().await;
        faults.plan(|_| Fault::Delay(Duration::from_secs(1_000_000)));
        for (name, least, most) in [("read", 200, 6_000), ("write", 150, 3_000)] {
            let began = Instant::now();
            let error = match name {
                "read" => store.head(&key()).await.unwrap_err(),
                _ => store.put(&key(), "1".into(), &Condition::IfAbsent).await.unwrap_err(),
            };
            assert!(matches!(error, ObjectError::Unavailable { .. }), "{error:?}");
            let took = began.elapsed();
            assert!(
                (Duration::from_millis(least)..Duration::from_millis(most)).contains(&took),
                "{name}: {took:?}"
            );
        }
    }

    #[tokio::test]
    async fn failures_are_tried_again_for_reads_and_never_for_writes() {
        let (faults, store) = stores().await;
        faults.plan(|call| if call.index < 3 { Fault::Unavailable } else { Fault::None });
        store.head(&key()).await.unwrap();
        assert_eq!(faults.reset().of(CallKind::Head), 4);
        faults.plan(|_| Fault::Unavailable);
        store.list("pack/", None).await.unwrap_err();
        assert_eq!(faults.reset().of(CallKind::List), 4);
        store.put(&key(), "1".into(), &Condition::IfAbsent).await.unwrap_err();
        store.delete(&key()).await.unwrap_err();
        assert_eq!((faults.counts().of(CallKind::Put), faults.counts().of(CallKind::Delete)), (1, 1));
    }

    #[tokio::test]
    async fn a_busy_store_is_waited_for_with_pauses_that_grow() {
        let (faults, store) = stores().await;
        let began = Instant::now();
        faults.plan(
            move |_| {
                if began.elapsed() < Duration::from_millis(80) { Fault::Busy } else { Fault::None }
            },
        );
        store.get(&key()).await.unwrap();
        let sent = faults.reset().of(CallKind::Get);
        assert!((4..=14).contains(&sent), "{sent} requests in {:?}", began.elapsed());
        faults.plan(|_| Fault::Busy);
        assert!(matches!(store.get(&key()).await.unwrap_err(), ObjectError::Busy { .. }));
        assert!(faults.counts().of(CallKind::Get) > 4, "only time counts");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(store.traffic().hedges, 0, "a busy store is not asked twice");
    }

    #[tokio::test]
    async fn every_request_is_counted() {
        let (_, store) = stores().await;
        store.get(&key()).await.unwrap();
        store.get_range(&key(), 1..3).await.unwrap();
        store.put(&"vol/a".parse().unwrap(), "123".into(), &Condition::IfAbsent).await.unwrap();
        let traffic = store.traffic();
        assert_eq!((traffic.requests(), traffic.bytes_read, traffic.bytes_written), (3, 7, 3));
        assert_eq!(traffic.of(CallKind::Put), 1);
    }
}
