//! Opening a pool: mount it, lock it, check what it is and what the kernel offers, sweep what a crash left half-made.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use btrfs::space::Space;
use btrfs::{Dir, Errno};
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::{Mutex, Semaphore};
use types::ByteSize;

use super::commit::Commits;
use super::{
    DATA_RESERVE, Identity, Inner, METADATA_PART, METADATA_RESERVE, METADATA_ROOM, PERMITS, Pool, device,
};
use crate::config::{NodeConfig, QuotaMode};
use crate::error::Error;
use crate::layout::{LOCK, STAGING, TEMPLATES, VOLUMES};
use crate::mounts;

impl Pool {
    /// Opens the pool that `config` names, or makes it.
    ///
    /// # Errors
    /// The pool cannot be used; the text says what to do.
    #[expect(clippy::disallowed_methods, reason = "the door is not there before the pool is")]
    pub async fn open(config: NodeConfig) -> Result<Self, Error> {
        let opened = tokio::task::spawn_blocking(move || Self::open_blocking(&config));
        opened.await.map_err(|_| Error::Panicked { operation: "opening the pool" })?
    }

    fn open_blocking(config: &NodeConfig) -> Result<Self, Error> {
        device::check(config)?;
        if config.pool_size.is_some() || config.device.is_some() {
            std::fs::create_dir_all(&config.pool)
                .map_err(|source| Error::PoolPath { path: config.pool.clone(), source })?;
        }
        // Before anything is made: two daemons that start together must not both run mkfs. For a loop file or device
        // this lock lies outside of the pool, so there is a second one inside.
        let mut locks = Vec::new();
        let outer = config.pool.canonicalize();
        let outer = outer.map_err(|source| Error::PoolPath { path: config.pool.clone(), source })?;
        locks.push(lock(&outer)?);
        let path = device::open(config)?;
        if path != outer {
            locks.push(lock(&path)?);
        }
        let root = Dir::open(&path)?;
        if !btrfs::filesystem::is_btrfs(&root)? {
            return Err(Error::NotBtrfs { path, found: "another filesystem".to_owned() });
        }
        let mounts = mounts::read().map_err(|source| Error::Io { doing: "reading the mounts", source })?;
        let mount = mounts::at(&mounts, &path)
            .ok_or_else(|| Error::NotBtrfs { path: path.clone(), found: "no mount".to_owned() })?;
        if mount.has_option("ro") {
            return Err(Error::PoolReadOnly { path });
        }
        let prepared = prepare(&path, &root);
        let identity = prepared.map_err(|error| full_pool(error, &path))?;
        let quota = config.quota == QuotaMode::On;
        if quota {
            btrfs::quota::enable_simple(&root).map_err(|source| match source {
                source
                    if source.is(Errno::ENOTTY)
                        || source.is(Errno::EINVAL)
                        || source.is(Errno::EOPNOTSUPP) =>
                {
                    Error::NoQuota { source }
                }
                source => Error::Btrfs(source),
            })?;
        } else {
            tracing::warn!("--quota=off: volumes have no limits, one of them can fill the pool");
        }
        if config.unsafe_no_commit {
            tracing::error!("--unsafe-no-commit: A POWER CUT LOSES WHAT WAS ACKNOWLEDGED. For tests only.");
        }
        Ok(Self(Arc::new(Inner {
            features: btrfs::features::probe(&root)?,
            root: Arc::new(root),
            device: mount.device.clone(),
            inside: mount.root.clone(),
            noatime: mount.has_option("noatime"),
            path,
            identity,
            quota,
            permits: Arc::new(Semaphore::new(PERMITS)),
            nudges: Arc::new(Semaphore::new(super::NUDGES)),
            commits: Commits::new(),
            commit_running: Mutex::new(()),
            deaths: crate::deaths::Deaths::default(),
            unsafe_no_commit: config.unsafe_no_commit,
            _locks: locks,
        })))
    }
}

/// Takes the lock that says that a daemon works here. The kernel gives it back when the process ends, however it ends.
fn lock(directory: &Path) -> Result<Flock<File>, Error> {
    let path = directory.join(LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| match source.raw_os_error() {
        Some(nix::libc::EROFS) => Error::PoolReadOnly { path: directory.to_owned() },
        _ => Error::PoolPath { path, source },
    })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        let path = directory.to_owned();
        if errno == Errno::EWOULDBLOCK {
            Error::PoolInUse { path }
        } else {
            Error::PoolPath { path, source: errno.into() }
        }
    })
}

/// Makes the layout where it is missing and sweeps what a crash left.
fn prepare(path: &Path, root: &Dir) -> Result<Identity, Error> {
    for name in [VOLUMES, TEMPLATES, STAGING] {
        if !root.exists(name)? {
            root.create_dir(name, 0o755)?;
        }
    }
    sweep(&root.open_dir(STAGING)?)?;
    Identity::open(path)
}

/// Deletes everything in a directory of half-made things, subvolumes included.
fn sweep(staging: &Dir) -> Result<(), Error> {
    for name in staging.entries()? {
        super::remove_tree(staging, &name)?;
    }
    Ok(())
}

fn full_pool(error: Error, path: &Path) -> Error {
    let errno = if let Error::Btrfs(error) = &error {
        error.errno()
    } else if let Error::PoolPath { source, .. } = &error {
        source.raw_os_error().unwrap_or(0)
    } else {
        0
    };
    match errno {
        nix::libc::ENOSPC => {
            Error::PoolFull { path: PathBuf::from(path), what: "no space for the node's own files" }
        }
        nix::libc::EROFS => Error::PoolReadOnly { path: PathBuf::from(path) },
        _ => error,
    }
}

/// What can be promised to volumes: not the room that metadata needs, nor the last that the pool keeps.
pub(crate) fn promisable(space: &Space) -> u64 {
    let metadata = (space.device_bytes / METADATA_PART).clamp(METADATA_RESERVE.0, METADATA_ROOM.0);
    space.promisable_bytes(metadata).saturating_sub(DATA_RESERVE.0)
}

/// Says whether the pool can take something new.
pub(crate) fn room(space: &Space) -> Result<(), Error> {
    let metadata = space.available_metadata_bytes();
    if metadata < METADATA_RESERVE.0 {
        return Err(Error::NoSpace { what: "metadata", left: ByteSize(metadata) });
    }
    let data = space.available_bytes();
    if data < DATA_RESERVE.0 {
        return Err(Error::NoSpace { what: "data", left: ByteSize(data) });
    }
    Ok(())
}
