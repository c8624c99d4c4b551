//! The object store: a few calls that a bucket, a directory and memory can all answer in the same way.
//!
//! [`Objects`] is the seam and its documentation the contract; [`contract::check`] is that contract as one suite,
//! which every implementation passes: [`MemoryStore`], [`DirStore`], [`S3Store`], and [`FaultStore`] around any of them.
//! There is no unconditional write anywhere: PROTOCOL.md has no use for one.

mod cap;
pub mod contract;
mod dir;
mod error;
mod fault;
mod hedge;
mod key;
mod memory;
mod patient;
mod probe;
mod s3;
mod url;

pub use cap::{Cap, CappedStore};
pub use dir::DirStore;
pub use error::{ObjectError, Source};
pub use fault::{Call, Counts, Fault, FaultStore, crashes};
pub use key::{InvalidKey, Key};
pub use memory::MemoryStore;
pub use patient::PatientStore;
pub use probe::{ProbeReport, UnfitStore, probe, probe_all};
pub use s3::S3Store;
pub use types::{CallKind, Traffic};
pub use url::{InvalidStoreUrl, S3Url, Sse, StoreUrl};

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use types::Timestamp;

/// The most bytes that one object may have: the hard limit of a pack, with room for its footer.
pub const MAX_OBJECT_BYTES: u64 = 80 << 20;

/// The state of one object, as its store names it. Two different writes of a key never have the same one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Etag(String);

impl Etag {
    /// Takes a store's own text for it, quotes and all. Only the store that made it can read it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the store's own text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Etag({})", self.0)
    }
}

impl fmt::Display for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What must hold for a write to happen. There is no unconditional write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The key is absent.
    IfAbsent,
    /// The key is in exactly this state.
    IfMatch(Etag),
}

/// What is known of an object without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Where it is.
    pub key: Key,
    /// Its length in bytes.
    pub size: u64,
    /// The state that a later [`Condition::IfMatch`] names.
    pub etag: Etag,
    /// When it was written, by the store's clock and in the store's precision.
    pub modified: Timestamp,
}

/// An object with its bytes.
#[derive(Debug, Clone)]
pub struct Object {
    /// What is known of it; `size` is the length of `bytes`, and `etag` is the state that these bytes are.
    pub meta: Meta,
    /// All of its bytes.
    pub bytes: Bytes,
}

/// A part of a listing.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// What was found, in the order of the keys' bytes.
    pub entries: Vec<Meta>,
    /// Where to go on: passed as `after` in the next call. `None`: the listing is complete.
    pub next: Option<Key>,
}

/// A place that keeps objects under keys.
///
/// The contract, which [`contract::check`] tests sentence by sentence:
///
/// - **Atomic.** A put stores all of its bytes or none. No reader sees a part of them, or a mixture of two writes.
/// - **Conditional.** Of any number of puts of one key with [`Condition::IfAbsent`], one succeeds. Of any number with
///   [`Condition::IfMatch`] of one etag, one succeeds. The others get [`ObjectError::Precondition`]. This holds between
///   processes and machines. `IfMatch` on an absent key is `NotFound` or `Precondition`, and stores nothing.
/// - **Durable.** When a put has answered, its bytes outlive a crash of the process, the machine and its power.
/// - **Strong.** A get, head or list that begins after a put or delete has answered sees it, through any handle.
/// - **Etags do not come back.** Two writes of a key have different etags if their bytes differ, also after a delete.
///   (A bucket may give the same etag to the same bytes: records carry a nonce for this reason.)
/// - **Outcome unknown is said.** [`ObjectError::Unavailable`] from a put means that it may have happened, may not have,
///   or may still happen. [`ObjectError::Conflict`] says that the same bytes may be sent again. Every other error of a
///   put means that it has not happened. No implementation sends a conditional write twice.
/// - **Ranges are exact.** `get_range` returns all the bytes asked for, or [`ObjectError::Range`], never fewer.
///   An empty range inside the object is empty bytes.
/// - **Delete** of an absent key is success.
/// - **Listings** are sorted by the bytes of the key and complete: an object that is there for the whole of a listing is
///   in it, exactly once; what could not be read is an error, never a gap. `prefix` is plain bytes of the key and need
///   not end at a `/`. Pages are bounded.
/// - **No object lies below another's key**: who has `a` as an object has none as `a/b`. Callers keep this rule, because
///   MinIO takes both and then leaves the lower one out of its listings. [`MemoryStore`] refuses, so that tests find it.
/// - **Dropping** a future of a write leaves the outcome unknown, as `Unavailable` does. It never leaves a part.
#[async_trait]
pub trait Objects: fmt::Debug + Send + Sync {
    /// Returns an object whole.
    async fn get(&self, key: &Key) -> Result<Object, ObjectError>;

    /// Returns exactly the bytes of `range`.
    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, ObjectError>;

    /// Returns what is known of an object without reading it.
    async fn head(&self, key: &Key) -> Result<Meta, ObjectError>;

    /// Stores `bytes` under `key` if `condition` holds, and returns the new state.
    async fn put(&self, key: &Key, bytes: Bytes, condition: &Condition) -> Result<Etag, ObjectError>;

    /// Removes an object. An absent one is fine.
    async fn delete(&self, key: &Key) -> Result<(), ObjectError>;

    /// Lists the keys that begin with `prefix` and are greater than `after`.
    async fn list(&self, prefix: &str, after: Option<&Key>) -> Result<Page, ObjectError>;

    /// Says where this is, for people. No secrets.
    fn describe(&self) -> String;

    /// Returns what was asked of the store so far; nothing for one that lies in this process.
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }
}

/// Lists everything under `prefix`, page after page. All of it is held in memory: for small sets and tests.
pub async fn list_all(objects: &dyn Objects, prefix: &str) -> Result<Vec<Meta>, ObjectError> {
    let mut entries = Vec::new();
    let mut after = None;
    loop {
        let page = objects.list(prefix, after.as_ref()).await?;
        entries.extend(page.entries);
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(entries),
        }
    }
}
