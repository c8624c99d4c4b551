//! What is mounted where, from `/proc/self/mountinfo`. The kernel deletes a mounted subvolume without a word, so we look.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::ops::Bound;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// One line of mountinfo: as much of it as is needed here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `major:minor` of the mounted filesystem.
    pub device: String,
    /// Which directory of the filesystem is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// The kind of filesystem.
    pub kind: String,
    /// What was mounted, as the kernel calls it.
    pub source: String,
    /// Options of the mount and of the filesystem, joined by commas.
    pub options: String,
}

impl Mount {
    /// Tells if the mount has this option, whatever value the option has.
    pub fn has_option(&self, name: &str) -> bool {
        self.options.split(',').any(|option| option == name || option.split('=').next() == Some(name))
    }
}

/// About a hundred mounts.
const BUFFER_BYTES: usize = 32 << 10;

/// Reads the mounts of this process's namespace.
///
/// # Errors
/// `/proc` cannot be read.
pub fn read() -> std::io::Result<Vec<Mount>> {
    // Its size shows as zero, so a buffer that grows by itself would begin with a few bytes.
    let mut bytes = Vec::with_capacity(BUFFER_BYTES);
    File::open("/proc/self/mountinfo")?.read_to_end(&mut bytes)?;
    Ok(bytes.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// Finds the mount at `point`: the last one wins, as it lies on top.
pub fn at<'m>(mounts: &'m [Mount], point: &Path) -> Option<&'m Mount> {
    mounts.iter().rev().find(|mount| mount.point == point)
}

/// Lists where the directory `inside` of the filesystem `device`, or anything below it, is mounted.
pub fn below<'m>(mounts: &'m [Mount], device: &str, inside: &Path) -> Vec<&'m Mount> {
    mounts.iter().filter(|mount| mount.device == device && mount.root.starts_with(inside)).collect()
}

/// Which paths of one filesystem are mounted somewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounted(BTreeSet<PathBuf>);

impl Mounted {
    /// Keeps what of the directory `inside` of the filesystem `device` is mounted.
    pub fn of(mounts: &[Mount], device: &str, inside: &Path) -> Self {
        let of_device = mounts.iter().filter(|mount| mount.device == device);
        Self(of_device.filter_map(|mount| Some(mount.root.strip_prefix(inside).ok()?.to_owned())).collect())
    }

    /// Tells if `path` (from `inside`), or something below it, is mounted.
    pub fn shows(&self, path: &str) -> bool {
        let path = Path::new(path);
        // What is below a path follows it.
        self.0
            .range::<Path, _>((Bound::Included(path), Bound::Unbounded))
            .next()
            .is_some_and(|first| first.starts_with(path))
    }
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue` (proc(5)).
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    let own = String::from_utf8_lossy(fields.next()?).into_owned();
    fields.by_ref().find(|field| *field == b"-")?;
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = unescape(fields.next()?).to_string_lossy().into_owned();
    let filesystem = String::from_utf8_lossy(fields.next().unwrap_or_default()).into_owned();
    Some(Mount { device, root, point, kind, source, options: format!("{own},{filesystem}") })
}

/// Blanks and backslashes are written as `\040` and the like.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &[u8] =
        b"36 35 98:0 / /mnt/a\\040b rw,noatime master:1 - btrfs /dev/loop0 rw,compress=zstd:1\n\
        40 35 0:44 /volumes/vol-1/data /var/lib/pod rw - btrfs /dev/loop0 rw\n\
        41 35 0:44 /volumes/vol-11/data /var/lib/pod2 rw - btrfs /dev/loop0 rw\n\
        42 35 0:45 /volumes/vol-1/data /other rw - btrfs /dev/loop1 rw\nnonsense";

    fn mounts() -> Vec<Mount> {
        LINES.split(|byte| *byte == b'\n').filter_map(parse).collect()
    }

    #[test]
    fn names_with_blanks_are_read() {
        let mounts = mounts();
        let mount = at(&mounts, Path::new("/mnt/a b")).unwrap();
        assert_eq!((mount.kind.as_str(), mount.source.as_str()), ("btrfs", "/dev/loop0"));
        assert!(mount.has_option("noatime") && mount.has_option("compress") && !mount.has_option("ro"));
    }

    #[test]
    fn only_mounts_of_this_pool_and_volume_are_found() {
        let mounts = mounts();
        let found = below(&mounts, "0:44", Path::new("/volumes/vol-1"));
        assert_eq!(found.iter().map(|m| m.point.to_str().unwrap()).collect::<Vec<_>>(), ["/var/lib/pod"]);
        let mounted = Mounted::of(&mounts, "0:44", Path::new("/"));
        for (path, shown) in [
            ("volumes/vol-1", true),
            ("volumes/vol-1/data", true),
            ("volumes/vol-1/data/inner", false),
            ("volumes/vol-1/d", false),
            ("volumes/vol-11", true),
            ("volumes/vol-111", false),
            ("volumes/vol-0", false),
        ] {
            assert_eq!(mounted.shows(path), shown, "{path}");
        }
        assert!(Mounted::of(&mounts, "0:44", Path::new("/volumes")).shows("vol-11"));
        assert!(!Mounted::of(&mounts, "0:44", Path::new("/other")).shows("volumes/vol-1"));
    }

    #[test]
    fn this_machines_mounts_can_be_read() {
        assert!(at(&read().unwrap(), Path::new("/")).is_some());
    }
}
