//! Reading a directory of any filesystem: names, metadata, attributes, holes. Nothing here follows a symbolic link.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::error::TreeError;
use super::node::{Metadata, Xattr};

/// The longest path given to one system call; longer ones are walked in steps.
const STEP_MAX: usize = 3_072;

/// Opens a directory below `root` by its path. Symbolic links are never followed, also in the middle.
pub(crate) fn open_dir(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, TreeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    open_below(root, path, flags).map_err(|error| TreeError::io("open directory", path, error))
}

fn open_below(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let open = |from: BorrowedFd<'_>, path: &[u8], flags: OFlags| {
        let path = if path.is_empty() { b"." } else { path };
        rustix::fs::openat2(from, path, flags, Mode::empty(), resolve)
    };
    if path.len() <= STEP_MAX {
        return open(root, path, flags);
    }
    let mut rest = path;
    let mut reached: Option<OwnedFd> = None;
    while rest.len() > STEP_MAX {
        // A name has at most 255 bytes, so there is a slash.
        let slash = rest[..STEP_MAX].iter().rposition(|byte| *byte == b'/').ok_or(Errno::NAMETOOLONG)?;
        let from = reached.as_ref().map_or(root, AsFd::as_fd);
        reached = Some(open(from, &rest[..slash], OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)?);
        rest = &rest[slash + 1..];
    }
    open(reached.as_ref().map_or(root, AsFd::as_fd), rest, flags)
}

/// Opens a regular file of `dir` to read it. `O_NONBLOCK`: should it have become a fifo, the open must not wait.
pub(crate) fn open_file(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    match rustix::fs::openat(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner may ask for it.
        Err(Errno::PERM) => rustix::fs::openat(dir, name, flags, Mode::empty()),
        other => other,
    }
}

/// What `stat` says of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) kind: FileType,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) blocks: u64,
    pub(crate) links: u64,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) special: u64,
    pub(crate) mtime: (i64, u32),
    pub(crate) ctime: (i64, u32),
}

impl From<&Stat> for Facts {
    #[expect(
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        clippy::unnecessary_cast,
        reason = "the C types differ by architecture; sizes and nanoseconds are never negative"
    )]
    fn from(stat: &Stat) -> Self {
        Self {
            kind: FileType::from_raw_mode(stat.st_mode),
            mode: stat.st_mode as u32 & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            links: stat.st_nlink as u64,
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            special: stat.st_rdev as u64,
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
            ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as u32),
        }
    }
}

impl Facts {
    /// Tells if a file is still what it was, as far as the filesystem can say.
    pub(crate) fn is_same(&self, later: &Self) -> bool {
        (self.kind, self.device, self.inode, self.size, self.mtime, self.ctime)
            == (later.kind, later.device, later.inode, later.size, later.mtime, later.ctime)
    }

    pub(crate) fn metadata(&self, xattrs: Vec<Xattr>) -> Metadata {
        Metadata {
            // Linux has no modes on symbolic links, and shows different ones by filesystem.
            mode: if self.kind == FileType::Symlink { 0o777 } else { self.mode },
            uid: self.uid,
            gid: self.gid,
            mtime_seconds: self.mtime.0,
            mtime_nanos: self.mtime.1,
            xattrs,
        }
    }
}

pub(crate) fn facts_of(fd: BorrowedFd<'_>) -> Result<Facts, Errno> {
    rustix::fs::fstat(fd).map(|stat| Facts::from(&stat))
}

pub(crate) fn facts_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Facts, Errno> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| Facts::from(&stat))
}

/// Lists the names of a directory, sorted by their bytes.
pub(crate) fn names(dir: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<Vec<u8>>, TreeError> {
    let mut names = Vec::new();
    let mut buffer = [const { MaybeUninit::<u8>::uninit() }; 32_768];
    let mut listing = RawDir::new(dir, &mut buffer);
    while let Some(entry) = listing.next() {
        let entry = entry.map_err(|error| TreeError::io("list directory", path, error))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Tells if an attribute is part of a file's identity. Not so: `btrfs.*`, and what a filesystem makes up
/// (`system.*` but POSIX ACLs).
pub(crate) fn is_kept(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || name.starts_with(b"security.")
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
}

/// Reads the attributes of something, by a call for the list and one for a value.
fn read_xattrs(
    list: impl Fn(&mut Vec<u8>) -> Result<(), Errno>,
    get: impl Fn(&[u8], &mut Vec<u8>) -> Result<(), Errno>,
) -> Result<Vec<Xattr>, Errno> {
    let mut names = Vec::with_capacity(512);
    match list(&mut names) {
        // Filesystems without attributes have none.
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(Errno::RANGE) => {
            names = Vec::with_capacity(super::node::XATTR_MAX);
            list(&mut names)?;
        }
        other => other?,
    }
    let mut xattrs = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty() && is_kept(name)) {
        let mut value = Vec::with_capacity(1_024);
        match get(name, &mut value) {
            Err(Errno::RANGE) => {
                value = Vec::with_capacity(super::node::XATTR_MAX);
                get(name, &mut value)?;
            }
            // Gone since the list was read: the check for changes will tell, if it matters.
            Err(Errno::NODATA) => continue,
            other => other?,
        }
        xattrs.push((name.to_vec(), value));
    }
    xattrs.sort_unstable();
    Ok(xattrs)
}

/// Reads the attributes of an open file or directory.
pub(crate) fn xattrs_of(fd: BorrowedFd<'_>) -> Result<Vec<Xattr>, Errno> {
    read_xattrs(
        |names| rustix::fs::flistxattr(fd, spare_capacity(names)).map(drop),
        |name, value| rustix::fs::fgetxattr(fd, name, spare_capacity(value)).map(drop),
    )
}

/// A path that names an entry of an open directory in calls that only take paths.
pub(crate) fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// Reads the attributes of a name that cannot be opened: a symbolic link, a fifo, a socket, a device.
pub(crate) fn xattrs_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<Xattr>, Errno> {
    let path = proc_path(dir, name);
    read_xattrs(
        |names| rustix::fs::llistxattr(&path[..], spare_capacity(names)).map(drop),
        |name, value| rustix::fs::lgetxattr(&path[..], name, spare_capacity(value)).map(drop),
    )
}

/// Reads at `offset` until `into` is full or the file ends.
pub(crate) fn read_at(fd: BorrowedFd<'_>, into: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < into.len() {
        let want = into.len() - done;
        match rustix::io::pread(fd, &mut into[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => {
                done += read;
                // Regular files give less than was asked for only at their end; the check of the size comes later.
                if read < want {
                    break;
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Tells if a file has a hole before its end.
pub(crate) fn has_hole(fd: BorrowedFd<'_>, facts: &Facts) -> bool {
    // Fewer blocks than bytes is only a hint: compression and inline data look like it, too.
    facts.blocks.saturating_mul(512) < facts.size
        && rustix::fs::seek(fd, SeekFrom::Hole(0)).is_ok_and(|hole| hole < facts.size)
}

/// Tells if a range of a file lies in a hole, so that it need not be read.
pub(crate) fn is_hole(fd: BorrowedFd<'_>, start: u64, end: u64) -> bool {
    match rustix::fs::seek(fd, SeekFrom::Data(start)) {
        Ok(data) => data >= end,
        Err(Errno::NXIO) => true,
        Err(_) => false,
    }
}
