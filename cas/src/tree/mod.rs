//! Trees: a directory of any filesystem as nodes and bytes in packs, and back.
//!
//! A version is the BLAKE3 of its root node, the same on every machine. Bytes are stored in frames of packs, found
//! through the locations that lie beside each node, and proved against the identity whenever they are read.
//! [`Writer`] puts a directory in, whole or by what changed; [`Reader`] reads parts of a version without restoring it,
//! restores it, turns one version on disk into another, and verifies. `FORMAT.md` has every byte.

mod cache;
mod changes;
mod codec;
mod dedup;
mod diff;
mod error;
mod evacuate;
mod fetch;
mod filemap;
mod flags;
mod flat;
mod frame;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod hostile;
mod inventory;
mod living;
mod location;
mod manifest;
mod moved;
mod node;
#[cfg(test)]
mod node_tests;
mod pack;
mod put;
mod read;
mod reindex;
mod resolve;
mod restore;
mod source;
mod stored;
mod tail;
mod thread;
mod touched;
mod usage;
mod verify;

pub use cache::Cache;
pub use changes::{Changes, ChildChange, DirChange};
pub use codec::Malformed;
pub use dedup::{AskHooks, Dedup, DedupIndex};
pub use diff::Difference;
pub use error::TreeError;
pub(crate) use evacuate::Evacuator;
pub use flat::{Files, put_flat};
pub use frame::{Codec, FrameHeader, FrameKind};
pub use inventory::{Inventory, Name, Root, Told};
pub(crate) use living::{Frames, Living, plain_bytes};
pub use location::{Extent, Location, PackUse, VersionRef};
pub use manifest::{Manifest, PackNeeded};
pub(crate) use moved::MAX_HOPS;
pub use node::{Entry, Item, Metadata, Node, Xattr, tree_order};
pub use pack::{Footer, FooterError, PACK_END, PACK_MAGIC, PACK_MAX, PackedFrame};
pub use put::{Parent, SharedPacks, WriteOptions, Writer, Written};
pub use read::{Found, FoundKind, Reader};
pub use reindex::{IndexedVersion, Reindexed};
pub use restore::{RestoreOptions, Restored};
pub use stored::Totals;
pub(crate) use touched::whole_frames;
pub use touched::{Lost, Touched};
pub use verify::VerifyReport;
