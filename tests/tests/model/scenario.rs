//! Bounded worlds: small enough to be searched whole, each with what one part of the protocol needs.

use crate::rules::{Rule, Rules};
use crate::state::{
    Claim, Copy, Entry, Gc, Hub, Joining, Leader, Left, Life, Node, Phase, Pin, Place, Record, Session,
    Standing, State, Told, Tree,
};

/// The model: a world, and the rules that hold in it.
#[derive(Clone, Debug)]
pub(crate) struct Protocol {
    pub(crate) rules: Rules,
    pub(crate) scenario: Scenario,
}

/// A bounded world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) nodes: u8,
    /// The second volume: absent, or owned by the last node.
    pub(crate) second: Option<Life>,
    /// The first volume is there, and the first node owns it.
    pub(crate) first: bool,
    /// ... or nobody does.
    pub(crate) released: bool,
    pub(crate) sessions: u8,
    pub(crate) leaders: u8,
    /// Bytes matter: packs are put, condemned, deleted.
    pub(crate) packs: bool,
    pub(crate) most_packs: u8,
    /// Of the first volume, when it begins: the frames of its entries.
    pub(crate) entries: &'static [u16],
    /// Frames that are stored and that nothing names.
    pub(crate) dead: u16,
    /// How many entries a write leaves; 0: all.
    pub(crate) keeps: usize,
    pub(crate) dedups: bool,
    pub(crate) hints: bool,
    pub(crate) nested: bool,
    pub(crate) mounted: bool,
    pub(crate) moves: bool,
    pub(crate) deletes: bool,
    pub(crate) relocates: bool,
    pub(crate) fences_laggards: bool,
    /// I7 is looked at.
    pub(crate) recovers: bool,
    /// I8 is looked at.
    pub(crate) collects: bool,
    pub(crate) left: Left,
}

const NONE: Left = Left {
    writes: 0,
    syncs: 0,
    crashes: 0,
    lost_answers: 0,
    duplicates: 0,
    rollbacks: 0,
    fences: 0,
    forces: 0,
    labels: 0,
    creates: 0,
    forks: 0,
    restores: 0,
    releases: 0,
    acquires: 0,
    deletes: 0,
    thins: 0,
    failed_uploads: 0,
    rounds: 0,
    read_errors: 0,
    drops: 0,
    retired: 0,
};

/// Two nodes and one volume, without bytes.
const OWNERS: Scenario = Scenario {
    name: "",
    nodes: 2,
    second: None,
    first: true,
    released: false,
    sessions: 3,
    leaders: 0,
    packs: false,
    most_packs: 0,
    entries: &[0],
    dead: 0,
    keeps: 0,
    dedups: false,
    hints: false,
    nested: false,
    mounted: false,
    moves: true,
    deletes: false,
    relocates: false,
    fences_laggards: true,
    recovers: true,
    collects: false,
    left: NONE,
};

/// Two nodes, two packs, a collector.
const BYTES: Scenario = Scenario {
    second: Some(Life::Live),
    leaders: 1,
    packs: true,
    most_packs: 4,
    entries: &[0b0001, 0b0100],
    moves: false,
    recovers: false,
    ..OWNERS
};

