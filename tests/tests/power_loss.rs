//! The power goes: what was acknowledged as locally durable is on the disk.
//!
//! SIGKILL keeps the page cache, so it proves nothing about commits. Here the pool's backing file lies on an outer
//! btrfs and is reflinked at random moments: the clone is what a disk would hold after the power failed. It is
//! mounted beside the original (`temp_fsid`, Linux 6.7+) and compared with what had been acknowledged before.
//!
//! The second test takes the commit out and must see the loss; otherwise the first one proves nothing.

#![expect(clippy::print_stdout, reason = "the seed and the counts are what a person needs of it")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use proto::hub::{CreateVolumeRequest, ForkVolumeRequest, TriggerSyncRequest};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tests::cluster::{Cluster, Options};
use tests::outer::Outer;
use tests::tree::{Content, Tree, compare};

/// Power failures per run.
const FAILURES: usize = 12;

/// What is known of a volume.
#[derive(Debug, Clone, Default)]
struct Acknowledged {
    /// What its live tree holds, on the disk or not.
    files: Tree,
    /// The part of it that is on the disk: written with `sync`, or there since a create, fork or sync.
    on_disk: Tree,
    /// The newest synced version, with its tree.
    synced: Option<(String, Tree)>,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_as_local_survives_a_power_failure() -> Result<()> {
    let Some(lost) = run("power", &[]).await? else { return Ok(()) };
    ensure!(lost.is_empty(), "lost: {lost:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_commit_the_loss_is_seen() -> Result<()> {
    let Some(lost) = run("power-nocommit", &[("OPENSAIL_UNSAFE_NO_COMMIT", "true")]).await? else {
        return Ok(());
    };
    println!("with the commit taken out, {} losses were seen, the first: {:?}", lost.len(), lost.first());
    ensure!(!lost.is_empty(), "the commit was taken out and nothing was missed: this test cannot fail");
    Ok(())
}

/// Works, fails the power now and then, and returns what was acknowledged but is not on the disk.
async fn run(name: &str, environment: &[(&str, &str)]) -> Result<Option<Vec<String>>> {
    let Some(outer) = Outer::mount(name)? else { return Ok(None) };
    let options = Options {
        directory: Some(outer.path().join("dev")),
        // The store stays where it is: only the pool loses power.
        store: Some(format!("dir://{}", outer.beside().display())),
        environment: environment
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        ..Options::default()
    };
    let Some(cluster) = Cluster::start_with(name, 1, options)? else { return Ok(None) };
    let seed: u64 = match std::env::var("POWER_SEED") {
        Ok(text) => text.parse()?,
        Err(_) => rand::random(),
    };
    println!("POWER_SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut acknowledged: BTreeMap<String, Acknowledged> = BTreeMap::new();
    let mut lost = Vec::new();
    let image = cluster.pool_image(&cluster.nodes()[0]);
    for failure in 0..FAILURES {
        for step in 0..rng.random_range(1..5) {
            work(&cluster, &mut rng, &mut acknowledged, &format!("{name}-{seed}-{failure}-{step}")).await?;
        }
        // Work that is not acknowledged yet goes on while the power fails.
        let (unfinished, during) = (cluster.handle(), acknowledged.keys().next().cloned());
        let background = tokio::spawn(async move {
            if let Some(volume_id) = during {
                // Its answer comes after the failure: nothing is expected of it.
                drop(unfinished.hub().trigger_sync(TriggerSyncRequest { volume_id }).await);
            }
        });
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..5_000))).await;
        let copy = outer.clone_file(&image, &format!("failure-{failure}.img"))?;
        background.await?;
        inspect(&outer, &copy, &acknowledged, failure, &mut lost)?;
        std::fs::remove_file(&copy)?;
    }
    println!("seed {seed}: {FAILURES} power failures, {} volumes, {} losses", acknowledged.len(), lost.len());
    Ok(Some(lost))
}

/// One acknowledged step.
async fn work(
    cluster: &Cluster,
    rng: &mut SmallRng,
    acknowledged: &mut BTreeMap<String, Acknowledged>,
    request: &str,
) -> Result<()> {
    let handle = cluster.handle();
    let volumes: Vec<String> = acknowledged.keys().cloned().collect();
    let request_id = request.to_owned();
    if volumes.is_empty() || rng.random_bool(0.25) {
        let request = CreateVolumeRequest { request_id, ..CreateVolumeRequest::default() };
        let made = handle.hub().create_volume(request).await?.into_inner();
        acknowledged.insert(made.volume_id, Acknowledged::default());
        return Ok(());
    }
    let volume_id = volumes[rng.random_range(0..volumes.len())].clone();
    let known = acknowledged.get_mut(&volume_id).context("drawn from this map")?;
    // Writing first gives sync and fork something to lose.
    let (path, content, fsync) =
        (format!("f{}", rng.random_range(0..6)), Content::draw(rng), rng.random_bool(0.3));
    handle.write(&volume_id, &path, content, fsync).await?;
    known.files.insert(path.clone(), content);
    if fsync {
        known.on_disk.insert(path, content);
    } else {
        // Whether the old or the new content is on the disk is open until the next sync.
        known.on_disk.remove(&path);
    }
    if rng.random_bool(0.5) {
        let sync = handle.hub().trigger_sync(TriggerSyncRequest { volume_id }).await?.into_inner();
        known.on_disk = known.files.clone();
        known.synced = Some((sync.version, known.files.clone()));
    } else {
        // A fork of the present state syncs it first.
        let request =
            ForkVolumeRequest { request_id, source_volume_id: volume_id, ..ForkVolumeRequest::default() };
        let fork = handle.hub().fork_volume(request).await?.into_inner();
        let tree = known.files.clone();
        known.on_disk = tree.clone();
        known.synced = Some((fork.version, tree.clone()));
        acknowledged
            .insert(fork.volume_id, Acknowledged { files: tree.clone(), on_disk: tree, synced: None });
    }
    Ok(())
}

/// Mounts what the power failure left and looks for everything that was acknowledged.
fn inspect(
    outer: &Outer,
    image: &Path,
    acknowledged: &BTreeMap<String, Acknowledged>,
    failure: usize,
    lost: &mut Vec<String>,
) -> Result<()> {
    let mounted = match outer.mount_clone(image) {
        Ok(mounted) => mounted,
        Err(error) => {
            lost.push(format!("failure {failure}: the pool does not mount: {error:#}"));
            return Ok(());
        }
    };
    for (volume, known) in acknowledged {
        let home = mounted.path().join("volumes").join(volume);
        if let Err(error) = holds(&home.join("data"), &known.on_disk) {
            lost.push(format!("failure {failure}: {volume}: live tree: {error:#}"));
        }
        if let Some((version, tree)) = &known.synced {
            let places = [home.join("base"), home.join("snap").join(version)];
            if !places.iter().any(|place| compare(tree, place).is_ok()) {
                lost.push(format!(
                    "failure {failure}: {volume}: neither base nor snap/{version} holds what was synced"
                ));
            }
        }
    }
    Ok(())
}

/// The directory has at least these files.
fn holds(directory: &Path, files: &Tree) -> Result<()> {
    ensure!(directory.is_dir(), "{} is not there", directory.display());
    for (path, content) in files {
        let bytes = std::fs::read(directory.join(path)).with_context(|| path.clone())?;
        ensure!(bytes == content.bytes(), "{path} differs from what was written");
    }
    Ok(())
}
