//! A hash of what is stored beside a directory's identity for all below it (which files had holes or other names), so
//! that directories that differ only in that are not taken for each other. It lives in memory only.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

/// See the module. Made by naming a directory's entries in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Flags(u64);

impl Flags {
    /// Takes an entry that is no directory.
    pub(crate) fn entry(&mut self, linked: bool, sparse: bool) {
        let mut hasher = DefaultHasher::new();
        (self.0, linked, sparse).hash(&mut hasher);
        self.0 = hasher.finish();
    }

    /// Takes a directory with the flags below it.
    pub(crate) fn directory(&mut self, below: Self) {
        self.0 ^= below.0.rotate_left(1);
        self.entry(false, false);
    }

    pub(crate) fn value(self) -> u64 {
        self.0
    }
}
