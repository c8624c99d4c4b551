//! A node without a pool: its session, records and packs are real, by the rules of `cas`; its volumes are all the same
//! empty tree. For what is about many volumes and no bytes: it makes some thousand of them a second.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use cas::entry::data_head;
use cas::lifecycle::{self, Authority};
use cas::record::{NewRecord, Quota, RecordKind};
use cas::{Heads, Operation, Record, Session, Store, VersionRef};
use proto::convert::{attributes, optional, required};
use proto::hub::{AttachRequest, Heartbeat, Hello, Inventory, attach_request};
use proto::node::node_server::{Node, NodeServer};
use proto::node::*;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use types::{Domain, NodeName, PoolId, VersionId, VolumeId};

/// Small against the hub's patience.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// How many volumes one message tells of: it has a size.
const VOLUMES_PER_MESSAGE: usize = 2_000;

/// A running node. It ends when dropped.
#[derive(Debug)]
pub struct FakeNode {
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    session: Session,
    name: NodeName,
    address: SocketAddr,
    /// Open for as long as the node runs, so that all volumes may refer to one pack.
    operation: Operation,
    heads: Heads,
    changes: Mutex<Changes>,
}

/// What the hub was not told yet.
#[derive(Debug, Default)]
struct Changes {
    count: u32,
    made: Vec<Volume>,
    removed: Vec<String>,
}

impl FakeNode {
    /// Starts one and waits until it serves. It dials the hub at `hub` (host:port) and again whenever that goes away.
    ///
    /// # Errors
    /// The store refuses its session, or no port is free.
    pub async fn start(store: &Store, name: &str, hub: &str) -> Result<Self> {
        let name: NodeName = name.parse()?;
        let session = Session::join_next(store, PoolId::random(), 0, &name, "bench").await?;
        let operation = session.begin()?;
        let pack = session.next_pack(&Domain::default_domain()).await?;
        session.put_pack(&pack, bytes::Bytes::from_static(b"tree")).await?;
        let manifest = format!("{pack}:0+4/4").parse().context("a location")?;
        let heads = data_head(VersionRef { version: VersionId([7; 32]), manifest });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let inner = Arc::new(Inner {
            store: store.clone(),
            address: listener.local_addr()?,
            session,
            name,
            operation,
            heads,
            changes: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        let server = tonic::transport::Server::builder()
            .add_service(NodeServer::from_arc(Arc::clone(&inner)))
            .serve_with_incoming(proto::server::incoming(listener));
        tasks.spawn(async move { drop(server.await) });
        let beating = inner.session.clone();
        tasks.spawn(async move {
            loop {
                drop(beating.beat().await);
                tokio::time::sleep(HEARTBEAT * 2).await;
            }
        });
        let hub = hub.to_owned();
        tasks.spawn(async move {
            loop {
                drop(attach(&inner, &hub).await);
                tokio::time::sleep(HEARTBEAT).await;
            }
        });
        Ok(Self { _tasks: tasks })
    }
}

async fn attach(node: &Inner, hub: &str) -> Result<()> {
    let (say, said) = mpsc::channel(8);
    let message = |message| AttachRequest { message: Some(message) };
    let hello = Hello {
        node: node.name.to_string(),
        session: node.session.id().to_string(),
        address: node.address.to_string(),
        zone: String::new(),
        store_id: node.store.id().to_string(),
        version: "fake".to_owned(),
    };
    say.send(message(attach_request::Message::Hello(hello))).await?;
    let mut answers = proto::client::hub(proto::client::channel(hub)?)
        .attach(ReceiverStream::new(said))
        .await?
        .into_inner();
    let mut tick = tokio::time::interval(HEARTBEAT);
    loop {
        tokio::select! {
            answer = answers.message() => if answer?.is_none() { return Ok(()) },
            _ = tick.tick() => {
                let (count, made, removed) = {
                    let mut changes = node.changes.lock().expect("no holder panics");
                    (changes.count, std::mem::take(&mut changes.made), std::mem::take(&mut changes.removed))
                };
                for some in made.chunks(VOLUMES_PER_MESSAGE) {
                    let inventory = Inventory { volumes: some.to_vec(), ..Inventory::default() };
                    say.send(message(attach_request::Message::Inventory(inventory))).await?;
                }
                if !removed.is_empty() {
                    let inventory = Inventory { removed, ..Inventory::default() };
                    say.send(message(attach_request::Message::Inventory(inventory))).await?;
                }
                let capacity = Capacity {
                    total_bytes: 1 << 50, available_bytes: 1 << 49, used_bytes: 1 << 49, volumes: count, ..Capacity::default()
                };
                let heartbeat = Heartbeat { capacity: Some(capacity), ..Heartbeat::default() };
                say.send(message(attach_request::Message::Heartbeat(heartbeat))).await?;
            }
        }
    }
}

fn status(error: cas::Error) -> Status {
    proto::status::status(&error)
}

fn not_played<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("a fake node makes, describes and deletes volumes"))
}

