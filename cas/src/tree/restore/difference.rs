//! Turning one version on disk into another: only what differs is fetched and touched.
//!
//! What is removed goes at once; what is made goes through the windows of a restore. A file of which there is one before
//! and after gets its bytes where it stands: its directory is then left alone, which is half of the work. A large one is
//! changed cell by cell, so that a clone keeps sharing the rest. A file that is made anew loses its other names' inode, so
//! where such files have several, all later names are looked at in the end.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::target::Target;
use super::walk::Walk;
use super::window::{Dir, Part, Spot};
use super::worker::Counts;
use crate::tree::diff::{pairs, same_but_metadata};
use crate::tree::error::TreeError;
use crate::tree::filemap::{self, Cell};
use crate::tree::location::Extent;
use crate::tree::node::Item;
use crate::tree::put::join;
use crate::tree::source;
use crate::tree::stored::{Data, MapPlace, StoredNode};

/// See the module.
#[derive(Debug)]
pub(super) struct Change<'a, 'b> {
    pub(super) walk: &'a mut Walk<'b>,
    /// A file that has, or had, other names was made anew or removed.
    pub(super) links_touched: bool,
}

struct Level {
    old: Arc<StoredNode>,
    dir: Arc<Dir>,
    next: usize,
    pairs: Vec<(Option<usize>, Option<usize>)>,
    touched: bool,
}

impl Level {
    fn new(path: Arc<[u8]>, old: Arc<StoredNode>, new: Arc<StoredNode>) -> Self {
        let pairs = pairs(Some(&old), Some(&new))
            .into_iter()
            .map(|(name, left, right)| {
                let number =
                    |node: &StoredNode, there: bool| there.then(|| node.node.position(name)).flatten();
                (number(&old, left.is_some()), number(&new, right.is_some()))
            })
            .collect();
        Self { old, dir: Arc::new(Dir { path, node: new }), next: 0, pairs, touched: false }
    }
}

impl Change<'_, '_> {
    fn target(&self) -> Result<&Target, TreeError> {
        self.walk.site.target.as_ref().ok_or(TreeError::Stopped("there is nothing to change"))
    }

    /// Walks both versions together.
    pub(super) fn run(&mut self, old: Arc<StoredNode>, new: Arc<StoredNode>) -> Result<(), TreeError> {
        let mut stack = vec![Level::new(Arc::from(&b""[..]), old, new)];
        while let Some(level) = stack.last_mut() {
            let Some((old, new)) = level.pairs.get(level.next).copied() else {
                let level = stack.pop().expect("it was there a line above");
                if level.touched || level.old.node.meta != level.dir.node.node.meta {
                    Counts::add(&self.walk.site.counts.directories, 1);
                    self.walk.window.dirs.push(level.dir);
                }
                self.walk.breathe()?;
                continue;
            };
            level.next += 1;
            let spot = new.map(|number| Spot { dir: Arc::clone(&level.dir), number, is_there: false });
            let before = old.map(|number| (&level.old.node.entries[number], &level.old.places[number]));
            if let (Some((before, _)), Some(spot)) = (before, &spot)
                && before.item == *spot.item()
            {
                continue;
            }
            if let (Some((_, place)), Some(spot)) = (before, &spot)
                && let (Data::Directory(was), Data::Directory(is)) = (&place.data, &spot.place().data)
                && let (Some((before, _)), Item::Directory { id }) = (before, spot.item())
                && let Item::Directory { id: old_id } = &before.item
            {
                let fetch = self.walk.fetch;
                let was = self.walk.runtime.block_on(fetch.node(was, *old_id))?;
                let is = self.walk.runtime.block_on(fetch.node(is, *id))?;
                let path = spot.path().into();
                stack.push(Level::new(path, was, is));
                continue;
            }
            let linked = before.is_some_and(|(_, place)| place.linked)
                || spot.as_ref().is_some_and(|spot| spot.place().linked);
            if let (Some((before, place)), Some(spot)) = (before, &spot) {
                if !matches!(before.item, Item::HardLink { .. })
                    && same_but_metadata(&before.item, spot.item())
                {
                    self.metadata(spot)?;
                    continue;
                }
                if let (Data::Map(was), Data::Map(is)) = (&place.data, &spot.place().data)
                    && was.cell_log2 == is.cell_log2
                {
                    let (item, was, is) = (before.item.clone(), was.clone(), is.clone());
                    self.cells(spot, &item, &was, &is)?;
                    continue;
                }
                let has_cells = matches!(spot.place().data, Data::Map(_));
                if !linked && !has_cells && is_file(&before.item) && is_file(spot.item()) {
                    self.walk.entry(Spot { is_there: true, ..spot.clone() })?;
                    continue;
                }
            }
            self.links_touched |= linked;
            if !level.touched {
                let dir = self.target()?.open_dir(&level.dir.path)?;
                self.target()?.shut(dir.as_fd(), &level.dir.path)?;
                level.touched = true;
            }
            if let Some((before, place)) = before {
                if let (Item::Directory { id }, Data::Directory(extent)) = (&before.item, &place.data) {
                    let gone = self.walk.runtime.block_on(self.walk.fetch.node(extent, *id))?;
                    self.links_touched |= gone.totals.links > 0;
                }
                let removed = self.target()?.remove(&join(&level.dir.path, &before.name))?;
                Counts::add(&self.walk.site.counts.removed, removed);
            }
            if let Some(spot) = spot {
                self.make(spot)?;
            }
        }
        Ok(())
    }

