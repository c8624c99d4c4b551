//! What a hub is told at start.

use types::ByteSize;

use crate::collect::Collection;
use crate::liveness::Timings;

/// Values that are passed down; nobody reads the environment later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// What a volume gets that asks for nothing: never unlimited by accident.
    pub default_quota: ByteSize,
    /// How much silence means what.
    pub timings: Timings,
    /// When garbage is collected.
    pub collection: Collection,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            default_quota: ByteSize(5 << 30),
            timings: Timings::default(),
            collection: Collection::default(),
        }
    }
}

/// Timings that would declare a node dead between two of its heartbeats.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "--heartbeat {heartbeat:?}, --suspect {suspect:?} and --dead {dead:?} must grow, each at least twice the one before"
)]
pub struct InvalidTimings {
    heartbeat: std::time::Duration,
    suspect: std::time::Duration,
    dead: std::time::Duration,
}

impl Timings {
    /// Refuses timings that make no sense together.
    ///
    /// # Errors
    /// One is not at least twice the one before it, or the heartbeat is nothing.
    pub fn check(self) -> Result<Self, InvalidTimings> {
        let Self { heartbeat, suspect, dead } = self;
        if heartbeat.is_zero() || suspect < heartbeat * 2 || dead < suspect * 2 {
            return Err(InvalidTimings { heartbeat, suspect, dead });
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn timings_must_grow() {
        Timings::default().check().unwrap();
        let second = Duration::from_secs(1);
        for (heartbeat, suspect, dead) in [(0, 3, 10), (2, 3, 10), (1, 3, 5), (5, 3, 1)] {
            let timings =
                Timings { heartbeat: second * heartbeat, suspect: second * suspect, dead: second * dead };
            timings.check().unwrap_err();
        }
    }
}
