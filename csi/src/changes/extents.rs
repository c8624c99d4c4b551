//! Whether two lists of extents hold the same bytes, without reading them.
//!
//! A base that is kept holds on to its extents, so their places on the device are not used for anything else: one place
//! is one content. Splitting an extent, or writing down a hole that had no item, changes the list and not the bytes.

use std::ops::Range;

use btrfs::search::{Compression, Extent, ExtentData};
use bytes::Bytes;

/// The smallest part of a file that can be a hole.
const BLOCK: u64 = 4096;

/// An extent as an item has it, kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    at: u64,
    length: u64,
    generation: u64,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    /// A hole that is written down.
    Hole,
    /// Allocated and not written.
    Reserved,
    Disk {
        bytenr: u64,
        /// Where in the extent, less where in the file: the same for every part of one mapping.
        shift: u64,
    },
    Inline {
        compression: Compression,
        bytes: Bytes,
    },
}

impl Stored {
    pub(super) fn of(at: u64, extent: &Extent<'_>) -> Self {
        let what = match extent.data {
            _ if extent.is_zero() => match extent.data {
                ExtentData::Preallocated { .. } => What::Reserved,
                ExtentData::Regular { .. } | ExtentData::Inline { .. } => What::Hole,
            },
            ExtentData::Regular { disk_bytenr, offset, .. } => {
                What::Disk { bytenr: disk_bytenr, shift: offset.wrapping_sub(at) }
            }
            ExtentData::Inline { bytes } => {
                What::Inline { compression: extent.compression, bytes: Bytes::copy_from_slice(bytes) }
            }
            ExtentData::Preallocated { .. } => What::Reserved,
        };
        Self { at, length: extent.file_bytes(), generation: extent.generation, what }
    }

    /// What it adds to the inode's count of bytes.
    pub(super) fn allocated_bytes(&self) -> u64 {
        match self.what {
            What::Hole => 0,
            What::Reserved | What::Disk { .. } | What::Inline { .. } => self.length,
        }
    }

    /// Tells if it was certainly written after the transaction `since`. One that was not may still be new to its file:
    /// a reflink keeps the age of what it shares.
    pub(super) fn is_younger(&self, since: u64) -> bool {
        self.generation > since
    }

    fn end(&self) -> u64 {
        self.at.saturating_add(self.length)
    }
}

/// Returns a small file's bytes where its only extent holds them as they are.
pub(super) fn inline(extents: &[Stored], size: u64) -> Option<Bytes> {
    let (compression, bytes) = only_inline(extents)?;
    (compression == Compression::None && bytes.len() as u64 == size).then(|| bytes.clone())
}

/// Returns what a small file's only extent holds, and how.
pub(super) fn only_inline(extents: &[Stored]) -> Option<(Compression, &Bytes)> {
    let [only] = extents else { return None };
    match &only.what {
        What::Inline { compression, bytes } if only.at == 0 => Some((*compression, bytes)),
        What::Inline { .. } | What::Hole | What::Reserved | What::Disk { .. } => None,
    }
}

/// Tells if a file has a hole before its end, as `SEEK_HOLE` does.
pub(super) fn has_hole(extents: &[Stored], size: u64) -> bool {
    let mut cursor = Cursor { extents };
    let mut position = 0;
    while position < size {
        match cursor.at(position) {
            (Source::Zeros, _) => return true,
            (Source::Disk { .. }, end) => position = end,
            // Such an extent has no neighbour, and fills its block.
            (Source::Inline { .. }, end) => position = end.next_multiple_of(BLOCK),
        }
    }
    false
}

/// What a file has at one place.
#[derive(Debug, PartialEq, Eq)]
enum Source<'e> {
    Zeros,
    Disk { bytenr: u64, shift: u64, generation: u64 },
    Inline { compression: Compression, bytes: &'e [u8] },
}

/// Walks a list of extents with its gaps.
struct Cursor<'e> {
    extents: &'e [Stored],
}

impl<'e> Cursor<'e> {
    /// Returns what is at `position`, and where that ends.
    fn at(&mut self, position: u64) -> (Source<'e>, u64) {
        while let [first, rest @ ..] = self.extents
            && first.end() <= position
        {
            self.extents = rest;
        }
        let Some(first) = self.extents.first() else { return (Source::Zeros, u64::MAX) };
        if first.at > position {
            return (Source::Zeros, first.at);
        }
        let source = match &first.what {
            What::Hole | What::Reserved => Source::Zeros,
            What::Disk { bytenr, shift } => {
                Source::Disk { bytenr: *bytenr, shift: *shift, generation: first.generation }
            }
            What::Inline { compression, bytes } => Source::Inline { compression: *compression, bytes },
        };
        (source, first.end())
    }
}