    fn make(&mut self, spot: Spot) -> Result<(), TreeError> {
        match (spot.item(), &spot.place().data) {
            (Item::Directory { id }, Data::Directory(extent)) => {
                let node = self.walk.runtime.block_on(self.walk.fetch.node(extent, *id))?;
                let path: Arc<[u8]> = spot.path().into();
                self.target()?.make_dir(&path)?;
                self.links_touched |= node.totals.links > 0;
                self.walk.tree(path, node)
            }
            _ => self.walk.entry(spot),
        }
    }

    /// Changes only the metadata of what is there.
    fn metadata(&mut self, spot: &Spot) -> Result<(), TreeError> {
        let Some(meta) = spot.item().meta() else { return Ok(()) };
        let target = self.target()?;
        let path = spot.path();
        let dir = target.open_dir(&spot.dir.path)?;
        Counts::add(&self.walk.site.counts.files, 1);
        if matches!(spot.item(), Item::File { .. }) {
            let fd = source::open_file(dir.as_fd(), &spot.entry().name)
                .map_err(|error| TreeError::io("open", &path, error))?;
            target.drop_other_xattrs(fd.as_fd(), &path, meta)?;
            return target.finish(fd.as_fd(), &path, meta, None);
        }
        // What cannot be opened has few attributes, and is made anew as soon as it has one too many.
        let found = source::xattrs_at(dir.as_fd(), &spot.entry().name)
            .map_err(|error| TreeError::io("read attributes of", &path, error))?;
        for (name, _) in found.iter().filter(|(name, _)| meta.xattrs.iter().all(|(kept, _)| kept != name)) {
            rustix::fs::lremovexattr(&source::proc_path(dir.as_fd(), &spot.entry().name)[..], &name[..])
                .map_err(|error| TreeError::io("remove attribute of", &path, error))?;
        }
        target.finish_special(dir.as_fd(), &path, &spot.entry().name, spot.item(), meta)
    }

