//! A store in a directory of a local filesystem: the embedded default. Several processes may use it at once.
//!
//! # Layout
//!
//! - `.opensail-store` marks the directory and gives the format's number.
//! - `.tmp/` holds files being written. Each is locked (`flock`) by its writer; one that is not was left by a crash and
//!   is removed at the next open. Nothing else looks there.
//! - `a/b/c@` is the object `a/b/c`: its bytes, then a [trailer](file). The `@` lets `a` and `a/b` both exist.
//!
//! # Order of a write
//!
//! 1. bytes and trailer into `.tmp/`, `fsync`: what a name refers to is durable before the name;
//! 2. `IfAbsent`: one `renameat2(RENAME_NOREPLACE)` decides. `IfMatch`: under the lock of the object's directory the
//!    etag is compared and the file renamed over the old one. Delete takes the same lock;
//! 3. `fsync` of the directory, after the lock is gone. Then the write is answered.
//!
//! A crash before 2 leaves a file in `.tmp/`. A crash between 2 and 3 leaves a write that nobody was told of; every open
//! fsyncs the directories, so that what a restarted process reads is durable before it builds on it.
//!
//! # Listing
//!
//! On btrfs a `rename` over a file moves its entry to the end of the directory, where a `readdir` that runs at the same
//! time does not look: an object that was only *updated* would be missing. So a listing reads each directory under its
//! lock. Entries are opened after that, without it.

mod file;
mod lock;
mod walk;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::memory::check_size;
use super::{CallKind, Condition, Etag, Key, Meta, Object, ObjectError, Objects, Page, Traffic};
use crate::blocking;
use file::Temp;
use lock::DirLock;

const MARKER: &str = ".opensail-store";
const TEMPORARY: &str = ".tmp";
const FORMAT: &str = "opensail directory store 1\n";

/// How many directories are remembered as made. More than this many dedup domains in use at once cost an fsync each.
const KNOWN_DIRECTORIES: usize = 4096;

/// A store in a directory. Clones are the same handle.
#[derive(Debug, Clone)]
pub struct DirStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// Directories whose entry in their parent is known to be durable.
    known: Mutex<HashSet<PathBuf>>,
    traffic: Mutex<Traffic>,
}

impl DirStore {
    /// Opens the store in `root`, an absolute path. Makes it if `root` is an empty directory, or absent in a directory
    /// that exists. Removes what a crash left in `.tmp/`.
    pub async fn create_or_open(root: &Path) -> Result<Self, ObjectError> {
        let root = root.to_owned();
        blocking::run(move || Self::create_or_open_blocking(root)).await
    }

