//! From which transaction on a snapshot may differ from its base.
//!
//! A snapshot is made inside a commit, and nothing else is written under that transaction's number afterwards. So the
//! source of a snapshot made in transaction T differs from it only in items younger than T: the bound is T itself,
//! exclusive. Whose T it is depends on who grew from whom.

use btrfs::search::{Key, RootItem, Search, kind, tree};
use btrfs::{Dir, Uuid};

use super::error::Error;

/// Forks of forks are followed this far back; nobody works twenty steps from a base.
const GENERATIONS: usize = 64;

/// `BTRFS_UUID_TREE_OBJECTID`: subvolumes by their uuid.
const UUID_TREE: u64 = 9;
/// `BTRFS_UUID_KEY_SUBVOL`.
const UUID_KEY_SUBVOL: u8 = 251;

/// Returns the last transaction whose changes the two share, or nothing if they have no common past that tells.
pub(super) fn since(dir: &Dir, base: u64, snapshot: u64) -> Result<Option<u64>, Error> {
    let (Some(old), Some(mut current)) = (root(dir, base)?, root(dir, snapshot)?) else { return Ok(None) };
    for _ in 0..GENERATIONS {
        // `current` is the snapshot or a subvolume it grew from; what came after it was made is in the snapshot.
        let Some(parent) = current.parent_uuid else { return Ok(None) };
        if Some(parent) == old.uuid {
            // It grew from the base, which has not changed since: it is read-only.
            return Ok(old.readonly.then_some(current.otransid));
        }
        if Some(parent) == old.parent_uuid {
            // Both grew from one: the base is what that one was at the base's own transaction, and `current` must be a
            // later state of it. (What was put into the base after, nested subvolumes, is younger than that: which is
            // why the bound is not the base's last change.)
            return Ok((current.otransid >= old.otransid).then_some(old.otransid));
        }
        let Some(id) = find(dir, parent)? else { return Ok(None) };
        let Some(next) = root(dir, id)? else { return Ok(None) };
        current = next;
    }
    Ok(None)
}

/// Reads a subvolume's root item.
fn root(dir: &Dir, id: u64) -> Result<Option<RootItem>, Error> {
    let mut search = Search::new(dir, tree::ROOTS, Key::object_kind(id, kind::ROOT_ITEM));
    let mut found = None;
    while let Some(item) = search.next_item()? {
        if item.key.kind == kind::ROOT_ITEM {
            found = Some(item.root()?);
        }
    }
    Ok(found)
}

/// Finds a subvolume by its uuid.
fn find(dir: &Dir, uuid: Uuid) -> Result<Option<u64>, Error> {
    let (objectid, offset) = uuid.as_bytes().split_at(8);
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("half of sixteen bytes"));
    let key = Key { objectid: number(objectid), kind: UUID_KEY_SUBVOL, offset: number(offset) };
    let mut search = Search::new(dir, UUID_TREE, key..=key);
    let Some(item) = search.next_item()? else { return Ok(None) };
    Ok(item.data.first_chunk().map(|id| u64::from_le_bytes(*id)))
}
