//! Scrub on a node: the packs that this pool wrote are read and proved at a low rate, for ever. All nodes together so look
//! at everything once. Where the walk is stands in `state.db`: it goes on there after a restart. What is damaged is said,
//! shown by `sailctl doctor` and `sailctl scrub`, and repaired from the local snapshots of the volumes here.

use std::sync::Arc;
use std::time::Duration;

use cas::scrub::{Damage, Scrub, Scrubbed};
use serde::{Deserialize, Serialize};
use types::Timestamp;

use crate::error::Error;
use crate::node::Node;

/// Packs between two notes of where the walk is.
const PART: usize = 16;

/// How long a node that has just started leaves the store to those who wait for it.
const FIRST: Duration = Duration::from_secs(600);

/// Damages that are remembered and shown.
const MOST_SHOWN: usize = 100;

/// Where the walk is, and what it found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The pack after which it goes on; nothing: it begins anew.
    pub after: Option<String>,
    /// Packs and bytes that this walk has proved.
    pub packs: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// What this walk found: object and what is wrong.
    pub found: Vec<(String, String)>,
    /// What the walk before found.
    pub before: Vec<(String, String)>,
    /// When the walk before ended.
    pub finished: Option<Timestamp>,
}

impl Progress {
    /// What is known to be damaged.
    fn damages(&self) -> Vec<&(String, String)> {
        let mut all: Vec<_> = self.found.iter().chain(&self.before).collect();
        all.sort();
        all.dedup_by(|a, b| a.0 == b.0);
        all
    }

    /// In words, and whether nothing is damaged.
    pub(crate) fn say(&self) -> (bool, String) {
        let damages = self.damages();
        let walked = format!("{} packs ({}) proved in this walk", self.packs, types::ByteSize(self.bytes));
        match damages.first() {
            None if self.finished.is_some() => (true, format!("nothing is damaged; {walked}")),
            None => (true, format!("nothing was found damaged so far; {walked}")),
            Some((object, reason)) => {
                (false, format!("{} objects are damaged, among them {object}: {reason}", damages.len()))
            }
        }
    }
}

impl Node {
    /// Walks until the node stops.
    pub(crate) async fn keep_scrubbed(self: Arc<Self>) {
        let stop = self.stop().clone();
        let interval = self.config().scrub_interval;
        let mut pause = interval.min(FIRST);
        while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            pause = match self.scrub_part().await {
                Ok(true) => interval,
                // The rate is kept by the reading itself.
                Ok(false) => Duration::ZERO,
                Err(error) => {
                    tracing::warn!(%error, "the scrub is interrupted, and goes on where it is");
                    FIRST.min(interval)
                }
            };
        }
    }

    /// Reads the next packs. `true`: the walk has ended.
    ///
    /// # Errors
    /// The store cannot be read, or the database not written.
    pub async fn scrub_part(self: &Arc<Self>) -> Result<bool, Error> {
        let mut progress = self.state().scrub().await?;
        let rate = Some(self.config().scrub_rate.0).filter(|rate| *rate > 0);
        let scrub = Scrub::new(self.store().clone(), rate).of_pool(self.pool().id());
        let after = progress.after.as_ref().and_then(|key| key.parse().ok());
        let mut part = scrub.packs(after.as_ref(), PART).await?;
        scrub.touch(&mut part).await?;
        for damage in &part.damages {
            say(damage);
        }
        progress.packs += part.packs;
        progress.bytes += part.bytes;
        let room = MOST_SHOWN.saturating_sub(progress.found.len());
        let found = part.damages.iter().take(room).map(|damage| (damage.key.clone(), damage.reason.clone()));
        progress.found.extend(found);
        progress.after = part.next.as_ref().map(ToString::to_string);
        let ended = progress.after.is_none();
        if ended {
            tracing::info!(
                packs = progress.packs,
                bytes = progress.bytes,
                damaged = progress.found.len(),
                "scrubbed"
            );
            let before = std::mem::take(&mut progress.found);
            let finished = Some(self.store().clock().now());
            progress = Progress { before, finished, ..Progress::default() };
        }
        self.state().remember_scrub(&progress).await?;
        self.repair_touched(&part).await;
        Ok(ended)
    }

    /// Repairs what the damage touches of the volumes here.
    async fn repair_touched(self: &Arc<Self>, part: &Scrubbed) {
        let touched: std::collections::BTreeSet<_> =
            part.damages.iter().flat_map(|damage| &damage.touches).map(|touches| &touches.volume).collect();
        for id in touched {
            if self.volumes().find(id).is_none() {
                continue;
            }
            match self.repair(id).await {
                Ok(repaired) => {
                    let (repaired, lost) = (repaired.versions.len(), repaired.lost.len());
                    tracing::warn!(volume = %id, repaired, lost, "versions were damaged in the store");
                }
                Err(error) => {
                    tracing::warn!(volume = %id, %error, "not repaired; `sailctl repair` tries again");
                }
            }
        }
    }
}

fn say(damage: &Damage) {
    let volumes: std::collections::BTreeSet<_> =
        damage.touches.iter().map(|touches| touches.volume.as_str()).collect();
    tracing::error!(object = damage.key, reason = damage.reason, ?volumes, "damaged in the store");
}
