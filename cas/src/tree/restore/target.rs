//! Making files on disk: what a version says, in the order in which the kernel does not undo it.
//!
//! Content, attributes, owner, mode, `security.capability` (a change of owner removes it), times. Nothing here follows
//! a symbolic link; every call is relative to an open directory of the tree.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use crate::tree::error::TreeError;
use crate::tree::node::{Item, Metadata};
use crate::tree::put::{is_zero, join};
use crate::tree::source;

/// Holes are made in blocks of this size.
const BLOCK: usize = 4_096;
const CAPABILITY: &[u8] = b"security.capability";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// A directory on disk that a version is made in.
#[derive(Debug)]
pub(super) struct Target {
    root: OwnedFd,
    owners: bool,
    uid: u32,
    gid: u32,
    umask: u32,
}

impl Target {
    pub(super) fn new(root: OwnedFd, owners: bool) -> Self {
        Self {
            root,
            owners,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            umask: umask(),
        }
    }

    /// Refuses a directory that has something in it, and makes it one that passes nothing on to what is made in it.
    pub(super) fn prepare(&self) -> Result<(), TreeError> {
        let root = self.root.as_fd();
        if let Some(name) = source::names(root, b"")?.into_iter().next() {
            return Err(TreeError::TargetNotEmpty { name });
        }
        self.shut(root, b"")
    }

    /// While files are made in a directory it is nobody else's, has no set-group-id bit and no default ACL.
    pub(super) fn shut(&self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<(), TreeError> {
        rustix::fs::fchmod(dir, Mode::from_raw_mode(0o700))
            .map_err(|error| TreeError::io("chmod", path, error))?;
        match rustix::fs::fremovexattr(dir, DEFAULT_ACL) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(TreeError::io("remove the default ACL of", path, error)),
        }
    }

    pub(super) fn open_dir(&self, path: &[u8]) -> Result<OwnedFd, TreeError> {
        source::open_dir(self.root.as_fd(), path)
    }

