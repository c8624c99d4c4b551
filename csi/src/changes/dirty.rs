//! The inodes that were changed since, in one pass over the leaves that were written since.

use std::collections::{BTreeMap, HashMap, HashSet};

use btrfs::search::{Key, Search, kind};

use super::error::Error;
use super::side::{Name, Node, Side, is_directory};

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
    // Directories that did not change come along, and tell where what changed in them stands.
    let mut directory = None;
    let mut stands: HashMap<u64, Name> = HashMap::new();
    let mut search = Search::new(side.dir, side.tree, Key::FIRST..=Key::LAST).newer_than(since);
    while let Some(item) = search.next_item()? {
        let number = item.key.objectid;
        match item.key.kind {
            kind::INODE_ITEM => {
                dirty.nodes.extend(current.take());
                let (transid, mode) = item.inode_changed()?;
                directory = is_directory(mode).then_some(number);
                if transid > since {
                    let inode = item.inode()?;
                    current = (inode.nlink > 0).then(|| (number, Node::new(inode)));
                }
            }
            kind::INODE_REF | kind::INODE_EXTREF | kind::EXTENT_DATA => {
                if directory == Some(number)
                    && let Some(one) = item.inode_refs()?.first()
                {
                    stands.insert(number, Name { directory: one.dir_inode, name: one.name.to_vec() });
                }
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
    side.learn(stands);
    let in_part = |directories: bool| {
        let nodes = dirty.nodes.iter().filter(move |(_, node)| is_directory(node.inode.mode) == directories);
        nodes.filter(|(_, node)| !node.is_whole()).map(|(number, _)| *number).collect::<Vec<u64>>()
    };
    let (directories, others) = (in_part(true), in_part(false));
    let mut whole = side.nodes(&others)?;
    for number in &directories {
        whole.extend(side.node(*number)?.map(|node| (*number, node)));
    }
    for number in directories.iter().chain(&others) {
        let node = whole.remove(number).ok_or(Error::FullScan { reason: "an inode has no item" })?;
        dirty.nodes.insert(*number, node);
    }
    Ok(dirty)
}
