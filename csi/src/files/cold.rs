//! The same calls on what a volume was at a point, read from the store: nothing is restored, and nothing can be written.
//!
//! Only the nodes on a path and the frames that are needed are fetched, and every byte is proved. Etags are the content's
//! hash whatever its size: it stands in the tree. Links are followed as the kernel follows them beneath a volume's root.

use std::collections::VecDeque;

use bytes::Bytes;
use cas::tree::{Difference, Found, FoundKind};
use cas::{Reader, VersionRef};
use futures::{Stream, StreamExt as _, stream};
use proto::convert;
use proto::files::{DiffRequest, DiffResponse, Entry, FileType, ReadRequest, ReadResponse, difference};
use tonic::Status;
use types::{Timestamp, VolumePath};

use super::error::Error;
use super::list::weight;
use super::{CHUNK_BYTES, FilesService, LiveVolumes};

/// Names fetched from a directory at once.
const BATCH: usize = 256;

/// What a difference list gives that asks for no limit, and the most it gives.
const DEFAULT_DIFFERENCES: usize = 1_000;
const MAX_DIFFERENCES: usize = 10_000;

/// No message of a difference list holds more paths than this: with the longest ones it stays below the limit.
const DIFFERENCES_IN_A_MESSAGE: usize = 500;

/// What a volume was at a point.
#[derive(Debug, Clone)]
pub struct ColdVolume {
    /// Reads from the store.
    pub reader: Reader,
    /// The version.
    pub tree: VersionRef,
}

fn status(error: cas::TreeError) -> Status {
    proto::status::status(&error)
}

impl ColdVolume {
    pub(super) async fn stat(&self, path: &VolumePath) -> Result<Entry, Status> {
        let (at, found) = self.find(path, false).await?;
        drop(at);
        Ok(describe(path, &found))
    }

    /// Finds what a path stands for, and where that is.
    async fn find(&self, path: &VolumePath, last: bool) -> Result<(VolumePath, Found), Status> {
        let at = self.reader.resolve(&self.tree, path, last).await.map_err(status)?;
        let found = self.reader.stat(&self.tree, &at).await.map_err(status)?;
        let missing = || status(cas::TreeError::NotFound { path: path.clone(), version: self.tree.version });
        Ok((at, found.ok_or_else(missing)?))
    }

    /// Reads a file: its entry first, then its bytes in pieces.
    pub(super) async fn read(
        self,
        path: &VolumePath,
        request: ReadRequest,
    ) -> Result<impl Stream<Item = Result<ReadResponse, Status>> + Send + 'static, Status> {
        let (at, found) = self.find(path, true).await?;
        let entry = describe(path, &found);
        let FoundKind::File { size, .. } = found.kind else {
            return Err(Error::NotAFile { path: path.clone(), found: word(&found.kind) }.into());
        };
        if !request.if_none_match.is_empty() && request.if_none_match == entry.etag {
            let same = ReadResponse { entry: Some(entry), data: Bytes::new(), not_modified: true };
            return Ok(stream::iter([Ok(same)]).boxed());
        }
        let from = request.offset.min(size);
        let end = request.offset.saturating_add(request.length.unwrap_or(u64::MAX)).min(size).max(from);
        let pieces =
            stream::try_unfold((self, at, from, Some(entry)), move |(cold, path, at, entry)| async move {
                if entry.is_none() && at >= end {
                    return Ok(None);
                }
                let to = end.min(at + CHUNK_BYTES as u64);
                let data = cold.reader.read(&cold.tree, &path, at..to).await.map_err(status)?;
                let message = ReadResponse { entry, data, not_modified: false };
                Ok(Some((message, (cold, path, to, None))))
            });
        Ok(pieces.boxed())
    }

    /// Lists a directory in the order of names, a directory before what is in it, from behind the cursor's names on. Tells
    /// if there is more.
    pub(super) async fn list(
        &self,
        path: &VolumePath,
        after: &[Vec<u8>],
        recursive: bool,
        limit: usize,
        page_bytes: usize,
    ) -> Result<(Vec<Entry>, bool), Status> {
        let top = self.reader.resolve(&self.tree, path, true).await.map_err(status)?;
        let mut levels = vec![Level::new(top.clone(), path.clone())];
        for (number, name) in after.iter().enumerate() {
            let Some(level) = levels.last_mut() else { break };
            level.last = Some(name.clone());
            let (place, shown) = (join(&level.place, name)?, join(&level.shown, name)?);
            let last = number + 1 == after.len();
            // What is in the entry that the cursor names comes next, and so does what is behind it on the way up.
            let found = self.reader.stat(&self.tree, &place).await.map_err(status)?;
            let directory = found.is_some_and(|found| matches!(found.kind, FoundKind::Directory { .. }));
            if directory && (recursive || !last) {
                levels.push(Level::new(place, shown));
            }
        }
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while let Some(level) = levels.last_mut() {
            let Some(found) = level.waiting.pop_front() else {
                if level.done {
                    levels.pop();
                    continue;
                }
                let after = level.last.as_deref();
                let batch = self.reader.list(&self.tree, &level.place, after, BATCH).await.map_err(status)?;
                level.done = batch.len() < BATCH;
                level.last = batch.last().map(|found| found.name.clone()).or(level.last.take());
                level.waiting = batch.into();
                continue;
            };
            if entries.len() == limit || bytes >= page_bytes {
                return Ok((entries, true));
            }
            let (place, shown) = (join(&level.place, &found.name)?, join(&level.shown, &found.name)?);
            let entry = describe(&shown, &found);
            bytes += weight(&entry);
            entries.push(entry);
            if recursive && matches!(found.kind, FoundKind::Directory { .. }) {
                levels.push(Level::new(place, shown));
            }
        }
        Ok((entries, false))
    }
}

