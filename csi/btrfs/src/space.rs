//! How full a filesystem is, and how its devices are.
//!
//! `statfs` hides that metadata can be full while data is not; this does not.

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::abi::{FS_INFO_FLAG_GENERATION, SpaceBuffer};
use crate::{Dir, Error, Result, Uuid, sys};

/// One kind of space, in bytes as files see them: copies are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Class {
    /// Bytes set aside for this kind so far.
    pub total_bytes: u64,
    /// Bytes of them in use.
    pub used_bytes: u64,
    /// Bytes of device that one byte takes: 2 where metadata is kept twice.
    pub copies: u64,
}

impl Class {
    /// Bytes set aside and not in use.
    pub fn free_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.used_bytes)
    }
}

/// How full a filesystem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Bytes of all devices.
    pub device_bytes: u64,
    /// Bytes of the devices not set aside for any kind yet.
    pub unallocated_bytes: u64,
    /// Contents of files.
    pub data: Class,
    /// Trees: names, metadata, small files.
    pub metadata: Class,
    /// The tree of chunks.
    pub system: Class,
    /// Part of metadata that only the kernel may use, so that deleting always works.
    pub global_reserve: Class,
}

impl Space {
    /// Bytes that data can still grow by, if nothing else grows.
    pub fn available_bytes(&self) -> u64 {
        self.data.free_bytes() + self.unallocated_bytes / self.data.copies.max(1)
    }

    /// Bytes that can be promised to data if metadata is to have `metadata_bytes` of room beside the kernel's own reserve.
    /// What metadata does not have yet of them is taken from the space that is set aside for nothing.
    pub fn promisable_bytes(&self, metadata_bytes: u64) -> u64 {
        let has = self.metadata.free_bytes().saturating_sub(self.global_reserve.total_bytes);
        let lacks = metadata_bytes.saturating_sub(has).saturating_mul(self.metadata.copies.max(1));
        self.data.free_bytes() + self.unallocated_bytes.saturating_sub(lacks) / self.data.copies.max(1)
    }

    /// Bytes that metadata can still grow by, if nothing else grows. At zero nothing can be made, however much room
    /// there is for data.
    pub fn available_metadata_bytes(&self) -> u64 {
        let reserve = self.global_reserve.total_bytes;
        (self.metadata.free_bytes() + self.unallocated_bytes / self.metadata.copies.max(1))
            .saturating_sub(reserve)
    }
}

/// A filesystem's identity and layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filesystem {
    /// Its uuid, as in `/sys/fs/btrfs`.
    pub uuid: Uuid,
    /// Devices it has.
    pub devices: u64,
    /// Bytes of a block of a tree.
    pub node_bytes: u32,
    /// Bytes of a block of data: what extents are aligned to.
    pub sector_bytes: u32,
    /// The transaction that is running, or was last.
    pub generation: u64,
}

/// A device of a filesystem, with the errors counted on it since it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its number in the filesystem.
    pub id: u64,
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub total_bytes: u64,
    /// Bytes of it set aside for some kind of space.
    pub allocated_bytes: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Flushes that failed.
    pub flush_errors: u64,
    /// Blocks whose checksum or content was wrong.
    pub corruption_errors: u64,
    /// Blocks that were older than they should be.
    pub generation_errors: u64,
}

impl Device {
    /// All errors together; zero is healthy.
    pub fn errors(&self) -> u64 {
        self.write_errors
            + self.read_errors
            + self.flush_errors
            + self.corruption_errors
            + self.generation_errors
    }
}

/// How full the filesystem is now. What waits for the cleaner is still in use.
pub fn space(dir: &Dir) -> Result<Space> {
    let mut buffer = SpaceBuffer::default();
    sys::space_info(dir.as_fd(), &mut buffer).map_err(dir.on_self("BTRFS_IOC_SPACE_INFO"))?;
    let count = usize::try_from(buffer.args.total_spaces).unwrap_or(usize::MAX).min(buffer.spaces.len());
    let mut space = Space::default();
    for info in buffer.spaces.iter().take(count) {
        let class = match info.flags & KIND_MASK {
            DATA => &mut space.data,
            METADATA => &mut space.metadata,
            SYSTEM => &mut space.system,
            // Data and metadata in one, on very small filesystems: it is both.
            MIXED => {
                let class = class(info);
                space.metadata = class;
                space.data = class;
                continue;
            }
            _ if info.flags & GLOBAL_RESERVE != 0 => &mut space.global_reserve,
            _ => continue,
        };
        // More than one profile of a kind while a conversion runs.
        let one = self::class(info);
        class.total_bytes += one.total_bytes;
        class.used_bytes += one.used_bytes;
        class.copies = class.copies.max(one.copies);
    }
    for device in devices(dir)? {
        space.device_bytes += device.total_bytes;
        space.unallocated_bytes += device.total_bytes.saturating_sub(device.allocated_bytes);
    }
    Ok(space)
}

