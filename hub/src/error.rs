//! What can go wrong in the hub, said with what to do about it.

use std::path::PathBuf;
use std::sync::Arc;

use proto::convert::InvalidField;
use types::{Classify, Kind, NodeName, PoolId, SessionId, VolumeId};

use crate::placement::NoPlace;

/// An error of the hub.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of a request is wrong.
    #[error(transparent)]
    Field(#[from] InvalidField),
    /// A page token that this hub did not make.
    #[error("page_token {token:?} is not one of this list; start again without one")]
    PageToken {
        /// What was given.
        token: String,
    },
    /// No record has this id or name.
    #[error("there is no volume {volume:?}; `sailctl ls` shows those there are")]
    NoVolume {
        /// What was asked for.
        volume: String,
    },
    /// What the state file keeps of a record cannot be read.
    #[error("the state file is damaged at {volume}; stop the hub and delete it: it is learned again")]
    StateDamaged {
        /// Of which record.
        volume: VolumeId,
    },
    /// Several volumes carry the name.
    #[error("{count} volumes are called {name:?}; use an id")]
    AmbiguousName {
        /// What was asked for.
        name: String,
        /// How many carry it.
        count: usize,
    },
    /// No template has this name.
    #[error("there is no template {name:?}; `sailctl template ls` shows those there are")]
    NoTemplate {
        /// What was asked for.
        name: String,
    },
    /// No bundle has this id or name.
    #[error("there is no bundle {bundle:?}; `sailctl bundle ls` shows those there are")]
    NoBundle {
        /// What was asked for.
        bundle: String,
    },
    /// Something was made from it, and says so.
    #[error("{kind} {volume} is in use: {users} came from it; delete those first")]
    InUse {
        /// Which.
        volume: VolumeId,
        /// What it is.
        kind: &'static str,
        /// Who uses it.
        users: String,
    },
    /// The name of a template points to something from which nothing can be made.
    #[error("template {name:?} points to {volume}, which holds no version")]
    EmptyTemplate {
        /// Its name.
        name: String,
        /// Where it points.
        volume: VolumeId,
    },
    /// The volume's timeline does not have it.
    #[error("{volume} has no entry or version {wanted}; `sailctl log {volume}` shows its timeline")]
    NoEntry {
        /// Whose timeline.
        volume: VolumeId,
        /// What was asked for.
        wanted: String,
    },
    /// The source has nothing durable yet.
    #[error("{volume} has no durable version yet; sync it first")]
    NoVersion {
        /// Which.
        volume: VolumeId,
    },
    /// The request's volume lived and was deleted.
    #[error("this request made {volume}, which was deleted since; use another request id")]
    MadeAndDeleted {
        /// Which.
        volume: VolumeId,
    },
    /// The request id was used before with other parameters.
    #[error("this request id made {volume} with another {what}; use another request id")]
    MadeDifferently {
        /// Which.
        volume: VolumeId,
        /// What differs.
        what: &'static str,
    },
    /// An attribute is not what the caller expects.
    #[error("{volume} has {key}={found:?}, which is not what was expected; nothing was set")]
    AttributeDiffers {
        /// Whose.
        volume: VolumeId,
        /// Which.
        key: String,
        /// What it is.
        found: String,
    },
    /// Volumes that are to be sealed at one moment are on several nodes.
    #[error("the volumes are on {nodes}; only those of one node can be cut at one moment")]
    GroupApart {
        /// Which nodes.
        nodes: String,
    },
    /// Another operation holds the volume.
    #[error("{volume} is {operation}; try again later")]
    Busy {
        /// Which.
        volume: VolumeId,
        /// What is under way.
        operation: &'static str,
    },
    /// The record exists, but nothing is in it yet.
    #[error("{volume} is not made yet; repeat the request that makes it")]
    NotMadeYet {
        /// Which.
        volume: VolumeId,
    },
    /// More operations than a hub takes on.
    #[error("{most} operations are under way; try again later")]
    TooBusy {
        /// The bound.
        most: usize,
    },
    /// An operation ended without an answer.
    #[error("the operation on {volume} broke off; look at the hub's log, then try again")]
    OperationDied {
        /// On which volume.
        volume: VolumeId,
    },
    /// What an operation that several callers waited for ended with.
    #[error(transparent)]
    Operation(Arc<Self>),
    /// No node will do.
    #[error(transparent)]
    Placement(#[from] NoPlace),
    /// The owner is not heard here, but not dead either.
    #[error("{volume} is on {node}, which is silent (not declared dead); try again in a few seconds")]
    OwnerSilent {
        /// Which.
        volume: VolumeId,
        /// Its owner's node.
        node: String,
    },
    /// The owner is dead, and nobody asked to take the volume over.
    #[error(
        "{volume} is on {node}, which is dead; name an entry or version of it, or wake it on another node first (what {node} had not synced is not in it)"
    )]
    OwnerDead {
        /// Which.
        volume: VolumeId,
        /// Its owner's node.
        node: String,
    },
    /// The record is not of the kind that the call is for.
    #[error("{volume} is a {kind}, not a volume: create or fork one from it")]
    NotAVolume {
        /// Which.
        volume: VolumeId,
        /// What it is.
        kind: &'static str,
    },
    /// A node answered with an error.
    #[error("{node} could not {action}: {}", .status.message())]
    Node {
        /// Which node.
        node: NodeName,
        /// What it was asked to do.
        action: &'static str,
        /// What it said.
        status: tonic::Status,
    },
    /// A move failed, and so did the way back.
    #[error(
        "{failed}; and taking {volume} back failed too ({undo}): it sleeps in the store, wake it where there is room"
    )]
    Stranded {
        /// Which.
        volume: VolumeId,
        /// Why the move failed.
        failed: Box<Self>,
        /// Why the way back failed.
        undo: Box<Self>,
    },
    /// A node's address is none.
    #[error("node {node} announced {address:?}, which is no address")]
    Address {
        /// Which.
        node: NodeName,
        /// What it announced.
        address: String,
        /// The parser's words.
        #[source]
        source: tonic::transport::Error,
    },
    /// Two live nodes with one name.
    #[error("the node name {node} is in use by another live node (pool {pool}); start with another --node")]
    NameTaken {
        /// The name.
        node: NodeName,
        /// Whose it is.
        pool: PoolId,
    },
    /// The node's session is fenced.
    #[error("session {session} is fenced: the node has to open a new one")]
    Fenced {
        /// Which.
        session: SessionId,
    },
    /// A node whose session is not in the store.
    #[error("session {session} is not in the store; the node has to join it before it dials in")]
    UnknownSession {
        /// Which.
        session: SessionId,
    },
    /// A node of another store.
    #[error("the node uses store {theirs}, this hub {ours}; give both the same --store")]
    OtherStore {
        /// The node's.
        theirs: String,
        /// The hub's.
        ours: types::StoreId,
    },
    /// A stream that did not begin with a hello.
    #[error("the stream did not begin with a hello")]
    NoHello,
    /// The store, or a record in it.
    #[error(transparent)]
    Store(#[from] cas::Error),
    /// Something below `vol/` is no record.
    #[error("{key} is no record: it is not ours, move it away")]
    ForeignObject {
        /// Where it is.
        key: cas::objects::Key,
    },
    /// The store's objects.
    #[error("the store did not answer a listing")]
    Objects(#[from] cas::objects::ObjectError),
    /// The hub is on its way out.
    #[error("the hub is shutting down; try again")]
    ShuttingDown,
    /// The state file has another hub.
    #[error("{} is in use by another hub; stop that one, or give this one its own --state", .path.display())]
    StateInUse {
        /// The file.
        path: PathBuf,
    },
    /// The state file cannot be used.
    #[error("{} cannot be used as the hub's state; delete it and start again: all in it is learned from the nodes and the store", .path.display())]
    StateFile {
        /// The file.
        path: PathBuf,
        /// SQLite's words.
        #[source]
        source: rusqlite::Error,
    },
    /// The state file's directory cannot be used.
    #[error("{} cannot be made or opened; check --state", .path.display())]
    StateDirectory {
        /// The file or directory.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// The database failed.
    #[error("the hub's state file failed")]
    State(#[source] rusqlite::Error),
}

impl Error {
    /// Returns the node that answered with this error, if one did.
    pub fn node(&self) -> Option<&NodeName> {
        if let Self::Node { node, .. } = self { Some(node) } else { None }
    }
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Field(error) => error.kind(),
            Self::PageToken { .. } => Kind::InvalidArgument,
            Self::NoVolume { .. }
            | Self::NoTemplate { .. }
            | Self::NoBundle { .. }
            | Self::NoEntry { .. } => Kind::NotFound,
            Self::MadeAndDeleted { .. } | Self::MadeDifferently { .. } | Self::NameTaken { .. } => {
                Kind::AlreadyExists
            }
            Self::Busy { .. } | Self::NotMadeYet { .. } | Self::OperationDied { .. } => Kind::Aborted,
            Self::TooBusy { .. } => Kind::ResourceExhausted,
            Self::Operation(error) => error.kind(),
            Self::Placement(NoPlace::NotLive { .. })
            | Self::AmbiguousName { .. }
            | Self::EmptyTemplate { .. }
            | Self::NoVersion { .. }
            | Self::AttributeDiffers { .. }
            | Self::GroupApart { .. }
            | Self::OwnerDead { .. }
            | Self::NotAVolume { .. }
            | Self::InUse { .. }
            | Self::Fenced { .. }
            | Self::UnknownSession { .. }
            | Self::OtherStore { .. }
            | Self::StateInUse { .. }
            | Self::ForeignObject { .. } => Kind::FailedPrecondition,
            Self::Placement(NoPlace::Full { .. } | NoPlace::Busy { .. }) => Kind::ResourceExhausted,
            // Somebody has to be there; a node that restarts is back in a moment.
            Self::Placement(NoPlace::NoneLive { .. }) | Self::OwnerSilent { .. } | Self::ShuttingDown => {
                Kind::Unavailable
            }
            Self::Node { status, .. } => proto::status::kind(status),
            Self::Stranded { failed, .. } => failed.kind(),
            Self::Store(error) => error.kind(),
            Self::Objects(error) => error.kind(),
            Self::Address { .. } | Self::NoHello => Kind::InvalidArgument,
            Self::StateFile { .. }
            | Self::StateDirectory { .. }
            | Self::StateDamaged { .. }
            | Self::State(_) => Kind::Internal,
        }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        proto::status::status(&error)
    }
}
