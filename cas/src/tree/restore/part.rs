//! Making a part of a version on disk: one file, or a directory with all below it.
//!
//! Paths on disk begin with the name that the part gets. A later name of a file whose first name lies outside of the part
//! becomes the file itself; further names of that file are linked to it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use types::VolumePath;

use super::target::Target;
use super::walk::Walk;
use super::window::{Dir, Spot};
use super::worker::Site;
use super::{RestoreOptions, Restored, engine};
use crate::tree::error::TreeError;
use crate::tree::location::VersionRef;
use crate::tree::node::{Entry, Item};
use crate::tree::put::join;
use crate::tree::read::{self, Reader};
use crate::tree::stored::StoredNode;

/// Where the part was in its version, and which of its files have their first name elsewhere.
#[derive(Debug)]
pub(super) struct Part {
    reader: Reader,
    tree: VersionRef,
    /// Its path in the version.
    from: Vec<u8>,
    /// Its name on disk.
    to: Vec<u8>,
    /// First name in the version to first name on disk.
    outside: HashMap<Vec<u8>, Vec<u8>>,
}

/// What a later name in a part comes to.
pub(super) enum Later {
    /// A name of what is on disk at this path already.
    Link(Vec<u8>),
    /// The file itself, under this name.
    File(Spot),
}

impl Part {
    /// Decides what becomes of a later name.
    pub(super) fn later(
        &mut self,
        runtime: &tokio::runtime::Handle,
        spot: &Spot,
        first: &[u8],
    ) -> Result<Later, TreeError> {
        let bad = || TreeError::BadLink { path: spot.path(), first: first.to_vec() };
        let inside = first.strip_prefix(&self.from[..]).and_then(|rest| match rest {
            [] => Some(self.to.clone()),
            [b'/', rest @ ..] => Some(join(&self.to, rest)),
            _ => None,
        });
        if let Some(inside) = inside {
            return Ok(Later::Link(inside));
        }
        if let Some(made) = self.outside.get(first) {
            return Ok(Later::Link(made.clone()));
        }
        let path = VolumePath::parse(first).map_err(|_| bad())?;
        let found = runtime.block_on(self.reader.find(&self.tree, &path))?;
        let Some(read::Spot::Entry(node, number)) = found else { return Err(bad()) };
        if matches!(node.node.entries[number].item, Item::HardLink { .. } | Item::Directory { .. }) {
            return Err(bad());
        }
        self.outside.insert(first.to_vec(), spot.path());
        Ok(Later::File(alone(&node, number, &spot.dir.path, &spot.entry().name)))
    }
}

/// An entry under another name, in a directory that holds nothing else.
fn alone(node: &StoredNode, number: usize, dir: &Arc<[u8]>, name: &[u8]) -> Spot {
    let entry = Entry { name: name.to_vec(), item: node.node.entries[number].item.clone() };
    let mut alone = node.clone();
    alone.node.entries = vec![entry];
    alone.places = vec![node.places[number].clone()];
    Spot { dir: Arc::new(Dir { path: Arc::clone(dir), node: Arc::new(alone) }), number: 0, is_there: false }
}

impl Reader {
    /// Makes what the version has at `path`, with all that is below it, as `name` in the directory `target`, where nothing of
    /// that name is yet. Nothing is flushed: the caller does that before it counts. After an error a part is left.
    ///
    /// `target` should pass nothing on to what is made in it: no default ACL, no set-group-id bit.
    pub async fn restore_part(
        &self,
        tree: &VersionRef,
        path: &VolumePath,
        target: OwnedFd,
        name: &[u8],
        options: RestoreOptions,
    ) -> Result<Restored, TreeError> {
        let missing = || TreeError::NotFound { path: path.clone(), version: tree.version };
        let spot = self.find(tree, path).await?.ok_or_else(missing)?;
        let directory = match &spot {
            read::Spot::Root(node) => Some(Arc::clone(node)),
            read::Spot::Entry(node, number) => {
                let side = Some((&node.node.entries[*number], &node.places[*number]));
                self.side_node(side).await?
            }
        };
        let part = Part {
            reader: self.clone(),
            tree: tree.clone(),
            from: path.as_bytes().to_vec(),
            to: name.to_vec(),
            outside: HashMap::new(),
        };
        let site = Arc::new(Site::new(Some(Target::new(target, options.owners)), None));
        let top: Arc<[u8]> = Arc::from(name);
        let make = move |walk: &mut Walk<'_>| {
            match (directory, spot) {
                (Some(node), _) => {
                    // A part of the whole is named by what it is in: its paths begin there.
                    if let Some(target) = &walk.site.target {
                        target.make_dir(&top)?;
                    }
                    walk.part = Some(part);
                    walk.tree(top, node)
                }
                (None, read::Spot::Entry(node, number)) => {
                    walk.part = Some(part);
                    walk.entry(alone(&node, number, &Arc::from(&b""[..]), &top))
                }
                (None, read::Spot::Root(_)) => Ok(()),
            }
        };
        let restored = engine::run(&self.fetch, site, &options, make).await?;
        Ok(restored)
    }
}
