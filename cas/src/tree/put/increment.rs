//! Putting what changed since a version: the parent's nodes and the changes are walked together, everything else is
//! taken over as it stands.

use std::ops::Range;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use rustix::fs::FileType;
use tokio::runtime::Handle;
use types::{ContentId, VolumePath};

use super::batch::{Event, FileJob, PieceJob, join};
use super::scan::{Listed, Scanner, large_facts, look};
use crate::tree::changes::{ChildChange, DirChange};
use crate::tree::error::TreeError;
use crate::tree::fetch::Fetch;
use crate::tree::filemap::{self, Cell, FRAME_CELLS, PageRef};
use crate::tree::location::{Extent, PackUse};
use crate::tree::node::Item;
use crate::tree::source;
use crate::tree::stored::{Data, MapPlace, Place, SLICE_MAX, StoredNode, Uses};

/// A directory of the parent version.
pub(super) type Base = (Arc<StoredNode>, Extent);

/// A file of the parent version.
#[derive(Debug)]
struct BaseFile {
    size: u64,
    content: ContentId,
    place: Place<Extent>,
}

/// The parent version.
#[derive(Debug)]
pub(super) struct Past<'a> {
    pub(super) fetch: &'a Fetch,
    pub(super) runtime: &'a Handle,
    pub(super) root: Base,
}

