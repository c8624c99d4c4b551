//! An open directory: what every call of this room starts from.
//!
//! A descriptor cannot be renamed or replaced under the caller as a path can. Names given with it are one segment and
//! are checked here; nothing is followed out of the directory.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag};
use nix::sys::stat::{FileStat, Mode};

use crate::{Error, Result};

/// Longest name of a file on btrfs (`BTRFS_NAME_LEN`).
const NAME_BYTES: usize = 255;

/// An open directory, and how people know it.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    name: String,
}

impl Dir {
    /// Opens a directory by a path that the operator chose. Symlinks are followed; a client's words never come here.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        match nix::fcntl::open(path, directory(), Mode::empty()) {
            Ok(fd) => Ok(Self { fd, name }),
            Err(errno) => Err(Error::Call { call: "open", name, errno }),
        }
    }

    /// Takes a directory somebody else opened; `name` is for people.
    pub fn from_fd(fd: OwnedFd, name: impl Into<String>) -> Result<Self> {
        let dir = Self { fd, name: name.into() };
        let mode = dir.stat()?.st_mode;
        if mode & nix::libc::S_IFMT == nix::libc::S_IFDIR {
            Ok(dir)
        } else {
            Err(Error::Call { call: "fstat", name: dir.name, errno: Errno::ENOTDIR })
        }
    }

    /// How people know it: the path it was opened by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path for libraries that take only paths: `/proc/self/fd/N`, which is this very directory.
    pub fn proc_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// Opens a directory in this one. A symlink is refused (`ELOOP` or `ENOTDIR`).
    pub fn open_dir(&self, name: impl AsRef<OsStr>) -> Result<Self> {
        let name = segment(name.as_ref())?;
        let fd = nix::fcntl::openat(&self.fd, name, directory() | OFlag::O_NOFOLLOW, Mode::empty())
            .map_err(self.on("openat", name))?;
        Ok(Self { fd, name: self.child_name(name) })
    }

    /// Opens a directory below this one by a path of several segments, following no symlink at all.
    pub fn open_beneath(&self, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let fd = self.openat2(path, directory(), Mode::empty())?;
        Ok(Self { fd, name: self.child_name(path.as_os_str()) })
    }

    /// Opens a file below this directory by a path of several segments, following no symlink at all.
    pub fn open_file(&self, path: impl AsRef<Path>, flags: OFlag, mode: Mode) -> Result<File> {
        self.openat2(path.as_ref(), flags | OFlag::O_CLOEXEC, mode).map(File::from)
    }

    /// Another descriptor of the same directory.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().map_err(Error::io("fcntl(F_DUPFD_CLOEXEC)", &self.name))?;
        Ok(Self { fd, name: self.name.clone() })
    }

    /// Makes a directory (not a subvolume). One that exists is `EEXIST`.
    pub fn create_dir(&self, name: impl AsRef<OsStr>, mode: u32) -> Result<Self> {
        let name = segment(name.as_ref())?;
        nix::sys::stat::mkdirat(&self.fd, name, Mode::from_bits_truncate(mode))
            .map_err(self.on("mkdirat", name))?;
        self.open_dir(name)
    }

    /// Removes an empty directory.
    pub fn remove_dir(&self, name: impl AsRef<OsStr>) -> Result<()> {
        let name = segment(name.as_ref())?;
        nix::unistd::unlinkat(&self.fd, name, nix::unistd::UnlinkatFlags::RemoveDir)
            .map_err(self.on("unlinkat", name))
    }

    /// Whether anything has this name here; a symlink counts as itself.
    pub fn exists(&self, name: impl AsRef<OsStr>) -> Result<bool> {
        let name = segment(name.as_ref())?;
        match nix::sys::stat::fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(self.on("fstatat", name)(errno)),
        }
    }

    /// Names of everything in the directory, sorted by bytes, without `.` and `..`.
    pub fn entries(&self) -> Result<Vec<std::ffi::OsString>> {
        // A descriptor of its own: reading a directory moves its offset, which clones would share.
        let fd =
            nix::fcntl::openat(&self.fd, ".", directory(), Mode::empty()).map_err(self.on_self("openat"))?;
        let mut dir = nix::dir::Dir::from_fd(fd).map_err(self.on_self("fdopendir"))?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(self.on_self("readdir"))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Moves an entry; a target that exists is `EEXIST`, never overwritten.
    pub fn rename(&self, name: impl AsRef<OsStr>, to: &Self, to_name: impl AsRef<OsStr>) -> Result<()> {
        self.renameat2(name.as_ref(), to, to_name.as_ref(), RenameFlags::RENAME_NOREPLACE)
    }

    /// Swaps two entries in one step: there is no moment without either.
    pub fn exchange(&self, name: impl AsRef<OsStr>, with: &Self, with_name: impl AsRef<OsStr>) -> Result<()> {
        self.renameat2(name.as_ref(), with, with_name.as_ref(), RenameFlags::RENAME_EXCHANGE)
    }

    /// The directory's own metadata.
    pub fn stat(&self) -> Result<FileStat> {
        nix::sys::stat::fstat(&self.fd).map_err(self.on_self("fstat"))
    }

    fn renameat2(&self, name: &OsStr, to: &Self, to_name: &OsStr, flags: RenameFlags) -> Result<()> {
        let (name, to_name) = (segment(name)?, segment(to_name)?);
        nix::fcntl::renameat2(&self.fd, name, &to.fd, to_name, flags).map_err(self.on("renameat2", name))
    }

    fn openat2(&self, path: &Path, flags: OFlag, mode: Mode) -> Result<OwnedFd> {
        let how = OpenHow::new().flags(flags).mode(mode).resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_MAGICLINKS
                | ResolveFlag::RESOLVE_NO_SYMLINKS,
        );
        nix::fcntl::openat2(&self.fd, path, how).map_err(self.on("openat2", path.as_os_str()))
    }

    /// Path of `name` in this directory, for a library that takes only paths. The name is checked.
    pub(crate) fn proc_path_of<'a>(&self, name: &'a OsStr) -> Result<(PathBuf, &'a OsStr)> {
        let name = segment(name)?;
        Ok((self.proc_path().join(name), name))
    }

    pub(crate) fn child_name(&self, name: &OsStr) -> String {
        Path::new(&self.name).join(name).display().to_string()
    }

    pub(crate) fn on(&self, call: &'static str, name: &OsStr) -> impl FnOnce(Errno) -> Error {
        Error::call(call, self.child_name(name))
    }

    pub(crate) fn on_self(&self, call: &'static str) -> impl FnOnce(Errno) -> Error {
        Error::call(call, self.name.clone())
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Dir> for OwnedFd {
    fn from(dir: Dir) -> Self {
        dir.fd
    }
}

fn directory() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC
}

