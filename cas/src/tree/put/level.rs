//! How hard frames are compressed: as little as pays where the store waits for it, as the options say where it waits for the
//! store.
//!
//! The level is chosen anew for each frame, and is no part of any identity: contents are named by their plain bytes.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::blocking;

/// The level while others wait for the work: a quarter of the time less than 3 and 3 % larger. 1 is no faster on frames of a
/// mebibyte, and 9 % larger.
const HURRIED: i32 = 2;

static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// A put that runs, and what keeps it waiting.
#[derive(Debug)]
pub(super) struct Level {
    best: i32,
    /// Of a whole tree much is read: its packs are sent while the rest is compressed, and one of the two waits.
    whole: bool,
    /// Full packs that the store does not take yet.
    waiting: AtomicUsize,
}

impl Level {
    /// Counts one more put. `best` is the level of the options.
    pub(super) fn of(best: i32, whole: bool) -> Self {
        RUNNING.fetch_add(1, Ordering::Relaxed);
        Self { best, whole, waiting: AtomicUsize::new(0) }
    }

    /// The level for the next frame.
    pub(super) fn now(&self) -> i32 {
        let many = RUNNING.load(Ordering::Relaxed) > blocking::parallelism();
        choose(self.best, many, self.is_awaited())
    }

    fn is_awaited(&self) -> bool {
        self.whole && self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Notes that a pack is full. Until it is [`Self::sent`] the store is what the put waits for.
    pub(super) fn full(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a full pack is on its way.
    pub(super) fn sent(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// `many`: more puts run than there are processors. `is_awaited`: the store would take more than is compressed.
fn choose(best: i32, many: bool, is_awaited: bool) -> i32 {
    if many || is_awaited { best.min(HURRIED) } else { best }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_falls_while_somebody_waits_for_processors_and_never_rises() {
        let cases = [
            (3, false, false, 3),
            (3, true, false, 2),
            (3, false, true, 2),
            (3, true, true, 2),
            (9, true, false, 2),
            (-1, true, true, -1),
        ];
        for (best, many, is_awaited, expected) in cases {
            assert_eq!(choose(best, many, is_awaited), expected, "{best} {many} {is_awaited}");
        }
    }

    #[test]
    fn a_whole_tree_is_compressed_better_while_the_store_is_behind() {
        let level = Level::of(3, true);
        assert!(level.is_awaited(), "nothing is full yet");
        level.full();
        level.full();
        level.sent();
        assert!(!level.is_awaited(), "one waits");
        level.sent();
        assert!(level.is_awaited());
        assert!(!Level::of(3, false).is_awaited(), "an increment");
    }
}