impl Past<'_> {
    pub(super) fn below(&self, node: &StoredNode, number: usize) -> Result<Option<Base>, TreeError> {
        match (&node.node.entries[number].item, &node.places[number].data) {
            (Item::Directory { id }, Data::Directory(extent)) => {
                let below = self.runtime.block_on(self.fetch.node(extent, *id))?;
                Ok(Some((below, extent.clone())))
            }
            _ => Ok(None),
        }
    }

    /// Finds a directory by its path.
    pub(super) fn directory(&self, path: &[u8]) -> Result<Option<Base>, TreeError> {
        let mut base = self.root.clone();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let Some(number) = base.0.node.position(name) else { return Ok(None) };
            match self.below(&base.0, number)? {
                Some(below) => base = below,
                None => return Ok(None),
            }
        }
        Ok(Some(base))
    }

    fn split(path: &[u8]) -> (&[u8], &[u8]) {
        let slash = path.iter().rposition(|byte| *byte == b'/');
        slash.map_or((&b""[..], path), |slash| (&path[..slash], &path[slash + 1..]))
    }

    /// Finds a file by its path; by a later name, too.
    fn file(&self, path: &[u8]) -> Result<Option<BaseFile>, TreeError> {
        let (dir, name) = Self::split(path);
        let Some((node, _)) = self.directory(dir)? else { return Ok(None) };
        let Some(number) = node.node.position(name) else { return Ok(None) };
        self.file_at(&node, number)
    }

    fn file_at(&self, node: &StoredNode, number: usize) -> Result<Option<BaseFile>, TreeError> {
        match &node.node.entries[number].item {
            Item::File { size, content, .. } => {
                Ok(Some(BaseFile { size: *size, content: *content, place: node.places[number].clone() }))
            }
            Item::HardLink { first } => {
                let (dir, name) = Self::split(first);
                let Some((node, _)) = self.directory(dir)? else { return Ok(None) };
                let Some(number) = node.node.position(name) else { return Ok(None) };
                // A first name is never a later one, so this ends.
                if matches!(node.node.entries[number].item, Item::File { .. }) {
                    self.file_at(&node, number)
                } else {
                    Ok(None)
                }
            }
            Item::Directory { .. }
            | Item::Symlink { .. }
            | Item::Fifo { .. }
            | Item::Socket { .. }
            | Item::Device { .. } => Ok(None),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Increment<'a> {
    pub(super) past: Past<'a>,
    pub(super) scanner: Scanner<'a>,
}

impl Increment<'_> {
    /// Walks a directory that differs from `base`.
    pub(super) fn directory(
        &mut self,
        path: &Arc<[u8]>,
        name: &[u8],
        change: DirChange,
        base: Base,
    ) -> Result<(), TreeError> {
        let DirChange { relist, mut children } = change;
        let node = Arc::clone(&base.0);
        let dir = source::open_dir(self.scanner.root.as_fd(), path)?;
        let dir = dir.as_fd();
        let (meta, listed) = if relist {
            let fail = |call| move |error| TreeError::io(call, path, error);
            let facts = source::facts_of(dir).map_err(fail("stat"))?;
            let xattrs = source::xattrs_of(dir).map_err(fail("read attributes of"))?;
            (facts.metadata(xattrs), Some(source::names(dir, path)?))
        } else {
            (node.node.meta.clone(), None)
        };
        let enter = Event::Enter {
            name: name.to_vec(),
            meta,
            base: Some(Arc::clone(&node)),
            old: Some((Arc::clone(&node), base.1)),
        };
        self.scanner.cutter.event(enter)?;
        let mut kept = 0..0;
        for (name, number) in union(&node, listed, &children) {
            let child = children.remove(&name);
            if let (
                None | Some(ChildChange::Directory(DirChange { relist: false, .. })),
                Some(Some(number)),
                true,
            ) = (&child, &number, child.as_ref().is_none_or(is_nothing))
            {
                // Runs of names that are kept are one event.
                if kept.end == *number {
                    kept.end += 1;
                } else {
                    self.keep(std::mem::replace(&mut kept, *number..*number + 1))?;
                }
                continue;
            }
            self.keep(std::mem::replace(&mut kept, 0..0))?;
            match number {
                // Only in the parent's node: gone.
                None => {
                    if child.is_some() {
                        return Err(TreeError::ChangesDoNotFit {
                            path: join(path, &name),
                            reason: "it changed and is not there",
                        });
                    }
                    let number = node.node.position(&name).expect("it came from the node");
                    self.drop_old(&node, number, true)?;
                }
                Some(number) => {
                    let old = match number {
                        Some(number) => self.drop_old(&node, number, false)?,
                        None => None,
                    };
                    let old_file = number.map(|number| (Arc::clone(&node), number));
                    let child = child.unwrap_or(ChildChange::New);
                    self.child(dir, path, name, child, old, old_file)?;
                }
            }
        }
        self.keep(kept)?;
        self.scanner.cutter.event(Event::Leave)
    }

    fn keep(&mut self, kept: Range<usize>) -> Result<(), TreeError> {
        if kept.is_empty() { Ok(()) } else { self.scanner.cutter.event(Event::Keep(kept)) }
    }

    /// Takes an entry out of the sums; returns its node if it is a directory.
    fn drop_old(
        &mut self,
        node: &Arc<StoredNode>,
        number: usize,
        gone: bool,
    ) -> Result<Option<Base>, TreeError> {
        let below = self.past.below(node, number)?;
        let dropped = below.as_ref().map(|(node, _)| Arc::clone(node));
        self.scanner.cutter.event(Event::Drop { number, node: dropped, gone })?;
        Ok(below)
    }

    fn child(
        &mut self,
        dir: std::os::fd::BorrowedFd<'_>,
        path: &Arc<[u8]>,
        name: Vec<u8>,
        child: ChildChange,
        old_dir: Option<Base>,
        old_file: Option<(Arc<StoredNode>, usize)>,
    ) -> Result<(), TreeError> {
        let below: Arc<[u8]> = join(path, &name).into();
        match child {
            ChildChange::Directory(change) => match old_dir {
                Some(base) => self.directory(&below, &name, change, base),
                // It is new, and only its links were told.
                None => self.new_child(dir, path, name),
            },
            ChildChange::Moved { from, change } => {
                let Some(base) = self.past.directory(from.as_bytes())? else {
                    return Err(TreeError::ChangesDoNotFit {
                        path: below.to_vec(),
                        reason: "it was moved from where there is no directory in the parent version",
                    });
                };
                if change.is_empty() {
                    let (node, extent) = base;
                    return self.scanner.cutter.event(Event::Adopt { name, node, extent });
                }
                self.directory(&below, &name, change, base)
            }
            ChildChange::New => self.new_child(dir, path, name),
            ChildChange::Metadata { from } => {
                let listed = look(dir, path, name)?;
                if listed.facts.kind == FileType::Directory {
                    return match (from, old_dir) {
                        (None, Some(base)) => {
                            let change = DirChange { relist: true, ..DirChange::default() };
                            let name = listed.name;
                            self.directory(&below, &name, change, base)
                        }
                        _ => self.scanner.walk(&below, &listed.name),
                    };
                }
                let base = self.base_file(from.as_ref(), old_file)?;
                // A length that differs says that more than the metadata changed.
                let same = base.as_ref().is_some_and(|base| base.size == listed.facts.size);
                self.file(path, listed, base, same.then(Vec::new), None)
            }
            ChildChange::Content { ranges, inline } => {
                let listed = look(dir, path, name)?;
                if listed.facts.kind == FileType::Directory {
                    return self.scanner.walk(&below, &listed.name);
                }
                let base = self.base_file(None, old_file)?;
                self.file(path, listed, base, ranges, inline)
            }
        }
    }

    fn new_child(
        &mut self,
        dir: std::os::fd::BorrowedFd<'_>,
        path: &Arc<[u8]>,
        name: Vec<u8>,
    ) -> Result<(), TreeError> {
        let listed = look(dir, path, name)?;
        if listed.facts.kind == FileType::Directory {
            let below = join(path, &listed.name);
            self.scanner.walk(&below, &listed.name)
        } else {
            self.scanner.entry(path, listed)
        }
    }

    fn base_file(
        &self,
        from: Option<&VolumePath>,
        old: Option<(Arc<StoredNode>, usize)>,
    ) -> Result<Option<BaseFile>, TreeError> {
        match (from, old) {
            (Some(from), _) => self.past.file(from.as_bytes()),
            (None, Some((node, number))) => self.past.file_at(&node, number),
            (None, None) => Ok(None),
        }
    }

    /// Takes a file of which `ranges` may differ from `base` (`None`: all of it).
    fn file(
        &mut self,
        dir: &Arc<[u8]>,
        listed: Listed,
        base: Option<BaseFile>,
        ranges: Option<Vec<Range<u64>>>,
        inline: Option<bytes::Bytes>,
    ) -> Result<(), TreeError> {
        let path = join(dir, &listed.name);
        let linked = listed.facts.links > 1;
        if let Some(first) = self.scanner.links.first(&listed.facts, &path)? {
            return self.scanner.later_name(dir, listed.name, first);
        }
        if let Some(item) = listed.item() {
            let place = Place { linked, sparse: false, data: Data::Nothing };
            return self.scanner.cutter.event(Event::Item { name: listed.name, item, place });
        }
        let Some(base) = base else { return self.scanner.file(dir, listed, linked) };
        let facts = listed.facts;
        if facts.size == base.size && ranges.as_ref().is_some_and(Vec::is_empty) {
            let xattrs = self.attributes(dir, &listed.name, &path)?;
            let item = Item::File { meta: facts.metadata(xattrs), size: base.size, content: base.content };
            let place = Place { linked, ..base.place };
            return self.scanner.cutter.event(Event::Item { name: listed.name, item, place });
        }
        if facts.size <= SLICE_MAX {
            let old = Some((base.content, base.place));
            let (dir, name) = (Arc::clone(dir), listed.name);
            return self.scanner.cutter.file(linked, FileJob { dir, name, facts, inline, old, done: None });
        }
        let Data::Map(map) = &base.place.data else { return self.scanner.file(dir, listed, linked) };
        let ranges = ranges.unwrap_or_else(|| std::iter::once(0..facts.size).collect());
        self.large(dir, listed, linked, &base, map, &ranges)
    }

    fn attributes(
        &self,
        dir: &[u8],
        name: &[u8],
        path: &[u8],
    ) -> Result<Vec<crate::tree::node::Xattr>, TreeError> {
        let dir = source::open_dir(self.scanner.root.as_fd(), dir)?;
        source::xattrs_at(dir.as_fd(), name).map_err(|error| TreeError::io("read attributes of", path, error))
    }

    /// Takes a large file cell by cell: those in `ranges`, and where its length changed.
    fn large(
        &mut self,
        dir: &Arc<[u8]>,
        listed: Listed,
        linked: bool,
        base: &BaseFile,
        map: &MapPlace<Extent>,
        ranges: &[Range<u64>],
    ) -> Result<(), TreeError> {
        let Listed { name, facts, .. } = listed;
        let (size, cell_log2) = (facts.size, map.cell_log2);
        let page_log2 = filemap::page_log2(cell_log2);
        let old_pages = self.past.runtime.block_on(self.past.fetch.pages(map, base.size, base.content))?;
        // A range is changed if something in it is named, or if it does not end where it did.
        let changed = |start: u64, log2: u32| {
            let end = (start + (1 << log2)).min(size);
            end != (start + (1 << log2)).min(base.size)
                || ranges.iter().any(|range| range.start < end && range.end > start)
        };
        let (meta, sparse) = large_facts(self.scanner.root, dir, &name, &facts)?;
        let mut uses = Uses::new();
        for (pack, used) in &map.uses {
            if let Some(pack) = pack {
                uses.entry(Arc::clone(pack)).or_default().add(*used);
            }
        }
        let mut without = |extent: &Extent| subtract(&mut uses, &extent.uses());
        if old_pages.len() > 1 {
            without(&map.root);
        }
        // What the pages that stay use is in the sums already; the others are counted again, cell by cell.
        let mut pages = Vec::new();
        for number in 0..filemap::pieces(base.size, page_log2).max(filemap::pieces(size, page_log2)) {
            let start = number << page_log2;
            let index = usize::try_from(number).expect("as many pages as are in memory");
            let old = old_pages.get(index);
            if let Some(old) = old
                && old_pages.len() > 1
                && filemap::pieces(size, page_log2) > 1
                && start < size
                && !changed(start, page_log2)
            {
                pages.push((start, Err(old.clone())));
                continue;
            }
            let mut cells = Vec::new();
            if let Some(old) = old {
                if let Some(place) = &old.place {
                    subtract(&mut uses, &place.uses());
                }
                cells = self.old_cells(map, base, &old_pages, index)?;
                for (number, cell) in (0u64..).zip(&cells) {
                    if let Some((frame, _)) = &cell.place {
                        let at = start + (number << cell_log2);
                        let bytes = base.size.saturating_sub(at).min(1 << cell_log2);
                        let used = PackUse { references: 1, bytes };
                        subtract(&mut uses, &Uses::from([(Arc::clone(&frame.pack), used)]));
                    }
                }
            }
            if start < size {
                pages.push((start, Ok(cells)));
            }
        }
        self.scanner.cutter.event(Event::Large {
            name: name.clone(),
            linked,
            sparse,
            meta,
            size,
            cell_log2,
            uses,
        })?;
        for (start, page) in pages {
            match page {
                Err(page) => self.scanner.cutter.event(Event::Page(page))?,
                Ok(cells) => {
                    let job = PieceJob {
                        dir: Arc::clone(dir),
                        name: name.clone(),
                        facts,
                        cell_log2,
                        offset: start,
                        len: 0,
                        old: Vec::new(),
                        done: Vec::new(),
                    };
                    self.page(&job, cells, &changed)?;
                }
            }
        }
        self.scanner.cutter.event(Event::LargeEnd)
    }

    /// The cells of an old page, with their true chaining values also where they are zeros.
    fn old_cells(
        &self,
        map: &MapPlace<Extent>,
        base: &BaseFile,
        pages: &[PageRef<Extent>],
        number: usize,
    ) -> Result<Vec<Cell>, TreeError> {
        let (past, size) = (&self.past, base.size);
        let mut cells = past.runtime.block_on(past.fetch.cells(map, size, base.content, pages, number))?;
        if pages[number].place.is_none() {
            let zeros = vec![0; 1 << map.cell_log2];
            let start = (number as u64) << filemap::page_log2(map.cell_log2);
            for (cell_number, cell) in (0u64..).zip(&mut cells) {
                let offset = start + (cell_number << map.cell_log2);
                let len = usize::try_from((size - offset).min(1 << map.cell_log2)).expect("a cell is short");
                cell.chaining = filemap::chaining(offset, &zeros[..len]);
            }
        }
        Ok(cells)
    }

    /// Tells the cells of one page: runs of old ones, and pieces to read.
    fn page(
        &mut self,
        job: &PieceJob,
        cells: Vec<Cell>,
        changed: &impl Fn(u64, u32) -> bool,
    ) -> Result<(), TreeError> {
        let (size, cell_log2) = (job.facts.size, u32::from(job.cell_log2));
        let end = (job.offset + (1 << filemap::page_log2(job.cell_log2))).min(size);
        let mut old = cells.into_iter().map(Some);
        let mut kept: Vec<Cell> = Vec::new();
        let mut piece: Option<PieceJob> = None;
        let mut offset = job.offset;
        while offset < end {
            let len = (end - offset).min(1 << cell_log2);
            let cell = old.next().flatten();
            match cell {
                Some(cell) if !changed(offset, cell_log2) => {
                    if let Some(piece) = piece.take() {
                        self.scanner.cutter.piece(piece)?;
                    }
                    kept.push(cell);
                }
                cell => {
                    if !kept.is_empty() {
                        self.scanner.cutter.event(Event::Cells(std::mem::take(&mut kept)))?;
                    }
                    let piece_now = piece.get_or_insert_with(|| PieceJob {
                        dir: Arc::clone(&job.dir),
                        name: job.name.clone(),
                        facts: job.facts,
                        cell_log2: job.cell_log2,
                        offset,
                        len: 0,
                        old: Vec::new(),
                        done: Vec::new(),
                    });
                    piece_now.len += len;
                    piece_now.old.extend(cell);
                    if piece_now.len >= FRAME_CELLS << cell_log2
                        && let Some(piece) = piece.take()
                    {
                        self.scanner.cutter.piece(piece)?;
                    }
                }
            }
            offset += len;
        }
        if let Some(piece) = piece {
            self.scanner.cutter.piece(piece)?;
        }
        if kept.is_empty() { Ok(()) } else { self.scanner.cutter.event(Event::Cells(kept)) }
    }
}

