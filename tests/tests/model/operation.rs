//! An operation on its way to the record: upload, send, settle.
//!
//! In the code: `cas/src/session/{operation,packs}.rs`, `cas/src/lifecycle/{publish,restore,acquire,create}.rs` over
//! `cas/src/update.rs`, `csi/src/sync.rs`.

use crate::action::Action;
use crate::invariants::is_ready;
use crate::rules::Rule;
use crate::scenario::Protocol;
use crate::state::{Copy, Entry, Life, Operation, Place, Put, State, Tree, Upload, What, packs_of};
use crate::store::Fate;

impl Protocol {
    pub(crate) fn operation_steps(&self, state: &State, at: u8, out: &mut Vec<Action>) {
        let node = state.node(at);
        let Some(operation) = &node.operation else { return };
        if !is_ready(node) {
            return;
        }
        let acknowledged = operation.upload == Upload::Done;
        match operation.upload {
            Upload::Due if state.packs < self.scenario.most_packs => out.push(Action::Upload { node: at }),
            // No more packs are looked at.
            Upload::Due => out.push(Action::UploadFails { node: at }),
            Upload::Under(_) => {
                out.push(Action::Uploaded { node: at });
                if state.left.failed_uploads > 0 {
                    out.push(Action::UploadFails { node: at });
                }
            }
            Upload::Done => {}
        }
        match operation.sent {
            None => {
                let named = !matches!(operation.upload, Upload::Due);
                if acknowledged || named && !self.rules.has(Rule::PacksFirst) {
                    out.push(Action::Send { node: at });
                }
                if !self.rules.has(Rule::JoinBeforeSnapshot) {
                    out.push(Action::Join { node: at });
                }
            }
            Some((_, nonce)) if !state.is_under_way(at, nonce) => out.push(Action::Settle { node: at }),
            Some(_) => {
                if !self.rules.has(Rule::SameBytes) {
                    out.push(Action::GiveUp { node: at });
                }
            }
        }
    }

    pub(crate) fn step_operation(&self, state: &mut State, action: &Action) -> Option<()> {
        match *action {
            Action::Join { node } => {
                let operation = state.node(node).operation?;
                let live = state.node(node).copies[usize::from(operation.volume)].live?;
                let late = live.writes & !operation.version.writes;
                if late == 0 || operation.waiting != 0 {
                    return None;
                }
                state.node_mut(node).operation.as_mut()?.waiting = late;
            }
            Action::Upload { node } => {
                let pack = state.new_pack();
                let on_ack = self.rules.has(Rule::IndexOnAck);
                let holder = state.node_mut(node);
                if !on_ack {
                    holder.index |= 1 << pack;
                }
                let operation = holder.operation.as_mut()?;
                operation.upload = Upload::Under(pack);
                operation.version.frames |= 1 << (2 * pack);
                let session = holder.session;
                state.session_mut(session).open |= 1 << pack;
            }
            Action::Uploaded { node } => {
                let Upload::Under(pack) = state.node(node).operation?.upload else { return None };
                state.stored |= 1 << (2 * pack);
                let holder = state.node_mut(node);
                holder.index |= 1 << pack;
                holder.operation.as_mut()?.upload = Upload::Done;
            }
            Action::UploadFails { node } => {
                state.left.failed_uploads = state.left.failed_uploads.saturating_sub(1);
                self.end(state, node);
            }
            Action::Send { node } => self.send(state, node)?,
            Action::Settle { node } => self.settle(state, node)?,
            Action::GiveUp { node } => self.end(state, node),
            _ => return None,
        }
        Some(())
    }

    /// Reads the record; if the guard holds, sends the next one.
    fn send(&self, state: &mut State, at: u8) -> Option<()> {
        let operation = state.node(at).operation?;
        let volume = operation.volume;
        let record = state.record(volume).clone();
        let session = state.node(at).session;
        if operation.what != What::First && self.rules.has(Rule::SnapFirst) {
            let copy = &mut state.node_mut(at).copies[usize::from(volume)];
            if operation.what == What::Publish {
                copy.keep(Tree { writes: operation.version.writes, line: operation.line, nested: 0 });
            }
        }
        let copy = state.node(at).copies[usize::from(volume)].clone();
        let holds = match operation.what {
            What::First => {
                record.life == Life::Creating
                    && record.owner == Some(session)
                    && record.epoch == operation.claim.epoch
                    && record.birth == operation.claim.birth
            }
            _ => {
                self.guard(&record, session, operation.claim, &copy)
                    && (operation.what != What::Release
                        || record.head().is_none_or(|head| head.writes == copy.base.writes))
            }
        };
        if !holds && self.rules.has(Rule::GuardedEtag) {
            self.lose(state, at);
            return Some(());
        }
        // R(b): what is not this operation's own must be in the record that is replaced.
        let own = packs_of(operation.version.frames & !record.frames());
        let proven = operation.hits | state.session(session).open;
        if own & !proven != 0 {
            let through = packs_of(self.moved_to(state, operation.version.frames)) & operation.hits;
            if through == 0 {
                self.end(state, at);
                return Some(());
            }
        }
        let node = state.node_mut(at);
        node.attempts += 1;
        let nonce = (at + 1) << 5 | node.attempts & 31;
        let mut next = record.next(nonce);
        match operation.what {
            What::Release => next.owner = None,
            What::Publish | What::First | What::Restore => {
                if operation.what == What::Restore && self.rules.has(Rule::KeepOldHead) {
                    next.entries.last_mut()?.kept = true;
                }
                next.entries.push(Entry { kept: false, ..operation.version });
                next.life = Life::Live;
                if self.scenario.keeps > 0 {
                    self.thin(&mut next, self.scenario.keeps);
                }
            }
            What::Label => return None,
        }
        let etag = self.etag(&record);
        let put = Put {
            author: at,
            session,
            volume,
            etag,
            record: next,
            what: operation.what,
            mixed: operation.mixed,
        };
        state.puts.push(put);
        state.node_mut(at).operation.as_mut()?.sent = Some((etag, nonce));
        Some(())
    }

