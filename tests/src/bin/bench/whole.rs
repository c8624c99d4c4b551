//! A whole tree into a store and back, each tool in a process of its own, in turn: ours, tar, btrfs send, casync, restic
//! and borg. The floor of a restore is a loop that makes the same tree.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use btrfs::Dir;
use serde_json::Value;
use tests::figures::{Figure, Target, median};
use tests::stores::Kind;

use crate::bench::{Bench, Source, count, pool_of, pool_path, quote, shell};
use crate::tool::{Runs, empty, megabytes, number};

const GROUP: &str = "whole";

/// A tool: how it stores the tree SOURCE in REPO, and how it makes it in TARGET again.
struct Peer {
    name: &'static str,
    program: &'static str,
    before: &'static str,
    store: &'static str,
    restore: &'static str,
}

const PEERS: [Peer; 5] = [
    Peer {
        name: "tar | zstd -3 -T2",
        program: "tar",
        before: "",
        store: "tar -C SOURCE -c . | zstd -q -3 -T2 -o REPO/tree",
        restore: "zstd -q -d -c REPO/tree | tar -C TARGET -x",
    },
    Peer {
        name: "btrfs send | zstd -3 -T2",
        program: "btrfs",
        before: "",
        store: "btrfs send -q SOURCE | zstd -q -3 -T2 -o REPO/tree",
        restore: "zstd -q -d -c REPO/tree | btrfs receive -q TARGET",
    },
    Peer {
        name: "casync",
        program: "casync",
        before: "",
        store: "casync make --store=REPO/store REPO/tree.caidx SOURCE >/dev/null",
        restore: "casync extract --store=REPO/store REPO/tree.caidx TARGET >/dev/null",
    },
    Peer {
        name: "restic",
        program: "restic",
        before: "restic -q init -r REPO",
        store: "cd SOURCE && restic -q backup -r REPO --no-cache .",
        restore: "restic -q restore latest -r REPO --no-cache --target TARGET",
    },
    Peer {
        name: "borg zstd,3",
        program: "borg",
        before: "borg init -e none REPO",
        store: "cd SOURCE && borg create --compression zstd,3 REPO::tree .",
        restore: "cd TARGET && borg extract REPO::tree",
    },
];

impl Peer {
    fn script(&self, script: &str, source: &Path, repository: &Path, target: &Path) -> String {
        let quiet = "export RESTIC_PASSWORD=bench BORG_BASE_DIR=REPO.cache BORG_RELOCATED_REPO_ACCESS_IS_OK=yes \
                     BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes; ";
        format!("{quiet}{script}")
            .replace("SOURCE", &quote(source))
            .replace("REPO", &repository.display().to_string())
            .replace("TARGET", &quote(target))
    }
}

#[derive(Debug, Default)]
struct Measured {
    store: Runs,
    restore: Runs,
    stored: f64,
}

impl Bench {
    /// First sync and cold restore beside the peers. `btrfs` without a cluster's daemons: the library in a process.
    pub(crate) fn whole(&self, source: &Source, repetitions: usize) -> Result<Vec<Figure>> {
        let pool = pool_of(source)?;
        let name = "bench-whole";
        pool.snapshot(&Dir::open(&source.path)?, name, true, None)?;
        btrfs::commit::sync_all(&pool)?;
        let snapshot = pool_path(source).join(name);
        let figures = self.measure(&pool, &snapshot, source, repetitions);
        pool.delete_subvolume(name)?;
        figures
    }

