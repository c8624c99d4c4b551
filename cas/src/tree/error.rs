//! What can go wrong with a tree, on disk or in the store.

use std::io;
use std::sync::Arc;

use types::{Classify, ContentId, Kind, PackId, VersionId, VolumePath, errno_kind};

use super::codec::Malformed;
use super::location::Location;
use crate::objects::ObjectError;

/// A path for people: any bytes.
fn show(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { String::from_utf8_lossy(path).into_owned() }
}

/// Everything that reading, writing, storing or restoring a tree may answer instead of doing its work.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The object store failed.
    #[error(transparent)]
    Object(#[from] ObjectError),

    /// The session could not name or put a pack.
    #[error(transparent)]
    Session(Box<crate::Error>),

    /// A system call on a file of the tree failed.
    #[error("{call} {}", show(path))]
    Io {
        /// What was tried.
        call: &'static str,
        /// On which file, from the root of the tree.
        path: Vec<u8>,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// An extended attribute or ACL could not be stored. The restore fails rather than lose it.
    #[error("attribute {name} of {} cannot be stored here: use a filesystem that has it", show(path))]
    Xattr {
        /// The attribute.
        name: String,
        /// Of which file.
        path: Vec<u8>,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// A file or directory changed while it was read.
    #[error("{} changed while it was read: stop what writes to it, or put a read-only snapshot", show(path))]
    SourceChanged {
        /// Which.
        path: Vec<u8>,
    },

    /// The changes that were given do not fit the version they are said to start from, or the directory.
    #[error("the changes do not fit at {}: {reason}; a full scan is needed", show(path))]
    ChangesDoNotFit {
        /// Where.
        path: Vec<u8>,
        /// How.
        reason: &'static str,
    },

    /// Something in the source has no place in a tree.
    #[error("{} cannot be kept: {reason}", show(path))]
    Unsupported {
        /// What.
        path: Vec<u8>,
        /// Why.
        reason: &'static str,
    },

    /// The bytes at a place are not what was put there.
    #[error("{location} is damaged: {source}")]
    Damaged {
        /// The frame.
        location: Location,
        /// What is wrong.
        #[source]
        source: Malformed,
    },

    /// A pack is damaged outside of its frames.
    #[error("pack {pack} is damaged: {reason}")]
    DamagedPack {
        /// The pack.
        pack: PackId,
        /// What is wrong.
        reason: String,
    },

    /// A pack that a version needs is not in the store.
    #[error("pack {pack} is missing from the store")]
    MissingPack {
        /// The pack.
        pack: PackId,
    },

    /// A file's bytes are not those that its id says.
    #[error("{} in {location} is damaged: its content is not {content}", show(path))]
    DamagedFile {
        /// The file.
        path: Vec<u8>,
        /// What it should be.
        content: ContentId,
        /// Where its bytes lie.
        location: Location,
    },

    /// A file's bytes in its directory's node are not those that its id says.
    #[error("{} in its directory's node is damaged: its content is not {content}", show(path))]
    DamagedInline {
        /// The file.
        path: Vec<u8>,
        /// What it should be.
        content: ContentId,
    },

    /// A directory with all below it, or a large file, cannot be read because of what lies in this pack.
    #[error("{} is lost with pack {pack}", show(path))]
    LostPath {
        /// The directory or file.
        path: Vec<u8>,
        /// The pack.
        pack: Arc<PackId>,
        /// What is wrong with it.
        #[source]
        source: Box<Self>,
    },

    /// A name of a file whose first name is lost.
    #[error("{} is lost with {}, whose other name it is", show(path), show(first))]
    LostName {
        /// The later name.
        path: Vec<u8>,
        /// The first name.
        first: Vec<u8>,
    },

    /// A node or manifest is sound but not the one that was asked for.
    #[error("{location} holds {found}, not {expected}")]
    WrongTree {
        /// The frame.
        location: Location,
        /// What it should be.
        expected: VersionId,
        /// What it is.
        found: VersionId,
    },

    /// A manifest does not name all that its tree uses, so that garbage collection would not know of it.
    #[error("the manifest of {version} is wrong: {reason}")]
    WrongManifest {
        /// The version.
        version: VersionId,
        /// What it should say.
        reason: String,
    },

    /// A hard link names something that is not an earlier file.
    #[error("{} is a hard link to {}, which is not a file before it", show(path), show(first))]
    BadLink {
        /// The later name.
        path: Vec<u8>,
        /// The first name.
        first: Vec<u8>,
    },

    /// There is no such path in the version.
    #[error("{path} is not in version {version}")]
    NotFound {
        /// The path.
        path: VolumePath,
        /// The version.
        version: VersionId,
    },

    /// The path is there and is something else.
    #[error("{path} is not a {expected}")]
    WrongKind {
        /// The path.
        path: VolumePath,
        /// What was needed.
        expected: &'static str,
    },

    /// A symbolic link on the way leads out of the version, or in a circle.
    #[error("{path} leads out of the version or through a symlink that cannot be followed")]
    LeadsOut {
        /// The path.
        path: VolumePath,
    },

    /// The directory to restore into is not empty.
    #[error("the directory to restore into is not empty: {} is in it", show(name))]
    TargetNotEmpty {
        /// A name that is in it.
        name: Vec<u8>,
    },

    /// The version is too large for its manifest.
    #[error("a frame would have {bytes} bytes, more than {limit}")]
    FrameTooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: u32,
    },

    /// A thread could not be started or its work ended early.
    #[error("the work stopped early ({0})")]
    Stopped(&'static str),
}

impl From<crate::Error> for TreeError {
    fn from(error: crate::Error) -> Self {
        Self::Session(Box::new(error))
    }
}

impl TreeError {
    pub(crate) fn io(call: &'static str, path: &[u8], error: impl Into<io::Error>) -> Self {
        Self::Io { call, path: path.to_vec(), source: error.into() }
    }

    /// Tells if bytes in the store are damaged or missing: what `verify` collects and goes on.
    pub fn is_damage(&self) -> bool {
        self.kind() == Kind::DataLoss
    }

    /// The pack that is damaged or missing, where that is known.
    pub fn pack(&self) -> Option<&PackId> {
        match self {
            Self::Damaged { location, .. }
            | Self::DamagedFile { location, .. }
            | Self::WrongTree { location, .. } => Some(&location.pack),
            Self::DamagedPack { pack, .. } | Self::MissingPack { pack } => Some(pack),
            Self::LostPath { pack, .. } => Some(pack),
            Self::Object(_)
            | Self::Session(_)
            | Self::Io { .. }
            | Self::Xattr { .. }
            | Self::SourceChanged { .. }
            | Self::ChangesDoNotFit { .. }
            | Self::Unsupported { .. }
            | Self::DamagedInline { .. }
            | Self::LostName { .. }
            | Self::BadLink { .. }
            | Self::WrongManifest { .. }
            | Self::NotFound { .. }
            | Self::WrongKind { .. }
            | Self::LeadsOut { .. }
            | Self::TargetNotEmpty { .. }
            | Self::FrameTooLarge { .. }
            | Self::Stopped(_) => None,
        }
    }

    /// The path in the version that is lost by this damage, where it is of one.
    pub fn lost_path(&self) -> Option<&[u8]> {
        match self {
            Self::DamagedFile { path, .. }
            | Self::DamagedInline { path, .. }
            | Self::LostPath { path, .. }
            | Self::LostName { path, .. }
            | Self::BadLink { path, .. } => Some(path),
            Self::Object(_)
            | Self::Session(_)
            | Self::Io { .. }
            | Self::Xattr { .. }
            | Self::SourceChanged { .. }
            | Self::ChangesDoNotFit { .. }
            | Self::Unsupported { .. }
            | Self::Damaged { .. }
            | Self::DamagedPack { .. }
            | Self::MissingPack { .. }
            | Self::WrongTree { .. }
            | Self::WrongManifest { .. }
            | Self::NotFound { .. }
            | Self::WrongKind { .. }
            | Self::LeadsOut { .. }
            | Self::TargetNotEmpty { .. }
            | Self::FrameTooLarge { .. }
            | Self::Stopped(_) => None,
        }
    }
}

impl Classify for TreeError {
    fn kind(&self) -> Kind {
        match self {
            Self::Object(error) => error.kind(),
            Self::Session(error) => error.kind(),
            Self::Io { source, .. } | Self::Xattr { source, .. } => {
                source.raw_os_error().map_or(Kind::Internal, errno_kind)
            }
            Self::SourceChanged { .. } => Kind::Aborted,
            Self::ChangesDoNotFit { .. } | Self::Unsupported { .. } | Self::TargetNotEmpty { .. } => {
                Kind::FailedPrecondition
            }
            Self::Damaged { .. }
            | Self::DamagedPack { .. }
            | Self::MissingPack { .. }
            | Self::DamagedFile { .. }
            | Self::DamagedInline { .. }
            | Self::LostPath { .. }
            | Self::LostName { .. }
            | Self::WrongTree { .. }
            | Self::WrongManifest { .. }
            | Self::BadLink { .. } => Kind::DataLoss,
            Self::NotFound { .. } => Kind::NotFound,
            Self::WrongKind { .. } | Self::LeadsOut { .. } => Kind::InvalidArgument,
            Self::FrameTooLarge { .. } => Kind::ResourceExhausted,
            Self::Stopped(_) => Kind::Cancelled,
        }
    }
}
