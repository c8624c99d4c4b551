//! What a node's volumes left behind.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use tests::kubernetes::{Kubernetes, until};

/// Everything that a volume can leave behind on a node, counted by tools that share no code with ours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Left {
    mounts: usize,
    subvolumes: usize,
    groups: usize,
    directories: usize,
    staged: usize,
}

pub(crate) fn left(cluster: &Kubernetes, node: &str) -> Result<Left> {
    let pool = cluster.cluster.directory().join(node).join("mnt");
    let lines = |program: &[&str]| -> Result<usize> {
        let output = cluster.cluster.command_on(node, program[0]).args(&program[1..]).arg(&pool).output()?;
        ensure!(output.status.success(), "{program:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).lines().filter(|line| !line.trim().is_empty()).count())
    };
    let entries = |directory: &str| -> Result<usize> {
        Ok(std::fs::read_dir(cluster.cluster.pool(node).join(directory))?.count())
    };
    Ok(Left {
        // Of this cluster: what others have mounted was copied with the namespace, and goes when they do.
        mounts: {
            let ours = |point: &&PathBuf| point.starts_with(cluster.cluster.directory());
            cluster.cluster.mounts(node)?.iter().filter(ours).count() + cluster.published(node)?.len()
        },
        // Those that are deleted and not cleaned count as well: both are asked for.
        subvolumes: lines(&["btrfs", "subvolume", "list"])? + lines(&["btrfs", "subvolume", "list", "-d"])?,
        groups: lines(&["btrfs", "qgroup", "show", "--raw"])?,
        directories: entries("volumes")?,
        staged: entries("staging")?,
    })
}

/// Waits until a node looks as it did before it had any volume; the cleaner takes its time.
pub(crate) async fn nothing_left(cluster: &Kubernetes, node: &str, fresh: &Left) -> Result<()> {
    let mut now = left(cluster, node)?;
    let gone = until("what is deleted is gone", async || {
        now = left(cluster, node)?;
        Ok(now == *fresh)
    });
    let gone = gone.await;
    gone.with_context(|| format!("{now:?} is left, where there was {fresh:?}"))
}
