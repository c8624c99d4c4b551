//! A large file that changed: the cells that were named are read, the others are taken over.

use std::ops::Range;
use std::sync::Arc;

use super::batch::{Event, PieceJob};
use super::increment::Increment;
use super::past::BaseFile;
use super::scan::{Listed, large_facts};
use crate::tree::error::TreeError;
use crate::tree::filemap::{self, CELL_LOG2_DEFAULT, CELL_LOG2_FINE, Cell, FRAME_CELLS, PageRef};
use crate::tree::location::{Extent, PackUse};
use crate::tree::stored::{MapPlace, Uses};

impl Increment<'_> {
    /// Takes a large file cell by cell: those in `ranges`, and where its length changed.
    pub(super) fn large(
        &mut self,
        dir: &Arc<[u8]>,
        listed: Listed,
        linked: bool,
        base: &BaseFile,
        map: &MapPlace<Extent>,
        ranges: &[Range<u64>],
    ) -> Result<(), TreeError> {
        let (size, cell_log2) = (listed.facts.size, map.cell_log2);
        let page_log2 = filemap::page_log2(cell_log2);
        let old_pages = self.past.runtime.block_on(self.past.fetch.pages(map, base.size, base.content))?;
        if cell_log2 == CELL_LOG2_DEFAULT && self.is_updated_in_place(base, map, &old_pages, ranges)? {
            return self.finer(dir, listed, linked, base, map, &old_pages);
        }
        let Listed { name, facts, .. } = listed;
        // A range is changed if something in it is named, or if it does not end where it did.
        let changed = |start: u64, log2: u32| {
            let end = (start + (1 << log2)).min(size);
            end != (start + (1 << log2)).min(base.size)
                || ranges.iter().any(|range| range.start < end && range.end > start)
        };
        let (facts, meta, sparse) = large_facts(self.scanner.root, dir, &name, facts, false)?;
        let mut uses = Uses::new();
        for (pack, used) in &map.uses {
            if let Some(pack) = pack {
                uses.entry(Arc::clone(pack)).or_default().add(*used);
            }
        }
        let mut without = |extent: &Extent| subtract(&mut uses, &extent.uses());
        if old_pages.len() > 1 {
            without(&map.root);
        }
        let emptied = self.emptied.clone();
        let again = emptied.touch(&uses);
        // What the pages that stay use is in the sums already; the others are counted again, cell by cell.
        let mut pages = Vec::new();
        for number in 0..filemap::pieces(base.size, page_log2).max(filemap::pieces(size, page_log2)) {
            let start = number << page_log2;
            let index = usize::try_from(number).expect("as many pages as are in memory");
            let old = old_pages.get(index);
            if let Some(old) = old
                && old_pages.len() > 1
                && filemap::pieces(size, page_log2) > 1
                && start < size
                && !again
                && !changed(start, page_log2)
            {
                pages.push((start, Err(old.clone())));
                continue;
            }
            let mut cells = Vec::new();
            if let Some(old) = old {
                if let Some(place) = &old.place {
                    subtract(&mut uses, &place.uses());
                }
                cells = self.old_cells(map, base, &old_pages, index)?;
                for (number, cell) in (0u64..).zip(&cells) {
                    if let Some((frame, _)) = &cell.place {
                        let at = start + (number << cell_log2);
                        let bytes = base.size.saturating_sub(at).min(1 << cell_log2);
                        let used = PackUse { references: 1, bytes };
                        subtract(&mut uses, &Uses::from([(Arc::clone(&frame.pack), used)]));
                    }
                }
            }
            if start < size {
                pages.push((start, Ok(cells)));
            }
        }
        self.scanner.cutter.event(Event::Large {
            name: name.clone(),
            linked,
            sparse,
            meta,
            size,
            cell_log2,
            uses,
        })?;
        for (start, page) in pages {
            match page {
                Err(page) => self.scanner.cutter.event(Event::Page(page))?,
                Ok(cells) => {
                    let job = PieceJob {
                        dir: Arc::clone(dir),
                        name: name.clone(),
                        facts,
                        cell_log2,
                        offset: start,
                        len: 0,
                        old: Vec::new(),
                        old_log2: cell_log2,
                        done: Vec::new(),
                    };
                    self.page(&job, cells, &changed)?;
                }
            }
        }
        self.scanner.cutter.event(Event::LargeEnd)
    }

    /// Tells if a part of a large file changes now that changed before: then it lies in a frame with fewer cells than a
    /// file's first frames have. Frames may be short for other reasons, too, which costs no more than smaller cells.
    fn is_updated_in_place(
        &self,
        base: &BaseFile,
        map: &MapPlace<Extent>,
        pages: &[PageRef<Extent>],
        ranges: &[Range<u64>],
    ) -> Result<bool, TreeError> {
        let page_log2 = filemap::page_log2(map.cell_log2);
        let group = FRAME_CELLS << map.cell_log2;
        let within = |range: &&Range<u64>| range.start < base.size && **range != (0..base.size);
        for (number, page) in (0u64..).zip(pages) {
            let start = number << page_log2;
            let end = (start + (1 << page_log2)).min(base.size);
            let mut here =
                ranges.iter().filter(within).filter(|range| range.start < end && range.end > start);
            if page.place.is_none() || here.next().is_none() {
                continue;
            }
            let index = usize::try_from(number).expect("as many pages as are in memory");
            let cells = self.past.runtime.block_on(self.past.fetch.cells(
                map,
                base.size,
                base.content,
                pages,
                index,
            ))?;
            for (cell_number, cell) in (0u64..).zip(&cells) {
                let at = start + (cell_number << map.cell_log2);
                let touched =
                    ranges.iter().any(|range| range.start < at + (1 << map.cell_log2) && range.end > at);
                let whole = (at / group * group + group).min(base.size) - at / group * group;
                if touched && cell.place.as_ref().is_some_and(|(frame, _)| u64::from(frame.raw_len) < whole) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Cuts a large file into smaller cells from now on. All of it is read once; what did not change is not stored again.
    fn finer(
        &mut self,
        dir: &Arc<[u8]>,
        listed: Listed,
        linked: bool,
        base: &BaseFile,
        map: &MapPlace<Extent>,
        old_pages: &[PageRef<Extent>],
    ) -> Result<(), TreeError> {
        let Listed { name, facts, .. } = listed;
        let (facts, meta, sparse) = large_facts(self.scanner.root, dir, &name, facts, false)?;
        let (size, cell_log2, uses) = (facts.size, CELL_LOG2_FINE, Uses::new());
        self.scanner.cutter.event(Event::Large {
            name: name.clone(),
            linked,
            sparse,
            meta,
            size,
            cell_log2,
            uses,
        })?;
        let (step, page_log2) = (FRAME_CELLS << map.cell_log2, filemap::page_log2(map.cell_log2));
        for number in 0..filemap::pieces(size, page_log2) {
            let index = usize::try_from(number).expect("as many pages as are in memory");
            let old = if index < old_pages.len() {
                self.old_cells(map, base, old_pages, index)?
            } else {
                Vec::new()
            };
            let mut old = old.into_iter();
            let end = ((number + 1) << page_log2).min(size);
            for offset in (number << page_log2..end).step_by(usize::try_from(step).expect("a mebibyte")) {
                let cells = usize::try_from(FRAME_CELLS).expect("a few");
                self.scanner.cutter.piece(PieceJob {
                    dir: Arc::clone(dir),
                    name: name.clone(),
                    facts,
                    cell_log2,
                    offset,
                    len: step.min(end - offset),
                    old: old.by_ref().take(cells).map(|cell| self.emptied.without(cell)).collect(),
                    old_log2: map.cell_log2,
                    done: Vec::new(),
                })?;
            }
        }
        self.scanner.cutter.event(Event::LargeEnd)
    }

    /// The cells of an old page, with their true chaining values also where they are zeros.
    fn old_cells(
        &self,
        map: &MapPlace<Extent>,
        base: &BaseFile,
        pages: &[PageRef<Extent>],
        number: usize,
    ) -> Result<Vec<Cell>, TreeError> {
        let (past, size) = (&self.past, base.size);
        let mut cells = past.runtime.block_on(past.fetch.cells(map, size, base.content, pages, number))?;
        if pages[number].place.is_none() {
            let zeros = vec![0; 1 << map.cell_log2];
            let start = (number as u64) << filemap::page_log2(map.cell_log2);
            for (cell_number, cell) in (0u64..).zip(&mut cells) {
                let offset = start + (cell_number << map.cell_log2);
                let len = usize::try_from((size - offset).min(1 << map.cell_log2)).expect("a cell is short");
                cell.chaining = filemap::chaining(offset, &zeros[..len]);
            }
        }
        Ok(cells)
    }

    /// Tells the cells of one page: runs of old ones, and pieces to read.
    fn page(
        &mut self,
        job: &PieceJob,
        cells: Vec<Cell>,
        changed: &impl Fn(u64, u32) -> bool,
    ) -> Result<(), TreeError> {
        let (size, cell_log2) = (job.facts.size, u32::from(job.cell_log2));
        let end = (job.offset + (1 << filemap::page_log2(job.cell_log2))).min(size);
        let mut old = cells.into_iter().map(Some);
        let mut kept: Vec<Cell> = Vec::new();
        let mut piece: Option<PieceJob> = None;
        let mut offset = job.offset;
        while offset < end {
            let len = (end - offset).min(1 << cell_log2);
            let cell = old.next().flatten();
            match cell {
                Some(cell) if !changed(offset, cell_log2) && !self.emptied.touch_cell(&cell) => {
                    if let Some(piece) = piece.take() {
                        self.scanner.cutter.piece(piece)?;
                    }
                    kept.push(cell);
                }
                cell => {
                    if !kept.is_empty() {
                        self.scanner.cutter.event(Event::Cells(std::mem::take(&mut kept)))?;
                    }
                    let piece_now = piece.get_or_insert_with(|| PieceJob {
                        dir: Arc::clone(&job.dir),
                        name: job.name.clone(),
                        facts: job.facts,
                        cell_log2: job.cell_log2,
                        offset,
                        len: 0,
                        old: Vec::new(),
                        old_log2: job.cell_log2,
                        done: Vec::new(),
                    });
                    piece_now.len += len;
                    piece_now.old.extend(cell.map(|cell| self.emptied.without(cell)));
                    if piece_now.len >= FRAME_CELLS << cell_log2
                        && let Some(piece) = piece.take()
                    {
                        self.scanner.cutter.piece(piece)?;
                    }
                }
            }
            offset += len;
        }
        if let Some(piece) = piece {
            self.scanner.cutter.piece(piece)?;
        }
        if kept.is_empty() { Ok(()) } else { self.scanner.cutter.event(Event::Cells(kept)) }
    }
}

fn subtract(uses: &mut Uses, other: &Uses) {
    for (pack, used) in other {
        if let Some(mine) = uses.get_mut(pack) {
            mine.subtract(*used);
            if mine.references == 0 {
                uses.remove(pack);
            }
        }
    }
}