/// The filesystem's identity and layout.
pub fn filesystem(dir: &Dir) -> Result<Filesystem> {
    let info = sys::fs_info(dir.as_fd(), FS_INFO_FLAG_GENERATION).map_err(|errno| {
        if errno == Errno::ENOTTY {
            Error::NotBtrfs { name: dir.name().to_owned() }
        } else {
            dir.on_self("BTRFS_IOC_FS_INFO")(errno)
        }
    })?;
    Ok(Filesystem {
        uuid: Uuid::from_bytes(info.fsid),
        devices: info.num_devices,
        node_bytes: info.nodesize,
        sector_bytes: info.sectorsize,
        generation: info.generation,
    })
}

/// The filesystem's devices and their error counts.
pub fn devices(dir: &Dir) -> Result<Vec<Device>> {
    let info = sys::fs_info(dir.as_fd(), 0).map_err(dir.on_self("BTRFS_IOC_FS_INFO"))?;
    let mut devices = Vec::new();
    // Numbers have gaps where a device was removed.
    for id in 1..=info.max_id {
        let device = match sys::dev_info(dir.as_fd(), id) {
            Ok(device) => device,
            Err(Errno::ENODEV) => continue,
            Err(errno) => return Err(dir.on_self("BTRFS_IOC_DEV_INFO")(errno)),
        };
        let stats = sys::get_dev_stats(dir.as_fd(), id).map_err(dir.on_self("BTRFS_IOC_GET_DEV_STATS"))?;
        let [write_errors, read_errors, flush_errors, corruption_errors, generation_errors] = stats.values;
        let path = device.path.iter().copied().take_while(|byte| *byte != 0).collect();
        devices.push(Device {
            id,
            path: PathBuf::from(OsString::from_vec(path)),
            total_bytes: device.total_bytes,
            allocated_bytes: device.bytes_used,
            write_errors,
            read_errors,
            flush_errors,
            corruption_errors,
            generation_errors,
        });
    }
    Ok(devices)
}

// BTRFS_BLOCK_GROUP_* and BTRFS_SPACE_INFO_GLOBAL_RSV
const DATA: u64 = 1;
const SYSTEM: u64 = 2;
const METADATA: u64 = 4;
const MIXED: u64 = DATA | METADATA;
const KIND_MASK: u64 = DATA | SYSTEM | METADATA;
const RAID1: u64 = 1 << 4;
const DUP: u64 = 1 << 5;
const RAID10: u64 = 1 << 6;
const RAID1C3: u64 = 1 << 9;
const RAID1C4: u64 = 1 << 10;
const GLOBAL_RESERVE: u64 = 1 << 49;

fn class(info: &crate::abi::SpaceInfo) -> Class {
    let copies = match info.flags {
        flags if flags & RAID1C4 != 0 => 4,
        flags if flags & RAID1C3 != 0 => 3,
        flags if flags & (RAID1 | DUP | RAID10) != 0 => 2,
        _ => 1,
    };
    Class { total_bytes: info.total_bytes, used_bytes: info.used_bytes, copies }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn room_for_metadata_is_not_promised_to_data() {
        let space = |data_free, metadata_free, unallocated| Space {
            unallocated_bytes: unallocated * MIB,
            data: Class { total_bytes: data_free * MIB, used_bytes: 0, copies: 1 },
            metadata: Class { total_bytes: metadata_free * MIB, used_bytes: 0, copies: 2 },
            global_reserve: Class { total_bytes: 4 * MIB, used_bytes: 0, copies: 1 },
            ..Space::default()
        };
        for (name, space, expected) in [
            ("metadata has its room", space(100, 20, 50), 150),
            ("it lacks some of it, twice on the device", space(100, 14, 50), 138),
            ("it has none", space(100, 4, 50), 118),
            ("and there is none", space(100, 4, 10), 100),
            ("all is full", space(0, 0, 0), 0),
        ] {
            assert_eq!(space.promisable_bytes(16 * MIB) / MIB, expected, "{name}");
        }
    }
}
