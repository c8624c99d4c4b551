//! A directory node as it is stored: its canonical bytes, and behind them where the bytes lie of what it names.
//!
//! The second part is not in the identity. Beside the places it carries sums over the whole subtree (files, bytes, and
//! what is used of which pack), so that a changed directory updates them from its old self and what changed in it, and
//! a version's manifest costs nothing to make.

use std::collections::BTreeMap;
use std::sync::Arc;

use types::{PackId, VersionId};

use super::codec::{Malformed, Put as _, Take};
use super::location::{Extent, FrameTable, Location, PackUse, put_pack, resolve_extent, take_pack};
use super::node::{Item, Node};

/// The longest file whose bytes are kept in its directory's node.
pub(crate) const INLINE_MAX: usize = 128;
/// The longest file that is kept as one slice of one frame; longer ones have a map.
pub(crate) const SLICE_MAX: u64 = 1 << 20;
/// Cell sizes that a map may have: 4 KiB to 1 MiB.
pub(crate) const CELL_LOG2: std::ops::RangeInclusive<u8> = 12..=20;

const LOCATIONS_FORMAT: u8 = 1;
const CLASS: u8 = 0x0f;
const NOTHING: u8 = 0;
const INLINE: u8 = 1;
const SLICE: u8 = 2;
const MAP: u8 = 3;
const SPARSE: u8 = 0x10;
const LINKED: u8 = 0x20;

/// Sums over a directory and all below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Names that are not directories.
    pub files: u64,
    /// Directories below.
    pub directories: u64,
    /// Bytes of all files, each inode once.
    pub bytes: u64,
    /// Names of inodes that have several.
    pub links: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: Self) {
        self.files = self.files.saturating_add(other.files);
        self.directories = self.directories.saturating_add(other.directories);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.links = self.links.saturating_add(other.links);
    }

    pub(crate) fn subtract(&mut self, other: Self) {
        self.files = self.files.saturating_sub(other.files);
        self.directories = self.directories.saturating_sub(other.directories);
        self.bytes = self.bytes.saturating_sub(other.bytes);
        self.links = self.links.saturating_sub(other.links);
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        for value in [self.files, self.directories, self.bytes, self.links] {
            out.put_varint(value);
        }
    }

    pub(crate) fn take(take: &mut Take<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            files: take.varint()?,
            directories: take.varint()?,
            bytes: take.varint()?,
            links: take.varint()?,
        })
    }
}

/// What is used of each pack.
pub(crate) type Uses = BTreeMap<Arc<PackId>, PackUse>;

/// Where one entry's bytes lie. `T` says where things of the tree are: an [`Extent`] when read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place<T> {
    /// The inode has other names, or had when it was read.
    pub(crate) linked: bool,
    /// The file had holes: blocks of zeros are not written when it is restored.
    pub(crate) sparse: bool,
    pub(crate) data: Data<T>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Data<T> {
    /// There are none.
    Nothing,
    /// Here they are.
    Inline(Vec<u8>),
    /// A part of one frame, as long as the file.
    Slice { frame: Location, offset: u32 },
    /// A map of cells.
    Map(MapPlace<T>),
    /// A directory's node.
    Directory(T),
}

/// The map of a large file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MapPlace<T> {
    pub(crate) cell_log2: u8,
    /// The page, or where there are several the page of pages.
    pub(crate) root: T,
    /// What the map and its cells use of each pack. `None`: the pack of the node itself.
    pub(crate) uses: Vec<(Option<Arc<PackId>>, PackUse)>,
}

/// Where a thing of the tree is put while its node is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum At {
    /// In the same frame as what names it.
    Here { offset: u32, len: u64 },
    /// Somewhere else.
    There(Extent),
}

/// A directory that was read, with everything resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredNode {
    pub(crate) id: VersionId,
    pub(crate) node: Node,
    pub(crate) places: Vec<Place<Extent>>,
    pub(crate) totals: Totals,
    pub(crate) uses: Uses,
}

/// The part behind the canonical bytes, before it is written.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    pub(crate) node: &'a Node,
    pub(crate) places: &'a [Place<At>],
    pub(crate) totals: Totals,
    pub(crate) uses: &'a Uses,
    /// What is used of the pack that the node itself will lie in.
    pub(crate) own: PackUse,
}

impl Draft<'_> {
    /// Appends the locations to the canonical bytes in `out`.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.push(LOCATIONS_FORMAT);
        self.totals.put(out);
        out.put_varint(self.own.references);
        out.put_varint(self.own.bytes);
        let packs: Vec<Arc<PackId>> = self.uses.keys().cloned().collect();
        out.put_len(packs.len());
        for (pack, used) in self.uses {
            put_pack(out, pack);
            out.put_varint(used.references);
            out.put_varint(used.bytes);
        }
        let mut table = FrameTable::default();
        let mut body = Vec::with_capacity(self.places.len() * 8);
        for (entry, place) in self.node.entries.iter().zip(self.places) {
            put_place(&mut body, &mut table, &packs, &entry.item, place);
        }
        table.put(out, &packs);
        out.extend_from_slice(&body);
    }
}

fn put_at(body: &mut Vec<u8>, table: &mut FrameTable, at: &At) {
    let (number, offset, len) = match at {
        At::Here { offset, len } => (0, *offset, *len),
        At::There(extent) => (table.numbers(extent), extent.offset, extent.len),
    };
    body.put_varint(number);
    body.put_varint(u64::from(offset));
    body.put_varint(len);
}

