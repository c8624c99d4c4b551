//! Decompressing, proving and writing what was fetched.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use tokio::sync::OwnedSemaphorePermit;

use super::target::Target;
use super::window::{Dir, Failures, FrameUnit, Part, PlainUnit, RangeUnit, Spot};
use crate::tree::error::TreeError;
use crate::tree::fetch::damaged;
use crate::tree::filemap;
use crate::tree::frame::{Decompressor, FrameKind};
use crate::tree::node::{Item, Metadata};
use crate::tree::stored::Data;

/// A unit that a worker can begin with.
#[derive(Debug)]
pub(super) enum Ready {
    /// Fetched bytes; the permit is their part of the budget, given back when the unit is done.
    Range(RangeUnit, Bytes, #[expect(dead_code, reason = "held until it is dropped")] OwnedSemaphorePermit),
    Plain(PlainUnit),
}

/// What is ready. Bounded by the budget (ranges) and by the size of two windows (plain files).
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<(VecDeque<Ready>, bool)>,
    changed: Condvar,
}

impl Queue {
    pub(super) fn push(&self, ready: Ready) {
        self.state.lock().expect("no holder of this lock panics").0.push_back(ready);
        self.changed.notify_one();
    }

    pub(super) fn close(&self) {
        self.state.lock().expect("no holder of this lock panics").1 = true;
        self.changed.notify_all();
    }

    fn pop(&self) -> Option<Ready> {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        loop {
            if let Some(ready) = state.0.pop_front() {
                return Some(ready);
            }
            if state.1 {
                return None;
            }
            state = self.changed.wait(state).expect("no holder of this lock panics");
        }
    }
}

/// Sums of all workers.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) files: AtomicU64,
    pub(super) directories: AtomicU64,
    pub(super) removed: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) bytes_fetched: AtomicU64,
    pub(super) requests: AtomicU64,
}

impl Counts {
    pub(super) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// What all workers share. Without a target nothing is written: a verification.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) target: Option<Target>,
    pub(super) failures: Failures,
    pub(super) counts: Counts,
    pub(super) queue: Queue,
}

impl Site {
    /// Looks at one frame outside of the line of workers: where a verification picks up the pieces of a cut pack.
    pub(super) fn check_alone(&self, unit: &FrameUnit, stored: &[u8]) {
        if let Err(error) = Worker::new(self).frame(unit, stored) {
            self.failures.report(error);
        }
    }
}

