//! Which packs an increment empties: a version that names many small ones is slow to read and long to tell.
//!
//! What lies in them and is still used is stored again, with what changed. Only small packs count, so a large volume that
//! fills many whole ones is left alone; and several go at once, the smallest first, so that most increments store nothing
//! again and nothing is stored again often.

use std::collections::BTreeSet;
use std::sync::Arc;

use types::PackId;

use crate::tree::filemap::Cell;
use crate::tree::location::Extent;
use crate::tree::manifest::PackNeeded;
use crate::tree::stored::{Data, Place, Uses};

/// A kind of pack that does not pile up.
struct Kind {
    /// Packs are of it if the version uses less plain bytes of them.
    below: u64,
    /// How many of it a version may name before the smallest go.
    most: usize,
    /// How many of them stay.
    kept: usize,
    /// Plain bytes that are stored again at most, so that a small sync stays one.
    rewritten: u64,
}

/// Those that cost more to ask for than to store again go soon, so that the hundredth small change is restored with as few
/// requests as the tenth. Larger ones may be many: storing them again would be most of what a busy database sends.
const KINDS: [Kind; 2] = [
    Kind { below: 256 << 10, most: 12, kept: 6, rewritten: 2 << 20 },
    Kind { below: 4 << 20, most: 48, kept: 24, rewritten: 16 << 20 },
];

impl Kind {
    /// How many packs are emptied, of those that have least.
    fn gone(&self, by_size: &[&PackNeeded]) -> usize {
        let small = by_size.partition_point(|needed| needed.used.bytes < self.below);
        if small < self.most {
            return 0;
        }
        let mut bytes = 0;
        let fits = by_size[..small - self.kept].iter().take_while(|needed| {
            bytes += needed.used.bytes;
            bytes <= self.rewritten
        });
        fits.count()
    }
}

/// The packs that are emptied.
#[derive(Debug, Clone, Default)]
pub(super) struct Emptied(Arc<BTreeSet<Arc<PackId>>>);

impl Emptied {
    /// Decides for a version that names `packs`.
    pub(super) fn of(packs: &[PackNeeded]) -> Self {
        let mut by_size: Vec<&PackNeeded> = packs.iter().collect();
        by_size.sort_by_key(|needed| needed.used.bytes);
        let gone = KINDS.iter().map(|kind| kind.gone(&by_size)).max().unwrap_or(0);
        let gone = by_size[..gone].iter();
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
        assert!(emptied([1_000; 11]).is_empty());
        assert!(emptied([300 << 10; 47]).is_empty());
        assert!(emptied([16 << 20; 1_000]).is_empty());
    }

    #[test]
    fn the_smallest_go_and_not_too_many_bytes_of_them() {
        assert_eq!(emptied((0..12).map(|n| (12 - n) * 1_000)), Vec::from_iter(6..12));
        assert_eq!(emptied((0..48).map(|n| (400 - n) << 10)), Vec::from_iter(24..48));
        assert_eq!(emptied([3 << 20; 100]).len(), 5, "16 MiB hold five of them");
        assert_eq!(emptied([200 << 10; 40]).len(), 10, "2 MiB hold ten of them");
    }

    #[test]
    fn tiny_ones_go_beside_larger_ones_that_stay() {
        let sizes = [1 << 20; 30].into_iter().chain((0..12).map(|n| (12 - n) * 1_000));
        assert_eq!(emptied(sizes), Vec::from_iter(36..42));
    }
}
