//! Making nodes from what comes off the line, children before parents, and in the end the manifest.

use std::collections::HashMap;
use std::sync::Arc;

use types::VersionId;

use super::batch::{Batch, CellDone, DoneData, Event, Job, Shop};
use super::compact::Emptied;
use super::frames::{BuildUses, TreeFrames, TreeRef};
use super::large::OpenLarge;
use super::packs::Packs;
use crate::tree::cache::Cache;
use crate::tree::dedup::{KnownDir, Lookup};
use crate::tree::error::TreeError;
use crate::tree::filemap::{Cell, PageRef};
use crate::tree::flags::Flags;
use crate::tree::frame::FrameKind;
use crate::tree::location::{Extent, Location, PackUse, VersionRef};
use crate::tree::manifest::{Manifest, PackNeeded};
use crate::tree::node::{Entry, Item, Metadata, Node};
use crate::tree::stored::{At, Data, Draft, MapPlace, Place, StoredNode, Totals, Uses};

/// Directories of one put that are remembered for deduplication.
const KNOWN_MAX: usize = 1 << 16;

/// Where an entry's bytes lie, while the put goes on.
#[derive(Debug, Clone)]
pub(super) enum Built {
    Plain(Data<Extent>),
    Map { cell_log2: u8, root: TreeRef, uses: BuildUses },
    Directory(TreeRef),
}

#[derive(Debug)]
struct BuiltPlace {
    linked: bool,
    sparse: bool,
    built: Built,
}

impl BuiltPlace {
    /// Tells if this is what `old` says beside the identity. A directory that was stored again, though it is the same, has
    /// other flags somewhere below it: whoever goes on with the old one would not see them.
    fn stands_as(&self, old: &Place<Extent>) -> bool {
        let below = match (&self.built, &old.data) {
            (Built::Directory(new), Data::Directory(old)) => matches!(new, TreeRef::At(new) if new == old),
            _ => true,
        };
        below && (self.linked, self.sparse) == (old.linked, old.sparse)
    }
}

/// A directory that is not finished.
#[derive(Debug)]
struct OpenDir {
    name: Vec<u8>,
    node: Node,
    places: Vec<BuiltPlace>,
    totals: Totals,
    uses: BuildUses,
    /// Flags of everything below, so that directories that differ only in them are not taken for each other.
    flags: Flags,
    base: Option<Arc<StoredNode>>,
    old: Option<(Arc<StoredNode>, Extent)>,
}

/// A directory that is finished.
#[derive(Debug, Clone)]
struct Finished {
    id: VersionId,
    tree: TreeRef,
    totals: Totals,
    uses: BuildUses,
    flags: Flags,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    packs: &'a Packs,
    cache: &'a Cache,
    lookup: &'a Lookup,
    /// Nothing of them is used again.
    emptied: &'a Emptied,
    pub(super) frames: TreeFrames<'a>,
    stack: Vec<OpenDir>,
    pub(super) large: Option<OpenLarge>,
    known: HashMap<(VersionId, Flags), Finished>,
    root: Option<Finished>,
    /// Files that were read, made, moved or removed.
    pub(super) files_changed: u64,
}

