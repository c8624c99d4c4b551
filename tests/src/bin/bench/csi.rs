//! CSI as sidecars and kubelet call it: clones of a template, publications, and all of it beside a long restore.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use btrfs::{Dir, GroupId};
use futures::{StreamExt as _, TryStreamExt as _};
use proto::csi::v1 as csi;
use proto::csi::v1::controller_client::ControllerClient;
use proto::csi::v1::node_client::NodeClient;
use proto::csi::v1::volume_capability::access_mode::Mode;
use proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use proto::hub::{EnsureCachedRequest, GetVolumeRequest, HibernateVolumeRequest};
use tests::cluster::{Cluster, Handle, Options, unix_channel};
use tests::figures::{Figure, Target, median, millis, p99};
use tonic::transport::Channel;

use crate::bench::{drained, pool_root, run};

const NODE: &str = "node-1";
const CLONES: usize = 500;
const TEMPLATE_FILES: usize = 2_000;
/// How many of the first and of the last clones make one value: a single one is an accident.
const ENDS: usize = 20;
const VOLUMES: usize = 64;
/// Files of the volume that is restored meanwhile.
const LARGE_FILES: usize = 40_000;
/// How many calls of each kind are measured while a restore runs.
const CALLS: usize = 400;
const SIZE: i64 = 1 << 30;
/// The cleaner has this long.
const DRAINED: Duration = Duration::from_secs(30);

/// A cluster of one node, a controller, and where volumes are published. Mounts go before the cluster does.
struct Bed {
    controller: ControllerClient<Channel>,
    kubelet: NodeClient<Channel>,
    targets: tempfile::TempDir,
    process: Child,
    handle: Handle,
    work: PathBuf,
    cluster: Cluster,
}

impl Bed {
    async fn start(place: &Path, pool: &str) -> Result<Self> {
        let options = Options {
            directory: Some(place.join("csi")),
            arguments: vec!["--pool-size".to_owned(), pool.to_owned()],
            ..Options::default()
        };
        let cluster =
            Cluster::start_with("bench-csi", 1, options)?.context("this machine cannot run the benchmark")?;
        let (process, socket) = cluster.csi_controller()?;
        Ok(Self {
            controller: ControllerClient::new(unix_channel(&socket).await?),
            kubelet: NodeClient::new(unix_channel(&cluster.csi_socket(NODE)).await?),
            targets: tempfile::Builder::new().prefix("targets-").tempdir_in(place)?,
            process,
            handle: cluster.handle(),
            work: place.to_owned(),
            cluster,
        })
    }

    fn target(&self, volume: &str) -> PathBuf {
        self.targets.path().join(volume)
    }

    async fn create(&self, request: csi::CreateVolumeRequest) -> Result<String> {
        let answer = self.controller.clone().create_volume(request).await?.into_inner();
        Ok(answer.volume.context("a volume")?.volume_id)
    }

    async fn delete(&self, volume_id: String) -> Result<()> {
        let request = csi::DeleteVolumeRequest { volume_id, ..Default::default() };
        self.controller.clone().delete_volume(request).await?;
        Ok(())
    }

    /// Where the volume's live tree is.
    async fn path(&self, volume: &str) -> Result<PathBuf> {
        let request = GetVolumeRequest { volume_id: volume.to_owned(), ..Default::default() };
        Ok(self.handle.hub().get_volume(request).await?.into_inner().path.into())
    }

    /// ControllerPublish and stage.
    async fn stage(&self, volume: &str) -> Result<()> {
        let request = csi::ControllerPublishVolumeRequest {
            volume_id: volume.to_owned(),
            node_id: NODE.to_owned(),
            volume_capability: Some(capability()),
            ..Default::default()
        };
        let publish_context =
            self.controller.clone().controller_publish_volume(request).await?.into_inner().publish_context;
        let request = csi::NodeStageVolumeRequest {
            volume_id: volume.to_owned(),
            publish_context,
            staging_target_path: self.targets.path().join("staging").display().to_string(),
            volume_capability: Some(capability()),
            ..Default::default()
        };
        self.kubelet.clone().node_stage_volume(request).await?;
        Ok(())
    }

    async fn publish(&self, volume: &str) -> Result<Duration> {
        let request = csi::NodePublishVolumeRequest {
            volume_id: volume.to_owned(),
            staging_target_path: self.targets.path().join("staging").display().to_string(),
            target_path: self.target(volume).display().to_string(),
            volume_capability: Some(capability()),
            ..Default::default()
        };
        let started = Instant::now();
        self.kubelet.clone().node_publish_volume(request).await?;
        Ok(started.elapsed())
    }

