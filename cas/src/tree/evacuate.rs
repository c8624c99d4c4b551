//! Copying frames of sparse packs into new ones. Frames are copied as they are stored, after each was proved.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use types::{Domain, PackId};

use super::codec::Take;
use super::error::TreeError;
use super::frame::{Decompressor, Frame, FrameHeader, HEADER_LEN};
use super::living::Frames;
use super::location::Location;
use super::pack::PackBuilder;
use super::read::Reader;
use crate::blocking;
use crate::gc::{Move, Moves};

/// Frames are fetched together if no more than this lies between them.
const GAP: u64 = 256 << 10;

/// New packs are closed at this length.
const PACK_TARGET: usize = 16 << 20;

/// Proving or hashing so many bytes takes less than handing them to another thread.
const AT_ONCE: usize = 32 << 10;

/// A new pack, ready to be put.
pub(crate) type Full = (PackId, Bytes);

/// New packs that are being filled, one a domain: bytes of two domains never share one.
#[derive(Debug)]
pub(crate) struct Evacuator<N> {
    name: N,
    open: BTreeMap<Domain, (PackId, PackBuilder)>,
    /// By evacuated pack, where its frames went.
    pub(crate) moves: BTreeMap<PackId, Moves>,
}

impl<N: FnMut(&Domain) -> PackId> Evacuator<N> {
    /// `name` names a new pack.
    pub(crate) fn new(name: N) -> Self {
        Self { name, open: BTreeMap::new(), moves: BTreeMap::new() }
    }

    /// Copies `frames` of `pack`; returns the new packs that became full. After an error nothing of the pack counts as
    /// copied.
    pub(crate) async fn copy(
        &mut self,
        reader: &Reader,
        pack: &PackId,
        frames: &Frames,
    ) -> Result<Vec<Full>, TreeError> {
        let mut copies = Vec::with_capacity(frames.len());
        for (range, run) in runs(frames) {
            let bytes = reader.fetch.direct(pack, range.clone()).await?;
            let (pack, run) = (pack.clone(), run.clone());
            let len = bytes.len();
            let proved = compute(len, move || prove(&pack, range.start, &bytes, &run)).await?;
            copies.extend(proved);
        }
        let mut full = Vec::new();
        let mut moves = Moves::new();
        for (old, frame) in copies {
            let len = frame.header.stored_len();
            let closed = match self.open.get(&pack.domain) {
                Some((_, builder)) if builder.len_with(len as usize) > PACK_TARGET => {
                    self.open.remove(&pack.domain)
                }
                Some(_) | None => None,
            };
            if let Some((id, builder)) = closed {
                full.push((id, finish(builder).await));
            }
            let name = &mut self.name;
            let (id, builder) = self
                .open
                .entry(pack.domain.clone())
                .or_insert_with(|| (name(&pack.domain), PackBuilder::new(1 << 20)));
            let new = builder.push(&frame);
            moves.entry(id.clone()).or_default().push(Move { old, new, len });
        }
        self.moves.insert(pack.clone(), moves);
        Ok(full)
    }

    /// Returns the packs that are not full, and where everything went.
    pub(crate) async fn finish(self) -> (Vec<Full>, BTreeMap<PackId, Moves>) {
        let mut full = Vec::new();
        for (id, builder) in self.open.into_values() {
            full.push((id, finish(builder).await));
        }
        (full, self.moves)
    }
}

/// Frames that are fetched together: the range, and offset and length of each.
type Run = (Range<u64>, Vec<(u32, u32)>);

/// Computes on another thread what takes long, and here what is over at once.
async fn compute<T: Send + 'static>(len: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if len <= AT_ONCE { work() } else { blocking::run(work).await }
}

async fn finish(builder: PackBuilder) -> Bytes {
    let len = usize::try_from(builder.final_len()).expect("a pack is shorter than PACK_MAX");
    compute(len, move || builder.finish()).await
}

fn runs(frames: &Frames) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (offset, len) in frames {
        let (start, end) = (u64::from(*offset), u64::from(*offset) + u64::from(*len));
        match runs.last_mut() {
            Some((range, run)) if start <= range.end + GAP => {
                range.end = range.end.max(end);
                run.push((*offset, *len));
            }
            _ => runs.push((start..end, vec![(*offset, *len)])),
        }
    }
    runs
}

/// Cuts frames out of the bytes from `start` on, and proves each.
fn prove(
    pack: &PackId,
    start: u64,
    bytes: &Bytes,
    run: &[(u32, u32)],
) -> Result<Vec<(u32, Frame)>, TreeError> {
    let mut decompressor = Decompressor::default();
    let mut frames = Vec::with_capacity(run.len());
    for (offset, len) in run {
        let at = usize::try_from(u64::from(*offset) - start).expect("a place in a pack");
        let location = |raw_len| Location {
            pack: std::sync::Arc::new(pack.clone()),
            offset: *offset,
            stored_len: *len,
            raw_len,
        };
        let bad = |source| TreeError::Damaged { location: location(0), source };
        let mut take = Take::new(&bytes[at..at + *len as usize]);
        let header = FrameHeader::take(&mut take).map_err(bad)?;
        let stored = &bytes[at..at + *len as usize];
        decompressor.open(&location(header.raw_len), stored).map_err(bad)?;
        frames.push((*offset, Frame { header, payload: stored[HEADER_LEN..].to_vec() }));
    }
    Ok(frames)
}
