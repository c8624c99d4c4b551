//! A directory, as its identity sees it: its own metadata, and what its names stand for.
//!
//! The canonical encoding has one spelling for each directory, and its BLAKE3 is the directory's id; the id of the
//! root is the version. Names are sorted by their bytes. Not in it: access and change times, inode numbers, where
//! bytes lie, holes, compression. `FORMAT.md` gives every byte; the golden vectors below are never edited.

use types::{ContentId, VersionId};

use super::codec::{Malformed, Put as _, Take};

/// The first bytes of every canonical node.
pub(crate) const NODE_MAGIC: &[u8; 4] = b"OSn1";
/// The longest name that Linux has.
pub(crate) const NAME_MAX: usize = 255;
/// The longest extended attribute that Linux has.
pub(crate) const XATTR_MAX: usize = 65_536;
/// The longest path that a system call takes, without its NUL: symbolic links and hard links.
pub(crate) const PATH_MAX: usize = 4_095;

/// One extended attribute: its name with its class (`user.x`), and its value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// What a file has beside its content. Permission bits only: the kind is the entry's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// The twelve permission bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Modification time: seconds since the epoch.
    pub mtime_seconds: i64,
    /// And the nanoseconds after it.
    pub mtime_nanos: u32,
    /// Extended attributes, sorted by name: `user.*`, `trusted.*`, `security.*` and POSIX ACLs.
    pub xattrs: Vec<Xattr>,
}

/// What a name in a directory stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A regular file, or the first of its names in tree order.
    File {
        /// Its metadata.
        meta: Metadata,
        /// Its length in bytes.
        size: u64,
        /// BLAKE3 of its bytes.
        content: ContentId,
    },
    /// A directory; its metadata is in its own node.
    Directory {
        /// BLAKE3 of its node.
        id: VersionId,
    },
    /// A symbolic link.
    Symlink {
        /// Its metadata.
        meta: Metadata,
        /// Where it points.
        target: Vec<u8>,
    },
    /// A later name of an inode that has several.
    HardLink {
        /// The path of the first name in tree order, from the root, without a leading `/`.
        first: Vec<u8>,
    },
    /// A named pipe.
    Fifo {
        /// Its metadata.
        meta: Metadata,
    },
    /// A socket's name.
    Socket {
        /// Its metadata.
        meta: Metadata,
    },
    /// A character or block device.
    Device {
        /// Its metadata.
        meta: Metadata,
        /// Block device, else character device.
        block: bool,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

impl Item {
    /// Returns the metadata, which directories and later names keep elsewhere.
    pub fn meta(&self) -> Option<&Metadata> {
        match self {
            Self::File { meta, .. }
            | Self::Symlink { meta, .. }
            | Self::Fifo { meta }
            | Self::Socket { meta }
            | Self::Device { meta, .. } => Some(meta),
            Self::Directory { .. } | Self::HardLink { .. } => None,
        }
    }
}

/// A name and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// 1 to 255 bytes, any but NUL and `/`.
    pub name: Vec<u8>,
    /// What it stands for.
    pub item: Item,
}

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Its own metadata.
    pub meta: Metadata,
    /// Its names, sorted by their bytes, each once.
    pub entries: Vec<Entry>,
}

const FILE: u8 = 1;
const DIRECTORY: u8 = 2;
const SYMLINK: u8 = 3;
const HARD_LINK: u8 = 4;
const FIFO: u8 = 5;
const SOCKET: u8 = 6;
const CHARACTER: u8 = 7;
const BLOCK: u8 = 8;

/// Tells if these bytes may be a name in a directory.
pub(crate) fn is_name(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.contains(&b'/')
        && !name.contains(&0)
}

/// Compares two names of a tree in the order in which it is walked: depth first, entries by their bytes.
pub fn tree_order(left: &[u8], right: &[u8]) -> std::cmp::Ordering {
    left.split(|byte| *byte == b'/').cmp(right.split(|byte| *byte == b'/'))
}

impl Node {
    /// Returns the one encoding of this directory.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.entries.len() * 96);
        out.extend_from_slice(NODE_MAGIC);
        put_meta(&mut out, &self.meta);
        out.put_len(self.entries.len());
        for entry in &self.entries {
            out.put_sized(&entry.name);
            put_item(&mut out, &entry.item);
        }
        out
    }

    /// Returns the id: BLAKE3 of the encoding.
    pub fn id(&self) -> VersionId {
        VersionId(*blake3::hash(&self.encode()).as_bytes())
    }

    /// Reads a node that takes all of `bytes`, and refuses every spelling but its own.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut take = Take::new(bytes);
        let node = Self::take(&mut take)?;
        take.end()?;
        Ok(node)
    }

    /// Reads a node from the front of `take`.
    pub(crate) fn take(take: &mut Take<'_>) -> Result<Self, Malformed> {
        if &take.array::<4>()? != NODE_MAGIC {
            return take.fail("it is not a directory node of this format");
        }
        let meta = take_meta(take)?;
        // The shortest entry: a name of one byte and a hard link to one.
        let count = take.count(5)?;
        let mut entries: Vec<Entry> = Vec::with_capacity(count);
        for _ in 0..count {
            let name = take.sized(1, NAME_MAX)?;
            if !is_name(name) {
                return take.fail("a name is '.', '..', or has a '/' or a NUL in it");
            }
            if entries.last().is_some_and(|last| last.name.as_slice() >= name) {
                return take.fail("names are not sorted, or one is there twice");
            }
            entries.push(Entry { name: name.to_vec(), item: take_item(take)? });
        }
        Ok(Self { meta, entries })
    }

    /// Finds a name.
    pub fn position(&self, name: &[u8]) -> Option<usize> {
        self.entries.binary_search_by(|entry| entry.name.as_slice().cmp(name)).ok()
    }
}

