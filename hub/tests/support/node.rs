//! A node whose trees are texts. It is stricter than a real one: it refuses what a correct hub never asks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cas::entry::data_head;
use cas::lifecycle::{self, Authority, Publication, Target};
use cas::record::{NewRecord, Origin, Quota, Record, State};
use cas::session::{Operation, Resumed};
use cas::{Claim, Heads, Known, RecordKind, Role, Session, Store, VersionRef};
use proto::convert::{attributes, optional, required};
use proto::hub::{AttachRequest, Heartbeat, Hello, Inventory, attach_request, attach_response};
use proto::node::node_server::{Node, NodeServer};
use proto::node::*;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use types::{Domain, NodeName, PoolId, VersionId, VolumeId};

use super::TIMINGS;

/// What lies on this node's disk, and what happens to its calls.
#[derive(Default)]
pub struct Disk {
    /// Live volumes and copies.
    pub copies: HashMap<VolumeId, Copy>,
    /// How often each call came.
    pub calls: BTreeMap<&'static str, u32>,
    /// Calls that fail, so often.
    pub failures: BTreeMap<&'static str, (u32, Status)>,
    /// Calls that take this long.
    pub delays: BTreeMap<&'static str, Duration>,
    /// Calls that do their work and then lose the answer, so often.
    pub lost_answers: BTreeMap<&'static str, u32>,
    /// What it says of its CPU and memory.
    pub compute: Option<Compute>,
}

/// A volume on disk.
#[derive(Clone)]
pub struct Copy {
    /// What the session holds; nothing for a mere copy.
    pub claim: Option<Claim>,
    pub known: BTreeSet<VersionId>,
    pub live: String,
    pub head: Option<VersionId>,
    pub quota: Option<u64>,
    pub mounted: bool,
}

struct Inner {
    store: Store,
    session: Session,
    name: NodeName,
    address: SocketAddr,
    disk: Arc<Mutex<Disk>>,
    alive: CancellationToken,
}

/// A running node. `kill` ends everything but its disk.
pub struct FakeNode {
    pub name: NodeName,
    pub session: Session,
    pub disk: Arc<Mutex<Disk>>,
    pub address: SocketAddr,
    store: Store,
    hub: watch::Sender<SocketAddr>,
    alive: CancellationToken,
    attached: CancellationToken,
    /// Becomes true when the hub says that the session is fenced.
    pub told_fenced: watch::Receiver<bool>,
}

impl FakeNode {
    pub async fn start(store: &Store, name: &str, pool: PoolId, hub: SocketAddr) -> Self {
        let name: NodeName = name.parse().unwrap();
        let session = Session::join_next(store, pool, 0, &name, "host").await.unwrap();
        Self::run(store, session, Arc::default(), hub).await
    }

    /// Starts the daemon again on the same disk, with the same session if it still lives.
    pub async fn restart(&mut self) {
        self.kill();
        let nonce = Some(self.session.nonce());
        let session = match Session::resume(&self.store, self.session.id(), nonce).await.unwrap() {
            Resumed::Live(session) => session,
            Resumed::Fenced | Resumed::Stolen | Resumed::Gone => {
                Session::join_next(&self.store, self.session.id().pool, 0, &self.name, "host").await.unwrap()
            }
        };
        let hub = *self.hub.borrow();
        *self = Self::run(&self.store, session, Arc::clone(&self.disk), hub).await;
    }

