//! The node over gRPC: what a client and the hub see.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{TestPool, has_btrfs, store};
use csi::error::Error;
use csi::node::Node;
use proto::node::node_client::NodeClient;
use proto::node::{
    CreateVolumeRequest, DeleteVolumeRequest, EntryRole, GetNodeRequest, GetVolumeRequest,
    ListVolumesRequest, Origin, RestoreVolumeRequest, SetQuotaRequest, SyncVolumeRequest,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;

struct Served {
    client: NodeClient<Channel>,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<Result<(), Error>>,
}

async fn serve(node: Arc<Node>) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let stop = CancellationToken::new();
    let server = tokio::spawn(csi::server::serve(node, listener, stop.clone()));
    let client = proto::client::node(proto::client::channel(&address).unwrap());
    Served { client, stop, server }
}

impl Served {
    async fn stop(self) {
        let started = std::time::Instant::now();
        self.stop.cancel();
        self.server.await.unwrap().unwrap();
        assert!(started.elapsed() < Duration::from_secs(10), "a stop ends within ten seconds");
    }
}

fn create(id: &str) -> CreateVolumeRequest {
    CreateVolumeRequest { volume_id: id.to_owned(), request_id: format!("make-{id}"), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_makes_syncs_restores_and_deletes_a_volume() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let mut served = serve(pool.start(&store).await).await;
    let client = &mut served.client;
    let volume = client.create_volume(create("vol-1")).await.unwrap().into_inner();
    assert_eq!((volume.quota_bytes, volume.owned, volume.dirty), (5 << 30, true, false), "the default limit");
    std::fs::write(format!("{}/file", volume.path), "x").unwrap();
    let dirty =
        client.get_volume(GetVolumeRequest { volume_id: "vol-1".to_owned() }).await.unwrap().into_inner();
    assert!(dirty.dirty, "a write shows at once");
    let sync = SyncVolumeRequest {
        volume_id: "vol-1".to_owned(),
        label: "first".to_owned(),
        role: EntryRole::Manual.into(),
    };
    let synced = client.sync_volume(sync).await.unwrap().into_inner();
    assert!(synced.changed && !synced.full_scan && synced.files_changed == 1, "{synced:?}");
    let clean =
        client.get_volume(GetVolumeRequest { volume_id: "vol-1".to_owned() }).await.unwrap().into_inner();
    assert_eq!((clean.version.as_str(), clean.dirty), (synced.version.as_str(), false));
    let origin = Origin { volume_id: "vol-1".to_owned(), version: synced.version.clone() };
    let fork = client
        .create_volume(CreateVolumeRequest {
            origin: Some(origin.clone()),
            quota_bytes: Some(0),
            ..create("vol-2")
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!((fork.version, fork.origin, fork.quota_bytes), (synced.version.clone(), Some(origin), 0));
    let limited = client
        .set_quota(SetQuotaRequest {
            volume_id: "vol-2".to_owned(),
            quota_bytes: 1 << 20,
            if_quota_bytes: None,
        })
        .await;
    assert_eq!(limited.unwrap().into_inner().quota_bytes, 1 << 20);
    let restored = client
        .restore_volume(RestoreVolumeRequest {
            volume_id: "vol-1".to_owned(),
            entry_id: synced.entry_id.clone(),
            version: String::new(),
            if_head: synced.entry_id,
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(restored.version, synced.version);
    let listed = client.list_volumes(ListVolumesRequest {}).await.unwrap().into_inner().volumes;
    assert_eq!(listed.iter().map(|v| v.volume_id.as_str()).collect::<Vec<_>>(), ["vol-1", "vol-2"]);
    for _ in 0..2 {
        client
            .delete_volume(DeleteVolumeRequest { volume_id: "vol-1".to_owned(), ..Default::default() })
            .await
            .unwrap();
    }
    let node = client.get_node(GetNodeRequest {}).await.unwrap().into_inner();
    let wrong: Vec<_> = node.checks.iter().filter(|check| !check.ok).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    let capacity = node.capacity.unwrap();
    assert!(capacity.available_bytes > 1 << 30 && capacity.volumes == 1, "{capacity:?}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_ids_are_refused_before_anything_is_touched() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let mut served = serve(pool.start(&store).await).await;
    let client = &mut served.client;
    let before = common::names(pool.mount());
    let long = "a".repeat(4096);
    for hostile in ["", "..", "../../x", "/etc", "a/b", "a\0b", "A", "-a", "é", long.as_str()] {
        let request = CreateVolumeRequest { volume_id: hostile.to_owned(), ..create("x") };
        assert_eq!(
            client.create_volume(request).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{hostile:?}"
        );
        let request = DeleteVolumeRequest { volume_id: hostile.to_owned(), ..Default::default() };
        assert_eq!(
            client.delete_volume(request).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{hostile:?}"
        );
        let request = SyncVolumeRequest { volume_id: hostile.to_owned(), ..Default::default() };
        let status = client.sync_volume(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("volume_id"), "{status}");
    }
    let unknown = GetVolumeRequest { volume_id: "vol-unknown".to_owned() };
    assert_eq!(client.get_volume(unknown).await.unwrap_err().code(), Code::NotFound);
    let origin = Origin { volume_id: "vol-unknown".to_owned(), version: "0".repeat(64) };
    let request = CreateVolumeRequest { origin: Some(origin), ..create("vol-1") };
    assert_eq!(client.create_volume(request).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(common::names(pool.mount()), before);
    assert!(common::names(pool.mount().join("volumes")).is_empty());
    assert!(cas::record::list(&store).await.unwrap().is_empty(), "nothing half-made in the store");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_said_before_the_pool_is_touched() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pool = TestPool::new("node-a");
    let mut config = pool.config();
    config.listen = taken.local_addr().unwrap().to_string();
    let error = Box::pin(csi::server::run(config, CancellationToken::new())).await.unwrap_err();
    assert!(matches!(error, Error::Listen { .. }), "{error}");
    assert!(error.to_string().contains("--listen"), "{error}");
    assert!(common::names(pool.dir.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_cannot_be_reached_or_is_none_is_said() {
    if !has_btrfs() {
        return;
    }
    let pool = TestPool::new("node-a");
    for store in ["nonsense://x", "dir:///proc/nothing/here"] {
        let config = csi::config::NodeConfig { store: store.to_owned(), ..pool.config() };
        let error = Box::pin(csi::server::run(config, CancellationToken::new())).await.unwrap_err();
        assert!(matches!(error, Error::StoreUnusable { .. }), "{error}");
        assert!(error.to_string().contains("--store"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_become_durable_by_themselves() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start_with(&store, &["--sync-interval", "200ms", "--beat", "100ms"]).await;
    let mut served = serve(Arc::clone(&node)).await;
    let volume = served.client.create_volume(create("vol-1")).await.unwrap().into_inner();
    std::fs::write(format!("{}/file", volume.path), "x").unwrap();
    let mut synced = false;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = served.client.get_volume(GetVolumeRequest { volume_id: "vol-1".to_owned() }).await;
        let now = now.unwrap().into_inner();
        synced = now.version != volume.version && !now.dirty;
        if synced {
            break;
        }
    }
    assert!(synced);
    // Fenced by somebody: the node notices with its next beat and takes the volume again.
    let session = node.session_id().unwrap();
    cas::session::fence(&store, &session).await.unwrap();
    let mut owned = false;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = served.client.get_volume(GetVolumeRequest { volume_id: "vol-1".to_owned() }).await;
        owned = now.unwrap().into_inner().owned && node.session_id() != Some(session);
        if owned {
            break;
        }
    }
    assert!(owned);
    drop(node);
    served.stop().await;
}
