//! `BTRFS_IOC_SEND`: a second opinion on what changed, for tests and benchmarks. Production code never needs it.

use std::os::fd::{AsFd as _, BorrowedFd};

use crate::{Dir, Result, sys};

/// What the stream is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Leave the bytes out and only name the changed ranges.
    pub without_data: bool,
    /// Id of a read-only subvolume to send the difference to; none: everything.
    pub parent_id: Option<u64>,
}

/// Writes a send stream (version 2) of a read-only subvolume.
///
/// Blocks for as long as whoever reads `out` is slow, so give it a thread of its own and a pipe; closing the read end
/// stops it with `EPIPE`.
pub fn send(snapshot: &Dir, options: Options, out: BorrowedFd<'_>) -> Result<()> {
    // BTRFS_SEND_FLAG_VERSION, BTRFS_SEND_FLAG_NO_FILE_DATA
    let flags = 8 | u64::from(options.without_data);
    sys::send(snapshot.as_fd(), out, options.parent_id.unwrap_or(0), flags, 2)
        .map_err(snapshot.on_self("BTRFS_IOC_SEND"))
}
