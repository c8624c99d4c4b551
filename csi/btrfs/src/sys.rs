//! The one file with unsafe code: each ioctl as a safe function over an open descriptor.
//!
//! Every structure passed is one of `abi.rs`, whose sizes are asserted there; the macros derive the number from the
//! size, so a number and its structure cannot disagree.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::libc;

use crate::abi::{
    DevInfoArgs, ENCODED_IO_COMPRESSION_ZSTD, EncodedIoArgs, FsInfoArgs, GetDevStats, InoLookupArgs,
    LoopConfig, LoopInfo64, QgroupAssignArgs, QgroupCreateArgs, QgroupLimitArgs, QuotaCtlArgs, SearchArgsV2,
    SearchKey, SendArgs, SpaceArgs, SpaceBuffer, SubvolInfo, SubvolWait, Timespec, VolArgsV2,
};

type Result<T> = std::result::Result<T, Errno>;

const MAGIC: u8 = 0x94;

mod number {
    use super::{
        DevInfoArgs, EncodedIoArgs, FsInfoArgs, GetDevStats, InoLookupArgs, LoopConfig, LoopInfo64, MAGIC,
        QgroupAssignArgs, QgroupCreateArgs, QgroupLimitArgs, QuotaCtlArgs, SearchArgsV2, SendArgs, SpaceArgs,
        SubvolInfo, SubvolWait, VolArgsV2,
    };

    // #define BTRFS_IOC_TREE_SEARCH_V2 _IOWR(BTRFS_IOCTL_MAGIC, 17, struct btrfs_ioctl_search_args_v2)
    nix::ioctl_readwrite!(tree_search_v2, MAGIC, 17, SearchArgsV2);
    // #define BTRFS_IOC_INO_LOOKUP _IOWR(BTRFS_IOCTL_MAGIC, 18, struct btrfs_ioctl_ino_lookup_args)
    nix::ioctl_readwrite!(ino_lookup, MAGIC, 18, InoLookupArgs);
    // #define BTRFS_IOC_SPACE_INFO _IOWR(BTRFS_IOCTL_MAGIC, 20, struct btrfs_ioctl_space_args)
    nix::ioctl_readwrite!(space_info, MAGIC, 20, SpaceArgs);
    // #define BTRFS_IOC_WAIT_SYNC _IOW(BTRFS_IOCTL_MAGIC, 22, __u64)
    nix::ioctl_write_ptr!(wait_sync, MAGIC, 22, u64);
    // #define BTRFS_IOC_START_SYNC _IOR(BTRFS_IOCTL_MAGIC, 24, __u64)
    nix::ioctl_read!(start_sync, MAGIC, 24, u64);
    // #define BTRFS_IOC_DEV_INFO _IOWR(BTRFS_IOCTL_MAGIC, 30, struct btrfs_ioctl_dev_info_args)
    nix::ioctl_readwrite!(dev_info, MAGIC, 30, DevInfoArgs);
    // #define BTRFS_IOC_FS_INFO _IOR(BTRFS_IOCTL_MAGIC, 31, struct btrfs_ioctl_fs_info_args)
    nix::ioctl_read!(fs_info, MAGIC, 31, FsInfoArgs);
    // #define BTRFS_IOC_SEND _IOW(BTRFS_IOCTL_MAGIC, 38, struct btrfs_ioctl_send_args)
    nix::ioctl_write_ptr!(send, MAGIC, 38, SendArgs);
    // #define BTRFS_IOC_QUOTA_CTL _IOWR(BTRFS_IOCTL_MAGIC, 40, struct btrfs_ioctl_quota_ctl_args)
    nix::ioctl_readwrite!(quota_ctl, MAGIC, 40, QuotaCtlArgs);
    // #define BTRFS_IOC_QGROUP_ASSIGN _IOW(BTRFS_IOCTL_MAGIC, 41, struct btrfs_ioctl_qgroup_assign_args)
    nix::ioctl_write_ptr!(qgroup_assign, MAGIC, 41, QgroupAssignArgs);
    // #define BTRFS_IOC_QGROUP_CREATE _IOW(BTRFS_IOCTL_MAGIC, 42, struct btrfs_ioctl_qgroup_create_args)
    nix::ioctl_write_ptr!(qgroup_create, MAGIC, 42, QgroupCreateArgs);
    // #define BTRFS_IOC_QGROUP_LIMIT _IOR(BTRFS_IOCTL_MAGIC, 43, struct btrfs_ioctl_qgroup_limit_args)
    nix::ioctl_read!(qgroup_limit, MAGIC, 43, QgroupLimitArgs);
    // #define BTRFS_IOC_GET_DEV_STATS _IOWR(BTRFS_IOCTL_MAGIC, 52, struct btrfs_ioctl_get_dev_stats)
    nix::ioctl_readwrite!(get_dev_stats, MAGIC, 52, GetDevStats);
    // #define BTRFS_IOC_GET_SUBVOL_INFO _IOR(BTRFS_IOCTL_MAGIC, 60, struct btrfs_ioctl_get_subvol_info_args)
    nix::ioctl_read!(get_subvol_info, MAGIC, 60, SubvolInfo);
    // #define BTRFS_IOC_SNAP_DESTROY_V2 _IOW(BTRFS_IOCTL_MAGIC, 63, struct btrfs_ioctl_vol_args_v2)
    nix::ioctl_write_ptr!(snap_destroy_v2, MAGIC, 63, VolArgsV2);
    // #define BTRFS_IOC_ENCODED_WRITE _IOW(BTRFS_IOCTL_MAGIC, 64, struct btrfs_ioctl_encoded_io_args)
    nix::ioctl_write_ptr!(encoded_write, MAGIC, 64, EncodedIoArgs);
    // #define BTRFS_IOC_SUBVOL_SYNC_WAIT _IOW(BTRFS_IOCTL_MAGIC, 65, struct btrfs_ioctl_subvol_wait)
    nix::ioctl_write_ptr!(subvol_sync_wait, MAGIC, 65, SubvolWait);

