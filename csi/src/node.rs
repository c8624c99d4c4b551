//! The node: its pool, its store, its session and its volumes, and how operations run on them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use btrfs::GroupId;
use cas::tree::{Cache, Reader};
use cas::{Session, Store};
use proto::metrics::Metrics;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::{NodeName, SessionId};

use crate::compute::Meter;
use crate::config::NodeConfig;
use crate::deletions::Deletions;
use crate::error::Error;
use crate::known::KnownBytes;
use crate::locks::Locks;
use crate::pool::Pool;
use crate::shelf::Shelf;
use crate::state::State;
use crate::volumes::Volumes;

/// What decoded nodes and frames may take of memory, for all volumes together.
const CACHE_BYTES: usize = 256 << 20;

/// The whole node. Everything an operation needs hangs here; operations are methods in files of their own.
#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
    address: String,
    pool: Pool,
    store: Store,
    state: State,
    session: watch::Sender<Option<Session>>,
    suspect: Notify,
    volumes: Volumes,
    locks: Locks,
    shelf: Shelf,
    deletions: Deletions,
    cache: Arc<Cache>,
    known: KnownBytes,
    tasks: TaskTracker,
    stop: CancellationToken,
    store_trouble: Mutex<String>,
    spare_groups: Mutex<BTreeSet<GroupId>>,
    metrics: Metrics,
    meter: Meter,
    began: Instant,
}

impl Node {
    /// Puts a node together. [`Self::start`] brings it to life.
    pub(crate) fn new(config: NodeConfig, address: String, pool: Pool, store: Store, state: State) -> Self {
        let known = KnownBytes::new(config.hub.as_deref());
        Self {
            config,
            address,
            pool,
            store,
            state,
            session: watch::channel(None).0,
            suspect: Notify::new(),
            volumes: Volumes::default(),
            locks: Locks::default(),
            shelf: Shelf::default(),
            deletions: Deletions::default(),
            cache: Cache::new(CACHE_BYTES),
            known,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            store_trouble: Mutex::default(),
            spare_groups: Mutex::default(),
            metrics: Metrics::default(),
            meter: Meter::default(),
            began: Instant::now(),
        }
    }

    /// When this process began.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// What it was told at start.
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// Its name.
    pub fn name(&self) -> &NodeName {
        &self.config.node
    }

    /// Where others dial it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Its store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What it remembers.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Its volumes.
    pub fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    /// Who works on which volume.
    pub fn locks(&self) -> &Locks {
        &self.locks
    }

    /// The pool's snapshots.
    pub fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    /// The deletions that have begun.
    pub(crate) fn deletions(&self) -> &Deletions {
        &self.deletions
    }

    /// What it tells Prometheus.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Ends when the node stops.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// What runs.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// The live session.
    ///
    /// # Errors
    /// There is none: the pool belongs to another store, or the session was fenced and the next is not open yet.
    pub fn session(&self) -> Result<Session, Error> {
        self.require_own_store()?;
        self.session.borrow().clone().ok_or(Error::NoSession)
    }

    /// The live session's id.
    pub fn session_id(&self) -> Option<SessionId> {
        self.session.borrow().as_ref().map(Session::id)
    }

    /// Replaces the session.
    pub(crate) fn set_session(&self, session: Option<Session>) {
        if let Some(session) = &session {
            self.known.index().follow(&session.pin());
        }
        self.session.send_replace(session);
    }

    /// Somebody says that the session is fenced: look at once.
    pub fn suspect_fenced(&self) {
        self.suspect.notify_one();
    }

    /// Waits until somebody suspects that the session is fenced.
    pub(crate) async fn suspected(&self) {
        self.suspect.notified().await;
    }

    /// Refuses to touch volumes of another store.
    ///
    /// # Errors
    /// [`Error::WrongStore`].
    pub fn require_own_store(&self) -> Result<(), Error> {
        match self.pool.store() {
            Some(pool) if pool != self.store.id() => Err(Error::WrongStore { pool, store: self.store.id() }),
            Some(_) | None => Ok(()),
        }
    }

    /// What was read lately of trees.
    pub(crate) fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// What it knows of bytes that are stored.
    pub fn known_bytes(&self) -> &KnownBytes {
        &self.known
    }

    /// A reader of trees.
    pub fn reader(&self) -> Reader {
        Reader::new(self.store.clone(), Arc::clone(&self.cache))
    }

    /// What looks at the machine.
    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// What was last wrong with the store; empty when all is well.
    pub fn store_trouble(&self) -> String {
        self.store_trouble.lock().expect("no code panics while it holds this lock").clone()
    }

    pub(crate) fn set_store_trouble(&self, trouble: String) {
        *self.store_trouble.lock().expect("no code panics while it holds this lock") = trouble;
    }

    /// Notes a quota group that goes when the cleaner is done with its members.
    pub(crate) fn add_spare_group(&self, group: GroupId) {
        self.spare_groups.lock().expect("no code panics while it holds this lock").insert(group);
    }

    /// How many quota groups are to be removed.
    pub(crate) fn spare_group_count(&self) -> u64 {
        let spare = self.spare_groups.lock().expect("no code panics while it holds this lock");
        u64::try_from(spare.len()).unwrap_or(u64::MAX)
    }

    /// The quota groups that are to be removed. The caller adds back those that cannot be yet.
    pub(crate) fn take_spare_groups(&self) -> BTreeSet<GroupId> {
        std::mem::take(&mut *self.spare_groups.lock().expect("no code panics while it holds this lock"))
    }

    /// Runs an operation to its end, also when the caller goes away.
    ///
    /// # Errors
    /// Those of the operation.
    pub async fn detached<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        if self.stop.is_cancelled() {
            return Err(Error::ShuttingDown);
        }
        match self.tasks.spawn(work).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => Err(Error::Panicked { operation }),
            Err(_) => Err(Error::ShuttingDown),
        }
    }
}
