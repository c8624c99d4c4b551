//! Which frames of some packs are in use: what is copied when a pack is evacuated.
//!
//! Every node says which packs are used below it, so only the parts of a tree that use one of the packs are read, and
//! what two versions share is read once.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use types::PackId;

use super::error::TreeError;
use super::fetch::Fetch;
use super::location::{Extent, Location, VersionRef};
use super::node::Item;
use super::pack::FooterError;
use super::read::Reader;
use super::stored::{Data, StoredNode};

/// Frames of a pack: offset and length with header.
pub(crate) type Frames = BTreeMap<u32, u32>;

/// The frames of some packs that some versions use.
#[derive(Debug)]
pub(crate) struct Living {
    fetch: Fetch,
    packs: BTreeSet<PackId>,
    seen: HashSet<Extent>,
    /// Found so far, by the pack that trees name.
    pub(crate) frames: BTreeMap<PackId, Frames>,
    /// How many more nodes may be read.
    nodes: usize,
}

impl Living {
    /// Looks for frames of `packs`, and reads at most `nodes` nodes for it.
    pub(crate) fn new(reader: &Reader, packs: BTreeSet<PackId>, nodes: usize) -> Self {
        Self { fetch: reader.fetch.clone(), packs, seen: HashSet::new(), frames: BTreeMap::new(), nodes }
    }

    /// Adds what a version uses. `false`: there was too much to read, and what was found is not all.
    pub(crate) async fn add(&mut self, tree: &VersionRef) -> Result<bool, TreeError> {
        self.frame(&tree.manifest);
        let manifest = self.fetch.manifest(tree).await?;
        if !manifest.packs.iter().any(|needed| self.packs.contains(&needed.pack)) {
            return Ok(true);
        }
        self.extent(&manifest.root);
        let mut todo = Vec::new();
        if self.seen.insert(manifest.root.clone()) {
            todo.push(self.fetch.node(&manifest.root, tree.version).await?);
        }
        while let Some(node) = todo.pop() {
            if !node.uses.keys().any(|pack| self.packs.contains(pack)) {
                continue;
            }
            let Some(left) = self.nodes.checked_sub(1) else { return Ok(false) };
            self.nodes = left;
            self.node(&node, &mut todo).await?;
        }
        Ok(true)
    }

    async fn node(&mut self, node: &StoredNode, todo: &mut Vec<Arc<StoredNode>>) -> Result<(), TreeError> {
        for (entry, place) in node.node.entries.iter().zip(&node.places) {
            match (&entry.item, &place.data) {
                (Item::Directory { id }, Data::Directory(extent)) => {
                    self.extent(extent);
                    if self.seen.insert(extent.clone()) {
                        todo.push(self.fetch.node(extent, *id).await?);
                    }
                }
                (_, Data::Slice { frame, .. }) => self.frame(frame),
                (Item::File { size, content, .. }, Data::Map(map)) => {
                    self.extent(&map.root);
                    if !self.seen.insert(map.root.clone()) {
                        continue;
                    }
                    let pages = self.fetch.pages(map, *size, *content).await?;
                    for (number, page) in pages.iter().enumerate() {
                        let Some(place) = &page.place else { continue };
                        self.extent(place);
                        for cell in self.fetch.cells(map, *size, *content, &pages, number).await? {
                            if let Some((frame, _)) = &cell.place {
                                self.frame(frame);
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn extent(&mut self, extent: &Extent) {
        for frame in &extent.frames {
            self.frame(frame);
        }
    }

    fn frame(&mut self, frame: &Location) {
        if self.packs.contains(&frame.pack) {
            let frames = self.frames.entry(PackId::clone(&frame.pack)).or_default();
            frames.insert(frame.offset, frame.stored_len);
        }
    }
}

/// Reads from a pack's footer how many plain bytes its frames hold. `size` is the object's.
pub(crate) async fn plain_bytes(reader: &Reader, pack: &PackId, size: u64) -> Result<u64, TreeError> {
    let footer = Fetch::footer(size, |range| reader.fetch.direct(pack, range)).await?;
    let damaged =
        |error: FooterError| TreeError::DamagedPack { pack: pack.clone(), reason: error.to_string() };
    Ok(footer.map_err(damaged)?.frames.iter().map(|frame| u64::from(frame.header.raw_len)).sum())
}
