//! A directory of this machine, walked by a thread of its own and handed over a bounded queue.

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use crate::error::{Error, Result};

/// How far the walk runs ahead of the copy.
const AHEAD: usize = 1_000;

/// Something that the walk found.
#[derive(Debug)]
pub(super) struct Found {
    /// On this machine.
    pub(super) path: PathBuf,
    /// Below the place where the walk began; empty for that place.
    pub(super) below: PathBuf,
    /// Its own, not that of a link's target.
    pub(super) metadata: Metadata,
}

/// Walks a place, a directory before what is in it, sorted by name.
pub(super) fn walk(root: PathBuf) -> mpsc::Receiver<Result<Found>> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    std::thread::spawn(move || {
        if let Err(error) = descend(&root, Path::new(""), &sender) {
            // A receiver that is gone does not want to know.
            drop(sender.blocking_send(Err(error)));
        }
    });
    receiver
}

fn descend(path: &Path, below: &Path, sender: &mpsc::Sender<Result<Found>>) -> Result<()> {
    let metadata = fs::symlink_metadata(path).map_err(|error| Error::path("read", path, error))?;
    let directory = metadata.is_dir();
    let found = Found { path: path.to_owned(), below: below.to_owned(), metadata };
    if sender.blocking_send(Ok(found)).is_err() || !directory {
        return Ok(());
    }
    let unread = |error| Error::path("list", path, error);
    let mut names = fs::read_dir(path)
        .map_err(unread)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(unread)?;
    names.sort();
    for name in names {
        if sender.is_closed() {
            return Ok(());
        }
        descend(&path.join(&name), &below.join(&name), sender)?;
    }
    Ok(())
}
