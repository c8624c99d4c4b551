//! Nothing blocks on anything else, over the real daemons: two calls at once, many calls at once, one long restore, and a
//! store that hangs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use proto::csi::v1 as csi;
use tests::cluster::Options;
use tests::kubernetes::{
    Kubernetes, SIZE, capability, code, create, from_volume, only_on, passes, patiently, publish, snapshot,
    unpublish,
};
use tests::proxy::{Fault, Proxy};
use tests::stores::Kind;
use tonic::{Code, Request, Response, Status};

use crate::left::{left, nothing_left};

/// How long a caller waits where it is to be disappointed, and how long the machine may take to tell it so.
const DEADLINE: Duration = Duration::from_secs(1);
const SLACK: Duration = Duration::from_secs(30);

fn by_deadline<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

/// Makes a call twice at once: one is made, the other joins it, finds it done, or is told to come back. Then it is asked
/// for again, as whoever was told so does.
async fn twice<T>(what: &str, call: impl AsyncFn() -> Result<Response<T>, Status>) -> Result<T> {
    let (one, other) = tokio::join!(call(), call());
    let codes = [code(&one), code(&other)];
    ensure!(codes.contains(&Code::Ok), "{what}: {codes:?}");
    ensure!(codes.iter().all(|code| matches!(code, Code::Ok | Code::Aborted)), "{what}: {codes:?}");
    Ok(call().await.with_context(|| format!("{what}, again"))?.into_inner())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand10_the_same_volume_twice_at_once_is_done_once() -> Result<()> {
    let Some(cluster) = Kubernetes::start("csi-twice")? else { return Ok(()) };
    let fresh = left(&cluster, "node-1")?;
    let controller = cluster.controller().await?;
    let kubelet = cluster.node("node-1").await?;
    let list = async || -> Result<usize> {
        let request = csi::ListVolumesRequest::default();
        Ok(controller.clone().list_volumes(request).await?.into_inner().entries.len())
    };
    let made = twice("create", async || controller.clone().create_volume(create("pvc-1")).await).await?;
    let volume = made.volume.context("a volume")?.volume_id;
    assert_eq!(list().await?, 1);
    // Of two nodes that want it one gets it, and the other is told so.
    let (mut one, mut other) = (controller.clone(), controller.clone());
    let (first, second) = tokio::join!(
        one.controller_publish_volume(publish(&volume, "node-1")),
        other.controller_publish_volume(publish(&volume, "node-2"))
    );
    let codes = [code(&first), code(&second)];
    ensure!(codes.iter().filter(|code| **code == Code::Ok).count() == 1, "{codes:?}");
    ensure!(
        codes.iter().all(|code| matches!(code, Code::Ok | Code::FailedPrecondition | Code::Aborted)),
        "{codes:?}"
    );
    let winner = if first.is_ok() { "node-1" } else { "node-2" };
    twice("unpublish", async || {
        controller.clone().controller_unpublish_volume(unpublish(&volume, winner)).await
    })
    .await?;
    let call = async || controller.clone().controller_publish_volume(publish(&volume, "node-1")).await;
    let context = twice("publish", call).await?.publish_context;
    let stage = csi::NodeStageVolumeRequest {
        volume_id: volume.clone(),
        publish_context: context.clone(),
        staging_target_path: cluster.staging_path("node-1"),
        volume_capability: Some(capability()),
        ..Default::default()
    };
    twice("stage", async || kubelet.clone().node_stage_volume(stage.clone()).await).await?;
    let target = cluster.target_path("node-1", &volume);
    let publication = cluster.publication(&volume, "node-1", &target);
    twice("mount", async || kubelet.clone().node_publish_volume(publication.clone()).await).await?;
    assert_eq!(cluster.published("node-1")?, std::slice::from_ref(&target));
    std::fs::write(cluster.target("node-1", &volume).join("file"), "kept")?;
    let grow = csi::ControllerExpandVolumeRequest {
        volume_id: volume.clone(),
        capacity_range: Some(csi::CapacityRange { required_bytes: SIZE * 2, limit_bytes: 0 }),
        ..Default::default()
    };
    let call = async || controller.clone().controller_expand_volume(grow.clone()).await;
    assert_eq!(twice("expand", call).await?.capacity_bytes, SIZE * 2);
    let modify = csi::ControllerModifyVolumeRequest {
        volume_id: volume.clone(),
        mutable_parameters: [("quotaClass".to_owned(), "burst".to_owned())].into(),
        ..Default::default()
    };
    twice("modify", async || controller.clone().controller_modify_volume(modify.clone()).await).await?;
    let call = async || controller.clone().create_snapshot(snapshot("snapshot-1", &volume)).await;
    let taken = twice("snapshot", call).await?.snapshot.context("a snapshot")?.snapshot_id;
    let snapshots = controller.clone().list_snapshots(csi::ListSnapshotsRequest::default()).await?;
    assert_eq!(snapshots.into_inner().entries.len(), 1);
    let clone = csi::CreateVolumeRequest { capacity_range: None, ..from_volume("clone", &volume) };
    let call = async || controller.clone().create_volume(clone.clone()).await;
    let clone = twice("clone", call).await?.volume.context("a volume")?.volume_id;
    assert_eq!(list().await?, 2);
    let off = csi::NodeUnpublishVolumeRequest {
        volume_id: volume.clone(),
        target_path: target.display().to_string(),
    };
    twice("unmount", async || kubelet.clone().node_unpublish_volume(off.clone()).await).await?;
    let unstage = csi::NodeUnstageVolumeRequest {
        volume_id: volume.clone(),
        staging_target_path: cluster.staging_path("node-1"),
    };
    twice("unstage", async || kubelet.clone().node_unstage_volume(unstage.clone()).await).await?;
    let request = unpublish(&volume, "node-1");
    twice("unpublish", async || controller.clone().controller_unpublish_volume(request.clone()).await)
        .await?;
    let drop = csi::DeleteSnapshotRequest { snapshot_id: taken, ..Default::default() };
    twice("drop", async || controller.clone().delete_snapshot(drop.clone()).await).await?;
    for volume in [volume, clone] {
        let delete = csi::DeleteVolumeRequest { volume_id: volume, ..Default::default() };
        twice("delete", async || controller.clone().delete_volume(delete.clone()).await).await?;
    }
    assert_eq!(list().await?, 0);
    nothing_left(&cluster, "node-1", &fresh).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_and_a_publication_at_once_never_both_succeed() -> Result<()> {
    let Some(cluster) = Kubernetes::start("csi-delete-publish")? else { return Ok(()) };
    let fresh = left(&cluster, "node-1")?;
    let controller = cluster.controller().await?;
    for round in 0..12 {
        let made = controller.clone().create_volume(create(&format!("pvc-{round}"))).await?.into_inner();
        let volume = made.volume.context("a volume")?.volume_id;
        let (mut one, mut other) = (controller.clone(), controller.clone());
        let delete = csi::DeleteVolumeRequest { volume_id: volume.clone(), ..Default::default() };
        let (deletion, publication) = tokio::join!(
            one.delete_volume(delete),
            other.controller_publish_volume(publish(&volume, "node-1"))
        );
        let codes = (code(&deletion), code(&publication));
        match codes {
            // The publication was in the record first. What was told to come back succeeds then.
            (Code::FailedPrecondition, Code::Ok | Code::Aborted) => {
                cluster.attach(&volume, "node-1").await?;
                let refused = cluster.try_delete(&volume).await;
                ensure!(refused.as_ref().is_err_and(|status| status.code() == Code::FailedPrecondition));
                cluster.detach(&volume, "node-1").await?;
                cluster.try_delete(&volume).await?;
            }
            (Code::Ok, Code::NotFound | Code::Aborted) => {
                let again = controller.clone().controller_publish_volume(publish(&volume, "node-1")).await;
                assert_eq!(code(&again), Code::NotFound);
            }
            // The publication got in between its look and the hub's, and is not through yet.
            (Code::Aborted, Code::Ok) => {
                cluster.detach(&volume, "node-1").await?;
                cluster.try_delete(&volume).await?;
            }
            _ => anyhow::bail!("round {round}: {codes:?}"),
        }
    }
    nothing_left(&cluster, "node-1", &fresh).await
}

/// The limits of the groups of volumes on a node, as `btrfs` tells them.
fn limits(cluster: &Kubernetes, node: &str) -> Result<Vec<u64>> {
    let pool = cluster.cluster.directory().join(node).join("mnt");
    let mut show = cluster.cluster.command_on(node, "btrfs");
    let shown = show.args(["qgroup", "show", "-r", "--raw"]).arg(pool).output()?;
    ensure!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let text = String::from_utf8(shown.stdout)?;
    let groups = text.lines().filter(|line| line.trim_start().starts_with("1/"));
    let mut limits: Vec<u64> =
        groups.filter_map(|line| line.split_whitespace().nth(3)?.parse().ok()).collect();
    limits.sort_unstable();
    Ok(limits)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand10_two_hundred_creates_and_clones_at_once_are_two_hundred_volumes() -> Result<()> {
    const HALF: i64 = 100;
    const MIB: i64 = 1 << 20;
    let Some(cluster) = Kubernetes::start_with("csi-many", 1, Options::default())? else { return Ok(()) };
    let fresh = left(&cluster, "node-1")?;
    let controller = cluster.controller().await?;
    let source = cluster.create_with(csi::CreateVolumeRequest {
        capacity_range: Some(csi::CapacityRange { required_bytes: 16 * MIB, limit_bytes: 0 }),
        ..create("source")
    });
    let source = source.await?;
    cluster.attach(&source, "node-1").await?;
    std::fs::write(cluster.target("node-1", &source).join("file"), "of the source")?;
    // Each of its own size, so that it can be told whose limit is whose.
    let calls = (0..HALF * 2).map(|number| {
        let name = format!("pvc-{number}");
        let request = if number < HALF { create(&name) } else { from_volume(&name, &source) };
        let bytes = (20 + number) * MIB;
        let capacity_range = Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: bytes });
        let request = csi::CreateVolumeRequest { capacity_range, ..request };
        let controller = controller.clone();
        async move {
            let call = async || controller.clone().create_volume(request.clone()).await;
            let made = patiently(call).await?.into_inner().volume.unwrap_or_default();
            Ok::<_, Status>((made.volume_id, made.capacity_bytes, bytes))
        }
    });
    let mut made = BTreeMap::new();
    for call in futures::future::join_all(calls).await {
        let (volume, capacity, asked) = call?;
        assert_eq!(capacity, asked);
        ensure!(made.insert(volume.clone(), capacity).is_none(), "{volume} twice");
    }
    assert_eq!(made.len(), 200);
    let listed = controller.clone().list_volumes(csi::ListVolumesRequest::default()).await?.into_inner();
    let listed: BTreeMap<String, i64> = listed
        .entries
        .into_iter()
        .filter_map(|entry| entry.volume)
        .map(|volume| (volume.volume_id, volume.capacity_bytes))
        .filter(|(volume, _)| *volume != source)
        .collect();
    assert_eq!(listed, made);
    // A fork may have as much more as the root of its tree.
    let expected: Vec<i64> = std::iter::once(16).chain(20..20 + HALF * 2).collect();
    let limits = limits(&cluster, "node-1")?;
    let rounded: Vec<i64> =
        limits.iter().map(|limit| Ok(i64::try_from(*limit)? / MIB)).collect::<Result<_>>()?;
    assert_eq!(rounded, expected, "{limits:?}");
    for (volume, number) in made.keys().rev().zip(0..5) {
        cluster.attach(volume, "node-1").await?;
        let file = cluster.target("node-1", volume).join("file");
        assert_eq!(file.exists(), made[volume] >= (20 + HALF) * MIB, "{number}: {volume}");
        cluster.detach(volume, "node-1").await?;
    }
    cluster.detach(&source, "node-1").await?;
    // And they all go at once.
    let all: BTreeSet<String> = made.into_keys().chain([source]).collect();
    let calls = all.into_iter().map(|volume| {
        let controller = controller.clone();
        async move {
            let request = csi::DeleteVolumeRequest { volume_id: volume, ..Default::default() };
            let call = async || match controller.clone().delete_volume(request.clone()).await {
                // The hub hears of an unmount with the next heartbeat.
                Err(status) if status.code() == Code::FailedPrecondition => {
                    Err(Status::unavailable(status.message()))
                }
                answer => answer,
            };
            patiently(call).await
        }
    });
    for call in futures::future::join_all(calls).await {
        call?;
    }
    nothing_left(&cluster, "node-1", &fresh).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand10_one_long_restore_holds_up_no_other_volume() -> Result<()> {
    // The second pack comes minutes after the first.
    let slow = ["--download-limit".to_owned(), "64Ki".to_owned()];
    let options = Options { node_arguments: slow.to_vec(), ..Options::default() };
    let Some(cluster) = Kubernetes::start_with("csi-long", 2, options)? else { return Ok(()) };
    let controller = cluster.controller().await?;
    let long = cluster.create_with(only_on("node-1", create("long"))).await?;
    cluster.attach(&long, "node-1").await?;
    let mut noise = vec![0; 4 << 20];
    for number in 0..12 {
        rand::Rng::fill_bytes(&mut rand::rng(), &mut noise);
        std::fs::write(cluster.target("node-1", &long).join(format!("noise-{number}")), &noise)?;
    }
    cluster.detach(&long, "node-1").await?;
    let asked = by_deadline(publish(&long, "node-2"));
    let answer = controller.clone().controller_publish_volume(asked).await.unwrap_err();
    ensure!(passes(&answer) || answer.code() == Code::Cancelled, "{answer}");
    let stage = csi::NodeStageVolumeRequest {
        volume_id: long.clone(),
        staging_target_path: cluster.staging_path("node-2"),
        volume_capability: Some(capability()),
        ..Default::default()
    };
    // The node says what it is at: the long one is on its way there.
    let on_its_way = async || -> Result<bool> {
        match cluster.node("node-2").await?.node_stage_volume(stage.clone()).await {
            Err(status) if status.code() == Code::Aborted => Ok(true),
            // The order may not have come to the node yet: it is another node's.
            Err(status) if status.code() == Code::FailedPrecondition => Ok(false),
            answer => anyhow::bail!("{answer:?}"),
        }
    };
    tests::kubernetes::until("the long restore has begun", &on_its_way).await?;
    let began = Instant::now();
    for number in 0..6 {
        let volume = cluster.create_with(only_on("node-2", create(&format!("pvc-{number}")))).await?;
        cluster.attach(&volume, "node-2").await?;
        std::fs::write(cluster.target("node-2", &volume).join("file"), "x")?;
        let stats = cluster.stats(&volume, "node-2").await?;
        ensure!(!stats.volume_condition.context("a condition")?.abnormal);
        cluster.snapshot(&format!("snapshot-{number}"), &volume).await?;
        cluster.detach(&volume, "node-2").await?;
    }
    println!("six volumes were made, used and left in {:?} beside it", began.elapsed());
    ensure!(on_its_way().await?, "it is still on its way");
    ensure!(cluster.published("node-2")?.is_empty());
    // A retry of the long one is told so as well, by its deadline.
    let asked = by_deadline(publish(&long, "node-2"));
    let answer = controller.clone().controller_publish_volume(asked).await.unwrap_err();
    ensure!(passes(&answer) || answer.code() == Code::Cancelled, "{answer}");
    // Nobody waits for its end.
    cluster.cluster.kill("node-2")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand10_a_store_that_hangs_ends_no_call_for_good_and_holds_up_nothing_local() -> Result<()> {
    let Some(options) = Kind::S3.options()? else { return Ok(()) };
    let (proxy, url) = Proxy::before(options.store.as_deref().context("a store")?)?;
    let options = Options { store: Some(url), ..options };
    let Some(cluster) = Kubernetes::start_with("csi-hang", 1, options)? else { return Ok(()) };
    let fresh = left(&cluster, "node-1")?;
    let controller = cluster.controller().await?;
    let (used, idle) = (cluster.create("used").await?, cluster.create("idle").await?);
    cluster.attach(&used, "node-1").await?;
    std::fs::write(cluster.target("node-1", &used).join("file"), "kept")?;
    proxy.plan(|_| Fault::Stall);
    let grow = csi::ControllerExpandVolumeRequest {
        volume_id: used.clone(),
        capacity_range: Some(csi::CapacityRange { required_bytes: SIZE * 2, limit_bytes: 0 }),
        ..Default::default()
    };
    let gone = csi::DeleteVolumeRequest { volume_id: idle.clone(), ..Default::default() };
    let unstage = csi::NodeUnstageVolumeRequest {
        volume_id: used.clone(),
        staging_target_path: cluster.staging_path("node-1"),
    };
    for round in 0..2 {
        let started = Instant::now();
        let mut kubelet = cluster.node("node-1").await?;
        let at = || controller.clone();
        let answers = [
            ("create", at().create_volume(by_deadline(create("late"))).await.map(drop)),
            (
                "publish",
                at().controller_publish_volume(by_deadline(publish(&idle, "node-1"))).await.map(drop),
            ),
            ("snapshot", at().create_snapshot(by_deadline(snapshot("late", &used))).await.map(drop)),
            ("expand", at().controller_expand_volume(by_deadline(grow.clone())).await.map(drop)),
            ("list", at().list_volumes(by_deadline(csi::ListVolumesRequest::default())).await.map(drop)),
            ("unstage", kubelet.node_unstage_volume(by_deadline(unstage.clone())).await.map(drop)),
            ("delete", at().delete_volume(by_deadline(gone.clone())).await.map(drop)),
        ];
        for (call, answer) in answers {
            let status = answer.err().with_context(|| format!("{call} needs the store"))?;
            ensure!(passes(&status) || status.code() == Code::Cancelled, "{round}: {call}: {status}");
        }
        ensure!(started.elapsed() < DEADLINE * 7 + SLACK, "{:?}", started.elapsed());
        // What is local is answered.
        let second = cluster.target_path("node-1", "second");
        kubelet.node_publish_volume(cluster.publication(&used, "node-1", &second)).await?;
        assert_eq!(std::fs::read(cluster.target("node-1", "second").join("file"))?, b"kept");
        cluster.stats(&used, "node-1").await?;
        let off = csi::NodeUnpublishVolumeRequest {
            volume_id: used.clone(),
            target_path: second.display().to_string(),
        };
        kubelet.node_unpublish_volume(off).await?;
        controller.clone().get_capacity(csi::GetCapacityRequest::default()).await?;
    }
    proxy.reset();
    // It is back, and each is done once.
    cluster.create("late").await?;
    patiently(async || controller.clone().controller_expand_volume(grow.clone()).await).await?;
    patiently(async || controller.clone().create_snapshot(snapshot("late", &used)).await).await?;
    patiently(async || {
        cluster.node("node-1").await.map_err(failed)?.node_unstage_volume(unstage.clone()).await
    })
    .await?;
    let listed = controller.clone().list_volumes(csi::ListVolumesRequest::default()).await?.into_inner();
    let mut sizes: Vec<i64> = listed
        .entries
        .into_iter()
        .filter_map(|entry| entry.volume)
        .map(|volume| volume.capacity_bytes)
        .collect();
    sizes.sort_unstable();
    ensure!(sizes == [SIZE, SIZE, SIZE * 2] || sizes == [SIZE, SIZE * 2], "{sizes:?}");
    let snapshots =
        controller.clone().list_snapshots(csi::ListSnapshotsRequest::default()).await?.into_inner();
    assert_eq!(snapshots.entries.len(), 1);
    assert_eq!(std::fs::read(cluster.target("node-1", &used).join("file"))?, b"kept");
    ensure!(left(&cluster, "node-1")? != fresh);
    Ok(())
}

fn failed(error: anyhow::Error) -> Status {
    Status::unavailable(format!("{error:#}"))
}
