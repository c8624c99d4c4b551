//! A file that is being written: without a name until it is whole.
//!
//! In order: bytes into `O_TMPFILE` (the kernel drops it when we die or the client goes away), owner, xattrs, mode, times, fsync
//! where asked, then one step that shows it: `linkat` for a new name, a rename over an old one. A rename needs a name,
//! so for its moment there is `.opensail-write.<hash of the name>`: a crash right there leaves one, which listings do
//! not show and the next write to that name removes.
//! In place, the whole content is gathered first too and then copied into the existing file (a reflink on btrfs), so a
//! client that dies half way has changed nothing.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, readlinkat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, fsync, linkat, unlinkat};
use types::{Timestamp, VolumePath};

use super::beneath::{Found, Root, kind, make_directories, open_beneath, proc_path, set_owner, word};
use super::entry::{entry, size};
use super::error::Error;
use super::etag::{self, STRONG_BYTES};
use super::xattrs;

/// How often a symlink at the end of a path is followed, as in the kernel.
const MAX_LINKS: usize = 40;

/// How often a name may appear or vanish between our look and our step before we say so.
const MAX_RACES: usize = 16;

/// One writer at a time between looking at a name and changing it. Two names may share a lock: it is held for a moment.
static NAMES: [Mutex<()>; 64] = [const { Mutex::new(()) }; 64];

const LEFTOVER: &[u8] = b".opensail-write.";
const LEFTOVER_DIGITS: usize = 16;

/// Tells if a name is that of a write in progress, or of one that a crash left.
pub fn is_leftover(name: &[u8]) -> bool {
    name.strip_prefix(LEFTOVER)
        .is_some_and(|rest| rest.len() == LEFTOVER_DIGITS && rest.iter().all(u8::is_ascii_hexdigit))
}

fn leftover_name(name: &[u8]) -> String {
    let hash = blake3::hash(name).to_hex();
    format!("{}{}", String::from_utf8_lossy(LEFTOVER), &hash[..LEFTOVER_DIGITS])
}

/// What a write asks for, beside its bytes.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) path: VolumePath,
    pub(super) mode: Option<u32>,
    pub(super) owner: (Option<u32>, Option<u32>),
    pub(super) modified: Option<Timestamp>,
    pub(super) if_match: String,
    pub(super) if_absent: bool,
    pub(super) parents: bool,
    pub(super) in_place: bool,
    pub(super) sync: bool,
}

/// A write's bytes so far.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    hasher: Box<blake3::Hasher>,
    size: u64,
}

/// Where a path's file stands, or will: the deepest directory that exists, the names missing below it, and the last.
#[derive(Debug)]
struct Target {
    directory: OwnedFd,
    missing: Vec<Vec<u8>>,
    name: Vec<u8>,
}

