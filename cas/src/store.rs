//! A store: a place for objects that is ours, with an identity.
//!
//! The object `store` is written once, if absent. A pool remembers its id; a mismatch (wrong prefix, empty bucket,
//! restored backup under another name) is an error before anything is written or dropped.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use types::{Change, Clock, StoreId, Timestamp};

use crate::codec;
use crate::error::Error;
use crate::keys;
use crate::objects::{Condition, Etag, Key, Object, ObjectError, Objects};
use crate::page::PageCache;
use crate::settle::{self, Settled};

/// A value with the state of the object that it was read from or written to.
#[derive(Debug, Clone)]
pub struct Stored<T> {
    /// What the object says.
    pub value: T,
    /// The state that the next conditional write names.
    pub etag: Etag,
    /// The store's time when the object was last written. For a value that this process just wrote: when the one before
    /// it was, a bound from below.
    pub modified: Timestamp,
}

/// How long a write of unknown outcome is sent again before its caller is told that it is unsettled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// The pause after the first failure; it doubles.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
    /// After this the caller is told. The write stays registered with its session, which settles it before its pin
    /// moves.
    pub patience: Duration,
}

impl Default for Retry {
    /// Patient enough for a store that restarts, short enough that an operator sees an error.
    fn default() -> Self {
        Self {
            first: Duration::from_millis(50),
            longest: Duration::from_secs(5),
            patience: Duration::from_secs(60),
        }
    }
}

/// A store that is ours. Clones are handles of the same one.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn Objects>,
    clock: Arc<dyn Clock>,
    id: StoreId,
    retry: Retry,
    pages: Arc<PageCache>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("id", &self.id)
            .field("at", &self.objects.describe())
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoreObject {
    format: u32,
    id: StoreId,
}

impl Store {
    /// Opens the store that is there.
    pub async fn open(objects: Arc<dyn Objects>, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        match read_id(&*objects).await? {
            Some(id) => Ok(Self { objects, clock, id, retry: Retry::default(), pages: Arc::default() }),
            None => Err(Error::NoStore { place: objects.describe() }),
        }
    }

    /// Opens the store that is there, or makes one in an empty place.
    pub async fn create_or_open(
        objects: Arc<dyn Objects>,
        clock: Arc<dyn Clock>,
    ) -> Result<Change<Self>, Error> {
        let (retry, pages) = (Retry::default(), Arc::default());
        if let Some(id) = read_id(&*objects).await? {
            return Ok(Change::Already(Self { objects, clock, id, retry, pages }));
        }
        // Objects without a store object: another program's bucket, a wrong prefix, or a store that lost its head.
        // The probe's leftovers do not count.
        let page = objects.list("", None).await?;
        if let Some(found) = page.entries.iter().find(|meta| !meta.key.as_str().starts_with("probe")) {
            if let Some(id) = read_id(&*objects).await? {
                return Ok(Change::Already(Self { objects, clock, id, retry, pages }));
            }
            return Err(Error::NotOurs {
                place: objects.describe(),
                reason: format!("it holds {} but no object named store", found.key),
            });
        }
        let store = Self { objects, clock, id: StoreId::random(), retry, pages };
        let key = keys::store();
        let object = StoreObject { format: codec::FORMAT, id: store.id };
        let made = settle::put(&store, &key, &codec::encode(&key, &object)?, &Condition::IfAbsent).await?;
        match made {
            Settled::Written(_) => Ok(Change::Made(store)),
            Settled::Refused | Settled::Absent => match read_id(&*store.objects).await? {
                Some(id) if id == store.id => Ok(Change::Made(store)),
                Some(id) => Ok(Change::Already(Self { id, ..store })),
                None => Err(Error::Gone { key }),
            },
        }
    }

    /// Sets how long writes of unknown outcome are sent again.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Refuses another store than the one remembered.
    pub fn expect_id(&self, expected: StoreId) -> Result<(), Error> {
        if self.id == expected { Ok(()) } else { Err(Error::WrongStore { expected, found: self.id }) }
    }

    /// Returns the identity.
    pub fn id(&self) -> StoreId {
        self.id
    }

    /// Returns the objects below.
    pub fn objects(&self) -> &Arc<dyn Objects> {
        &self.objects
    }

    /// Returns the clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(crate) fn pages(&self) -> &PageCache {
        &self.pages
    }

    pub(crate) fn retry(&self) -> Retry {
        self.retry
    }

    /// Reads a small object; `None` if it is absent.
    pub(crate) async fn read<T: DeserializeOwned>(&self, key: &Key) -> Result<Option<Stored<T>>, Error> {
        found(self.objects.get(key).await)
    }
}

/// Decodes what a get answered; an absent object is `None`.
pub(crate) fn found<T: DeserializeOwned>(
    answer: Result<Object, ObjectError>,
) -> Result<Option<Stored<T>>, Error> {
    match answer {
        Ok(object) => {
            let value = codec::decode(&object)?;
            Ok(Some(Stored { value, etag: object.meta.etag, modified: object.meta.modified }))
        }
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn read_id(objects: &dyn Objects) -> Result<Option<StoreId>, Error> {
    match found::<StoreObject>(objects.get(&keys::store()).await) {
        Ok(stored) => Ok(stored.map(|stored| stored.value.id)),
        Err(Error::Corrupt { reason, .. }) => Err(Error::NotOurs {
            place: objects.describe(),
            reason: format!("its object named store is not ours: {reason}"),
        }),
        Err(error) => Err(error),
    }
}
