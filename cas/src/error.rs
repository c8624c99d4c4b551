//! What can go wrong in the content-addressed store, and what its caller should do.

use types::{
    Birth, Classify, EntryId, Epoch, Kind, PackId, ResourceName, SessionId, StoreId, VersionId, VolumeId,
};

use crate::objects::{Key, ObjectError};
use crate::record::State;
use crate::tree::TreeError;

/// Everything that an operation of this crate may answer instead of doing its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object store failed.
    #[error(transparent)]
    Object(#[from] ObjectError),

    /// A tree could not be written, read, restored or proved.
    #[error(transparent)]
    Tree(#[from] TreeError),

    /// A conditional write was sent and its outcome is not known; it may still happen.
    #[error("the write of {key} was sent and not answered: it may still happen, settle it before going on")]
    Unsettled {
        /// The object.
        key: Key,
        /// What the last attempt said.
        #[source]
        source: ObjectError,
    },

    /// There is no store at this place.
    #[error("{place} holds no OpenSail store: create one, or check the bucket and the prefix")]
    NoStore {
        /// The store's address.
        place: String,
    },

    /// Something else is at this place.
    #[error("{place} is not an OpenSail store: {reason}")]
    NotOurs {
        /// The store's address.
        place: String,
        /// What was found.
        reason: String,
    },

    /// The store is another one than the pool belongs to.
    #[error(
        "this is the store {found}, not {expected} that the pool belongs to; nothing is dropped or written"
    )]
    WrongStore {
        /// The id that the pool remembers.
        expected: StoreId,
        /// The id found.
        found: StoreId,
    },

    /// An object was written by a newer program.
    #[error("{key} has format {found}; this program reads up to {supported}: upgrade it")]
    NewerFormat {
        /// The object.
        key: Key,
        /// Its format.
        found: u64,
        /// The newest that is known here.
        supported: u32,
    },

    /// An object does not hold what its name promises.
    #[error("{key} is damaged or not ours: {reason}")]
    Corrupt {
        /// The object.
        key: Key,
        /// What is wrong.
        reason: String,
    },

    /// An object is too big to be written.
    #[error("{key} would have {size} bytes, more than {limit}: remove entries, branches or attributes")]
    TooLarge {
        /// The object.
        key: Key,
        /// Its size.
        size: u64,
        /// The most it may have.
        limit: u64,
    },

    /// An object went away while it was in use. What depends on it locally is kept and told.
    #[error("{key} is gone from the store: what depends on it here is quarantined, never dropped")]
    Gone {
        /// The object.
        key: Key,
    },

    /// So many others write this object that the change found no room between them.
    #[error("{key} is being changed by others all the time; try again")]
    Contended {
        /// The object.
        key: Key,
    },

    /// There is no such volume.
    #[error("there is no volume {id}")]
    NoVolume {
        /// The id asked for.
        id: VolumeId,
    },

    /// The session no longer holds what it wanted to change.
    #[error("volume {id} is lost to this session: {reason}")]
    Lost {
        /// The volume.
        id: VolumeId,
        /// Which part of the guard no longer holds.
        #[source]
        reason: LostReason,
    },

    /// A change that is not its owner's found the volume in a state that forbids it.
    #[error("volume {id} is {state}, which forbids this")]
    WrongState {
        /// The volume.
        id: VolumeId,
        /// Its state.
        state: State,
    },

    /// The record is a snapshot, template, bundle or orphan: sealed, never owned.
    #[error("{id} is sealed: fork it to write")]
    Sealed {
        /// The record.
        id: VolumeId,
    },

    /// The volume belongs to a session that is not fenced.
    #[error("volume {id} belongs to session {owner}, which lives: move it, or force with the loss said")]
    Owned {
        /// The volume.
        id: VolumeId,
        /// Its owner.
        owner: SessionId,
    },

    /// The head moved after it was materialised here.
    #[error("the head of volume {id} moved since it was prepared here; prepare the new one")]
    HeadMoved {
        /// The volume.
        id: VolumeId,
    },

    /// The id is taken by another request's record.
    #[error("{id} was created by another request")]
    OtherRequest {
        /// The id.
        id: VolumeId,
    },

    /// The volume's timeline has no such entry.
    #[error("volume {id} has no entry {entry}")]
    NoEntry {
        /// The volume.
        id: VolumeId,
        /// The entry asked for.
        entry: EntryId,
    },

    /// The volume's timeline has no such version.
    #[error("volume {id} has no version {version}")]
    NoVersion {
        /// The volume.
        id: VolumeId,
        /// The version asked for.
        version: VersionId,
    },

    /// A branch names another entry.
    #[error("branch {branch} of volume {id} names entry {tip}: move it, or take another name")]
    BranchTaken {
        /// The volume.
        id: VolumeId,
        /// The branch.
        branch: String,
        /// Its tip.
        tip: EntryId,
    },

    /// An attribute is not as the caller expects, and nothing was done.
    #[error("attribute {key} of volume {id} is {found:?}, which is not what was expected")]
    AttributeDiffers {
        /// The volume.
        id: VolumeId,
        /// Which.
        key: String,
        /// What it is; empty: not there.
        found: String,
    },

    /// The record was born under the same id as another.
    #[error("volume {id} was born as {found}, not {expected}")]
    OtherBirth {
        /// The id.
        id: VolumeId,
        /// The birth that the caller knows.
        expected: Birth,
        /// The record's.
        found: Birth,
    },

    /// A name points elsewhere.
    #[error("the name {name} belongs to {current}")]
    NameTaken {
        /// The name.
        name: ResourceName,
        /// Whose it is.
        current: VolumeId,
    },

    /// There is no such name.
    #[error("there is no {kind} named {name}")]
    NoName {
        /// The kind of name, in words.
        kind: &'static str,
        /// The name.
        name: ResourceName,
    },

    /// The session is fenced: dead for ever.
    #[error("session {session} is fenced; open a new one")]
    Fenced {
        /// The session.
        session: SessionId,
    },

    /// Another process uses this session: its pool was cloned or went back in time.
    #[error("session {session} is used by another process, a clone of this pool; open a new one")]
    Stolen {
        /// The session.
        session: SessionId,
    },

    /// There is no such session.
    #[error("there is no session {session}")]
    NoSession {
        /// The session.
        session: SessionId,
    },

    /// A session of this number exists and is not this process's.
    #[error("session {session} exists; take the next number")]
    SessionTaken {
        /// The session.
        session: SessionId,
    },

    /// Packs that garbage collection may delete cannot be referred to.
    #[error("{} packs are condemned (first {}): wait for the collection, or write their bytes again", packs.len(), first(packs))]
    Condemned {
        /// All of them.
        packs: Vec<PackId>,
    },

    /// Garbage collection cannot tell what a version needs.
    #[error(
        "entry {entry} of volume {volume} cannot be read, so nothing can be collected: repair it, or delete the entry"
    )]
    UnreadableRoot {
        /// The volume.
        volume: VolumeId,
        /// Which of its entries.
        entry: EntryId,
        /// What is wrong.
        #[source]
        source: Box<TreeError>,
    },

    /// A pack that a version needs is not in the store.
    #[error("pack {pack} is not in the store")]
    NoPack {
        /// The pack.
        pack: PackId,
    },

    /// A page of older entries that a record named is not in the store. Read the record again: if it names the page
    /// still, the store lost it.
    #[error("{key} is not in the store; the record that named it was replaced, or the store lost it")]
    NoPage {
        /// The page.
        key: Key,
    },

    /// A record would name bytes that nobody proved to be stored under this operation (rule R).
    #[error("pack {pack} was neither acknowledged to this operation nor confirmed under its pin")]
    Unproven {
        /// The pack.
        pack: PackId,
    },

    /// Other bytes are stored under this session's pack name.
    #[error("pack {pack} exists with other bytes")]
    ForeignPack {
        /// The pack.
        pack: PackId,
    },

    /// Packs are written within an operation, which holds the pin.
    #[error("session {session} writes a pack outside any operation")]
    NoOperation {
        /// The session.
        session: SessionId,
    },

    /// What the caller asked for breaks a bound.
    #[error("{what}: {rule}")]
    Invalid {
        /// Which value.
        what: String,
        /// The rule that it breaks.
        rule: &'static str,
    },
}

