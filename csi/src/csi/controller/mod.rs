//! The Controller service over the hub: it decides what a request means and asks; what must survive is in the records.
//! It keeps nothing but what the nodes told a moment ago, so several of it may run, and any of them may end at any time.

mod capacity;
mod create;
mod groups;
mod list;
mod modify;
mod publish;
mod snapshots;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Args;
use proto::csi::v1 as csi;
use proto::csi::v1::controller_server::Controller;
use proto::csi::v1::controller_service_capability::{Rpc, Type, rpc};
use proto::csi::v1::group_controller_server::GroupController;
use proto::hub;
use proto::hub::hub_client::HubClient;
use proto::metrics::{Calls, Endpoint, Metrics};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use types::VolumeId;

use self::capacity::Told;
use super::error::Error;
use super::identity::{Plugin, Readiness};
use super::serve::Socket;
use super::{DRIVER, facts, id};

/// Sidecars give up before this and ask again. What goes on at the hub goes on, and the next call joins it.
const BOUND: Duration = Duration::from_secs(60);

/// The configuration of `opensail-csi controller`.
#[derive(Debug, Clone, Args)]
pub struct ControllerConfig {
    /// The hub.
    #[arg(long, value_name = "HOST:PORT", env = "OPENSAIL_HUB")]
    pub hub: String,

    /// Where the CSI socket is made.
    #[arg(long, value_name = "PATH")]
    pub csi_socket: std::path::PathBuf,

    /// Where `GET /metrics` is answered, in plain text to whoever asks; without it nowhere.
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics: Option<String>,

    /// The driver's name.
    #[arg(long, value_name = "NAME", default_value = DRIVER)]
    pub csi_driver: String,

    /// How many volumes may be published at one node; 0: as many as the scheduler likes.
    #[arg(long, value_name = "COUNT", default_value = "0")]
    pub csi_max_volumes: u32,
}

/// Runs the controller until `stop`.
///
/// # Errors
/// The socket cannot be made or vanished, or the hub's address is none.
pub async fn run(config: ControllerConfig, stop: CancellationToken) -> Result<(), Error> {
    let socket = Socket::bind(&config.csi_socket)?;
    let channel = proto::client::channel(&config.hub).map_err(|error| {
        let reason = error.to_string();
        Error::Field(proto::convert::InvalidField::Malformed { field: "--hub", reason })
    })?;
    let hub = proto::client::hub(channel);
    let identity = Plugin::new(config.csi_driver.clone(), Readiness::Controller(hub.clone()));
    let controller = CsiController {
        hub,
        driver: config.csi_driver,
        max_volumes: config.csi_max_volumes,
        rooms: Arc::default(),
    };
    let routes = Routes::new(csi::identity_server::IdentityServer::new(identity))
        .add_service(csi::controller_server::ControllerServer::new(controller.clone()))
        .add_service(csi::group_controller_server::GroupControllerServer::new(controller));
    let metrics = Metrics::default();
    if let Some(address) = &config.metrics {
        let unusable = |source| Error::Listen { address: address.clone(), source };
        let listener = TcpListener::bind(address).await.map_err(unusable)?;
        let endpoint = Endpoint { metrics: metrics.clone(), gather: async || () };
        let (stop, ended) = (stop.clone(), stop.clone());
        tokio::spawn(async move {
            let serving = ended.run_until_cancelled(proto::metrics::serve(listener, endpoint));
            if let Some(Err(error)) = serving.await {
                tracing::error!(%error, "the metrics are not served any more");
                stop.cancel();
            }
        });
    }
    socket.serve(routes, Calls::new(metrics), stop).await
}

/// The Controller and GroupController services.
#[derive(Debug, Clone)]
pub struct CsiController {
    hub: HubClient<Channel>,
    driver: String,
    max_volumes: u32,
    /// The rooms that the nodes told last.
    rooms: Arc<Mutex<Option<Told>>>,
}

impl CsiController {
    fn hub(&self) -> HubClient<Channel> {
        self.hub.clone()
    }

    /// Returns the volume with this id.
    async fn volume(&self, volume: &VolumeId) -> Result<hub::Volume, Error> {
        let found = self.record(volume).await?;
        match found.filter(|found| found.kind() == proto::node::RecordKind::Volume) {
            Some(found) => Ok(found),
            None => Err(Error::NotFound { what: "volume", id: volume.to_string() }),
        }
    }

