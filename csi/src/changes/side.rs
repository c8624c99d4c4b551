//! One of the two trees: its inodes by number, and the paths of its directories.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use btrfs::Dir;
use btrfs::search::{Inode, Item, Key, Search, kind, tree};
use btrfs::subvolume::ROOT_INODE;
use types::VolumePath;

use super::error::Error;
use super::extents::Stored;
use super::runs;

/// Directories above one: more names would not fit in a path.
const DEPTH_MAX: usize = 4096 / 2;

/// A name of an inode: the directory that holds it, and the name there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub(super) directory: u64,
    pub(super) name: Vec<u8>,
}

/// All that a tree says about one inode.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) inode: Inode,
    pub(super) names: Vec<Name>,
    pub(super) extents: Vec<Stored>,
}

impl Node {
    pub(super) fn new(inode: Inode) -> Self {
        Self { inode, names: Vec::new(), extents: Vec::new() }
    }

    /// Takes what an item says about the inode.
    pub(super) fn take(&mut self, item: &Item<'_>) -> Result<(), Error> {
        let refs = match item.key.kind {
            kind::INODE_REF => item.inode_refs()?,
            kind::INODE_EXTREF => item.inode_extrefs()?,
            kind::EXTENT_DATA => {
                self.extents.push(Stored::of(item.key.offset, &item.extent()?));
                return Ok(());
            }
            _ => return Ok(()),
        };
        let name =
            |one: btrfs::search::InodeRef<'_>| Name { directory: one.dir_inode, name: one.name.to_vec() };
        self.names.extend(refs.into_iter().map(name));
        Ok(())
    }

    /// Tells if nothing about the inode is missing: leaves that were not written since are not in a search.
    pub(super) fn is_whole(&self) -> bool {
        let extent_bytes: u64 = self.extents.iter().map(Stored::allocated_bytes).sum();
        self.names.len() as u64 == u64::from(self.inode.nlink)
            && (!is_file(&self.inode) || extent_bytes == self.inode.allocated_bytes)
    }
}

/// One of the two trees that are compared.
#[derive(Debug)]
pub(super) struct Side<'d> {
    pub(super) dir: &'d Dir,
    pub(super) tree: u64,
    /// Where the tree's root stands in the volume.
    pub(super) at: VolumePath,
    paths: RefCell<HashMap<u64, Rc<VolumePath>>>,
    /// Where directories stand whose items were met on the way.
    stands: RefCell<HashMap<u64, Name>>,
}

impl<'d> Side<'d> {
    pub(super) fn new(dir: &'d Dir, tree: u64, at: VolumePath) -> Self {
        Self { dir, tree, at, paths: RefCell::default(), stands: RefCell::default() }
    }

    /// Remembers where directories stand.
    pub(super) fn learn(&self, stands: HashMap<u64, Name>) {
        self.stands.borrow_mut().extend(stands);
    }

    /// Reads inodes that are no directories, `numbers` in order and each once, with their names and extents.
    pub(super) fn nodes(&self, numbers: &[u64]) -> Result<BTreeMap<u64, Node>, Error> {
        let mut found: BTreeMap<u64, Node> = BTreeMap::new();
        runs::visit(self.dir, self.tree, numbers, |item| {
            let number = item.key.objectid;
            if item.key.kind == kind::INODE_ITEM {
                found.insert(number, Node::new(item.inode()?));
            } else if let Some(node) = found.get_mut(&number) {
                node.take(item)?;
            }
            Ok(true)
        })?;
        Ok(found)
    }

    /// Reads an inode with its names and, of a file, its extents.
    pub(super) fn node(&self, number: u64) -> Result<Option<Node>, Error> {
        // Of a directory, its entries would come too; they are not wanted and may be many.
        let names = Key { objectid: number, kind: kind::INODE_ITEM, offset: 0 }..=Key {
            objectid: number,
            kind: kind::INODE_EXTREF,
            offset: u64::MAX,
        };
        let mut search = Search::new(self.dir, self.tree, names);
        let mut found: Option<Node> = None;
        while let Some(item) = search.next_item()? {
            match &mut found {
                None if item.key.kind == kind::INODE_ITEM => found = Some(Node::new(item.inode()?)),
                None => {}
                Some(node) => node.take(&item)?,
            }
        }
        if let Some(node) = &mut found
            && is_file(&node.inode)
        {
            let mut search = Search::new(self.dir, self.tree, Key::object_kind(number, kind::EXTENT_DATA));
            while let Some(item) = search.next_item()? {
                node.take(&item)?;
            }
        }
        Ok(found)
    }

