//! What was written to the store, or read from it, by this process itself.

use cas::{Entry, VerifyReport, Written};
use serde::Serialize;
use types::{EntryId, ResourceName, Timestamp, VersionId, VolumeId};

use crate::output::{Fields, dash, size};

/// What making a template answers.
#[derive(Debug, Serialize)]
pub struct TemplateMade {
    /// Its name.
    pub name: ResourceName,
    /// Its record.
    pub id: VolumeId,
    /// Its tree.
    pub version: VersionId,
    /// Files in it: all names that are not directories.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that went to the store.
    pub bytes_uploaded: u64,
    /// Packs that were written there.
    pub objects_written: u64,
    /// False where the name pointed to this tree already.
    pub changed: bool,
}

impl TemplateMade {
    /// Makes the view of what was written.
    pub fn new(name: &ResourceName, id: VolumeId, written: Written, changed: bool) -> Self {
        Self {
            name: name.clone(),
            id,
            version: written.tree.version,
            files: written.files,
            bytes: written.bytes,
            bytes_uploaded: written.bytes_uploaded,
            objects_written: written.objects_written,
            changed,
        }
    }
}

impl Fields for TemplateMade {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        vec![
            ("name", self.name.to_string()),
            ("id", self.id.to_string()),
            ("version", self.version.to_string()),
            ("files", format!("{} ({})", self.files, size(self.bytes))),
            ("uploaded", format!("{} in {} packs", size(self.bytes_uploaded), self.objects_written)),
            ("changed", self.changed.to_string()),
        ]
    }
}

/// What a verification answers.
#[derive(Debug, Serialize)]
pub struct Verified {
    /// The volume's id.
    pub id: VolumeId,
    /// The entry on its timeline.
    pub entry: EntryId,
    /// The tree.
    pub version: Option<VersionId>,
    /// Files whose every byte was read and proved.
    pub files: u64,
    /// Directories that were.
    pub directories: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Packs that were looked at.
    pub packs: u64,
    /// Nothing is damaged.
    pub whole: bool,
    /// What is.
    pub damages: Vec<String>,
}

impl Verified {
    /// Begins with nothing read.
    pub fn new(id: VolumeId, entry: &Entry) -> Self {
        Self {
            id,
            entry: entry.id,
            version: entry.version(),
            files: 0,
            directories: 0,
            bytes: 0,
            packs: 0,
            whole: true,
            damages: Vec::new(),
        }
    }

    /// Adds what was found in one member's tree.
    pub fn add(&mut self, report: &VerifyReport) {
        self.files += report.files;
        self.directories += report.directories;
        self.bytes += report.bytes;
        self.packs += report.packs;
        self.whole &= report.is_whole();
        self.damages.extend(report.damages.iter().map(|damage| proto::status::message(damage)));
    }
}

impl Fields for Verified {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("id", self.id.to_string()),
            ("entry", self.entry.to_string()),
            ("version", dash(self.version.as_ref())),
            ("files", format!("{} ({})", self.files, size(self.bytes))),
            ("directories", self.directories.to_string()),
            ("packs", self.packs.to_string()),
            ("whole", if self.whole { "yes: every byte has its hash" } else { "NO" }.to_owned()),
        ];
        fields.extend(self.damages.iter().map(|damage| ("damaged", damage.clone())));
        fields
    }
}
