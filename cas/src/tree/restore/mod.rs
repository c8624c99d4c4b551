//! Making a version on disk.

use std::os::fd::OwnedFd;

use super::error::TreeError;
use super::location::VersionRef;
use super::read::Reader;

/// How a version is restored.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Threads that decompress, check and write.
    pub workers: usize,
    /// The most bytes that are fetched and not written yet.
    pub budget_bytes: usize,
    /// Owners are restored. Without it everything belongs to the caller, who needs no privilege for it.
    pub owners: bool,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self { workers: crate::blocking::parallelism(), budget_bytes: 64 << 20, owners: true }
    }
}

/// What a restore did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restored {
    /// Names made or changed that are not directories.
    pub files: u64,
    /// Directories made or changed.
    pub directories: u64,
    /// Names removed, with all below them counted.
    pub removed: u64,
    /// Bytes written into files.
    pub bytes: u64,
    /// Bytes fetched from the store.
    pub bytes_fetched: u64,
    /// Requests made to the store.
    pub requests: u64,
}

impl Reader {
    /// Makes the version in `target`, an empty directory. Every byte is proved against the version. Nothing is
    /// flushed: the caller does one `syncfs` before the tree counts. After an error the target holds a part.
    pub async fn restore(
        &self,
        tree: &VersionRef,
        target: OwnedFd,
        options: RestoreOptions,
    ) -> Result<Restored, TreeError> {
        let _ = (tree, target, options);
        Err(TreeError::Stopped("restore is not built yet"))
    }

    /// Turns `target`, which holds exactly the version `from`, into the version `to`. Only what differs is fetched and
    /// touched.
    pub async fn restore_difference(
        &self,
        from: &VersionRef,
        to: &VersionRef,
        target: OwnedFd,
        options: RestoreOptions,
    ) -> Result<Restored, TreeError> {
        let _ = (from, to, target, options);
        Err(TreeError::Stopped("restore_difference is not built yet"))
    }
}
