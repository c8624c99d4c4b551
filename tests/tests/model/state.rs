//! What there is: the store's objects, the nodes with their pools and memories, requests under way, collectors, the hub.
//!
//! A tree is the set of the user's writes that it holds, so "grows the line" is inclusion of sets. A version's bytes lie in
//! frames, two to a pack. A pool's copy has a *line*: trees that descend from each other share it.

/// A set of the user's writes: what a tree holds, and a version's identity.
pub(crate) type Writes = u8;
/// A set of frames; pack `p` has the frames `2p` and `2p + 1`.
pub(crate) type Frames = u16;
/// A set of packs.
pub(crate) type Packs = u8;

/// How many packs a run may make.
pub(crate) const MOST_PACKS: u8 = 8;
/// The author of the hub's writes.
pub(crate) const HUB: u8 = 9;

pub(crate) fn packs_of(frames: Frames) -> Packs {
    (0..MOST_PACKS).filter(|p| frames >> (2 * p) & 3 != 0).fold(0, |all, p| all | 1 << p)
}

pub(crate) fn frames_of(pack: u8) -> Frames {
    3 << (2 * pack)
}

pub(crate) fn each(set: Packs) -> impl Iterator<Item = u8> {
    (0..8).filter(move |bit| set & (1 << bit) != 0)
}

/// A point on a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) writes: Writes,
    pub(crate) frames: Frames,
    /// A branch or a pin names it.
    pub(crate) kept: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Life {
    Absent,
    Creating,
    Live,
    Deleted,
    Purged,
}

/// `vol/<id>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Record {
    pub(crate) life: Life,
    pub(crate) birth: u8,
    pub(crate) rev: u8,
    pub(crate) nonce: u8,
    pub(crate) owner: Option<u8>,
    pub(crate) epoch: u8,
    /// Oldest first; the last one is the head.
    pub(crate) entries: Vec<Entry>,
    pub(crate) label: bool,
    /// The nodes that hold a copy.
    pub(crate) holders: u8,
}

impl Record {
    pub(crate) fn absent() -> Self {
        Self {
            life: Life::Absent,
            birth: 0,
            rev: 0,
            nonce: 0,
            owner: None,
            epoch: 0,
            entries: Vec::new(),
            label: false,
            holders: 0,
        }
    }

    pub(crate) fn head(&self) -> Option<Entry> {
        self.entries.last().copied()
    }

    pub(crate) fn frames(&self) -> Frames {
        self.entries.iter().fold(0, |all, entry| all | entry.frames)
    }

    pub(crate) fn listed(&self) -> Writes {
        self.entries.iter().fold(0, |all, entry| all | entry.writes)
    }

    /// The record as the next write makes it.
    #[must_use]
    pub(crate) fn next(&self, nonce: u8) -> Self {
        Self { rev: self.rev + 1, nonce, ..self.clone() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Standing {
    Unborn,
    Live,
    Fenced,
    Drained,
}

/// `session/<pool>.<n>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Session {
    pub(crate) standing: Standing,
    pub(crate) pin: u8,
    /// Its packs from `low` on.
    pub(crate) open: Packs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Idle,
    Condemned,
    Doomed,
}

/// `gc`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Gc {
    pub(crate) rev: u8,
    pub(crate) epoch: u8,
    pub(crate) phase: Phase,
    pub(crate) condemned: Packs,
    pub(crate) doomed: Packs,
    /// Evacuated packs and where their frames went.
    pub(crate) moves: Vec<(u8, u8)>,
    /// What the first mark found, for a collector that breaks `CopyMarkedAgain`.
    pub(crate) marked: Frames,
}

/// What a read of `gc` tells a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pin {
    pub(crate) epoch: u8,
    pub(crate) avoided: Packs,
}

/// A conditional write on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Put {
    pub(crate) author: u8,
    pub(crate) session: u8,
    pub(crate) volume: u8,
    pub(crate) etag: u64,
    pub(crate) record: Record,
    pub(crate) what: What,
    /// The tree is a mixture of two.
    pub(crate) mixed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum What {
    Publish,
    Release,
    Restore,
    First,
    Label,
}

/// An operation of a node that ends with a write of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Operation {
    pub(crate) what: What,
    pub(crate) volume: u8,
    pub(crate) version: Entry,
    pub(crate) line: u8,
    pub(crate) mixed: bool,
    pub(crate) claim: Claim,
    pub(crate) upload: Upload,
    /// Packs of others that it relies on.
    pub(crate) hits: Packs,
    /// What the callers that joined late wait for.
    pub(crate) waiting: Writes,
    /// The condition and nonce of what was sent.
    pub(crate) sent: Option<(u64, u8)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Upload {
    /// A pack is to be put.
    Due,
    /// It was sent.
    Under(u8),
    /// It was acknowledged, or nothing is to be put.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Claim {
    pub(crate) birth: u8,
    pub(crate) epoch: u8,
}

/// How a node stands to its copy of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// It has none.
    Nothing,
    /// Its head lies in staging.
    Prepared,
    /// The record is being created for this session, which was confirmed to live since.
    Begun,
    /// The record is this session's; that the session lives is not confirmed yet.
    Taken,
    Owned,
    /// After a start: the record has to say what it is.
    Unknown,
    /// Somebody else went on.
    Lost,
    Quarantined,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tree {
    pub(crate) writes: Writes,
    pub(crate) line: u8,
    /// Those that lie in a nested subvolume.
    pub(crate) nested: Writes,
}