/// Returns the parts of the new file that may differ from the old one, in order and apart. None: the bytes are the same.
pub(super) fn differences(
    (old, old_size): (&[Stored], u64),
    (new, new_size): (&[Stored], u64),
) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut add = |range: Range<u64>| match ranges.last_mut() {
        Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
        _ => ranges.push(range),
    };
    let shared = old_size.min(new_size);
    let (mut old, mut new) = (Cursor { extents: old }, Cursor { extents: new });
    let mut position = 0;
    while position < shared {
        let ((before, before_end), (after, after_end)) = (old.at(position), new.at(position));
        let end = before_end.min(after_end).min(shared);
        if before != after {
            add(position..end);
        }
        position = end;
    }
    if old_size != new_size {
        // From the last byte that both have: whoever keeps sums of aligned parts has to redo the one that was cut.
        let from = shared.saturating_sub(1);
        add(from..new_size.max(from));
    }
    ranges
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "ranges are what is expected")]
mod tests {
    use super::*;

    const K: u64 = 4096;

    fn disk(at: u64, length: u64, bytenr: u64, offset: u64) -> Stored {
        Stored { at, length, generation: 7, what: What::Disk { bytenr, shift: offset.wrapping_sub(at) } }
    }

    fn hole(at: u64, length: u64) -> Stored {
        Stored { at, length, generation: 9, what: What::Hole }
    }

    fn small(bytes: &'static [u8]) -> Stored {
        let what = What::Inline { compression: Compression::None, bytes: Bytes::from_static(bytes) };
        Stored { at: 0, length: bytes.len() as u64, generation: 8, what }
    }

    #[test]
    fn lists_that_differ_only_in_form_hold_the_same_bytes() {
        let whole = [disk(0, 16 * K, 1 << 20, 0)];
        let split = [disk(0, 4 * K, 1 << 20, 0), disk(4 * K, 12 * K, 1 << 20, 4 * K)];
        assert!(differences((&whole, 16 * K), (&split, 16 * K)).is_empty());
        let with_hole = [disk(0, K, 1 << 20, 0), hole(K, K), disk(2 * K, K, 2 << 20, 0)];
        let without = [disk(0, K, 1 << 20, 0), disk(2 * K, K, 2 << 20, 0)];
        assert!(differences((&with_hole, 3 * K), (&without, 3 * K)).is_empty());
        let reserved = [Stored { at: 0, length: 4 * K, generation: 9, what: What::Reserved }];
        assert!(differences((&reserved, 4 * K), (&[], 4 * K)).is_empty());
        assert!(differences((&[small(b"abc")], 3), (&[small(b"abc")], 3)).is_empty());
        // Beyond the end nobody reads.
        assert!(differences((&whole, 10), (&[disk(0, K, 1 << 20, 0)], 10)).is_empty());
    }

    #[test]
    fn what_differs_is_named_and_no_more() {
        let old = [disk(0, 16 * K, 1 << 20, 0)];
        let overwritten =
            [disk(0, 4 * K, 1 << 20, 0), disk(4 * K, K, 5 << 20, 0), disk(5 * K, 11 * K, 1 << 20, 5 * K)];
        assert_eq!(differences((&old, 16 * K), (&overwritten, 16 * K)), vec![4 * K..5 * K]);
        let punched = [disk(0, 4 * K, 1 << 20, 0), disk(8 * K, 8 * K, 1 << 20, 8 * K)];
        assert_eq!(differences((&old, 16 * K), (&punched, 16 * K)), vec![4 * K..8 * K]);
        let shifted = [disk(0, 15 * K, 1 << 20, K)];
        assert_eq!(differences((&old, 15 * K), (&shifted, 15 * K)), vec![0..15 * K]);
        assert_eq!(differences((&old, 16 * K), (&old, 10 * K)), vec![10 * K - 1..10 * K]);
        assert_eq!(differences((&old, 16 * K), (&old, 20 * K)), vec![16 * K - 1..20 * K]);
        assert_eq!(differences((&old, 16 * K), (&[], 0)), vec![0..0]);
        assert_eq!(differences((&[], 0), (&old, 16 * K)), vec![0..16 * K]);
        assert_eq!(differences((&[small(b"abc")], 3), (&[small(b"abd")], 3)), vec![0..3]);
    }

    #[test]
    fn a_hole_is_found_wherever_it_is() {
        let full = [disk(0, K, 1 << 20, 0), disk(K, 3 * K, 2 << 20, 0)];
        assert!(!has_hole(&full, 4 * K) && !has_hole(&full, 4 * K - 7) && !has_hole(&[], 0));
        assert!(has_hole(&full, 4 * K + 1), "at the end");
        assert!(has_hole(&full[1..], 4 * K), "at the beginning");
        assert!(has_hole(&[full[0].clone(), hole(K, K), disk(2 * K, K, 2 << 20, 0)], 3 * K), "written down");
        assert!(!has_hole(&[small(b"abc")], 3) && !has_hole(&[small(b"abc")], K));
        assert!(has_hole(&[small(b"abc")], K + 1));
    }

    #[test]
    fn only_a_whole_plain_inline_extent_is_the_file() {
        assert_eq!(inline(&[small(b"abc")], 3).as_deref(), Some(&b"abc"[..]));
        assert_eq!(inline(&[small(b"abc")], 4), None);
        assert_eq!(inline(&[], 0), None);
        assert_eq!(inline(&[small(b"abc"), hole(K, K)], 3), None);
    }
}
