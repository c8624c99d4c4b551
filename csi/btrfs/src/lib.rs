//! btrfs for the node: subvolumes, snapshots, quotas, commits, tree search, and the loop file a pool can live on.
//!
//! Synchronous; knows no runtime and none of our other rooms. Everything starts from an open directory ([`Dir`]) and a
//! single-segment name; no function builds a path from a caller's words. The kernel's calls live in `sys.rs`, their
//! structures in `abi.rs`; every other file is safe code.

mod abi;
pub mod cleaner;
pub mod commit;
mod delete;
mod dir;
pub mod encoded;
mod error;
pub mod features;
pub mod filesystem;
mod headroom;
mod item;
pub mod loopdev;
mod parse;
pub mod quota;
pub mod scratch;
pub mod search;
pub mod send;
pub mod space;
pub mod subvolume;
mod sys;
mod uuid;

pub use dir::Dir;
pub use error::{Error, Result};
pub use nix::errno::Errno;
pub use quota::GroupId;
pub use uuid::Uuid;
