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
    BatchRequest, BatchResponse, DiffRequest, DiffResponse, Entry, ListRequest, ListResponse, ReadRequest,
    ReadResponse, RestoreRequest, RestoreResponse, StatRequest, WriteRequest, WriteResponse,
};
use tonic::{Request, Response, Status, Streaming};
use types::{Hash, VolumeId};

mod batch;
mod beneath;
mod cold;
mod delete;
mod entry;
mod error;
mod etag;
mod list;
mod read;
mod restore;
mod spool;
mod write;
mod xattrs;

pub use beneath::Root;
pub use cold::ColdVolume;
pub use error::Error;
use restore::UnderWay;
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

    /// Finds what a volume was, in the store: also one that this node does not hold. Nothing, where there is no such volume,
    /// or it is live somewhere and no point was asked for.
    fn cold(&self, id: &VolumeId, at: At) -> impl Future<Output = Result<Option<ColdVolume>, Status>> + Send;

    /// Runs blocking work to its end on a thread that may block, also when the caller goes away.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Result<T, Status>> + Send;
}

/// Which point of a volume's timeline is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Its head, if nobody may write to it now: it sleeps, or is sealed.
    Asleep,
    /// Its durable head, whoever holds it.
    Head,
    /// An entry or version.
    Point(Hash),
}

/// Where a call is answered from.
#[derive(Debug)]
enum Place {
    /// The live tree on this node.
    Live(Arc<LiveVolume>),
    /// The store.
    Cold(ColdVolume),
}

/// The service.
#[derive(Debug)]
pub struct FilesService<V> {
    volumes: Arc<V>,
    under_way: UnderWay,
}

impl<V> Clone for FilesService<V> {
    fn clone(&self) -> Self {
        Self { volumes: Arc::clone(&self.volumes), under_way: self.under_way.clone() }
    }
}

impl<V: LiveVolumes> FilesService<V> {
    /// Serves the files of `volumes`.
    pub fn new(volumes: Arc<V>) -> Self {
        Self { volumes, under_way: UnderWay::default() }
    }

    async fn open(&self, id: &str) -> Result<Arc<LiveVolume>, Status> {
        if let Some((id, _)) = id.split_once('@') {
            let message = format!("what {id} was cannot be written to: fork it, or write to {id} itself");
            return Err(Status::failed_precondition(message));
        }
        let id = convert::required::<VolumeId>("volume_id", id)?;
        Ok(Arc::new(self.volumes.open(&id).await?))
    }

    /// Finds where a call that reads is answered from.
    async fn place(&self, text: &str) -> Result<Place, Status> {
        let (id, point) = parse("volume_id", text)?;
        if let Some(point) = point {
            return Ok(Place::Cold(self.point(&id, At::Point(point)).await?));
        }
        match self.volumes.open(&id).await {
            Ok(volume) => Ok(Place::Live(Arc::new(volume))),
            // Not here. Where it sleeps, anybody may answer; where it is live, its node has to.
            Err(not_here) => match self.volumes.cold(&id, At::Asleep).await? {
                Some(cold) => Ok(Place::Cold(cold)),
                None => Err(not_here),
            },
        }
    }

    /// What `ID@POINT` was, or the durable head of `ID`.
    async fn durable(&self, field: &'static str, text: &str) -> Result<ColdVolume, Status> {
        let (id, point) = parse(field, text)?;
        self.point(&id, point.map_or(At::Head, At::Point)).await
    }

    async fn point(&self, id: &VolumeId, at: At) -> Result<ColdVolume, Status> {
        let missing = || Status::not_found(format!("there is no volume {id}"));
        self.volumes.cold(id, at).await?.ok_or_else(missing)
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

/// Reads `ID` or `ID@POINT`.
fn parse(field: &'static str, text: &str) -> Result<(VolumeId, Option<Hash>), convert::InvalidField> {
    let Some((id, point)) = text.split_once('@') else { return Ok((convert::required(field, text)?, None)) };
    Ok((convert::required(field, id)?, Some(convert::required(field, point)?)))
}

/// What a call that answers with several messages gives back.
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl<V: LiveVolumes> Files for FilesService<V> {
    type ReadStream = Messages<ReadResponse>;
    type ListStream = Messages<ListResponse>;
    type DiffStream = Messages<DiffResponse>;

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

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<Self::DiffStream>, Status> {
        let messages = self.diff_points(request.into_inner()).await?;
        Ok(Response::new(futures::stream::iter(messages.into_iter().map(Ok)).boxed()))
    }

    async fn restore(&self, request: Request<RestoreRequest>) -> Result<Response<RestoreResponse>, Status> {
        Ok(Response::new(self.restore_part(request.into_inner()).await?))
    }

    async fn batch(&self, request: Request<BatchRequest>) -> Result<Response<BatchResponse>, Status> {
        Ok(Response::new(self.batch_changes(request.into_inner()).await?))
    }
}
