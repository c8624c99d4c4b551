//! A piece of the tree in its order: what the scanner saw, and the files that a worker reads, hashes and packs for it.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use rustix::fs::FileType;
use rustix::io::Errno;
use types::{ContentId, Hash};

use super::level::Level;
use super::packs::Packs;
use crate::tree::dedup::{Known, Lookup, hook, is_hook};
use crate::tree::error::TreeError;
use crate::tree::filemap::{self, Cell, Chaining, PageRef};
use crate::tree::frame::{Compressor, FrameKind};
use crate::tree::location::{Extent, Location};
use crate::tree::node::{Item, Metadata, Xattr};
use crate::tree::source::{self, Facts};
use crate::tree::stored::{Data, INLINE_MAX, Place, SLICE_MAX, StoredNode, Uses};

/// Files up to this share a frame with their neighbours.
pub(super) const BUNDLED_MAX: u64 = 64 << 10;
/// The most plain bytes of a frame that files share.
pub(super) const BUNDLE_MAX: u64 = 256 << 10;
/// The longest piece that is read at once, as a length in memory.
const SLICE_BUFFER: usize = 1 << 20;
const _: () = assert!(SLICE_BUFFER as u64 == SLICE_MAX);
/// Contents of one put that are remembered for deduplication; more than that only costs bytes.
const KNOWN_MAX: usize = 1 << 20;
/// How often a file that changes under us is read again.
const ATTEMPTS: usize = 3;

/// What the builder is told, in tree order.
#[derive(Debug)]
pub(super) enum Event {
    /// A directory begins. With a base it starts from what that has, and the events say what differs.
    Enter {
        name: Vec<u8>,
        meta: Metadata,
        base: Option<Arc<StoredNode>>,
        old: Option<(Arc<StoredNode>, Extent)>,
    },
    /// It ends.
    Leave,
    /// These entries of the base are kept.
    Keep(Range<usize>),
    /// An entry of the base is gone or replaced; with the node behind it, if it is a directory.
    Drop { number: usize, node: Option<Arc<StoredNode>>, gone: bool },
    /// A directory of the parent version stands here, as it was.
    Adopt { name: Vec<u8>, node: Arc<StoredNode>, extent: Extent },
    /// An entry without bytes, or one whose bytes are already stored.
    Item { name: Vec<u8>, item: Item, place: Place<Extent> },
    /// A file that a worker reads: the number of its job.
    File { name: Vec<u8>, linked: bool, job: usize },
    /// A large file begins, with what its map used until now.
    Large { name: Vec<u8>, linked: bool, sparse: bool, meta: Metadata, size: u64, cell_log2: u8, uses: Uses },
    /// Cells of it that were read: the number of their job.
    Piece(usize),
    /// Cells of it that are as they were.
    Cells(Vec<Cell>),
    /// A page of it that is as it was; only where a page would begin.
    Page(PageRef<Extent>),
    /// It ends.
    LargeEnd,
}

/// Where a frame will lie, known when it is compressed.
#[derive(Debug, Default)]
pub(super) struct Slot(OnceLock<Option<Location>>);

impl Slot {
    fn set(&self, location: Option<Location>) {
        // Set once by the worker that made it, or by its guard.
        let _already = self.0.set(location);
    }

    fn get(&self) -> Option<Location> {
        self.0.get().cloned().flatten()
    }

    /// Waits until the frame has a place.
    pub(super) fn wait(&self) -> Result<Location, TreeError> {
        self.0.wait().clone().ok_or(TreeError::Stopped("another part of the work failed"))
    }
}

/// Sets a slot to "failed" if the work ends without a place.
struct Promise(Arc<Slot>);

impl Drop for Promise {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// A file to read.
#[derive(Debug)]
pub(super) struct FileJob {
    pub(super) dir: Arc<[u8]>,
    pub(super) name: Vec<u8>,
    pub(super) facts: Facts,
    /// What an inventory told of it: then it does not change.
    pub(super) frozen: Option<Frozen>,
    /// Its bytes, where they are known without reading.
    pub(super) inline: Option<Bytes>,
    /// What the parent version has under this name.
    pub(super) old: Option<(ContentId, Place<Extent>)>,
    pub(super) done: Option<FileDone>,
}

/// What an inventory told of a file or directory, beside the facts.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) xattrs: Option<Vec<Xattr>>,
    pub(super) bytes: Option<Bytes>,
    pub(super) sparse: Option<bool>,
}

