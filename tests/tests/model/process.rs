//! A node's process, its pool, and its session: crash, restart, rollback, pins.
//!
//! In the code: `cas/src/session/` (`join`, `resume`, `raise`, `settle_inherited`), `csi/src/start.rs`,
//! `csi/src/liveness.rs`.

use crate::action::Action;
use crate::rules::Rule;
use crate::scenario::Protocol;
use crate::state::{Joining, Place, Session, Standing, State, each, packs_of};

impl Protocol {
    pub(crate) fn process_steps(&self, state: &State, at: u8, out: &mut Vec<Action>) {
        let node = state.node(at);
        let over = state.is_over(node.session);
        if !node.up {
            out.push(Action::Restart { node: at });
            return;
        }
        if state.left.crashes > 0 {
            out.push(Action::Crash { node: at });
        }
        if state.left.rollbacks > 0 && at == 0 {
            match &state.saved {
                None if node.operation.is_none() => out.push(Action::SavePool { node: at }),
                Some(_) => out.push(Action::RollBack { node: at }),
                None => {}
            }
        }
        match node.joining {
            Joining::Read(_) => {
                if state.sessions.iter().any(|session| session.standing == Standing::Unborn) {
                    out.push(Action::CreateSession { node: at });
                }
            }
            Joining::Created => out.push(Action::ReadGcAgain { node: at }),
            Joining::Joined if over => {
                if state.sessions.iter().any(|session| session.standing == Standing::Unborn) {
                    out.push(Action::BeginJoin { node: at });
                }
                if !self.rules.has(Rule::FencedForEver) {
                    out.push(Action::Unfence { node: at });
                }
            }
            Joining::Joined => {
                let told = state.session(node.session).pin;
                match node.raising {
                    None if state.gc.epoch > told || node.pin != state.pin() => {
                        out.push(Action::ReadGc { node: at });
                    }
                    Some(pin) if self.may_raise(state, at, pin.avoided) => {
                        out.push(Action::RaisePin { node: at });
                    }
                    Some(_) | None => {}
                }
                if self.scenario.hints {
                    for pack in each(packs_of(state.stored) & !node.index) {
                        // Found in the bucket, and not condemned under the pin.
                        let read = node.pin.avoided & (1 << pack) == 0;
                        if (read || !self.rules.has(Rule::HintRead)) && pack < 2 {
                            out.push(Action::Hint { node: at, pack });
                        }
                    }
                }
            }
        }
        if node.inherited && node.joining == Joining::Joined && !over {
            out.push(Action::SettleInherited { node: at });
        }
    }

    /// Whether every earlier operation has ended, or relies on nothing that is condemned now.
    fn may_raise(&self, state: &State, at: u8, avoided: u8) -> bool {
        let node = state.node(at);
        let settled = node.operation.is_none_or(|operation| operation.hits & avoided == 0);
        (settled || !self.rules.has(Rule::RaiseWaits)) && !node.inherited
    }

