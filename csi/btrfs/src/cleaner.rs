//! The kernel's cleaner: it gives back the space of deleted subvolumes, some time after their names are gone.

use std::os::fd::AsFd as _;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::abi::{SUBVOL_SYNC_COUNT, SubvolWait};
use crate::search::{Key, Search, kind, tree};
use crate::{Dir, Error, Result, sys};

/// How often a deleted subvolume's root is looked for. The kernel's own wait looks once a second.
const POLL: Duration = Duration::from_millis(20);

/// Waits until the cleaner has finished with these deleted subvolumes and its work is committed.
///
/// A commit is made first, because that is what wakes the cleaner. An id that was never used counts as clean; one that
/// is not deleted is `EEXIST`.
pub fn wait(dir: &Dir, ids: &[u64], timeout: Duration) -> Result<()> {
    let started = Instant::now();
    let mut left: Vec<u64> = ids.to_vec();
    loop {
        // BTRFS_IOC_SYNC, unlike START_SYNC and syncfs, also wakes the cleaner.
        libbtrfsutil::sync(dir.proc_path()).map_err(|error| Error::Call {
            call: "BTRFS_IOC_SYNC",
            name: dir.name().to_owned(),
            errno: Errno::from_raw(error.errno()),
        })?;
        if left.is_empty() {
            return Ok(());
        }
        let mut still = Vec::new();
        for id in left {
            if waits(dir, id)? {
                still.push(id);
            }
        }
        left = still;
        // Once more around when all are gone: the commit that makes it so on the device.
        if !left.is_empty() {
            if started.elapsed() >= timeout {
                return Err(Error::TimedOut {
                    what: "cleaning deleted subvolumes",
                    name: dir.name().to_owned(),
                    waited: timeout,
                });
            }
            thread::sleep(POLL);
        }
    }
}

/// How many deleted subvolumes wait for the cleaner. The one it is at is not counted where the kernel is asked
/// (`BTRFS_IOC_SUBVOL_SYNC_WAIT`, linux 6.13); older kernels' trees are read instead, as of the last commit.
pub fn queued(dir: &Dir) -> Result<u64> {
    let mut args = SubvolWait { subvolid: 0, mode: SUBVOL_SYNC_COUNT, count: 0 };
    match sys::subvol_sync_wait(dir.as_fd(), &mut args) {
        Ok(()) => Ok(u64::from(args.count)),
        Err(Errno::ENOTTY) => {
            Ok(crate::subvolume::roots(dir)?.iter().filter(|root| root.deleted).count() as u64)
        }
        Err(errno) => Err(dir.on_self("BTRFS_IOC_SUBVOL_SYNC_WAIT")(errno)),
    }
}

/// Whether a deleted subvolume's root is still there. `EEXIST` if it is not deleted.
fn waits(dir: &Dir, id: u64) -> Result<bool> {
    let first = Key { objectid: id, kind: kind::ROOT_ITEM, offset: 0 };
    let last = Key { objectid: id, kind: kind::ROOT_ITEM, offset: u64::MAX };
    let mut search = Search::new(dir, tree::ROOTS, first..=last);
    let Some(item) = search.next_item()? else { return Ok(false) };
    let root = item.root()?;
    if root.references > 0 {
        return Err(Error::call("waiting for the cleaner", format!("{} (subvolume {id})", dir.name()))(
            Errno::EEXIST,
        ));
    }
    Ok(true)
}