    fn measure(
        &self,
        pool: &Dir,
        snapshot: &Path,
        source: &Source,
        repetitions: usize,
    ) -> Result<Vec<Figure>> {
        let (mut ours, mut over_s3, mut raw) = (Measured::default(), Measured::default(), Vec::new());
        let mut peers: Vec<Measured> = PEERS.iter().map(|_| Measured::default()).collect();
        let (mut put, mut got) = (Value::Null, Value::Null);
        let s3 = Kind::S3.options()?;
        for round in 0..repetitions {
            for side in 0..2 {
                let (measured, url, environment) = match (&s3, side) {
                    (_, 0) => {
                        let store = empty(&self.work, "whole-ours")?;
                        (&mut ours, format!("dir://{}", store.display()), Vec::new())
                    }
                    (Some(options), _) => {
                        let url = options.store.clone().context("a store")?;
                        let (bucket, query) = url.split_once('?').context("an endpoint")?;
                        let url = format!("{}-{round}?{query}", bucket.trim_end_matches('/'));
                        (&mut over_s3, url, options.environment.clone())
                    }
                    (None, _) => continue,
                };
                let told = measured.store.store_op(&environment, &["put", &text(snapshot), &url])?;
                measured.stored = number(&told, "stored_bytes")? / 1e6;
                let tree = told["tree"].as_str().context("a version")?.to_owned();
                let (target, path) = target(pool, snapshot)?;
                let back =
                    measured.restore.store_op(&environment, &["restore", &url, &tree, &text(&path)])?;
                ensure!(count(&path)? == (source.files, source.bytes), "the restored tree is not whole");
                drop(target);
                pool.delete_subvolume(TARGET)?;
                if side == 0 {
                    (put, got) = (told, back);
                }
            }
            let (_, path) = target(pool, snapshot)?;
            raw.push(make_same(snapshot, &path)?);
            pool.delete_subvolume(TARGET)?;
            for (peer, measured) in PEERS.iter().zip(&mut peers) {
                let repository = empty(&self.work, "whole-peer")?;
                let (_, path) = target(pool, snapshot)?;
                let script = |script| peer.script(script, snapshot, &repository, &path);
                if !peer.before.is_empty() {
                    shell(&script(peer.before))?;
                }
                measured.store.shell(&script(peer.store))?;
                measured.stored = megabytes(&repository)?;
                measured.restore.shell(&script(peer.restore))?;
                if peer.program == "btrfs" {
                    Dir::open(&path)?.delete_subvolume("bench-whole")?;
                }
                pool.delete_subvolume(TARGET)?;
            }
        }
        let what = format!("{} files, {} MB", source.files, source.bytes / 1_000_000);
        #[expect(clippy::cast_precision_loss, reason = "megabytes")]
        let megabytes = source.bytes as f64 / 1e6;
        let mut figures = vec![
            Figure::new(
                GROUP,
                format!("first sync of {what}, a process"),
                (ours.store.seconds(), "s"),
                ("1.5 s", 1.5),
                Target::Limit,
            ),
            Figure::new(
                GROUP,
                "processor time of it",
                (ours.store.cpu_seconds(), "s"),
                ("2.6 s", 2.6),
                Target::Limit,
            ),
            Figure::new(
                GROUP,
                "all objects together",
                (ours.stored, "MB"),
                ("132 MB of 511, as much of this", 132.0 / 511.0 * megabytes),
                Target::Limit,
            ),
            Figure::new(
                GROUP,
                "cold restore, a process",
                (ours.restore.seconds(), "s"),
                ("raw loop of 2 threads", median(&raw).as_secs_f64()),
                Target::Times(1.2),
            ),
            Figure::new(
                GROUP,
                "requests of the restore",
                (number(&got, "gets")?, "GETs"),
                ("24 GETs", 24.0),
                Target::Limit,
            ),
            Figure::new(
                GROUP,
                "memory of the restore",
                (number(&got, "peak_mib")?, "MiB"),
                ("128 MiB", 128.0),
                Target::Limit,
            ),
            Figure::new(
                GROUP,
                "list price of first sync and restore",
                (price(number(&put, "puts")?, number(&got, "gets")?) * 1e6, "USD-6"),
                ("one object for each file", price(files(source), files(source)) * 1e6),
                Target::Beside,
            ),
        ];
        if s3.is_some() {
            let pairs = [
                ("first sync over MinIO", over_s3.store.seconds(), ours.store.seconds()),
                ("cold restore over MinIO", over_s3.restore.seconds(), ours.restore.seconds()),
            ];
            for (name, seconds, beside) in pairs {
                let beside = ("the directory store", beside);
                figures.push(Figure::new(GROUP, name, (seconds, "s"), beside, Target::Beside));
            }
        }
        for (peer, measured) in PEERS.iter().zip(&peers) {
            let rows = [
                ("first sync, wall", ours.store.seconds(), measured.store.seconds(), "s"),
                ("first sync, CPU", ours.store.cpu_seconds(), measured.store.cpu_seconds(), "s"),
                ("stored", ours.stored, measured.stored, "MB"),
                ("restore, wall", ours.restore.seconds(), measured.restore.seconds(), "s"),
                ("restore, CPU", ours.restore.cpu_seconds(), measured.restore.cpu_seconds(), "s"),
            ];
            for (name, mine, theirs, unit) in rows {
                figures.push(Figure::new(GROUP, name, (mine, unit), (peer.name, theirs), Target::Beside));
            }
        }
        Ok(figures)
    }
}

