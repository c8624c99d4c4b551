//! Records as the hub reads them. The store is asked each time; what is kept saves the reading of those that did not
//! change, by their etags.
//!
//! A list begins with the store's own listing, compared with what is kept, so it is complete or an error, whatever this hub
//! has seen before. Its pages then come from what is kept, in order of the ids.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cas::objects::Key;
use cas::record::{Record, RecordKind, State as Life};
use cas::{Store, Stored};
use futures::{StreamExt as _, TryStreamExt as _};
use prost::Message as _;
use tokio::sync::Mutex;
use types::{ResourceName, SessionId, VolumeId};

use crate::error::Error;
use crate::records::{KeptRecord, Range};
use crate::state::State;
use crate::view;

/// How many records are read at once.
const READ_AHEAD: usize = 16;

/// How many records are kept in one transaction.
const KEPT_AT_ONCE: usize = 500;

/// How long the pages of a list are served from the listing that it began with. A caller that takes longer over them causes
/// another listing, which costs time and nothing else.
const LIST_TIME: Duration = Duration::from_secs(30);

/// The attribute that holds a volume's name for people.
pub const NAME: &str = "name";

/// A record's id, what is kept of it, and the session that owns it.
pub type Listed = (VolumeId, proto::hub::Volume, Option<SessionId>);

/// Reads records, and keeps what it read.
#[derive(Debug, Clone)]
pub struct Catalog {
    store: Store,
    state: State,
    /// When the last refresh began and how many records it found. Held by the one that runs.
    refreshed: Arc<Mutex<Option<(Instant, usize)>>>,
}

impl Catalog {
    /// Reads from `store`, keeps in `state`.
    pub fn new(store: Store, state: State) -> Self {
        Self { store, state, refreshed: Arc::default() }
    }

    /// Reads a record from the store.
    pub async fn read(&self, volume: &VolumeId) -> Result<Option<Record>, Error> {
        match cas::record::read(&self.store, volume).await? {
            Some(stored) => {
                self.state.keep(kept(&stored)).await?;
                Ok(Some(stored.value))
            }
            None => {
                self.state.forget(volume.clone()).await?;
                Ok(None)
            }
        }
    }

    /// Takes a living record from the node that has just written it.
    ///
    /// # Errors
    /// It is no record of this volume that lives.
    pub async fn told(&self, volume: &VolumeId, told: &proto::node::StoredRecord) -> Result<Record, Error> {
        let stored = cas::record::told(volume, &told.bytes, &told.etag)?;
        self.state.keep(kept(&stored)).await?;
        if stored.value.state == Life::Live {
            Ok(stored.value)
        } else {
            Err(Error::NotMadeYet { volume: volume.clone() })
        }
    }

    /// Reads a record that is there and was not deleted.
    ///
    /// # Errors
    /// [`Error::NoVolume`] where there is none, [`Error::NotMadeYet`] where it is being made.
    pub async fn living(&self, volume: &VolumeId) -> Result<Record, Error> {
        let missing = || Error::NoVolume { volume: volume.to_string() };
        let record = self.read(volume).await?.ok_or_else(missing)?;
        match record.state {
            Life::Live => Ok(record),
            Life::Creating => Err(Error::NotMadeYet { volume: volume.clone() }),
            Life::Deleted | Life::Purged => Err(missing()),
        }
    }

    /// Reads a volume that is there: not a template, snapshot, bundle or orphan.
    pub async fn volume(&self, volume: &VolumeId) -> Result<Record, Error> {
        let record = self.living(volume).await?;
        match record.kind {
            RecordKind::Volume => Ok(record),
            kind
            @ (RecordKind::Snapshot | RecordKind::Template | RecordKind::Bundle | RecordKind::Orphan) => {
                Err(Error::NotAVolume { volume: volume.clone(), kind: kind.as_str() })
            }
        }
    }

    /// Finds the id that a caller means: an id, or a name that one living record carries. The text of an id whose
    /// record is not there (any more) is that id, so that a second delete finds its tombstone.
    ///
    /// # Errors
    /// [`Error::AmbiguousName`]; [`Error::NoVolume`] for a name that is no id and that nothing carries.
    pub async fn find(&self, text: &str) -> Result<VolumeId, Error> {
        let name: ResourceName = proto::convert::required("volume_id", text)?;
        let id = name.as_str().parse::<VolumeId>().ok();
        if let Some(id) = &id
            && self.read(id).await?.is_some()
        {
            return Ok(id.clone());
        }
        let mut named = self.named(&name).await?;
        if named.is_empty() {
            self.refresh().await?;
            named = self.named(&name).await?;
        }
        match (named.len(), id) {
            (1, _) => Ok(named.remove(0)),
            (0, Some(id)) => Ok(id),
            (0, None) => Err(Error::NoVolume { volume: text.to_owned() }),
            (count, _) => Err(Error::AmbiguousName { name: text.to_owned(), count }),
        }
    }

