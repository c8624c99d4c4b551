//! The store: conditional writes that land when they like, and what is judged when one does.
//!
//! In the code: `cas/src/settle.rs` and `cas/src/update.rs` (U), `cas/src/guard.rs` (G), `cas/src/references.rs` (R).

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::invariants::Invariant;
use crate::rules::Rule;
use crate::scenario::Protocol;
use crate::state::{
    Claim, Copy, Frames, HUB, Life, Packs, Put, Record, Standing, State, What, each, frames_of, packs_of,
};

/// How the answer to a write that arrived fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    Told,
    AnswerLost,
    /// The answer is lost, and a copy of the request is still on its way.
    Duplicated,
}

impl Protocol {
    /// The state of a record as the store names it.
    pub(crate) fn etag(&self, record: &Record) -> u64 {
        if self.rules.has(Rule::FreshRev) {
            return u64::from(record.rev);
        }
        // A hash of the bytes: the same bytes have the same one.
        let mut hasher = DefaultHasher::new();
        Record { rev: 0, nonce: 0, ..record.clone() }.hash(&mut hasher);
        hasher.finish()
    }

    /// Rule G for a node's copy.
    pub(crate) fn guard(&self, record: &Record, session: u8, claim: Claim, copy: &Copy) -> bool {
        (record.birth == claim.birth || !self.rules.has(Rule::Birth))
            && (record.life == Life::Live && record.owner == Some(session) && record.epoch == claim.epoch
                || !self.rules.has(Rule::Owner))
            && (record.head().is_none_or(|head| copy.knows(head.writes)) || !self.rules.has(Rule::Head))
    }

    /// Where the bytes of these frames lie now, through `moved/`.
    pub(crate) fn moved_to(&self, state: &State, frames: Frames) -> Frames {
        let mut all = frames;
        for (from, to) in state.moved.iter().chain(&state.moved) {
            all |= (all & frames_of(*from)) >> (2 * from) << (2 * to);
        }
        all
    }

    /// Tells if every byte of these frames can be read.
    pub(crate) fn is_whole(&self, state: &State, frames: Frames) -> bool {
        (0..16).filter(|frame| frames & (1 << frame) != 0).all(|frame| {
            let mut frame: u8 = frame;
            loop {
                if state.stored & (1 << frame) != 0 {
                    return true;
                }
                let moved = state.moved.iter().find(|(from, _)| *from == frame / 2);
                match moved {
                    Some((_, to)) if self.rules.has(Rule::FollowMoved) => frame = 2 * to + frame % 2,
                    _ => return false,
                }
            }
        })
    }

    /// The packs that records keep alive.
    pub(crate) fn needed(&self, state: &State) -> Packs {
        let frames = state.records.iter().fold(0, |all, record| all | record.frames());
        packs_of(self.moved_to(state, frames))
    }

    /// Removes what a write of this record may thin.
    pub(crate) fn thin(&self, record: &mut Record, most: usize) {
        let mut removed = 0;
        while record.entries.len() > most.max(1) {
            let last = record.entries.len() - 1;
            let may = |entry: &crate::state::Entry| !entry.kept || !self.rules.has(Rule::ThinKept);
            let Some(old) = record.entries[..last].iter().position(may) else { return };
            if removed == 2 && self.rules.has(Rule::ThinBounded) {
                return;
            }
            record.entries.remove(old);
            removed += 1;
        }
    }

    /// A write arrives. Returns whether it happened.
    pub(crate) fn land(&self, state: &mut State, put: &Put) -> bool {
        let before = state.records[usize::from(put.volume)].clone();
        if self.etag(&before) != put.etag || before.life == Life::Absent {
            return false;
        }
        self.judge_write(state, &before, put);
        let mut record = put.record.clone();
        record.rev = before.rev + 1;
        state.records[usize::from(put.volume)] = record;
        if put.what == What::Label {
            // A label that its writer has long been answered about is undone by an older one.
            if state.hub.label != Some(put.record.nonce) {
                state.breaks(Invariant::Acknowledged);
            }
        }
        true
    }

