//! Measures against the limit, interleaved in the same run: `hack/bench [GROUP…] --json FILE`.
//!
//! Daemons, pools and store lie in memory-backed files, so that the disk of the machine is not what is measured.
//! Every figure stands beside what the kernel or a plain tool needs for the same work on the same pool. It fails only
//! where it could not measure.

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use btrfs::Dir;
use clap::{Parser, ValueEnum};
use proto::hub::{
    CreateVolumeRequest, DeleteVolumeRequest, EnsureCachedRequest, GetVolumeRequest, HibernateVolumeRequest,
    TriggerSyncRequest,
};
use proto::node::{CreateVolumeRequest as NodeCreateVolumeRequest, Origin};
use tests::cluster::{Cluster, Handle, Options};
use tests::figures::{Figure, Target, median, millis, table};

/// Enough for the data set, its copies and the store.
const POOL: &str = "12Gi";

/// Measures and compares.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure; nothing: everything.
    groups: Vec<Group>,
    /// Also writes the figures there.
    #[arg(long)]
    json: Option<PathBuf>,
    /// A directory of real files.
    #[arg(long)]
    data: PathBuf,
    /// Where pools and store go.
    #[arg(long, default_value = "/dev/shm")]
    place: PathBuf,
    /// Repetitions of what takes seconds.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Forks of a large volume against raw snapshots.
    Fork,
    /// One edited file against raw snapshots and store round trips.
    Sync,
    /// First sync and restore against `btrfs send | zstd` and `btrfs receive`.
    Store,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let wanted = |group| arguments.groups.is_empty() || arguments.groups.contains(&group);
    let place = tempfile::Builder::new().prefix("opensail-bench-").tempdir_in(&arguments.place)?;
    let options = Options {
        directory: Some(place.path().join("dev")),
        arguments: vec!["--pool-size".to_owned(), POOL.to_owned()],
        ..Options::default()
    };
    let cluster =
        Cluster::start_with("bench", 2, options)?.context("this machine cannot run the benchmark")?;
    let bench =
        Bench { handle: cluster.handle(), data: arguments.data.clone(), work: place.path().to_owned() };
    let source = bench.filled_volume("bench-source", "source").await?;
    println!(
        "data: {} ({} files, {} MB); store: directory on {}; caches warm; {} repetitions of long runs",
        arguments.data.display(),
        source.files,
        source.bytes / 1_000_000,
        arguments.place.display(),
        arguments.repetitions,
    );
    let mut figures = Vec::new();
    if wanted(Group::Store) {
        figures.extend(shown(bench.store(&source, arguments.repetitions).await?));
    }
    bench.sync(&source.id).await?;
    if wanted(Group::Fork) {
        figures.extend(shown(bench.fork(&source).await?));
    }
    if wanted(Group::Sync) {
        figures.extend(shown(bench.one_edit(&source).await?));
    }
    if let Some(json) = &arguments.json {
        fs::write(json, serde_json::to_vec_pretty(&figures)?)?;
    }
    Ok(())
}

/// Prints what a group found as soon as it has, so that a later one that fails takes nothing with it.
fn shown(figures: Vec<Figure>) -> Vec<Figure> {
    print!("{}", table(&figures));
    figures
}

struct Bench {
    handle: Handle,
    data: PathBuf,
    work: PathBuf,
}

/// A volume with the data set in it.
struct Source {
    id: String,
    node: String,
    path: PathBuf,
    files: u64,
    bytes: u64,
}

impl Bench {
    /// Creates a volume in a dedup domain of its own and copies the data set into it.
    async fn filled_volume(&self, request: &str, domain: &str) -> Result<Source> {
        let request = CreateVolumeRequest {
            request_id: request.to_owned(),
            domain: domain.to_owned(),
            quota_bytes: Some(0),
            node_hint: "node-1".to_owned(),
            ..CreateVolumeRequest::default()
        };
        let made = self.handle.hub().create_volume(request).await?.into_inner();
        let path = PathBuf::from(&made.path);
        run(Command::new("cp").arg("-a").arg(self.data.join(".")).arg(&path))?;
        let (files, bytes) = count(&path)?;
        btrfs::commit::sync_all(&Dir::open(&path)?)?;
        Ok(Source { id: made.volume_id, node: made.node, path, files, bytes })
    }

