//! The hub as a process: build, serve, watch, stop.

use std::sync::Arc;
use std::time::Duration;

use proto::hub::hub_server::HubServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use types::Classify as _;

use crate::collect::collect;
use crate::core::Hub;
use crate::error::Error;
use crate::service::HubService;

/// Every how many looks at silent sessions all are looked at, so that one that somebody else fenced is told.
const LOOK_AT_ALL_EVERY: u32 = 5;

/// How often the records that changed are read, so that names and counts stay fresh.
const REFRESH: Duration = Duration::from_secs(5 * 60);

/// A refresh that failed is tried again after this long.
const REFRESH_AGAIN: Duration = Duration::from_secs(5);

/// Serves `hub` on `listener` until `shutdown` is cancelled, then ends streams and calls within `grace`.
///
/// # Errors
/// The listener or one of the loops failed.
pub async fn run(
    hub: Arc<Hub>,
    listener: TcpListener,
    shutdown: CancellationToken,
    grace: Duration,
) -> Result<(), RunError> {
    recall(&hub).await?;
    let mut watching = tokio::spawn(watch(Arc::clone(&hub)));
    let mut reading = tokio::spawn(read(Arc::clone(&hub)));
    let mut collecting = tokio::spawn(collect(Arc::clone(&hub)));
    let stop = hub.stop.clone();
    let service = HubServer::new(HubService::new(Arc::clone(&hub)))
        .max_decoding_message_size(proto::client::MAX_MESSAGE_BYTES);
    let serving = tonic::transport::Server::builder()
        .layer(proto::metrics::Calls::new(hub.metrics.clone()))
        .add_service(service)
        .serve_with_incoming_shutdown(proto::server::incoming(listener), stop.clone().cancelled_owned());
    let mut serving = tokio::spawn(serving);

    let early = tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        served = &mut serving => Some(match served {
            Ok(Ok(())) => RunError::Ended,
            Ok(Err(source)) => RunError::Serve { source },
            Err(source) => RunError::Task { source },
        }),
        // The loops end when they are told to; one that ends before broke, and the process with it.
        ended = &mut watching => Some(ended.map_or_else(|source| RunError::Task { source }, |()| RunError::Ended)),
        ended = &mut collecting => Some(ended.map_or_else(|source| RunError::Task { source }, |()| RunError::Ended)),
        ended = &mut reading => Some(ended.map_or_else(|source| RunError::Task { source }, |()| RunError::Ended)),
    };
    // Ends the streams, which would keep the server from stopping, and the loops.
    stop.cancel();
    hub.tasks.close();
    if let Some(error) = early {
        return Err(error);
    }
    tracing::info!("stopping; calls have {grace:?} to end");
    let drain = async {
        let served = serving.await;
        hub.tasks.wait().await;
        drop((watching.await, reading.await, collecting.await));
        served
    };
    match tokio::time::timeout(grace, drain).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(source))) => Err(RunError::Serve { source }),
        Ok(Err(source)) => Err(RunError::Task { source }),
        Err(_) => {
            // Each operation can be asked for again, and finds what this one did.
            tracing::warn!("calls were still under way; they are found again by their retries");
            Ok(())
        }
    }
}

/// Watches the nodes that the last run knew, and every session that the store has.
async fn recall(hub: &Hub) -> Result<(), Error> {
    for known in hub.state.nodes().await? {
        hub.nodes.watch(known.session, &known.node, Some(known.heard));
    }
    Ok(())
}

/// Looks at the beats of silent sessions, once per heartbeat.
async fn watch(hub: Arc<Hub>) {
    let mut interval = tokio::time::interval(hub.settings.timings.heartbeat);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut round: u32 = 0;
    let mut reachable = true;
    let stop = hub.stop.clone();
    while stop.run_until_cancelled(interval.tick()).await.is_some() {
        let all = round.is_multiple_of(LOOK_AT_ALL_EVERY);
        round = round.wrapping_add(1);
        // A look that hangs must not hide the silence of the others for longer than the verdict takes.
        let looks = tokio::time::timeout(hub.settings.timings.dead, hub.look_around(all));
        let outcome = stop.run_until_cancelled(looks).await;
        let failed = match outcome {
            None => return,
            Some(Ok(Ok(()))) => None,
            Some(Ok(Err(error))) => Some(proto::status::message(&error)),
            Some(Err(_)) => Some("the store did not answer in time".to_owned()),
        };
        match &failed {
            Some(error) if reachable => {
                tracing::warn!(error, "sessions cannot be looked at in the store; no node is declared dead");
            }
            None if !reachable => tracing::info!("sessions can be looked at again"),
            Some(_) | None => {}
        }
        reachable = failed.is_none();
    }
}

/// Reads the sessions and records of the store, at start and from time to time.
async fn read(hub: Arc<Hub>) {
    let stop = hub.stop.clone();
    let mut wait = Duration::ZERO;
    while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
        let pass = async {
            hub.look_at_store().await?;
            hub.catalog.refresh().await
        };
        match stop.run_until_cancelled(pass).await {
            None => return,
            Some(Ok(records)) => {
                tracing::debug!(records, "read what the store has");
                wait = REFRESH;
            }
            Some(Err(error)) => {
                let kind = error.kind();
                tracing::warn!(error = proto::status::message(&error), ?kind, "the store could not be read");
                wait = REFRESH_AGAIN;
            }
        }
    }
}

/// What ends a hub before it was told to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The state file failed.
    #[error(transparent)]
    Hub(#[from] Error),
    /// The listener failed.
    #[error("the server failed")]
    Serve {
        /// The transport's words.
        #[source]
        source: tonic::transport::Error,
    },
    /// A task panicked.
    #[error("a task of the hub broke")]
    Task {
        /// Which way.
        #[source]
        source: tokio::task::JoinError,
    },
    /// The server or a loop ended by itself.
    #[error("a part of the hub ended without being told to")]
    Ended,
}
