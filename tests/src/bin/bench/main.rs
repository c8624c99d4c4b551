//! Measures against the limit, interleaved in the same run: `hack/bench [GROUP…] --json FILE`.
//!
//! Daemons, pools and store lie in memory-backed files, so that the disk of the machine is not what is measured.
//! Every figure stands beside what the kernel or a plain tool needs for the same work on the same pool. It fails only
//! where it could not measure.

#![expect(clippy::print_stdout, reason = "a program for people")]

mod bench;
mod cost;
mod csi;
mod database;
mod encoded;
mod fork;
mod list;
mod sibling;
mod siblings;
mod similar;
mod store;
mod sweep;
mod sync;
mod tool;
mod whole;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use tests::cluster::{Cluster, Options};
use tests::figures::{Figure, table};

use crate::bench::Bench;

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
    /// A directory of real files, for fork, sync and store.
    #[arg(long)]
    data: Option<PathBuf>,
    /// A directory of similar projects, as hack/w100 makes it.
    #[arg(long)]
    similar: Option<PathBuf>,
    /// Where pools and store go.
    #[arg(long, default_value = "/dev/shm")]
    place: PathBuf,
    /// Repetitions of what takes seconds.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Volumes that are listed.
    #[arg(long, default_value_t = 50_000)]
    listed: usize,
    /// Volumes that are swept.
    #[arg(long, default_value_t = 10_000)]
    swept: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Forks of a large volume against raw snapshots.
    Fork,
    /// One edited file against raw snapshots and store round trips.
    Sync,
    /// All of wake, whole, sibling, similar, database, cost and encoded.
    Store,
    /// First sync and wake through the daemons, against `btrfs send | zstd` and `btrfs receive`.
    Wake,
    /// First sync and restore, against restic, borg, casync, tar and btrfs send.
    Whole,
    /// One file in a hundred changed: finding it, and a wake beside the relative.
    Sibling,
    /// Similar projects in one domain, against restic and borg.
    Similar,
    /// Postgres under pgbench, against its changed pages.
    Database,
    /// A long history; many siblings; a cold read.
    Cost,
    /// A restore with and without `ENCODED_WRITE` and reflinks.
    Encoded,
    /// CSI clones, publications, and all of it beside a long restore, against the raw calls.
    Csi,
    /// Lists of many volumes on fake nodes.
    List,
    /// A node with many idle volumes.
    Sweep,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let place = tempfile::Builder::new().prefix("opensail-bench-").tempdir_in(&arguments.place)?;
    let mut figures = Vec::new();
    if ON_DATA.into_iter().any(|group| arguments.wants(group)) {
        figures.extend(on_data(&arguments, place.path()).await?);
    }
    if arguments.wants(Group::Csi) {
        figures.extend(shown(csi::csi(place.path()).await?));
    }
    if arguments.wants(Group::List) {
        figures.extend(shown(list::list(place.path(), arguments.listed).await?));
    }
    if arguments.wants(Group::Sweep) {
        figures.extend(shown(sweep::sweep(place.path(), arguments.swept).await?));
    }
    if let Some(json) = &arguments.json {
        fs::write(json, serde_json::to_vec_pretty(&figures)?)?;
    }
    Ok(())
}

/// What `store` stands for.
const STORE: [Group; 7] =
    [Group::Wake, Group::Whole, Group::Sibling, Group::Similar, Group::Database, Group::Cost, Group::Encoded];

/// Groups that work on real files.
const ON_DATA: [Group; 9] = [
    Group::Fork,
    Group::Sync,
    Group::Wake,
    Group::Whole,
    Group::Sibling,
    Group::Similar,
    Group::Database,
    Group::Cost,
    Group::Encoded,
];

impl Arguments {
    fn wants(&self, group: Group) -> bool {
        let named = |group| self.groups.contains(&group);
        self.groups.is_empty() || named(group) || (STORE.contains(&group) && named(Group::Store))
    }
}

/// The groups that work on real files.
async fn on_data(arguments: &Arguments, place: &Path) -> Result<Vec<Figure>> {
    let options = Options {
        directory: Some(place.join("dev")),
        arguments: vec!["--pool-size".to_owned(), POOL.to_owned()],
        ..Options::default()
    };
    if arguments.wants(Group::Whole) {
        whole::require_peers()?;
    }
    let data = arguments.data.clone().context("these groups need --data; hack/bench gives it")?;
    let cluster =
        Cluster::start_with("bench", 2, options)?.context("this machine cannot run the benchmark")?;
    let bench = Bench { handle: cluster.handle(), data, work: place.to_owned() };
    let source = bench.filled_volume("bench-source", "source").await?;
    println!(
        "data: {} ({} files, {} MB); store: directory on {}; caches warm; {} repetitions of long runs",
        bench.data.display(),
        source.files,
        source.bytes / 1_000_000,
        arguments.place.display(),
        arguments.repetitions,
    );
    let mut figures = Vec::new();
    if arguments.wants(Group::Whole) {
        figures.extend(shown(bench.whole(&source, arguments.repetitions)?));
    }
    if arguments.wants(Group::Cost) {
        figures.extend(shown(bench.cold_read(&source)?));
        figures.extend(shown(bench.history()?));
        figures.extend(shown(siblings::siblings().await?));
    }
    if arguments.wants(Group::Encoded) {
        figures.extend(shown(bench.encoded(&source, arguments.repetitions)?));
    }
    if arguments.wants(Group::Similar) {
        let similar = arguments.similar.as_deref().context("similar needs --similar; hack/bench gives it")?;
        figures.extend(shown(bench.similar(&projects(similar)?).await?));
    }
    if arguments.wants(Group::Database) {
        figures.extend(shown(bench.database().await?));
    }
    if arguments.wants(Group::Wake) {
        figures.extend(shown(bench.store(&source, arguments.repetitions).await?));
    }
    bench.sync(&source.id).await?;
    if arguments.wants(Group::Sibling) {
        figures.extend(shown(bench.sibling(&source).await?));
    }
    if arguments.wants(Group::Fork) {
        figures.extend(shown(bench.fork(&source).await?));
    }
    if arguments.wants(Group::Sync) {
        figures.extend(shown(bench.one_edit(&source).await?));
    }
    Ok(figures)
}

/// The projects in a directory, by name.
fn projects(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("--similar {}", directory.display()))?;
    let mut found: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    found.retain(|path| path.join("node_modules").is_dir() && path.extension().is_none());
    found.sort();
    Ok(found)
}

/// Prints what a group found as soon as it has, so that a later one that fails takes nothing with it.
fn shown(figures: Vec<Figure>) -> Vec<Figure> {
    print!("{}", table(&figures));
    figures
}
