//! Before an increment: which name of each inode with several is the first, and which entries change because of it.
//!
//! A later name is written as the path of the first, so a directory that was renamed changes entries elsewhere though
//! nothing in them was touched. Changed inodes are told with all their names. Unchanged ones have the names that they
//! had, under the directories' new paths; they are looked at only where a directory with such names moved.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd as _, BorrowedFd};

use types::VolumePath;

use super::batch::join;
use super::links::Role;
use super::past::{Base, Past};
use crate::tree::changes::{Changes, ChildChange, DirChange};
use crate::tree::error::TreeError;
use crate::tree::node::{Item, tree_order};
use crate::tree::source;

/// Completes the changes by the entries that links change, and tells the role of every name concerned.
pub(super) fn relink(
    past: &Past<'_>,
    source: BorrowedFd<'_>,
    changes: Changes,
) -> Result<(DirChange, HashMap<Vec<u8>, Role>), TreeError> {
    let Changes { mut root, links } = changes;
    let mut roles = HashMap::new();
    let mut moves = Vec::new();
    gather_moves(&root, &[], &mut moves);
    for names in links.values() {
        let mut names: Vec<Vec<u8>> = names.iter().map(|name| name.as_bytes().to_vec()).collect();
        names.sort_by(|left, right| tree_order(left, right));
        names.dedup();
        let content = names.iter().any(|name| has_content(&root, name));
        for name in &names {
            ensure(&mut root, name, ChildChange::Metadata { from: None });
        }
        // The first name carries the bytes, whichever name they were told to have changed under.
        if let Some(first) = names.first()
            && content
            && !has_content(&root, first)
        {
            replace(&mut root, first, ChildChange::Content { ranges: None, inline: None });
        }
        assign(&mut roles, &names);
    }
    let mut moved_links = false;
    for (from, _) in &moves {
        if let Some((node, _)) = past.directory(from)? {
            moved_links |= node.totals.links > 0;
        }
    }
    if moved_links {
        unchanged(past, source, &moves, &mut root, &mut roles)?;
    }
    Ok((root, roles))
}

fn assign(roles: &mut HashMap<Vec<u8>, Role>, names: &[Vec<u8>]) {
    for (number, name) in names.iter().enumerate() {
        let role = if number == 0 { Role::First } else { Role::Later(names[0].clone()) };
        roles.insert(name.clone(), role);
    }
}

/// Regroups inodes that did not change, under the new paths of their directories.
fn unchanged(
    past: &Past<'_>,
    source: BorrowedFd<'_>,
    moves: &[(Vec<u8>, Vec<u8>)],
    root: &mut DirChange,
    roles: &mut HashMap<Vec<u8>, Role>,
) -> Result<(), TreeError> {
    for (old_first, old_names) in linked_names(past)? {
        let mut names: Vec<(Vec<u8>, Vec<u8>)> =
            old_names.into_iter().map(|old| (moved_path(moves, &old), old)).collect();
        names.sort_by(|left, right| tree_order(&left.0, &right.0));
        if names.iter().any(|(new, _)| roles.contains_key(new)) || !one_inode(source, &names)? {
            // It changed: its names were told, or it has only one left.
            continue;
        }
        let news: Vec<Vec<u8>> = names.iter().map(|(new, _)| new.clone()).collect();
        let first_new = news[0].clone();
        for (number, (new, old)) in names.iter().enumerate() {
            let as_before =
                if number == 0 { *old == old_first } else { *old != old_first && old_first == first_new };
            if !as_before {
                let from = if number == 0 { &old_first } else { old };
                let from = VolumePath::parse(from).ok();
                ensure(root, new, ChildChange::Metadata { from });
            }
        }
        assign(roles, &news);
    }
    Ok(())
}

/// All names of inodes with several in the parent version, by the first.
fn linked_names(past: &Past<'_>) -> Result<BTreeMap<Vec<u8>, Vec<Vec<u8>>>, TreeError> {
    let mut groups: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    let mut todo: Vec<(Vec<u8>, Base)> = vec![(Vec::new(), past.root.clone())];
    while let Some((path, (node, _))) = todo.pop() {
        if node.totals.links == 0 {
            continue;
        }
        for (number, entry) in node.node.entries.iter().enumerate() {
            let at = join(&path, &entry.name);
            if let Some(below) = past.below(&node, number)? {
                todo.push((at, below));
            } else if let Item::HardLink { first } = &entry.item {
                groups.entry(first.clone()).or_default().push(at);
            } else if node.places[number].linked {
                groups.entry(at.clone()).or_default().push(at);
            }
        }
    }
    Ok(groups)
}

