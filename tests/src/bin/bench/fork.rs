//! Forks of a large volume against raw snapshots.

use std::time::Instant;

use anyhow::Result;
use btrfs::Dir;
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
}
