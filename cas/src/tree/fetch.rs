//! Reading frames, nodes and manifests from packs, through the cache, each proved before it is used.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use types::{ContentId, PackId, VersionId};

use super::cache::Cache;
use super::codec::{Malformed, Take};
use super::error::TreeError;
use super::filemap::{self, Cell, PageRef};
use super::frame::{Decompressor, FrameHeader, FrameKind};
use super::location::{Extent, Location, VersionRef};
use super::manifest::Manifest;
use super::pack::{Footer, FooterError};
use super::stored::{MapPlace, StoredNode};
use crate::keys;
use crate::objects::{ObjectError, Objects};

/// Reads from packs.
#[derive(Debug, Clone)]
pub(crate) struct Fetch {
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) cache: Arc<Cache>,
    /// Where the frames of packs end, if the tree is going to be walked whole: then tree frames that follow the one
    /// asked for come with it.
    ahead: Option<Arc<BTreeMap<Arc<PackId>, u64>>>,
}

/// How much is fetched with the manifest of a tree whose root is wanted too.
const BEFORE_MANIFEST: u64 = 256 << 10;

/// How much of a pack's end is read at first for its footer: that of a pack of a thousand frames.
const FOOTER_GUESS: u64 = 64 << 10;

/// How much is fetched with one tree frame when a tree is walked whole.
const AHEAD: u64 = 4 << 20;

impl Fetch {
    pub(crate) fn new(objects: Arc<dyn Objects>, cache: Arc<Cache>) -> Self {
        Self { objects, cache, ahead: None }
    }

    /// The same for a walk of a whole version: nodes lie in the order in which such a walk asks for them.
    pub(crate) async fn ahead(&self, tree: &VersionRef) -> Result<Self, TreeError> {
        let manifest = self.manifest(tree).await?;
        // The manifest is the last frame of its own pack. Of other packs the end of the footer is known, and what is
        // not a frame is passed over.
        let own = (Arc::clone(&tree.manifest.pack), u64::from(tree.manifest.offset));
        let ends = manifest
            .packs
            .iter()
            .filter_map(|needed| Some((Arc::clone(&needed.pack), needed.object_bytes?)))
            .chain(std::iter::once(own));
        Ok(Self { ahead: Some(Arc::new(ends.collect())), ..self.clone() })
    }

    /// Reads a tree frame and the tree frames behind it.
    async fn frames_ahead(&self, location: &Location, end: u64) -> Result<Bytes, TreeError> {
        let wanted = location.range();
        let end = end.min(wanted.start + AHEAD).max(wanted.end);
        let bytes = self.range(&location.pack, wanted.start..end).await?;
        let first = open(location, &bytes.slice(..location.stored_len as usize), FrameKind::Tree)?;
        let mut at = location.stored_len as usize;
        while let Some(header) = bytes.get(at..).and_then(|rest| FrameHeader::take(&mut Take::new(rest)).ok())
        {
            let next = Location {
                pack: Arc::clone(&location.pack),
                offset: location.offset.saturating_add(u32::try_from(at).unwrap_or(u32::MAX)),
                stored_len: header.stored_len(),
                raw_len: header.raw_len,
            };
            let Some(stored) = bytes.get(at..at + next.stored_len as usize) else { break };
            at += stored.len();
            // A damaged one is found when it is asked for.
            if header.kind == FrameKind::Tree
                && let Ok(raw) = open(&next, stored, FrameKind::Tree)
            {
                self.cache.keep_frame(&next, &raw);
            }
        }
        Ok(first)
    }

    /// Reads bytes of a pack, or of those that its frames were moved to. One that is gone or too short is damage, and
    /// named. A version that was thinned meanwhile looks the same: who reads one looks at its record again.
    pub(crate) async fn range(&self, pack: &PackId, range: Range<u64>) -> Result<Bytes, TreeError> {
        self.follow(pack, range, 0).await
    }

    /// Reads the footer of a pack of `size` bytes by `read`, from its end: first as much as most need, then all that this one
    /// does. What is wrong with a footer that came is for the caller to judge.
    pub(super) async fn footer<F>(
        size: u64,
        read: impl Fn(Range<u64>) -> F,
    ) -> Result<Result<Footer, FooterError>, TreeError>
    where
        F: Future<Output = Result<Bytes, TreeError>>,
    {
        let mut tail = FOOTER_GUESS.min(size);
        loop {
            match Footer::read(&read(size - tail..size).await?, size) {
                Err(FooterError::Short(needed)) if needed as u64 > tail && tail < size => {
                    tail = (needed as u64).min(size);
                }
                footer => return Ok(footer),
            }
        }
    }

