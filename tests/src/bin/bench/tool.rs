//! Tools as processes, measured alike: wall time, and the processor time of the process and all that it started.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tests::figures::median;

/// What runs of one tool took.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    pub(crate) wall: Vec<Duration>,
    pub(crate) cpu: Vec<Duration>,
}

impl Runs {
    pub(crate) fn seconds(&self) -> f64 {
        median(&self.wall).as_secs_f64()
    }

    pub(crate) fn cpu_seconds(&self) -> f64 {
        median(&self.cpu).as_secs_f64()
    }

    /// Runs a command and notes what it took; returns what it printed.
    pub(crate) fn run(&mut self, command: &mut Command) -> Result<String> {
        let (started, before) = (Instant::now(), children()?);
        let output = command.output().with_context(|| format!("{command:?}"))?;
        self.wall.push(started.elapsed());
        self.cpu.push(children()? - before);
        if !output.status.success() {
            bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    pub(crate) fn shell(&mut self, script: &str) -> Result<String> {
        self.run(Command::new("bash").args(["-o", "pipefail", "-c", script]))
    }

    /// Runs `store-op`, which stands beside this program.
    pub(crate) fn store_op(&mut self, environment: &[(String, String)], arguments: &[&str]) -> Result<Value> {
        let program = std::env::current_exe()?.with_file_name("store-op");
        let told = self.run(Command::new(program).args(arguments).envs(environment.iter().cloned()))?;
        Ok(serde_json::from_str(&told)?)
    }
}

/// Processor time of all children that ended, in hundredths of a second.
fn children() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks =
        after_name.split_whitespace().skip(13).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
}

/// A number that `store-op` printed.
pub(crate) fn number(told: &Value, field: &str) -> Result<f64> {
    told[field].as_f64().with_context(|| format!("store-op did not tell {field}"))
}

/// Bytes of all files below a directory, in MB.
pub(crate) fn megabytes(directory: &Path) -> Result<f64> {
    let (_, bytes) = crate::bench::count(directory)?;
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    Ok(bytes as f64 / 1e6)
}

/// An empty directory of this name.
pub(crate) fn empty(work: &Path, name: &str) -> Result<PathBuf> {
    let path = work.join(name);
    if path.exists() {
        std::fs::remove_dir_all(&path)?;
    }
    std::fs::create_dir_all(&path)?;
    Ok(path)
}
