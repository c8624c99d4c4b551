//! Differences by path, made into a tree of changes.

use std::collections::BTreeMap;

use cas::{Changes, ChildChange, DirChange};
use types::VolumePath;

use super::error::Error;
use super::pair::{Differences, Found, Origin};

/// From here on, inodes of nested subvolumes are numbered.
const NESTED_INODES: u64 = 1 << 63;

/// A directory under construction.
#[derive(Debug, Default)]
struct Directory {
    relist: bool,
    origin: Option<Origin>,
    children: BTreeMap<Vec<u8>, Child>,
}

#[derive(Debug)]
enum Child {
    Directory(Directory),
    Other(ChildChange),
}

/// Makes the tree.
pub(super) fn changes(mut found: Differences) -> Result<Changes, Error> {
    // A directory comes before what is in it.
    found.paths.sort_by(|(a, _), (b, _)| a.segments().cmp(b.segments()));
    let mut root = Directory::default();
    for (path, found) in found.paths {
        insert(&mut root, &path, found)?;
    }
    // Their own numbers may be those of other inodes here. No inode has one of these.
    let nested = (NESTED_INODES..).zip(found.nested_links);
    found.links.extend(nested);
    Ok(Changes { root: root.finish(), links: found.links })
}

fn insert(root: &mut Directory, path: &VolumePath, found: Found) -> Result<(), Error> {
    let mut directory = root;
    let mut segments = path.segments().peekable();
    while let Some(segment) = segments.next() {
        let child = directory.children.entry(segment.to_vec());
        if segments.peek().is_none()
            && let Found::Other(change) = found
        {
            child.insert_entry(Child::Other(change));
            return Ok(());
        }
        directory = match child.or_insert_with(|| Child::Directory(Directory::default())) {
            Child::Directory(directory) => directory,
            // It is read whole anyway.
            Child::Other(ChildChange::New) => return Ok(()),
            Child::Other(_) => return Err(Error::FullScan { reason: "something stands below a file" }),
        };
    }
    if let Found::Directory(origin) = found {
        directory.relist = true;
        directory.origin = Some(origin);
    }
    Ok(())
}

impl Directory {
    fn finish(self) -> DirChange {
        let children = self.children.into_iter().map(|(name, child)| (name, child.finish())).collect();
        DirChange { relist: self.relist, children }
    }
}

impl Child {
    fn finish(self) -> ChildChange {
        let mut directory = match self {
            Self::Other(change) => return change,
            Self::Directory(directory) => directory,
        };
        match directory.origin.take() {
            Some(Origin::Moved(from)) => ChildChange::Moved { from, change: directory.finish() },
            Some(Origin::Here) | None => ChildChange::Directory(directory.finish()),
            Some(Origin::Nowhere) => {
                let change = directory.finish();
                // Everything in a new directory is named; it is told apart only for what was moved into it.
                if change.children.values().all(|child| *child == ChildChange::New) {
                    ChildChange::New
                } else {
                    ChildChange::Directory(change)
                }
            }
        }
    }
}
