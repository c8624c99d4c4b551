//! Why what changed could not be told.

use types::{Classify, Kind, errno_kind};

/// A search that failed, or that cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The two trees do not say what changed between them: everything has to be read.
    #[error("what changed cannot be told, everything has to be read: {reason}")]
    FullScan {
        /// Why, for a metric's label and for people.
        reason: &'static str,
    },
    /// The kernel refused, or an item is not what it should be.
    #[error("searching for what changed")]
    Btrfs(#[from] btrfs::Error),
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::FullScan { .. } => Kind::FailedPrecondition,
            Self::Btrfs(error) => errno_kind(error.errno()),
        }
    }
}
