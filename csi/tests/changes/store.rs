//! The store as a judge: what it makes of a version and what changed is what it makes of everything.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use cas::objects::MemoryStore;
use cas::{Cache, Changes, Operation, Parent, Session, Store, WriteOptions, Writer, Written};
use tokio::runtime::Runtime;
use types::{Domain, PoolId, SystemClock};

/// A store in memory and two writers: one has the parent, the other starts anew each time.
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
        let (store, session) = runtime.block_on(async {
            let objects = Arc::new(MemoryStore::default());
            let store = Store::create_or_open(objects, Arc::new(SystemClock)).await.unwrap().into_inner();
            let name = "node-a".parse().unwrap();
            let session = Session::join(&store, PoolId::random(), 1, &name, "host").await.unwrap();
            (store, session)
        });
        let operation = session.begin().unwrap();
        let writer = Self::writer(&store, &session);
        Self { runtime, store, session, writer, last: None, _operation: operation }
    }

    fn writer(store: &Store, session: &Session) -> Writer {
        let options = WriteOptions { workers: 2, ..WriteOptions::default() };
        let cache = Cache::new(64 << 20);
        Writer::new(store.clone(), session.clone(), Domain::default_domain(), cache, options)
    }

    /// Puts a snapshot whole, and from the last one with what changed since; says how the two differ.
    pub(crate) fn step(&mut self, snapshot: &Path, changes: Option<Changes>) -> Result<Cost, String> {
        let open = || File::open(snapshot).unwrap().into();
        let whole = self
            .runtime
            .block_on(Self::writer(&self.store, &self.session).put(open(), None))
            .map_err(|error| format!("whole: {error}"))?;
        let mut cost = Cost::default();
        let written = match (changes, self.last.take()) {
            (Some(changes), Some(last)) => {
                let parent = Parent { tree: last.tree, changes };
                let written = self
                    .runtime
                    .block_on(self.writer.put(open(), Some(parent)))
                    .map_err(|error| format!("increment: {error}"))?;
                cost = Cost { bytes_uploaded: written.bytes_uploaded };
                written
            }
            _ => whole.clone(),
        };
        let same = written.tree.version == whole.tree.version
            && (written.files, written.bytes) == (whole.files, whole.bytes);
        let told = format!("{written:?}\n{whole:?}");
        self.last = Some(written);
        if same { Ok(cost) } else { Err(told) }
    }
}
