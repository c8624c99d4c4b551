//! Changes found by walking twice: slow, simple, and shares no code with what finds them in production.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use cas::tree::tree_order;
use cas::{Changes, ChildChange, DirChange};
use types::VolumePath;

/// What a path was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    inode: u64,
    kind: u32,
    facts: (u32, u32, u32, i64, i64, u64, u64),
    content: Vec<u8>,
}

/// A tree as it stood, by path; the root is "".
pub type Walked = BTreeMap<Vec<u8>, Seen>;

pub fn walk(root: &Path) -> Walked {
    let mut walked = Walked::new();
    step(root, b"", &mut walked);
    walked
}

fn step(at: &Path, path: &[u8], walked: &mut Walked) {
    let facts = std::fs::symlink_metadata(at).unwrap();
    let content = if facts.is_file() {
        std::fs::read(at).unwrap()
    } else if facts.is_symlink() {
        std::fs::read_link(at).unwrap().into_os_string().into_encoded_bytes()
    } else {
        Vec::new()
    };
    let size = if facts.is_dir() { 0 } else { facts.len() };
    let links = if facts.is_dir() { 1 } else { facts.nlink() };
    let seen = Seen {
        inode: facts.ino(),
        kind: facts.mode() & 0o170_000,
        facts: (facts.mode(), facts.uid(), facts.gid(), facts.mtime(), facts.mtime_nsec(), size, links),
        content,
    };
    walked.insert(path.to_vec(), seen);
    if facts.is_dir() {
        for entry in std::fs::read_dir(at).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_encoded_bytes();
            let below = if path.is_empty() { name } else { [path, b"/", &name].concat() };
            step(&entry.path(), &below, walked);
        }
    }
}

fn children<'a>(walked: &'a Walked, dir: &[u8]) -> BTreeMap<Vec<u8>, &'a Seen> {
    let prefix = if dir.is_empty() { Vec::new() } else { [dir, b"/"].concat() };
    walked
        .range(prefix.clone()..)
        .take_while(|(path, _)| path.starts_with(&prefix))
        .filter(|(path, _)| path.len() > prefix.len() && !path[prefix.len()..].contains(&b'/'))
        .map(|(path, seen)| (path[prefix.len()..].to_vec(), seen))
        .collect()
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

struct Both<'a> {
    before: &'a Walked,
    after: &'a Walked,
    /// Paths of each inode before.
    inodes: BTreeMap<u64, Vec<Vec<u8>>>,
}

pub fn changes(before: &Walked, after: &Walked) -> Changes {
    let paths = |walked: &Walked| {
        let mut inodes: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
        for (path, seen) in walked {
            inodes.entry(seen.inode).or_default().push(path.clone());
        }
        inodes
    };
    let both = Both { before, after, inodes: paths(before) };
    let mut changes = Changes { root: both.directory(b"", b""), ..Changes::default() };
    for (inode, mut names) in paths(after) {
        let seen = &after[&names[0]];
        if seen.kind == DIRECTORY || seen.facts.6 < 2 {
            continue;
        }
        let old = both.inodes.get(&inode).cloned().unwrap_or_default();
        // What happened to directories above a name does not change its inode.
        let leaf = |path: &Vec<u8>| {
            let slash = path.iter().rposition(|byte| *byte == b'/');
            let (dir, name) =
                slash.map_or((&b""[..], &path[..]), |slash| (&path[..slash], &path[slash + 1..]));
            (dir.to_vec(), name.to_vec())
        };
        let entries = |names: &[Vec<u8>], walked: &Walked| -> BTreeSet<(u64, Vec<u8>)> {
            names.iter().map(leaf).map(|(dir, name)| (walked[&dir].inode, name)).collect()
        };
        let same = old.first().is_some_and(|old| before[old] == *seen)
            && entries(&old, before) == entries(&names, after);
        // A directory that is new is read whole, whatever was moved into it.
        let is_new = |dir: &[u8]| !both.inodes.contains_key(&after[dir].inode);
        let below_new = names.iter().any(|name| {
            let slashes = name.iter().enumerate().filter(|(_, byte)| **byte == b'/');
            slashes.map(|(slash, _)| &name[..slash]).any(is_new)
        });
        if !same || below_new {
            names.sort_by(|left, right| tree_order(left, right));
            changes.links.insert(inode, names.iter().map(|name| VolumePath::parse(name).unwrap()).collect());
        }
    }
    changes
}

impl Both<'_> {
    fn directory(&self, path: &[u8], base: &[u8]) -> DirChange {
        let (old, new) = (children(self.before, base), children(self.after, path));
        let same_names = old.len() == new.len()
            && old.iter().zip(&new).all(|((a, old), (b, new))| a == b && old.inode == new.inode);
        let relist = !same_names || self.before[base].facts != self.after[path].facts;
        let mut change = DirChange { relist, ..DirChange::default() };
        for (name, seen) in &new {
            let join = |dir: &[u8]| if dir.is_empty() { name.clone() } else { [dir, b"/", name].concat() };
            let at = join(path);
            let stood = old.get(name).filter(|old| old.inode == seen.inode && old.kind == seen.kind);
            let elsewhere = self.inodes.get(&seen.inode).map(|paths| paths[0].clone());
            let elsewhere = elsewhere.filter(|path| self.before[path].kind == seen.kind);
            let child = match (stood, elsewhere) {
                (Some(_), _) if seen.kind == DIRECTORY => {
                    let change = self.directory(&at, &join(base));
                    (!change.is_empty()).then_some(ChildChange::Directory(change))
                }
                (Some(old), _) if old == seen => None,
                (Some(old), _) if old.content == seen.content => Some(ChildChange::Metadata { from: None }),
                (Some(old), _) if seen.kind == FILE => Some(content(old, seen)),
                (None, Some(from)) if seen.kind == DIRECTORY => {
                    let change = self.directory(&at, &from);
                    Some(ChildChange::Moved { from: VolumePath::parse(&from).unwrap(), change })
                }
                (None, Some(from)) if self.before[&from].content == seen.content => {
                    Some(ChildChange::Metadata { from: Some(VolumePath::parse(&from).unwrap()) })
                }
                (Some(_), _) | (None, _) => Some(ChildChange::New),
            };
            if let Some(child) = child {
                change.children.insert(name.clone(), child);
            }
        }
        change
    }
}

/// A changed file, told in one of the ways in which it may be told.
fn content(old: &Seen, new: &Seen) -> ChildChange {
    let (old, new) = (&old.content, &new.content);
    if new.len() < 4_000 && new.len() % 2 == 0 {
        return ChildChange::Content { ranges: None, inline: Some(new.clone().into()) };
    }
    if new.len() % 3 == 0 {
        return ChildChange::Content { ranges: None, inline: None };
    }
    const BLOCK: usize = 4_096;
    let ranges = (0..new.len().div_ceil(BLOCK))
        .filter(|block| {
            let (from, to) = (block * BLOCK, ((block + 1) * BLOCK).min(new.len()));
            old.get(from..to) != Some(&new[from..to])
        })
        .map(|block| (block * BLOCK) as u64..((block + 1) * BLOCK) as u64)
        .collect();
    ChildChange::Content { ranges: Some(ranges), inline: None }
}
