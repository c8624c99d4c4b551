//! A file as a block device: what a pool stands on where there is no disk for it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;

use crate::abi::{LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO, LoopConfig, LoopInfo64};
use crate::{Error, Result, filesystem, sys};

/// How often we try again: when somebody took the free device between the two calls, when the file's last device is
/// still going away.
const ATTEMPTS: u32 = 100;
/// And how long we leave them to finish.
const PAUSE: Duration = Duration::from_millis(10);

/// A loop device with a file behind it. It lets the file go when this is dropped and nothing else, such as a mount,
/// uses it.
#[derive(Debug)]
pub struct LoopDevice {
    device: File,
    path: PathBuf,
}

/// Makes a sparse file of this size, readable only by us. One that exists is `EEXIST`.
///
/// The name is durable when this returns.
pub fn create_backing_file(path: &Path, bytes: u64) -> Result<()> {
    let on = |call| Error::io(call, path.display().to_string());
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(on("open"))?;
    file.set_len(bytes).map_err(on("ftruncate"))?;
    file.sync_all().map_err(on("fsync"))?;
    sync_parent(path)
}

/// Makes a filesystem in a file of its own, once. `false` if the file is there.
///
/// It gets its name when it is whole: dying in between leaves `<name>.new`, which the next call makes anew.
pub fn make_pool_file(path: &Path, bytes: u64, label: &str) -> Result<bool> {
    let on = |call| Error::io(call, path.display().to_string());
    if fs::exists(path).map_err(on("stat"))? {
        return Ok(false);
    }
    let mut half_made = path.as_os_str().to_owned();
    half_made.push(".new");
    let half_made = PathBuf::from(half_made);
    match fs::remove_file(&half_made) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(on("unlink")(error)),
        Ok(()) | Err(_) => {}
    }
    create_backing_file(&half_made, bytes)?;
    if let Err(error) = filesystem::format(&half_made, label) {
        // The cause is what counts; the leftover is removed by the next call if not by this one.
        drop(fs::remove_file(&half_made));
        return Err(error);
    }
    File::open(&half_made).and_then(|file| file.sync_all()).map_err(on("fsync"))?;
    fs::rename(&half_made, path).map_err(on("rename"))?;
    sync_parent(path)?;
    Ok(true)
}

/// Mounts a filesystem that is in a file. The loop device lives as long as the mount does.
pub fn mount_pool_file(path: &Path, target: &Path, options: &str) -> Result<()> {
    let device = LoopDevice::attach(path)?;
    filesystem::mount(device.path(), target, options)
}

impl LoopDevice {
    /// Puts a loop device in front of a file. One that already has a device is `EBUSY`: two would ruin it.
    pub fn attach(backing: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(backing)
            .map_err(Error::io("open", backing.display().to_string()))?;
        let control = File::options()
            .read(true)
            .write(true)
            .open("/dev/loop-control")
            .map_err(Error::io("open", "/dev/loop-control"))?;
        for _ in 0..ATTEMPTS {
            // Also true for a moment after an unmount.
            if attached(backing)?.is_some() {
                thread::sleep(PAUSE);
                continue;
            }
            let number = sys::loop_ctl_get_free(control.as_fd())
                .map_err(Error::call("LOOP_CTL_GET_FREE", "/dev/loop-control"))?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            match configure(&path, &file, backing) {
                Ok(device) => return Ok(Self { device, path }),
                // Somebody was faster, or the device's node is still being made.
                Err(error) if error.is(Errno::EBUSY) || error.is(Errno::ENOENT) || error.is(Errno::ENXIO) => {
                    thread::sleep(PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
        let name = match attached(backing)? {
            Some(device) => format!("{} (it is {})", backing.display(), device.display()),
            None => backing.display().to_string(),
        };
        Err(Error::Call { call: "LOOP_CONFIGURE", name, errno: Errno::EBUSY })
    }

    /// The device, `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the file go now, or when the last user is gone, also where [`Drop`] would be too late to report it.
    pub fn detach(self) -> Result<()> {
        sys::loop_clear(self.device.as_fd())
            .map_err(Error::call("LOOP_CLR_FD", self.path.display().to_string()))
    }
}

/// The loop device in front of a file, if there is one.
pub fn attached(backing: &Path) -> Result<Option<PathBuf>> {
    let file = fs::metadata(backing).map_err(Error::io("stat", backing.display().to_string()))?;
    let devices = match fs::read_dir("/sys/block") {
        Ok(devices) => devices,
        Err(error) => return Err(Error::io("opendir", "/sys/block")(error)),
    };
    for entry in devices {
        let entry = entry.map_err(Error::io("readdir", "/sys/block"))?;
        // Only loop devices with a file have this.
        if !entry.path().join("loop/backing_file").exists() {
            continue;
        }
        let path = Path::new("/dev").join(entry.file_name());
        let device = match File::open(&path) {
            Ok(device) => device,
            // Let go in between.
            Err(error) if matches!(error.raw_os_error(), Some(code) if code == Errno::ENXIO as i32 || code == Errno::ENOENT as i32) =>
            {
                continue;
            }
            Err(error) => return Err(Error::io("open", path.display().to_string())(error)),
        };
        match sys::loop_get_status(device.as_fd()) {
            Ok(info) if (info.lo_device, info.lo_inode) == (file.dev(), file.ino()) => return Ok(Some(path)),
            Ok(_) | Err(Errno::ENXIO) => {}
            Err(errno) => return Err(Error::call("LOOP_GET_STATUS64", path.display().to_string())(errno)),
        }
    }
    Ok(None)
}

fn sync_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io("fsync", parent.display().to_string()))
}

fn configure(path: &Path, file: &File, backing: &Path) -> Result<File> {
    let on = path.display().to_string();
    let device = OpenOptions::new().read(true).write(true).open(path).map_err(Error::io("open", &*on))?;
    let mut info = LoopInfo64 { lo_flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO, ..LoopInfo64::default() };
    // For people who run losetup; cut, and always with a NUL at the end.
    let text = backing.as_os_str().as_encoded_bytes();
    for (to, from) in info.lo_file_name.iter_mut().take(63).zip(text) {
        *to = *from;
    }
    let fd =
        u32::try_from(file.as_raw_fd()).map_err(|_| Error::call("LOOP_CONFIGURE", &*on)(Errno::EBADF))?;
    let mut config = LoopConfig { fd, block_size: 0, info, reserved: [0; 8] };
    let configured = match sys::loop_configure(device.as_fd(), &config) {
        // The file's filesystem cannot do direct io.
        Err(Errno::EINVAL) => {
            config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
            sys::loop_configure(device.as_fd(), &config)
        }
        result => result,
    };
    configured.map_err(Error::call("LOOP_CONFIGURE", on))?;
    Ok(device)
}
