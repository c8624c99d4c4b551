//! Daemons that are killed: pods do not notice, and nothing is left over.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use proto::csi::v1::controller_client::ControllerClient;
use proto::csi::v1::{ListSnapshotsRequest, ListVolumesRequest};
use rand::RngExt as _;
use tests::kubernetes::{Kubernetes, code, create, patiently, publish, snapshot};
use tonic::{Code, Status};

use crate::left::{left, nothing_left};

/// How often the daemon under a writer is killed.
const WRITER_KILLS: u32 = 20;

/// How many rounds of a volume's life are cut by kills; `CSI_KILLS` for more.
const ROUNDS: u32 = 8;

/// Appends a line and fsyncs it until its standard input ends; prints how many, and the first error.
const WRITER: &str = r"
import os, select, sys
lines = 0
with open(sys.argv[1] + '/log', 'ab', buffering=0) as log:
    while not select.select([sys.stdin], [], [], 0)[0]:
        try:
            log.write(b'line %d\n' % lines); os.fsync(log.fileno()); lines += 1
        except OSError as error:
            print('failed', error); sys.exit(1)
print(lines)
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand11_a_writer_does_not_notice_that_its_daemon_is_killed_twenty_times() -> Result<()> {
    let Some(cluster) = Kubernetes::start_with("csi-writer", 1, Default::default())? else { return Ok(()) };
    let volume = cluster.create("pvc-1").await?;
    cluster.attach(&volume, "node-1").await?;
    let mounts = cluster.cluster.mounts("node-1")?;
    let mut writer = cluster
        .cluster
        .command_on("node-1", "python3")
        .args(["-c", WRITER])
        .arg(cluster.target_path("node-1", &volume))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    for kill in 0..WRITER_KILLS {
        cluster.cluster.kill("node-1")?;
        // The hub has its turn as well.
        if kill % 5 == 4 {
            cluster.cluster.kill("hub")?;
            cluster.cluster.restart("hub")?;
        }
        cluster.cluster.restart("node-1")?;
        ensure!(writer.try_wait()?.is_none(), "the writer ended at kill {kill}");
    }
    drop(writer.stdin.take());
    let output = writer.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
    let lines: usize = said.parse().context("a number of lines")?;
    let log = std::fs::read_to_string(cluster.target("node-1", &volume).join("log"))?;
    println!("{lines} lines with fsync through {WRITER_KILLS} kills");
    assert_eq!(log.lines().count(), lines);
    ensure!(lines > 20, "{lines}");
    assert_eq!(cluster.cluster.mounts("node-1")?, mounts, "neither more nor fewer");
    // A second pod, on the daemon that has been killed, sees the same volume.
    assert_eq!(cluster.attach(&volume, "node-1").await?.get("epoch").map(String::as_str), Some("1"));
    Ok(())
}

/// A sidecar that calls until the answer is final, whatever is killed meanwhile.
async fn insist<T>(what: &str, call: impl AsyncFnMut() -> Result<T, Status>) -> Result<T> {
    patiently(call).await.with_context(|| what.to_owned())
}

/// The hub hears of an unmount with the next heartbeat; until then a volume is mounted to it.
fn not_yet(status: Status) -> Status {
    if status.code() == Code::FailedPrecondition {
        Status::unavailable(status.message().to_owned())
    } else {
        status
    }
}

