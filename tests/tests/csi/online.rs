//! What the standard API changes while a pod has the volume.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use proto::csi::v1 as csi;
use proto::csi::v1::volume_capability::access_mode::Mode;
use tests::kubernetes::{
    Kubernetes, capability_of, code, create, from_snapshot, from_volume, publish, unpublish, until,
};
use tonic::Code;

const MIB: u64 = 1 << 20;

/// Bytes that do not compress.
fn noise(bytes: u64) -> Vec<u8> {
    let mut noise = vec![0; usize::try_from(bytes).unwrap_or(0)];
    rand::Rng::fill_bytes(&mut rand::rng(), &mut noise);
    noise
}

/// Writes that much, and says with which errno it ended.
fn write(file: &Path, bytes: u64) -> Result<i32> {
    // At the limit even this can be refused.
    let mut out = match std::fs::File::create(file) {
        Ok(out) => out,
        Err(error) => return error.raw_os_error().context("an errno"),
    };
    let mut left = bytes;
    while left > 0 {
        let part = left.min(MIB);
        if let Err(error) = out.write_all(&noise(part)).and_then(|()| out.sync_data()) {
            return error.raw_os_error().context("an errno");
        }
        left -= part;
    }
    Ok(0)
}

async fn modify(cluster: &Kubernetes, volume: &str, pairs: &[(&str, &str)]) -> Result<Code> {
    let request = csi::ControllerModifyVolumeRequest {
        volume_id: volume.to_owned(),
        mutable_parameters: pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        ..Default::default()
    };
    Ok(code(&cluster.controller().await?.controller_modify_volume(request).await))
}

