//! The content-addressed store: files, trees and records as objects in a bucket or a directory.

pub mod blocking;
mod codec;
pub mod entry;
mod error;
pub mod gc;
pub mod guard;
pub mod keys;
pub mod lifecycle;
pub mod names;
pub mod objects;
pub mod page;
mod pauses;
pub mod record;
pub mod references;
pub mod scrub;
pub mod session;
mod settle;
mod store;
pub mod thin;
pub mod timeline;
pub mod tree;
pub mod update;
pub mod upkeep;

pub use codec::{FORMAT, MAX_SMALL_OBJECT_BYTES, decode, decode_bytes, encode};
pub use entry::{Entry, Heads, Role, Tips};
pub use error::{Error, LostReason, Result};
pub use guard::{Claim, Known};
pub use record::{Record, RecordKind};
pub use session::{Operation, Session};
pub use store::{Retry, Store, Stored};
pub use tree::{
    Cache, Changes, ChildChange, DirChange, Location, Parent, Reader, RestoreOptions, Restored, TreeError,
    VerifyReport, VersionRef, WriteOptions, Writer, Written,
};
