//! What the hub tells Prometheus beside its calls.

use std::sync::Arc;
use std::time::Duration;

use cas::gc::Report;
use proto::metrics::{Endpoint, Kind, Metric, tell_traffic};
use tokio::net::TcpListener;

use crate::core::Hub;
use crate::liveness::Liveness;

/// Nodes by how they are.
const NODES: Metric = Metric {
    name: "opensail_nodes",
    help: "Sessions of nodes by how they are: live, suspect, dead, fenced.",
    kind: Kind::Gauge,
    labels: &["state"],
};

/// Rounds of the collection.
const ROUNDS: Metric = Metric {
    name: "opensail_gc_round_seconds",
    help: "Rounds of garbage collection by outcome (done, waiting for sessions, failed), and how long they took.",
    kind: Kind::Histogram,
    labels: &["outcome"],
};
/// What the collection did.
const COLLECTED: Metric = Metric {
    name: "opensail_gc_objects_total",
    help: "What rounds did: packs condemned, rescued, deleted, evacuated; volumes purged, removed, thinned, drained; sessions fenced, retired; leftovers.",
    kind: Kind::Counter,
    labels: &["what"],
};
/// Bytes that it gave back, and those that it wrote for that.
const COLLECTED_BYTES: Metric = Metric {
    name: "opensail_gc_bytes_total",
    help: "Bytes of packs that rounds deleted, and that they copied out of sparse packs.",
    kind: Kind::Counter,
    labels: &["what"],
};
/// Packs as of the last round.
const PACKS: Metric = Metric {
    name: "opensail_store_packs",
    help: "Packs in the store when the last round began.",
    kind: Kind::Gauge,
    labels: &[],
};
/// Their bytes.
const PACK_BYTES: Metric = Metric {
    name: "opensail_store_pack_bytes",
    help: "Bytes of the packs in the store when the last round began.",
    kind: Kind::Gauge,
    labels: &[],
};
/// Sessions that a round waits for.
const WAITING: Metric = Metric {
    name: "opensail_gc_waiting_sessions",
    help: "Live sessions that the last round waited for in vain.",
    kind: Kind::Gauge,
    labels: &[],
};

/// How rounds end.
const OUTCOMES: [&str; 3] = ["done", "waiting", "failed"];

/// Shows what is counted as zero before the first round.
pub(crate) fn begin(hub: &Hub) {
    for outcome in OUTCOMES {
        hub.metrics.show(&ROUNDS, &[outcome]);
    }
    count(hub, &Report::default());
}

/// Counts a round.
pub(crate) fn collected(hub: &Hub, round: Result<&Report, &cas::Error>, took: Duration) {
    let outcome = match round {
        Ok(report) if report.is_waiting() => "waiting",
        Ok(_) => "done",
        Err(_) => "failed",
    };
    hub.metrics.observe(&ROUNDS, &[outcome], took);
    if let Ok(report) = round {
        count(hub, report);
    }
}

fn count(hub: &Hub, report: &Report) {
    for (what, count) in [
        ("condemned", report.condemned),
        ("rescued", report.rescued),
        ("deleted", report.deleted),
        ("evacuated", report.evacuated),
        ("purged", report.purged),
        ("removed", report.removed),
        ("thinned", report.thinned),
        ("drained", report.drained),
        ("fenced", report.fenced.len() as u64),
        ("retired", report.retired),
        ("leftovers", report.leftovers),
    ] {
        hub.metrics.add(&COLLECTED, &[what], count);
    }
    hub.metrics.add(&COLLECTED_BYTES, &["deleted"], report.deleted_bytes);
    hub.metrics.add(&COLLECTED_BYTES, &["copied"], report.copied_bytes);
    hub.metrics.set_count(&PACKS, &[], report.packs);
    hub.metrics.set_count(&PACK_BYTES, &[], report.pack_bytes);
    hub.metrics.set_count(&WAITING, &[], report.waiting.len() as u64);
}

/// Serves the metrics until the hub stops.
pub fn serve(hub: &Arc<Hub>, listener: TcpListener) {
    begin(hub);
    let (watched, stop) = (Arc::clone(hub), hub.stop.clone());
    let gather = move || {
        let hub = Arc::clone(&watched);
        async move { gather(&hub) }
    };
    let endpoint = Endpoint { metrics: hub.metrics.clone(), gather };
    hub.tasks.spawn(async move {
        let serving = stop.run_until_cancelled(proto::metrics::serve(listener, endpoint));
        if let Some(Err(error)) = serving.await {
            tracing::error!(%error, "the metrics are not served any more");
        }
    });
}

fn gather(hub: &Hub) {
    for (state, liveness) in [
        ("live", Liveness::Live),
        ("suspect", Liveness::Suspect),
        ("dead", Liveness::Dead),
        ("fenced", Liveness::Fenced),
    ] {
        hub.metrics.set_count(&NODES, &[state], hub.nodes.count(liveness));
    }
    tell_traffic(&hub.metrics, &hub.store.objects().traffic());
}
