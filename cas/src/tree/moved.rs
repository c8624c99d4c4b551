//! Reading from packs that were evacuated: their addresses stay, their bytes are elsewhere.
//!
//! A range of a pack that is gone is put together from the frames that `moved/<pack>` finds, each at its old place;
//! between them are zeros, in which no frame begins. So nothing above this file knows that a pack moved.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use types::PackId;

use super::error::TreeError;
use super::fetch::Fetch;
use super::pack::PACK_MAX;
use crate::error::Error;
use crate::gc::Moved;
use crate::keys;
use crate::store;

/// How often frames may have moved on. The collector stops before; more is a circle that somebody made.
pub(crate) const MAX_HOPS: u32 = 16;

/// Frames in a new pack are fetched together if no more than this lies between them.
const GAP: u32 = 64 << 10;

/// A run of a new pack that is fetched at once, and what of it goes where.
struct Run<'a> {
    pack: &'a PackId,
    range: Range<u32>,
    /// Where it lies in the run, where it goes in the answer, and how long it is.
    pieces: Vec<(u32, usize, usize)>,
}

impl Fetch {
    /// Reads what is known of where a missing pack's frames went.
    pub(crate) async fn moved(&self, pack: &PackId) -> Result<Option<Arc<Moved>>, TreeError> {
        if let Some(moved) = self.cache.moved(pack) {
            return Ok(Some(moved));
        }
        let key = keys::moved(pack);
        let found = store::found::<Moved>(self.objects.get(&key).await);
        let found = found.and_then(|found| match found {
            None => Ok(None),
            Some(stored) => stored.value.check(&key).map(|()| Some(Arc::new(stored.value))),
        });
        match found {
            Ok(None) => Ok(None),
            Ok(Some(moved)) => {
                self.cache.keep_moved(&moved);
                Ok(Some(moved))
            }
            Err(Error::Object(error)) => Err(error.into()),
            Err(error) => Err(TreeError::DamagedPack { pack: pack.clone(), reason: error.to_string() }),
        }
    }

    /// Reads bytes of a pack, wherever they are now.
    pub(super) fn follow<'a>(
        &'a self,
        pack: &'a PackId,
        range: Range<u64>,
        hops: u32,
    ) -> BoxFuture<'a, Result<Bytes, TreeError>> {
        Box::pin(async move {
            let missing = || TreeError::MissingPack { pack: pack.clone() };
            let moved = match self.cache.moved(pack) {
                Some(moved) => moved,
                None => match self.direct(pack, range.clone()).await {
                    Err(TreeError::MissingPack { .. }) => self.moved(pack).await?.ok_or_else(missing)?,
                    read => return read,
                },
            };
            if hops >= MAX_HOPS {
                let reason = format!("its frames moved more than {MAX_HOPS} times: the way goes in a circle");
                return Err(TreeError::DamagedPack { pack: pack.clone(), reason });
            }
            let runs = runs(&moved, &range);
            let len = usize::try_from(range.end.saturating_sub(range.start)).ok();
            let Some(len) = len.filter(|len| *len <= PACK_MAX && !runs.is_empty()) else {
                return Err(missing());
            };
            // One frame, which is what is asked for most, needs no copy.
            if let [Run { pack: to, range: from, pieces }] = runs.as_slice()
                && let [(0, 0, only)] = pieces.as_slice()
                && *only == len
            {
                return self.follow(to, u64::from(from.start)..u64::from(from.end), hops + 1).await;
            }
            let mut out = BytesMut::zeroed(len);
            for run in &runs {
                let from = u64::from(run.range.start)..u64::from(run.range.end);
                let bytes = self.follow(run.pack, from, hops + 1).await?;
                for (at, to, len) in &run.pieces {
                    let at = *at as usize;
                    out[*to..*to + *len].copy_from_slice(&bytes[at..at + *len]);
                }
            }
            Ok(out.freeze())
        })
    }
}

/// The frames that lie whole in a range of the old pack, as runs of the new ones.
fn runs<'a>(moved: &'a Moved, range: &Range<u64>) -> Vec<Run<'a>> {
    let mut runs: Vec<Run<'a>> = Vec::new();
    for (pack, moves) in &moved.to {
        let first = moves.partition_point(|moved| u64::from(moved.old) < range.start);
        for moved in &moves[first..] {
            if u64::from(moved.old) + u64::from(moved.len) > range.end {
                break;
            }
            let to = usize::try_from(u64::from(moved.old) - range.start).expect("a place in a pack");
            let end = moved.new + moved.len;
            match runs.last_mut() {
                Some(run)
                    if *run.pack == *pack
                        && moved.new >= run.range.end
                        && moved.new - run.range.end <= GAP =>
                {
                    run.pieces.push((moved.new - run.range.start, to, moved.len as usize));
                    run.range.end = end;
                }
                _ => {
                    let pieces = vec![(0, to, moved.len as usize)];
                    runs.push(Run { pack, range: moved.new..end, pieces });
                }
            }
        }
    }
    runs
}
