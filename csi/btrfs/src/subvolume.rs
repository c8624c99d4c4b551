//! Subvolumes and snapshots: made, looked at, listed, marked read-only.
//!
//! Making and looking is libbtrfsutil's work, over `/proc/self/fd/N` of an open directory. Listing is ours: one search
//! of the root tree gives the names with the ids.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use libbtrfsutil::{CreateSnapshotOptions, CreateSubvolumeOptions, ErrorKind, QgroupInherit};
use nix::errno::Errno;

use crate::search::{Key, Search, kind, tree};
use crate::{Dir, Error, GroupId, Result, Uuid, delete, filesystem, sys};

/// Inode of the root of every subvolume (`BTRFS_FIRST_FREE_OBJECTID`).
pub const ROOT_INODE: u64 = 256;
/// Inode that stands where a nested subvolume was, in a snapshot of its parent (`BTRFS_EMPTY_SUBVOL_DIR_OBJECTID`).
pub const EMPTY_SUBVOLUME_INODE: u64 = 2;
/// Id of the subvolume that is the filesystem's own root (`BTRFS_FS_TREE_OBJECTID`).
pub const TOP_LEVEL_ID: u64 = 5;

/// Deepest nesting that is followed. A path of 4096 bytes could hold more; nobody does.
const NESTED_DEPTH: usize = 256;

/// What the kernel knows of a subvolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its id, never used twice in a filesystem.
    pub id: u64,
    /// The subvolume whose directory it is in; none for the top level and for one that is being deleted.
    pub parent_id: Option<u64>,
    /// Inode of the directory it is in.
    pub dir_inode: Option<u64>,
    /// Its uuid.
    pub uuid: Uuid,
    /// The subvolume it was made from, if it is a snapshot.
    pub parent_uuid: Option<Uuid>,
    /// Set by `btrfs receive`; we neither set nor need it.
    pub received_uuid: Option<Uuid>,
    /// Transaction of its last change of any kind. Snapshotting a subvolume moves this too.
    pub generation: u64,
    /// Transaction of the last change of an inode in it: what to compare to know whether it has been written.
    pub ctransid: u64,
    /// Transaction it was made in; nothing written later to its source has this number or a lower one.
    pub otransid: u64,
    /// Whether it is read-only.
    pub readonly: bool,
}

/// A subvolume directly in another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Its id.
    pub id: u64,
    /// Inode, in the parent subvolume, of the directory it is in.
    pub dir_inode: u64,
    /// Its name there.
    pub name: OsString,
}

/// A subvolume anywhere below another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nested {
    /// Its id.
    pub id: u64,
    /// Id of the subvolume it is directly in.
    pub parent_id: u64,
    /// Its path from the subvolume that was asked about.
    pub path: PathBuf,
}

impl Dir {
    /// Makes an empty subvolume, a member of `group` from its first moment.
    pub fn create_subvolume(&self, name: impl AsRef<OsStr>, group: Option<GroupId>) -> Result<Self> {
        let (path, name) = self.proc_path_of(name.as_ref())?;
        let inherit = inherit(group).map_err(util("BTRFS_IOC_SUBVOL_CREATE_V2", self.child_name(name)))?;
        CreateSubvolumeOptions::new()
            .qgroup(inherit)
            .create(path)
            .map_err(util("BTRFS_IOC_SUBVOL_CREATE_V2", self.child_name(name)))?;
        self.open_dir(name)
    }

    /// Makes a snapshot of `source` here, a member of `group` from its first moment.
    ///
    /// A nested subvolume of `source` is an empty directory in the snapshot: see [`nested`].
    pub fn snapshot(
        &self,
        source: &Self,
        name: impl AsRef<OsStr>,
        readonly: bool,
        group: Option<GroupId>,
    ) -> Result<Self> {
        let (path, name) = self.proc_path_of(name.as_ref())?;
        if !is_subvolume(source)? {
            return Err(Error::NotSubvolume { name: source.name().to_owned() });
        }
        let inherit = inherit(group).map_err(util("BTRFS_IOC_SNAP_CREATE_V2", self.child_name(name)))?;
        CreateSnapshotOptions::new()
            .readonly(readonly)
            .qgroup(inherit)
            .create(source.proc_path(), path)
            .map_err(util("BTRFS_IOC_SNAP_CREATE_V2", self.child_name(name)))?;
        self.open_dir(name)
    }

