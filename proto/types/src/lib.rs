//! The words that every room shares: ids, sizes, paths, time, and what an error asks of its caller.
//!
//! A value of one of these types is valid by construction. Strings are parsed at the edge (`proto::convert`, clap,
//! the store's decoders); a function that takes a [`VolumeId`] checks nothing. No tokio and no tonic here.

mod change;
mod clock;
mod id;
mod kind;
mod path;
mod size;
mod traffic;

pub use change::Change;
pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use id::{
    Birth, ContentId, Domain, EntryId, Epoch, Hash, InvalidId, MemberName, NodeName, Nonce, PackId, PoolId,
    RequestId, ResourceName, Rev, SessionId, StoreId, VersionId, VolumeId,
};
pub use kind::{Classify, Kind, errno_kind};
pub use path::{InvalidPath, VolumePath};
pub use size::{ByteSize, InvalidSize};
pub use traffic::{CallKind, Traffic};
