//! The lock of a directory, between threads and processes.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long a lock is waited for. It is held for one rename or one `readdir`; longer means that its holder is stopped
/// or the disk is stuck, and the caller should know.
const PATIENCE: Duration = Duration::from_secs(20);

/// The longest pause between two tries.
const PAUSE: Duration = Duration::from_millis(2);

/// An exclusive `flock` on the directory itself. The kernel drops it when its holder dies.
#[derive(Debug)]
pub(super) struct DirLock {
    /// Holds the lock for as long as it is open.
    _directory: File,
}

impl DirLock {
    pub(super) fn take(path: &Path) -> io::Result<Self> {
        let directory = File::open(path)?;
        let start = Instant::now();
        let mut pause = Duration::from_micros(50);
        loop {
            match directory.try_lock() {
                Ok(()) => return Ok(Self { _directory: directory }),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if start.elapsed() > PATIENCE => {
                    let why = format!("the lock of {} is held for too long", path.display());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
                Err(TryLockError::WouldBlock) => {
                    thread::sleep(pause);
                    pause = (pause * 2).min(PAUSE);
                }
            }
        }
    }
}
