//! One operation of the store in a process of its own, measured as any other tool is: what `hack/bench` runs. Prints JSON.

#![expect(clippy::print_stdout, reason = "its answer goes to whoever ran it")]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cas::objects::{CallKind, FaultStore, Objects, StoreUrl};
use cas::tree::Root;
use cas::{
    Cache, Changes, ChildChange, DirChange, Operation, Parent, Reader, RestoreOptions, Session, Store,
    VersionRef, WriteOptions, Writer,
};
use clap::Parser;
use serde_json::{Value, json};
use types::{Domain, PoolId, SystemClock, VolumePath};

/// The cache of a reader that has read nothing yet.
const COLD: usize = 64 << 20;

/// Does one thing with a store and prints what it took, as JSON.
#[derive(Debug, Parser)]
enum Work {
    /// Puts a directory into a store that may be there or not.
    Put { source: PathBuf, store: String },
    /// Makes a version in an empty directory. VERSION is what `put` printed as `tree`.
    Restore { store: String, version: String, target: PathBuf },
    /// Reads the first bytes of one file of a version.
    Read { store: String, version: String, path: String },
    /// Puts SOURCE, then VERSIONS times a change of one of its files in turn; restores early and late versions.
    History { source: PathBuf, store: String, target: PathBuf, versions: usize },
}

/// A store whose calls are counted.
struct Counted {
    calls: FaultStore,
    store: Store,
}

impl Counted {
    async fn open(url: &str) -> Result<Self> {
        let url: StoreUrl = url.parse()?;
        if let StoreUrl::Dir(path) = &url {
            std::fs::create_dir_all(path)?;
        }
        let calls = FaultStore::new(url.connect().await?);
        let objects: Arc<dyn Objects> = Arc::new(calls.clone());
        let store = Store::create_or_open(objects, Arc::new(SystemClock)).await?.into_inner();
        Ok(Self { calls, store })
    }

    async fn session(&self) -> Result<(Session, Operation)> {
        let session = Session::join(&self.store, PoolId::random(), 1, &"bench".parse()?, "bench").await?;
        let operation = session.begin()?;
        Ok((session, operation))
    }

    fn writer(&self, session: &Session) -> Writer {
        let cache = Cache::new(256 << 20);
        Writer::new(
            self.store.clone(),
            session.clone(),
            Domain::default_domain(),
            cache,
            WriteOptions::default(),
        )
    }

    /// A process that has read nothing: its first reads are part of what is measured.
    fn cold(&self) -> Reader {
        Reader::new(self.store.clone(), Cache::new(COLD))
    }

    fn counted(&self) -> (u64, u64) {
        let counts = self.calls.counts();
        (
            counts.of(CallKind::Put),
            counts.of(CallKind::Get) + counts.of(CallKind::GetRange) + counts.of(CallKind::Head),
        )
    }
}

/// What a stretch of work took.
struct Meter<'a> {
    store: &'a Counted,
    started: Instant,
    cpu: Duration,
    calls: (u64, u64),
}

impl<'a> Meter<'a> {
    fn start(store: &'a Counted) -> Result<Self> {
        Ok(Self { store, started: Instant::now(), cpu: cpu()?, calls: store.counted() })
    }

    fn stop(&self, more: Value) -> Result<Value> {
        let (puts, gets) = self.store.counted();
        let mut told = json!({
            "seconds": self.started.elapsed().as_secs_f64(),
            "cpu_seconds": (cpu()? - self.cpu).as_secs_f64(),
            "puts": puts - self.calls.0,
            "gets": gets - self.calls.1,
            "peak_mib": peak_mib()?,
        });
        let fields = told.as_object_mut().context("an object was just made")?;
        fields.extend(more.as_object().cloned().unwrap_or_default());
        Ok(told)
    }
}

