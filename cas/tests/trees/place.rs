//! A store, a session in it and directories, for one test.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cas::objects::{MemoryStore, Objects};
use cas::tree::TreeError;
use cas::{
    Cache, Changes, Operation, Parent, Reader, RestoreOptions, Restored, Session, Store, VersionRef,
    WriteOptions, Writer, Written,
};
use types::{Domain, PoolId, SystemClock};

pub struct Place {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub _session: Session,
    pub writer: Writer,
    pub reader: Reader,
    _operation: Operation,
}

pub fn open(path: &Path) -> OwnedFd {
    std::fs::File::open(path).unwrap().into()
}

impl Place {
    pub async fn new() -> Self {
        Self::with(Arc::new(MemoryStore::default()), WriteOptions::default()).await
    }

    pub async fn with(objects: Arc<dyn Objects>, options: WriteOptions) -> Self {
        let store =
            Store::create_or_open(Arc::clone(&objects), Arc::new(SystemClock)).await.unwrap().into_inner();
        let session =
            Session::join(&store, PoolId::random(), 1, &"node-a".parse().unwrap(), "host").await.unwrap();
        let operation = session.begin().unwrap();
        let cache = Cache::new(64 << 20);
        let writer = Writer::new(
            store.clone(),
            session.clone(),
            Domain::default_domain(),
            Arc::clone(&cache),
            options,
        );
        let reader = Reader::new(store.clone(), cache);
        // Inode numbers are not used again there, which the walk that finds changes relies on.
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        Self { dir, store, _session: session, writer, reader, _operation: operation }
    }

    /// A new empty directory.
    pub fn new_dir(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    }

    pub async fn put(&self, path: &Path) -> Written {
        self.writer.put(open(path), None).await.unwrap()
    }

    pub async fn put_changes(&self, path: &Path, tree: &VersionRef, changes: Changes) -> Written {
        let parent = Parent { tree: tree.clone(), changes };
        self.writer.put(open(path), Some(parent)).await.unwrap()
    }

    pub async fn restore(&self, tree: &VersionRef, path: &Path) -> Result<Restored, TreeError> {
        self.cold().restore(tree, open(path), RestoreOptions::default()).await
    }

    /// A reader that has read nothing yet.
    pub fn cold(&self) -> Reader {
        Reader::new(self.store.clone(), Cache::new(16 << 20))
    }
}