/// What a put made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) tree: VersionRef,
    pub(super) totals: Totals,
    /// Directories that were read whole, and where they lie.
    pub(super) dirs: Vec<KnownDir>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(shop: &'a Shop, cache: &'a Cache, emptied: &'a Emptied) -> Result<Self, TreeError> {
        Ok(Self {
            packs: &shop.packs,
            cache,
            lookup: &shop.lookup,
            emptied,
            frames: TreeFrames::new(&shop.packs, cache, &shop.level)?,
            stack: Vec::new(),
            large: None,
            known: HashMap::new(),
            root: None,
            files_changed: 0,
        })
    }

    /// Takes a batch that the workers are done with.
    pub(super) fn take(&mut self, batch: Batch) -> Result<(), TreeError> {
        let mut jobs: Vec<Option<Job>> = batch.jobs.into_iter().map(Some).collect();
        for event in batch.events {
            match event {
                Event::Enter { name, meta, base, old } => self.enter(name, meta, base, old),
                Event::Leave => self.leave()?,
                Event::Keep(numbers) => numbers.for_each(|number| self.keep(number)),
                Event::Drop { number, node, gone } => self.drop_old(number, node.as_deref(), gone),
                Event::Adopt { name, node, extent } => self.adopt(name, &node, extent),
                Event::Item { name, item, place } => {
                    self.files_changed += 1;
                    self.add(name, item, place.linked, place.sparse, Built::of(place.data));
                }
                Event::File { name, linked, job } => {
                    let Some(Job::File(job)) = jobs[job].take() else { unreachable!("a job is named once") };
                    let done = job.done.expect("the worker was done with the batch");
                    let data = match done.data {
                        DoneData::Inline(bytes) => Data::Inline(bytes),
                        DoneData::Slice(slot, offset) => Data::Slice { frame: slot.wait()?, offset },
                        DoneData::Old(data) => data,
                    };
                    let item = Item::File { meta: done.meta, size: done.size, content: done.content };
                    self.files_changed += 1;
                    self.add(name, item, linked, done.sparse, Built::of(data));
                }
                Event::Large { name, linked, sparse, meta, size, cell_log2, uses } => {
                    self.large = Some(OpenLarge {
                        name,
                        linked,
                        sparse,
                        meta,
                        size,
                        cell_log2,
                        uses: BuildUses::of(uses),
                        cells: Vec::new(),
                        pages: Vec::new(),
                        only: Vec::new(),
                    });
                }
                Event::Piece(job) => {
                    let Some(Job::Piece(job)) = jobs[job].take() else { unreachable!("a job is named once") };
                    for (chaining, done) in job.done {
                        let place = match done {
                            CellDone::Zero => None,
                            CellDone::New(slot, offset) => Some((slot.wait()?, offset)),
                            CellDone::Old(frame, offset) => Some((frame, offset)),
                        };
                        self.cell(Cell { chaining, place })?;
                    }
                }
                Event::Cells(cells) => cells.into_iter().try_for_each(|cell| self.cell(cell))?,
                Event::Page(page) => {
                    let large = self.large.as_mut().expect("pages come within a large file");
                    // What it uses is in the sums that came with the file.
                    let place = page.place.map(TreeRef::At);
                    large.pages.push(PageRef { chaining: page.chaining, place });
                }
                Event::LargeEnd => self.large_end()?,
            }
        }
        Ok(())
    }

    fn top(&mut self) -> &mut OpenDir {
        self.stack.last_mut().expect("entries come within a directory")
    }

    fn enter(
        &mut self,
        name: Vec<u8>,
        meta: Metadata,
        base: Option<Arc<StoredNode>>,
        old: Option<(Arc<StoredNode>, Extent)>,
    ) {
        let (totals, uses) = base
            .as_ref()
            .map_or_else(Default::default, |base| (base.totals, BuildUses::of(base.uses.clone())));
        let node = Node { meta, entries: Vec::new() };
        self.stack.push(OpenDir {
            name,
            node,
            places: Vec::new(),
            totals,
            uses,
            flags: Flags::default(),
            base,
            old,
        });
    }

    /// Adds an entry with what it uses.
    pub(super) fn add(&mut self, name: Vec<u8>, item: Item, linked: bool, sparse: bool, built: Built) {
        let top = self.top();
        top.totals.add(entry_totals(&item, linked));
        match &built {
            Built::Plain(Data::Slice { frame, .. }) => top.uses.count_data(frame, item_size(&item)),
            Built::Map { uses, .. } => top.uses.add(uses),
            Built::Plain(_) | Built::Directory(_) => {}
        }
        top.flags.entry(linked, sparse);
        top.push(name, item, linked, sparse, built);
    }

    fn keep(&mut self, number: usize) {
        let top = self.top();
        let base = Arc::clone(top.base.as_ref().expect("an entry is kept from a base"));
        let Entry { name, item } = base.node.entries[number].clone();
        let Place { linked, sparse, data } = base.places[number].clone();
        // What it uses is in the sums that came with the base.
        top.flags.entry(linked, sparse);
        top.push(name, item, linked, sparse, Built::of(data));
    }

    fn drop_old(&mut self, number: usize, node: Option<&StoredNode>, gone: bool) {
        let top = self.stack.last_mut().expect("entries come within a directory");
        let base = top.base.as_ref().expect("an entry is dropped from a base");
        let place = &base.places[number];
        let item = &base.node.entries[number].item;
        match &place.data {
            Data::Nothing | Data::Inline(_) => {}
            Data::Slice { frame, .. } => {
                let used = PackUse { references: 1, bytes: item_size(item) };
                top.uses.subtract(&Uses::from([(Arc::clone(&frame.pack), used)]));
            }
            Data::Map(map) => top.uses.subtract(&map_uses(map)),
            Data::Directory(extent) => top.uses.subtract(&extent.uses()),
        }
        match node {
            Some(node) => {
                top.uses.subtract(&node.uses);
                top.totals.subtract(node.totals);
                top.totals.subtract(Totals { directories: 1, ..Totals::default() });
                self.files_changed += if gone { node.totals.files } else { 0 };
            }
            None => {
                top.totals.subtract(entry_totals(item, place.linked));
                self.files_changed += u64::from(gone);
            }
        }
    }

    fn adopt(&mut self, name: Vec<u8>, node: &Arc<StoredNode>, extent: Extent) {
        let finished = Finished {
            id: node.id,
            tree: TreeRef::At(extent),
            totals: node.totals,
            uses: BuildUses::of(node.uses.clone()),
            flags: Flags::default(),
        };
        self.add_directory(name, &finished);
    }

    fn add_directory(&mut self, name: Vec<u8>, finished: &Finished) {
        let top = self.top();
        top.totals.add(finished.totals);
        top.totals.add(Totals { directories: 1, ..Totals::default() });
        top.uses.add(&finished.uses);
        top.uses.count(&finished.tree);
        top.flags.directory(finished.flags);
        let item = Item::Directory { id: finished.id };
        top.push(name, item, false, false, Built::Directory(finished.tree.clone()));
    }

    fn leave(&mut self) -> Result<(), TreeError> {
        let dir = self.stack.pop().expect("a directory ends after it began");
        let finished = self.finish_dir(&dir)?;
        if self.stack.is_empty() {
            self.root = Some(finished);
        } else {
            self.add_directory(dir.name, &finished);
        }
        Ok(())
    }

    fn finish_dir(&mut self, dir: &OpenDir) -> Result<Finished, TreeError> {
        let mut bytes = dir.node.encode();
        let id = VersionId(*blake3::hash(&bytes).as_bytes());
        // Of a directory with a base the flags below what was kept are not known, so it is taken for no other.
        let key = dir.base.is_none().then_some((id, dir.flags));
        if let Some(known) = key.and_then(|key| self.known.get(&key)) {
            return Ok(known.clone());
        }
        if let Some((old, extent)) = &dir.old
            && old.id == id
            && !self.emptied.touch_extent(extent)
            && !self.emptied.touch(&old.uses)
            && old.places.iter().zip(&dir.places).all(|(old, new)| new.stands_as(old))
        {
            let (tree, uses) = (TreeRef::At(extent.clone()), BuildUses::of(old.uses.clone()));
            return Ok(Finished { id, tree, totals: old.totals, uses, flags: dir.flags });
        }
        if let Some(key) = key
            && let Some((node, extent)) = self.lookup.directory(id, dir.flags.value())
        {
            let (tree, uses) = (TreeRef::At(extent), BuildUses::of(node.uses.clone()));
            let finished = Finished { id, tree, totals: node.totals, uses, flags: dir.flags };
            self.remember(key, &finished);
            return Ok(finished);
        }
        self.frames.prepare(bytes.len())?;
        let places: Vec<Place<At>> = dir.places.iter().map(|place| self.resolve(place)).collect();
        let (uses, own) = self.frames.uses(&dir.uses);
        Draft { node: &dir.node, places: &places, totals: dir.totals, uses: &uses, own }.put(&mut bytes);
        let tree = self.frames.append(&bytes)?;
        let finished = Finished { id, tree, totals: dir.totals, uses: dir.uses.clone(), flags: dir.flags };
        if let Some(key) = key {
            self.remember(key, &finished);
        }
        Ok(finished)
    }

    fn remember(&mut self, key: (VersionId, Flags), finished: &Finished) {
        if self.known.len() < KNOWN_MAX {
            self.known.insert(key, finished.clone());
        }
    }

    fn resolve(&self, place: &BuiltPlace) -> Place<At> {
        let data = match &place.built {
            Built::Plain(Data::Nothing | Data::Map(_) | Data::Directory(_)) => Data::Nothing,
            Built::Plain(Data::Inline(bytes)) => Data::Inline(bytes.clone()),
            Built::Plain(Data::Slice { frame, offset }) => {
                Data::Slice { frame: frame.clone(), offset: *offset }
            }
            Built::Map { cell_log2, root, uses } => {
                let (packs, own) = self.frames.uses(uses);
                let mut uses: Vec<_> = packs.into_iter().map(|(pack, used)| (Some(pack), used)).collect();
                if own != PackUse::default() {
                    uses.push((None, own));
                }
                Data::Map(MapPlace { cell_log2: *cell_log2, root: self.frames.at(root), uses })
            }
            Built::Directory(tree) => Data::Directory(self.frames.at(tree)),
        };
        Place { linked: place.linked, sparse: place.sparse, data }
    }

    /// Returns the version that was built.
    pub(super) fn version(&self) -> Result<VersionId, TreeError> {
        self.root.as_ref().map(|root| root.id).ok_or(TreeError::Stopped("the root directory did not end"))
    }

    /// Writes the manifest and closes all packs. `parent` knows the lengths of older ones.
    pub(super) fn finish(mut self, parent: Option<&Manifest>) -> Result<Made, TreeError> {
        let root = self.root.take().ok_or(TreeError::Stopped("the root directory did not end"))?;
        self.frames.close()?;
        self.packs.close_data()?;
        let At::There(extent) = self.frames.at(&root.tree) else {
            return Err(TreeError::Stopped("the root's frame was not closed"));
        };
        let mut uses = root.uses;
        uses.count(&TreeRef::At(extent.clone()));
        let (uses, _) = self.frames.uses(&uses);
        let packs = uses.into_iter().map(|(pack, used)| PackNeeded {
            object_bytes: self
                .packs
                .closed_len(&pack)
                .or_else(|| {
                    let parent = parent?;
                    let found = parent.packs.binary_search_by(|needed| needed.pack.cmp(&pack)).ok()?;
                    parent.packs[found].object_bytes
                })
                .or_else(|| self.lookup.pack_len(&pack)),
            used,
            pack,
        });
        let manifest =
            Manifest { version: root.id, root: extent, totals: root.totals, packs: packs.collect() };
        let location: Location = self.frames.place(FrameKind::Manifest, &manifest.encode())?;
        self.cache.keep_manifest(&location, &Arc::new(manifest));
        self.packs.finish()?;
        let tree = VersionRef { version: root.id, manifest: location };
        let dirs =
            self.known.iter().filter_map(|((id, flags), finished)| match self.frames.at(&finished.tree) {
                At::There(extent) => Some((*id, flags.value(), extent)),
                At::Here { .. } => None,
            });
        Ok(Made { tree, totals: root.totals, dirs: dirs.collect() })
    }
}