fn is_nothing(change: &ChildChange) -> bool {
    matches!(change, ChildChange::Directory(change) if change.is_empty())
}

fn subtract(uses: &mut Uses, other: &Uses) {
    for (pack, used) in other {
        if let Some(mine) = uses.get_mut(pack) {
            mine.subtract(*used);
            if mine.references == 0 {
                uses.remove(pack);
            }
        }
    }
}

/// The names of a directory and its parent's node, in order: with `Some(n)` those that are there (`n`: the number in
/// the node, if it was there before), with `None` those that are gone.
fn union(
    node: &StoredNode,
    listed: Option<Vec<Vec<u8>>>,
    children: &std::collections::BTreeMap<Vec<u8>, ChildChange>,
) -> Vec<(Vec<u8>, Option<Option<usize>>)> {
    let old = || node.node.entries.iter().enumerate().map(|(number, entry)| (entry.name.clone(), number));
    let mut all: std::collections::BTreeMap<Vec<u8>, Option<Option<usize>>> = match &listed {
        Some(names) => names.iter().map(|name| (name.clone(), Some(None))).collect(),
        None => old().map(|(name, number)| (name, Some(Some(number)))).collect(),
    };
    if listed.is_some() {
        for (name, number) in old() {
            match all.get_mut(&name) {
                Some(there) => *there = Some(Some(number)),
                None => {
                    all.insert(name, None);
                }
            }
        }
    }
    for name in children.keys() {
        // Not listed and not in the node: the caller looks for it on disk, and says so if it is not there.
        all.entry(name.clone()).or_insert(if listed.is_some() { None } else { Some(None) });
    }
    all.into_iter().collect()
}
