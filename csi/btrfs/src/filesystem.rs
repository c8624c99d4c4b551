//! Making, mounting and recognising a btrfs filesystem.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags};
use nix::sys::statfs::BTRFS_SUPER_MAGIC;

use crate::{Error, Result};

/// Where mkfs.btrfs is looked for. Not `PATH`, which a service's caller may have set to anything.
const PROGRAM_DIRS: [&str; 6] =
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/run/current-system/sw/bin"];

/// Bytes of a failed program's stderr that are kept.
const SAID_BYTES: usize = 1024;

/// Whether an open file or directory is on btrfs.
pub fn is_btrfs(file: impl AsFd) -> Result<bool> {
    let statfs = nix::sys::statfs::fstatfs(file).map_err(Error::call("fstatfs", "an open file"))?;
    Ok(statfs.filesystem_type() == BTRFS_SUPER_MAGIC)
}

/// Makes a filesystem on a device or in a file. One that already holds a filesystem is refused, by mkfs.btrfs itself.
pub fn format(target: &Path, label: &str) -> Result<()> {
    const TOOL: &str = "mkfs.btrfs";
    let failed = |said: String| Error::Tool { tool: TOOL, name: target.display().to_string(), said };
    let program = program(TOOL)
        .ok_or_else(|| failed(format!("not found in {}; install btrfs-progs", PROGRAM_DIRS.join(", "))))?;
    let output = Command::new(program)
        .args(["--quiet", "--label", label, "--"])
        .arg(target)
        .stdin(Stdio::null())
        .env_clear()
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let end = output.stderr.len().saturating_sub(SAID_BYTES);
    let said = String::from_utf8_lossy(output.stderr.get(end..).unwrap_or_default());
    Err(failed(format!("{}: {}", output.status, said.trim())))
}

/// Mounts a device. `options` are btrfs's own, such as `compress=zstd:1`; the mount is always `noatime`, because with
/// `relatime` a read counts as a write.
pub fn mount(device: &Path, target: &Path, options: &str) -> Result<()> {
    let flags = MsFlags::MS_NOATIME | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    nix::mount::mount(Some(device), target, Some("btrfs"), flags, Some(options))
        .map_err(Error::call("mount", format!("{} at {}", device.display(), target.display())))
}

/// Unmounts. `EBUSY` while something has a file open.
pub fn unmount(target: &Path) -> Result<()> {
    nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW)
        .map_err(Error::call("umount2", target.display().to_string()))
}

/// Takes the mount out of sight at once and unmounts when the last file is closed. For tests that clean up after a
/// failure.
pub fn unmount_lazily(target: &Path) -> Result<()> {
    nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
        .map_err(Error::call("umount2", target.display().to_string()))
}

fn program(name: &str) -> Option<PathBuf> {
    PROGRAM_DIRS.iter().map(|dir| Path::new(dir).join(OsString::from(name))).find(|path| path.is_file())
}
