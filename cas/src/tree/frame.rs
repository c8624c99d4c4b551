//! A frame: the unit that is compressed, hashed and read. Each begins with a header that says all of it again, so that
//! a pack whose footer is lost can still be read.

use types::Hash;

use super::codec::{Malformed, Take};
use super::location::{FRAME_RAW_MAX, Location};

/// The bytes that every frame begins with.
pub(crate) const FRAME_MAGIC: &[u8; 4] = b"OSf1";
/// Header: magic, kind, codec, cipher, zero, key id (8), raw length (4), payload length (4), BLAKE3 of the raw bytes.
pub(crate) const HEADER_LEN: usize = 56;

/// What is in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// Contents of files.
    Data,
    /// Directory nodes and pages of file maps.
    Tree,
    /// A version's manifest.
    Manifest,
}

impl FrameKind {
    fn code(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Tree => 2,
            Self::Manifest => 3,
        }
    }
}

/// How the payload of a frame is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As it is.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// What a frame's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What is in it.
    pub kind: FrameKind,
    /// How it is written.
    pub codec: Codec,
    /// How many bytes it holds.
    pub raw_len: u32,
    /// How many bytes follow the header.
    pub payload_len: u32,
    /// BLAKE3 of the bytes it holds.
    pub hash: Hash,
}

impl FrameHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..4].copy_from_slice(FRAME_MAGIC);
        out[4] = self.kind.code();
        out[5] = match self.codec {
            Codec::Raw => 0,
            Codec::Zstd => 1,
        };
        // 6: cipher, 7: zero, 8..16: key id. None yet.
        out[16..20].copy_from_slice(&self.raw_len.to_le_bytes());
        out[20..24].copy_from_slice(&self.payload_len.to_le_bytes());
        out[24..56].copy_from_slice(self.hash.as_bytes());
        out
    }

    pub(crate) fn take(take: &mut Take<'_>) -> Result<Self, Malformed> {
        if &take.array::<4>()? != FRAME_MAGIC {
            return take.fail("no frame begins here");
        }
        let kind = match take.u8()? {
            1 => FrameKind::Data,
            2 => FrameKind::Tree,
            3 => FrameKind::Manifest,
            _ => return take.fail("a frame is of a kind that is not known here"),
        };
        let codec = match take.u8()? {
            0 => Codec::Raw,
            1 => Codec::Zstd,
            _ => return take.fail("a frame is written in a way that is not known here"),
        };
        if take.u8()? != 0 {
            return take.fail("a frame is encrypted, and this program has no keys");
        }
        if take.u8()? != 0 || take.u64()? != 0 {
            return take.fail("a frame has a key or a flag that is not known here");
        }
        let raw_len = take.u32()?;
        let payload_len = take.u32()?;
        if raw_len > FRAME_RAW_MAX || payload_len > raw_len || (codec == Codec::Raw && payload_len != raw_len)
        {
            return take.fail("a frame has a length that none has");
        }
        Ok(Self { kind, codec, raw_len, payload_len, hash: Hash(take.array()?) })
    }

    /// The length of the frame with its header.
    pub(crate) fn stored_len(&self) -> u32 {
        self.payload_len + u32::try_from(HEADER_LEN).expect("a small constant fits 32 bits")
    }
}

/// A frame ready to be placed in a pack.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) header: FrameHeader,
    pub(crate) payload: Vec<u8>,
}

/// Compresses frames; keeps its context.
pub(crate) struct Compressor {
    context: zstd::bulk::Compressor<'static>,
    level: i32,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressor")
    }
}

impl Compressor {
    pub(crate) fn new(level: i32) -> std::io::Result<Self> {
        let mut context = zstd::bulk::Compressor::new(level)?;
        // The header of our frame has the length and a better checksum.
        context.include_checksum(false)?;
        Ok(Self { context, level })
    }

    /// Changes the level for the frames that follow.
    pub(crate) fn set_level(&mut self, level: i32) -> std::io::Result<()> {
        if level != self.level {
            self.context.set_compression_level(level)?;
            self.level = level;
        }
        Ok(())
    }

    /// Makes a frame of `raw`.
    pub(crate) fn frame(&mut self, kind: FrameKind, raw: &[u8]) -> std::io::Result<Frame> {
        self.frame_of(kind, raw, Hash(*blake3::hash(raw).as_bytes()))
    }

    /// Makes a frame of bytes whose BLAKE3 is known; keeps them as they are where compression saves less than 3 %.
    pub(crate) fn frame_of(&mut self, kind: FrameKind, raw: &[u8], hash: Hash) -> std::io::Result<Frame> {
        let raw_len = u32::try_from(raw.len()).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
        let compressed = self.context.compress(raw)?;
        let (codec, payload) = if compressed.len() + raw.len() / 32 < raw.len() {
            (Codec::Zstd, compressed)
        } else {
            (Codec::Raw, raw.to_vec())
        };
        let payload_len = u32::try_from(payload.len()).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
        Ok(Frame { header: FrameHeader { kind, codec, raw_len, payload_len, hash }, payload })
    }
}

/// Decompresses frames; keeps its context, which costs more to make than a small frame to read: so it is made for the
/// first frame that is compressed.
#[derive(Default)]
pub(crate) struct Decompressor(Option<zstd::bulk::Decompressor<'static>>);

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decompressor")
    }
}

impl Decompressor {
    /// Unpacks the frame that `stored` is, and proves that it holds what its header says. `location` says how long it
    /// must be.
    pub(crate) fn open(
        &mut self,
        location: &Location,
        stored: &[u8],
    ) -> Result<(FrameKind, Vec<u8>), Malformed> {
        let (header, raw) = self.unpack(location, stored)?;
        if blake3::hash(&raw).as_bytes() != header.hash.as_bytes() {
            return Err(Malformed { at: HEADER_LEN, reason: "a frame does not hold what its hash says" });
        }
        Ok((header.kind, raw))
    }

    /// Unpacks without looking at the hash: for bytes that are compared with a stronger one, the file's.
    pub(crate) fn unpack(
        &mut self,
        location: &Location,
        stored: &[u8],
    ) -> Result<(FrameHeader, Vec<u8>), Malformed> {
        let mut take = Take::new(stored);
        let header = FrameHeader::take(&mut take)?;
        if header.stored_len() != location.stored_len || header.raw_len != location.raw_len {
            return take.fail("a frame is not as long as what names it says");
        }
        let raw = self.payload(&header, take.bytes(take.remaining())?)?;
        Ok((header, raw))
    }

    /// Unpacks the payload of a frame.
    pub(crate) fn payload(&mut self, header: &FrameHeader, payload: &[u8]) -> Result<Vec<u8>, Malformed> {
        let bad = |reason| Malformed { at: HEADER_LEN, reason };
        let expected = usize::try_from(header.payload_len).map_err(|_| bad("a frame is too long"))?;
        if payload.len() != expected {
            return Err(bad("a frame is not as long as its header says"));
        }
        let raw_len = usize::try_from(header.raw_len).map_err(|_| bad("a frame is too long"))?;
        let raw = match header.codec {
            Codec::Raw => payload.to_vec(),
            Codec::Zstd => self
                .0
                .get_or_insert_default()
                .decompress(payload, raw_len)
                .map_err(|_| bad("a frame cannot be decompressed"))?,
        };
        if raw.len() == raw_len { Ok(raw) } else { Err(bad("a frame holds less than its header says")) }
    }
}
