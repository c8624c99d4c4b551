//! What every group works with: a cluster, and a volume with the data set in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use btrfs::Dir;
use proto::hub::{CreateVolumeRequest, DeleteVolumeRequest, TriggerSyncRequest};
use tests::cluster::Handle;

pub(crate) struct Bench {
    pub(crate) handle: Handle,
    pub(crate) data: PathBuf,
    pub(crate) work: PathBuf,
}

/// A volume with the data set in it.
pub(crate) struct Source {
    pub(crate) id: String,
    pub(crate) node: String,
    pub(crate) path: PathBuf,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

impl Bench {
    /// Creates a volume with the data set in it, in this dedup domain.
    pub(crate) async fn filled_volume(&self, request: &str, domain: &str) -> Result<Source> {
        self.volume_of(request, domain, "node-1", &self.data).await
    }

    /// Creates a volume on a node with a copy of a directory in it.
    pub(crate) async fn volume_of(
        &self,
        request: &str,
        domain: &str,
        node: &str,
        data: &Path,
    ) -> Result<Source> {
        let request = CreateVolumeRequest {
            request_id: request.to_owned(),
            domain: domain.to_owned(),
            quota_bytes: Some(0),
            node_hint: node.to_owned(),
            ..CreateVolumeRequest::default()
        };
        let made = self.handle.hub().create_volume(request).await?.into_inner();
        let path = PathBuf::from(&made.path);
        run(Command::new("cp").arg("-a").arg(data.join(".")).arg(&path))?;
        let (files, bytes) = count(&path)?;
        btrfs::commit::sync_all(&Dir::open(&path)?)?;
        Ok(Source { id: made.volume_id, node: made.node, path, files, bytes })
    }

    /// Creates a volume with so many files of 2 KB in it.
    pub(crate) async fn small_volume(&self, request: &str, files: usize) -> Result<Source> {
        const BYTES: usize = 2_000;
        let request = CreateVolumeRequest {
            request_id: request.to_owned(),
            node_hint: "node-1".to_owned(),
            ..CreateVolumeRequest::default()
        };
        let made = self.handle.hub().create_volume(request).await?.into_inner();
        let path = PathBuf::from(&made.path);
        for file in 0..files {
            let directory = path.join(format!("d{}", file % 40));
            fs::create_dir_all(&directory)?;
            fs::write(directory.join(format!("f{file}")), format!("{file}\n").repeat(BYTES / 5))?;
        }
        let (files, bytes) = count(&path)?;
        btrfs::commit::sync_all(&Dir::open(&path)?)?;
        Ok(Source { id: made.volume_id, node: made.node, path, files, bytes })
    }

    pub(crate) async fn sync(&self, volume: &str) -> Result<proto::node::SyncVolumeResponse> {
        let request = TriggerSyncRequest { volume_id: volume.to_owned() };
        Ok(self.handle.hub().trigger_sync(request).await?.into_inner())
    }

    pub(crate) async fn delete(&self, volume: String) -> Result<()> {
        self.handle
            .hub()
            .delete_volume(DeleteVolumeRequest { volume_id: volume, ..Default::default() })
            .await?;
        Ok(())
    }
}

/// The root of the pool that holds a volume: `<pool>/volumes/<id>/data`.
pub(crate) fn pool_root(live: &Path) -> Result<PathBuf> {
    Ok(live.ancestors().nth(3).context("a volume lies three levels below its pool")?.to_owned())
}

pub(crate) fn pool_path(source: &Source) -> PathBuf {
    pool_root(&source.path).expect("a live path of a volume")
}

pub(crate) fn pool_of(source: &Source) -> Result<Dir> {
    Ok(Dir::open(pool_path(source))?)
}

/// Waits until no deleted subvolume is left in the tree of roots.
pub(crate) async fn drained(pool: &Dir, patience: Duration) -> Result<()> {
    let started = Instant::now();
    while btrfs::subvolume::roots(pool)?.iter().any(|root| root.deleted) || btrfs::cleaner::queued(pool)? > 0
    {
        ensure!(started.elapsed() < patience, "the cleaner is not done after {patience:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Files and their bytes below a directory.
pub(crate) fn count(directory: &Path) -> Result<(u64, u64)> {
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

pub(crate) fn quote(path: &Path) -> String {
    format!("'{}'", path.display())
}

pub(crate) fn shell(script: &str) -> Result<()> {
    run(Command::new("bash").args(["-o", "pipefail", "-c", script]))
}

pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
