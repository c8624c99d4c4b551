//! Which packs an increment empties: a version that names many small ones is slow to read and long to tell.
//!
//! What lies in them and is still used is stored again, with what changed. Only small packs count, so a large volume that
//! fills many whole ones is left alone; and so many go at once that this is seldom.

use std::collections::BTreeSet;
use std::sync::Arc;

use types::PackId;

use crate::tree::filemap::Cell;
use crate::tree::location::Extent;
use crate::tree::manifest::PackNeeded;
use crate::tree::stored::{Data, Place, Uses};

/// A pack is small if the version uses less plain bytes of it.
const SMALL: u64 = 4 << 20;

/// How many small packs a version may name before the smallest go.
const SMALL_MAX: usize = 48;

/// How many of them stay.
const SMALL_KEPT: usize = 24;

/// Plain bytes that are stored again at most, so that a small sync stays one.
const REWRITTEN_MAX: u64 = 16 << 20;

/// The packs that are emptied.
#[derive(Debug, Clone, Default)]
pub(super) struct Emptied(Arc<BTreeSet<Arc<PackId>>>);

impl Emptied {
    /// Decides for a version that names `packs`.
    pub(super) fn of(packs: &[PackNeeded]) -> Self {
        let mut small: Vec<&PackNeeded> = packs.iter().filter(|needed| needed.used.bytes < SMALL).collect();
        if small.len() < SMALL_MAX {
            return Self::default();
        }
        small.sort_by_key(|needed| needed.used.bytes);
        let mut left = REWRITTEN_MAX;
        let gone = small[..small.len() - SMALL_KEPT].iter().take_while(|needed| {
            let fits = needed.used.bytes <= left;
            left = left.saturating_sub(needed.used.bytes);
            fits
        });
        Self(Arc::new(gone.map(|needed| Arc::clone(&needed.pack)).collect()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn packs(&self) -> impl Iterator<Item = &Arc<PackId>> {
        self.0.iter()
    }

    pub(super) fn has(&self, pack: &Arc<PackId>) -> bool {
        self.0.contains(pack)
    }

    /// Tells if something of `uses` lies in them.
    pub(super) fn touch(&self, uses: &Uses) -> bool {
        !self.is_empty() && uses.keys().any(|pack| self.has(pack))
    }

    pub(super) fn touch_extent(&self, extent: &Extent) -> bool {
        extent.frames.iter().any(|frame| self.has(&frame.pack))
    }

    pub(super) fn touch_cell(&self, cell: &Cell) -> bool {
        cell.place.as_ref().is_some_and(|(frame, _)| self.has(&frame.pack))
    }

    /// An old cell for comparison: one that lies in them compares with nothing.
    pub(super) fn without(&self, cell: Cell) -> Cell {
        if self.touch_cell(&cell) { Cell { chaining: [0; 32], place: None } } else { cell }
    }

    /// Tells if a file's bytes or its map lie in them.
    pub(super) fn touch_place(&self, place: &Place<Extent>) -> bool {
        match &place.data {
            Data::Nothing | Data::Inline(_) => false,
            Data::Slice { frame, .. } => self.has(&frame.pack),
            Data::Map(map) => {
                map.uses.iter().any(|(pack, _)| pack.as_ref().is_some_and(|pack| self.has(pack)))
            }
            Data::Directory(extent) => self.touch_extent(extent),
        }
    }
}

#[cfg(test)]
mod tests {
    use types::{Domain, PoolId, SessionId};

    use super::*;
    use crate::tree::location::PackUse;

    fn packs(sizes: impl IntoIterator<Item = u64>) -> Vec<PackNeeded> {
        let session = SessionId { pool: PoolId(ulid::Ulid::from_bytes([1; 16])), number: 1 };
        let named = sizes.into_iter().zip(0..).map(|(bytes, seq)| PackNeeded {
            pack: Arc::new(PackId { domain: Domain::default_domain(), session, seq }),
            object_bytes: None,
            used: PackUse { references: 1, bytes },
        });
        named.collect()
    }

    fn emptied(sizes: impl IntoIterator<Item = u64>) -> Vec<u64> {
        Emptied::of(&packs(sizes)).packs().map(|pack| pack.seq).collect()
    }

    #[test]
    fn few_packs_and_large_ones_are_left_alone() {
        assert!(emptied([1_000; 47]).is_empty());
        assert!(emptied([16 << 20; 1_000]).is_empty());
    }

    #[test]
    fn the_smallest_go_and_not_too_many_bytes_of_them() {
        assert_eq!(emptied((0..48).map(|n| (48 - n) * 1_000)), Vec::from_iter(24..48));
        assert_eq!(emptied([3 << 20; 100]).len(), 5, "16 MiB hold five of them");
    }
}
