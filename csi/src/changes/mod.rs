//! What changed in a volume between two of its snapshots, asked of btrfs and not found by walking.
//!
//! btrfs writes into each tree block the transaction that wrote it, so "everything younger than the base" is a search
//! that skips whole subtrees that both snapshots share: its cost follows the change and not the volume. What it returns
//! is judged item by item:
//!
//! - an inode is dirty if its own transaction is younger ([`dirty`]); the kernel updates it with every change of data,
//!   metadata, xattrs, links and names, so a name that is new always leads to a dirty inode;
//! - a dirty directory is only marked to be listed again: what was removed from it shows then;
//! - a dirty file's extents are compared with those it had in the base ([`extents`]), so that a `chmod` is told from a
//!   write, and a write into a large file names its ranges;
//! - where an inode stands is what its references say (`INODE_REF`), in both snapshots;
//! - an inode with several names is reported under all of them, also when nothing but a directory above one of them
//!   moved, because the first name in tree order is the one that counts;
//! - a nested subvolume is a tree of its own: the same is done for it and its counterpart in the base where these are of
//!   one line, else it is read whole.
//!
//! Too much is harmless (it is read and found equal), too little loses data: whatever cannot be told apart is reported,
//! and where the two snapshots have no common past the answer is [`Error::FullScan`].

use btrfs::{Dir, subvolume};
use cas::Changes;
use cas::tree::Root;

mod build;
mod dirty;
mod error;
mod extents;
mod inventory;
mod lineage;
mod pair;
mod runs;
mod side;

pub use error::Error;
pub use inventory::Inventory;

/// Finds what changed in `snapshot` since `base`: two read-only snapshots of one filesystem and one line.
///
/// Blocks; run it behind the pool's door. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// [`Error::FullScan`] where only reading everything can tell; else the kernel refused.
pub fn changes(base: &Dir, snapshot: &Dir) -> Result<Changes, Error> {
    let (old, new) = (subvolume::info(base)?, subvolume::info(snapshot)?);
    if !old.readonly || !new.readonly {
        return Err(Error::FullScan { reason: "one of the two can still be written to" });
    }
    let since = lineage::since(snapshot, old.id, new.id)?
        .ok_or(Error::FullScan { reason: "the snapshot did not grow from the base" })?;
    let found = pair::compare(&pair::Pair::of(base, old.id, snapshot, new.id, since))?;
    build::changes(found)
}

/// A snapshot to be put, with the inventory of its tree.
///
/// # Errors
/// The kernel refused.
pub fn told(snapshot: Dir) -> btrfs::Result<Root> {
    let inventory = Inventory::of(snapshot.try_clone()?)?;
    Ok(match inventory {
        Some(inventory) => Root::told(snapshot.into(), inventory),
        None => Root::from(std::os::fd::OwnedFd::from(snapshot)),
    })
}
