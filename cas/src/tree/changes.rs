//! What changed under a root since a version. Made by whoever can tell without reading everything (the node asks btrfs
//! for what is newer than the last snapshot); `put` believes it, and reads only what it names.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use types::VolumePath;

/// What changed under a root since a version. Nothing: [`Changes::default`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The root directory.
    pub root: DirChange,
    /// By inode, all names of every changed inode that has several, in tree order. What stands below a new directory
    /// counts as changed: that is read whole, whatever was moved into it.
    pub links: BTreeMap<u64, Vec<VolumePath>>,
}

/// What changed in a directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirChange {
    /// Its own metadata or its list of names changed, and both are read again. A name that is then in the directory,
    /// not in `children`, but in the parent's node is taken from there unchanged; one that is in neither is new;
    /// one that is only in the parent's node is gone.
    pub relist: bool,
    /// What changed by name.
    pub children: BTreeMap<Vec<u8>, ChildChange>,
}

/// What changed behind a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChildChange {
    /// Only its metadata (mode, owner, times, attributes), or where it stands.
    Metadata {
        /// Where the same inode stood in the parent version, if not under this name: it was moved or linked.
        from: Option<VolumePath>,
    },
    /// A file's bytes, and perhaps its metadata.
    Content {
        /// The parts that may differ from the parent version's file of this name. `None`: all of it.
        ranges: Option<Vec<Range<u64>>>,
        /// All of its bytes, where they are known without opening it.
        inline: Option<Bytes>,
    },
    /// Something below this directory.
    Directory(DirChange),
    /// This directory stood elsewhere in the parent version.
    Moved {
        /// Where.
        from: VolumePath,
        /// What changed in it beside its place.
        change: DirChange,
    },
    /// It is new: read all of it.
    New,
}

impl DirChange {
    /// Tells if nothing changed.
    pub fn is_empty(&self) -> bool {
        !self.relist && self.children.is_empty()
    }
}
