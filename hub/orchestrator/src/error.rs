//! What can go wrong between a platform and the hub.

use proto::convert::InvalidField;
use types::{Classify, Kind};

/// An error of the orchestrator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The hub's address is none.
    #[error("{address:?} is not the address of a hub; write host:port")]
    Address {
        /// What was given.
        address: String,
        /// The parser's words.
        #[source]
        source: tonic::transport::Error,
    },
    /// The hub refused or failed.
    #[error("cannot {action}: {}", .status.message())]
    Hub {
        /// What was asked.
        action: &'static str,
        /// What it answered.
        status: tonic::Status,
    },
    /// The hub answered something that it may not; one of the two builds is wrong.
    #[error("the hub's answer makes no sense")]
    Answer(#[from] InvalidField),
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Address { .. } => Kind::InvalidArgument,
            Self::Hub { status, .. } => proto::status::kind(status),
            Self::Answer(_) => Kind::Internal,
        }
    }
}
