//! What a node tells Prometheus, by name. The list in `README.md` is checked against what a node shows.

use std::sync::Arc;

use proto::metrics::{Kind, Metric, tell_traffic};
use tokio::net::TcpListener;
use types::Classify as _;

use crate::error::Error;
use crate::local;
use crate::node::Node;
use crate::volume::Standing;

/// Bytes of the pool: `total`, `used`, `available` (what can still be promised), `metadata_available`.
const POOL: Metric = Metric {
    name: "opensail_pool_bytes",
    help: "Bytes of the pool by kind; available is what can still be promised.",
    kind: Kind::Gauge,
    labels: &["kind"],
};
/// Whether the pool can be written to.
const POOL_WRITABLE: Metric = Metric {
    name: "opensail_pool_writable",
    help: "1 where the pool can be written to.",
    kind: Kind::Gauge,
    labels: &[],
};
/// What the kernel's cleaner has to do.
const DELETED: Metric = Metric {
    name: "opensail_deleted_subvolumes",
    help: "Deleted subvolumes whose space the kernel has not given back yet.",
    kind: Kind::Gauge,
    labels: &[],
};
/// Groups that wait for the cleaner.
const SPARE_GROUPS: Metric = Metric {
    name: "opensail_deleted_quota_groups",
    help: "Quota groups of deleted volumes that go when the kernel has given their space back.",
    kind: Kind::Gauge,
    labels: &[],
};
/// Volumes by what the node is to them.
const VOLUMES: Metric = Metric {
    name: "opensail_volumes",
    help: "Local copies by what this node is to them: owned, relative, fenced, quarantined.",
    kind: Kind::Gauge,
    labels: &["standing"],
};
/// Volumes whose last sync failed.
const BEHIND: Metric = Metric {
    name: "opensail_volumes_behind",
    help: "Owned volumes whose changes could not be made durable.",
    kind: Kind::Gauge,
    labels: &[],
};
/// Volumes with changes that are not durable.
const DIRTY: Metric = Metric {
    name: "opensail_volumes_dirty",
    help: "Owned volumes with changes that are not durable yet.",
    kind: Kind::Gauge,
    labels: &[],
};
/// The worst lag.
const LAG: Metric = Metric {
    name: "opensail_sync_lag_seconds",
    help: "Since when the volume that is dirty for longest was last durable as it stood.",
    kind: Kind::Gauge,
    labels: &[],
};
/// Syncs.
const SYNC: Metric = Metric {
    name: "opensail_sync_seconds",
    help: "Syncs by outcome (changed, unchanged, failed), and how long they took.",
    kind: Kind::Histogram,
    labels: &["outcome"],
};
/// What syncs uploaded.
const UPLOADED: Metric = Metric {
    name: "opensail_sync_uploaded_bytes_total",
    help: "Bytes that syncs wrote to the store.",
    kind: Kind::Counter,
    labels: &[],
};
/// Syncs that walked everything.
const FULL_SCANS: Metric = Metric {
    name: "opensail_full_scans_total",
    help: "Syncs that read a whole tree because the kernel could not say what had changed.",
    kind: Kind::Counter,
    labels: &[],
};
/// Takeovers.
const TAKEOVERS: Metric = Metric {
    name: "opensail_takeovers_total",
    help: "Volumes taken from an owner that did not give them.",
    kind: Kind::Counter,
    labels: &[],
};
/// The last loss window.
const LOSS_WINDOW: Metric = Metric {
    name: "opensail_last_loss_window_seconds",
    help: "At the last takeover: from when the volume was last durable until it was taken. What was written then is not in it.",
    kind: Kind::Gauge,
    labels: &[],
};
/// The session.
const SESSION: Metric = Metric {
    name: "opensail_session_live",
    help: "1 where the node has a live session and its last beat reached the store.",
    kind: Kind::Gauge,
    labels: &[],
};

/// What became of a sync.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SyncOutcome {
    /// There is a new version.
    Changed,
    /// There was nothing to do.
    Unchanged,
    /// It failed, in a way that is not just another operation's turn.
    Failed,
}

impl SyncOutcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Failed => "failed",
        }
    }
}

/// Counts a sync.
pub(crate) fn synced(node: &Node, result: &Result<crate::sync::Synced, Error>, took: std::time::Duration) {
    let outcome = match result {
        Ok(synced) if synced.changed => SyncOutcome::Changed,
        Ok(_) => SyncOutcome::Unchanged,
        Err(error) if error.kind() == types::Kind::Aborted => return,
        Err(_) => SyncOutcome::Failed,
    };
    let metrics = node.metrics();
    metrics.observe(&SYNC, &[outcome.as_str()], took);
    if let Ok(synced) = result {
        metrics.add(&UPLOADED, &[], synced.bytes_uploaded);
        metrics.add(&FULL_SCANS, &[], u64::from(synced.full_scan));
    }
}

