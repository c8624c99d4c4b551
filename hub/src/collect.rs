//! Garbage collection in an interval. Two hubs that both do it do no harm: every step is a conditional write.

use std::sync::Arc;
use std::time::Duration;

use cas::gc::{self, Collector};
use types::Classify as _;

use crate::core::Hub;
use crate::metrics;

/// A session is fenced for standing still only after this many times what makes a node dead for its volumes: here nobody
/// waits for it, and an open volume is worth more than space.
const PATIENCE_WITH_SESSIONS: u32 = 6;

/// How the collection runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collection {
    /// How long after a round the next one begins; nothing: none does.
    pub interval: Duration,
    /// How long deleted volumes can be brought back.
    pub grace: Duration,
}

impl Default for Collection {
    fn default() -> Self {
        Self { interval: Duration::ZERO, grace: gc::Settings::default().grace }
    }
}

/// Runs rounds until the hub stops. A round that is cut short is gone on with by the next, here or elsewhere.
pub(crate) async fn collect(hub: Arc<Hub>) {
    let stop = hub.stop.clone();
    let Collection { interval, grace } = hub.settings.collection;
    if interval.is_zero() {
        return stop.cancelled().await;
    }
    let fence_after = hub.settings.timings.dead * PATIENCE_WITH_SESSIONS;
    let settings = gc::Settings { fence_after, grace, ..gc::Settings::default() };
    let mut collector = Collector::new(hub.store.clone(), settings);
    while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
        let began = std::time::Instant::now();
        let Some(round) = stop.run_until_cancelled(Box::pin(collector.round())).await else { return };
        metrics::collected(&hub, round.as_ref(), began.elapsed());
        match round {
            Ok(report) => report.log(),
            Err(error) => {
                let kind = error.kind();
                let error = proto::status::message(&error);
                tracing::warn!(error, ?kind, "nothing is collected until the next round");
            }
        }
    }
}
