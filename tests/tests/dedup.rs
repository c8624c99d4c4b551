//! What is stored once is not stored again: by another volume, on another node, or after a restart; never across domains.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use proto::hub::{CreateVolumeRequest, GetHubRequest, TriggerSyncRequest};
use tests::cluster::{Cluster, Handle};
use tests::same::run;

/// Bytes of the project below that cannot be made smaller.
const PROJECT: u64 = 3_500_000;

/// Files that no compressor makes smaller, of all sizes.
fn project(root: &Path) -> Result<()> {
    let script = r"
import os, random, sys
chance = random.Random(7)
for package in range(30):
    os.makedirs(f'{sys.argv[1]}/package-{package}/lib')
    for file in range(40):
        with open(f'{sys.argv[1]}/package-{package}/lib/{file}.js', 'wb') as out:
            out.write(chance.randbytes(chance.randrange(200, 2500)))
open(f'{sys.argv[1]}/image', 'wb').write(chance.randbytes(2500000))
";
    run(Command::new("python3").args(["-c", script]).arg(root))
}

async fn filled(handle: &Handle, name: &str, node: &str, domain: &str, from: &Path) -> Result<u64> {
    let request = CreateVolumeRequest {
        request_id: name.to_owned(),
        node: node.to_owned(),
        domain: domain.to_owned(),
        ..CreateVolumeRequest::default()
    };
    let made = handle.hub().create_volume(request).await?.into_inner();
    // Not with their times: the directories' nodes differ, and only contents are the same.
    run(Command::new("cp").arg("-r").arg(from.join(".")).arg(PathBuf::from(&made.path)))?;
    fs::write(PathBuf::from(&made.path).join("own"), name.repeat(100))?;
    let synced =
        handle.hub().trigger_sync(TriggerSyncRequest { volume_id: made.volume_id }).await?.into_inner();
    ensure!(synced.changed, "nothing was synced");
    Ok(synced.bytes_uploaded)
}

#[tokio::test]
async fn a_project_that_another_node_stored_is_not_stored_again() -> Result<()> {
    let Some(cluster) = Cluster::start("dedup", 2)? else { return Ok(()) };
    let handle = cluster.handle();
    let source = tempfile::tempdir()?;
    project(source.path())?;
    let first = filled(&handle, "first", "node-1", "a", source.path()).await?;
    ensure!(first > PROJECT, "{first} bytes for all of it");

    let beside = filled(&handle, "beside", "node-1", "a", source.path()).await?;
    ensure!(beside < first / 10, "{beside} bytes for the same on the same node");

    // The other node has read nothing of it: the hub's hooks lead there.
    let over_there = filled(&handle, "over-there", "node-2", "a", source.path()).await?;
    ensure!(over_there < first / 3, "{over_there} bytes for the same on another node");

    let other = filled(&handle, "other", "node-2", "b", source.path()).await?;
    ensure!(other > PROJECT, "{other} bytes: another domain's were named");

    // After a restart nothing is in memory. The pool's bases are.
    cluster.kill("node-1")?;
    cluster.kill("hub")?;
    cluster.restart("hub")?;
    cluster.restart("node-1")?;
    // The first call finds the old connection broken; the next one dials.
    let _broken = handle.hub().get_hub(GetHubRequest {}).await;
    let later = filled(&handle, "later", "node-1", "a", source.path()).await?;
    ensure!(later < first / 10, "{later} bytes after a restart");

    let reader = cas::Reader::new(cluster.store().await?, cas::Cache::new(16 << 20));
    for id in cas::record::ids(&cluster.store().await?).await? {
        let record = cas::record::get(&cluster.store().await?, &id).await?.value;
        let head =
            record.head_entry().context("it was synced")?.heads.values().next().context("it has data")?;
        let report = reader.verify(head).await?;
        ensure!(report.is_whole(), "{id}: {:?}", report.damages);
    }
    Ok(())
}