/// Counts a volume that was taken from an owner that did not give it.
pub(crate) fn taken_over(node: &Node, takeover: &cas::record::Takeover) {
    node.metrics().add(&TAKEOVERS, &[], 1);
    node.metrics().set(&LOSS_WINDOW, &[], takeover.window().as_secs_f64());
}

/// Shows what is counted as zero before anything happened.
pub(crate) fn begin(node: &Node) {
    let metrics = node.metrics();
    for outcome in [SyncOutcome::Changed, SyncOutcome::Unchanged, SyncOutcome::Failed] {
        metrics.show(&SYNC, &[outcome.as_str()]);
    }
    for metric in [&UPLOADED, &FULL_SCANS, &TAKEOVERS, &LOSS_WINDOW] {
        metrics.show(metric, &[]);
    }
}

/// Serves the metrics until the node stops.
pub(crate) async fn serve(node: Arc<Node>, listener: TcpListener) {
    let (metrics, stop) = (node.metrics().clone(), node.stop().clone());
    let gather = move || {
        let node = Arc::clone(&node);
        async move {
            if let Err(error) = gather(&node).await {
                tracing::warn!(%error, "the pool cannot be looked at; metrics show what was so before");
            }
        }
    };
    let serving = proto::metrics::serve(listener, proto::metrics::Endpoint { metrics, gather });
    if let Some(Err(error)) = stop.run_until_cancelled(serving).await {
        tracing::error!(%error, "the metrics are not served any more");
    }
}

/// Looks at everything that is not counted as it happens.
///
/// # Errors
/// The pool cannot be read.
pub(crate) async fn gather(node: &Arc<Node>) -> Result<(), Error> {
    let metrics = node.metrics();
    let live = node.session_id().is_some() && node.store_trouble().is_empty();
    metrics.set_count(&SESSION, &[], u64::from(live));
    metrics.set_count(&SPARE_GROUPS, &[], node.spare_group_count());
    tell_traffic(metrics, &node.store().objects().traffic());
    volumes(node).await?;
    let (capacity, pool) = (node.capacity().await?, node.pool().clone());
    let (space, queued, writable) = node
        .pool()
        .run(move |root| {
            let writable = pool.is_writable().unwrap_or(false);
            Ok((btrfs::space::space(root)?, btrfs::cleaner::queued(root)?, writable))
        })
        .await?;
    for (kind, bytes) in [
        ("total", capacity.total_bytes),
        ("used", capacity.used_bytes),
        ("available", capacity.available_bytes),
        ("metadata_available", space.available_metadata_bytes()),
    ] {
        metrics.set_count(&POOL, &[kind], bytes);
    }
    metrics.set_count(&POOL_WRITABLE, &[], u64::from(writable));
    metrics.set_count(&DELETED, &[], queued);
    Ok(())
}

/// Counts the volumes, and finds the one that is behind for longest. One look for all: they are many.
async fn volumes(node: &Node) -> Result<(), Error> {
    let me = node.session_id();
    let (mut owned, mut relative, mut fenced, mut quarantined, mut behind) = (0, 0, 0, 0, 0);
    let mut bases = Vec::new();
    for volume in node.volumes().all() {
        let facts = volume.facts();
        match facts.standing {
            Standing::Owned { session, .. } if Some(session) == me => {
                owned += 1;
                behind += u64::from(!facts.trouble.is_empty());
                bases.push((volume.id.clone(), facts.base.map(|base| base.roots), facts.last_sync));
            }
            Standing::Owned { .. } | Standing::Fenced { .. } => fenced += 1,
            Standing::Relative => relative += 1,
            Standing::Quarantined { .. } => quarantined += 1,
        }
    }
    let dirty = node
        .pool()
        .run(move |root| {
            let mut since = Vec::new();
            for (id, base, last_sync) in bases {
                let roots = local::live(root, &id).and_then(|live| local::roots(&live));
                match roots {
                    Ok(roots) if base.as_ref() == Some(&roots) => {}
                    Ok(_) => since.push(last_sync),
                    // It went away meanwhile.
                    Err(Error::NotHere { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(since)
        })
        .await?;
    let metrics = node.metrics();
    for (standing, count) in
        [("owned", owned), ("relative", relative), ("fenced", fenced), ("quarantined", quarantined)]
    {
        metrics.set_count(&VOLUMES, &[standing], count);
    }
    metrics.set_count(&BEHIND, &[], behind);
    metrics.set_count(&DIRTY, &[], u64::try_from(dirty.len()).unwrap_or(u64::MAX));
    let now = node.store().clock().now();
    let lag = dirty.into_iter().flatten().map(|since| now.since(since)).max().unwrap_or_default();
    metrics.set(&LAG, &[], lag.as_secs_f64());
    Ok(())
}
