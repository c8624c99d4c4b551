//! Comparing trees with tools that share no code with ours.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Compares two directories: every file's bytes, mode, owner, time to the nanosecond, link, ACL and xattr.
///
/// # Errors
/// They differ; the error says where.
pub fn same(left: &Path, right: &Path) -> Result<()> {
    compare(left, right, "-naHAXS")
}

/// Compares two directories without what a copy through the files service does not keep: owners, ACLs, xattrs, hard
/// links, and times of directories and symlinks.
///
/// # Errors
/// They differ; the error says where.
pub fn same_content(left: &Path, right: &Path) -> Result<()> {
    compare(left, right, "-nrlptDOJ")
}

fn compare(left: &Path, right: &Path, what: &str) -> Result<()> {
    let mut command = Command::new("rsync");
    command.args([what, "--checksum", "--delete", "--modify-window=-1", "--itemize-changes"]);
    command.arg(slashed(left)).arg(slashed(right));
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let differences = String::from_utf8_lossy(&output.stdout);
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {words}", output.status);
    let (left, right) = (left.display(), right.display());
    ensure!(differences.is_empty(), "{left} and {right} differ:\n{differences}");
    Ok(())
}

/// Copies a directory with everything, so that there is something to compare with later.
///
/// # Errors
/// `cp` fails.
pub fn keep(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("-a").arg("--sparse=auto").arg(from).arg(to))
}

/// Runs a command that has to succeed.
///
/// # Errors
/// It does not.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {words}", output.status);
    Ok(())
}

/// What is in a directory, to rsync.
fn slashed(path: &Path) -> std::path::PathBuf {
    path.join("")
}
