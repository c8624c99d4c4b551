//! What an error asks of its caller. The gRPC code is made from this in one place (`proto::status`).

/// The few things that a caller can do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request is wrong; fix it.
    InvalidArgument,
    /// A size or position is outside what can be served; change it.
    OutOfRange,
    /// What was named is not there.
    NotFound,
    /// The name is taken by something else.
    AlreadyExists,
    /// The state of the world forbids it; change that first.
    FailedPrecondition,
    /// Somebody else holds it or got there first; start over after a pause.
    Aborted,
    /// Space, quota or a queue is full; free something, then retry.
    ResourceExhausted,
    /// A peer or the store cannot be reached; retry.
    Unavailable,
    /// Time ran out; retry.
    DeadlineExceeded,
    /// The caller went away.
    Cancelled,
    /// The caller may not do this.
    PermissionDenied,
    /// The bytes are damaged; a person has to look.
    DataLoss,
    /// This build, kernel or store does not offer it.
    Unimplemented,
    /// Nobody expected this; report it.
    Internal,
}

impl Kind {
    /// Tells if the same request may succeed later without anybody changing it.
    pub fn is_retryable(self) -> bool {
        match self {
            Self::Aborted | Self::ResourceExhausted | Self::Unavailable | Self::DeadlineExceeded => true,
            Self::InvalidArgument
            | Self::OutOfRange
            | Self::NotFound
            | Self::AlreadyExists
            | Self::FailedPrecondition
            | Self::Cancelled
            | Self::PermissionDenied
            | Self::DataLoss
            | Self::Unimplemented
            | Self::Internal => false,
        }
    }
}

/// An error that knows what it asks of its caller.
pub trait Classify {
    /// Returns what the caller should do.
    fn kind(&self) -> Kind;
}

/// Sorts an operating-system error number (Linux values) into what a caller can do about it.
///
/// Paths that a client named fail with `EXDEV` or `ELOOP` where they lead out of their volume (openat2).
pub fn errno_kind(errno: i32) -> Kind {
    match errno {
        // ENOENT, ENODEV, ENXIO
        2 | 19 | 6 => Kind::NotFound,
        // EEXIST
        17 => Kind::AlreadyExists,
        // EINVAL, ENAMETOOLONG, ENOTDIR, EISDIR, ELOOP, EXDEV
        22 | 36 | 20 | 21 | 40 | 18 => Kind::InvalidArgument,
        // EBUSY, ENOTEMPTY, EROFS, ETXTBSY
        16 | 39 | 30 | 26 => Kind::FailedPrecondition,
        // ENOSPC, EDQUOT, ENOMEM, EMFILE, ENFILE
        28 | 122 | 12 | 24 | 23 => Kind::ResourceExhausted,
        // EAGAIN, EINTR
        11 | 4 => Kind::Unavailable,
        // ETIMEDOUT
        110 => Kind::DeadlineExceeded,
        // EPERM, EACCES
        1 | 13 => Kind::PermissionDenied,
        // EIO, EUCLEAN
        5 | 117 => Kind::DataLoss,
        // ENOTTY, EOPNOTSUPP, ENOSYS
        25 | 95 | 38 => Kind::Unimplemented,
        _ => Kind::Internal,
    }
}
