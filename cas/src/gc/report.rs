//! What a round did, for logs, metrics and people.

use types::SessionId;

use super::object::Phase;
use super::wait::Behind;

/// What a round found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The collection's epoch at the end.
    pub epoch: u64,
    /// Where the collection stands at the end; `None` before the first look.
    pub phase: Option<Phase>,
    /// Packs in the store when the round began.
    pub packs: u64,
    /// Their bytes.
    pub pack_bytes: u64,
    /// Packs that were condemned.
    pub condemned: u64,
    /// Condemned packs that the second mark found in use.
    pub rescued: u64,
    /// Packs that were deleted.
    pub deleted: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Of these, packs whose live frames were copied first.
    pub evacuated: u64,
    /// Packs made by that.
    pub copied: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Sessions that were fenced because they did not follow.
    pub fenced: Vec<SessionId>,
    /// Records that were taken from sessions that are over.
    pub drained: u64,
    /// Live sessions that are waited for.
    pub waiting: Vec<Behind>,
    /// Deleted records whose grace is over.
    pub purged: u64,
    /// Purged records that nobody holds a copy of.
    pub removed: u64,
    /// Times that a volume without an owner was thinned.
    pub thinned: u64,
    /// Sessions that are over and were deleted.
    pub retired: u64,
    /// Other objects that nobody needs.
    pub leftovers: u64,
    /// What could not be done, and does not stop the rest.
    pub troubles: Vec<String>,
}

impl Report {
    /// Tells if something is left to do that only time or others bring on.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Logs the round as one line of fields.
    pub fn log(&self) {
        tracing::info!(
            epoch = self.epoch,
            packs = self.packs,
            pack_bytes = self.pack_bytes,
            condemned = self.condemned,
            rescued = self.rescued,
            deleted = self.deleted,
            deleted_bytes = self.deleted_bytes,
            evacuated = self.evacuated,
            copied = self.copied,
            copied_bytes = self.copied_bytes,
            fenced = self.fenced.len(),
            drained = self.drained,
            waiting = self.waiting.len(),
            purged = self.purged,
            removed = self.removed,
            thinned = self.thinned,
            retired = self.retired,
            leftovers = self.leftovers,
            "garbage collection"
        );
        for trouble in &self.troubles {
            tracing::warn!(trouble, "garbage collection goes on without it");
        }
    }
}
