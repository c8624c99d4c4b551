//! A btrfs on which a pool's backing file lies, so that it can be copied in one instant: a power failure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::require;

/// Size of the outer filesystem's own backing file (sparse).
const OUTER_BYTES: u64 = 24 << 30;

/// A mounted btrfs that goes away with the value.
#[derive(Debug)]
pub struct Outer {
    root: tempfile::TempDir,
}

/// A mounted clone of a pool.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
}

impl Outer {
    /// Makes and mounts one; nothing where this machine cannot (see [`require`]).
    ///
    /// # Errors
    /// A step of making it failed.
    pub fn mount(name: &str) -> Result<Option<Self>> {
        if !require::btrfs()? {
            return Ok(None);
        }
        let root = tempfile::Builder::new().prefix(&format!("opensail-{name}-")).tempdir()?;
        let image = root.path().join("outer.img");
        fs::File::create(&image)?.set_len(OUTER_BYTES)?;
        run(Command::new("mkfs.btrfs").arg("-q").arg(&image))?;
        fs::create_dir(root.path().join("outer"))?;
        fs::create_dir(root.path().join("beside"))?;
        run(Command::new("mount").args(["-o", "loop,noatime"]).arg(&image).arg(root.path().join("outer")))?;
        Ok(Some(Self { root }))
    }

    /// Where the outer filesystem is mounted.
    pub fn path(&self) -> PathBuf {
        self.root.path().join("outer")
    }

    /// A directory that is not on it.
    pub fn beside(&self) -> PathBuf {
        self.root.path().join("beside")
    }

    /// Copies a file in one instant: what was written to it up to now, and nothing after.
    ///
    /// # Errors
    /// `cp` failed.
    pub fn clone_file(&self, file: &Path, name: &str) -> Result<PathBuf> {
        let copy = self.path().join(name);
        run(Command::new("cp").arg("--reflink=always").arg(file).arg(&copy))?;
        Ok(copy)
    }

    /// Mounts a clone of a pool beside the original. Its log is replayed, as after any power failure.
    ///
    /// # Errors
    /// It does not mount.
    pub fn mount_clone(&self, image: &Path) -> Result<Mounted> {
        let path = image.with_extension("mnt");
        fs::create_dir_all(&path)?;
        run(Command::new("mount").args(["-o", "loop,noatime"]).arg(image).arg(&path))?;
        Ok(Mounted { path })
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        unmount(&self.path());
    }
}

impl Mounted {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

fn unmount(path: &Path) {
    if let Err(error) = run(Command::new("umount").arg(path)) {
        eprintln!("{error:#}");
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
