//! From a volume to this machine.

use std::ffi::OsStr;
use std::fs::{self, FileTimes, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::ProgressBar;
use nix::sys::stat::UtimensatFlags;
use nix::sys::time::TimeSpec;
use proto::files::{Entry, FileType, ReadRequest};
use tokio::io::AsyncWriteExt as _;
use types::VolumePath;

use super::FILES_AT_ONCE;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files::Files;
use crate::output::Output;
use crate::target::FileTarget;
use crate::view::Copied;

/// Copies a place of a volume to a place on this machine.
pub(super) async fn copy(
    context: &Context,
    output: &Output,
    target: &FileTarget,
    contents: bool,
    destination: &Path,
    copied: &mut Copied,
) -> Result<()> {
    let files = Files::open_for_reading(context, target).await?;
    let Some(top) = files.stat(&target.path).await? else {
        return Err(Error::call(format!("copy {target}"), tonic::Status::not_found("there is nothing")));
    };
    let name = target.path.split_last().map(|(_, name)| name.to_owned());
    let root = match name {
        Some(name) if destination.is_dir() && !contents => destination.join(OsStr::from_bytes(&name)),
        _ => destination.to_owned(),
    };
    if top.r#type() != FileType::Directory {
        let root = if root.is_dir() {
            return Err(Error::state(
                format!("{} is a directory", root.display()),
                "remove it, or copy to another place",
            ));
        } else {
            root
        };
        let plan = Plan::new(vec![top], &target.path, &root)?;
        return plan.run(&files, output.progress(&target.to_string(), plan.bytes), copied).await;
    }
    let mut entries = vec![top];
    files
        .list(&target.path, true, |page| {
            entries.extend(page);
            Ok(())
        })
        .await?;
    let plan = Plan::new(entries, &target.path, &root)?;
    plan.run(&files, output.progress(&target.to_string(), plan.bytes), copied).await
}

/// What was found, by what is done with it.
#[derive(Debug, Default)]
struct Plan {
    directories: Vec<(PathBuf, Entry)>,
    files: Vec<(PathBuf, Entry)>,
    links: Vec<(PathBuf, Entry)>,
    skipped: u64,
    bytes: u64,
}

impl Plan {
    /// Decides where each entry comes to lie. Entries are parents first.
    fn new(entries: Vec<Entry>, from: &VolumePath, root: &Path) -> Result<Self> {
        let mut plan = Self::default();
        for entry in entries {
            let path = below(&entry.path, from, root)?;
            match entry.r#type() {
                FileType::Directory => plan.directories.push((path, entry)),
                FileType::File => {
                    plan.bytes += entry.size;
                    plan.files.push((path, entry));
                }
                FileType::Symlink => plan.links.push((path, entry)),
                FileType::Unspecified
                | FileType::Fifo
                | FileType::Socket
                | FileType::CharDevice
                | FileType::BlockDevice => plan.skipped += 1,
            }
        }
        Ok(plan)
    }

    async fn run(&self, files: &Files, bar: ProgressBar, copied: &mut Copied) -> Result<()> {
        for (number, (path, _)) in self.directories.iter().enumerate() {
            make_directory(path, number == 0)?;
        }
        stream::iter(&self.files)
            .map(|(path, entry)| file(files, entry, path, &bar))
            .buffer_unordered(FILES_AT_ONCE)
            .try_for_each(|()| std::future::ready(Ok(())))
            .await?;
        for (path, entry) in &self.links {
            link(path, entry).map_err(|error| Error::path("make the symlink", path, error))?;
        }
        // Deepest first: a directory that nobody may write to is made so when it is full.
        for (path, entry) in self.directories.iter().rev() {
            finish_directory(path, entry).map_err(|error| Error::path("finish", path, error))?;
        }
        bar.finish_and_clear();
        copied.files += count(&self.files);
        copied.directories += count(&self.directories);
        copied.symlinks += count(&self.links);
        copied.bytes += self.bytes;
        copied.skipped += self.skipped;
        Ok(())
    }
}

fn count<T>(items: &[T]) -> u64 {
    u64::try_from(items.len()).unwrap_or(u64::MAX)
}

/// Where an entry comes to lie. A server that names something outside what was asked for is not followed.
fn below(path: &[u8], from: &VolumePath, root: &Path) -> Result<PathBuf> {
    let outside = || {
        Error::usage(
            format!("the node answered with {:?}, which is not below {from}", String::from_utf8_lossy(path)),
            "nothing was written there; report this node",
        )
    };
    let parsed = VolumePath::parse(path).map_err(|_| outside())?;
    let rest = match from.as_bytes() {
        b"" => parsed.as_bytes(),
        from => match parsed.as_bytes().strip_prefix(from) {
            Some(b"") => b"",
            Some([b'/', rest @ ..]) => rest,
            _ => return Err(outside()),
        },
    };
    // Joining nothing would add a slash, with which a file is no file.
    Ok(if rest.is_empty() { root.to_owned() } else { root.join(OsStr::from_bytes(rest)) })
}

