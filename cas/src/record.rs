//! The record of a volume: who owns it, where its head is, and what its timeline holds. The truth about it.
//!
//! A record is created without references and after that changed only by rule U ([`crate::update`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use futures::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use types::{
    Birth, Domain, EntryId, Epoch, NodeName, Nonce, PoolId, RequestId, Rev, SessionId, VersionId, VolumeId,
};

use crate::VersionRef;
use crate::codec;
use crate::entry::{Entry, Tips, tips};
use crate::error::Error;
use crate::keys;
use crate::objects::{Etag, Key, list_all};
use crate::page::OlderPage;
use crate::store::{Store, Stored};
use crate::thin;
use crate::timeline::{Located, Place};

/// How many records are read at once for a list.
const READ_AHEAD: usize = 16;

/// What a record is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordKind {
    /// Something that is written to, by its owner.
    Volume,
    /// A sealed point in time.
    Snapshot,
    /// A sealed start for new volumes.
    Template,
    /// A sealed thing that was published.
    Bundle,
    /// What a session that had lost its place still held.
    Orphan,
}

impl RecordKind {
    /// Tells if such a record never changes its head and never has an owner once it is live.
    pub fn is_sealed(self) -> bool {
        match self {
            Self::Volume => false,
            Self::Snapshot | Self::Template | Self::Bundle | Self::Orphan => true,
        }
    }

    /// Returns the word that the record uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Volume => "volume",
            Self::Snapshot => "snapshot",
            Self::Template => "template",
            Self::Bundle => "bundle",
            Self::Orphan => "orphan",
        }
    }
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a record stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nobody was told that it exists.
    Creating,
    /// It exists.
    Live,
    /// It was deleted and can come back; its entries still hold their bytes.
    Deleted,
    /// It was deleted and its entries are gone. It stays until no pool holds a copy.
    Purged,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "being created",
            Self::Live => "live",
            Self::Deleted => "deleted",
            Self::Purged => "purged",
        })
    }
}

/// What a record was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The record.
    pub volume: VolumeId,
    /// Its entry, where it is known.
    pub entry: Option<EntryId>,
    /// The version of each member.
    pub versions: Tips,
}

/// How a volume changed hands without its owner: what that one had written and not published is not in the line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Takeover {
    /// Who lost it.
    pub from: SessionId,
    /// The loser's node: for people.
    pub node: Option<NodeName>,
    /// Who took it; none while it was only taken away.
    pub by: Option<SessionId>,
    /// The epoch that began with it.
    pub epoch: Epoch,
    /// When the head was published that the line goes on from: what came after is lost, or an orphan one day.
    pub durable: Option<types::Timestamp>,
    /// When it was taken, in the store's time.
    pub taken: types::Timestamp,
}

impl Takeover {
    /// The loss window, at most: nobody can say whether anything was written in it.
    pub fn window(&self) -> std::time::Duration {
        self.durable.map_or(std::time::Duration::ZERO, |durable| self.taken.since(durable))
    }
}

/// How much may be stored, and how much is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// The limit; `None` is unlimited, which somebody asked for.
    pub limit_bytes: Option<u64>,
    /// The charge when the head was published.
    pub charge_bytes: u64,
}

/// The record of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The format of this object.
    pub format: u32,
    /// The volume.
    pub id: VolumeId,
    /// Tells this record from every other that ever has the same id.
    pub birth: Birth,
    /// Counts the writes.
    pub rev: Rev,
    /// Tells this write from every other.
    pub nonce: Nonce,
    /// What it is of.
    pub kind: RecordKind,
    /// Whose packs its bytes may lie in.
    pub domain: Domain,
    /// Where it stands in its life.
    pub state: State,
    /// The session that may publish.
    pub owner: Option<SessionId>,
    /// The owner's node, or the last one's: a hint for people and placement, never an identity.
    pub node: Option<NodeName>,
    /// Counts the owners: a fencing token.
    pub epoch: Epoch,
    /// The newest entry of the volume's line; `None` before the first version.
    pub head: Option<EntryId>,
    /// The timeline, oldest first: its newest entries, and all that are named or manual. Older ones are in pages
    /// ([`crate::timeline`] has all).
    pub entries: Vec<Entry>,
    /// Pages of older entries, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub older: Vec<OlderPage>,
    /// Named entries that are never thinned.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub branches: BTreeMap<String, EntryId>,
    /// Entries that somebody reads right now (hydration, export), by who does.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pins: BTreeMap<String, EntryId>,
    /// What it was made from.
    pub origin: Option<Origin>,
    /// The request that made it.
    pub request: RequestId,
    /// The pools that hold a local copy.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub holders: BTreeSet<PoolId>,
    /// Its limit and charge.
    pub quota: Quota,
    /// How it was last taken from an owner that did not give it, if it ever was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takeover: Option<Box<Takeover>>,
    /// What platforms and people attach.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// When it was created, by its creator's clock.
    pub created: types::Timestamp,
}

