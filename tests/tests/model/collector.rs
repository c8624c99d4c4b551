//! Garbage collection by any number of leaders, each of which may stop for as long as it likes between two steps.
//!
//! In the code: `cas/src/gc`.

use crate::action::Action;
use crate::rules::Rule;
use crate::scenario::Protocol;
use crate::state::{Frames, Gc, Leader, Life, Phase, Standing, State, each, frames_of, packs_of};

impl Protocol {
    pub(crate) fn collector_steps(&self, state: &State, leader: usize, out: &mut Vec<Action>) {
        let records = state.records.len() as u8;
        match &state.leaders[leader] {
            Leader::Off => match state.gc.phase {
                Phase::Idle if state.left.rounds > 0 => out.push(Action::Begin { leader }),
                Phase::Idle => {}
                Phase::Condemned | Phase::Doomed => {
                    out.push(Action::Adopt { leader });
                    if state.gc.phase == Phase::Doomed && !self.rules.has(Rule::DoomedStays) {
                        out.push(Action::Forgets { leader });
                    }
                }
            },
            Leader::Mark { volume, .. } | Leader::MarkAgain { volume, .. } if *volume < records => {
                out.push(Action::ReadRecord { leader, fails: false });
                if state.left.read_errors > 0 {
                    out.push(Action::ReadRecord { leader, fails: true });
                }
            }
            Leader::Mark { .. } => out.push(Action::Condemn { leader }),
            Leader::MarkAgain { .. } => out.push(Action::CopyFrames { leader }),
            Leader::Wait { session, .. } => {
                let found = state.session(*session);
                let passes = match found.standing {
                    Standing::Unborn | Standing::Drained => true,
                    Standing::Live => found.pin >= state.gc.epoch || !self.rules.has(Rule::WaitForPins),
                    Standing::Fenced => !self.rules.has(Rule::Drain),
                };
                if passes {
                    out.push(Action::NextSession { leader });
                } else if found.standing == Standing::Fenced {
                    out.push(Action::DrainRecord { leader });
                } else if self.rules.has(Rule::FenceLaggards) && self.scenario.fences_laggards {
                    out.push(Action::FenceLaggard { leader });
                }
            }
            Leader::Drain { .. } => out.push(Action::DrainRecord { leader }),
            Leader::Copied { .. } => out.push(Action::Doom { leader }),
            Leader::Delete { doomed } => {
                let unmoved = |(from, _): &&(u8, u8)| !state.moved.iter().any(|(moved, _)| moved == from);
                let moves = state.gc.phase == Phase::Doomed && state.gc.moves.iter().any(|m| unmoved(&m));
                if moves {
                    out.push(Action::PutMoved { leader });
                }
                for pack in each(*doomed) {
                    let named = state.gc.moves.iter().filter(unmoved).any(|(from, _)| *from == pack);
                    if !named || !self.rules.has(Rule::MovedFirst) {
                        out.push(Action::DeletePack { leader, pack });
                    }
                }
                // All of it is gone, or others were faster.
                let gone = if state.gc.phase == Phase::Doomed {
                    !moves && state.gc.doomed & state.stored_packs() == 0
                } else {
                    *doomed == 0
                };
                if gone {
                    out.push(Action::Rest { leader });
                }
            }
        }
    }

