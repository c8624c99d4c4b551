//! Requests to the store, under names that every process shares.

use super::{Kind, Metric, Metrics};

/// Requests that were sent.
const REQUESTS: Metric = Metric {
    name: "opensail_store_requests_total",
    help: "Requests sent to the store over the network, by kind; what is tried again or hedged is counted each time.",
    kind: Kind::Counter,
    labels: &["call"],
};
/// Bytes that went with them.
const BYTES: Metric = Metric {
    name: "opensail_store_bytes_total",
    help: "Bytes read from the store and written to it.",
    kind: Kind::Counter,
    labels: &["direction"],
};
/// Those that failed.
const FAILURES: Metric = Metric {
    name: "opensail_store_failures_total",
    help: "Requests that failed in a way that may pass: busy where the store asked for fewer, other for all else.",
    kind: Kind::Counter,
    labels: &["reason"],
};
/// Those that were sent again.
const REPEATS: Metric = Metric {
    name: "opensail_store_repeats_total",
    help: "Reads that were sent again: after a failure (retry), because the first was slow and it won (hedge_won) or not (hedge).",
    kind: Kind::Counter,
    labels: &["why"],
};

/// What a process asked of its store so far.
#[derive(Debug, Clone, Default)]
pub struct StoreTraffic {
    /// Requests by the word for their kind.
    pub requests: Vec<(&'static str, u64)>,
    /// Bytes that answers brought.
    pub bytes_read: u64,
    /// Bytes that were sent to be stored.
    pub bytes_written: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Of these, those that the store was too busy for.
    pub busy: u64,
    /// Reads that were sent again after a failure.
    pub retries: u64,
    /// Reads that were sent a second time because the first was slow.
    pub hedges: u64,
    /// Of these, those that answered first.
    pub hedges_won: u64,
}

impl StoreTraffic {
    /// Tells it.
    pub fn tell(&self, metrics: &Metrics) {
        for (call, requests) in &self.requests {
            metrics.set_count(&REQUESTS, &[call], *requests);
        }
        for (metric, label, count) in [
            (&BYTES, "read", self.bytes_read),
            (&BYTES, "written", self.bytes_written),
            (&FAILURES, "busy", self.busy),
            (&FAILURES, "other", self.failed.saturating_sub(self.busy)),
            (&REPEATS, "retry", self.retries),
            (&REPEATS, "hedge", self.hedges.saturating_sub(self.hedges_won)),
            (&REPEATS, "hedge_won", self.hedges_won),
        ] {
            metrics.set_count(metric, &[label], count);
        }
    }
}
