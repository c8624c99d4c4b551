//! The node's pool, and the only door to work that blocks: `pool.run(|root| ..)`.
//!
//! A permit goes with the work, not with the caller: a caller that leaves does not stop what the kernel is doing, so
//! everything that goes through here can be done again.

mod commit;
mod device;
mod identity;
mod start;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use btrfs::{Dir, Errno};
use nix::fcntl::Flock;
use tokio::sync::{Mutex, Semaphore};
use types::{ByteSize, PoolId, StoreId};

pub use device::{IMAGE, MOUNT};
pub use identity::{Identity, read_json, write_json};
pub(crate) use start::{promisable, room};

use crate::deaths::{Deaths, Point};
use crate::error::Error;
use crate::mounts::Mounted;
use commit::{Commits, Part};

/// Part of the devices that metadata is left room for, and the most of it: names and small files of what is promised.
const METADATA_PART: u64 = 64;
const METADATA_ROOM: ByteSize = ByteSize(1 << 30);

/// How much blocking work goes on at once. More of it only waits in the kernel, for the same locks and the same disk.
const PERMITS: usize = 8;

/// Less unallocated or free metadata than this, and the pool takes nothing new: deleting needs some.
const METADATA_RESERVE: ByteSize = ByteSize(8 << 20);

/// Less free data space than this, and the pool takes nothing new.
const DATA_RESERVE: ByteSize = ByteSize(16 << 20);

/// A commit that takes longer may wait for a request that the kernel missed.
const NUDGE: Duration = Duration::from_millis(50);

/// A nudge itself can be missed, and then waits for the next one.
const NUDGES: usize = 2;

/// A mounted pool that this process holds the lock of. Clones share it.
#[derive(Debug, Clone)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: Arc<Dir>,
    path: PathBuf,
    /// `major:minor` as mountinfo shows it, and which directory of the filesystem is mounted as the pool.
    device: String,
    inside: PathBuf,
    identity: Identity,
    quota: bool,
    noatime: bool,
    features: btrfs::features::Features,
    permits: Arc<Semaphore>,
    nudges: Arc<Semaphore>,
    commits: Commits,
    /// One commit at a time; the next caller leads the next one.
    commit_running: Mutex<()>,
    unsafe_no_commit: bool,
    deaths: Deaths,
    _locks: Vec<Flock<std::fs::File>>,
}