fn sized(bytes: u64, request: csi::CreateVolumeRequest) -> Result<csi::CreateVolumeRequest> {
    let bytes = i64::try_from(bytes)?;
    let range = csi::CapacityRange { required_bytes: bytes, limit_bytes: bytes };
    Ok(csi::CreateVolumeRequest { capacity_range: Some(range), ..request })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand09_a_quota_class_decides_what_happens_at_the_capacity() -> Result<()> {
    const EDQUOT: i32 = nix::libc::EDQUOT;
    let Some(cluster) = Kubernetes::start("csi-class")? else { return Ok(()) };
    let volume = cluster.create_with(sized(40 * MIB, create("pvc-1"))?).await?;
    cluster.attach(&volume, "node-1").await?;
    let file = cluster.target("node-1", &volume).join("noise");
    let over = async |node: &str| -> Result<Option<String>> {
        let condition = cluster.stats(&volume, node).await?.volume_condition.context("a condition")?;
        Ok(condition.abnormal.then_some(condition.message))
    };
    assert_eq!(write(&file, 45 * MIB)?, EDQUOT, "hard is the default");
    assert_eq!(modify(&cluster, &volume, &[("quotaClass", "gold")]).await?, Code::InvalidArgument);
    assert_eq!(modify(&cluster, &volume, &[("quotaClasss", "soft")]).await?, Code::InvalidArgument);
    assert_eq!(write(&file, 45 * MIB)?, EDQUOT, "a wrong word changed nothing");
    assert_eq!(modify(&cluster, &volume, &[("quotaClass", "burst")]).await?, Code::Ok);
    assert_eq!(write(&file, 45 * MIB)?, 0, "a quarter beyond the capacity, at once");
    until("what is over its capacity is told", async || {
        Ok(over("node-1").await?.is_some_and(|said| said.contains("over its capacity")))
    })
    .await?;
    let usage = cluster.stats(&volume, "node-1").await?.usage[0];
    assert_eq!((u64::try_from(usage.total)?, usage.available), (40 * MIB, 0), "the capacity is what it was");
    assert_eq!(write(&file, 55 * MIB)?, EDQUOT, "and no further");
    assert_eq!(modify(&cluster, &volume, &[("quotaClass", "soft")]).await?, Code::Ok);
    assert_eq!(write(&file, 70 * MIB)?, 0);
    assert_eq!(modify(&cluster, &volume, &[("quotaClass", "hard")]).await?, Code::Ok);
    assert_eq!(write(&file.with_file_name("more"), MIB)?, EDQUOT);
    // What is over it can be deleted, and then there is room.
    std::fs::remove_file(&file)?;
    until("there is room again", async || Ok(write(&file, 20 * MIB)? == 0)).await?;
    // The class goes where the volume goes, and is there before the first write.
    assert_eq!(modify(&cluster, &volume, &[("quotaClass", "soft")]).await?, Code::Ok);
    cluster.detach(&volume, "node-1").await?;
    cluster.attach(&volume, "node-2").await?;
    let there = cluster.target("node-2", &volume);
    assert_eq!(write(&there.join("more"), 30 * MIB)?, 0);
    assert_eq!(modify(&cluster, &volume, &[("quotaClass", "hard")]).await?, Code::Ok);
    assert_eq!(write(&there.join("even more"), MIB)?, EDQUOT);
    // Made with a class, it has it from the first write on.
    let mutable_parameters = HashMap::from([("quotaClass".to_owned(), "burst".to_owned())]);
    let request = csi::CreateVolumeRequest { mutable_parameters, ..sized(40 * MIB, create("pvc-2"))? };
    let second = cluster.create_with(request).await?;
    cluster.attach(&second, "node-1").await?;
    assert_eq!(write(&cluster.target("node-1", &second).join("noise"), 45 * MIB)?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defect3_demand04_the_capacity_holds_at_create_clone_restore_and_transfer() -> Result<()> {
    const EDQUOT: i32 = nix::libc::EDQUOT;
    let Some(cluster) = Kubernetes::start("csi-quota")? else { return Ok(()) };
    // 50 MiB do not fit into 1 MiB.
    let tiny = cluster.create_with(sized(MIB, create("tiny"))?).await?;
    cluster.attach(&tiny, "node-1").await?;
    assert_eq!(write(&cluster.target("node-1", &tiny).join("noise"), 50 * MIB)?, EDQUOT);
    let volume = cluster.create_with(sized(40 * MIB, create("pvc-1"))?).await?;
    cluster.attach(&volume, "node-1").await?;
    assert_eq!(write(&cluster.target("node-1", &volume).join("first"), 20 * MIB)?, 0);
    assert_eq!(write(&cluster.target("node-1", &volume).join("second"), 30 * MIB)?, EDQUOT);
    std::fs::remove_file(cluster.target("node-1", &volume).join("second"))?;
    let snapshot = cluster.snapshot("snapshot-1", &volume).await?.snapshot_id;
    let clone = cluster.create_with(sized(40 * MIB, from_volume("clone", &volume))?).await?;
    let restored = cluster.create_with(sized(40 * MIB, from_snapshot("restored", &snapshot))?).await?;
    // The clone is charged for what it writes itself, wherever its content came from.
    for (new, node) in [(&clone, "node-1"), (&restored, "node-2")] {
        cluster.attach(new, node).await?;
        let there = cluster.target(node, new);
        assert_eq!(std::fs::metadata(there.join("first"))?.len(), 20 * MIB, "{new} on {node}");
        assert_eq!(write(&there.join("noise"), 30 * MIB)?, 0, "{new} on {node}");
        assert_eq!(write(&there.join("more"), 20 * MIB)?, EDQUOT, "{new} on {node}");
    }
    // Elsewhere as much is left as was left here.
    cluster.detach(&volume, "node-1").await?;
    cluster.attach(&volume, "node-2").await?;
    let there = cluster.target("node-2", &volume);
    let used = u64::try_from(cluster.stats(&volume, "node-2").await?.usage[0].used)?;
    ensure!(used.abs_diff(20 * MIB) < MIB, "{used}");
    assert_eq!(write(&there.join("second"), 30 * MIB)?, EDQUOT);
    // A local snapshot may hold what was deleted until the node has looked at volumes near their limits.
    std::fs::remove_file(there.join("second"))?;
    until("there is room again", async || Ok(write(&there.join("second"), 15 * MIB)? == 0)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_volumes_with_one_handle_are_one_attachment_and_one_pod_means_one() -> Result<()> {
    let Some(cluster) = Kubernetes::start_with("csi-handle", 1, Default::default())? else { return Ok(()) };
    let mut controller = cluster.controller().await?;
    let volume = cluster.create("pvc-1").await?;
    // Two PersistentVolumes of static provisioning with the same handle: Kubernetes attaches both.
    let context = cluster.attach(&volume, "node-1").await?;
    assert_eq!(cluster.attach(&volume, "node-1").await?, context);
    let second = cluster.target_path("node-1", "second");
    let publication = cluster.publication(&volume, "node-1", &second);
    let mut kubelet = cluster.node("node-1").await?;
    kubelet.node_publish_volume(publication.clone()).await?;
    std::fs::write(cluster.target("node-1", &volume).join("seen"), "by both")?;
    assert_eq!(std::fs::read(cluster.target("node-1", "second").join("seen"))?, b"by both");
    assert_eq!(cluster.published("node-1")?.len(), 2);
    // The end of the one is not the end of the other.
    let off = |target: &Path| csi::NodeUnpublishVolumeRequest {
        volume_id: volume.clone(),
        target_path: target.display().to_string(),
    };
    kubelet.node_unpublish_volume(off(&cluster.target_path("node-1", &volume))).await?;
    let refused = controller.controller_unpublish_volume(unpublish(&volume, "node-1")).await;
    assert_eq!(code(&refused), Code::FailedPrecondition, "it is still mounted: {refused:?}");
    assert_eq!(std::fs::read(cluster.target("node-1", "second").join("seen"))?, b"by both");
    assert_eq!(cluster.delete(&volume).await, Code::FailedPrecondition);
    // ReadWriteOncePod beside it is refused by the driver, and alone is one.
    let mut once = publication.clone();
    once.volume_capability = Some(capability_of(Mode::SingleNodeSingleWriter, &[]));
    once.target_path = cluster.target_path("node-1", "third").display().to_string();
    assert_eq!(code(&kubelet.node_publish_volume(once.clone()).await), Code::FailedPrecondition);
    kubelet.node_unpublish_volume(off(&second)).await?;
    kubelet.node_publish_volume(once.clone()).await?;
    let other = csi::NodePublishVolumeRequest { target_path: second.display().to_string(), ..once.clone() };
    assert_eq!(code(&kubelet.node_publish_volume(other).await), Code::FailedPrecondition);
    kubelet.node_unpublish_volume(off(Path::new(&once.target_path))).await?;
    until("nothing is mounted, so it is taken off", async || {
        let mut controller = cluster.controller().await?;
        match controller.controller_unpublish_volume(unpublish(&volume, "node-1")).await {
            Err(status) if status.code() == Code::FailedPrecondition => Ok(false),
            taken_off => Ok(taken_off.map(|_| true)?),
        }
    })
    .await?;
    ensure!(cluster.published("node-1")?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defect5_demand09_a_volume_grows_and_changes_while_it_is_written_to() -> Result<()> {
    let Some(cluster) = Kubernetes::start_with("csi-online", 1, Default::default())? else { return Ok(()) };
    let mut controller = cluster.controller().await?;
    let capabilities =
        controller.controller_get_capabilities(csi::ControllerGetCapabilitiesRequest {}).await?.into_inner();
    let expand = csi::controller_service_capability::rpc::Type::ExpandVolume;
    let offers = capabilities.capabilities.iter().any(|capability| match &capability.r#type {
        Some(csi::controller_service_capability::Type::Rpc(rpc)) => rpc.r#type() == expand,
        None => false,
    });
    ensure!(offers, "what the storage class allows is offered");
    let volume = cluster.create_with(sized(20 * MIB, create("pvc-1"))?).await?;
    cluster.attach(&volume, "node-1").await?;
    let file = cluster.target("node-1", &volume).join("noise");
    assert_eq!(write(&file, 30 * MIB)?, nix::libc::EDQUOT);
    let grown = i64::try_from(40 * MIB)?;
    let grow = csi::ControllerExpandVolumeRequest {
        volume_id: volume.clone(),
        capacity_range: Some(csi::CapacityRange { required_bytes: grown, limit_bytes: grown }),
        ..Default::default()
    };
    let answer = controller.controller_expand_volume(grow.clone()).await?.into_inner();
    assert_eq!((answer.capacity_bytes, answer.node_expansion_required), (grown, false));
    assert_eq!(write(&file, 30 * MIB)?, 0, "with no step on the node");
    let again = controller.controller_expand_volume(grow).await?.into_inner();
    assert_eq!(again.capacity_bytes, grown, "twice is once");
    let shrink = csi::ControllerExpandVolumeRequest {
        volume_id: volume.clone(),
        capacity_range: Some(csi::CapacityRange { required_bytes: 1, limit_bytes: grown / 2 }),
        ..Default::default()
    };
    assert_eq!(code(&controller.controller_expand_volume(shrink).await), Code::OutOfRange);
    assert_eq!(
        modify(&cluster, &volume, &[("compression", "none"), ("syncInterval", "1s")]).await?,
        Code::Ok
    );
    assert_eq!(modify(&cluster, &volume, &[("colour", "red")]).await?, Code::InvalidArgument);
    // The interval of the class is kept: what is written becomes durable without anybody asking.
    std::fs::write(cluster.target("node-1", &volume).join("small"), "x")?;
    until("a volume with an interval of its own is synced by it", async || {
        Ok(cluster.cluster.metrics("node-1")?["opensail_volumes_dirty"] == 0.0)
    })
    .await?;
    // A name has one size, and a limit is one.
    let other = sized(30 * MIB, create("pvc-1"))?;
    assert_eq!(code(&controller.create_volume(other).await), Code::AlreadyExists);
    let refused = controller.controller_publish_volume(publish(&volume, "node-9")).await;
    assert_eq!(code(&refused), Code::NotFound);
    Ok(())
}
