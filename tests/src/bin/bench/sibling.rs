//! One file in a hundred changed: what finding it takes, and waking the volume where its relative is.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use btrfs::Dir;
use proto::hub::{EnsureCachedRequest, ForkVolumeRequest, HibernateVolumeRequest};
use tests::figures::{Figure, Target, median, millis};

use crate::bench::{Bench, Source, drained, pool_of, pool_path};

const GROUP: &str = "sibling";
const ROUNDS: usize = 5;
/// The cleaner has this long.
const DRAINED: Duration = Duration::from_secs(60);

impl Bench {
    /// A fork with one file in a hundred changed: found, synced, put to sleep, and woken beside its source.
    pub(crate) async fn sibling(&self, source: &Source) -> Result<Vec<Figure>> {
        let request = ForkVolumeRequest {
            request_id: "bench-sibling".to_owned(),
            source_volume_id: source.id.clone(),
            node_hint: source.node.clone(),
            ..ForkVolumeRequest::default()
        };
        let fork = self.handle.hub().fork_volume(request).await?.into_inner();
        let (pool, path) = (pool_of(source)?, PathBuf::from(&fork.path));
        let (base, changed) = ("bench-sibling-base", "bench-sibling-changed");
        pool.snapshot(&Dir::open(&path)?, base, true, None)?;
        let files = change(&path, 100)?;
        pool.snapshot(&Dir::open(&path)?, changed, true, None)?;
        btrfs::commit::commit(&pool)?;
        let root = pool_path(source);
        let find = Command::new(std::env::current_exe()?.with_file_name("examples").join("find_changes"))
            .arg(root.join(base))
            .arg(root.join(changed))
            .output()?;
        ensure!(find.status.success(), "{}", String::from_utf8_lossy(&find.stderr));
        let find: serde_json::Value = serde_json::from_slice(&find.stdout)?;
        pool.delete_subvolume(base)?;
        pool.delete_subvolume(changed)?;

        let synced = self.sync(&fork.volume_id).await?;
        let written: Vec<(PathBuf, Vec<u8>)> = files
            .into_iter()
            .map(|file| Ok((file.strip_prefix(&path)?.to_owned(), fs::read(&file)?)))
            .collect::<Result<_>>()?;
        let (mut woken, mut raw) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let sleep = HibernateVolumeRequest { volume_id: fork.volume_id.clone() };
            self.handle.hub().hibernate_volume(sleep).await?;
            // What it had here is gone for good: the kernel deletes slowly, and at the price of whoever commits meanwhile.
            drained(&pool, DRAINED).await?;
            raw.push(by_hand(&pool, source, &written)?);
            drained(&pool, DRAINED).await?;
            let wake = EnsureCachedRequest {
                volume_id: fork.volume_id.clone(),
                candidates: vec![source.node.clone()],
                ..EnsureCachedRequest::default()
            };
            let started = Instant::now();
            self.handle.hub().ensure_cached(wake).await?;
            woken.push(started.elapsed());
        }
        self.delete(fork.volume_id).await?;
        let told =
            |field: &str| find[field].as_f64().map(|seconds| seconds * 1e3).context("it tells its time");
        let (found, searched) = (told("cpu_seconds")?, told("search_cpu_seconds")?);
        #[expect(clippy::cast_precision_loss, reason = "megabytes")]
        let sent = synced.bytes_uploaded as f64 / 1e6;
        Ok(vec![
            Figure::new(
                GROUP,
                format!("{} of {} files changed: finding them, CPU", written.len(), source.files),
                (found, "ms"),
                ("15 ms", 15.0),
                Target::Limit,
            ),
            Figure::new(
                GROUP,
                "the same",
                (found, "ms"),
                ("the kernel's search of the leaves, nothing done with them", searched),
                Target::Beside,
            ),
            Figure::new(GROUP, "their sync sends", (sent, "MB"), ("nothing", 0.0), Target::Beside),
            Figure::new(
                GROUP,
                "wake beside the relative, hub RPC p50",
                (millis(median(&woken)), "ms"),
                ("100 ms", 100.0),
                Target::Limit,
            ),
            Figure::new(
                GROUP,
                "the same",
                (millis(median(&woken)), "ms"),
                ("a snapshot, the same files written, another snapshot", millis(median(&raw))),
                Target::Beside,
            ),
        ])
    }
}

/// The same by the raw calls: a clone of the source, the files written where they stand, and a snapshot that is on disk.
fn by_hand(pool: &Dir, source: &Source, written: &[(PathBuf, Vec<u8>)]) -> Result<Duration> {
    let (clone, base) = ("bench-sibling-raw", "bench-sibling-raw-base");
    let started = Instant::now();
    pool.snapshot(&Dir::open(&source.path)?, clone, false, None)?;
    let root = pool_path(source).join(clone);
    for (file, bytes) in written {
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(root.join(file))?;
        file.write_all(bytes)?;
        file.set_modified(std::time::UNIX_EPOCH)?;
    }
    pool.snapshot(&Dir::open(&root)?, base, true, None)?;
    let took = started.elapsed();
    pool.delete_subvolume(base)?;
    pool.delete_subvolume(clone)?;
    Ok(took)
}

/// Appends a line to one regular file in `every`; returns to which.
fn change(root: &std::path::Path, every: usize) -> Result<Vec<PathBuf>> {
    let (mut queue, mut files) = (vec![root.to_owned()], Vec::new());
    while let Some(next) = queue.pop() {
        for entry in fs::read_dir(&next)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                queue.push(entry.path());
            } else if entry.file_type()?.is_file() && entry.metadata()?.len() < 64 << 10 {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    let chosen: Vec<PathBuf> = files.into_iter().step_by(every).collect();
    for path in &chosen {
        fs::OpenOptions::new().append(true).open(path)?.write_all(b"\n// changed\n")?;
    }
    Ok(chosen)
}
