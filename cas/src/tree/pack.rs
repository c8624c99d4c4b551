//! A pack: frames one after the other, then a footer that lists them. Immutable, and its name is never used again.
//!
//! The footer lists every frame and has a hash over all bytes before it, so any flipped bit of a pack is found. A pack
//! whose footer is lost is listed again from its frames' own headers.

use bytes::Bytes;
use types::Hash;

use super::codec::{Malformed, Take};
use super::frame::{FRAME_MAGIC, Frame, FrameHeader, HEADER_LEN};

/// The bytes that every pack begins with.
pub const PACK_MAGIC: &[u8; 8] = b"OSpack1\n";
/// The bytes that every pack ends with.
pub const PACK_END: &[u8; 8] = b"OSpend1\n";
/// The most bytes that a pack may have.
pub const PACK_MAX: usize = 64 << 20;
/// At the end of a pack: the footer's length (4), its BLAKE3 (32), and the last magic (8).
pub(crate) const TRAILER_LEN: usize = 44;
/// A line of the footer: offset (4) and the frame's header without its magic (52).
const LINE_LEN: usize = 4 + HEADER_LEN - FRAME_MAGIC.len();

/// A frame in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedFrame {
    /// Where its header begins.
    pub offset: u32,
    /// What its header says.
    pub header: FrameHeader,
}

/// A pack that is being filled.
#[derive(Debug)]
pub(crate) struct PackBuilder {
    bytes: Vec<u8>,
    frames: Vec<PackedFrame>,
}

impl PackBuilder {
    pub(crate) fn new(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity.min(PACK_MAX));
        bytes.extend_from_slice(PACK_MAGIC);
        Self { bytes, frames: Vec::new() }
    }

    /// How long the pack would be with its footer, and one more frame of `stored` bytes.
    pub(crate) fn len_with(&self, stored: usize) -> usize {
        self.bytes.len() + stored + 36 + (self.frames.len() + 1) * LINE_LEN + TRAILER_LEN
    }

    /// Tells if it has no frame.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// How long the pack is when it is finished.
    pub(crate) fn final_len(&self) -> u64 {
        (self.bytes.len() + 36 + self.frames.len() * LINE_LEN + TRAILER_LEN) as u64
    }

    /// Appends a frame; returns where it begins.
    pub(crate) fn push(&mut self, frame: &Frame) -> u32 {
        let offset = u32::try_from(self.bytes.len()).expect("a pack is shorter than PACK_MAX");
        self.bytes.extend_from_slice(&frame.header.encode());
        self.bytes.extend_from_slice(&frame.payload);
        self.frames.push(PackedFrame { offset, header: frame.header });
        offset
    }

    /// Appends the footer. Hashes all of the pack: not under a lock.
    pub(crate) fn finish(mut self) -> Bytes {
        let body = blake3::hash(&self.bytes);
        let mut footer = Vec::with_capacity(36 + self.frames.len() * LINE_LEN);
        footer.extend_from_slice(body.as_bytes());
        let count = u32::try_from(self.frames.len()).expect("a pack is shorter than PACK_MAX");
        footer.extend_from_slice(&count.to_le_bytes());
        for frame in &self.frames {
            footer.extend_from_slice(&frame.offset.to_le_bytes());
            footer.extend_from_slice(&frame.header.encode()[FRAME_MAGIC.len()..]);
        }
        let len = u32::try_from(footer.len()).expect("a pack is shorter than PACK_MAX");
        self.bytes.extend_from_slice(&footer);
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(blake3::hash(&footer).as_bytes());
        self.bytes.extend_from_slice(PACK_END);
        Bytes::from(self.bytes)
    }
}

/// What a pack's footer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// BLAKE3 of all bytes before the footer.
    pub body: Hash,
    /// Where the footer begins.
    pub offset: u64,
    /// The frames, in order, without a gap.
    pub frames: Vec<PackedFrame>,
}

impl Footer {
    /// Reads the footer of a pack from its last bytes, `tail`, out of `pack_len`. If `tail` is too short, the error says
    /// how many bytes it takes.
    pub fn read(tail: &[u8], pack_len: u64) -> Result<Self, FooterError> {
        let bad = |reason| FooterError::Malformed(Malformed { at: 0, reason });
        let Some(split) = tail.len().checked_sub(TRAILER_LEN) else {
            return Err(bad("a pack is shorter than its trailer"));
        };
        let mut take = Take::new(&tail[split..]);
        let len = take.u32()?;
        let hash: [u8; 32] = take.array()?;
        if &take.array::<8>()? != PACK_END {
            return Err(bad("a pack does not end like one: it was cut or is not ours"));
        }
        let len = usize::try_from(len).map_err(|_| bad("a footer is too long"))?;
        if len > PACK_MAX || (len + TRAILER_LEN + PACK_MAGIC.len()) as u64 > pack_len {
            return Err(bad("a footer is longer than its pack"));
        }
        let Some(start) = split.checked_sub(len) else { return Err(FooterError::Short(len + TRAILER_LEN)) };
        let footer = &tail[start..split];
        if blake3::hash(footer).as_bytes() != &hash {
            return Err(bad("a footer does not hold what its hash says"));
        }
        let mut take = Take::new(footer);
        let body = Hash(take.array()?);
        let count = take.u32()?;
        let offset = pack_len - (len + TRAILER_LEN) as u64;
        let mut frames = Vec::new();
        let mut next = PACK_MAGIC.len() as u64;
        for _ in 0..count {
            let at = take.u32()?;
            let mut header = FRAME_MAGIC.to_vec();
            header.extend_from_slice(take.bytes(LINE_LEN - 4)?);
            let header = FrameHeader::take(&mut Take::new(&header))?;
            if u64::from(at) != next {
                return Err(bad("a footer lists frames with a gap between them"));
            }
            next += u64::from(header.stored_len());
            frames.push(PackedFrame { offset: at, header });
        }
        take.end()?;
        if next != offset {
            return Err(bad("a footer lists fewer frames than its pack has"));
        }
        Ok(Self { body, offset, frames })
    }

    /// Lists the frames of a whole pack from their headers alone, as far as they can be read.
    pub fn reindex(pack: &[u8]) -> Vec<PackedFrame> {
        scan(pack)
    }
}

/// Lists the frames in a part of a pack from their headers, as far as they can be read. The part may begin anywhere.
pub(crate) fn scan(bytes: &[u8]) -> Vec<PackedFrame> {
    let mut frames = Vec::new();
    let mut at = 0;
    while at + HEADER_LEN <= bytes.len() {
        let mut take = Take::new(&bytes[at..]);
        match FrameHeader::take(&mut take) {
            Ok(header) if take.bytes(header.payload_len as usize).is_ok() => {
                let Ok(offset) = u32::try_from(at) else { break };
                frames.push(PackedFrame { offset, header });
                at += header.stored_len() as usize;
            }
            // Not here, or damaged: the next magic is the next frame.
            _ => match bytes[at + 1..].windows(4).position(|window| window == FRAME_MAGIC) {
                Some(next) => at += 1 + next,
                None => break,
            },
        }
    }
    frames
}

/// A footer that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FooterError {
    /// More of the pack's end is needed.
    #[error("the footer and trailer are the last {0} bytes")]
    Short(usize),
    /// It is not one.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}
