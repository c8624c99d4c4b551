//! The gRPC service `opensail.node.v1.Node`. Thin: it parses, calls, and answers.

use std::sync::Arc;

use cas::Role;
use cas::record::RecordKind;
use proto::convert::{InvalidField, attributes, duration, optional, required};
use proto::node::node_server;
use proto::node::{
    AcquireVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, DeleteVolumeResponse,
    EnsureTemplateRequest, EnsureTemplateResponse, EntryRole, GetNodeRequest, GetVolumeRequest,
    ListVolumesRequest, ListVolumesResponse, NodeStatus, PrefetchVolumeRequest, PrefetchVolumeResponse,
    RecordKind as WireKind, ReleaseVolumeRequest, ReleaseVolumeResponse, RepairVolumeRequest,
    RepairVolumeResponse, RestoreVolumeRequest, RestoreVolumeResponse, SealVersionRequest,
    SealVersionResponse, SetQuotaRequest, SyncVolumeRequest, SyncVolumeResponse, Volume,
};
use tonic::{Request, Response, Status};
use types::{Change, Domain, EntryId, Epoch, RequestId, VersionId, VolumeId};

use crate::basis::Basis;
use crate::create::CreateRequest;
use crate::files::{At, ColdVolume, LiveVolume, LiveVolumes};
use crate::local;
use crate::node::Node;
use crate::restore::Wanted;
use crate::seal::SealRequest;
use crate::sync::SyncRequest;

/// The service over a node.
#[derive(Debug, Clone)]
pub struct NodeService(Arc<Node>);

impl NodeService {
    /// Serves `node`.
    pub fn new(node: Arc<Node>) -> Self {
        Self(node)
    }

    /// The node.
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.0
    }
}

fn id(text: &str) -> Result<VolumeId, InvalidField> {
    required("volume_id", text)
}

fn epoch(number: u64) -> Option<Epoch> {
    (number > 0).then_some(Epoch(number))
}

#[tonic::async_trait]
impl node_server::Node for NodeService {
    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Result<Response<Volume>, Status> {
        let message = request.into_inner();
        let origin = match message.origin {
            Some(origin) => Some((
                required::<VolumeId>("origin.volume_id", &origin.volume_id)?,
                required::<VersionId>("origin.version", &origin.version)?,
            )),
            None => None,
        };
        let request = CreateRequest {
            id: id(&message.volume_id)?,
            request: required::<RequestId>("request_id", &message.request_id)?,
            origin,
            limit_bytes: match message.quota_bytes {
                None => Some(self.0.config().default_quota.0),
                Some(0) => None,
                Some(bytes) => Some(bytes),
            },
            domain: optional::<Domain>("domain", &message.domain)?,
            attributes: message.attributes.into_iter().collect(),
        };
        let created = Box::pin(self.0.create_told(request)).await?;
        Ok(Response::new(match (created.change, created.record) {
            (Change::Made(volume), Some(record)) => self.0.describe_born(&volume, &record)?,
            (Change::Made(volume) | Change::Already(volume), _) => self.0.describe(&volume).await?,
        }))
    }

    async fn acquire_volume(
        &self,
        request: Request<AcquireVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let message = request.into_inner();
        let basis = Basis { epoch: epoch(message.if_epoch), head: None };
        let volume = self.0.acquire_if(&id(&message.volume_id)?, message.force, basis).await?;
        Ok(Response::new(self.0.describe(&volume).await?))
    }

    async fn release_volume(
        &self,
        request: Request<ReleaseVolumeRequest>,
    ) -> Result<Response<ReleaseVolumeResponse>, Status> {
        let message = request.into_inner();
        let basis = Basis { epoch: epoch(message.if_epoch), head: None };
        let released = self.0.release_if(&id(&message.volume_id)?, message.keep_copy, basis).await?;
        Ok(Response::new(ReleaseVolumeResponse {
            version: released.version.to_string(),
            epoch: released.epoch.0,
        }))
    }

    async fn sync_volume(
        &self,
        request: Request<SyncVolumeRequest>,
    ) -> Result<Response<SyncVolumeResponse>, Status> {
        let message = request.into_inner();
        let role = match message.role() {
            EntryRole::Unspecified | EntryRole::Sync => Role::Sync,
            EntryRole::Manual => Role::Manual,
            EntryRole::Event => Role::Event,
            EntryRole::Step => Role::Step,
        };
        let synced =
            self.0.sync(&id(&message.volume_id)?, SyncRequest { role, label: message.label }).await?;
        Ok(Response::new(SyncVolumeResponse {
            version: synced.version.to_string(),
            entry_id: synced.entry.to_string(),
            changed: synced.changed,
            bytes_uploaded: synced.bytes_uploaded,
            objects_written: synced.objects_written,
            files_changed: synced.files_changed,
            full_scan: synced.full_scan,
            took: Some(duration(synced.took)),
            epoch: synced.epoch.0,
        }))
    }

