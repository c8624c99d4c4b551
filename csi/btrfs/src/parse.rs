//! Items of a tree from their bytes: `linux/btrfs_tree.h`, little-endian, packed.
//!
//! They come from the disk, so a short or strange one is an error ([`Error::Malformed`]), never a panic.

use crate::item::{
    Compression, DirEntry, Extent, ExtentData, FileType, GroupLimit, GroupUsage, Inode, InodeRef, Item,
    QuotaStatus, RootItem, RootRef, Time,
};
use crate::search::Key;
use crate::{Error, Result, Uuid};

impl<'a> Item<'a> {
    /// Parses an `INODE_ITEM`.
    pub fn inode(&self) -> Result<Inode> {
        let mut fields = self.fields("an inode item");
        inode(&mut fields)
    }

    /// Parses of an `INODE_ITEM` only the transaction it was last changed in, and its mode: most that a search of what is
    /// new brings along are not.
    pub fn inode_changed(&self) -> Result<(u64, u32)> {
        let mut fields = self.fields("an inode item");
        let _generation = fields.u64()?;
        let transid = fields.u64()?;
        // size, nbytes, block_group, nlink, uid, gid
        fields.bytes(3 * 8 + 3 * 4)?;
        Ok((transid, fields.u32()?))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Errno;

    fn item(data: &[u8]) -> Item<'_> {
        Item { key: Key { objectid: 257, kind: 1, offset: 256 }, transid: 9, data, name: "/pool" }
    }

    #[test]
    fn what_is_cut_short_is_an_error_that_names_the_item() {
        let whole = [7; 160];
        assert_eq!(item(&whole).inode().unwrap().uid, 0x0707_0707);
        let numbered: Vec<u8> = (0..160).collect();
        let inode = item(&numbered).inode().unwrap();
        assert_eq!(item(&numbered).inode_changed().unwrap(), (inode.transid, inode.mode));
        let error = item(&whole[..159]).inode().unwrap_err();
        assert!(error.is(Errno::EUCLEAN));
        assert_eq!(
            error.to_string(),
            "an inode item (257 1 256) of /pool cannot be read as what it should be"
        );
    }

    #[test]
    fn a_root_item_of_an_old_kernel_has_no_uuid() {
        // Generation 5, read-only, one reference, and nothing after what linux 3.5 wrote.
        let mut old = vec![0; 239];
        old[160] = 5;
        old[208] = 1;
        old[216] = 1;
        let root = item(&old).root().unwrap();
        assert_eq!((root.generation, root.readonly, root.references, root.uuid), (5, true, 1, None));
        // The longer form, written since by an old kernel: its second generation is behind.
        old.resize(439, 7);
        assert_eq!(item(&old).root().unwrap().uuid, None);
        old.splice(239..247, 5u64.to_le_bytes());
        let root = item(&old).root().unwrap();
        assert_eq!((root.uuid, root.ctransid), (Some(Uuid::from_bytes([7; 16])), 0x0707_0707_0707_0707));
    }

    #[test]
    fn entries_whose_names_hash_alike_share_an_item() {
        let entry = |inode: u64, kind: u8, name: &[u8]| {
            let mut bytes = inode.to_le_bytes().to_vec();
            bytes.push(kind);
            bytes.extend([0; 8]);
            bytes.extend(9u64.to_le_bytes());
            bytes.extend(0u16.to_le_bytes());
            bytes.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
            bytes.push(2);
            bytes.extend(name);
            bytes
        };
        let bytes = [entry(300, 1, b"plain"), entry(400, 132, b"nested")].concat();
        let entries = item(&bytes).dir_entries().unwrap();
        let said: Vec<_> = entries.iter().map(|entry| (entry.inode, entry.subvolume, entry.name)).collect();
        assert_eq!(said, [(300, None, b"plain".as_slice()), (256, Some(400), b"nested")]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(data in prop::collection::vec(any::<u8>(), 0..600)) {
            let item = item(&data);
            drop((item.inode(), item.inode_changed(), item.inode_refs(), item.inode_extrefs(), item.dir_entries(), item.extent()));
            drop((item.root(), item.root_ref(), item.quota_status(), item.group_usage(), item.group_limit()));
        }
    }
}
