//! What can go wrong in the kernel, with the call and the directory it was made on.

use std::io;
use std::time::Duration;

use nix::errno::Errno;

use crate::GroupId;

/// A result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// What happened. [`Error::errno`] says it in the kernel's terms, from which a caller decides what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel, or libbtrfsutil for it, refused a call.
    #[error("{call} on {name}")]
    Call {
        /// The system call or ioctl, by its C name.
        call: &'static str,
        /// The directory or file it was made on, for people.
        name: String,
        /// Why.
        #[source]
        errno: Errno,
    },

    /// A name that is not one path segment.
    #[error("{name:?} is not a single file name")]
    Name {
        /// The name as given.
        name: String,
    },

    /// The directory is not on btrfs.
    #[error("{name} is not on btrfs")]
    NotBtrfs {
        /// The directory.
        name: String,
    },

    /// The directory is not the root of a subvolume.
    #[error("{name} is not a subvolume")]
    NotSubvolume {
        /// The directory.
        name: String,
    },

    /// Classic qgroups are on, which this room does not use: they make each clone slower than the one before.
    #[error("{name} has classic qgroups enabled; `btrfs quota disable` it, then enable simple quotas")]
    ClassicQuota {
        /// The directory.
        name: String,
    },

    /// An item of a tree, or a file of sysfs, is not what the format says.
    #[error("{what} of {name} cannot be read as what it should be")]
    Malformed {
        /// The item or file.
        what: String,
        /// The directory the search was made on.
        name: String,
    },

    /// A limit was raised for a moment, so that a full volume could be deleted, and could not be set back.
    #[error("group {group} could not be given back its limit of {limit_bytes} bytes")]
    LimitNotRestored {
        /// The group.
        group: GroupId,
        /// The limit it had.
        limit_bytes: u64,
        /// Why it could not be set back.
        #[source]
        source: Box<Self>,
        /// What had stopped the deletion before, if anything had.
        before: Option<Box<Self>>,
    },

    /// A wait reached its bound.
    #[error("{what} of {name} not done after {waited:?}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// The directory.
        name: String,
        /// How long.
        waited: Duration,
    },

    /// A program of btrfs-progs is missing or failed.
    #[error("{tool} on {name}: {said}")]
    Tool {
        /// The program.
        tool: &'static str,
        /// The device or file.
        name: String,
        /// The end of what it wrote to stderr, or why it did not start.
        said: String,
    },
}

impl Error {
    /// The error as an errno, for classifying it (`types::errno_kind`).
    pub fn errno(&self) -> i32 {
        let errno = match self {
            Self::Call { errno, .. } => *errno,
            Self::Name { .. } => Errno::EINVAL,
            Self::NotBtrfs { .. } => Errno::EOPNOTSUPP,
            Self::NotSubvolume { .. } => Errno::ENOTDIR,
            Self::ClassicQuota { .. } => Errno::EOPNOTSUPP,
            Self::Malformed { .. } => Errno::EUCLEAN,
            Self::LimitNotRestored { source, .. } => return source.errno(),
            Self::TimedOut { .. } => Errno::ETIMEDOUT,
            Self::Tool { .. } => Errno::EIO,
        };
        errno as i32
    }

    /// Whether the kernel answered with `errno`.
    pub fn is(&self, errno: Errno) -> bool {
        self.errno() == errno as i32
    }

    pub(crate) fn call(call: &'static str, name: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        let name = name.into();
        move |errno| Self::Call { call, name, errno }
    }

    pub(crate) fn io(call: &'static str, name: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let name = name.into();
        // An io::Error that carries no errno was made by the standard library itself; EIO is the nearest.
        move |error| Self::Call {
            call,
            name,
            errno: Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32)),
        }
    }
}
