//! The daemon: bind, open pool and store, settle, serve until told to stop.

use std::sync::Arc;
use std::time::Duration;

use cas::Store;
use cas::objects::{Cap, CappedStore, StoreUrl, probe};
use proto::files::files_server::FilesServer;
use proto::metrics::Calls;
use proto::node::groups_server::GroupsServer;
use proto::node::node_server::NodeServer;
use proto::node::settings_server::SettingsServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use types::{ByteSize, Clock, SystemClock};

use crate::config::NodeConfig;
use crate::error::Error;
use crate::files::FilesService;
use crate::hub_link;
use crate::node::Node;
use crate::pool::Pool;
use crate::service::NodeService;
use crate::settings::SettingsKeeper;

/// What is under way when the stop comes has this long to end. Kubernetes kills after thirty seconds, we promise ten.
const GRACE: Duration = Duration::from_secs(8);

/// Runs a node until `stop`, then lets what is under way end. A stop moves nothing and flushes nothing.
///
/// # Errors
/// The node could not be started, or its server failed.
pub async fn run(config: NodeConfig, stop: CancellationToken) -> Result<(), Error> {
    let listen = |source| Error::Listen { address: config.listen.clone(), source };
    // First of all: a second daemon is refused before it has touched anything.
    let listener = TcpListener::bind(&config.listen).await.map_err(listen)?;
    let bound = listener.local_addr().map_err(listen)?.to_string();
    let address = config.advertise.clone().unwrap_or(bound);
    let started = Box::pin(stop.run_until_cancelled(start(config, address))).await;
    let Some(node) = started.transpose()? else { return Ok(()) };
    serve(node, listener, stop).await
}

/// Opens pool and store and brings the node to life.
///
/// # Errors
/// Either cannot be used.
pub async fn start(config: NodeConfig, address: String) -> Result<Arc<Node>, Error> {
    config.marks.check().map_err(|reason| Error::BadOption { reason })?;
    let pool = Pool::open(config.clone()).await?;
    let store = open_store(&config).await?;
    Node::start(config, address, pool, store).await
}

async fn open_store(config: &NodeConfig) -> Result<Store, Error> {
    let url = config.store.as_str();
    let unusable = |source: Box<dyn std::error::Error + Send + Sync>| Error::StoreUnusable {
        url: without_secrets(url),
        source,
    };
    let parsed: StoreUrl = url.parse().map_err(|error| unusable(Box::new(error)))?;
    let objects = parsed.connect().await.map_err(|error| unusable(Box::new(error)))?;
    let report = probe(&*objects).await.map_err(|error| unusable(Box::new(error)))?;
    report.require_fit().map_err(|error| unusable(Box::new(error)))?;
    let cap = |limit: Option<ByteSize>| limit.map(|limit| Cap::new(limit.0));
    let objects = Arc::new(CappedStore::new(objects, cap(config.upload_limit), cap(config.download_limit)));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    Ok(Store::create_or_open(objects, clock).await?.into_inner())
}

/// People put keys into URLs.
fn without_secrets(url: &str) -> String {
    url.split('?').next().unwrap_or_default().to_owned()
}

/// Serves until `stop`, drains, and ends.
///
/// # Errors
/// The server failed.
pub async fn serve(node: Arc<Node>, listener: TcpListener, stop: CancellationToken) -> Result<(), Error> {
    let limit = proto::client::MAX_MESSAGE_BYTES;
    let settings = SettingsKeeper::new(Arc::clone(&node));
    let routes = tonic::transport::Server::builder()
        .layer(Calls::new(node.metrics().clone()))
        .add_service(NodeServer::new(NodeService::new(Arc::clone(&node))).max_decoding_message_size(limit))
        .add_service(SettingsServer::new(settings.clone()).max_decoding_message_size(limit))
        .add_service(GroupsServer::new(NodeService::new(Arc::clone(&node))).max_decoding_message_size(limit))
        .add_service(FilesServer::new(FilesService::new(Arc::clone(&node))).max_decoding_message_size(limit));
    node.spawn_loops();
    node.tasks().spawn(settings.run());
    crate::csi::serve::node(&node, &stop).map_err(|error| Error::Io {
        doing: "making the CSI socket",
        source: std::io::Error::other(error),
    })?;
    crate::metrics::begin(&node);
    if let Some(address) = node.config().metrics.clone() {
        let unusable = |source| Error::Listen { address: address.clone(), source };
        let listener = TcpListener::bind(&address).await.map_err(unusable)?;
        node.tasks().spawn(crate::metrics::serve(Arc::clone(&node), listener));
    }
    if let Some(hub) = node.config().hub.clone()
        && node.require_own_store().is_ok()
    {
        node.tasks().spawn(hub_link::run(Arc::clone(&node), hub));
    }
    tracing::info!(node = %node.name(), address = node.address(), pool = %node.pool().path().display(), "serving");
    let stopping = stop.clone();
    let server = routes.serve_with_incoming_shutdown(proto::server::incoming(listener), async move {
        stopping.cancelled().await;
    });
    tokio::pin!(server);
    let served = tokio::select! {
        served = &mut server => served,
        () = stop.cancelled() => {
            // Calls that stream for ever must not keep the node up.
            tokio::time::timeout(GRACE / 2, server).await.unwrap_or(Ok(()))
        }
    };
    node.shut_down(GRACE / 2).await;
    served.map_err(|error| Error::Io { doing: "serving gRPC", source: std::io::Error::other(error) })
}

impl Node {
    /// Ends the loops and waits for what is under way.
    pub async fn shut_down(&self, grace: Duration) {
        self.stop().cancel();
        self.tasks().close();
        if tokio::time::timeout(grace, self.tasks().wait()).await.is_err() {
            tracing::warn!("operations are cut off; the next start finishes or drops them");
        }
        tracing::info!("stopped");
    }
}
