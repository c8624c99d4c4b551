//! A snapshot of a tree with everything in it. The kernel's snapshot shows a nested subvolume as an empty directory, so
//! those are snapshotted too, each into its place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use btrfs::{Dir, Errno, GroupId, subvolume};
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;

use crate::deaths::{Point, pass};
use crate::error::Error;
use crate::pool::remove_tree;

/// How often a tree whose nested subvolumes move while they are being copied is tried again.
const ATTEMPTS: u32 = 5;

/// What was made.
#[derive(Debug)]
pub struct Cloned {
    /// The new tree.
    pub dir: Dir,
    /// When something last changed in each subvolume of it, by its path, as it was in the source. In the copy the marks
    /// of those with nested subvolumes differ: these are put into their places there.
    pub marks: Roots,
}

/// Paths of subvolumes (the root's is empty) and the transaction of the last change in each.
pub type Roots = BTreeMap<PathBuf, u64>;

/// Makes `name` in `directory` a snapshot of the subvolume `source`, with the subvolumes nested in it. Without any it is
/// one ioctl. Leaves nothing where it fails.
///
/// # Errors
/// The kernel refused, or nested subvolumes kept moving.
pub fn clone(
    source: &Dir,
    directory: &Dir,
    name: &str,
    readonly: bool,
    group: Option<GroupId>,
) -> Result<Cloned, Error> {
    if subvolume::children(source)?.is_empty() {
        let dir = directory.snapshot(source, name, readonly, group)?;
        let marks = Roots::from([(PathBuf::new(), subvolume::ctransid(&dir)?)]);
        return Ok(Cloned { dir, marks });
    }
    for attempt in 1.. {
        let result = clone_nested(source, directory, name, readonly, group);
        let Err(error) = result else { return result };
        if matches!(error, Error::ShuttingDown) {
            return Err(error);
        }
        remove_tree(directory, name.as_ref())?;
        // Somebody removed or renamed a nested subvolume between the list and its snapshot.
        let moved = matches!(&error, Error::Btrfs(e) if e.is(Errno::ENOENT) || e.is(Errno::ENOTDIR) || e.is(Errno::EEXIST));
        if !moved || attempt == ATTEMPTS {
            return Err(error);
        }
    }
    unreachable!("the last attempt returns")
}

fn clone_nested(
    source: &Dir,
    directory: &Dir,
    name: &str,
    readonly: bool,
    group: Option<GroupId>,
) -> Result<Cloned, Error> {
    let root = directory.snapshot(source, name, false, group)?;
    pass(Point::CloneRooted)?;
    let mut marks = Roots::from([(PathBuf::new(), subvolume::ctransid(&root)?)]);
    let nested = subvolume::nested(source)?;
    // Each comes after the one that it is in, so its stub is there when its turn comes.
    for one in &nested {
        let from = source.open_beneath(&one.path)?;
        let last = one.path.file_name().expect("a nested subvolume has a name");
        let parent = beneath(&root, one.path.parent())?;
        let before = parent.stat()?;
        match parent.remove_dir(last) {
            Ok(()) => {}
            // Made after the snapshot was taken: it belongs to the next one.
            Err(error) if error.is(Errno::ENOENT) => continue,
            Err(error) => return Err(error.into()),
        }
        let inner = parent.snapshot(&from, last, false, group)?;
        marks.insert(one.path.clone(), subvolume::ctransid(&inner)?);
        // The directory is part of the tree's identity, its time too.
        let time = |seconds, nanos| TimeSpec::new(seconds, nanos);
        futimens(
            &parent,
            &time(before.st_atime, before.st_atime_nsec),
            &time(before.st_mtime, before.st_mtime_nsec),
        )
        .map_err(|errno| Error::Io { doing: "keeping the time of a directory", source: errno.into() })?;
        pass(Point::CloneNested)?;
    }
    if readonly {
        for one in nested.iter().rev() {
            match root.open_beneath(&one.path) {
                Ok(inner) => subvolume::set_readonly(&inner, true)?,
                Err(error) if error.is(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        subvolume::set_readonly(&root, true)?;
    }
    Ok(Cloned { dir: root, marks })
}

fn beneath(root: &Dir, path: Option<&Path>) -> Result<Dir, Error> {
    match path {
        Some(path) if !path.as_os_str().is_empty() => Ok(root.open_beneath(path)?),
        _ => Ok(root.try_clone()?),
    }
}
