//! Reading a tree's items by key and by age: `BTRFS_IOC_TREE_SEARCH_V2`.
//!
//! What is true of it, and easy to get wrong:
//! - A range is of whole keys in order (object, kind, offset). It is not a box: between two objects every kind comes.
//! - `newer_than` skips *leaves* not written since; what comes back is a superset, and each item must be judged by its
//!   own transaction ([`crate::search::Inode::transid`], [`crate::search::Extent::generation`]).
//! - The tree of a live subvolume is behind its page cache and delayed inode updates. A read-only snapshot's is not.
//! - It is read in batches of one consistent leaf each; between batches a live tree moves, a snapshot's does not.

use std::cell::Cell;
use std::ops::RangeInclusive;
use std::os::fd::AsFd as _;

use nix::errno::Errno;

use crate::abi::{SEARCH_HEADER_BYTES, SearchKey};
pub use crate::item::{
    Compression, DirEntry, Extent, ExtentData, FileType, GroupLimit, GroupUsage, Inode, InodeRef, Item,
    QuotaStatus, RootItem, RootRef, Time,
};
use crate::{Dir, Error, Result, sys};

/// Bytes of the kernel's answer at a time. An item is at most a tree block, 64 KiB; the kernel touches all of it at each
/// call, so more makes the search of a small difference slower.
const BUFFER_BYTES: usize = 128 * 1024;

thread_local! {
    /// The buffer of the last search that ended: a new one's memory would be cleared by the kernel page by page, which takes
    /// longer than most searches.
    static SPARE: Cell<Vec<u64>> = const { Cell::new(Vec::new()) };
}

/// Trees by id. A subvolume's is its own id; [`tree::OF_DIRECTORY`] is that of the directory searched on.
pub mod tree {
    /// The subvolume that the directory is in.
    pub const OF_DIRECTORY: u64 = 0;
    /// Root items and references of every subvolume (`BTRFS_ROOT_TREE_OBJECTID`).
    pub const ROOTS: u64 = 1;
    /// Quota groups (`BTRFS_QUOTA_TREE_OBJECTID`).
    pub const QUOTA: u64 = 8;
}

/// Kinds of item (`BTRFS_*_KEY`).
#[allow(missing_docs, reason = "named as in btrfs_tree.h")]
pub mod kind {
    pub const INODE_ITEM: u8 = 1;
    pub const INODE_REF: u8 = 12;
    pub const INODE_EXTREF: u8 = 13;
    pub const XATTR_ITEM: u8 = 24;
    pub const ORPHAN_ITEM: u8 = 48;
    pub const DIR_ITEM: u8 = 84;
    pub const DIR_INDEX: u8 = 96;
    pub const EXTENT_DATA: u8 = 108;
    pub const ROOT_ITEM: u8 = 132;
    pub const ROOT_BACKREF: u8 = 144;
    pub const ROOT_REF: u8 = 156;
    pub const QGROUP_STATUS: u8 = 240;
    pub const QGROUP_INFO: u8 = 242;
    pub const QGROUP_LIMIT: u8 = 244;
    pub const QGROUP_RELATION: u8 = 246;
}

/// Where an item stands in its tree; keys order as the tree does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// An inode, a subvolume: what the item is about.
    pub objectid: u64,
    /// What it says about it, see [`kind`].
    pub kind: u8,
    /// Which one of these: an offset in a file, an index in a directory.
    pub offset: u64,
}

impl Key {
    /// Before every key.
    pub const FIRST: Self = Self { objectid: 0, kind: 0, offset: 0 };
    /// After every key.
    pub const LAST: Self = Self { objectid: u64::MAX, kind: u8::MAX, offset: u64::MAX };

    /// Every key of one object.
    pub fn object(objectid: u64) -> RangeInclusive<Self> {
        Self { objectid, ..Self::FIRST }..=Self { objectid, ..Self::LAST }
    }

    /// Every key of one kind of one object.
    pub fn object_kind(objectid: u64, kind: u8) -> RangeInclusive<Self> {
        Self { objectid, kind, offset: 0 }..=Self { objectid, kind, offset: u64::MAX }
    }

    /// The key right after this one; `None` after the last.
    pub fn next(self) -> Option<Self> {
        if let Some(offset) = self.offset.checked_add(1) {
            return Some(Self { offset, ..self });
        }
        if let Some(kind) = self.kind.checked_add(1) {
            return Some(Self { kind, offset: 0, ..self });
        }
        self.objectid.checked_add(1).map(|objectid| Self { objectid, kind: 0, offset: 0 })
    }
}

/// A search in progress: `while let Some(item) = search.next_item()? { .. }`.
#[derive(Debug)]
pub struct Search<'dir> {
    dir: &'dir Dir,
    tree: u64,
    /// What is still to be asked for; `None` when nothing is.
    from: Option<Key>,
    to: Key,
    newer_than: u64,
    batch: u32,
    buffer: Vec<u64>,
    /// Items left in the buffer, and where the next begins.
    left: u32,
    at: usize,
}