/// Processor time of this process.
fn cpu() -> Result<Duration> {
    Ok(nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

/// The most memory that this process had.
fn peak_mib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("Linux has it")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
}

fn open(path: &Path) -> Result<OwnedFd> {
    Ok(std::fs::File::open(path).with_context(|| path.display().to_string())?.into())
}

/// A snapshot as a node puts it, with its inventory; any other directory as it is.
fn root(path: &Path) -> Result<Root> {
    let dir = btrfs::Dir::open(path)?;
    let is_subvolume = btrfs::filesystem::is_btrfs(&dir)? && btrfs::subvolume::is_subvolume(&dir)?;
    Ok(if is_subvolume { csi::changes::told(dir)? } else { OwnedFd::from(dir).into() })
}

#[tokio::main]
async fn main() -> Result<()> {
    let told = match Work::parse() {
        Work::Put { source, store } => put(&source, &store).await?,
        Work::Restore { store, version, target } => restore(&store, &version, &target).await?,
        Work::Read { store, version, path } => read(&store, &version, &path).await?,
        Work::History { source, store, target, versions } => {
            history(&source, &store, &target, versions).await?
        }
    };
    println!("{told}");
    Ok(())
}

async fn put(source: &Path, store: &str) -> Result<Value> {
    let store = Counted::open(store).await?;
    let (session, _operation) = store.session().await?;
    let meter = Meter::start(&store)?;
    let written = store.writer(&session).put_told(root(source)?, None).await?;
    meter.stop(json!({
        "tree": serde_json::to_string(&written.tree)?,
        "files": written.files,
        "bytes": written.bytes,
        "stored_bytes": written.bytes_uploaded,
        "objects": written.objects_written,
    }))
}

async fn restore(store: &str, version: &str, target: &Path) -> Result<Value> {
    let store = Counted::open(store).await?;
    let tree: VersionRef = serde_json::from_str(version)?;
    let meter = Meter::start(&store)?;
    let restored = store.cold().restore(&tree, open(target)?, RestoreOptions::default()).await?;
    meter.stop(json!({ "files": restored.files, "fetched_bytes": restored.bytes_fetched }))
}

async fn read(store: &str, version: &str, path: &str) -> Result<Value> {
    let store = Counted::open(store).await?;
    let tree: VersionRef = serde_json::from_str(version)?;
    let path = VolumePath::parse(path)?;
    let meter = Meter::start(&store)?;
    let bytes = store.cold().read(&tree, &path, 0..4_096).await?;
    ensure!(!bytes.is_empty(), "{path} is empty");
    meter.stop(json!({}))
}

/// The versions whose cost is compared: these many before the end.
const SAMPLE: usize = 9;
const EARLY: usize = 10;

async fn history(source: &Path, store: &str, target: &Path, versions: usize) -> Result<Value> {
    let store = Counted::open(store).await?;
    let (session, _operation) = store.session().await?;
    let writer = store.writer(&session);
    let mut names: Vec<_> = std::fs::read_dir(source)?
        .map(|entry| Ok(entry?.file_name().into_encoded_bytes()))
        .collect::<Result<_>>()?;
    names.sort();
    let mut tree = writer.put(open(source)?, None).await?.tree;
    let (mut early, mut late, mut told) = (Vec::new(), Vec::new(), json!({}));
    for number in 1..=versions {
        let name = &names[number % names.len()];
        let path = source.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name));
        std::fs::write(&path, format!("version {number}\n").repeat(20))?;
        let change = ChildChange::Content { ranges: None, inline: None };
        let root = DirChange { relist: false, children: [(name.clone(), change)].into() };
        let parent = Parent { tree, changes: Changes { root, ..Changes::default() } };
        let started = (Instant::now(), cpu()?);
        let written = writer.put(open(source)?, Some(parent)).await?;
        let took =
            (started.0.elapsed().as_secs_f64(), (cpu()? - started.1).as_secs_f64(), written.bytes_uploaded);
        tree = written.tree;
        if number <= EARLY && number + SAMPLE > EARLY {
            early.push(took);
        }
        if number + SAMPLE > versions {
            late.push(took);
        }
        if number == EARLY || number == versions {
            std::fs::create_dir_all(target)?;
            let meter = Meter::start(&store)?;
            let manifest = store.cold().manifest(&tree).await?;
            store.cold().restore(&tree, open(target)?, RestoreOptions::default()).await?;
            let restored = meter.stop(json!({ "packs": manifest.packs.len() }))?;
            std::fs::remove_dir_all(target)?;
            told[if number == EARLY { "restore_early" } else { "restore_late" }] = restored;
        }
    }
    let middle = |mut sample: Vec<(f64, f64, u64)>| {
        sample.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (seconds, cpu_seconds, bytes) = sample[sample.len() / 2];
        json!({ "seconds": seconds, "cpu_seconds": cpu_seconds, "bytes": bytes })
    };
    told["sync_early"] = middle(early);
    told["sync_late"] = middle(late);
    Ok(told)
}
