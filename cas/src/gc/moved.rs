//! `moved/<pack>`: where the frames of an evacuated pack went.
//!
//! A pack's name goes on meaning the same bytes after the pack is gone. Manifests and nodes are not rewritten: they name
//! the old pack, and whoever finds it missing looks here. So the object lives as long as something names the old pack,
//! and the new packs live as long as the object does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use types::PackId;

use crate::error::Error;
use crate::keys;
use crate::objects::Key;
use crate::store::Store;
use crate::tree::PACK_MAX;

/// One frame that was copied. Its bytes and so its length are the same in both packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "(u32, u32, u32)", into = "(u32, u32, u32)")]
pub struct Move {
    /// Where its header was.
    pub old: u32,
    /// Where its header is.
    pub new: u32,
    /// How long it is, with its header.
    pub len: u32,
}

impl From<(u32, u32, u32)> for Move {
    fn from((old, new, len): (u32, u32, u32)) -> Self {
        Self { old, new, len }
    }
}

impl From<Move> for (u32, u32, u32) {
    fn from(Move { old, new, len }: Move) -> Self {
        (old, new, len)
    }
}

/// By new pack, the frames that went there, in their old order.
pub type Moves = BTreeMap<PackId, Vec<Move>>;

/// The object `moved/<pack>`. Immutable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moved {
    /// The format of this object.
    pub format: u32,
    /// The pack that is gone.
    pub pack: PackId,
    /// Where its frames are.
    pub to: Moves,
}

impl Moved {
    /// Checks what was read, so that nothing later trusts a damaged or hostile one.
    pub(crate) fn check(&self, key: &Key) -> Result<(), Error> {
        if keys::moved(&self.pack) != *key {
            return Err(Error::corrupt(key, format!("it is of the pack {}", self.pack)));
        }
        if self.to.contains_key(&self.pack) || self.to.keys().any(|to| to.domain != self.pack.domain) {
            return Err(Error::corrupt(key, "it points to itself, or into another domain"));
        }
        for moves in self.to.values() {
            let ends = |at: u32, len: u32| u64::from(at) + u64::from(len) <= PACK_MAX as u64;
            let sane = moves.iter().all(|moved| ends(moved.old, moved.len) && ends(moved.new, moved.len));
            let ordered = moves.windows(2).all(|pair| pair[0].old + pair[0].len <= pair[1].old);
            if !sane || !ordered {
                return Err(Error::corrupt(key, "its frames overlap or lie outside of any pack"));
            }
        }
        Ok(())
    }

    /// Returns where the frame at `offset` went.
    pub(crate) fn find(&self, offset: u32) -> Option<(&PackId, Move)> {
        self.to.iter().find_map(|(pack, moves)| {
            let number = moves.binary_search_by_key(&offset, |moved| moved.old).ok()?;
            Some((pack, moves[number]))
        })
    }
}

/// Reads where a pack's frames went; `None` where it was never moved.
pub(crate) async fn read(store: &Store, pack: &PackId) -> Result<Option<Moved>, Error> {
    let key = keys::moved(pack);
    let Some(stored) = store.read::<Moved>(&key).await? else { return Ok(None) };
    stored.value.check(&key)?;
    Ok(Some(stored.value))
}
