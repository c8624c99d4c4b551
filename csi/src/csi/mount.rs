//! Bind mounts of volumes at targets. Everything here blocks and runs behind the pool's door.
//!
//! A bind and its flags are two calls: `MS_BIND | MS_RDONLY` in one gives a writable mount (measured). A crash between
//! the two leaves a mount with the pool's flags, which the retry sets right.

use std::path::{Path, PathBuf};

use btrfs::Dir;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proto::convert::InvalidField;
use types::{Change, VolumeId};

use super::capability::MountOptions;
use super::error::Error;
use crate::mounts::{self, Mount};
use crate::pool::Pool;

/// More mounts than this on one target are no accident of ours.
const MOST_STACKED: usize = 64;

/// Longer than the kernel takes.
const LONGEST_PATH: usize = 4095;

/// Finds the real path of a target: its directory's, as mountinfo spells it, and its own name. The target itself need not
/// exist. Nothing where its directory does not.
pub(super) fn target(field: &'static str, text: &str) -> Result<Option<PathBuf>, Error> {
    let wrong = |reason: &str| InvalidField::Malformed { field, reason: reason.to_owned() };
    if text.is_empty() {
        return Err(InvalidField::Missing { field }.into());
    }
    let path = Path::new(text);
    if text.len() > LONGEST_PATH || text.contains('\0') {
        return Err(wrong("is no path").into());
    }
    // What is not absolute, or leads upwards, is nowhere: the caller decides what that means.
    if !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
        return Ok(None);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    match parent.canonicalize() {
        Ok(parent) => Ok(Some(parent.join(name))),
        Err(error) if is_absent(&error) => Ok(None),
        Err(source) => Err(Error::Mount { doing: "find the directory of", target: text.to_owned(), source }),
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::NotFound
            | std::io::ErrorKind::NotADirectory
            | std::io::ErrorKind::InvalidFilename
    )
}

/// What is mounted on top at a target.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Top {
    /// Nothing.
    Free,
    /// This volume.
    Volume {
        /// Nobody may write through it.
        readonly: bool,
    },
    /// Something else.
    Other,
}

fn all(target: &Path) -> Result<Vec<Mount>, Error> {
    let failed = |source| Error::Mount { doing: "look at", target: target.display().to_string(), source };
    mounts::read().map_err(failed)
}

/// Looks at what is on top at `target`.
pub(super) fn top(pool: &Pool, id: &VolumeId, target: &Path) -> Result<Top, Error> {
    let mounts = all(target)?;
    Ok(match mounts::at(&mounts, target) {
        None => Top::Free,
        Some(mount) if pool.shows(mount, &crate::layout::volume(id)) => {
            Top::Volume { readonly: mount.has_option("ro") }
        }
        Some(_) => Top::Other,
    })
}

/// Lists where a volume is mounted, but for `target`.
pub(super) fn elsewhere(pool: &Pool, id: &VolumeId, target: &Path) -> Result<Vec<PathBuf>, Error> {
    let mounts = all(target)?;
    let inside = crate::layout::volume(id);
    Ok(mounts
        .into_iter()
        .filter(|mount| mount.point != target && pool.shows(mount, &inside))
        .map(|mount| mount.point)
        .collect())
}

/// Mounts `live` at `target`, which is made if its directory is there. Mounted in the same way, it is already.
pub(super) fn bind(
    pool: &Pool,
    id: &VolumeId,
    live: &Dir,
    target: &Path,
    options: MountOptions,
) -> Result<Change, Error> {
    let shown = || target.display().to_string();
    match top(pool, id, target)? {
        Top::Volume { readonly: true } if !options.readonly => {
            return Err(Error::PublishedOtherwise { volume: id.clone(), node: shown(), readonly: true });
        }
        Top::Volume { readonly } => {
            // The same flags once more: a crash may have come between the mount and them.
            return match set_flags(target, options) {
                Ok(()) if readonly == options.readonly => Ok(Change::Already(())),
                Ok(()) => Ok(Change::Made(())),
                // Somebody writes through it: it was not published read-only.
                Err(Error::Mount { source, .. }) if source.raw_os_error() == Some(nix::libc::EBUSY) => {
                    Err(Error::PublishedOtherwise { volume: id.clone(), node: shown(), readonly: false })
                }
                Err(error) => Err(error),
            };
        }
        Top::Other => return Err(Error::Occupied { target: shown() }),
        Top::Free => {}
    }
    let failed =
        |doing: &'static str, source: std::io::Error| Error::Mount { doing, target: shown(), source };
    match std::fs::create_dir(target) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            // mount(2) would follow a symlink.
            let is_directory = std::fs::symlink_metadata(target).is_ok_and(|found| found.is_dir());
            if !is_directory {
                return Err(Error::Occupied { target: shown() });
            }
        }
        Err(source) => return Err(failed("make", source)),
    }
    mount(Some(&live.proc_path()), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| failed("mount the volume at", errno.into()))?;
    if let Err(error) = set_flags(target, options) {
        // A mount with other flags than asked for must not stay; if it cannot go either, say so.
        if let Err(errno) = umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            tracing::warn!(volume = %id, %errno, "a mount whose flags could not be set could not be taken off");
        }
        return Err(error);
    }
    Ok(Change::Made(()))
}

fn set_flags(target: &Path, options: MountOptions) -> Result<(), Error> {
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOATIME;
    flags.set(MsFlags::MS_RDONLY, options.readonly);
    flags.set(MsFlags::MS_NOSUID, !options.suid);
    flags.set(MsFlags::MS_NODEV, !options.dev);
    flags.set(MsFlags::MS_NOEXEC, options.noexec);
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>).map_err(|errno| Error::Mount {
        doing: "set the flags of the mount at",
        target: target.display().to_string(),
        source: errno.into(),
    })
}

/// Takes every mount of the volume off `target`, then the empty directory. Nothing of what is in the volume, in somebody
/// else's mount or in the directory is touched.
pub(super) fn unbind(pool: &Pool, id: &VolumeId, target: &Path) -> Result<Change, Error> {
    let shown = || target.display().to_string();
    let mut change = Change::Already(());
    for _ in 0..MOST_STACKED {
        match top(pool, id, target)? {
            Top::Free => return rmdir(target, change),
            Top::Other => return Err(Error::Occupied { target: shown() }),
            Top::Volume { .. } => {
                umount2(target, MntFlags::UMOUNT_NOFOLLOW).map_err(|errno| Error::Mount {
                    doing: "unmount",
                    target: shown(),
                    source: errno.into(),
                })?;
                change = Change::Made(());
            }
        }
    }
    Err(Error::Occupied { target: shown() })
}

fn rmdir(target: &Path, change: Change) -> Result<Change, Error> {
    match std::fs::remove_dir(target) {
        Ok(()) => Ok(Change::Made(())),
        Err(error) if is_absent(&error) => Ok(change),
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
            Err(Error::NotEmpty { target: target.display().to_string() })
        }
        Err(source) => Err(Error::Mount { doing: "remove", target: target.display().to_string(), source }),
    }
}
