//! The hub's memory: one SQLite file, one thread that owns it, and a short queue in front.
//!
//! Nothing in it is the only copy: nodes say who they are when they dial in, records and sessions are in the store, and
//! an intent is found again from the request's name. A file of another store, or an older schema, is emptied.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::{mpsc, oneshot};
use types::{NodeName, RequestId, SessionId, StoreId, Timestamp, VersionId, VolumeId};

use crate::error::Error;

/// Enough for every handler of a busy hub to have one waiting; a full queue makes callers wait, not memory grow.
const QUEUE: usize = 64;

/// Raised when the tables change; what an older hub wrote is dropped and learned again.
const SCHEMA: i64 = 3;

/// How long a retry of a create is steered to the node that was chosen first.
const INTENT_SECONDS: i64 = 24 * 3600;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// Handle to the thread that owns the database. Clones share it; it ends with the last of them.
#[derive(Debug, Clone)]
pub struct State {
    jobs: mpsc::Sender<Job>,
}

/// A node as it last introduced itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownNode {
    /// Its name.
    pub node: NodeName,
    /// Its last session.
    pub session: SessionId,
    /// Where it was dialed.
    pub address: String,
    /// Its zone, or empty.
    pub zone: String,
    /// Its build.
    pub version: String,
    /// When it was last heard.
    pub heard: Timestamp,
}

/// What a create set out to do, kept so that a retry goes the same way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The caller's name for it.
    pub request: RequestId,
    /// What it makes.
    pub volume: VolumeId,
    /// The node that was asked to make it.
    pub node: NodeName,
    /// The version that it begins with; nothing for an empty volume.
    pub origin: Option<(VolumeId, VersionId)>,
    /// All that the request said, so that one with other words is told from a retry.
    pub words: String,
    /// When.
    pub created: Timestamp,
}

impl State {
    /// Opens the file, or makes it. Blocks: call it before the runtime has work.
    ///
    /// # Errors
    /// Another hub holds it, or it cannot be read or written.
    pub fn open(path: &Path, store: StoreId) -> Result<Self, Error> {
        let state_error = |source| Error::StateFile { path: path.to_owned(), source };
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)
                .map_err(|source| Error::StateDirectory { path: parent.to_owned(), source })?;
        }
        let lock = lock(path)?;
        let mut connection = Connection::open(path).map_err(state_error)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(state_error)?;
        // A commit that the machine's crash takes back costs a look at the store, not a volume.
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(state_error)?;
        prepare(&mut connection, store).map_err(state_error)?;
        Ok(Self::spawn(connection, Some(lock)))
    }

    /// Keeps everything in memory, for tests.
    ///
    /// # Errors
    /// SQLite is broken.
    pub fn memory(store: StoreId) -> Result<Self, Error> {
        let mut connection = Connection::open_in_memory().map_err(Error::State)?;
        prepare(&mut connection, store).map_err(Error::State)?;
        Ok(Self::spawn(connection, None))
    }

    fn spawn(mut connection: Connection, lock: Option<std::fs::File>) -> Self {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        std::thread::Builder::new()
            .name("hub-state".to_owned())
            .spawn(move || {
                while let Some(job) = queue.blocking_recv() {
                    job(&mut connection);
                }
                drop(connection);
                drop(lock);
            })
            .expect("a thread can be made at start");
        Self { jobs }
    }

    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // The asker may have gone; the job is done all the same.
            drop(answer.send(job(connection)));
        });
        self.jobs.send(job).await.map_err(|_| Error::ShuttingDown)?;
        answered.await.map_err(|_| Error::ShuttingDown)?.map_err(Error::State)
    }

    /// Has a job done in its turn, and does not wait for it.
    pub(crate) async fn later(
        &self,
        job: impl FnOnce(&mut Connection) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<(), Error> {
        let job: Job = Box::new(move |connection| {
            if let Err(error) = job(connection) {
                tracing::warn!(%error, "the state file does not keep what was read");
            }
        });
        self.jobs.send(job).await.map_err(|_| Error::ShuttingDown)
    }

    /// Remembers a node as it introduced itself, in place of what was known under its name.
    pub async fn put_node(&self, node: KnownNode) -> Result<(), Error> {
        self.run(move |db| {
            db.execute(
                "INSERT OR REPLACE INTO nodes (node, session, address, zone, version, heard) VALUES (?, ?, ?, ?, ?, ?)",
                params![
                    node.node.as_str(),
                    node.session.to_string(),
                    node.address,
                    node.zone,
                    node.version,
                    node.heard.0
                ],
            )
            .map(drop)
        })
        .await
    }

    /// Returns every node that ever dialed in.
    pub async fn nodes(&self) -> Result<Vec<KnownNode>, Error> {
        self.run(|db| {
            let mut query =
                db.prepare("SELECT node, session, address, zone, version, heard FROM nodes ORDER BY node")?;
            let rows = query.query_map([], |row| {
                Ok(KnownNode {
                    node: parsed(row, 0)?,
                    session: parsed(row, 1)?,
                    address: row.get(2)?,
                    zone: row.get(3)?,
                    version: row.get(4)?,
                    heard: Timestamp(row.get(5)?),
                })
            })?;
            rows.collect()
        })
        .await
    }

    /// Remembers what a create is about to do; an earlier choice for the same request is replaced.
    pub async fn put_intent(&self, intent: Intent) -> Result<(), Error> {
        self.run(move |db| {
            let transaction = db.transaction()?;
            transaction
                .prepare_cached("DELETE FROM intents WHERE created < ?")?
                .execute([intent.created.0.saturating_sub(INTENT_SECONDS * 1_000_000_000)])?;
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO intents
                         (request, volume, node, origin_volume, origin_version, words, created)
                     VALUES (?, ?, ?, ?, ?, ?, ?)",
                )?
                .execute(params![
                    intent.request.as_str(),
                    intent.volume.as_str(),
                    intent.node.as_str(),
                    intent.origin.as_ref().map(|(volume, _)| volume.to_string()),
                    intent.origin.as_ref().map(|(_, version)| version.to_string()),
                    intent.words,
                    intent.created.0
                ])?;
            transaction.commit()
        })
        .await
    }

    /// Returns what a create with this request set out to do.
    pub async fn intent(&self, request: RequestId) -> Result<Option<Intent>, Error> {
        self.run(move |db| {
            let mut query = db.prepare_cached(
                "SELECT request, volume, node, origin_volume, origin_version, words, created
                 FROM intents WHERE request = ?",
            )?;
            let found = query.query_row([request.as_str()], |row| {
                Ok(Intent {
                    request: parsed(row, 0)?,
                    volume: parsed(row, 1)?,
                    node: parsed(row, 2)?,
                    origin: parsed_or_null(row, 3)?.zip(parsed_or_null(row, 4)?),
                    words: row.get(5)?,
                    created: Timestamp(row.get(6)?),
                })
            });
            found.optional()
        })
        .await
    }
}