/// A name that is one path segment: no slash, no NUL, not `.`, `..` or empty, and short enough.
pub(crate) fn segment(name: &OsStr) -> Result<&OsStr> {
    let bytes = name.as_bytes();
    let single = !bytes.is_empty()
        && bytes.len() <= NAME_BYTES
        && bytes != b"."
        && bytes != b".."
        && !bytes.contains(&b'/')
        && !bytes.contains(&0);
    if single { Ok(name) } else { Err(Error::Name { name: name.display().to_string() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_segment() {
        let long = "a".repeat(256);
        for bad in ["", ".", "..", "a/b", "/", "a\0b", &long] {
            assert!(matches!(segment(OsStr::new(bad)), Err(Error::Name { .. })), "{bad:?}");
        }
        for good in ["a", "...", ".a", "a b", &long[1..]] {
            assert_eq!(segment(OsStr::new(good)).unwrap(), good);
        }
        assert!(segment(OsStr::from_bytes(b"\xff\xfe")).is_ok());
    }

    #[test]
    fn rename_never_overwrites_and_exchange_swaps() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        dir.create_dir("a", 0o700).unwrap().create_dir("in-a", 0o700).unwrap();
        dir.create_dir("b", 0o700).unwrap();
        assert!(dir.rename("a", &dir, "b").unwrap_err().is(Errno::EEXIST));
        dir.exchange("a", &dir, "b").unwrap();
        assert!(dir.open_dir("b").unwrap().exists("in-a").unwrap());
        assert_eq!(dir.entries().unwrap(), ["a", "b"]);
    }

    #[test]
    fn nothing_is_followed_out_of_the_directory() {
        let temp = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", temp.path().join("root")).unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        assert!(dir.open_dir("root").is_err());
        assert!(dir.open_beneath("root").unwrap_err().is(Errno::ELOOP));
        assert!(dir.open_beneath("../x").unwrap_err().is(Errno::EXDEV));
        assert!(dir.open_beneath("/etc").unwrap_err().is(Errno::EXDEV));
        assert!(dir.exists("root").unwrap(), "a symlink counts as itself");
    }

    #[test]
    fn a_file_is_not_a_directory() {
        let file = tempfile::tempfile().unwrap();
        assert!(Dir::from_fd(file.into(), "a file").unwrap_err().is(Errno::ENOTDIR));
    }
}
