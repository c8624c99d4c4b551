//! A part of a tree that is restored or verified at once: which frames it takes, and what to do with each.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};

use types::PackId;

use crate::tree::error::TreeError;
use crate::tree::filemap::Chaining;
use crate::tree::location::Extent;
use crate::tree::location::Location;
use crate::tree::node::{Entry, Item};
use crate::tree::put::join;
use crate::tree::stored::{Place, StoredNode};

/// Ranges with less than this between them are fetched as one: a bucket sends as much while it thinks about a request.
const GAP: u64 = 1 << 20;
/// No request asks for more than this, but for one frame that is longer. A whole pack is two requests: frames do not end at
/// its middle, so it is a little more than half of one.
const RANGE_MAX: u64 = 9 << 20;
/// How many files without frames a worker takes at once.
const PLAIN_UNIT: usize = 256;

/// A directory of the version.
#[derive(Debug)]
pub(super) struct Dir {
    pub(super) path: Arc<[u8]>,
    pub(super) node: Arc<StoredNode>,
}

/// An entry of a directory.
#[derive(Debug, Clone)]
pub(super) struct Spot {
    pub(super) dir: Arc<Dir>,
    pub(super) number: usize,
    /// A file that the target has already, with other bytes.
    pub(super) is_there: bool,
}

impl Spot {
    pub(super) fn entry(&self) -> &Entry {
        &self.dir.node.node.entries[self.number]
    }

    pub(super) fn item(&self) -> &Item {
        &self.entry().item
    }

    pub(super) fn place(&self) -> &Place<Extent> {
        &self.dir.node.places[self.number]
    }

    pub(super) fn path(&self) -> Vec<u8> {
        join(&self.dir.path, &self.entry().name)
    }
}

/// A part of a frame, and whose it is.
#[derive(Debug)]
pub(super) enum Part {
    /// A whole file.
    File { spot: Spot, offset: u32 },
    /// A cell of a large file, which is there already.
    Cell { spot: Spot, offset: u32, file_offset: u64, len: u32, chaining: Chaining },
}

impl Part {
    pub(super) fn spot(&self) -> &Spot {
        match self {
            Self::File { spot, .. } | Self::Cell { spot, .. } => spot,
        }
    }
}

/// A frame and what is taken from it.
#[derive(Debug)]
pub(super) struct FrameUnit {
    pub(super) location: Location,
    pub(super) parts: Vec<Part>,
}

/// Frames that are fetched by one request.
#[derive(Debug)]
pub(super) struct RangeUnit {
    pub(super) pack: Arc<PackId>,
    pub(super) range: Range<u64>,
    pub(super) frames: Vec<FrameUnit>,
    #[expect(dead_code, reason = "held until it is dropped")]
    pub(super) done: Ticket,
}

/// Files that need no frame.
#[derive(Debug)]
pub(super) struct PlainUnit {
    pub(super) spots: Vec<Spot>,
    #[expect(dead_code, reason = "held until it is dropped")]
    pub(super) done: Ticket,
}

/// Counts what of a window is not done.
#[derive(Debug, Default)]
pub(super) struct Pending {
    count: Mutex<usize>,
    changed: Condvar,
}

/// One thing of a window that is not done; dropping it says that it is, or that it failed.
#[derive(Debug)]
pub(super) struct Ticket(Arc<Pending>);

impl Ticket {
    fn of(pending: &Arc<Pending>) -> Self {
        *pending.count.lock().expect("no holder of this lock panics") += 1;
        Self(Arc::clone(pending))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        *self.0.count.lock().expect("no holder of this lock panics") -= 1;
        self.0.changed.notify_all();
    }
}

impl Pending {
    pub(super) fn wait(&self) {
        let mut count = self.count.lock().expect("no holder of this lock panics");
        while *count > 0 {
            count = self.changed.wait(count).expect("no holder of this lock panics");
        }
    }
}

