//! What can go wrong with a file call.

use nix::errno::Errno;
use types::{Classify, Kind, VolumePath, errno_kind};

/// A file call that failed. A path is said as the client gave it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{doing} {path}")]
    Os {
        /// What was being done.
        doing: &'static str,
        /// To which path.
        path: VolumePath,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// A path, or a symlink on its way, leads out of the volume (or in a circle).
    #[error("{path} leads out of the volume or through a symlink that cannot be followed")]
    LeadsOut {
        /// The path.
        path: VolumePath,
    },
    /// Contents were asked of something that has none.
    #[error("{path} is a {found}, not a file")]
    NotAFile {
        /// The path.
        path: VolumePath,
        /// What stands there.
        found: &'static str,
    },
    /// The volume's root cannot be replaced, moved or deleted.
    #[error("the volume's root cannot be {doing}")]
    AtRoot {
        /// What was asked.
        doing: &'static str,
    },
    /// Something else stands where a new thing was to be made.
    #[error("{path} exists")]
    Exists {
        /// The path.
        path: VolumePath,
    },
    /// The content is not the one the client saw. Its present etag is part of the answer.
    #[error("{path} was changed since: its etag is {etag:?}")]
    Changed {
        /// The path.
        path: VolumePath,
        /// The present etag; empty where there is no file.
        etag: String,
    },
    /// The content changed between its etag and its last byte.
    #[error("{path} was changed while it was read")]
    Torn {
        /// The path.
        path: VolumePath,
    },
    /// Somebody keeps making and removing the path that is to be written.
    #[error("{path} keeps changing under this write")]
    Contended {
        /// The path.
        path: VolumePath,
    },
    /// The name belongs to writes in progress.
    #[error("{path}: names like this are kept for writes in progress")]
    Reserved {
        /// The path.
        path: VolumePath,
    },
    /// A number above what one call may ask for.
    #[error("{asked} {what} in one call; the limit is {limit}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many were asked for.
        asked: usize,
        /// How many may be.
        limit: usize,
    },
    /// Bits beside the permission bits.
    #[error("mode {mode:o} has bits beside the permission bits (07777)")]
    Mode {
        /// What was given.
        mode: u32,
    },
    /// The stream of a write does not begin with its header, or has two.
    #[error("a write is one header, then data")]
    NotAWrite,
    /// A change that names nothing to do.
    #[error("a change is empty")]
    EmptyChange,
    /// The client stopped sending.
    #[error("nothing came for {seconds} s")]
    Idle {
        /// How long was waited.
        seconds: u64,
    },
}

impl Error {
    /// Sorts the kernel's answer for `path`: a path that leads out is its own error.
    pub(super) fn os(doing: &'static str, path: &VolumePath) -> impl Fn(Errno) -> Self {
        let path = path.clone();
        move |source| {
            let path = path.clone();
            // openat2 beneath the root answers EXDEV for `..`, absolute symlinks and crossings, ELOOP for magic links.
            if doing == "open" && matches!(source, Errno::EXDEV | Errno::ELOOP) {
                Self::LeadsOut { path }
            } else {
                Self::Os { doing, path, source }
            }
        }
    }

    /// Tells if this says that there is nothing at the path.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Os { source: Errno::ENOENT, .. })
    }
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Os { source, .. } => errno_kind(*source as i32),
            Self::LeadsOut { .. }
            | Self::NotAFile { .. }
            | Self::AtRoot { .. }
            | Self::Reserved { .. }
            | Self::TooMany { .. }
            | Self::Mode { .. }
            | Self::NotAWrite
            | Self::EmptyChange => Kind::InvalidArgument,
            Self::Exists { .. } => Kind::AlreadyExists,
            Self::Changed { .. } | Self::Torn { .. } | Self::Contended { .. } => Kind::Aborted,
            Self::Idle { .. } => Kind::DeadlineExceeded,
        }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        proto::status::status(&error)
    }
}