    /// Returns the living records that carry a name, each read from the store.
    async fn named(&self, name: &ResourceName) -> Result<Vec<VolumeId>, Error> {
        let mut named = Vec::new();
        for volume in self.state.named(name.to_string()).await? {
            let record = self.read(&volume).await?;
            if record.is_some_and(|record| {
                record.state == Life::Live
                    && record.attributes.get(NAME).map(String::as_str) == Some(name.as_str())
            }) {
                named.push(volume);
            }
        }
        Ok(named)
    }

    /// Makes sure that a list which begins now misses nothing: all that is in the store when this is called is kept when it
    /// returns. The pages after a list's first one are served from what is kept then, as long as that is young.
    ///
    /// # Errors
    /// The store could not be listed, or a record not be read: a list is complete or an error.
    pub async fn begin_list(&self, goes_on: bool) -> Result<(), Error> {
        let now = self.store.clock().monotonic();
        let since = if goes_on { now.checked_sub(LIST_TIME).unwrap_or(now) } else { now };
        self.refreshed_since(since).await.map(drop)
    }

    /// Returns living records and their owners, in order of their ids.
    pub async fn range(&self, range: Range) -> Result<Vec<Listed>, Error> {
        let records = self.state.range(range).await?;
        let decoded =
            records.into_iter().map(|record| match proto::hub::Volume::decode(record.listed.as_slice()) {
                Ok(volume) => Ok((record.volume, volume, record.owner)),
                Err(_) => Err(Error::StateDamaged { volume: record.volume }),
            });
        decoded.collect()
    }

    /// Reads all records that changed, and forgets those that are gone. Returns how many there are.
    pub async fn refresh(&self) -> Result<usize, Error> {
        self.refreshed_since(self.store.clock().monotonic()).await
    }

    /// Waits for a refresh that began at `since` or later. One at a time: who waits for the present one is served by the
    /// next, together with all others that wait.
    async fn refreshed_since(&self, since: Instant) -> Result<usize, Error> {
        let mut last = self.refreshed.lock().await;
        if let Some((began, count)) = *last
            && began >= since
        {
            return Ok(count);
        }
        let began = self.store.clock().monotonic();
        let count = self.compare().await?;
        *last = Some((began, count));
        Ok(count)
    }

    /// Compares what is kept with the store's listing, page by page. What was read stays, also when a later page fails.
    async fn compare(&self) -> Result<usize, Error> {
        // Before the listing: what is read while it runs is not in here, and so is not forgotten.
        let mut kept = self.state.etags().await?;
        let mut count = 0;
        let mut after = None;
        loop {
            let page = self.store.objects().list(cas::keys::VOLUMES, after.as_ref()).await?;
            count += page.entries.len();
            let mut changed = Vec::new();
            for meta in page.entries {
                let text = meta.key.as_str().strip_prefix(cas::keys::VOLUMES).unwrap_or_default();
                if kept.remove(text).is_none_or(|etag| etag != meta.etag.as_str()) {
                    changed.push(volume_of(&meta.key)?);
                }
            }
            self.reread(changed).await?;
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        if !kept.is_empty() {
            self.state.forget_gone(kept.into_iter().collect()).await?;
        }
        Ok(count)
    }

    /// Reads these records and keeps them. One that went away meanwhile is forgotten.
    async fn reread(&self, volumes: Vec<VolumeId>) -> Result<(), Error> {
        let reads = volumes.into_iter().map(|volume| async move {
            let stored = cas::record::read(&self.store, &volume).await?;
            if stored.is_none() {
                self.state.forget(volume).await?;
            }
            Ok::<_, Error>(stored.as_ref().map(kept))
        });
        let mut batches = futures::stream::iter(reads).buffered(READ_AHEAD).try_chunks(KEPT_AT_ONCE);
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(|failed| failed.1)?;
            self.state.put_records(batch.into_iter().flatten().collect()).await?;
        }
        Ok(())
    }
}

fn volume_of(key: &Key) -> Result<VolumeId, Error> {
    let text = key.as_str().strip_prefix(cas::keys::VOLUMES).unwrap_or_default();
    text.parse().map_err(|_| Error::ForeignObject { key: key.clone() })
}

fn kept(stored: &Stored<Record>) -> KeptRecord {
    let record = &stored.value;
    let living = record.state == Life::Live;
    KeptRecord {
        volume: record.id.clone(),
        birth: record.birth,
        rev: record.rev,
        etag: stored.etag.as_str().to_owned(),
        name: if living { record.attributes.get(NAME).cloned().unwrap_or_default() } else { String::new() },
        owner: record.owner,
        kind: view::wire_kind(record.kind).into(),
        origin: record.origin.as_ref().map_or_else(String::new, |origin| origin.volume.to_string()),
        living,
        listed: if living { view::stored(record).encode_to_vec() } else { Vec::new() },
    }
}
