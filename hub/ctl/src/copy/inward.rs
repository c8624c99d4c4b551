//! From this machine into a volume.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use indicatif::ProgressBar;
use proto::files::change::Change as Kind;
use proto::files::{
    BatchRequest, Change, Delete, FileType, MakeDirectory, MakeSymlink, SetMode, WriteHeader,
};
use types::VolumePath;

use super::local::{Found, walk};
use super::{CHANGES_AT_ONCE, FILES_AT_ONCE};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files::Files;
use crate::output::Output;
use crate::target::FileTarget;
use crate::view::Copied;

/// Copies places of this machine to a place in a volume.
pub(super) async fn copy(
    context: &Context,
    output: &Output,
    sources: &[OsString],
    target: &FileTarget,
    into: bool,
    copied: &mut Copied,
) -> Result<()> {
    crate::files::refuse_past(target)?;
    let files = Files::open(context, &target.volume).await?;
    let there = files.stat(&target.path).await?;
    let directory = there.as_ref().is_some_and(|entry| entry.r#type() == FileType::Directory);
    if !directory && (sources.len() > 1 || into) {
        return Err(Error::state(
            format!("{target} is not a directory"),
            "name a directory of the volume, or copy to it without a slash at the end",
        ));
    }
    for source in sources {
        let contents = source.as_bytes().ends_with(b"/.") || source == ".";
        let path = PathBuf::from(source);
        let root = match (directory && !contents, path.file_name()) {
            (false, _) => target.path.clone(),
            (true, Some(name)) => join(&target.path, Path::new(name))?,
            (true, None) => {
                return Err(Error::usage(
                    format!("{} has no name of its own", path.display()),
                    "write DIR/. for what is in a directory",
                ));
            }
        };
        let copy = Copy { files: &files, source: path, root, bar: ProgressBar::hidden() };
        copy.run(output, copied).await?;
    }
    Ok(())
}

struct Copy<'a> {
    files: &'a Files,
    source: PathBuf,
    /// Where the source itself comes to lie.
    root: VolumePath,
    bar: ProgressBar,
}

