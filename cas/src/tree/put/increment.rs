//! Putting what changed since a version: the parent's nodes and the changes are walked together, everything else is
//! taken over as it stands.

use std::ops::Range;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use rustix::fs::FileType;
use types::VolumePath;

use super::batch::{Event, FileJob, join};
use super::compact::Emptied;
use super::past::{Base, BaseFile, Past};
use super::scan::{Listed, Scanner, look};
use crate::tree::changes::{ChildChange, DirChange};
use crate::tree::error::TreeError;
use crate::tree::node::Item;
use crate::tree::source;
use crate::tree::stored::{Data, Place, SLICE_MAX, StoredNode};

/// See the module.
#[derive(Debug)]
pub(super) struct Increment<'a> {
    pub(super) past: Past<'a>,
    pub(super) scanner: Scanner<'a>,
    /// What lies in these packs is stored again.
    pub(super) emptied: Emptied,
}

impl Increment<'_> {
    /// Walks a directory that differs from `base`.
    pub(super) fn directory(
        &mut self,
        path: &Arc<[u8]>,
        name: &[u8],
        change: DirChange,
        base: Base,
    ) -> Result<(), TreeError> {
        let DirChange { relist, mut children } = change;
        let node = Arc::clone(&base.0);
        let dir = source::open_dir(self.scanner.root.as_fd(), path)?;
        let dir = dir.as_fd();
        let (meta, listed) = if relist {
            let fail = |call| move |error| TreeError::io(call, path, error);
            let facts = source::facts_of(dir).map_err(fail("stat"))?;
            let xattrs = source::xattrs_of(dir).map_err(fail("read attributes of"))?;
            (facts.metadata(xattrs), Some(source::names(dir, path)?))
        } else {
            (node.node.meta.clone(), None)
        };
        let enter = Event::Enter {
            name: name.to_vec(),
            meta,
            base: Some(Arc::clone(&node)),
            old: Some((Arc::clone(&node), base.1)),
        };
        self.scanner.cutter.event(enter)?;
        let mut kept = 0..0;
        for (name, number) in union(&node, listed, &children) {
            let mut child = children.remove(&name);
            let mut again = false;
            if child.as_ref().is_none_or(is_nothing)
                && let Some(Some(number)) = number
                && let Some(change) = self.stored_again(path, &node, number)?
            {
                (child, again) = (Some(change), true);
            }
            if let (
                None | Some(ChildChange::Directory(DirChange { relist: false, .. })),
                Some(Some(number)),
                true,
            ) = (&child, &number, !again && child.as_ref().is_none_or(is_nothing))
            {
                // Runs of names that are kept are one event.
                if kept.end == *number {
                    kept.end += 1;
                } else {
                    self.keep(std::mem::replace(&mut kept, *number..*number + 1))?;
                }
                continue;
            }
            self.keep(std::mem::replace(&mut kept, 0..0))?;
            match number {
                // Only in the parent's node: gone.
                None => {
                    if child.is_some() {
                        return Err(TreeError::ChangesDoNotFit {
                            path: join(path, &name),
                            reason: "it changed and is not there",
                        });
                    }
                    let number = node.node.position(&name).expect("it came from the node");
                    self.drop_old(&node, number, true)?;
                }
                Some(number) => {
                    let old = match number {
                        Some(number) => self.drop_old(&node, number, false)?,
                        None => None,
                    };
                    let old_file = number.map(|number| (Arc::clone(&node), number));
                    let child = child.unwrap_or(ChildChange::New);
                    self.child(dir, path, name, child, old, old_file)?;
                }
            }
        }
        self.keep(kept)?;
        self.scanner.cutter.event(Event::Leave)
    }

    /// How to look at an entry that did not change, if something of it lies in a pack that is emptied.
    fn stored_again(
        &mut self,
        path: &[u8],
        node: &StoredNode,
        number: usize,
    ) -> Result<Option<ChildChange>, TreeError> {
        if !self.emptied.touch(&node.uses) {
            return Ok(None);
        }
        let place = &node.places[number];
        if let Data::Directory(extent) = &place.data {
            let below = self.past.below(node, number)?;
            let touched = below.is_some_and(|(below, _)| self.emptied.touch(&below.uses));
            let again = touched || self.emptied.touch_extent(extent);
            return Ok(again.then(|| ChildChange::Directory(DirChange::default())));
        }
        if !self.emptied.touch_place(place) {
            return Ok(None);
        }
        if place.linked {
            self.scanner.links.keep_first(&join(path, &node.node.entries[number].name));
        }
        Ok(Some(ChildChange::Content { ranges: Some(Vec::new()), inline: None }))
    }

    fn keep(&mut self, kept: Range<usize>) -> Result<(), TreeError> {
        if kept.is_empty() { Ok(()) } else { self.scanner.cutter.event(Event::Keep(kept)) }
    }

    /// Takes an entry out of the sums; returns its node if it is a directory.
    fn drop_old(
        &mut self,
        node: &Arc<StoredNode>,
        number: usize,
        gone: bool,
    ) -> Result<Option<Base>, TreeError> {
        let below = self.past.below(node, number)?;
        let dropped = below.as_ref().map(|(node, _)| Arc::clone(node));
        self.scanner.cutter.event(Event::Drop { number, node: dropped, gone })?;
        Ok(below)
    }

    fn child(
        &mut self,
        dir: std::os::fd::BorrowedFd<'_>,
        path: &Arc<[u8]>,
        name: Vec<u8>,
        child: ChildChange,
        old_dir: Option<Base>,
        old_file: Option<(Arc<StoredNode>, usize)>,
    ) -> Result<(), TreeError> {
        let below: Arc<[u8]> = join(path, &name).into();
        match child {
            ChildChange::Directory(change) => match old_dir {
                Some(base) => self.directory(&below, &name, change, base),
                // It is new, and only its links were told.
                None => self.new_child(dir, path, name),
            },
            ChildChange::Moved { from, change } => {
                let Some(base) = self.past.directory(from.as_bytes())? else {
                    return Err(TreeError::ChangesDoNotFit {
                        path: below.to_vec(),
                        reason: "it was moved from where there is no directory in the parent version",
                    });
                };
                if change.is_empty() {
                    let (node, extent) = base;
                    return self.scanner.cutter.event(Event::Adopt { name, node, extent });
                }
                self.directory(&below, &name, change, base)
            }
            ChildChange::New => self.new_child(dir, path, name),
            ChildChange::Metadata { from } => {
                let listed = look(dir, path, name)?;
                if listed.facts.kind == FileType::Directory {
                    return match (from, old_dir) {
                        (None, Some(base)) => {
                            let change = DirChange { relist: true, ..DirChange::default() };
                            let name = listed.name;
                            self.directory(&below, &name, change, base)
                        }
                        _ => self.scanner.walk(&below, &listed.name),
                    };
                }
                let base = self.base_file(from.as_ref(), old_file)?;
                // A length that differs says that more than the metadata changed.
                let same = base.as_ref().is_some_and(|base| base.size == listed.facts.size);
                self.file(path, listed, base, same.then(Vec::new), None)
            }
            ChildChange::Content { ranges, inline } => {
                let listed = look(dir, path, name)?;
                if listed.facts.kind == FileType::Directory {
                    return self.scanner.walk(&below, &listed.name);
                }
                let base = self.base_file(None, old_file)?;
                self.file(path, listed, base, ranges, inline)
            }
        }
    }

    fn new_child(
        &mut self,
        dir: std::os::fd::BorrowedFd<'_>,
        path: &Arc<[u8]>,
        name: Vec<u8>,
    ) -> Result<(), TreeError> {
        let listed = look(dir, path, name)?;
        if listed.facts.kind == FileType::Directory {
            let below = join(path, &listed.name);
            self.scanner.walk(&below, &listed.name)
        } else {
            self.scanner.entry(path, listed)
        }
    }

    fn base_file(
        &self,
        from: Option<&VolumePath>,
        old: Option<(Arc<StoredNode>, usize)>,
    ) -> Result<Option<BaseFile>, TreeError> {
        match (from, old) {
            (Some(from), _) => self.past.file(from.as_bytes()),
            (None, Some((node, number))) => self.past.file_at(&node, number),
            (None, None) => Ok(None),
        }
    }

    /// Takes a file of which `ranges` may differ from `base` (`None`: all of it).
    fn file(
        &mut self,
        dir: &Arc<[u8]>,
        listed: Listed,
        base: Option<BaseFile>,
        ranges: Option<Vec<Range<u64>>>,
        inline: Option<bytes::Bytes>,
    ) -> Result<(), TreeError> {
        let path = join(dir, &listed.name);
        let linked = listed.facts.links > 1;
        if let Some(first) = self.scanner.links.first(&listed.facts, &path)? {
            return self.scanner.later_name(dir, listed.name, first);
        }
        if let Some(item) = listed.item() {
            let place = Place { linked, sparse: false, data: Data::Nothing };
            return self.scanner.cutter.event(Event::Item { name: listed.name, item, place });
        }
        let Some(base) = base else { return self.scanner.file(dir, listed, linked) };
        let facts = listed.facts;
        let again = self.emptied.touch_place(&base.place);
        if facts.size == base.size && !again && ranges.as_ref().is_some_and(Vec::is_empty) {
            let xattrs = self.attributes(dir, &listed.name, &path)?;
            let item = Item::File { meta: facts.metadata(xattrs), size: base.size, content: base.content };
            let place = Place { linked, ..base.place };
            return self.scanner.cutter.event(Event::Item { name: listed.name, item, place });
        }
        if facts.size <= SLICE_MAX {
            let old = Some((base.content, base.place)).filter(|_| !again);
            let (dir, name) = (Arc::clone(dir), listed.name);
            let (frozen, done) = (None, None);
            return self.scanner.cutter.file(linked, FileJob { dir, name, facts, frozen, inline, old, done });
        }
        let Data::Map(map) = &base.place.data else { return self.scanner.file(dir, listed, linked) };
        let ranges = ranges.unwrap_or_else(|| std::iter::once(0..facts.size).collect());
        self.large(dir, listed, linked, &base, map, &ranges)
    }

    fn attributes(
        &self,
        dir: &[u8],
        name: &[u8],
        path: &[u8],
    ) -> Result<Vec<crate::tree::node::Xattr>, TreeError> {
        let dir = source::open_dir(self.scanner.root.as_fd(), dir)?;
        source::xattrs_at(dir.as_fd(), name).map_err(|error| TreeError::io("read attributes of", path, error))
    }
}

