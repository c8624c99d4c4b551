//! The map of a large file: BLAKE3 chaining values and places of its cells, so that a changed cell costs one cell.
//!
//! A file is cut at multiples of the cell size. 256 cells make a page; pages of a file with more than one are named by
//! a root page. Cells and pages are perfect subtrees of BLAKE3 (all but the last), so their chaining values fold into
//! the hash of the whole file. A file of one cell has no map: its chaining value would not be its hash.

use blake3::Hasher;
use blake3::hazmat::{HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};
use types::ContentId;

use super::codec::{Malformed, Put as _, Take};
use super::location::{Extent, FrameTable, Location, resolve, resolve_extent};
use super::stored::At;

/// A chaining value of BLAKE3.
pub(crate) type Chaining = [u8; 32];

/// How many cells a page has.
pub(crate) const PAGE_CELLS: u64 = 256;
/// The cells of files that are read for the first time: 128 KiB.
pub(crate) const CELL_LOG2_DEFAULT: u8 = 17;
/// The cells of files that are updated in place: 32 KiB.
pub(crate) const CELL_LOG2_FINE: u8 = 15;
/// How many cells go into one frame, at most.
pub(crate) const FRAME_CELLS: u64 = 8;

const CELLS_MAGIC: &[u8; 4] = b"OSc1";
const PAGES_MAGIC: &[u8; 4] = b"OSp1";

/// Where a cell lies; `None`: it is all zeros and not stored.
pub(crate) type CellPlace = Option<(Location, u32)>;

/// One cell of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) chaining: Chaining,
    pub(crate) place: CellPlace,
}

/// Where a page lies; `None`: all of its cells are zeros, and it is not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PageRef<T> {
    pub(crate) chaining: Chaining,
    pub(crate) place: Option<T>,
}

/// Counts the pieces of `size` bytes that are `1 << log2` long.
pub(crate) fn pieces(size: u64, log2: u32) -> u64 {
    size.div_ceil(1 << log2)
}

/// Bytes that one page covers, as a power of two.
pub(crate) fn page_log2(cell_log2: u8) -> u32 {
    u32::from(cell_log2) + PAGE_CELLS.trailing_zeros()
}

/// Returns the chaining value of the cell that begins at `offset` of its file.
pub(crate) fn chaining(offset: u64, bytes: &[u8]) -> Chaining {
    Hasher::new().set_input_offset(offset).update(bytes).finalize_non_root()
}

/// Folds the chaining values of neighbours, the first of which begins at a multiple of their number's next power of
/// two, into one.
pub(crate) fn fold(values: &[Chaining]) -> Option<Chaining> {
    match values {
        [] => None,
        [only] => Some(*only),
        several => {
            let left = several.len().next_power_of_two() / 2;
            let (left, right) = several.split_at(left);
            Some(merge_subtrees_non_root(&fold(left)?, &fold(right)?, Mode::Hash))
        }
    }
}

/// Folds the chaining values of a whole file, at least two, into its hash.
pub(crate) fn root_hash(values: &[Chaining]) -> Option<ContentId> {
    if values.len() < 2 {
        return None;
    }
    let (left, right) = values.split_at(values.len().next_power_of_two() / 2);
    Some(ContentId(*merge_subtrees_root(&fold(left)?, &fold(right)?, Mode::Hash).as_bytes()))
}

/// Writes a page of cells.
pub(crate) fn encode_cells(cells: &[Cell]) -> Vec<u8> {
    let mut table = FrameTable::default();
    let mut body = Vec::with_capacity(cells.len() * 36);
    for cell in cells {
        body.extend_from_slice(&cell.chaining);
        match &cell.place {
            // No frame of cells is the page's own, so 0 is free to say that there is none.
            None => body.put_varint(0),
            Some((frame, offset)) => {
                body.put_varint(table.number(frame));
                body.put_varint(u64::from(*offset));
            }
        }
    }
    let mut out = CELLS_MAGIC.to_vec();
    table.put(&mut out, &[]);
    out.extend_from_slice(&body);
    out
}

