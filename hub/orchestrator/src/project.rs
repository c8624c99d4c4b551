//! A project as people and platforms see it: words of `types`, no strings of the wire.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use proto::convert::{InvalidField, optional, required, time};
use proto::{hub, node as wire};
use types::{
    ByteSize, Domain, EntryId, Epoch, InvalidId, NodeName, RequestId, ResourceName, SessionId, Timestamp,
    VersionId, VolumeId,
};

/// A volume by its id, or by a name that only one volume carries.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VolumeRef(String);

impl VolumeRef {
    /// Returns the id or name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&VolumeId> for VolumeRef {
    fn from(id: &VolumeId) -> Self {
        Self(id.to_string())
    }
}

impl From<VolumeId> for VolumeRef {
    fn from(id: VolumeId) -> Self {
        Self(id.to_string())
    }
}

impl From<&Self> for VolumeRef {
    fn from(other: &Self) -> Self {
        other.clone()
    }
}

impl From<&Project> for VolumeRef {
    fn from(project: &Project) -> Self {
        Self::from(&project.id)
    }
}

impl FromStr for VolumeRef {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        text.parse::<ResourceName>().map(|name| Self(name.as_str().to_owned()))
    }
}

impl fmt::Display for VolumeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How much a volume may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quota {
    /// What the hub gives (a new volume) or what the source has (a fork).
    #[default]
    Default,
    /// This many bytes.
    Bytes(ByteSize),
    /// No limit, asked for.
    Unlimited,
}

impl Quota {
    pub(crate) fn to_wire(self) -> Option<u64> {
        match self {
            Self::Default => None,
            Self::Bytes(bytes) => Some(bytes.0),
            Self::Unlimited => Some(0),
        }
    }
}

/// What a new project is to be.
#[derive(Debug, Clone, Default)]
pub struct NewProject {
    /// The caller's name for this request; a retry with the same one gets the same project. Nothing: a fresh one.
    pub request: Option<RequestId>,
    /// A name for people.
    pub name: Option<ResourceName>,
    /// The template it begins with; nothing: it begins empty.
    pub template: Option<ResourceName>,
    /// There and nowhere else.
    pub node: Option<NodeName>,
    /// There if possible.
    pub node_hint: Option<NodeName>,
    /// How much it may hold.
    pub quota: Quota,
    /// Its dedup domain; nothing: the default one.
    pub domain: Option<Domain>,
    /// What else the platform wants to remember with it.
    pub attributes: BTreeMap<String, String>,
}

/// What a fork is to be.
#[derive(Debug, Clone, Default)]
pub struct NewFork {
    /// The caller's name for this request.
    pub request: Option<RequestId>,
    /// The point to fork; nothing: the present state, which is made durable first.
    pub at: Option<Point>,
    /// A name for people.
    pub name: Option<ResourceName>,
    /// There if possible; nothing: beside its source.
    pub node_hint: Option<NodeName>,
    /// How much it may hold.
    pub quota: Quota,
    /// What else the platform wants to remember with it.
    pub attributes: BTreeMap<String, String>,
}

/// A point on a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// An entry: it is there once.
    Entry(EntryId),
    /// A version: the newest entry that has it.
    Version(VersionId),
}

impl Point {
    /// Returns the wire's pair of entry and version.
    pub(crate) fn to_wire(point: Option<Self>) -> (String, String) {
        match point {
            None => (String::new(), String::new()),
            Some(Self::Entry(entry)) => (entry.to_string(), String::new()),
            Some(Self::Version(version)) => (String::new(), version.to_string()),
        }
    }
}

/// How a project is, in the words people see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// The hub did not say.
    Unknown,
    /// All is well.
    Healthy,
    /// It is being made durable.
    Syncing,
    /// Its last sync is older than it should be.
    Behind,
    /// It is on its way to another node.
    Moving,
    /// It is being materialised.
    Restoring,
    /// The hub does not hear its owner.
    OwnerUnreachable,
    /// Its owner lost it.
    Fenced,
    /// Something is broken.
    Degraded,
    /// A mount still shows an older tree.
    RestartToSeeIt,
    /// It is in the store only.
    Asleep,
}

impl From<wire::Health> for Health {
    fn from(health: wire::Health) -> Self {
        match health {
            wire::Health::Unspecified => Self::Unknown,
            wire::Health::Healthy => Self::Healthy,
            wire::Health::Syncing => Self::Syncing,
            wire::Health::Behind => Self::Behind,
            wire::Health::Moving => Self::Moving,
            wire::Health::Restoring => Self::Restoring,
            wire::Health::OwnerUnreachable => Self::OwnerUnreachable,
            wire::Health::Fenced => Self::Fenced,
            wire::Health::Degraded => Self::Degraded,
            wire::Health::RestartToSeeIt => Self::RestartToSeeIt,
            wire::Health::Asleep => Self::Asleep,
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Syncing => "syncing",
            Self::Behind => "behind",
            Self::Moving => "moving",
            Self::Restoring => "restoring",
            Self::OwnerUnreachable => "owner unreachable",
            Self::Fenced => "fenced",
            Self::Degraded => "degraded",
            Self::RestartToSeeIt => "restart to see it",
            Self::Asleep => "asleep",
        })
    }
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// The hub did not say.
    Unknown,
    /// A volume that can be written.
    Volume,
    /// A sealed version of one.
    Snapshot,
    /// What projects begin with.
    Template,
    /// A published project.
    Bundle,
    /// What a node wrote after it had lost its place.
    Orphan,
}

