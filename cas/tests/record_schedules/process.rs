//! A node's process: it does at random what nodes do, under faults, and keeps the rules by calling the real code.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cas::entry::{data_head, tips};
use cas::gc::{Collector, Settings};
use cas::guard::Known;
use cas::lifecycle::{self, Authority, NewSealed, Publication, Target};
use cas::objects::{CallKind, Fault, FaultStore, Objects};
use cas::record::Quota;
use cas::session::Resumed;
use cas::tree::{Files, put_flat};
use cas::{
    Cache, Claim, Error, Operation, Reader, RecordKind, Retry, Session, Store, VersionRef, references,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use types::{Change, ManualClock, MemberName, NodeName, PackId, PoolId, VersionId, VolumeId};

use crate::judge::{History, Judge, role};
use crate::turns::{Turns, turns};
use crate::world::{World, domain, id, new_record};

/// No patience: what is not answered at once is unsettled, and no clock decides anything.
const RETRY: Retry = Retry { first: Duration::ZERO, longest: Duration::ZERO, patience: Duration::ZERO };

/// A way to the disk with faults and turns of its own.
pub(crate) async fn open(
    world: &World,
    history: &Arc<Mutex<History>>,
    seed: u64,
    stalls: Option<u32>,
) -> (Arc<Judge>, FaultStore, Store) {
    let judge = Arc::new(Judge {
        disk: world.disk.clone(),
        history: Arc::clone(history),
        author: Mutex::new(None),
        grace_seconds: settings().grace.as_secs(),
    });
    let random = Mutex::new(StdRng::seed_from_u64(seed ^ 0x7045));
    let turns = Turns { inner: Arc::clone(&judge), random, stalls };
    let faults = FaultStore::new(Arc::new(turns));
    let objects: Arc<dyn Objects> = Arc::new(faults.clone());
    let store = Store::create_or_open(objects, Arc::new(world.clock.clone())).await.unwrap().into_inner();
    (judge, faults, store.with_retry(RETRY))
}

pub(crate) fn settings() -> Settings {
    Settings {
        fence_after: Duration::from_secs(25),
        patience: Duration::ZERO,
        poll: Duration::ZERO,
        least_gain_bytes: 1,
        cache_bytes: 1 << 20,
        grace: Duration::from_secs(30),
        retire_after: Duration::from_secs(40),
        ..Settings::default()
    }
}

pub(crate) fn break_things(faults: &FaultStore, seed: u64, one_in: u32) {
    let mut random = StdRng::seed_from_u64(seed ^ 0x5eed);
    faults.plan(move |call| match random.random_range(0..one_in) {
        0 => Fault::Unavailable,
        1 => Fault::LostAnswer,
        2 if call.kind == CallKind::Put => Fault::Duplicate,
        3 if call.kind == CallKind::Put => Fault::Conflict,
        4 if call.kind.is_write() => Fault::Held,
        _ => Fault::None,
    });
}

/// What the files of a version are: one for each write that it has.
pub(crate) fn files(writes: &BTreeSet<u32>) -> Files {
    let file = |write: &u32| {
        let bytes = format!("{write} was written here. ").repeat(1 + *write as usize % 7);
        (format!("w{write}"), Bytes::from(bytes))
    };
    writes.iter().map(file).collect()
}

/// What a process has of a volume.
struct Copy {
    claim: Claim,
    live: BTreeSet<u32>,
    snaps: BTreeSet<VersionId>,
    base: VersionRef,
    /// Where a restore that was not answered may have taken the head.
    restoring: Option<VersionId>,
}

pub(crate) struct Process {
    pub(crate) faults: FaultStore,
    judge: Arc<Judge>,
    store: Store,
    reader: Reader,
    session: Session,
    name: NodeName,
    copies: BTreeMap<VolumeId, Copy>,
    history: Arc<Mutex<History>>,
    random: StdRng,
    clock: ManualClock,
    made: u32,
}

impl Process {
    pub(crate) async fn start(world: &World, history: &Arc<Mutex<History>>, name: &str, seed: u64) -> Self {
        let (judge, faults, store) = open(world, history, seed, Some(150)).await;
        let reader = Reader::new(store.clone(), Cache::new(1 << 20));
        let name: NodeName = name.parse().unwrap();
        let pool = PoolId(ulid_of(seed));
        let session = Session::join(&store, pool, 1, &name, "host").await.unwrap();
        *judge.author.lock().unwrap() = Some(session.id());
        break_things(&faults, seed, 30);
        let (history, random) = (Arc::clone(history), StdRng::seed_from_u64(seed));
        let (copies, clock) = (BTreeMap::new(), world.clock.clone());
        Self { faults, judge, store, reader, session, name, copies, history, random, clock, made: 0 }
    }

    async fn put(
        &self,
        operation: &Operation,
        writes: &BTreeSet<u32>,
        base: Option<&VersionRef>,
    ) -> Result<VersionRef, Error> {
        let base = base.map(|base| (&self.reader, base));
        let tree = put_flat(operation, &domain(), &files(writes), base).await?;
        // What it needs is read from the disk itself: no fault, and nobody in between.
        let disk: Arc<dyn Objects> = Arc::new(self.judge.disk.clone());
        let disk = Store::open(disk, Arc::new(self.clock.clone())).await.unwrap();
        self.judge.learn(&disk, &tree, writes).await;
        Ok(tree)
    }

    async fn packs_of(&self, tree: &VersionRef) -> Result<BTreeSet<PackId>, Error> {
        let manifest = self.reader.manifest(tree).await?;
        Ok(manifest.packs.iter().map(|needed| PackId::clone(&needed.pack)).collect())
    }

    /// A restore of ours that was not answered is over before anything is built on what it did. Returns the head.
    async fn settle_restore(&mut self, volume: &VolumeId) -> Result<Option<VersionRef>, Error> {
        self.session.settle().await?;
        let record = cas::record::read(&self.store, volume).await?;
        let head = record.as_ref().and_then(|record| record.value.head_entry());
        let head = head.and_then(|entry| entry.heads.get(&MemberName::data()).cloned());
        if let (Some(copy), Some(head)) = (self.copies.get_mut(volume), &head)
            && copy.restoring.take().is_some_and(|target| target == head.version)
        {
            // The swap that had not happened: live is what the record says.
            copy.live = self.history.lock().unwrap().contents[&head.version].clone();
            copy.base = head.clone();
        }
        Ok(head)
    }

    /// Publishes one more write, on top of whatever the record has of ours.
    async fn publish(&mut self, volume: &VolumeId) -> Result<(), Error> {
        let operation = self.session.begin()?;
        if !self.copies.contains_key(volume) {
            return Ok(());
        }
        let head = self.settle_restore(volume).await?;
        let write = {
            let mut history = self.history.lock().unwrap();
            history.next_write += 1;
            history.next_write
        };
        let Some(copy) = self.copies.get_mut(volume) else { return Ok(()) };
        copy.live.insert(write);
        // Base turns to the head, if that is one of ours.
        if let Some(head) = head.filter(|head| copy.snaps.contains(&head.version)) {
            copy.base = head;
        }
        let (live, base, claim) = (copy.live.clone(), copy.base.clone(), copy.claim.clone());
        let tree = self.put(&operation, &live, Some(&base)).await?;
        let Some(copy) = self.copies.get_mut(volume) else { return Ok(()) };
        copy.snaps.insert(tree.version);
        let known = Known::data(copy.snaps.iter().copied());
        let stays = self.random.random_range(0..4) == 0;
        let release = self.random.random_range(0..5) == 0;
        let publication = Publication {
            heads: data_head(tree.clone()),
            role: role(stays),
            label: String::new(),
            release,
            charge_bytes: None,
        };
        match lifecycle::publish(&operation, &claim, &known, publication).await {
            Ok(Change::Made(published) | Change::Already(published)) => {
                let mut history = self.history.lock().unwrap();
                history.counts.published += 1;
                if stays {
                    history.acknowledged.insert((volume.clone(), published.entry));
                }
                drop(history);
                if release {
                    self.copies.remove(volume);
                } else if let Some(copy) = self.copies.get_mut(volume) {
                    copy.base = tree;
                }
                Ok(())
            }
            Err(Error::Lost { .. } | Error::NoVolume { .. } | Error::Gone { .. }) => {
                self.orphan(&operation, volume, &base).await
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps what was lost, sharing what may be shared.
    async fn orphan(
        &mut self,
        operation: &Operation,
        volume: &VolumeId,
        base: &VersionRef,
    ) -> Result<(), Error> {
        let Some(copy) = self.copies.get(volume) else { return Ok(()) };
        let (live, claim) = (copy.live.clone(), copy.claim.clone());
        let listed = match self.packs_of(base).await {
            Ok(packs) => references::confirm_version(operation, volume, &base.version, &packs).await.is_ok(),
            Err(_) => false,
        };
        let tree = self.put(operation, &live, listed.then_some(base)).await?;
        lifecycle::make_orphan(operation, &claim, &domain(), data_head(tree), "lost").await?;
        self.history.lock().unwrap().counts.orphaned += 1;
        self.copies.remove(volume);
        Ok(())
    }

    async fn acquire(&mut self, volume: &VolumeId) -> Result<(), Error> {
        let record = cas::record::get(&self.store, volume).await?;
        let tips = record.value.head_tips();
        let acquired = lifecycle::acquire(&self.session, volume, &tips, false).await?.into_inner();
        let head = acquired.record.value.head_entry().and_then(|entry| entry.heads.get(&MemberName::data()));
        let Some(base) = head.cloned() else { return Ok(()) };
        let mut history = self.history.lock().unwrap();
        history.counts.acquired += 1;
        let live = history.contents[&base.version].clone();
        let snaps = BTreeSet::from([base.version]);
        self.copies
            .insert(volume.clone(), Copy { claim: acquired.claim, live, snaps, base, restoring: None });
        Ok(())
    }

    /// Makes a record of another's version, any that is listed: the one way to add references to packs of others.
    async fn fork(&mut self, source: &VolumeId, seal: bool) -> Result<(), Error> {
        let operation = self.session.begin()?;
        let record = cas::record::get(&self.store, source).await?.value;
        if record.entries.is_empty() {
            return Ok(());
        }
        let entry = &record.entries[self.random.random_range(0..record.entries.len())];
        let Some(tree) = entry.heads.get(&MemberName::data()).cloned() else { return Ok(()) };
        let packs = self.packs_of(&tree).await?;
        // Here the source may thin it.
        turns(self.random.random_range(0..30)).await;
        let entry = references::confirm_version(&operation, source, &tree.version, &packs).await?;
        turns(self.random.random_range(0..30)).await;
        self.made += 1;
        let name = format!("{}-{}-{}", if seal { "seal" } else { "fork" }, self.name, self.made);
        if seal {
            let new = NewSealed {
                id: id(&name),
                kind: RecordKind::Template,
                domain: domain(),
                heads: entry.heads,
                origin: None,
                request: name.parse().unwrap(),
                label: String::new(),
                quota: Quota::default(),
                attributes: BTreeMap::new(),
            };
            lifecycle::seal(&operation, new).await?;
        } else {
            let new = new_record(&id(&name), &self.session, &name);
            let begun = lifecycle::begin_create(&self.store, new).await?.into_inner();
            let claim = Claim::of(&begun.value);
            lifecycle::finish_create(&operation, &claim, Some(entry.heads), "forked").await?;
        }
        self.history.lock().unwrap().counts.forked += 1;
        Ok(())
    }

    /// Takes the head back to any entry; what was before is a branch.
    async fn restore(&mut self, volume: &VolumeId) -> Result<(), Error> {
        let operation = self.session.begin()?;
        self.settle_restore(volume).await?;
        let record = cas::record::get(&self.store, volume).await?.value;
        let Some(copy) = self.copies.get_mut(volume) else { return Ok(()) };
        if record.entries.is_empty() {
            return Ok(());
        }
        let entry = &record.entries[self.random.random_range(0..record.entries.len())];
        let Some(tree) = entry.heads.get(&MemberName::data()).cloned() else { return Ok(()) };
        copy.snaps.insert(tree.version);
        let known = Known::data(copy.snaps.iter().copied());
        let claim = copy.claim.clone();
        copy.restoring = Some(tree.version);
        lifecycle::restore_head(&operation, &claim, &known, Target::Entry(entry.id), "").await?;
        let mut history = self.history.lock().unwrap();
        history.counts.restored += 1;
        let live = history.contents[&tree.version].clone();
        if let Some(copy) = self.copies.get_mut(volume) {
            (copy.live, copy.base, copy.restoring) = (live, tree, None);
        }
        Ok(())
    }

    /// Deletes a fork of anybody, brings one back, or names and unnames an entry.
    async fn edit(&mut self, volume: &VolumeId) -> Result<(), Error> {
        match self.random.random_range(0..6) {
            0 | 1 => drop(lifecycle::delete(&self.store, volume, None, Authority::Unowned).await?),
            2 => drop(lifecycle::undelete(&self.store, volume, None).await?),
            3 => {
                let record = cas::record::get(&self.store, volume).await?.value;
                if let Some(entry) = record.entries.first() {
                    lifecycle::set_branch(&self.store, volume, "first", entry.id, lifecycle::Taken::Move)
                        .await?;
                }
            }
            4 => drop(lifecycle::remove_branch(&self.store, volume, "first").await?),
            _ => {
                let value = self.random.random_range(0..1000).to_string();
                lifecycle::set_attributes(&self.store, volume, &crate::world::set("k", &value)).await?;
            }
        }
        Ok(())
    }

    /// The process dies. Its memory of volumes survives in the pool; its session as the store has it.
    async fn restart(&mut self) {
        let id = self.session.id();
        loop {
            turns(3).await;
            match Session::resume(&self.store, id, Some(self.session.nonce())).await {
                Ok(Resumed::Live(session)) => {
                    self.session = session;
                    self.settle_sent().await;
                    break;
                }
                Ok(Resumed::Fenced | Resumed::Stolen | Resumed::Gone) => {
                    let next = Session::join_next(&self.store, id.pool, id.number, &self.name, "host").await;
                    if let Ok(session) = next {
                        self.session = session;
                        self.rescue().await;
                        break;
                    }
                }
                Err(_) => {}
            }
        }
        *self.judge.author.lock().unwrap() = Some(self.session.id());
    }

    /// What the process before this one sent and did not hear of may still arrive, until the record has a new state. A start
    /// sees to it before it serves the volume.
    async fn settle_sent(&mut self) {
        let me = self.session.id();
        for volume in self.copies.keys().cloned().collect::<Vec<_>>() {
            while self.copies.get(&volume).is_some_and(|copy| copy.restoring.is_some()) {
                turns(3).await;
                match cas::update::touch(&self.store, &me, &volume).await {
                    Ok(_) => drop(self.settle_restore(&volume).await),
                    Err(Error::NoVolume { .. } | Error::Gone { .. }) => break,
                    Err(_) => {}
                }
            }
        }
    }

    /// After a new session: what is listed nowhere becomes an orphan, and the rest is taken again when it is wanted.
    async fn rescue(&mut self) {
        *self.judge.author.lock().unwrap() = Some(self.session.id());
        for volume in self.copies.keys().cloned().collect::<Vec<_>>() {
            if let Ok(operation) = self.session.begin()
                && let Some(base) = self.copies.get(&volume).map(|copy| copy.base.clone())
            {
                drop(self.orphan(&operation, &volume, &base).await);
            }
            self.copies.remove(&volume);
        }
    }

    pub(crate) async fn run(mut self, volumes: Vec<VolumeId>, steps: u32) -> Self {
        for step in 0..steps {
            self.clock.advance(Duration::from_secs(1));
            let all = cas::record::ids(&self.store).await.unwrap_or_default();
            let mut volume = volumes[self.random.random_range(0..volumes.len())].clone();
            let any = if all.is_empty() {
                volume.clone()
            } else {
                all[self.random.random_range(0..all.len())].clone()
            };
            if !self.copies.is_empty() && self.random.random_range(0..3) > 0 {
                let held: Vec<&VolumeId> = self.copies.keys().collect();
                volume = held[self.random.random_range(0..held.len())].clone();
            }
            let what = self.random.random_range(0..24);
            let done = match what {
                0..10 if self.copies.contains_key(&volume) => self.publish(&volume).await,
                0..12 if !self.copies.contains_key(&volume) => self.acquire(&volume).await,
                12 | 13 => self.session.raise().await.map(drop),
                14 => self.fork(&any, false).await,
                15 => self.fork(&any, true).await,
                16 if self.copies.contains_key(&volume) => self.restore(&volume).await,
                17 | 18 => self.edit(&any).await,
                19 => {
                    self.restart().await;
                    Ok(())
                }
                20 => {
                    drop(self.faults.deliver_held().await);
                    Ok(())
                }
                // Nobody hears of it for long; or for ever.
                21 if step > 8 && self.random.random_range(0..6) == 0 => {
                    turns(self.random.random_range(500..3000)).await;
                    Ok(())
                }
                22 if step > 12 && self.random.random_range(0..12) == 0 => return self,
                _ => Ok(()),
            };
            crate::trace(|| format!("{} step {step} ({what}) on {volume} or {any}: {done:?}", self.name));
            let raised = if step % 4 == 0 { self.session.raise().await.map(drop) } else { Ok(()) };
            let beat = self.session.beat().await.map(drop);
            for beat in [raised, beat] {
                if matches!(beat, Err(Error::Fenced { .. } | Error::Stolen { .. } | Error::NoSession { .. }))
                {
                    self.restart().await;
                }
            }
        }
        self
    }
}

fn ulid_of(seed: u64) -> ulid::Ulid {
    ulid::Ulid::from_parts(1_800_000_000_000, u128::from(seed) * 0x9e37_79b9_7f4a_7c15)
}

/// A leader of the collection, which may stall in any call. Runs until `stop`.
pub(crate) async fn lead(
    world: &World,
    history: &Arc<Mutex<History>>,
    seed: u64,
    stop: &std::cell::Cell<bool>,
) -> FaultStore {
    let (_, faults, store) = open(world, history, seed, Some(120)).await;
    break_things(&faults, seed, 60);
    let mut random = StdRng::seed_from_u64(seed);
    let mut collector = Collector::new(store.clone(), settings());
    while !stop.get() {
        turns(random.random_range(0..120)).await;
        if random.random_range(0..12) == 0 {
            // Another process takes its place, with no memory.
            collector = Collector::new(store.clone(), settings());
            drop(faults.deliver_held().await);
        }
        drop(collector.round().await);
        history.lock().unwrap().counts.rounds += 1;
    }
    faults
}

/// Checks at the end that nothing needed patience: tips of every record can be told.
pub(crate) fn tips_of(record: &cas::Record) -> usize {
    record.head_entry().map_or(0, |entry| tips(&entry.heads).len())
}