    pub(crate) fn step_collector(&self, state: &mut State, leader: usize, action: &Action) -> Option<()> {
        let next = match (state.leaders[leader].clone(), action) {
            (_, Action::Begin { .. }) => {
                state.left.rounds -= 1;
                let live = state.sessions.iter().filter(|session| session.standing == Standing::Live);
                let open = live.fold(0, |all, session| all | session.open);
                let spared = if self.rules.has(Rule::Low) { open } else { 0 };
                Leader::Mark {
                    rev: state.gc.rev,
                    listed: state.stored_packs() & !spared,
                    frames: 0,
                    volume: 0,
                }
            }
            (Leader::Mark { rev, listed, frames, volume }, Action::ReadRecord { fails, .. }) => {
                match self.read_record(state, volume, *fails) {
                    Some(found) => Leader::Mark { rev, listed, frames: frames | found, volume: volume + 1 },
                    None => Leader::Off,
                }
            }
            (Leader::MarkAgain { rev, condemned, frames, volume }, Action::ReadRecord { fails, .. }) => {
                match self.read_record(state, volume, *fails) {
                    Some(found) => {
                        Leader::MarkAgain { rev, condemned, frames: frames | found, volume: volume + 1 }
                    }
                    None => Leader::Off,
                }
            }
            (Leader::Mark { rev, listed, frames, .. }, Action::Condemn { .. }) => {
                self.condemn(state, rev, listed, frames)
            }
            (Leader::Off, Action::Adopt { .. }) => match state.gc.phase {
                Phase::Condemned => Leader::Wait { rev: state.gc.rev, session: 0 },
                Phase::Doomed => Leader::Delete { doomed: state.gc.doomed },
                Phase::Idle => return None,
            },
            (Leader::Off, Action::Forgets { .. }) => {
                rest(&mut state.gc);
                Leader::Off
            }
            (Leader::Wait { rev, session }, Action::NextSession { .. }) => {
                if rev != state.gc.rev {
                    Leader::Off
                } else if usize::from(session) + 1 < state.sessions.len() {
                    Leader::Wait { rev, session: session + 1 }
                } else if self.rules.has(Rule::MarkAgain) {
                    Leader::MarkAgain { rev, condemned: state.gc.condemned, frames: 0, volume: 0 }
                } else {
                    Leader::Copied { rev, condemned: state.gc.condemned, frames: 0, moves: Vec::new() }
                }
            }
            (waiting @ Leader::Wait { session, .. }, Action::FenceLaggard { .. }) => {
                state.fence(session);
                waiting
            }
            (Leader::Wait { rev, session }, Action::DrainRecord { .. }) => self.drain(state, rev, session, 0),
            (Leader::Drain { rev, session, volume }, Action::DrainRecord { .. }) => {
                self.drain(state, rev, session, volume)
            }
            (Leader::MarkAgain { rev, condemned, frames, .. }, Action::CopyFrames { .. }) => {
                self.copy_frames(state, rev, condemned, frames)
            }
            (Leader::Copied { rev, condemned, frames, moves }, Action::Doom { .. }) => {
                if rev != state.gc.rev && self.rules.has(Rule::CompareAndSwap) {
                    Leader::Off
                } else {
                    let moved = moves.iter().fold(0, |all, (from, _)| all | 1 << from);
                    let gc = &mut state.gc;
                    gc.rev += 1;
                    gc.phase = Phase::Doomed;
                    gc.doomed = condemned & !packs_of(frames) | moved;
                    gc.condemned = 0;
                    gc.moves = moves;
                    Leader::Delete { doomed: state.gc.doomed }
                }
            }
            (delete @ Leader::Delete { .. }, Action::PutMoved { .. }) => {
                for (from, to) in state.gc.moves.clone() {
                    if !state.moved.iter().any(|(moved, _)| *moved == from) {
                        state.moved.push((from, to));
                        state.moved.sort_unstable();
                    }
                }
                delete
            }
            (Leader::Delete { doomed }, Action::DeletePack { pack, .. }) => {
                state.delete_pack(*pack);
                Leader::Delete { doomed: doomed & !(1 << pack) }
            }
            (Leader::Delete { .. }, Action::Rest { .. }) => {
                if state.gc.phase == Phase::Doomed && state.gc.doomed & state.stored_packs() == 0 {
                    rest(&mut state.gc);
                }
                Leader::Off
            }
            _ => return None,
        };
        state.leaders[leader] = next;
        Some(())
    }

    /// What a record keeps alive; `None` where the round ends.
    fn read_record(&self, state: &mut State, volume: u8, fails: bool) -> Option<Frames> {
        if fails {
            state.left.read_errors -= 1;
            return if self.rules.has(Rule::ErrorEndsRound) { None } else { Some(0) };
        }
        let record = state.record(volume);
        if record.life == Life::Deleted && !self.rules.has(Rule::EntriesStay) {
            return Some(0);
        }
        let frames = record.frames();
        Some(if self.rules.has(Rule::MovedIsRoot) { self.moved_to(state, frames) } else { frames })
    }

    fn condemn(&self, state: &mut State, rev: u8, listed: u8, frames: Frames) -> Leader {
        let sparse = |pack: &u8| {
            let there = state.stored & frames_of(*pack);
            let live = there & frames;
            self.scenario.relocates && live != 0 && live != there
        };
        let evacuated = each(listed).filter(sparse).fold(0, |all, pack| all | 1 << pack);
        let condemned = listed & !packs_of(frames) | evacuated;
        if condemned == 0 || rev != state.gc.rev && self.rules.has(Rule::CompareAndSwap) {
            return Leader::Off;
        }
        let marked = if self.rules.has(Rule::CopyMarkedAgain) { 0 } else { frames };
        let epoch = state.gc.epoch + 1;
        state.gc = Gc {
            rev: state.gc.rev + 1,
            epoch,
            phase: Phase::Condemned,
            condemned,
            doomed: 0,
            moves: Vec::new(),
            marked,
        };
        Leader::Wait { rev: state.gc.rev, session: 0 }
    }

    /// Takes one record from a fenced session; after the last one it is drained.
    fn drain(&self, state: &mut State, rev: u8, session: u8, volume: u8) -> Leader {
        let record = state.record_mut(volume);
        if record.owner == Some(session) {
            *record = record.next(0);
            record.owner = None;
            record.epoch += 1;
        }
        if usize::from(volume) + 1 < state.records.len() {
            return Leader::Drain { rev, session, volume: volume + 1 };
        }
        state.session_mut(session).standing = Standing::Drained;
        Leader::Wait { rev, session }
    }

    /// Copies what is live of the packs that are evacuated into new ones.
    fn copy_frames(&self, state: &mut State, rev: u8, condemned: u8, frames: Frames) -> Leader {
        let mut moves = Vec::new();
        let copied = if self.rules.has(Rule::CopyMarkedAgain) { frames } else { state.gc.marked };
        for pack in each(condemned & packs_of(frames)) {
            let live = state.stored & frames_of(pack) & copied;
            if self.scenario.relocates && state.packs < self.scenario.most_packs && live != 0 {
                let to = state.new_pack();
                state.stored |= live >> (2 * pack) << (2 * to);
                moves.push((pack, to));
            }
        }
        Leader::Copied { rev, condemned, frames, moves }
    }
}

fn rest(gc: &mut Gc) {
    gc.rev += 1;
    gc.phase = Phase::Idle;
    gc.condemned = 0;
    gc.doomed = 0;
    gc.moves = Vec::new();
    gc.marked = 0;
}
