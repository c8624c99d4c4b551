//! Reading what a version is made of into the index: its nodes and maps, not its bytes.

use std::sync::Arc;

use types::Domain;

use super::index::{DedupIndex, Known, KnownDir};
use crate::tree::error::TreeError;
use crate::tree::fetch::Fetch;
use crate::tree::filemap;
use crate::tree::flags::Flags;
use crate::tree::location::{Extent, VersionRef};
use crate::tree::node::Item;
use crate::tree::read::Reader;
use crate::tree::stored::{Data, StoredNode};

/// The most names of one version that are read: a larger one is known in part.
const NAMES_MAX: u64 = 200_000;

/// Told to the index in pieces of this many, so that its lock is never held for long.
const PIECE: usize = 4_096;

impl Reader {
    /// Learns what `tree`, a version of a volume in `domain`, is made of.
    ///
    /// # Errors
    /// The version cannot be read; what was read until then is known.
    pub async fn learn(
        &self,
        index: &DedupIndex,
        domain: &Domain,
        tree: &VersionRef,
    ) -> Result<(), TreeError> {
        learn(&self.fetch, index, domain, tree).await
    }
}

struct Level {
    node: Arc<StoredNode>,
    extent: Extent,
    next: usize,
    flags: Flags,
}

pub(super) async fn learn(
    fetch: &Fetch,
    index: &DedupIndex,
    domain: &Domain,
    tree: &VersionRef,
) -> Result<(), TreeError> {
    let manifest = fetch.manifest(tree).await?;
    let fetch = fetch.ahead(tree).await?;
    let root = fetch.node(&manifest.root, tree.version).await?;
    let (mut known, mut dirs): (Vec<Known>, Vec<KnownDir>) = (Vec::new(), Vec::new());
    let mut names = 0;
    let mut stack =
        vec![Level { node: root, extent: manifest.root.clone(), next: 0, flags: Flags::default() }];
    while let Some(level) = stack.last_mut() {
        if known.len() + dirs.len() >= PIECE {
            index.learn(domain, std::mem::take(&mut known), std::mem::take(&mut dirs));
        }
        let Some(entry) = level.node.node.entries.get(level.next) else {
            let level = stack.pop().expect("it was there a line above");
            let flags = level.flags;
            dirs.push((level.node.id, flags.value(), level.extent));
            if let Some(parent) = stack.last_mut() {
                parent.flags.directory(flags);
            }
            continue;
        };
        let place = &level.node.places[level.next];
        level.next += 1;
        names += 1;
        if names > NAMES_MAX {
            break;
        }
        match (&entry.item, &place.data) {
            (Item::Directory { id }, Data::Directory(extent)) => {
                let (extent, id) = (extent.clone(), *id);
                let node = fetch.node(&extent, id).await?;
                stack.push(Level { node, extent, next: 0, flags: Flags::default() });
                continue;
            }
            (Item::File { content, .. }, Data::Slice { frame, offset }) => {
                known.push((*content.as_bytes(), frame.clone(), *offset));
            }
            (Item::File { size, content, .. }, Data::Map(map)) => {
                let (size, content, map) = (*size, *content, map.clone());
                level.flags.entry(place.linked, place.sparse);
                let pages = fetch.pages(&map, size, content).await?;
                for number in 0..pages.len() {
                    let cells = fetch.cells(&map, size, content, &pages, number).await?;
                    known.extend(cells.into_iter().filter_map(|filemap::Cell { chaining, place }| {
                        let (frame, offset) = place?;
                        Some((chaining, frame, offset))
                    }));
                }
                continue;
            }
            _ => {}
        }
        level.flags.entry(place.linked, place.sparse);
    }
    index.learn(domain, known, dirs);
    Ok(())
}