    /// Opens the directory that `path` is in; returns it with the last segment.
    fn open_parent<'a>(&self, path: &'a [u8]) -> Result<(OwnedFd, &'a [u8]), TreeError> {
        let slash = path.iter().rposition(|byte| *byte == b'/');
        let (dir, name) = slash.map_or((&b""[..], path), |slash| (&path[..slash], &path[slash + 1..]));
        Ok((self.open_dir(dir)?, name))
    }

    pub(super) fn make_dir(&self, path: &[u8]) -> Result<(), TreeError> {
        let mode = Mode::from_raw_mode(0o700);
        // Short paths save the walk; the directories on them are ours and have no symbolic links.
        let made = if path.len() < 1_024 {
            rustix::fs::mkdirat(&self.root, path, mode)
        } else {
            let (dir, name) = self.open_parent(path)?;
            rustix::fs::mkdirat(dir, name, mode)
        };
        made.map_err(|error| TreeError::io("make directory", path, error))
    }

    /// Gives a directory its metadata: the last thing that happens to it.
    pub(super) fn finish_dir(&self, path: &[u8], meta: &Metadata) -> Result<(), TreeError> {
        let dir = self.open_dir(path)?;
        let dir = dir.as_fd();
        self.drop_other_xattrs(dir, path, meta)?;
        self.finish(dir, path, meta, None)
    }

    /// Removes attributes that the version does not have.
    pub(super) fn drop_other_xattrs(
        &self,
        fd: BorrowedFd<'_>,
        path: &[u8],
        meta: &Metadata,
    ) -> Result<(), TreeError> {
        let found =
            source::xattrs_of(fd).map_err(|error| TreeError::io("read attributes of", path, error))?;
        for (name, _) in found {
            if meta.xattrs.iter().all(|(kept, _)| *kept != name) {
                rustix::fs::fremovexattr(fd, &name[..]).map_err(|error| xattr_error(path, &name, error))?;
            }
        }
        Ok(())
    }

    /// Makes a file. Its mode is right already if the caller's umask allows; returns the mode that it has.
    pub(super) fn make_file(
        &self,
        dir: BorrowedFd<'_>,
        path: impl Fn() -> Vec<u8>,
        name: &[u8],
        mode: u32,
    ) -> Result<(OwnedFd, u32), TreeError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = mode & 0o777;
        let fd = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode))
            .map_err(|error| TreeError::io("make", &path(), error))?;
        Ok((fd, mode & !self.umask))
    }

    /// Opens a file that is there, without its bytes and without the attributes that it is to lose.
    pub(super) fn empty_file(
        &self,
        dir: BorrowedFd<'_>,
        path: impl Fn() -> Vec<u8>,
        name: &[u8],
        meta: &Metadata,
    ) -> Result<OwnedFd, TreeError> {
        let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name, flags, Mode::empty())
            .map_err(|error| TreeError::io("open", &path(), error))?;
        self.drop_other_xattrs(fd.as_fd(), &path(), meta)?;
        Ok(fd)
    }

    /// Writes bytes at `offset`; where the file is sparse, blocks of zeros are left out.
    pub(super) fn write(fd: BorrowedFd<'_>, bytes: &[u8], offset: u64, sparse: bool) -> Result<(), Errno> {
        if !sparse {
            return write_all(fd, bytes, offset);
        }
        let mut start = None;
        for (number, block) in bytes.chunks(BLOCK).enumerate() {
            let at = number * BLOCK;
            match (start, is_zero(block)) {
                (None, false) => start = Some(at),
                (Some(from), true) => {
                    write_all(fd, &bytes[from..at], offset + from as u64)?;
                    start = None;
                }
                (None, true) | (Some(_), false) => {}
            }
        }
        match start {
            Some(from) => write_all(fd, &bytes[from..], offset + from as u64),
            None => Ok(()),
        }
    }

    /// Gives an open file or directory its metadata. `mode` is the one it has, where that is known.
    pub(super) fn finish(
        &self,
        fd: BorrowedFd<'_>,
        path: &[u8],
        meta: &Metadata,
        mode: Option<u32>,
    ) -> Result<(), TreeError> {
        let set = |name: &[u8], value: &[u8]| {
            rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
                .map_err(|error| xattr_error(path, name, error))
        };
        for (name, value) in meta.xattrs.iter().filter(|(name, _)| name != CAPABILITY) {
            set(name, value)?;
        }
        // A file that was just made is the caller's.
        let owner_differs = self.owners && (mode.is_none() || (meta.uid, meta.gid) != (self.uid, self.gid));
        if owner_differs {
            rustix::fs::fchown(fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))
                .map_err(|error| TreeError::io("chown", path, error))?;
        }
        if mode != Some(meta.mode) {
            rustix::fs::fchmod(fd, Mode::from_raw_mode(meta.mode))
                .map_err(|error| TreeError::io("chmod", path, error))?;
        }
        for (name, value) in meta.xattrs.iter().filter(|(name, _)| name == CAPABILITY) {
            set(name, value)?;
        }
        rustix::fs::futimens(fd, &times(meta)).map_err(|error| TreeError::io("set times of", path, error))
    }

    /// Makes what has no bytes: a symbolic link, fifo, socket or device.
    pub(super) fn make_special(
        &self,
        dir: BorrowedFd<'_>,
        path: &[u8],
        name: &[u8],
        item: &Item,
    ) -> Result<(), TreeError> {
        let node = |kind, device| rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(0o600), device);
        let made = match item {
            Item::Symlink { target, .. } => rustix::fs::symlinkat(&target[..], dir, name),
            Item::Fifo { .. } => node(FileType::Fifo, 0),
            Item::Socket { .. } => node(FileType::Socket, 0),
            Item::Device { block, major, minor, .. } => {
                let kind = if *block { FileType::BlockDevice } else { FileType::CharacterDevice };
                node(kind, rustix::fs::makedev(*major, *minor))
            }
            Item::File { .. } | Item::Directory { .. } | Item::HardLink { .. } => Ok(()),
        };
        made.map_err(|error| TreeError::io("make", path, error))?;
        item.meta().map_or(Ok(()), |meta| self.finish_special(dir, path, name, item, meta))
    }

    /// Gives what cannot be opened its metadata.
    pub(super) fn finish_special(
        &self,
        dir: BorrowedFd<'_>,
        path: &[u8],
        name: &[u8],
        item: &Item,
        meta: &Metadata,
    ) -> Result<(), TreeError> {
        let proc = source::proc_path(dir, name);
        let set = |attribute: &[u8], value: &[u8]| {
            rustix::fs::lsetxattr(&proc[..], attribute, value, XattrFlags::empty())
                .map_err(|error| xattr_error(path, attribute, error))
        };
        for (attribute, value) in &meta.xattrs {
            set(attribute, value)?;
        }
        if self.owners {
            let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
            rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| TreeError::io("chown", path, error))?;
        }
        if !matches!(item, Item::Symlink { .. }) {
            rustix::fs::chmodat(dir, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())
                .map_err(|error| TreeError::io("chmod", path, error))?;
        }
        rustix::fs::utimensat(dir, name, &times(meta), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| TreeError::io("set times of", path, error))
    }

    /// Makes a later name of a file.
    pub(super) fn link(&self, first: &[u8], path: &[u8]) -> Result<(), TreeError> {
        let (from, from_name) = self.open_parent(first)?;
        let (to, to_name) = self.open_parent(path)?;
        rustix::fs::linkat(from, from_name, to, to_name, AtFlags::empty()).map_err(|error| match error {
            Errno::NOENT | Errno::NOTDIR | Errno::PERM => {
                TreeError::BadLink { path: path.to_vec(), first: first.to_vec() }
            }
            error => TreeError::io("link", path, error),
        })
    }

    /// Tells if two names are there and are one inode.
    pub(super) fn same_inode(&self, left: &[u8], right: &[u8]) -> Result<bool, TreeError> {
        let inode = |path: &[u8]| -> Result<Option<(u64, u64)>, TreeError> {
            let (dir, name) = self.open_parent(path)?;
            match source::facts_at(dir.as_fd(), name) {
                Ok(facts) => Ok(Some((facts.device, facts.inode))),
                Err(Errno::NOENT) => Ok(None),
                Err(error) => Err(TreeError::io("stat", path, error)),
            }
        };
        let left = inode(left)?;
        Ok(left.is_some() && left == inode(right)?)
    }

    /// Removes a name and all below it. Returns how many names went.
    pub(super) fn remove(&self, path: &[u8]) -> Result<u64, TreeError> {
        let mut removed = 0;
        // Directories that are not empty, the deepest last.
        let mut todo = vec![path.to_vec()];
        while let Some(path) = todo.last() {
            let (dir, name) = self.open_parent(path)?;
            match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {
                    removed += 1;
                    todo.pop();
                    continue;
                }
                Err(Errno::ISDIR | Errno::PERM) => {}
                Err(error) => return Err(TreeError::io("remove", path, error)),
            }
            match rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {
                    removed += 1;
                    todo.pop();
                }
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    let path = path.clone();
                    let below = self.open_dir(&path)?;
                    let names = source::names(below.as_fd(), &path)?;
                    todo.extend(names.iter().map(|name| join(&path, name)));
                }
                Err(error) => return Err(TreeError::io("remove", path, error)),
            }
        }
        Ok(removed)
    }
}

fn xattr_error(path: &[u8], name: &[u8], error: Errno) -> TreeError {
    TreeError::Xattr {
        name: String::from_utf8_lossy(name).into_owned(),
        path: path.to_vec(),
        source: error.into(),
    }
}

fn times(meta: &Metadata) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: meta.mtime_seconds, tv_nsec: meta.mtime_nanos.into() },
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(fd, bytes, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The umask of this process, which there is no call to read without changing it.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    // Unknown: as if everything were masked, and every mode is set.
    line.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o777)
}
