//! One tree against its state in the base, and the trees nested in it against theirs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use btrfs::Dir;
use btrfs::search::{Key, Search, kind};
use btrfs::subvolume::ROOT_INODE;
use cas::ChildChange;
use types::VolumePath;

use super::dirty::{self, Dirty};
use super::error::Error;
use super::side::{Name, Node, Side, is_directory, is_file};
use super::{extents, lineage};

/// Files below this are read whole: finding what changed in them costs more than that.
const RANGES_FROM_BYTES: u64 = 256 << 10;

/// Bytes of small files that are handed on from the tree; the rest is read by whoever wants it.
const INLINE_BYTES: usize = 64 << 20;

/// Inodes that are looked up in the base at once.
const AT_ONCE: usize = 1024;

/// Two trees, the old and the new, and the last transaction that they share.
#[derive(Debug)]
pub(super) struct Pair<'d> {
    old: Side<'d>,
    new: Side<'d>,
    since: u64,
}

impl<'d> Pair<'d> {
    pub(super) fn of(base: &'d Dir, old: u64, snapshot: &'d Dir, new: u64, since: u64) -> Self {
        let side = |dir, tree| Side::new(dir, tree, VolumePath::ROOT);
        Self { old: side(base, old), new: side(snapshot, new), since }
    }
}

impl Pair<'_> {
    fn is_new(&self, node: &Node) -> bool {
        node.inode.generation > self.since
    }

    /// Tells if a file was rewritten and is read whole.
    fn is_read(&self, node: &Node) -> bool {
        is_file(&node.inode)
            && node.inode.size < RANGES_FROM_BYTES
            && node.extents.iter().any(|extent| extent.is_younger(self.since))
    }

    /// Tells if it takes the old state to say what changed: most files are new, or small and rewritten.
    fn needs_before(&self, node: &Node) -> bool {
        !is_directory(node.inode.mode) && !self.is_new(node) && !self.is_read(node)
    }
}

/// What is known of a path in the new tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// A directory to be listed again.
    Directory(Origin),
    /// Anything else.
    Other(ChildChange),
}

/// Where a directory comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// It stood here.
    Here,
    /// It stood there.
    Moved(VolumePath),
    /// There was none.
    Nowhere,
}

/// What is known, by path in the order of the tree, and all names of inodes that have several.
#[derive(Debug, Default)]
pub(super) struct Differences {
    pub(super) paths: Vec<(VolumePath, Found)>,
    pub(super) links: BTreeMap<u64, Vec<VolumePath>>,
    /// The same of nested subvolumes, whose inodes have numbers of their own.
    pub(super) nested_links: Vec<Vec<VolumePath>>,
}

/// Finds what differs.
pub(super) fn compare(pair: &Pair<'_>) -> Result<Differences, Error> {
    let Dirty { nodes, renamed } = dirty::find(&pair.new, pair.since)?;
    let mut comparison =
        Comparison { pair, found: Differences::default(), moved: Vec::new(), inline_left: INLINE_BYTES };
    let all: Vec<(u64, &Node)> = nodes.iter().map(|(number, node)| (*number, node)).collect();
    for some in all.chunks(AT_ONCE) {
        let compared = some.iter().filter(|(_, node)| pair.needs_before(node)).map(|(number, _)| *number);
        let mut before = pair.old.nodes(&compared.collect::<Vec<_>>())?;
        for (number, node) in some {
            if is_directory(node.inode.mode) {
                comparison.directory(*number, node, pair.is_new(node), renamed.contains(number))?;
            } else {
                comparison.other(*number, node, before.remove(number))?;
            }
        }
    }
    if !comparison.moved.is_empty() {
        comparison.links_below_moved(&nodes)?;
    }
    comparison.subvolumes()?;
    Ok(comparison.found)
}

struct Comparison<'p, 'd> {
    pair: &'p Pair<'d>,
    found: Differences,
    /// Directories that stand elsewhere now.
    moved: Vec<VolumePath>,
    inline_left: usize,
}

