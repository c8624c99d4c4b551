//! A daemon that outlives the command that started it, found again by its pid and the time it started at.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process on this machine. Its start time tells it from a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    /// The kernel's number for it.
    pub(super) pid: i32,
    /// In ticks since the machine started.
    started: u64,
}

impl Process {
    /// Starts a daemon in a process group of its own, so that a Ctrl-C here does not reach it.
    pub(super) fn spawn(binary: &Path, arguments: &[impl AsRef<OsStr>], log: &Path) -> io::Result<Self> {
        let log = File::options().append(true).create(true).open(log)?;
        let child = Command::new(binary)
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        Ok(Self { pid, started: stat(pid).map_or(0, |stat| stat.started) })
    }

    /// Reads the file that [`Process::save`] wrote; nothing where there is none.
    pub(super) fn load(file: &Path) -> io::Result<Option<Self>> {
        match fs::read(file) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Remembers the process.
    pub(super) fn save(&self, file: &Path) -> io::Result<()> {
        fs::write(file, serde_json::to_vec(self).expect("two numbers serialise"))
    }

    /// Tells if it is still there, and not only its remains.
    pub(super) fn is_running(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.started == self.started && !stat.dead)
    }

    /// Sends a signal; to a process that is gone, nothing.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it is gone, for as long as `limit`; says whether it is.
    pub(super) async fn gone(&self, limit: Duration) -> bool {
        let end = tokio::time::Instant::now() + limit;
        while self.is_running() {
            if tokio::time::Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }
}

/// Between two looks at `/proc`.
const POLL: Duration = Duration::from_millis(20);

struct Stat {
    started: u64,
    dead: bool,
}

/// proc_pid_stat(5): the name in brackets may hold anything, so fields are counted from the last bracket.
fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?;
    // Fields 20 and 22 of all; the state is field 3.
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    let started = fields.nth(1)?.parse().ok()?;
    // A leader that is a zombie says nothing of its threads: one that is still in the kernel keeps the sockets open.
    Some(Stat { started, dead: matches!(state, "Z" | "X") && threads <= 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_told_from_a_later_one_with_its_pid() {
        let directory = tempfile::tempdir().unwrap();
        let process =
            Process::spawn(Path::new("/bin/sleep"), &["60"], &directory.path().join("log")).unwrap();
        let file = directory.path().join("pid");
        process.save(&file).unwrap();
        assert_eq!(Process::load(&file).unwrap(), Some(process));
        assert!(process.is_running());
        assert!(!Process { started: process.started + 1, ..process }.is_running());
        process.signal(Signal::SIGKILL).unwrap();
        assert!(process.gone(Duration::from_secs(10)).await);
        process.signal(Signal::SIGKILL).unwrap();
    }
}