    /// Deletes the subvolume `name` with every subvolume below it, deepest first.
    ///
    /// Answers the ids that were deleted, in order; empty if there was nothing of this name. The names are gone when
    /// this returns, the space later: see [`crate::cleaner`]. A mounted subvolume is deleted like any other: the kernel
    /// does not refuse, so the caller checks first.
    pub fn delete_subvolume(&self, name: impl AsRef<OsStr>) -> Result<Vec<u64>> {
        match self.open_dir(name) {
            Ok(target) => delete::recursive(self, &target),
            Err(error) if error.is(Errno::ENOENT) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Deletes one subvolume of this filesystem by its id, which must have none below it. `false` if it was not there.
    pub fn delete_subvolume_by_id(&self, id: u64) -> Result<bool> {
        delete::by_id(self, id)
    }
}

/// Whether the directory is the root of a subvolume.
pub fn is_subvolume(dir: &Dir) -> Result<bool> {
    // Of libbtrfsutil's two tests, is_subvolume answers "no" for what is not btrfs as well.
    libbtrfsutil::is_subvolume(dir.proc_path()).map_err(util("fstat", dir.name()))
}

/// Id of the subvolume that the directory is in.
pub fn id(dir: &Dir) -> Result<u64> {
    sys::ino_lookup(dir.as_fd(), 0, ROOT_INODE)
        .map(|(tree, _)| tree)
        .map_err(|errno| not_btrfs_or(dir, "BTRFS_IOC_INO_LOOKUP", errno))
}

/// What the kernel knows of the subvolume that the directory is in.
pub fn info(dir: &Dir) -> Result<Info> {
    let info = libbtrfsutil::subvolume_info(dir.proc_path()).map_err(|error| {
        if error.kind() == ErrorKind::NOT_BTRFS {
            Error::NotBtrfs { name: dir.name().to_owned() }
        } else {
            util("BTRFS_IOC_GET_SUBVOL_INFO", dir.name())(error)
        }
    })?;
    Ok(Info {
        id: info.id(),
        parent_id: info.parent_id().map(u64::from),
        dir_inode: info.dir_id().map(u64::from),
        uuid: Uuid::from_bytes(info.uuid().into_bytes()),
        parent_uuid: info.parent_uuid().map(|uuid| Uuid::from_bytes(uuid.into_bytes())),
        received_uuid: info.received_uuid().map(|uuid| Uuid::from_bytes(uuid.into_bytes())),
        generation: info.generation(),
        ctransid: info.ctransid(),
        otransid: info.otransid(),
        // BTRFS_ROOT_SUBVOL_RDONLY
        readonly: info.flags() & 1 != 0,
    })
}

/// The transaction of the last change of an inode in it, as [`Info::ctransid`], but as it is now: what [`info`] reads as
/// root is the tree of roots, which has it since the last commit only. A page that is dirty in the cache and whose inode
/// was not touched since does not show; [`crate::commit::sync_all`] first where that matters.
pub fn ctransid(dir: &Dir) -> Result<u64> {
    sys::subvol_ctransid(dir.as_fd()).map_err(|errno| not_btrfs_or(dir, "BTRFS_IOC_GET_SUBVOL_INFO", errno))
}

/// Whether the subvolume is read-only.
pub fn is_readonly(dir: &Dir) -> Result<bool> {
    libbtrfsutil::subvolume_read_only(dir.proc_path()).map_err(util("BTRFS_IOC_SUBVOL_GETFLAGS", dir.name()))
}

/// Makes a subvolume read-only or writable.
pub fn set_readonly(dir: &Dir, readonly: bool) -> Result<()> {
    libbtrfsutil::set_subvolume_read_only(dir.proc_path(), readonly)
        .map_err(util("BTRFS_IOC_SUBVOL_SETFLAGS", dir.name()))
}

/// The subvolumes directly in the one the directory is in, by id.
pub fn children(dir: &Dir) -> Result<Vec<Child>> {
    children_of(dir, id(dir)?)
}

/// Every subvolume below the one that `root` is the root of, each after the one it is in.
pub fn nested(root: &Dir) -> Result<Vec<Nested>> {
    if !is_subvolume(root)? {
        return Err(Error::NotSubvolume { name: root.name().to_owned() });
    }
    let mut found = Vec::new();
    let mut level = vec![(id(root)?, PathBuf::new())];
    for _ in 0..NESTED_DEPTH {
        let mut below = Vec::new();
        for (parent_id, parent_path) in &level {
            for child in children_of(root, *parent_id)? {
                // Gone since it was listed: then it is not below any more.
                let Some(directory) = path_of(root, *parent_id, child.dir_inode)? else { continue };
                let path = parent_path.join(directory).join(&child.name);
                below.push((child.id, path.clone()));
                found.push(Nested { id: child.id, parent_id: *parent_id, path });
            }
        }
        if below.is_empty() {
            return Ok(found);
        }
        level = below;
    }
    Err(Error::call("nested subvolumes", root.name())(Errno::ELOOP))
}

/// Path of an inode from the root of its subvolume, by one of its names. `None` if it is not there (any more).
pub fn path_of(dir: &Dir, subvolume_id: u64, inode: u64) -> Result<Option<PathBuf>> {
    match sys::ino_lookup(dir.as_fd(), subvolume_id, inode) {
        Ok((_, mut path)) => {
            // The kernel ends the path with a slash, as it looks directories up with it.
            if path.last() == Some(&b'/') {
                path.pop();
            }
            Ok(Some(PathBuf::from(OsString::from_vec(path))))
        }
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(not_btrfs_or(dir, "BTRFS_IOC_INO_LOOKUP", errno)),
    }
}

/// A subvolume of the filesystem, as the tree of roots has it: as of the last commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Its id.
    pub id: u64,
    /// Transaction of its last change of any kind.
    pub generation: u64,
    /// Transaction of the last change of an inode in it.
    pub ctransid: u64,
    /// Transaction it was made in.
    pub otransid: u64,
    /// Its uuid.
    pub uuid: Option<Uuid>,
    /// The subvolume it was made from.
    pub parent_uuid: Option<Uuid>,
    /// Whether it is read-only.
    pub readonly: bool,
    /// Whether it has been deleted and waits for the cleaner.
    pub deleted: bool,
    /// Where it stands.
    pub link: Option<Link>,
    /// Whether other subvolumes are nested in it.
    pub has_children: bool,
}

/// Where a subvolume stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The subvolume that it is nested in.
    pub parent_id: u64,
    /// The inode of the directory there.
    pub dir_inode: u64,
    /// Its name in it.
    pub name: OsString,
}

