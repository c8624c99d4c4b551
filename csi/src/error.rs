//! What can go wrong on a node, and what that asks of the caller.

use std::path::PathBuf;
use std::sync::Arc;

use types::{ByteSize, Classify, EntryId, Kind, SessionId, StoreId, VersionId, VolumeId, errno_kind};

/// A result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// What happened. [`Classify::kind`] says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another lifecycle operation has the volume.
    #[error("volume {volume} is busy: {running} is under way; try again when it is done")]
    Busy {
        /// Which volume.
        volume: VolumeId,
        /// What is going on.
        running: &'static str,
    },
    /// An order that was decided on what is not so any more.
    #[error(
        "the order for volume {volume} came too late: its {moved} has moved since it was decided on; look again"
    )]
    Late {
        /// Which volume.
        volume: VolumeId,
        /// What is another one now.
        moved: &'static str,
    },
    /// Snapshots of several volumes did not come into one transaction.
    #[error("the volumes could not be cut in one transaction in {attempts} attempts; try again")]
    NoCut {
        /// How often it was tried.
        attempts: u32,
    },
    /// The node does not hold the volume.
    #[error("volume {volume} is not on this node")]
    NotHere {
        /// Which volume.
        volume: VolumeId,
    },
    /// There is no record of this id, or only a tombstone.
    #[error("volume {volume} does not exist")]
    NoRecord {
        /// Which volume.
        volume: VolumeId,
    },
    /// The volume's record belongs to another session.
    #[error("volume {volume} is owned by session {owner}")]
    Owned {
        /// Which volume.
        volume: VolumeId,
        /// Whose it is.
        owner: SessionId,
    },
    /// This node's session does not own the volume.
    #[error("volume {volume} is not owned by this node: acquire it first")]
    NotOwned {
        /// Which volume.
        volume: VolumeId,
    },
    /// The place in the line was lost to another owner.
    #[error("volume {volume} was taken over: this copy is kept aside and can no longer be published")]
    Fenced {
        /// Which volume.
        volume: VolumeId,
    },
    /// The id is taken by something else.
    #[error("volume {volume} exists already and is not what this request makes: {why}")]
    Exists {
        /// Which volume.
        volume: VolumeId,
        /// What differs.
        why: String,
    },
    /// The version is not one of the volume's.
    #[error("version {version} is not on the timeline of volume {volume}")]
    NoVersion {
        /// Which volume.
        volume: VolumeId,
        /// Which version.
        version: VersionId,
    },
    /// The entry is not one of the volume's.
    #[error("entry {entry} is not on the timeline of volume {volume}")]
    NoEntry {
        /// Which volume.
        volume: VolumeId,
        /// Which entry.
        entry: EntryId,
    },
    /// The volume has no version yet.
    #[error("volume {volume} has no durable version yet")]
    NoHead {
        /// Which volume.
        volume: VolumeId,
    },
    /// Something has the volume mounted.
    #[error("volume {volume} is mounted at {}: unmount it first", points.join(", "))]
    Mounted {
        /// Which volume.
        volume: VolumeId,
        /// Where.
        points: Vec<String>,
    },
    /// The pool belongs to another store than the one that was given.
    #[error(
        "the pool belongs to store {pool}, but --store leads to {store}: the pool is read-only and nothing is dropped; \
         start the node with the store that the pool belongs to"
    )]
    WrongStore {
        /// The store that the pool remembers.
        pool: StoreId,
        /// The store that is there.
        store: StoreId,
    },
    /// There is no live session: the last one was fenced, or the store could not be reached yet.
    #[error("the node has no live session with the store at the moment; one is being opened")]
    NoSession,
    /// The path is not a mounted btrfs.
    #[error(
        "{} is not a mounted btrfs ({found}): give the mount point of one, or --pool-size SIZE to make a loop file \
         there, or --device DEVICE", path.display()
    )]
    NotBtrfs {
        /// What was given.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// Something else is mounted where the pool should be.
    #[error("{} is taken by another mount ({found}): unmount it or choose another --pool", path.display())]
    PoolMountTaken {
        /// Where.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// The pool's size cannot hold a filesystem.
    #[error("a pool of {size} is too small: give --pool-size {smallest} or more")]
    PoolTooSmall {
        /// What was asked for.
        size: ByteSize,
        /// What is needed.
        smallest: ByteSize,
    },
    /// The pool is mounted read-only.
    #[error(
        "the pool at {} is mounted read-only (btrfs does that after an error: see dmesg); remount it read-write or \
         give another one", path.display()
    )]
    PoolReadOnly {
        /// Where.
        path: PathBuf,
    },
    /// There is no room left for even the node's own files.
    #[error("the pool at {} is full ({what}): free or add space, then start again", path.display())]
    PoolFull {
        /// Where.
        path: PathBuf,
        /// Which kind of space.
        what: &'static str,
    },
    /// Too little space for one more volume.
    #[error("the pool has no room for this: {what} space is down to {left}; delete volumes or add space")]
    NoSpace {
        /// Which kind of space.
        what: &'static str,
        /// How much is left.
        left: ByteSize,
    },
    /// As many deleted subvolumes wait for the kernel as may.
    #[error(
        "{most} deleted subvolumes wait for the kernel's cleaner, as many as may (--deleted-most); nothing was deleted, ask again"
    )]
    CleanerBehind {
        /// How many may.
        most: u64,
    },
    /// Another daemon works on this pool.
    #[error("another daemon works on the pool at {}: stop it first", path.display())]
    PoolInUse {
        /// Where.
        path: PathBuf,
    },
    /// The kernel has no simple quotas.
    #[error(
        "this kernel has no simple quotas (they come with Linux 6.7), so limits cannot be kept: use a newer kernel, or \
         start with --quota=off and do without limits"
    )]
    NoQuota {
        /// What the kernel said.
        #[source]
        source: btrfs::Error,
    },
    /// A newer build made the pool.
    #[error("the pool has format {found} and this build knows {known}: start a newer build")]
    PoolTooNew {
        /// What is there.
        found: u32,
        /// What this build knows.
        known: u32,
    },
    /// A newer build wrote state.db.
    #[error("state.db has format {found} and this build knows {known}: start a newer build")]
    StateTooNew {
        /// What is there.
        found: i32,
        /// What this build knows.
        known: i32,
    },
    /// A file of the pool does not hold what it should.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// A path of the pool cannot be used.
    #[error("{}", path.display())]
    PoolPath {
        /// Which path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Options contradict each other.
    #[error("{reason}")]
    BadOption {
        /// Which ones, and what to do.
        reason: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: is another daemon running there? choose another --listen")]
    Listen {
        /// Which address.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store's address is not one, or nothing answers there.
    #[error(
        "the store {url} cannot be used: check --store, its credentials and that it can be reached and written"
    )]
    StoreUnusable {
        /// What was given, without secrets.
        url: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A tool of the system cannot be run.
    #[error("{tool} cannot be run: is it installed?")]
    Tool {
        /// Which one.
        tool: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A tool of the system failed.
    #[error("{tool} failed ({status}): {said}")]
    ToolFailed {
        /// Which one.
        tool: String,
        /// How it ended.
        status: String,
        /// Its last words.
        said: String,
    },
    /// The machine refused something that has no path.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused a btrfs call.
    #[error(transparent)]
    Btrfs(#[from] btrfs::Error),
    /// The store, or what is in it.
    #[error(transparent)]
    Cas(#[from] cas::Error),
    /// A tree in the store, or one on its way there.
    #[error(transparent)]
    Tree(#[from] cas::tree::TreeError),
    /// state.db.
    #[error("state.db: {0}")]
    State(#[from] rusqlite::Error),
    /// A message that holds what it should not.
    #[error(transparent)]
    Field(#[from] proto::convert::InvalidField),
    /// What an operation that several callers share ended with.
    #[error(transparent)]
    Shared(Arc<Self>),
    /// The node is going down.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// A task ended by a panic.
    #[error("{operation} ended by a bug in this program; see the node's log")]
    Panicked {
        /// What was going on.
        operation: &'static str,
    },
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Busy { .. } | Self::Late { .. } | Self::Fenced { .. } | Self::NoCut { .. } => Kind::Aborted,
            Self::NotHere { .. } | Self::NoRecord { .. } | Self::NoVersion { .. } | Self::NoEntry { .. } => {
                Kind::NotFound
            }
            Self::Exists { .. } => Kind::AlreadyExists,
            Self::Owned { .. }
            | Self::NotOwned { .. }
            | Self::NoHead { .. }
            | Self::Mounted { .. }
            | Self::WrongStore { .. }
            | Self::NotBtrfs { .. }
            | Self::PoolMountTaken { .. }
            | Self::PoolTooSmall { .. }
            | Self::PoolReadOnly { .. }
            | Self::PoolInUse { .. }
            | Self::PoolTooNew { .. }
            | Self::StateTooNew { .. }
            | Self::Tool { .. }
            | Self::BadOption { .. }
            | Self::Listen { .. }
            | Self::ToolFailed { .. } => Kind::FailedPrecondition,
            Self::PoolFull { .. } | Self::NoSpace { .. } | Self::CleanerBehind { .. } => {
                Kind::ResourceExhausted
            }
            Self::NoQuota { .. } => Kind::Unimplemented,
            Self::Damaged { .. } => Kind::DataLoss,
            Self::NoSession | Self::ShuttingDown | Self::StoreUnusable { .. } => Kind::Unavailable,
            Self::PoolPath { source, .. } | Self::Io { source, .. } => {
                source.raw_os_error().map_or(Kind::Internal, errno_kind)
            }
            Self::Btrfs(error) => errno_kind(error.errno()),
            Self::Cas(error) => error.kind(),
            Self::Tree(error) => error.kind(),
            Self::State(error) => match error.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DiskFull) => Kind::ResourceExhausted,
                Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                    Kind::DataLoss
                }
                _ => Kind::Internal,
            },
            Self::Field(error) => error.kind(),
            Self::Shared(error) => error.kind(),
            Self::Panicked { .. } => Kind::Internal,
        }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        proto::status::status(&error)
    }
}
