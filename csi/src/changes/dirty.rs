//! The inodes that were changed since, in one pass over the leaves that were written since.

use std::collections::{BTreeMap, HashSet};

use btrfs::search::{Key, Search, kind};

use super::error::Error;
use super::side::{Node, Side};

/// What the pass found.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    /// By number. One that is open and deleted has no name and is left out.
    pub(super) nodes: BTreeMap<u64, Node>,
    /// Inodes that have a name which they did not have in the base.
    pub(super) renamed: HashSet<u64>,
}

/// Finds what is younger than the transaction `since`.
pub(super) fn find(side: &Side<'_>, since: u64) -> Result<Dirty, Error> {
    let mut dirty = Dirty::default();
    let mut current: Option<(u64, Node)> = None;
    let mut search = Search::new(side.dir, side.tree, Key::FIRST..=Key::LAST).newer_than(since);
    while let Some(item) = search.next_item()? {
        let number = item.key.objectid;
        match item.key.kind {
            kind::INODE_ITEM => {
                dirty.nodes.extend(current.take());
                let inode = item.inode()?;
                if inode.transid > since && inode.nlink > 0 {
                    current = Some((number, Node::new(inode)));
                }
            }
            kind::INODE_REF | kind::INODE_EXTREF | kind::EXTENT_DATA => {
                if let Some((dirty, node)) = &mut current
                    && *dirty == number
                {
                    node.take(&item)?;
                }
            }
            kind::DIR_INDEX => {
                let entries = item.dir_entries()?;
                let new = entries.iter().filter(|entry| entry.transid > since && entry.subvolume.is_none());
                dirty.renamed.extend(new.map(|entry| entry.inode));
            }
            _ => {}
        }
    }
    dirty.nodes.extend(current);
    for (number, node) in &mut dirty.nodes {
        if !node.is_whole() {
            *node = side.node(*number)?.ok_or(Error::FullScan { reason: "an inode has no item" })?;
        }
    }
    Ok(dirty)
}