pub(crate) const SMALL: &[Scenario] = &[
    Scenario {
        name: "lost answers and fences",
        left: Left { writes: 2, lost_answers: 1, fences: 1, acquires: 2, ..NONE },
        ..OWNERS
    },
    Scenario {
        name: "crashes",
        left: Left { writes: 2, crashes: 1, lost_answers: 1, acquires: 1, ..NONE },
        ..OWNERS
    },
    Scenario {
        name: "a pool that goes back in time",
        left: Left { writes: 2, rollbacks: 1, lost_answers: 1, acquires: 1, ..NONE },
        nodes: 1,
        sessions: 2,
        ..OWNERS
    },
    Scenario {
        name: "labels and duplicates",
        left: Left { writes: 1, labels: 3, duplicates: 1, lost_answers: 1, acquires: 1, ..NONE },
        nodes: 1,
        sessions: 1,
        ..OWNERS
    },
    Scenario {
        name: "moves",
        left: Left { writes: 2, releases: 1, acquires: 2, forces: 1, ..NONE },
        nested: true,
        sessions: 2,
        ..OWNERS
    },
    Scenario {
        name: "moves and crashes",
        left: Left { writes: 1, releases: 1, acquires: 1, crashes: 1, ..NONE },
        sessions: 2,
        ..OWNERS
    },
    Scenario {
        name: "restores and crashes",
        nodes: 1,
        sessions: 1,
        entries: &[0, 0],
        left: Left { writes: 2, restores: 1, crashes: 1, acquires: 1, ..NONE },
        ..OWNERS
    },
    Scenario {
        name: "moves and fences",
        left: Left { writes: 1, releases: 1, acquires: 3, fences: 1, drops: 1, ..NONE },
        ..OWNERS
    },
    Scenario {
        name: "restores",
        nodes: 1,
        sessions: 1,
        entries: &[0, 0],
        keeps: 2,
        left: Left { writes: 3, restores: 1, crashes: 1, ..NONE },
        ..OWNERS
    },
    Scenario {
        name: "restores under a mount",
        nodes: 1,
        sessions: 1,
        mounted: true,
        left: Left { writes: 3, restores: 1, lost_answers: 1, ..NONE },
        ..OWNERS
    },
    Scenario {
        name: "deletion",
        deletes: true,
        left: Left { writes: 1, deletes: 2, forces: 1, acquires: 1, crashes: 1, ..NONE },
        sessions: 2,
        ..OWNERS
    },
    Scenario {
        name: "deletion of what a lost pool still holds",
        deletes: true,
        nodes: 1,
        sessions: 2,
        left: Left { writes: 1, deletes: 1, fences: 1, crashes: 1, retired: 1, creates: 1, ..NONE },
        recovers: false,
        ..OWNERS
    },
    Scenario {
        name: "creation",
        first: false,
        left: Left { writes: 1, creates: 2, crashes: 1, fences: 1, lost_answers: 1, ..NONE },
        ..OWNERS
    },
    Scenario {
        name: "retention",
        nodes: 1,
        sessions: 1,
        entries: &[0, 0, 0, 0],
        keeps: 1,
        left: Left { writes: 2, crashes: 1, ..NONE },
        ..OWNERS
    },
    Scenario {
        name: "collection beside publishing",
        sessions: 2,
        fences_laggards: false,
        left: Left { syncs: 2, thins: 1, rounds: 1, ..NONE },
        ..BYTES
    },
    Scenario {
        name: "collection after a crash",
        nodes: 1,
        sessions: 2,
        second: None,
        most_packs: 3,
        left: Left { syncs: 2, thins: 1, rounds: 1, crashes: 1, ..NONE },
        collects: true,
        ..BYTES
    },
    Scenario {
        name: "collection beside deduplication",
        nodes: 1,
        sessions: 1,
        second: None,
        dedups: true,
        left: Left { syncs: 2, thins: 1, rounds: 1, failed_uploads: 1, ..NONE },
        ..BYTES
    },
    Scenario {
        name: "collection beside joining",
        nodes: 1,
        sessions: 2,
        second: None,
        most_packs: 3,
        dedups: true,
        hints: true,
        left: Left { syncs: 1, thins: 1, rounds: 1, fences: 1, ..NONE },
        ..BYTES
    },
    Scenario {
        name: "collection beside forks",
        second: Some(Life::Absent),
        left: Left { creates: 1, forks: 1, thins: 1, rounds: 1, ..NONE },
        ..BYTES
    },
    Scenario {
        name: "collection beside moves",
        nodes: 1,
        released: true,
        second: None,
        most_packs: 4,
        moves: true,
        left: Left { releases: 1, acquires: 2, syncs: 1, thins: 1, rounds: 1, ..NONE },
        ..BYTES
    },
    Scenario {
        name: "two collectors",
        leaders: 2,
        nodes: 1,
        sessions: 1,
        second: None,
        dedups: true,
        fences_laggards: false,
        left: Left { syncs: 1, thins: 1, rounds: 2, read_errors: 1, ..NONE },
        ..BYTES
    },
    Scenario {
        name: "relocation",
        nodes: 1,
        sessions: 1,
        second: None,
        relocates: true,
        entries: &[0b0011, 0b0001],
        left: Left { syncs: 1, thins: 1, rounds: 2, ..NONE },
        collects: true,
        ..BYTES
    },
    Scenario {
        name: "relocation beside forks",
        second: Some(Life::Absent),
        relocates: true,
        sessions: 2,
        dead: 0b0010,
        fences_laggards: false,
        left: Left { creates: 1, forks: 1, thins: 1, rounds: 2, ..NONE },
        ..BYTES
    },
    Scenario {
        name: "relocation of what a fork still reads",
        second: Some(Life::Absent),
        relocates: true,
        sessions: 2,
        entries: &[0b0011, 0b0001],
        fences_laggards: false,
        left: Left { creates: 1, forks: 1, thins: 1, rounds: 1, ..NONE },
        ..BYTES
    },
    Scenario {
        name: "a stalled collector",
        leaders: 2,
        nodes: 1,
        sessions: 1,
        most_packs: 2,
        dedups: true,
        hints: true,
        fences_laggards: false,
        left: Left { syncs: 3, thins: 2, rounds: 1, ..NONE },
        ..BYTES
    },
    Scenario {
        name: "deletion beside collection",
        nodes: 1,
        sessions: 1,
        second: None,
        deletes: true,
        left: Left { deletes: 2, syncs: 1, rounds: 1, ..NONE },
        ..BYTES
    },
];

