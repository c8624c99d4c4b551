//! How hard frames are compressed: as the options say, and less while more puts run than there are processors. What waits
//! longer is worth more than the few percent.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::blocking;

/// The level while work queues up: 30 % faster than 3, and 5 % larger.
const HURRIED: i32 = 1;

static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// A put that runs.
#[derive(Debug)]
pub(super) struct Running {
    level: i32,
}

impl Running {
    /// Counts one more. `level` is that of the options.
    pub(super) fn start(level: i32) -> Self {
        let running = RUNNING.fetch_add(1, Ordering::Relaxed) + 1;
        Self { level: choose(level, running, blocking::parallelism()) }
    }

    /// The level for this put.
    pub(super) fn level(&self) -> i32 {
        self.level
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

fn choose(level: i32, running: usize, processors: usize) -> i32 {
    if running > processors { level.min(HURRIED) } else { level }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_falls_while_puts_wait_for_processors_and_never_rises() {
        let cases = [(3, 1, 2, 3), (3, 2, 2, 3), (3, 3, 2, 1), (9, 8, 4, 1), (-1, 8, 4, -1)];
        for (level, running, processors, expected) in cases {
            assert_eq!(choose(level, running, processors), expected, "{running} on {processors}");
        }
    }
}
