//! The small objects, and whether what they refer to is there.

use std::collections::{BTreeMap, BTreeSet};

use types::PackId;

use super::{Damage, Scrub, Scrubbed};
use crate::codec;
use crate::entry::Entry;
use crate::error::Error;
use crate::gc::{Gc, Moved};
use crate::keys;
use crate::names::{self, NameKind};
use crate::objects::{Key, Meta, list_all};
use crate::record::{self, Record, State};
use crate::session::SessionRecord;
use crate::store::StoreObject;
use crate::timeline;
use crate::tree::TreeError;

/// What is there, by what it is.
#[derive(Default)]
struct There {
    packs: BTreeMap<PackId, u64>,
    /// Packs whose frames were moved elsewhere.
    moved: BTreeSet<PackId>,
    moved_to: BTreeSet<PackId>,
    sessions: BTreeMap<String, u64>,
    records: BTreeSet<String>,
    pages: BTreeSet<Key>,
    gc_epoch: u64,
    names: Vec<(NameKind, Key)>,
}

impl Scrub {
    /// Reads every small object, and proves it and what it refers to: names lead to records, records to sessions and
    /// manifests, manifests to packs of the right length.
    ///
    /// # Errors
    /// The store could not be read.
    pub async fn small(&self) -> Result<Scrubbed, Error> {
        let mut found = Scrubbed::default();
        let mut there = There::default();
        let listed = list_all(&**self.store.objects(), "").await?;
        for meta in &listed {
            self.object(meta, &mut there, &mut found).await?;
        }
        self.gone(&there, &mut found);
        for record in self.records().await? {
            self.references(&record, &there, &mut found).await?;
        }
        self.names(&there, &mut found).await?;
        Ok(found)
    }