impl Pool {
    /// Runs `work` where blocking is allowed, with the pool's root.
    ///
    /// # Errors
    /// Those of `work`, or the process is going down.
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Dir) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let permit = Arc::clone(&self.0.permits).acquire_owned().await.map_err(|_| Error::ShuttingDown)?;
        self.0.deaths.survive().await;
        let (root, deaths) = (Arc::clone(&self.0.root), self.0.deaths.clone());
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            deaths.enter(|| work(&root))
        });
        let done = done.await;
        self.0.deaths.survive().await;
        match done {
            Ok(result) => result,
            Err(error) if error.is_panic() => Err(Error::Panicked { operation: "work on the pool" }),
            Err(_) => Err(Error::ShuttingDown),
        }
    }

    /// Waits until everything that was done so far is on disk. Callers that come together share one commit.
    ///
    /// # Errors
    /// The pool cannot be written any more.
    pub async fn commit(&self) -> Result<(), Error> {
        loop {
            match self.0.commits.join() {
                Part::Lead(sender) => {
                    let pool = self.clone();
                    // A task of its own: the callers that follow wait for it even when this caller leaves.
                    let lead = tokio::spawn(async move {
                        let _turn = pool.0.commit_running.lock().await;
                        pool.0.commits.begin();
                        let result = pool.durable(btrfs::commit::commit).await;
                        let shared = match &result {
                            Ok(()) => Ok(()),
                            Err(error) => {
                                Err(if let Error::Btrfs(e) = error { e.errno() } else { nix::libc::EIO })
                            }
                        };
                        sender.send_replace(Some(shared));
                        result
                    });
                    return lead.await.map_err(|_| Error::ShuttingDown)?;
                }
                Part::Follow(receiver) => match commit::outcome(receiver).await {
                    Some(result) => {
                        return result.map_err(|errno| Error::Io {
                            doing: "waiting for the pool's commit",
                            source: std::io::Error::from_raw_os_error(errno),
                        });
                    }
                    None => continue,
                },
            }
        }
    }

    /// Writes every file's dirty pages as well: after a restore, whose pages no snapshot has flushed.
    ///
    /// # Errors
    /// The pool cannot be written any more.
    pub async fn commit_with_data(&self) -> Result<(), Error> {
        self.durable(btrfs::commit::sync_all).await
    }

    /// The one place where the disk is waited for. The power-loss test takes it out and must fail then.
    async fn durable(&self, wait: fn(&Dir) -> btrfs::Result<()>) -> Result<(), Error> {
        if self.0.unsafe_no_commit {
            return Ok(());
        }
        let mut waiting = std::pin::pin!(self.run(move |root| {
            crate::deaths::pass(Point::CommitBegun)?;
            wait(root)?;
            crate::deaths::pass(Point::Committed)
        }));
        loop {
            match tokio::time::timeout(NUDGE, &mut waiting).await {
                Ok(done) => return done,
                Err(_) => self.nudge(),
            }
        }
    }

    /// Asks for a commit once more. The kernel's transaction thread misses a request that comes while it ends the commit
    /// before: it is awake, so waking it does nothing, and then it sleeps for thirty seconds (seen on 6.18, with everybody
    /// in `START_SYNC`). Another request wakes it.
    #[expect(clippy::disallowed_methods, reason = "the door's own permits may all wait for this")]
    fn nudge(&self) {
        let Ok(nudge) = Arc::clone(&self.0.nudges).try_acquire_owned() else { return };
        let root = Arc::clone(&self.0.root);
        drop(tokio::task::spawn_blocking(move || {
            let _nudge = nudge;
            if let Err(error) = btrfs::commit::start(&root) {
                tracing::debug!(%error, "a commit could not be asked for again; who waits for it is told");
            }
        }));
    }

    /// At which points between two steps the process dies, for the tests that do.
    pub fn deaths(&self) -> &Deaths {
        &self.0.deaths
    }

    /// The pool's root as a path, for people and for mounts.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The pool's id, for ever.
    pub fn id(&self) -> PoolId {
        self.0.identity.pool
    }

    /// The store that the pool remembers.
    pub fn store(&self) -> Option<StoreId> {
        self.0.identity.store
    }

    /// Whether volumes have limits.
    pub fn has_quota(&self) -> bool {
        self.0.quota
    }

    /// Whether the pool is mounted `noatime`. Otherwise a read counts as a write.
    pub fn is_noatime(&self) -> bool {
        self.0.noatime
    }

    /// Whether the kernel still writes to the pool: after an error that it cannot live with it does not. Blocks.
    ///
    /// # Errors
    /// The pool cannot be looked at.
    pub fn is_writable(&self) -> Result<bool, Errno> {
        let found = nix::sys::statvfs::statvfs(&self.0.path)?;
        Ok(!found.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY))
    }

    /// What the kernel offers.
    pub fn features(&self) -> &btrfs::features::Features {
        &self.0.features
    }

    /// Tells that the commit was taken out, for the test that must fail then.
    pub fn is_without_commit(&self) -> bool {
        self.0.unsafe_no_commit
    }

    /// Remembers the store that the pool belongs to from now on.
    ///
    /// # Errors
    /// The pool cannot be written.
    pub async fn adopt_store(&self, store: StoreId) -> Result<(), Error> {
        let identity = Identity { store: Some(store), ..self.0.identity };
        let path = self.0.path.clone();
        self.run(move |_| identity.write(&path)).await
    }

    /// Lists where `path` (from the pool's root), or anything below it, is mounted in this namespace.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn mounts_below(&self, path: &str) -> Result<Vec<String>, Error> {
        let mounts =
            crate::mounts::read().map_err(|source| Error::Io { doing: "reading the mounts", source })?;
        let inside = self.0.inside.join(path);
        Ok(crate::mounts::below(&mounts, &self.0.device, &inside)
            .into_iter()
            .map(|mount| mount.point.display().to_string())
            .collect())
    }

    /// Reads what of the pool is mounted in this namespace: one look for all volumes.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn mounted(&self) -> Result<Mounted, Error> {
        let mounts =
            crate::mounts::read().map_err(|source| Error::Io { doing: "reading the mounts", source })?;
        Ok(Mounted::of(&mounts, &self.0.device, &self.0.inside))
    }

    /// Tells if a mount shows `path` (from the pool's root), or something below it.
    pub fn shows(&self, mount: &crate::mounts::Mount, path: &str) -> bool {
        mount.device == self.0.device && mount.root.starts_with(self.0.inside.join(path))
    }

    /// Refuses new things while the pool is too full to be sure that they can be finished, or deleted again.
    ///
    /// # Errors
    /// [`Error::NoSpace`] says of which kind.
    pub async fn require_room(&self) -> Result<(), Error> {
        let space = self.run(|root| Ok(btrfs::space::space(root)?)).await?;
        room(&space)
    }
}

/// Deletes `name` in `directory`: a subvolume with all that is nested in it, or a plain directory that holds some.
///
/// # Errors
/// Something in it cannot be deleted. What is mounted is deleted like the rest: the caller has looked.
pub fn remove_tree(directory: &Dir, name: &OsStr) -> Result<(), Error> {
    let inside = match directory.open_dir(name) {
        Ok(inside) => inside,
        Err(error) if error.is(Errno::ENOENT) => return Ok(()),
        // A file or a symlink: we make none with slashes in their names, and follow none.
        Err(error) if error.is(Errno::ENOTDIR) || error.is(Errno::ELOOP) => {
            let path = directory.proc_path().join(name);
            return std::fs::remove_file(&path).map_err(|source| Error::PoolPath { path, source });
        }
        Err(error) => return Err(error.into()),
    };
    if btrfs::subvolume::is_subvolume(&inside)? {
        drop(inside);
        directory.delete_subvolume(name)?;
        return Ok(());
    }
    for entry in inside.entries()? {
        remove_tree(&inside, &entry)?;
    }
    drop(inside);
    Ok(directory.remove_dir(name)?)
}
