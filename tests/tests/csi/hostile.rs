//! Requests that nobody who means well sends.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use proto::csi::v1 as csi;
use proto::csi::v1::group_controller_client::GroupControllerClient;
use proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use proto::csi::v1::volume_content_source::{SnapshotSource, Type as Source};
use rand::RngExt as _;
use tests::kubernetes::{Kubernetes, code, unpublish};
use tonic::Code;

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
