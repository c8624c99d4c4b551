//! A volume follows its pod, and is at one node at a time.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use proto::csi::v1 as csi;
use tests::kubernetes::{Kubernetes, SIZE, code, create, publish, segment, unpublish};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defect8_demand07_a_volume_follows_its_pod_and_two_nodes_never_have_it() -> Result<()> {
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
    // Each node is a machine: what is mounted on the one is mounted nowhere else.
    assert_eq!(cluster.published("node-1")?, [cluster.target_path("node-1", &volume)]);
    ensure!(cluster.published("node-2")?.is_empty());
    ensure!(!cluster.target_path("node-1", &volume).join("work").exists(), "nor here");
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
    let property = cluster
        .cluster
        .command_on("node-1", "btrfs")
        .args(["property", "get"])
        .arg(cluster.target_path("node-1", &volume))
        .output()?;
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
async fn pinned_stays_where_it_was_made_and_floating_goes_where_it_is_asked_for() -> Result<()> {
    let Some(cluster) = Kubernetes::start("csi-pinned")? else { return Ok(()) };
    let mut controller = cluster.controller().await?;
    // The scheduler chose node-2, and says which others would have done.
    let requirement = csi::TopologyRequirement {
        requisite: vec![segment("node-1"), segment("node-2")],
        preferred: vec![segment("node-2"), segment("node-1")],
    };
    let asked = |name: &str, mobility: &str| csi::CreateVolumeRequest {
        parameters: HashMap::from([("mobility".to_owned(), mobility.to_owned())]),
        accessibility_requirements: Some(requirement.clone()),
        ..create(name)
    };
    let made = controller.create_volume(asked("pinned", "pinned")).await?.into_inner().volume;
    let pinned = made.context("a volume")?;
    assert_eq!(pinned.accessible_topology, [segment("node-2")]);
    let made = controller.create_volume(asked("floating", "floating")).await?.into_inner().volume;
    let floating = made.context("a volume")?;
    ensure!(floating.accessible_topology.is_empty(), "{floating:?}");
    assert_eq!(cluster.cluster.handle().owner(&floating.volume_id).await.as_deref(), Some("node-2"));
    // Whatever the other name says, the same name with another mobility is another request.
    assert_eq!(code(&controller.create_volume(asked("pinned", "floating")).await), Code::AlreadyExists);
    let refused = controller.controller_publish_volume(publish(&pinned.volume_id, "node-1")).await;
    assert_eq!(code(&refused), Code::FailedPrecondition);
    ensure!(refused.is_err_and(|refused| refused.message().contains("node-2")));
    cluster.attach(&pinned.volume_id, "node-2").await?;
    std::fs::write(cluster.target("node-2", &pinned.volume_id).join("work"), "kept")?;
    cluster.detach(&pinned.volume_id, "node-2").await?;
    // Asleep in the store it is pinned all the same.
    cluster.cluster.json(&["hibernate", &pinned.volume_id])?;
    let again = controller.create_volume(asked("pinned", "pinned")).await?.into_inner().volume;
    assert_eq!(again.context("it")?.accessible_topology, [segment("node-2")]);
    cluster.attach(&pinned.volume_id, "node-2").await?;
    assert_eq!(std::fs::read(cluster.target("node-2", &pinned.volume_id).join("work"))?, b"kept");
    cluster.attach(&floating.volume_id, "node-1").await?;
    assert_eq!(cluster.published("node-1")?.len(), 1);
    Ok(())
}