/// Reads a page of cells: those of `size` bytes.
pub(crate) fn decode_cells(bytes: &[u8], size: u64, cell_log2: u8) -> Result<Vec<Cell>, Malformed> {
    let mut take = Take::new(bytes);
    if &take.array::<4>()? != CELLS_MAGIC {
        return take.fail("it is not a page of cells of this format");
    }
    let frames = FrameTable::take(&mut take, Vec::new())?;
    let count = pieces(size, u32::from(cell_log2)).min(PAGE_CELLS);
    let mut cells = Vec::new();
    for number in 0..count {
        let chaining = take.array()?;
        let frame = take.varint()?;
        let place = if frame == 0 {
            None
        } else {
            let offset = take.varint_u32()?;
            let frame = resolve(&take, &frames, None, frame)?;
            let len = (size - (number << cell_log2)).min(1 << cell_log2);
            if u64::from(offset) + len > u64::from(frame.raw_len) {
                return take.fail("a cell goes past its frame");
            }
            Some((frame.clone(), offset))
        };
        cells.push(Cell { chaining, place });
    }
    take.end()?;
    Ok(cells)
}

/// Writes the page of pages.
pub(crate) fn encode_pages(pages: &[PageRef<At>]) -> Vec<u8> {
    let mut table = FrameTable::default();
    let mut body = Vec::with_capacity(pages.len() * 40);
    for page in pages {
        body.extend_from_slice(&page.chaining);
        match &page.place {
            None => body.push(0),
            Some(at) => {
                body.push(1);
                let (number, offset, len) = match at {
                    At::Here { offset, len } => (0, *offset, *len),
                    At::There(extent) => (table.numbers(extent), extent.offset, extent.len),
                };
                body.put_varint(number);
                body.put_varint(u64::from(offset));
                body.put_varint(len);
            }
        }
    }
    let mut out = PAGES_MAGIC.to_vec();
    table.put(&mut out, &[]);
    out.extend_from_slice(&body);
    out
}

/// Reads the page of pages of a file of `size` bytes, which lies in the frame `own` where that is one.
pub(crate) fn decode_pages(
    bytes: &[u8],
    size: u64,
    cell_log2: u8,
    own: Option<&Location>,
) -> Result<Vec<PageRef<Extent>>, Malformed> {
    let mut take = Take::new(bytes);
    if &take.array::<4>()? != PAGES_MAGIC {
        return take.fail("it is not a page of pages of this format");
    }
    let frames = FrameTable::take(&mut take, Vec::new())?;
    let mut pages = Vec::new();
    for _ in 0..pieces(size, page_log2(cell_log2)) {
        let chaining = take.array()?;
        let place = match take.u8()? {
            0 => None,
            1 => {
                let number = take.varint()?;
                let offset = take.varint_u32()?;
                let len = take.varint()?;
                Some(resolve_extent(&take, &frames, own, number, offset, len)?)
            }
            _ => return take.fail("a page is neither there nor zeros"),
        };
        pages.push(PageRef { chaining, place });
    }
    take.end()?;
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cells_fold_into_the_hash_of_the_file() {
        let cell = 1 << 12;
        let bytes: Vec<u8> = (0..cell * 9 + 77).map(|n: usize| u8::try_from(n * 7 % 251).unwrap()).collect();
        for cells in 1..=9 {
            for len in [
                cells * cell + 1,
                cells * cell + 1023,
                cells * cell + 1024,
                (cells + 1) * cell - 1,
                (cells + 1) * cell,
            ] {
                let bytes = &bytes[..len.min(bytes.len())];
                let values: Vec<Chaining> = bytes
                    .chunks(cell)
                    .enumerate()
                    .map(|(number, bytes)| chaining(u64::try_from(number * cell).unwrap(), bytes))
                    .collect();
                assert_eq!(root_hash(&values).unwrap().as_bytes(), blake3::hash(bytes).as_bytes(), "{len}");
            }
        }
    }

    #[test]
    fn the_pages_of_128_kib_cells_fold_into_the_hash_of_the_file() {
        let cell = 1usize << 17;
        let page = cell * 256;
        let bytes = vec![0x5a; 2 * page + cell + 1];
        for len in
            [page - 1, page, page + 1, page + cell, 2 * page - 1, 2 * page, 2 * page + 1, 2 * page + cell + 1]
        {
            let bytes = &bytes[..len];
            let cells: Vec<Chaining> = bytes
                .chunks(cell)
                .enumerate()
                .map(|(number, bytes)| chaining(u64::try_from(number * cell).unwrap(), bytes))
                .collect();
            let expected = blake3::hash(bytes);
            assert_eq!(root_hash(&cells).unwrap().as_bytes(), expected.as_bytes(), "{len}");
            let pages: Vec<Chaining> = cells.chunks(256).map(|cells| fold(cells).unwrap()).collect();
            if pages.len() > 1 {
                assert_eq!(root_hash(&pages).unwrap().as_bytes(), expected.as_bytes(), "{len}");
            }
        }
    }
}
