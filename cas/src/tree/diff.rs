//! What differs between two versions: equal subtrees have equal ids and cost nothing.

use std::cmp::Ordering;
use std::sync::Arc;

use types::VolumePath;

use super::error::TreeError;
use super::location::{Extent, VersionRef};
use super::node::{Entry, Item};
use super::read::Reader;
use super::stored::{Place, StoredNode};

/// How a path differs between two versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// It is only in the later one.
    Added(VolumePath),
    /// It is only in the earlier one.
    Removed(VolumePath),
    /// Its content or kind differs.
    Modified(VolumePath),
    /// Only its metadata differs.
    Metadata(VolumePath),
}

impl Reader {
    /// Lists up to `limit` paths in which two versions differ, in tree order. Equal subtrees cost nothing.
    pub async fn diff(
        &self,
        earlier: &VersionRef,
        later: &VersionRef,
        limit: usize,
    ) -> Result<Vec<Difference>, TreeError> {
        let mut differences = Vec::new();
        if earlier.version == later.version {
            return Ok(differences);
        }
        let roots = (Some(self.fetch.root(earlier).await?), Some(self.fetch.root(later).await?));
        // What is still to be looked at, the next one last: a path, and the nodes or entries on both sides.
        let mut todo = vec![(VolumePath::ROOT, Sides::Directories(roots.0, roots.1))];
        while let Some((path, sides)) = todo.pop() {
            if differences.len() >= limit {
                break;
            }
            let (old, new) = match sides {
                Sides::Tell(difference) => {
                    differences.push(difference);
                    continue;
                }
                Sides::Directories(old, new) => (old, new),
            };
            if let (Some(old), Some(new)) = (&old, &new)
                && old.node.meta != new.node.meta
            {
                differences.push(Difference::Metadata(path.clone()));
            }
            let mut below = Vec::new();
            for (name, old, new) in pairs(old.as_ref(), new.as_ref()) {
                let at = path.join(name).map_err(|_| TreeError::Unsupported {
                    path: path.as_bytes().to_vec(),
                    reason: "a path in it is longer than 4,095 bytes",
                })?;
                self.compare(&mut below, at, old, new).await?;
            }
            todo.extend(below.into_iter().rev());
        }
        differences.truncate(limit);
        Ok(differences)
    }

    async fn compare(
        &self,
        below: &mut Vec<(VolumePath, Sides)>,
        path: VolumePath,
        old: Side<'_>,
        new: Side<'_>,
    ) -> Result<(), TreeError> {
        let tell = match (old.map(|side| &side.0.item), new.map(|side| &side.0.item)) {
            (Some(old), Some(new)) if old == new => return Ok(()),
            (Some(Item::Directory { .. }), Some(Item::Directory { .. })) => None,
            (None, _) => Some(Difference::Added(path.clone())),
            (_, None) => Some(Difference::Removed(path.clone())),
            (Some(old), Some(new)) if same_but_metadata(old, new) => Some(Difference::Metadata(path.clone())),
            (Some(_), Some(_)) => Some(Difference::Modified(path.clone())),
        };
        below.extend(tell.map(|difference| (path.clone(), Sides::Tell(difference))));
        let old = self.side_node(old).await?;
        let new = self.side_node(new).await?;
        if old.is_some() || new.is_some() {
            below.push((path, Sides::Directories(old, new)));
        }
        Ok(())
    }
}

/// An entry of one of two directories that are compared.
pub(crate) type Side<'a> = Option<(&'a Entry, &'a Place<Extent>)>;

#[derive(Debug)]
enum Sides {
    Tell(Difference),
    Directories(Option<Arc<StoredNode>>, Option<Arc<StoredNode>>),
}

/// Pairs the names of two directories, in order.
pub(crate) fn pairs<'a>(
    old: Option<&'a Arc<StoredNode>>,
    new: Option<&'a Arc<StoredNode>>,
) -> Vec<(&'a [u8], Side<'a>, Side<'a>)> {
    let sides = |node: Option<&'a Arc<StoredNode>>| {
        node.into_iter().flat_map(|node| node.node.entries.iter().zip(&node.places)).peekable()
    };
    let (mut old, mut new) = (sides(old), sides(new));
    let mut paired = Vec::new();
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return paired,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.name.cmp(&new.name),
        };
        let left = if order.is_le() { old.next() } else { None };
        let right = if order.is_ge() { new.next() } else { None };
        let name = left.or(right).map_or(&b""[..], |(entry, _)| &entry.name);
        paired.push((name, left, right));
    }
}

/// Tells if two entries are the same but for their metadata.
pub(crate) fn same_but_metadata(old: &Item, new: &Item) -> bool {
    let mut old = old.clone();
    match (&mut old, new) {
        (Item::File { meta, .. }, Item::File { meta: other, .. })
        | (Item::Symlink { meta, .. }, Item::Symlink { meta: other, .. })
        | (Item::Fifo { meta }, Item::Fifo { meta: other })
        | (Item::Socket { meta }, Item::Socket { meta: other })
        | (Item::Device { meta, .. }, Item::Device { meta: other, .. }) => meta.clone_from(other),
        _ => {}
    }
    &old == new
}
