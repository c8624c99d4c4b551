//! CSI over the real daemons and two nodes, called as kubelet and the sidecars call it.

#![allow(clippy::print_stderr, reason = "what a test leaves behind is said")]

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use proto::csi::v1 as csi;
use proto::csi::v1::controller_client::ControllerClient;
use proto::csi::v1::group_controller_client::GroupControllerClient;
use proto::csi::v1::identity_client::IdentityClient;
use proto::csi::v1::node_client::NodeClient;
use proto::csi::v1::volume_capability::access_mode::Mode;
use proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use proto::csi::v1::volume_content_source::{SnapshotSource, Type as Source};
use proto::hub::TriggerSyncRequest;
use rand::RngExt as _;
use tests::cluster::{Cluster, Options};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

const SIZE: i64 = 256 << 20;

fn code<T>(answer: &Result<Response<T>, Status>) -> Code {
    answer.as_ref().map_or_else(Status::code, |_| Code::Ok)
}

fn capability() -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

/// What is mounted below a directory goes before the cluster does.
struct Kubernetes {
    targets: tempfile::TempDir,
    controller: Child,
    socket: PathBuf,
    cluster: Cluster,
}

impl Kubernetes {
    fn start(name: &str) -> Result<Option<Self>> {
        let options = Options { arguments: vec!["--dead".to_owned(), "4s".to_owned()], ..Options::default() };
        let Some(cluster) = Cluster::start_with(name, 2, options)? else { return Ok(None) };
        let (controller, socket) = cluster.csi_controller()?;
        let targets = tempfile::Builder::new().prefix("opensail-targets-").tempdir()?;
        Ok(Some(Self { targets, controller, socket, cluster }))
    }

    async fn channel(path: &Path) -> Result<Channel> {
        Ok(Endpoint::from_shared(format!("unix://{}", path.display()))?.connect().await?)
    }

    async fn controller(&self) -> Result<ControllerClient<Channel>> {
        Ok(ControllerClient::new(Self::channel(&self.socket).await?))
    }

    async fn node(&self, node: &str) -> Result<NodeClient<Channel>> {
        Ok(NodeClient::new(Self::channel(&self.cluster.csi_socket(node)).await?))
    }

    fn target(&self, node: &str, volume: &str) -> PathBuf {
        self.targets.path().join(format!("{node}-{volume}"))
    }

    async fn create(&self, name: &str) -> Result<String> {
        let answer = self.controller().await?.create_volume(create(name)).await?;
        Ok(answer.into_inner().volume.context("a volume")?.volume_id)
    }

    /// ControllerPublish, stage and publish: what happens when a pod starts on a node.
    async fn attach(&self, volume: &str, node: &str) -> Result<HashMap<String, String>, Status> {
        let failed = |error: anyhow::Error| Status::unknown(format!("{error:#}"));
        let mut controller = self.controller().await.map_err(failed)?;
        let context = controller.controller_publish_volume(publish(volume, node)).await?.into_inner();
        let context = context.publish_context;
        let mut kubelet = self.node(node).await.map_err(failed)?;
        let staging_target_path = self.targets.path().join("staging").display().to_string();
        kubelet
            .node_stage_volume(csi::NodeStageVolumeRequest {
                volume_id: volume.to_owned(),
                publish_context: context.clone(),
                staging_target_path: staging_target_path.clone(),
                volume_capability: Some(capability()),
                ..Default::default()
            })
            .await?;
        kubelet
            .node_publish_volume(csi::NodePublishVolumeRequest {
                volume_id: volume.to_owned(),
                publish_context: context.clone(),
                staging_target_path,
                target_path: self.target(node, volume).display().to_string(),
                volume_capability: Some(capability()),
                ..Default::default()
            })
            .await?;
        Ok(context)
    }

