//! What was found damaged, taken out, and put back.

use cas::scrub::{Damage, Scrubbed};
use cas::{Entry, Restored, TreeError};
use proto::node::RepairVolumeResponse;
use serde::Serialize;
use types::{EntryId, Timestamp, VersionId, VolumeId};

use crate::output::{Fields, dash, size};

/// What a scrub answers.
#[derive(Debug, Serialize)]
pub struct ScrubDone {
    /// Small objects that were proved.
    pub objects: u64,
    /// Packs that were.
    pub packs: u64,
    /// Bytes of packs.
    pub bytes: u64,
    /// Nothing is damaged.
    pub whole: bool,
    /// What is: `{key, reason, touches: [{volume, entry, version, paths, more}]}`.
    pub damages: Vec<Damage>,
}

impl From<Scrubbed> for ScrubDone {
    fn from(done: Scrubbed) -> Self {
        let Scrubbed { objects, packs, bytes, damages, .. } = done;
        Self { objects, packs, bytes, whole: damages.is_empty(), damages }
    }
}

impl Fields for ScrubDone {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("objects", self.objects.to_string()),
            ("packs", format!("{} ({})", self.packs, size(self.bytes))),
            ("whole", if self.whole { "yes: every byte has its hash" } else { "NO" }.to_owned()),
        ];
        for damage in &self.damages {
            fields.push(("damaged", format!("{}: {}", damage.key, damage.reason)));
            for touches in &damage.touches {
                let more = if touches.more { " and more" } else { "" };
                fields.push((
                    "touches",
                    format!(
                        "{}@{}: {}{more}",
                        touches.volume,
                        touches.version.short(),
                        touches.paths.join(", ")
                    ),
                ));
            }
        }
        fields
    }
}

/// What became of trees that were restored as far as they are whole.
#[derive(Debug, Default, Serialize)]
pub struct TakenOut {
    /// Names that were restored.
    pub files: u64,
    /// Directories that were.
    pub directories: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Paths that are lost; a directory's stands for all below it.
    pub lost: Vec<String>,
    /// What is damaged beside them.
    pub damages: Vec<String>,
}

impl TakenOut {
    /// Adds what became of one tree.
    pub fn add(&mut self, restored: &Restored, damages: &[TreeError]) {
        self.files += restored.files;
        self.directories += restored.directories;
        self.bytes += restored.bytes;
        for damage in damages {
            match damage.lost_path() {
                Some(path) => self.lost.push(String::from_utf8_lossy(path).into_owned()),
                None => self.damages.push(proto::status::message(damage)),
            }
        }
        self.lost.sort();
        self.lost.dedup();
    }

    /// Tells if nothing is lost.
    pub fn is_whole(&self) -> bool {
        self.lost.is_empty() && self.damages.is_empty()
    }

    /// The rows of it.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, String)> {
        let counted = [
            ("files", format!("{} ({})", self.files, size(self.bytes))),
            ("directories", self.directories.to_string()),
        ];
        let lost = self.lost.iter().map(|path| ("lost", path.clone()));
        let damaged = self.damages.iter().map(|damage| ("damaged", damage.clone()));
        counted.into_iter().chain(lost).chain(damaged)
    }
}

/// What a rescue answers.
#[derive(Debug, Serialize)]
pub struct Rescued {
    /// The volume's id.
    pub id: VolumeId,
    /// The entry on its timeline.
    pub entry: EntryId,
    /// The tree.
    pub version: Option<VersionId>,
    /// What became of its trees.
    #[serde(flatten)]
    pub taken: TakenOut,
}

impl Rescued {
    /// Begins with nothing restored.
    pub fn new(id: VolumeId, entry: &Entry) -> Self {
        Self { id, entry: entry.id, version: entry.version(), taken: TakenOut::default() }
    }
}

impl Fields for Rescued {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("id", self.id.to_string()),
            ("entry", self.entry.to_string()),
            ("version", dash(self.version.as_ref())),
        ];
        fields.extend(self.taken.fields());
        fields
    }
}

/// What a repair answers.
#[derive(Debug, Serialize)]
pub struct Repaired {
    /// The volume's id.
    pub id: VolumeId,
    /// Versions that were damaged in the store and are whole again.
    pub repaired: Vec<String>,
    /// Damaged versions that the node has no snapshot of.
    pub lost: Vec<String>,
    /// Records that name the new packs.
    pub records: Vec<String>,
    /// Bytes that went to the store.
    pub bytes_uploaded: u64,
}

impl Repaired {
    /// Takes the node's answer.
    pub fn new(id: VolumeId, answer: RepairVolumeResponse) -> Self {
        let RepairVolumeResponse { repaired, lost, records, bytes_uploaded } = answer;
        Self { id, repaired, lost, records, bytes_uploaded }
    }
}

impl Fields for Repaired {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        let list = |items: &[String]| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
        vec![
            ("id", self.id.to_string()),
            ("repaired", list(&self.repaired)),
            ("lost", list(&self.lost)),
            ("records", list(&self.records)),
            ("uploaded", size(self.bytes_uploaded)),
        ]
    }
}
