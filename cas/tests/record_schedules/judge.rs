//! The disk, which judges every write of a record and every deletion when it happens.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use cas::gc::{Gc, Moved, Phase};
use cas::objects::{Condition, Etag, Key, MemoryStore, Meta, Object, ObjectError, Objects, Page};
use cas::record::State;
use cas::session::{SessionRecord, SessionState};
use cas::tree::Location;
use cas::{Cache, Reader, Record, Role, Store, TreeError, VersionRef};
use types::{EntryId, PackId, SessionId, Timestamp, VersionId, VolumeId};

/// What happened, in numbers.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counts {
    pub(crate) published: u64,
    pub(crate) acquired: u64,
    pub(crate) forked: u64,
    pub(crate) restored: u64,
    pub(crate) orphaned: u64,
    pub(crate) fenced: u64,
    pub(crate) purged: u64,
    pub(crate) rounds: u64,
    pub(crate) deleted: u64,
    pub(crate) moved: u64,
    pub(crate) proved: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.published += other.published;
        self.acquired += other.acquired;
        self.forked += other.forked;
        self.restored += other.restored;
        self.orphaned += other.orphaned;
        self.fenced += other.fenced;
        self.purged += other.purged;
        self.rounds += other.rounds;
        self.deleted += other.deleted;
        self.moved += other.moved;
        self.proved += other.proved;
    }
}

/// What the store went through.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) counts: Counts,
    /// What each version holds.
    pub(crate) contents: HashMap<VersionId, BTreeSet<u32>>,
    /// What each put version needs.
    needs: HashMap<Location, Vec<PackId>>,
    /// Entries that somebody was told are durable and that no rule thins.
    pub(crate) acknowledged: BTreeSet<(VolumeId, EntryId)>,
    pub(crate) next_write: u32,
    records: BTreeMap<VolumeId, (Record, Timestamp)>,
    packs: BTreeSet<PackId>,
    moved: BTreeMap<PackId, Vec<PackId>>,
    fenced: BTreeSet<SessionId>,
    gc: Option<Gc>,
}

impl History {
    fn is_there(&self, pack: &PackId) -> bool {
        self.packs.contains(pack)
            || self.moved.get(pack).is_some_and(|to| to.iter().all(|to| self.is_there(to)))
    }

    /// I1, as far as packs tell.
    fn check_whole(&self, record: &Record, why: &str) {
        for reference in record.references() {
            for pack in &self.needs[&reference.manifest] {
                assert!(
                    self.is_there(pack),
                    "I1: {} lists {}, whose pack {pack} is gone after {why}",
                    record.id,
                    reference.version.short()
                );
            }
        }
    }

    /// Every pack that a listed version needs, wherever it is now.
    pub(crate) fn living(&self) -> BTreeSet<PackId> {
        let references = self.records.values().flat_map(|(record, _)| record.references());
        let mut todo: Vec<&PackId> =
            references.flat_map(|reference| &self.needs[&reference.manifest]).collect();
        let mut living = BTreeSet::new();
        while let Some(pack) = todo.pop() {
            if living.insert(pack.clone())
                && let Some(to) = self.moved.get(pack)
            {
                todo.extend(to);
            }
        }
        living
    }

    /// What I8 says must not be there.
    pub(crate) fn garbage(&self) -> Vec<PackId> {
        let living = self.living();
        self.packs.iter().chain(self.moved.keys()).filter(|pack| !living.contains(*pack)).cloned().collect()
    }

    fn judge(&mut self, author: Option<SessionId>, after: Record, now: Timestamp, grace_seconds: u64) {
        let before = self.records.get(&after.id);
        crate::trace(|| {
            let content = |record: &Record| -> Vec<BTreeSet<u32>> {
                record
                    .head_tips()
                    .values()
                    .filter_map(|version| self.contents.get(version))
                    .cloned()
                    .collect()
            };
            let was = before.map(|(before, _)| (before.owner, content(before)));
            format!(
                "{} rev {} by {author:?}: owner {:?}, epoch {}, {:?}, head {:?}, branches {:?}, {} entries; was {was:?}",
                after.id,
                after.rev.0,
                after.owner,
                after.epoch.0,
                after.state,
                content(&after),
                after.branches.keys(),
                after.entries.len()
            )
        });
        self.check_whole(&after, "a write of the record");
        if after.state != State::Purged {
            // I2: what was acknowledged stays: events are never thinned.
            let first = (after.id.clone(), EntryId([0; 32]));
            let mine = self.acknowledged.range(first..).take_while(|(volume, _)| *volume == after.id);
            for (volume, entry) in mine {
                assert!(after.entry(entry).is_some(), "I2: {volume} lost the entry {entry}");
            }
        }
        let Some((before, modified)) = before else {
            assert_eq!(after.references().count(), 0, "R: a record is created without references");
            self.records.insert(after.id.clone(), (after, now));
            return;
        };
        assert_eq!(after.rev.0, before.rev.0 + 1, "U: a write counts");
        assert!(after.nonce != before.nonce && after.birth == before.birth, "U: a nonce is fresh");
        if after.state == State::Purged && before.state != State::Purged {
            assert_eq!(before.state, State::Deleted, "only what was deleted is purged");
            assert!(now.since(*modified).as_secs() >= grace_seconds, "purged within its grace");
            self.counts.purged += 1;
        } else if after.head != before.head {
            let content = |record: &Record| -> BTreeSet<u32> {
                record.head_tips().values().flat_map(|version| &self.contents[version]).copied().collect()
            };
            // Restoring keeps what was before as a branch.
            let kept = before.head.is_none_or(|head| after.branches.values().any(|tip| *tip == head));
            assert!(
                kept || content(before).is_subset(&content(&after)),
                "I2: the head of {} went back from {:?} to {:?} by {author:?}",
                after.id,
                content(before),
                content(&after)
            );
            let owner = before.owner.expect("I3: what nobody owns was published");
            // A write that was held may land when its process has long joined again: the pool is what both share.
            let pool = author.map(|author| author.pool);
            assert_eq!(Some(owner.pool), pool, "I3: {} was published by another", after.id);
        }
        if after.owner != before.owner && after.owner.is_some() {
            assert!(after.epoch > before.epoch, "I3: a new owner without a new epoch");
        }
        // I5: what is doomed gains no reference.
        if let Some(gc) = self.gc.as_ref().filter(|gc| gc.phase == Phase::Doomed) {
            let held: HashSet<&VersionRef> =
                self.records.values().flat_map(|(r, _)| r.references()).collect();
            for reference in after.references().filter(|reference| !held.contains(reference)) {
                for pack in &self.needs[&reference.manifest] {
                    let doomed = gc.doomed.contains(pack) && !gc.relocations.contains_key(pack);
                    assert!(!doomed, "I5: {} gained a reference to the doomed {pack}", after.id);
                }
            }
        }
        self.records.insert(after.id.clone(), (after, now));
    }
}