    async fn detach(&self, volume: &str, node: &str) -> Result<()> {
        let mut kubelet = self.node(node).await?;
        kubelet
            .node_unpublish_volume(csi::NodeUnpublishVolumeRequest {
                volume_id: volume.to_owned(),
                target_path: self.target(node, volume).display().to_string(),
            })
            .await?;
        kubelet
            .node_unstage_volume(csi::NodeUnstageVolumeRequest {
                volume_id: volume.to_owned(),
                staging_target_path: self.targets.path().join("staging").display().to_string(),
            })
            .await?;
        self.controller().await?.controller_unpublish_volume(unpublish(volume, node)).await?;
        Ok(())
    }

    async fn delete(&self, volume: &str) -> Code {
        let Ok(mut controller) = self.controller().await else { return Code::Unknown };
        let request = csi::DeleteVolumeRequest { volume_id: volume.to_owned(), ..Default::default() };
        code(&controller.delete_volume(request).await)
    }

    async fn ready(&self, socket: &Path) -> Result<Option<bool>> {
        let mut identity = IdentityClient::new(Self::channel(socket).await?);
        Ok(identity.probe(csi::ProbeRequest {}).await?.into_inner().ready)
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter(|point| Path::new(point).starts_with(self.targets.path())) {
            if !Command::new("umount").arg(point).status().is_ok_and(|status| status.success()) {
                eprintln!("{point} is left mounted");
            }
        }
        if let Err(error) = self.controller.kill().and_then(|()| self.controller.wait()) {
            eprintln!("the controller: {error}");
        }
    }
}

fn create(name: &str) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(csi::CapacityRange { required_bytes: SIZE, limit_bytes: SIZE }),
        volume_capabilities: vec![capability()],
        ..Default::default()
    }
}

fn publish(volume: &str, node: &str) -> csi::ControllerPublishVolumeRequest {
    csi::ControllerPublishVolumeRequest {
        volume_id: volume.to_owned(),
        node_id: node.to_owned(),
        volume_capability: Some(capability()),
        ..Default::default()
    }
}

fn unpublish(volume: &str, node: &str) -> csi::ControllerUnpublishVolumeRequest {
    csi::ControllerUnpublishVolumeRequest {
        volume_id: volume.to_owned(),
        node_id: node.to_owned(),
        ..Default::default()
    }
}