/// The same worlds with more in them: each takes minutes.
pub(crate) const LARGER: &[Scenario] = &[
    Scenario {
        name: "two owners with everything that can fail",
        left: Left {
            writes: 2,
            crashes: 1,
            lost_answers: 1,
            fences: 1,
            labels: 1,
            releases: 1,
            acquires: 3,
            forces: 1,
            ..NONE
        },
        sessions: 4,
        ..OWNERS
    },
    Scenario {
        name: "a pool that goes back in time beside another owner",
        left: Left { writes: 3, rollbacks: 1, lost_answers: 1, fences: 1, acquires: 3, ..NONE },
        sessions: 4,
        ..OWNERS
    },
    Scenario {
        name: "restores, crashes and moves",
        entries: &[0, 0],
        keeps: 2,
        left: Left { writes: 3, restores: 2, crashes: 2, releases: 1, acquires: 2, ..NONE },
        ..OWNERS
    },
    Scenario {
        name: "deletion, crashes and fences",
        deletes: true,
        left: Left { writes: 2, deletes: 2, forces: 1, acquires: 2, crashes: 1, fences: 1, ..NONE },
        sessions: 4,
        ..OWNERS
    },
    Scenario {
        name: "collection beside two publishers that crash",
        sessions: 4,
        dedups: true,
        left: Left { syncs: 2, thins: 1, rounds: 1, crashes: 1, lost_answers: 1, ..NONE },
        ..BYTES
    },
    Scenario {
        name: "collection beside forks and fences",
        second: Some(Life::Absent),
        sessions: 4,
        left: Left { creates: 1, forks: 1, thins: 1, rounds: 2, fences: 1, crashes: 1, ..NONE },
        ..BYTES
    },
    Scenario {
        name: "two collectors beside two publishers",
        leaders: 2,
        sessions: 2,
        dedups: true,
        fences_laggards: false,
        left: Left { syncs: 2, thins: 2, rounds: 2, ..NONE },
        ..BYTES
    },
    Scenario {
        name: "two collectors that relocate beside forks",
        second: Some(Life::Absent),
        relocates: true,
        leaders: 2,
        sessions: 2,
        most_packs: 6,
        dead: 0b0010,
        fences_laggards: false,
        left: Left { creates: 1, forks: 1, thins: 2, rounds: 2, ..NONE },
        ..BYTES
    },
];

