//! Stands in for the trees' own `Location` and `VersionRef` until they land; same text, same fields.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use types::{InvalidId, PackId, VersionId};

const FRAME_RAW_MAX: u32 = 16 << 20;
const FRAME_STORED_MAX: u32 = FRAME_RAW_MAX + 4_096;

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
}

/// A version and where its manifest lies: all that a record keeps of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VersionRef {
    /// The tree.
    pub version: VersionId,
    /// The frame of its manifest.
    pub manifest: Location,
}