/// A file that was read.
#[derive(Debug)]
pub(super) struct FileDone {
    pub(super) meta: Metadata,
    pub(super) size: u64,
    pub(super) content: ContentId,
    pub(super) sparse: bool,
    pub(super) data: DoneData,
}

/// Where a file's bytes went.
#[derive(Debug)]
pub(super) enum DoneData {
    Inline(Vec<u8>),
    Slice(Arc<Slot>, u32),
    Old(Data<Extent>),
}

/// Adjacent cells of a large file.
#[derive(Debug)]
pub(super) struct PieceJob {
    pub(super) dir: Arc<[u8]>,
    pub(super) name: Vec<u8>,
    pub(super) facts: Facts,
    pub(super) cell_log2: u8,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// The cells that the parent version has here.
    pub(super) old: Vec<Cell>,
    /// The size of those cells, where it is a larger one.
    pub(super) old_log2: u8,
    pub(super) done: Vec<(Chaining, CellDone)>,
}

/// Where a cell went.
#[derive(Debug)]
pub(super) enum CellDone {
    Zero,
    New(Arc<Slot>, u32),
    Old(Location, u32),
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "most are files, and they are the large ones")]
pub(super) enum Job {
    File(FileJob),
    Piece(PieceJob),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) events: Vec<Event>,
    pub(super) jobs: Vec<Job>,
    /// Plain bytes of all jobs, and of those that share a frame.
    pub(super) bytes: u64,
    pub(super) bundled: u64,
}

/// Where bytes of this put go: a frame, and the place in it.
pub(super) type Placed = (Arc<Slot>, u32);

/// What all workers of one put share.
#[derive(Debug)]
pub(super) struct Shop {
    pub(super) root: OwnedFd,
    pub(super) packs: Arc<Packs>,
    pub(super) lookup: Lookup,
    /// Contents of this put, and cells by their chaining values.
    pub(super) known: Mutex<HashMap<[u8; 32], Placed>>,
    /// Contents that whoever remembers versions is told of.
    pub(super) hooks: Mutex<Vec<Hash>>,
    pub(super) level: Arc<Level>,
}

/// One worker: its buffers and contexts.
#[derive(Debug)]
pub(super) struct Worker<'a> {
    shop: &'a Shop,
    compressor: Compressor,
    scratch: Vec<u8>,
    /// The directory that the last file was in.
    dir: Option<(Arc<[u8]>, OwnedFd)>,
}

impl Shop {
    fn note_hook(&self, hash: &[u8; 32], len: u64) {
        if is_hook(hash, len) {
            self.hooks.lock().expect("no holder of this lock panics").push(hook(hash));
        }
    }

    /// Takes what this put stored. Only when all of it was acknowledged.
    pub(super) fn stored(&self) -> Vec<Known> {
        let known = std::mem::take(&mut *self.known.lock().expect("no holder of this lock panics"));
        let placed = |(hash, (slot, offset)): ([u8; 32], Placed)| Some((hash, slot.get()?, offset));
        known.into_iter().filter_map(placed).collect()
    }
}

impl<'a> Worker<'a> {
    pub(super) fn new(shop: &'a Shop) -> Result<Self, TreeError> {
        let compressor = Compressor::new(shop.level.now())
            .map_err(|source| TreeError::io("prepare to compress", b"", source))?;
        // One byte more than any piece, so that a file that grew is seen.
        Ok(Self { shop, compressor, scratch: vec![0; SLICE_BUFFER + 1], dir: None })
    }

