//! Opening what a client names, beneath the volume's root and nowhere else.
//!
//! The kernel resolves each path in one call (`RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS`), so there is no gap between a
//! check and its use. Things are opened first as `O_PATH`, which touches nothing, and reopened for their contents only
//! when they are regular files or directories: opening a fifo waits, and opening a device does what the device does.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::sync::Arc;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat};
use types::VolumePath;

use super::error::Error;

/// The kernel answers EAGAIN where a rename elsewhere races with `..` in a symlink; after this many it has a reason.
const RACES: usize = 128;

/// The root directory of a volume.
#[derive(Debug, Clone)]
pub struct Root(Arc<OwnedFd>);

/// Whether the last segment of a path may be a symlink that is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    Follow,
    Keep,
}

/// Something that was found: a descriptor that pins it, and what it is.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) pin: OwnedFd,
    pub(super) stat: FileStat,
}

impl Found {
    pub(super) fn kind(&self) -> SFlag {
        kind(&self.stat)
    }

    /// Opens a regular file's contents. `path` is only for the error.
    pub(super) fn open_file(&self, flags: OFlag, path: &VolumePath) -> Result<File, Error> {
        if self.kind() != SFlag::S_IFREG {
            return Err(Error::NotAFile { path: path.clone(), found: word(self.kind()) });
        }
        // What the descriptor pins is what is opened, whatever the name stands for by now.
        nix::fcntl::open(
            proc_path(&self.pin).as_str(),
            flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY,
            Mode::empty(),
        )
        .map(File::from)
        .map_err(Error::os("reopen", path))
    }
}

impl Root {
    /// Takes an open directory as a volume's root.
    pub fn new(directory: OwnedFd) -> Self {
        Self(Arc::new(directory))
    }

    /// Finds what stands at `path`.
    pub(super) fn find(&self, path: &VolumePath, last: Last) -> Result<Found, Error> {
        let flags = if last == Last::Keep { OFlag::O_PATH | OFlag::O_NOFOLLOW } else { OFlag::O_PATH };
        let pin = self.open(path.as_bytes(), flags).map_err(Error::os("open", path))?;
        let stat = fstat(&pin).map_err(Error::os("stat", path))?;
        Ok(Found { pin, stat })
    }

    /// Opens the directory at `path`, through symlinks that stay inside.
    pub(super) fn directory(&self, path: &VolumePath) -> Result<OwnedFd, Error> {
        self.open(path.as_bytes(), OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(Error::os("open", path))
    }

    /// Opens the directory that holds `path`, and gives the name in it. `doing` is what the root cannot have done.
    pub(super) fn place<'p>(
        &self,
        path: &'p VolumePath,
        doing: &'static str,
    ) -> Result<(OwnedFd, &'p [u8]), Error> {
        let (directory, name) = path.split_last().ok_or(Error::AtRoot { doing })?;
        let directory = self
            .open(directory.as_bytes(), OFlag::O_RDONLY | OFlag::O_DIRECTORY)
            .map_err(Error::os("open", path))?;
        Ok((directory, name))
    }

    /// Opens raw bytes beneath the root. They may hold `..` (a symlink's target does): the kernel keeps it inside.
    pub(super) fn open(&self, path: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { &b"."[..] } else { path };
        open_beneath(&*self.0, path, flags, Mode::empty())
    }

    /// Opens the deepest directory on the way to `path` that exists, and gives the names that are missing below it.
    pub(super) fn deepest<'p>(&self, path: &'p VolumePath) -> Result<(OwnedFd, Vec<&'p [u8]>), Error> {
        let mut missing = Vec::new();
        let mut end = path.as_bytes().len();
        loop {
            match self.open(&path.as_bytes()[..end], OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
                Ok(directory) => {
                    missing.reverse();
                    return Ok((directory, missing));
                }
                Err(Errno::ENOENT) if end > 0 => {
                    let start =
                        path.as_bytes()[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
                    missing.push(&path.as_bytes()[start..end]);
                    end = start.saturating_sub(1);
                }
                Err(errno) => return Err(Error::os("open", path)(errno)),
            }
        }
    }
}

/// Opens `path` beneath an open directory.
pub(super) fn open_beneath<P: ?Sized + NixPath>(
    directory: impl AsFd,
    path: &P,
    flags: OFlag,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(mode)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut races = 0;
    loop {
        match openat2(&directory, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) if races < RACES => races += 1,
            answer => return answer,
        }
    }
}

/// Makes `names` one below the other, with the owner of the directory each stands in; one that exists is gone into.
pub(super) fn make_directories(from: OwnedFd, names: &[&[u8]], path: &VolumePath) -> Result<OwnedFd, Error> {
    let mut directory = from;
    for name in names {
        directory = match make_directory(&directory, name, 0o755) {
            Ok(made) => made,
            Err(Errno::EEXIST) => open_directory(&directory, name).map_err(Error::os("open", path))?,
            Err(errno) => return Err(Error::os("make a directory for", path)(errno)),
        };
    }
    Ok(directory)
}

/// Makes one directory with the owner of the directory it stands in.
pub(super) fn make_directory(parent: impl AsFd, name: &[u8], mode: u32) -> Result<OwnedFd, Errno> {
    mkdirat(&parent, name, Mode::S_IRWXU)?;
    let made = open_directory(&parent, name)?;
    inherit_owner(&made, &fstat(&parent)?)?;
    // Not through mkdir: the process's umask has no say here. A setgid parent hands its bit down, as it does in a shell.
    let inherited = fstat(&made)?.st_mode & SFlag::S_IFMT.complement().bits() & Mode::S_ISGID.bits();
    fchmod(&made, Mode::from_bits_truncate(mode | inherited))?;
    Ok(made)
}

/// Opens the directory `name` itself, not what a symlink of that name leads to.
pub(super) fn open_directory(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    open_beneath(parent, name, flags, Mode::empty())
}

/// Gives a new thing the owner of `parent`, where it does not have it yet.
pub(super) fn inherit_owner(made: impl AsFd, parent: &FileStat) -> Result<(), Errno> {
    set_owner(made, parent.st_uid, parent.st_gid)
}

/// Sets the owner, where it is another one: without root, only what is already so can be asked for.
pub(super) fn set_owner(file: impl AsFd, uid: u32, gid: u32) -> Result<(), Errno> {
    let stat = fstat(&file)?;
    if (stat.st_uid, stat.st_gid) == (uid, gid) {
        return Ok(());
    }
    nix::unistd::fchown(file, Some(uid.into()), Some(gid.into()))
}

/// Names an open descriptor of this process.
pub(super) fn proc_path(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Returns the file type.
pub(super) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Returns the word for a file type.
pub(super) fn word(kind: SFlag) -> &'static str {
    match kind {
        SFlag::S_IFREG => "file",
        SFlag::S_IFDIR => "directory",
        SFlag::S_IFLNK => "symlink",
        SFlag::S_IFIFO => "fifo",
        SFlag::S_IFSOCK => "socket",
        SFlag::S_IFCHR => "character device",
        SFlag::S_IFBLK => "block device",
        _ => "thing of an unknown type",
    }
}