    /// Reads one object that is no pack.
    async fn object(&self, meta: &Meta, there: &mut There, found: &mut Scrubbed) -> Result<(), Error> {
        let key = meta.key.as_str();
        let (place, rest) = key.split_once('/').unwrap_or((key, ""));
        match place {
            "pack" => {
                if let Ok(pack) = rest.parse() {
                    there.packs.insert(pack, meta.size);
                }
                return Ok(());
            }
            // What probes and other tests leave harms nobody.
            "probe" | "contract" => return Ok(()),
            _ => {}
        }
        let object = match self.store.objects().get(&meta.key).await {
            Ok(object) => object,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        found.objects += 1;
        let proved = match place {
            "store" => codec::decode::<StoreObject>(&object).map(drop),
            "session" => codec::decode::<SessionRecord>(&object).map(|session| {
                there.sessions.insert(session.id.to_string(), session.pin);
            }),
            "vol" => {
                there.records.insert(rest.to_owned());
                codec::decode::<Record>(&object).and_then(|record| record.check(&meta.key))
            }
            "gc" => codec::decode::<Gc>(&object).map(|gc| there.gc_epoch = gc.epoch),
            "name" => {
                let kind = rest.split('/').next().and_then(NameKind::parse);
                there.names.extend(kind.map(|kind| (kind, meta.key.clone())));
                names::prove(&object)
            }
            "page" => {
                there.pages.insert(meta.key.clone());
                let named = rest.rsplit('/').next().unwrap_or_default();
                if blake3::hash(&object.bytes).to_hex().as_str() == named {
                    codec::prove(&object)
                } else {
                    Err(Error::corrupt(&meta.key, "its bytes are not those that its name promises"))
                }
            }
            "moved" => {
                there.moved.extend(rest.parse::<PackId>());
                codec::decode::<Moved>(&object).and_then(|moved| {
                    moved.check(&meta.key)?;
                    there.moved_to.extend(moved.to.into_keys());
                    Ok(())
                })
            }
            _ => codec::prove(&object),
        };
        match proved {
            Ok(()) => Ok(()),
            Err(error @ (Error::Corrupt { .. } | Error::NewerFormat { .. })) => {
                found.damages.push(damage(key, error.to_string()));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// What must be there, and is not.
    fn gone(&self, there: &There, found: &mut Scrubbed) {
        let pinned = there.sessions.values().max().copied().unwrap_or(0);
        if pinned > there.gc_epoch {
            let reason = format!("it is gone or older than its readers: a session has pinned epoch {pinned}");
            found.damages.push(damage("gc", reason));
        }
        for pack in there.moved_to.iter().filter(|pack| !there.packs.contains_key(*pack)) {
            self.miss(pack.clone(), there, found);
        }
    }

    /// The records that can be read.
    pub(super) async fn records(&self) -> Result<Vec<Record>, Error> {
        let mut records = Vec::new();
        for id in record::ids(&self.store).await? {
            match record::read(&self.store, &id).await {
                Ok(record) => records.extend(record.map(|stored| stored.value)),
                // Told where the objects are looked at.
                Err(Error::Corrupt { .. } | Error::NewerFormat { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// All entries of a record, those in pages too; nothing where a page is damaged, which is told elsewhere.
    pub(super) async fn entries(&self, record: &Record) -> Result<Option<Vec<Entry>>, Error> {
        match timeline::entries(&self.store, record).await {
            Ok(entries) => Ok(Some(entries)),
            Err(Error::NoPage { .. } | Error::Corrupt { .. } | Error::NewerFormat { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a record refers to.
    async fn references(&self, record: &Record, there: &There, found: &mut Scrubbed) -> Result<(), Error> {
        if let Some(owner) = record.owner.map(|owner| owner.to_string())
            && !there.sessions.contains_key(&owner)
            && record.state != State::Purged
        {
            let reason =
                format!("it is gone, and owns {}; an acquisition by force takes the volume", record.id);
            found.damages.push(damage(&format!("{}{owner}", keys::SESSIONS), reason));
        }
        for key in record.page_keys().filter(|key| !there.pages.contains(key)) {
            let reason = format!("it is gone, and {} keeps older entries in it", record.id);
            self.once(damage(key.as_str(), reason), found);
        }
        let entries = match self.entries(record).await? {
            Some(entries) => entries,
            // What the record itself holds is looked at all the same.
            None => record.entries.clone(),
        };
        let mut seen = BTreeSet::new();
        let heads = entries.iter().flat_map(|entry| entry.heads.values());
        for head in heads.filter(|head| seen.insert(head.version)) {
            let needed = match self.reader.manifest(head).await {
                Ok(manifest) => manifest,
                Err(TreeError::MissingPack { .. }) => {
                    self.miss(PackId::clone(&head.manifest.pack), there, found);
                    continue;
                }
                // Damage inside of a pack is found where packs are read.
                Err(error) if error.is_damage() => continue,
                Err(error) => return Err(error.into()),
            };
            for needed in &needed.packs {
                match there.packs.get(&*needed.pack) {
                    None => self.miss(PackId::clone(&needed.pack), there, found),
                    Some(size) if needed.object_bytes.is_some_and(|told| told != *size) => {
                        let told = needed.object_bytes.unwrap_or(0);
                        let reason = format!("it has {size} bytes, and its versions say {told}");
                        self.once(damage(keys::pack(&needed.pack).as_str(), reason), found);
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    fn miss(&self, pack: PackId, there: &There, found: &mut Scrubbed) {
        if there.moved.contains(&pack) {
            return;
        }
        self.once(damage(keys::pack(&pack).as_str(), "it is gone, and versions need it".to_owned()), found);
        found.lost.add(pack, BTreeSet::new());
    }

    fn once(&self, damage: Damage, found: &mut Scrubbed) {
        if !found.damages.iter().any(|other| other.key == damage.key) {
            found.damages.push(damage);
        }
    }

    /// Where names lead.
    async fn names(&self, there: &There, found: &mut Scrubbed) -> Result<(), Error> {
        for kind in there.names.iter().map(|(kind, _)| *kind).collect::<BTreeSet<_>>() {
            let named = match names::list(&self.store, kind).await {
                Ok(named) => named,
                Err(Error::Corrupt { .. } | Error::NewerFormat { .. }) => continue,
                Err(error) => return Err(error),
            };
            for (name, id) in named {
                if !there.records.contains(id.as_str()) {
                    let reason = format!("it is gone, and the {} {name} leads to it", kind.as_str());
                    self.once(damage(keys::volume(&id).as_str(), reason), found);
                }
            }
        }
        Ok(())
    }
}

fn damage(key: &str, reason: String) -> Damage {
    Damage { key: key.to_owned(), reason, touches: Vec::new() }
}