/// One process's way to the disk.
#[derive(Debug)]
pub(crate) struct Judge {
    pub(crate) disk: MemoryStore,
    pub(crate) history: Arc<Mutex<History>>,
    pub(crate) author: Mutex<Option<SessionId>>,
    pub(crate) grace_seconds: u64,
}

impl Judge {
    pub(crate) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap()
    }

    /// Learns what a version needs, and what it holds.
    pub(crate) async fn learn(&self, store: &Store, tree: &VersionRef, writes: &BTreeSet<u32>) {
        let manifest = match Reader::new(store.clone(), Cache::new(0)).manifest(tree).await {
            // Its author was fenced while the pack was on its way, and the collection was faster. Whoever lists it now is
            // caught: nobody knows what it needs.
            Err(TreeError::MissingPack { .. }) => return,
            manifest => manifest.unwrap(),
        };
        let mut needs: Vec<PackId> =
            manifest.packs.iter().map(|needed| PackId::clone(&needed.pack)).collect();
        needs.push(PackId::clone(&tree.manifest.pack));
        let mut history = self.history();
        history.needs.insert(tree.manifest.clone(), needs);
        history.contents.insert(tree.version, writes.clone());
    }
}

#[async_trait]
impl Objects for Judge {
    async fn get(&self, key: &Key) -> Result<Object, ObjectError> {
        self.disk.get(key).await
    }

    async fn get_range(&self, key: &Key, range: std::ops::Range<u64>) -> Result<Bytes, ObjectError> {
        self.disk.get_range(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<Meta, ObjectError> {
        self.disk.head(key).await
    }

    // Nothing in here waits, and a schedule runs on one thread: writing and judging are one step.
    async fn put(&self, key: &Key, bytes: Bytes, condition: &Condition) -> Result<Etag, ObjectError> {
        let etag = self.disk.put(key, bytes.clone(), condition).await?;
        let now = self.disk.head(key).await.unwrap().modified;
        let (kind, name) = key.as_str().split_once('/').unwrap_or((key.as_str(), ""));
        let mut history = self.history();
        match kind {
            "vol" => {
                let author = *self.author.lock().unwrap();
                let after = cas::decode_bytes(key, &bytes).unwrap();
                history.judge(author, after, now, self.grace_seconds);
            }
            "pack" => drop(history.packs.insert(name.parse().unwrap())),
            "moved" => {
                let moved: Moved = cas::decode_bytes(key, &bytes).unwrap();
                history.counts.moved += 1;
                history.moved.insert(moved.pack, moved.to.into_keys().collect());
            }
            "session" => {
                let session: SessionRecord = cas::decode_bytes(key, &bytes).unwrap();
                if session.state == SessionState::Fenced {
                    history.counts.fenced += u64::from(history.fenced.insert(session.id));
                } else {
                    assert!(!history.fenced.contains(&session.id), "{} lives again", session.id);
                }
            }
            "gc" => history.gc = Some(cas::decode_bytes(key, &bytes).unwrap()),
            _ => {}
        }
        Ok(etag)
    }

    async fn delete(&self, key: &Key) -> Result<(), ObjectError> {
        self.disk.delete(key).await?;
        let (kind, name) = key.as_str().split_once('/').unwrap_or((key.as_str(), ""));
        let mut history = self.history();
        match kind {
            "vol" => drop(history.records.remove(&name.parse::<VolumeId>().unwrap())),
            "pack" => {
                let pack: PackId = name.parse().unwrap();
                history.counts.deleted += u64::from(history.packs.remove(&pack));
            }
            "moved" => drop(history.moved.remove(&name.parse::<PackId>().unwrap())),
            _ => return Ok(()),
        }
        for (record, _) in history.records.values() {
            history.check_whole(record, key.as_str());
        }
        Ok(())
    }

    async fn list(&self, prefix: &str, after: Option<&Key>) -> Result<Page, ObjectError> {
        self.disk.list(prefix, after).await
    }

    fn describe(&self) -> String {
        "a judged store in memory".to_owned()
    }
}

/// The role of an entry that stays, or of one that rolls away after five more.
pub(crate) fn role(stays: bool) -> Role {
    if stays { Role::Event } else { Role::Manual }
}