fn put_meta(out: &mut Vec<u8>, meta: &Metadata) {
    out.put_varint(u64::from(meta.mode));
    out.put_varint(u64::from(meta.uid));
    out.put_varint(u64::from(meta.gid));
    out.put_signed(meta.mtime_seconds);
    out.put_varint(u64::from(meta.mtime_nanos));
    out.put_len(meta.xattrs.len());
    for (name, value) in &meta.xattrs {
        out.put_sized(name);
        out.put_sized(value);
    }
}

fn take_meta(take: &mut Take<'_>) -> Result<Metadata, Malformed> {
    let mode = take.varint_u32()?;
    if mode > 0o7777 {
        return take.fail("a mode has more than the permission bits");
    }
    let uid = take.varint_u32()?;
    let gid = take.varint_u32()?;
    let mtime_seconds = take.signed()?;
    let mtime_nanos = take.varint_u32()?;
    if mtime_nanos > 999_999_999 {
        return take.fail("a time has more than 999,999,999 nanoseconds");
    }
    let count = take.count(3)?;
    let mut xattrs: Vec<Xattr> = Vec::with_capacity(count);
    for _ in 0..count {
        let name = take.sized(1, NAME_MAX)?;
        if name.contains(&0) || xattrs.last().is_some_and(|(last, _)| last.as_slice() >= name) {
            return take
                .fail("names of attributes are not sorted, one is there twice, or one has a NUL in it");
        }
        xattrs.push((name.to_vec(), take.sized(0, XATTR_MAX)?.to_vec()));
    }
    Ok(Metadata { mode, uid, gid, mtime_seconds, mtime_nanos, xattrs })
}

fn put_item(out: &mut Vec<u8>, item: &Item) {
    match item {
        Item::File { meta, size, content } => {
            out.push(FILE);
            put_meta(out, meta);
            out.put_varint(*size);
            out.extend_from_slice(content.as_bytes());
        }
        Item::Directory { id } => {
            out.push(DIRECTORY);
            out.extend_from_slice(id.as_bytes());
        }
        Item::Symlink { meta, target } => {
            out.push(SYMLINK);
            put_meta(out, meta);
            out.put_sized(target);
        }
        Item::HardLink { first } => {
            out.push(HARD_LINK);
            out.put_sized(first);
        }
        Item::Fifo { meta } => {
            out.push(FIFO);
            put_meta(out, meta);
        }
        Item::Socket { meta } => {
            out.push(SOCKET);
            put_meta(out, meta);
        }
        Item::Device { meta, block, major, minor } => {
            out.push(if *block { BLOCK } else { CHARACTER });
            put_meta(out, meta);
            out.put_varint(u64::from(*major));
            out.put_varint(u64::from(*minor));
        }
    }
}

fn take_item(take: &mut Take<'_>) -> Result<Item, Malformed> {
    let kind = take.u8()?;
    Ok(match kind {
        FILE => {
            let meta = take_meta(take)?;
            let size = take.varint()?;
            if size > i64::MAX.cast_unsigned() {
                return take.fail("a file is longer than a file can be");
            }
            Item::File { meta, size, content: ContentId(take.array()?) }
        }
        DIRECTORY => Item::Directory { id: VersionId(take.array()?) },
        SYMLINK => {
            let meta = take_meta(take)?;
            let target = take.sized(1, PATH_MAX)?;
            if target.contains(&0) {
                return take.fail("a symbolic link has a NUL in it");
            }
            if meta.mode != 0o777 {
                return take.fail("a symbolic link has a mode other than 0777");
            }
            Item::Symlink { meta, target: target.to_vec() }
        }
        HARD_LINK => {
            let first = take.sized(1, PATH_MAX)?;
            if !first.split(|byte| *byte == b'/').all(is_name) {
                return take.fail("a hard link names a path that is not one");
            }
            Item::HardLink { first: first.to_vec() }
        }
        FIFO => Item::Fifo { meta: take_meta(take)? },
        SOCKET => Item::Socket { meta: take_meta(take)? },
        CHARACTER | BLOCK => Item::Device {
            meta: take_meta(take)?,
            block: kind == BLOCK,
            major: take.varint_u32()?,
            minor: take.varint_u32()?,
        },
        _ => return take.fail("an entry is of a kind that is not known here"),
    })
}