    /// One request of a write arrives.
    pub(crate) fn deliver(&self, state: &mut State, put: usize, fate: Fate) -> Option<()> {
        let put =
            if fate == Fate::Duplicated { state.puts.get(put)?.clone() } else { state.puts.remove(put) };
        match fate {
            Fate::Told => {}
            Fate::AnswerLost => state.left.lost_answers -= 1,
            Fate::Duplicated => state.left.duplicates -= 1,
        }
        let landed = self.land(state, &put);
        let nonce = put.record.nonce;
        if put.author == crate::state::HUB {
            if landed && fate != Fate::AnswerLost && state.hub.label == Some(nonce) {
                state.hub.label = None;
                state.hub.label_told = put.record.label;
            }
            return Some(());
        }
        let node = state.node(put.author);
        let waits =
            node.up && node.operation.is_some_and(|operation| operation.sent == Some((put.etag, nonce)));
        if landed && waits && fate == Fate::Told {
            self.done(state, put.author)?;
        }
        Some(())
    }

    /// Nothing of the write is under way, and no answer came: a read decides.
    fn settle(&self, state: &mut State, at: u8) -> Option<()> {
        let operation = state.node(at).operation?;
        let (_, nonce) = operation.sent?;
        let record = state.record(operation.volume).clone();
        if record.nonce == nonce {
            return if self.rules.has(Rule::OwnNonce) {
                self.done(state, at)
            } else {
                self.lose(state, at);
                Some(())
            };
        }
        // Its own work, under somebody's edit.
        let copy = &state.node(at).copies[usize::from(operation.volume)];
        let version = operation.version;
        let stands = match operation.what {
            What::Release => record.owner.is_none() && record.epoch == operation.claim.epoch,
            _ => {
                let same = |entry: &Entry| (entry.writes, entry.frames) == (version.writes, version.frames);
                record.birth == operation.claim.birth
                    && operation.what != What::Restore
                    && version.writes != copy.base.writes
                    && record.entries.iter().any(same)
            }
        };
        if !self.rules.has(Rule::Reapply) {
            self.lose(state, at);
            return Some(());
        }
        if stands {
            return self.done(state, at);
        }
        state.node_mut(at).operation.as_mut()?.sent = None;
        Some(())
    }

    /// The write is known to have happened.
    fn done(&self, state: &mut State, at: u8) -> Option<()> {
        let operation = state.node(at).operation?;
        let volume = usize::from(operation.volume);
        let Operation { what, version, line, .. } = operation;
        let holder = state.node_mut(at);
        let copy = &mut holder.copies[volume];
        let tree = Tree { writes: version.writes, line, nested: 0 };
        match what {
            What::Publish => {
                copy.base = tree;
                copy.base_frames = version.frames;
                copy.snaps = vec![tree];
                state.told.durable[volume] |= version.writes | operation.waiting;
            }
            What::Release => *copy = Copy { lines: copy.lines, ..Copy::nothing() },
            What::Restore => {
                copy.base_frames = version.frames;
                copy.keep(tree);
                if self.rules.has(Rule::RecordBeforeSwap) {
                    copy.swap = Some(tree);
                } else {
                    copy.base = tree;
                    copy.gates_closed = false;
                }
            }
            What::First => {
                copy.lines += 1;
                let tree = Tree { line: copy.lines, ..tree };
                copy.place = Place::Owned;
                copy.claim = operation.claim;
                copy.live = Some(tree);
                copy.base = tree;
                copy.base_frames = version.frames;
                copy.snaps = vec![tree];
                state.told.created = true;
            }
            What::Label => return None,
        }
        self.end(state, at);
        Some(())
    }

    /// The guard does not hold any more.
    fn lose(&self, state: &mut State, at: u8) {
        if let Some(operation) = state.node(at).operation {
            let copy = &mut state.node_mut(at).copies[usize::from(operation.volume)];
            copy.place = if copy.live.is_some() { Place::Lost } else { Place::Nothing };
            copy.swap = None;
            copy.gates_closed = false;
        }
        self.end(state, at);
    }

    /// The operation ends, and with it what it held.
    fn end(&self, state: &mut State, at: u8) {
        let node = state.node_mut(at);
        if let Some(operation) = node.operation.take() {
            let copy = &mut node.copies[usize::from(operation.volume)];
            if operation.what == What::First && copy.place == Place::Begun {
                copy.place = Place::Nothing;
            }
            if operation.what == What::Release {
                copy.releasing = false;
            }
            if operation.what == What::Restore && copy.swap.is_none() {
                copy.gates_closed = false;
            }
        }
        let (session, inherited) = (node.session, node.inherited);
        if !inherited {
            state.session_mut(session).open = 0;
        }
    }
}
