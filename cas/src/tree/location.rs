//! Where bytes lie. Never part of an identity: the same file may lie in several places, and be moved.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use types::{Domain, InvalidId, PackId, PoolId, SessionId, VersionId};

use super::codec::{Malformed, Put as _, Take};

/// The most plain bytes that one frame may hold. A larger claim is not believed.
pub(crate) const FRAME_RAW_MAX: u32 = 16 << 20;
/// The most bytes that one frame may take in its pack.
pub(crate) const FRAME_STORED_MAX: u32 = FRAME_RAW_MAX + 4_096;

/// One frame of a pack: what to ask the store for, and how much comes out.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The pack.
    pub pack: Arc<PackId>,
    /// Where the frame's header begins in it.
    pub offset: u32,
    /// How long the frame is, with its header.
    pub stored_len: u32,
    /// How many bytes it holds.
    pub raw_len: u32,
}

/// `<pack>:<offset>+<stored length>/<raw length>`
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}+{}/{}", self.pack, self.offset, self.stored_len, self.raw_len)
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({self})")
    }
}

impl FromStr for Location {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId {
            what: "location",
            text: text.chars().take(200).collect(),
            rule: "<pack id>:<offset>+<stored length>/<raw length>",
        };
        let parse = || {
            let (pack, rest) = text.rsplit_once(':')?;
            let (offset, rest) = rest.split_once('+')?;
            let (stored, raw) = rest.split_once('/')?;
            Some(Self {
                pack: Arc::new(pack.parse().ok()?),
                offset: offset.parse().ok()?,
                stored_len: stored.parse().ok()?,
                raw_len: raw.parse().ok()?,
            })
        };
        let location = parse().ok_or_else(invalid)?;
        if location.to_string() == text && location.is_sane() { Ok(location) } else { Err(invalid()) }
    }
}

impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Location {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Location {
    /// Tells if the lengths are ones that we would write.
    pub(crate) fn is_sane(&self) -> bool {
        self.raw_len <= FRAME_RAW_MAX
            && self.stored_len <= FRAME_STORED_MAX
            && self.offset.checked_add(self.stored_len).is_some()
    }

    /// The bytes of the frame in its pack.
    pub(crate) fn range(&self) -> std::ops::Range<u64> {
        u64::from(self.offset)..u64::from(self.offset) + u64::from(self.stored_len)
    }
}

/// A version and where its manifest lies: all that a record keeps of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VersionRef {
    /// The tree.
    pub version: VersionId,
    /// The frame of its manifest.
    pub manifest: Location,
}

/// Some bytes of one frame, or of several that follow each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The frames. More than one only where what is kept is larger than a frame.
    pub frames: Vec<Location>,
    /// Where the bytes begin in the first.
    pub offset: u32,
    /// How many they are.
    pub len: u64,
}

impl Extent {
    /// What one reference to it uses.
    pub(crate) fn uses(&self) -> BTreeMap<Arc<PackId>, PackUse> {
        let mut uses: BTreeMap<Arc<PackId>, PackUse> = BTreeMap::new();
        let (mut skip, mut left) = (u64::from(self.offset), self.len);
        for frame in &self.frames {
            let bytes = u64::from(frame.raw_len).saturating_sub(skip).min(left);
            (skip, left) = (0, left - bytes);
            uses.entry(Arc::clone(&frame.pack)).or_default().add(PackUse { references: 1, bytes });
        }
        uses
    }
}

/// What a tree uses of one pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PackUse {
    /// How many times something in it is named: a file's slice, a cell of a large file, a page of a map, a node.
    pub references: u64,
    /// The plain bytes of all of these.
    pub bytes: u64,
}