fn from_snapshot(name: &str, snapshot: &str) -> csi::CreateVolumeRequest {
    let source = Source::Snapshot(SnapshotSource { snapshot_id: snapshot.to_owned() });
    csi::CreateVolumeRequest {
        volume_content_source: Some(csi::VolumeContentSource { r#type: Some(source) }),
        ..create(name)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_follows_its_pod_and_two_nodes_never_have_it() -> Result<()> {
    let Some(cluster) = Kubernetes::start("csi-follow")? else { return Ok(()) };
    let mut controller = cluster.controller().await?;
    for socket in [&cluster.socket, &cluster.cluster.csi_socket("node-1")] {
        assert_eq!(cluster.ready(socket).await?, Some(true));
    }
    let volume = cluster.create("pvc-1").await?;
    assert_eq!(cluster.create("pvc-1").await?, volume, "the same name is the same volume");
    cluster.attach(&volume, "node-1").await?;
    cluster.attach(&volume, "node-1").await.context("twice is once")?;
    std::fs::write(cluster.target("node-1", &volume).join("work"), "done")?;
    // The second node is told who has it, and neither takes nor mounts it.
    let refused = controller.controller_publish_volume(publish(&volume, "node-2")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    ensure!(refused.message().contains("node-1"), "{refused}");
    assert_eq!(
        code(&controller.controller_unpublish_volume(unpublish(&volume, "node-1")).await),
        Code::FailedPrecondition
    );
    assert_eq!(cluster.delete(&volume).await, Code::FailedPrecondition);
    let listed = controller.list_volumes(csi::ListVolumesRequest::default()).await?.into_inner().entries;
    let published: Vec<String> = listed
        .into_iter()
        .filter_map(|entry| entry.status)
        .flat_map(|status| status.published_node_ids)
        .collect();
    assert_eq!(published, ["node-1"]);
    // Online growth: no node step, and the writer has it at once.
    let grown = csi::ControllerExpandVolumeRequest {
        volume_id: volume.clone(),
        capacity_range: Some(csi::CapacityRange { required_bytes: SIZE * 2, limit_bytes: 0 }),
        ..Default::default()
    };
    let answer = controller.controller_expand_volume(grown).await?.into_inner();
    assert_eq!((answer.capacity_bytes, answer.node_expansion_required), (SIZE * 2, false));
    let shrunk = csi::ControllerExpandVolumeRequest {
        volume_id: volume.clone(),
        capacity_range: Some(csi::CapacityRange { required_bytes: 1, limit_bytes: SIZE }),
        ..Default::default()
    };
    assert_eq!(code(&controller.controller_expand_volume(shrunk).await), Code::OutOfRange);
    let modify = |key: &str, value: &str| csi::ControllerModifyVolumeRequest {
        volume_id: volume.clone(),
        mutable_parameters: HashMap::from([(key.to_owned(), value.to_owned())]),
        ..Default::default()
    };
    controller.controller_modify_volume(modify("compression", "lzo")).await?;
    let property =
        Command::new("btrfs").args(["property", "get"]).arg(cluster.target("node-1", &volume)).output()?;
    ensure!(String::from_utf8_lossy(&property.stdout).contains("compression=lzo"), "{property:?}");
    assert_eq!(
        code(&controller.controller_modify_volume(modify("colour", "red")).await),
        Code::InvalidArgument
    );
    // The pod goes to the other node, and its work with it.
    cluster.detach(&volume, "node-1").await?;
    cluster.attach(&volume, "node-2").await?;
    assert_eq!(std::fs::read(cluster.target("node-2", &volume).join("work"))?, b"done");
    let stats = csi::NodeGetVolumeStatsRequest {
        volume_id: volume.clone(),
        volume_path: cluster.target("node-2", &volume).display().to_string(),
        ..Default::default()
    };
    let stats = cluster.node("node-2").await?.node_get_volume_stats(stats).await?.into_inner();
    assert_eq!(stats.usage[0].total, SIZE * 2, "a capacity means the same on every node");
    cluster.detach(&volume, "node-2").await?;
    assert_eq!(cluster.delete(&volume).await, Code::Ok);
    assert_eq!(cluster.delete(&volume).await, Code::Ok);
    // The name is free again, and its next volume is another one.
    assert_ne!(cluster.create("pvc-1").await?, volume);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_outlives_its_volume_and_is_restored_on_another_node() -> Result<()> {
    let Some(cluster) = Kubernetes::start("csi-snapshot")? else { return Ok(()) };
    let mut controller = cluster.controller().await?;
    let volume = cluster.create("pvc-1").await?;
    cluster.attach(&volume, "node-1").await?;
    std::fs::write(cluster.target("node-1", &volume).join("db"), "then")?;
    let take = csi::CreateSnapshotRequest {
        source_volume_id: volume.clone(),
        name: "snapshot-1".to_owned(),
        ..Default::default()
    };
    let snapshot = controller.create_snapshot(take.clone()).await?.into_inner().snapshot.context("one")?;
    ensure!(snapshot.ready_to_use);
    std::fs::write(cluster.target("node-1", &volume).join("db"), "now")?;
    cluster.detach(&volume, "node-1").await?;
    assert_eq!(cluster.delete(&volume).await, Code::Ok);
    cluster.cluster.kill("node-1")?;
    cluster.cluster.kill("hub")?;
    cluster.cluster.restart("hub")?;
    // Nothing of it was in the hub's memory alone.
    let again = controller.create_snapshot(take).await?.into_inner().snapshot.context("one")?;
    assert_eq!((&again.snapshot_id, again.creation_time), (&snapshot.snapshot_id, snapshot.creation_time));
    let small = csi::CreateVolumeRequest {
        capacity_range: Some(csi::CapacityRange { required_bytes: SIZE / 2, limit_bytes: 0 }),
        ..from_snapshot("small", &snapshot.snapshot_id)
    };
    assert_eq!(code(&controller.create_volume(small).await), Code::OutOfRange);
    let restore = from_snapshot("pvc-2", &snapshot.snapshot_id);
    let mut restored = controller.create_volume(restore.clone()).await;
    // The dead node may be thought alive for a moment: a retry goes on.
    for _ in 0..60 {
        if !matches!(code(&restored), Code::Unavailable | Code::Aborted | Code::DeadlineExceeded) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        restored = controller.create_volume(restore.clone()).await;
    }
    let restored = restored?.into_inner().volume.context("a volume")?;
    ensure!(restored.content_source.is_some());
    cluster.attach(&restored.volume_id, "node-2").await?;
    assert_eq!(std::fs::read(cluster.target("node-2", &restored.volume_id).join("db"))?, b"then");
    let drop = csi::DeleteSnapshotRequest { snapshot_id: snapshot.snapshot_id, ..Default::default() };
    controller.delete_snapshot(drop).await?;
    assert_eq!(std::fs::read(cluster.target("node-2", &restored.volume_id).join("db"))?, b"then");
    let left = controller.list_snapshots(csi::ListSnapshotsRequest::default()).await?.into_inner();
    ensure!(left.entries.is_empty(), "{left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_holder_is_taken_over_and_the_loss_is_said() -> Result<()> {
    let Some(cluster) = Kubernetes::start("csi-dead")? else { return Ok(()) };
    let mut controller = cluster.controller().await?;
    let volume = cluster.create("pvc-1").await?;
    cluster.attach(&volume, "node-1").await?;
    let target = cluster.target("node-1", &volume);
    std::fs::write(target.join("durable"), "kept")?;
    let sync = TriggerSyncRequest { volume_id: volume.clone() };
    cluster.cluster.handle().hub().trigger_sync(sync).await?;
    std::fs::write(target.join("late"), "lost")?;
    cluster.cluster.kill("node-1")?;
    assert_eq!(
        code(&controller.controller_publish_volume(publish(&volume, "node-2")).await),
        Code::FailedPrecondition
    );
    // `out-of-service`: Kubernetes takes the attachment off a node that cannot answer.
    // While the node is thought to live and to have it mounted that is refused.
    let mut taken_off = controller.controller_unpublish_volume(unpublish(&volume, "node-1")).await;
    for _ in 0..60 {
        if code(&taken_off) != Code::FailedPrecondition {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
        taken_off = controller.controller_unpublish_volume(unpublish(&volume, "node-1")).await;
    }
    taken_off?;
    let mut context = cluster.attach(&volume, "node-2").await;
    for _ in 0..60 {
        // Whatever passes is no final code.
        match &context {
            Err(status)
                if matches!(status.code(), Code::Unavailable | Code::Aborted | Code::DeadlineExceeded) => {}
            Ok(_) | Err(_) => break,
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        context = cluster.attach(&volume, "node-2").await;
    }
    let context = context?;
    ensure!(context.contains_key("lastDurable"), "{context:?}");
    let there = cluster.target("node-2", &volume);
    assert_eq!(std::fs::read(there.join("durable"))?, b"kept");
    ensure!(!there.join("late").exists());
    // The node that lost it comes back, and neither stages nor publishes it.
    cluster.cluster.restart("node-1")?;
    let stage = csi::NodeStageVolumeRequest {
        volume_id: volume.clone(),
        staging_target_path: "/nowhere".to_owned(),
        volume_capability: Some(capability()),
        ..Default::default()
    };
    let staged = cluster.node("node-1").await?.node_stage_volume(stage).await;
    ensure!(matches!(code(&staged), Code::FailedPrecondition | Code::Aborted), "{staged:?}");
    assert_eq!(std::fs::read(there.join("durable"))?, b"kept");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_shares_one_cut_and_is_deleted_as_one() -> Result<()> {
    let Some(cluster) = Kubernetes::start("csi-group")? else { return Ok(()) };
    let mut groups = GroupControllerClient::new(Kubernetes::channel(&cluster.socket).await?);
    let mut volumes = Vec::new();
    for name in ["a", "b", "c"] {
        let volume = cluster.create(name).await?;
        cluster.attach(&volume, "node-1").await?;
        std::fs::write(cluster.target("node-1", &volume).join("name"), name)?;
        volumes.push(volume);
    }
    let take = csi::CreateVolumeGroupSnapshotRequest {
        name: "group-1".to_owned(),
        source_volume_ids: volumes.clone(),
        ..Default::default()
    };
    let mut taken = groups.create_volume_group_snapshot(take.clone()).await;
    for _ in 0..10 {
        if code(&taken) != Code::Aborted {
            break;
        }
        taken = groups.create_volume_group_snapshot(take.clone()).await;
    }
    let group = taken?.into_inner().group_snapshot.context("a group")?;
    let of: BTreeSet<&String> = group.snapshots.iter().map(|snapshot| &snapshot.source_volume_id).collect();
    assert_eq!(of, volumes.iter().collect());
    let again =
        groups.create_volume_group_snapshot(take.clone()).await?.into_inner().group_snapshot.context("it")?;
    assert_eq!(again.group_snapshot_id, group.group_snapshot_id);
    let other = csi::CreateVolumeGroupSnapshotRequest { source_volume_ids: vec![volumes[0].clone()], ..take };
    assert_eq!(code(&groups.create_volume_group_snapshot(other).await), Code::AlreadyExists);
    let delete = csi::DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: group.group_snapshot_id.clone(),
        ..Default::default()
    };
    groups.delete_volume_group_snapshot(delete).await?;
    let get = csi::GetVolumeGroupSnapshotRequest {
        group_snapshot_id: group.group_snapshot_id,
        ..Default::default()
    };
    assert_eq!(code(&groups.get_volume_group_snapshot(get).await), Code::NotFound);
    Ok(())
}

/// A text that is hostile, plain or somebody else's id.
fn hostile(known: &str) -> String {
    let mut random = rand::rng();
    match random.random_range(0..12) {
        0 => String::new(),
        1 => "../../etc".to_owned(),
        2 => "a\0b".to_owned(),
        3 => "x".repeat(5000),
        4 => ".".to_owned(),
        5 => "Ünïcode/☃".to_owned(),
        6 => known.to_owned(),
        7 => format!("{known} "),
        8 => "vol-00000000000000000000000000000000".to_owned(),
        9 => "node-1".to_owned(),
        10 => "after:../x".to_owned(),
        _ => (0..random.random_range(1..40)).map(|_| random.random::<char>()).collect(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_get_codes_of_the_specification_and_change_nothing() -> Result<()> {
    let Some(mut cluster) = Kubernetes::start("csi-hostile")? else { return Ok(()) };
    let mut controller = cluster.controller().await?;
    let mut groups = GroupControllerClient::new(Kubernetes::channel(&cluster.socket).await?);
    let volume = cluster.create("pvc-1").await?;
    for _ in 0..60 {
        let text = || hostile(&volume);
        // Of the volume itself only what may be done to it.
        let other = || Some(text()).filter(|text| *text != volume).unwrap_or_default();
        let map = || HashMap::from([(text(), text())]);
        let mode: i32 = rand::rng().random_range(-2..10);
        let capability = Some(csi::VolumeCapability {
            access_mode: Some(AccessMode { mode }),
            access_type: Some(AccessType::Mount(MountVolume {
                fs_type: text(),
                mount_flags: vec![text()],
                volume_mount_group: text(),
            })),
        });
        let bytes: i64 = rand::rng().random();
        let range = Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: -bytes });
        let source = Source::Snapshot(SnapshotSource { snapshot_id: text() });
        let codes = [
            code(
                &controller
                    .create_volume(csi::CreateVolumeRequest {
                        name: text(),
                        capacity_range: range,
                        volume_capabilities: capability.iter().cloned().collect(),
                        parameters: map(),
                        volume_content_source: Some(csi::VolumeContentSource { r#type: Some(source) }),
                        mutable_parameters: map(),
                        ..Default::default()
                    })
                    .await,
            ),
            cluster.delete(&other()).await,
            code(
                &controller
                    .controller_publish_volume(csi::ControllerPublishVolumeRequest {
                        volume_id: other(),
                        node_id: text(),
                        volume_capability: capability.clone(),
                        ..Default::default()
                    })
                    .await,
            ),
            code(&controller.controller_unpublish_volume(unpublish(&text(), &text())).await),
            code(
                &controller
                    .validate_volume_capabilities(csi::ValidateVolumeCapabilitiesRequest {
                        volume_id: text(),
                        volume_capabilities: capability.iter().cloned().collect(),
                        parameters: map(),
                        ..Default::default()
                    })
                    .await,
            ),
            code(
                &controller
                    .list_volumes(csi::ListVolumesRequest { max_entries: mode, starting_token: text() })
                    .await,
            ),
            code(
                &controller
                    .create_snapshot(csi::CreateSnapshotRequest {
                        source_volume_id: other(),
                        name: text(),
                        parameters: map(),
                        ..Default::default()
                    })
                    .await,
            ),
            code(
                &controller
                    .delete_snapshot(csi::DeleteSnapshotRequest { snapshot_id: text(), ..Default::default() })
                    .await,
            ),
            code(
                &controller
                    .list_snapshots(csi::ListSnapshotsRequest {
                        max_entries: mode,
                        starting_token: text(),
                        source_volume_id: text(),
                        snapshot_id: text(),
                        ..Default::default()
                    })
                    .await,
            ),
            code(
                &controller
                    .get_snapshot(csi::GetSnapshotRequest { snapshot_id: text(), ..Default::default() })
                    .await,
            ),
            code(
                &controller
                    .controller_expand_volume(csi::ControllerExpandVolumeRequest {
                        volume_id: other(),
                        capacity_range: range,
                        ..Default::default()
                    })
                    .await,
            ),
            code(
                &controller
                    .controller_get_volume(csi::ControllerGetVolumeRequest { volume_id: text() })
                    .await,
            ),
            code(
                &controller
                    .controller_modify_volume(csi::ControllerModifyVolumeRequest {
                        volume_id: text(),
                        mutable_parameters: map(),
                        ..Default::default()
                    })
                    .await,
            ),
            code(
                &groups
                    .create_volume_group_snapshot(csi::CreateVolumeGroupSnapshotRequest {
                        name: text(),
                        source_volume_ids: vec![other(), other()],
                        ..Default::default()
                    })
                    .await,
            ),
            code(
                &groups
                    .delete_volume_group_snapshot(csi::DeleteVolumeGroupSnapshotRequest {
                        group_snapshot_id: text(),
                        snapshot_ids: vec![text()],
                        ..Default::default()
                    })
                    .await,
            ),
        ];
        for (at, code) in codes.into_iter().enumerate() {
            ensure!(!matches!(code, Code::Internal | Code::Unknown | Code::DataLoss), "call {at}: {codes:?}");
        }
    }
    ensure!(cluster.controller.try_wait()?.is_none(), "the controller ended");
    let volumes = controller.list_volumes(csi::ListVolumesRequest::default()).await?.into_inner().entries;
    let ids: Vec<String> =
        volumes.into_iter().filter_map(|entry| entry.volume).map(|volume| volume.volume_id).collect();
    assert_eq!(ids, [volume]);
    // Its socket gone, the controller ends, to be started again with a new one.
    std::fs::remove_file(&cluster.socket)?;
    for _ in 0..100 {
        if cluster.controller.try_wait()?.is_some() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("the controller goes on without its socket")
}
