//! First sync and restore against `btrfs send | zstd` and `btrfs receive`.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use btrfs::Dir;
use proto::hub::{EnsureCachedRequest, GetVolumeRequest, HibernateVolumeRequest};
use tests::figures::{Figure, Target, median};

use crate::bench::{Bench, Source, count, pool_of, pool_path, pool_root, quote, shell};

impl Bench {
    /// First sync and cold restore.
    pub(crate) async fn store(&self, source: &Source, repetitions: usize) -> Result<Vec<Figure>> {
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
