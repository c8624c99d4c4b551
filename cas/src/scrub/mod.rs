//! Scrub: everything in the store is read and proved, also what nobody reads, and what is damaged is named with all that
//! it touches. Nothing is written.
//!
//! Packs are walked in the order of their names, at a rate, from a cursor; so a walk that ends goes on where it was. Small
//! objects and what they refer to are looked at in one go: they are small.

mod small;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use types::{EntryId, PackId, PoolId, VersionId, VolumeId};

use crate::error::Error;
use crate::gc::Moved;
use crate::keys;
use crate::objects::{Cap, Key, Meta, list_all};
use crate::record::Record;
use crate::store::Store;
use crate::tree::{Cache, Lost, Reader, TreeError, whole_frames};

/// How many paths of one version are named.
pub const MOST_PATHS: usize = 100;

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The object.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
    /// The versions of which something is lost by it.
    pub touches: Vec<Touches>,
}

/// What of one version is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Touches {
    /// On whose timeline it is.
    pub volume: VolumeId,
    /// The newest entry that is this version.
    pub entry: EntryId,
    /// The version.
    pub version: VersionId,
    /// Paths, for people. A directory ends with `/` and stands for all below it.
    pub paths: Vec<String>,
    /// There are more.
    pub more: bool,
}

/// What a scrub, or a part of one, did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Scrubbed {
    /// Small objects that were read and proved.
    pub objects: u64,
    /// Packs that were read and proved.
    pub packs: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// What is damaged.
    pub damages: Vec<Damage>,
    /// Packs that are damaged or missing.
    #[serde(skip)]
    pub lost: Lost,
    /// Where to go on; `None`: the walk is over.
    #[serde(skip)]
    pub next: Option<Key>,
}

impl Scrubbed {
    fn add(&mut self, more: Self) {
        self.objects += more.objects;
        self.packs += more.packs;
        self.bytes += more.bytes;
        self.damages.extend(more.damages);
        self.next = more.next;
    }
}

/// A walk over a store.
#[derive(Debug)]
pub struct Scrub {
    store: Store,
    reader: Reader,
    cap: Option<Cap>,
    /// Only packs that this pool wrote.
    pool: Option<PoolId>,
}

impl Scrub {
    /// Makes one that reads packs at this rate; `None`: as fast as it goes.
    pub fn new(store: Store, bytes_per_second: Option<u64>) -> Self {
        // Nothing is kept: what is proved is what others would read.
        let reader = Reader::new(store.clone(), Cache::new(0));
        Self { store, reader, cap: bytes_per_second.map(Cap::new), pool: None }
    }

    /// Looks only at packs that this pool wrote: then all nodes together look at each once.
    #[must_use]
    pub fn of_pool(mut self, pool: PoolId) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Reads everything, and says what the damage touches.
    ///
    /// # Errors
    /// The store could not be read.
    pub async fn whole(&self, mut progress: impl FnMut(&Scrubbed)) -> Result<Scrubbed, Error> {
        let mut all = self.small().await?;
        loop {
            let part = self.packs(all.next.take().as_ref(), usize::MAX).await?;
            all.lost.extend(part.lost.clone());
            all.add(part);
            progress(&all);
            if all.next.is_none() {
                break;
            }
        }
        self.touch(&mut all).await?;
        Ok(all)
    }

    /// Reads up to `most` packs, those after `after`; fewer where a listing ends.
    ///
    /// # Errors
    /// The store could not be read.
    pub async fn packs(&self, after: Option<&Key>, most: usize) -> Result<Scrubbed, Error> {
        let page = self.store.objects().list(keys::PACKS, after).await?;
        let mut part = Scrubbed { next: page.next, ..Scrubbed::default() };
        for meta in page.entries {
            let Ok(pack) = meta.key.as_str()[keys::PACKS.len()..].parse::<PackId>() else {
                let reason = "it lies among the packs and is none".to_owned();
                part.damages.push(Damage { key: meta.key.to_string(), reason, touches: Vec::new() });
                continue;
            };
            if self.pool.is_none_or(|pool| pool == pack.session.pool) {
                self.pack(&meta, &Arc::new(pack), &mut part).await?;
                if part.packs >= most as u64 {
                    part.next = Some(meta.key);
                    return Ok(part);
                }
            }
        }
        Ok(part)
    }

