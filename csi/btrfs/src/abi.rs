//! The kernel's structures (`linux/btrfs.h`, `linux/loop.h`), in its layout.
//!
//! A structure's size is part of its ioctl's number, so each is asserted here: one that is wrong would be another call.
//! Fields the kernel only reads as zero are named as in C and not documented again.

/// `struct btrfs_ioctl_vol_args_v2`
#[repr(C)]
pub(crate) struct VolArgsV2 {
    pub(crate) fd: i64,
    pub(crate) transid: u64,
    pub(crate) flags: u64,
    pub(crate) unused: [u64; 4],
    /// A union of a name (4040 bytes) with a device id and a subvolume id; we use the last.
    pub(crate) subvolid: u64,
    pub(crate) rest_of_name: [u8; 4032],
}
const _: () = assert!(size_of::<VolArgsV2>() == 4096);

/// `BTRFS_SUBVOL_SPEC_BY_ID`
pub(crate) const SUBVOL_SPEC_BY_ID: u64 = 1 << 4;

/// `struct btrfs_ioctl_subvol_wait` (linux 6.13)
#[repr(C)]
pub(crate) struct SubvolWait {
    pub(crate) subvolid: u64,
    pub(crate) mode: u32,
    pub(crate) count: u32,
}
const _: () = assert!(size_of::<SubvolWait>() == 16);

/// `BTRFS_SUBVOL_SYNC_COUNT`
pub(crate) const SUBVOL_SYNC_COUNT: u32 = 2;

/// `struct btrfs_ioctl_encoded_io_args` (linux 5.18)
#[repr(C)]
pub(crate) struct EncodedIoArgs {
    pub(crate) iov: *const nix::libc::iovec,
    pub(crate) iovcnt: u64,
    pub(crate) offset: i64,
    pub(crate) flags: u64,
    pub(crate) len: u64,
    pub(crate) unencoded_len: u64,
    pub(crate) unencoded_offset: u64,
    pub(crate) compression: u32,
    pub(crate) encryption: u32,
    pub(crate) reserved: [u64; 8],
}
const _: () = assert!(size_of::<EncodedIoArgs>() == 128);

/// `BTRFS_ENCODED_IO_COMPRESSION_ZSTD`
pub(crate) const ENCODED_IO_COMPRESSION_ZSTD: u32 = 2;

/// `struct btrfs_ioctl_timespec`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Timespec {
    pub(crate) sec: u64,
    pub(crate) nsec: u32,
}
const _: () = assert!(size_of::<Timespec>() == 16);

/// `struct btrfs_ioctl_get_subvol_info_args`
#[repr(C)]
pub(crate) struct SubvolInfo {
    pub(crate) treeid: u64,
    pub(crate) name: [u8; 256],
    pub(crate) parent_id: u64,
    pub(crate) dirid: u64,
    pub(crate) generation: u64,
    pub(crate) flags: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) parent_uuid: [u8; 16],
    pub(crate) received_uuid: [u8; 16],
    pub(crate) ctransid: u64,
    pub(crate) otransid: u64,
    pub(crate) stransid: u64,
    pub(crate) rtransid: u64,
    pub(crate) times: [Timespec; 4],
    pub(crate) reserved: [u64; 8],
}
const _: () = assert!(size_of::<SubvolInfo>() == 504);

/// `struct btrfs_ioctl_search_key`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct SearchKey {
    pub(crate) tree_id: u64,
    pub(crate) min_objectid: u64,
    pub(crate) max_objectid: u64,
    pub(crate) min_offset: u64,
    pub(crate) max_offset: u64,
    pub(crate) min_transid: u64,
    pub(crate) max_transid: u64,
    pub(crate) min_type: u32,
    pub(crate) max_type: u32,
    pub(crate) nr_items: u32,
    pub(crate) unused: [u32; 9],
}
const _: () = assert!(size_of::<SearchKey>() == 104);

