//! What volumes are made from, on any node, and how they are listed.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context as _, Result, ensure};
use proto::csi::v1 as csi;
use tests::kubernetes::{Kubernetes, SIZE, code, create, from_snapshot, from_volume};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w45_demand06_templates_clones_and_snapshots_are_sources_on_any_node() -> Result<()> {
    let Some(cluster) = Kubernetes::start("csi-sources")? else { return Ok(()) };
    let mut controller = cluster.controller().await?;
    let directory = tempfile::tempdir()?;
    std::fs::write(directory.path().join("start"), "of the template")?;
    let from = directory.path().display().to_string();
    cluster.cluster.json(&["template", "create", "node-22", "--from", &from])?;
    let parameters = HashMap::from([("template".to_owned(), "node-22".to_owned())]);
    let request = csi::CreateVolumeRequest { parameters: parameters.clone(), ..create("pvc-1") };
    let volume = cluster.create_with(request.clone()).await?;
    cluster.attach(&volume, "node-1").await?;
    assert_eq!(std::fs::read(cluster.target("node-1", &volume).join("start"))?, b"of the template");
    std::fs::write(cluster.target("node-1", &volume).join("own"), "work")?;
    // A clone of a volume that is in use on the other node, and one of its snapshot there.
    let snapshot = cluster.snapshot("snapshot-1", &volume).await?;
    for request in [from_volume("clone", &volume), from_snapshot("restored", &snapshot.snapshot_id)] {
        let source = request.volume_content_source.clone();
        let made = controller.create_volume(request.clone()).await?.into_inner().volume.context("it")?;
        assert_eq!(made.content_source, source, "what it was made from is said");
        assert_eq!(made.capacity_bytes, SIZE);
        let again = controller.create_volume(request).await?.into_inner().volume.context("it")?;
        assert_eq!(again, made, "twice is once");
        cluster.attach(&made.volume_id, "node-2").await?;
        let there = cluster.target("node-2", &made.volume_id);
        assert_eq!(std::fs::read(there.join("start"))?, b"of the template");
        assert_eq!(std::fs::read(there.join("own"))?, b"work");
        std::fs::write(there.join("own"), "of the copy")?;
        assert_eq!(std::fs::read(cluster.target("node-1", &volume).join("own"))?, b"work");
    }
    // The same name for another thing is told apart: by source, size, limit, parameters.
    let narrow = csi::CapacityRange { required_bytes: 0, limit_bytes: SIZE / 2 };
    for different in [
        from_volume("pvc-1", &volume),
        csi::CreateVolumeRequest { parameters: HashMap::new(), ..request.clone() },
        csi::CreateVolumeRequest { capacity_range: Some(narrow), ..request.clone() },
    ] {
        assert_eq!(code(&controller.create_volume(different).await), Code::AlreadyExists);
    }
    for (missing, expected) in [
        (from_volume("x", "vol-none"), Code::NotFound),
        (from_snapshot("x", "../../vol"), Code::NotFound),
        (from_snapshot("x", &volume), Code::NotFound),
        (csi::CreateVolumeRequest { volume_capabilities: Vec::new(), ..create("x") }, Code::InvalidArgument),
    ] {
        assert_eq!(code(&controller.create_volume(missing).await), expected);
    }
    // Inline, from the template: it comes and goes with the pod, on any node.
    let handle = format!("csi-{}", "0123456789abcdef".repeat(4));
    let target = cluster.target_path("node-2", "inline");
    let mut inline = cluster.publication(&handle, "node-2", &target);
    inline.staging_target_path = String::new();
    inline.volume_context = parameters;
    inline.volume_context.insert("csi.storage.k8s.io/ephemeral".to_owned(), "true".to_owned());
    let mut kubelet = cluster.node("node-2").await?;
    kubelet.node_publish_volume(inline).await?;
    let there = cluster.target("node-2", "inline");
    assert_eq!(std::fs::read(there.join("start"))?, b"of the template");
    std::fs::write(there.join("scratch"), "x")?;
    let off = csi::NodeUnpublishVolumeRequest {
        volume_id: handle.clone(),
        target_path: target.display().to_string(),
    };
    kubelet.node_unpublish_volume(off.clone()).await?;
    // What is not mounted any more, or never was, is unpublished.
    kubelet.node_unpublish_volume(off).await?;
    ensure!(!there.exists());
    let left = std::fs::read_dir(cluster.cluster.pool("node-2").join("volumes"))?.filter_map(Result::ok);
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    ensure!(!left.iter().any(|name| name.to_string_lossy().starts_with("eph")), "{left:?}");
    Ok(())
}

