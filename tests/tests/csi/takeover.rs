//! A node that died is followed by another one, and what may be lost is said.

use anyhow::{Context as _, Result, ensure};
use proto::csi::v1 as csi;
use proto::hub::TriggerSyncRequest;
use tests::kubernetes::{Kubernetes, capability, code, patiently, publish, unpublish, until};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand07_a_dead_holder_is_taken_over_and_the_loss_window_is_said() -> Result<()> {
    let Some(cluster) = Kubernetes::start("csi-dead")? else { return Ok(()) };
    let mut controller = cluster.controller().await?;
    let volume = cluster.create("pvc-1").await?;
    cluster.attach(&volume, "node-1").await?;
    let target = cluster.target("node-1", &volume);
    std::fs::write(target.join("durable"), "kept")?;
    let sync = TriggerSyncRequest { volume_id: volume.clone() };
    cluster.cluster.handle().hub().trigger_sync(sync).await?;
    std::fs::write(target.join("late"), "lost")?;
    cluster.cluster.kill("node-1")?;
    assert_eq!(
        code(&controller.controller_publish_volume(publish(&volume, "node-2")).await),
        Code::FailedPrecondition
    );
    // Whoever looks at it is told, also before anybody else wants it.
    until("a volume of a dead node is not well", async || {
        let get = csi::ControllerGetVolumeRequest { volume_id: volume.clone() };
        let answer = cluster.controller().await?.controller_get_volume(get).await?.into_inner();
        Ok(answer.status.and_then(|status| status.volume_condition).is_some_and(|said| said.abnormal))
    })
    .await?;
    // `out-of-service`: Kubernetes takes the attachment off a node that cannot answer.
    // While the node is thought to live and to have it mounted that is refused.
    until("what a dead node had mounted is gone with it", async || {
        let request = unpublish(&volume, "node-1");
        match cluster.controller().await?.controller_unpublish_volume(request).await {
            Err(status) if status.code() == Code::FailedPrecondition => Ok(false),
            taken_off => Ok(taken_off.map(|_| true)?),
        }
    })
    .await?;
    // Whatever passes is no final code.
    let context = patiently(async || cluster.attach(&volume, "node-2").await).await?;
    // The window is said in the answer and in each retry's, in the record, in the volume's condition, and in a metric.
    for key in ["lastDurable", "takenOver"] {
        ensure!(context.get(key).is_some_and(|time| time.starts_with("20")), "{context:?}");
    }
    assert_eq!(context.get("takenFrom").map(String::as_str), Some("node-1"));
    assert_eq!(cluster.attach(&volume, "node-2").await?, context);
    let record = cas::record::get(&cluster.cluster.store().await?, &volume.parse()?).await?.value;
    let takeover = record.taken_over().context("a takeover")?;
    assert_eq!(takeover.durable, record.head_entry().map(|entry| entry.time));
    assert_eq!(takeover.durable.map(|time| time.to_string()).as_ref(), context.get("lastDurable"));
    ensure!(takeover.taken > takeover.durable.context("it was synced")?, "{takeover:?}");
    let get = csi::ControllerGetVolumeRequest { volume_id: volume.clone() };
    let status = controller.controller_get_volume(get).await?.into_inner().status.context("a status")?;
    let condition = status.volume_condition.context("a condition")?;
    ensure!(condition.message.contains("taken over from node-1"), "{condition:?}");
    let metrics = cluster.cluster.metrics("node-2")?;
    assert_eq!(metrics["opensail_takeovers_total"].to_string(), "1");
    let window = takeover.window().as_secs_f64();
    ensure!((metrics["opensail_last_loss_window_seconds"] - window).abs() < 0.001, "{metrics:?}");
    let there = cluster.target("node-2", &volume);
    assert_eq!(std::fs::read(there.join("durable"))?, b"kept");
    ensure!(!there.join("late").exists());
    // The node that lost it comes back, and neither stages nor publishes it.
    cluster.cluster.restart("node-1")?;
    let stage = csi::NodeStageVolumeRequest {
        volume_id: volume.clone(),
        staging_target_path: "/nowhere".to_owned(),
        volume_capability: Some(capability()),
        ..Default::default()
    };
    let staged = cluster.node("node-1").await?.node_stage_volume(stage).await;
    ensure!(matches!(code(&staged), Code::FailedPrecondition | Code::Aborted), "{staged:?}");
    assert_eq!(std::fs::read(there.join("durable"))?, b"kept");
    // What was given and not taken is no takeover.
    cluster.detach(&volume, "node-2").await?;
    let context = patiently(async || cluster.attach(&volume, "node-1").await).await?;
    ensure!(!context.contains_key("lastDurable"), "{context:?}");
    Ok(())
}