impl Spool {
    /// Opens a nameless file in the directory where the name will stand (a link cannot cross subvolumes).
    pub(super) fn open(root: &Root, order: &Order) -> Result<Self, Error> {
        let path = &order.path;
        let target = target(root, order)?;
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR;
        let file = open_beneath(&target.directory, ".", flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(Error::os("make a file for", path))?;
        Ok(Self { file: file.into(), hasher: Box::default(), size: 0 })
    }

    /// Writes the next bytes.
    pub(super) fn append(&mut self, bytes: &[u8], path: &VolumePath) -> Result<(), Error> {
        self.file.write_all_at(bytes, self.size).map_err(|error| etag::io("write", path, &error))?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Shows the file under its name. Returns what stands there now and whether the name is new.
    pub(super) fn finish(self, root: &Root, order: &Order) -> Result<(proto::files::Entry, bool), Error> {
        let path = &order.path;
        for _ in 0..MAX_RACES {
            let target = target(root, order)?;
            if !target.missing.is_empty() && !order.if_match.is_empty() {
                return Err(Error::Changed { path: path.clone(), etag: String::new() });
            }
            let missing: Vec<&[u8]> = target.missing.iter().map(Vec::as_slice).collect();
            let directory = make_directories(target.directory, &missing, path)?;
            let parent = fstat(&directory).map_err(Error::os("stat", path))?;
            let _name = lock(&parent, &target.name);
            let existing = match find(&directory, &target.name) {
                Ok(found) => Some(found),
                Err(Errno::ENOENT) => None,
                Err(errno) => return Err(Error::os("open", path)(errno)),
            };
            let Some(existing) = existing else {
                if !order.if_match.is_empty() {
                    return Err(Error::Changed { path: path.clone(), etag: String::new() });
                }
                match self.create(order, &directory, &target.name, &parent) {
                    Ok(()) => return Ok((self.entry(path, &self.file)?, true)),
                    Err(Errno::EEXIST) => continue,
                    Err(errno) => return Err(Error::os("write", path)(errno)),
                }
            };
            match kind(&existing.stat) {
                SFlag::S_IFREG => {}
                // It became one since it was resolved.
                SFlag::S_IFLNK => continue,
                other => return Err(Error::NotAFile { path: path.clone(), found: word(other) }),
            }
            if !self.is_wanted(order, &existing)? {
                let standing = existing.open_file(OFlag::O_RDONLY, path)?;
                return Ok((self.entry(path, &standing)?, false));
            }
            if order.in_place {
                let standing = existing.open_file(OFlag::O_RDWR, path)?;
                self.copy_into(&standing, order)?;
                return Ok((self.entry(path, &standing)?, false));
            }
            let old = existing.open_file(OFlag::O_RDONLY, path)?;
            self.replace(order, &directory, &target.name, &old).map_err(Error::os("write", path))?;
            return Ok((self.entry(path, &self.file)?, false));
        }
        Err(Error::Contended { path: path.clone() })
    }

    /// Decides whether an existing file is written, by the order's conditions. The content that was to be written may
    /// stand there already (an earlier answer was lost): then nothing is left to do.
    fn is_wanted(&self, order: &Order, existing: &Found) -> Result<bool, Error> {
        let path = &order.path;
        if !order.if_absent && order.if_match.is_empty() {
            return Ok(true);
        }
        let standing = existing.open_file(OFlag::O_RDONLY, path)?;
        if !order.if_match.is_empty() && !order.if_absent {
            let present = etag::like(&order.if_match, &standing, path)?;
            if present == order.if_match {
                return Ok(true);
            }
        }
        if size(&existing.stat) == self.size && etag::like("", &standing, path)? == self.digest() {
            return Ok(false);
        }
        if order.if_absent {
            return Err(Error::Exists { path: path.clone() });
        }
        let etag = match etag::free(&existing.stat) {
            Some(weak) => weak,
            None => etag::like("", &standing, path)?,
        };
        Err(Error::Changed { path: path.clone(), etag })
    }

    fn create(
        &self,
        order: &Order,
        directory: &OwnedFd,
        name: &[u8],
        parent: &FileStat,
    ) -> Result<(), Errno> {
        let (uid, gid) = order.owner;
        set_owner(&self.file, uid.unwrap_or(parent.st_uid), gid.unwrap_or(parent.st_gid))?;
        fchmod(&self.file, Mode::from_bits_truncate(order.mode.unwrap_or(0o644)))?;
        self.settle(&self.file, order)?;
        link(&self.file, directory, name)?;
        if order.sync { fsync(directory) } else { Ok(()) }
    }

    fn replace(&self, order: &Order, directory: &OwnedFd, name: &[u8], old: &File) -> Result<(), Errno> {
        let stat = fstat(old)?;
        set_owner(&self.file, stat.st_uid, stat.st_gid)?;
        xattrs::keep(old, &self.file)?;
        // After the owner, which takes setuid bits away, and after the ACL, whose mask is a part of it.
        fchmod(&self.file, Mode::from_bits_truncate(stat.st_mode & 0o7777))?;
        self.settle(&self.file, order)?;
        let passing = leftover_name(name);
        match link(&self.file, directory, passing.as_bytes()) {
            // We hold the name's lock, so this one is from before a crash.
            Err(Errno::EEXIST) => {
                unlinkat(directory, passing.as_str(), UnlinkatFlags::NoRemoveDir)?;
                link(&self.file, directory, passing.as_bytes())?;
            }
            answer => answer?,
        }
        if let Err(errno) = renameat2(directory, passing.as_str(), directory, name, RenameFlags::empty()) {
            // The first failure is the one to tell; the leftover is removed by the next write to this name.
            let _unlinked = unlinkat(directory, passing.as_str(), UnlinkatFlags::NoRemoveDir);
            return Err(errno);
        }
        if order.sync { fsync(directory) } else { Ok(()) }
    }

    fn copy_into(&self, standing: &File, order: &Order) -> Result<(), Error> {
        let failed = |error: std::io::Error| etag::io("write", &order.path, &error);
        // Both stand at their beginning. The standard library lets the kernel copy, which shares extents where it can.
        let copied = std::io::copy(&mut &self.file, &mut &*standing).map_err(failed)?;
        standing.set_len(copied).map_err(failed)?;
        self.settle(standing, order).map_err(Error::os("write", &order.path))
    }

    /// Sets the time and sees to the disk, where asked.
    fn settle(&self, file: &File, order: &Order) -> Result<(), Errno> {
        if let Some(time) = order.modified {
            let (seconds, nanos) = time.seconds_and_nanos();
            futimens(file, &TimeSpec::UTIME_OMIT, &TimeSpec::new(seconds, nanos.into()))?;
        }
        if order.sync { fsync(file) } else { Ok(()) }
    }

    fn digest(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }

    fn entry(&self, path: &VolumePath, standing: &File) -> Result<proto::files::Entry, Error> {
        let stat = fstat(standing).map_err(Error::os("stat", path))?;
        let mut entry = entry(path, &stat);
        if self.size <= STRONG_BYTES {
            entry.etag = self.digest();
        }
        Ok(entry)
    }
}

/// Resolves where the file stands. A symlink at the end is followed, so that what it leads to is written and the link
/// stays a link.
fn target(root: &Root, order: &Order) -> Result<Target, Error> {
    let path = &order.path;
    let (holder, name) = path.split_last().ok_or(Error::AtRoot { doing: "written" })?;
    refuse_leftover(name, path)?;
    let (mut directory, missing) = if order.parents {
        let (directory, missing) = root.deepest(&holder)?;
        (directory, missing.into_iter().map(<[u8]>::to_vec).collect())
    } else {
        (root.place(path, "written")?.0, Vec::new())
    };
    let mut name = name.to_vec();
    if !missing.is_empty() {
        return Ok(Target { directory, missing, name });
    }
    let mut holder = holder.as_bytes().to_vec();
    for _ in 0..MAX_LINKS {
        let leads = match readlinkat(&directory, name.as_slice()) {
            Ok(leads) => leads,
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(Target { directory, missing, name }),
            Err(errno) => return Err(Error::os("open", path)(errno)),
        };
        let leads = leads.as_bytes();
        if leads.starts_with(b"/") {
            return Err(Error::LeadsOut { path: path.clone() });
        }
        let (way, last) = match leads.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&leads[..slash], &leads[slash + 1..]),
            None => (&b"."[..], leads),
        };
        if matches!(last, b"" | b"." | b"..") {
            return Err(Error::NotAFile { path: path.clone(), found: "directory" });
        }
        refuse_leftover(last, path)?;
        // Joined, because `..` in the target may rightly climb from the link's directory; opened beneath the root like
        // any other path, so that it climbs no further.
        if !holder.is_empty() {
            holder.push(b'/');
        }
        holder.extend_from_slice(way);
        name = last.to_vec();
        directory =
            root.open(&holder, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(Error::os("open", path))?;
    }
    Err(Error::LeadsOut { path: path.clone() })
}

/// Refuses a name that is kept for writes in progress.
pub(super) fn refuse_leftover(name: &[u8], path: &VolumePath) -> Result<(), Error> {
    if is_leftover(name) { Err(Error::Reserved { path: path.clone() }) } else { Ok(()) }
}

fn find(directory: &OwnedFd, name: &[u8]) -> Result<Found, Errno> {
    let pin = open_beneath(directory, name, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())?;
    let stat = fstat(&pin)?;
    Ok(Found { pin, stat })
}

fn link(file: &File, directory: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let from = proc_path(&file.as_fd());
    linkat(AT_FDCWD, from.as_str(), directory, name, AtFlags::AT_SYMLINK_FOLLOW)
}

fn lock(parent: &FileStat, name: &[u8]) -> std::sync::MutexGuard<'static, ()> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&parent.st_dev.to_le_bytes()).update(&parent.st_ino.to_le_bytes()).update(name);
    let at = usize::from(hasher.finalize().as_bytes()[0]) % NAMES.len();
    NAMES[at].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
