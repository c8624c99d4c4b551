//! What a node's pool leaves in the kernel: mounts and loop devices below a directory.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};

use crate::error::{Error, Result};

/// How long a mount may stay busy after its daemon has gone.
const BUSY: Duration = Duration::from_secs(10);

/// Unmounts what is mounted below a directory and detaches the loop devices of files below it.
pub(super) async fn clear(directory: &Path) -> Result<()> {
    let end = tokio::time::Instant::now() + BUSY;
    let mut mounts = mounts_below(directory).map_err(|error| Error::local("read", MOUNTS, error))?;
    // The last mounted goes first.
    mounts.reverse();
    for mount in mounts {
        loop {
            match umount2(&mount, MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => break,
                Err(nix::Error::EBUSY) if tokio::time::Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(nix::Error::EBUSY) => {
                    return Err(Error::state(
                        format!("{} is in use", mount.display()),
                        "end what has files open there (`fuser -vm` shows it), and again",
                    ));
                }
                Err(error) => return Err(Error::path("unmount", &mount, error.into())),
            }
        }
    }
    for device in loops_below(directory).map_err(|error| Error::local("read", LOOPS, error))? {
        let output = Command::new("losetup").arg("-d").arg(&device).output();
        let output = output.map_err(|error| Error::local("run", "losetup", error))?;
        // One that the unmount has freed by itself is no failure.
        if !output.status.success() && loops_below(directory).is_ok_and(|left| left.contains(&device)) {
            let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::path("detach", &device, io::Error::other(words)));
        }
    }
    Ok(())
}

const MOUNTS: &str = "/proc/self/mountinfo";
const LOOPS: &str = "/sys/block";

fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read(MOUNTS)?;
    let points =
        table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    Ok(points.map(unescape).filter(|point| point.starts_with(directory)).collect())
}

/// Blanks and backslashes are written `\040` in mountinfo.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, tail)) = rest.split_first() {
        let code =
            tail.get(..3).and_then(|octal| u8::from_str_radix(std::str::from_utf8(octal).ok()?, 8).ok());
        match code {
            Some(code) if *byte == b'\\' => {
                bytes.push(code);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

fn loops_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(LOOPS)? {
        let name = entry?.file_name();
        let Ok(file) = fs::read(Path::new(LOOPS).join(&name).join("loop/backing_file")) else {
            // No loop device, or a free one.
            continue;
        };
        let file = file.strip_suffix(b"\n").unwrap_or(&file);
        if Path::new(OsStr::from_bytes(file)).starts_with(directory) {
            devices.push(Path::new("/dev").join(name));
        }
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks_are_read() {
        assert_eq!(unescape(br"/a\040b\134c/\x"), PathBuf::from(r"/a b\c/\x"));
    }
}