/// A directory that is being listed.
#[derive(Debug)]
struct Level {
    /// Where it is in the version.
    place: VolumePath,
    /// How the client calls it.
    shown: VolumePath,
    last: Option<Vec<u8>>,
    waiting: VecDeque<Found>,
    done: bool,
}

impl Level {
    fn new(place: VolumePath, shown: VolumePath) -> Self {
        Self { place, shown, last: None, waiting: VecDeque::new(), done: false }
    }
}

fn join(path: &VolumePath, name: &[u8]) -> Result<VolumePath, Status> {
    path.join(name)
        .map_err(|error| Status::internal(format!("a path in the version cannot be said: {error}")))
}

fn word(kind: &FoundKind) -> &'static str {
    match kind {
        FoundKind::File { .. } => "file",
        FoundKind::Directory { .. } => "directory",
        FoundKind::Symlink { .. } => "symlink",
        FoundKind::Fifo => "fifo",
        FoundKind::Socket => "socket",
        FoundKind::Device { .. } => "device",
    }
}

fn describe(path: &VolumePath, found: &Found) -> Entry {
    let (mut size, mut etag, mut target) = (0, String::new(), Bytes::new());
    let kind = match &found.kind {
        FoundKind::File { size: bytes, content } => {
            (size, etag) = (*bytes, content.to_string());
            FileType::File
        }
        FoundKind::Directory { .. } => FileType::Directory,
        FoundKind::Symlink { target: to } => {
            size = to.len() as u64;
            target = to.clone().into();
            FileType::Symlink
        }
        FoundKind::Fifo => FileType::Fifo,
        FoundKind::Socket => FileType::Socket,
        FoundKind::Device { block: true, .. } => FileType::BlockDevice,
        FoundKind::Device { block: false, .. } => FileType::CharDevice,
    };
    let meta = &found.meta;
    let modified =
        meta.mtime_seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(meta.mtime_nanos));
    Entry {
        path: path.as_bytes().to_vec().into(),
        r#type: kind.into(),
        size,
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        modified: Some(convert::timestamp(Timestamp(modified))),
        etag,
        target,
    }
}

impl<V: LiveVolumes> FilesService<V> {
    pub(super) async fn diff_points(&self, request: DiffRequest) -> Result<Vec<DiffResponse>, Status> {
        let asked = usize::try_from(request.limit).unwrap_or(usize::MAX);
        if asked > MAX_DIFFERENCES {
            return Err(Error::TooMany { what: "differences", asked, limit: MAX_DIFFERENCES }.into());
        }
        let limit = if asked == 0 { DEFAULT_DIFFERENCES } else { asked };
        let earlier = self.durable("earlier", &request.earlier).await?;
        let later = self.durable("later", &request.later).await?;
        let reader = &earlier.reader;
        let mut found = reader.diff(&earlier.tree, &later.tree, limit + 1).await.map_err(status)?;
        let cut = found.len() > limit;
        found.truncate(limit);
        let mut messages: Vec<DiffResponse> = found
            .chunks(DIFFERENCES_IN_A_MESSAGE)
            .map(|part| DiffResponse { differences: part.iter().map(tell).collect(), cut: false })
            .collect();
        if messages.is_empty() {
            messages.push(DiffResponse::default());
        }
        if let Some(last) = messages.last_mut() {
            last.cut = cut;
        }
        Ok(messages)
    }
}

fn tell(difference: &Difference) -> proto::files::Difference {
    use difference::Kind;
    let (path, kind) = match difference {
        Difference::Added(path) => (path, Kind::Added),
        Difference::Removed(path) => (path, Kind::Removed),
        Difference::Modified(path) => (path, Kind::Modified),
        Difference::Metadata(path) => (path, Kind::Metadata),
    };
    proto::files::Difference { path: path.as_bytes().to_vec().into(), kind: kind.into() }
}
