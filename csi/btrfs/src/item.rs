//! What an item of a tree says, parsed: `linux/btrfs_tree.h`, little-endian, packed.
//!
//! Items come from the disk, so a short or strange one is an error ([`Error::Malformed`]), never a panic.

use crate::search::Key;
use crate::{Error, Result, Uuid};

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

impl<'a> Item<'a> {
    /// Parses an `INODE_ITEM`.
    pub fn inode(&self) -> Result<Inode> {
        let mut fields = self.fields("an inode item");
        inode(&mut fields)
    }

    /// Parses an `INODE_REF`: every name the inode has in one directory.
    pub fn inode_refs(&self) -> Result<Vec<InodeRef<'a>>> {
        let mut fields = self.fields("an inode ref");
        let mut refs = Vec::with_capacity(1);
        while !fields.is_empty() {
            let index = fields.u64()?;
            let length = fields.u16()?;
            refs.push(InodeRef { dir_inode: self.key.offset, index, name: fields.bytes(length.into())? });
        }
        Ok(refs)
    }

    /// Parses an `INODE_EXTREF`: names that did not fit into an `INODE_REF`.
    pub fn inode_extrefs(&self) -> Result<Vec<InodeRef<'a>>> {
        let mut fields = self.fields("an inode extref");
        let mut refs = Vec::with_capacity(1);
        while !fields.is_empty() {
            let dir_inode = fields.u64()?;
            let index = fields.u64()?;
            let length = fields.u16()?;
            refs.push(InodeRef { dir_inode, index, name: fields.bytes(length.into())? });
        }
        Ok(refs)
    }

    /// Parses a `DIR_INDEX`, `DIR_ITEM` or `XATTR_ITEM`.
    pub fn dir_entries(&self) -> Result<Vec<DirEntry<'a>>> {
        let mut fields = self.fields("a directory entry");
        let mut entries = Vec::with_capacity(1);
        while !fields.is_empty() {
            let objectid = fields.u64()?;
            let kind = fields.u8()?;
            let _offset = fields.u64()?;
            let transid = fields.u64()?;
            let value_length = fields.u16()?;
            let name_length = fields.u16()?;
            let file_type = file_type(fields.u8()?);
            // An entry points at an inode item, or at the root item of another tree.
            let subvolume = (kind == crate::search::kind::ROOT_ITEM).then_some(objectid);
            let inode = if subvolume.is_some() { crate::subvolume::ROOT_INODE } else { objectid };
            let name = fields.bytes(name_length.into())?;
            let value = fields.bytes(value_length.into())?;
            entries.push(DirEntry { inode, subvolume, transid, file_type, name, value });
        }
        Ok(entries)
    }

    /// Parses an `EXTENT_DATA`.
    pub fn extent(&self) -> Result<Extent<'a>> {
        let mut fields = self.fields("a file extent");
        let generation = fields.u64()?;
        let ram_bytes = fields.u64()?;
        let compression = match fields.u8()? {
            0 => Compression::None,
            1 => Compression::Zlib,
            2 => Compression::Lzo,
            3 => Compression::Zstd,
            other => Compression::Unknown(other),
        };
        let _encryption = fields.u8()?;
        let _other_encoding = fields.u16()?;
        let data = match fields.u8()? {
            0 => ExtentData::Inline { bytes: fields.rest() },
            form @ (1 | 2) => {
                let disk_bytenr = fields.u64()?;
                let disk_bytes = fields.u64()?;
                let offset = fields.u64()?;
                let bytes = fields.u64()?;
                if form == 1 {
                    ExtentData::Regular { disk_bytenr, disk_bytes, offset, bytes }
                } else {
                    ExtentData::Preallocated { bytes }
                }
            }
            _ => return Err(fields.malformed()),
        };
        Ok(Extent { generation, ram_bytes, compression, data })
    }

    /// Parses a `ROOT_ITEM`.
    pub fn root(&self) -> Result<RootItem> {
        let mut fields = self.fields("a root item");
        let _inode = inode(&mut fields)?;
        let generation = fields.u64()?;
        // root_dirid, bytenr, byte_limit, bytes_used, last_snapshot
        fields.bytes(5 * 8)?;
        let flags = fields.u64()?;
        let references = fields.u32()?;
        // drop_progress (17), drop_level, level
        fields.bytes(17 + 2)?;
        let readonly = flags & 1 != 0;
        let mut root = RootItem {
            generation,
            ctransid: 0,
            otransid: 0,
            references,
            readonly,
            uuid: None,
            parent_uuid: None,
            received_uuid: None,
        };
        // The rest was added in linux 3.6, and is void if an older kernel wrote the item since.
        if !fields.is_empty() && fields.u64()? == generation {
            root.uuid = Uuid::parse_bytes(fields.array()?);
            root.parent_uuid = Uuid::parse_bytes(fields.array()?);
            root.received_uuid = Uuid::parse_bytes(fields.array()?);
            root.ctransid = fields.u64()?;
            root.otransid = fields.u64()?;
        }
        Ok(root)
    }

    /// Parses a `ROOT_REF` or `ROOT_BACKREF`.
    pub fn root_ref(&self) -> Result<RootRef<'a>> {
        let mut fields = self.fields("a root ref");
        let dir_inode = fields.u64()?;
        let index = fields.u64()?;
        let length = fields.u16()?;
        Ok(RootRef { dir_inode, index, name: fields.bytes(length.into())? })
    }

    /// Parses a `QGROUP_STATUS`.
    pub fn quota_status(&self) -> Result<QuotaStatus> {
        let mut fields = self.fields("a quota status");
        let _version = fields.u64()?;
        let _generation = fields.u64()?;
        Ok(QuotaStatus { flags: fields.u64()? })
    }

    /// Parses a `QGROUP_INFO`.
    pub fn group_usage(&self) -> Result<GroupUsage> {
        let mut fields = self.fields("a qgroup info");
        let _generation = fields.u64()?;
        let referenced_bytes = fields.u64()?;
        let _compressed = fields.u64()?;
        Ok(GroupUsage { referenced_bytes, exclusive_bytes: fields.u64()? })
    }

    /// Parses a `QGROUP_LIMIT`.
    pub fn group_limit(&self) -> Result<GroupLimit> {
        let mut fields = self.fields("a qgroup limit");
        let flags = fields.u64()?;
        let max_referenced = fields.u64()?;
        let set = flags & crate::abi::QGROUP_LIMIT_MAX_RFER != 0;
        Ok(GroupLimit { referenced_bytes: set.then_some(max_referenced) })
    }

    fn fields(&self, what: &'static str) -> Fields<'a> {
        Fields { rest: self.data, key: self.key, what, name: self.name }
    }
}

