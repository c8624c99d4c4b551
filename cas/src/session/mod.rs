//! Sessions: the lives of a pool, as everybody sees them in the store.
//!
//! A session is live until somebody fences it; fenced is for ever. Its object carries the pin (which packs its
//! operations avoid), `low` (from where its packs may still be unreferenced) and `reserved` (which pack numbers it may
//! have used). [`Session`] is the handle of the one process that lives it; the functions here are for everybody else.

mod handle;
mod holds;
mod operation;
mod packs;
mod witness;

pub use handle::{Beat, Resumed, Session};
pub use operation::Operation;
pub use witness::Witness;

use futures::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use types::{Change, NodeName, Nonce, PoolId, Rev, SessionId};

use crate::error::Error;
use crate::keys;
use crate::objects::{Key, list_all};
use crate::store::{Store, Stored};
use crate::update::{Next, Versioned, swap};

/// How many sessions are read at once for a list.
const READ_AHEAD: usize = 16;

/// Whether a session may still act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// It may.
    Live,
    /// Never again.
    Fenced,
}

/// The object `session/<pool>.<n>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionRecord {
    /// The format of this object.
    pub format: u32,
    /// Whose life, and which.
    pub id: SessionId,
    /// Counts the writes.
    pub rev: Rev,
    /// Changes when a process takes the session up, and when it is fenced. Two processes never share one.
    pub nonce: Nonce,
    /// The node's name: for people and as an address, not an identity.
    pub node: NodeName,
    /// The machine, as it calls itself: for people.
    pub host: String,
    /// Whether it may still act.
    pub state: SessionState,
    /// The collection's epoch that every operation of it knows of.
    pub pin: u64,
    /// Packs from this number on may be written and not yet referred to: no collection judges them.
    pub low: u64,
    /// Pack numbers below this may have been used. A process that takes the session up starts here.
    pub reserved: u64,
    /// Counts what the process wrote here. Who sees it stand still for long enough may fence.
    pub beat: u64,
}

impl Versioned for SessionRecord {
    fn stamp(&mut self, nonce: Nonce) {
        self.rev = self.rev.next();
        self.nonce = nonce;
    }

    fn nonce(&self) -> Nonce {
        self.nonce
    }

    fn check(&self, key: &Key) -> Result<(), Error> {
        if keys::session(&self.id) != *key {
            return Err(Error::corrupt(key, format!("it is the session {}", self.id)));
        }
        Ok(())
    }
}

/// Reads a session; `None` if there is none.
pub async fn read(store: &Store, id: &SessionId) -> Result<Option<Stored<SessionRecord>>, Error> {
    let key = keys::session(id);
    let stored = store.read::<SessionRecord>(&key).await?;
    if let Some(stored) = &stored {
        stored.value.check(&key)?;
    }
    Ok(stored)
}

/// Reads all sessions: complete, or an error.
pub async fn list(store: &Store) -> Result<Vec<Stored<SessionRecord>>, Error> {
    list_below(store, keys::SESSIONS).await
}

/// Reads the sessions of one pool, oldest first by number.
pub async fn list_pool(store: &Store, pool: PoolId) -> Result<Vec<Stored<SessionRecord>>, Error> {
    let mut sessions = list_below(store, &format!("{}{pool}.", keys::SESSIONS)).await?;
    sessions.sort_by_key(|session| session.value.id.number);
    Ok(sessions)
}

async fn list_below(store: &Store, prefix: &str) -> Result<Vec<Stored<SessionRecord>>, Error> {
    let mut ids = Vec::new();
    for meta in list_all(&**store.objects(), prefix).await? {
        let text = meta.key.as_str().strip_prefix(keys::SESSIONS).unwrap_or_default();
        let id: SessionId =
            text.parse().map_err(|error: types::InvalidId| Error::corrupt(&meta.key, error.to_string()))?;
        ids.push(id);
    }
    let sessions = futures::stream::iter(ids.into_iter().map(|id| {
        let store = store.clone();
        async move { read(&store, &id).await }
    }))
    .buffered(READ_AHEAD);
    sessions.try_filter_map(|session| async move { Ok(session) }).try_collect().await
}

/// Ends a session for ever. Whoever fences a session that may still live must have waited as PROTOCOL.md §2 says.
pub async fn fence(store: &Store, id: &SessionId) -> Result<Change, Error> {
    let key = keys::session(id);
    let fenced = swap::<SessionRecord, _>(store, None, &key, |current| {
        if current.value.state == SessionState::Fenced {
            return Ok(Next::Already);
        }
        Ok(Next::Write(SessionRecord { state: SessionState::Fenced, ..current.value.clone() }))
    });
    match fenced.await? {
        None => Err(Error::NoSession { session: *id }),
        Some(Change::Made(_)) => Ok(Change::Made(())),
        Some(Change::Already(_)) => Ok(Change::Already(())),
    }
}

/// Tells if a session is fenced. One that is not there is an error: only collection removes a session, after it took
/// every record from it.
pub async fn is_fenced(store: &Store, id: &SessionId) -> Result<bool, Error> {
    match read(store, id).await? {
        None => Err(Error::NoSession { session: *id }),
        Some(stored) => Ok(stored.value.state == SessionState::Fenced),
    }
}
