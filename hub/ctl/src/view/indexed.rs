//! What packs hold, when nothing else is left.

use cas::tree::{IndexedVersion, Reindexed};
use serde::Serialize;
use types::{Timestamp, VersionId};

use super::{TakenOut, Time};
use crate::output::{Fields, ago, size};

/// What `reindex` answers.
#[derive(Debug, Serialize)]
pub struct Indexed {
    /// Packs that were looked at.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames with contents of files.
    pub data_frames: u64,
    /// Frames with directories.
    pub tree_frames: u64,
    /// Packs that were listed from the headers of their frames.
    pub without_footer: u64,
    /// The versions, oldest first.
    pub versions: Vec<PackedVersion>,
    /// What could not be read.
    pub damages: Vec<PackedDamage>,
}

/// A version that packs hold.
#[derive(Debug, Serialize)]
pub struct PackedVersion {
    /// Its id.
    pub version: VersionId,
    /// Its domain.
    pub domain: String,
    /// When it was put.
    pub written: Time,
    /// Names that are no directories.
    pub files: u64,
    /// Directories below the root.
    pub directories: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Packs that it needs and that are not there.
    pub missing: Vec<String>,
}

/// Something that could not be read.
#[derive(Debug, Serialize)]
pub struct PackedDamage {
    /// The object.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

impl From<IndexedVersion> for PackedVersion {
    fn from(found: IndexedVersion) -> Self {
        Self {
            version: found.tree.version,
            domain: found.tree.manifest.pack.domain.to_string(),
            written: Time(found.written),
            files: found.totals.files,
            directories: found.totals.directories,
            bytes: found.totals.bytes,
            missing: found.missing.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<Reindexed> for Indexed {
    fn from(found: Reindexed) -> Self {
        let Reindexed { packs, bytes, data_frames, tree_frames, without_footer, versions, damages } = found;
        let damages = damages.into_iter().map(|(key, reason)| PackedDamage { key, reason }).collect();
        let versions = versions.into_iter().map(PackedVersion::from).collect();
        Self { packs, bytes, data_frames, tree_frames, without_footer, versions, damages }
    }
}

impl Fields for Indexed {
    fn fields(&self, now: Timestamp) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("packs", format!("{} ({})", self.packs, size(self.bytes))),
            ("frames", format!("{} of contents, {} of directories", self.data_frames, self.tree_frames)),
        ];
        if self.without_footer > 0 {
            fields.push(("cut", format!("{} packs without a footer", self.without_footer)));
        }
        for version in &self.versions {
            let missing = match version.missing.len() {
                0 => String::new(),
                count => format!(", {count} packs are MISSING"),
            };
            let written = ago(Some(version.written), now);
            let (files, bytes) = (version.files, size(version.bytes));
            fields.push((
                "version",
                format!("{} {files} files ({bytes}), {written}{missing}", version.version.short()),
            ));
        }
        let damages = self.damages.iter();
        fields.extend(damages.map(|damage| ("damaged", format!("{}: {}", damage.key, damage.reason))));
        fields
    }
}

/// What `reindex VERSION DIR` answers.
#[derive(Debug, Serialize)]
pub struct RescuedVersion {
    /// The tree.
    pub version: VersionId,
    /// What became of it.
    #[serde(flatten)]
    pub taken: TakenOut,
}

impl Fields for RescuedVersion {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        std::iter::once(("version", self.version.to_string())).chain(self.taken.fields()).collect()
    }
}
