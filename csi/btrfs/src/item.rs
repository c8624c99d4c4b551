//! What an item of a tree says. `parse.rs` makes these from the bytes.

use crate::Uuid;
use crate::search::Key;

/// An item as found: its key, the transaction its leaf was last written in, and its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// Where it stands.
    pub key: Key,
    /// When the leaf that holds it was last written: not when the item was.
    pub transid: u64,
    /// Its bytes, as on disk.
    pub data: &'a [u8],
    pub(crate) name: &'a str,
}

/// A point in time of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanoseconds: u32,
}

/// `INODE_ITEM`; the key's object is the inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// The transaction it was made in: with the number, its identity, as numbers are not reused in a subvolume.
    pub generation: u64,
    /// The transaction it was last changed in, in any way: data, metadata, xattrs, links.
    pub transid: u64,
    /// Size in bytes; of a directory, twice the bytes of its names.
    pub size: u64,
    /// Bytes allocated.
    pub allocated_bytes: u64,
    /// Links; zero for one that is open and deleted.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Device number of a device node, as the kernel packs it.
    pub rdev: u64,
    /// `BTRFS_INODE_*`.
    pub flags: u64,
    /// Counts changes.
    pub sequence: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Last change of the data.
    pub mtime: Time,
    /// Creation.
    pub otime: Time,
}

/// One name of an inode, from `INODE_REF` (the key's offset is the directory) or `INODE_EXTREF` (the item says).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InodeRef<'a> {
    /// Inode of the directory.
    pub dir_inode: u64,
    /// The entry's `DIR_INDEX` there.
    pub index: u64,
    /// The name.
    pub name: &'a [u8],
}

/// What an entry of a directory leads to (`BTRFS_FT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// A file.
    Regular,
    /// A directory, or a nested subvolume: see [`DirEntry::subvolume`].
    Directory,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A fifo.
    Fifo,
    /// A socket.
    Socket,
    /// A symlink.
    Symlink,
    /// Not an entry but an extended attribute (`XATTR_ITEM` has the same form).
    Xattr,
    /// Something this kernel knows and we do not.
    Unknown(u8),
}

/// `DIR_INDEX` (one), `DIR_ITEM` and `XATTR_ITEM` (one, or several whose names hash alike).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The inode it leads to; zero for an xattr.
    pub inode: u64,
    /// The nested subvolume it leads to, whose root is its inode 256.
    pub subvolume: Option<u64>,
    /// The transaction the entry was made in.
    pub transid: u64,
    /// What it leads to.
    pub file_type: FileType,
    /// The name, of the entry or the xattr.
    pub name: &'a [u8],
    /// An xattr's value.
    pub value: &'a [u8],
}

/// How an extent is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    None,
    /// zlib.
    Zlib,
    /// LZO.
    Lzo,
    /// zstd.
    Zstd,
    /// Something this kernel knows and we do not.
    Unknown(u8),
}

/// Where an extent's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentData<'a> {
    /// In the item: a small file. `bytes` are as stored; when the extent is not compressed they are the file.
    Inline {
        /// The bytes as stored.
        bytes: &'a [u8],
    },
    /// On the device.
    Regular {
        /// Where; zero is a hole.
        disk_bytenr: u64,
        /// Bytes of the whole extent there.
        disk_bytes: u64,
        /// Where in the (uncompressed) extent the file's part starts.
        offset: u64,
        /// Bytes of the file that this item covers.
        bytes: u64,
    },
    /// Allocated but not written: reads as zeros.
    Preallocated {
        /// Bytes of the file that this item covers.
        bytes: u64,
    },
}

/// `EXTENT_DATA`; the key's object is the inode and its offset the offset in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent<'a> {
    /// The transaction the extent was made in.
    pub generation: u64,
    /// Bytes uncompressed, of the whole extent.
    pub ram_bytes: u64,
    /// How it is stored.
    pub compression: Compression,
    /// Where its bytes are.
    pub data: ExtentData<'a>,
}

impl Extent<'_> {
    /// Bytes of the file that this item covers.
    pub fn file_bytes(&self) -> u64 {
        match self.data {
            ExtentData::Inline { .. } => self.ram_bytes,
            ExtentData::Regular { bytes, .. } | ExtentData::Preallocated { bytes } => bytes,
        }
    }

    /// Whether it reads as zeros without looking: a hole that is written down, or space not written yet.
    pub fn is_zero(&self) -> bool {
        match self.data {
            ExtentData::Inline { .. } => false,
            ExtentData::Regular { disk_bytenr, .. } => disk_bytenr == 0,
            ExtentData::Preallocated { .. } => true,
        }
    }

    /// The file's bytes where the item itself holds them as they are.
    pub fn inline_bytes(&self) -> Option<&[u8]> {
        match self.data {
            ExtentData::Inline { bytes } if self.compression == Compression::None => Some(bytes),
            ExtentData::Inline { .. } | ExtentData::Regular { .. } | ExtentData::Preallocated { .. } => None,
        }
    }
}

/// `ROOT_ITEM`; the key's object is the subvolume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootItem {
    /// Transaction of its last change of any kind.
    pub generation: u64,
    /// Transaction of the last change of an inode in it.
    pub ctransid: u64,
    /// Transaction it was made in.
    pub otransid: u64,
    /// Zero: deleted, waits for the cleaner.
    pub references: u32,
    /// Whether it is read-only.
    pub readonly: bool,
    /// Its uuid.
    pub uuid: Option<Uuid>,
    /// The subvolume it was made from.
    pub parent_uuid: Option<Uuid>,
    /// Set by `btrfs receive`.
    pub received_uuid: Option<Uuid>,
}

/// `ROOT_REF` (key: parent, child) and `ROOT_BACKREF` (child, parent).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootRef<'a> {
    /// Inode of the directory, in the parent.
    pub dir_inode: u64,
    /// The entry's `DIR_INDEX` there.
    pub index: u64,
    /// The name.
    pub name: &'a [u8],
}

/// `QGROUP_STATUS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaStatus {
    /// `BTRFS_QGROUP_STATUS_FLAG_*`.
    pub flags: u64,
}

/// `QGROUP_INFO`; the key's offset is the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupUsage {
    /// Bytes charged to the group.
    pub referenced_bytes: u64,
    /// Bytes only the group has; with simple quotas the same.
    pub exclusive_bytes: u64,
}

/// `QGROUP_LIMIT`; the key's offset is the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupLimit {
    /// Most bytes that may be charged to the group.
    pub referenced_bytes: Option<u64>,
}