/// `struct btrfs_ioctl_search_args_v2`, without its flexible array: that is what its number is made from.
#[repr(C)]
pub(crate) struct SearchArgsV2 {
    pub(crate) key: SearchKey,
    pub(crate) buf_size: u64,
}
const _: () = assert!(size_of::<SearchArgsV2>() == 112);

/// Bytes of `struct btrfs_ioctl_search_header`: transid, objectid, offset (u64), type, len (u32).
pub(crate) const SEARCH_HEADER_BYTES: usize = 32;

/// `struct btrfs_ioctl_ino_lookup_args`
#[repr(C)]
pub(crate) struct InoLookupArgs {
    pub(crate) treeid: u64,
    pub(crate) objectid: u64,
    pub(crate) name: [u8; 4080],
}
const _: () = assert!(size_of::<InoLookupArgs>() == 4096);

/// `struct btrfs_ioctl_quota_ctl_args`
#[repr(C)]
pub(crate) struct QuotaCtlArgs {
    pub(crate) cmd: u64,
    pub(crate) status: u64,
}
const _: () = assert!(size_of::<QuotaCtlArgs>() == 16);

/// `BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA` (linux 6.7)
pub(crate) const QUOTA_CTL_ENABLE_SIMPLE_QUOTA: u64 = 4;

/// `struct btrfs_ioctl_qgroup_assign_args`
#[repr(C)]
pub(crate) struct QgroupAssignArgs {
    pub(crate) assign: u64,
    pub(crate) src: u64,
    pub(crate) dst: u64,
}
const _: () = assert!(size_of::<QgroupAssignArgs>() == 24);

/// `struct btrfs_ioctl_qgroup_create_args`
#[repr(C)]
pub(crate) struct QgroupCreateArgs {
    pub(crate) create: u64,
    pub(crate) qgroupid: u64,
}
const _: () = assert!(size_of::<QgroupCreateArgs>() == 16);

/// `struct btrfs_ioctl_qgroup_limit_args`
#[repr(C)]
pub(crate) struct QgroupLimitArgs {
    pub(crate) qgroupid: u64,
    pub(crate) flags: u64,
    pub(crate) max_rfer: u64,
    pub(crate) max_excl: u64,
    pub(crate) rsv_rfer: u64,
    pub(crate) rsv_excl: u64,
}
const _: () = assert!(size_of::<QgroupLimitArgs>() == 48);

/// `BTRFS_QGROUP_LIMIT_MAX_RFER`
pub(crate) const QGROUP_LIMIT_MAX_RFER: u64 = 1;
/// `CLEAR_VALUE` of the kernel's qgroup.c: no limit.
pub(crate) const QGROUP_LIMIT_NONE: u64 = u64::MAX;

/// `struct btrfs_ioctl_space_info`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct SpaceInfo {
    pub(crate) flags: u64,
    pub(crate) total_bytes: u64,
    pub(crate) used_bytes: u64,
}
const _: () = assert!(size_of::<SpaceInfo>() == 24);

/// `struct btrfs_ioctl_space_args`, without its flexible array.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct SpaceArgs {
    pub(crate) space_slots: u64,
    pub(crate) total_spaces: u64,
}
const _: () = assert!(size_of::<SpaceArgs>() == 16);

/// How many kinds of space we ask for at once. There are four, and six more with zoned and remapped devices.
pub(crate) const SPACE_SLOTS: usize = 16;

/// [`SpaceArgs`] with room for the answer.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct SpaceBuffer {
    pub(crate) args: SpaceArgs,
    pub(crate) spaces: [SpaceInfo; SPACE_SLOTS],
}

/// `struct btrfs_ioctl_dev_info_args`
#[repr(C)]
pub(crate) struct DevInfoArgs {
    pub(crate) devid: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) bytes_used: u64,
    pub(crate) total_bytes: u64,
    pub(crate) fsid: [u8; 16],
    pub(crate) unused: [u64; 377],
    pub(crate) path: [u8; 1024],
}
const _: () = assert!(size_of::<DevInfoArgs>() == 4096);

