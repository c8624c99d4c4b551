//! A real hub in process and nodes that are fake in one thing only: a volume's tree is a text of at most 32 bytes. Their
//! sessions, records and packs are real, in a real store, by the rules of `cas`.

#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    reason = "each test binary uses a part of it"
)]

pub mod node;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cas::Store;
use cas::objects::{MemoryStore, Objects};
use hub::state::State;
use hub::{Hub, Settings, Timings};
use orchestrator::Projects;
use proto::hub::hub_client::HubClient;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use types::{Clock, PoolId, SystemClock, VersionId};

pub use node::FakeNode;

/// Short, but not so short that a busy machine declares a living node dead.
pub const TIMINGS: Timings = Timings {
    heartbeat: Duration::from_millis(100),
    suspect: Duration::from_millis(1500),
    dead: Duration::from_millis(3000),
};

/// Anything in these tests that takes longer is stuck.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The version of a tree that is this text.
pub fn version(text: &str) -> VersionId {
    let mut bytes = [0; 32];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    VersionId(bytes)
}

/// A store that several handles share, each as another process would.
pub async fn open(objects: &Arc<dyn Objects>) -> Store {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    Store::create_or_open(Arc::clone(objects), clock).await.unwrap().into_inner()
}

/// A hub that runs.
pub struct TestHub {
    pub address: SocketAddr,
    pub hub: Arc<Hub>,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

impl TestHub {
    async fn start(objects: &Arc<dyn Objects>, listener: TcpListener) -> Self {
        Self::start_as(objects, listener, Settings { timings: TIMINGS, ..Settings::default() }).await
    }

    pub async fn start_as(objects: &Arc<dyn Objects>, listener: TcpListener, settings: Settings) -> Self {
        let store = open(objects).await;
        let state = State::memory(store.id()).unwrap();
        let shutdown = CancellationToken::new();
        let hub = Hub::new(settings, store, state);
        let address = listener.local_addr().unwrap();
        let running = hub::run(Arc::clone(&hub), listener, shutdown.clone(), Duration::from_secs(2));
        let running = tokio::spawn(async move { running.await.unwrap() });
        Self { address, hub, shutdown, running }
    }

    pub async fn stop(self) -> SocketAddr {
        self.shutdown.cancel();
        self.running.await.unwrap();
        self.address
    }
}

/// A hub, a store, and the nodes that were started.
pub struct Cluster {
    pub objects: Arc<dyn Objects>,
    pub store: Store,
    pub hub: TestHub,
    pub nodes: Vec<FakeNode>,
}

impl Cluster {
    /// Starts a hub and nodes with these names, and waits until the hub hears them.
    pub async fn start(names: &[&str]) -> Self {
        Self::start_on(Arc::new(MemoryStore::new()), names).await
    }

    pub async fn start_on(objects: Arc<dyn Objects>, names: &[&str]) -> Self {
        Self::start_as(objects, Settings { timings: TIMINGS, ..Settings::default() }, names).await
    }

    pub async fn start_as(objects: Arc<dyn Objects>, settings: Settings, names: &[&str]) -> Self {
        let store = open(&objects).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hub = TestHub::start_as(&objects, listener, settings).await;
        let mut cluster = Self { objects, store, hub, nodes: Vec::new() };
        for name in names {
            cluster.add(name).await;
        }
        cluster
    }

    pub async fn add(&mut self, name: &str) -> &FakeNode {
        let store = open(&self.objects).await;
        let node = FakeNode::start(&store, name, PoolId::random(), self.hub.address).await;
        self.nodes.push(node);
        self.heard(name).await;
        self.nodes.last().unwrap()
    }

    pub fn node(&self, name: &str) -> &FakeNode {
        self.nodes.iter().find(|node| node.name.as_str() == name).unwrap()
    }

    pub async fn heard(&self, name: &str) {
        let name = name.parse().unwrap();
        eventually("the hub hears the node", async || self.hub.hub.nodes.live_by_name(&name).is_some()).await;
    }

    /// Stops the hub and starts one that remembers nothing, at the same address.
    pub async fn replace_hub(&mut self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fresh = TestHub::start(&self.objects, listener).await;
        let old = std::mem::replace(&mut self.hub, fresh);
        old.stop().await;
        for node in &self.nodes {
            node.dial(self.hub.address);
        }
    }

    pub fn projects(&self) -> Projects {
        Projects::connect(&self.hub.address.to_string()).unwrap().with_timeout(PATIENCE)
    }

    pub fn client(&self) -> HubClient<Channel> {
        self.projects().client()
    }
}

/// Waits for something that must come true.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
