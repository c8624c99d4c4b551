//! What of a version lies in damaged frames: which files and directories are lost, and what else is not.
//!
//! Every node says which packs are used below it, so only the parts of the tree are read that use a damaged one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use types::PackId;

use super::cache::Cache;
use super::error::TreeError;
use super::fetch::Fetch;
use super::frame::Decompressor;
use super::location::{Extent, Location, VersionRef};
use super::node::Item;
use super::pack::Footer;
use super::put::join;
use super::read::Reader;
use super::stored::{Data, StoredNode};

/// Memory for nodes while one version is looked at.
const COLD_BYTES: usize = 32 << 20;

/// Packs that are damaged or missing, and the frames of each that are whole all the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lost(BTreeMap<PackId, BTreeSet<u32>>);

impl Lost {
    /// Adds a pack of which only the frames at these offsets are whole; none: it is missing.
    pub fn add(&mut self, pack: PackId, whole: BTreeSet<u32>) {
        self.0.insert(pack, whole);
    }

    /// Adds all of another.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Only one of the packs.
    #[must_use]
    pub fn only(&self, pack: &PackId) -> Self {
        Self(
            self.0
                .get_key_value(pack)
                .map(|(pack, whole)| (pack.clone(), whole.clone()))
                .into_iter()
                .collect(),
        )
    }

    /// The packs.
    pub fn packs(&self) -> impl Iterator<Item = &PackId> {
        self.0.keys()
    }

    /// Tells if the frame at this offset of a pack is not known to be lost.
    pub fn is_whole(&self, pack: &PackId, offset: u32) -> bool {
        self.0.get(pack).is_none_or(|whole| whole.contains(&offset))
    }

    /// Tells if no pack is damaged.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn has(&self, frame: &Location) -> bool {
        self.0.get(&*frame.pack).is_some_and(|whole| !whole.contains(&frame.offset))
    }

    fn has_any(&self, extent: &Extent) -> bool {
        extent.frames.iter().any(|frame| self.has(frame))
    }
}

/// What of a version is lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Paths from the root, as bytes. A directory ends with `/` and stands for all below it; the root is `/`.
    pub paths: Vec<Vec<u8>>,
    /// There are more than were asked for.
    pub more: bool,
}

impl Touched {
    fn add(&mut self, path: Vec<u8>, most: usize) {
        if self.paths.len() < most {
            self.paths.push(path);
        } else {
            self.more = true;
        }
    }
}

/// Finds the frames of a pack that can be read and hold what their headers say, from all of its bytes.
pub(crate) fn whole_frames(pack: &Arc<PackId>, bytes: &[u8]) -> Result<BTreeSet<u32>, TreeError> {
    let frames = match Footer::read(bytes, bytes.len() as u64) {
        Ok(footer) => footer.frames,
        Err(_) => Footer::reindex(bytes),
    };
    let mut decompressor = Decompressor::default();
    let mut whole = BTreeSet::new();
    for frame in frames {
        let location = Location {
            pack: Arc::clone(pack),
            offset: frame.offset,
            stored_len: frame.header.stored_len(),
            raw_len: frame.header.raw_len,
        };
        let start = frame.offset as usize;
        let stored = bytes.get(start..start.saturating_add(location.stored_len as usize));
        if stored.is_some_and(|stored| decompressor.open(&location, stored).is_ok()) {
            whole.insert(frame.offset);
        }
    }
    Ok(whole)
}

impl Reader {
    /// Lists up to `most` paths of a version that lie in lost frames.
    ///
    /// # Errors
    /// The store could not be read. What is damaged beside the frames that are known to be lost is told as lost.
    pub async fn touched(&self, tree: &VersionRef, lost: &Lost, most: usize) -> Result<Touched, TreeError> {
        let mut touched = Touched::default();
        let fetch = Fetch::new(Arc::clone(&self.fetch.objects), Cache::new(COLD_BYTES));
        if lost.has(&tree.manifest) {
            touched.add(b"/".to_vec(), most);
            return Ok(touched);
        }
        let Some(manifest) = survive(fetch.manifest(tree).await)? else {
            touched.add(b"/".to_vec(), most);
            return Ok(touched);
        };
        if !manifest.packs.iter().any(|needed| lost.0.contains_key(&*needed.pack)) {
            return Ok(touched);
        }
        if lost.has_any(&manifest.root) {
            touched.add(b"/".to_vec(), most);
            return Ok(touched);
        }
        let Some(root) = survive(fetch.node(&manifest.root, tree.version).await)? else {
            touched.add(b"/".to_vec(), most);
            return Ok(touched);
        };
        let mut todo = vec![(Vec::new(), root)];
        while let Some((path, node)) = todo.pop() {
            if touched.more {
                break;
            }
            if node.uses.keys().any(|pack| lost.0.contains_key(&**pack)) {
                let walk = Walk { fetch: &fetch, lost, most };
                walk.node(&path, &node, &mut todo, &mut touched).await?;
            }
        }
        touched.paths.sort();
        Ok(touched)
    }
}

struct Walk<'a> {
    fetch: &'a Fetch,
    lost: &'a Lost,
    most: usize,
}

impl Walk<'_> {
    async fn node(
        &self,
        path: &[u8],
        node: &StoredNode,
        todo: &mut Vec<(Vec<u8>, Arc<StoredNode>)>,
        touched: &mut Touched,
    ) -> Result<(), TreeError> {
        for (entry, place) in node.node.entries.iter().zip(&node.places) {
            let name = || join(path, &entry.name);
            match (&entry.item, &place.data) {
                (Item::Directory { id }, Data::Directory(extent)) => {
                    let below = if self.lost.has_any(extent) {
                        None
                    } else {
                        survive(self.fetch.node(extent, *id).await)?
                    };
                    match below {
                        Some(below) => todo.push((name(), below)),
                        None => touched.add([&name()[..], b"/"].concat(), self.most),
                    }
                }
                (_, Data::Slice { frame, .. }) if self.lost.has(frame) => touched.add(name(), self.most),
                (Item::File { size, content, .. }, Data::Map(map)) => {
                    let pages = if self.lost.has_any(&map.root) {
                        None
                    } else {
                        survive(self.fetch.pages(map, *size, *content).await)?
                    };
                    let lost = match &pages {
                        None => true,
                        Some(pages) => self.cells(map, *size, *content, pages).await?,
                    };
                    if lost {
                        touched.add(name(), self.most);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Tells if a cell, or a page of them, is lost.
    async fn cells(
        &self,
        map: &super::stored::MapPlace<Extent>,
        size: u64,
        content: types::ContentId,
        pages: &[super::filemap::PageRef<Extent>],
    ) -> Result<bool, TreeError> {
        for (number, page) in pages.iter().enumerate() {
            if page.place.as_ref().is_some_and(|place| self.lost.has_any(place)) {
                return Ok(true);
            }
            let Some(cells) = survive(self.fetch.cells(map, size, content, pages, number).await)? else {
                return Ok(true);
            };
            if cells.iter().any(|cell| cell.place.as_ref().is_some_and(|(frame, _)| self.lost.has(frame))) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// What is damaged is lost; what could not be read is an error.
fn survive<T>(result: Result<T, TreeError>) -> Result<Option<T>, TreeError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_damage() => Ok(None),
        Err(error) => Err(error),
    }
}
