//! A store in memory, for tests and for `memory:` URLs.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use types::{Clock, SystemClock, Timestamp};

use super::{Condition, Etag, Key, MAX_OBJECT_BYTES, Meta, Object, ObjectError, Objects, Page};

/// Objects in memory. Clones share them. Nothing outlives the process.
#[derive(Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Clock>,
    page_entries: usize,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Stored>,
    /// Counts writes, and is the etag of the last one: it never comes back.
    writes: u64,
}

impl State {
    /// Tells if an object lies above or below `key`, which no caller may rely on (see [`Objects`]).
    fn nests(&self, key: &Key) -> bool {
        let text = key.as_str();
        let above = text.match_indices('/').any(|(end, _)| self.objects.contains_key(&text[..end]));
        let below = format!("{text}/");
        let next = self.objects.range::<str, _>((Bound::Included(below.as_str()), Bound::Unbounded)).next();
        above || next.is_some_and(|(key, _)| key.as_str().starts_with(&below))
    }
}

struct Stored {
    bytes: Bytes,
    etag: Etag,
    modified: Timestamp,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// Makes an empty store.
    pub fn new() -> Self {
        Self::with_clock(Arc::new(SystemClock))
    }

    /// Makes an empty store whose store time is `clock`.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self { state: Arc::default(), clock, page_entries: 1000 }
    }

    /// Lists at most `entries` a page, so that a test sees many pages.
    #[must_use]
    pub fn with_page_entries(mut self, entries: usize) -> Self {
        self.page_entries = entries.max(1);
        self
    }

    /// Replaces the bytes of an object behind everybody's back, as a broken disk would; its etag stays.
    /// Tells if there was such an object.
    pub fn damage(&self, key: &Key, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut state = self.lock();
        let Some(stored) = state.objects.get_mut(key) else { return false };
        let mut bytes = stored.bytes.to_vec();
        change(&mut bytes);
        stored.bytes = bytes.into();
        true
    }

    /// Makes a store of its own with the same objects, as a copy of a disk would be.
    #[must_use]
    pub fn fork(&self) -> Self {
        let state = self.lock();
        let objects = state
            .objects
            .iter()
            .map(|(key, s)| {
                (key.clone(), Stored { bytes: s.bytes.clone(), etag: s.etag.clone(), modified: s.modified })
            })
            .collect();
        let copy = State { objects, writes: state.writes };
        Self {
            state: Arc::new(Mutex::new(copy)),
            clock: Arc::clone(&self.clock),
            page_entries: self.page_entries,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl Stored {
    fn meta(&self, key: &Key) -> Meta {
        Meta {
            key: key.clone(),
            size: self.bytes.len() as u64,
            etag: self.etag.clone(),
            modified: self.modified,
        }
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("objects", &self.lock().objects.len()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Objects for MemoryStore {
    async fn get(&self, key: &Key) -> Result<Object, ObjectError> {
        let state = self.lock();
        let stored = state.objects.get(key).ok_or_else(|| ObjectError::NotFound { key: key.clone() })?;
        Ok(Object { meta: stored.meta(key), bytes: stored.bytes.clone() })
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let state = self.lock();
        let stored = state.objects.get(key).ok_or_else(|| ObjectError::NotFound { key: key.clone() })?;
        let size = stored.bytes.len() as u64;
        let outside = || ObjectError::Range { key: key.clone(), range: range.clone(), size: Some(size) };
        if range.start > range.end || range.end > size {
            return Err(outside());
        }
        let start = usize::try_from(range.start).map_err(|_| outside())?;
        let end = usize::try_from(range.end).map_err(|_| outside())?;
        Ok(stored.bytes.slice(start..end))
    }

    async fn head(&self, key: &Key) -> Result<Meta, ObjectError> {
        let state = self.lock();
        let stored = state.objects.get(key).ok_or_else(|| ObjectError::NotFound { key: key.clone() })?;
        Ok(stored.meta(key))
    }

    async fn put(&self, key: &Key, bytes: Bytes, condition: &Condition) -> Result<Etag, ObjectError> {
        check_size(key, bytes.len() as u64)?;
        let mut state = self.lock();
        let holds = match (condition, state.objects.get(key)) {
            (Condition::IfAbsent, stored) => stored.is_none(),
            (Condition::IfMatch(etag), Some(stored)) => stored.etag == *etag,
            (Condition::IfMatch(_), None) => return Err(ObjectError::NotFound { key: key.clone() }),
        };
        if state.nests(key) {
            let source =
                "another object's key is above or below it; listings of some servers would have a gap".into();
            return Err(ObjectError::Misconfigured { what: format!("put {key}"), source });
        }
        if !holds {
            return Err(ObjectError::Precondition { key: key.clone() });
        }
        state.writes += 1;
        let etag = Etag::new(format!("\"{}\"", state.writes));
        let modified = self.clock.now();
        state.objects.insert(key.clone(), Stored { bytes, etag: etag.clone(), modified });
        Ok(etag)
    }

    async fn delete(&self, key: &Key) -> Result<(), ObjectError> {
        self.lock().objects.remove(key);
        Ok(())
    }

    async fn list(&self, prefix: &str, after: Option<&Key>) -> Result<Page, ObjectError> {
        let state = self.lock();
        let from = match after {
            Some(after) if after.as_str() >= prefix => Bound::Excluded(after.as_str()),
            _ => Bound::Included(prefix),
        };
        let mut found = state
            .objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.as_str().starts_with(prefix));
        let entries: Vec<Meta> = found.by_ref().take(self.page_entries).map(|(key, s)| s.meta(key)).collect();
        let next = found.next().and_then(|_| entries.last().map(|meta| meta.key.clone()));
        Ok(Page { entries, next })
    }

    fn describe(&self) -> String {
        "memory:".to_owned()
    }
}

/// Refuses an object larger than any store must take.
pub(super) fn check_size(key: &Key, size: u64) -> Result<(), ObjectError> {
    if size > MAX_OBJECT_BYTES {
        return Err(ObjectError::TooLarge { key: key.clone(), size, limit: MAX_OBJECT_BYTES });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::contract;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn memory_keeps_the_contract() {
        contract::check(&MemoryStore::new()).await;
    }

    #[tokio::test]
    async fn no_object_lies_below_another() {
        let store = MemoryStore::new();
        let put = |key: &str| {
            let (store, key) = (store.clone(), key.parse::<Key>().unwrap());
            async move { store.put(&key, "x".into(), &Condition::IfAbsent).await }
        };
        put("a/b").await.unwrap();
        put("a-b").await.unwrap();
        for nested in ["a", "a/b/c", "a/b/c/d"] {
            put(nested).await.unwrap_err();
        }
        put("a/c").await.unwrap();
    }

    #[tokio::test]
    async fn small_pages_keep_the_contract() {
        contract::check(&MemoryStore::new().with_page_entries(3)).await;
    }
}
