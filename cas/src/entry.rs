//! Entries: points on a volume's timeline. A version (a tree) may stand on it more than once; an entry is there once.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use types::{EntryId, Epoch, MemberName, Timestamp, VersionId, VolumeId};

use crate::VersionRef;
use crate::error::Error;

/// What each member of a volume looks like at one moment. Never empty.
pub type Heads = BTreeMap<MemberName, VersionRef>;

/// The identities of [`Heads`], without where their bytes lie.
pub type Tips = BTreeMap<MemberName, VersionId>;

/// The most bytes of an entry's label.
pub const MAX_LABEL_BYTES: usize = 256;

/// Returns the identities of `heads`.
pub fn tips(heads: &Heads) -> Tips {
    heads.iter().map(|(member, head)| (member.clone(), head.version)).collect()
}

/// Returns the heads of a volume without service volumes.
pub fn data_head(head: VersionRef) -> Heads {
    BTreeMap::from([(MemberName::data(), head)])
}

/// Why an entry was made, which decides how long it stays (see [`crate::thin`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// By the sync: all for an hour, hourly for a day, daily for a week.
    Sync,
    /// By a person: the newest five.
    Manual,
    /// By the system (created, hibernated, restored): stays.
    Event,
    /// By an agent: the newest thousand, for seven days.
    Step,
}

impl Role {
    /// Returns the word that the record uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Manual => "manual",
            Self::Event => "event",
            Self::Step => "step",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A point on a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The hash of everything below but `epoch` and where bytes lie.
    pub id: EntryId,
    /// Each member's version.
    pub heads: Heads,
    /// The head that this one followed. It may have been thinned since.
    pub previous: Option<EntryId>,
    /// When, by the store's clock.
    pub time: Timestamp,
    /// Why.
    pub role: Role,
    /// What a person or agent said about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// The owner's epoch that made it.
    pub epoch: Epoch,
}

impl Entry {
    /// Makes an entry with its id.
    pub fn new(
        volume: &VolumeId,
        heads: Heads,
        previous: Option<EntryId>,
        time: Timestamp,
        role: Role,
        label: &str,
        epoch: Epoch,
    ) -> Result<Self, Error> {
        if heads.is_empty() {
            return Err(Error::Invalid { what: "an entry".to_owned(), rule: "it has at least one member" });
        }
        if label.len() > MAX_LABEL_BYTES {
            let what = label.chars().take(40).collect::<String>();
            return Err(Error::Invalid { what, rule: "a label has at most 256 bytes" });
        }
        let id = entry_id(volume, &tips(&heads), previous, time, role, label);
        Ok(Self { id, heads, previous, time, role, label: label.to_owned(), epoch })
    }

    /// Returns the version of the volume itself, or of its first member.
    pub fn version(&self) -> Option<VersionId> {
        self.heads.get(&MemberName::data()).or_else(|| self.heads.values().next()).map(|head| head.version)
    }

    /// Tells if the id is the hash of what the entry says.
    pub fn is_itself(&self, volume: &VolumeId) -> bool {
        let tips = tips(&self.heads);
        self.id == entry_id(volume, &tips, self.previous, self.time, self.role, &self.label)
    }
}

/// Hashes what makes an entry one of its kind. FORMAT.md has the bytes; golden vectors hold them.
fn entry_id(
    volume: &VolumeId,
    tips: &Tips,
    previous: Option<EntryId>,
    time: Timestamp,
    role: Role,
    label: &str,
) -> EntryId {
    fn text(hasher: &mut blake3::Hasher, text: &str) {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"opensail entry 1\n");
    text(&mut hasher, volume.as_str());
    hasher.update(&(tips.len() as u64).to_le_bytes());
    for (member, version) in tips {
        text(&mut hasher, member.as_str());
        hasher.update(version.as_bytes());
    }
    match previous {
        None => hasher.update(&[0]),
        Some(entry) => hasher.update(&[1]).update(entry.as_bytes()),
    };
    hasher.update(&time.0.to_le_bytes());
    text(&mut hasher, role.as_str());
    text(&mut hasher, label);
    EntryId(*hasher.finalize().as_bytes())
}
