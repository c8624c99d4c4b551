//! Interleaving: each call to the store lets others go first, a random number of times. No clock is involved, so a seed
//! gives the same schedule again.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use async_trait::async_trait;
use bytes::Bytes;
use cas::objects::{Condition, Etag, Key, Meta, Object, ObjectError, Objects, Page};
use rand::RngExt as _;
use rand::rngs::StdRng;

/// Lets all others go first, `times` times.
pub(crate) async fn turns(times: u32) {
    for _ in 0..times {
        let mut waited = false;
        poll_fn(|context| {
            if waited {
                return Poll::Ready(());
            }
            waited = true;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

#[derive(Debug)]
pub(crate) struct Turns<T> {
    pub(crate) inner: Arc<T>,
    pub(crate) random: Mutex<StdRng>,
    /// One call in so many takes so long that everybody else is done with much.
    pub(crate) stalls: Option<u32>,
}

impl<T> Turns<T> {
    async fn pause(&self) {
        let times = {
            let mut random = self.random.lock().unwrap();
            match self.stalls {
                Some(one_in) if random.random_range(0..one_in) == 0 => random.random_range(50..600),
                _ => random.random_range(0..3),
            }
        };
        turns(times).await;
    }
}

#[async_trait]
impl<T: Objects> Objects for Turns<T> {
    async fn get(&self, key: &Key) -> Result<Object, ObjectError> {
        self.pause().await;
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, ObjectError> {
        self.pause().await;
        self.inner.get_range(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<Meta, ObjectError> {
        self.pause().await;
        self.inner.head(key).await
    }

    async fn put(&self, key: &Key, bytes: Bytes, condition: &Condition) -> Result<Etag, ObjectError> {
        self.pause().await;
        let answer = self.inner.put(key, bytes, condition).await;
        self.pause().await;
        answer
    }

    async fn delete(&self, key: &Key) -> Result<(), ObjectError> {
        self.pause().await;
        let answer = self.inner.delete(key).await;
        self.pause().await;
        answer
    }

    async fn list(&self, prefix: &str, after: Option<&Key>) -> Result<Page, ObjectError> {
        self.pause().await;
        self.inner.list(prefix, after).await
    }

    fn describe(&self) -> String {
        "a store with others in between".to_owned()
    }
}