    /// Reads one pack whole and proves every byte of it.
    async fn pack(&self, meta: &Meta, pack: &Arc<PackId>, part: &mut Scrubbed) -> Result<(), Error> {
        if let Some(cap) = &self.cap {
            cap.take(meta.size).await;
        }
        part.packs += 1;
        part.bytes += meta.size;
        let error = match self.reader.check_pack(pack).await {
            Ok(_) => return Ok(()),
            // Collected since it was listed: then something else says where its frames are, or that nobody needs it.
            Err(TreeError::MissingPack { .. }) => return Ok(()),
            Err(error) if error.is_damage() => error,
            Err(error) => return Err(error.into()),
        };
        let whole = match self.store.objects().get_range(&meta.key, 0..meta.size).await {
            Ok(bytes) => whole_frames(pack, &bytes)?,
            Err(error) if error.is_not_found() => BTreeSet::new(),
            Err(error) => return Err(error.into()),
        };
        part.lost.add(PackId::clone(pack), whole);
        part.damages.push(Damage {
            key: meta.key.to_string(),
            reason: error.to_string(),
            touches: Vec::new(),
        });
        Ok(())
    }

    /// Says which files of which versions of which volumes the damaged packs touch.
    ///
    /// # Errors
    /// The store could not be read.
    pub async fn touch(&self, scrubbed: &mut Scrubbed) -> Result<(), Error> {
        if scrubbed.lost.is_empty() {
            return Ok(());
        }
        let mut lost = scrubbed.lost.clone();
        let now = self.follow_moves(&mut lost).await?;
        for record in self.records().await? {
            for (pack, touches) in self.touches_of(&record, &lost).await? {
                let key = keys::pack(now.get(&pack).unwrap_or(&pack)).to_string();
                if let Some(damage) = scrubbed.damages.iter_mut().find(|damage| damage.key == key) {
                    damage.touches.push(touches);
                }
            }
        }
        Ok(())
    }

    /// Trees go on naming packs whose frames were moved: adds those whose new place is damaged, and says which that is.
    async fn follow_moves(&self, lost: &mut Lost) -> Result<BTreeMap<PackId, PackId>, Error> {
        let mut all = Vec::new();
        for meta in list_all(&**self.store.objects(), keys::MOVED).await? {
            match self.store.read::<Moved>(&meta.key).await {
                Ok(Some(moved)) if moved.value.check(&meta.key).is_ok() => all.push(moved.value),
                // Told where the objects are looked at.
                Ok(_) | Err(Error::Corrupt { .. } | Error::NewerFormat { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let mut now = BTreeMap::<PackId, PackId>::new();
        // Frames may have moved several times; each round follows one step back.
        loop {
            let mut further = false;
            for moved in &all {
                let damaged = moved.to.keys().find(|to| lost.packs().any(|pack| pack == *to));
                let Some(damaged) = damaged.filter(|_| !lost.packs().any(|pack| *pack == moved.pack)) else {
                    continue;
                };
                let at = now.get(damaged).unwrap_or(damaged).clone();
                let whole = moved.to.iter().flat_map(|(to, moves)| {
                    moves.iter().filter(|one| lost.is_whole(to, one.new)).map(|one| one.old)
                });
                let whole = whole.collect();
                lost.add(moved.pack.clone(), whole);
                now.insert(moved.pack.clone(), at);
                further = true;
            }
            if !further {
                return Ok(now);
            }
        }
    }

    /// What the damaged packs touch of one volume, pack by pack.
    ///
    /// # Errors
    /// The store could not be read.
    pub async fn touches_of(&self, record: &Record, lost: &Lost) -> Result<Vec<(PackId, Touches)>, Error> {
        let mut touched = Vec::new();
        let mut seen = BTreeSet::new();
        let Some(entries) = self.entries(record).await? else { return Ok(touched) };
        for entry in entries.iter().rev() {
            for head in entry.heads.values().filter(|head| seen.insert(head.version)) {
                for pack in lost.packs() {
                    let one = lost.only(pack);
                    let found = self.reader.touched(head, &one, MOST_PATHS).await?;
                    if !found.paths.is_empty() {
                        let paths = found
                            .paths
                            .iter()
                            .map(|path| String::from_utf8_lossy(path).into_owned())
                            .collect();
                        let touches = Touches {
                            volume: record.id.clone(),
                            entry: entry.id,
                            version: head.version,
                            paths,
                            more: found.more,
                        };
                        touched.push((pack.clone(), touches));
                    }
                }
            }
        }
        Ok(touched)
    }
}
