//! A tree in memory with the same identity as a version: made by walking everything, or from an older one and what is
//! said to have changed since, which then is all that is read. The two must be equal. It is stricter than the store:
//! what the changes leave out that they must say is a panic.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use cas::{Changes, ChildChange, DirChange};
use types::VolumePath;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, i64),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Directory(Meta, BTreeMap<Vec<u8>, Rc<Self>>),
    File(Meta, Rc<Vec<u8>>),
    Symlink(Meta, Vec<u8>),
    Special(Meta, u64),
    HardLink(VolumePath),
}

/// What it took to make a tree.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) directories_listed: u64,
    pub(crate) files_read: u64,
    pub(crate) bytes_read: u64,
    pub(crate) stats: u64,
}

/// Walks everything.
pub(crate) fn walk(root: &Path) -> (Rc<Node>, Effort) {
    let mut making = Making {
        root,
        links: None,
        first: HashMap::new(),
        old: None,
        only_device: None,
        effort: Effort::default(),
    };
    (making.walk(&VolumePath::ROOT), making.effort)
}

/// Walks one subvolume, as if those nested in it were not there, and as if directories had no time: a stream moves names
/// through the root and does not always put its time back.
pub(crate) fn walk_one(root: &Path) -> Rc<Node> {
    let mut making = Making {
        root,
        links: None,
        first: HashMap::new(),
        old: None,
        only_device: Some(fs::symlink_metadata(root).unwrap().dev()),
        effort: Effort::default(),
    };
    making.walk(&VolumePath::ROOT)
}

/// Makes the tree at `root` from the `old` one and what changed since.
pub(crate) fn apply(root: &Path, old: &Rc<Node>, changes: &Changes) -> (Rc<Node>, Effort) {
    let names = changes.links.values().flat_map(|names| names.iter().map(move |name| (name.clone(), names)));
    let mut making = Making {
        root,
        links: Some(names.collect()),
        first: HashMap::new(),
        old: Some(Rc::clone(old)),
        only_device: None,
        effort: Effort::default(),
    };
    if changes.root.is_empty() {
        return (Rc::clone(old), making.effort);
    }
    (making.directory(&VolumePath::ROOT, Some(old), &changes.root), making.effort)
}

struct Making<'c> {
    root: &'c Path,
    /// By each name that is told of an inode with several, all of them; nothing in a full walk.
    links: Option<HashMap<VolumePath, &'c Vec<VolumePath>>>,
    /// First names met, by device and inode.
    first: HashMap<(u64, u64), VolumePath>,
    old: Option<Rc<Node>>,
    /// What is on another device is left out.
    only_device: Option<u64>,
    effort: Effort,
}

