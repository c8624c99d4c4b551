//! What no log may hold, not even the most talkative one.

use std::collections::HashMap;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use proto::csi::v1 as csi;
use tests::kubernetes::{Kubernetes, create, publish, until};
use tests::stores::Kind;

/// What stands in requests and must stay there.
const SECRET: &str = "hunter2-of-the-request";
/// Names and contents of files.
const FILE: &str = "diary-of-a-tenant";
const CONTENT: &str = "dear-diary-content";

fn secrets() -> HashMap<String, String> {
    HashMap::from([("password".to_owned(), SECRET.to_owned())])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand12_secrets_and_file_names_are_in_no_log() -> Result<()> {
    let Some(mut options) = Kind::S3.options()? else { return Ok(()) };
    options.environment.push(("RUST_LOG".to_owned(), "debug".to_owned()));
    let keys: Vec<String> = options
        .environment
        .iter()
        .filter(|(name, _)| name.contains("SECRET"))
        .map(|(_, value)| value.clone())
        .collect();
    ensure!(!keys.is_empty() || std::env::var("OPENSAIL_TEST_S3").is_ok(), "the store has a secret key");
    let Some(cluster) = Kubernetes::start_with("csi-logs", 2, options)? else { return Ok(()) };
    let mut controller = cluster.controller().await?;
    let made = controller.create_volume(csi::CreateVolumeRequest { secrets: secrets(), ..create("pvc-1") });
    let volume = made.await?.into_inner().volume.context("a volume")?.volume_id;
    let publication =
        csi::ControllerPublishVolumeRequest { secrets: secrets(), ..publish(&volume, "node-1") };
    controller.controller_publish_volume(publication).await?;
    cluster.attach(&volume, "node-1").await?;
    let mut publication = cluster.publication(&volume, "node-1", &cluster.target_path("node-1", &volume));
    publication.secrets = secrets();
    cluster.node("node-1").await?.node_publish_volume(publication).await?;
    let target = cluster.target("node-1", &volume);
    std::fs::create_dir(target.join(FILE))?;
    std::fs::write(target.join(FILE).join(format!("{FILE}.txt")), CONTENT)?;
    // Read and written through the files service as well, with a path that is there and one that is not.
    cluster.cluster.write(&format!("{volume}:{FILE}/second"), CONTENT.as_bytes())?;
    assert_eq!(cluster.cluster.cat(&format!("{volume}:{FILE}/second"))?, CONTENT.as_bytes());
    cluster.cluster.refused(&["cat", &format!("{volume}:{FILE}/third")])?;
    // The names go to the store and come back on the other node.
    let taken = csi::CreateSnapshotRequest {
        secrets: secrets(),
        ..tests::kubernetes::snapshot("snapshot-1", &volume)
    };
    controller.create_snapshot(taken).await?;
    cluster.detach(&volume, "node-1").await?;
    cluster.attach(&volume, "node-2").await?;
    ensure!(cluster.target("node-2", &volume).join(FILE).join("second").exists());
    // A request that is wrong is not printed either.
    let wrong = csi::CreateVolumeRequest {
        secrets: secrets(),
        parameters: HashMap::from([("no".to_owned(), "such".to_owned())]),
        ..create("pvc-2")
    };
    controller.create_volume(wrong).await.err().context("it is refused")?;
    for daemon in ["hub", "node-1", "node-2", "controller"] {
        let mut log = String::new();
        until("the log is talkative", async || {
            log = cluster.cluster.log(daemon)?;
            Ok(log.contains("DEBUG"))
        })
        .await
        .with_context(|| daemon.to_owned())?;
        for word in [SECRET, FILE, CONTENT].into_iter().chain(keys.iter().map(String::as_str)) {
            let said = log.lines().find(|line| line.contains(word));
            ensure!(said.is_none(), "{daemon}: {word}: {said:?}");
        }
    }
    // The arguments that anybody may see in the process table.
    let processes = Command::new("ps").args(["-eo", "args"]).output()?;
    let processes = String::from_utf8_lossy(&processes.stdout);
    for key in &keys {
        ensure!(!processes.lines().any(|line| line.contains("opensail") && line.contains(key)), "{key}");
    }
    Ok(())
}
