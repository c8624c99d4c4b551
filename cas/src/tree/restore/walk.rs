//! Walking a version in tree order: directories are made, and the rest goes into windows.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;
use types::PackId;

use super::part::{Later, Part};
use super::window::{Dir, Part as FramePart, RangeUnit, Spot, Window};
use super::worker::{Counts, Ready, Site};
use crate::tree::error::TreeError;
use crate::tree::fetch::Fetch;
use crate::tree::filemap;
use crate::tree::location::Extent;
use crate::tree::node::{Item, tree_order};
use crate::tree::stored::{Data, MapPlace, StoredNode};

/// The first window is worked on when it has this many files, cells and directories: so that there is work early.
const WINDOW_FIRST: usize = 6_144;

/// How many the others have. Equal files share bytes wherever they stand, so a pack is asked for once more in each window
/// that has one of its files; and this many are some 40 MB of nodes, of which there are those of two windows.
const WINDOW: usize = 98_304;

/// See the module.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    pub(super) site: &'a Site,
    pub(super) fetch: &'a Fetch,
    pub(super) runtime: &'a Handle,
    pub(super) ranges: Sender<RangeUnit>,
    pub(super) window: Window,
    /// How much goes into it.
    window_max: usize,
    /// The window before: on its way, and not settled.
    before: Option<Window>,
    /// Where only a part of the version is made.
    pub(super) part: Option<Part>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        site: &'a Site,
        fetch: &'a Fetch,
        runtime: &'a Handle,
        ranges: Sender<RangeUnit>,
    ) -> Self {
        let window = Window::default();
        Self { site, fetch, runtime, ranges, window, window_max: WINDOW_FIRST, before: None, part: None }
    }

    /// Walks the directory `path`, which is there already, and all below it.
    pub(super) fn tree(&mut self, path: Arc<[u8]>, node: Arc<StoredNode>) -> Result<(), TreeError> {
        let mut stack = vec![(Arc::new(Dir { path, node }), 0)];
        while let Some((dir, next)) = stack.last_mut() {
            if *next == dir.node.node.entries.len() {
                let (dir, _) = stack.pop().expect("it was there a line above");
                Counts::add(&self.site.counts.directories, u64::from(!dir.path.is_empty()));
                self.window.dirs.push(dir);
                self.breathe()?;
                continue;
            }
            let spot = Spot { dir: Arc::clone(dir), number: *next, is_there: false };
            *next += 1;
            if let (Item::Directory { id }, Data::Directory(extent)) = (spot.item(), &spot.place().data) {
                let read = self.runtime.block_on(self.fetch.node(extent, *id));
                if let Some(below) = self.survive(self.name(read, &spot, &extent.frames[0].pack))? {
                    let path: Arc<[u8]> = spot.path().into();
                    if let Some(target) = &self.site.target {
                        target.make_dir(&path)?;
                    }
                    stack.push((Arc::new(Dir { path, node: below }), 0));
                }
            } else {
                self.entry(spot)?;
            }
        }
        Ok(())
    }

    /// Damage that is collected is not an error here.
    fn survive<T>(&self, result: Result<T, TreeError>) -> Result<Option<T>, TreeError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if self.site.failures.collects() && error.is_damage() => {
                self.site.failures.report(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Names the path of what could not be read, where damage is collected.
    fn name<T>(&self, result: Result<T, TreeError>, spot: &Spot, pack: &Arc<PackId>) -> Result<T, TreeError> {
        result.map_err(|error| {
            if !self.site.failures.collects() || !error.is_damage() {
                return error;
            }
            TreeError::LostPath { path: spot.path(), pack: Arc::clone(pack), source: Box::new(error) }
        })
    }

    /// Takes one name that is not a directory.
    pub(super) fn entry(&mut self, spot: Spot) -> Result<(), TreeError> {
        match (spot.item(), &spot.place().data) {
            (Item::HardLink { first }, _) if self.part.is_some() => {
                let Some(part) = &mut self.part else { return Ok(()) };
                match part.later(self.runtime, &spot, first)? {
                    Later::Link(first) => self.window.part_links.push((spot, first)),
                    Later::File(file) => return self.entry(file),
                }
            }
            (Item::HardLink { first }, _) => {
                if tree_order(first, &spot.path()).is_ge() {
                    let error = TreeError::BadLink { path: spot.path(), first: first.clone() };
                    return self.survive(Err::<(), _>(error)).map(drop);
                }
                self.window.links.push(spot);
            }
            (_, Data::Slice { frame, offset }) => {
                let (frame, offset) = (frame.clone(), *offset);
                self.window.part(&frame, FramePart::File { spot, offset });
            }
            (Item::File { .. }, Data::Map(map)) => {
                let map = map.clone();
                let large = self.large(&spot, &map);
                self.survive(self.name(large, &spot, &map.root.frames[0].pack))?;
                // Its metadata comes with its last cells; half of a damaged one is removed then.
                self.window.large.push(spot);
            }
            _ => self.window.plain(spot),
        }
        self.breathe()
    }

    fn large(&mut self, spot: &Spot, map: &MapPlace<Extent>) -> Result<(), TreeError> {
        let Item::File { size, content, .. } = spot.item() else { return Ok(()) };
        let sparse = spot.place().sparse;
        let mut file = None;
        if let Some(target) = &self.site.target {
            let dir = target.open_dir(&spot.dir.path)?;
            // Written by several workers by its name; its mode comes with the rest of its metadata.
            let (fd, _) = target.make_file(dir.as_fd(), || spot.path(), &spot.entry().name, 0o600)?;
            rustix::fs::ftruncate(fd.as_fd(), *size)
                .map_err(|error| TreeError::io("set the length of", &spot.path(), error))?;
            file = Some(fd);
        }
        let pages = self.runtime.block_on(self.fetch.pages(map, *size, *content))?;
        for page in 0..pages.len() {
            let cells = self.runtime.block_on(self.fetch.cells(map, *size, *content, &pages, page))?;
            for (number, cell) in (0u64..).zip(cells) {
                let file_offset =
                    ((page as u64) << filemap::page_log2(map.cell_log2)) + (number << map.cell_log2);
                let len = (*size - file_offset).min(1 << map.cell_log2);
                let len = u32::try_from(len).expect("a cell is short");
                match (cell.place, &file) {
                    (Some((frame, offset)), _) => {
                        let (spot, chaining) = (spot.clone(), cell.chaining);
                        self.window
                            .part(&frame, FramePart::Cell { spot, offset, file_offset, len, chaining });
                    }
                    (None, Some(file)) if !sparse => {
                        let zeros = vec![0; len as usize];
                        super::target::Target::write(file.as_fd(), &zeros, file_offset, false)
                            .map_err(|error| TreeError::io("write", &spot.path(), error))?;
                    }
                    (None, _) => Counts::add(&self.site.counts.bytes, u64::from(len)),
                }
            }
            self.breathe()?;
        }
        Counts::add(&self.site.counts.files, 1);
        Ok(())
    }

    /// Hands the window on when it is full.
    pub(super) fn breathe(&mut self) -> Result<(), TreeError> {
        if self.site.failures.failed() {
            return Err(TreeError::Stopped("another part of the work failed"));
        }
        if self.window.len() >= self.window_max { self.hand_on() } else { Ok(()) }
    }

    /// Sends the window to the workers, and settles the one before.
    pub(super) fn hand_on(&mut self) -> Result<(), TreeError> {
        let mut window = std::mem::take(&mut self.window);
        self.window_max = WINDOW;
        let (ranges, plain) = window.units();
        for unit in plain {
            self.site.queue.push(Ready::Plain(unit));
        }
        for unit in ranges {
            self.ranges.blocking_send(unit).map_err(|_| TreeError::Stopped("a fetch failed"))?;
        }
        match self.before.replace(window) {
            Some(before) => self.settle(before),
            None => Ok(()),
        }
    }

    /// Waits for a window and does what comes after its files.
    pub(super) fn settle(&self, window: Window) -> Result<(), TreeError> {
        window.pending.wait();
        if self.site.failures.failed() {
            return Err(TreeError::Stopped("another part of the work failed"));
        }
        let lost = self.site.failures.lost_paths();
        for spot in &window.links {
            Counts::add(&self.site.counts.files, 1);
            if let (Some(target), Item::HardLink { first }) = (&self.site.target, spot.item()) {
                let linked = if lost.contains(first) {
                    Err(TreeError::BadLink { path: spot.path(), first: first.clone() })
                } else {
                    target.link(first, &spot.path())
                };
                match linked {
                    Err(TreeError::BadLink { path, first }) if self.site.failures.collects() => {
                        self.site.failures.report(TreeError::LostName { path, first });
                    }
                    linked => linked?,
                }
            }
        }
        let Some(target) = &self.site.target else { return Ok(()) };
        for (spot, first) in &window.part_links {
            Counts::add(&self.site.counts.files, 1);
            target.link(first, &spot.path())?;
        }
        for spot in &window.large {
            let Item::File { meta, .. } = spot.item() else { continue };
            let path = spot.path();
            if lost.contains(&path) {
                // Never zeros in the place of what is lost.
                target.remove(&path)?;
                continue;
            }
            let dir = target.open_dir(&spot.dir.path)?;
            let flags =
                rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
            let fd = rustix::fs::openat(dir, &spot.entry().name[..], flags, rustix::fs::Mode::empty())
                .map_err(|error| TreeError::io("open", &path, error))?;
            target.drop_other_xattrs(fd.as_fd(), &path, meta)?;
            target.finish(fd.as_fd(), &path, meta, None)?;
        }
        for dir in &window.dirs {
            target.finish_dir(&dir.path, &dir.node.node.meta)?;
        }
        Ok(())
    }

    /// Finishes all windows.
    pub(super) fn finish(&mut self) -> Result<(), TreeError> {
        self.hand_on()?;
        match self.before.take() {
            Some(last) => self.settle(last),
            None => Ok(()),
        }
    }
}
