//! Group snapshots.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use proto::csi::v1 as csi;
use tests::kubernetes::{Kubernetes, code, patiently};
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand09_a_group_that_cannot_share_a_cut_is_refused_and_leaves_nothing() -> Result<()> {
    let Some(cluster) = Kubernetes::start("csi-apart")? else { return Ok(()) };
    let mut groups = cluster.groups().await?;
    let (here, there) = (cluster.create("here").await?, cluster.create("there").await?);
    cluster.attach(&here, "node-1").await?;
    cluster.attach(&there, "node-2").await?;
    let take = csi::CreateVolumeGroupSnapshotRequest {
        name: "group-1".to_owned(),
        source_volume_ids: vec![here.clone(), there.clone()],
        ..Default::default()
    };
    // Two nodes have no transaction in common, and nothing is called one that is none.
    let refused = groups.create_volume_group_snapshot(take.clone()).await;
    assert_eq!(code(&refused), Code::FailedPrecondition, "{refused:?}");
    let snapshots = async || -> Result<usize> {
        let list = csi::ListSnapshotsRequest::default();
        Ok(cluster.controller().await?.list_snapshots(list).await?.into_inner().entries.len())
    };
    assert_eq!(snapshots().await?, 0, "nor is half of it left");
    // One node has both: the same name is the group that could not be made before.
    cluster.detach(&there, "node-2").await?;
    cluster.attach(&there, "node-1").await?;
    let taken = patiently(async || groups.create_volume_group_snapshot(take.clone()).await).await?;
    assert_eq!(taken.into_inner().group_snapshot.context("a group")?.snapshots.len(), 2);
    assert_eq!(snapshots().await?, 2);
    Ok(())
}
