//! Making the map of a large file from its cells, a page at a time.

use super::build::{Builder, Built};
use super::frames::{BuildUses, TreeRef};
use crate::tree::error::TreeError;
use crate::tree::filemap::{self, Cell, PAGE_CELLS, PageRef};
use crate::tree::node::{Item, Metadata};
use crate::tree::stored::At;

/// A large file that is not finished.
#[derive(Debug)]
pub(super) struct OpenLarge {
    pub(super) name: Vec<u8>,
    pub(super) linked: bool,
    pub(super) sparse: bool,
    pub(super) meta: Metadata,
    pub(super) size: u64,
    pub(super) cell_log2: u8,
    pub(super) uses: BuildUses,
    pub(super) cells: Vec<Cell>,
    pub(super) pages: Vec<PageRef<TreeRef>>,
    /// The chaining values of a file of one page, which its root is folded from.
    pub(super) only: Vec<filemap::Chaining>,
}

impl Builder<'_> {
    pub(super) fn cell(&mut self, cell: Cell) -> Result<(), TreeError> {
        let large = self.large.as_mut().expect("cells come within a large file");
        if let Some((frame, _)) = &cell.place {
            let number = large.pages.len() as u64 * PAGE_CELLS + large.cells.len() as u64;
            let left = large.size.saturating_sub(number << large.cell_log2);
            large.uses.count_data(frame, left.min(1 << large.cell_log2));
        }
        large.cells.push(cell);
        if large.cells.len() as u64 == PAGE_CELLS { self.page() } else { Ok(()) }
    }

    /// Writes the page of the cells so far.
    fn page(&mut self) -> Result<(), TreeError> {
        let large = self.large.as_mut().expect("pages come within a large file");
        let cells = std::mem::take(&mut large.cells);
        let values: Vec<filemap::Chaining> = cells.iter().map(|cell| cell.chaining).collect();
        let Some(chaining) = filemap::fold(&values) else { return Ok(()) };
        if large.pages.is_empty() {
            large.only = values;
        }
        let pages = filemap::pieces(large.size, filemap::page_log2(large.cell_log2));
        let zeros = cells.iter().all(|cell| cell.place.is_none());
        let place = if zeros && pages > 1 {
            None
        } else {
            let bytes = filemap::encode_cells(&cells);
            self.frames.prepare(bytes.len())?;
            let tree = self.frames.append(&bytes)?;
            large.uses.count(&tree);
            Some(tree)
        };
        large.pages.push(PageRef { chaining, place });
        Ok(())
    }

    pub(super) fn large_end(&mut self) -> Result<(), TreeError> {
        self.page()?;
        let mut large = self.large.take().expect("a large file ends after it began");
        let (root, content) = match large.pages.as_slice() {
            [PageRef { place: Some(only), .. }] => (only.clone(), filemap::root_hash(&large.only)),
            pages => {
                let values: Vec<filemap::Chaining> = pages.iter().map(|page| page.chaining).collect();
                let len = pages.len() * 48;
                self.frames.prepare(len)?;
                let pages: Vec<PageRef<At>> = pages
                    .iter()
                    .map(|page| PageRef {
                        chaining: page.chaining,
                        place: page.place.as_ref().map(|place| self.frames.at(place)),
                    })
                    .collect();
                let root = self.frames.append(&filemap::encode_pages(&pages))?;
                large.uses.count(&root);
                (root, filemap::root_hash(&values))
            }
        };
        let content = content.ok_or(TreeError::Unsupported {
            path: large.name.clone(),
            reason: "a map of fewer than two cells",
        })?;
        let built = Built::Map { cell_log2: large.cell_log2, root, uses: large.uses };
        let item = Item::File { meta: large.meta, size: large.size, content };
        self.files_changed += 1;
        self.add(large.name, item, large.linked, large.sparse, built);
        Ok(())
    }
}