/// Reads a column that holds an id.
pub(crate) fn parsed<T>(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}

/// Reads a column that holds an id or NULL.
pub(crate) fn parsed_or_null<T>(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Option<T>>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    if row.get_ref(column)? == rusqlite::types::ValueRef::Null {
        return Ok(None);
    }
    parsed(row, column).map(Some)
}

/// Takes the lock beside the file. The kernel gives it back when this process ends, however it ends.
fn lock(path: &Path) -> Result<std::fs::File, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let io_error = |source| Error::StateDirectory { path: lock_path.clone(), source };
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::StateInUse { path: path.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(io_error(source)),
    }
}

/// Makes the tables, after dropping those that belong to another store or schema.
fn prepare(db: &mut Connection, store: StoreId) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    )?;
    let known: Option<String> = transaction
        .query_row("SELECT value FROM meta WHERE key = 'store'", [], |row| row.get(0))
        .optional()?;
    let belongs = format!("{store} schema {SCHEMA}");
    if known.as_deref() != Some(&belongs) {
        if known.is_some() {
            tracing::warn!(%store, "the state file belonged to another store or schema; it is learned again");
        }
        transaction.execute_batch(
            "DROP TABLE IF EXISTS nodes; DROP TABLE IF EXISTS intents; DROP TABLE IF EXISTS records;",
        )?;
        transaction.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('store', ?)", [belongs])?;
    }
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS nodes (
             node TEXT PRIMARY KEY, session TEXT NOT NULL, address TEXT NOT NULL, zone TEXT NOT NULL,
             version TEXT NOT NULL, heard INTEGER NOT NULL) STRICT;
         CREATE TABLE IF NOT EXISTS intents (
             request TEXT PRIMARY KEY, volume TEXT NOT NULL, node TEXT NOT NULL, origin_volume TEXT,
             origin_version TEXT, words TEXT NOT NULL, created INTEGER NOT NULL) STRICT;
         CREATE INDEX IF NOT EXISTS intents_by_created ON intents (created);",
    )?;
    transaction.execute_batch(crate::records::TABLE)?;
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent(request: &str, node: &str) -> Intent {
        let request: RequestId = request.parse().unwrap();
        Intent {
            volume: VolumeId::for_request("vol", &request),
            request,
            node: node.parse().unwrap(),
            origin: Some(("vol-0".parse().unwrap(), VersionId([7; 32]))),
            words: "empty".into(),
            created: Timestamp(1),
        }
    }

    #[tokio::test]
    async fn what_was_put_is_found_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/hub.db");
        let store = StoreId::random();
        let state = State::open(&path, store).unwrap();
        state.put_intent(intent("r1", "a")).await.unwrap();
        drop(state);
        let state = reopen(&path, store).await;
        assert_eq!(state.intent("r1".parse().unwrap()).await.unwrap(), Some(intent("r1", "a")));
        assert_eq!(state.intent("r2".parse().unwrap()).await.unwrap(), None);
        drop(state);
        // Another store: nothing of the first one may be believed.
        let state = reopen(&path, StoreId::random()).await;
        assert_eq!(state.intent("r1".parse().unwrap()).await.unwrap(), None);
    }

    /// The owning thread ends a moment after the last handle.
    async fn reopen(path: &Path, store: StoreId) -> State {
        for _ in 0..100 {
            match State::open(path, store) {
                Ok(state) => return state,
                Err(Error::StateInUse { .. }) => {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the state file stayed locked");
    }

    #[tokio::test]
    async fn a_second_hub_on_the_same_file_is_told_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hub.db");
        let store = StoreId::random();
        let _first = State::open(&path, store).unwrap();
        let error = State::open(&path, store).unwrap_err();
        assert!(matches!(error, Error::StateInUse { .. }), "{error}");
        assert!(error.to_string().contains("another hub"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_database_is_refused_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hub.db");
        std::fs::write(&path, vec![b'x'; 8192]).unwrap();
        let error = State::open(&path, StoreId::random()).unwrap_err();
        assert!(error.to_string().contains("delete it"), "{error}");
    }
}