#[derive(Debug)]
pub(super) struct Worker<'a> {
    site: &'a Site,
    decompressor: Decompressor,
    /// The directory that the last file was in.
    dir: Option<(Arc<Dir>, OwnedFd)>,
    /// The large file that the last cell was in.
    large: Option<(Spot, OwnedFd)>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(site: &'a Site) -> Self {
        Self { site, decompressor: Decompressor::default(), dir: None, large: None }
    }

    /// Works until the queue is closed and empty. After a failure units are only taken, so that nobody waits for them.
    pub(super) fn run(&mut self) {
        while let Some(ready) = self.site.queue.pop() {
            if self.site.failures.failed() {
                continue;
            }
            let result = match &ready {
                Ready::Range(unit, bytes, _) => self.range(unit, bytes),
                Ready::Plain(unit) => unit.spots.iter().try_for_each(|spot| self.plain(spot)),
            };
            // What fails here as damage fails only its own part; anything else stops all.
            if let Err(error) = result {
                self.site.failures.report(error);
            }
        }
    }

    fn range(&mut self, unit: &RangeUnit, bytes: &Bytes) -> Result<(), TreeError> {
        for frame in &unit.frames {
            let start = usize::try_from(u64::from(frame.location.offset) - unit.range.start)
                .expect("a range is in memory");
            let stored = &bytes[start..start + frame.location.stored_len as usize];
            if let Err(error) = self.frame(frame, stored)
                && !self.site.failures.report(error)
            {
                return Ok(());
            }
        }
        Ok(())
    }

    fn frame(&mut self, unit: &FrameUnit, stored: &[u8]) -> Result<(), TreeError> {
        let location = &unit.location;
        let fail = |source| TreeError::Damaged { location: location.clone(), source };
        // Restoring, each file is proved by its own hash. Verifying, the frame's own hash is looked at as well.
        let opened = if self.site.target.is_some() {
            self.decompressor.unpack(location, stored).map(|(header, raw)| (header.kind, raw))
        } else {
            self.decompressor.open(location, stored)
        };
        let raw = match opened.map_err(fail) {
            Ok((FrameKind::Data, raw)) => raw,
            Ok(_) => return self.lost(unit, damaged(location, "a frame is of another kind")),
            Err(error) => return self.lost(unit, error),
        };
        for part in &unit.parts {
            if let Err(error) = self.part(part, &raw, unit)
                && !self.site.failures.report(error)
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// A frame that cannot be opened: a verification names every file in it.
    fn lost(&self, unit: &FrameUnit, error: TreeError) -> Result<(), TreeError> {
        name_lost(&self.site.failures, unit);
        Err(error)
    }

    fn part(&mut self, part: &Part, raw: &[u8], unit: &FrameUnit) -> Result<(), TreeError> {
        let location = &unit.location;
        let past = || damaged(location, "something in it goes past its end");
        match part {
            Part::File { spot, offset } => {
                let Item::File { meta, size, content } = spot.item() else { return Err(past()) };
                let start = *offset as usize;
                let end =
                    usize::try_from(*size).ok().and_then(|size| start.checked_add(size)).ok_or_else(past)?;
                let bytes = raw.get(start..end).ok_or_else(past)?;
                if blake3::hash(bytes).as_bytes() != content.as_bytes() {
                    let (path, location) = (spot.path(), location.clone());
                    return Err(TreeError::DamagedFile { path, content: *content, location });
                }
                self.file(spot, meta, bytes)
            }
            Part::Cell { spot, offset, file_offset, len, chaining } => {
                let Item::File { content, .. } = spot.item() else { return Err(past()) };
                let start = *offset as usize;
                let bytes = raw.get(start..start + *len as usize).ok_or_else(past)?;
                if filemap::chaining(*file_offset, bytes) != *chaining {
                    let (path, location) = (spot.path(), location.clone());
                    return Err(TreeError::DamagedFile { path, content: *content, location });
                }
                Counts::add(&self.site.counts.bytes, u64::from(*len));
                let Some(target) = &self.site.target else { return Ok(()) };
                let same = self
                    .large
                    .as_ref()
                    .is_some_and(|(open, _)| Arc::ptr_eq(&open.dir, &spot.dir) && open.number == spot.number);
                if !same {
                    let dir = target.open_dir(&spot.dir.path)?;
                    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let fd = rustix::fs::openat(dir, &spot.entry().name[..], flags, Mode::empty())
                        .map_err(|error| TreeError::io("open", &spot.path(), error))?;
                    self.large = Some((spot.clone(), fd));
                }
                let fd = self.large.as_ref().expect("it was set a line above").1.as_fd();
                Target::write(fd, bytes, *file_offset, spot.place().sparse)
                    .map_err(|error| TreeError::io("write", &spot.path(), error))
            }
        }
    }

    /// Makes what needs no frame.
    fn plain(&mut self, spot: &Spot) -> Result<(), TreeError> {
        match (spot.item(), &spot.place().data) {
            (Item::File { meta, content, .. }, Data::Inline(bytes)) => {
                if blake3::hash(bytes).as_bytes() == content.as_bytes() {
                    self.file(spot, meta, bytes)
                } else {
                    self.site
                        .failures
                        .report(TreeError::DamagedInline { path: spot.path(), content: *content });
                    Ok(())
                }
            }
            _ => self.special(spot),
        }
    }

    fn special(&mut self, spot: &Spot) -> Result<(), TreeError> {
        Counts::add(&self.site.counts.files, 1);
        let Some(target) = &self.site.target else { return Ok(()) };
        enter(&mut self.dir, target, spot)?;
        let dir = self.dir.as_ref().expect("it was just entered").1.as_fd();
        target.make_special(dir, &spot.path(), &spot.entry().name, spot.item())
    }

    fn file(&mut self, spot: &Spot, meta: &Metadata, bytes: &[u8]) -> Result<(), TreeError> {
        Counts::add(&self.site.counts.files, 1);
        Counts::add(&self.site.counts.bytes, bytes.len() as u64);
        let Some(target) = &self.site.target else { return Ok(()) };
        enter(&mut self.dir, target, spot)?;
        let dir = self.dir.as_ref().expect("it was just entered").1.as_fd();
        let name = &spot.entry().name;
        let (fd, mode) = if spot.is_there {
            (target.empty_file(dir, || spot.path(), name, meta)?, None)
        } else {
            let (fd, mode) = target.make_file(dir, || spot.path(), name, meta.mode)?;
            (fd, Some(mode))
        };
        let fd = fd.as_fd();
        let sparse = spot.place().sparse;
        if sparse {
            rustix::fs::ftruncate(fd, bytes.len() as u64)
                .map_err(|error| TreeError::io("set the length of", &spot.path(), error))?;
        }
        Target::write(fd, bytes, 0, sparse).map_err(|error| TreeError::io("write", &spot.path(), error))?;
        let path = if meta.xattrs.is_empty() { Vec::new() } else { spot.path() };
        target.finish(fd, &path, meta, mode).map_err(|error| name_path(error, spot))
    }
}

/// Opens the directory of `spot`, unless it is the one that is open.
fn enter(open: &mut Option<(Arc<Dir>, OwnedFd)>, target: &Target, spot: &Spot) -> Result<(), TreeError> {
    if !open.as_ref().is_some_and(|(dir, _)| Arc::ptr_eq(dir, &spot.dir)) {
        *open = Some((Arc::clone(&spot.dir), target.open_dir(&spot.dir.path)?));
    }
    Ok(())
}

/// Puts the path into an error of a call that was made without it: paths are only put together when needed.
fn name_path(error: TreeError, spot: &Spot) -> TreeError {
    if let TreeError::Io { call, source, .. } = error {
        TreeError::Io { call, path: spot.path(), source }
    } else {
        error
    }
}

/// Names every file that a lost frame was needed for, where damage is collected.
pub(super) fn name_lost(failures: &Failures, unit: &FrameUnit) {
    if !failures.collects() {
        return;
    }
    let mut last: Option<&Spot> = None;
    for part in &unit.parts {
        let spot = part.spot();
        if last.is_some_and(|last| Arc::ptr_eq(&last.dir, &spot.dir) && last.number == spot.number) {
            continue;
        }
        last = Some(spot);
        if let Item::File { content, .. } = spot.item() {
            let (path, location) = (spot.path(), unit.location.clone());
            failures.report(TreeError::DamagedFile { path, content: *content, location });
        }
    }
}