/// Every subvolume of the filesystem in two or three calls: the cheap "which were written since".
///
/// As of the last commit, so what is still in the page cache does not show: [`crate::commit::sync_all`] first.
pub fn roots(dir: &Dir) -> Result<Vec<Root>> {
    let first = Key { objectid: ROOT_INODE, kind: kind::ROOT_ITEM, offset: 0 };
    // BTRFS_LAST_FREE_OBJECTID
    let last = Key { objectid: u64::MAX - 255, kind: kind::ROOT_ITEM, offset: u64::MAX };
    let mut search = Search::new(dir, tree::ROOTS, first..=last);
    let mut roots: Vec<Root> = Vec::new();
    while let Some(item) = search.next_item()? {
        // What is said of a root follows its item.
        let of_last = roots.last_mut().filter(|root| root.id == item.key.objectid);
        match (item.key.kind, of_last) {
            (kind::ROOT_ITEM, _) => {}
            (kind::ROOT_BACKREF, Some(root)) => {
                let link = item.root_ref()?;
                root.link = Some(Link {
                    parent_id: item.key.offset,
                    dir_inode: link.dir_inode,
                    name: OsStr::from_bytes(link.name).to_owned(),
                });
                continue;
            }
            (kind::ROOT_REF, Some(root)) => {
                root.has_children = true;
                continue;
            }
            _ => continue,
        }
        let root = item.root()?;
        roots.push(Root {
            id: item.key.objectid,
            generation: root.generation,
            ctransid: root.ctransid,
            otransid: root.otransid,
            uuid: root.uuid,
            parent_uuid: root.parent_uuid,
            readonly: root.readonly,
            deleted: root.references == 0,
            link: None,
            has_children: false,
        });
    }
    Ok(roots)
}

pub(crate) fn children_of(dir: &Dir, parent: u64) -> Result<Vec<Child>> {
    let first = Key { objectid: parent, kind: kind::ROOT_REF, offset: 0 };
    let last = Key { objectid: parent, kind: kind::ROOT_REF, offset: u64::MAX };
    let mut search = Search::new(dir, tree::ROOTS, first..=last);
    let mut children = Vec::new();
    while let Some(item) = search.next_item()? {
        let reference = item.root_ref()?;
        children.push(Child {
            id: item.key.offset,
            dir_inode: reference.dir_inode,
            name: OsStr::from_bytes(reference.name).to_owned(),
        });
    }
    Ok(children)
}

fn inherit(group: Option<GroupId>) -> std::result::Result<Option<QgroupInherit>, libbtrfsutil::Error> {
    let Some(group) = group else { return Ok(None) };
    let mut inherit = QgroupInherit::new()?;
    inherit.add_group(group.get())?;
    Ok(Some(inherit))
}

fn util(call: &'static str, name: impl Into<String>) -> impl FnOnce(libbtrfsutil::Error) -> Error {
    let name = name.into();
    move |error| Error::Call { call, name, errno: Errno::from_raw(error.errno()) }
}

fn not_btrfs_or(dir: &Dir, call: &'static str, errno: Errno) -> Error {
    if errno == Errno::ENOTTY && matches!(filesystem::is_btrfs(dir), Ok(false)) {
        Error::NotBtrfs { name: dir.name().to_owned() }
    } else {
        dir.on_self(call)(errno)
    }
}