fn inode(fields: &mut Fields<'_>) -> Result<Inode> {
    let generation = fields.u64()?;
    let transid = fields.u64()?;
    let size = fields.u64()?;
    let allocated_bytes = fields.u64()?;
    let _block_group = fields.u64()?;
    let nlink = fields.u32()?;
    let uid = fields.u32()?;
    let gid = fields.u32()?;
    let mode = fields.u32()?;
    let rdev = fields.u64()?;
    let flags = fields.u64()?;
    let sequence = fields.u64()?;
    fields.bytes(4 * 8)?;
    let atime = fields.time()?;
    let ctime = fields.time()?;
    let mtime = fields.time()?;
    let otime = fields.time()?;
    Ok(Inode {
        generation,
        transid,
        size,
        allocated_bytes,
        nlink,
        uid,
        gid,
        mode,
        rdev,
        flags,
        sequence,
        atime,
        ctime,
        mtime,
        otime,
    })
}

fn file_type(byte: u8) -> FileType {
    match byte {
        1 => FileType::Regular,
        2 => FileType::Directory,
        3 => FileType::CharDevice,
        4 => FileType::BlockDevice,
        5 => FileType::Fifo,
        6 => FileType::Socket,
        7 => FileType::Symlink,
        8 => FileType::Xattr,
        other => FileType::Unknown(other),
    }
}

/// The bytes of an item, taken from the front.
struct Fields<'a> {
    rest: &'a [u8],
    key: Key,
    what: &'static str,
    name: &'a str,
}

impl<'a> Fields<'a> {
    fn malformed(&self) -> Error {
        let Key { objectid, kind, offset } = self.key;
        Error::Malformed {
            what: format!("{} ({objectid} {kind} {offset})", self.what),
            name: self.name.to_owned(),
        }
    }

    fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(|| self.malformed())?;
        self.rest = rest;
        Ok(taken)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| self.malformed())?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn time(&mut self) -> Result<Time> {
        let seconds = self.array().map(i64::from_le_bytes)?;
        Ok(Time { seconds, nanoseconds: self.u32()? })
    }
}