impl Inner {
    fn describe(&self, record: &Record) -> Volume {
        let id = &record.id;
        Volume {
            volume_id: id.to_string(),
            epoch: record.epoch.0,
            version: record
                .head_entry()
                .and_then(cas::Entry::version)
                .map_or_else(String::new, |v| v.to_string()),
            quota_bytes: record.quota.limit_bytes.unwrap_or(0),
            health: Health::Healthy.into(),
            owned: record.owner == Some(self.session.id()),
            path: format!("/pool/volumes/{id}/data"),
            ..Volume::default()
        }
    }
}

#[tonic::async_trait]
impl Node for Inner {
    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Result<Response<Volume>, Status> {
        let asked = request.into_inner();
        let id: VolumeId = required("volume_id", &asked.volume_id)?;
        let new = NewRecord {
            id: id.clone(),
            kind: RecordKind::Volume,
            domain: optional("domain", &asked.domain)?.unwrap_or_else(Domain::default_domain),
            owner: self.session.id(),
            node: self.name.clone(),
            origin: None,
            request: required("request_id", &asked.request_id)?,
            quota: Quota { limit_bytes: asked.quota_bytes.filter(|bytes| *bytes > 0), charge_bytes: 0 },
            attributes: asked.attributes.into_iter().collect(),
        };
        let begun = lifecycle::begin_create(&self.store, new).await.map_err(status)?.into_inner();
        let confirmed = lifecycle::confirm_begun(&self.operation, begun).await.map_err(status)?;
        let heads = Some(self.heads.clone());
        let made = lifecycle::finish_begun(&self.operation, confirmed, heads, "created").await;
        let volume = self.describe(&made.map_err(status)?.into_inner().value);
        let mut changes = self.changes.lock().expect("no holder panics");
        changes.count += 1;
        changes.made.push(volume.clone());
        Ok(Response::new(volume))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let message = request.into_inner();
        let id: VolumeId = required("volume_id", &message.volume_id)?;
        let expected = attributes(message.expected);
        let authority = Authority::Owner(self.session.id());
        lifecycle::delete_where(&self.store, &id, None, authority, &expected).await.map_err(status)?;
        let mut changes = self.changes.lock().expect("no holder panics");
        changes.count = changes.count.saturating_sub(1);
        changes.removed.push(id.to_string());
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn get_volume(&self, request: Request<GetVolumeRequest>) -> Result<Response<Volume>, Status> {
        let id: VolumeId = required("volume_id", &request.into_inner().volume_id)?;
        let record = cas::record::get(&self.store, &id).await.map_err(status)?.value;
        Ok(Response::new(self.describe(&record)))
    }

    async fn acquire_volume(&self, _: Request<AcquireVolumeRequest>) -> Result<Response<Volume>, Status> {
        not_played()
    }

    async fn release_volume(
        &self,
        _: Request<ReleaseVolumeRequest>,
    ) -> Result<Response<ReleaseVolumeResponse>, Status> {
        not_played()
    }

    async fn sync_volume(
        &self,
        _: Request<SyncVolumeRequest>,
    ) -> Result<Response<SyncVolumeResponse>, Status> {
        not_played()
    }

    async fn restore_volume(
        &self,
        _: Request<RestoreVolumeRequest>,
    ) -> Result<Response<RestoreVolumeResponse>, Status> {
        not_played()
    }

    async fn prefetch_volume(
        &self,
        _: Request<PrefetchVolumeRequest>,
    ) -> Result<Response<PrefetchVolumeResponse>, Status> {
        not_played()
    }

    async fn ensure_template(
        &self,
        _: Request<EnsureTemplateRequest>,
    ) -> Result<Response<EnsureTemplateResponse>, Status> {
        not_played()
    }

    async fn seal_version(
        &self,
        _: Request<SealVersionRequest>,
    ) -> Result<Response<SealVersionResponse>, Status> {
        not_played()
    }

    async fn list_volumes(
        &self,
        _: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        not_played()
    }

    async fn set_quota(&self, _: Request<SetQuotaRequest>) -> Result<Response<Volume>, Status> {
        not_played()
    }

    async fn repair_volume(
        &self,
        _: Request<RepairVolumeRequest>,
    ) -> Result<Response<RepairVolumeResponse>, Status> {
        not_played()
    }

    async fn get_node(&self, _: Request<GetNodeRequest>) -> Result<Response<NodeStatus>, Status> {
        not_played()
    }
}