impl Record {
    /// Returns the entry with this id, if the record itself holds it.
    pub fn entry(&self, id: &EntryId) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.id == *id)
    }

    /// Returns the head's entry.
    pub fn head_entry(&self) -> Option<&Entry> {
        self.head.as_ref().and_then(|head| self.entry(head))
    }

    /// Returns the head's versions; empty before the first.
    pub fn head_tips(&self) -> Tips {
        self.head_entry().map(|entry| tips(&entry.heads)).unwrap_or_default()
    }

    /// Returns the newest entry at this version, of those that the record itself holds.
    pub fn find_version(&self, version: &VersionId) -> Option<&Entry> {
        self.entries.iter().rev().find(|entry| entry.heads.values().any(|head| head.version == *version))
    }

    /// Returns the references of the entries that the record itself holds. Those in pages keep packs alive as well:
    /// [`crate::timeline::references`].
    pub fn references(&self) -> impl Iterator<Item = &VersionRef> {
        self.entries.iter().flat_map(|entry| entry.heads.values())
    }

    /// Returns the keys of its pages, which stay as long as it names them.
    pub fn page_keys(&self) -> impl Iterator<Item = Key> {
        self.older.iter().map(|older| keys::page(&self.id, &older.page))
    }

    /// Tells if an entry that was found is still where it was.
    pub fn holds(&self, located: &Located) -> bool {
        match located.place {
            None => self.entry(&located.entry.id).is_some(),
            Some(Place { page, number }) => {
                self.older.iter().any(|older| older.page == page && !older.gone.contains(number))
            }
        }
    }

    /// Takes an entry out of its page, so that it can be named.
    pub(crate) fn promote(&mut self, located: &Located) {
        let Some(Place { page, number }) = located.place else { return };
        let at = self.entries.partition_point(|entry| entry.time <= located.entry.time);
        self.entries.insert(at, located.entry.clone());
        thin::leave(self, &page, number);
    }

    /// How the present owner took it from one that did not give it; nothing where it was given.
    pub fn taken_over(&self) -> Option<&Takeover> {
        self.takeover.as_deref().filter(|taken| taken.epoch == self.epoch && taken.by == self.owner)
    }

    /// Notes that `owner` loses it to `by` (or to nobody yet), which begins the next epoch.
    pub(crate) fn taken_from(
        &self,
        owner: SessionId,
        by: Option<SessionId>,
        taken: types::Timestamp,
    ) -> Box<Takeover> {
        Box::new(Takeover {
            from: owner,
            node: self.node.clone(),
            by,
            epoch: self.epoch.next(),
            durable: self.head_entry().map(|entry| entry.time),
            taken,
        })
    }

    /// Returns the entries that no rule may thin.
    pub fn kept_entries(&self) -> BTreeSet<EntryId> {
        self.head.iter().chain(self.branches.values()).chain(self.pins.values()).copied().collect()
    }

    /// Checks what must hold in every record that is read or written, so that nothing later trusts a damaged one.
    pub(crate) fn check(&self, key: &Key) -> Result<(), Error> {
        if keys::volume(&self.id) != *key {
            return Err(Error::corrupt(key, format!("it is the record of {}", self.id)));
        }
        if let Some(reason) = self.older.iter().find_map(|page| page.check().err()) {
            return Err(Error::corrupt(key, reason));
        }
        let pages: BTreeSet<_> = self.older.iter().map(|older| older.page).collect();
        if pages.len() != self.older.len() {
            return Err(Error::corrupt(key, "a page is there twice"));
        }
        if let Some(entry) =
            self.entries.iter().find(|entry| entry.heads.is_empty() || !entry.is_itself(&self.id))
        {
            return Err(Error::corrupt(key, format!("entry {} is not what its id says", entry.id)));
        }
        let known: BTreeSet<&EntryId> = self.entries.iter().map(|entry| &entry.id).collect();
        if known.len() != self.entries.len() {
            return Err(Error::corrupt(key, "an entry is there twice"));
        }
        let named = self.head.iter().chain(self.branches.values()).chain(self.pins.values());
        match named.into_iter().find(|entry| !known.contains(entry)) {
            Some(entry) => {
                Err(Error::corrupt(key, format!("it names the entry {entry}, which it does not hold")))
            }
            None => Ok(()),
        }
    }
}

