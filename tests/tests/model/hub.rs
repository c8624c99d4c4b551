//! The hub and the operator: fencing, labels, creations, orders, deletion.
//!
//! In the code: `hub/src/`, `cas/src/lifecycle/{create,delete,settings,acquire}.rs`, `cas::session::fence`.

use crate::action::Action;
use crate::rules::Rule;
use crate::scenario::Protocol;
use crate::state::{HUB, Life, Place, Put, Standing, State, What};

impl Protocol {
    pub(crate) fn hub_steps(&self, state: &State, out: &mut Vec<Action>) {
        let (left, hub) = (state.left, state.hub);
        for (number, session) in state.sessions.iter().enumerate() {
            if session.standing == Standing::Live && left.fences > 0 {
                out.push(Action::Fence { session: number as u8 });
            }
        }
        match hub.label {
            None if left.labels > 0 && state.record(0).life == Life::Live => out.push(Action::SendLabel),
            Some(nonce) if !state.is_under_way(HUB, nonce) => out.push(Action::SettleLabel),
            None | Some(_) => {}
        }
        let last = state.records.len() as u8 - 1;
        let free = matches!(state.record(last).life, Life::Absent | Life::Creating);
        if free && left.creates > 0 && hub.create.is_none() {
            for (at, node) in state.nodes.iter().enumerate() {
                if state.session(node.session).standing == Standing::Live {
                    out.push(Action::SeeLive { node: at as u8 });
                }
            }
        }
        if hub.create.is_some() {
            out.push(Action::CreateRecord);
        }
        for (at, node) in state.nodes.iter().enumerate() {
            for volume in state.volumes() {
                let (record, copy) = (state.record(volume), &node.copies[usize::from(volume)]);
                let mine = record.owner == Some(node.session);
                if left.drops > 0 && hub.drop.is_none() && !mine {
                    out.push(Action::SeeStranger { node: at as u8, volume });
                }
                if !self.rules.has(Rule::ReleaseIsPublish)
                    && mine
                    && copy.gates_closed
                    && copy.live == Some(copy.base)
                    && hub.take.is_none()
                {
                    for other in 0..state.nodes.len() {
                        if other != at {
                            out.push(Action::SeeQuiet { node: other as u8, volume });
                        }
                    }
                }
                if left.deletes > 0
                    && copy.place == Place::Owned
                    && node.up
                    && node.operation.is_none()
                    && mine
                {
                    let clean = copy
                        .live
                        .is_some_and(|live| record.head().is_some_and(|head| head.writes == live.writes));
                    if clean && copy.old.is_none() && copy.swap.is_none() && record.life == Life::Live {
                        out.push(Action::NodeDeletes { node: at as u8, volume });
                    }
                }
                if record.life == Life::Purged
                    && record.holders & (1 << at) != 0
                    && copy.place == Place::Nothing
                    && node.up
                {
                    out.push(Action::Forget { node: at as u8, volume });
                }
            }
            if left.retired > 0 {
                out.push(Action::Retire { node: at as u8 });
            }
        }
        if hub.drop.is_some_and(|(node, _)| state.node(node).up && state.node(node).operation.is_none()) {
            out.push(Action::DropOrder);
        }
        if hub.take.is_some() {
            out.push(Action::TakeOrder);
        }
        for volume in state.volumes() {
            let record = state.record(volume);
            match record.life {
                Life::Live | Life::Creating if left.deletes > 0 => {
                    let free = record.owner.is_none_or(|owner| state.is_over(owner));
                    if free || !self.rules.has(Rule::OwnerPublishesFirst) {
                        out.push(Action::Delete { volume, force: false });
                    } else if left.forces > 0 {
                        out.push(Action::Delete { volume, force: true });
                    }
                }
                Life::Deleted if self.scenario.deletes => {
                    if left.deletes > 0 {
                        out.push(Action::Undelete { volume });
                    }
                    out.push(Action::Purge { volume });
                }
                Life::Purged if record.holders == 0 || !self.rules.has(Rule::HoldersFirst) => {
                    out.push(Action::Remove { volume });
                }
                _ => {}
            }
            if left.thins > 0 && record.entries.len() > 1 && record.life != Life::Purged {
                out.push(Action::Thin { volume });
            }
        }
    }

