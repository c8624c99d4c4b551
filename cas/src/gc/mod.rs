//! Garbage collection: deletes only what no session in flight can refer to (PROTOCOL.md §2, GC).
//!
//! Epochs, not ages. A round condemns what no record names, waits until every live session has pinned an epoch that
//! avoids it (or fences the session and takes its records from it), marks again, and dooms what is still unnamed. Doomed
//! is final: any leader may go on deleting, today or in an hour. All steps are conditional writes of the object `gc`, so
//! a leader that stalls, dies or is not alone does no harm; whoever comes next reads where things stand and goes on.
//!
//! - [`Gc`], [`Pin`]: the object, and what writers of references must know of it
//! - [`Moved`]: where the frames of an evacuated pack went
//! - `roots`: everything that names packs, read again only where it changed
//! - `judge`, `wait`: the decisions, pure
//! - [`Collector`]: the doing
//! - `sweep`: what is not a pack: sessions, purged records, leftovers

mod collector;
mod doom;
mod explain;
mod judge;
mod moved;
mod object;
mod report;
mod roots;
mod sparse;
mod sweep;
mod wait;

pub use collector::{Collector, Settings, Step};
pub use explain::{Explained, Verdict};
pub(crate) use moved::read as read_moved;
pub use moved::{Move, Moved, Moves};
pub use object::{Gc, Phase, Pin, read_pin};
pub use report::Report;
pub use wait::Behind;