    async fn sync(&self, volume: &str) -> Result<proto::node::SyncVolumeResponse> {
        let request = TriggerSyncRequest { volume_id: volume.to_owned() };
        Ok(self.handle.hub().trigger_sync(request).await?.into_inner())
    }

    async fn delete(&self, volume: String) -> Result<()> {
        self.handle.hub().delete_volume(DeleteVolumeRequest { volume_id: volume }).await?;
        Ok(())
    }

    /// Fork RPC of the node against the raw ioctl and a commit, in turn.
    async fn fork(&self, source: &Source) -> Result<Vec<Figure>> {
        const ROUNDS: usize = 60;
        let version = self
            .handle
            .hub()
            .get_volume(GetVolumeRequest { volume_id: source.id.clone(), ..GetVolumeRequest::default() })
            .await?
            .into_inner()
            .version;
        let live = Dir::open(&source.path)?;
        let beside = "bench-raw";
        let scratch = pool_of(source)?.create_dir(beside, 0o700)?;
        let mut node = self.handle.node(&source.node).await?;
        let (mut rpc, mut raw) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let name = format!("raw-{round}");
            let started = Instant::now();
            scratch.snapshot(&live, &name, false, None)?;
            btrfs::commit::commit(&scratch)?;
            raw.push(started.elapsed());
            let request = NodeCreateVolumeRequest {
                volume_id: format!("bench-fork-{round}"),
                request_id: format!("bench-fork-{round}"),
                origin: Some(Origin { volume_id: source.id.clone(), version: version.clone() }),
                ..NodeCreateVolumeRequest::default()
            };
            let started = Instant::now();
            node.create_volume(request).await?;
            rpc.push(started.elapsed());
        }
        for round in 0..ROUNDS {
            scratch.delete_subvolume(format!("raw-{round}"))?;
            self.delete(format!("bench-fork-{round}")).await?;
        }
        pool_of(source)?.remove_dir(beside)?;
        Ok(vec![Figure::new(
            "fork",
            format!("fork of {} files, node RPC p50, {ROUNDS} rounds", source.files),
            (millis(median(&rpc)), "ms"),
            ("raw snapshot ioctl + commit p50", millis(median(&raw))),
            Target::Plus(3.0),
        )])
    }

    /// One edited file to durable.
    async fn one_edit(&self, source: &Source) -> Result<Vec<Figure>> {
        const ROUNDS: usize = 30;
        let edited = source.path.join("edited-by-bench");
        let (mut took, mut raw, mut writes) = (Vec::new(), Vec::new(), 0);
        let scratch = self.work.join("round-trip");
        for round in 0..ROUNDS {
            let started = Instant::now();
            store_write(&scratch, 4096)?;
            raw.push(started.elapsed());
            fs::write(&edited, format!("edit {round}\n"))?;
            let started = Instant::now();
            let answer = self.sync(&source.id).await?;
            took.push(started.elapsed());
            ensure!(answer.changed, "an edit was not seen");
            writes = writes.max(answer.objects_written);
        }
        #[expect(clippy::cast_precision_loss, reason = "a handful of writes")]
        let writes = writes as f64;
        let trips = millis(median(&raw)) * writes;
        Ok(vec![
            Figure::new(
                "sync",
                format!("one edited file in {} to durable, hub RPC p50, {ROUNDS} rounds", source.files),
                (millis(median(&took)), "ms"),
                ("the store's round trips (write + fsync)", trips),
                Target::Plus(50.0),
            ),
            Figure::new(
                "sync",
                "writes to the store for it",
                (writes, "writes"),
                ("3 writes", 3.0),
                Target::Limit,
            ),
        ])
    }

    /// First sync and cold restore.
    async fn store(&self, source: &Source, repetitions: usize) -> Result<Vec<Figure>> {
        let pool = pool_of(source)?;
        let (mut first, mut send, mut restore, mut receive) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut uploaded = 0;
        let stream = self.work.join("stream");
        for round in 0..repetitions {
            let copy = self.filled_volume(&format!("bench-first-{round}"), &format!("first-{round}")).await?;
            let started = Instant::now();
            let answer = self.sync(&copy.id).await?;
            first.push(started.elapsed());
            uploaded = answer.bytes_uploaded;

            let name = format!("bench-send-{round}");
            pool.snapshot(&Dir::open(&copy.path)?, &name, true, None)?;
            btrfs::commit::commit(&pool)?;
            let snapshot = pool_path(source).join(&name);
            let started = Instant::now();
            shell(&format!("btrfs send -q {} | zstd -q -3 -T2 -o {} -f", quote(&snapshot), quote(&stream)))?;
            send.push(started.elapsed());

            self.handle.hub().hibernate_volume(HibernateVolumeRequest { volume_id: copy.id.clone() }).await?;
            let request = EnsureCachedRequest {
                volume_id: copy.id.clone(),
                candidates: vec!["node-2".to_owned()],
                ..EnsureCachedRequest::default()
            };
            let started = Instant::now();
            self.handle.hub().ensure_cached(request).await?;
            restore.push(started.elapsed());

            let woken = self
                .handle
                .hub()
                .get_volume(GetVolumeRequest { volume_id: copy.id.clone(), ..GetVolumeRequest::default() })
                .await?
                .into_inner();
            ensure!(
                count(Path::new(&woken.path))? == (copy.files, copy.bytes),
                "the woken volume is not whole"
            );
            let target = pool_root(Path::new(&woken.path))?.join("bench-receive");
            fs::create_dir_all(&target)?;
            shell(&format!("zstd -q -d -c {} > {}.raw", quote(&stream), quote(&stream)))?;
            let started = Instant::now();
            shell(&format!(
                "btrfs receive -q -f {}.raw {} && sync -f {}",
                quote(&stream),
                quote(&target),
                quote(&target)
            ))?;
            receive.push(started.elapsed());
            Dir::open(&target)?.delete_subvolume(&name)?;
            pool.delete_subvolume(&name)?;
            self.delete(copy.id).await?;
        }
        #[expect(clippy::cast_precision_loss, reason = "megabytes")]
        let (stored, packed) = (uploaded as f64 / 1e6, fs::metadata(&stream)?.len() as f64 / 1e6);
        Ok(vec![
            Figure::new(
                "store",
                format!("first sync of {} files, {} MB, hub RPC", source.files, source.bytes / 1_000_000),
                (median(&first).as_secs_f64(), "s"),
                ("btrfs send | zstd -3 -T2", median(&send).as_secs_f64()),
                Target::Times(1.5),
            ),
            Figure::new(
                "store",
                "bytes stored by it",
                (stored, "MB"),
                ("btrfs send | zstd -3 -T2", packed),
                Target::Times(1.5),
            ),
            Figure::new(
                "store",
                "cold wake on the other node, hub RPC",
                (median(&restore).as_secs_f64(), "s"),
                ("btrfs receive + sync", median(&receive).as_secs_f64()),
                Target::Times(0.7),
            ),
        ])
    }
}

