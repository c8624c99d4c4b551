//! What the parent version of an increment has.

use std::sync::Arc;

use tokio::runtime::Handle;
use types::ContentId;

use crate::tree::error::TreeError;
use crate::tree::fetch::Fetch;
use crate::tree::location::Extent;
use crate::tree::node::Item;
use crate::tree::stored::{Data, Place, StoredNode};

/// A directory of the parent version.
pub(super) type Base = (Arc<StoredNode>, Extent);

/// A file of the parent version.
#[derive(Debug)]
pub(super) struct BaseFile {
    pub(super) size: u64,
    pub(super) content: ContentId,
    pub(super) place: Place<Extent>,
}

/// The parent version.
#[derive(Debug)]
pub(super) struct Past<'a> {
    pub(super) fetch: &'a Fetch,
    pub(super) runtime: &'a Handle,
    pub(super) root: Base,
}

impl Past<'_> {
    pub(super) fn below(&self, node: &StoredNode, number: usize) -> Result<Option<Base>, TreeError> {
        match (&node.node.entries[number].item, &node.places[number].data) {
            (Item::Directory { id }, Data::Directory(extent)) => {
                let below = self.runtime.block_on(self.fetch.node(extent, *id))?;
                Ok(Some((below, extent.clone())))
            }
            _ => Ok(None),
        }
    }

    /// Finds a directory by its path.
    pub(super) fn directory(&self, path: &[u8]) -> Result<Option<Base>, TreeError> {
        let mut base = self.root.clone();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let Some(number) = base.0.node.position(name) else { return Ok(None) };
            match self.below(&base.0, number)? {
                Some(below) => base = below,
                None => return Ok(None),
            }
        }
        Ok(Some(base))
    }

    fn split(path: &[u8]) -> (&[u8], &[u8]) {
        let slash = path.iter().rposition(|byte| *byte == b'/');
        slash.map_or((&b""[..], path), |slash| (&path[..slash], &path[slash + 1..]))
    }

    /// Finds a file by its path; by a later name, too.
    pub(super) fn file(&self, path: &[u8]) -> Result<Option<BaseFile>, TreeError> {
        let (dir, name) = Self::split(path);
        let Some((node, _)) = self.directory(dir)? else { return Ok(None) };
        let Some(number) = node.node.position(name) else { return Ok(None) };
        self.file_at(&node, number)
    }

    pub(super) fn file_at(&self, node: &StoredNode, number: usize) -> Result<Option<BaseFile>, TreeError> {
        match &node.node.entries[number].item {
            Item::File { size, content, .. } => {
                Ok(Some(BaseFile { size: *size, content: *content, place: node.places[number].clone() }))
            }
            Item::HardLink { first } => {
                let (dir, name) = Self::split(first);
                let Some((node, _)) = self.directory(dir)? else { return Ok(None) };
                let Some(number) = node.node.position(name) else { return Ok(None) };
                // A first name is never a later one, so this ends.
                if matches!(node.node.entries[number].item, Item::File { .. }) {
                    self.file_at(&node, number)
                } else {
                    Ok(None)
                }
            }
            Item::Directory { .. }
            | Item::Symlink { .. }
            | Item::Fifo { .. }
            | Item::Socket { .. }
            | Item::Device { .. } => Ok(None),
        }
    }
}
