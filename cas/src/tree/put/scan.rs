//! Walking a directory in tree order and cutting what is seen into batches.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::FileType;

use super::batch::{BUNDLE_MAX, BUNDLED_MAX, Batch, Event, FileJob, Frozen, Job, PieceJob, join};
use super::line::Line;
use super::links::Links;
use super::open::{Open, Taker};
use crate::tree::error::TreeError;
use crate::tree::filemap::{CELL_LOG2_DEFAULT, FRAME_CELLS};
use crate::tree::node::{Item, Metadata, PATH_MAX, Xattr};
use crate::tree::source::{self, Facts};
use crate::tree::stored::{Data, Place, SLICE_MAX, Uses};

/// A batch is handed on when it has this many events, also where they have no bytes.
const EVENTS_MAX: usize = 1_024;
/// At the end of a directory a bundle is closed if it has this many bytes: bundles follow subtrees.
const BUNDLE_GOOD: u64 = BUNDLE_MAX / 2;
/// A batch is handed on when its files have this many bytes.
const BATCH_BYTES: u64 = 1 << 20;
/// How often a directory that changes while it is listed is listed again.
const ATTEMPTS: usize = 3;

/// A name that was listed.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) name: Vec<u8>,
    pub(super) facts: Facts,
    /// Of what cannot be opened: its attributes, and a link's target.
    pub(super) xattrs: Vec<Xattr>,
    pub(super) target: Vec<u8>,
    /// Of a file or directory that an inventory told of.
    pub(super) frozen: Option<Frozen>,
}

/// A directory that was listed.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) meta: Metadata,
    pub(super) entries: Vec<Listed>,
}

/// Cuts events into batches.
#[derive(Debug)]
pub(super) struct Cutter<'a> {
    line: &'a Line<Batch>,
    batch: Batch,
}

impl<'a> Cutter<'a> {
    pub(super) fn new(line: &'a Line<Batch>) -> Self {
        Self { line, batch: Batch::default() }
    }

    pub(super) fn event(&mut self, event: Event) -> Result<(), TreeError> {
        let leaves = matches!(event, Event::Leave);
        self.batch.events.push(event);
        if self.batch.events.len() >= EVENTS_MAX || (leaves && self.batch.bundled >= BUNDLE_GOOD) {
            self.flush()?;
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<(), TreeError> {
        if self.batch.events.is_empty() {
            return Ok(());
        }
        self.line.dispatch(std::mem::take(&mut self.batch))
    }

    pub(super) fn file(&mut self, linked: bool, job: FileJob) -> Result<(), TreeError> {
        let size = job.facts.size;
        if size <= BUNDLED_MAX && self.batch.bundled + size > BUNDLE_MAX {
            self.flush()?;
        }
        if size <= BUNDLED_MAX {
            self.batch.bundled += size;
        }
        self.batch.bytes += size;
        let event = Event::File { name: job.name.clone(), linked, job: self.batch.jobs.len() };
        self.batch.jobs.push(Job::File(job));
        self.event(event)?;
        if self.batch.bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    pub(super) fn piece(&mut self, job: PieceJob) -> Result<(), TreeError> {
        self.batch.bytes += job.len;
        let event = Event::Piece(self.batch.jobs.len());
        self.batch.jobs.push(Job::Piece(job));
        self.event(event)?;
        if self.batch.bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }
}

/// Opens and lists a directory, until it holds still.
pub(super) fn list(root: BorrowedFd<'_>, path: &[u8]) -> Result<Listing, TreeError> {
    for _ in 0..ATTEMPTS {
        let dir = source::open_dir(root, path)?;
        let before = source::facts_of(dir.as_fd()).map_err(|error| TreeError::io("stat", path, error))?;
        let xattrs = source::xattrs_of(dir.as_fd())
            .map_err(|error| TreeError::io("read attributes of", path, error))?;
        let names = source::names(dir.as_fd(), path)?;
        let mut entries = Vec::with_capacity(names.len());
        let mut vanished = false;
        for name in names {
            match look(dir.as_fd(), path, name) {
                Ok(listed) => entries.push(listed),
                Err(TreeError::SourceChanged { .. }) => vanished = true,
                Err(error) => return Err(error),
            }
        }
        let after = source::facts_of(dir.as_fd()).map_err(|error| TreeError::io("stat", path, error))?;
        if !vanished && (before.mtime, before.ctime) == (after.mtime, after.ctime) {
            return Ok(Listing { meta: before.metadata(xattrs), entries });
        }
    }
    Err(TreeError::SourceChanged { path: path.to_vec() })
}

/// Looks at one name of an open directory.
pub(super) fn look(dir: BorrowedFd<'_>, path: &[u8], name: Vec<u8>) -> Result<Listed, TreeError> {
    let fail = |call, error| match error {
        rustix::io::Errno::NOENT => TreeError::SourceChanged { path: join(path, &name) },
        error => TreeError::io(call, &join(path, &name), error),
    };
    let facts = source::facts_at(dir, &name).map_err(|error| fail("stat", error))?;
    let (mut xattrs, mut target) = (Vec::new(), Vec::new());
    match facts.kind {
        FileType::RegularFile | FileType::Directory => {}
        FileType::Symlink => {
            target = rustix::fs::readlinkat(dir, &name[..], Vec::new())
                .map_err(|error| fail("read link", error))?
                .into_bytes();
            xattrs = source::xattrs_at(dir, &name).map_err(|error| fail("read attributes of", error))?;
        }
        FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
            xattrs = source::xattrs_at(dir, &name).map_err(|error| fail("read attributes of", error))?;
        }
        _ => {
            return Err(TreeError::Unsupported {
                path: join(path, &name),
                reason: "its kind is not known here",
            });
        }
    }
    Ok(Listed { name, facts, xattrs, target, frozen: None })
}

impl Listed {
    /// The entry of what has no bytes of its own.
    pub(super) fn item(&self) -> Option<Item> {
        let meta = self.facts.metadata(self.xattrs.clone());
        Some(match self.facts.kind {
            FileType::Symlink => Item::Symlink { meta, target: self.target.clone() },
            FileType::Fifo => Item::Fifo { meta },
            FileType::Socket => Item::Socket { meta },
            FileType::CharacterDevice | FileType::BlockDevice => Item::Device {
                meta,
                block: self.facts.kind == FileType::BlockDevice,
                major: rustix::fs::major(self.facts.special),
                minor: rustix::fs::minor(self.facts.special),
            },
            FileType::RegularFile | FileType::Directory | FileType::Unknown => return None,
        })
    }
}

/// Walks directories whole.
#[derive(Debug)]
pub(super) struct Scanner<'a> {
    pub(super) root: &'a OwnedFd,
    pub(super) taker: Taker<'a>,
    pub(super) cutter: Cutter<'a>,
    pub(super) links: Links,
}

impl Scanner<'_> {
    /// Walks the directory `path`, which stands in its parent as `name`.
    pub(super) fn walk(&mut self, path: &[u8], name: &[u8]) -> Result<(), TreeError> {
        let first = self.taker.open(path.into(), None)?;
        let mut stack = vec![self.enter(name, first)?];
        while let Some(open) = stack.last_mut() {
            match self.taker.next(open)? {
                None => {
                    stack.pop();
                    self.cutter.event(Event::Leave)?;
                }
                Some(listed) if listed.facts.kind == FileType::Directory => {
                    let name = listed.name.clone();
                    let below = self.taker.open(join(&open.path, &name).into(), Some(listed))?;
                    stack.push(self.enter(&name, below)?);
                }
                Some(listed) => {
                    let path = Arc::clone(&open.path);
                    self.entry(&path, listed)?;
                }
            }
        }
        Ok(())
    }