impl Built {
    fn of(data: Data<Extent>) -> Self {
        match data {
            Data::Directory(extent) => Self::Directory(TreeRef::At(extent)),
            Data::Map(map) => {
                let uses = BuildUses::of(map_uses(&map));
                Self::Map { cell_log2: map.cell_log2, root: TreeRef::At(map.root), uses }
            }
            plain @ (Data::Nothing | Data::Inline(_) | Data::Slice { .. }) => Self::Plain(plain),
        }
    }
}

impl OpenDir {
    fn push(&mut self, name: Vec<u8>, item: Item, linked: bool, sparse: bool, built: Built) {
        self.node.entries.push(Entry { name, item });
        self.places.push(BuiltPlace { linked, sparse, built });
    }
}

fn map_uses(map: &MapPlace<Extent>) -> Uses {
    let mut uses = Uses::new();
    for (pack, used) in &map.uses {
        if let Some(pack) = pack {
            uses.entry(Arc::clone(pack)).or_default().add(*used);
        }
    }
    uses
}

fn item_size(item: &Item) -> u64 {
    if let Item::File { size, .. } = item { *size } else { 0 }
}

fn entry_totals(item: &Item, linked: bool) -> Totals {
    Totals { files: 1, directories: 0, bytes: item_size(item), links: u64::from(linked) }
}