    fn create_or_open_blocking(root: PathBuf) -> Result<Self, ObjectError> {
        let shown = root.display().to_string();
        let failed = |error| error_of(&format!("open directory {shown}"), error);
        if !root.is_absolute() {
            let source = "the path is not absolute".into();
            return Err(ObjectError::Misconfigured {
                what: format!("{shown}: give an absolute path"),
                source,
            });
        }
        match fs::create_dir(&root) {
            Ok(()) => sync_dir(root.parent().unwrap_or(&root)).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // A mount that takes no writes says so before it says that the directory is there.
            Err(_) if root.is_dir() => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let what = format!(
                    "{shown}: the directory above it does not exist; make it, or mount what belongs there"
                );
                return Err(ObjectError::Misconfigured { what, source: error.into() });
            }
            Err(error) => return Err(failed(error)),
        }
        {
            let _lock = DirLock::take(&root).map_err(failed)?;
            Self::check_marker(&root, &shown)?;
            sweep(&root.join(TEMPORARY));
        }
        let store = Self {
            inner: Arc::new(Inner { root: root.clone(), known: Mutex::default(), traffic: Mutex::default() }),
        };
        walk::sync_directories(&root).map_err(failed)?;
        Ok(store)
    }

    /// Makes sure that the directory is a store of this format. Its lock is held.
    fn check_marker(root: &Path, shown: &str) -> Result<(), ObjectError> {
        let failed = |error| error_of(&format!("open directory {shown}"), error);
        let refuse = |why: String| {
            Err(ObjectError::Misconfigured { what: why, source: format!("read {MARKER} in {shown}").into() })
        };
        match fs::read_to_string(root.join(MARKER)) {
            Ok(text) if text == FORMAT => return Ok(()),
            Ok(_) => {
                return refuse(format!(
                    "{shown} was written by another version of this program; use that one"
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        for entry in fs::read_dir(root).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            // The two that a crash in the lines below, or mkfs, leaves.
            if name != TEMPORARY && name != "lost+found" {
                return refuse(format!("{shown} holds other files and is no store: name an empty directory"));
            }
        }
        let temporary = root.join(TEMPORARY);
        match fs::create_dir(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let mut temp = Temp::create(&temporary).map_err(failed)?;
        temp.file().write_all(FORMAT.as_bytes()).map_err(failed)?;
        temp.file().sync_all().map_err(failed)?;
        fs::rename(temp.path(), root.join(MARKER)).map_err(failed)?;
        temp.renamed();
        sync_dir(root).map_err(failed)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Runs one call, and counts it with the bytes that it carries.
    async fn run<T, F>(&self, kind: CallKind, carried: usize, work: F) -> Result<T, ObjectError>
    where
        F: FnOnce(&Inner) -> Result<T, ObjectError> + Send + 'static,
        T: Send + 'static,
    {
        self.counted().sent(kind, carried as u64);
        let inner = Arc::clone(&self.inner);
        blocking::run(move || work(&inner)).await
    }

    fn counted(&self) -> MutexGuard<'_, Traffic> {
        self.inner.traffic.lock().expect("no holder of this lock panics")
    }
}

impl Inner {
    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(format!("{key}{}", file::SUFFIX))
    }

    /// Makes `directory` and those above it, each durable in its parent.
    fn ensure_directory(&self, directory: &Path) -> io::Result<()> {
        if directory == self.root || self.known.lock().expect("no holder panics").contains(directory) {
            return Ok(());
        }
        let parent = directory.parent().expect("it is below the root");
        self.ensure_directory(parent)?;
        match fs::create_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            // Made by another process just now, it may not be durable yet.
            _ => sync_dir(parent)?,
        }
        let mut known = self.known.lock().expect("no holder panics");
        if known.len() >= KNOWN_DIRECTORIES {
            known.clear();
        }
        known.insert(directory.to_owned());
        Ok(())
    }

    /// Tells if `condition` holds for what is at `path` now.
    fn check(path: &Path, key: &Key, condition: &Condition) -> Result<(), ObjectError> {
        match condition {
            Condition::IfAbsent => match fs::symlink_metadata(path) {
                Ok(_) => Err(ObjectError::Precondition { key: key.clone() }),
                Err(error) if is_absent(&error) => Ok(()),
                Err(error) => Err(error_of(&format!("put {key}"), error)),
            },
            Condition::IfMatch(etag) => {
                if file::meta(path, key)?.etag == *etag {
                    Ok(())
                } else {
                    Err(ObjectError::Precondition { key: key.clone() })
                }
            }
        }
    }

    fn put(&self, key: &Key, bytes: &[u8], condition: &Condition) -> Result<Etag, ObjectError> {
        let what = || format!("put {key}");
        let failed = |error| error_of(&what(), error);
        check_size(key, bytes.len() as u64)?;
        let path = self.path(key);
        let directory = path.parent().expect("an object is below the root");
        // Decides nothing, and spares the loser of a race the write.
        Self::check(&path, key, condition)?;
        self.ensure_directory(directory).map_err(failed)?;

        let mut temp = Temp::create(&self.root.join(TEMPORARY)).map_err(failed)?;
        let etag = file::write(temp.file(), bytes).map_err(failed)?;
        match condition {
            Condition::IfAbsent => match rename_new(temp.path(), &path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(ObjectError::Precondition { key: key.clone() });
                }
                renamed => renamed.map_err(failed)?,
            },
            Condition::IfMatch(_) => {
                let _lock = DirLock::take(directory).map_err(failed)?;
                Self::check(&path, key, condition)?;
                fs::rename(temp.path(), &path).map_err(failed)?;
            }
        }
        temp.renamed();
        // The name is there, perhaps for good: from here on the outcome is unknown until the directory is on the disk.
        sync_dir(directory)
            .map_err(|error| ObjectError::Unavailable { what: what(), source: error.into() })?;
        Ok(etag)
    }

    fn delete(&self, key: &Key) -> Result<(), ObjectError> {
        let failed = |error| error_of(&format!("delete {key}"), error);
        let path = self.path(key);
        let directory = path.parent().expect("an object is below the root");
        let lock = match DirLock::take(directory) {
            Err(error) if is_absent(&error) => return Ok(()),
            lock => lock.map_err(failed)?,
        };
        match fs::remove_file(&path) {
            Err(error) if is_absent(&error) => return Ok(()),
            removed => removed.map_err(failed)?,
        }
        drop(lock);
        sync_dir(directory).map_err(failed)
    }
}

