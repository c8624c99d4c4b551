//! Everything that names packs: records with all their entries, and the manifests of those.
//!
//! A record is read again only where the listed etag changed; manifests are immutable and kept. Whatever cannot be read
//! ends the round, because what it names cannot be told from garbage.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use types::{Birth, EntryId, PackId, PoolId, SessionId, Timestamp, VolumeId};

use super::moved::Moved;
use crate::VersionRef;
use crate::error::Error;
use crate::keys;
use crate::objects::{Etag, Key, Meta, list_all};
use crate::record::{self, Record, RecordKind, State};
use crate::store::Store;
use crate::timeline;
use crate::tree::{Location, PackUse, Reader, TreeError};

/// How many objects are read at once.
const READ_AHEAD: usize = 16;

/// How often a record may be replaced while it is read.
const MAX_LOOKS: u32 = 8;

/// A version that a record holds, and which of its entries does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) entry: EntryId,
    pub(super) tree: VersionRef,
}

/// What the collection knows of a record.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) etag: Etag,
    pub(super) modified: Timestamp,
    pub(super) kind: RecordKind,
    pub(super) state: State,
    pub(super) birth: Birth,
    pub(super) owner: Option<SessionId>,
    pub(super) holders: BTreeSet<PoolId>,
    pub(super) roots: Vec<Root>,
    /// Its pages of older entries.
    pub(super) pages: Vec<Key>,
}

/// What a version needs of one pack.
pub(super) type Needs = Vec<(Arc<PackId>, PackUse)>;

/// Who names a pack.
#[derive(Debug, Clone)]
pub(super) struct Naming {
    /// One of those who do.
    pub(super) volume: VolumeId,
    /// Which entry of it.
    pub(super) entry: EntryId,
    /// How many entries do.
    pub(super) entries: usize,
    /// The most plain bytes that one version uses of it.
    pub(super) bytes: u64,
}

/// The roots as of the last refresh.
#[derive(Debug)]
pub(super) struct Roots {
    store: Store,
    reader: Reader,
    pub(super) records: BTreeMap<VolumeId, Known>,
    manifests: HashMap<Location, Arc<Needs>>,
    pub(super) moved: BTreeMap<PackId, Arc<Moved>>,
    names: HashSet<Arc<PackId>>,
}

impl Roots {
    pub(super) fn new(store: Store, reader: Reader) -> Self {
        Self {
            store,
            reader,
            records: BTreeMap::new(),
            manifests: HashMap::new(),
            moved: BTreeMap::new(),
            names: HashSet::new(),
        }
    }

    /// Reads what changed: records, their manifests, and `moved/`.
    pub(super) async fn refresh(&mut self) -> Result<(), Error> {
        self.refresh_records().await?;
        self.refresh_manifests().await?;
        self.refresh_moved().await
    }

    /// Reads the records that changed.
    pub(super) async fn refresh_records(&mut self) -> Result<(), Error> {
        let listed = list_all(&**self.store.objects(), keys::VOLUMES).await?;
        let mut there = BTreeSet::new();
        let mut changed = Vec::new();
        for meta in &listed {
            let id = record::id_of(&meta.key)?;
            if self.records.get(&id).is_none_or(|known| known.etag != meta.etag) {
                changed.push(id.clone());
            }
            there.insert(id);
        }
        self.records.retain(|id, _| there.contains(id));
        let store = &self.store;
        let mut reads = futures::stream::iter(changed)
            .map(|id| async move {
                let known = read(store, &id).await?;
                Ok::<_, Error>((id, known))
            })
            .buffer_unordered(READ_AHEAD);
        while let Some((id, known)) = reads.try_next().await? {
            match known {
                Some(known) => drop(self.records.insert(id, known)),
                None => drop(self.records.remove(&id)),
            }
        }
        Ok(())
    }

    /// Reads the manifests that are not known yet, and forgets those that nobody names.
    async fn refresh_manifests(&mut self) -> Result<(), Error> {
        let mut wanted: BTreeMap<&Location, (&VolumeId, &Root)> = BTreeMap::new();
        for (id, known) in &self.records {
            for root in &known.roots {
                wanted.entry(&root.tree.manifest).or_insert((id, root));
            }
        }
        self.manifests.retain(|location, _| wanted.contains_key(location));
        let missing: Vec<(VolumeId, Root)> = wanted
            .into_iter()
            .filter(|(location, _)| !self.manifests.contains_key(*location))
            .map(|(_, (id, root))| (id.clone(), root.clone()))
            .collect();
        let reader = &self.reader;
        let mut reads = futures::stream::iter(missing)
            .map(|(volume, root)| async move {
                match reader.manifest(&root.tree).await {
                    Ok(manifest) => Ok((root.tree.manifest, manifest)),
                    Err(source) => Err(unreadable(volume, root.entry, source)),
                }
            })
            .buffer_unordered(READ_AHEAD);
        while let Some((location, manifest)) = reads.try_next().await? {
            let own = PackUse { references: 1, bytes: u64::from(location.raw_len) };
            let mut needs: Needs = Vec::with_capacity(manifest.packs.len() + 1);
            for (pack, used) in manifest
                .packs
                .iter()
                .map(|needed| (&needed.pack, needed.used))
                .chain(std::iter::once((&location.pack, own)))
            {
                let name = match self.names.get(pack) {
                    Some(name) => Arc::clone(name),
                    None => {
                        self.names.insert(Arc::clone(pack));
                        Arc::clone(pack)
                    }
                };
                needs.push((name, used));
            }
            self.manifests.insert(location, Arc::new(needs));
        }
        self.names.retain(|name| Arc::strong_count(name) > 1);
        Ok(())
    }