    // #define LOOP_CONFIGURE 0x4C0A
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4C0A, LoopConfig);
    // #define LOOP_GET_STATUS64 0x4C05
    nix::ioctl_read_bad!(loop_get_status64, 0x4C05, LoopInfo64);
    // #define LOOP_CLR_FD 0x4C01
    nix::ioctl_none_bad!(loop_clr_fd, 0x4C01);
    // #define LOOP_CTL_GET_FREE 0x4C82
    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4C82);
}

/// Copies the items of `key`'s range into `buffer`, whose first [`SearchArgsV2`] bytes are the call's own.
/// On return `key.nr_items` says how many.
pub(crate) fn tree_search(fd: BorrowedFd<'_>, key: &mut SearchKey, buffer: &mut [u64]) -> Result<()> {
    let room = size_of_val(buffer).checked_sub(size_of::<SearchArgsV2>()).ok_or(Errno::EOVERFLOW)?;
    let args = buffer.as_mut_ptr().cast::<SearchArgsV2>();
    // SAFETY: `buffer` is at least as large as the structure (checked above) and aligned for it: both are of u64.
    unsafe { args.write(SearchArgsV2 { key: *key, buf_size: room as u64 }) };
    // SAFETY: the kernel writes the structure and at most `buf_size` bytes after it, all of them inside `buffer`.
    unsafe { number::tree_search_v2(fd.as_raw_fd(), args) }?;
    // SAFETY: written above, and overwritten by the kernel with a structure of the same layout; any bits are valid.
    *key = unsafe { args.read() }.key;
    Ok(())
}

/// The bytes of a search's answer.
pub(crate) fn found(buffer: &[u64]) -> &[u8] {
    let bytes = size_of_val(buffer);
    // SAFETY: any initialised u64s are initialised bytes, with the same length and lifetime.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), bytes) };
    bytes.get(size_of::<SearchArgsV2>()..).unwrap_or_default()
}

/// Path of an inode from the root of its tree: bytes up to the first NUL.
pub(crate) fn ino_lookup(fd: BorrowedFd<'_>, treeid: u64, objectid: u64) -> Result<(u64, Vec<u8>)> {
    let mut args = InoLookupArgs { treeid, objectid, name: [0; 4080] };
    // SAFETY: a whole structure, which the kernel reads and writes.
    unsafe { number::ino_lookup(fd.as_raw_fd(), &raw mut args) }?;
    let end = args.name.iter().position(|byte| *byte == 0).unwrap_or(args.name.len());
    Ok((args.treeid, args.name.get(..end).unwrap_or_default().to_vec()))
}

/// Fills the answer with one entry for each kind of space.
pub(crate) fn space_info(fd: BorrowedFd<'_>, buffer: &mut SpaceBuffer) -> Result<()> {
    buffer.args.space_slots = buffer.spaces.len() as u64;
    let args = (&raw mut *buffer).cast::<SpaceArgs>();
    // SAFETY: the pointer is derived from the whole buffer; the kernel writes at most `space_slots` entries after the
    // structure, which is how many follow it.
    unsafe { number::space_info(fd.as_raw_fd(), args) }.map(drop)
}

