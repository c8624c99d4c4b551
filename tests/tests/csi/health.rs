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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand12_a_daemon_whose_socket_vanishes_ends_and_its_volumes_stay() -> Result<()> {
    let Some(mut cluster) = Kubernetes::start_with("csi-socket", 1, Default::default())? else {
        return Ok(());
    };
    let volume = cluster.create("pvc-1").await?;
    cluster.attach(&volume, "node-1").await?;
    std::fs::write(cluster.target("node-1", &volume).join("file"), "kept")?;
    let mounts = cluster.cluster.mounts("node-1")?;
    let socket = cluster.cluster.csi_socket("node-1");
    std::fs::remove_file(&socket)?;
    until("the node's daemon ends", async || Ok(cluster.cluster.metrics("node-1").is_err())).await?;
    std::fs::write(cluster.target("node-1", &volume).join("meanwhile"), "written")?;
    // Its supervisor starts it again, and kubelet finds it.
    cluster.cluster.restart("node-1")?;
    until("it is ready again", async || {
        Ok(cluster.ready(&socket).await.is_ok_and(|ready| ready == Some(true)))
    })
    .await?;
    assert_eq!(std::fs::symlink_metadata(&socket)?.permissions().mode() & 0o777, 0o660);
    assert_eq!(cluster.cluster.mounts("node-1")?, mounts);
    for (file, content) in [("file", "kept"), ("meanwhile", "written")] {
        assert_eq!(std::fs::read_to_string(cluster.target("node-1", &volume).join(file))?, content);
    }
    cluster.detach(&volume, "node-1").await?;
    // The controller's as well, and another one's in its place is none of its own.
    std::fs::rename(&cluster.socket, cluster.socket.with_extension("moved"))?;
    let mut ended = None;
    for _ in 0..600 {
        ended = cluster.controller.try_wait()?;
        if ended.is_some() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    ensure!(!ended.context("the controller ends")?.success(), "and says so");
    Ok(())
}