/// Which part of the publish guard (rule G) no longer holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LostReason {
    /// The record is another one under the same id.
    #[error("it was born again as {found}")]
    Birth {
        /// The record's birth.
        found: Birth,
    },
    /// The record is not live.
    #[error("it is {found}")]
    State {
        /// The record's state.
        found: State,
    },
    /// Somebody else owns it, or nobody.
    #[error("its owner is {}", found.map_or_else(|| "nobody".to_owned(), |s| s.to_string()))]
    Owner {
        /// The record's owner.
        found: Option<SessionId>,
    },
    /// It changed owners since, even if it came back.
    #[error("its epoch is {found}")]
    Epoch {
        /// The record's epoch.
        found: Epoch,
    },
    /// The head is a version that this pool does not know: the pool went back in time.
    #[error("its head was never here: this pool went back in time")]
    Diverged {
        /// The record's head.
        head: EntryId,
    },
}

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn first(packs: &[PackId]) -> String {
    packs.first().map_or_else(String::new, ToString::to_string)
}

impl Error {
    /// Makes a [`Error::Corrupt`].
    pub(crate) fn corrupt(key: &Key, reason: impl Into<String>) -> Self {
        Self::Corrupt { key: key.clone(), reason: reason.into() }
    }
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Object(error) => error.kind(),
            Self::Tree(error) => error.kind(),
            Self::Unsettled { .. } => Kind::Unavailable,
            Self::NoStore { .. }
            | Self::NotOurs { .. }
            | Self::WrongStore { .. }
            | Self::NewerFormat { .. }
            | Self::Gone { .. }
            | Self::WrongState { .. }
            | Self::Sealed { .. }
            | Self::Owned { .. } => Kind::FailedPrecondition,
            Self::UnreadableRoot { source, .. } => source.kind(),
            Self::Corrupt { .. } | Self::NoPack { .. } | Self::NoPage { .. } | Self::ForeignPack { .. } => {
                Kind::DataLoss
            }
            Self::TooLarge { .. } => Kind::ResourceExhausted,
            Self::Contended { .. }
            | Self::Lost { .. }
            | Self::HeadMoved { .. }
            | Self::Fenced { .. }
            | Self::Stolen { .. }
            | Self::Condemned { .. } => Kind::Aborted,
            Self::NoVolume { .. }
            | Self::NoEntry { .. }
            | Self::NoVersion { .. }
            | Self::NoName { .. }
            | Self::NoSession { .. } => Kind::NotFound,
            Self::OtherRequest { .. }
            | Self::OtherBirth { .. }
            | Self::BranchTaken { .. }
            | Self::NameTaken { .. }
            | Self::SessionTaken { .. } => Kind::AlreadyExists,
            Self::AttributeDiffers { .. } => Kind::FailedPrecondition,
            Self::Unproven { .. } | Self::NoOperation { .. } => Kind::Internal,
            Self::Invalid { .. } => Kind::InvalidArgument,
        }
    }
}
