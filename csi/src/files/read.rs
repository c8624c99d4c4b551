//! Read: a file's bytes, in order, under one etag.
//!
//! Up to a chunk, etag and bytes come from one read. Up to 8 MiB the content is hashed first and streamed after; if
//! the file is written to meanwhile, the hash is taken again, and another one ends the stream with ABORTED. Beyond,
//! the etag is weak and the bytes are those that are there when their turn comes.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, fstat};
use proto::convert;
use proto::files::{Entry, ReadRequest, ReadResponse};
use tonic::Status;
use types::VolumePath;

use super::beneath::{Last, Root};
use super::entry::{entry, size};
use super::error::Error;
use super::etag::{self, Hashing, STRONG_BYTES};
use super::{CHUNK_BYTES, FilesService, LiveVolume, LiveVolumes, Place};

/// An open file, and what is still to be sent of it.
#[derive(Debug)]
struct Reading {
    file: Arc<File>,
    path: VolumePath,
    at: u64,
    end: u64,
    /// Where the etag is the content's: what the file's status was when it was taken, and over how many bytes.
    promised: Option<Promise>,
}

#[derive(Debug)]
struct Promise {
    etag: String,
    length: u64,
    seen: String,
}

impl<V: LiveVolumes> FilesService<V> {
    pub(super) async fn read_file(
        self,
        request: ReadRequest,
    ) -> Result<impl Stream<Item = Result<ReadResponse, Status>> + Send + 'static, Status> {
        let path = convert::path("path", &request.path)?;
        let volume = match self.place(&request.volume_id).await? {
            Place::Live(volume) => volume,
            Place::Cold(cold) => return Ok(cold.read(&path, request).await?.boxed()),
        };
        let known = request.if_none_match.clone();
        let (offset, length) = (request.offset, request.length.unwrap_or(u64::MAX));
        let (mut entry, mut reading, data) =
            self.run(&volume, move |root| begin(root, path, offset, length)).await?;

        if reading.promised.is_none() && !known.is_empty() && !etag::is_weak(&known) {
            // The caller asks about a hash that nobody has taken yet.
            let (file, path) = (Arc::clone(&reading.file), reading.path.clone());
            entry.etag = self.hash(&volume, file, u64::MAX, path).await?;
        }
        if !known.is_empty() && entry.etag == known {
            let answer = ReadResponse { entry: Some(entry), data: Bytes::new(), not_modified: true };
            return Ok(stream::iter([Ok(answer)]).boxed());
        }

        let data = match data {
            Some(data) => data,
            None => {
                let data;
                (reading, data) = self.run(&volume, move |_| reading.next()).await?;
                data
            }
        };
        let first = ReadResponse { entry: Some(entry), data, not_modified: false };
        let rest = stream::try_unfold((self, volume, reading), |(service, volume, reading)| async move {
            if reading.at >= reading.end {
                return Ok(None);
            }
            let (reading, data) = service.run(&volume, move |_| reading.next()).await?;
            let message = ReadResponse { entry: None, data, not_modified: false };
            Ok((!message.data.is_empty()).then_some((message, (service, volume, reading))))
        });
        Ok(stream::iter([Ok(first)]).chain(rest.into_stream()).boxed())
    }

    async fn hash(
        &self,
        volume: &Arc<LiveVolume>,
        file: Arc<File>,
        length: u64,
        path: VolumePath,
    ) -> Result<String, Status> {
        let mut hashing = self
            .run(volume, move |_| {
                let file = file.try_clone().map_err(|error| etag::io("hash", &path, &error))?;
                Hashing::new(file, length, path).step()
            })
            .await?;
        loop {
            if let Some(digest) = hashing.digest() {
                return Ok(digest);
            }
            hashing = self.run(volume, move |_| hashing.step()).await?;
        }
    }
}

/// Opens the file and takes its etag; a small one's bytes come along.
fn begin(
    root: &Root,
    path: VolumePath,
    offset: u64,
    length: u64,
) -> Result<(Entry, Reading, Option<Bytes>), Error> {
    let found = root.find(&path, Last::Follow)?;
    let file = Arc::new(found.open_file(OFlag::O_RDONLY, &path)?);
    let stat = fstat(&*file).map_err(Error::os("stat", &path))?;
    let mut entry = entry(&path, &stat);
    let at = offset.min(size(&stat));
    let end = offset.saturating_add(length).min(size(&stat));
    let mut reading = Reading { file, path, at, end, promised: None };
    if size(&stat) > STRONG_BYTES {
        return Ok((entry, reading, None));
    }
    if let Ok(all) = usize::try_from(size(&stat))
        && all <= CHUNK_BYTES
    {
        let mut content = vec![0; all];
        let read = etag::read_at(&reading.file, &mut content, 0, &reading.path)?;
        content.truncate(read);
        entry.etag = blake3::hash(&content).to_hex().to_string();
        entry.size = read as u64;
        let within = |position: u64| usize::try_from(position).unwrap_or(read).min(read);
        let data = Bytes::from(content).slice(within(at)..within(end).max(within(at)));
        reading.at = reading.end;
        return Ok((entry, reading, Some(data)));
    }
    let promise = promise(&reading, &stat)?;
    entry.etag.clone_from(&promise.etag);
    reading.promised = Some(promise);
    Ok((entry, reading, None))
}

fn promise(reading: &Reading, stat: &FileStat) -> Result<Promise, Error> {
    let file = reading.file.try_clone().map_err(|error| etag::io("hash", &reading.path, &error))?;
    // At most STRONG_BYTES, which is less than a step.
    let hashing = Hashing::new(file, size(stat), reading.path.clone()).step()?;
    let etag = hashing.digest().ok_or_else(|| Error::Torn { path: reading.path.clone() })?;
    Ok(Promise { etag, length: size(stat), seen: etag::weak(stat) })
}

impl Reading {
    /// Reads the next chunk and sees to it that it belongs to the etag that was promised.
    fn next(mut self) -> Result<(Self, Bytes), Error> {
        let want = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let mut data = vec![0; want];
        let read = etag::read_at(&self.file, &mut data, self.at, &self.path)?;
        data.truncate(read);
        self.at += read as u64;
        if let Some(promise) = &self.promised {
            // The order matters: what was written before the bytes were read shows in a status taken after.
            let stat = fstat(&*self.file).map_err(Error::os("stat", &self.path))?;
            if etag::weak(&stat) != promise.seen {
                let file = self.file.try_clone().map_err(|error| etag::io("hash", &self.path, &error))?;
                let again = Hashing::new(file, promise.length, self.path.clone()).step()?.digest();
                if again.as_ref() != Some(&promise.etag) {
                    return Err(Error::Torn { path: self.path });
                }
                let promise =
                    Promise { seen: etag::weak(&stat), length: promise.length, etag: promise.etag.clone() };
                self.promised = Some(promise);
            }
        }
        Ok((self, data.into()))
    }
}
