//! Random schedules: several processes over one store with faults, a hub that edits, and a collector that deletes. Every
//! write of a record is judged when it lands.
//!
//! A version is a set of writes, so "grows the line of the head" is inclusion of sets. `RECORD_SCHEDULES=N` runs N
//! schedules, `RECORD_SEED=S` begins with that seed; both are printed by a failure.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on says where"
)]

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cas::entry::data_head;
use cas::gc::{Gc, Phase};
use cas::guard::Known;
use cas::lifecycle;
use cas::objects::{
    CallKind, Condition, Etag, Fault, FaultStore, Key, Meta, Object, ObjectError, Objects, Page, list_all,
};
use cas::record::State;
use cas::session::{self, Resumed, SessionState};
use cas::{Claim, Error, Record, Session, Store, references};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use types::{Change, EntryId, MemberName, NodeName, PackId, PoolId, SessionId, VersionId, VolumeId};
use world::{RETRY, World, domain, id, new_record, publication, reference, version};

/// What the store went through, and the first thing that must not have happened.
#[derive(Default)]
struct History {
    /// What each version holds.
    contents: BTreeMap<VersionId, BTreeSet<u32>>,
    /// Entries that somebody was told are durable.
    acknowledged: BTreeSet<(VolumeId, EntryId)>,
    /// Sessions that were fenced and then taken off every record.
    drained: BTreeSet<SessionId>,
    next_write: u32,
    published: u32,
    taken: u32,
    deleted: u32,
    orphaned: u32,
}

/// The disk, which judges every write of a record by its author.
#[derive(Debug)]
struct Judge {
    world: cas::objects::MemoryStore,
    history: Arc<Mutex<History>>,
    author: Mutex<Option<SessionId>>,
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} published, {} taken, {} deleted, {} orphans",
            self.published, self.taken, self.deleted, self.orphaned
        )
    }
}

impl Judge {
    fn judge(&self, before: Option<&Record>, after: &Record, packs: &BTreeSet<String>) {
        let history = self.history.lock().unwrap();
        let author = *self.author.lock().unwrap();
        // I1: whole.
        for reference in after.references() {
            let key = cas::keys::pack(&reference.manifest.pack);
            assert!(packs.contains(key.as_str()), "I1: {} names {key}, which is gone", after.id);
        }
        // I2: what was acknowledged stays (only events are published here, and they are never thinned).
        for (volume, entry) in &history.acknowledged {
            assert!(
                *volume != after.id || after.entry(entry).is_some(),
                "I2: {volume} lost the entry {entry}"
            );
        }
        let Some(before) = before else {
            assert_eq!(after.references().count(), 0, "a record is created without references");
            return;
        };
        assert_eq!(after.rev.0, before.rev.0 + 1, "a write counts");
        assert!(after.nonce != before.nonce && after.birth == before.birth);
        if after.head != before.head {
            let content = |record: &Record| -> BTreeSet<u32> {
                record.head_tips().values().flat_map(|version| history.contents[version].clone()).collect()
            };
            assert!(content(before).is_subset(&content(after)), "I2: the head of {} went back", after.id);
            // I3 and I6: only the owner of the record that is replaced, and never a drained one. A write that was held
            // may land when its process has long joined again, so the pool is what both must share.
            let owner = before.owner.expect("I3: what nobody owns was published");
            assert_eq!(
                Some(owner.pool),
                author.map(|author| author.pool),
                "I3: {} was published by another",
                after.id
            );
            assert!(!history.drained.contains(&owner), "I6: drained {owner} published");
        }
        if after.owner != before.owner && after.owner.is_some() {
            assert!(after.epoch > before.epoch, "I3: a new owner without a new epoch");
        }
    }
}

#[async_trait]
impl Objects for Judge {
    async fn get(&self, key: &Key) -> Result<Object, ObjectError> {
        self.world.get(key).await
    }

