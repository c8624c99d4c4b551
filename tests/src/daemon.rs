//! One daemon by itself, for measurements that a cluster of `sailctl dev up` would blur.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::binary;

/// `sysconf(_SC_CLK_TCK)` is 100 on every Linux that there is.
const TICK: Duration = Duration::from_millis(10);

/// A running process, killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts the program `name` that was built beside this one. What it says goes to `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &str, arguments: &[&str], log: &Path) -> Result<Self> {
        let file = std::fs::File::create(log)?;
        let mut command = Command::new(binary(name)?);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// The system cannot say.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// What it said so far.
    ///
    /// # Errors
    /// Its log cannot be read.
    pub fn said(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.log)?).into_owned())
    }

    /// Asks it to stop and waits until it has.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }

    /// Its resident memory in MiB.
    ///
    /// # Errors
    /// It is gone.
    pub fn rss_mib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    /// The processor time that it used so far, user and system.
    ///
    /// # Errors
    /// It is gone.
    pub fn cpu(&self) -> Result<Duration> {
        // Threads that ended count too, which they do not in /proc/pid/task.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let after_name = stat.rsplit_once(')').context("a name in parentheses")?.1;
        let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        Ok(TICK * u32::try_from(ticks.sum::<Result<u64, _>>()?)?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
