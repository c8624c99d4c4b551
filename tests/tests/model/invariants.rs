//! I1 to I8 of PROTOCOL.md §3, and the promise that late work is kept.

use stateright::{Model as _, Property};

use crate::action::Action;
use crate::rules::Rule;
use crate::scenario::Protocol;
use crate::state::{Joining, Life, Phase, Place, Standing, State};

/// What must hold in every state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Invariant {
    Whole,
    Acknowledged,
    OneOwner,
    PlannedAcquire,
    Doomed,
    Drained,
    NoWedge,
    Collected,
    Kept,
}

impl Invariant {
    pub(crate) const ALL: [Self; 9] = [
        Self::Whole,
        Self::Acknowledged,
        Self::OneOwner,
        Self::PlannedAcquire,
        Self::Doomed,
        Self::Drained,
        Self::NoWedge,
        Self::Collected,
        Self::Kept,
    ];

    pub(crate) fn says(self) -> &'static str {
        match self {
            Self::Whole => "I1 every listed version of every record is whole",
            Self::Acknowledged => {
                "I2 what was acknowledged stays, and publishing only grows the line of the head"
            }
            Self::OneOwner => "I3 at most one session satisfies G, and only it publishes",
            Self::PlannedAcquire => "I4 a planned acquire finds no acknowledged local write outside head",
            Self::Doomed => "I5 doomed packs never gain a reference",
            Self::Drained => "I6 fenced sessions never publish after drain",
            Self::NoWedge => "I7 from every state some session can reach G",
            Self::Collected => "I8 when faults end, every unreferenced pack is deleted",
            Self::Kept => {
                "late work is kept: what a pool held is on a timeline or in an orphan before its copy goes"
            }
        }
    }
}

pub(crate) fn properties() -> Vec<Property<Protocol>> {
    vec![
        Property::always(Invariant::Whole.says(), |model: &Protocol, state: &State| {
            !state.is_broken(Invariant::Whole)
                && state
                    .records
                    .iter()
                    .all(|record| record.entries.iter().all(|entry| model.is_whole(state, entry.frames)))
        }),
        Property::always(Invariant::Acknowledged.says(), |_, state: &State| {
            !state.is_broken(Invariant::Acknowledged) && state.holds_what_was_acknowledged()
        }),
        Property::always(Invariant::OneOwner.says(), |_, state: &State| {
            !state.is_broken(Invariant::OneOwner) && state.volumes().all(|volume| state.owners(volume) <= 1)
        }),
        Property::always(Invariant::PlannedAcquire.says(), |_, s: &State| {
            !s.is_broken(Invariant::PlannedAcquire)
        }),
        Property::always(Invariant::Doomed.says(), |_, s: &State| !s.is_broken(Invariant::Doomed)),
        Property::always(Invariant::Drained.says(), |_, s: &State| !s.is_broken(Invariant::Drained)),
        Property::always(Invariant::NoWedge.says(), |model: &Protocol, state: &State| {
            !model.scenario.recovers || model.recovers(state)
        }),
        Property::always(Invariant::Collected.says(), |model: &Protocol, state: &State| {
            !state.is_broken(Invariant::Collected) && (!model.scenario.collects || model.collects(state))
        }),
        Property::always(Invariant::Kept.says(), |_, state: &State| state.keeps_late_work()),
    ]
}

impl State {
    pub(crate) fn is_broken(&self, invariant: Invariant) -> bool {
        self.broken & (1 << invariant as u16) != 0
    }

    fn holds_what_was_acknowledged(&self) -> bool {
        let lines = self.volumes().all(|volume| {
            let record = self.record(volume);
            self.told.durable[usize::from(volume)] & !record.listed() == 0
        });
        let created = !self.told.created || self.records.last().is_some_and(|record| record.head().is_some());
        lines && created
    }

    /// How many nodes have a session that the record names as its owner in this epoch.
    fn owners(&self, volume: u8) -> usize {
        let record = self.record(volume);
        let owns = |node: &&crate::state::Node| {
            let copy = &node.copies[usize::from(volume)];
            copy.place == Place::Owned
                && record.owner == Some(node.session)
                && record.epoch == copy.claim.epoch
                && record.birth == copy.claim.birth
        };
        self.nodes.iter().filter(owns).count()
    }

    fn keeps_late_work(&self) -> bool {
        self.volumes().all(|volume| {
            let at = usize::from(volume);
            let mut held = self.told.gone[at] | self.told.orphans[at] | self.record(volume).listed();
            for node in &self.nodes {
                let copy = &node.copies[at];
                held |= copy.live.map_or(0, |tree| tree.writes) | copy.old.unwrap_or(0);
            }
            self.told.written[at] & !held == 0
        })
    }
}

impl Protocol {
    /// I7: faults end, what is under way ends, and somebody takes what nobody has. A schedule is shown, not searched: what
    /// it does not reach counts as a wedge.
    fn recovers(&self, state: &State) -> bool {
        let done = |state: &State| {
            state.volumes().all(|volume| {
                let record = state.record(volume);
                record.life != Life::Live
                    || record.head().is_none()
                    || state.nodes.iter().any(|node| {
                        let copy = &node.copies[usize::from(volume)];
                        node.up
                            && copy.place == Place::Owned
                            && !copy.gates_closed
                            && node.operation.is_none_or(|operation| operation.volume != volume)
                            && copy.claim.epoch == record.epoch
                            && record.owner == Some(node.session)
                            && state.session(node.session).standing == Standing::Live
                            && record.head().is_none_or(|head| copy.knows(head.writes))
                    })
            })
        };
        self.heals(state, true, done)
    }

    /// I8: faults end, and the collection runs until nothing is left to it.
    fn collects(&self, state: &State) -> bool {
        self.heals(state, false, |state| {
            state.stored_packs() & !self.needed(state) == 0 && state.gc.phase == Phase::Idle
        })
    }

    fn heals(&self, state: &State, restarts: bool, done: impl Fn(&State) -> bool) -> bool {
        const STEPS: usize = 150;
        let mut state = state.clone();
        // New work ends; what is begun may be ended. Collections and acquires are free.
        state.left = crate::state::Left { rounds: 6, acquires: 9, fences: 9, ..Default::default() };
        if self.rules.has(Rule::FenceLaggards) {
            // A collector that does not fence waits for the hub, which may never.
        } else {
            state.left.fences = 0;
        }
        let mut actions = Vec::new();
        for _ in 0..STEPS {
            if done(&state) {
                return true;
            }
            actions.clear();
            self.actions(&state, &mut actions);
            let rank = |action: &Action| action.rank(&state);
            // Who is down may stay down.
            actions.retain(|action| restarts || !matches!(action, Action::Restart { .. }));
            let Some(best) = actions.iter().filter(|a| rank(a).is_some()).min_by_key(|a| rank(a)).cloned()
            else {
                return false;
            };
            match self.next_state(&state, best) {
                Some(next) if next != state => state = next,
                _ => return false,
            }
        }
        false
    }
}

/// Whether a node may begin something.
pub(crate) fn is_ready(node: &crate::state::Node) -> bool {
    node.up && node.joining == Joining::Joined
}