impl PackUse {
    pub(crate) fn add(&mut self, other: Self) {
        self.references = self.references.saturating_add(other.references);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    pub(crate) fn subtract(&mut self, other: Self) {
        self.references = self.references.saturating_sub(other.references);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}

pub(crate) fn put_pack(out: &mut Vec<u8>, pack: &PackId) {
    out.put_sized(pack.domain.as_str().as_bytes());
    out.extend_from_slice(&pack.session.pool.0.to_bytes());
    out.put_varint(pack.session.number);
    out.put_varint(pack.seq);
}

pub(crate) fn take_pack(take: &mut Take<'_>) -> Result<PackId, Malformed> {
    let domain = std::str::from_utf8(take.sized(1, 63)?).ok().and_then(|text| text.parse::<Domain>().ok());
    let Some(domain) = domain else { return take.fail("a pack's domain is not one") };
    let pool = PoolId(ulid::Ulid::from_bytes(take.array()?));
    Ok(PackId { domain, session: SessionId { pool, number: take.varint()? }, seq: take.varint()? })
}

/// The frames that one encoded thing names, each written once. 0 is the frame that the thing itself lies in.
#[derive(Debug, Default)]
pub(crate) struct FrameTable {
    packs: Vec<Arc<PackId>>,
    frames: Vec<Location>,
    index: std::collections::HashMap<Location, u64>,
}

impl FrameTable {
    /// Returns the number of this frame in the table.
    pub(crate) fn number(&mut self, frame: &Location) -> u64 {
        if let Some(number) = self.index.get(frame) {
            return *number;
        }
        self.append(frame)
    }

    /// Adds a frame even if it is there: the frames of one extent stand one after the other.
    fn append(&mut self, frame: &Location) -> u64 {
        self.frames.push(frame.clone());
        let number = u64::try_from(self.frames.len()).expect("a count in memory fits 64 bits");
        self.index.entry(frame.clone()).or_insert(number);
        number
    }

    /// Returns the number of an extent's first frame; the others follow it.
    pub(crate) fn numbers(&mut self, extent: &Extent) -> u64 {
        match extent.frames.as_slice() {
            [only] => self.number(only),
            several => {
                let first = self.append(&several[0]);
                for frame in &several[1..] {
                    self.append(frame);
                }
                first
            }
        }
    }

    /// Writes the packs (after those that `packs` already names) and the frames.
    pub(crate) fn put(&mut self, out: &mut Vec<u8>, packs: &[Arc<PackId>]) {
        self.packs = packs.to_vec();
        let mut numbers: std::collections::HashMap<Arc<PackId>, usize> =
            self.packs.iter().enumerate().map(|(number, pack)| (Arc::clone(pack), number)).collect();
        let mut more = Vec::new();
        for frame in &self.frames {
            let next = numbers.len();
            if *numbers.entry(Arc::clone(&frame.pack)).or_insert(next) == next {
                more.push(Arc::clone(&frame.pack));
            }
        }
        out.put_len(more.len());
        for pack in &more {
            put_pack(out, pack);
        }
        out.put_len(self.frames.len());
        for frame in &self.frames {
            out.put_len(numbers[&frame.pack]);
            out.put_varint(u64::from(frame.offset));
            out.put_varint(u64::from(frame.stored_len));
            out.put_varint(u64::from(frame.raw_len));
        }
    }

    /// Reads what [`Self::put`] wrote.
    pub(crate) fn take(take: &mut Take<'_>, mut packs: Vec<Arc<PackId>>) -> Result<Vec<Location>, Malformed> {
        for _ in 0..take.count(20)? {
            packs.push(Arc::new(take_pack(take)?));
        }
        let count = take.count(4)?;
        let mut frames = Vec::with_capacity(count);
        for _ in 0..count {
            let number = take.varint()?;
            let Some(pack) = usize::try_from(number).ok().and_then(|number| packs.get(number)) else {
                return take.fail("a frame is in a pack that is not in the table");
            };
            let location = Location {
                pack: Arc::clone(pack),
                offset: take.varint_u32()?,
                stored_len: take.varint_u32()?,
                raw_len: take.varint_u32()?,
            };
            if !location.is_sane() {
                return take.fail("a frame has a length that none has");
            }
            frames.push(location);
        }
        Ok(frames)
    }
}

/// Resolves a frame number of a table: 0 is `own`.
pub(crate) fn resolve<'a>(
    take: &Take<'_>,
    frames: &'a [Location],
    own: Option<&'a Location>,
    number: u64,
) -> Result<&'a Location, Malformed> {
    let found = match number {
        0 => own,
        n => usize::try_from(n - 1).ok().and_then(|n| frames.get(n)),
    };
    found.map_or_else(|| take.fail("a frame is named that is not in the table"), Ok)
}

/// Resolves an extent: as many frames from `number` on as hold its bytes.
pub(crate) fn resolve_extent(
    take: &Take<'_>,
    frames: &[Location],
    own: Option<&Location>,
    number: u64,
    offset: u32,
    len: u64,
) -> Result<Extent, Malformed> {
    let first = resolve(take, frames, own, number)?;
    let mut extent = Extent { frames: vec![first.clone()], offset, len };
    let mut raw = u64::from(first.raw_len);
    let mut next = number;
    while u64::from(offset).saturating_add(len) > raw {
        next += 1;
        if number == 0 {
            return take.fail("bytes of the own frame go past its end");
        }
        let frame = resolve(take, frames, None, next)?;
        if frame.raw_len == 0 {
            return take.fail("an extent has an empty frame");
        }
        raw += u64::from(frame.raw_len);
        extent.frames.push(frame.clone());
    }
    if u64::from(offset) > u64::from(first.raw_len) {
        return take.fail("an extent begins after its first frame");
    }
    Ok(extent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_ref_is_two_texts_in_json() {
        let text = concat!(
            r#"{"version":"0000000000000000000000000000000000000000000000000000000000000000","#,
            r#""manifest":"default/01arz3ndektsv4rrffq69g5fav.3.17:8+301/420"}"#
        );
        let version: VersionRef = serde_json::from_str(text).unwrap();
        assert_eq!(version.manifest.pack.seq, 17);
        assert_eq!(serde_json::to_string(&version).unwrap(), text);
    }

    #[test]
    fn a_location_that_lies_is_refused() {
        for bad in [
            "",
            "default/01arz3ndektsv4rrffq69g5fav.3.17",
            "default/01arz3ndektsv4rrffq69g5fav.3.17:8+301/4294967295",
            "default/01arz3ndektsv4rrffq69g5fav.3.17:4294967295+301/420",
            "default/01arz3ndektsv4rrffq69g5fav.3.17:08+301/420",
            "../01arz3ndektsv4rrffq69g5fav.3.17:8+301/420",
        ] {
            assert!(bad.parse::<Location>().is_err(), "{bad}");
        }
    }
}