fn put_place(
    body: &mut Vec<u8>,
    table: &mut FrameTable,
    packs: &[Arc<PackId>],
    item: &Item,
    place: &Place<At>,
) {
    if let (Item::Directory { .. }, Data::Directory(at)) = (item, &place.data) {
        put_at(body, table, at);
        return;
    }
    let flags = if place.sparse { SPARSE } else { 0 } | if place.linked { LINKED } else { 0 };
    match &place.data {
        Data::Nothing | Data::Directory(_) => body.push(NOTHING | flags),
        Data::Inline(bytes) => {
            body.push(INLINE | flags);
            body.extend_from_slice(bytes);
        }
        Data::Slice { frame, offset } => {
            body.push(SLICE | flags);
            body.put_varint(table.number(frame));
            body.put_varint(u64::from(*offset));
        }
        Data::Map(map) => {
            body.push(MAP | flags);
            body.push(map.cell_log2);
            put_at(body, table, &map.root);
            body.put_len(map.uses.len());
            for (pack, used) in &map.uses {
                let number = pack.as_ref().map_or(0, |pack| 1 + packs.binary_search(pack).unwrap_or(0));
                body.put_len(number);
                body.put_varint(used.references);
                body.put_varint(used.bytes);
            }
        }
    }
}

impl StoredNode {
    /// Reads a stored node. `own` is the frame it lies in, where that is one.
    pub(crate) fn decode(bytes: &[u8], own: Option<&Location>) -> Result<Self, Malformed> {
        let mut take = Take::new(bytes);
        let node = Node::take(&mut take)?;
        let id = VersionId(*blake3::hash(&bytes[..take.at()]).as_bytes());
        if take.u8()? != LOCATIONS_FORMAT {
            return take.fail("its locations are of a newer format");
        }
        let totals = Totals::take(&mut take)?;
        let own_use = PackUse { references: take.varint()?, bytes: take.varint()? };
        let mut uses = Uses::new();
        let mut packs = Vec::new();
        for _ in 0..take.count(21)? {
            let pack = Arc::new(take_pack(&mut take)?);
            let used = PackUse { references: take.varint()?, bytes: take.varint()? };
            if packs.last().is_some_and(|last| *last >= pack) {
                return take.fail("packs are not sorted, or one is there twice");
            }
            uses.insert(Arc::clone(&pack), used);
            packs.push(pack);
        }
        match own {
            Some(own) if own_use != PackUse::default() => {
                uses.entry(Arc::clone(&own.pack)).or_default().add(own_use);
            }
            None if own_use != PackUse::default() => {
                return take.fail("it uses a frame of its own and has none");
            }
            Some(_) | None => {}
        }
        let frames = FrameTable::take(&mut take, packs.clone())?;
        let mut places = Vec::with_capacity(node.entries.len());
        for entry in &node.entries {
            places.push(take_place(&mut take, &entry.item, &frames, &packs, own)?);
        }
        take.end()?;
        Ok(Self { id, node, places, totals, uses })
    }

    /// About how much memory it takes.
    pub(crate) fn cost(&self) -> usize {
        256 + self.node.entries.len() * 320 + self.uses.len() * 64
    }
}

fn take_at(take: &mut Take<'_>, frames: &[Location], own: Option<&Location>) -> Result<Extent, Malformed> {
    let number = take.varint()?;
    let offset = take.varint_u32()?;
    let len = take.varint()?;
    resolve_extent(take, frames, own, number, offset, len)
}

fn take_place(
    take: &mut Take<'_>,
    item: &Item,
    frames: &[Location],
    packs: &[Arc<PackId>],
    own: Option<&Location>,
) -> Result<Place<Extent>, Malformed> {
    if matches!(item, Item::Directory { .. }) {
        let data = Data::Directory(take_at(take, frames, own)?);
        return Ok(Place { linked: false, sparse: false, data });
    }
    let flags = take.u8()?;
    if flags & !(CLASS | SPARSE | LINKED) != 0 {
        return take.fail("a place has a flag that is not known here");
    }
    let size = if let Item::File { size, .. } = item { Some(*size) } else { None };
    let data = match (flags & CLASS, size) {
        (NOTHING, None) => Data::Nothing,
        (INLINE, Some(size)) => match usize::try_from(size) {
            Ok(size) if size <= INLINE_MAX => Data::Inline(take.bytes(size)?.to_vec()),
            _ => return take.fail("a file in its node is longer than one may be"),
        },
        (SLICE, Some(size)) => {
            let number = take.varint()?;
            let offset = take.varint_u32()?;
            let extent = resolve_extent(take, frames, None, number, offset, size)?;
            let [frame] = extent.frames.as_slice() else { return take.fail("a slice goes past its frame") };
            Data::Slice { frame: frame.clone(), offset }
        }
        (MAP, Some(size)) => {
            let cell_log2 = take.u8()?;
            if !CELL_LOG2.contains(&cell_log2) || size <= 1 << cell_log2 {
                return take.fail("a map has cells of a size that it cannot have");
            }
            let root = take_at(take, frames, own)?;
            let mut uses = Vec::new();
            for _ in 0..take.count(3)? {
                let number = take.varint()?;
                let pack = match number {
                    0 => own.map(|own| Arc::clone(&own.pack)),
                    n => usize::try_from(n - 1).ok().and_then(|n| packs.get(n)).cloned(),
                };
                let Some(pack) = pack else { return take.fail("a map uses a pack that is not in the table") };
                uses.push((Some(pack), PackUse { references: take.varint()?, bytes: take.varint()? }));
            }
            Data::Map(MapPlace { cell_log2, root, uses })
        }
        _ => return take.fail("a place does not fit its entry"),
    };
    Ok(Place { linked: flags & LINKED != 0, sparse: flags & SPARSE != 0, data })
}