/// `struct btrfs_ioctl_fs_info_args`
#[repr(C)]
pub(crate) struct FsInfoArgs {
    pub(crate) max_id: u64,
    pub(crate) num_devices: u64,
    pub(crate) fsid: [u8; 16],
    pub(crate) nodesize: u32,
    pub(crate) sectorsize: u32,
    pub(crate) clone_alignment: u32,
    pub(crate) csum_type: u16,
    pub(crate) csum_size: u16,
    pub(crate) flags: u64,
    pub(crate) generation: u64,
    pub(crate) metadata_uuid: [u8; 16],
    pub(crate) reserved: [u8; 944],
}
const _: () = assert!(size_of::<FsInfoArgs>() == 1024);

/// `BTRFS_FS_INFO_FLAG_GENERATION`
pub(crate) const FS_INFO_FLAG_GENERATION: u64 = 1 << 1;

/// `struct btrfs_ioctl_get_dev_stats`
#[repr(C)]
pub(crate) struct GetDevStats {
    pub(crate) devid: u64,
    pub(crate) nr_items: u64,
    pub(crate) flags: u64,
    pub(crate) values: [u64; 5],
    pub(crate) unused: [u64; 121],
}
const _: () = assert!(size_of::<GetDevStats>() == 1032);

/// `struct btrfs_ioctl_send_args`
#[repr(C)]
pub(crate) struct SendArgs {
    pub(crate) send_fd: i64,
    pub(crate) clone_sources_count: u64,
    pub(crate) clone_sources: usize,
    pub(crate) parent_root: u64,
    pub(crate) flags: u64,
    pub(crate) version: u32,
    pub(crate) reserved: [u8; 28],
}
const _: () = assert!(size_of::<SendArgs>() == 72);

/// `struct loop_info64`
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LoopInfo64 {
    pub(crate) lo_device: u64,
    pub(crate) lo_inode: u64,
    pub(crate) lo_rdevice: u64,
    pub(crate) lo_offset: u64,
    pub(crate) lo_sizelimit: u64,
    pub(crate) lo_number: u32,
    pub(crate) lo_encrypt_type: u32,
    pub(crate) lo_encrypt_key_size: u32,
    pub(crate) lo_flags: u32,
    pub(crate) lo_file_name: [u8; 64],
    pub(crate) lo_crypt_name: [u8; 64],
    pub(crate) lo_encrypt_key: [u8; 32],
    pub(crate) lo_init: [u64; 2],
}
const _: () = assert!(size_of::<LoopInfo64>() == 232);

impl Default for LoopInfo64 {
    fn default() -> Self {
        Self {
            lo_device: 0,
            lo_inode: 0,
            lo_rdevice: 0,
            lo_offset: 0,
            lo_sizelimit: 0,
            lo_number: 0,
            lo_encrypt_type: 0,
            lo_encrypt_key_size: 0,
            lo_flags: 0,
            lo_file_name: [0; 64],
            lo_crypt_name: [0; 64],
            lo_encrypt_key: [0; 32],
            lo_init: [0; 2],
        }
    }
}

/// `struct loop_config`
#[repr(C)]
pub(crate) struct LoopConfig {
    pub(crate) fd: u32,
    pub(crate) block_size: u32,
    pub(crate) info: LoopInfo64,
    pub(crate) reserved: [u64; 8],
}
const _: () = assert!(size_of::<LoopConfig>() == 304);

/// `LO_FLAGS_AUTOCLEAR`: the device lets its file go when the last user closes it.
pub(crate) const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// `LO_FLAGS_DIRECT_IO`: no second page cache below the pool's own.
pub(crate) const LO_FLAGS_DIRECT_IO: u32 = 16;
