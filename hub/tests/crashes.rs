//! A hub that dies at any call to the store that an operation of its own makes, before the call and after it; then another
//! hub is asked for the same. Nothing is made twice, nothing is left that nobody finds, and names lead to what lives.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests; the places are for people")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cas::Store;
use cas::names::{self, NameKind};
use cas::objects::{Fault, FaultStore, MemoryStore, Objects};
use cas::record::{RecordKind, State};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hub::Settings;
use proto::hub as api;
use proto::hub::hub_client::HubClient;
use support::{FakeNode, PATIENCE, TIMINGS, TestHub, eventually, open};
use tokio::net::TcpListener;
use tonic::transport::Channel;
use types::{PoolId, ResourceName, VolumeId};

type Client = HubClient<Channel>;
type Operation = fn(Client, String) -> BoxFuture<'static, Result<(), tonic::Status>>;
type Check = fn(Store) -> BoxFuture<'static, ()>;

/// A node that lives, and a hub with faults before its store.
struct World {
    disk: Arc<dyn Objects>,
    faults: FaultStore,
    store: Store,
    node: FakeNode,
    hub: TestHub,
    volume: String,
}

fn settings() -> Settings {
    Settings { timings: TIMINGS, ..Settings::default() }
}

async fn client(hub: &TestHub) -> Client {
    proto::client::hub(proto::client::channel(&hub.address.to_string()).unwrap())
}

async fn hear(hub: &TestHub) {
    let name = "a".parse().unwrap();
    eventually("the hub hears the node", async || hub.hub.nodes.live_by_name(&name).is_some()).await;
}

impl World {
    async fn new() -> Self {
        let disk: Arc<dyn Objects> = Arc::new(MemoryStore::new());
        let faults = FaultStore::new(Arc::clone(&disk));
        let objects: Arc<dyn Objects> = Arc::new(faults.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hub = TestHub::start_as(&objects, listener, settings()).await;
        let store = open(&disk).await;
        let node = FakeNode::start(&open(&disk).await, "a", PoolId::random(), hub.address).await;
        hear(&hub).await;
        let request = api::CreateVolumeRequest { request_id: "make".to_owned(), ..Default::default() };
        let made = client(&hub).await.create_volume(request).await.unwrap().into_inner();
        Self { disk, faults, store, node, hub, volume: made.volume_id }
    }

    /// Another hub, which remembers nothing and has no faults.
    async fn replace(&mut self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.hub = TestHub::start_as(&self.disk, listener, settings()).await;
        self.node.dial(self.hub.address);
        hear(&self.hub).await;
    }
}

/// Dies at each call for a record or a name: the others are the hub's own, and come when they come.
async fn enumerate(what: &str, prepare: Operation, operation: Operation, check: Check) {
    let mut died = 0;
    for place in 0_u64.. {
        let mut world = World::new().await;
        prepare(client(&world.hub).await, world.volume.clone()).await.unwrap();
        let fault = if place % 2 == 0 { Fault::DieBefore } else { Fault::DieAfter };
        let calls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&calls);
        world.faults.plan(move |call| {
            if !call.key.starts_with("vol/") && !call.key.starts_with("name/") {
                return Fault::None;
            }
            let before = counted.fetch_add(1, Ordering::Relaxed);
            if before == place / 2 { fault } else { Fault::None }
        });
        let asked = operation(client(&world.hub).await, world.volume.clone());
        let answer = tokio::time::timeout(PATIENCE, world.faults.until_death(asked)).await.unwrap();
        if let Some(answer) = answer {
            answer.unwrap();
            check(world.store.clone()).await;
            let calls = calls.load(Ordering::Relaxed);
            println!(
                "{what}: died {died} times, before and after a call; the life that ended well made {calls}"
            );
            break;
        }
        died += 1;
        world.replace().await;
        let asked = operation(client(&world.hub).await, world.volume.clone());
        let answer = tokio::time::timeout(PATIENCE, asked).await.unwrap();
        answer.unwrap_or_else(|status| panic!("{what}: {fault:?} at call {}: {status}", place / 2));
        check(world.store.clone()).await;
    }
    assert!(died >= 4, "{what}: {died}");
}