impl From<wire::RecordKind> for RecordKind {
    fn from(kind: wire::RecordKind) -> Self {
        match kind {
            wire::RecordKind::Unspecified => Self::Unknown,
            wire::RecordKind::Volume => Self::Volume,
            wire::RecordKind::Snapshot => Self::Snapshot,
            wire::RecordKind::Template => Self::Template,
            wire::RecordKind::Bundle => Self::Bundle,
            wire::RecordKind::Orphan => Self::Orphan,
        }
    }
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Volume => "volume",
            Self::Snapshot => "snapshot",
            Self::Template => "template",
            Self::Bundle => "bundle",
            Self::Orphan => "orphan",
        })
    }
}

/// Where a project came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The record.
    pub volume: VolumeId,
    /// The version of it.
    pub version: VersionId,
}

/// A project: one volume and what the platform remembers with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Project {
    /// Its id, for ever.
    pub id: VolumeId,
    /// Its name for people; the id where it has none.
    pub name: String,
    /// Where it is; nothing while it sleeps.
    pub node: Option<NodeName>,
    /// The session that owns it.
    pub session: Option<SessionId>,
    /// Counts its owners.
    pub epoch: Epoch,
    /// The durable head; nothing before the first one.
    pub version: Option<VersionId>,
    /// Something was written since.
    pub dirty: bool,
    /// A pod has it mounted.
    pub mounted: bool,
    /// The limit; nothing: none, asked for.
    pub quota: Option<ByteSize>,
    /// What it holds.
    pub used: ByteSize,
    /// How it is.
    pub health: Health,
    /// More about that, for people.
    pub detail: String,
    /// Where it came from.
    pub origin: Option<Origin>,
    /// What it is.
    pub kind: RecordKind,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// When its head became durable.
    pub last_sync: Option<Timestamp>,
    /// Its dedup domain.
    pub domain: Option<Domain>,
    /// What the platform remembers with it.
    pub attributes: BTreeMap<String, String>,
    /// Branches and their tips.
    pub branches: BTreeMap<String, String>,
    /// Entries that somebody holds, by who does.
    pub pins: BTreeMap<String, String>,
    /// The absolute path of the live tree on its node; empty while it sleeps.
    pub path: String,
}

impl TryFrom<hub::Volume> for Project {
    type Error = InvalidField;

    fn try_from(volume: hub::Volume) -> Result<Self, InvalidField> {
        let origin = volume.origin.clone().map(|origin| {
            Ok::<_, InvalidField>(Origin {
                volume: required("origin.volume_id", &origin.volume_id)?,
                version: required("origin.version", &origin.version)?,
            })
        });
        Ok(Self {
            id: required("volume_id", &volume.volume_id)?,
            node: optional("node", &volume.node)?,
            session: optional("session", &volume.session)?,
            epoch: Epoch(volume.epoch),
            version: optional("version", &volume.version)?,
            dirty: volume.dirty,
            mounted: volume.mounted,
            quota: (volume.quota_bytes > 0).then_some(ByteSize(volume.quota_bytes)),
            used: ByteSize(volume.used_bytes),
            health: volume.health().into(),
            origin: origin.transpose()?,
            kind: volume.kind().into(),
            created: volume.created.map(time),
            last_sync: volume.last_sync.map(time),
            domain: optional("domain", &volume.domain)?,
            name: volume.name,
            detail: volume.detail,
            attributes: volume.attributes.into_iter().collect(),
            branches: volume.branches.into_iter().collect(),
            pins: volume.pins.into_iter().collect(),
            path: volume.path,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_named_by_id_or_name_and_never_by_a_path() {
        for good in ["vol-1", "My.Shop_2"] {
            assert_eq!(good.parse::<VolumeRef>().unwrap().as_str(), good);
        }
        for bad in ["", "../x", "a/b", "-x", "a b"] {
            assert!(bad.parse::<VolumeRef>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_answer_without_an_id_is_an_error_and_a_sleeping_volume_is_not() {
        assert!(Project::try_from(hub::Volume::default()).is_err());
        let asleep = hub::Volume { volume_id: "vol-1".into(), name: "shop".into(), ..Default::default() };
        let project = Project::try_from(asleep).unwrap();
        assert_eq!((project.node, project.version, project.quota), (None, None, None));
    }
}
