//! A throwaway filesystem in a loop file, for the tests of this and other rooms.
//!
//! A real one takes 140 milliseconds, and a double would agree with us where the kernel does not.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::{Dir, Error, Result, filesystem, loopdev};

/// How often a busy mount is tried again before it is taken away lazily.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A mounted filesystem with its file; both go when this is dropped.
#[derive(Debug)]
pub struct ScratchPool {
    base: PathBuf,
}

impl ScratchPool {
    /// Makes one of this size (sparse) in a new directory under `parent`.
    pub fn create(parent: &Path, bytes: u64) -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = parent.join(format!("opensail-scratch-{}-{number}", std::process::id()));
        fs::create_dir(&base).map_err(Error::io("mkdir", base.display().to_string()))?;
        let pool = Self { base };
        fs::create_dir(pool.mount_point()).map_err(Error::io("mkdir", pool.base.display().to_string()))?;
        loopdev::make_pool_file(&pool.file(), bytes, "scratch")?;
        pool.mount()?;
        Ok(pool)
    }

    /// Makes one of 2 GiB in the system's temporary directory, or says why the test is skipped. With `REQUIRE_BTRFS=1`
    /// in the environment the test fails instead.
    ///
    /// # Panics
    /// With `REQUIRE_BTRFS=1`, where there is no root or no btrfs; always, if it can be made but not for another reason.
    #[allow(clippy::panic, reason = "for tests")]
    pub fn or_skip(test: &str) -> Option<Self> {
        let required = std::env::var_os("REQUIRE_BTRFS").is_some_and(|value| value == "1");
        let missing = if nix::unistd::geteuid().is_root() {
            match Self::create(&std::env::temp_dir(), 2 << 30) {
                Ok(pool) => return Some(pool),
                Err(error) if required => panic!("{test}: {}", report(&error)),
                Err(error) => report(&error),
            }
        } else {
            "not root".to_owned()
        };
        assert!(!required, "{test}: REQUIRE_BTRFS=1, but {missing}");
        // Past the test harness, which hides what a passing test prints.
        let said = writeln!(io::stderr().lock(), "SKIPPED {test}: no btrfs here: {missing}");
        drop(said);
        None
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> PathBuf {
        self.base.join("mnt")
    }

    /// The file it is in.
    pub fn file(&self) -> PathBuf {
        self.base.join("pool.img")
    }

    /// Its root directory.
    pub fn root(&self) -> Result<Dir> {
        Dir::open(self.mount_point())
    }

    /// Mounts it (again).
    pub fn mount(&self) -> Result<()> {
        loopdev::mount_pool_file(&self.file(), &self.mount_point(), "compress=zstd:1")
    }

    /// Unmounts it and keeps the file.
    pub fn unmount(&self) -> Result<()> {
        let mut result = Ok(());
        for _ in 0..ATTEMPTS {
            result = filesystem::unmount(&self.mount_point());
            match &result {
                Err(error) if error.is(Errno::EBUSY) => thread::sleep(PAUSE),
                Ok(()) | Err(_) => break,
            }
        }
        result
    }

    /// Puts the file back to what `copy` holds, as after a power loss at the moment of the copy, and mounts it.
    pub fn become_copy(&self, copy: &Path) -> Result<()> {
        self.unmount()?;
        fs::rename(copy, self.file()).map_err(Error::io("rename", copy.display().to_string()))?;
        self.mount()
    }

    /// Copies the file as it is on the device at this moment.
    pub fn copy(&self) -> Result<PathBuf> {
        let copy = self.base.join("copy.img");
        copy_sparse(&self.file(), &copy).map_err(Error::io("copy", copy.display().to_string()))?;
        Ok(copy)
    }
}

impl Drop for ScratchPool {
    fn drop(&mut self) {
        // EINVAL: not mounted, because making it failed or the test unmounted it.
        let gone = match self.unmount() {
            Err(error) if !error.is(Errno::EINVAL) => filesystem::unmount_lazily(&self.mount_point()),
            Ok(()) | Err(_) => Ok(()),
        };
        let removed = fs::remove_dir_all(&self.base);
        if let Err(error) = gone {
            let said = writeln!(io::stderr().lock(), "{}: {}", self.base.display(), report(&error));
            drop(said);
        }
        if let Err(error) = removed {
            let said = writeln!(io::stderr().lock(), "{}: {error}", self.base.display());
            drop(said);
        }
    }
}

/// Copies the parts of a file that hold something; `fs::copy` would write gigabytes of zeros.
fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let source = fs::File::open(from)?;
    let target = fs::File::create(to)?;
    target.set_len(source.metadata()?.len())?;
    let mut at = 0;
    loop {
        let data = match lseek(&source, at, Whence::SeekData) {
            Ok(data) => data,
            // Nothing but a hole from here.
            Err(Errno::ENXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        at = lseek(&source, data, Whence::SeekHole)?;
        let (data, end) = (data.cast_unsigned(), at.cast_unsigned());
        let (mut reader, mut writer) = (&source, &target);
        reader.seek(SeekFrom::Start(data))?;
        writer.seek(SeekFrom::Start(data))?;
        io::copy(&mut reader.take(end - data), &mut writer)?;
    }
}

fn report(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