    pub(super) fn work(&mut self, batch: &mut Batch) -> Result<(), TreeError> {
        let shared = Promise(Arc::new(Slot::default()));
        let mut bundle = Vec::new();
        for job in &mut batch.jobs {
            match job {
                Job::File(job) => self.file(job, &shared.0, &mut bundle)?,
                Job::Piece(job) => self.piece(job)?,
            }
        }
        if !bundle.is_empty() {
            let location = self.frame(&bundle, Hash(*blake3::hash(&bundle).as_bytes()))?;
            shared.0.set(Some(location));
        }
        Ok(())
    }

    /// Stores bytes as a frame. `hash` is their BLAKE3: a file's is known.
    fn frame(&mut self, raw: &[u8], hash: Hash) -> Result<Location, TreeError> {
        let level = self.shop.level.now();
        let frame = self
            .compressor
            .set_level(level)
            .and_then(|()| self.compressor.frame_of(FrameKind::Data, raw, hash))
            .map_err(|source| TreeError::io("compress", b"", source))?;
        self.shop.packs.place(&frame)
    }

    fn dir(&mut self, path: &Arc<[u8]>) -> Result<BorrowedFd<'_>, TreeError> {
        if self.dir.as_ref().is_none_or(|(open, _)| open != path) {
            self.dir = Some((Arc::clone(path), source::open_dir(self.shop.root.as_fd(), path)?));
        }
        Ok(self.dir.as_ref().expect("it was set a line above").1.as_fd())
    }

    fn open(&mut self, dir: &Arc<[u8]>, name: &[u8]) -> Result<OwnedFd, TreeError> {
        source::open_file(self.dir(dir)?, name).map_err(|error| match error {
            // Gone, or another kind of thing since it was listed.
            Errno::NOENT | Errno::LOOP | Errno::NXIO => TreeError::SourceChanged { path: join(dir, name) },
            error => TreeError::io("open", &join(dir, name), error),
        })
    }

    fn file(&mut self, job: &mut FileJob, shared: &Arc<Slot>, bundle: &mut Vec<u8>) -> Result<(), TreeError> {
        let (meta, sparse, len) = self.read(job)?;
        let bytes = &self.scratch[..len];
        let content = ContentId(*blake3::hash(bytes).as_bytes());
        if len > INLINE_MAX {
            self.shop.note_hook(content.as_bytes(), len as u64);
        }
        let old = job.old.take().filter(|(old, _)| *old == content).map(|(_, place)| place.data);
        let data = if let Some(old) = old {
            DoneData::Old(old)
        } else if len <= INLINE_MAX {
            DoneData::Inline(bytes.to_vec())
        } else if let Some((frame, offset)) = self.shop.lookup.find(content.as_bytes(), len as u64) {
            DoneData::Old(Data::Slice { frame, offset })
        } else if len as u64 <= BUNDLED_MAX {
            let offset = u32::try_from(bundle.len()).expect("a bundle is short");
            match self.known(content.as_bytes(), shared, offset) {
                Some((slot, offset)) => DoneData::Slice(slot, offset),
                None => {
                    bundle.extend_from_slice(&self.scratch[..len]);
                    DoneData::Slice(Arc::clone(shared), offset)
                }
            }
        } else {
            let own = Promise(Arc::new(Slot::default()));
            match self.known(content.as_bytes(), &own.0, 0) {
                Some((slot, offset)) => DoneData::Slice(slot, offset),
                None => {
                    let raw = std::mem::take(&mut self.scratch);
                    let location = self.frame(&raw[..len], Hash(*content.as_bytes()));
                    self.scratch = raw;
                    own.0.set(Some(location?));
                    DoneData::Slice(Arc::clone(&own.0), 0)
                }
            }
        };
        job.done = Some(FileDone { meta, size: len as u64, content, sparse, data });
        Ok(())
    }

    /// Returns where this content already goes, or remembers that it goes to `slot`.
    fn known(&self, content: &[u8; 32], slot: &Arc<Slot>, offset: u32) -> Option<(Arc<Slot>, u32)> {
        let mut known = self.shop.known.lock().expect("no holder of this lock panics");
        if let Some(found) = known.get(content) {
            return Some(found.clone());
        }
        if known.len() < KNOWN_MAX {
            known.insert(*content, (Arc::clone(slot), offset));
        }
        None
    }

    /// Reads a file that does not change into the scratch buffer: without opening it, where enough is known.
    fn read_frozen(&mut self, job: &FileJob, frozen: Frozen) -> Result<(Metadata, bool, usize), TreeError> {
        let path = || join(&job.dir, &job.name);
        let inline = frozen.bytes.filter(|bytes| bytes.len() as u64 == job.facts.size);
        if let (Some(bytes), Some(_), Some(false)) = (&inline, &frozen.xattrs, frozen.sparse)
            && bytes.len() <= SLICE_BUFFER
        {
            self.scratch[..bytes.len()].copy_from_slice(bytes);
            return Ok((job.facts.metadata(frozen.xattrs.unwrap_or_default()), false, bytes.len()));
        }
        let fd = self.open(&job.dir, &job.name)?;
        let fd = fd.as_fd();
        let want = usize::try_from(job.facts.size).unwrap_or(usize::MAX).min(self.scratch.len() - 1);
        let len = source::read_at(fd, &mut self.scratch[..=want], 0)
            .map_err(|error| TreeError::io("read", &path(), error))?;
        if len as u64 != job.facts.size {
            return Err(TreeError::SourceChanged { path: path() });
        }
        let xattrs = match frozen.xattrs {
            Some(xattrs) => xattrs,
            None => {
                source::xattrs_of(fd).map_err(|error| TreeError::io("read attributes of", &path(), error))?
            }
        };
        let sparse = match frozen.sparse {
            Some(sparse) => sparse,
            None => {
                let facts = source::facts_of(fd).map_err(|error| TreeError::io("stat", &path(), error))?;
                source::has_hole(fd, &facts)
            }
        };
        Ok((job.facts.metadata(xattrs), sparse, len))
    }

    /// Reads a file into the scratch buffer, again if it changed meanwhile.
    fn read(&mut self, job: &mut FileJob) -> Result<(Metadata, bool, usize), TreeError> {
        if let Some(frozen) = job.frozen.take() {
            return self.read_frozen(job, frozen);
        }
        let path = || join(&job.dir, &job.name);
        if let Some(inline) = &job.inline
            && inline.len() as u64 == job.facts.size
            && inline.len() <= SLICE_BUFFER
        {
            self.scratch[..inline.len()].copy_from_slice(inline);
            let len = inline.len();
            let xattrs = source::xattrs_at(self.dir(&job.dir)?, &job.name)
                .map_err(|error| TreeError::io("read attributes of", &path(), error))?;
            return Ok((job.facts.metadata(xattrs), false, len));
        }
        for attempt in 0..ATTEMPTS {
            let fd = self.open(&job.dir, &job.name)?;
            let fd = fd.as_fd();
            if attempt > 0 {
                job.facts = source::facts_of(fd).map_err(|error| TreeError::io("stat", &path(), error))?;
                if job.facts.kind != FileType::RegularFile || job.facts.size > SLICE_MAX {
                    break;
                }
            }
            let want = usize::try_from(job.facts.size).unwrap_or(usize::MAX).min(self.scratch.len() - 1);
            let len = if job.facts.size == 0 {
                0
            } else {
                source::read_at(fd, &mut self.scratch[..=want], 0)
                    .map_err(|error| TreeError::io("read", &path(), error))?
            };
            let xattrs =
                source::xattrs_of(fd).map_err(|error| TreeError::io("read attributes of", &path(), error))?;
            let sparse = source::has_hole(fd, &job.facts);
            let after = source::facts_of(fd).map_err(|error| TreeError::io("stat", &path(), error))?;
            if after.is_same(&job.facts) && len as u64 == job.facts.size {
                return Ok((after.metadata(xattrs), sparse, len));
            }
        }
        Err(TreeError::SourceChanged { path: path() })
    }

    fn piece(&mut self, job: &mut PieceJob) -> Result<(), TreeError> {
        let path = || join(&job.dir, &job.name);
        let fd = self.open(&job.dir, &job.name)?;
        let fd = fd.as_fd();
        let len = usize::try_from(job.len).expect("a piece is short");
        let mut raw = std::mem::take(&mut self.scratch);
        let hole =
            job.facts.blocks * 512 < job.facts.size && source::is_hole(fd, job.offset, job.offset + job.len);
        let read = if hole {
            raw[..len].fill(0);
            Ok(len)
        } else {
            source::read_at(fd, &mut raw[..len], job.offset)
        };
        let read = read.map_err(|error| TreeError::io("read", &path(), error))?;
        let after = source::facts_of(fd).map_err(|error| TreeError::io("stat", &path(), error))?;
        if read != len || !after.is_same(&job.facts) {
            return Err(TreeError::SourceChanged { path: path() });
        }
        let cell = 1usize << job.cell_log2;
        let own = Promise(Arc::new(Slot::default()));
        let mut new = Vec::new();
        let mut old = old_cells(job, &raw[..len]).into_iter();
        for (number, bytes) in raw[..len].chunks(cell).enumerate() {
            let chaining = filemap::chaining(job.offset + (number * cell) as u64, bytes);
            let place = match old.next().flatten().filter(|old| old.chaining == chaining) {
                Some(Cell { place: Some((frame, offset)), .. }) => CellDone::Old(frame, offset),
                Some(Cell { place: None, .. }) => CellDone::Zero,
                None if hole || is_zero(bytes) => CellDone::Zero,
                None => {
                    let offset = u32::try_from(new.len()).expect("a piece is short");
                    if let Some((frame, offset)) = self.shop.lookup.find(&chaining, bytes.len() as u64) {
                        CellDone::Old(frame, offset)
                    } else if let Some((slot, offset)) = self.known(&chaining, &own.0, offset) {
                        CellDone::New(slot, offset)
                    } else {
                        new.extend_from_slice(bytes);
                        CellDone::New(Arc::clone(&own.0), offset)
                    }
                }
            };
            if !matches!(place, CellDone::Zero) {
                self.shop.note_hook(&chaining, bytes.len() as u64);
            }
            job.done.push((chaining, place));
        }
        self.scratch = raw;
        if !new.is_empty() {
            let location = self.frame(&new, Hash(*blake3::hash(&new).as_bytes()))?;
            own.0.set(Some(location));
        }
        Ok(())
    }
}