/// The root of the pool that holds a volume: `<pool>/volumes/<id>/data`.
fn pool_root(live: &Path) -> Result<PathBuf> {
    Ok(live.ancestors().nth(3).context("a volume lies three levels below its pool")?.to_owned())
}

fn pool_path(source: &Source) -> PathBuf {
    pool_root(&source.path).expect("a live path of a volume")
}

fn pool_of(source: &Source) -> Result<Dir> {
    Ok(Dir::open(pool_path(source))?)
}

/// What one write to a directory store has to do at least: the bytes and their name on the disk.
fn store_write(path: &Path, bytes: usize) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let file = fs::File::create(&temporary)?;
    std::io::Write::write_all(&mut &file, &vec![7; bytes])?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(path.parent().context("a directory")?)?.sync_all()?;
    Ok(())
}

/// Files and their bytes below a directory.
fn count(directory: &Path) -> Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    let mut queue = vec![directory.to_owned()];
    while let Some(next) = queue.pop() {
        for entry in fs::read_dir(&next)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                queue.push(entry.path());
            } else {
                files += 1;
                bytes += metadata.len();
            }
        }
    }
    Ok((files, bytes))
}

fn quote(path: &Path) -> String {
    format!("'{}'", path.display())
}

fn shell(script: &str) -> Result<()> {
    run(Command::new("bash").args(["-o", "pipefail", "-c", script]))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
