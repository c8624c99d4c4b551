//! Who is waited for, and who is fenced. The decision is pure; what was seen of beats is the collector's memory.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use types::SessionId;

use crate::session::{SessionRecord, SessionState};

/// A live session whose pin is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// The session.
    pub session: SessionId,
    /// Its node, for people.
    pub node: String,
    /// Its pin.
    pub pin: u64,
    /// For how long its beat has stood still, as seen from here.
    pub still: Duration,
}

/// The beats as this process saw them move.
#[derive(Debug, Default)]
pub(super) struct Beats(HashMap<SessionId, (u64, Instant)>);

impl Beats {
    /// Looks at sessions: returns those that live and are behind `epoch`.
    pub(super) fn look<'a>(
        &mut self,
        sessions: impl IntoIterator<Item = &'a SessionRecord>,
        epoch: u64,
        now: Instant,
    ) -> Vec<Behind> {
        let mut seen = HashMap::new();
        let mut behind = Vec::new();
        for session in sessions.into_iter().filter(|session| session.state == SessionState::Live) {
            let since = match self.0.get(&session.id) {
                Some((beat, since)) if *beat == session.beat => *since,
                Some(_) | None => now,
            };
            seen.insert(session.id, (session.beat, since));
            if session.pin < epoch {
                behind.push(Behind {
                    session: session.id,
                    node: session.node.to_string(),
                    pin: session.pin,
                    still: now.saturating_duration_since(since),
                });
            }
        }
        self.0 = seen;
        behind
    }

    /// Returns the beat that was seen last.
    pub(super) fn beat(&self, session: &SessionId) -> Option<u64> {
        self.0.get(session).map(|(beat, _)| *beat)
    }
}

/// Tells if a session that is behind counts as dead. One whose beat moves is waited for: a long operation moves its pin.
pub(super) fn is_dead(behind: &Behind, fence_after: Duration) -> bool {
    behind.still >= fence_after
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{Nonce, PoolId, Rev};

    fn session(pin: u64, beat: u64, state: SessionState) -> SessionRecord {
        let id = SessionId { pool: PoolId(ulid::Ulid::from_parts(1, 1)), number: 1 };
        SessionRecord {
            format: 1,
            id,
            rev: Rev(1),
            nonce: Nonce::random(),
            node: "a".parse().unwrap(),
            host: String::new(),
            state,
            pin,
            low: 1,
            reserved: 1,
            beat,
        }
    }

    #[test]
    fn only_a_session_that_is_behind_and_stood_still_for_the_whole_time_is_dead() {
        let patience = Duration::from_secs(10);
        let begin = Instant::now();
        let mut beats = Beats::default();
        let mut at = |seconds: u64, pin: u64, beat: u64, state: SessionState| {
            let now = begin + Duration::from_secs(seconds);
            let behind = beats.look([&session(pin, beat, state)], 5, now);
            behind.first().map(|behind| is_dead(behind, patience))
        };
        assert_eq!(at(0, 4, 1, SessionState::Live), Some(false), "just seen");
        assert_eq!(at(9, 4, 1, SessionState::Live), Some(false));
        assert_eq!(at(11, 4, 2, SessionState::Live), Some(false), "it moved");
        assert_eq!(at(20, 4, 2, SessionState::Live), Some(false));
        assert_eq!(at(22, 4, 2, SessionState::Live), Some(true));
        assert_eq!(at(40, 5, 2, SessionState::Live), None, "its pin is there, however still it is");
        assert_eq!(at(60, 4, 2, SessionState::Fenced), None, "nobody waits for the fenced");
    }
}
