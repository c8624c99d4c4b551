//! What can go wrong in a CSI call, said with what to do about it. The codes are those of the CSI specification.

use proto::convert::InvalidField;
use types::{Classify, Kind, VolumeId};

/// An error of the CSI services.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of a request is wrong.
    #[error(transparent)]
    Field(#[from] InvalidField),
    /// A capability that this driver does not offer.
    #[error("volume_capability: {reason}")]
    Capability {
        /// What is not offered.
        reason: String,
    },
    /// A parameter that this driver does not know, or a value that it does not take.
    #[error("parameter {key:?}: {reason}")]
    Parameter {
        /// Which.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A size that cannot be had.
    #[error("capacity_range: {reason}")]
    Capacity {
        /// Why.
        reason: String,
    },
    /// No live node has room.
    #[error("no live node that may hold the volume has {needed_bytes} bytes free (the most is {most_bytes})")]
    NoRoom {
        /// What was asked for.
        needed_bytes: u64,
        /// The most that a node has.
        most_bytes: u64,
    },
    /// No node that may hold it is live.
    #[error("no node that may hold the volume is live; `sailctl nodes` shows which are")]
    NoNode,
    /// The node is known, and is not heard.
    #[error("{node} is not live; the call succeeds when it is back")]
    NodeAway {
        /// Which.
        node: String,
    },
    /// A list token that this driver did not make.
    #[error("starting_token {token:?} is not one of this list; start again without one")]
    Token {
        /// What was given.
        token: String,
    },
    /// There is no such thing.
    #[error("there is no {what} {id:?}")]
    NotFound {
        /// What was looked for.
        what: &'static str,
        /// Under which id.
        id: String,
    },
    /// The name is taken by something made with other words.
    #[error("{name:?} exists already as {id} with another {what}; use another name")]
    Different {
        /// The name.
        name: String,
        /// What has it.
        id: String,
        /// What differs.
        what: &'static str,
    },
    /// The volume is published elsewhere.
    #[error("{volume} is published at {node}; unpublish it there first")]
    PublishedAt {
        /// Which.
        volume: VolumeId,
        /// Where.
        node: String,
    },
    /// The volume is pinned to another node.
    #[error("{volume} is pinned to {node} (mobility: pinned), and is published nowhere else")]
    Pinned {
        /// Which.
        volume: VolumeId,
        /// Where it may be.
        node: String,
    },
    /// The volume is published there in another way.
    #[error("{volume} is published at {node} with readonly={readonly}; unpublish it first")]
    PublishedOtherwise {
        /// Which.
        volume: VolumeId,
        /// Where.
        node: String,
        /// How.
        readonly: bool,
    },
    /// The volume is still mounted.
    #[error("{volume} is still mounted at {node}; unpublish and unstage it there first")]
    StillMounted {
        /// Which.
        volume: VolumeId,
        /// Where.
        node: String,
    },
    /// A node has as many volumes as it may.
    #[error("{node} has {most} volumes published, as many as it may")]
    NodeFull {
        /// Which.
        node: String,
        /// How many.
        most: u32,
    },
    /// A single writer is there already.
    #[error("{volume} is published at {target} already, and its access mode allows one publication")]
    SingleWriter {
        /// Which.
        volume: VolumeId,
        /// Where.
        target: String,
    },
    /// The publication that this call stands on is older than the volume's owner.
    #[error("{volume} was published under epoch {given}, but is here under epoch {here}: publish it again")]
    StaleEpoch {
        /// Which.
        volume: VolumeId,
        /// What the call said.
        given: u64,
        /// What is so.
        here: u64,
    },
    /// The volume is not this node's.
    #[error("{volume} is not this node's ({why}); publish and stage it here first")]
    NotHere {
        /// Which.
        volume: VolumeId,
        /// What is known.
        why: String,
    },
    /// Something else is mounted at the target.
    #[error("something else is mounted at {target}; it was left alone")]
    Occupied {
        /// Where.
        target: String,
    },
    /// Somebody wrote into the target directory. It is left: this driver deletes nothing but empty directories.
    #[error("{target} is not empty, so it was left alone; look at what is in it")]
    NotEmpty {
        /// Where.
        target: String,
    },
    /// A mount call failed.
    #[error("cannot {doing} {target}")]
    Mount {
        /// What was tried.
        doing: &'static str,
        /// Where.
        target: String,
        /// The kernel's words.
        #[source]
        source: std::io::Error,
    },
    /// The node said no.
    #[error("{}", .0.message())]
    Status(tonic::Status),
    /// Long work goes on; the same call again joins it.
    #[error("{doing} is still under way; ask again")]
    UnderWay {
        /// What is.
        doing: &'static str,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}", .path.display())]
    Socket {
        /// Where.
        path: std::path::PathBuf,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// The address of the metrics cannot be had.
    #[error("cannot listen on {address}; choose another --metrics")]
    Listen {
        /// What was asked for.
        address: String,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// Somebody removed the socket's file: kubelet cannot find it any more, so the process ends and makes it anew.
    #[error("{} is gone: ending, to be started again with a new one", .path.display())]
    SocketGone {
        /// Where it was.
        path: std::path::PathBuf,
    },
    /// The server ended.
    #[error("the CSI server ended")]
    Serve(#[source] tonic::transport::Error),
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Status(status)
    }
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Field(error) => error.kind(),
            Self::Capability { .. } | Self::Parameter { .. } => Kind::InvalidArgument,
            Self::Capacity { .. } => Kind::OutOfRange,
            Self::NoRoom { .. } | Self::NodeFull { .. } => Kind::ResourceExhausted,
            Self::NoNode
            | Self::NodeAway { .. }
            | Self::Socket { .. }
            | Self::Listen { .. }
            | Self::SocketGone { .. }
            | Self::Serve(_) => Kind::Unavailable,
            Self::Token { .. } | Self::UnderWay { .. } => Kind::Aborted,
            Self::NotFound { .. } => Kind::NotFound,
            Self::Different { .. } | Self::PublishedOtherwise { .. } => Kind::AlreadyExists,
            Self::PublishedAt { .. }
            | Self::Pinned { .. }
            | Self::StillMounted { .. }
            | Self::SingleWriter { .. }
            | Self::StaleEpoch { .. }
            | Self::NotHere { .. }
            | Self::Occupied { .. }
            | Self::NotEmpty { .. } => Kind::FailedPrecondition,
            Self::Mount { source, .. } => match source.raw_os_error() {
                Some(nix::libc::EBUSY) => Kind::Aborted,
                Some(errno) => types::errno_kind(errno),
                None => Kind::Internal,
            },
            Self::Status(status) => proto::status::kind(status),
        }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        proto::status::status(&error)
    }
}
