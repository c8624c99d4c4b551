//! Forks of a large volume against raw snapshots.

use std::time::{Duration, Instant};

use anyhow::Result;
use btrfs::Dir;
use futures::StreamExt as _;
use proto::hub::GetVolumeRequest;
use proto::node::{CreateVolumeRequest as NodeCreateVolumeRequest, Origin};
use tests::figures::{Figure, Target, median, millis};

use crate::bench::{Bench, Source, pool_of};

impl Bench {
    /// Fork RPC of the node against the raw ioctl and a commit, in turn.
    pub(crate) async fn fork(&self, source: &Source) -> Result<Vec<Figure>> {
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
        let (mut rpc, mut raw, mut commits) = (Vec::new(), Vec::new(), Vec::new());
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
            let before = btrfs::commit::count(&scratch)?;
            let started = Instant::now();
            node.create_volume(request).await?;
            rpc.push(started.elapsed());
            commits.push(btrfs::commit::count(&scratch)? - before);
        }
        for round in 0..ROUNDS {
            scratch.delete_subvolume(format!("raw-{round}"))?;
            self.delete(format!("bench-fork-{round}")).await?;
        }
        pool_of(source)?.remove_dir(beside)?;
        // A heartbeat or the kernel may commit between two of the looks, so not the sum.
        commits.sort_unstable();
        #[expect(clippy::cast_precision_loss, reason = "a handful of commits")]
        let commits = commits[commits.len() / 2] as f64;
        let mut figures = vec![
            Figure::new(
                "fork",
                format!("fork of {} files, node RPC p50, {ROUNDS} rounds", source.files),
                (millis(median(&rpc)), "ms"),
                ("raw snapshot ioctl + commit p50", millis(median(&raw))),
                Target::Plus(3.0),
            ),
            Figure::new(
                "fork",
                "commits of the pool for it, p50",
                (commits, "commits"),
                ("the snapshot's own", 1.0),
                Target::Limit,
            ),
        ];
        figures.extend(self.many_forks().await?);
        Ok(figures)
    }

    /// A thousand forks of a small volume, as many at once as an orchestrator would ask for, against a loop of raw ioctls.
    async fn many_forks(&self) -> Result<Vec<Figure>> {
        const FILES: usize = 2_000;
        const FORKS: usize = 1_000;
        const TURN: usize = 100;
        const AT_ONCE: usize = 16;
        let source = self.small_volume("bench-small", FILES).await?;
        let version = self.sync(&source.id).await?.version;
        let live = Dir::open(&source.path)?;
        let scratch = pool_of(&source)?.create_dir("bench-raw", 0o700)?;
        let node = self.handle.node(&source.node).await?;
        let (mut ours, mut raw, mut commits) = (Duration::ZERO, Duration::ZERO, 0);
        for turn in (0..FORKS).step_by(TURN) {
            let started = Instant::now();
            for one in turn..turn + TURN {
                scratch.snapshot(&live, format!("raw-{one}"), false, None)?;
                btrfs::commit::commit(&scratch)?;
            }
            raw += started.elapsed();
            let requests = (turn..turn + TURN).map(|one| NodeCreateVolumeRequest {
                volume_id: format!("bench-many-{one}"),
                request_id: format!("bench-many-{one}"),
                origin: Some(Origin { volume_id: source.id.clone(), version: version.clone() }),
                ..NodeCreateVolumeRequest::default()
            });
            let before = btrfs::commit::count(&scratch)?;
            let started = Instant::now();
            let mut made = futures::stream::iter(requests.map(|request| {
                let mut node = node.clone();
                async move { node.create_volume(request).await }
            }))
            .buffer_unordered(AT_ONCE);
            while let Some(volume) = made.next().await {
                volume?;
            }
            ours += started.elapsed();
            commits += btrfs::commit::count(&scratch)? - before;
        }
        for one in 0..FORKS {
            scratch.delete_subvolume(format!("raw-{one}"))?;
            self.delete(format!("bench-many-{one}")).await?;
        }
        pool_of(&source)?.remove_dir("bench-raw")?;
        #[expect(clippy::cast_precision_loss, reason = "a thousand")]
        let (commits, forks) = (commits as f64, FORKS as f64);
        Ok(vec![
            Figure::new(
                "fork",
                format!("{FORKS} forks of {FILES} files, node RPC, {AT_ONCE} at once, quota on"),
                (ours.as_secs_f64(), "s"),
                ("loop of snapshot ioctl + commit", raw.as_secs_f64()),
                Target::Times(1.15),
            ),
            Figure::new(
                "fork",
                "commits of the pool for them",
                (commits, "commits"),
                ("one for each", forks),
                Target::Times(0.5),
            ),
        ])
    }
}