#[async_trait]
impl Objects for DirStore {
    async fn get(&self, key: &Key) -> Result<Object, ObjectError> {
        let key = key.clone();
        let object = self.run(CallKind::Get, 0, move |store| file::read(&store.path(&key), &key)).await?;
        self.counted().bytes_read += object.bytes.len() as u64;
        Ok(object)
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let key = key.clone();
        let read = move |store: &Inner| file::read_range(&store.path(&key), &key, range);
        let bytes = self.run(CallKind::GetRange, 0, read).await?;
        self.counted().bytes_read += bytes.len() as u64;
        Ok(bytes)
    }

    async fn head(&self, key: &Key) -> Result<Meta, ObjectError> {
        let key = key.clone();
        self.run(CallKind::Head, 0, move |store| file::meta(&store.path(&key), &key)).await
    }

    async fn put(&self, key: &Key, bytes: Bytes, condition: &Condition) -> Result<Etag, ObjectError> {
        let (key, condition) = (key.clone(), condition.clone());
        self.run(CallKind::Put, bytes.len(), move |store| store.put(&key, &bytes, &condition)).await
    }

    async fn delete(&self, key: &Key) -> Result<(), ObjectError> {
        let key = key.clone();
        self.run(CallKind::Delete, 0, move |store| store.delete(&key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>) -> Result<Page, ObjectError> {
        let (prefix, after) = (prefix.to_owned(), after.cloned());
        self.run(CallKind::List, 0, move |store| walk::page(&store.root, &prefix, after.as_ref())).await
    }

    fn describe(&self) -> String {
        format!("dir://{}", self.inner.root.display())
    }

    fn traffic(&self) -> Traffic {
        self.counted().clone()
    }
}

/// Gives `from` the name `to` if nothing has it.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // A filesystem without it. A hard link decides as well; the second name goes with the temporary file's sweep.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        renamed => Ok(renamed?),
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Removes files that no living process is writing. What cannot be removed stays; it harms nobody.
fn sweep(temporary: &Path) {
    let Ok(entries) = fs::read_dir(temporary) else { return };
    let mut removed = 0_u64;
    for entry in entries.flatten() {
        let path = entry.path();
        if File::open(&path).is_ok_and(|file| file.try_lock().is_ok() && fs::remove_file(&path).is_ok()) {
            removed += 1;
        }
    }
    if removed > 0 {
        tracing::info!(removed, "removed unfinished writes of a process that has died");
    }
}

/// Tells if an error says that there is no such file, be it that a directory above it is none.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Says what an error of the filesystem means to a user of the store.
fn error_of(what: &str, error: io::Error) -> ObjectError {
    let what = what.to_owned();
    let source = Box::new(error);
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EDQUOT) => ObjectError::Full { what, source },
        Some(Errno::EROFS) => ObjectError::ReadOnly { what, source },
        Some(Errno::EACCES | Errno::EPERM) => ObjectError::Denied { what, source },
        Some(Errno::EIO | Errno::EUCLEAN) => ObjectError::Damaged { what, source },
        Some(Errno::ENOENT | Errno::ENOTDIR) => {
            let what = format!("{what}: the store's directory is gone; mount it again");
            ObjectError::Misconfigured { what, source }
        }
        Some(
            Errno::EMFILE
            | Errno::ENFILE
            | Errno::ENOMEM
            | Errno::EINTR
            | Errno::EAGAIN
            | Errno::ETIMEDOUT
            | Errno::ESTALE,
        ) => ObjectError::Unavailable { what, source },
        _ if source.kind() == io::ErrorKind::TimedOut => ObjectError::Unavailable { what, source },
        _ => ObjectError::Internal { what, source },
    }
}

#[cfg(test)]
mod tests;
