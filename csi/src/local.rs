//! What is done to a volume's files in the pool. Everything here blocks and runs inside `pool.run`; every step can be
//! made twice, because a crash may come between any two.
//!
//! The order that makes a volume: its directory, its facts, its base, and `data` last. A directory without `data` is not
//! a volume yet.

use std::path::PathBuf;

use btrfs::{Dir, Errno, GroupId, Uuid, quota, subvolume};
use types::VolumeId;

use crate::about::{About, read_link, replace_link};
use crate::clone::{Roots, clone};
use crate::deaths::{Point, pass};
use crate::error::Error;
use crate::layout::{self, BASE, DATA, Place, SNAP, STAGING, VOLUMES};
use crate::pool::remove_tree;

/// How many numbers are tried for a new group before something is wrong with them.
const GROUP_ATTEMPTS: u32 = 8;

/// A subvolume's facts that syncs decide by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Its uuid.
    pub uuid: Uuid,
    /// What it was made from.
    pub parent: Option<Uuid>,
}

/// A snapshot of live that is not known yet by its version.
#[derive(Debug, Clone)]
pub struct Taken {
    /// Its name in the volume's `snap`.
    pub name: String,
    /// Its facts.
    pub marks: Marks,
    /// When something last changed in it, and in the subvolumes nested in it.
    pub roots: Roots,
}

/// A live tree in its place.
#[derive(Debug)]
pub struct Grown {
    /// The snapshot that it grew from.
    pub place: Place,
    /// That one's uuid.
    pub uuid: Uuid,
    /// When something last changed in it.
    pub roots: Roots,
}

/// Opens a volume's directory.
///
/// # Errors
/// It is not there.
pub fn directory(root: &Dir, id: &VolumeId) -> Result<Dir, Error> {
    match root.open_beneath(layout::volume(id)) {
        Ok(directory) => Ok(directory),
        Err(error) if error.is(Errno::ENOENT) => Err(Error::NotHere { volume: id.clone() }),
        Err(error) => Err(error.into()),
    }
}

/// Opens a volume's live tree.
///
/// # Errors
/// It is not there.
pub fn live(root: &Dir, id: &VolumeId) -> Result<Dir, Error> {
    match root.open_beneath(layout::data(id)) {
        Ok(live) => Ok(live),
        Err(error) if error.is(Errno::ENOENT) => Err(Error::NotHere { volume: id.clone() }),
        Err(error) => Err(error.into()),
    }
}

/// Makes a volume's directory with its facts, where they are missing.
///
/// # Errors
/// The pool cannot be written.
pub fn make_directory(root: &Dir, id: &VolumeId) -> Result<Dir, Error> {
    let volumes = root.open_dir(VOLUMES)?;
    let directory = open_or_create(&volumes, id.as_str())?;
    pass(Point::DirectoryMade)?;
    drop(open_or_create(&directory, SNAP)?);
    Ok(directory)
}

fn open_or_create(directory: &Dir, name: &str) -> Result<Dir, Error> {
    match directory.create_dir(name, 0o755) {
        Ok(made) => Ok(made),
        Err(error) if error.is(Errno::EEXIST) => Ok(directory.open_dir(name)?),
        Err(error) => Err(error.into()),
    }
}

/// Makes a quota group with a limit. Members join it in the call that makes them.
///
/// # Errors
/// The kernel refused.
pub fn make_group(root: &Dir, limit_bytes: Option<u64>) -> Result<u64, Error> {
    for _ in 0..GROUP_ATTEMPTS {
        // Never used twice: the group of a deleted volume lives until the cleaner is done with its extents.
        let number = rand::random::<u64>() >> 17;
        let group = group(number);
        if quota::create_group(root, group)? {
            pass(Point::GroupMade)?;
            if limit_bytes.is_some() {
                quota::limit(root, group, limit_bytes)?;
            }
            return Ok(number);
        }
    }
    Err(Error::Io {
        doing: "finding a free quota group",
        source: std::io::Error::from(std::io::ErrorKind::AlreadyExists),
    })
}

