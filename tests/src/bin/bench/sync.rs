//! One edited file against the store's round trips.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use tests::figures::{Figure, Target, median, millis};

use crate::bench::{Bench, Source};

impl Bench {
    /// One edited file to durable.
    pub(crate) async fn one_edit(&self, source: &Source) -> Result<Vec<Figure>> {
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
                Target::Plus(30.0),
            ),
            Figure::new(
                "sync",
                "writes to the store for it",
                (writes, "writes"),
                ("2 writes", 2.0),
                Target::Limit,
            ),
        ])
    }
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
