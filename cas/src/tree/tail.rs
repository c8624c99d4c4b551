//! The end of a version's own pack: with the manifest come the tree frames before it. The root is among them and mostly
//! the directories near it, so that a cold read of one file is this, its directory and its bytes.

use std::sync::Arc;

use bytes::Bytes;
use types::PackId;

use super::fetch::{Fetch, open};
use super::frame::FrameKind;
use super::location::Location;
use super::pack::{PackedFrame, scan};

impl Fetch {
    /// Keeps the tree frames in a part of a pack that begins at `start`, anywhere. One that is damaged is found when it is
    /// asked for.
    pub(super) fn keep_tail(&self, pack: &Arc<PackId>, start: u64, bytes: &Bytes) {
        for PackedFrame { offset, header } in scan(bytes) {
            let (at, stored_len) = (offset as usize, header.stored_len());
            let Ok(offset) = u32::try_from(start + u64::from(offset)) else { break };
            let frame = Location { pack: Arc::clone(pack), offset, stored_len, raw_len: header.raw_len };
            if header.kind == FrameKind::Tree
                && let Ok(raw) = open(&frame, &bytes.slice(at..at + stored_len as usize), FrameKind::Tree)
            {
                self.cache.keep_frame(&frame, &raw);
            }
        }
    }
}
