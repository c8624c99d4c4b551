//! What a store was asked, counted by kind of call: what a provider bills, and what tests count.

use std::collections::BTreeMap;

/// The calls of an object store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallKind {
    /// `get`
    Get,
    /// `get_range`
    GetRange,
    /// `head`
    Head,
    /// `put`
    Put,
    /// `delete`
    Delete,
    /// `list`
    List,
}

impl CallKind {
    /// Every kind, in the order in which they are shown.
    pub const ALL: [Self; 6] = [Self::Get, Self::GetRange, Self::Head, Self::Put, Self::Delete, Self::List];

    /// Tells if it may change the store.
    pub fn is_write(self) -> bool {
        match self {
            Self::Put | Self::Delete => true,
            Self::Get | Self::GetRange | Self::Head | Self::List => false,
        }
    }

    /// Returns the word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::GetRange => "get_range",
            Self::Head => "head",
            Self::Put => "put",
            Self::Delete => "delete",
            Self::List => "list",
        }
    }
}

/// Requests that were sent to a store, each one counted: tries again and hedges too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    by_kind: BTreeMap<CallKind, u64>,
    /// Bytes that answers brought.
    pub bytes_read: u64,
    /// Bytes that puts carried, whether they were stored or not.
    pub bytes_written: u64,
    /// Requests that were answered by an error that may pass, or not in time.
    pub failed: u64,
    /// Of these, those by which the store asked for fewer requests.
    pub busy: u64,
    /// Reads that were sent again after a failure.
    pub retries: u64,
    /// Reads that were sent a second time because the first was slow.
    pub hedges: u64,
    /// Of these, those that answered first.
    pub hedges_won: u64,
}

impl Traffic {
    /// How many requests of `kind` were sent.
    pub fn of(&self, kind: CallKind) -> u64 {
        self.by_kind.get(&kind).copied().unwrap_or(0)
    }

    /// How many requests were sent.
    pub fn requests(&self) -> u64 {
        self.by_kind.values().sum()
    }

    /// Counts a request that carries `bytes`.
    pub fn sent(&mut self, kind: CallKind, bytes: u64) {
        *self.by_kind.entry(kind).or_default() += 1;
        self.bytes_written += bytes;
    }
}
