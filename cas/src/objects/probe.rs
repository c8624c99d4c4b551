//! What a store can do, found out by doing it: a bucket's documentation is no proof, and a proxy may be in between.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use ulid::Ulid;

use super::{Condition, Etag, Key, ObjectError, Objects};

/// How many writers race. More than the connections that any proxy would put into one batch.
const WRITERS: usize = 6;

/// How often each race is run: one that no writer loses by luck is not enough.
const ROUNDS: usize = 3;

/// How often a race in which the store was too busy to choose a winner is run again.
const TRIES: usize = 5;

/// What a probe saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    /// Where the store is.
    pub store: String,
    /// Of racing writes with [`Condition::IfAbsent`], exactly one succeeded.
    pub conditional_create: bool,
    /// Of racing writes with [`Condition::IfMatch`], exactly one succeeded, and an old etag was refused.
    pub conditional_update: bool,
    /// Reads and listings showed each write and delete at once.
    pub strong_reads: bool,
    /// What was wrong, one sentence each.
    pub problems: Vec<String>,
}

/// A store on which several writers would overwrite each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{store} does not keep racing writers apart ({problems}): use a store with conditional writes \
     (If-None-Match and If-Match on PUT), such as AWS S3, MinIO, R2 or a local directory"
)]
pub struct UnfitStore {
    store: String,
    problems: String,
}

impl ProbeReport {
    /// Tells if more than one node may write to this store.
    pub fn is_fit(&self) -> bool {
        self.conditional_create && self.conditional_update && self.strong_reads
    }

    /// Fails unless more than one node may write to this store.
    pub fn require_fit(&self) -> Result<(), UnfitStore> {
        if self.is_fit() {
            return Ok(());
        }
        Err(UnfitStore { store: self.store.clone(), problems: self.problems.join("; ") })
    }
}

impl fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let works = |works| if works { "works" } else { "DOES NOT WORK" };
        write!(
            f,
            "{}: conditional create {}, conditional update {}, strong reads {}",
            self.store,
            works(self.conditional_create),
            works(self.conditional_update),
            works(self.strong_reads)
        )
    }
}

/// Finds out what a store can do, by racing writers on keys under `probe/`, which are removed at the end.
///
/// A store that cannot be reached, read or written at all is an error that says what to do.
pub async fn probe(objects: &dyn Objects) -> Result<ProbeReport, ObjectError> {
    probe_through(&[objects]).await
}

/// Probes one store through several endpoints at once: the writers of each race are spread over them.
pub async fn probe_all(endpoints: &[Arc<dyn Objects>]) -> Result<ProbeReport, ObjectError> {
    let endpoints: Vec<&dyn Objects> = endpoints.iter().map(|objects| &**objects).collect();
    probe_through(&endpoints).await
}

async fn probe_through(endpoints: &[&dyn Objects]) -> Result<ProbeReport, ObjectError> {
    let first = *endpoints.first().expect("a store has an endpoint");
    let mut probe = Probe {
        endpoints,
        prefix: format!("probe/{}", Ulid::generate().to_string().to_lowercase()),
        report: ProbeReport {
            store: first.describe(),
            conditional_create: true,
            conditional_update: true,
            strong_reads: true,
            problems: Vec::new(),
        },
    };
    // Whether it can be read is the first question: an answer to a write alone would not tell a wrong name from no right.
    first.list(&format!("{}/", probe.prefix), None).await?;
    let outcome = probe.run(first).await;
    for name in ["create", "update"] {
        for round in 0..ROUNDS * TRIES {
            // Best effort: what stays is named `probe/` and harms nobody.
            drop(first.delete(&probe.key(name, round)).await);
        }
    }
    outcome.map(|()| probe.report)
}

struct Probe<'a> {
    endpoints: &'a [&'a dyn Objects],
    prefix: String,
    report: ProbeReport,
}

/// How a race ended.
enum Race {
    /// One writer won.
    Won { etag: Etag },
    /// The store was too busy to tell; nothing is proved.
    Unclear(ObjectError),
    /// The store let more than one win, or none, or does not know conditions.
    Broken(String),
}

