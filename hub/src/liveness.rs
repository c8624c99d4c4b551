//! Decides whether a node's session is alive, from two signs and one monotonic clock.
//!
//! A session is dead only when the hub has not heard it *and* its beat in the store has not moved, both for the whole
//! grace, and the second one was looked at after the grace had passed. So a hub that lost its network, or that has
//! just started, declares nobody dead: it first has to watch the beat stand still.

use std::time::{Duration, Instant};

/// How much silence means what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// How often a node speaks.
    pub heartbeat: Duration,
    /// Silence after which nothing new is placed on a node.
    pub suspect: Duration,
    /// Silence, here and in the store, after which a node's session may be fenced.
    pub dead: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            suspect: Duration::from_secs(3),
            dead: Duration::from_secs(10),
        }
    }
}

/// What is known of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signs {
    /// When this hub began to watch it.
    pub watched: Instant,
    /// When its last message came in, if one did.
    pub heard: Option<Instant>,
    /// When it last did not answer a call: until it speaks again, it is not live.
    pub doubted: Option<Instant>,
    /// When its beat in the store was last seen to differ from the look before; at first, when it was first seen.
    pub beat_moved: Option<Instant>,
    /// When the last successful look at its beat began.
    pub beat_read: Option<Instant>,
    /// The store says that it was fenced.
    pub fenced: bool,
}

impl Signs {
    /// Begins to watch a session of which nothing is known yet.
    pub fn new(now: Instant) -> Self {
        Self { watched: now, heard: None, doubted: None, beat_moved: None, beat_read: None, fenced: false }
    }
}

/// Whether a session lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Liveness {
    /// Heard a moment ago.
    Live,
    /// Not heard for a while; nothing may be taken from it.
    Suspect,
    /// Silent here and in the store for the whole grace; it may be fenced.
    Dead,
    /// Dead for ever.
    Fenced,
}

/// Judges a session.
pub fn judge(now: Instant, signs: &Signs, timings: &Timings) -> Liveness {
    if signs.fenced {
        return Liveness::Fenced;
    }
    let fresh = |heard: Instant| {
        now.saturating_duration_since(heard) < timings.suspect
            && signs.doubted.is_none_or(|doubted| doubted < heard)
    };
    if signs.heard.is_some_and(fresh) {
        return Liveness::Live;
    }
    let silent_here = now.saturating_duration_since(signs.heard.unwrap_or(signs.watched)) >= timings.dead;
    let silent_in_store = match (signs.beat_moved, signs.beat_read) {
        (Some(moved), Some(read)) => read.saturating_duration_since(moved) >= timings.dead,
        _ => false,
    };
    if silent_here && silent_in_store { Liveness::Dead } else { Liveness::Suspect }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_dead_only_when_both_signs_stood_still_for_the_grace() {
        let timings = Timings::default();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        // (what, now, heard, beat moved, beat read, fenced) -> verdict
        let table = [
            ("heard just now", 20, Some(19), None, None, false, Liveness::Live),
            ("silent for three seconds", 20, Some(17), None, None, false, Liveness::Suspect),
            ("silent here, store never read", 60, Some(1), None, None, false, Liveness::Suspect),
            (
                "silent here, beat moves in the store",
                60,
                Some(1),
                Some(55),
                Some(59),
                false,
                Liveness::Suspect,
            ),
            (
                "beat stands still, but was last read early",
                60,
                Some(1),
                Some(5),
                Some(14),
                false,
                Liveness::Suspect,
            ),
            ("silent in both", 60, Some(1), Some(5), Some(15), false, Liveness::Dead),
            ("never heard, hub just started", 9, None, Some(0), Some(9), false, Liveness::Suspect),
            (
                "never heard, beat stood still since the start",
                10,
                None,
                Some(0),
                Some(10),
                false,
                Liveness::Dead,
            ),
            ("heard although the beat stands still", 60, Some(59), Some(5), Some(59), false, Liveness::Live),
            ("fenced, whatever it says", 20, Some(20), Some(20), Some(20), true, Liveness::Fenced),
        ];
        for (what, now, heard, moved, read, fenced, verdict) in table {
            let signs = Signs {
                watched: at(0),
                heard: heard.map(at),
                doubted: None,
                beat_moved: moved.map(at),
                beat_read: read.map(at),
                fenced,
            };
            assert_eq!(judge(at(now), &signs, &timings), verdict, "{what}");
        }
    }

    #[test]
    fn a_node_that_did_not_answer_is_suspect_until_it_speaks_again() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut signs = Signs { heard: Some(at(100)), doubted: Some(at(200)), ..Signs::new(start) };
        assert_eq!(judge(at(300), &signs, &Timings::default()), Liveness::Suspect);
        signs.heard = Some(at(250));
        assert_eq!(judge(at(300), &signs, &Timings::default()), Liveness::Live);
    }
}