    pub(crate) fn step_hub(&self, state: &mut State, action: &Action) -> Option<()> {
        match *action {
            Action::Fence { session } => {
                state.left.fences -= 1;
                state.fence(session);
            }
            Action::SendLabel => {
                state.left.labels -= 1;
                state.hub.labels += 1;
                let nonce = 0xE0 | state.hub.labels;
                let record = state.record(0).clone();
                let mut next = record.next(nonce);
                next.label = !record.label;
                let etag = self.etag(&record);
                let put = Put {
                    author: HUB,
                    session: 0,
                    volume: 0,
                    etag,
                    record: next,
                    what: What::Label,
                    mixed: false,
                };
                state.puts.push(put);
                state.hub.label = Some(nonce);
            }
            Action::SettleLabel => {
                let nonce = state.hub.label.take()?;
                if state.record(0).nonce == nonce {
                    state.hub.label_told = state.record(0).label;
                }
            }
            Action::SeeLive { node } => {
                state.left.creates -= 1;
                let from = if self.rules.has(Rule::CreateEmpty) {
                    None
                } else {
                    state.record(0).entries.first().copied()
                };
                state.hub.create = Some((node, state.node(node).session, from));
            }
            Action::CreateRecord => {
                let (node, session, from) = state.hub.create.take()?;
                let last = state.records.len() as u8 - 1;
                let before = state.record(last).clone();
                let abandoned =
                    before.life == Life::Creating && before.owner.is_some_and(|owner| state.is_over(owner));
                if before.life != Life::Absent && !abandoned {
                    return Some(());
                }
                let record = state.record_mut(last);
                *record = before.next(0);
                record.life = Life::Creating;
                record.owner = Some(session);
                record.holders |= 1 << node;
                if abandoned {
                    record.epoch += 1;
                } else {
                    record.birth += 1;
                    record.epoch = 1;
                }
                if let Some(from) = from {
                    record.life = Life::Live;
                    record.entries = vec![from];
                }
            }
            Action::SeeStranger { node, volume } => {
                state.left.drops -= 1;
                state.hub.drop = Some((node, volume));
            }
            Action::DropOrder => {
                let (node, volume) = state.hub.drop.take()?;
                // A node that reads the record first finds its own way (`Judge`); one that obeys does not look.
                if !self.rules.has(Rule::OrdersAreRequests) {
                    state.drop_copy(node, volume);
                }
            }
            Action::SeeQuiet { node, volume } => {
                state.hub.take = Some((node, volume, state.record(volume).rev));
            }
            Action::TakeOrder => {
                let (node, volume, rev) = state.hub.take.take()?;
                if state.record(volume).rev == rev && state.node(node).up {
                    let head = state.record(volume).head()?;
                    let copy = &mut state.node_mut(node).copies[usize::from(volume)];
                    copy.base = crate::state::Tree { writes: head.writes, line: 1, nested: 0 };
                    self.take(state, node, volume, false)?;
                }
            }
            Action::Delete { volume, force } => {
                state.left.deletes -= 1;
                let owner = state.record(volume).owner;
                if force {
                    state.left.forces -= 1;
                    state.excuse(volume, owner);
                }
                state.delete(volume);
            }
            Action::NodeDeletes { node, volume } => {
                state.left.deletes -= 1;
                state.delete(volume);
                state.drop_copy(node, volume);
            }
            Action::Undelete { volume } => {
                state.left.deletes -= 1;
                let record = state.record_mut(volume);
                *record = record.next(0);
                record.life = Life::Live;
            }
            Action::Purge { volume } => {
                let listed = state.record(volume).listed();
                let record = state.record_mut(volume);
                *record = record.next(0);
                record.life = Life::Purged;
                record.entries.clear();
                state.told.gone[usize::from(volume)] |= listed;
                state.told.durable[usize::from(volume)] = 0;
            }
            Action::Forget { node, volume } => {
                let record = state.record_mut(volume);
                *record = record.next(0);
                record.holders &= !(1 << node);
            }
            Action::Retire { node } => {
                state.left.retired -= 1;
                state.told.retired = true;
                for record in &mut state.records {
                    record.holders &= !(1 << node);
                }
            }
            Action::Remove { volume } => {
                let record = state.record_mut(volume);
                *record = record.next(0);
                record.life = Life::Absent;
                record.owner = None;
            }
            _ => return None,
        }
        Some(())
    }
}

impl State {
    /// Ends a session for ever.
    pub(crate) fn fence(&mut self, session: u8) {
        self.session_mut(session).standing = Standing::Fenced;
        for volume in self.volumes() {
            self.excuse(volume, Some(session));
        }
    }

    fn delete(&mut self, volume: u8) {
        let record = self.record_mut(volume);
        *record = record.next(0);
        record.life = Life::Deleted;
        record.owner = None;
        record.epoch += 1;
    }
}