/// A pool's copy of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Copy {
    pub(crate) place: Place,
    pub(crate) claim: Claim,
    pub(crate) live: Option<Tree>,
    pub(crate) base: Tree,
    pub(crate) base_frames: Frames,
    /// Committed local snapshots.
    pub(crate) snaps: Vec<Tree>,
    /// A tree that a restore replaced and a mount still shows.
    pub(crate) old: Option<Writes>,
    pub(crate) gates_closed: bool,
    /// A restore has moved the record and has not swapped yet.
    pub(crate) swap: Option<Tree>,
    /// A release may be under way: noted in the pool before it is sent.
    pub(crate) releasing: bool,
    pub(crate) lines: u8,
}

impl Copy {
    pub(crate) const NOTHING: Tree = Tree { writes: 0, line: 0, nested: 0 };

    pub(crate) fn nothing() -> Self {
        Self {
            place: Place::Nothing,
            claim: Claim { birth: 0, epoch: 0 },
            live: None,
            base: Self::NOTHING,
            base_frames: 0,
            snaps: Vec::new(),
            old: None,
            gates_closed: false,
            swap: None,
            releasing: false,
            lines: 0,
        }
    }

    pub(crate) fn knows(&self, writes: Writes) -> bool {
        self.base.writes == writes || self.snaps.iter().any(|snap| snap.writes == writes)
    }

    pub(crate) fn keep(&mut self, tree: Tree) {
        if !self.snaps.contains(&tree) {
            self.snaps.push(tree);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Joining {
    /// The session may be used.
    Joined,
    /// It has read `gc` and has no session yet.
    Read(Pin),
    /// Its session is there, `gc` is to be read again.
    Created,
}

/// A node: its process, and its pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) up: bool,
    pub(crate) session: u8,
    pub(crate) joining: Joining,
    pub(crate) pin: Pin,
    pub(crate) raising: Option<Pin>,
    /// Packs that it would deduplicate against.
    pub(crate) index: Packs,
    /// A process before this one may have left something under way.
    pub(crate) inherited: bool,
    pub(crate) operation: Option<Operation>,
    pub(crate) attempts: u8,
    pub(crate) copies: Vec<Copy>,
}

/// A collector.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Leader {
    Off,
    Mark { rev: u8, listed: Packs, frames: Frames, volume: u8 },
    Wait { rev: u8, session: u8 },
    Drain { rev: u8, session: u8, volume: u8 },
    MarkAgain { rev: u8, condemned: Packs, frames: Frames, volume: u8 },
    Copied { rev: u8, condemned: Packs, frames: Frames, moves: Vec<(u8, u8)> },
    Delete { doomed: Packs },
}

/// The hub, as far as it decides on what it read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct Hub {
    /// It saw this session live, and will make a record for it.
    pub(crate) create: Option<(u8, u8, Option<Entry>)>,
    /// It saw that this node does not own the volume, and has told it to drop its copy.
    pub(crate) drop: Option<(u8, u8)>,
    /// It saw the owner quiet, and has told this node to take the volume from that state.
    pub(crate) take: Option<(u8, u8, u8)>,
    /// A label that it has sent and no answer came for.
    pub(crate) label: Option<u8>,
    pub(crate) labels: u8,
    /// What it answered last.
    pub(crate) label_told: bool,
}

/// What may still happen, each so many times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct Left {
    pub(crate) writes: u8,
    pub(crate) syncs: u8,
    pub(crate) crashes: u8,
    pub(crate) lost_answers: u8,
    pub(crate) duplicates: u8,
    pub(crate) rollbacks: u8,
    pub(crate) fences: u8,
    pub(crate) forces: u8,
    pub(crate) labels: u8,
    pub(crate) creates: u8,
    pub(crate) forks: u8,
    pub(crate) restores: u8,
    pub(crate) releases: u8,
    pub(crate) acquires: u8,
    pub(crate) deletes: u8,
    pub(crate) thins: u8,
    pub(crate) failed_uploads: u8,
    pub(crate) rounds: u8,
    pub(crate) read_errors: u8,
    pub(crate) drops: u8,
    pub(crate) retired: u8,
}

/// What was said to users, to be compared with what is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Told {
    /// Written locally, by volume.
    pub(crate) written: Vec<Writes>,
    /// Of these, what no planned move has to carry: written by a session that had lost its place, or on a pool that
    /// went back in time.
    pub(crate) excused: Vec<Writes>,
    /// Of these, what nobody has to keep: the pool that held it went back in time, or the volume was purged.
    pub(crate) gone: Vec<Writes>,
    /// Said to be durable.
    pub(crate) durable: Vec<Writes>,
    /// Kept in orphans.
    pub(crate) orphans: Vec<Writes>,
    pub(crate) created: bool,
    /// A pool that may come back was retired.
    pub(crate) retired: bool,
    /// A pool went back in time.
    pub(crate) rolled_back: bool,
}

/// A state of the whole system.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) records: Vec<Record>,
    pub(crate) sessions: Vec<Session>,
    /// Which frames are there.
    pub(crate) stored: Frames,
    pub(crate) packs: u8,
    /// `moved/<pack>`.
    pub(crate) moved: Vec<(u8, u8)>,
    pub(crate) gc: Gc,
    pub(crate) nodes: Vec<Node>,
    pub(crate) puts: Vec<Put>,
    pub(crate) leaders: Vec<Leader>,
    pub(crate) hub: Hub,
    pub(crate) saved: Option<Box<Node>>,
    pub(crate) left: Left,
    pub(crate) told: Told,
    pub(crate) next_write: u8,
    /// Invariants that a step broke.
    pub(crate) broken: u16,
}
