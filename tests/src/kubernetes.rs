//! What Kubernetes does to a CSI driver, over a cluster of the real daemons: the calls of kubelet and of the sidecars. Each
//! node is a machine of its own ([`crate::machines`]).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context as _, Result};
use proto::csi::v1 as csi;
use proto::csi::v1::controller_client::ControllerClient;
use proto::csi::v1::group_controller_client::GroupControllerClient;
use proto::csi::v1::identity_client::IdentityClient;
use proto::csi::v1::node_client::NodeClient;
use proto::csi::v1::volume_capability::access_mode::Mode;
use proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use proto::csi::v1::volume_content_source::{SnapshotSource, Type as Source, VolumeSource};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};
use types::Kind;

use crate::cluster::{Cluster, Options};

/// What a volume of these tests asks for.
pub const SIZE: i64 = 256 << 20;

/// How often a sidecar asks again for what may pass, and how long it waits in between.
const RETRIES: u32 = 240;
const PAUSE: Duration = Duration::from_millis(250);

/// The code of an answer.
pub fn code<T>(answer: &Result<Response<T>, Status>) -> Code {
    answer.as_ref().map_or_else(Status::code, |_| Code::Ok)
}

/// What may pass: kubelet and the sidecars ask again. A connection that broke is `Unavailable` to them.
pub fn passes(status: &Status) -> bool {
    matches!(proto::status::kind(status), Kind::Unavailable | Kind::Aborted | Kind::DeadlineExceeded)
}

/// Calls until the answer is not one that passes. Every other error is final, as it is to kubelet.
///
/// # Errors
/// A final error, or it did not pass.
pub async fn patiently<T>(mut call: impl AsyncFnMut() -> Result<T, Status>) -> Result<T, Status> {
    let mut answer = call().await;
    for _ in 0..RETRIES {
        match &answer {
            Err(status) if passes(status) => {}
            Ok(_) | Err(_) => break,
        }
        tokio::time::sleep(PAUSE).await;
        answer = call().await;
    }
    answer
}

/// Waits until something is so.
///
/// # Errors
/// It is not, within a minute.
pub async fn until(what: &str, mut so: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..RETRIES {
        if so().await? {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    anyhow::bail!("{what}: not within {:?}", PAUSE * RETRIES)
}

/// A mounted directory of one node, with an access mode and mount flags.
pub fn capability_of(mode: Mode, flags: &[&str]) -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume {
            mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..MountVolume::default()
        })),
    }
}

/// ReadWriteOnce.
pub fn capability() -> csi::VolumeCapability {
    capability_of(Mode::SingleNodeWriter, &[])
}

/// CreateVolume of [`SIZE`].
pub fn create(name: &str) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(csi::CapacityRange { required_bytes: SIZE, limit_bytes: SIZE }),
        volume_capabilities: vec![capability()],
        ..Default::default()
    }
}

/// The segment of a node.
pub fn segment(node: &str) -> csi::Topology {
    csi::Topology { segments: HashMap::from([("btrfs.csi.tesslate.io/node".to_owned(), node.to_owned())]) }
}

/// The same volume, on this node and no other.
pub fn only_on(node: &str, request: csi::CreateVolumeRequest) -> csi::CreateVolumeRequest {
    let requirement =
        csi::TopologyRequirement { requisite: vec![segment(node)], preferred: vec![segment(node)] };
    csi::CreateVolumeRequest { accessibility_requirements: Some(requirement), ..request }
}

/// ControllerPublishVolume.
pub fn publish(volume: &str, node: &str) -> csi::ControllerPublishVolumeRequest {
    csi::ControllerPublishVolumeRequest {
        volume_id: volume.to_owned(),
        node_id: node.to_owned(),
        volume_capability: Some(capability()),
        ..Default::default()
    }
}

/// ControllerUnpublishVolume.
pub fn unpublish(volume: &str, node: &str) -> csi::ControllerUnpublishVolumeRequest {
    csi::ControllerUnpublishVolumeRequest {
        volume_id: volume.to_owned(),
        node_id: node.to_owned(),
        ..Default::default()
    }
}

/// CreateSnapshot.
pub fn snapshot(name: &str, volume: &str) -> csi::CreateSnapshotRequest {
    csi::CreateSnapshotRequest {
        source_volume_id: volume.to_owned(),
        name: name.to_owned(),
        ..Default::default()
    }
}

