//! The files of a live volume over gRPC (`opensail.files.v1.Files`), with no pod running.
//!
//! Invariants:
//! - Nothing outside the volume is opened: every path goes to the kernel once, to `openat2` beneath the volume's root
//!   ([`beneath`]), and only regular files and directories are ever opened for their contents.
//! - A write appears whole or not at all: bytes gather in a file without a name (`O_TMPFILE`), which the kernel drops
//!   when its writer goes away; only the finished file gets a name ([`spool`]).
//! - No thread of the runtime blocks: all file work goes through [`LiveVolumes::run`], at most a chunk at a time, so a
//!   slow client holds a descriptor and no thread.

use std::fmt;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use proto::convert;
use proto::files::files_server::Files;
use proto::files::{
    BatchRequest, BatchResponse, Entry, ListRequest, ListResponse, ReadRequest, ReadResponse, StatRequest,
    WriteRequest, WriteResponse,
};
use tonic::{Request, Response, Status, Streaming};
use types::VolumeId;

mod batch;
mod beneath;
mod delete;
mod entry;
mod error;
mod etag;
mod list;
mod read;
mod spool;
mod write;
mod xattrs;

pub use beneath::Root;
pub use error::Error;
pub use spool::is_leftover;

/// Contents travel in pieces of at most this.
pub const CHUNK_BYTES: usize = 1 << 20;

/// A client that sends nothing for this long in the middle of a write has gone.
const IDLE: Duration = Duration::from_secs(60);

/// An open volume, and what keeps it from being taken away meanwhile.
pub struct LiveVolume {
    root: Root,
    _guard: Box<dyn Send + Sync>,
}

impl LiveVolume {
    /// Makes one of the volume's root directory and a guard that is held until the last call on it ends.
    pub fn new(root: OwnedFd, guard: impl Send + Sync + 'static) -> Self {
        Self { root: Root::new(root), _guard: Box::new(guard) }
    }
}

impl fmt::Debug for LiveVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveVolume").field("root", &self.root).finish_non_exhaustive()
    }
}

/// What the service needs of the node: its volumes by id, and the door through which it may block.
pub trait LiveVolumes: Send + Sync + 'static {
    /// Opens the volume that is live here under `id`. The status says what to do where it is not.
    fn open(&self, id: &VolumeId) -> impl Future<Output = Result<LiveVolume, Status>> + Send;

    /// Runs blocking work to its end on a thread that may block, also when the caller goes away.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Result<T, Status>> + Send;
}

/// The service.
#[derive(Debug)]
pub struct FilesService<V> {
    volumes: Arc<V>,
}

impl<V> Clone for FilesService<V> {
    fn clone(&self) -> Self {
        Self { volumes: Arc::clone(&self.volumes) }
    }
}

impl<V: LiveVolumes> FilesService<V> {
    /// Serves the files of `volumes`.
    pub fn new(volumes: Arc<V>) -> Self {
        Self { volumes }
    }

    async fn open(&self, id: &str) -> Result<Arc<LiveVolume>, Status> {
        let id = convert::required::<VolumeId>("volume_id", id)?;
        Ok(Arc::new(self.volumes.open(&id).await?))
    }

    /// Runs `work` on the volume's root; the guard stays with the work, not with the caller.
    async fn run<T: Send + 'static>(
        &self,
        volume: &Arc<LiveVolume>,
        work: impl FnOnce(&Root) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Status> {
        let volume = Arc::clone(volume);
        Ok(self.volumes.run(move || work(&volume.root)).await??)
    }
}

/// What a call that answers with several messages gives back.
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl<V: LiveVolumes> Files for FilesService<V> {
    type ReadStream = Messages<ReadResponse>;
    type ListStream = Messages<ListResponse>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let messages = self.clone().read_file(request.into_inner()).await?;
        Ok(Response::new(messages.boxed()))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        Ok(Response::new(self.write_file(request.into_inner()).await?))
    }

    async fn stat(&self, request: Request<StatRequest>) -> Result<Response<Entry>, Status> {
        Ok(Response::new(self.stat_entry(request.into_inner()).await?))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let pages = self.list_directory(request.into_inner()).await?;
        Ok(Response::new(futures::stream::iter(pages.into_iter().map(Ok)).boxed()))
    }

    async fn batch(&self, request: Request<BatchRequest>) -> Result<Response<BatchResponse>, Status> {
        Ok(Response::new(self.batch_changes(request.into_inner()).await?))
    }
}