/// The level-1 group of this number.
pub fn group(number: u64) -> GroupId {
    GroupId::volume(number).expect("numbers are made with 47 bits")
}

/// What a subvolume is.
///
/// # Errors
/// The kernel refused.
pub fn marks(dir: &Dir) -> Result<Marks, Error> {
    let info = subvolume::info(dir)?;
    Ok(Marks { uuid: info.uuid, parent: info.parent_uuid })
}

/// When something last changed in a tree and in the subvolumes nested in it, as far as the kernel knows without a flush.
///
/// # Errors
/// The kernel refused.
pub fn roots(dir: &Dir) -> Result<Roots, Error> {
    let mut roots = Roots::from([(PathBuf::new(), subvolume::ctransid(dir)?)]);
    if subvolume::children(dir)?.is_empty() {
        return Ok(roots);
    }
    for one in subvolume::nested(dir)? {
        match dir.open_beneath(&one.path) {
            Ok(inner) => drop(roots.insert(one.path, subvolume::ctransid(&inner)?)),
            // Gone since it was listed, which moved its parent's mark.
            Err(error) if error.is(Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(roots)
}

/// Stages an empty subvolume and answers its name.
///
/// # Errors
/// The kernel refused; nothing is left.
pub fn stage_empty(root: &Dir, group: Option<GroupId>) -> Result<String, Error> {
    let name = layout::fresh();
    drop(root.open_dir(STAGING)?.create_subvolume(&name, group)?);
    pass(Point::StagedEmpty)?;
    Ok(name)
}

/// Stages a writable copy of a snapshot and answers its name.
///
/// # Errors
/// The kernel refused; nothing is left.
pub fn stage_clone(root: &Dir, from: &Place, group: Option<GroupId>) -> Result<String, Error> {
    let name = layout::fresh();
    clone(&root.open_beneath(from.path())?, &root.open_dir(STAGING)?, &name, false, group)?;
    pass(Point::StagedClone)?;
    Ok(name)
}

/// Drops what was staged.
///
/// # Errors
/// The kernel refused.
pub fn unstage(root: &Dir, name: &str) -> Result<(), Error> {
    remove_tree(&root.open_dir(STAGING)?, name.as_ref())?;
    pass(Point::Unstaged)
}

/// Puts what was staged into its place as the volume's live tree.
///
/// # Errors
/// There is a live tree already, or the kernel refused.
pub fn move_in(root: &Dir, name: &str, id: &VolumeId) -> Result<(), Error> {
    root.open_dir(STAGING)?.rename(name, &directory(root, id)?, DATA)?;
    pass(Point::MovedIn)
}

/// Takes a read-only snapshot of a subvolume into the volume's `snap`, without a version yet.
///
/// # Errors
/// The kernel refused; nothing is left.
pub fn take(root: &Dir, id: &VolumeId, source: &Dir) -> Result<Taken, Error> {
    let name = format!(".{}", layout::fresh());
    let snap = directory(root, id)?.open_dir(SNAP)?;
    let cloned = clone(source, &snap, &name, true, None)?;
    pass(Point::SnapshotTaken)?;
    Ok(Taken { name, marks: marks(&cloned.dir)?, roots: cloned.marks })
}

/// Puts a clone of a snapshot into its place as the volume's live tree. The kernel commits with it all that was done before.
///
/// # Errors
/// There is a live tree already, or the kernel refused.
pub fn grow_clone(root: &Dir, id: &VolumeId, about: &About, from: &Place) -> Result<Grown, Error> {
    let source = root.open_beneath(from.path())?;
    let directory = make_directory(root, id)?;
    set_about(root, id, about)?;
    set_base(root, id, from)?;
    let roots = plant(&directory, &source, about.group.map(group))?;
    Ok(Grown { place: from.clone(), uuid: marks(&source)?.uuid, roots })
}

/// Makes a snapshot's clone the live tree in a volume's directory, and tells when something last changed in it.
///
/// # Errors
/// There is a live tree already, or the kernel refused.
pub fn plant(directory: &Dir, source: &Dir, group: Option<GroupId>) -> Result<Roots, Error> {
    let cloned = clone(source, directory, DATA, false, group)?;
    pass(Point::Planted)?;
    // Putting nested subvolumes into their places was a change, after those that the clone tells of.
    if cloned.marks.len() > 1 { roots(&cloned.dir) } else { Ok(cloned.marks) }
}

/// Puts what was staged into its place as the volume's live tree, and takes the snapshot of it that is its base. The
/// snapshot also writes what was restored, and the kernel commits with it all that was done before; with nested
/// subvolumes the caller has to commit.
///
/// # Errors
/// There is a live tree already, or the kernel refused.
pub fn grow_staged(
    root: &Dir,
    id: &VolumeId,
    about: &About,
    staged: &str,
    version: &types::VersionId,
) -> Result<Grown, Error> {
    let directory = make_directory(root, id)?;
    set_about(root, id, about)?;
    move_in(root, staged, id)?;
    let (live, snap) = (live(root, id)?, directory.open_dir(SNAP)?);
    if !subvolume::children(&live)?.is_empty() {
        let taken = take(root, id, &live)?;
        let place = name_taken(root, id, &taken.name, version)?;
        set_base(root, id, &place)?;
        return Ok(Grown { place, uuid: taken.marks.uuid, roots: taken.roots });
    }
    let mut name = version.to_string();
    if snap.exists(&name)? {
        name = second_name(version);
    }
    let place = Place::snapshot(id, &name);
    // It leads nowhere until the snapshot is there, and goes to disk with it.
    set_base(root, id, &place)?;
    let cloned = clone(&live, &snap, &name, true, None)?;
    pass(Point::SnapshotTaken)?;
    Ok(Grown { place, uuid: marks(&cloned.dir)?.uuid, roots: cloned.marks })
}

/// Drops a snapshot that was taken and is not needed.
///
/// # Errors
/// The kernel refused.
pub fn drop_taken(root: &Dir, id: &VolumeId, name: &str) -> Result<(), Error> {
    remove_tree(&directory(root, id)?.open_dir(SNAP)?, name.as_ref())?;
    pass(Point::SnapshotDropped)
}

/// Gives a snapshot the name of its version.
///
/// # Errors
/// The kernel refused.
pub fn name_taken(
    root: &Dir,
    id: &VolumeId,
    taken: &str,
    version: &types::VersionId,
) -> Result<Place, Error> {
    let snap = directory(root, id)?.open_dir(SNAP)?;
    let mut name = version.to_string();
    match snap.rename(taken, &snap, &name) {
        Ok(()) => {}
        // The same tree was here before (A, B, A). Both stay until nobody needs the older one.
        Err(error) if error.is(Errno::EEXIST) => {
            name = second_name(version);
            snap.rename(taken, &snap, &name)?;
        }
        Err(error) => return Err(error.into()),
    }
    pass(Point::SnapshotNamed)?;
    Ok(Place::snapshot(id, &name))
}

/// A name for a snapshot whose tree was here before.
fn second_name(version: &types::VersionId) -> String {
    format!("{version}.{}", layout::fresh())
}

/// Notes what live grew from.
///
/// # Errors
/// The pool cannot be written.
pub fn set_base(root: &Dir, id: &VolumeId, place: &Place) -> Result<(), Error> {
    replace_link(&directory(root, id)?, BASE, &place.link())?;
    pass(Point::BaseSet)
}

/// Reads what live grew from. A link that we did not write, or that leads nowhere, is none.
///
/// # Errors
/// The pool cannot be read.
pub fn base(root: &Dir, id: &VolumeId) -> Result<Option<Place>, Error> {
    let Some(target) = read_link(&directory(root, id)?, BASE)? else { return Ok(None) };
    let Some(place) = Place::from_link(&target) else { return Ok(None) };
    match root.open_beneath(place.path()) {
        Ok(dir) if subvolume::is_subvolume(&dir)? => Ok(Some(place)),
        Ok(_) => Ok(None),
        Err(error) if error.is(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Deletes snapshots that nobody needs, and the directories that held only them.
///
/// # Errors
/// The kernel refused.
pub fn delete_places(root: &Dir, places: &[Place]) -> Result<(), Error> {
    for place in places {
        let (parent, name) = place.split();
        match root.open_beneath(parent) {
            Ok(parent) => remove_tree(&parent, name.as_ref())?,
            Err(error) if error.is(Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        pass(Point::PlaceDeleted)?;
        match place.owner() {
            Some(id) => drop_empty_directory(root, &id)?,
            None => remove_tree(&root.open_dir(layout::TEMPLATES)?, place.template_text().as_ref())?,
        }
    }
    Ok(())
}

/// Deletes a volume's live tree, old trees and link to its base. Snapshots that others grew from stay, and the
/// directory with them.
///
/// # Errors
/// The kernel refused.
pub fn drop_live(root: &Dir, id: &VolumeId) -> Result<(), Error> {
    let directory = match directory(root, id) {
        Err(Error::NotHere { .. }) => return Ok(()),
        directory => directory?,
    };
    // One step takes it out of sight; what comes after may take its time or be done by the sweep at the next start.
    if directory.exists(DATA)? {
        let name = layout::fresh();
        let staging = root.open_dir(STAGING)?;
        directory.rename(DATA, &staging, &name)?;
        pass(Point::LiveHidden)?;
        remove_tree(&staging, name.as_ref())?;
        pass(Point::LiveDeleted)?;
    }
    for entry in directory.entries()? {
        if entry != SNAP {
            remove_tree(&directory, &entry)?;
        }
    }
    drop(directory);
    drop_empty_directory(root, id)
}

/// Removes a volume's directory if no live tree and no snapshot is in it.
///
/// # Errors
/// The kernel refused.
pub fn drop_empty_directory(root: &Dir, id: &VolumeId) -> Result<(), Error> {
    let directory = match directory(root, id) {
        Err(Error::NotHere { .. }) => return Ok(()),
        directory => directory?,
    };
    let held = directory.exists(DATA)?
        || directory.exists(SNAP)? && !directory.open_dir(SNAP)?.entries()?.is_empty()
        || read_link(&directory, BASE)?.is_some()
        || read_link(&directory, layout::ABOUT)?.is_some();
    drop(directory);
    if held {
        return Ok(());
    }
    remove_tree(&root.open_dir(VOLUMES)?, id.as_str().as_ref())
}

/// Reads the facts of a copy.
///
/// # Errors
/// They cannot be understood.
pub fn about(root: &Dir, id: &VolumeId) -> Result<Option<About>, Error> {
    About::read(&directory(root, id)?)
}

/// Writes the facts of a copy.
///
/// # Errors
/// The pool cannot be written.
pub fn set_about(root: &Dir, id: &VolumeId, about: &About) -> Result<(), Error> {
    about.write(&directory(root, id)?)?;
    pass(Point::AboutSet)
}

/// What a volume's group uses; zero without quotas.
///
/// # Errors
/// The kernel refused.
pub fn used(root: &Dir, about: &About) -> Result<u64, Error> {
    let Some(number) = about.group else { return Ok(0) };
    Ok(quota::usage(root, group(number))?.map_or(0, |usage| usage.referenced_bytes))
}

/// Sets the limit that the kernel keeps for a copy.
///
/// # Errors
/// The kernel refused.
pub fn limit(root: &Dir, about: &About, limit_bytes: Option<u64>) -> Result<(), Error> {
    match about.group {
        Some(number) => {
            quota::limit(root, group(number), limit_bytes)?;
            pass(Point::Limited)
        }
        None => Ok(()),
    }
}