/// What is gathered until there is enough of it.
#[derive(Debug, Default)]
pub(super) struct Window {
    frames: BTreeMap<Location, Vec<Part>>,
    plain: Vec<Spot>,
    parts: usize,
    /// What happens when all files of the window are there, in this order: later names, metadata of large files,
    /// metadata of directories (those below first).
    pub(super) links: Vec<Spot>,
    /// Later names in a part of a version, with the first name on disk.
    pub(super) part_links: Vec<(Spot, Vec<u8>)>,
    pub(super) large: Vec<Spot>,
    pub(super) dirs: Vec<Arc<Dir>>,
    pub(super) pending: Arc<Pending>,
}

impl Window {
    pub(super) fn part(&mut self, location: &Location, part: Part) {
        self.parts += 1;
        match self.frames.get_mut(location) {
            Some(parts) => parts.push(part),
            None => {
                self.frames.insert(location.clone(), vec![part]);
            }
        }
    }

    pub(super) fn plain(&mut self, spot: Spot) {
        self.parts += 1;
        self.plain.push(spot);
    }

    /// How much is in it.
    pub(super) fn len(&self) -> usize {
        self.parts + self.links.len() + self.part_links.len() + self.dirs.len()
    }

    /// Cuts it into units of work: frames in the order of their packs, neighbours fetched together.
    pub(super) fn units(&mut self) -> (Vec<RangeUnit>, Vec<PlainUnit>) {
        let mut ranges: Vec<RangeUnit> = Vec::new();
        for (location, parts) in std::mem::take(&mut self.frames) {
            let wanted = location.range();
            let frame = FrameUnit { location, parts };
            match ranges.last_mut() {
                Some(last)
                    if last.pack == frame.location.pack
                        && wanted.start <= last.range.end + GAP
                        && wanted.end.max(last.range.end) - last.range.start <= RANGE_MAX =>
                {
                    last.range.end = last.range.end.max(wanted.end);
                    last.frames.push(frame);
                }
                _ => ranges.push(RangeUnit {
                    pack: Arc::clone(&frame.location.pack),
                    range: wanted,
                    frames: vec![frame],
                    done: Ticket::of(&self.pending),
                }),
            }
        }
        let mut plain = Vec::new();
        let mut rest = std::mem::take(&mut self.plain).into_iter().peekable();
        while rest.peek().is_some() {
            let spots = rest.by_ref().take(PLAIN_UNIT).collect();
            plain.push(PlainUnit { spots, done: Ticket::of(&self.pending) });
        }
        (ranges, plain)
    }
}

/// Where the first error goes; after it everybody stops. A verification collects damage instead and goes on.
#[derive(Debug)]
pub(super) struct Failures {
    collect: Option<usize>,
    state: Mutex<(Option<TreeError>, Vec<TreeError>)>,
}

impl Failures {
    pub(super) fn new(collect: Option<usize>) -> Self {
        Self { collect, state: Mutex::default() }
    }

    /// Takes an error: says if work goes on.
    pub(super) fn report(&self, error: TreeError) -> bool {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        if let Some(most) = self.collect
            && error.is_damage()
        {
            if state.1.len() < most {
                state.1.push(error);
            }
            return true;
        }
        // "Stopped" is what the others say when one has failed.
        let replaces = matches!(state.0, None | Some(TreeError::Stopped(_)));
        if replaces {
            state.0 = Some(error);
        }
        false
    }

    pub(super) fn failed(&self) -> bool {
        self.state.lock().expect("no holder of this lock panics").0.is_some()
    }

    pub(super) fn collects(&self) -> bool {
        self.collect.is_some()
    }

    /// The paths that are known to be lost.
    pub(super) fn lost_paths(&self) -> HashSet<Vec<u8>> {
        let state = self.state.lock().expect("no holder of this lock panics");
        state.1.iter().filter_map(TreeError::lost_path).map(<[u8]>::to_vec).collect()
    }

    /// Takes the error that stopped the work.
    pub(super) fn error(&self) -> Option<TreeError> {
        self.state.lock().expect("no holder of this lock panics").0.take()
    }

    /// Takes the damage that was collected.
    pub(super) fn damages(&self) -> Vec<TreeError> {
        std::mem::take(&mut self.state.lock().expect("no holder of this lock panics").1)
    }
}
