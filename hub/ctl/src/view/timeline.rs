//! A volume in time.

use orchestrator::TimelineEntry;
use serde::Serialize;
use types::{EntryId, Epoch, Timestamp, VersionId, VolumeId};

use super::{Time, some};
use crate::output::{Fields, Row, ago, dash, size};

/// A point on a timeline.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// Its id.
    pub entry: EntryId,
    /// The tree there.
    pub version: VersionId,
    /// The entry before it on its line.
    pub previous: Option<EntryId>,
    /// When.
    pub time: Option<Time>,
    /// sync, manual, event, step.
    pub role: String,
    /// What people said of it.
    pub label: Option<String>,
    /// The volume's present head.
    pub head: bool,
    /// The branch whose tip it is.
    pub branch: Option<String>,
}

impl From<TimelineEntry> for Entry {
    fn from(entry: TimelineEntry) -> Self {
        Self {
            entry: entry.id,
            version: entry.version,
            previous: entry.previous,
            time: entry.time.map(Time),
            role: entry.role.to_string(),
            label: some(entry.label),
            head: entry.head,
            branch: entry.branch,
        }
    }
}

impl Row for Entry {
    const HEADS: &'static [&'static str] = &["ENTRY", "VERSION", "AGE", "ROLE", "HEAD OF", "LABEL"];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let head = match (&self.branch, self.head) {
            (Some(branch), _) => branch.clone(),
            (None, true) => "volume".to_owned(),
            (None, false) => String::new(),
        };
        vec![
            self.entry.short(),
            self.version.short(),
            ago(self.time, now),
            self.role.clone(),
            head,
            self.label.clone().unwrap_or_default(),
        ]
    }
}

impl Fields for Entry {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        vec![
            ("entry", self.entry.to_string()),
            ("version", self.version.to_string()),
            ("time", dash(self.time.map(|time| time.0).as_ref())),
            ("role", self.role.clone()),
            ("label", dash(self.label.as_ref())),
        ]
    }
}

/// What a sync answers.
#[derive(Debug, Serialize)]
pub struct Synced {
    /// The volume's id.
    pub id: VolumeId,
    /// The durable head.
    pub version: VersionId,
    /// Its entry on the timeline.
    pub entry: Option<EntryId>,
    /// False where nothing had changed, and nothing was written.
    pub changed: bool,
    /// Bytes that went to the store, the record included.
    pub bytes_uploaded: u64,
    /// Objects that were written there, the record included.
    pub objects_written: u64,
    /// Files that differ from the version before.
    pub files_changed: u64,
    /// The whole tree was walked.
    pub full_scan: bool,
    /// How long it took on the node.
    pub took_ms: u64,
    /// Under which epoch.
    pub epoch: Epoch,
}

impl Synced {
    /// Makes the view of an answer.
    pub fn new(id: VolumeId, synced: orchestrator::Synced) -> Self {
        Self {
            id,
            version: synced.version,
            entry: synced.entry,
            changed: synced.changed,
            bytes_uploaded: synced.bytes_uploaded,
            objects_written: synced.objects_written,
            files_changed: synced.files_changed,
            full_scan: synced.full_scan,
            took_ms: u64::try_from(synced.took.as_millis()).unwrap_or(u64::MAX),
            epoch: synced.epoch,
        }
    }
}

impl Fields for Synced {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        vec![
            ("id", self.id.to_string()),
            ("version", self.version.to_string()),
            ("changed", self.changed.to_string()),
            ("uploaded", format!("{} in {} objects", size(self.bytes_uploaded), self.objects_written)),
            ("files changed", self.files_changed.to_string()),
            ("looked at", if self.full_scan { "the whole tree" } else { "what changed" }.to_owned()),
            ("took", format!("{} ms", self.took_ms)),
        ]
    }
}

/// What a restore answers.
#[derive(Debug, Serialize)]
pub struct Restored {
    /// The volume's id.
    pub id: VolumeId,
    /// The head now.
    pub version: VersionId,
    /// Its entry on the timeline.
    pub entry: Option<EntryId>,
    /// The branch that holds what was there before.
    pub branch: Option<String>,
    /// A mount still shows the old tree.
    pub restart_to_see_it: bool,
}

impl Restored {
    /// Makes the view of an answer.
    pub fn new(id: VolumeId, restored: orchestrator::Restored) -> Self {
        Self {
            id,
            version: restored.version,
            entry: restored.entry,
            branch: restored.branch,
            restart_to_see_it: restored.restart_to_see_it,
        }
    }
}

impl Fields for Restored {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("id", self.id.to_string()),
            ("version", self.version.to_string()),
            ("entry", dash(self.entry.as_ref())),
            ("kept before", dash(self.branch.as_ref())),
        ];
        if self.restart_to_see_it {
            fields
                .push(("mounted", "the pod still sees the old tree: restart it to see this one".to_owned()));
        }
        fields
    }
}