    fn enter(&mut self, name: &[u8], (meta, open): (Metadata, Open)) -> Result<Open, TreeError> {
        self.cutter.event(Event::Enter { name: name.to_vec(), meta, base: None, old: None })?;
        Ok(open)
    }

    /// Takes one name that is not a directory.
    pub(super) fn entry(&mut self, dir: &Arc<[u8]>, listed: Listed) -> Result<(), TreeError> {
        let linked = listed.facts.links > 1;
        if linked && let Some(first) = self.links.first(&listed.facts, &join(dir, &listed.name))? {
            return self.later_name(dir, listed.name, first);
        }
        match listed.item() {
            Some(item) => {
                let place = Place { linked, sparse: false, data: Data::Nothing };
                self.cutter.event(Event::Item { name: listed.name, item, place })
            }
            None => self.file(dir, listed, linked),
        }
    }

    pub(super) fn later_name(&mut self, dir: &[u8], name: Vec<u8>, first: Vec<u8>) -> Result<(), TreeError> {
        if first.len() > PATH_MAX {
            return Err(TreeError::Unsupported {
                path: join(dir, &name),
                reason: "its first name is longer than 4,095 bytes",
            });
        }
        let place = Place { linked: true, sparse: false, data: Data::Nothing };
        self.cutter.event(Event::Item { name, item: Item::HardLink { first }, place })
    }

    /// Reads a regular file whole.
    pub(super) fn file(&mut self, dir: &Arc<[u8]>, listed: Listed, linked: bool) -> Result<(), TreeError> {
        let Listed { name, facts, frozen, .. } = listed;
        if facts.size <= SLICE_MAX {
            let (dir, inline, old, done) = (Arc::clone(dir), None, None, None);
            return self.cutter.file(linked, FileJob { dir, name, facts, frozen, inline, old, done });
        }
        let (facts, meta, sparse) = large_facts(self.root, dir, &name, facts, frozen.is_some())?;
        let cell_log2 = CELL_LOG2_DEFAULT;
        let size = facts.size;
        let uses = Uses::new();
        self.cutter.event(Event::Large {
            name: name.clone(),
            linked,
            sparse,
            meta,
            size,
            cell_log2,
            uses,
        })?;
        let step = FRAME_CELLS << cell_log2;
        let mut offset = 0;
        while offset < size {
            let len = step.min(size - offset);
            let (dir, name, old, done) = (Arc::clone(dir), name.clone(), Vec::new(), Vec::new());
            self.cutter.piece(PieceJob {
                dir,
                name,
                facts,
                cell_log2,
                offset,
                len,
                old,
                old_log2: cell_log2,
                done,
            })?;
            offset += len;
        }
        self.cutter.event(Event::LargeEnd)
    }
}

/// Opens a large file for what is not in its pieces: attributes and if it has holes; and all that `stat` says of it,
/// where that is `told` by an inventory.
pub(super) fn large_facts(
    root: &OwnedFd,
    dir: &[u8],
    name: &[u8],
    facts: Facts,
    told: bool,
) -> Result<(Facts, Metadata, bool), TreeError> {
    let path = || join(dir, name);
    let dir = source::open_dir(root.as_fd(), dir)?;
    let fd = source::open_file(dir.as_fd(), name).map_err(|error| TreeError::io("open", &path(), error))?;
    let xattrs =
        source::xattrs_of(fd.as_fd()).map_err(|error| TreeError::io("read attributes of", &path(), error))?;
    let facts = if told {
        source::facts_of(fd.as_fd()).map_err(|error| TreeError::io("stat", &path(), error))?
    } else {
        facts
    };
    Ok((facts, facts.metadata(xattrs), source::has_hole(fd.as_fd(), &facts)))
}