/// Tells if these names are all there and are one inode, with no others.
fn one_inode(source: BorrowedFd<'_>, names: &[(Vec<u8>, Vec<u8>)]) -> Result<bool, TreeError> {
    let mut inode = None;
    for (name, _) in names {
        let slash = name.iter().rposition(|byte| *byte == b'/');
        let (dir, leaf) = slash.map_or((&b""[..], &name[..]), |slash| (&name[..slash], &name[slash + 1..]));
        let Ok(dir) = source::open_dir(source, dir) else { return Ok(false) };
        let Ok(facts) = source::facts_at(dir.as_fd(), leaf) else { return Ok(false) };
        if facts.links != names.len() as u64
            || inode.is_some_and(|inode| inode != (facts.device, facts.inode))
        {
            return Ok(false);
        }
        inode = Some((facts.device, facts.inode));
    }
    Ok(true)
}

/// Lists where directories moved from and to, by their paths in the two versions.
fn gather_moves(change: &DirChange, path: &[u8], moves: &mut Vec<(Vec<u8>, Vec<u8>)>) {
    for (name, child) in &change.children {
        let at = join(path, name);
        match child {
            ChildChange::Directory(change) => gather_moves(change, &at, moves),
            ChildChange::Moved { from, change } => {
                moves.push((from.as_bytes().to_vec(), at.clone()));
                gather_moves(change, &at, moves);
            }
            ChildChange::Metadata { .. } | ChildChange::Content { .. } | ChildChange::New => {}
        }
    }
}

/// The path that something at `old` in the parent version has now, by the nearest directory that moved.
fn moved_path(moves: &[(Vec<u8>, Vec<u8>)], old: &[u8]) -> Vec<u8> {
    let inside = |from: &[u8]| old.len() > from.len() && old.starts_with(from) && old[from.len()] == b'/';
    let nearest = moves.iter().filter(|(from, _)| inside(from)).max_by_key(|(from, _)| from.len());
    nearest.map_or_else(|| old.to_vec(), |(from, to)| join(to, &old[from.len() + 1..]))
}

/// Finds the change of a path; `None` also where something above it is new.
fn find<'a>(root: &'a DirChange, path: &[u8]) -> Option<&'a ChildChange> {
    let mut dir = root;
    let mut names = path.split(|byte| *byte == b'/').peekable();
    while let Some(name) = names.next() {
        let child = dir.children.get(name)?;
        if names.peek().is_none() {
            return Some(child);
        }
        match child {
            ChildChange::Directory(change) | ChildChange::Moved { change, .. } => dir = change,
            ChildChange::Metadata { .. } | ChildChange::Content { .. } | ChildChange::New => return None,
        }
    }
    None
}

fn has_content(root: &DirChange, path: &[u8]) -> bool {
    matches!(find(root, path), Some(ChildChange::Content { .. } | ChildChange::New))
}

fn replace(root: &mut DirChange, path: &[u8], change: ChildChange) {
    visit(root, path, |slot| *slot = Some(change));
}

/// Sees to it that a path is looked at.
fn ensure(root: &mut DirChange, path: &[u8], change: ChildChange) {
    visit(root, path, |slot| {
        slot.get_or_insert(change);
    });
}

/// Goes to a path's change, making the directories on the way; not where something above it is new.
fn visit(root: &mut DirChange, path: &[u8], act: impl FnOnce(&mut Option<ChildChange>)) {
    let mut dir = root;
    let mut names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let Some(leaf) = names.pop() else { return };
    for name in names {
        let child =
            dir.children.entry(name.to_vec()).or_insert_with(|| ChildChange::Directory(DirChange::default()));
        match child {
            ChildChange::Directory(change) | ChildChange::Moved { change, .. } => dir = change,
            ChildChange::Metadata { .. } | ChildChange::Content { .. } | ChildChange::New => return,
        }
    }
    let mut slot = dir.children.remove(leaf);
    act(&mut slot);
    if let Some(change) = slot {
        dir.children.insert(leaf.to_vec(), change);
    }
}