const TARGET: &str = "bench-target";

/// A fresh subvolume to restore into.
fn target(pool: &Dir, snapshot: &Path) -> Result<(Dir, std::path::PathBuf)> {
    pool.create_subvolume(TARGET, None)?;
    let path = snapshot.with_file_name(TARGET);
    Ok((Dir::open(&path)?, path))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[expect(clippy::cast_precision_loss, reason = "files of one tree")]
fn files(source: &Source) -> f64 {
    source.files as f64
}

/// S3's list price in USD: PUT 0.005, GET 0.0004 for a thousand.
pub(crate) fn price(puts: f64, gets: f64) -> f64 {
    (puts * 0.005 + gets * 0.000_4) / 1_000.0
}

/// A file of the tree as the raw loop makes it.
struct Raw {
    dir: usize,
    name: std::ffi::OsString,
    bytes: Vec<u8>,
    mode: u32,
    modified: SystemTime,
}

/// Makes the same tree with two threads and nothing else: what any restore has to do at least.
fn make_same(source: &Path, target: &Path) -> Result<Duration> {
    let (mut dirs, mut files, mut links) = (vec![source.to_owned()], Vec::new(), Vec::new());
    let mut next = 0;
    while next < dirs.len() {
        for entry in fs::read_dir(&dirs[next])? {
            let entry = entry?;
            let facts = entry.metadata()?;
            if facts.is_dir() {
                dirs.push(entry.path());
            } else if facts.is_symlink() {
                links.push((next, entry.file_name(), fs::read_link(entry.path())?));
            } else {
                files.push(Raw {
                    dir: next,
                    name: entry.file_name(),
                    bytes: fs::read(entry.path())?,
                    mode: facts.mode() & 0o7777,
                    modified: facts.modified()?,
                });
            }
        }
        next += 1;
    }
    let dirs: Vec<_> =
        dirs.iter().map(|dir| Ok(target.join(dir.strip_prefix(source)?))).collect::<Result<_>>()?;
    let started = Instant::now();
    for dir in &dirs[1..] {
        fs::create_dir(dir)?;
    }
    for (dir, name, to) in &links {
        std::os::unix::fs::symlink(to, dirs[*dir].join(name))?;
    }
    std::thread::scope(|scope| {
        let halves: Vec<_> = files
            .chunks(files.len().div_ceil(2))
            .map(|half| {
                let dirs = &dirs;
                scope.spawn(move || half.iter().try_for_each(|file| make(&dirs[file.dir], file)))
            })
            .collect();
        halves.into_iter().try_for_each(|half| half.join().expect("it does not panic"))
    })?;
    Ok(started.elapsed())
}

fn make(dir: &Path, file: &Raw) -> Result<()> {
    let made = fs::OpenOptions::new().write(true).create_new(true).open(dir.join(&file.name))?;
    made.write_all_at(&file.bytes, 0)?;
    made.set_permissions(fs::Permissions::from_mode(file.mode))?;
    made.set_times(fs::FileTimes::new().set_modified(file.modified))?;
    Ok(())
}

/// Whether the peers are there; says what is missing.
pub(crate) fn require_peers() -> Result<()> {
    for peer in &PEERS {
        let found = Command::new("sh").args(["-c", &format!("command -v {}", peer.program)]).output()?;
        ensure!(found.status.success(), "{} is not installed: hack/bench installs it", peer.program);
    }
    Ok(())
}
