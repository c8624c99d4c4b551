//! Deleting a path with everything below it, without ever following a link or leaving the volume.

use std::os::fd::{AsFd, OwnedFd};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::beneath::{open_beneath, open_directory};
use super::spool::is_leftover;

/// Deeper than this, a directory is moved up to the one that is being deleted, so that a tree of any depth needs
/// few descriptors.
const MAX_OPEN: usize = 64;

/// How often a directory may be found filled again by somebody else.
const MAX_REFILLS: usize = 16;

/// Deletes `name` in `parent`. A directory goes if it is empty, or with everything below it if `recursive`.
pub(super) fn delete(parent: impl AsFd, name: &[u8], recursive: bool) -> Result<(), Errno> {
    match unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR | Errno::EPERM) => {}
        answer => return answer,
    }
    let mut answer = unlinkat(&parent, name, UnlinkatFlags::RemoveDir);
    for _ in 0..MAX_REFILLS {
        if answer != Err(Errno::ENOTEMPTY) {
            return answer;
        }
        let top = open_directory(&parent, name)?;
        if recursive {
            empty(&top)?;
        } else if !sweep(&top)? {
            return answer;
        }
        answer = unlinkat(&parent, name, UnlinkatFlags::RemoveDir);
    }
    answer
}

/// Removes what crashed writes left in a directory that has nothing else. Tells if it has nothing else.
fn sweep(directory: &OwnedFd) -> Result<bool, Errno> {
    let names = names(directory)?;
    if !names.iter().all(|(name, _)| is_leftover(name)) {
        return Ok(false);
    }
    for (name, _) in names {
        tolerate(unlinkat(directory, name.as_slice(), UnlinkatFlags::NoRemoveDir))?;
    }
    Ok(true)
}

/// Removes everything in `top`.
fn empty(top: &OwnedFd) -> Result<(), Errno> {
    let mut moved_up = 0_u64;
    // Each level: its directory and the subdirectories still to be removed.
    let mut levels: Vec<(Option<OwnedFd>, Vec<Vec<u8>>)> = vec![(None, clear_files(top)?)];
    while let Some((directory, todo)) = levels.pop() {
        let here = directory.as_ref().unwrap_or(top);
        let Some(name) = todo.last().cloned() else {
            if let Some((directory, todo)) = levels.last_mut()
                && let Some(name) = todo.pop()
            {
                let above = directory.as_ref().unwrap_or(top);
                tolerate(unlinkat(above, name.as_slice(), UnlinkatFlags::RemoveDir))?;
            }
            continue;
        };
        let is_deep = levels.len() >= MAX_OPEN;
        let child = if is_deep { None } else { Some(open_directory(here, &name)) };
        match child {
            Some(Ok(child)) => {
                let below = clear_files(&child)?;
                levels.push((directory, todo));
                levels.push((Some(child), below));
                continue;
            }
            // Gone, or another thing by now: the next round of `delete` sees it.
            Some(Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)) => {}
            Some(Err(errno)) => return Err(errno),
            None => {
                // Nobody else makes such a name; should one stand there, the next round comes back for this directory.
                let up = format!(".opensail-delete.{moved_up}");
                moved_up += 1;
                let flags = RenameFlags::RENAME_NOREPLACE;
                tolerate(renameat2(here, name.as_slice(), top, up.as_str(), flags))?;
                // At the front: the last one is the one that is being emptied.
                if let Some((_, first)) = levels.first_mut() {
                    first.insert(0, up.into_bytes());
                }
            }
        }
        let mut todo = todo;
        todo.pop();
        levels.push((directory, todo));
    }
    Ok(())
}

/// Unlinks all that is not a directory and returns the names of those that are.
fn clear_files(directory: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut directories = Vec::new();
    for (name, kind) in names(directory)? {
        if kind != Some(Type::Directory) {
            match unlinkat(directory, name.as_slice(), UnlinkatFlags::NoRemoveDir) {
                Err(Errno::EISDIR | Errno::EPERM) => {}
                answer => {
                    tolerate(answer)?;
                    continue;
                }
            }
        }
        directories.push(name);
    }
    Ok(directories)
}

/// A name, and its type where the directory tells it.
pub(super) type Name = (Vec<u8>, Option<Type>);

/// Returns what is in a directory.
pub(super) fn names(directory: &OwnedFd) -> Result<Vec<Name>, Errno> {
    let own = open_beneath(directory, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
    let mut names = Vec::new();
    for found in Dir::from_fd(own)?.iter() {
        let found = found?;
        let name = found.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((name.to_vec(), found.file_type()));
        }
    }
    Ok(names)
}

/// Takes "not there" as done, and "not empty" or "exists" as something for the next round.
fn tolerate(answer: Result<(), Errno>) -> Result<(), Errno> {
    match answer {
        Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
        answer => answer,
    }
}
