//! A directory that is being walked: its entries one after the other, from the filesystem's calls or from an inventory.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::vec::IntoIter;

use rustix::fs::FileType;

use super::batch::Frozen;
use super::scan::{Listed, list, look};
use crate::tree::error::TreeError;
use crate::tree::inventory::{Inventory, Name, Told};
use crate::tree::node::Metadata;
use crate::tree::source::{self, is_kept};

/// Entries that are asked for at once: their small contents are held until they are taken.
const AT_ONCE: usize = 512;

/// See the module.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) path: Arc<[u8]>,
    entries: Entries,
}

#[derive(Debug)]
enum Entries {
    Walked(IntoIter<Listed>),
    Told { names: IntoIter<Name>, ready: IntoIter<Listed> },
}

/// Opens directories and takes their entries.
#[derive(Debug)]
pub(super) struct Taker<'a> {
    root: &'a OwnedFd,
    inventory: Option<&'a dyn Inventory>,
    /// The tree that the inventory is of.
    device: u64,
}

impl<'a> Taker<'a> {
    pub(super) fn new(root: &'a OwnedFd, inventory: Option<&'a dyn Inventory>) -> Result<Self, TreeError> {
        let facts = source::facts_of(root.as_fd()).map_err(|error| TreeError::io("stat", b"", error))?;
        Ok(Self { root, inventory, device: facts.device })
    }

    /// Begins a directory. `listed` is its entry above, where that was just taken.
    pub(super) fn open(
        &self,
        path: Arc<[u8]>,
        listed: Option<Listed>,
    ) -> Result<(Metadata, Open), TreeError> {
        let Some(inventory) = self.inventory else { return walked(self.root, path) };
        let (facts, told) = match listed {
            Some(listed) => (listed.facts, listed.frozen.and_then(|frozen| frozen.xattrs)),
            None => (self.stat(&path)?, None),
        };
        if facts.device != self.device {
            return walked(self.root, path);
        }
        let xattrs = match told {
            Some(xattrs) => xattrs,
            None => source::xattrs_of(source::open_dir(self.root.as_fd(), &path)?.as_fd())
                .map_err(|error| TreeError::io("read attributes of", &path, error))?,
        };
        let names = inventory.names(facts.inode).map_err(|error| unanswered(&path, error))?;
        let entries = Entries::Told { names: names.into_iter(), ready: Vec::new().into_iter() };
        Ok((facts.metadata(xattrs), Open { path, entries }))
    }

    fn stat(&self, path: &[u8]) -> Result<source::Facts, TreeError> {
        let dir = source::open_dir(self.root.as_fd(), path)?;
        source::facts_of(dir.as_fd()).map_err(|error| TreeError::io("stat", path, error))
    }

    /// Takes the next entry.
    pub(super) fn next(&self, open: &mut Open) -> Result<Option<Listed>, TreeError> {
        let (names, ready) = match &mut open.entries {
            Entries::Walked(entries) => return Ok(entries.next()),
            Entries::Told { names, ready } => (names, ready),
        };
        if let Some(listed) = ready.next() {
            return Ok(Some(listed));
        }
        let some: Vec<Name> = names.by_ref().take(AT_ONCE).collect();
        *ready = self.take(&open.path, some)?.into_iter();
        Ok(ready.next())
    }

    fn take(&self, path: &[u8], names: Vec<Name>) -> Result<Vec<Listed>, TreeError> {
        let numbers: Vec<u64> = names.iter().filter_map(|name| name.inode).collect();
        let mut found: HashMap<u64, Told> = HashMap::with_capacity(numbers.len());
        if let Some(inventory) = self.inventory
            && !numbers.is_empty()
        {
            inventory
                .inodes(&numbers, &mut |number, told| drop(found.insert(number, told)))
                .map_err(|error| unanswered(path, error))?;
        }
        let mut dir = None;
        let mut entries = Vec::with_capacity(names.len());
        for Name { name, inode } in names {
            // An inode with several names here is told once.
            let told = inode.and_then(|number| Some((number, found.get(&number)?.clone())));
            let listed = match told.map(|(number, told)| self.listed(name.clone(), number, told)) {
                Some(Some(listed)) => listed,
                _ => {
                    let dir = match &dir {
                        Some(dir) => dir,
                        None => dir.insert(source::open_dir(self.root.as_fd(), path)?),
                    };
                    look(dir.as_fd(), path, name)?
                }
            };
            entries.push(listed);
        }
        Ok(entries)
    }

    /// Makes an entry of what was told, if that is enough.
    fn listed(&self, name: Vec<u8>, number: u64, told: Told) -> Option<Listed> {
        let facts = told.facts(self.device, number);
        let xattrs = told.xattrs.map(|mut xattrs| {
            xattrs.retain(|(name, _)| is_kept(name));
            xattrs.sort_unstable();
            xattrs
        });
        match facts.kind {
            FileType::RegularFile | FileType::Directory => {
                let frozen = Frozen { xattrs, bytes: told.bytes, sparse: told.sparse };
                Some(Listed { name, facts, xattrs: Vec::new(), target: Vec::new(), frozen: Some(frozen) })
            }
            FileType::Symlink => {
                let target = told.bytes?.to_vec();
                Some(Listed { name, facts, xattrs: xattrs?, target, frozen: None })
            }
            FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
                Some(Listed { name, facts, xattrs: xattrs?, target: Vec::new(), frozen: None })
            }
            FileType::Unknown => None,
        }
    }
}

fn walked(root: &OwnedFd, path: Arc<[u8]>) -> Result<(Metadata, Open), TreeError> {
    let listing = list(root.as_fd(), &path)?;
    Ok((listing.meta, Open { path, entries: Entries::Walked(listing.entries.into_iter()) }))
}

fn unanswered(path: &[u8], error: io::Error) -> TreeError {
    TreeError::io("ask for the inventory of", path, error)
}
