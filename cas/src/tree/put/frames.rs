//! The tree frame that is being filled: nodes and pages of maps, children before their parents.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::level::Level;
use super::packs::Packs;
use crate::tree::cache::Cache;
use crate::tree::error::TreeError;
use crate::tree::frame::{Compressor, FrameKind};
use crate::tree::location::{Extent, FRAME_RAW_MAX, Location, PackUse};
use crate::tree::stored::{At, Uses};

/// A tree frame is closed when it has this many plain bytes.
const TREE_FRAME: usize = 256 << 10;
/// What is larger than this gets frames of its own, each this long.
const OWN_FRAME: usize = 512 << 10;

/// Where a thing of the tree is, while the put goes on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum TreeRef {
    /// In a tree frame of this put.
    Frame { number: usize, offset: u32, len: u64 },
    /// Elsewhere.
    At(Extent),
}

/// What is used of packs, and of tree frames whose pack is not known yet.
#[derive(Debug, Clone, Default)]
pub(super) struct BuildUses {
    pub(super) packs: Uses,
    pub(super) frames: BTreeMap<usize, PackUse>,
}

impl BuildUses {
    pub(super) fn of(packs: Uses) -> Self {
        Self { packs, frames: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.add_uses(&other.packs);
        for (frame, used) in &other.frames {
            self.frames.entry(*frame).or_default().add(*used);
        }
    }

    pub(super) fn add_uses(&mut self, other: &Uses) {
        for (pack, used) in other {
            self.packs.entry(Arc::clone(pack)).or_default().add(*used);
        }
    }

    pub(super) fn subtract(&mut self, other: &Uses) {
        for (pack, used) in other {
            if let Some(mine) = self.packs.get_mut(pack) {
                mine.subtract(*used);
                if mine.references == 0 {
                    self.packs.remove(pack);
                }
            }
        }
    }

    /// Counts one reference to a thing of the tree.
    pub(super) fn count(&mut self, tree: &TreeRef) {
        match tree {
            TreeRef::Frame { number, len, .. } => {
                self.frames.entry(*number).or_default().add(PackUse { references: 1, bytes: *len });
            }
            TreeRef::At(extent) => self.add_uses(&extent.uses()),
        }
    }

    /// Counts a part of a data frame.
    pub(super) fn count_data(&mut self, frame: &Location, bytes: u64) {
        self.packs.entry(Arc::clone(&frame.pack)).or_default().add(PackUse { references: 1, bytes });
    }
}

/// Fills tree frames.
#[derive(Debug)]
pub(super) struct TreeFrames<'a> {
    packs: &'a Packs,
    cache: &'a Cache,
    compressor: Compressor,
    level: &'a Level,
    raw: Vec<u8>,
    closed: Vec<Location>,
}

impl<'a> TreeFrames<'a> {
    pub(super) fn new(packs: &'a Packs, cache: &'a Cache, level: &'a Level) -> Result<Self, TreeError> {
        let compressor = Compressor::new(level.now())
            .map_err(|source| TreeError::io("prepare to compress", b"", source))?;
        Ok(Self { packs, cache, compressor, level, raw: Vec::new(), closed: Vec::new() })
    }

    /// Compresses one frame and places it.
    pub(super) fn place(&mut self, kind: FrameKind, raw: &[u8]) -> Result<Location, TreeError> {
        if raw.len() > FRAME_RAW_MAX as usize {
            return Err(TreeError::FrameTooLarge { bytes: raw.len(), limit: FRAME_RAW_MAX });
        }
        let level = self.level.now();
        let frame = self
            .compressor
            .set_level(level)
            .and_then(|()| self.compressor.frame(kind, raw))
            .map_err(|source| TreeError::io("compress", b"", source))?;
        self.packs.place(&frame)
    }

    /// Closes the open frame.
    pub(super) fn close(&mut self) -> Result<(), TreeError> {
        if !self.raw.is_empty() {
            let raw = std::mem::take(&mut self.raw);
            let location = self.place(FrameKind::Tree, &raw)?;
            // The next increment begins with these nodes. Should this put fail, nobody ever asks for this place.
            self.cache.keep_frame(&location, &Bytes::from(raw));
            self.closed.push(location);
        }
        Ok(())
    }

    /// Makes room for a thing of about `len` bytes: what is written next may name the open frame as its own, and must
    /// then go into it by [`Self::append`].
    pub(super) fn prepare(&mut self, len: usize) -> Result<(), TreeError> {
        if self.raw.len() >= TREE_FRAME || len > TREE_FRAME { self.close() } else { Ok(()) }
    }

    /// Appends a thing. A large one gets frames of its own; after [`Self::prepare`] it names no frame as its own then.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<TreeRef, TreeError> {
        if self.raw.is_empty() && bytes.len() > OWN_FRAME {
            let mut frames = Vec::new();
            for part in bytes.chunks(OWN_FRAME) {
                frames.push(self.place(FrameKind::Tree, part)?);
            }
            return Ok(TreeRef::At(Extent { frames, offset: 0, len: bytes.len() as u64 }));
        }
        let offset = u32::try_from(self.raw.len())
            .map_err(|_| TreeError::FrameTooLarge { bytes: self.raw.len(), limit: FRAME_RAW_MAX })?;
        self.raw.extend_from_slice(bytes);
        Ok(TreeRef::Frame { number: self.closed.len(), offset, len: bytes.len() as u64 })
    }

    /// Says how what is written next names `tree`.
    pub(super) fn at(&self, tree: &TreeRef) -> At {
        match tree {
            TreeRef::At(extent) => At::There(extent.clone()),
            TreeRef::Frame { number, offset, len } => match self.closed.get(*number) {
                None => At::Here { offset: *offset, len: *len },
                Some(frame) => At::There(Extent { frames: vec![frame.clone()], offset: *offset, len: *len }),
            },
        }
    }

    /// Says what is used of packs and of the open frame's own.
    pub(super) fn uses(&self, uses: &BuildUses) -> (Uses, PackUse) {
        let mut packs = uses.packs.clone();
        let mut own = PackUse::default();
        for (number, used) in &uses.frames {
            match self.closed.get(*number) {
                None => own.add(*used),
                Some(frame) => packs.entry(Arc::clone(&frame.pack)).or_default().add(*used),
            }
        }
        (packs, own)
    }
}