/// Reads the record of a volume; `None` if there is none.
pub async fn read(store: &Store, id: &VolumeId) -> Result<Option<Stored<Record>>, Error> {
    let key = keys::volume(id);
    let stored = store.read::<Record>(&key).await?;
    if let Some(stored) = &stored {
        stored.value.check(&key)?;
    }
    Ok(stored)
}

/// Takes a record from whoever has just read or written it, with its etag.
pub fn told(id: &VolumeId, bytes: &[u8], etag: &str) -> Result<Stored<Record>, Error> {
    let key = keys::volume(id);
    let value: Record = codec::decode_bytes(&key, bytes)?;
    value.check(&key)?;
    Ok(Stored { value, etag: Etag::new(etag), modified: types::Timestamp::default() })
}

/// Reads the record of a volume that must be there.
pub async fn get(store: &Store, id: &VolumeId) -> Result<Stored<Record>, Error> {
    read(store, id).await?.ok_or_else(|| Error::NoVolume { id: id.clone() })
}

/// Lists the ids of all records: complete, or an error.
pub async fn ids(store: &Store) -> Result<Vec<VolumeId>, Error> {
    let listed = list_all(&**store.objects(), keys::VOLUMES).await?;
    listed.iter().map(|meta| id_of(&meta.key)).collect()
}

/// Returns whose record an object is.
pub(crate) fn id_of(key: &Key) -> Result<VolumeId, Error> {
    let text = key.as_str().strip_prefix(keys::VOLUMES).unwrap_or_default();
    text.parse().map_err(|error: types::InvalidId| Error::corrupt(key, error.to_string()))
}

/// Reads all records: complete, or an error. One that is removed meanwhile may be absent.
pub async fn list(store: &Store) -> Result<Vec<Stored<Record>>, Error> {
    let ids = ids(store).await?;
    let records = futures::stream::iter(ids.into_iter().map(|id| {
        let store = store.clone();
        async move { read(&store, &id).await }
    }))
    .buffered(READ_AHEAD);
    records.try_filter_map(|record| async move { Ok(record) }).try_collect().await
}

/// What a new record says before it has a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecord {
    /// Its id, made from the request ([`VolumeId::for_request`]).
    pub id: VolumeId,
    /// What it is of.
    pub kind: RecordKind,
    /// Whose packs its bytes may lie in.
    pub domain: Domain,
    /// The session that will give it its first version.
    pub owner: SessionId,
    /// The owner's node.
    pub node: NodeName,
    /// What it is made from.
    pub origin: Option<Origin>,
    /// The request that makes it.
    pub request: RequestId,
    /// Its limit.
    pub quota: Quota,
    /// What its creator attaches.
    pub attributes: BTreeMap<String, String>,
}

impl NewRecord {
    /// Makes the record that is created: without references.
    pub(crate) fn into_record(self, created: types::Timestamp) -> Record {
        let Self { id, kind, domain, owner, node, origin, request, quota, attributes } = self;
        Record {
            format: codec::FORMAT,
            id,
            birth: Birth::random(),
            rev: Rev(1),
            nonce: Nonce::random(),
            kind,
            domain,
            state: State::Creating,
            owner: Some(owner),
            node: Some(node),
            epoch: Epoch(1),
            head: None,
            entries: Vec::new(),
            older: Vec::new(),
            branches: BTreeMap::new(),
            pins: BTreeMap::new(),
            origin,
            request,
            holders: BTreeSet::from([owner.pool]),
            quota,
            takeover: None,
            attributes,
            created,
        }
    }
}
