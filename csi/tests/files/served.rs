//! A served directory and short words for its calls.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use csi::files::{At, ColdVolume, FilesService, LiveVolume, LiveVolumes};
use proto::files::change::Change as Asked;
use proto::files::files_client::FilesClient;
use proto::files::files_server::FilesServer;
use proto::files::write_request::Part;
use proto::files::{
    BatchRequest, Change, ChangeResult, Entry, ListRequest, ReadRequest, StatRequest, WriteHeader,
    WriteRequest, WriteResponse,
};
use tempfile::TempDir;
use tonic::transport::{Channel, Server};
use tonic::{Code, Status};
use types::{Hash, VolumeId};

pub(crate) const VOLUME: &str = "v";

/// A live volume, and what volumes were: by id and point, `None` the head of one that sleeps.
#[derive(Debug)]
pub(crate) struct OneVolume(PathBuf, Cold);

pub(crate) type Cold = Arc<Mutex<BTreeMap<(String, Option<Hash>), ColdVolume>>>;

impl LiveVolumes for OneVolume {
    async fn open(&self, id: &VolumeId) -> Result<LiveVolume, Status> {
        if id.as_str() != VOLUME {
            return Err(Status::not_found(format!("volume {id}")));
        }
        let root: OwnedFd = std::fs::File::open(&self.0).unwrap().into();
        Ok(LiveVolume::new(root, ()))
    }

    async fn cold(&self, id: &VolumeId, at: At) -> Result<Option<ColdVolume>, Status> {
        let point = match at {
            At::Asleep | At::Head => None,
            At::Point(hash) => Some(hash),
        };
        Ok(self.1.lock().unwrap().get(&(id.to_string(), point)).cloned())
    }

    #[expect(clippy::disallowed_methods, reason = "the door of this test")]
    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
        tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))
    }
}

/// `outer/volume` is served; `outer/secret` must never be reached.
pub(crate) struct Served {
    outer: TempDir,
    pub(crate) cold: Cold,
    pub(crate) client: FilesClient<Channel>,
}

impl Served {
    pub(crate) async fn start() -> Self {
        let outer = tempfile::tempdir().unwrap();
        std::fs::create_dir(outer.path().join("volume")).unwrap();
        std::fs::create_dir(outer.path().join("secrets")).unwrap();
        std::fs::write(outer.path().join("secrets/secret"), "secret").unwrap();
        let cold = Cold::default();
        let client = serve(outer.path().join("volume"), Arc::clone(&cold)).await;
        Self { outer, cold, client }
    }

    pub(crate) fn outer(&self) -> &Path {
        self.outer.path()
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.outer.path().join("volume")
    }

    pub(crate) async fn read(&self, path: impl AsRef<[u8]>) -> Result<(Entry, Vec<u8>), Status> {
        self.read_with(ReadRequest { ..request(path) }).await.map(|(entry, data, _)| (entry, data))
    }

    pub(crate) async fn read_with(&self, request: ReadRequest) -> Result<(Entry, Vec<u8>, bool), Status> {
        let mut messages = self.client.clone().read(request).await?.into_inner();
        let first = messages.message().await?.expect("a first message");
        let (entry, mut data) = (first.entry.expect("metadata comes first"), first.data.to_vec());
        while let Some(message) = messages.message().await? {
            assert!(message.data.len() <= 1 << 20 && !message.data.is_empty());
            data.extend_from_slice(&message.data);
        }
        Ok((entry, data, first.not_modified))
    }

    pub(crate) async fn write(&self, header: WriteHeader, content: &[u8]) -> Result<WriteResponse, Status> {
        let mut parts = vec![WriteRequest { part: Some(Part::Header(header)) }];
        parts.extend(content.chunks(1 << 20).map(data));
        self.client.clone().write(futures::stream::iter(parts)).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn stat(&self, path: impl AsRef<[u8]>) -> Result<Entry, Status> {
        let request =
            StatRequest { volume_id: VOLUME.into(), path: path.as_ref().to_vec().into(), with_etag: true };
        self.client.clone().stat(request).await.map(tonic::Response::into_inner)
    }

    /// One page: its entries and the cursor.
    pub(crate) async fn page(&self, request: ListRequest) -> Result<(Vec<Entry>, Vec<u8>), Status> {
        let mut messages = self.client.clone().list(request).await?.into_inner();
        let (mut entries, mut next) = (Vec::new(), Vec::new());
        while let Some(message) = messages.message().await? {
            assert!(next.is_empty(), "the cursor comes in the last message");
            entries.extend(message.entries);
            next = message.next.to_vec();
        }
        Ok((entries, next))
    }

    pub(crate) async fn batch(&self, changes: Vec<Asked>) -> Result<Vec<ChangeResult>, Status> {
        let changes = changes.into_iter().map(|change| Change { change: Some(change) }).collect();
        let request = BatchRequest { volume_id: VOLUME.into(), changes };
        self.client.clone().batch(request).await.map(|response| response.into_inner().results)
    }

    /// One change: whether it changed anything, or its code.
    pub(crate) async fn change(&self, change: Asked) -> Result<bool, Code> {
        let result = self.batch(vec![change]).await.unwrap().remove(0);
        if result.ok { Ok(result.changed) } else { Err(Code::from(result.code)) }
    }
}

async fn serve(root: PathBuf, cold: Cold) -> FilesClient<Channel> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = FilesServer::new(FilesService::new(Arc::new(OneVolume(root, cold))));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(async move { Server::builder().add_service(service).serve_with_incoming(incoming).await });
    proto::client::files(proto::client::channel(&address.to_string()).unwrap())
}

pub(crate) fn request(path: impl AsRef<[u8]>) -> ReadRequest {
    ReadRequest { volume_id: VOLUME.into(), path: path.as_ref().to_vec().into(), ..Default::default() }
}

pub(crate) fn header(path: impl AsRef<[u8]>) -> WriteHeader {
    WriteHeader { volume_id: VOLUME.into(), path: path.as_ref().to_vec().into(), ..Default::default() }
}

pub(crate) fn data(bytes: &[u8]) -> WriteRequest {
    WriteRequest { part: Some(Part::Data(bytes.to_vec().into())) }
}

pub(crate) fn listing(path: impl AsRef<[u8]>) -> ListRequest {
    ListRequest { volume_id: VOLUME.into(), path: path.as_ref().to_vec().into(), ..Default::default() }
}

pub(crate) fn hash(content: &[u8]) -> String {
    blake3::hash(content).to_hex().to_string()
}

/// Names in a directory of the disk, sorted.
pub(crate) fn names(directory: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Content that no compression makes small and no accident makes equal.
pub(crate) fn noise(bytes: usize, seed: u8) -> Vec<u8> {
    let mut content = vec![0; bytes];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut content);
    content
}