fn is_nothing(change: &ChildChange) -> bool {
    matches!(change, ChildChange::Directory(change) if change.is_empty())
}

/// The names of a directory and its parent's node, in order: with `Some(n)` those that are there (`n`: the number in
/// the node, if it was there before), with `None` those that are gone.
fn union(
    node: &StoredNode,
    listed: Option<Vec<Vec<u8>>>,
    children: &std::collections::BTreeMap<Vec<u8>, ChildChange>,
) -> Vec<(Vec<u8>, Option<Option<usize>>)> {
    let old = || node.node.entries.iter().enumerate().map(|(number, entry)| (entry.name.clone(), number));
    let mut all: std::collections::BTreeMap<Vec<u8>, Option<Option<usize>>> = match &listed {
        Some(names) => names.iter().map(|name| (name.clone(), Some(None))).collect(),
        None => old().map(|(name, number)| (name, Some(Some(number)))).collect(),
    };
    if listed.is_some() {
        for (name, number) in old() {
            match all.get_mut(&name) {
                Some(there) => *there = Some(Some(number)),
                None => {
                    all.insert(name, None);
                }
            }
        }
    }
    for name in children.keys() {
        // Not listed and not in the node: the caller looks for it on disk, and says so if it is not there.
        all.entry(name.clone()).or_insert(if listed.is_some() { None } else { Some(None) });
    }
    all.into_iter().collect()
}