fn name() -> ResourceName {
    "app".parse().unwrap()
}

async fn led_to(store: &Store, kind: NameKind) -> Option<VolumeId> {
    names::resolve(store, kind, &name()).await.unwrap()
}

async fn living(store: &Store, kind: RecordKind) -> Vec<VolumeId> {
    let all = cas::record::list(store).await.unwrap();
    let of_kind = all.into_iter().map(|stored| stored.value);
    of_kind
        .filter(|record| record.kind == kind && record.state == State::Live)
        .map(|record| record.id)
        .collect()
}

fn nothing(_: Client, _: String) -> BoxFuture<'static, Result<(), tonic::Status>> {
    async { Ok(()) }.boxed()
}

fn publish_bundle(mut hub: Client, volume_id: String) -> BoxFuture<'static, Result<(), tonic::Status>> {
    let request = api::PublishBundleRequest { volume_id, name: name().to_string(), ..Default::default() };
    async move { hub.publish_bundle(request).await.map(drop) }.boxed()
}

fn publish_template(mut hub: Client, volume_id: String) -> BoxFuture<'static, Result<(), tonic::Status>> {
    let request = api::PublishTemplateRequest { volume_id, name: name().to_string(), ..Default::default() };
    async move { hub.publish_template(request).await.map(drop) }.boxed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_is_published_once_and_deleted_whole_wherever_the_hub_dies() {
    enumerate("a bundle is published", nothing, publish_bundle, |store| {
        async move {
            let bundles = living(&store, RecordKind::Bundle).await;
            assert_eq!(bundles, [led_to(&store, NameKind::Bundle).await.unwrap()]);
        }
        .boxed()
    })
    .await;
    enumerate(
        "a bundle is deleted",
        publish_bundle,
        |mut hub, _| {
            let request = api::DeleteBundleRequest { bundle: name().to_string() };
            async move { hub.delete_bundle(request).await.map(drop) }.boxed()
        },
        |store| {
            async move {
                assert!(living(&store, RecordKind::Bundle).await.is_empty(), "nobody would find it any more");
                assert_eq!(led_to(&store, NameKind::Bundle).await, None);
            }
            .boxed()
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_is_published_once_and_deleted_whole_wherever_the_hub_dies() {
    enumerate("a template is published", nothing, publish_template, |store| {
        async move {
            let templates = living(&store, RecordKind::Template).await;
            assert_eq!(templates, [led_to(&store, NameKind::Template).await.unwrap()]);
        }
        .boxed()
    })
    .await;
    enumerate(
        "a template is deleted",
        publish_template,
        |mut hub, _| {
            let request = api::DeleteTemplateRequest { name: name().to_string() };
            async move { hub.delete_template(request).await.map(drop) }.boxed()
        },
        |store| {
            async move {
                assert!(
                    living(&store, RecordKind::Template).await.is_empty(),
                    "nobody would find it any more"
                );
                assert_eq!(led_to(&store, NameKind::Template).await, None);
            }
            .boxed()
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_with_a_unique_name_is_made_once_and_deleted_wherever_the_hub_dies() {
    fn make(mut hub: Client, _: String) -> BoxFuture<'static, Result<(), tonic::Status>> {
        let unique_name = "pvc-1".to_owned();
        let request = api::CreateVolumeRequest { unique_name, ..Default::default() };
        async move { hub.create_volume(request).await.map(drop) }.boxed()
    }
    enumerate("a unique name is made", nothing, make, |store| {
        async move { assert_eq!(living(&store, RecordKind::Volume).await.len(), 2, "the first, and this one") }
            .boxed()
    })
    .await;
    enumerate(
        "a volume is deleted",
        nothing,
        |mut hub, volume_id| {
            async move {
                hub.delete_volume(api::DeleteVolumeRequest { volume_id, ..Default::default() })
                    .await
                    .map(drop)
            }
            .boxed()
        },
        |store| async move { assert!(living(&store, RecordKind::Volume).await.is_empty()) }.boxed(),
    )
    .await;
}