impl Comparison<'_, '_> {
    fn add(&mut self, path: VolumePath, found: Found) {
        self.found.paths.push((path, found));
    }

    fn directory(&mut self, number: u64, node: &Node, is_new: bool, renamed: bool) -> Result<(), Error> {
        let path = (*self.pair.new.directory(number)?).clone();
        let origin = if is_new {
            Origin::Nowhere
        } else if !renamed || number == ROOT_INODE {
            Origin::Here
        } else {
            match self.pair.old.node(number)? {
                Some(before) if before.inode.generation != node.inode.generation => Origin::Nowhere,
                Some(before) if before.names == node.names => Origin::Here,
                Some(_) => Origin::Moved((*self.pair.old.directory(number)?).clone()),
                None => Origin::Nowhere,
            }
        };
        if matches!(origin, Origin::Moved(_)) {
            self.moved.push(path.clone());
        }
        self.add(path, Found::Directory(origin));
        Ok(())
    }

    fn other(&mut self, number: u64, node: &Node, before: Option<Node>) -> Result<(), Error> {
        let change = self.judge(node, before)?;
        let mut paths = self.pair.new.paths(node)?;
        if paths.len() > 1 {
            self.found.links.insert(number, paths.clone());
        }
        for path in paths.drain(..) {
            self.add(path, Found::Other(change.clone()));
        }
        Ok(())
    }

    fn judge(&mut self, node: &Node, before: Option<Node>) -> Result<ChildChange, Error> {
        if self.pair.is_new(node) {
            return Ok(ChildChange::New);
        }
        if self.pair.is_read(node) {
            return Ok(self.content(node, None));
        }
        let size = node.inode.size;
        let is_file = is_file(&node.inode);
        let Some(before) = before else { return Ok(ChildChange::New) };
        if before.inode.generation != node.inode.generation {
            return Ok(ChildChange::New);
        }
        let stayed = before.names == node.names && node.names.len() == 1;
        let ranges = if is_file {
            let (old, new) = (&before.inode, &node.inode);
            extents::differences((&before.extents, old.size), (&node.extents, new.size))
        } else {
            Vec::new()
        };
        if !ranges.is_empty() {
            // Ranges are of the file that stood under this name.
            let large = stayed && size >= RANGES_FROM_BYTES && before.inode.size >= RANGES_FROM_BYTES;
            return Ok(self.content(node, large.then_some(ranges)));
        }
        let from = if stayed { None } else { self.pair.old.first_path(&before)? };
        Ok(ChildChange::Metadata { from })
    }

    fn content(&mut self, node: &Node, ranges: Option<Vec<std::ops::Range<u64>>>) -> ChildChange {
        let inline = extents::inline(&node.extents, node.inode.size)
            .filter(|bytes| bytes.len() <= self.inline_left)
            .inspect(|bytes| self.inline_left -= bytes.len());
        ChildChange::Content { ranges, inline }
    }

    /// Reports the inodes with several names of which one is below a directory that moved: nothing wrote to them, but
    /// which of their names comes first, and what it is, may be different now.
    fn links_below_moved(&mut self, dirty: &BTreeMap<u64, Node>) -> Result<(), Error> {
        let linked = linked(&self.pair.new)?;
        for (number, node) in linked {
            if dirty.contains_key(&number) {
                continue;
            }
            let paths = self.pair.new.paths(&node)?;
            if !paths.iter().any(|path| self.is_below_moved(path)) {
                continue;
            }
            let from = self.pair.old.first_path(&node)?;
            for path in &paths {
                self.add(path.clone(), Found::Other(ChildChange::Metadata { from: from.clone() }));
            }
            self.found.links.insert(number, paths);
        }
        Ok(())
    }

    fn is_below_moved(&self, path: &VolumePath) -> bool {
        self.moved.iter().any(|moved| is_below(path, moved))
    }

