//! Putting a directory into the store.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use types::Domain;

use super::cache::Cache;
use super::changes::Changes;
use super::error::TreeError;
use super::location::VersionRef;
use crate::{Session, Store};

/// How a tree is written.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// The zstd level of all frames.
    pub zstd_level: i32,
    /// A pack is closed when it has this many bytes.
    pub pack_bytes: usize,
    /// Threads that read, hash and compress.
    pub workers: usize,
    /// Packs on their way to the store at once; each is `pack_bytes` of memory.
    pub uploads: usize,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self { zstd_level: 3, pack_bytes: 16 << 20, workers: crate::blocking::parallelism(), uploads: 4 }
    }
}

/// The version that a put starts from, and what changed since.
#[derive(Debug, Clone)]
pub struct Parent {
    /// The version.
    pub tree: VersionRef,
    /// What changed since.
    pub changes: Changes,
}

/// What a put did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The version. Every pack it names was acknowledged.
    pub tree: VersionRef,
    /// It is not the parent's.
    pub changed: bool,
    /// Files that were read, made, moved or removed.
    pub files_changed: u64,
    /// Files in the version: all names that are not directories.
    pub files: u64,
    /// Bytes of all files in the version.
    pub bytes: u64,
    /// Bytes sent to the store.
    pub bytes_uploaded: u64,
    /// Objects sent to the store.
    pub objects_written: u64,
    /// The whole directory was read.
    pub full_scan: bool,
}

/// Puts directories into a store, under one session and in one dedup domain.
#[derive(Clone)]
pub struct Writer {
    store: Store,
    session: Session,
    domain: Domain,
    cache: Arc<Cache>,
    options: WriteOptions,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("domain", &self.domain)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// Makes a writer. `cache` is shared with the readers of the process.
    pub fn new(
        store: Store,
        session: Session,
        domain: Domain,
        cache: Arc<Cache>,
        options: WriteOptions,
    ) -> Self {
        Self { store, session, domain, cache, options }
    }

    /// Puts the directory `root` into the store and returns its version, when every pack of it was acknowledged.
    ///
    /// With a parent only what its changes name is read; if nothing changed, the answer is the parent and nothing is
    /// written. The caller holds a session's operation from before this call until a record names the version.
    /// A directory that is written to meanwhile is an error: put a read-only snapshot.
    pub async fn put(&self, root: OwnedFd, parent: Option<Parent>) -> Result<Written, TreeError> {
        let _ = (root, parent, &self.store, &self.session, &self.cache);
        Err(TreeError::Stopped("put is not built yet"))
    }
}
