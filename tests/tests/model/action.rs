//! The steps of the protocol, and the model as stateright sees it. The table in `main.rs` says which function of the code
//! each step is.

use stateright::{Model, Property};

use crate::invariants::properties;
use crate::scenario::Protocol;
use crate::state::State;
use crate::store::Fate;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    // A node's volume.
    Write { node: u8, volume: u8, nested: bool },
    Snapshot { node: u8, volume: u8, keeps: bool, hit: Option<u8> },
    Join { node: u8 },
    Upload { node: u8 },
    Uploaded { node: u8 },
    UploadFails { node: u8 },
    Send { node: u8 },
    Settle { node: u8 },
    GiveUp { node: u8 },
    Restore { node: u8, volume: u8, entry: usize },
    Swap { node: u8, volume: u8 },
    Unmount { node: u8, volume: u8 },
    CloseGates { node: u8, volume: u8 },
    OpenGates { node: u8, volume: u8 },
    Release { node: u8, volume: u8 },
    Prepare { node: u8, volume: u8 },
    Take { node: u8, volume: u8, force: bool },
    Confirm { node: u8, volume: u8 },
    Judge { node: u8, volume: u8 },
    KeepAside { node: u8, volume: u8 },
    DropLost { node: u8, volume: u8 },
    First { node: u8, volume: u8, from: Option<usize> },
    Thin { volume: u8 },
    // A node's process, pool and session.
    Crash { node: u8 },
    Restart { node: u8 },
    SavePool { node: u8 },
    RollBack { node: u8 },
    ReadGc { node: u8 },
    RaisePin { node: u8 },
    BeginJoin { node: u8 },
    CreateSession { node: u8 },
    ReadGcAgain { node: u8 },
    Unfence { node: u8 },
    SettleInherited { node: u8 },
    Hint { node: u8, pack: u8 },
    // The network.
    Deliver { put: usize, fate: Fate },
    // The hub.
    Fence { session: u8 },
    SendLabel,
    SettleLabel,
    SeeLive { node: u8 },
    CreateRecord,
    SeeStranger { node: u8, volume: u8 },
    DropOrder,
    SeeQuiet { node: u8, volume: u8 },
    TakeOrder,
    Delete { volume: u8, force: bool },
    NodeDeletes { node: u8, volume: u8 },
    Undelete { volume: u8 },
    Purge { volume: u8 },
    Forget { node: u8, volume: u8 },
    Retire { node: u8 },
    Remove { volume: u8 },
    // A collector.
    Begin { leader: usize },
    ReadRecord { leader: usize, fails: bool },
    Condemn { leader: usize },
    Adopt { leader: usize },
    Forgets { leader: usize },
    NextSession { leader: usize },
    FenceLaggard { leader: usize },
    DrainRecord { leader: usize },
    CopyFrames { leader: usize },
    Doom { leader: usize },
    PutMoved { leader: usize },
    DeletePack { leader: usize, pack: u8 },
    Rest { leader: usize },
}

