//! What can go wrong with an object store, and what its caller should do.

use std::error::Error;
use std::ops::Range;

use types::{Classify, Kind};

use super::Key;

/// The cause below an [`ObjectError`], from a backend's own library.
pub type Source = Box<dyn Error + Send + Sync>;

/// A call to an object store that did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// There is no such object.
    #[error("no object {key}")]
    NotFound {
        /// The key asked for.
        key: Key,
    },

    /// The condition of the write does not hold; nothing was written. (412)
    #[error("object {key} is not in the state that the write asks for")]
    Precondition {
        /// The key of the write.
        key: Key,
    },

    /// Another write of the key was going on; send the same bytes again. (409)
    #[error("another write of object {key} is going on")]
    Conflict {
        /// The key of the write.
        key: Key,
    },

    /// The store could not be reached, was busy, or did not answer in time. The outcome of a write is unknown.
    #[error("the store cannot be reached ({what})")]
    Unavailable {
        /// The call and its key or prefix.
        what: String,
        /// What the transport or the store said.
        #[source]
        source: Source,
    },

    /// The store answers, and asks for fewer requests (503 SlowDown, 429). Whether a write happened is not said.
    #[error("the store is busy and asks for fewer requests ({what})")]
    Busy {
        /// The call and its key or prefix.
        what: String,
        /// What the store said.
        #[source]
        source: Source,
    },

    /// The store takes no writes: a read-only mount or bucket. Nothing was written.
    #[error("the store is read-only ({what}): make it writable or name another store")]
    ReadOnly {
        /// The call and its key.
        what: String,
        /// What the store said.
        #[source]
        source: Source,
    },

    /// The store refuses these credentials, or this user. Nothing was written.
    #[error("the store refuses access ({what}): check the credentials, their policy, and the file owner")]
    Denied {
        /// The call and its key.
        what: String,
        /// What the store said.
        #[source]
        source: Source,
    },

    /// The store has no room. Nothing was written.
    #[error("the store is full ({what})")]
    Full {
        /// The call and its key.
        what: String,
        /// What the store said.
        #[source]
        source: Source,
    },

    /// The range is not inside the object.
    #[error("bytes {}..{} of object {key} were asked for, which has {size:?}", range.start, range.end)]
    Range {
        /// The key asked for.
        key: Key,
        /// The bytes asked for.
        range: Range<u64>,
        /// The object's size, where the store said it.
        size: Option<u64>,
    },

    /// An object is larger than any that this program writes.
    #[error("object {key} has {size} bytes, more than the {limit} that an object may have")]
    TooLarge {
        /// The key.
        key: Key,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },

    /// The store's own address, bucket or settings are wrong.
    #[error("the store cannot be used ({what})")]
    Misconfigured {
        /// What is wrong and what to do.
        what: String,
        /// What the store said.
        #[source]
        source: Source,
    },

    /// The medium failed, or the store returned what it never was given.
    #[error("the store is damaged ({what})")]
    Damaged {
        /// The call and its key.
        what: String,
        /// What the store said.
        #[source]
        source: Source,
    },

    /// The store said something that nobody expected.
    #[error("the store failed in an unexpected way ({what})")]
    Internal {
        /// The call and its key.
        what: String,
        /// What it said.
        #[source]
        source: Source,
    },
}

impl ObjectError {
    /// Tells if a write that ended so may have happened all the same, or may still happen.
    pub fn is_outcome_unknown(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Busy { .. } | Self::Internal { .. } | Self::Damaged { .. } => {
                true
            }
            Self::NotFound { .. }
            | Self::Precondition { .. }
            | Self::Conflict { .. }
            | Self::ReadOnly { .. }
            | Self::Denied { .. }
            | Self::Full { .. }
            | Self::Range { .. }
            | Self::TooLarge { .. }
            | Self::Misconfigured { .. } => false,
        }
    }

    /// Tells if there is no such object.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Tells if the condition of a write did not hold.
    pub fn is_precondition(&self) -> bool {
        matches!(self, Self::Precondition { .. })
    }
}

impl Classify for ObjectError {
    fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } => Kind::NotFound,
            Self::Precondition { .. } | Self::Conflict { .. } => Kind::Aborted,
            Self::Unavailable { .. } | Self::Busy { .. } => Kind::Unavailable,
            Self::ReadOnly { .. } | Self::Misconfigured { .. } => Kind::FailedPrecondition,
            Self::Denied { .. } => Kind::PermissionDenied,
            Self::Full { .. } => Kind::ResourceExhausted,
            Self::Range { .. } | Self::TooLarge { .. } => Kind::OutOfRange,
            Self::Damaged { .. } => Kind::DataLoss,
            Self::Internal { .. } => Kind::Internal,
        }
    }
}
