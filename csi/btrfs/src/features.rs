//! What this kernel and this filesystem can do, asked once at start and said out loud.

use std::fmt;
use std::fs;
use std::os::fd::AsFd as _;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::{Dir, Error, Result, sys};

/// What was found. A missing one is a stated condition of the node, never a silent loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// The kernel.
    pub kernel: Kernel,
    /// Simple quotas (linux 6.7): limits that hold.
    pub simple_quota: bool,
    /// Fanotify events before content is read (linux 6.14): files filled on first use.
    pub pre_content: bool,
    /// POSIX ACLs in btrfs; without them a tree that has some cannot be restored.
    pub acl: bool,
    /// Newest version of the send stream; 0 where there is none.
    pub send_stream: u32,
}

/// A kernel's release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// The whole of it, as `uname -r` has it.
    pub release: String,
}

impl Kernel {
    /// Whether it is this version or newer. Distributions backport: ask for the feature first.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }

    fn parse(release: &str) -> Self {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
        let major = numbers.next().unwrap_or(0);
        let minor = numbers.next().unwrap_or(0);
        Self { major, minor, release: release.to_owned() }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.release)
    }
}

/// Finds out what can be done on the filesystem of `dir`, which must be a writable directory on btrfs.
pub fn probe(dir: &Dir) -> Result<Features> {
    let release = nix::sys::utsname::uname().map_err(Error::call("uname", "the kernel"))?;
    Ok(Features {
        kernel: Kernel::parse(&release.release().to_string_lossy()),
        simple_quota: has("simple_quota")?,
        pre_content: pre_content(dir)?,
        acl: has("acl")?,
        send_stream: read("send_stream_version")?.and_then(|text| text.trim().parse().ok()).unwrap_or(0),
    })
}

/// Whether the kernel has btrfs at all (a module may be loaded by the first mount).
pub fn kernel_has_btrfs() -> bool {
    fs::read_to_string("/proc/filesystems")
        .is_ok_and(|text| text.lines().any(|line| line.split_whitespace().any(|word| word == "btrfs")))
}

fn has(feature: &str) -> Result<bool> {
    let path = format!("/sys/fs/btrfs/features/{feature}");
    fs::exists(&path).map_err(Error::io("stat", path))
}

fn read(feature: &str) -> Result<Option<String>> {
    let path = format!("/sys/fs/btrfs/features/{feature}");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

fn pre_content(dir: &Dir) -> Result<bool> {
    // Asked on a file without a name, which is gone with its descriptor.
    let file = dir.open_file(".", OFlag::O_TMPFILE | OFlag::O_RDWR, Mode::S_IRUSR)?;
    match sys::pre_content_mark(file.as_fd()) {
        Ok(()) => Ok(true),
        // No such event, no fanotify, not for this filesystem, or not for us.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM) => Ok(false),
        Err(errno) => Err(dir.on_self("fanotify_mark")(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_release_is_read_whatever_follows_the_numbers() {
        for (release, major, minor) in
            [("6.18.44-fc-v657", 6, 18), ("6.7.0", 6, 7), ("6.8-rc1", 6, 8), ("7.0", 7, 0), ("odd", 0, 0)]
        {
            let kernel = Kernel::parse(release);
            assert_eq!((kernel.major, kernel.minor), (major, minor), "{release}");
        }
        assert!(Kernel::parse("6.18.1").at_least(6, 7));
        assert!(Kernel::parse("7.0").at_least(6, 7));
        assert!(!Kernel::parse("6.6.99").at_least(6, 7));
    }
}
