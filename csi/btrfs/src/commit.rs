//! Making what was done durable.
//!
//! Creating a subvolume takes 40 microseconds because nothing is committed. Before anything is answered it has to be:
//! [`start`] then [`wait`], so that many creates share one commit.

use std::os::fd::AsFd as _;

use nix::errno::Errno;

use crate::{Dir, Error, Result, sys};

/// Starts a commit of what has been done so far and answers its transaction.
///
/// Data still in the page cache is not part of it: [`sync_all`] for that (a snapshot flushes what it snapshots).
pub fn start(dir: &Dir) -> Result<u64> {
    sys::start_sync(dir.as_fd()).map_err(dir.on_self("BTRFS_IOC_START_SYNC"))
}

/// Waits until the transaction is on the device. One that has long been is no error.
pub fn wait(dir: &Dir, transid: u64) -> Result<()> {
    sys::wait_sync(dir.as_fd(), transid).map_err(dir.on_self("BTRFS_IOC_WAIT_SYNC"))
}

/// Commits what has been done so far: [`start`] and [`wait`].
pub fn commit(dir: &Dir) -> Result<()> {
    let transid = start(dir)?;
    wait(dir, transid)
}

/// How many commits this mount has made (`commit_stats`, linux 6.1).
pub fn count(dir: &Dir) -> Result<u64> {
    let path = format!("/sys/fs/btrfs/{}/commit_stats", crate::space::filesystem(dir)?.uuid);
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let number = text.lines().find_map(|line| line.strip_prefix("commits ")?.trim().parse().ok());
    number.ok_or(Error::Call { call: "read", name: path, errno: Errno::EBADMSG })
}

/// Writes every file's dirty pages, then commits.
pub fn sync_all(dir: &Dir) -> Result<()> {
    nix::unistd::syncfs(dir.as_fd()).map_err(dir.on_self("syncfs"))
}