impl Making<'_> {
    fn disk(&self, path: &VolumePath) -> PathBuf {
        self.root.join(std::ffi::OsStr::from_bytes(path.as_bytes()))
    }

    fn walk(&mut self, path: &VolumePath) -> Rc<Node> {
        let metadata = self.stat(path);
        if !metadata.is_dir() {
            return self.leaf(path, &metadata, None);
        }
        let children = self.names(path).into_iter().map(|name| {
            let child = self.walk(&path.join(&name).unwrap());
            (name, child)
        });
        let children = children.collect();
        Rc::new(Node::Directory(self.meta(path, &metadata), children))
    }

    fn directory(&mut self, path: &VolumePath, old: Option<&Rc<Node>>, change: &DirChange) -> Rc<Node> {
        let old = match old.map(|node| &**node) {
            Some(Node::Directory(meta, children)) => Some((meta, children)),
            _ => None,
        };
        let metadata = self.stat(path);
        assert!(metadata.is_dir(), "{path}");
        let (meta, names) = if change.relist {
            (self.meta(path, &metadata), self.names(path))
        } else {
            let (meta, children) = old.unwrap_or_else(|| panic!("{path} was no directory and is not listed"));
            (meta.clone(), children.keys().cloned().collect())
        };
        for name in change.children.keys() {
            assert!(names.contains(name), "{path}: there is no {:?}", String::from_utf8_lossy(name));
        }
        let mut children = BTreeMap::new();
        for name in names {
            let at = path.join(&name).unwrap();
            let before = old.and_then(|(_, children)| children.get(&name)).cloned();
            let node = match change.children.get(&name) {
                None => before.unwrap_or_else(|| self.walk(&at)),
                Some(ChildChange::New) => self.walk(&at),
                Some(ChildChange::Metadata { from }) => {
                    let before = match from {
                        Some(from) => self.find_old(from),
                        None => before.unwrap_or_else(|| panic!("{at}: metadata of what was not there")),
                    };
                    let metadata = self.stat(&at);
                    self.leaf(&at, &metadata, Some(Bytes::Old(before)))
                }
                Some(ChildChange::Content { ranges, inline }) => {
                    let metadata = self.stat(&at);
                    let bytes = match (inline, ranges) {
                        (Some(inline), _) => Some(Bytes::Known(inline.to_vec())),
                        (None, Some(ranges)) => {
                            let before =
                                before.unwrap_or_else(|| panic!("{at}: ranges of what was not there"));
                            Some(Bytes::Ranges(before, ranges.clone()))
                        }
                        (None, None) => None,
                    };
                    self.leaf(&at, &metadata, bytes)
                }
                Some(ChildChange::Directory(change)) => self.directory(&at, before.as_ref(), change),
                Some(ChildChange::Moved { from, change }) => {
                    let before = self.find_old(from);
                    self.directory(&at, Some(&before), change)
                }
            };
            children.insert(name, node);
        }
        Rc::new(Node::Directory(meta, children))
    }

    fn find_old(&self, path: &VolumePath) -> Rc<Node> {
        let mut node = self.old.clone().expect("only where there is an old one");
        for segment in path.segments() {
            let Node::Directory(_, children) = &*node else { panic!("{path} is not in the old tree") };
            node = children.get(segment).cloned().unwrap_or_else(|| panic!("{path} is not in the old tree"));
        }
        node
    }

    /// An entry that is not a directory; a file's bytes come from `bytes`, else from the disk.
    fn leaf(&mut self, path: &VolumePath, metadata: &fs::Metadata, bytes: Option<Bytes>) -> Rc<Node> {
        let kind = metadata.file_type();
        assert!(!kind.is_dir(), "{path}");
        if metadata.nlink() > 1 {
            let inode = (metadata.dev(), metadata.ino());
            let first = match &self.links {
                Some(links) => {
                    let names =
                        links.get(path).unwrap_or_else(|| panic!("{path}: its other names are not told"));
                    assert_eq!(names.len() as u64, metadata.nlink(), "{path}: {names:?}");
                    names[0].clone()
                }
                None => self.first.entry(inode).or_insert_with(|| path.clone()).clone(),
            };
            if first != *path {
                return Rc::new(Node::HardLink(first));
            }
        }
        let meta = self.meta(path, metadata);
        Rc::new(if kind.is_file() {
            Node::File(meta, self.content(path, metadata.len(), bytes))
        } else if kind.is_symlink() {
            Node::Symlink(meta, fs::read_link(self.disk(path)).unwrap().into_os_string().into_vec())
        } else {
            assert!(kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device());
            Node::Special(meta, metadata.rdev())
        })
    }

    fn content(&mut self, path: &VolumePath, size: u64, bytes: Option<Bytes>) -> Rc<Vec<u8>> {
        let size = usize::try_from(size).unwrap();
        match bytes {
            None => {
                self.effort.files_read += 1;
                self.effort.bytes_read += size as u64;
                Rc::new(fs::read(self.disk(path)).unwrap())
            }
            Some(Bytes::Known(bytes)) => {
                assert_eq!(bytes.len(), size, "{path}");
                Rc::new(bytes)
            }
            Some(Bytes::Old(node)) => {
                let bytes = self.old_bytes(&node);
                assert_eq!(bytes.len(), size, "{path}: only its metadata is said to have changed");
                bytes
            }
            Some(Bytes::Ranges(node, ranges)) => {
                let mut bytes = self.old_bytes(&node).to_vec();
                // What a range has to overwrite where the file grew.
                bytes.resize(size, 0xEE);
                let file = File::open(self.disk(path)).unwrap();
                self.effort.files_read += 1;
                for range in ranges {
                    let from = usize::try_from(range.start).unwrap().min(size);
                    let to = usize::try_from(range.end).unwrap().min(size);
                    file.read_exact_at(&mut bytes[from..to], from as u64).unwrap();
                    self.effort.bytes_read += (to - from) as u64;
                }
                Rc::new(bytes)
            }
        }
    }

    fn old_bytes(&self, node: &Rc<Node>) -> Rc<Vec<u8>> {
        match &**node {
            Node::File(_, bytes) => Rc::clone(bytes),
            Node::HardLink(first) => self.old_bytes(&self.find_old(first)),
            other => panic!("not a file: {other:?}"),
        }
    }

    fn stat(&mut self, path: &VolumePath) -> fs::Metadata {
        self.effort.stats += 1;
        fs::symlink_metadata(self.disk(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn names(&mut self, path: &VolumePath) -> Vec<Vec<u8>> {
        self.effort.directories_listed += 1;
        let mut names: Vec<Vec<u8>> = fs::read_dir(self.disk(path))
            .unwrap()
            .map(Result::unwrap)
            .filter(|entry| self.only_device.is_none_or(|device| device == entry.metadata().unwrap().dev()))
            .map(|entry| entry.file_name().into_vec())
            .collect();
        names.sort();
        names
    }

    fn meta(&self, path: &VolumePath, metadata: &fs::Metadata) -> Meta {
        Meta {
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: if self.only_device.is_some() && metadata.is_dir() {
                (0, 0)
            } else {
                (metadata.mtime(), metadata.mtime_nsec())
            },
            xattrs: xattrs(&self.disk(path)),
        }
    }
}

/// Where a file's bytes come from, beside the disk.
enum Bytes {
    Known(Vec<u8>),
    Old(Rc<Node>),
    Ranges(Rc<Node>, Vec<std::ops::Range<u64>>),
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let (mut names, mut value) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    // How a file is compressed is not part of a version.
    let kept = names.filter(|name| !name.starts_with(b"btrfs."));
    kept.map(|name| {
        let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
        (name.to_vec(), value[..length].to_vec())
    })
    .collect()
}

/// Says where two trees differ first.
pub(crate) fn difference(a: &Node, b: &Node, path: &str) -> Option<String> {
    if a == b {
        return None;
    }
    match (a, b) {
        (Node::Directory(one, left), Node::Directory(two, right)) => {
            if one != two {
                return Some(format!("{path}/: {one:?} {two:?}"));
            }
            let names: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
            names.into_iter().find_map(|name| {
                let path = format!("{path}/{}", String::from_utf8_lossy(name));
                match (left.get(name), right.get(name)) {
                    (Some(a), Some(b)) => difference(a, b, &path),
                    (Some(_), None) => Some(format!("{path}: should not be there")),
                    (None, _) => Some(format!("{path}: should be there")),
                }
            })
        }
        (Node::File(one, left), Node::File(two, right)) if one == two => {
            let at = left.iter().zip(right.iter()).position(|(a, b)| a != b);
            Some(format!("{path}: {} and {} bytes, first difference at {at:?}", left.len(), right.len()))
        }
        (Node::File(one, _), Node::File(two, _)) => Some(format!("{path}: {one:?} {two:?}")),
        _ => Some(format!("{path}: {} {}", word(a), word(b))),
    }
}

fn word(node: &Node) -> String {
    match node {
        Node::Directory(..) => "directory".to_owned(),
        Node::File(_, bytes) => format!("file of {} bytes", bytes.len()),
        Node::Symlink(..) => "symlink".to_owned(),
        Node::Special(..) => "special".to_owned(),
        Node::HardLink(first) => format!("link to {first}"),
    }
}
