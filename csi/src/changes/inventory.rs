//! All that is in a snapshot, for whoever reads it whole: from its items, with no call for a single file.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use btrfs::search::{Compression, Inode, Item, Key, Search, kind};
use btrfs::{Dir, subvolume};
use bytes::Bytes;
use cas::tree::{Name, Told};
use zstd::bulk::Decompressor;

use super::error::Error;
use super::extents::{self, Stored};
use super::runs;
use super::side::is_file;

/// Of files above this only the inode is told: whoever reads them opens them anyway, and their extents may be many.
const EXTENTS_UP_TO_BYTES: u64 = 1 << 20;

/// No file in an item is longer: it is at most a page.
const INLINE_UP_TO_BYTES: u64 = 64 << 10;

thread_local! {
    /// Its context costs more to make than a small file to unpack.
    static UNPACK: RefCell<Decompressor<'static>> = RefCell::default();
}

/// The tree of a read-only snapshot.
#[derive(Debug)]
pub struct Inventory {
    dir: Dir,
    tree: u64,
}

impl Inventory {
    /// Of the snapshot that `dir` is the root of; nothing where it can still be written to. Needs `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn of(dir: Dir) -> btrfs::Result<Option<Arc<Self>>> {
        let info = subvolume::info(&dir)?;
        Ok(info.readonly.then(|| Arc::new(Self { dir, tree: info.id })))
    }

    fn read_names(&self, directory: u64) -> Result<Vec<Name>, Error> {
        let keys = Key::object_kind(directory, kind::DIR_INDEX);
        let mut search = Search::new(&self.dir, self.tree, keys);
        let mut names = Vec::new();
        while let Some(item) = search.next_item()? {
            for entry in item.dir_entries()? {
                let inode = entry.subvolume.is_none().then_some(entry.inode);
                names.push(Name { name: entry.name.to_vec(), inode });
            }
        }
        names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(names)
    }

    fn read_inodes(&self, numbers: &[u64], told: &mut dyn FnMut(u64, Told)) -> Result<(), Error> {
        let mut numbers = numbers.to_vec();
        numbers.sort_unstable();
        numbers.dedup();
        let mut current: Option<(u64, Record)> = None;
        runs::visit(&self.dir, self.tree, &numbers, |item| {
            let number = item.key.objectid;
            if item.key.kind == kind::INODE_ITEM {
                if let Some((number, record)) = current.replace((number, Record::new(item.inode()?))) {
                    told(number, record.told());
                }
                return Ok(true);
            }
            match &mut current {
                Some((of, record)) if *of == number => record.take(item),
                _ => Ok(true),
            }
        })?;
        if let Some((number, record)) = current {
            told(number, record.told());
        }
        Ok(())
    }
}

impl cas::tree::Inventory for Inventory {
    fn names(&self, directory: u64) -> io::Result<Vec<Name>> {
        self.read_names(directory).map_err(as_io)
    }

    fn inodes(&self, numbers: &[u64], told: &mut dyn FnMut(u64, Told)) -> io::Result<()> {
        self.read_inodes(numbers, told).map_err(as_io)
    }
}

fn as_io(error: Error) -> io::Error {
    match error {
        Error::Btrfs(error) => io::Error::from_raw_os_error(error.errno()),
        Error::FullScan { reason } => io::Error::other(reason),
    }
}

/// What the items of one inode say.
struct Record {
    inode: Inode,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The kernel shows an attribute otherwise than it stores it.
    translated: bool,
    extents: Vec<Stored>,
}

impl Record {
    fn new(inode: Inode) -> Self {
        Self { inode, xattrs: Vec::new(), translated: false, extents: Vec::new() }
    }

    /// Takes an item. `false`: nothing more of this inode is wanted.
    fn take(&mut self, item: &Item<'_>) -> Result<bool, Error> {
        match item.key.kind {
            kind::XATTR_ITEM => {
                for entry in item.dir_entries()? {
                    self.translated |= is_translated(entry.name);
                    self.xattrs.push((entry.name.to_vec(), entry.value.to_vec()));
                }
            }
            kind::EXTENT_DATA if self.inode.size <= EXTENTS_UP_TO_BYTES => {
                self.extents.push(Stored::of(item.key.offset, &item.extent()?));
            }
            kind::DIR_ITEM | kind::DIR_INDEX | kind::EXTENT_DATA => return Ok(false),
            _ => {}
        }
        Ok(true)
    }

    fn told(self) -> Told {
        let Inode { mode, uid, gid, size, nlink, rdev, mtime, .. } = self.inode;
        let is_large = size > EXTENTS_UP_TO_BYTES;
        let bytes = if size == 0 { Some(Bytes::new()) } else { inline(&self.extents, size) };
        let sparse = if is_file(&self.inode) && !is_large {
            // A file with as many bytes as it is long has no hole that counts, as `stat` has it.
            Some(self.inode.allocated_bytes >> 9 << 9 < size && extents::has_hole(&self.extents, size))
        } else {
            None
        };
        Told {
            mode,
            uid,
            gid,
            size,
            links: nlink,
            device: device(rdev),
            modified: (mtime.seconds, mtime.nanoseconds),
            xattrs: (!self.translated).then_some(self.xattrs),
            bytes,
            sparse,
        }
    }
}

/// A small file's bytes, where its item holds them as they are or as the kernel packs them by default.
fn inline(extents: &[Stored], size: u64) -> Option<Bytes> {
    let (compression, stored) = extents::only_inline(extents)?;
    match compression {
        Compression::Zstd if size <= INLINE_UP_TO_BYTES => {
            // What cannot be unpacked is left to the kernel, who says why.
            let bytes = UNPACK
                .with_borrow_mut(|unpack| unpack.decompress(stored, usize::try_from(size).ok()?).ok())?;
            (bytes.len() as u64 == size).then(|| Bytes::from(bytes))
        }
        Compression::None => extents::inline(extents, size),
        Compression::Zstd | Compression::Zlib | Compression::Lzo | Compression::Unknown(_) => None,
    }
}

/// Capabilities are shown by the user namespace, labels by the security module, lists of access by their present form.
fn is_translated(name: &[u8]) -> bool {
    name.starts_with(b"security.") || name.starts_with(b"system.")
}

/// A device's numbers as the kernel keeps them: `MINORBITS` is 20.
fn device(rdev: u64) -> (u32, u32) {
    let part = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    (part(rdev >> 20), part(rdev & 0xf_ffff))
}
