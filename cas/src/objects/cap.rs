//! A bound on how many bytes a second a node moves to and from its store, shared by all that it does.
//!
//! Only packs count: records and the session's beat are small, and a beat that waits behind a pack would look like a dead
//! node. A request begins when those before it are paid for, and is then sent at the speed of the line: the bound holds
//! over a few seconds, not for each packet.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::{Condition, Etag, Key, Meta, Object, ObjectError, Objects, Page, Traffic};
use crate::keys;

/// A bucket of tokens that fills by `bytes_per_second`. Clones share it.
#[derive(Debug, Clone)]
pub struct Cap {
    bytes_per_second: u64,
    /// When all that was taken so far is paid for.
    paid: Arc<Mutex<Instant>>,
}

impl Cap {
    /// Makes one. A rate of 0 would never let anything through and counts as 1.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Waits until all before is paid for. Callers go in the order in which they came.
    pub async fn take(&self, bytes: u64) {
        let cost = Duration::try_from_secs_f64(precise(bytes) / precise(self.bytes_per_second))
            .unwrap_or(Duration::MAX / 4);
        let begin = {
            let mut paid = self.paid.lock().expect("no holder of this lock panics");
            let begin = (*paid).max(Instant::now());
            *paid = begin.checked_add(cost).unwrap_or(begin);
            begin
        };
        tokio::time::sleep_until(begin).await;
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate need not be exact")]
fn precise(bytes: u64) -> f64 {
    bytes as f64
}

/// A store whose packs move no faster than they may.
#[derive(Debug, Clone)]
pub struct CappedStore {
    inner: Arc<dyn Objects>,
    upload: Option<Cap>,
    download: Option<Cap>,
}

impl CappedStore {
    /// Goes around `inner`; without a cap that way is free.
    pub fn new(inner: Arc<dyn Objects>, upload: Option<Cap>, download: Option<Cap>) -> Self {
        Self { inner, upload, download }
    }

    async fn take(cap: Option<&Cap>, key: &Key, bytes: u64) {
        if let Some(cap) = cap
            && key.as_str().starts_with(keys::PACKS)
        {
            cap.take(bytes).await;
        }
    }
}

#[async_trait]
impl Objects for CappedStore {
    async fn get(&self, key: &Key) -> Result<Object, ObjectError> {
        let object = self.inner.get(key).await?;
        // How much it is was not known before: the next one waits for it.
        Self::take(self.download.as_ref(), key, object.bytes.len() as u64).await;
        Ok(object)
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, ObjectError> {
        Self::take(self.download.as_ref(), key, range.end.saturating_sub(range.start)).await;
        self.inner.get_range(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<Meta, ObjectError> {
        self.inner.head(key).await
    }

    async fn put(&self, key: &Key, bytes: Bytes, condition: &Condition) -> Result<Etag, ObjectError> {
        Self::take(self.upload.as_ref(), key, bytes.len() as u64).await;
        self.inner.put(key, bytes, condition).await
    }

    async fn delete(&self, key: &Key) -> Result<(), ObjectError> {
        self.inner.delete(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>) -> Result<Page, ObjectError> {
        self.inner.list(prefix, after).await
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn traffic(&self) -> Traffic {
        self.inner.traffic()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{MemoryStore, contract};

    fn key(text: &str) -> Key {
        text.parse().unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn the_contract_is_kept() {
        let cap = || Some(Cap::new(1 << 30));
        contract::check(&CappedStore::new(Arc::new(MemoryStore::new()), cap(), cap())).await;
    }

    #[tokio::test]
    async fn packs_move_at_the_rate_that_all_share_and_records_at_once() {
        let rate = |bytes| Some(Cap::new(bytes));
        let store = CappedStore::new(Arc::new(MemoryStore::new()), rate(1 << 20), rate(1 << 21));
        let began = Instant::now();
        // Eight at once, of an eighth of a megabyte each.
        let puts = (0..8).map(|n| {
            let store = store.clone();
            async move {
                let pack = Bytes::from(vec![0; 1 << 17]);
                store.put(&key(&format!("pack/{n}")), pack, &Condition::IfAbsent).await.unwrap();
            }
        });
        let all = tokio::spawn(futures::future::join_all(puts));
        tokio::task::yield_now().await;
        store.put(&key("session/a"), "beat".into(), &Condition::IfAbsent).await.unwrap();
        assert!(!all.is_finished(), "a beat waits for no pack");
        all.await.unwrap();
        // The last of them begins when the seven before it are paid for.
        let took = began.elapsed();
        assert!((Duration::from_millis(875)..Duration::from_secs(5)).contains(&took), "{took:?}");
        let began = Instant::now();
        for n in 0..8 {
            store.get_range(&key(&format!("pack/{n}")), 0..1 << 17).await.unwrap();
        }
        let took = began.elapsed();
        assert!((Duration::from_millis(437)..Duration::from_secs(3)).contains(&took), "{took:?}");
    }
}
