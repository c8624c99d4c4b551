//! What a path stands for, as the wire says it; and Stat.

use bytes::Bytes;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{FileStat, SFlag};
use proto::convert;
use proto::files::{Entry, FileType, StatRequest};
use std::os::unix::ffi::OsStringExt as _;
use tonic::Status;
use types::{Timestamp, VolumePath};

use super::beneath::{Found, Last, kind};
use super::error::Error;
use super::etag::{self, Hashing};
use super::{FilesService, LiveVolumes, Place};

impl<V: LiveVolumes> FilesService<V> {
    pub(super) async fn stat_entry(&self, request: StatRequest) -> Result<Entry, Status> {
        let path = convert::path("path", &request.path)?;
        let volume = match self.place(&request.volume_id).await? {
            Place::Live(volume) => volume,
            Place::Cold(cold) => return cold.stat(&path).await,
        };
        let with_etag = request.with_etag;
        let (mut entry, mut hashing) = self
            .run(&volume, move |root| {
                let found = root.find(&path, Last::Keep)?;
                let entry = describe(&path, &found)?;
                if !with_etag || found.kind() != SFlag::S_IFREG {
                    return Ok((entry, None));
                }
                let file = found.open_file(OFlag::O_RDONLY, &path)?;
                Ok((entry, Some(Hashing::new(file, u64::MAX, path))))
            })
            .await?;
        while let Some(mut rest) = hashing {
            rest = self.run(&volume, move |_| rest.step()).await?;
            hashing = match rest.digest() {
                Some(digest) => {
                    entry.etag = digest;
                    None
                }
                None => Some(rest),
            };
        }
        Ok(entry)
    }
}

/// Describes what was found at `path`, with a symlink's target.
pub(super) fn describe(path: &VolumePath, found: &Found) -> Result<Entry, Error> {
    let mut entry = entry(path, &found.stat);
    if found.kind() == SFlag::S_IFLNK {
        // An empty path reads the link that the descriptor pins.
        entry.target =
            readlinkat(&found.pin, "").map_err(Error::os("read the symlink", path))?.into_vec().into();
    }
    Ok(entry)
}

/// Describes a path by its status alone. The etag is there where it costs nothing.
pub(super) fn entry(path: &VolumePath, stat: &FileStat) -> Entry {
    let (seconds, nanos) = (stat.st_mtime, stat.st_mtime_nsec);
    let modified = Timestamp(seconds.saturating_mul(1_000_000_000).saturating_add(nanos));
    Entry {
        path: path.as_bytes().to_vec().into(),
        r#type: file_type(stat).into(),
        size: size(stat),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: Some(convert::timestamp(modified)),
        etag: etag::free(stat).unwrap_or_default(),
        target: Bytes::new(),
    }
}

/// Returns a file's size.
pub(super) fn size(stat: &FileStat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn file_type(stat: &FileStat) -> FileType {
    match kind(stat) {
        SFlag::S_IFREG => FileType::File,
        SFlag::S_IFDIR => FileType::Directory,
        SFlag::S_IFLNK => FileType::Symlink,
        SFlag::S_IFIFO => FileType::Fifo,
        SFlag::S_IFSOCK => FileType::Socket,
        SFlag::S_IFCHR => FileType::CharDevice,
        SFlag::S_IFBLK => FileType::BlockDevice,
        _ => FileType::Unspecified,
    }
}