    /// Changes a large file where it stands.
    fn cells(
        &mut self,
        spot: &Spot,
        before: &Item,
        was: &MapPlace<Extent>,
        is: &MapPlace<Extent>,
    ) -> Result<(), TreeError> {
        let (Item::File { size: old_size, content: old_content, .. }, Item::File { size, content, .. }) =
            (before, spot.item())
        else {
            return Ok(());
        };
        let (old_size, size, cell_log2) = (*old_size, *size, is.cell_log2);
        let path = spot.path();
        let sparse = spot.place().sparse;
        let dir = self.target()?.open_dir(&spot.dir.path)?;
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir, &spot.entry().name[..], flags, Mode::empty())
            .map_err(|error| TreeError::io("open", &path, error))?;
        rustix::fs::ftruncate(&fd, size).map_err(|error| TreeError::io("set the length of", &path, error))?;
        let (fetch, runtime) = (self.walk.fetch, self.walk.runtime);
        let old_pages = runtime.block_on(fetch.pages(was, old_size, *old_content))?;
        let pages = runtime.block_on(fetch.pages(is, size, *content))?;
        for (number, page) in pages.iter().enumerate() {
            let start = (number as u64) << filemap::page_log2(cell_log2);
            let end = (start + (1 << filemap::page_log2(cell_log2))).min(size);
            let old_page = old_pages.get(number);
            let same_end = end == (start + (1 << filemap::page_log2(cell_log2))).min(old_size);
            let several = pages.len() > 1 && old_pages.len() > 1;
            if several && same_end && old_page.is_some_and(|old| old.chaining == page.chaining) {
                continue;
            }
            let cells = runtime.block_on(fetch.cells(is, size, *content, &pages, number))?;
            let old_cells = match old_page {
                Some(_) => runtime.block_on(fetch.cells(was, old_size, *old_content, &old_pages, number))?,
                None => Vec::new(),
            };
            for (cell_number, cell) in cells.into_iter().enumerate() {
                let file_offset = start + ((cell_number as u64) << cell_log2);
                let len = (size - file_offset).min(1 << cell_log2);
                let old_len = old_size.saturating_sub(file_offset).min(1 << cell_log2);
                let same = |old: &Cell| {
                    len == old_len
                        && (old.chaining == cell.chaining || (old.place.is_none() && cell.place.is_none()))
                };
                if old_cells.get(cell_number).is_some_and(same) {
                    continue;
                }
                let wanted = u32::try_from(len).expect("a cell is short");
                // A hole first: blocks of zeros in it are then not written.
                let punched = sparse && punch(&fd, file_offset, len, &path)?;
                match cell.place {
                    Some((frame, offset)) if punched || !sparse => {
                        let (spot, chaining) = (spot.clone(), cell.chaining);
                        self.walk
                            .window
                            .part(&frame, Part::Cell { spot, offset, file_offset, len: wanted, chaining });
                    }
                    Some((frame, offset)) => {
                        zeros(&fd, file_offset, len, &path)?;
                        let (spot, chaining) = (spot.clone(), cell.chaining);
                        self.walk
                            .window
                            .part(&frame, Part::Cell { spot, offset, file_offset, len: wanted, chaining });
                    }
                    None if punched => {}
                    None => zeros(&fd, file_offset, len, &path)?,
                }
            }
            self.walk.breathe()?;
        }
        Counts::add(&self.walk.site.counts.files, 1);
        self.walk.window.large.push(spot.clone());
        self.walk.breathe()
    }

    /// Looks at every later name in the new version, and links those again that are not their first name's inode.
    pub(super) fn relink(&mut self, root: Arc<StoredNode>) -> Result<(), TreeError> {
        let mut todo = vec![(Arc::<[u8]>::from(&b""[..]), root)];
        while let Some((path, node)) = todo.pop() {
            if node.totals.links == 0 {
                continue;
            }
            let mut touched = false;
            for (entry, place) in node.node.entries.iter().zip(&node.places) {
                let at = join(&path, &entry.name);
                if let (Item::Directory { id }, Data::Directory(extent)) = (&entry.item, &place.data) {
                    let below = self.walk.runtime.block_on(self.walk.fetch.node(extent, *id))?;
                    todo.push((at.into(), below));
                    continue;
                }
                let Item::HardLink { first } = &entry.item else { continue };
                let target = self.target()?;
                if target.same_inode(first, &at)? {
                    continue;
                }
                if !touched {
                    let dir = target.open_dir(&path)?;
                    target.shut(dir.as_fd(), &path)?;
                    touched = true;
                }
                target.remove(&at)?;
                target.link(first, &at)?;
                Counts::add(&self.walk.site.counts.files, 1);
            }
            if touched {
                self.target()?.finish_dir(&path, &node.node.meta)?;
            }
        }
        Ok(())
    }
}

fn is_file(item: &Item) -> bool {
    matches!(item, Item::File { .. })
}

fn punch(fd: &std::os::fd::OwnedFd, offset: u64, len: u64, path: &[u8]) -> Result<bool, TreeError> {
    match rustix::fs::fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(TreeError::io("make a hole in", path, error)),
    }
}

fn zeros(fd: &std::os::fd::OwnedFd, offset: u64, len: u64, path: &[u8]) -> Result<(), TreeError> {
    let zeros = vec![0; usize::try_from(len).expect("a cell is short")];
    Target::write(fd.as_fd(), &zeros, offset, false).map_err(|error| TreeError::io("write", path, error))
}
