//! Reading parts of a version straight from the store.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use types::{ContentId, VolumePath};

use super::cache::Cache;
use super::error::TreeError;
use super::fetch::Fetch;
use super::location::VersionRef;
use super::manifest::Manifest;
use super::node::Metadata;
use crate::Store;

/// What a path in a version stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The last segment of the path; empty for the root.
    pub name: Vec<u8>,
    /// What it is. Later names of a file show the file.
    pub kind: FoundKind,
    /// Its metadata.
    pub meta: Metadata,
    /// The first name of the inode, where this is a later one.
    pub first: Option<VolumePath>,
}

/// What something in a version is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundKind {
    /// A regular file.
    File {
        /// Its length.
        size: u64,
        /// BLAKE3 of its bytes.
        content: ContentId,
    },
    /// A directory.
    Directory {
        /// How many names are in it.
        entries: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A device.
    Device {
        /// Block device, else character device.
        block: bool,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// How a path differs between two versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// It is only in the later one.
    Added(VolumePath),
    /// It is only in the earlier one.
    Removed(VolumePath),
    /// Its content or kind differs.
    Modified(VolumePath),
    /// Only its metadata differs.
    Metadata(VolumePath),
}

/// Reads versions from a store.
#[derive(Debug, Clone)]
pub struct Reader {
    pub(crate) fetch: Fetch,
}

impl Reader {
    /// Makes a reader. `cache` is shared with the writer and the other readers of the process.
    pub fn new(store: Store, cache: Arc<Cache>) -> Self {
        Self { fetch: Fetch { objects: Arc::clone(store.objects()), cache } }
    }

    /// Reads the manifest of a version.
    pub async fn manifest(&self, tree: &VersionRef) -> Result<Arc<Manifest>, TreeError> {
        self.fetch.manifest(tree).await
    }

    /// Finds a path. `None`: there is none; an error: it could not be told.
    pub async fn stat(&self, tree: &VersionRef, path: &VolumePath) -> Result<Option<Found>, TreeError> {
        let _ = (tree, path);
        Err(TreeError::Stopped("stat is not built yet"))
    }

    /// Lists up to `limit` names of a directory, those after `after`.
    pub async fn list(
        &self,
        tree: &VersionRef,
        path: &VolumePath,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Found>, TreeError> {
        let _ = (tree, path, after, limit);
        Err(TreeError::Stopped("list is not built yet"))
    }

    /// Reads a range of a file, cut at its end. Only the frames that hold it are fetched.
    pub async fn read(
        &self,
        tree: &VersionRef,
        path: &VolumePath,
        range: Range<u64>,
    ) -> Result<Bytes, TreeError> {
        let _ = (tree, path, range);
        Err(TreeError::Stopped("read is not built yet"))
    }

    /// Lists up to `limit` paths in which two versions differ, in tree order. Equal subtrees cost nothing.
    pub async fn diff(
        &self,
        earlier: &VersionRef,
        later: &VersionRef,
        limit: usize,
    ) -> Result<Vec<Difference>, TreeError> {
        let _ = (earlier, later, limit);
        Err(TreeError::Stopped("diff is not built yet"))
    }
}