    async fn unpublish(&self, volume: &str) -> Result<()> {
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: volume.to_owned(),
            target_path: self.target(volume).display().to_string(),
        };
        self.kubelet.clone().node_unpublish_volume(request).await?;
        Ok(())
    }

    async fn stats(&self, volume: &str) -> Result<Duration> {
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: volume.to_owned(),
            volume_path: self.target(volume).display().to_string(),
            ..Default::default()
        };
        let started = Instant::now();
        let answer = self.kubelet.clone().node_get_volume_stats(request).await?.into_inner();
        let took = started.elapsed();
        ensure!(
            answer.usage.first().is_some_and(|usage| usage.total == SIZE),
            "stats without a total: {answer:?}"
        );
        Ok(took)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for target in std::fs::read_dir(self.targets.path()).into_iter().flatten().flatten() {
            drop(Command::new("umount").arg(target.path()).output());
        }
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn capability() -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

fn new(name: String, template: &str) -> csi::CreateVolumeRequest {
    let parameters = [("template", template)].into_iter().filter(|(_, value)| !value.is_empty());
    csi::CreateVolumeRequest {
        name,
        capacity_range: Some(csi::CapacityRange { required_bytes: SIZE, limit_bytes: SIZE }),
        volume_capabilities: vec![capability()],
        parameters: parameters.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        ..Default::default()
    }
}

/// Writes `files` small files in directories of a hundred.
fn fill(directory: &Path, files: usize, bytes: usize) -> Result<()> {
    for number in 0..files {
        let inner = directory.join(format!("dir-{}", number / 100));
        if number % 100 == 0 {
            std::fs::create_dir_all(&inner)?;
        }
        let text = format!("file {number} of a project\n");
        std::fs::write(inner.join(format!("file-{number}")), text.repeat(bytes / text.len() + 1))?;
    }
    Ok(())
}

pub(crate) async fn csi(place: &Path) -> Result<Vec<Figure>> {
    let bed = Bed::start(place, "8Gi").await?;
    let mut figures = clones(&bed).await?;
    figures.extend(beside_a_restore(&bed).await?);
    Ok(figures)
}

/// Clones of one template in turn with the raw calls, on a source of their own, and how long the kernel has to clean.
async fn clones(bed: &Bed) -> Result<Vec<Figure>> {
    let files = bed.work.join("template");
    fill(&files, TEMPLATE_FILES, 1000)?;
    let from = files.display().to_string();
    let made = bed.cluster.sailctl(&["template", "create", "bench", "--from", &from])?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // The first one brings the template to the node.
    let first = bed.create(new("clone-warm".to_owned(), "bench")).await?;
    let pool_path = pool_root(&bed.path(&first).await?)?;
    let pool = Dir::open(&pool_path)?;

    let scratch = pool.create_dir("bench-raw", 0o700)?;
    let source = scratch.create_subvolume("source", None)?;
    run(Command::new("cp").arg("-a").arg(files.join(".")).arg(pool_path.join("bench-raw/source")))?;
    btrfs::subvolume::set_readonly(&source, true)?;
    btrfs::commit::sync_all(&scratch)?;
    let (mut through, mut raw, mut ids) = (Vec::new(), Vec::new(), vec![first]);
    for number in 0..CLONES {
        let started = Instant::now();
        // A directory for each, as volumes have: snapshots into one directory wait for its lock.
        let parent = scratch.create_dir(format!("{number}"), 0o700)?;
        let group = GroupId::volume((1 << 40) + number as u64).context("a group")?;
        btrfs::quota::create_group(&scratch, group)?;
        btrfs::quota::limit(&scratch, group, Some(1 << 30))?;
        parent.snapshot(&source, "data", false, Some(group))?;
        btrfs::commit::commit(&scratch)?;
        raw.push(started.elapsed());
        let started = Instant::now();
        ids.push(bed.create(new(format!("clone-{number}"), "bench")).await?);
        through.push(started.elapsed());
    }
    let ends =
        |times: &[Duration]| (millis(median(&times[..ENDS])), millis(median(&times[times.len() - ENDS..])));
    let (first, last) = ends(&through);
    let (raw_first, raw_last) = ends(&raw);
    println!(
        "csi: raw snapshot with quota group + commit, in turn: p50 {:.2} ms, p99 {:.2} ms, first {ENDS} {raw_first:.2} ms, \
         last {ENDS} {raw_last:.2} ms",
        millis(median(&raw)),
        millis(p99(&raw)),
    );
    println!("csi: the slowest clones: {}; the slowest raw: {}", slowest(&through), slowest(&raw));
    let mut figures = vec![
        Figure::new(
            "csi",
            format!("CreateVolume, {CLONES} clones of {TEMPLATE_FILES} files, p99"),
            (millis(p99(&through)), "ms"),
            ("15 ms", 15.0),
            Target::Limit,
        ),
        Figure::new(
            "csi",
            "the same, p50",
            (millis(median(&through)), "ms"),
            ("raw ioctls + commit, p50", millis(median(&raw))),
            Target::Plus(12.0),
        ),
        Figure::new(
            "csi",
            format!("its last {ENDS} (median)"),
            (last, "ms"),
            ("the first 20 (median)", first),
            Target::Times(4.0),
        ),
    ];
    // The raw ones first and cleaned, so that only the volumes are waited for.
    for number in 0..CLONES {
        let parent = scratch.open_dir(format!("{number}"))?;
        parent.delete_subvolume("data")?;
        drop(parent);
        scratch.remove_dir(format!("{number}"))?;
    }
    drop(source);
    scratch.delete_subvolume("source")?;
    drop(scratch);
    pool.remove_dir("bench-raw")?;
    drained(&pool, DRAINED * 10).await?;

    let started = Instant::now();
    let deletes = ids.into_iter().map(|id| bed.delete(id));
    futures::stream::iter(deletes).buffer_unordered(8).try_collect::<Vec<()>>().await?;
    let deleted = started.elapsed();
    let started = Instant::now();
    drained(&pool, DRAINED * 10).await?;
    println!("csi: {CLONES} DeleteVolume, 8 at once: {:.1} s", deleted.as_secs_f64());
    figures.push(Figure::new(
        "csi",
        format!("until the cleaner is done with {CLONES} clones"),
        (started.elapsed().as_secs_f64(), "s"),
        ("30 s", DRAINED.as_secs_f64()),
        Target::Limit,
    ));
    Ok(figures)
}

