//! What the hub tells Prometheus beside its calls.

use std::sync::Arc;

use proto::metrics::{Endpoint, Kind, Metric};
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

/// Serves the metrics until the hub stops.
pub fn serve(hub: &Arc<Hub>, listener: TcpListener) {
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
}