    /// Returns the record with this id, if there is one. The hub also finds records by names; CSI does not.
    async fn record(&self, volume: &VolumeId) -> Result<Option<hub::Volume>, Error> {
        let request =
            hub::GetVolumeRequest { volume_id: volume.to_string(), id_only: true, ..Default::default() };
        match bounded("looking at the volume", self.hub().get_volume(request)).await {
            Ok(found) => Ok(Some(found)),
            Err(Error::Status(status)) if status.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets attributes of a record where others are as expected. False where they are not.
    async fn exchange(
        &self,
        volume: &VolumeId,
        expected: &[(&str, &str)],
        wanted: &[(&str, &str)],
    ) -> Result<bool, Error> {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let request = hub::SetAttributesRequest {
            volume_id: volume.to_string(),
            expected: map(expected),
            attributes: map(wanted),
        };
        match bounded("writing the record", self.hub().set_attributes(request)).await {
            Ok(_) => Ok(true),
            Err(Error::Status(status)) if status.code() == Code::FailedPrecondition => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Waits for the hub as long as a sidecar would.
async fn bounded<T>(
    doing: &'static str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Error> {
    match tokio::time::timeout(BOUND, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Error::UnderWay { doing }),
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Controller for CsiController {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Answer<csi::CreateVolumeResponse> {
        let volume = Box::pin(self.create(request.into_inner())).await?;
        Ok(Response::new(csi::CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Answer<csi::DeleteVolumeResponse> {
        self.delete(&request.into_inner().volume_id).await?;
        Ok(Response::new(csi::DeleteVolumeResponse {}))
    }

    async fn controller_publish_volume(
        &self,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Answer<csi::ControllerPublishVolumeResponse> {
        let publish_context = Box::pin(self.publish(request.into_inner())).await?;
        Ok(Response::new(csi::ControllerPublishVolumeResponse { publish_context }))
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Answer<csi::ControllerUnpublishVolumeResponse> {
        self.unpublish(request.into_inner()).await?;
        Ok(Response::new(csi::ControllerUnpublishVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<csi::ValidateVolumeCapabilitiesResponse> {
        Ok(Response::new(self.validate(request.into_inner()).await?))
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Answer<csi::ListVolumesResponse> {
        Ok(Response::new(self.volumes(request.into_inner()).await?))
    }

    async fn get_capacity(
        &self,
        request: Request<csi::GetCapacityRequest>,
    ) -> Answer<csi::GetCapacityResponse> {
        Ok(Response::new(self.capacity(request.into_inner()).await?))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Answer<csi::ControllerGetCapabilitiesResponse> {
        use rpc::Type as Offers;
        let offered = [
            Offers::CreateDeleteVolume,
            Offers::PublishUnpublishVolume,
            Offers::ListVolumes,
            Offers::GetCapacity,
            Offers::CreateDeleteSnapshot,
            Offers::ListSnapshots,
            Offers::CloneVolume,
            Offers::PublishReadonly,
            Offers::ExpandVolume,
            Offers::ListVolumesPublishedNodes,
            Offers::VolumeCondition,
            Offers::GetVolume,
            Offers::SingleNodeMultiWriter,
            Offers::ModifyVolume,
            Offers::GetSnapshot,
        ];
        let capability = |offer: Offers| csi::ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: offer.into() })),
        };
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse {
            capabilities: offered.into_iter().map(capability).collect(),
        }))
    }

    async fn create_snapshot(
        &self,
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Answer<csi::CreateSnapshotResponse> {
        let snapshot = self.snapshot(request.into_inner()).await?;
        Ok(Response::new(csi::CreateSnapshotResponse { snapshot: Some(snapshot) }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Answer<csi::DeleteSnapshotResponse> {
        self.drop_snapshot(&request.into_inner().snapshot_id).await?;
        Ok(Response::new(csi::DeleteSnapshotResponse {}))
    }

    async fn list_snapshots(
        &self,
        request: Request<csi::ListSnapshotsRequest>,
    ) -> Answer<csi::ListSnapshotsResponse> {
        Ok(Response::new(self.snapshots(request.into_inner()).await?))
    }

    async fn get_snapshot(
        &self,
        request: Request<csi::GetSnapshotRequest>,
    ) -> Answer<csi::GetSnapshotResponse> {
        let snapshot = self.find_snapshot(&request.into_inner().snapshot_id).await?;
        Ok(Response::new(csi::GetSnapshotResponse { snapshot: Some(facts::snapshot(&snapshot)) }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Answer<csi::ControllerExpandVolumeResponse> {
        let capacity_bytes = self.expand(request.into_inner()).await?;
        // The limit is all there is to a size: a pod that has the volume open sees it at once.
        Ok(Response::new(csi::ControllerExpandVolumeResponse {
            capacity_bytes,
            node_expansion_required: false,
        }))
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Answer<csi::ControllerGetVolumeResponse> {
        let volume = self.volume(&id("volume", "volume_id", &request.into_inner().volume_id)?).await?;
        let status = csi::controller_get_volume_response::VolumeStatus {
            published_node_ids: facts::published(&volume),
            volume_condition: Some(facts::condition(volume.health(), &volume.detail)),
        };
        let volume = facts::volume(&self.driver, &volume);
        Ok(Response::new(csi::ControllerGetVolumeResponse { volume: Some(volume), status: Some(status) }))
    }

    async fn controller_modify_volume(
        &self,
        request: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Answer<csi::ControllerModifyVolumeResponse> {
        self.modify(request.into_inner()).await?;
        Ok(Response::new(csi::ControllerModifyVolumeResponse {}))
    }
}

#[tonic::async_trait]
impl GroupController for CsiController {
    async fn group_controller_get_capabilities(
        &self,
        _: Request<csi::GroupControllerGetCapabilitiesRequest>,
    ) -> Answer<csi::GroupControllerGetCapabilitiesResponse> {
        use csi::group_controller_service_capability::{Rpc, Type, rpc};
        let kind = rpc::Type::CreateDeleteGetVolumeGroupSnapshot;
        let capability =
            csi::GroupControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) };
        Ok(Response::new(csi::GroupControllerGetCapabilitiesResponse { capabilities: vec![capability] }))
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<csi::CreateVolumeGroupSnapshotRequest>,
    ) -> Answer<csi::CreateVolumeGroupSnapshotResponse> {
        let group = Box::pin(self.group(request.into_inner())).await?;
        Ok(Response::new(csi::CreateVolumeGroupSnapshotResponse { group_snapshot: Some(group) }))
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<csi::DeleteVolumeGroupSnapshotRequest>,
    ) -> Answer<csi::DeleteVolumeGroupSnapshotResponse> {
        self.drop_group(request.into_inner()).await?;
        Ok(Response::new(csi::DeleteVolumeGroupSnapshotResponse {}))
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<csi::GetVolumeGroupSnapshotRequest>,
    ) -> Answer<csi::GetVolumeGroupSnapshotResponse> {
        let group = self.find_group(request.into_inner()).await?;
        Ok(Response::new(csi::GetVolumeGroupSnapshotResponse { group_snapshot: Some(group) }))
    }
}
