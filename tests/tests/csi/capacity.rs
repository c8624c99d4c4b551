//! What is promised can be written, and what can be written was promised.

use anyhow::{Context as _, Result, ensure};
use proto::csi::v1 as csi;
use tests::cluster::Options;
use tests::kubernetes::{Kubernetes, capability, code, create, only_on, segment, until};
use tests::same::run;
use tonic::Code;

/// How far a promise may be from the truth.
const PERCENT: u64 = 5;

/// Writes random bytes until there is no room, also after commits have given back what was only reserved; prints how many.
const FILL: &str = r"
import os, sys
refused = written = 0
with open(sys.argv[1] + '/fill', 'wb', buffering=0) as fill:
    while refused < 4:
        try:
            written += fill.write(os.urandom(1 << 20)); refused = 0
            if written % (32 << 20) == 0: os.fdatasync(fill.fileno())
        except OSError as error:
            assert error.errno == 28, error
            os.sync(); refused += 1
print(written)
";

async fn room(cluster: &Kubernetes, node: &str) -> Result<u64> {
    let request = csi::GetCapacityRequest { accessible_topology: Some(segment(node)), ..Default::default() };
    let answer = cluster.controller().await?.get_capacity(request).await?.into_inner();
    Ok(u64::try_from(answer.available_capacity)?)
}

fn near(one: u64, other: u64) -> bool {
    one.abs_diff(other) * 100 <= other * PERCENT
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand08_capacity_of_a_segment_is_what_can_be_written_there() -> Result<()> {
    let options = Options { arguments: vec!["--pool-size".into(), "1Gi".into()], ..Options::default() };
    let Some(cluster) = Kubernetes::start_with("csi-room", 2, options)? else { return Ok(()) };
    let mut controller = cluster.controller().await?;
    let empty = room(&cluster, "node-1").await?;
    ensure!(empty > 500 << 20, "{empty}");
    assert_eq!(room(&cluster, "node-3").await?, 0, "a segment without a node has none");
    let all = controller.get_capacity(csi::GetCapacityRequest::default()).await?.into_inner();
    let node_2 = room(&cluster, "node-2").await?;
    ensure!(near(u64::try_from(all.available_capacity)?, empty + node_2), "{all:?}");
    // Nothing but the pool stops this one.
    let soft = [("quotaClass".to_owned(), "soft".to_owned())].into();
    let request = csi::CreateVolumeRequest { mutable_parameters: soft, ..create("filler") };
    let filler = cluster.create_with(only_on("node-1", request)).await?;
    cluster.attach(&filler, "node-1").await?;
    let promised = room(&cluster, "node-1").await?;
    let fill = cluster
        .cluster
        .command_on("node-1", "python3")
        .args(["-c", FILL])
        .arg(cluster.target_path("node-1", &filler))
        .output()?;
    ensure!(fill.status.success(), "{}", String::from_utf8_lossy(&fill.stderr));
    let written: u64 = String::from_utf8(fill.stdout)?.trim().parse()?;
    println!("promised {promised}, written {written}");
    ensure!(near(written, promised), "{written} could be written of {promised}");
    until("a full node has no room", async || Ok(room(&cluster, "node-1").await? < empty * PERCENT / 100))
        .await?;
    // The scheduler is told to look elsewhere; what no node could ever hold is another matter.
    let full = controller.create_volume(only_on("node-1", create("late"))).await;
    assert_eq!(code(&full), Code::ResourceExhausted, "{full:?}");
    let elsewhere = cluster.create("elsewhere").await?;
    let placed = controller.controller_publish_volume(tests::kubernetes::publish(&elsewhere, "node-2")).await;
    assert_eq!(code(&placed), Code::Ok, "{placed:?}");
    let huge = csi::CapacityRange { required_bytes: 1 << 50, limit_bytes: 0 };
    let huge = csi::CreateVolumeRequest { capacity_range: Some(huge), ..create("huge") };
    assert_eq!(code(&controller.create_volume(huge).await), Code::OutOfRange);
    let grow = csi::ControllerExpandVolumeRequest {
        volume_id: elsewhere,
        capacity_range: Some(csi::CapacityRange { required_bytes: 1 << 50, limit_bytes: 0 }),
        ..Default::default()
    };
    assert_eq!(code(&controller.controller_expand_volume(grow).await), Code::OutOfRange);
    // What is deleted comes back when the kernel has given it back, and not before.
    let target = cluster.target_path("node-1", &filler).join("fill");
    run(cluster.cluster.command_on("node-1", "rm").arg(target))?;
    run(cluster.cluster.command_on("node-1", "sync").arg("-f").arg(cluster.target_path("node-1", &filler)))?;
    cluster.detach(&filler, "node-1").await?;
    assert_eq!(cluster.delete(&filler).await, Code::Ok);
    until("room comes back", async || Ok(near(room(&cluster, "node-1").await?, empty))).await?;
    let small = csi::CreateVolumeRequest { volume_capabilities: vec![capability()], ..create("late") };
    cluster.create_with(only_on("node-1", small)).await.context("there is room again")?;
    Ok(())
}
