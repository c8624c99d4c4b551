//! Where the pool's filesystem comes from: a mounted btrfs, a block device, or a loop file made at the first start.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use types::ByteSize;

use crate::config::NodeConfig;
use crate::error::Error;
use crate::mounts::{self, Mount};

/// The loop file in the pool's directory.
pub const IMAGE: &str = "pool.img";
/// Where a loop file or device is mounted in the pool's directory.
pub const MOUNT: &str = "mnt";

/// `noatime`: with `relatime` a read counts as a write and every volume looks dirty.
const OPTIONS: &str = "noatime,compress=zstd:1";

/// Below this mkfs.btrfs refuses or leaves no room for metadata.
const SMALLEST: ByteSize = ByteSize(256 << 20);

/// Refuses what can be refused before anything is made, even a lock file.
///
/// # Errors
/// There cannot be a pool at the path.
pub(super) fn check(config: &NodeConfig) -> Result<(), Error> {
    let image = config.pool.join(IMAGE).exists();
    match (&config.device, config.pool_size) {
        (None, Some(size)) if !image && size < SMALLEST => {
            Err(Error::PoolTooSmall { size, smallest: SMALLEST })
        }
        (None, None) if !image => existing_mount(&config.pool).map(drop),
        _ => Ok(()),
    }
}

/// Finds or makes the filesystem, mounts it where it is not, and returns its root directory.
///
/// # Errors
/// There is nothing usable at the path, or a tool failed.
pub(super) fn open(config: &NodeConfig) -> Result<PathBuf, Error> {
    let image = config.pool.join(IMAGE);
    match (&config.device, config.pool_size) {
        (Some(device), _) => open_device(config, device),
        (None, Some(size)) => {
            if !image.exists() {
                make_image(&image, size)?;
            }
            mount_image(config, &image)
        }
        (None, None) if image.exists() => mount_image(config, &image),
        (None, None) => existing_mount(&config.pool),
    }
}

fn existing_mount(path: &Path) -> Result<PathBuf, Error> {
    let real = path.canonicalize().map_err(|source| Error::PoolPath { path: path.to_owned(), source })?;
    let mounts = mounts::read().map_err(|source| Error::Io { doing: "reading the mounts", source })?;
    match mounts::at(&mounts, &real) {
        Some(mount) if mount.kind == "btrfs" => Ok(real),
        Some(mount) => Err(Error::NotBtrfs { path: real, found: mount.kind.clone() }),
        None => Err(Error::NotBtrfs { path: real, found: "no mount".to_owned() }),
    }
}

/// Makes the sparse loop file. It has its name only when there is a filesystem in it.
fn make_image(image: &Path, size: ByteSize) -> Result<(), Error> {
    let unfinished = image.with_extension("img.new");
    let io = |source| Error::PoolPath { path: unfinished.clone(), source };
    let file = std::fs::File::create(&unfinished).map_err(io)?;
    file.set_len(size.0).map_err(io)?;
    drop(file);
    tool(Command::new("mkfs.btrfs").arg("--quiet").arg(&unfinished))?;
    std::fs::File::open(&unfinished).and_then(|file| file.sync_all()).map_err(io)?;
    std::fs::rename(&unfinished, image).map_err(io)?;
    let directory = image.parent().expect("the image lies in the pool's directory");
    std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)
}

fn mount_image(config: &NodeConfig, image: &Path) -> Result<PathBuf, Error> {
    let image = image.canonicalize().map_err(|source| Error::PoolPath { path: image.to_owned(), source })?;
    mount(config, &image, &["-o", &format!("loop,{OPTIONS}")], |mount| {
        backing_file(&mount.source).is_some_and(|file| file == image)
    })
}

/// What a loop device shows: the kernel keeps the name it was set up with.
fn backing_file(device: &str) -> Option<PathBuf> {
    let name = Path::new(device).file_name()?.to_str()?;
    let text = std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
    Some(PathBuf::from(text.trim_end()))
}

fn open_device(config: &NodeConfig, device: &Path) -> Result<PathBuf, Error> {
    let io = |source| Error::PoolPath { path: device.to_owned(), source };
    let device = device.canonicalize().map_err(io)?;
    if !has_btrfs(&device).map_err(io)? {
        // blkid ends with 2 where it finds no signature at all; anything it finds is somebody's data.
        let probe = Command::new("blkid").arg("-p").arg(&device).output();
        let probe = probe.map_err(|source| Error::Tool { tool: "blkid".to_owned(), source })?;
        if probe.status.code() != Some(2) {
            let found = String::from_utf8_lossy(&probe.stdout).trim().to_owned();
            return Err(Error::NotBtrfs { path: device, found });
        }
        tool(Command::new("mkfs.btrfs").arg("--quiet").arg(&device))?;
    }
    let number = std::fs::metadata(&device).map_err(io)?.rdev();
    mount(config, &device, &["-o", OPTIONS], |mount| {
        std::fs::metadata(&mount.source).is_ok_and(|metadata| metadata.rdev() == number)
    })
}

/// The magic of a btrfs superblock, 64 bytes into the first copy at 64 KiB.
fn has_btrfs(device: &Path) -> std::io::Result<bool> {
    let mut start = vec![0; (64 << 10) + 72];
    let read = std::fs::File::open(device)?.read_exact(&mut start);
    Ok(read.is_ok() && start[(64 << 10) + 64..] == *b"_BHRfS_M")
}

/// Mounts `source` at `<pool>/mnt`, or finds it mounted there by an earlier life of this node.
fn mount(
    config: &NodeConfig,
    source: &Path,
    options: &[&str],
    is_ours: impl Fn(&Mount) -> bool,
) -> Result<PathBuf, Error> {
    let point = config.pool.join(MOUNT);
    let io = |source| Error::PoolPath { path: point.clone(), source };
    std::fs::create_dir_all(&point).map_err(io)?;
    let point = point.canonicalize().map_err(io)?;
    let mounts = mounts::read().map_err(|source| Error::Io { doing: "reading the mounts", source })?;
    match mounts::at(&mounts, &point) {
        Some(mount) if mount.kind == "btrfs" && is_ours(mount) => return Ok(point),
        Some(mount) => {
            let found = format!("{} from {}", mount.kind, mount.source);
            return Err(Error::PoolMountTaken { path: point, found });
        }
        None => {}
    }
    tool(Command::new("mount").args(["-t", "btrfs"]).args(options).arg(source).arg(&point))?;
    Ok(point)
}

/// Runs a tool of the system to its end.
fn tool(command: &mut Command) -> Result<(), Error> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|source| Error::Tool { tool: name.clone(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::ToolFailed { tool: name, status: output.status.to_string(), said })
}