/// Pages through the snapshots, two at a time, and does something between any two pages.
async fn pages(
    cluster: &Kubernetes,
    mut between: impl AsyncFnMut(usize) -> Result<()>,
) -> Result<Vec<String>> {
    let mut controller = cluster.controller().await?;
    let (mut ids, mut starting_token) = (Vec::new(), String::new());
    for page in 0.. {
        let request = csi::ListSnapshotsRequest { max_entries: 2, starting_token, ..Default::default() };
        let answer = controller.list_snapshots(request).await?.into_inner();
        ensure!(answer.entries.len() <= 2, "{answer:?}");
        ids.extend(answer.entries.into_iter().filter_map(|entry| entry.snapshot).map(|one| one.snapshot_id));
        starting_token = answer.next_token;
        if starting_token.is_empty() {
            break;
        }
        between(page).await?;
    }
    Ok(ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w45_lists_page_stably_while_things_come_and_go() -> Result<()> {
    let Some(cluster) = Kubernetes::start_with("csi-pages", 1, Default::default())? else { return Ok(()) };
    let mut controller = cluster.controller().await?;
    let volume = cluster.create("pvc-1").await?;
    let mut taken = Vec::new();
    for number in 0..7 {
        taken.push(cluster.snapshot(&format!("snapshot-{number}"), &volume).await?);
    }
    let all: BTreeSet<String> = taken.iter().map(|one| one.snapshot_id.clone()).collect();
    let calm = pages(&cluster, async |_| Ok(())).await?;
    assert_eq!(calm.iter().cloned().collect::<BTreeSet<_>>(), all);
    assert_eq!(calm.len(), all.len(), "each once");
    // While one that was shown goes, one that was not shown goes, and new ones come.
    let churned = pages(&cluster, async |page| {
        let mut controller = cluster.controller().await?;
        for gone in [calm.get(page), calm.get(6 - page)].into_iter().flatten().filter(|_| page < 2) {
            let request = csi::DeleteSnapshotRequest { snapshot_id: gone.clone(), ..Default::default() };
            controller.delete_snapshot(request).await?;
        }
        cluster.snapshot(&format!("late-{page}"), &volume).await?;
        Ok(())
    })
    .await?;
    let unique: BTreeSet<&String> = churned.iter().collect();
    assert_eq!(unique.len(), churned.len(), "none twice: {churned:?}");
    for steady in &calm[2..5] {
        ensure!(churned.contains(steady), "{steady} was there all the time: {churned:?}");
    }
    // Filters, and what does not exist, which is an empty list.
    let filtered = async |snapshot_id: &str, source_volume_id: &str| -> Result<usize> {
        let request = csi::ListSnapshotsRequest {
            snapshot_id: snapshot_id.to_owned(),
            source_volume_id: source_volume_id.to_owned(),
            ..Default::default()
        };
        Ok(cluster.controller().await?.list_snapshots(request).await?.into_inner().entries.len())
    };
    assert_eq!(filtered(&calm[3], "").await?, 1);
    ensure!(filtered("", &volume).await? >= 3);
    assert_eq!((filtered("none", "").await?, filtered("", "none").await?), (0, 0));
    let wrong = csi::ListVolumesRequest { max_entries: 1, starting_token: "page-2".to_owned() };
    assert_eq!(code(&controller.list_volumes(wrong).await), Code::Aborted);
    // The times are those of the snapshots, in the order they were taken, and stay so.
    let times: Vec<_> =
        taken.iter().filter_map(|one| one.creation_time).map(|at| (at.seconds, at.nanos)).collect();
    ensure!(times.len() == 7 && times.is_sorted(), "{times:?}");
    Ok(())
}