    /// Reads bytes of a pack that is where its name says.
    pub(super) async fn direct(&self, pack: &PackId, range: Range<u64>) -> Result<Bytes, TreeError> {
        match self.objects.get_range(&keys::pack(pack), range.clone()).await {
            Ok(bytes) if bytes.len() as u64 == range.end - range.start => Ok(bytes),
            // No store may do this; one that does is not believed.
            Ok(bytes) => Err(TreeError::DamagedPack {
                pack: pack.clone(),
                reason: format!("{} bytes came for {}..{}", bytes.len(), range.start, range.end),
            }),
            Err(ObjectError::NotFound { .. }) => Err(TreeError::MissingPack { pack: pack.clone() }),
            Err(ObjectError::Range { size, .. }) => Err(TreeError::DamagedPack {
                pack: pack.clone(),
                reason: format!("bytes {}..{} are not in it (it has {size:?})", range.start, range.end),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a frame and proves its hash. `kind` is what must be in it.
    pub(crate) async fn frame(&self, location: &Location, kind: FrameKind) -> Result<Bytes, TreeError> {
        if let Some(raw) = self.cache.frame(location) {
            return Ok(raw);
        }
        let end = self
            .ahead
            .as_ref()
            .and_then(|ahead| ahead.get(&location.pack))
            .filter(|_| kind == FrameKind::Tree);
        let ahead = match end {
            Some(end) => match self.frames_ahead(location, *end).await {
                // What is damaged may be one of the others, or a cut behind this one.
                Err(error) if error.is_damage() => None,
                read => Some(read?),
            },
            None => None,
        };
        let raw = match ahead {
            Some(raw) => raw,
            None => open(location, &self.range(&location.pack, location.range()).await?, kind)?,
        };
        self.cache.keep_frame(location, &raw);
        Ok(raw)
    }

    /// Reads the bytes of an extent.
    pub(crate) async fn extent(&self, extent: &Extent) -> Result<Bytes, TreeError> {
        let start = extent.offset as usize;
        if let [only] = extent.frames.as_slice() {
            let raw = self.frame(only, FrameKind::Tree).await?;
            let end = usize::try_from(extent.len).ok().and_then(|len| start.checked_add(len));
            return match end {
                Some(end) if end <= raw.len() => Ok(raw.slice(start..end)),
                _ => Err(damaged(only, "something in it goes past its end")),
            };
        }
        let mut bytes = Vec::new();
        for frame in &extent.frames {
            bytes.extend_from_slice(&self.frame(frame, FrameKind::Tree).await?);
        }
        let Some(bytes) = usize::try_from(extent.len)
            .ok()
            .and_then(|len| Some(bytes.get(start..start.checked_add(len)?)?.to_vec()))
        else {
            return Err(damaged(&extent.frames[0], "something in it goes past its end"));
        };
        Ok(Bytes::from(bytes))
    }

    /// Reads a directory node and proves that it is the one with this id.
    pub(crate) async fn node(&self, extent: &Extent, id: VersionId) -> Result<Arc<StoredNode>, TreeError> {
        let node = match self.cache.node(extent) {
            Some(node) => node,
            None => {
                let bytes = self.extent(extent).await?;
                let own = if let [only] = extent.frames.as_slice() { Some(only) } else { None };
                let node = StoredNode::decode(&bytes, own)
                    .map_err(|source| TreeError::Damaged { location: extent.frames[0].clone(), source })?;
                let node = Arc::new(node);
                self.cache.keep_node(extent, &node);
                node
            }
        };
        if node.id == id {
            Ok(node)
        } else {
            Err(TreeError::WrongTree { location: extent.frames[0].clone(), expected: id, found: node.id })
        }
    }

    /// Reads a version's manifest and proves that it is this version's.
    pub(crate) async fn manifest(&self, tree: &VersionRef) -> Result<Arc<Manifest>, TreeError> {
        self.manifest_with(tree, 0).await
    }

    /// The same, with up to `before` bytes that lie before it: the root is usually the last node that was written, and the directories near
    /// it lie there, too.
    async fn manifest_with(&self, tree: &VersionRef, before: u64) -> Result<Arc<Manifest>, TreeError> {
        let manifest = match self.cache.manifest(&tree.manifest) {
            Some(manifest) => manifest,
            None => {
                let range = tree.manifest.range();
                let start = range.start.saturating_sub(before);
                let bytes = self.range(&tree.manifest.pack, start..range.end).await?;
                let at = |offset: u64| usize::try_from(offset - start).expect("a range is in memory");
                let raw = open(&tree.manifest, &bytes.slice(at(range.start)..), FrameKind::Manifest)?;
                let manifest = Manifest::decode(&raw)
                    .map_err(|source| TreeError::Damaged { location: tree.manifest.clone(), source })?;
                let manifest = Arc::new(manifest);
                self.cache.keep_manifest(&tree.manifest, &manifest);
                self.keep_tail(&tree.manifest.pack, start, &bytes.slice(..at(range.start)));
                manifest
            }
        };
        if manifest.version == tree.version {
            Ok(manifest)
        } else {
            Err(TreeError::WrongTree {
                location: tree.manifest.clone(),
                expected: tree.version,
                found: manifest.version,
            })
        }
    }

    /// Reads a version's root node.
    pub(crate) async fn root(&self, tree: &VersionRef) -> Result<Arc<StoredNode>, TreeError> {
        let manifest = self.manifest_with(tree, BEFORE_MANIFEST).await?;
        self.node(&manifest.root, tree.version).await
    }
}

/// Says that a frame is damaged.
pub(crate) fn damaged(location: &Location, reason: &'static str) -> TreeError {
    TreeError::Damaged { location: location.clone(), source: Malformed { at: 0, reason } }
}

pub(super) fn open(location: &Location, stored: &[u8], kind: FrameKind) -> Result<Bytes, TreeError> {
    let (found, raw) = Decompressor::default()
        .open(location, stored)
        .map_err(|source| TreeError::Damaged { location: location.clone(), source })?;
    if found == kind { Ok(Bytes::from(raw)) } else { Err(damaged(location, "a frame is of another kind")) }
}

/// Pages of a large file's map.
impl Fetch {
    /// Reads which pages a map has, and proves that they make the file that was asked for. A map of one page is that
    /// page; its cells prove it.
    pub(crate) async fn pages(
        &self,
        map: &MapPlace<Extent>,
        size: u64,
        content: ContentId,
    ) -> Result<Vec<PageRef<Extent>>, TreeError> {
        if filemap::pieces(size, filemap::page_log2(map.cell_log2)) == 1 {
            return Ok(vec![PageRef { chaining: [0; 32], place: Some(map.root.clone()) }]);
        }
        let first = &map.root.frames[0];
        let own = if map.root.frames.len() == 1 { Some(first) } else { None };
        let pages = filemap::decode_pages(&self.extent(&map.root).await?, size, map.cell_log2, own)
            .map_err(|source| TreeError::Damaged { location: first.clone(), source })?;
        let values: Vec<_> = pages.iter().map(|page| page.chaining).collect();
        if filemap::root_hash(&values) != Some(content) {
            return Err(damaged(first, "a map is not of the file that names it"));
        }
        Ok(pages)
    }

    /// Reads the cells of the page `number` of `pages`, and proves them.
    pub(crate) async fn cells(
        &self,
        map: &MapPlace<Extent>,
        size: u64,
        content: ContentId,
        pages: &[PageRef<Extent>],
        number: usize,
    ) -> Result<Vec<Cell>, TreeError> {
        let start = (number as u64) << filemap::page_log2(map.cell_log2);
        let left = size.saturating_sub(start).min(1 << filemap::page_log2(map.cell_log2));
        let page = &pages[number];
        let Some(place) = &page.place else {
            // All zeros. Their chaining values are in the page's, which the map proved.
            let count = filemap::pieces(left, u32::from(map.cell_log2));
            return Ok((0..count).map(|_| Cell { chaining: [0; 32], place: None }).collect());
        };
        let first = &place.frames[0];
        let cells = filemap::decode_cells(&self.extent(place).await?, left, map.cell_log2)
            .map_err(|source| TreeError::Damaged { location: first.clone(), source })?;
        let values: Vec<_> = cells.iter().map(|cell| cell.chaining).collect();
        let proved = match pages {
            [_] => filemap::root_hash(&values) == Some(content),
            _ => filemap::fold(&values) == Some(page.chaining),
        };
        if proved { Ok(cells) } else { Err(damaged(first, "a page is not of the map that names it")) }
    }
}
