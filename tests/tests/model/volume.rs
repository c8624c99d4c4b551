//! What a node does with its copy of a volume.
//!
//! In the code: `csi/src/{sync,restore,release,acquire,settle,create}.rs` over `cas/src/lifecycle/`.

use crate::action::Action;
use crate::invariants::{Invariant, is_ready};
use crate::rules::Rule;
use crate::scenario::Protocol;
use crate::state::{
    Claim, Copy, Entry, Frames, Life, Operation, Place, State, Tree, Upload, What, each, packs_of,
};

impl Protocol {
    pub(crate) fn volume_steps(&self, state: &State, at: u8, volume: u8, out: &mut Vec<Action>) {
        let node = state.node(at);
        let copy = &node.copies[usize::from(volume)];
        let record = state.record(volume);
        if !is_ready(node) {
            return;
        }
        let idle = node.operation.is_none();
        match copy.place {
            Place::Owned => {
                let open = !copy.gates_closed || !self.rules.has(Rule::GatesClosed) || self.scenario.mounted;
                if state.left.writes > 0 && open && copy.live.is_some() && state.next_write < 4 {
                    out.push(Action::Write { node: at, volume, nested: false });
                    if self.scenario.nested {
                        out.push(Action::Write { node: at, volume, nested: true });
                    }
                }
                if idle && copy.swap.is_none() {
                    self.begin_steps(state, at, volume, out);
                }
                if copy.swap.is_some() && idle {
                    out.push(Action::Swap { node: at, volume });
                }
                if copy.old.is_some() {
                    out.push(Action::Unmount { node: at, volume });
                }
            }
            Place::Unknown if idle => out.push(Action::Judge { node: at, volume }),
            Place::Lost => {
                let tree = copy.live.map_or(0, |tree| tree.writes);
                let listed = state.is_kept(volume, tree);
                if !listed {
                    out.push(Action::KeepAside { node: at, volume });
                }
                if listed || !self.rules.has(Rule::OrphanFirst) {
                    out.push(Action::DropLost { node: at, volume });
                }
            }
            Place::Nothing
                if state.left.acquires > 0
                    && record.life == Life::Live
                    && self.scenario.moves
                    && (record.owner != Some(node.session) || idle) =>
            {
                out.push(Action::Prepare { node: at, volume });
            }
            Place::Prepared => {
                let free = record.owner.is_none_or(|owner| owner == node.session || state.is_over(owner));
                if free || !self.rules.has(Rule::AcquireFree) {
                    out.push(Action::Take { node: at, volume, force: false });
                } else if state.left.forces > 0 {
                    out.push(Action::Take { node: at, volume, force: true });
                }
            }
            Place::Taken if record.life != Life::Creating && idle && !state.is_over(node.session) => {
                out.push(Action::Confirm { node: at, volume });
            }
            // The creation was somebody else's in the end, or an earlier request's.
            Place::Begun if idle && (record.life != Life::Creating || record.owner != Some(node.session)) => {
                out.push(Action::DropLost { node: at, volume });
            }
            _ => {}
        }
        // A record that was made for this session, which has to give it its first version.
        if record.life == Life::Creating && record.owner == Some(node.session) && idle {
            match copy.place {
                Place::Nothing if self.rules.has(Rule::CreateConfirms) => {
                    let confirmed = !state.is_over(node.session);
                    out.extend(confirmed.then_some(Action::Confirm { node: at, volume }));
                }
                Place::Nothing | Place::Begun => {
                    out.push(Action::First { node: at, volume, from: None });
                    for (from, entry) in state.record(0).entries.iter().enumerate() {
                        if state.left.forks > 0 && volume > 0 && self.may_refer(state, at, entry.frames) {
                            out.push(Action::First { node: at, volume, from: Some(from) });
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// The operations that an owner may begin.
    fn begin_steps(&self, state: &State, at: u8, volume: u8, out: &mut Vec<Action>) {
        let node = state.node(at);
        let copy = &node.copies[usize::from(volume)];
        let Some(live) = copy.live else { return };
        let dirty = self.is_dirty(copy, live);
        if dirty || self.scenario.packs && state.left.syncs > 0 {
            let keeps = Action::Snapshot { node: at, volume, keeps: true, hit: None };
            if !self.scenario.packs {
                out.push(keeps);
            } else if state.packs < self.scenario.most_packs {
                out.push(keeps);
                out.push(Action::Snapshot { node: at, volume, keeps: false, hit: None });
            }
            if self.scenario.packs {
                for pack in each(node.index) {
                    if self.scenario.dedups && pack < self.scenario.most_packs {
                        out.push(Action::Snapshot { node: at, volume, keeps: false, hit: Some(pack) });
                    }
                }
            }
        }
        if state.left.restores > 0 && !dirty && !copy.gates_closed {
            for entry in 0..state.record(volume).entries.len().saturating_sub(1) {
                out.push(Action::Restore { node: at, volume, entry });
            }
        }
        if state.left.releases > 0 && !copy.gates_closed {
            out.push(Action::CloseGates { node: at, volume });
        }
        if copy.gates_closed {
            out.push(Action::OpenGates { node: at, volume });
            if (!dirty || !self.rules.has(Rule::ReleaseClean)) && self.rules.has(Rule::ReleaseIsPublish) {
                out.push(Action::Release { node: at, volume });
            }
        }
    }

    /// Whether something was written since base, as far as the node can tell.
    pub(crate) fn is_dirty(&self, copy: &Copy, live: Tree) -> bool {
        let seen = if self.rules.has(Rule::AllRoots) { 0 } else { live.nested };
        live.writes & !seen != copy.base.writes & !seen
    }

    /// R(c): nothing of it is condemned under the pin.
    fn may_refer(&self, state: &State, at: u8, frames: Frames) -> bool {
        let frames = if self.rules.has(Rule::ConfirmMoved) { self.moved_to(state, frames) } else { frames };
        packs_of(frames) & state.node(at).pin.avoided == 0 || !self.rules.has(Rule::Confirm)
    }

    pub(crate) fn step_volume(&self, state: &mut State, action: &Action) -> Option<()> {
        match *action {
            Action::Write { node, volume, nested } => self.write(state, node, volume, nested)?,
            Action::Snapshot { node, volume, keeps, hit } => {
                if self.scenario.packs {
                    state.left.syncs = state.left.syncs.saturating_sub(1);
                    let copy = &state.node(node).copies[usize::from(volume)];
                    if copy.live.is_some_and(|live| !self.is_dirty(copy, live)) {
                        self.write(state, node, volume, false)?;
                    }
                }
                self.snapshot(state, node, volume, keeps, hit)?;
            }
            Action::Restore { node, volume, entry } => self.restore(state, node, volume, entry)?,
            Action::Swap { node, volume } => {
                let copy = &mut state.node_mut(node).copies[usize::from(volume)];
                let tree = copy.swap.take()?;
                if self.scenario.mounted && self.rules.has(Rule::KeepMounted) {
                    copy.old = copy.live.map(|live| live.writes);
                }
                copy.live = Some(tree);
                copy.base = tree;
                copy.gates_closed = false;
            }
            Action::Unmount { node, volume } => {
                let copy = &mut state.node_mut(node).copies[usize::from(volume)];
                let old = copy.old.take()?;
                let unlisted = old & !state.record(volume).listed();
                state.told.orphans[usize::from(volume)] |= unlisted;
                // What is in an orphan is where restore-to said that it would be.
                state.told.excused[usize::from(volume)] |= unlisted;
            }
            Action::CloseGates { node, volume } => {
                state.left.releases -= 1;
                state.node_mut(node).copies[usize::from(volume)].gates_closed = true;
            }
            Action::OpenGates { node, volume } => {
                state.node_mut(node).copies[usize::from(volume)].gates_closed = false;
            }
            Action::Release { node, volume } => {
                let copy = &state.node(node).copies[usize::from(volume)];
                let version = Entry { writes: copy.base.writes, frames: copy.base_frames, kept: false };
                let operation = self.operation(What::Release, volume, version, copy);
                let node = state.node_mut(node);
                node.operation = Some(operation);
                node.copies[usize::from(volume)].releasing = true;
            }
            Action::Prepare { node, volume } => {
                let head = state.record(volume).head()?;
                let copy = &mut state.node_mut(node).copies[usize::from(volume)];
                copy.lines += 1;
                copy.base = Tree { writes: head.writes, line: copy.lines, nested: 0 };
                copy.base_frames = head.frames;
                copy.place = Place::Prepared;
            }
            Action::Take { node, volume, force } => self.take(state, node, volume, force)?,
            Action::Confirm { node, volume } => {
                let creating = state.record(volume).life == Life::Creating;
                if creating && !self.rules.has(Rule::AnswerAfterHead) {
                    state.told.created = true;
                }
                let copy = &mut state.node_mut(node).copies[usize::from(volume)];
                copy.place = if creating { Place::Begun } else { Place::Owned };
                if !creating && copy.live.is_none() {
                    copy.live = Some(copy.base);
                    copy.keep(copy.base);
                }
            }
            Action::Judge { node, volume } => self.judge_copy(state, node, volume)?,
            Action::KeepAside { node, volume } => {
                let copy = &state.node(node).copies[usize::from(volume)];
                let writes = copy.live.map_or(0, |tree| tree.writes);
                state.told.orphans[usize::from(volume)] |= writes;
            }
            Action::DropLost { node, volume } => state.drop_copy(node, volume),
            Action::First { node, volume, from } => {
                let record = state.record(volume).clone();
                let claim = Claim { birth: record.birth, epoch: record.epoch };
                let (version, upload, hits) = match from {
                    Some(from) => {
                        state.left.forks -= 1;
                        let entry = *state.record(0).entries.get(from)?;
                        let frames = if self.rules.has(Rule::ConfirmMoved) {
                            self.moved_to(state, entry.frames)
                        } else {
                            entry.frames
                        };
                        (Entry { kept: false, ..entry }, Upload::Done, packs_of(frames))
                    }
                    None if self.scenario.packs && state.packs >= self.scenario.most_packs => return None,
                    None => {
                        let upload = if self.scenario.packs { Upload::Due } else { Upload::Done };
                        (Entry { writes: 0, frames: 0, kept: false }, upload, 0)
                    }
                };
                let copy = &mut state.node_mut(node).copies[usize::from(volume)];
                copy.place = Place::Begun;
                copy.claim = claim;
                let operation = self.operation(What::First, volume, version, copy);
                state.node_mut(node).operation = Some(Operation { upload, hits, claim, ..operation });
            }
            Action::Thin { volume } => {
                // By the owner's U, or by a collector where there is no owner.
                state.left.thins -= 1;
                let mut record = state.record(volume).next(0);
                if record.entries.len() < 2 {
                    return None;
                }
                self.thin(&mut record, 1);
                *state.record_mut(volume) = record;
            }
            _ => return None,
        }
        Some(())
    }

    fn write(&self, state: &mut State, node: u8, volume: u8, nested: bool) -> Option<()> {
        let bit = 1_u8.checked_shl(u32::from(state.next_write))?;
        state.next_write += 1;
        state.left.writes = state.left.writes.saturating_sub(1);
        let session = state.node(node).session;
        let record = state.record(volume).clone();
        let over = state.is_over(session) || state.told.rolled_back;
        let copy = &mut state.node_mut(node).copies[usize::from(volume)];
        let mine = record.owner == Some(session) && record.epoch == copy.claim.epoch && !over;
        match &mut copy.old {
            // The mount shows the old tree.
            Some(old) => *old |= bit,
            None => {
                let live = copy.live.as_mut()?;
                live.writes |= bit;
                live.nested |= if nested { bit } else { 0 };
            }
        }
        let told = &mut state.told;
        told.written[usize::from(volume)] |= bit;
        told.excused[usize::from(volume)] |= if mine { 0 } else { bit };
        Some(())
    }

    pub(crate) fn operation(&self, what: What, volume: u8, version: Entry, copy: &Copy) -> Operation {
        Operation {
            what,
            volume,
            version,
            line: copy.live.map_or(0, |live| live.line),
            mixed: false,
            claim: copy.claim,
            upload: Upload::Done,
            hits: 0,
            waiting: 0,
            sent: None,
        }
    }

    fn snapshot(&self, state: &mut State, node: u8, volume: u8, keeps: bool, hit: Option<u8>) -> Option<()> {
        let copy = &state.node(node).copies[usize::from(volume)];
        let live = copy.live?;
        let related = copy.base.line == live.line;
        let mixed = !related && !self.rules.has(Rule::Ancestor);
        let kept = if keeps { copy.base_frames } else { 0 };
        let frames = kept | hit.map_or(0, |pack| 1 << (2 * pack));
        let version = Entry { writes: live.writes, frames, kept: false };
        let upload = if self.scenario.packs && hit.is_none() { Upload::Due } else { Upload::Done };
        let hits = hit.map_or(0, |pack| 1 << pack);
        let operation = self.operation(What::Publish, volume, version, copy);
        state.node_mut(node).operation = Some(Operation { mixed, upload, hits, ..operation });
        Some(())
    }

    fn restore(&self, state: &mut State, node: u8, volume: u8, entry: usize) -> Option<()> {
        state.left.restores -= 1;
        let target = *state.record(volume).entries.get(entry)?;
        let (record_first, snap_first) =
            (self.rules.has(Rule::RecordBeforeSwap), self.rules.has(Rule::RestoreSnapFirst));
        let copy = &mut state.node_mut(node).copies[usize::from(volume)];
        copy.gates_closed = true;
        copy.lines += 1;
        let tree = Tree { writes: target.writes, line: copy.lines, nested: 0 };
        if snap_first {
            copy.keep(tree);
        }
        if !record_first {
            copy.live = Some(tree);
        }
        let version = Entry { kept: false, ..target };
        let operation = Operation { line: tree.line, ..self.operation(What::Restore, volume, version, copy) };
        state.node_mut(node).operation = Some(operation);
        Some(())
    }

    pub(crate) fn take(&self, state: &mut State, node: u8, volume: u8, force: bool) -> Option<()> {
        state.left.acquires = state.left.acquires.saturating_sub(1);
        let me = state.node(node).session;
        let record = state.record(volume).clone();
        let copy = &mut state.node_mut(node).copies[usize::from(volume)];
        if record.life != Life::Live {
            *copy = Copy { lines: copy.lines, ..Copy::nothing() };
            return Some(());
        }
        let head = record.head()?;
        if head.writes != copy.base.writes && self.rules.has(Rule::AcquireHead) {
            // The head moved since it was prepared.
            copy.place = Place::Nothing;
            return Some(());
        }
        copy.claim = Claim { birth: record.birth, epoch: record.epoch + 1 };
        copy.place = if self.rules.has(Rule::AcquireConfirms) { Place::Taken } else { Place::Owned };
        if copy.place == Place::Owned {
            copy.live = Some(copy.base);
            copy.keep(copy.base);
        }
        if force {
            state.left.forces -= 1;
        }
        state.own(volume, me, 1 << node, force);
        Some(())
    }

    /// What a copy is, decided from its record.
    fn judge_copy(&self, state: &mut State, node: u8, volume: u8) -> Option<()> {
        let me = state.node(node).session;
        let record = state.record(volume).clone();
        let over = record.owner.is_some_and(|owner| state.is_over(owner));
        let at = usize::from(volume);
        let copy = state.node(node).copies[at].clone();
        let live = copy.live?;
        if record.life == Life::Absent && !self.rules.has(Rule::Quarantine) {
            state.drop_copy(node, volume);
            return Some(());
        }
        let birth = record.birth != copy.claim.birth && self.rules.has(Rule::Birth);
        if record.life == Life::Absent || birth {
            state.node_mut(node).copies[at].place = Place::Quarantined;
            if !state.told.retired {
                // Nobody will ever tell this pool that it may drop it.
                state.breaks(Invariant::Collected);
            }
            return Some(());
        }
        let covered = record.head().is_none_or(|head| copy.knows(head.writes)) || !self.rules.has(Rule::Head);
        match record.life {
            Life::Deleted | Life::Purged => {
                if state.is_kept(volume, live.writes) || !self.rules.has(Rule::TombstoneKeeps) {
                    state.drop_copy(node, volume);
                } else {
                    state.node_mut(node).copies[at].place = Place::Lost;
                }
                return Some(());
            }
            Life::Creating => {
                if record.owner == Some(me) || over {
                    state.drop_copy(node, volume);
                }
                return Some(());
            }
            Life::Live | Life::Absent => {}
        }
        let mine = record.owner == Some(me);
        if !covered || !(mine || record.owner.is_none() || over) {
            state.node_mut(node).copies[at].place = Place::Lost;
            return Some(());
        }
        let clean = live.writes == copy.base.writes && record.head().is_some_and(|h| h.writes == live.writes);
        if record.owner.is_none() && clean {
            // A release that died between the record and the copy.
            state.drop_copy(node, volume);
            return Some(());
        }
        let epoch = if mine { record.epoch } else { record.epoch + 1 };
        if !mine {
            state.own(volume, me, 1 << node, false);
        }
        self.settle_last_life(state, node, volume);
        let copy = &mut state.node_mut(node).copies[at];
        copy.claim = Claim { birth: record.birth, epoch };
        copy.place = if mine { Place::Owned } else { Place::Taken };
        self.catch_up(state, node, volume);
        Some(())
    }

    /// Drops the snapshots beside base and head: a publication or a restore was cut short. It may still arrive, and so may
    /// a release; but not any more.
    fn settle_last_life(&self, state: &mut State, node: u8, volume: u8) {
        let record = state.record(volume).clone();
        let copy = &mut state.node_mut(node).copies[usize::from(volume)];
        let (base, before) = (copy.base, copy.snaps.len());
        copy.snaps
            .retain(|snap| *snap == base || record.head().is_some_and(|head| head.writes == snap.writes));
        let dropped = copy.snaps.len() < before && self.rules.has(Rule::SettleBeforeDrop);
        let released = std::mem::take(&mut copy.releasing) && self.rules.has(Rule::SettleRelease);
        if dropped || released {
            *state.record_mut(volume) = record.next(0);
        }
    }

    /// The head is known here. Where it is not base, a crash came between the record and the pool.
    fn catch_up(&self, state: &mut State, node: u8, volume: u8) {
        let at = usize::from(volume);
        let record = state.record(volume).clone();
        let Some(head) = record.head() else { return };
        let copy = &mut state.node_mut(node).copies[at];
        copy.base_frames = head.frames;
        let (Some(live), true) = (copy.live, copy.base.writes != head.writes) else { return };
        let Some(snap) = copy.snaps.iter().find(|snap| snap.writes == head.writes).copied() else { return };
        let related = snap.line == live.line || !self.rules.has(Rule::Ancestor);
        copy.base = snap;
        if !related {
            // A restore that had not swapped yet.
            copy.live = Some(snap);
            let unlisted = live.writes & !record.listed();
            state.told.orphans[at] |= unlisted;
            state.told.excused[at] |= unlisted;
        }
    }
}

impl State {
    /// The record's owner becomes this session, in a new epoch. Judges a planned acquire.
    pub(crate) fn own(&mut self, volume: u8, session: u8, holder: u8, force: bool) {
        let before = self.record(volume).clone();
        let at = usize::from(volume);
        let planned = before.owner.is_none_or(|owner| owner == session || !self.is_over(owner)) && !force;
        if planned && self.told.written[at] & !self.told.excused[at] & !before.listed() != 0 {
            self.breaks(Invariant::PlannedAcquire);
        }
        if force {
            self.excuse(volume, before.owner);
        }
        let record = self.record_mut(volume);
        *record = record.next(0);
        record.owner = Some(session);
        record.epoch += 1;
        record.holders |= holder;
    }

    /// A session has lost its place without a plan: what it wrote is not the next owner's to carry.
    pub(crate) fn excuse(&mut self, volume: u8, session: Option<u8>) {
        let at = usize::from(volume);
        for node in &self.nodes {
            if Some(node.session) == session {
                self.told.excused[at] |= node.copies[at].live.map_or(0, |tree| tree.writes);
                self.told.excused[at] |= node.copies[at].old.unwrap_or(0);
            }
        }
    }

    /// Whether these writes are on the volume's timeline or in an orphan.
    fn is_kept(&self, volume: u8, writes: u8) -> bool {
        writes & !self.record(volume).listed() & !self.told.orphans[usize::from(volume)] == 0
    }

    pub(crate) fn drop_copy(&mut self, node: u8, volume: u8) {
        let copy = &mut self.node_mut(node).copies[usize::from(volume)];
        *copy = Copy { lines: copy.lines, ..Copy::nothing() };
    }
}
