//! `BTRFS_IOC_ENCODED_WRITE`: bytes that are compressed already, for the benchmark that shows whether a restore should.

use std::os::fd::BorrowedFd;

use crate::{Errno, Error, Result, sys};

/// The most plain bytes of one extent.
pub const RAW_MAX: usize = 128 << 10;

/// Writes a zstd frame (window of 2^17 at most, its length inside) as the bytes at `offset` of a file. The frame has to be
/// shorter than the `raw_len` bytes that are in it; these end at a block of 4 KiB or at the end of the file.
///
/// The kernel does not look inside: a frame that is none is an `EIO` for whoever reads the file.
pub fn write(file: BorrowedFd<'_>, offset: u64, frame: &[u8], raw_len: usize) -> Result<()> {
    let fail = |errno| Error::Call {
        call: "BTRFS_IOC_ENCODED_WRITE",
        name: format!("{raw_len} bytes at {offset}"),
        errno,
    };
    let at = i64::try_from(offset).map_err(|_| fail(Errno::EFBIG))?;
    sys::encoded_write(file, at, frame, raw_len as u64).map_err(fail)
}