impl Probe<'_> {
    fn key(&self, name: &str, round: usize) -> Key {
        format!("{}/{name}-{round}", self.prefix).parse().expect("a probe names valid keys")
    }

    async fn run(&mut self, first: &dyn Objects) -> Result<(), ObjectError> {
        // The first write of all tells a read-only store by its own error.
        let scratch = self.key("create", ROUNDS * TRIES - 1);
        match first.put(&scratch, Bytes::from_static(b"probe"), &Condition::IfAbsent).await {
            Ok(_) => first.delete(&scratch).await?,
            Err(ObjectError::Misconfigured { what, .. }) if what.contains(NO_CONDITIONS) => {
                self.report.conditional_create = false;
                self.report.conditional_update = false;
                self.report.problems.push("it refuses conditional writes as not implemented".to_owned());
                return Ok(());
            }
            Err(error) => return Err(error),
        }

        let (mut round, mut tries) = (0, 0);
        while round < ROUNDS {
            let key = self.key("create", tries);
            let race = self.race(&key, &Condition::IfAbsent).await?;
            tries += 1;
            match race {
                Race::Won { .. } => round += 1,
                Race::Unclear(error) if tries >= ROUNDS * TRIES => return Err(error),
                Race::Unclear(_) => {}
                Race::Broken(why) => {
                    self.report.conditional_create = false;
                    self.report.problems.push(format!("racing creates: {why}"));
                    break;
                }
            }
        }
        self.updates(first).await
    }

    async fn updates(&mut self, first: &dyn Objects) -> Result<(), ObjectError> {
        let (mut round, mut tries) = (0, 0);
        while round < ROUNDS {
            let key = self.key("update", tries);
            tries += 1;
            let old = match first.put(&key, Bytes::from_static(b"old"), &Condition::IfAbsent).await {
                Ok(etag) => etag,
                Err(
                    error @ (ObjectError::Unavailable { .. }
                    | ObjectError::Busy { .. }
                    | ObjectError::Conflict { .. }),
                ) => {
                    if tries >= ROUNDS * TRIES {
                        return Err(error);
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            let broken = match self.race(&key, &Condition::IfMatch(old.clone())).await? {
                Race::Won { etag } if etag == old => {
                    Some("the etag of a new state is that of the old".to_owned())
                }
                Race::Won { .. } => {
                    round += 1;
                    self.stale_writes(first, &key, &old).await?
                }
                Race::Unclear(error) if tries >= ROUNDS * TRIES => return Err(error),
                Race::Unclear(_) => None,
                Race::Broken(why) => Some(why),
            };
            if let Some(why) = broken {
                self.report.conditional_update = false;
                self.report.problems.push(format!("racing updates: {why}"));
                break;
            }
        }
        Ok(())
    }

    /// Tells what is wrong with writes that name an old state, on a key that is there and on one that is gone.
    async fn stale_writes(
        &mut self,
        first: &dyn Objects,
        key: &Key,
        old: &Etag,
    ) -> Result<Option<String>, ObjectError> {
        let condition = Condition::IfMatch(old.clone());
        let late = Bytes::from_static(b"late");
        if first.put(key, late.clone(), &condition).await.is_ok() {
            return Ok(Some("a write that names an old state is let through".to_owned()));
        }
        let listed = first.list(key.as_str(), None).await?.entries.len() == 1;
        first.delete(key).await?;
        let gone = first.list(key.as_str(), None).await?.entries.is_empty();
        if !listed || !gone {
            self.report.strong_reads = false;
            self.report.problems.push("a listing is behind the writes".to_owned());
        }
        if first.put(key, late, &condition).await.is_ok() {
            return Ok(Some("a write that names an old state makes a deleted object again".to_owned()));
        }
        Ok(None)
    }

    /// Lets many writers at one key. Errors that have nothing to do with the race are returned as such.
    async fn race(&mut self, key: &Key, condition: &Condition) -> Result<Race, ObjectError> {
        let writers = self.endpoints.iter().cycle().take(WRITERS.max(self.endpoints.len())).enumerate();
        let answers = join_all(writers.map(|(i, objects)| async move {
            let text = format!("writer {i} of {key}");
            (text.clone(), objects.put(key, text.into(), condition).await)
        }))
        .await;
        let mut winners = Vec::new();
        let mut unclear = None;
        for (text, answer) in answers {
            match answer {
                Ok(etag) => winners.push((text, etag)),
                Err(ObjectError::Precondition { .. } | ObjectError::NotFound { .. }) => {}
                Err(
                    error @ (ObjectError::Conflict { .. }
                    | ObjectError::Unavailable { .. }
                    | ObjectError::Busy { .. }),
                ) => {
                    unclear = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match (winners.len(), unclear) {
            (0, Some(error)) => return Ok(Race::Unclear(error)),
            (0, None) => return Ok(Race::Broken("no writer succeeded".to_owned())),
            (1, _) => {}
            (several, _) => return Ok(Race::Broken(format!("{several} of {WRITERS} writers succeeded"))),
        }
        let (text, etag) = winners.remove(0);
        for objects in self.endpoints {
            let read = objects.get(key).await?;
            if read.bytes != text || read.meta.etag != etag {
                self.report.strong_reads = false;
                self.report.problems.push("a read does not show the write that succeeded".to_owned());
            }
        }
        Ok(Race::Won { etag })
    }
}

/// What the error of a store says that knows no conditions.
pub(super) const NO_CONDITIONS: &str = "does not implement conditional writes";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{CallKind, Fault, FaultStore, MemoryStore, Meta, Object, Page, list_all};
    use async_trait::async_trait;
    use std::ops::Range;

    #[tokio::test]
    async fn a_good_store_is_fit_and_left_clean() {
        let store = MemoryStore::new();
        let report = probe(&store).await.unwrap();
        assert!(report.is_fit(), "{report:?}");
        report.require_fit().unwrap();
        assert!(list_all(&store, "").await.unwrap().is_empty());
    }

    /// Ignores every condition, as S3 servers did before 2024.
    #[derive(Debug)]
    struct Careless(MemoryStore);

    #[async_trait]
    impl Objects for Careless {
        async fn get(&self, key: &Key) -> Result<Object, ObjectError> {
            self.0.get(key).await
        }
        async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, ObjectError> {
            self.0.get_range(key, range).await
        }
        async fn head(&self, key: &Key) -> Result<Meta, ObjectError> {
            self.0.head(key).await
        }
        async fn put(&self, key: &Key, bytes: Bytes, _: &Condition) -> Result<Etag, ObjectError> {
            self.0.delete(key).await?;
            self.0.put(key, bytes, &Condition::IfAbsent).await
        }
        async fn delete(&self, key: &Key) -> Result<(), ObjectError> {
            self.0.delete(key).await
        }
        async fn list(&self, prefix: &str, after: Option<&Key>) -> Result<Page, ObjectError> {
            self.0.list(prefix, after).await
        }
        fn describe(&self) -> String {
            "careless:".to_owned()
        }
    }

    #[tokio::test]
    async fn a_store_that_ignores_conditions_is_unfit_and_the_error_says_what_to_do() {
        let store = Careless(MemoryStore::new());
        let report = probe(&store).await.unwrap();
        assert!(!report.conditional_create && !report.conditional_update, "{report:?}");
        let error = report.require_fit().unwrap_err().to_string();
        assert!(
            error.contains("careless:") && error.contains("use a store with conditional writes"),
            "{error}"
        );
        assert!(list_all(&store.0, "").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_store_that_cannot_be_reached_is_an_error() {
        let store = FaultStore::new(Arc::new(MemoryStore::new()));
        store.every(CallKind::List, "", Fault::Unavailable);
        assert!(matches!(probe(&store).await, Err(ObjectError::Unavailable { .. })));
    }

    #[tokio::test]
    async fn a_busy_store_is_probed_again() {
        let store = FaultStore::new(Arc::new(MemoryStore::new()));
        let mut puts = 0;
        store.plan(move |call| {
            puts += u64::from(call.kind == CallKind::Put);
            if call.kind == CallKind::Put && (2..9).contains(&puts) {
                Fault::Unavailable
            } else {
                Fault::None
            }
        });
        assert!(probe(&store).await.unwrap().is_fit());
    }
}