/// The cells of the parent version that a piece is compared with, one for each of its own cells. Where those were larger,
/// a cell that did not change is cut: its parts lie where it lies. What is in `bytes` proves that it did not.
fn old_cells(job: &mut PieceJob, bytes: &[u8]) -> Vec<Option<Cell>> {
    let old = std::mem::take(&mut job.old);
    if job.old_log2 == job.cell_log2 {
        return old.into_iter().map(Some).collect();
    }
    let (large, small) = (1usize << job.old_log2, 1usize << job.cell_log2);
    let mut cut = Vec::with_capacity(bytes.len().div_ceil(small));
    let mut old = old.into_iter();
    for (number, bytes) in bytes.chunks(large).enumerate() {
        let start = job.offset + (number * large) as u64;
        let offsets = (0u32..).step_by(small);
        let parts: Vec<_> = offsets
            .zip(bytes.chunks(small))
            .map(|(at, part)| (at, filemap::chaining(start + u64::from(at), part)))
            .collect();
        let values: Vec<Chaining> = parts.iter().map(|(_, chaining)| *chaining).collect();
        let same = old.next().filter(|old| filemap::fold(&values) == Some(old.chaining));
        cut.extend(parts.into_iter().map(|(at, chaining)| {
            let place = same.as_ref()?.place.as_ref().map(|(frame, offset)| (frame.clone(), offset + at));
            Some(Cell { chaining, place })
        }));
    }
    cut
}

/// Tells if all bytes are zero. Compares with itself shifted by one: memcmp is faster than any loop of ours.
pub(in crate::tree) fn is_zero(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(|first| *first == 0)
        && bytes[..bytes.len().saturating_sub(1)] == bytes[bytes.len().min(1)..]
}

/// The path of `name` in the directory `dir`.
pub(in crate::tree) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir);
    if !dir.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