impl Action {
    /// In which order steps are taken when faults end and things are to come to rest; `None`: never then.
    pub(crate) fn rank(&self, state: &State) -> Option<u8> {
        Some(match self {
            Self::Deliver { fate: Fate::Told, .. } => 0,
            Self::Uploaded { .. } | Self::Confirm { .. } | Self::Swap { .. } | Self::Settle { .. } => 1,
            Self::Upload { .. } | Self::Send { .. } | Self::SettleLabel => 2,
            Self::UploadFails { .. } => 3,
            Self::ReadGcAgain { .. } | Self::CreateSession { .. } | Self::RaisePin { .. } => 3,
            Self::SettleInherited { .. } | Self::BeginJoin { .. } => 4,
            Self::Judge { .. } | Self::KeepAside { .. } | Self::DropLost { .. } | Self::Unmount { .. } => 5,
            Self::OpenGates { .. } | Self::ReadGc { .. } => 6,
            Self::ReadRecord { fails: false, .. }
            | Self::Condemn { .. }
            | Self::NextSession { .. }
            | Self::DrainRecord { .. }
            | Self::CopyFrames { .. }
            | Self::Doom { .. }
            | Self::PutMoved { .. }
            | Self::DeletePack { .. }
            | Self::Rest { .. } => 7,
            Self::Adopt { .. } => 8,
            Self::Restart { .. } => 9,
            Self::Prepare { node, volume } | Self::Take { node, volume, force: false } => {
                // Only what nobody has, and one node after the other.
                let free = !state.nodes.iter().enumerate().any(|(at, other)| {
                    at != usize::from(*node)
                        && other.copies[usize::from(*volume)].place == crate::state::Place::Owned
                        && state.record(*volume).owner == Some(other.session)
                });
                if !free {
                    return None;
                }
                10
            }
            Self::Begin { .. } => 11,
            Self::FenceLaggard { .. } => 12,
            // Who is dead is fenced, in the end.
            Self::Fence { session } if state.nodes.iter().any(|n| n.session == *session && !n.up) => 10,
            // So may be an owner that does not know the head and has no reason to look.
            Self::Fence { session } if state.record(0).owner == Some(*session) => 13,
            _ => return None,
        })
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.scenario.start()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for node in 0..state.nodes.len() as u8 {
            self.process_steps(state, node, actions);
            self.operation_steps(state, node, actions);
            for volume in state.volumes() {
                self.volume_steps(state, node, volume, actions);
            }
        }
        for put in 0..state.puts.len() {
            actions.push(Action::Deliver { put, fate: Fate::Told });
            if state.left.lost_answers > 0 {
                actions.push(Action::Deliver { put, fate: Fate::AnswerLost });
            }
            if state.left.duplicates > 0 {
                actions.push(Action::Deliver { put, fate: Fate::Duplicated });
            }
        }
        self.hub_steps(state, actions);
        for leader in 0..state.leaders.len() {
            self.collector_steps(state, leader, actions);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        let made = match action {
            Action::Deliver { put, fate } => self.deliver(&mut state, put, fate),
            Action::Write { .. }
            | Action::Snapshot { .. }
            | Action::Restore { .. }
            | Action::Swap { .. }
            | Action::Unmount { .. }
            | Action::CloseGates { .. }
            | Action::OpenGates { .. }
            | Action::Release { .. }
            | Action::Prepare { .. }
            | Action::Take { .. }
            | Action::Confirm { .. }
            | Action::Judge { .. }
            | Action::KeepAside { .. }
            | Action::DropLost { .. }
            | Action::First { .. }
            | Action::Thin { .. } => self.step_volume(&mut state, &action),
            Action::Join { .. }
            | Action::Upload { .. }
            | Action::Uploaded { .. }
            | Action::UploadFails { .. }
            | Action::Send { .. }
            | Action::Settle { .. }
            | Action::GiveUp { .. } => self.step_operation(&mut state, &action),
            Action::Crash { .. }
            | Action::Restart { .. }
            | Action::SavePool { .. }
            | Action::RollBack { .. }
            | Action::ReadGc { .. }
            | Action::RaisePin { .. }
            | Action::BeginJoin { .. }
            | Action::CreateSession { .. }
            | Action::ReadGcAgain { .. }
            | Action::Unfence { .. }
            | Action::SettleInherited { .. }
            | Action::Hint { .. } => self.step_process(&mut state, &action),
            Action::Fence { .. }
            | Action::SendLabel
            | Action::SettleLabel
            | Action::SeeLive { .. }
            | Action::CreateRecord
            | Action::SeeStranger { .. }
            | Action::DropOrder
            | Action::SeeQuiet { .. }
            | Action::TakeOrder
            | Action::Delete { .. }
            | Action::NodeDeletes { .. }
            | Action::Undelete { .. }
            | Action::Purge { .. }
            | Action::Forget { .. }
            | Action::Retire { .. }
            | Action::Remove { .. } => self.step_hub(&mut state, &action),
            Action::Begin { leader }
            | Action::ReadRecord { leader, .. }
            | Action::Condemn { leader }
            | Action::Adopt { leader }
            | Action::Forgets { leader }
            | Action::NextSession { leader }
            | Action::FenceLaggard { leader }
            | Action::DrainRecord { leader }
            | Action::CopyFrames { leader }
            | Action::Doom { leader }
            | Action::PutMoved { leader }
            | Action::DeletePack { leader, .. }
            | Action::Rest { leader } => self.step_collector(&mut state, leader, &action),
        };
        made?;
        state.puts.sort();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties()
    }
}
