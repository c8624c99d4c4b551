//! Counting what a tree uses, by walking all of it: what its manifest must say without a walk.

use std::sync::Arc;

use super::error::TreeError;
use super::fetch::Fetch;
use super::location::PackUse;
use super::manifest::Manifest;
use super::node::Item;
use super::stored::{Data, Totals, Uses};

impl Fetch {
    /// Counts what the version of a manifest is made of.
    pub(crate) async fn usage(&self, manifest: &Manifest) -> Result<(Totals, Uses), TreeError> {
        let mut totals = Totals::default();
        let mut uses = manifest.root.uses();
        let mut todo = vec![self.node(&manifest.root, manifest.version).await?];
        while let Some(node) = todo.pop() {
            for (entry, place) in node.node.entries.iter().zip(&node.places) {
                let size = if let Item::File { size, .. } = &entry.item { *size } else { 0 };
                match (&entry.item, &place.data) {
                    (Item::Directory { id }, Data::Directory(extent)) => {
                        totals.directories += 1;
                        add(&mut uses, &extent.uses());
                        todo.push(self.node(extent, *id).await?);
                        continue;
                    }
                    (_, Data::Slice { frame, .. }) => {
                        let used = PackUse { references: 1, bytes: size };
                        add(&mut uses, &Uses::from([(Arc::clone(&frame.pack), used)]));
                    }
                    (Item::File { content, .. }, Data::Map(map)) => {
                        let pages = self.pages(map, size, *content).await?;
                        if pages.len() > 1 {
                            add(&mut uses, &map.root.uses());
                        }
                        for (number, page) in pages.iter().enumerate() {
                            let Some(place) = &page.place else { continue };
                            add(&mut uses, &place.uses());
                            let start = (number as u64) << super::filemap::page_log2(map.cell_log2);
                            for (cell, at) in
                                (0u64..).zip(self.cells(map, size, *content, &pages, number).await?)
                            {
                                if let Some((frame, _)) = at.place {
                                    let left = size - (start + (cell << map.cell_log2));
                                    let used = PackUse { references: 1, bytes: left.min(1 << map.cell_log2) };
                                    add(&mut uses, &Uses::from([(frame.pack, used)]));
                                }
                            }
                        }
                    }
                    _ => {}
                }
                totals.files += 1;
                totals.bytes += size;
                totals.links += u64::from(place.linked);
            }
        }
        Ok((totals, uses))
    }
}

fn add(uses: &mut Uses, other: &Uses) {
    for (pack, used) in other {
        uses.entry(Arc::clone(pack)).or_default().add(*used);
    }
}