/// Makes a directory, or takes the one that is there; a link to one counts only for the destination itself, so that
/// a link from an earlier copy leads nowhere.
fn make_directory(path: &Path, top: bool) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let metadata = if top { fs::metadata(path) } else { fs::symlink_metadata(path) };
            if metadata.is_ok_and(|metadata| metadata.is_dir()) {
                return Ok(());
            }
            Err(Error::state(
                format!("{} is there and not a directory", path.display()),
                "remove it, or copy to another place",
            ))
        }
        made => made.map_err(|error| Error::path("make the directory", path, error)),
    }
}

async fn file(files: &Files, entry: &Entry, path: &Path, bar: &ProgressBar) -> Result<()> {
    let failed = |error| Error::path("write", path, error);
    // Beside the file, so that the rename is one step; its own name may leave no room for an addition.
    let number = NEXT_PART.fetch_add(1, Ordering::Relaxed);
    let part = Part(path.with_file_name(format!(".sailctl-{}-{number}", std::process::id())));
    let mut out = tokio::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part.0)
        .await
        .map_err(failed)?;
    let request =
        ReadRequest { volume_id: files.volume.clone(), path: entry.path.clone(), ..Default::default() };
    let unread = |status| {
        Error::call(format!("read {}:{}", files.volume, String::from_utf8_lossy(&entry.path)), status)
    };
    let mut pieces = files.client().read(request).await.map_err(unread)?.into_inner();
    while let Some(piece) = pieces.message().await.map_err(unread)? {
        out.write_all(&piece.data).await.map_err(failed)?;
        bar.inc(count(&piece.data));
    }
    out.flush().await.map_err(failed)?;
    let out = out.into_std().await;
    out.set_permissions(Permissions::from_mode(entry.mode & 0o7777)).map_err(failed)?;
    out.set_times(FileTimes::new().set_modified(modified(entry))).map_err(failed)?;
    fs::rename(&part.0, path).map_err(failed)
}

static NEXT_PART: AtomicU64 = AtomicU64::new(0);

/// A file that is not finished; it goes when the copy fails.
#[derive(Debug)]
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // After the rename there is none.
        drop(fs::remove_file(&self.0));
    }
}

fn link(path: &Path, entry: &Entry) -> io::Result<()> {
    let target = OsStr::from_bytes(&entry.target);
    match fs::symlink_metadata(path) {
        Ok(old) if !old.is_dir() => fs::remove_file(path)?,
        _ => {}
    }
    std::os::unix::fs::symlink(target, path)?;
    let time = TimeSpec::from_duration(modified(entry).duration_since(UNIX_EPOCH).unwrap_or_default());
    nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

fn finish_directory(path: &Path, entry: &Entry) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(entry.mode & 0o7777))?;
    fs::File::open(path)?.set_times(FileTimes::new().set_modified(modified(entry)))
}

fn modified(entry: &Entry) -> SystemTime {
    let stamp = entry.modified.unwrap_or_default();
    let whole = Duration::from_secs(stamp.seconds.unsigned_abs());
    let nanos = Duration::from_nanos(u64::try_from(stamp.nanos).unwrap_or(0));
    if stamp.seconds >= 0 { UNIX_EPOCH + whole + nanos } else { UNIX_EPOCH - whole + nanos }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_cannot_place_a_file_outside_the_destination() {
        let from = VolumePath::parse("src").unwrap();
        let root = Path::new("/tmp/out");
        assert_eq!(below(b"src", &from, root).unwrap(), root);
        assert_eq!(below(b"src/a/b", &from, root).unwrap(), root.join("a/b"));
        assert_eq!(below(b"a", &VolumePath::ROOT, root).unwrap(), root.join("a"));
        for hostile in [&b"etc/passwd"[..], b"srcs/a", b"src/../../x", b"/src/../x", b"", b"src//etc"] {
            assert!(below(hostile, &from, root).is_err(), "{:?}", String::from_utf8_lossy(hostile));
        }
    }

    #[test]
    fn a_link_of_an_earlier_copy_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        assert!(make_directory(&link, false).is_err());
        assert!(make_directory(&link, true).is_ok());
    }

    #[test]
    fn times_before_1970_are_kept() {
        let entry = |seconds, nanos| Entry {
            modified: Some(prost_types::Timestamp { seconds, nanos }),
            ..Default::default()
        };
        let half = Duration::from_millis(500);
        assert_eq!(modified(&entry(1, 500_000_000)), UNIX_EPOCH + Duration::from_secs(1) + half);
        assert_eq!(modified(&entry(-1, 500_000_000)), UNIX_EPOCH - half);
    }
}
