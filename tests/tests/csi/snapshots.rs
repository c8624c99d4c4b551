//! Snapshots are records of their own.

use anyhow::{Context as _, Result, ensure};
use proto::csi::v1 as csi;
use tests::kubernetes::{Kubernetes, SIZE, code, from_snapshot, patiently};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defect6_demand06_a_snapshot_outlives_volume_node_and_hub_and_is_restored_elsewhere() -> Result<()> {
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
    let created = snapshot.creation_time.context("a time")?.seconds;
    let now = i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs())?;
    ensure!((now - 120..=now + 5).contains(&created), "{created} is not about {now}");
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
    // The dead node may be thought alive for a moment: a retry goes on.
    let restored = patiently(async || controller.clone().create_volume(restore.clone()).await).await;
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