    async fn run(store: &Store, session: Session, disk: Arc<Mutex<Disk>>, hub: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let name = session.node().clone();
        let alive = CancellationToken::new();
        let inner = Arc::new(Inner {
            alive: alive.clone(),
            store: store.clone(),
            session: session.clone(),
            name: name.clone(),
            address,
            disk: Arc::clone(&disk),
        });
        let attached = alive.child_token();
        let serving = tonic::transport::Server::builder()
            .add_service(NodeServer::from_arc(Arc::clone(&inner)))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(alive.clone().run_until_cancelled_owned(serving));
        let beating = session.clone();
        tokio::spawn(alive.clone().run_until_cancelled_owned(async move {
            loop {
                drop(beating.beat().await);
                tokio::time::sleep(TIMINGS.heartbeat * 2).await;
            }
        }));
        let (hub, mut hub_moves) = watch::channel(hub);
        let (tell_fenced, told_fenced) = watch::channel(false);
        tokio::spawn(attached.clone().run_until_cancelled_owned(async move {
            loop {
                let hub = *hub_moves.borrow_and_update();
                tokio::select! {
                    fenced = attach(&inner, hub) => { tell_fenced.send_if_modified(|told| !std::mem::replace(told, *told || fenced) && fenced); }
                    _ = hub_moves.changed() => {}
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }));
        let store = store.clone();
        Self { name, session, disk, address, store, hub, alive, attached, told_fenced }
    }

    /// As `kill -9` would: no more calls, heartbeats or beats.
    pub fn kill(&self) {
        self.alive.cancel();
    }

    /// Loses the hub, and nothing else.
    pub fn cut_from_hub(&self) {
        self.attached.cancel();
    }

    pub fn dial(&self, hub: SocketAddr) {
        self.hub.send_replace(hub);
    }

    pub fn write(&self, volume: &VolumeId, text: &str) {
        self.disk.lock().unwrap().copies.get_mut(volume).unwrap().live = text.to_owned();
    }

    pub fn live(&self, volume: &VolumeId) -> Option<String> {
        let disk = self.disk.lock().unwrap();
        disk.copies.get(volume).filter(|copy| copy.claim.is_some()).map(|copy| copy.live.clone())
    }

    pub fn calls(&self, call: &str) -> u32 {
        self.disk.lock().unwrap().calls.get(call).copied().unwrap_or(0)
    }

    pub fn fail(&self, call: &'static str, times: u32, status: Status) {
        self.disk.lock().unwrap().failures.insert(call, (times, status));
    }

    pub fn delay(&self, call: &'static str, by: Duration) {
        self.disk.lock().unwrap().delays.insert(call, by);
    }

    pub fn lose_answer(&self, call: &'static str) {
        self.disk.lock().unwrap().lost_answers.insert(call, 1);
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.alive.cancel();
    }
}

/// One stream with the hub. True if the hub says that the session is fenced.
async fn attach(inner: &Inner, hub: SocketAddr) -> bool {
    let (say, said) = mpsc::channel(8);
    let message = |message| AttachRequest { message: Some(message) };
    let hello = Hello {
        node: inner.name.to_string(),
        session: inner.session.id().to_string(),
        address: inner.address.to_string(),
        zone: String::new(),
        store_id: inner.store.id().to_string(),
        version: "fake".into(),
    };
    say.send(message(attach_request::Message::Hello(hello))).await.unwrap();
    let channel = proto::client::channel(&hub.to_string()).unwrap();
    let Ok(answer) = proto::client::hub(channel).attach(ReceiverStream::new(said)).await else {
        return false;
    };
    let mut answers = answer.into_inner();
    let mut tick = tokio::time::interval(TIMINGS.heartbeat);
    loop {
        tokio::select! {
            answer = answers.message() => match answer {
                Ok(Some(answer)) => match answer.message {
                    Some(attach_response::Message::Welcome(welcome)) => {
                        assert_eq!(u128::from(welcome.heartbeat_millis), TIMINGS.heartbeat.as_millis());
                    }
                    Some(attach_response::Message::Fenced(_)) => return true,
                    None => panic!("the hub says nothing"),
                },
                Ok(None) | Err(_) => return false,
            },
            _ = tick.tick() => {
                let (copies, compute) = {
                    let disk = inner.disk.lock().unwrap();
                    (disk.copies.clone(), disk.compute)
                };
                let count = u32::try_from(copies.len()).unwrap();
                let volumes = copies.iter().map(|(id, copy)| describe(id, copy)).collect();
                let inventory = Inventory { volumes, complete: true, ..Inventory::default() };
                let capacity =
                    Capacity { total_bytes: 100 << 30, available_bytes: 90 << 30, used_bytes: 10 << 30, volumes: count, compute };
                let heartbeat = Heartbeat { capacity: Some(capacity), checks: Vec::new() };
                for said in [attach_request::Message::Inventory(inventory), attach_request::Message::Heartbeat(heartbeat)] {
                    if say.send(message(said)).await.is_err() {
                        return false;
                    }
                }
            }
        }
    }
}

fn describe(id: &VolumeId, copy: &Copy) -> Volume {
    Volume {
        volume_id: id.to_string(),
        epoch: copy.claim.as_ref().map_or(0, |claim| claim.epoch.0),
        version: copy.head.map_or_else(String::new, |head| head.to_string()),
        dirty: copy.claim.is_some() && copy.head != Some(super::version(&copy.live)),
        quota_bytes: copy.quota.unwrap_or(0),
        used_bytes: copy.live.len() as u64,
        health: Health::Healthy.into(),
        mounted: copy.mounted,
        owned: copy.claim.is_some(),
        path: format!("/pool/volumes/{id}/data"),
        ..Volume::default()
    }
}

/// A correct hub always says what its order was decided on.
fn is_as_decided<T: PartialEq + std::fmt::Display>(what: &str, decided: T, found: T) -> Result<(), Status> {
    if decided == found {
        return Ok(());
    }
    Err(Status::aborted(format!("decided on the {what} {decided}, which is {found}")))
}

fn status(error: cas::Error) -> Status {
    proto::status::status(&error)
}

impl Inner {
    async fn called(&self, call: &'static str) -> Result<(), Status> {
        let (failure, delay) = {
            let mut disk = self.disk.lock().unwrap();
            *disk.calls.entry(call).or_default() += 1;
            let failure =
                disk.failures.get_mut(call).filter(|(times, _)| *times > 0).map(|(times, status)| {
                    *times -= 1;
                    status.clone()
                });
            (failure, disk.delays.get(call).copied())
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        // Connections outlive the listener; a killed node answers on none of them.
        if self.alive.is_cancelled() {
            return Err(Status::unavailable("the node was killed"));
        }
        failure.map_or(Ok(()), Err)
    }

    /// Answers, unless this call's answer is to be lost.
    fn answer<T>(&self, call: &'static str, answer: T) -> Result<Response<T>, Status> {
        let lost = self
            .disk
            .lock()
            .unwrap()
            .lost_answers
            .get_mut(call)
            .filter(|times| **times > 0)
            .map(|times| *times -= 1);
        match lost {
            Some(()) => Err(Status::unavailable("the connection broke")),
            None => Ok(Response::new(answer)),
        }
    }

    fn copy(&self, id: &VolumeId) -> Result<Copy, Status> {
        let disk = self.disk.lock().unwrap();
        disk.copies.get(id).cloned().ok_or_else(|| Status::not_found(format!("{id} is not here")))
    }

    fn owned(&self, id: &VolumeId) -> Result<(Copy, Claim), Status> {
        let copy = self.copy(id)?;
        let claim = copy
            .claim
            .clone()
            .ok_or_else(|| Status::failed_precondition(format!("{id} is not owned here")))?;
        Ok((copy, claim))
    }

    fn put(&self, id: &VolumeId, copy: Copy) {
        self.disk.lock().unwrap().copies.insert(id.clone(), copy);
    }

    async fn upload(&self, operation: &Operation, domain: &Domain, text: &str) -> Result<Heads, Status> {
        let pack = operation.session().next_pack(domain).await.map_err(status)?;
        let bytes = bytes::Bytes::copy_from_slice(text.as_bytes());
        operation.session().put_pack(&pack, bytes).await.map_err(status)?;
        let manifest = format!("{pack}:0+{len}/{len}", len = text.len()).parse().unwrap();
        Ok(data_head(VersionRef { version: super::version(text), manifest }))
    }

    /// Fetches the head from the store, as a restore does.
    async fn fetch(&self, record: &Record) -> Result<(String, Option<VersionId>), Status> {
        let Some(entry) = record.head_entry() else { return Ok((String::new(), None)) };
        let head = entry.heads.values().next().unwrap();
        let key = cas::keys::pack(&head.manifest.pack);
        let object = self.store.objects().get(&key).await.map_err(|error| status(error.into()))?;
        let text = String::from_utf8(object.bytes.to_vec()).unwrap();
        assert_eq!(super::version(&text), head.version, "a restore verifies what it fetched");
        Ok((text, Some(head.version)))
    }

    async fn publish(
        &self,
        id: &VolumeId,
        role: Role,
        label: String,
        release: bool,
    ) -> Result<(Record, cas::Entry, bool), Status> {
        let (mut copy, claim) = self.owned(id)?;
        let operation = self.session.begin().map_err(status)?;
        let record = cas::record::get(&self.store, id).await.map_err(status)?.value;
        let now = super::version(&copy.live);
        let heads = match record.find_version(&now) {
            Some(entry) => entry.heads.clone(),
            None => self.upload(&operation, &record.domain, &copy.live).await?,
        };
        copy.known.insert(now);
        let publication =
            Publication { heads, role, label, release, charge_bytes: Some(copy.live.len() as u64) };
        let known = Known::data(copy.known.iter().copied());
        let published = lifecycle::publish(&operation, &claim, &known, publication).await.map_err(status)?;
        let made = published.is_made();
        let published = published.into_inner();
        copy.head = Some(now);
        if release {
            copy.claim = None;
        }
        self.put(id, copy);
        let record = published.record.value;
        let entry = record.entry(&published.entry).unwrap().clone();
        Ok((record, entry, made))
    }
}

#[tonic::async_trait]
impl Node for Inner {
    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Result<Response<Volume>, Status> {
        self.called("create").await?;
        let asked = request.into_inner();
        let id: VolumeId = required("volume_id", &asked.volume_id)?;
        let operation = self.session.begin().map_err(status)?;
        let source = match &asked.origin {
            None => None,
            Some(origin) => {
                let volume: VolumeId = required("origin", &origin.volume_id)?;
                let version: VersionId = required("origin", &origin.version)?;
                let packs = BTreeSet::new();
                let entry = cas::references::confirm_version(&operation, &volume, &version, &packs).await;
                Some((volume, entry.map_err(status)?))
            }
        };
        let limit = asked.quota_bytes.expect("the hub always says how much");
        let new = NewRecord {
            id: id.clone(),
            kind: RecordKind::Volume,
            domain: optional("domain", &asked.domain)?.unwrap_or_else(Domain::default_domain),
            owner: self.session.id(),
            node: self.name.clone(),
            origin: source.as_ref().map(|(volume, entry)| Origin {
                volume: volume.clone(),
                entry: Some(entry.id),
                versions: cas::entry::tips(&entry.heads),
            }),
            request: required("request_id", &asked.request_id)?,
            quota: Quota { limit_bytes: (limit > 0).then_some(limit), charge_bytes: 0 },
            attributes: asked.attributes.into_iter().collect(),
        };
        let domain = new.domain.clone();
        let begun = lifecycle::begin_create(&self.store, new).await.map_err(status)?.into_inner().value;
        if begun.owner != Some(self.session.id()) {
            return Err(Status::aborted("another node makes it"));
        }
        if begun.state == State::Live {
            let copy = self.copy(&id)?;
            return Ok(Response::new(describe(&id, &copy)));
        }
        let heads = match &source {
            Some((_, entry)) => entry.heads.clone(),
            None => self.upload(&operation, &domain, "").await?,
        };
        let made = lifecycle::finish_create(&operation, &Claim::of(&begun), Some(heads), "created").await;
        let cas::Stored { value: record, etag, .. } = made.map_err(status)?.into_inner();
        let (live, head) = self.fetch(&record).await?;
        let copy = Copy {
            claim: Some(Claim::of(&record)),
            known: head.into_iter().collect(),
            live,
            head,
            quota: record.quota.limit_bytes,
            mounted: false,
        };
        self.put(&id, copy.clone());
        let bytes = cas::encode(&cas::keys::volume(&id), &record).map_err(status)?.to_vec();
        let written = StoredRecord { bytes, etag: etag.as_str().to_owned() };
        self.answer("create", Volume { record: Some(written), ..describe(&id, &copy) })
    }

    async fn acquire_volume(
        &self,
        request: Request<AcquireVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        self.called("acquire").await?;
        let asked = request.into_inner();
        let id: VolumeId = required("volume_id", &asked.volume_id)?;
        let record = cas::record::get(&self.store, &id).await.map_err(status)?.value;
        if record.owner != Some(self.session.id()) {
            is_as_decided("epoch", asked.if_epoch, record.epoch.0)?;
        }
        let (live, head) = self.fetch(&record).await?;
        let acquired =
            lifecycle::acquire(&self.session, &id, &record.head_tips(), false).await.map_err(status)?;
        let record = acquired.into_inner().record.value;
        let copy = Copy {
            claim: Some(Claim::of(&record)),
            known: head.into_iter().collect(),
            live,
            head,
            quota: record.quota.limit_bytes,
            mounted: false,
        };
        self.put(&id, copy.clone());
        self.answer("acquire", describe(&id, &copy))
    }

    async fn release_volume(
        &self,
        request: Request<ReleaseVolumeRequest>,
    ) -> Result<Response<ReleaseVolumeResponse>, Status> {
        self.called("release").await?;
        let asked = request.into_inner();
        let id: VolumeId = required("volume_id", &asked.volume_id)?;
        is_as_decided("epoch", asked.if_epoch, self.owned(&id)?.1.epoch.0)?;
        if self.owned(&id)?.0.mounted {
            return Err(Status::failed_precondition("it is mounted"));
        }
        let (record, entry, _) = self.publish(&id, Role::Sync, String::new(), true).await?;
        if !asked.keep_copy {
            self.disk.lock().unwrap().copies.remove(&id);
        }
        let version = entry.version().unwrap().to_string();
        self.answer("release", ReleaseVolumeResponse { version, epoch: record.epoch.0 })
    }

    async fn sync_volume(
        &self,
        request: Request<SyncVolumeRequest>,
    ) -> Result<Response<SyncVolumeResponse>, Status> {
        self.called("sync").await?;
        let asked = request.into_inner();
        let id: VolumeId = required("volume_id", &asked.volume_id)?;
        let role = match asked.role() {
            EntryRole::Manual => Role::Manual,
            EntryRole::Unspecified | EntryRole::Sync => Role::Sync,
            EntryRole::Event => Role::Event,
            EntryRole::Step => Role::Step,
        };
        let (record, entry, changed) = self.publish(&id, role, asked.label, false).await?;
        self.answer(
            "sync",
            SyncVolumeResponse {
                version: entry.version().unwrap().to_string(),
                entry_id: entry.id.to_string(),
                changed,
                epoch: record.epoch.0,
                ..SyncVolumeResponse::default()
            },
        )
    }

    async fn restore_volume(
        &self,
        request: Request<RestoreVolumeRequest>,
    ) -> Result<Response<RestoreVolumeResponse>, Status> {
        self.called("restore").await?;
        let asked = request.into_inner();
        let id: VolumeId = required("volume_id", &asked.volume_id)?;
        let record = cas::record::get(&self.store, &id).await.map_err(status)?.value;
        is_as_decided("head", asked.if_head, record.head.unwrap().to_string())?;
        self.publish(&id, Role::Sync, String::new(), false).await?;
        let (mut copy, claim) = self.owned(&id)?;
        let record = cas::record::get(&self.store, &id).await.map_err(status)?.value;
        let entry = match optional::<VersionId>("version", &asked.version)? {
            Some(version) => record.find_version(&version).unwrap().id,
            None => required("entry_id", &asked.entry_id)?,
        };
        let operation = self.session.begin().map_err(status)?;
        let known = Known::data(copy.known.iter().copied());
        let restored =
            lifecycle::restore_head(&operation, &claim, &known, Target::Entry(entry), "restored").await;
        let restored = restored.map_err(status)?;
        let (live, head) = self.fetch(&restored.record.value).await?;
        copy.known.extend(head);
        self.put(&id, Copy { live, head, ..copy });
        self.answer(
            "restore",
            RestoreVolumeResponse {
                version: head.unwrap().to_string(),
                entry_id: restored.entry.to_string(),
                branch: restored.branch.unwrap_or_default(),
                restart_to_see_it: false,
            },
        )
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        self.called("delete").await?;
        let message = request.into_inner();
        let id: VolumeId = required("volume_id", &message.volume_id)?;
        if message.copy_only {
            let record = cas::record::get(&self.store, &id).await.map_err(status)?.value;
            if matches!(record.state, State::Deleted | State::Purged) {
                self.disk.lock().unwrap().copies.remove(&id);
            }
            return self.answer("drop", DeleteVolumeResponse {});
        }
        let expected = attributes(message.expected);
        let authority =
            if self.owned(&id).is_ok() { Authority::Owner(self.session.id()) } else { Authority::Unowned };
        lifecycle::delete_where(&self.store, &id, None, authority, &expected).await.map_err(status)?;
        self.disk.lock().unwrap().copies.remove(&id);
        self.answer("delete", DeleteVolumeResponse {})
    }

    async fn prefetch_volume(
        &self,
        request: Request<PrefetchVolumeRequest>,
    ) -> Result<Response<PrefetchVolumeResponse>, Status> {
        self.called("prefetch").await?;
        let id: VolumeId = required("volume_id", &request.into_inner().volume_id)?;
        let record = cas::record::get(&self.store, &id).await.map_err(status)?.value;
        let (_, head) = self.fetch(&record).await?;
        self.answer("prefetch", PrefetchVolumeResponse { version: head.unwrap().to_string() })
    }

    async fn ensure_template(
        &self,
        _: Request<EnsureTemplateRequest>,
    ) -> Result<Response<EnsureTemplateResponse>, Status> {
        Err(Status::unimplemented("the hub does not ask for this"))
    }

    async fn seal_version(
        &self,
        request: Request<SealVersionRequest>,
    ) -> Result<Response<SealVersionResponse>, Status> {
        self.called("seal").await?;
        let asked = request.into_inner();
        let id: VolumeId = required("volume_id", &asked.volume_id)?;
        let version = match optional::<VersionId>("version", &asked.version)? {
            Some(version) => version,
            None => {
                let (_, entry, _) = self.publish(&id, Role::Sync, String::new(), false).await?;
                entry.version().unwrap()
            }
        };
        let operation = self.session.begin().map_err(status)?;
        let packs = BTreeSet::new();
        let entry = cas::references::confirm_version(&operation, &id, &version, &packs).await;
        let entry = entry.map_err(status)?;
        let source = cas::record::get(&self.store, &id).await.map_err(status)?.value;
        let sealed = lifecycle::NewSealed {
            id: required("sealed_id", &asked.sealed_id)?,
            kind: match asked.kind() {
                proto::node::RecordKind::Template => RecordKind::Template,
                proto::node::RecordKind::Bundle => RecordKind::Bundle,
                proto::node::RecordKind::Unspecified
                | proto::node::RecordKind::Volume
                | proto::node::RecordKind::Snapshot
                | proto::node::RecordKind::Orphan => RecordKind::Snapshot,
            },
            domain: source.domain.clone(),
            origin: Some(Origin {
                volume: id,
                entry: Some(entry.id),
                versions: cas::entry::tips(&entry.heads),
            }),
            heads: entry.heads,
            request: required("request_id", &asked.request_id)?,
            label: String::new(),
            quota: source.quota,
            attributes: asked.attributes.into_iter().collect(),
        };
        lifecycle::seal(&operation, sealed).await.map_err(status)?;
        let answer = SealVersionResponse { sealed_id: asked.sealed_id, version: version.to_string() };
        self.answer("seal", answer)
    }

    async fn get_volume(&self, request: Request<GetVolumeRequest>) -> Result<Response<Volume>, Status> {
        self.called("get").await?;
        let id: VolumeId = required("volume_id", &request.into_inner().volume_id)?;
        Ok(Response::new(describe(&id, &self.copy(&id)?)))
    }

    async fn list_volumes(
        &self,
        _: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        Err(Status::unimplemented("the hub does not ask for this"))
    }

    async fn set_quota(&self, _: Request<SetQuotaRequest>) -> Result<Response<Volume>, Status> {
        Err(Status::unimplemented("the hub does not ask for this"))
    }

    async fn repair_volume(
        &self,
        _: Request<RepairVolumeRequest>,
    ) -> Result<Response<RepairVolumeResponse>, Status> {
        Err(Status::unimplemented("the hub does not ask for this"))
    }

    async fn get_node(&self, _: Request<GetNodeRequest>) -> Result<Response<NodeStatus>, Status> {
        Err(Status::unimplemented("the hub does not ask for this"))
    }
}

/// Puts a template with this text into the store, as `sailctl template create` does, and names it.
pub async fn template(store: &Store, name: &str, text: &str) -> VolumeId {
    let node = "tool".parse().unwrap();
    let session = Session::join_next(store, PoolId::random(), 0, &node, "host").await.unwrap();
    let operation = session.begin().unwrap();
    let domain = Domain::default_domain();
    let pack = session.next_pack(&domain).await.unwrap();
    session.put_pack(&pack, bytes::Bytes::copy_from_slice(text.as_bytes())).await.unwrap();
    let manifest = format!("{pack}:0+{len}/{len}", len = text.len()).parse().unwrap();
    let request: types::RequestId = types::RequestId::random();
    let id = VolumeId::for_request("tpl", &request);
    let sealed = lifecycle::NewSealed {
        id: id.clone(),
        kind: RecordKind::Template,
        domain,
        heads: data_head(VersionRef { version: super::version(text), manifest }),
        origin: None,
        request,
        label: String::new(),
        quota: Quota::default(),
        attributes: BTreeMap::from([("name".to_owned(), name.to_owned())]),
    };
    lifecycle::seal(&operation, sealed).await.unwrap();
    let kind = cas::names::NameKind::Template;
    cas::names::point(store, kind, &name.parse().unwrap(), &id, cas::names::Expected::Any).await.unwrap();
    drop(operation);
    session.close().await.unwrap();
    id
}