/// The five slowest, by how many came before: whether they are slow together, or at the end.
fn slowest(times: &[Duration]) -> String {
    let mut numbered: Vec<(usize, Duration)> = times.iter().copied().enumerate().collect();
    numbered.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
    let shown = numbered.iter().take(5).map(|(number, took)| format!("#{number} {:.1} ms", millis(*took)));
    shown.collect::<Vec<_>>().join(", ")
}

/// Publications by themselves, then publications, stats and creates while a large volume is being restored.
async fn beside_a_restore(bed: &Bed) -> Result<Vec<Figure>> {
    let large = bed.create(new("large".to_owned(), "")).await?;
    fill(&bed.path(&large).await?, LARGE_FILES, 3000)?;
    let mut volumes = Vec::new();
    for number in 1..VOLUMES {
        let id = bed.create(new(format!("small-{number}"), "")).await?;
        fill(&bed.path(&id).await?, 100, 500)?;
        bed.stage(&id).await?;
        volumes.push(id);
    }
    let mut publish = Vec::new();
    for round in 0..CALLS {
        let volume = &volumes[round % volumes.len()];
        publish.push(bed.publish(volume).await?);
        bed.unpublish(volume).await?;
    }
    let mut figures = vec![Figure::new(
        "csi",
        format!("NodePublishVolume, {VOLUMES} volumes, p99 of {CALLS}"),
        (millis(p99(&publish)), "ms"),
        ("10 ms", 10.0),
        Target::Limit,
    )];

    let (restoring, done, restores) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let again = {
        let (hub, large) = (bed.handle.hub(), large.clone());
        let (restoring, done, restores) = (Arc::clone(&restoring), Arc::clone(&done), Arc::clone(&restores));
        tokio::spawn(async move {
            let mut hub = hub;
            while !done.load(Ordering::SeqCst) {
                hub.hibernate_volume(HibernateVolumeRequest { volume_id: large.clone() }).await?;
                restoring.store(true, Ordering::SeqCst);
                let request = EnsureCachedRequest { volume_id: large.clone(), ..Default::default() };
                let woken = hub.ensure_cached(request).await;
                restoring.store(false, Ordering::SeqCst);
                woken?;
                restores.fetch_add(1, Ordering::SeqCst);
            }
            Ok::<_, tonic::Status>(())
        })
    };
    let (mut publish, mut stats, mut creates) = (Vec::new(), Vec::new(), Vec::new());
    let mut round = 0;
    while publish.len() < CALLS {
        ensure!(!again.is_finished(), "the restores ended: {:?}", again.await);
        if !restoring.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        }
        let volume = &volumes[round % volumes.len()];
        publish.push(bed.publish(volume).await?);
        stats.push(bed.stats(volume).await?);
        bed.unpublish(volume).await?;
        if round % 4 == 0 {
            let started = Instant::now();
            bed.create(new(format!("beside-{round}"), "")).await?;
            creates.push(started.elapsed());
        }
        round += 1;
    }
    done.store(true, Ordering::SeqCst);
    again.await??;
    println!(
        "csi: measured while {} restores of {LARGE_FILES} files ran one after the other",
        restores.load(Ordering::SeqCst)
    );
    for (what, times, limit) in [
        ("NodePublishVolume", &publish, 100.0),
        ("NodeGetVolumeStats", &stats, 100.0),
        ("CreateVolume (empty)", &creates, 500.0),
    ] {
        figures.push(Figure::new(
            "csi",
            format!("{what} while another is restored, p99 of {}", times.len()),
            (millis(p99(times)), "ms"),
            (&format!("{limit} ms"), limit),
            Target::Limit,
        ));
    }
    Ok(figures)
}