    /// The path of a directory from the volume's root.
    pub(super) fn directory(&self, number: u64) -> Result<Rc<VolumePath>, Error> {
        if let Some(path) = self.paths.borrow().get(&number) {
            return Ok(Rc::clone(path));
        }
        // Up to one whose path is known, and down again.
        let mut above = vec![number];
        let mut names = Vec::new();
        let mut path = loop {
            let last = *above.last().expect("one was put in before the loop");
            if let Some(path) = self.paths.borrow().get(&last) {
                above.pop();
                break Rc::clone(path);
            }
            if last == ROOT_INODE {
                break Rc::new(self.at.clone());
            }
            if above.len() > DEPTH_MAX {
                return Err(TOO_LONG);
            }
            let name = self.stands(last)?;
            above.push(name.directory);
            names.push(name.name);
        };
        for number in above.into_iter().rev() {
            if number != ROOT_INODE {
                let name = names.pop().expect("a name was noted for each but the root");
                path = Rc::new(path.join(&name).map_err(|_| TOO_LONG)?);
            }
            self.paths.borrow_mut().insert(number, Rc::clone(&path));
        }
        Ok(path)
    }

    /// Where a directory stands.
    fn stands(&self, number: u64) -> Result<Name, Error> {
        if let Some(name) = self.stands.borrow_mut().remove(&number) {
            return Ok(name);
        }
        let mut search = Search::new(self.dir, self.tree, Key::object_kind(number, kind::INODE_REF));
        let item = search.next_item()?.ok_or(NO_PATH)?;
        let one = item.inode_refs()?.into_iter().next().ok_or(NO_PATH)?;
        Ok(Name { directory: one.dir_inode, name: one.name.to_vec() })
    }

    /// The path of a name from the volume's root.
    pub(super) fn path(&self, name: &Name) -> Result<VolumePath, Error> {
        self.directory(name.directory)?.join(&name.name).map_err(|_| TOO_LONG)
    }

    /// The first of an inode's paths in the order of the tree.
    pub(super) fn first_path(&self, node: &Node) -> Result<Option<VolumePath>, Error> {
        Ok(self.paths(node)?.into_iter().next())
    }

    /// All of an inode's paths in the order of the tree: by their segments.
    pub(super) fn paths(&self, node: &Node) -> Result<Vec<VolumePath>, Error> {
        let mut paths = node.names.iter().map(|name| self.path(name)).collect::<Result<Vec<_>, _>>()?;
        paths.sort_by(|a, b| a.segments().cmp(b.segments()));
        Ok(paths)
    }

    /// The subvolumes directly in this one: the names they have in it, and their trees.
    pub(super) fn subvolumes(&self) -> Result<Vec<(Name, u64)>, Error> {
        let mut search = Search::new(self.dir, tree::ROOTS, Key::object_kind(self.tree, kind::ROOT_REF));
        let mut found = Vec::new();
        while let Some(item) = search.next_item()? {
            if item.key.kind == kind::ROOT_REF {
                let one = item.root_ref()?;
                found.push((Name { directory: one.dir_inode, name: one.name.to_vec() }, item.key.offset));
            }
        }
        Ok(found)
    }

    /// Tells if a directory has an entry of this name.
    pub(super) fn has(&self, name: &Name) -> Result<bool, Error> {
        let mut search = Search::new(self.dir, self.tree, Key::object_kind(name.directory, kind::DIR_INDEX));
        while let Some(item) = search.next_item()? {
            if item.key.kind == kind::DIR_INDEX
                && item.dir_entries()?.iter().any(|entry| entry.name == name.name)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A directory has one name, always.
const NO_PATH: Error = Error::FullScan { reason: "a directory has no path" };

/// No call could open it either.
const TOO_LONG: Error = Error::FullScan { reason: "a path is too long to be named" };

const S_IFMT: u32 = 0o170_000;

/// Tells if an inode is a regular file.
pub(super) fn is_file(inode: &Inode) -> bool {
    inode.mode & S_IFMT == 0o100_000
}

/// Tells if a mode is that of a directory.
pub(super) fn is_directory(mode: u32) -> bool {
    mode & S_IFMT == 0o040_000
}