    async fn get_range(&self, key: &Key, range: std::ops::Range<u64>) -> Result<Bytes, ObjectError> {
        self.world.get_range(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<Meta, ObjectError> {
        self.world.head(key).await
    }

    // Nothing in here waits, and the runtime has one thread: reading, writing and judging are one step.
    async fn put(&self, key: &Key, bytes: Bytes, condition: &Condition) -> Result<Etag, ObjectError> {
        let is_record = key.as_str().starts_with("vol/");
        let before = if is_record { self.world.get(key).await.ok() } else { None };
        let etag = self.world.put(key, bytes.clone(), condition).await?;
        if is_record {
            let before: Option<Record> = before.map(|object| serde_json::from_slice(&object.bytes).unwrap());
            let after: Record = serde_json::from_slice(&bytes).unwrap();
            let packs = list_all(&self.world, "pack/").await.unwrap();
            let packs = packs.iter().map(|meta| meta.key.as_str().to_owned()).collect();
            self.judge(before.as_ref(), &after, &packs);
        }
        Ok(etag)
    }

    async fn delete(&self, key: &Key) -> Result<(), ObjectError> {
        self.world.delete(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>) -> Result<Page, ObjectError> {
        self.world.list(prefix, after).await
    }

    fn describe(&self) -> String {
        "a judged store in memory".to_owned()
    }
}

/// What a process has of a volume.
struct Copy {
    claim: Claim,
    live: BTreeSet<u32>,
    snaps: BTreeSet<VersionId>,
}

struct Process {
    judge: Arc<Judge>,
    faults: FaultStore,
    store: Store,
    session: Session,
    name: NodeName,
    copies: BTreeMap<VolumeId, Copy>,
    history: Arc<Mutex<History>>,
    random: StdRng,
}

fn name_of(writes: &BTreeSet<u32>) -> String {
    writes.iter().map(ToString::to_string).collect::<Vec<_>>().join("+")
}

impl Process {
    async fn start(world: &World, history: &Arc<Mutex<History>>, name: &str, seed: u64) -> Self {
        let author = Mutex::new(None);
        let judge = Arc::new(Judge { world: world.disk.clone(), history: Arc::clone(history), author });
        let faults = FaultStore::new(Arc::clone(&judge) as Arc<dyn Objects>);
        let clock = Arc::new(world.clock.clone());
        let store = Store::create_or_open(Arc::new(faults.clone()), clock).await.unwrap().into_inner();
        let store = store.with_retry(RETRY);
        let name: NodeName = name.parse().unwrap();
        let session = Session::join(&store, PoolId::random(), 1, &name, "host").await.unwrap();
        *judge.author.lock().unwrap() = Some(session.id());
        let (history, random) = (Arc::clone(history), StdRng::seed_from_u64(seed));
        let process = Self { judge, faults, store, session, name, copies: BTreeMap::new(), history, random };
        process.break_things(seed);
        process
    }

    fn break_things(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed ^ 0x5eed);
        self.faults.plan(move |call| {
            let pause = Fault::Delay(Duration::from_micros(random.random_range(0..300)));
            match random.random_range(0..20) {
                0 => Fault::Unavailable,
                1 => Fault::LostAnswer,
                2 if call.kind == CallKind::Put => Fault::Duplicate,
                3 if call.kind == CallKind::Put => Fault::Conflict,
                4 if call.kind == CallKind::Put => Fault::Held,
                _ => pause,
            }
        });
    }

    /// Publishes, and says if the copy is still ours.
    async fn publish(&mut self, volume: &VolumeId) {
        let Ok(operation) = self.session.begin() else { return };
        let Some(copy) = self.copies.get_mut(volume) else { return };
        {
            let mut history = self.history.lock().unwrap();
            history.next_write += 1;
            copy.live.insert(history.next_write);
            history.contents.insert(version(&name_of(&copy.live)), copy.live.clone());
        }
        let text = name_of(&copy.live);
        let Ok(heads) = world::put_version(&operation, &text).await else { return };
        copy.snaps.insert(version(&text));
        let known = Known::data(copy.snaps.iter().copied());
        let mut publication = publication(heads);
        publication.release = self.random.random_range(0..4) == 0;
        let release = publication.release;
        match lifecycle::publish(&operation, &copy.claim, &known, publication).await {
            Ok(Change::Made(published) | Change::Already(published)) => {
                let mut history = self.history.lock().unwrap();
                history.published += 1;
                history.acknowledged.insert((volume.clone(), published.entry));
                if release {
                    self.copies.remove(volume);
                }
            }
            Err(Error::Lost { .. } | Error::NoVolume { .. }) => {
                let copy = self.copies.remove(volume).unwrap();
                let orphan = world::put_version(&operation, &text).await;
                if let Ok(heads) = orphan
                    && lifecycle::make_orphan(&operation, &copy.claim, &domain(), heads, "lost").await.is_ok()
                {
                    self.history.lock().unwrap().orphaned += 1;
                }
            }
            Err(_) => {}
        }
    }

    async fn acquire(&mut self, volume: &VolumeId) {
        let Ok(Some(record)) = cas::record::read(&self.store, volume).await else { return };
        let tips = record.value.head_tips();
        if let Ok(acquired) = lifecycle::acquire(&self.session, volume, &tips, false).await {
            let mut history = self.history.lock().unwrap();
            history.taken += 1;
            let snaps: BTreeSet<VersionId> = tips.values().copied().collect();
            let live = snaps.iter().flat_map(|version| history.contents[version].clone()).collect();
            let claim = acquired.into_inner().claim;
            self.copies.insert(volume.clone(), Copy { claim, live, snaps });
        }
    }

    /// Makes a volume from another's head: the one way to add references to packs of others.
    async fn fork(&mut self, source: &VolumeId, fork: &VolumeId) {
        let Ok(operation) = self.session.begin() else { return };
        let Ok(Some(record)) = cas::record::read(&self.store, source).await else { return };
        // Any entry of the source, found before and perhaps thinned since.
        let Some(tip) = record.value.head_tips().into_values().next() else { return };
        let Ok(entry) = references::confirm_version(&operation, source, &tip, &BTreeSet::new()).await else {
            return;
        };
        let new = new_record(fork, &self.session, &format!("fork-{fork}"));
        let Ok(begun) = lifecycle::begin_create(&self.store, new).await else { return };
        let claim = Claim::of(&begun.into_inner().value);
        drop(lifecycle::finish_create(&operation, &claim, Some(entry.heads), "forked").await);
    }

    /// The process dies. Its memory of volumes survives in the pool; its session as the store has it.
    async fn restart(&mut self) {
        let id = self.session.id();
        self.session = loop {
            match Session::resume(&self.store, id, Some(self.session.nonce())).await {
                Ok(Resumed::Live(session)) => break session,
                Ok(Resumed::Fenced | Resumed::Stolen | Resumed::Gone) => {
                    self.copies.clear();
                    match Session::join_next(&self.store, id.pool, id.number, &self.name, "host").await {
                        Ok(session) => break session,
                        Err(_) => continue,
                    }
                }
                Err(_) => continue,
            }
        };
        *self.judge.author.lock().unwrap() = Some(self.session.id());
    }

    async fn run(mut self, volumes: Vec<VolumeId>, steps: u32) -> Self {
        for step in 0..steps {
            let volume = volumes[self.random.random_range(0..volumes.len())].clone();
            match self.random.random_range(0..14) {
                0..5 => self.publish(&volume).await,
                5..8 if !self.copies.contains_key(&volume) => self.acquire(&volume).await,
                8 => drop(self.session.beat().await),
                9 => drop(self.session.raise().await),
                10 => drop(
                    lifecycle::set_attributes(&self.store, &volume, &world::set("k", &step.to_string()))
                        .await,
                ),
                11 => {
                    let fork = id(&format!("fork-{}-{step}", self.name));
                    self.fork(&volume, &fork).await;
                }
                12 => self.restart().await,
                _ => drop(self.faults.deliver_held().await),
            }
            if matches!(self.session.beat().await, Err(Error::Fenced { .. } | Error::Stolen { .. })) {
                self.restart().await;
            }
        }
        self
    }
}

/// The collection of PROTOCOL.md §2 in its simplest form: it deletes what no record names.
async fn collect(store: &Store, disk: &cas::objects::MemoryStore, history: &Mutex<History>, rounds: u32) {
    let key: Key = "gc".parse().unwrap();
    for epoch in 1..=u64::from(rounds) {
        tokio::time::sleep(Duration::from_micros(1500)).await;
        let lows: BTreeMap<SessionId, u64> = session::list(store)
            .await
            .unwrap()
            .into_iter()
            .filter(|session| session.value.state == SessionState::Live)
            .map(|session| (session.value.id, session.value.low))
            .collect();
        let packs: BTreeSet<PackId> = list_all(disk, "pack/")
            .await
            .unwrap()
            .iter()
            .map(|meta| meta.key.as_str().strip_prefix("pack/").unwrap().parse::<PackId>().unwrap())
            .filter(|pack| lows.get(&pack.session).is_none_or(|low| pack.seq < *low))
            .collect();
        let marked = mark(store).await;
        let condemned: BTreeSet<PackId> = packs.difference(&marked).cloned().collect();
        write_gc(disk, &key, epoch, Phase::Condemned, condemned.clone(), BTreeSet::new()).await;
        // Wait for pins; fence who does not move.
        let mut patience = 400;
        loop {
            let sessions = session::list(store).await.unwrap();
            let behind = sessions
                .iter()
                .find(|session| session.value.state == SessionState::Live && session.value.pin < epoch);
            let Some(behind) = behind else { break };
            if patience == 0 {
                session::fence(store, &behind.value.id).await.unwrap();
            } else {
                patience -= 1;
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
        }
        for session in session::list(store).await.unwrap() {
            if session.value.state == SessionState::Fenced {
                for volume in cas::record::ids(store).await.unwrap() {
                    lifecycle::unseat(store, &volume, &session.value.id).await.unwrap();
                }
                history.lock().unwrap().drained.insert(session.value.id);
            }
        }
        let doomed: BTreeSet<PackId> = condemned.difference(&mark(store).await).cloned().collect();
        write_gc(disk, &key, epoch, Phase::Doomed, BTreeSet::new(), doomed.clone()).await;
        for pack in &doomed {
            tokio::time::sleep(Duration::from_micros(50)).await;
            assert!(!mark(store).await.contains(pack), "I5: {pack} is doomed and gained a reference");
            disk.delete(&cas::keys::pack(pack)).await.unwrap();
            history.lock().unwrap().deleted += 1;
        }
        write_gc(disk, &key, epoch, Phase::Idle, BTreeSet::new(), BTreeSet::new()).await;
    }
}

async fn mark(store: &Store) -> BTreeSet<PackId> {
    let mut marked = BTreeSet::new();
    for volume in cas::record::ids(store).await.unwrap() {
        tokio::time::sleep(Duration::from_micros(20)).await;
        if let Some(record) = cas::record::read(store, &volume).await.unwrap() {
            marked.extend(record.value.references().map(|reference| PackId::clone(&reference.manifest.pack)));
        }
    }
    marked
}

async fn write_gc(
    disk: &cas::objects::MemoryStore,
    key: &Key,
    epoch: u64,
    phase: Phase,
    condemned: BTreeSet<PackId>,
    doomed: BTreeSet<PackId>,
) {
    let (rev, nonce) = (types::Rev(epoch), types::Nonce::random());
    let gc = Gc { format: 1, rev, nonce, epoch, phase, condemned, doomed, relocations: BTreeMap::new() };
    let condition = match disk.head(key).await {
        Ok(meta) => Condition::IfMatch(meta.etag),
        Err(_) => Condition::IfAbsent,
    };
    disk.put(key, serde_json::to_vec(&gc).unwrap().into(), &condition).await.unwrap();
}

async fn schedule(seed: u64) -> History {
    let world = World::new();
    let history = Arc::new(Mutex::new(History::default()));
    let founder = world.node("founder").await;
    let volumes = vec![id("v"), id("w")];
    for volume in &volumes {
        let text = format!("{volume}-0");
        history.lock().unwrap().contents.insert(version(&text), BTreeSet::new());
        let claim = founder.create(volume, &text).await;
        founder.release(&claim, &text).await.unwrap();
    }
    founder.session.close().await.unwrap();
    let mut running = Vec::new();
    for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
        let process = Process::start(&world, &history, name, seed * 8 + n as u64).await;
        running.push(tokio::spawn(process.run(volumes.clone(), 40)));
    }
    let (_, store) = world.open().await;
    let (disk, told) = (world.disk.clone(), Arc::clone(&history));
    let collector = tokio::spawn(async move { collect(&store, &disk, &told, 4).await });
    let mut processes = Vec::new();
    for process in running {
        processes.push(process.await.unwrap());
    }
    // Faults end, the late writes land, and everything acknowledged is still there and whole.
    for process in &processes {
        process.faults.heal();
        drop(process.faults.deliver_held().await);
    }
    // Also the sessions that a process gave up, because its own resume looked like a clone's.
    let (_, operator) = world.open().await;
    for session in session::list(&operator).await.unwrap() {
        session::fence(&operator, &session.value.id).await.unwrap();
    }
    collector.await.unwrap();
    for process in &processes {
        drop(process.faults.deliver_held().await);
    }
    let (_, store) = world.open().await;
    for record in cas::record::list(&store).await.unwrap() {
        for reference in record.value.references() {
            world.disk.head(&cas::keys::pack(&reference.manifest.pack)).await.expect("I1");
        }
        // I7: somebody can take it.
        if record.value.kind == cas::RecordKind::Volume && record.value.state == State::Live {
            let last = world.node("last").await;
            last.acquire(&record.value.id).await.expect("I7");
        }
    }
    let acknowledged = history.lock().unwrap().acknowledged.clone();
    for (volume, entry) in &acknowledged {
        assert!(world.record(volume).await.entry(entry).is_some(), "I2 at the end");
    }
    drop(processes);
    std::mem::take(&mut *history.lock().unwrap())
}

#[test]
fn random_schedules_keep_the_invariants() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let first = number("RECORD_SEED", 1);
    let schedules = number("RECORD_SCHEDULES", 20);
    let mut total = History::default();
    for seed in first..first + schedules {
        println!("RECORD_SEED={seed}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let one = runtime.block_on(schedule(seed));
        total.published += one.published;
        total.taken += one.taken;
        total.deleted += one.deleted;
        total.orphaned += one.orphaned;
    }
    println!("{schedules} schedules from seed {first}: {total:?}");
    assert!(total.published > 0 && total.taken > 0 && total.deleted > 0, "{total:?}: nothing was tried");
}

#[test]
fn a_reference_of_the_world_is_one_of_the_pack() {
    let pack: PackId = format!("default/{}.1.1", PoolId::random()).parse().unwrap();
    let heads = data_head(reference(&pack, "x"));
    assert_eq!(*heads[&MemberName::data()].manifest.pack, pack);
}