/// One volume's life, each step of it until it succeeds: what Kubernetes does.
async fn life(cluster: &Kubernetes, name: &str) -> Result<()> {
    let failed = |error: anyhow::Error| Status::unavailable(format!("{error:#}"));
    let volume = insist("create", async || {
        let answer = cluster.controller().await.map_err(failed)?.create_volume(create(name)).await?;
        Ok(answer.into_inner().volume.map(|volume| volume.volume_id).unwrap_or_default())
    })
    .await?;
    insist("attach", async || cluster.attach(&volume, "node-1").await).await?;
    std::fs::write(cluster.target("node-1", &volume).join("file"), name)?;
    let taken = insist("snapshot", async || {
        let mut controller = cluster.controller().await.map_err(failed)?;
        let answer = controller.create_snapshot(snapshot(&format!("{name}-snapshot"), &volume)).await?;
        Ok(answer.into_inner().snapshot.map(|snapshot| snapshot.snapshot_id).unwrap_or_default())
    })
    .await?;
    let copy = insist("restore", async || {
        let mut controller = cluster.controller().await.map_err(failed)?;
        let request = tests::kubernetes::from_snapshot(&format!("{name}-copy"), &taken);
        Ok(controller.create_volume(request).await?.into_inner().volume.unwrap_or_default().volume_id)
    })
    .await?;
    insist("attach the copy", async || cluster.attach(&copy, "node-1").await).await?;
    assert_eq!(std::fs::read(cluster.target("node-1", &copy).join("file"))?, name.as_bytes());
    for id in [&volume, &copy] {
        insist("detach", async || cluster.detach(id, "node-1").await.map_err(not_yet)).await?;
        insist("delete", async || cluster.try_delete(id).await.map_err(not_yet)).await?;
    }
    insist("delete the snapshot", async || {
        let mut controller = cluster.controller().await.map_err(failed)?;
        let request =
            proto::csi::v1::DeleteSnapshotRequest { snapshot_id: taken.clone(), ..Default::default() };
        controller.delete_snapshot(request).await
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand11_kills_at_any_point_leave_no_mount_subvolume_group_or_snapshot() -> Result<()> {
    let Some(cluster) = Kubernetes::start_with("csi-leaks", 1, Default::default())? else { return Ok(()) };
    let rounds = std::env::var("CSI_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let fresh = left(&cluster, "node-1")?;
    // A life without any kill first.
    let calm = Instant::now();
    life(&cluster, "calm").await?;
    let calm = calm.elapsed();
    nothing_left(&cluster, "node-1", &fresh).await?;
    let mut killed = BTreeMap::<&str, u32>::new();
    for round in 0..rounds {
        let name = format!("round-{round}");
        let living = life(&cluster, &name);
        tokio::pin!(living);
        loop {
            // Somewhere in a life: half of one is short enough that most meet a kill.
            let pause = calm.mul_f64(rand::rng().random_range(0.0..0.5));
            tokio::select! {
                lived = &mut living => {
                    lived.with_context(|| name.clone())?;
                    break;
                }
                () = tokio::time::sleep(pause) => {}
            }
            let daemon = if rand::rng().random_range(0..4) == 0 { "hub" } else { "node-1" };
            *killed.entry(daemon).or_default() += 1;
            let again = cluster.cluster.kill(daemon).and_then(|()| cluster.cluster.restart(daemon));
            again.with_context(|| format!("{name}: {daemon}"))?;
        }
    }
    println!("killed {killed:?}");
    ensure!(killed.values().sum::<u32>() >= rounds, "{killed:?}");
    // A last start sweeps what the last kill left.
    cluster.cluster.kill("node-1")?;
    cluster.cluster.restart("node-1")?;
    nothing_left(&cluster, "node-1", &fresh).await?;
    let mut controller = cluster.controller().await?;
    let volumes = controller.list_volumes(ListVolumesRequest::default()).await?.into_inner().entries;
    let snapshots = controller.list_snapshots(ListSnapshotsRequest::default()).await?.into_inner().entries;
    ensure!(volumes.is_empty() && snapshots.is_empty(), "{volumes:?} {snapshots:?}");
    let loops = Command::new("losetup").arg("-j").arg(cluster.cluster.pool_image("node-1")).output()?;
    assert_eq!(String::from_utf8_lossy(&loops.stdout).lines().count(), 1, "one loop device");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand11_controllers_may_be_two_and_any_may_die_at_any_time() -> Result<()> {
    let Some(cluster) = Kubernetes::start("csi-controllers")? else { return Ok(()) };
    let fresh = [left(&cluster, "node-1")?, left(&cluster, "node-2")?];
    let first = cluster.controller().await?;
    for round in 0..6 {
        let (mut other, socket) = cluster.cluster.csi_controller_named(&format!("other-{round}"))?;
        let second = ControllerClient::new(Kubernetes::channel(&socket).await?);
        let name = format!("pvc-{round}");
        // The one that dies is killed somewhere in the call.
        let pause = Duration::from_millis(rand::rng().random_range(0..60));
        let call = tokio::spawn({
            let (mut second, request) = (second.clone(), create(&name));
            async move { second.create_volume(request).await }
        });
        tokio::time::sleep(pause).await;
        let lives = round % 2 == 0;
        if !lives {
            other.kill()?;
            other.wait()?;
        }
        let made = insist("create", async || first.clone().create_volume(create(&name)).await).await?;
        let volume = made.into_inner().volume.context("a volume")?.volume_id;
        if let Ok(answer) = call.await? {
            assert_eq!(answer.into_inner().volume.context("a volume")?.volume_id, volume);
        }
        if lives {
            // Each for another node: one gets it.
            let (mut one, mut another) = (first.clone(), second.clone());
            let (one, another) = tokio::join!(
                one.controller_publish_volume(publish(&volume, "node-1")),
                another.controller_publish_volume(publish(&volume, "node-2"))
            );
            let codes = [code(&one), code(&another)];
            ensure!(codes.iter().filter(|code| **code == Code::Ok).count() == 1, "{codes:?}");
            let node = if one.is_ok() { "node-1" } else { "node-2" };
            cluster.attach(&volume, node).await?;
            cluster.detach(&volume, node).await?;
            other.kill()?;
            other.wait()?;
        }
        let listed = first.clone().list_volumes(ListVolumesRequest::default()).await?.into_inner().entries;
        assert_eq!(listed.len(), 1, "{listed:?}");
        insist("delete", async || cluster.try_delete(&volume).await.map_err(not_yet)).await?;
    }
    for (node, fresh) in ["node-1", "node-2"].into_iter().zip(&fresh) {
        // A node that gave a volume away keeps a snapshot of it, until it is told that the volume was deleted.
        nothing_left(&cluster, node, fresh).await?;
    }
    Ok(())
}
