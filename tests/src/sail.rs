//! `sailctl` against a cluster, as a script would use it.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, binary};

/// How a command that did not succeed ended.
#[derive(Debug)]
pub struct Refusal {
    /// The exit code.
    pub code: i32,
    /// Standard error.
    pub words: String,
}

impl Cluster {
    /// Runs a command that has to succeed, and returns its document.
    ///
    /// # Errors
    /// It fails, or its standard output is no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.sailctl(&[&["-o", "json"], arguments].concat())?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "sailctl {}: {}: {words}", arguments.join(" "), output.status);
        serde_json::from_slice(&output.stdout).with_context(|| format!("sailctl {}", arguments.join(" ")))
    }

    /// Runs a command that has to succeed with something on its standard input.
    ///
    /// # Errors
    /// It fails.
    pub fn write(&self, file: &str, content: &[u8]) -> Result<()> {
        let arguments = ["write", "--parents", file];
        let output = fed(self.command()?.args(arguments), content)?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "sailctl write {file}: {}: {words}", output.status);
        Ok(())
    }

    /// Prints a file.
    ///
    /// # Errors
    /// It fails.
    pub fn cat(&self, file: &str) -> Result<Vec<u8>> {
        let output = self.sailctl(&["cat", file])?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "sailctl cat {file}: {}: {words}", output.status);
        Ok(output.stdout)
    }

    /// Runs a command that has to fail.
    ///
    /// # Errors
    /// It succeeds, was killed, or says anything on standard output.
    pub fn refused(&self, arguments: &[&str]) -> Result<Refusal> {
        refusal(self.command()?.args(arguments))
    }

    /// `sailctl` with this cluster's context and variables.
    ///
    /// # Errors
    /// It was not built.
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new(binary("sailctl")?);
        command.arg("--context").arg(self.directory().join("context.json"));
        command.envs(self.environment().iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// The directory of a live volume on its node.
    ///
    /// # Errors
    /// It is on none.
    pub fn path(&self, volume: &str) -> Result<std::path::PathBuf> {
        let described = self.json(&["describe", volume])?;
        Ok(described["path"].as_str().with_context(|| format!("{volume} is on no node"))?.into())
    }
}

/// Runs any command that has to fail, and give its reason.
///
/// # Errors
/// It succeeds, was killed, or says anything on standard output.
pub fn refusal(command: &mut Command) -> Result<Refusal> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code().with_context(|| format!("{command:?}: {}: {words}", output.status))?;
    ensure!(code != 0, "{command:?} succeeded: {}", String::from_utf8_lossy(&output.stdout));
    ensure!(
        output.stdout.is_empty(),
        "{command:?} failed and said {:?}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(Refusal { code, words })
}

fn fed(command: &mut Command, content: &[u8]) -> Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("it was asked for")?;
    // One that fails early does not read to the end; its words say why.
    drop(stdin.write_all(content));
    drop(stdin);
    Ok(child.wait_with_output()?)
}