/// When an inode of the subvolume that the directory is in last changed, also in a transaction that is not committed.
pub(crate) fn subvol_ctransid(fd: BorrowedFd<'_>) -> Result<u64> {
    let mut info = SubvolInfo {
        treeid: 0,
        name: [0; 256],
        parent_id: 0,
        dirid: 0,
        generation: 0,
        flags: 0,
        uuid: [0; 16],
        parent_uuid: [0; 16],
        received_uuid: [0; 16],
        ctransid: 0,
        otransid: 0,
        stransid: 0,
        rtransid: 0,
        times: [Timespec::default(); 4],
        reserved: [0; 8],
    };
    // SAFETY: a whole structure, which the kernel writes.
    unsafe { number::get_subvol_info(fd.as_raw_fd(), &raw mut info) }?;
    Ok(info.ctransid)
}

pub(crate) fn start_sync(fd: BorrowedFd<'_>) -> Result<u64> {
    let mut transid = 0;
    // SAFETY: the kernel writes one u64.
    unsafe { number::start_sync(fd.as_raw_fd(), &raw mut transid) }?;
    Ok(transid)
}

pub(crate) fn wait_sync(fd: BorrowedFd<'_>, transid: u64) -> Result<()> {
    // SAFETY: the kernel reads one u64.
    unsafe { number::wait_sync(fd.as_raw_fd(), &raw const transid) }.map(drop)
}

pub(crate) fn dev_info(fd: BorrowedFd<'_>, devid: u64) -> Result<DevInfoArgs> {
    let mut args = DevInfoArgs {
        devid,
        uuid: [0; 16],
        bytes_used: 0,
        total_bytes: 0,
        fsid: [0; 16],
        unused: [0; 377],
        path: [0; 1024],
    };
    // SAFETY: a whole structure, which the kernel reads and writes.
    unsafe { number::dev_info(fd.as_raw_fd(), &raw mut args) }?;
    Ok(args)
}

pub(crate) fn fs_info(fd: BorrowedFd<'_>, flags: u64) -> Result<FsInfoArgs> {
    let mut args = FsInfoArgs {
        max_id: 0,
        num_devices: 0,
        fsid: [0; 16],
        nodesize: 0,
        sectorsize: 0,
        clone_alignment: 0,
        csum_type: 0,
        csum_size: 0,
        flags,
        generation: 0,
        metadata_uuid: [0; 16],
        reserved: [0; 944],
    };
    // SAFETY: a whole structure, which the kernel reads and writes.
    unsafe { number::fs_info(fd.as_raw_fd(), &raw mut args) }?;
    Ok(args)
}

pub(crate) fn get_dev_stats(fd: BorrowedFd<'_>, devid: u64) -> Result<GetDevStats> {
    let mut args = GetDevStats { devid, nr_items: 5, flags: 0, values: [0; 5], unused: [0; 121] };
    // SAFETY: a whole structure, which the kernel reads and writes.
    unsafe { number::get_dev_stats(fd.as_raw_fd(), &raw mut args) }?;
    Ok(args)
}

pub(crate) fn quota_ctl(fd: BorrowedFd<'_>, cmd: u64) -> Result<()> {
    let mut args = QuotaCtlArgs { cmd, status: 0 };
    // SAFETY: a whole structure, which the kernel reads and writes.
    unsafe { number::quota_ctl(fd.as_raw_fd(), &raw mut args) }.map(drop)
}

pub(crate) fn qgroup_assign(fd: BorrowedFd<'_>, args: &QgroupAssignArgs) -> Result<()> {
    // SAFETY: a whole structure, which the kernel reads.
    unsafe { number::qgroup_assign(fd.as_raw_fd(), args) }.map(drop)
}

pub(crate) fn qgroup_create(fd: BorrowedFd<'_>, args: &QgroupCreateArgs) -> Result<()> {
    // SAFETY: a whole structure, which the kernel reads.
    unsafe { number::qgroup_create(fd.as_raw_fd(), args) }.map(drop)
}

pub(crate) fn qgroup_limit(fd: BorrowedFd<'_>, mut args: QgroupLimitArgs) -> Result<()> {
    // SAFETY: a whole structure, which the kernel reads (the call is numbered as one that writes).
    unsafe { number::qgroup_limit(fd.as_raw_fd(), &raw mut args) }.map(drop)
}

pub(crate) fn snap_destroy_v2(fd: BorrowedFd<'_>, args: &VolArgsV2) -> Result<()> {
    // SAFETY: a whole structure, which the kernel reads.
    unsafe { number::snap_destroy_v2(fd.as_raw_fd(), args) }.map(drop)
}

