//! Nodes, templates and the hub itself, for people who look after them.

use proto::convert::{InvalidField, optional, required, time};
use proto::{hub, node as wire};
use types::{ByteSize, Epoch, NodeName, ResourceName, SessionId, StoreId, Timestamp, VersionId, VolumeId};

/// Whether a node lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// The hub did not say.
    Unknown,
    /// Heard a moment ago.
    Live,
    /// Silent for a while.
    Suspect,
    /// Silent, here and in the store, for the whole grace.
    Dead,
}

impl std::fmt::Display for NodeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Live => "live",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
        })
    }
}

/// One thing that a node or the hub found out about where it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// All is well.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty where all is well.
    pub remedy: String,
}

impl From<wire::Check> for Check {
    fn from(check: wire::Check) -> Self {
        Self { name: check.name, ok: check.ok, detail: check.detail, remedy: check.remedy }
    }
}

/// Room in a node's pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Its size.
    pub total: ByteSize,
    /// What can still be promised.
    pub available: ByteSize,
    /// What is taken.
    pub used: ByteSize,
    /// How many volumes live there.
    pub volumes: u32,
}

/// A node as the hub knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Whether it lives.
    pub state: NodeState,
    /// Its session.
    pub session: Option<SessionId>,
    /// host:port of its services; empty where it has not dialed in.
    pub address: String,
    /// Its zone, or empty.
    pub zone: String,
    /// Room in its pool.
    pub capacity: Option<Capacity>,
    /// When the hub last heard it.
    pub last_heard: Option<Timestamp>,
    /// What it found out about its kernel, pool and store.
    pub checks: Vec<Check>,
}

impl TryFrom<hub::Node> for Node {
    type Error = InvalidField;

    fn try_from(node: hub::Node) -> Result<Self, InvalidField> {
        let state = match node.state() {
            hub::node::State::Unspecified => NodeState::Unknown,
            hub::node::State::Live => NodeState::Live,
            hub::node::State::Suspect => NodeState::Suspect,
            hub::node::State::Dead => NodeState::Dead,
        };
        Ok(Self {
            name: required("node", &node.node)?,
            state,
            session: optional("session", &node.session)?,
            address: node.address,
            zone: node.zone,
            capacity: node.capacity.map(|capacity| Capacity {
                total: ByteSize(capacity.total_bytes),
                available: ByteSize(capacity.available_bytes),
                used: ByteSize(capacity.used_bytes),
                volumes: capacity.volumes,
            }),
            last_heard: node.last_heard.map(time),
            checks: node.checks.into_iter().map(Check::from).collect(),
        })
    }
}

/// What projects begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Its name.
    pub name: ResourceName,
    /// The record that the name points to now.
    pub volume: VolumeId,
    /// Its version.
    pub version: Option<VersionId>,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// Where it is at hand.
    pub nodes: Vec<NodeName>,
}

impl TryFrom<hub::Template> for Template {
    type Error = InvalidField;

    fn try_from(template: hub::Template) -> Result<Self, InvalidField> {
        let nodes = template.nodes.iter().map(|node| required("nodes", node)).collect::<Result<_, _>>()?;
        Ok(Self {
            name: required("name", &template.name)?,
            volume: required("volume_id", &template.volume_id)?,
            version: optional("version", &template.version)?,
            created: template.created.map(time),
            nodes,
        })
    }
}

/// Where a project can be reached. Asking moves nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// Live on a node.
    Cached {
        /// Which.
        node: NodeName,
        /// host:port of its services.
        address: String,
        /// The owner's epoch.
        epoch: Epoch,
        /// The durable head.
        version: Option<VersionId>,
    },
    /// On its way.
    Restoring {
        /// To there, where that is known.
        node: Option<NodeName>,
    },
    /// Owned by a node that the hub does not hear.
    OwnerUnreachable {
        /// Which.
        node: Option<NodeName>,
    },
    /// In the store only.
    Asleep {
        /// The durable head.
        version: Option<VersionId>,
    },
}

impl TryFrom<hub::ResolveResponse> for Location {
    type Error = InvalidField;

    fn try_from(resolved: hub::ResolveResponse) -> Result<Self, InvalidField> {
        use hub::resolve_response::State;
        Ok(match resolved.state() {
            State::Unspecified => return Err(InvalidField::Missing { field: "state" }),
            State::Cached => Self::Cached {
                node: required("node", &resolved.node)?,
                epoch: Epoch(resolved.epoch),
                version: optional("version", &resolved.version)?,
                address: resolved.address,
            },
            State::Restoring => Self::Restoring { node: optional("node", &resolved.node)? },
            State::OwnerUnreachable => Self::OwnerUnreachable { node: optional("node", &resolved.node)? },
            State::Asleep => Self::Asleep { version: optional("version", &resolved.version)? },
        })
    }
}

/// The hub as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubStatus {
    /// The store's id.
    pub store_id: Option<StoreId>,
    /// Where the store is, without secrets.
    pub store: String,
    /// How many nodes it hears.
    pub nodes_live: u32,
    /// How many volumes there are, as far as it has looked.
    pub volumes: u32,
    /// What it found out about where it runs.
    pub checks: Vec<Check>,
    /// Its build.
    pub version: String,
}

impl TryFrom<hub::HubStatus> for HubStatus {
    type Error = InvalidField;

    fn try_from(status: hub::HubStatus) -> Result<Self, InvalidField> {
        Ok(Self {
            store_id: optional("store_id", &status.store_id)?,
            store: status.store,
            nodes_live: status.nodes_live,
            volumes: status.volumes,
            checks: status.checks.into_iter().map(Check::from).collect(),
            version: status.version,
        })
    }
}