    pub(crate) fn step_process(&self, state: &mut State, action: &Action) -> Option<()> {
        match *action {
            Action::Crash { node } => {
                state.left.crashes -= 1;
                self.die(state, node);
            }
            Action::Restart { node } => {
                let (packs, pin) = (self.scenario.packs, state.pin());
                let node = state.node_mut(node);
                node.up = true;
                node.inherited = packs;
                // New operations avoid what is condemned now; what is told stays where it was.
                node.pin = pin;
                node.index &= !pin.avoided;
                for copy in &mut node.copies {
                    copy.gates_closed = false;
                    copy.swap = None;
                    copy.place = match copy.place {
                        Place::Quarantined => Place::Quarantined,
                        _ if copy.live.is_some() => Place::Unknown,
                        _ => Place::Nothing,
                    };
                }
            }
            Action::SavePool { node } => state.saved = Some(Box::new(state.node(node).clone())),
            Action::RollBack { node } => {
                state.left.rollbacks -= 1;
                state.told.rolled_back = true;
                let saved = state.saved.take()?;
                // What was written since is gone with the pool, unless it is somewhere else.
                for (volume, copy) in state.node(node).copies.clone().iter().enumerate() {
                    let here = copy.live.map_or(0, |tree| tree.writes) | copy.old.unwrap_or(0);
                    let lost = here & !state.records[volume].listed();
                    state.told.gone[volume] |= lost;
                    state.told.excused[volume] |= here;
                }
                let attempts = state.node(node).attempts;
                *state.node_mut(node) = *saved;
                state.node_mut(node).attempts = attempts;
                self.die(state, node);
            }
            Action::ReadGc { node } => {
                let pin = state.pin();
                state.node_mut(node).raising = Some(pin);
            }
            Action::RaisePin { node } => {
                let drops = self.rules.has(Rule::RaiseDrops);
                let node = state.node_mut(node);
                let pin = node.raising.take()?;
                node.pin = pin;
                if drops {
                    node.index &= !pin.avoided;
                }
                let session = node.session;
                state.session_mut(session).pin = pin.epoch;
            }
            Action::BeginJoin { node } => {
                let pin = state.pin();
                let node = state.node_mut(node);
                node.operation = None;
                node.raising = None;
                node.inherited = false;
                node.joining = Joining::Read(pin);
                for copy in &mut node.copies {
                    copy.swap = None;
                    copy.gates_closed = false;
                    copy.place = match copy.place {
                        Place::Nothing | Place::Prepared | Place::Quarantined => copy.place,
                        _ if copy.live.is_none() => Place::Nothing,
                        _ => Place::Unknown,
                    };
                }
            }
            Action::CreateSession { node } => {
                let Joining::Read(pin) = state.node(node).joining else { return None };
                let free = state.sessions.iter().position(|session| session.standing == Standing::Unborn)?;
                state.sessions[free] = Session { standing: Standing::Live, pin: pin.epoch, open: 0 };
                let (empty, again) = (self.rules.has(Rule::EmptyIndex), self.rules.has(Rule::JoinAgain));
                let node = state.node_mut(node);
                node.session = free as u8;
                node.pin = pin;
                if empty {
                    node.index = 0;
                }
                node.joining = if again { Joining::Created } else { Joining::Joined };
            }
            Action::ReadGcAgain { node } => {
                let pin = state.pin();
                let session = state.node(node).session;
                let node = state.node_mut(node);
                if pin.epoch == node.pin.epoch {
                    node.joining = Joining::Joined;
                }
                node.pin = pin;
                node.index &= !pin.avoided;
                state.session_mut(session).pin = pin.epoch;
            }
            Action::Unfence { node } => {
                let session = state.node(node).session;
                state.session_mut(session).standing = Standing::Live;
            }
            Action::SettleInherited { node } => {
                let session = state.node(node).session;
                for record in &mut state.records {
                    // One that does not settle forgets that there may be something.
                    if record.owner == Some(session) && self.rules.has(Rule::SettleInherited) {
                        *record = record.next(0);
                    }
                }
                state.node_mut(node).inherited = false;
                let operation = state.node(node).operation;
                let own = operation.map_or(0, |operation| packs_of(operation.version.frames));
                state.session_mut(session).open &= own;
            }
            Action::Hint { node, pack } => state.node_mut(node).index |= 1 << pack,
            _ => return None,
        }
        Some(())
    }

    /// The process ends. Its pool, its session's object and its requests stay as they are.
    fn die(&self, state: &mut State, node: u8) {
        let node = state.node_mut(node);
        node.up = false;
        node.operation = None;
        node.raising = None;
        // A session that was being made and is not remembered: the next start makes another.
        node.joining = Joining::Joined;
        for copy in &mut node.copies {
            if matches!(copy.place, Place::Prepared | Place::Begun | Place::Taken) && copy.live.is_none() {
                *copy = crate::state::Copy { lines: copy.lines, ..crate::state::Copy::nothing() };
            }
        }
    }
}