    /// Reads the `moved/` objects that are not known yet; they are immutable.
    async fn refresh_moved(&mut self) -> Result<(), Error> {
        let listed = list_all(&**self.store.objects(), keys::MOVED).await?;
        let packs: BTreeSet<PackId> =
            listed.iter().map(|meta| pack_of(meta, keys::MOVED)).collect::<Result<_, _>>()?;
        self.moved.retain(|pack, _| packs.contains(pack));
        let missing: Vec<PackId> = packs.into_iter().filter(|pack| !self.moved.contains_key(pack)).collect();
        let store = &self.store;
        let mut reads = futures::stream::iter(missing)
            .map(|pack| async move {
                let key = keys::moved(&pack);
                let found = store.read::<Moved>(&key).await?;
                if let Some(found) = &found {
                    found.value.check(&key)?;
                }
                Ok::<_, Error>((pack, found))
            })
            .buffer_unordered(READ_AHEAD);
        while let Some((pack, found)) = reads.try_next().await? {
            if let Some(found) = found {
                self.moved.insert(pack, Arc::new(found.value));
            }
        }
        Ok(())
    }

    /// Every version, with who holds it.
    pub(super) fn versions(&self) -> impl Iterator<Item = (&VolumeId, &Root)> {
        self.records.iter().flat_map(|(id, known)| known.roots.iter().map(move |root| (id, root)))
    }

    /// The packs that a version needs. Every version of the last refresh has them.
    pub(super) fn needs(&self, root: &Root) -> &Needs {
        &self.manifests[&root.tree.manifest]
    }

    /// Every page that is named.
    pub(super) fn pages(&self) -> BTreeSet<&Key> {
        self.records.values().flat_map(|known| &known.pages).collect()
    }

    /// Every pack that is named, and by whom.
    pub(super) fn named(&self) -> BTreeMap<PackId, Naming> {
        let mut named: BTreeMap<PackId, Naming> = BTreeMap::new();
        for (volume, root) in self.versions() {
            for (pack, used) in self.needs(root) {
                if let Some(naming) = named.get_mut(&**pack) {
                    naming.entries += 1;
                    naming.bytes = naming.bytes.max(used.bytes);
                } else {
                    let naming =
                        Naming { volume: volume.clone(), entry: root.entry, entries: 1, bytes: used.bytes };
                    named.insert(PackId::clone(pack), naming);
                }
            }
        }
        named
    }
}

/// Reads a record with all versions that it holds, those in its pages too.
async fn read(store: &Store, id: &VolumeId) -> Result<Option<Known>, Error> {
    let mut looks = 0;
    loop {
        let Some(found) = record::read(store, id).await? else { return Ok(None) };
        let entries = match timeline::entries(store, &found.value).await {
            // The record was replaced while its pages were read.
            Err(Error::NoPage { .. }) if looks < MAX_LOOKS => {
                looks += 1;
                continue;
            }
            entries => entries?,
        };
        let roots = entries
            .into_iter()
            .flat_map(|entry| entry.heads.into_values().map(move |tree| Root { entry: entry.id, tree }));
        let (roots, pages) = (roots.collect(), found.value.page_keys().collect());
        let Record { kind, state, birth, owner, holders, .. } = found.value;
        let (etag, modified) = (found.etag, found.modified);
        return Ok(Some(Known { etag, modified, kind, state, birth, owner, holders, roots, pages }));
    }
}

/// The pack that an object below `prefix` is of.
pub(super) fn pack_of(meta: &Meta, prefix: &str) -> Result<PackId, Error> {
    let text = meta.key.as_str().strip_prefix(prefix).unwrap_or_default();
    text.parse().map_err(|error: types::InvalidId| Error::corrupt(&meta.key, error.to_string()))
}

pub(super) fn unreadable(volume: VolumeId, entry: EntryId, source: TreeError) -> Error {
    // Where the store was away, that says nothing about the version.
    if let TreeError::Object(error) = source {
        return error.into();
    }
    Error::UnreadableRoot { volume, entry, source: Box::new(source) }
}