impl Scenario {
    pub(crate) fn named(name: &str) -> Self {
        *SMALL.iter().find(|scenario| scenario.name == name).unwrap_or_else(|| panic!("no scenario {name}"))
    }

    pub(crate) fn with(self, rules: Rules) -> Protocol {
        Protocol { rules, scenario: self }
    }

    pub(crate) fn without(self, rule: Rule) -> Protocol {
        self.with(Rules::ALL.without(rule))
    }

    /// Its first state.
    pub(crate) fn start(&self) -> State {
        let volumes = 1 + usize::from(self.second.is_some());
        let mut records = vec![Record::absent(); volumes];
        let owned = |session: u8, frames: &[u16]| Record {
            life: Life::Live,
            birth: 1,
            rev: 1,
            nonce: 0,
            owner: Some(session),
            epoch: 1,
            entries: frames.iter().map(|frames| Entry { writes: 0, frames: *frames, kept: false }).collect(),
            label: false,
            holders: 1 << session,
        };
        let pin = Pin { epoch: 1, avoided: 0 };
        let index = if self.packs { 0b11 } else { 0 };
        let mut nodes: Vec<Node> = (0..self.nodes)
            .map(|session| Node {
                up: true,
                session,
                joining: Joining::Joined,
                pin,
                raising: None,
                index,
                inherited: false,
                operation: None,
                attempts: 0,
                copies: vec![Copy::nothing(); volumes],
            })
            .collect();
        let holds = |node: &mut Node, volume: usize, frames: u16| {
            let tree = Tree { writes: 0, line: 1, nested: 0 };
            node.copies[volume] = Copy {
                place: Place::Owned,
                claim: Claim { birth: 1, epoch: 1 },
                live: Some(tree),
                base: tree,
                base_frames: frames,
                snaps: vec![tree],
                lines: 1,
                ..Copy::nothing()
            };
        };
        if self.released {
            records[0] = Record { owner: None, ..owned(0, self.entries) };
        } else if self.first {
            records[0] = owned(0, self.entries);
            holds(&mut nodes[0], 0, self.entries.last().copied().unwrap_or(0));
        }
        if self.second == Some(Life::Live) {
            let last = self.nodes - 1;
            records[1] = owned(last, &[0]);
            holds(&mut nodes[usize::from(last)], 1, 0);
        }
        let session = |number: u8| Session {
            standing: if number < self.nodes { Standing::Live } else { Standing::Unborn },
            pin: 1,
            open: 0,
        };
        State {
            sessions: (0..self.sessions).map(session).collect(),
            stored: records.iter().fold(self.dead, |all, record| all | record.frames()),
            packs: if self.packs { 2 } else { 0 },
            moved: Vec::new(),
            gc: Gc {
                rev: 1,
                epoch: 1,
                phase: Phase::Idle,
                condemned: 0,
                doomed: 0,
                moves: Vec::new(),
                marked: 0,
            },
            nodes,
            puts: Vec::new(),
            leaders: vec![Leader::Off; usize::from(self.leaders)],
            hub: Hub::default(),
            saved: None,
            left: self.left,
            told: Told {
                written: vec![0; volumes],
                excused: vec![0; volumes],
                gone: vec![0; volumes],
                durable: vec![0; volumes],
                orphans: vec![0; volumes],
                created: false,
                retired: false,
                rolled_back: false,
            },
            next_write: 0,
            broken: 0,
            records,
        }
    }
}
