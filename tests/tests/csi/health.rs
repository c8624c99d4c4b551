//! Probe and metrics say what is so.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

use anyhow::{Context as _, Result, ensure};
use tests::kubernetes::{Kubernetes, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defect7_demand08_probe_tells_the_truth_about_hub_and_store() -> Result<()> {
    let Some(cluster) = Kubernetes::start_with("csi-probe", 1, Default::default())? else { return Ok(()) };
    let node = cluster.cluster.csi_socket("node-1");
    let both = async |wanted: bool| -> Result<bool> {
        let ready = [cluster.ready(&cluster.socket).await?, cluster.ready(&node).await?];
        Ok(ready == [Some(wanted); 2])
    };
    until("node and controller are ready", async || both(true).await).await?;
    cluster.cluster.kill("hub")?;
    ensure!(both(false).await?, "without a hub neither is, at once");
    cluster.cluster.restart("hub")?;
    until("both are ready with the hub", async || both(true).await).await?;
    // The store goes away: the node's beat does not reach it.
    let (store, away) = (cluster.cluster.directory().join("store"), cluster.cluster.directory().join("away"));
    std::fs::rename(&store, &away)?;
    let said = until("the node is not ready without its store", async || {
        Ok(cluster.ready(&node).await? == Some(false))
    });
    let said = said.await;
    std::fs::rename(&away, &store)?;
    said?;
    until("the node is ready with its store", async || Ok(cluster.ready(&node).await? == Some(true))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand12_sockets_are_for_their_group_and_metrics_are_those_that_are_documented() -> Result<()> {
    let Some(cluster) = Kubernetes::start_with("csi-metrics", 1, Default::default())? else {
        return Ok(());
    };
    for socket in [&cluster.socket, &cluster.cluster.csi_socket("node-1")] {
        let found = std::fs::symlink_metadata(socket)?;
        assert!(found.file_type().is_socket());
        assert_eq!(found.permissions().mode() & 0o777, 0o660, "{}", socket.display());
    }
    let volume = cluster.create("pvc-1").await?;
    cluster.attach(&volume, "node-1").await?;
    std::fs::write(cluster.target("node-1", &volume).join("file"), vec![1; 1 << 20])?;
    cluster.stats(&volume, "node-2").await.err().context("there is no node-2")?;
    let before = cluster.cluster.metrics("node-1")?;
    let value = |name: &str| before.get(name).copied().with_context(|| name.to_owned());
    let publish = "{service=\"csi.v1.Node\",method=\"NodePublishVolume\",code=\"Ok\"}";
    assert_eq!(value(&format!("opensail_rpc_seconds_count{publish}"))?.to_string(), "1");
    assert_eq!(value("opensail_volumes{standing=\"owned\"}")?.to_string(), "1");
    assert_eq!(value("opensail_pool_writable")?.to_string(), "1");
    assert_eq!(value("opensail_session_live")?.to_string(), "1");
    assert_eq!(value("opensail_volumes_dirty")?.to_string(), "1");
    let free = value("opensail_pool_bytes{kind=\"available\"}")?;
    let said = cluster.cluster.json(&["nodes"])?[0]["available_bytes"].as_f64();
    ensure!(said.is_none_or(|said| (said - free).abs() < free / 20.0), "{said:?} {free}");
    cluster.detach(&volume, "node-1").await?;
    let after = cluster.cluster.metrics("node-1")?;
    assert_eq!(after["opensail_volumes_dirty"].to_string(), "0");
    ensure!(after["opensail_sync_seconds_count{outcome=\"changed\"}"] >= 1.0);
    ensure!(after["opensail_sync_lag_seconds"] == 0.0);
    // Each name stands in the README, and each of the README's is told.
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../csi/README.md"))?;
    let documented: BTreeSet<&str> = readme
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("opensail_"))
        .collect();
    let told: BTreeSet<&str> = after
        .keys()
        .map(|name| name.split('{').next().unwrap_or_default())
        .map(|name| {
            ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
        })
        .collect();
    assert_eq!(told, documented);
    // No volume is a label.
    ensure!(!after.keys().any(|name| name.contains(&volume)), "{after:?}");
    Ok(())
}