pub(crate) fn subvol_sync_wait(fd: BorrowedFd<'_>, args: &mut SubvolWait) -> Result<()> {
    // SAFETY: a whole structure that we own mutably: the call is numbered as one that reads, and also writes.
    unsafe { number::subvol_sync_wait(fd.as_raw_fd(), &raw mut *args) }.map(drop)
}

/// Sends a read-only subvolume to `out`, with at most a parent to send the difference to.
pub(crate) fn send(
    fd: BorrowedFd<'_>,
    out: BorrowedFd<'_>,
    parent_root: u64,
    flags: u64,
    version: u32,
) -> Result<()> {
    let args = SendArgs {
        send_fd: i64::from(out.as_raw_fd()),
        clone_sources_count: 0,
        clone_sources: 0,
        parent_root,
        flags,
        version,
        reserved: [0; 28],
    };
    // SAFETY: a whole structure, which the kernel reads; with a count of zero it does not follow `clone_sources`.
    unsafe { number::send(fd.as_raw_fd(), &raw const args) }.map(drop)
}

/// Number of a loop device that nobody uses yet; another process may take it before we do.
pub(crate) fn loop_ctl_get_free(control: BorrowedFd<'_>) -> Result<u32> {
    // SAFETY: takes no argument.
    let number = unsafe { number::loop_ctl_get_free(control.as_raw_fd()) }?;
    u32::try_from(number).map_err(|_| Errno::EINVAL)
}

pub(crate) fn loop_configure(device: BorrowedFd<'_>, config: &LoopConfig) -> Result<()> {
    // SAFETY: a whole structure, which the kernel reads.
    unsafe { number::loop_configure(device.as_raw_fd(), config) }.map(drop)
}

/// Writes one zstd frame as an extent that holds `raw_len` bytes.
pub(crate) fn encoded_write(file: BorrowedFd<'_>, offset: i64, frame: &[u8], raw_len: u64) -> Result<()> {
    let iov = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
    let args = EncodedIoArgs {
        iov: &raw const iov,
        iovcnt: 1,
        offset,
        flags: 0,
        len: raw_len,
        unencoded_len: raw_len,
        unencoded_offset: 0,
        compression: ENCODED_IO_COMPRESSION_ZSTD,
        encryption: 0,
        reserved: [0; 8],
    };
    // SAFETY: a whole structure, which the kernel reads; so it does the vector and the frame behind it, which outlive
    // the call.
    unsafe { number::encoded_write(file.as_raw_fd(), &raw const args) }.map(drop)
}

pub(crate) fn loop_get_status(device: BorrowedFd<'_>) -> Result<LoopInfo64> {
    let mut info = LoopInfo64::default();
    // SAFETY: a whole structure, which the kernel writes.
    unsafe { number::loop_get_status64(device.as_raw_fd(), &raw mut info) }?;
    Ok(info)
}

pub(crate) fn loop_clear(device: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: takes no argument.
    unsafe { number::loop_clr_fd(device.as_raw_fd()) }.map(drop)
}

// #define FAN_PRE_ACCESS 0x00100000 (linux 6.14; not in libc yet)
const FAN_PRE_ACCESS: u64 = 0x0010_0000;

/// Whether a mark for events before content is read is accepted on this file.
pub(crate) fn pre_content_mark(file: BorrowedFd<'_>) -> Result<()> {
    use std::os::fd::{FromRawFd as _, OwnedFd};
    // FAN_EVENT_ON_CHILD and a directory are not allowed with it, so the caller passes a file.
    let flags = libc::FAN_CLASS_PRE_CONTENT | libc::FAN_CLOEXEC;
    let event_flags = u32::try_from(libc::O_RDONLY | libc::O_CLOEXEC).map_err(|_| Errno::EINVAL)?;
    // SAFETY: takes no pointers.
    let group = Errno::result(unsafe { libc::fanotify_init(flags, event_flags) })?;
    // SAFETY: a descriptor the call above just made and nobody else has.
    let group = unsafe { OwnedFd::from_raw_fd(group) };
    // SAFETY: with a null path the mark is on the descriptor itself.
    let marked = unsafe {
        libc::fanotify_mark(
            group.as_raw_fd(),
            libc::FAN_MARK_ADD,
            FAN_PRE_ACCESS,
            file.as_raw_fd(),
            std::ptr::null(),
        )
    };
    // Closing the group takes its mark away.
    Errno::result(marked).map(drop)
}