    /// Compares the subvolumes in this one with those that stood in their places.
    fn subvolumes(&mut self) -> Result<(), Error> {
        let (old, new) = (&self.pair.old, &self.pair.new);
        let mut before: HashMap<Name, u64> = old.subvolumes()?.into_iter().collect();
        for (name, tree) in new.subvolumes()? {
            let path = new.path(&name)?;
            let counterpart = before.remove(&name);
            self.nested(path, counterpart, tree, &name)?;
        }
        // What stood in the base and is not one any more: gone, or the empty directory that a snapshot has in its place.
        for name in before.into_keys() {
            // Its directory may be gone with it, which shows where that one stood.
            if new.node(name.directory)?.is_some() {
                let directory = (*new.directory(name.directory)?).clone();
                let there = new.has(&name)?;
                let path = new.path(&name)?;
                let known: BTreeSet<&VolumePath> = self.found.paths.iter().map(|(path, _)| path).collect();
                let (lists, has) = (!known.contains(&directory), there && !known.contains(&path));
                if lists {
                    self.add(directory, Found::Directory(Origin::Here));
                }
                if has {
                    self.add(path, Found::Other(ChildChange::New));
                }
            }
        }
        Ok(())
    }

    /// Adds what differs in a nested subvolume; all of it, where only reading it can tell.
    fn nested(&mut self, path: VolumePath, old: Option<u64>, new: u64, name: &Name) -> Result<(), Error> {
        let side = Side::new(self.pair.new.dir, new, path);
        match self.compare_nested(&side, old, name)? {
            Some(differences) => {
                self.found.paths.extend(differences.paths);
                self.found.nested_links.extend(differences.links.into_values());
                self.found.nested_links.extend(differences.nested_links);
            }
            None => {
                links_inside(&side, &mut self.found.nested_links)?;
                self.add(side.at, Found::Other(ChildChange::New));
            }
        }
        Ok(())
    }

    fn compare_nested(
        &self,
        new: &Side<'_>,
        old: Option<u64>,
        name: &Name,
    ) -> Result<Option<Differences>, Error> {
        let Some(old) = old else { return Ok(None) };
        let Some(since) = lineage::since(new.dir, old, new.tree)? else { return Ok(None) };
        // A hard link says the path of its first name: below a directory that moved, that is another one.
        if self.is_below_moved(&new.at) {
            return Ok(None);
        }
        let pair = Pair {
            old: Side::new(self.pair.old.dir, old, self.pair.old.path(name)?),
            new: Side::new(new.dir, new.tree, new.at.clone()),
            since,
        };
        match compare(&pair) {
            Ok(differences) => Ok(Some(differences)),
            Err(Error::FullScan { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Adds all names of every inode with several in a tree that is read whole, and in the trees in it: whoever reads it
/// cannot know them before it is through.
fn links_inside(side: &Side<'_>, links: &mut Vec<Vec<VolumePath>>) -> Result<(), Error> {
    for node in linked(side)?.into_values() {
        links.push(side.paths(&node)?);
    }
    for (name, tree) in side.subvolumes()? {
        links_inside(&Side::new(side.dir, tree, side.path(&name)?), links)?;
    }
    Ok(())
}

/// Finds every inode that is not a directory and has several names, by its item alone. It reads all inodes' items, a
/// microsecond each, and is done only where a directory moved or a nested subvolume is read whole.
fn linked(side: &Side<'_>) -> Result<BTreeMap<u64, Node>, Error> {
    let mut linked = BTreeMap::new();
    let mut search = Search::new(side.dir, side.tree, Key::FIRST..=Key::LAST);
    while let Some(item) = search.next_item()? {
        match item.key.kind {
            kind::INODE_ITEM => {
                let inode = item.inode()?;
                if inode.nlink > 1 && !is_directory(inode.mode) {
                    linked.insert(item.key.objectid, Node::new(inode));
                }
            }
            kind::INODE_REF | kind::INODE_EXTREF => {
                if let Some(node) = linked.get_mut(&item.key.objectid) {
                    node.take(&item)?;
                }
            }
            _ => {}
        }
    }
    Ok(linked)
}

/// Tells if `path` is `directory` or below it.
fn is_below(path: &VolumePath, directory: &VolumePath) -> bool {
    let mut segments = path.segments();
    directory.segments().all(|segment| segments.next() == Some(segment))
}