impl<'dir> Search<'dir> {
    /// Searches a tree of the directory's filesystem for the items in a range of keys.
    pub fn new(dir: &'dir Dir, tree: u64, keys: RangeInclusive<Key>) -> Self {
        let (from, to) = keys.into_inner();
        Self {
            dir,
            tree,
            from: (from <= to).then_some(from),
            to,
            newer_than: 0,
            batch: u32::MAX,
            buffer: Vec::new(),
            left: 0,
            at: 0,
        }
    }

    /// Leaves out what certainly was not written after this transaction; the rest is a superset of what was.
    ///
    /// For "since this snapshot" pass the snapshot's `otransid`.
    #[must_use]
    pub fn newer_than(mut self, transid: u64) -> Self {
        self.newer_than = transid;
        self
    }

    /// Asks for so many items at a time, where more would only be thrown away.
    #[must_use]
    pub fn in_batches_of(mut self, items: u32) -> Self {
        self.batch = items.max(1);
        self
    }

    /// Goes on at `key`, forwards or backwards; what was not read yet of the current batch is dropped.
    pub fn seek(&mut self, key: Key) {
        self.left = 0;
        self.from = (key <= self.to).then_some(key);
    }

    /// The next item; `None` at the end of the range.
    ///
    /// Not an `Iterator`: the item borrows the buffer, so that reading a million of them allocates nothing.
    pub fn next_item(&mut self) -> Result<Option<Item<'_>>> {
        if self.left == 0 && !self.fill()? {
            return Ok(None);
        }
        let bytes = sys::found(&self.buffer);
        let malformed =
            || Error::Malformed { what: "a tree search".to_owned(), name: self.dir.name().to_owned() };
        let header = bytes.get(self.at..self.at + SEARCH_HEADER_BYTES).ok_or_else(malformed)?;
        // The header is in the machine's order, the item in the disk's.
        let u64_at =
            |at: usize| header.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes);
        let u32_at =
            |at: usize| header.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        let transid = u64_at(0).ok_or_else(malformed)?;
        let objectid = u64_at(8).ok_or_else(malformed)?;
        let offset = u64_at(16).ok_or_else(malformed)?;
        let kind = u32_at(24).and_then(|kind| u8::try_from(kind).ok()).ok_or_else(malformed)?;
        let length = u32_at(28).and_then(|length| usize::try_from(length).ok()).ok_or_else(malformed)?;
        let start = self.at + SEARCH_HEADER_BYTES;
        let data = bytes.get(start..start + length).ok_or_else(malformed)?;
        let key = Key { objectid, kind, offset };
        self.left -= 1;
        self.at = start + length;
        self.from = key.next().filter(|next| *next <= self.to);
        Ok(Some(Item { key, transid, data, name: self.dir.name() }))
    }

    /// Asks the kernel for the next batch. `false` if there is none.
    fn fill(&mut self) -> Result<bool> {
        let Some(from) = self.from else { return Ok(false) };
        if self.buffer.is_empty() {
            self.buffer = SPARE.take();
        }
        if self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER_BYTES / size_of::<u64>()];
        }
        let mut key = SearchKey {
            tree_id: self.tree,
            min_objectid: from.objectid,
            max_objectid: self.to.objectid,
            min_offset: from.offset,
            max_offset: self.to.offset,
            min_transid: self
                .newer_than
                .checked_add(1)
                .ok_or(Errno::EINVAL)
                .map_err(self.dir.on_self(CALL))?,
            max_transid: u64::MAX,
            min_type: u32::from(from.kind),
            max_type: u32::from(self.to.kind),
            nr_items: self.batch,
            unused: [0; 9],
        };
        if self.newer_than == 0 {
            key.min_transid = 0;
        }
        sys::tree_search(self.dir.as_fd(), &mut key, &mut self.buffer).map_err(self.dir.on_self(CALL))?;
        self.left = key.nr_items;
        self.at = 0;
        if self.left == 0 {
            self.from = None;
        }
        Ok(self.left > 0)
    }
}

impl Drop for Search<'_> {
    fn drop(&mut self) {
        if !self.buffer.is_empty() {
            // Where the thread is ending there is no next search.
            let _ended = SPARE.try_with(|spare| spare.set(std::mem::take(&mut self.buffer)));
        }
    }
}

const CALL: &str = "BTRFS_IOC_TREE_SEARCH_V2";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_as_the_tree_does() {
        let key = |objectid, kind, offset| Key { objectid, kind, offset };
        assert!(key(1, 9, 9) < key(2, 0, 0));
        assert!(key(1, 1, 9) < key(1, 2, 0));
        assert_eq!(key(1, 1, 1).next(), Some(key(1, 1, 2)));
        assert_eq!(key(1, 1, u64::MAX).next(), Some(key(1, 2, 0)));
        assert_eq!(key(1, u8::MAX, u64::MAX).next(), Some(key(2, 0, 0)));
        assert_eq!(Key::LAST.next(), None);
    }
}
