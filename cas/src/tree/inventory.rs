//! What says what is in the directories of a tree without opening anything: a filesystem that can be asked for its own
//! records. Where nobody can say it, the tree is walked.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::FileType;

use super::node::Xattr;
use super::source::Facts;

/// A tree that does not change, as the filesystem's records have it.
///
/// What it tells is believed like what `stat` and `read` tell: the kernel wrote it. Numbers of inodes are those that
/// `stat` shows, of the tree whose root is put; what lies in another (a nested subvolume) is walked.
pub trait Inventory: fmt::Debug + Send + Sync {
    /// The names in a directory, sorted by their bytes.
    fn names(&self, directory: u64) -> io::Result<Vec<Name>>;

    /// Tells what is behind inodes, in any order and each once. What is not told of is looked at.
    fn inodes(&self, numbers: &[u64], told: &mut dyn FnMut(u64, Told)) -> io::Result<()>;
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// As it is in the directory.
    pub name: Vec<u8>,
    /// What it leads to; nothing where that is in another tree.
    pub inode: Option<u64>,
}

/// An inode as the filesystem's records have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Names it has.
    pub links: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Last change of the data: seconds and nanoseconds.
    pub modified: (i64, u32),
    /// All attributes; nothing where only the kernel can say what they are.
    pub xattrs: Option<Vec<Xattr>>,
    /// All bytes of a file or the target of a symbolic link, where the records have them.
    pub bytes: Option<Bytes>,
    /// Whether a file has a hole before its end; nothing where that was not looked for.
    pub sparse: Option<bool>,
}

/// A directory to be put, and what says what is in it.
#[derive(Debug)]
pub struct Root {
    pub(crate) fd: OwnedFd,
    pub(crate) inventory: Option<Arc<dyn Inventory>>,
}

impl Root {
    /// A directory with its inventory: it must not change as long as that is used.
    pub fn told(fd: OwnedFd, inventory: Arc<dyn Inventory>) -> Self {
        Self { fd, inventory: Some(inventory) }
    }
}

impl From<OwnedFd> for Root {
    fn from(fd: OwnedFd) -> Self {
        Self { fd, inventory: None }
    }
}

impl Told {
    /// The same as `stat` has it, of an inode of the tree that is `device`.
    pub(crate) fn facts(&self, device: u64, inode: u64) -> Facts {
        let (major, minor) = self.device;
        Facts {
            kind: FileType::from_raw_mode(self.mode),
            mode: self.mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            size: self.size,
            // Only a hint to look for holes, which were looked for.
            blocks: u64::MAX,
            links: u64::from(self.links),
            device,
            inode,
            special: rustix::fs::makedev(major, minor),
            mtime: self.modified,
            ctime: (0, 0),
        }
    }
}