    /// What must hold of a write of a record when it lands.
    fn judge_write(&self, state: &mut State, before: &Record, put: &Put) {
        let after = &put.record;
        let added = after.frames() & !before.frames();
        if packs_of(added) & state.gc.doomed != 0 {
            state.breaks(Invariant::Doomed);
        }
        if put.what == What::Label {
            return;
        }
        if put.mixed {
            state.breaks(Invariant::Whole);
        }
        if put.author != HUB {
            let session = &state.sessions[usize::from(put.session)];
            if session.standing == Standing::Drained {
                state.breaks(Invariant::Drained);
            }
            let owns = before.owner == Some(put.session) && before.birth == after.birth;
            if !owns || before.life != Life::Live && put.what != What::First {
                state.breaks(Invariant::OneOwner);
            }
        }
        // The line only grows, and what is thinned is at most two entries that nothing names.
        let (head, old) = (after.head(), before.head());
        if let (Some(head), Some(old)) = (head, old)
            && put.what != What::Restore
            && old.writes & !head.writes != 0
        {
            state.breaks(Invariant::Acknowledged);
        }
        let gone = before.entries.iter().filter(|entry| {
            !after.entries.iter().any(|other| (other.writes, other.frames) == (entry.writes, entry.frames))
        });
        let (mut removed, mut kept) = (0, 0);
        for entry in gone {
            removed += 1;
            kept += u8::from(entry.kept);
        }
        if removed > 2 || kept > 0 {
            state.breaks(Invariant::Acknowledged);
        }
    }
}

impl State {
    /// Names a new pack, if the run may make one.
    pub(crate) fn new_pack(&mut self) -> u8 {
        self.packs += 1;
        self.packs - 1
    }

    pub(crate) fn breaks(&mut self, invariant: Invariant) {
        self.broken |= 1 << invariant as u16;
    }

    pub(crate) fn record(&self, volume: u8) -> &Record {
        &self.records[usize::from(volume)]
    }

    pub(crate) fn record_mut(&mut self, volume: u8) -> &mut Record {
        &mut self.records[usize::from(volume)]
    }

    pub(crate) fn node(&self, node: u8) -> &crate::state::Node {
        &self.nodes[usize::from(node)]
    }

    pub(crate) fn node_mut(&mut self, node: u8) -> &mut crate::state::Node {
        &mut self.nodes[usize::from(node)]
    }

    pub(crate) fn session(&self, session: u8) -> &crate::state::Session {
        &self.sessions[usize::from(session)]
    }

    pub(crate) fn session_mut(&mut self, session: u8) -> &mut crate::state::Session {
        &mut self.sessions[usize::from(session)]
    }

    pub(crate) fn is_over(&self, session: u8) -> bool {
        self.session(session).standing >= Standing::Fenced
    }

    /// The packs in the store.
    pub(crate) fn stored_packs(&self) -> Packs {
        packs_of(self.stored)
    }

    /// What reading `gc` tells.
    pub(crate) fn pin(&self) -> crate::state::Pin {
        crate::state::Pin { epoch: self.gc.epoch, avoided: self.gc.condemned | self.gc.doomed }
    }

    /// Deletes a pack.
    pub(crate) fn delete_pack(&mut self, pack: u8) {
        self.stored &= !frames_of(pack);
    }

    /// Tells if a request of this write is still on its way.
    pub(crate) fn is_under_way(&self, author: u8, nonce: u8) -> bool {
        self.puts.iter().any(|put| put.author == author && put.record.nonce == nonce)
    }

    /// The numbers in a set.
    pub(crate) fn volumes(&self) -> impl Iterator<Item = u8> + use<> {
        each((1_u16.wrapping_shl(u32::try_from(self.records.len()).unwrap_or(0)) - 1) as u8)
    }
}
