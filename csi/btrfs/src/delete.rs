//! Deleting a subvolume with everything below it.
//!
//! A user may have made subvolumes in it, at any depth and marked read-only, and may go on doing so while we delete.
//! So: list, delete the deepest first by id, and look again until the top one goes, a bounded number of times.

use std::os::fd::AsFd as _;

use nix::errno::Errno;

use crate::abi::{SUBVOL_SPEC_BY_ID, VolArgsV2};
use crate::headroom::Headroom;
use crate::subvolume::{self, Nested};
use crate::{Dir, Error, Result, sys};

/// How often we look again when a user makes new subvolumes as fast as we delete them.
const PASSES: usize = 64;

/// Deletes `target` and all below it. `anchor` is any directory of the filesystem that stays.
pub(crate) fn recursive(anchor: &Dir, target: &Dir) -> Result<Vec<u64>> {
    if !subvolume::is_subvolume(target)? {
        return Err(Error::NotSubvolume { name: target.name().to_owned() });
    }
    let mut headroom = Headroom::default();
    let result = in_passes(anchor, target, &mut headroom);
    headroom.restore(anchor, result)
}

fn in_passes(anchor: &Dir, target: &Dir, headroom: &mut Headroom) -> Result<Vec<u64>> {
    let id = subvolume::id(target)?;
    let mut deleted = Vec::new();
    for _ in 0..PASSES {
        // Each comes after the one it is in, so backwards is deepest first.
        for below in subvolume::nested(target)?.iter().rev() {
            let mut result = nested(anchor, target, below);
            // The subvolume it is in is full, and taking a name out needs room too.
            if matches!(&result, Err(error) if error.is(Errno::EDQUOT))
                && headroom.raise(anchor, below.parent_id)?
            {
                result = nested(anchor, target, below);
            }
            match result {
                Ok(true) => deleted.push(below.id),
                Ok(false) => {}
                // Something new below it: the next pass finds it.
                Err(error) if error.is(Errno::ENOTEMPTY) => {}
                Err(error) => return Err(error),
            }
        }
        match by_id(anchor, id) {
            Ok(gone) => {
                if gone {
                    deleted.push(id);
                }
                return Ok(deleted);
            }
            Err(error) if error.is(Errno::ENOTEMPTY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(target.on_self("BTRFS_IOC_SNAP_DESTROY_V2")(Errno::ENOTEMPTY))
}

/// Deletes one subvolume that has none below it. `false` if there is none of this id.
pub(crate) fn by_id(anchor: &Dir, id: u64) -> Result<bool> {
    let args = VolArgsV2 {
        fd: 0,
        transid: 0,
        flags: SUBVOL_SPEC_BY_ID,
        unused: [0; 4],
        subvolid: id,
        rest_of_name: [0; 4032],
    };
    match sys::snap_destroy_v2(anchor.as_fd(), &args) {
        Ok(()) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(Error::call(
            "BTRFS_IOC_SNAP_DESTROY_V2",
            format!("{} (subvolume {id})", anchor.name()),
        )(errno)),
    }
}

fn nested(anchor: &Dir, target: &Dir, below: &Nested) -> Result<bool> {
    match by_id(anchor, below.id) {
        // The subvolume it is in is read-only, so the name cannot go. It will be deleted too: make it writable.
        Err(error) if error.is(Errno::EROFS) => {
            make_parent_writable(target, below)?;
            by_id(anchor, below.id)
        }
        result => result,
    }
}

fn make_parent_writable(target: &Dir, below: &Nested) -> Result<()> {
    if subvolume::id(target)? == below.parent_id {
        return subvolume::set_readonly(target, false);
    }
    // The path to the nested subvolume's own root is a directory of its own subvolume; its parent's root is above it.
    let mut path = below.path.as_path();
    while let Some(up) = path.parent() {
        path = up;
        if path.as_os_str().is_empty() {
            break;
        }
        let dir = target.open_beneath(path)?;
        // A user may have moved things since they were listed: act only on the subvolume that is meant.
        if subvolume::is_subvolume(&dir)? && subvolume::id(&dir)? == below.parent_id {
            return subvolume::set_readonly(&dir, false);
        }
    }
    // Not there any more; the next pass sees where it is.
    Ok(())
}
