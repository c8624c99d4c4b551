//! When a read is asked for a second time because the first answer is late, and how often that may be done.
//!
//! A few reads of a store take far longer than the others. A second request after the time that nineteen of twenty need
//! costs one request in twenty and cuts that tail. The share of such requests is bounded by a budget that reads fill, so a
//! store that is slow as a whole is not asked twice for everything; and one that asks for fewer requests gets none.

use std::time::Duration;

use super::CallKind;

/// Bounds of the buckets: from a millisecond on, each half as long again as the one before.
const BUCKETS: usize = 32;
const FIRST_BUCKET: f64 = 0.001;
const GROWTH: f64 = 1.5;

/// How many answers an estimate is made of at least.
const ENOUGH: u32 = 20;
/// After this many the counts are halved: a store may become slower or faster.
const MANY: u32 = 1_000;

/// Until there is an estimate.
const AT_FIRST: Duration = Duration::from_secs(1);
/// Sooner, nothing is gained by asking twice.
const SOONEST: Duration = Duration::from_millis(50);
/// Later, a caller has waited long enough whatever the estimate is.
const LATEST: Duration = Duration::from_secs(5);

/// What one hedge costs, in reads: at most one read in this many is hedged in the long run.
const COST: u32 = 20;
/// Hedges that a store may get at once, at the start and after a quiet time.
const START: u32 = 2 * COST;
const MOST: u32 = 8 * COST;

/// Reads that take about the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Up to 64 KiB: records and nodes.
    Small,
    /// Up to 2 MiB.
    Medium,
    /// More.
    Large,
    /// Listings.
    List,
}

impl Class {
    pub(super) fn of(kind: CallKind, bytes: u64) -> Self {
        match (kind, bytes) {
            (CallKind::List, _) => Self::List,
            (_, 0..=0x1_0000) => Self::Small,
            (_, 0x1_0001..=0x20_0000) => Self::Medium,
            _ => Self::Large,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Small => 0,
            Self::Medium => 1,
            Self::Large => 2,
            Self::List => 3,
        }
    }
}

/// What is known of how fast a store answers, and what may be spent on asking twice.
#[derive(Debug)]
pub(super) struct Hedge {
    classes: [Times; 4],
    budget: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Times {
    counts: [u32; BUCKETS],
    total: u32,
}

impl Default for Hedge {
    fn default() -> Self {
        Self { classes: [Times::default(); 4], budget: START }
    }
}

impl Hedge {
    /// A read of this class begins: returns after what time it should be asked for again.
    pub(super) fn begin(&mut self, class: Class) -> Duration {
        self.budget = (self.budget + 1).min(MOST);
        let times = &self.classes[class.index()];
        if times.total < ENOUGH { AT_FIRST } else { times.p95().clamp(SOONEST, LATEST) }
    }

    /// Takes the cost of one hedge from the budget; false: it may not be made.
    pub(super) fn spend(&mut self) -> bool {
        match self.budget.checked_sub(COST) {
            Some(left) => {
                self.budget = left;
                true
            }
            None => false,
        }
    }

    /// The store asks for fewer requests: what was saved for hedges is gone.
    pub(super) fn slow_down(&mut self) {
        self.budget = 0;
    }

    /// Notes how long an answer took.
    pub(super) fn note(&mut self, class: Class, took: Duration) {
        let times = &mut self.classes[class.index()];
        times.counts[bucket(took)] += 1;
        times.total += 1;
        if times.total >= MANY {
            times.counts.iter_mut().for_each(|count| *count /= 2);
            times.total = times.counts.iter().sum();
        }
    }
}

impl Times {
    /// What nineteen of twenty answers take at most.
    fn p95(&self) -> Duration {
        let mut above = 0;
        for (number, count) in self.counts.iter().enumerate().rev() {
            above += count;
            if above * 20 > self.total {
                return upper(number);
            }
        }
        LATEST
    }
}

fn bucket(took: Duration) -> usize {
    (0..BUCKETS - 1).find(|number| took <= upper(*number)).unwrap_or(BUCKETS - 1)
}

fn upper(number: usize) -> Duration {
    Duration::from_secs_f64(FIRST_BUCKET * GROWTH.powi(i32::try_from(number).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_second_request_waits_for_what_most_take() {
        // What is seen (how often, how long), and between what the wait must be.
        type Case = (&'static str, &'static [(u32, u64)], (u64, u64));
        let cases: [Case; 6] = [
            ("nothing yet", &[], (1_000, 1_000)),
            ("too little", &[(19, 10)], (1_000, 1_000)),
            ("a near store", &[(100, 4)], (50, 50)),
            ("a far store", &[(100, 200)], (200, 300)),
            ("a tail of one in fifty is not waited for", &[(98, 200), (2, 30_000)], (200, 300)),
            ("a store that is slow as a whole", &[(50, 200), (50, 60_000)], (5_000, 5_000)),
        ];
        for (name, seen, (least, most)) in cases {
            let mut hedge = Hedge::default();
            for (count, took) in seen {
                (0..*count).for_each(|_| hedge.note(Class::Small, ms(*took)));
            }
            let after = hedge.begin(Class::Small);
            assert!((ms(least)..=ms(most)).contains(&after), "{name}: {after:?}");
            assert_eq!(hedge.begin(Class::Large), AT_FIRST, "{name}: classes are apart");
        }
    }

    #[test]
    fn a_store_that_became_slower_is_believed_soon() {
        let mut hedge = Hedge::default();
        (0..5_000).for_each(|_| hedge.note(Class::Small, ms(60)));
        (0..100).for_each(|_| hedge.note(Class::Small, ms(900)));
        assert!(hedge.begin(Class::Small) >= ms(900));
    }

    #[test]
    fn one_read_in_twenty_is_hedged_at_most() {
        let mut hedge = Hedge::default();
        let mut made = 0;
        for _ in 0..2_000 {
            hedge.begin(Class::Small);
            made += u32::from(hedge.spend());
        }
        assert!((100..=102).contains(&made), "{made}");
        hedge.slow_down();
        assert!(!hedge.spend(), "a busy store is not asked twice");
    }
}
