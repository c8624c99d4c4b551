//! Points in time of a project, and what calls about them answer.

use proto::convert::{InvalidField, optional, required, time};
use proto::{hub, node as wire};
use types::{EntryId, Epoch, NodeName, Timestamp, VersionId};

/// Why an entry is there, and so how long it stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The hub did not say.
    Unknown,
    /// A sync; thinned by age.
    Sync,
    /// Somebody asked for it.
    Manual,
    /// A hibernate, a publish, the state before a restore.
    Event,
    /// A step of an agent.
    Step,
}

impl From<wire::EntryRole> for Role {
    fn from(role: wire::EntryRole) -> Self {
        match role {
            wire::EntryRole::Unspecified => Self::Unknown,
            wire::EntryRole::Sync => Self::Sync,
            wire::EntryRole::Manual => Self::Manual,
            wire::EntryRole::Event => Self::Event,
            wire::EntryRole::Step => Self::Step,
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Sync => "sync",
            Self::Manual => "manual",
            Self::Event => "event",
            Self::Step => "step",
        })
    }
}

/// A point on a project's timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineEntry {
    /// Its id; it is there once.
    pub id: EntryId,
    /// The tree at that point.
    pub version: VersionId,
    /// The entry before it on its line.
    pub previous: Option<EntryId>,
    /// When.
    pub time: Option<Timestamp>,
    /// Why it is there.
    pub role: Role,
    /// What somebody wrote about it.
    pub label: String,
    /// It is the present.
    pub head: bool,
    /// The branch of which it is the tip.
    pub branch: Option<String>,
}

impl TryFrom<hub::Entry> for TimelineEntry {
    type Error = InvalidField;

    fn try_from(entry: hub::Entry) -> Result<Self, InvalidField> {
        Ok(Self {
            id: required("entry_id", &entry.entry_id)?,
            version: required("version", &entry.version)?,
            previous: optional("previous", &entry.previous)?,
            time: entry.time.map(time),
            role: entry.role().into(),
            head: entry.head,
            branch: (!entry.branch.is_empty()).then_some(entry.branch),
            label: entry.label,
        })
    }
}

/// What a sync did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Synced {
    /// The durable head now.
    pub version: VersionId,
    /// Its entry; nothing where the hub did not say.
    pub entry: Option<EntryId>,
    /// False: nothing had changed, and nothing was written.
    pub changed: bool,
    /// What went to the store.
    pub bytes_uploaded: u64,
    /// How many objects that were, the record included.
    pub objects_written: u64,
    /// How many files differ from the version before.
    pub files_changed: u64,
    /// The whole tree was read.
    pub full_scan: bool,
    /// How long it took on the node.
    pub took: std::time::Duration,
    /// The epoch that it was published under.
    pub epoch: Epoch,
}

impl TryFrom<wire::SyncVolumeResponse> for Synced {
    type Error = InvalidField;

    fn try_from(synced: wire::SyncVolumeResponse) -> Result<Self, InvalidField> {
        Ok(Self {
            version: required("version", &synced.version)?,
            entry: optional("entry_id", &synced.entry_id)?,
            changed: synced.changed,
            bytes_uploaded: synced.bytes_uploaded,
            objects_written: synced.objects_written,
            files_changed: synced.files_changed,
            full_scan: synced.full_scan,
            took: synced.took.and_then(|took| took.try_into().ok()).unwrap_or_default(),
            epoch: Epoch(synced.epoch),
        })
    }
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The head now.
    pub version: VersionId,
    /// Its entry.
    pub entry: Option<EntryId>,
    /// The branch that keeps what was there before.
    pub branch: Option<String>,
    /// A mount still shows the old tree: restart its pod.
    pub restart_to_see_it: bool,
}

impl TryFrom<wire::RestoreVolumeResponse> for Restored {
    type Error = InvalidField;

    fn try_from(restored: wire::RestoreVolumeResponse) -> Result<Self, InvalidField> {
        Ok(Self {
            version: required("version", &restored.version)?,
            entry: optional("entry_id", &restored.entry_id)?,
            branch: (!restored.branch.is_empty()).then_some(restored.branch),
            restart_to_see_it: restored.restart_to_see_it,
        })
    }
}

/// Where a project woke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Woken {
    /// It is there, and may be written there.
    pub node: NodeName,
    /// The epoch of that owner.
    pub epoch: Epoch,
    /// The durable head that it has; nothing before the first one.
    pub version: Option<VersionId>,
    /// It was taken from a dead node: what that one wrote after `last_durable` is not in it.
    pub taken_over: bool,
    /// When the head became durable, where it was taken over.
    pub last_durable: Option<Timestamp>,
}

impl TryFrom<hub::EnsureCachedResponse> for Woken {
    type Error = InvalidField;

    fn try_from(woken: hub::EnsureCachedResponse) -> Result<Self, InvalidField> {
        Ok(Self {
            node: required("node", &woken.node)?,
            epoch: Epoch(woken.epoch),
            version: optional("version", &woken.version)?,
            taken_over: woken.taken_over,
            last_durable: woken.last_durable.map(time),
        })
    }
}
