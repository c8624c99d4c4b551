//! Requests to the store, under names that every process shares.

use types::{CallKind, Traffic};

use super::{Kind, Metric, Metrics};

/// Requests that were sent.
const REQUESTS: Metric = Metric {
    name: "opensail_store_requests_total",
    help: "Requests to the store, by kind; what is tried again or hedged is counted each time.",
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

/// Tells what a process asked of its store so far.
pub fn tell_traffic(metrics: &Metrics, traffic: &Traffic) {
    for kind in CallKind::ALL {
        metrics.set_count(&REQUESTS, &[kind.as_str()], traffic.of(kind));
    }
    for (metric, label, count) in [
        (&BYTES, "read", traffic.bytes_read),
        (&BYTES, "written", traffic.bytes_written),
        (&FAILURES, "busy", traffic.busy),
        (&FAILURES, "other", traffic.failed.saturating_sub(traffic.busy)),
        (&REPEATS, "retry", traffic.retries),
        (&REPEATS, "hedge", traffic.hedges.saturating_sub(traffic.hedges_won)),
        (&REPEATS, "hedge_won", traffic.hedges_won),
    ] {
        metrics.set_count(metric, &[label], count);
    }
}
