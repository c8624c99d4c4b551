//! Records as the hub reads them. The store is asked each time; what is kept saves the reading of those that did not
//! change, by their etags. So a list is complete or an error, whatever this hub has seen before.

use std::collections::{HashMap, HashSet};

use cas::objects::{Key, Meta};
use cas::record::{Record, RecordKind, State as Life};
use cas::{Store, Stored};
use futures::{StreamExt as _, TryStreamExt as _};
use types::{ResourceName, VolumeId};

use crate::error::Error;
use crate::state::{CachedRecord, State};

/// How many records are read at once.
const READ_AHEAD: usize = 16;

/// The attribute that holds a volume's name for people.
pub const NAME: &str = "name";

/// Reads records, and keeps what it read.
#[derive(Debug, Clone)]
pub struct Catalog {
    store: Store,
    state: State,
}

impl Catalog {
    /// Reads from `store`, keeps in `state`.
    pub fn new(store: Store, state: State) -> Self {
        Self { store, state }
    }

    /// Reads a record from the store.
    pub async fn read(&self, volume: &VolumeId) -> Result<Option<Record>, Error> {
        match cas::record::read(&self.store, volume).await? {
            Some(stored) => {
                self.state.put_records(vec![cached(&stored)]).await?;
                Ok(Some(stored.value))
            }
            None => {
                self.state.forget(volume.clone()).await?;
                Ok(None)
            }
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

    /// Returns records in order of their ids, beginning after `after`: one page of the store's listing, and the id
    /// after which to go on.
    pub async fn page(&self, after: Option<&VolumeId>) -> Result<(Vec<Record>, Option<VolumeId>), Error> {
        let after = after.map(cas::keys::volume);
        let page = self.store.objects().list(cas::keys::VOLUMES, after.as_ref()).await?;
        let next = page.next.as_ref().map(volume_of).transpose()?;
        Ok((self.load(&page.entries).await?, next))
    }

    /// Returns the records of a listing: from what is kept where the etag is the same, else from the store. One that
    /// went away meanwhile is left out.
    async fn load(&self, listed: &[Meta]) -> Result<Vec<Record>, Error> {
        let volumes: Vec<VolumeId> =
            listed.iter().map(|meta| volume_of(&meta.key)).collect::<Result<_, _>>()?;
        let kept: HashMap<VolumeId, CachedRecord> = self
            .state
            .records(volumes.clone())
            .await?
            .into_iter()
            .map(|record| (record.volume.clone(), record))
            .collect();
        let mut wanted = Vec::with_capacity(volumes.len());
        for (meta, volume) in listed.iter().zip(volumes) {
            let kept = kept.get(&volume).filter(|kept| kept.etag == meta.etag.as_str());
            let record = kept.and_then(|kept| serde_json::from_str::<Record>(&kept.json).ok());
            wanted.push((volume, record));
        }
        let reads = wanted.into_iter().map(|(volume, known)| async move {
            if known.is_some() {
                return Ok((known, None));
            }
            let stored = cas::record::read(&self.store, &volume).await?;
            let fresh = stored.as_ref().map(cached);
            Ok::<_, Error>((stored.map(|stored| stored.value), fresh))
        });
        let loaded: Vec<(Option<Record>, Option<CachedRecord>)> =
            futures::stream::iter(reads).buffered(READ_AHEAD).try_collect().await?;
        let mut records = Vec::with_capacity(loaded.len());
        let mut fresh = Vec::new();
        for (record, read) in loaded {
            records.extend(record);
            fresh.extend(read);
        }
        if !fresh.is_empty() {
            self.state.put_records(fresh).await?;
        }
        Ok(records)
    }

    /// Reads all records that changed, and forgets those that are gone. Returns how many there are.
    pub async fn refresh(&self) -> Result<usize, Error> {
        let mut there = HashSet::new();
        let mut after = None;
        loop {
            let (records, next) = self.page(after.as_ref()).await?;
            there.extend(records.into_iter().map(|record| record.id));
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let count = there.len();
        self.state.retain(there).await?;
        Ok(count)
    }
}

fn volume_of(key: &Key) -> Result<VolumeId, Error> {
    let text = key.as_str().strip_prefix(cas::keys::VOLUMES).unwrap_or_default();
    text.parse().map_err(|_| Error::ForeignObject { key: key.clone() })
}

fn cached(stored: &Stored<Record>) -> CachedRecord {
    let record = &stored.value;
    let living = record.state == Life::Live;
    CachedRecord {
        volume: record.id.clone(),
        etag: stored.etag.as_str().to_owned(),
        name: if living { record.attributes.get(NAME).cloned().unwrap_or_default() } else { String::new() },
        owner: record.owner,
        usable: living && record.kind == RecordKind::Volume,
        json: serde_json::to_string(record).expect("a record that was read as JSON can be written as JSON"),
    }
}