impl Copy<'_> {
    async fn run(mut self, output: &Output, copied: &mut Copied) -> Result<()> {
        let bytes = self.directories(copied).await?;
        self.bar = output.progress(&self.source.display().to_string(), bytes);
        self.contents(copied).await?;
        self.bar.finish_and_clear();
        Ok(())
    }

    /// Makes the directories and counts the bytes that will follow.
    async fn directories(&self, copied: &mut Copied) -> Result<u64> {
        let mut bytes = 0;
        let mut batch = Vec::new();
        let mut found = walk(self.source.clone());
        while let Some(found) = found.recv().await {
            let found = found?;
            if found.metadata.is_file() {
                bytes += found.metadata.len();
            }
            if !found.metadata.is_dir() {
                continue;
            }
            copied.directories += 1;
            let path = join(&self.root, &found.below)?;
            if !path.is_root() {
                batch.push((path, found.metadata.permissions().mode() & 0o7777));
            }
            if batch.len() == CHANGES_AT_ONCE {
                self.make(std::mem::take(&mut batch)).await?;
            }
        }
        self.make(batch).await?;
        Ok(bytes)
    }

    /// Makes directories; one that was there before gets the mode of its source.
    async fn make(&self, directories: Vec<(VolumePath, u32)>) -> Result<()> {
        let change = |(path, mode): &(VolumePath, u32)| {
            let path = path.as_bytes().to_vec().into();
            Kind::MakeDirectory(MakeDirectory { path, parents: false, mode: Some(*mode) })
        };
        let made = self.batch(directories.iter().map(change).collect()).await?;
        let old = directories.iter().zip(made).filter(|(_, made)| !made);
        let modes = old.map(|((path, mode), _)| {
            Kind::SetMode(SetMode { path: path.as_bytes().to_vec().into(), mode: *mode })
        });
        self.batch(modes.collect()).await.map(|_| ())
    }

    async fn contents(&self, copied: &mut Copied) -> Result<()> {
        let mut links = Vec::new();
        let mut running = FuturesUnordered::new();
        let mut found = walk(self.source.clone());
        loop {
            tokio::select! {
                next = found.recv(), if running.len() < FILES_AT_ONCE => {
                    let Some(next) = next else { break };
                    let next = next?;
                    let kind = next.metadata.file_type();
                    if kind.is_file() {
                        copied.files += 1;
                        running.push(self.file(next));
                    } else if kind.is_symlink() {
                        copied.symlinks += 1;
                        links.push(next);
                    } else if kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device() {
                        copied.skipped += 1;
                    }
                }
                Some(done) = running.next() => copied.bytes += done?,
            }
        }
        while let Some(done) = running.next().await {
            copied.bytes += done?;
        }
        for some in links.chunks(CHANGES_AT_ONCE) {
            self.links(some).await?;
        }
        Ok(())
    }

    async fn file(&self, found: Found) -> Result<u64> {
        let failed = |error| Error::path("read", &found.path, error);
        let to = join(&self.root, &found.below)?;
        let file = tokio::fs::File::open(&found.path).await.map_err(failed)?;
        let metadata = &found.metadata;
        let header = WriteHeader {
            volume_id: self.files.volume.clone(),
            path: to.as_bytes().to_vec().into(),
            mode: Some(metadata.permissions().mode() & 0o7777),
            modified: Some(prost_types::Timestamp {
                seconds: metadata.mtime(),
                nanos: i32::try_from(metadata.mtime_nsec()).expect("less than 10^9"),
            }),
            ..Default::default()
        };
        let answer = self.files.write(header, file, &found.path.display().to_string()).await?;
        let entry = answer.entry.unwrap_or_default();
        // A file that was there keeps its own mode on the server; a copy has that of its source.
        let mode = metadata.permissions().mode() & 0o7777;
        if !answer.created && entry.mode != mode {
            self.batch(vec![Kind::SetMode(SetMode { path: to.as_bytes().to_vec().into(), mode })]).await?;
        }
        self.bar.inc(entry.size);
        Ok(entry.size)
    }

    async fn links(&self, links: &[Found]) -> Result<()> {
        let mut changes = Vec::new();
        for link in links {
            let path = join(&self.root, &link.below)?;
            let target =
                std::fs::read_link(&link.path).map_err(|error| Error::path("read", &link.path, error))?;
            let old = self.files.stat(&path).await?;
            if let Some(old) = old {
                if old.r#type() == FileType::Symlink && old.target == target.as_os_str().as_bytes() {
                    continue;
                }
                if old.r#type() == FileType::Directory {
                    return Err(Error::state(
                        format!("{}:{path} is a directory, and its source a symlink", self.files.volume),
                        "remove one of them, or copy to another place",
                    ));
                }
                changes
                    .push(Kind::Delete(Delete { path: path.as_bytes().to_vec().into(), recursive: false }));
            }
            changes.push(Kind::MakeSymlink(MakeSymlink {
                path: path.as_bytes().to_vec().into(),
                target: target.as_os_str().as_bytes().to_vec().into(),
            }));
        }
        self.batch(changes).await.map(|_| ())
    }

    /// Sends changes and says of each whether it changed anything.
    async fn batch(&self, changes: Vec<Kind>) -> Result<Vec<bool>> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let tried = changes.len();
        let request = BatchRequest {
            volume_id: self.files.volume.clone(),
            changes: changes.into_iter().map(|change| Change { change: Some(change) }).collect(),
        };
        let failed = |status| Error::call(format!("copy into {}", self.files.volume), status);
        let results = self.files.client().batch(request).await.map_err(failed)?.into_inner().results;
        if let Some(result) = results.iter().find(|result| !result.ok) {
            return Err(failed(tonic::Status::new(result.code.into(), result.error.clone())));
        }
        if results.len() != tried {
            return Err(failed(tonic::Status::internal("not all changes were answered")));
        }
        Ok(results.into_iter().map(|result| result.changed).collect())
    }
}

fn join(root: &VolumePath, below: &Path) -> Result<VolumePath> {
    let below = below.as_os_str().as_bytes();
    if below.is_empty() {
        return Ok(root.clone());
    }
    Ok(root.join(below).map_err(crate::target::InvalidTarget::from)?)
}