    async fn restore_volume(
        &self,
        request: Request<RestoreVolumeRequest>,
    ) -> Result<Response<RestoreVolumeResponse>, Status> {
        let message = request.into_inner();
        let wanted = match optional::<EntryId>("entry_id", &message.entry_id)? {
            Some(entry) => Wanted::Entry(entry),
            None => Wanted::Version(required::<VersionId>("version", &message.version)?),
        };
        let basis = Basis { epoch: None, head: optional::<EntryId>("if_head", &message.if_head)? };
        let restored = self.0.restore_if(&id(&message.volume_id)?, wanted, basis).await?;
        Ok(Response::new(RestoreVolumeResponse {
            version: restored.version.to_string(),
            entry_id: restored.entry.to_string(),
            branch: restored.branch,
            restart_to_see_it: restored.restart_to_see_it,
        }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let message = request.into_inner();
        let id = id(&message.volume_id)?;
        if message.copy_only {
            self.0.drop_leftover(&id).await?;
        } else {
            self.0.delete_where(&id, attributes(message.expected)).await?;
        }
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn prefetch_volume(
        &self,
        request: Request<PrefetchVolumeRequest>,
    ) -> Result<Response<PrefetchVolumeResponse>, Status> {
        let version = self.0.prefetch(&id(&request.into_inner().volume_id)?).await?;
        Ok(Response::new(PrefetchVolumeResponse { version: version.to_string() }))
    }

    async fn ensure_template(
        &self,
        request: Request<EnsureTemplateRequest>,
    ) -> Result<Response<EnsureTemplateResponse>, Status> {
        let version = self.0.ensure_template(&id(&request.into_inner().volume_id)?).await?;
        Ok(Response::new(EnsureTemplateResponse { version: version.to_string() }))
    }

    async fn seal_version(
        &self,
        request: Request<SealVersionRequest>,
    ) -> Result<Response<SealVersionResponse>, Status> {
        let message = request.into_inner();
        let kind = match message.kind() {
            WireKind::Snapshot => RecordKind::Snapshot,
            WireKind::Template => RecordKind::Template,
            WireKind::Bundle => RecordKind::Bundle,
            WireKind::Unspecified => return Err(InvalidField::Missing { field: "kind" }.into()),
            WireKind::Volume | WireKind::Orphan => {
                let reason = "a snapshot, template or bundle is sealed, nothing else".to_owned();
                return Err(InvalidField::Malformed { field: "kind", reason }.into());
            }
        };
        let sealed = required::<VolumeId>("sealed_id", &message.sealed_id)?;
        let request = SealRequest {
            id: id(&message.volume_id)?,
            version: optional::<VersionId>("version", &message.version)?,
            sealed: sealed.clone(),
            request: required::<RequestId>("request_id", &message.request_id)?,
            kind,
            attributes: message.attributes.into_iter().collect(),
        };
        let version = self.0.seal(request).await?.into_inner();
        Ok(Response::new(SealVersionResponse { sealed_id: sealed.to_string(), version: version.to_string() }))
    }

    async fn get_volume(&self, request: Request<GetVolumeRequest>) -> Result<Response<Volume>, Status> {
        let volume = self.0.volumes().get(&id(&request.into_inner().volume_id)?)?;
        Ok(Response::new(self.0.describe(&volume).await?))
    }

    async fn list_volumes(
        &self,
        _: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let volumes = self.0.describe_all(self.0.volumes().all()).await?;
        Ok(Response::new(ListVolumesResponse { volumes }))
    }

    async fn set_quota(&self, request: Request<SetQuotaRequest>) -> Result<Response<Volume>, Status> {
        let message = request.into_inner();
        let limit = (message.quota_bytes > 0).then_some(message.quota_bytes);
        let before = message.if_quota_bytes.map(|bytes| (bytes > 0).then_some(bytes));
        let volume = self.0.set_quota_if(&id(&message.volume_id)?, limit, before).await?;
        Ok(Response::new(self.0.describe(&volume).await?))
    }

    async fn repair_volume(
        &self,
        request: Request<RepairVolumeRequest>,
    ) -> Result<Response<RepairVolumeResponse>, Status> {
        let repaired = self.0.repair(&id(&request.into_inner().volume_id)?).await?;
        let texts = |versions: &[VersionId]| versions.iter().map(ToString::to_string).collect();
        Ok(Response::new(RepairVolumeResponse {
            repaired: texts(&repaired.versions),
            lost: texts(&repaired.lost),
            records: repaired.records.iter().map(ToString::to_string).collect(),
            bytes_uploaded: repaired.bytes_uploaded,
        }))
    }

    async fn get_node(&self, _: Request<GetNodeRequest>) -> Result<Response<NodeStatus>, Status> {
        Ok(Response::new(self.0.status().await?))
    }
}

impl LiveVolumes for Node {
    async fn cold(&self, id: &VolumeId, at: At) -> Result<Option<ColdVolume>, Status> {
        Ok(Self::cold(self, id, at).await?)
    }

    async fn open(&self, id: &VolumeId) -> Result<LiveVolume, Status> {
        let volume = self.volumes().get(id)?;
        // A file call on a tree that can no longer be published would be lost work.
        volume.claim(self.session()?.id())?;
        let entered = volume.enter().await?;
        // Closing ends with the volume given up or swapped, so what was true before waiting is asked again.
        volume.claim(self.session()?.id())?;
        let id = id.clone();
        let live = self.pool().run(move |root| local::live(root, &id)).await?;
        Ok(LiveVolume::new(live.into(), entered))
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
        Ok(self.pool().run(move |_| Ok(work())).await?)
    }
}
