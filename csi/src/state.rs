//! `state.db`: what this node remembers between two lives. A cache of what pool and store say, never the only copy:
//! without it the node opens a new session and looks at everything once more.
//!
//! One thread owns the connection; a bounded queue of closures stands in front of it.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::{mpsc, oneshot};
use types::Nonce;

use crate::error::Error;
use crate::scrub::Progress;

/// More waiting callers than this are a sign of a stuck disk: they wait outside.
const QUEUE: usize = 64;

/// How long another process's lock on the database is waited for.
const BUSY: Duration = Duration::from_secs(5);

/// The layout below, `PRAGMA user_version`.
const FORMAT: i32 = 1;

type Work = Box<dyn FnOnce(&mut Connection) + Send>;

/// The door to `state.db`. Clones share its thread, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct State(mpsc::Sender<Work>);

/// A session as this node remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RememberedSession {
    /// Its number.
    pub number: u64,
    /// The nonce of its last write, if one is known.
    pub nonce: Option<Nonce>,
}

impl State {
    /// Opens or creates the database.
    ///
    /// # Errors
    /// It cannot be read or written, or a newer build wrote it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY)?;
        // Before WAL: then its index is in our memory. As a mapped file on a full pool it would be a SIGBUS.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let found: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if found > FORMAT {
            return Err(Error::StateTooNew { found, known: FORMAT });
        }
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS session (
                 one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, nonce TEXT);
             CREATE TABLE IF NOT EXISTS scrub (
                 one INTEGER PRIMARY KEY CHECK (one = 1), progress TEXT NOT NULL)",
        )?;
        connection.pragma_update(None, "user_version", FORMAT)?;
        let (sender, mut receiver) = mpsc::channel::<Work>(QUEUE);
        std::thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || {
                let mut connection = connection;
                while let Some(work) = receiver.blocking_recv() {
                    work(&mut connection);
                }
            })
            .map_err(|source| Error::Io { doing: "starting the thread of state.db", source })?;
        Ok(Self(sender))
    }

    /// Runs `work` on the database's thread.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, receiver) = oneshot::channel();
        let work: Work = Box::new(move |connection| {
            // Nobody waits any more: the work is done all the same.
            drop(answer.send(work(connection)));
        });
        self.0.send(work).await.map_err(|_| Error::ShuttingDown)?;
        Ok(receiver.await.map_err(|_| Error::ShuttingDown)??)
    }

    /// Returns the session that this node had last.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn session(&self) -> Result<Option<RememberedSession>, Error> {
        self.call(|connection| {
            connection
                .query_row("SELECT number, nonce FROM session", [], |row| {
                    let nonce: Option<String> = row.get(1)?;
                    Ok(RememberedSession {
                        number: row.get::<_, i64>(0)?.unsigned_abs(),
                        nonce: nonce.and_then(|text| text.parse().ok()),
                    })
                })
                .optional()
        })
        .await
    }

    /// Returns where the scrub is. What cannot be read any more begins anew.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn scrub(&self) -> Result<Progress, Error> {
        let read = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
        let text = self
            .call(move |connection| connection.query_row("SELECT progress FROM scrub", [], read).optional())
            .await?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
    }

    /// Remembers where the scrub is.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn remember_scrub(&self, progress: &Progress) -> Result<(), Error> {
        let text = serde_json::to_string(progress).map_err(|error| Error::Io {
            doing: "noting where the scrub is",
            source: std::io::Error::other(error),
        })?;
        self.call(move |connection| {
            connection.execute("INSERT OR REPLACE INTO scrub VALUES (1, ?1)", params![text]).map(drop)
        })
        .await
    }

    /// Remembers the session. Before a session is joined its number stands here, so that it is never used twice.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn remember_session(&self, session: RememberedSession) -> Result<(), Error> {
        let number = i64::try_from(session.number).unwrap_or(i64::MAX);
        let nonce = session.nonce.map(|nonce| nonce.to_string());
        self.call(move |connection| {
            connection
                .execute("INSERT OR REPLACE INTO session VALUES (1, ?1, ?2)", params![number, nonce])
                .map(drop)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_remembered_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let session = RememberedSession { number: 3, nonce: Some(Nonce::random()) };
        {
            let state = State::open(&path).unwrap();
            assert_eq!(state.session().await.unwrap(), None);
            state.remember_session(session.clone()).await.unwrap();
        }
        let state = State::open(&path).unwrap();
        assert_eq!(state.session().await.unwrap(), Some(session));
    }

    #[test]
    fn a_database_of_a_newer_build_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        Connection::open(&path).unwrap().pragma_update(None, "user_version", FORMAT + 1).unwrap();
        assert!(matches!(State::open(&path).unwrap_err(), Error::StateTooNew { .. }));
    }
}
