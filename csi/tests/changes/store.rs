//! The store as a judge: what it makes of a version and what changed is what it makes of everything.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use btrfs::Dir;
use cas::objects::MemoryStore;
use cas::tree::Root;
use cas::{
    Cache, Changes, Operation, Parent, Reader, RestoreOptions, Session, Store, TreeError, WriteOptions,
    Writer, Written,
};
use tokio::runtime::Runtime;
use types::{Domain, PoolId, SystemClock, VersionId};

/// A store in memory and writers: one has the parent, two start anew each time, one of them with the snapshot's inventory.
pub(crate) struct Judge {
    runtime: Runtime,
    store: Store,
    session: Session,
    writer: Writer,
    last: Option<Written>,
    _operation: Operation,
}

/// What an incremental put cost.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) bytes_uploaded: u64,
}

impl Judge {
    pub(crate) fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (store, session) = runtime.block_on(empty());
        let operation = session.begin().unwrap();
        let writer = Self::writer(&store, &session);
        Self { runtime, store, session, writer, last: None, _operation: operation }
    }

    fn writer(store: &Store, session: &Session) -> Writer {
        let options = WriteOptions { workers: 2, ..WriteOptions::default() };
        let cache = Cache::new(64 << 20);
        Writer::new(store.clone(), session.clone(), Domain::default_domain(), cache, options)
    }

    /// Puts a tree whole.
    pub(crate) fn version(&self, root: Root) -> Result<VersionId, TreeError> {
        let writer = Self::writer(&self.store, &self.session);
        self.runtime.block_on(writer.put_told(root, None)).map(|written| written.tree.version)
    }

    /// Puts a tree whole and makes it again in a new directory.
    pub(crate) fn restored(&self, root: Root, target: &Path) -> VersionId {
        let writer = Self::writer(&self.store, &self.session);
        std::fs::create_dir(target).unwrap();
        let directory = File::open(target).unwrap().into();
        self.runtime.block_on(async {
            let tree = writer.put_told(root, None).await.unwrap().tree;
            let reader = Reader::new(self.store.clone(), Cache::new(64 << 20));
            reader.restore(&tree, directory, RestoreOptions::default()).await.unwrap();
            tree.version
        })
    }

    /// Puts a snapshot whole by walking it and by its inventory, and from the last one with what changed since; says how they
    /// differ.
    pub(crate) fn step(&mut self, snapshot: &Path, changes: Option<Changes>) -> Result<Cost, String> {
        let open = || csi::changes::told(Dir::open(snapshot).unwrap()).unwrap();
        let walked = OwnedFd::from(File::open(snapshot).unwrap());
        // Only increments stay: of a thousand whole trees the memory would be full.
        let (store, session) = self.runtime.block_on(empty());
        let _aside = session.begin().unwrap();
        let whole = self
            .runtime
            .block_on(Self::writer(&store, &session).put(walked, None))
            .map_err(|error| format!("whole: {error}"))?;
        let told = self
            .runtime
            .block_on(Self::writer(&store, &session).put_told(open(), None))
            .map_err(|error| format!("by its inventory: {error}"))?;
        if (told.tree.version, told.files, told.bytes) != (whole.tree.version, whole.files, whole.bytes) {
            return Err(format!("by its inventory: {told:?}\n{whole:?}"));
        }
        let mut cost = Cost::default();
        let written = match (changes, self.last.take()) {
            (Some(changes), Some(last)) => {
                let parent = Parent { tree: last.tree, changes };
                let written = self
                    .runtime
                    .block_on(self.writer.put_told(open(), Some(parent)))
                    .map_err(|error| format!("increment: {error}"))?;
                cost = Cost { bytes_uploaded: written.bytes_uploaded };
                written
            }
            _ => self
                .runtime
                .block_on(self.writer.put_told(open(), None))
                .map_err(|error| format!("the first: {error}"))?,
        };
        let same = written.tree.version == whole.tree.version
            && (written.files, written.bytes) == (whole.files, whole.bytes);
        let told = format!("{written:?}\n{whole:?}");
        self.last = Some(written);
        if same { Ok(cost) } else { Err(told) }
    }
}

/// A store with nothing in it, and a session there.
async fn empty() -> (Store, Session) {
    let objects = Arc::new(MemoryStore::default());
    let store = Store::create_or_open(objects, Arc::new(SystemClock)).await.unwrap().into_inner();
    let name = "node-a".parse().unwrap();
    let session = Session::join(&store, PoolId::random(), 1, &name, "host").await.unwrap();
    (store, session)
}