/// CreateVolume from a snapshot.
pub fn from_snapshot(name: &str, snapshot: &str) -> csi::CreateVolumeRequest {
    let source = Source::Snapshot(SnapshotSource { snapshot_id: snapshot.to_owned() });
    csi::CreateVolumeRequest {
        volume_content_source: Some(csi::VolumeContentSource { r#type: Some(source) }),
        ..create(name)
    }
}

/// CreateVolume from a volume.
pub fn from_volume(name: &str, volume: &str) -> csi::CreateVolumeRequest {
    let source = Source::Volume(VolumeSource { volume_id: volume.to_owned() });
    csi::CreateVolumeRequest {
        volume_content_source: Some(csi::VolumeContentSource { r#type: Some(source) }),
        ..create(name)
    }
}

/// A CSI controller over a cluster, and a directory for kubelet on each of its nodes.
#[derive(Debug)]
pub struct Kubernetes {
    targets: tempfile::TempDir,
    /// The controller.
    pub controller: Child,
    /// Its socket.
    pub socket: PathBuf,
    /// The cluster.
    pub cluster: Cluster,
}

impl Kubernetes {
    /// Starts a cluster of two nodes; nothing where this machine cannot.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(name: &str) -> Result<Option<Self>> {
        Self::start_with(name, 2, Options::default())
    }

    /// Starts one as `options` want it. A node is dead after four seconds.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_with(name: &str, nodes: u16, mut options: Options) -> Result<Option<Self>> {
        options.arguments.extend(["--dead".to_owned(), "4s".to_owned()]);
        options.machines = true;
        let Some(cluster) = Cluster::start_with(name, nodes, options)? else { return Ok(None) };
        let (controller, socket) = cluster.csi_controller()?;
        let targets = tempfile::Builder::new().prefix("opensail-targets-").tempdir()?;
        Ok(Some(Self { targets, controller, socket, cluster }))
    }

    /// Connects to a socket.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn channel(path: &Path) -> Result<Channel> {
        Ok(Endpoint::from_shared(format!("unix://{}", path.display()))?.connect().await?)
    }

    /// The Controller service.
    ///
    /// # Errors
    /// It is not there.
    pub async fn controller(&self) -> Result<ControllerClient<Channel>> {
        Ok(ControllerClient::new(Self::channel(&self.socket).await?))
    }

    /// The GroupController service.
    ///
    /// # Errors
    /// It is not there.
    pub async fn groups(&self) -> Result<GroupControllerClient<Channel>> {
        Ok(GroupControllerClient::new(Self::channel(&self.socket).await?))
    }

    /// The Node service of a node.
    ///
    /// # Errors
    /// It is not there.
    pub async fn node(&self, node: &str) -> Result<NodeClient<Channel>> {
        Ok(NodeClient::new(Self::channel(&self.cluster.csi_socket(node)).await?))
    }

    /// Where kubelet on a node has a volume mounted, as that node calls it.
    pub fn target_path(&self, node: &str, volume: &str) -> PathBuf {
        self.targets.path().join(format!("{node}-{volume}"))
    }

    /// The same, as this process gets to it.
    pub fn target(&self, node: &str, volume: &str) -> PathBuf {
        self.cluster.on(node, &self.target_path(node, volume))
    }

    /// Where kubelet on a node stages.
    pub fn staging_path(&self, node: &str) -> String {
        self.targets.path().join(format!("{node}-staging")).display().to_string()
    }

    /// Mount points of a node below kubelet's directory.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn published(&self, node: &str) -> Result<Vec<PathBuf>> {
        let mut mounts = self.cluster.mounts(node)?;
        mounts.retain(|point| point.starts_with(self.targets.path()));
        Ok(mounts)
    }

    /// CreateVolume, and its id.
    ///
    /// # Errors
    /// As the driver says.
    pub async fn create(&self, name: &str) -> Result<String> {
        self.create_with(create(name)).await
    }

    /// CreateVolume as requested, for as long as it takes, and its id.
    ///
    /// # Errors
    /// As the driver says.
    pub async fn create_with(&self, request: csi::CreateVolumeRequest) -> Result<String> {
        let controller = self.controller().await?;
        let call = async || controller.clone().create_volume(request.clone()).await;
        Ok(patiently(call).await?.into_inner().volume.context("a volume")?.volume_id)
    }

    /// CreateSnapshot.
    ///
    /// # Errors
    /// As the driver says.
    pub async fn snapshot(&self, name: &str, volume: &str) -> Result<csi::Snapshot> {
        let answer = self.controller().await?.create_snapshot(snapshot(name, volume)).await?;
        answer.into_inner().snapshot.context("a snapshot")
    }

    /// NodePublishVolume of a volume that is staged, at its target or another one.
    pub fn publication(&self, volume: &str, node: &str, target: &Path) -> csi::NodePublishVolumeRequest {
        csi::NodePublishVolumeRequest {
            volume_id: volume.to_owned(),
            staging_target_path: self.staging_path(node),
            target_path: target.display().to_string(),
            volume_capability: Some(capability()),
            ..Default::default()
        }
    }

    /// ControllerPublish, stage and publish: what happens when a pod starts on a node.
    ///
    /// # Errors
    /// As the driver says.
    pub async fn attach(&self, volume: &str, node: &str) -> Result<HashMap<String, String>, Status> {
        let failed = |error: anyhow::Error| Status::unavailable(format!("{error:#}"));
        let mut controller = self.controller().await.map_err(failed)?;
        let context = controller.controller_publish_volume(publish(volume, node)).await?.into_inner();
        let context = context.publish_context;
        let mut kubelet = self.node(node).await.map_err(failed)?;
        kubelet
            .node_stage_volume(csi::NodeStageVolumeRequest {
                volume_id: volume.to_owned(),
                publish_context: context.clone(),
                staging_target_path: self.staging_path(node),
                volume_capability: Some(capability()),
                ..Default::default()
            })
            .await?;
        let publication = self.publication(volume, node, &self.target_path(node, volume));
        let publication = csi::NodePublishVolumeRequest { publish_context: context.clone(), ..publication };
        kubelet.node_publish_volume(publication).await?;
        Ok(context)
    }

    /// NodeUnpublish, unstage and ControllerUnpublish: what happens when the pod ends.
    ///
    /// # Errors
    /// As the driver says.
    pub async fn detach(&self, volume: &str, node: &str) -> Result<(), Status> {
        let failed = |error: anyhow::Error| Status::unavailable(format!("{error:#}"));
        let mut kubelet = self.node(node).await.map_err(failed)?;
        kubelet
            .node_unpublish_volume(csi::NodeUnpublishVolumeRequest {
                volume_id: volume.to_owned(),
                target_path: self.target_path(node, volume).display().to_string(),
            })
            .await?;
        kubelet
            .node_unstage_volume(csi::NodeUnstageVolumeRequest {
                volume_id: volume.to_owned(),
                staging_target_path: self.staging_path(node),
            })
            .await?;
        let mut controller = self.controller().await.map_err(failed)?;
        controller.controller_unpublish_volume(unpublish(volume, node)).await?;
        Ok(())
    }

    /// DeleteVolume.
    pub async fn delete(&self, volume: &str) -> Code {
        self.try_delete(volume).await.err().map_or(Code::Ok, |status| status.code())
    }

    /// DeleteVolume.
    ///
    /// # Errors
    /// As the driver says.
    pub async fn try_delete(&self, volume: &str) -> Result<(), Status> {
        let controller = self.controller().await;
        let mut controller = controller.map_err(|error| Status::unavailable(format!("{error:#}")))?;
        let request = csi::DeleteVolumeRequest { volume_id: volume.to_owned(), ..Default::default() };
        controller.delete_volume(request).await.map(drop)
    }

    /// NodeGetVolumeStats of a volume at its target.
    ///
    /// # Errors
    /// As the driver says.
    pub async fn stats(&self, volume: &str, node: &str) -> Result<csi::NodeGetVolumeStatsResponse> {
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: volume.to_owned(),
            volume_path: self.target_path(node, volume).display().to_string(),
            ..Default::default()
        };
        Ok(self.node(node).await?.node_get_volume_stats(request).await?.into_inner())
    }

    /// Probe.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn ready(&self, socket: &Path) -> Result<Option<bool>> {
        let mut identity = IdentityClient::new(Self::channel(socket).await?);
        Ok(identity.probe(csi::ProbeRequest {}).await?.into_inner().ready)
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        if let Err(error) = self.controller.kill().and_then(|()| self.controller.wait()) {
            eprintln!("the controller: {error}");
        }
    }
}
