//! A version's manifest: which tree, where its root lies, and every pack that the version needs.

use std::sync::Arc;

use types::{PackId, VersionId};

use super::codec::{Malformed, Put as _, Take};
use super::location::{Extent, FrameTable, PackUse, put_pack, resolve_extent, take_pack};
use super::stored::Totals;

const MANIFEST_MAGIC: &[u8; 4] = b"OSm1";

/// A pack that a version needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackNeeded {
    /// The pack.
    pub pack: Arc<PackId>,
    /// The length of its object. `None`: the pack that the manifest itself was written into.
    pub object_bytes: Option<u64>,
    /// What the version uses of it.
    pub used: PackUse,
}

/// What is known of a version as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The tree: BLAKE3 of its root node.
    pub version: VersionId,
    /// Where the root node lies.
    pub root: Extent,
    /// Sums over the tree.
    pub totals: Totals,
    /// Every pack that a byte of the version lies in, sorted.
    pub packs: Vec<PackNeeded>,
}

impl Manifest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = MANIFEST_MAGIC.to_vec();
        out.extend_from_slice(self.version.as_bytes());
        self.totals.put(&mut out);
        out.put_len(self.packs.len());
        for needed in &self.packs {
            put_pack(&mut out, &needed.pack);
            out.put_varint(needed.object_bytes.unwrap_or(0));
            out.put_varint(needed.used.references);
            out.put_varint(needed.used.bytes);
        }
        let packs: Vec<Arc<PackId>> = self.packs.iter().map(|needed| Arc::clone(&needed.pack)).collect();
        let mut table = FrameTable::default();
        let first = table.numbers(&self.root);
        table.put(&mut out, &packs);
        out.put_varint(first);
        out.put_varint(u64::from(self.root.offset));
        out.put_varint(self.root.len);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut take = Take::new(bytes);
        if &take.array::<4>()? != MANIFEST_MAGIC {
            return take.fail("it is not a manifest of this format");
        }
        let version = VersionId(take.array()?);
        let totals = Totals::take(&mut take)?;
        let mut packs: Vec<PackNeeded> = Vec::new();
        for _ in 0..take.count(22)? {
            let pack = Arc::new(take_pack(&mut take)?);
            if packs.last().is_some_and(|last| last.pack >= pack) {
                return take.fail("packs are not sorted, or one is there twice");
            }
            let object_bytes = Some(take.varint()?).filter(|bytes| *bytes > 0);
            let used = PackUse { references: take.varint()?, bytes: take.varint()? };
            packs.push(PackNeeded { pack, object_bytes, used });
        }
        let ids = packs.iter().map(|needed| Arc::clone(&needed.pack)).collect();
        let frames = FrameTable::take(&mut take, ids)?;
        let number = take.varint()?;
        let offset = take.varint_u32()?;
        let len = take.varint()?;
        let root = resolve_extent(&take, &frames, None, number, offset, len)?;
        take.end()?;
        Ok(Self { version, root, totals, packs })
    }
}
