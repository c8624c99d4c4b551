//! Reading parts of a version straight from the store.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use types::{ContentId, VolumePath};

use super::cache::Cache;
use super::diff::Side;
use super::error::TreeError;
use super::fetch::{Fetch, damaged};
use super::filemap;
use super::frame::FrameKind;
use super::location::{Extent, VersionRef};
use super::manifest::Manifest;
use super::node::{Entry, Item, Metadata};
use super::stored::{Data, MapPlace, Place, StoredNode};
use crate::Store;
use crate::objects::Objects;

/// What a path in a version stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The last segment of the path; empty for the root.
    pub name: Vec<u8>,
    /// What it is. Later names of a file show the file.
    pub kind: FoundKind,
    /// Its metadata.
    pub meta: Metadata,
    /// The first name of the inode, where this is a later one.
    pub first: Option<VolumePath>,
}

/// What something in a version is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundKind {
    /// A regular file.
    File {
        /// Its length.
        size: u64,
        /// BLAKE3 of its bytes.
        content: ContentId,
    },
    /// A directory.
    Directory {
        /// How many names are in it.
        entries: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A device.
    Device {
        /// Block device, else character device.
        block: bool,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// Reads versions from a store.
#[derive(Debug, Clone)]
pub struct Reader {
    pub(crate) fetch: Fetch,
}

impl Reader {
    /// Makes a reader. `cache` is shared with the writer and the other readers of the process.
    pub fn new(store: Store, cache: Arc<Cache>) -> Self {
        Self::of(Arc::clone(store.objects()), cache)
    }

    /// Makes a reader of objects of which nobody knows whose store they are: packs that were saved, a store that lost its
    /// head.
    pub fn of(objects: Arc<dyn Objects>, cache: Arc<Cache>) -> Self {
        Self { fetch: Fetch::new(objects, cache) }
    }

    /// Reads the manifest of a version.
    pub async fn manifest(&self, tree: &VersionRef) -> Result<Arc<Manifest>, TreeError> {
        self.fetch.manifest(tree).await
    }

    /// Finds a path. `None`: there is none; an error: it could not be told.
    pub async fn stat(&self, tree: &VersionRef, path: &VolumePath) -> Result<Option<Found>, TreeError> {
        match self.find(tree, path).await? {
            None => Ok(None),
            Some(Spot::Root(node)) => Ok(Some(found_dir(Vec::new(), &node))),
            Some(Spot::Entry(node, number)) => self.found(tree, &node, number).await.map(Some),
        }
    }

    /// Lists up to `limit` names of a directory, those after `after`.
    pub async fn list(
        &self,
        tree: &VersionRef,
        path: &VolumePath,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Found>, TreeError> {
        let node = self.directory(tree, path).await?;
        let first = after
            .map_or(0, |after| node.node.entries.partition_point(|entry| entry.name.as_slice() <= after));
        let mut listed = Vec::new();
        for number in first..node.node.entries.len().min(first.saturating_add(limit)) {
            listed.push(self.found(tree, &node, number).await?);
        }
        Ok(listed)
    }

    /// Reads a range of a file, cut at its end. Only the frames that hold it are fetched, and each byte is proved.
    pub async fn read(
        &self,
        tree: &VersionRef,
        path: &VolumePath,
        range: Range<u64>,
    ) -> Result<Bytes, TreeError> {
        let not_a_file = || TreeError::WrongKind { path: path.clone(), expected: "file" };
        let (node, number) = match self.find(tree, path).await? {
            None => return Err(TreeError::NotFound { path: path.clone(), version: tree.version }),
            Some(Spot::Root(_)) => return Err(not_a_file()),
            Some(Spot::Entry(node, number)) => self.first_name(tree, node, number).await?,
        };
        let Item::File { size, content, .. } = &node.node.entries[number].item else {
            return Err(not_a_file());
        };
        let end = range.end.min(*size);
        let start = range.start.min(end);
        let cut = |bytes: &Bytes, base: u64| {
            let from = usize::try_from(base + start).expect("a place in memory");
            let to = usize::try_from(base + end).expect("a place in memory");
            bytes.slice(from..to)
        };
        match &node.places[number].data {
            Data::Inline(bytes) => {
                // The node's id does not cover where bytes lie, nor bytes that lie there.
                if blake3::hash(bytes).as_bytes() != content.as_bytes() {
                    let path = path.as_bytes().to_vec();
                    return Err(TreeError::DamagedInline { path, content: *content });
                }
                Ok(cut(&Bytes::copy_from_slice(bytes), 0))
            }
            Data::Slice { frame, offset } => {
                let raw = self.fetch.frame(frame, FrameKind::Data).await?;
                let first = *offset as usize;
                let last = usize::try_from(*size).ok().and_then(|size| first.checked_add(size));
                let whole = last.and_then(|last| raw.get(first..last));
                if whole.is_none_or(|whole| blake3::hash(whole).as_bytes() != content.as_bytes()) {
                    let (path, location) = (path.as_bytes().to_vec(), frame.clone());
                    return Err(TreeError::DamagedFile { path, content: *content, location });
                }
                Ok(cut(&raw, u64::from(*offset)))
            }
            Data::Map(map) => self.read_cells(map, *size, *content, start..end).await,
            Data::Nothing | Data::Directory(_) => Err(not_a_file()),
        }
    }

    async fn read_cells(
        &self,
        map: &MapPlace<Extent>,
        size: u64,
        content: ContentId,
        range: Range<u64>,
    ) -> Result<Bytes, TreeError> {
        let mut out = Vec::new();
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let pages = self.fetch.pages(map, size, content).await?;
        let page_log2 = filemap::page_log2(map.cell_log2);
        for page in (range.start >> page_log2)..=((range.end - 1) >> page_log2) {
            let number = usize::try_from(page).expect("as many pages as are in memory");
            let cells = self.fetch.cells(map, size, content, &pages, number).await?;
            for (cell_number, cell) in (0u64..).zip(&cells) {
                let offset = (page << page_log2) + (cell_number << map.cell_log2);
                let len = (size - offset).min(1 << map.cell_log2);
                let (from, to) = (range.start.max(offset), range.end.min(offset + len));
                if from >= to {
                    continue;
                }
                let from = usize::try_from(from - offset).expect("inside a cell");
                let to = usize::try_from(to - offset).expect("inside a cell");
                let Some((frame, at)) = &cell.place else {
                    out.resize(out.len() + (to - from), 0);
                    continue;
                };
                let raw = self.fetch.frame(frame, FrameKind::Data).await?;
                let at = *at as usize;
                let len = usize::try_from(len).expect("a cell is short");
                let bytes =
                    raw.get(at..at + len).ok_or_else(|| damaged(frame, "a cell goes past its end"))?;
                if filemap::chaining(offset, bytes) != cell.chaining {
                    return Err(damaged(frame, "a cell is not what its map says"));
                }
                out.extend_from_slice(&bytes[from..to]);
            }
        }
        Ok(Bytes::from(out))
    }

    pub(super) async fn side_node(&self, side: Side<'_>) -> Result<Option<Arc<StoredNode>>, TreeError> {
        match side {
            Some((
                Entry { item: Item::Directory { id }, .. },
                Place { data: Data::Directory(extent), .. },
            )) => self.fetch.node(extent, *id).await.map(Some),
            _ => Ok(None),
        }
    }

    /// Finds a path's place in the tree.
    pub(crate) async fn find(&self, tree: &VersionRef, path: &VolumePath) -> Result<Option<Spot>, TreeError> {
        let mut spot = Spot::Root(self.fetch.root(tree).await?);
        for name in path.segments() {
            let node = match &spot {
                Spot::Root(node) => Arc::clone(node),
                Spot::Entry(node, number) => match self.below(node, *number).await? {
                    Some(node) => node,
                    None => return Ok(None),
                },
            };
            let Some(number) = node.node.position(name) else { return Ok(None) };
            spot = Spot::Entry(node, number);
        }
        Ok(Some(spot))
    }

    /// Reads the node behind an entry; `None` if that is not a directory.
    async fn below(&self, node: &StoredNode, number: usize) -> Result<Option<Arc<StoredNode>>, TreeError> {
        self.side_node(Some((&node.node.entries[number], &node.places[number]))).await
    }

    /// Reads the node of a directory.
    pub(crate) async fn directory(
        &self,
        tree: &VersionRef,
        path: &VolumePath,
    ) -> Result<Arc<StoredNode>, TreeError> {
        match self.find(tree, path).await? {
            None => Err(TreeError::NotFound { path: path.clone(), version: tree.version }),
            Some(Spot::Root(node)) => Ok(node),
            Some(Spot::Entry(node, number)) => self
                .below(&node, number)
                .await?
                .ok_or_else(|| TreeError::WrongKind { path: path.clone(), expected: "directory" }),
        }
    }

    /// Follows a later name to the first.
    pub(super) async fn first_name(
        &self,
        tree: &VersionRef,
        node: Arc<StoredNode>,
        number: usize,
    ) -> Result<(Arc<StoredNode>, usize), TreeError> {
        let Entry { name, item: Item::HardLink { first } } = &node.node.entries[number] else {
            return Ok((node, number));
        };
        let bad = || TreeError::BadLink { path: name.clone(), first: first.clone() };
        let path = VolumePath::parse(first).map_err(|_| bad())?;
        match self.find(tree, &path).await? {
            Some(Spot::Entry(node, number))
                if !matches!(
                    node.node.entries[number].item,
                    Item::HardLink { .. } | Item::Directory { .. }
                ) =>
            {
                Ok((node, number))
            }
            _ => Err(bad()),
        }
    }

    async fn found(
        &self,
        tree: &VersionRef,
        node: &Arc<StoredNode>,
        number: usize,
    ) -> Result<Found, TreeError> {
        let name = node.node.entries[number].name.clone();
        if let Some(below) = self.below(node, number).await? {
            return Ok(found_dir(name, &below));
        }
        let first = if let Item::HardLink { first } = &node.node.entries[number].item {
            VolumePath::parse(first).ok()
        } else {
            None
        };
        let (node, number) = self.first_name(tree, Arc::clone(node), number).await?;
        let item = &node.node.entries[number].item;
        let kind = match item {
            Item::File { size, content, .. } => FoundKind::File { size: *size, content: *content },
            Item::Symlink { target, .. } => FoundKind::Symlink { target: target.clone() },
            Item::Fifo { .. } => FoundKind::Fifo,
            Item::Socket { .. } => FoundKind::Socket,
            Item::Device { block, major, minor, .. } => {
                FoundKind::Device { block: *block, major: *major, minor: *minor }
            }
            Item::Directory { .. } | Item::HardLink { .. } => unreachable!("both were followed above"),
        };
        let meta = item.meta().cloned().unwrap_or_default();
        Ok(Found { name, kind, meta, first })
    }
}

/// A place in a tree.
#[derive(Debug, Clone)]
pub(crate) enum Spot {
    Root(Arc<StoredNode>),
    Entry(Arc<StoredNode>, usize),
}

fn found_dir(name: Vec<u8>, node: &StoredNode) -> Found {
    let kind = FoundKind::Directory { entries: node.node.entries.len() as u64 };
    Found { name, kind, meta: node.node.meta.clone(), first: None }
}
