//! Group snapshots.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use proto::csi::v1 as csi;
use tests::kubernetes::{Kubernetes, code};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand09_a_group_shares_one_cut_and_is_deleted_as_one() -> Result<()> {
    let Some(cluster) = Kubernetes::start("csi-group")? else { return Ok(()) };
    let mut groups = cluster.groups().await?;
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
