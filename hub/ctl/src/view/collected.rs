//! What a garbage collection did, or would do.

use cas::gc::{Explained, Phase, Report, Verdict};
use serde::Serialize;
use types::{SessionId, Timestamp};

use crate::output::{Fields, Row, size};

/// A session that a collection waits for.
#[derive(Debug, Serialize)]
pub struct Behind {
    /// The session.
    pub session: SessionId,
    /// Its node.
    pub node: String,
    /// For how long it has given no sign, as seen from here.
    pub still_ms: u64,
}

/// What a collection did.
#[derive(Debug, Serialize)]
pub struct Collected {
    /// Counts the collections of the store.
    pub epoch: u64,
    /// idle, condemned, doomed: anything but idle is gone on with.
    pub phase: &'static str,
    /// Packs when it began.
    pub packs: u64,
    /// Their bytes.
    pub pack_bytes: u64,
    /// Packs that were to go.
    pub condemned: u64,
    /// Of these, packs that are in use after all.
    pub rescued: u64,
    /// Packs that went.
    pub deleted: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Of these, packs whose live part was copied.
    pub evacuated: u64,
    /// Bytes that were copied.
    pub copied_bytes: u64,
    /// Sessions that were fenced because they did not follow.
    pub fenced: Vec<SessionId>,
    /// Records that were taken from sessions that are over.
    pub drained: u64,
    /// Sessions that are waited for.
    pub waiting: Vec<Behind>,
    /// Deleted volumes that were given up.
    pub purged: u64,
    /// Records that went.
    pub removed: u64,
    /// Volumes without an owner that were thinned.
    pub thinned: u64,
    /// Sessions that went.
    pub retired: u64,
    /// Other objects that went.
    pub leftovers: u64,
    /// What could not be done.
    pub troubles: Vec<String>,
}

impl From<Report> for Collected {
    fn from(report: Report) -> Self {
        let behind = |behind: &cas::gc::Behind| Behind {
            session: behind.session,
            node: behind.node.clone(),
            still_ms: u64::try_from(behind.still.as_millis()).unwrap_or(u64::MAX),
        };
        Self {
            epoch: report.epoch,
            phase: match report.phase {
                Some(Phase::Condemned) => "condemned",
                Some(Phase::Doomed) => "doomed",
                Some(Phase::Idle) | None => "idle",
            },
            packs: report.packs,
            pack_bytes: report.pack_bytes,
            condemned: report.condemned,
            rescued: report.rescued,
            deleted: report.deleted,
            deleted_bytes: report.deleted_bytes,
            evacuated: report.evacuated,
            copied_bytes: report.copied_bytes,
            waiting: report.waiting.iter().map(behind).collect(),
            fenced: report.fenced,
            drained: report.drained,
            purged: report.purged,
            removed: report.removed,
            thinned: report.thinned,
            retired: report.retired,
            leftovers: report.leftovers,
            troubles: report.troubles,
        }
    }
}

impl Fields for Collected {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("epoch", format!("{} ({})", self.epoch, self.phase)),
            ("packs", format!("{} ({})", self.packs, size(self.pack_bytes))),
            ("deleted", format!("{} packs ({})", self.deleted, size(self.deleted_bytes))),
            ("rewritten", format!("{} packs, {} copied", self.evacuated, size(self.copied_bytes))),
            ("in use after all", self.rescued.to_string()),
            ("volumes given up", self.purged.to_string()),
            ("records removed", self.removed.to_string()),
            ("volumes thinned", self.thinned.to_string()),
            ("sessions removed", self.retired.to_string()),
        ];
        fields.extend(self.fenced.iter().map(|session| ("fenced", session.to_string())));
        let waiting = |behind: &Behind| format!("{} ({})", behind.node, behind.session);
        fields.extend(self.waiting.iter().map(|behind| ("waits for", waiting(behind))));
        fields.extend(self.troubles.iter().map(|trouble| ("trouble", trouble.clone())));
        fields
    }
}

/// Why an object stays or goes.
#[derive(Debug, Serialize)]
pub struct Kept {
    /// Its key.
    pub object: String,
    /// Its length.
    pub bytes: u64,
    /// keep, rewrite, go, foreign.
    pub verdict: String,
    /// Why.
    pub why: String,
}

impl From<Explained> for Kept {
    fn from(explained: Explained) -> Self {
        let Explained { object, bytes, verdict, why } = explained;
        Self { object, bytes, verdict: verdict.to_string(), why }
    }
}

impl Row for Kept {
    const HEADS: &'static [&'static str] = &["OBJECT", "SIZE", "VERDICT", "WHY"];

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        vec![self.object.clone(), size(self.bytes), self.verdict.clone(), self.why.clone()]
    }
}

/// How much a collection would leave.
#[derive(Debug, Default, Serialize)]
pub struct WouldCollect {
    /// Objects that stay.
    pub keep: u64,
    /// Their bytes.
    pub keep_bytes: u64,
    /// Packs that are rewritten.
    pub rewrite: u64,
    /// Their bytes before.
    pub rewrite_bytes: u64,
    /// Objects that go.
    pub go: u64,
    /// Their bytes.
    pub go_bytes: u64,
    /// Objects that are not ours.
    pub foreign: u64,
}

impl WouldCollect {
    /// Counts.
    pub fn of(explained: &[Explained]) -> Self {
        let mut would = Self::default();
        for one in explained {
            let (count, bytes) = match one.verdict {
                Verdict::Keep => (&mut would.keep, &mut would.keep_bytes),
                Verdict::Rewrite => (&mut would.rewrite, &mut would.rewrite_bytes),
                Verdict::Go => (&mut would.go, &mut would.go_bytes),
                Verdict::Foreign => {
                    would.foreign += 1;
                    continue;
                }
            };
            *count += 1;
            *bytes += one.bytes;
        }
        would
    }
}

impl Fields for WouldCollect {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        let count = |count: u64, bytes: u64| format!("{count} objects ({})", size(bytes));
        vec![
            ("stays", count(self.keep, self.keep_bytes)),
            ("is rewritten", count(self.rewrite, self.rewrite_bytes)),
            ("goes", count(self.go, self.go_bytes)),
            ("is not ours", self.foreign.to_string()),
        ]
    }
}
