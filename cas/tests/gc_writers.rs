//! Half of a bucket is garbage, and eight writers go on through every round: the bytes fall all the same. With real trees on
//! disk.
//!
//! How much the writers write in a round is given, and not how fast: writers that do nothing else in memory outrun a collector
//! on one machine and not on another, and what is asked here is whether collection gets on while others write.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on says where"
)]

mod world;

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cas::entry::data_head;
use cas::gc::{Collector, Settings};
use cas::lifecycle::{self, Authority, Publication};
use cas::objects::{MemoryStore, list_all};
use cas::{
    Cache, Changes, ChildChange, Claim, Known, Parent, Role, Session, Store, VersionRef, WriteOptions, Writer,
};
use tokio::sync::Semaphore;
use types::{Domain, PoolId, SystemClock, VersionId};
use world::{id, new_record, reader};

const WRITERS: usize = 8;
/// Syncs that may begin in one round of collection: together about a tenth of what the bucket holds at first.
const SYNCS_OF_A_ROUND: usize = 16;
const FILES: usize = 8;
/// More than what is bundled: each file is a frame of its own, so packs die by halves.
const FILE_BYTES: usize = 70_000;

/// Bytes that do not compress, different for each salt.
fn noise(salt: u64) -> Vec<u8> {
    let mut bytes = vec![0; FILE_BYTES];
    blake3::Hasher::new().update(&salt.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn fill(dir: &Path, salt: u64) {
    for file in 0..FILES {
        fs::write(dir.join(format!("file-{file:02}")), noise(salt * 1000 + file as u64)).unwrap();
    }
}

async fn bytes_of(disk: &MemoryStore) -> u64 {
    list_all(disk, "pack/").await.unwrap().iter().map(|meta| meta.size).sum()
}

struct Volume {
    session: Session,
    writer: Writer,
    claim: Claim,
    dir: tempfile::TempDir,
    base: VersionRef,
    snaps: Vec<VersionId>,
}

impl Volume {
    async fn create(store: &Store, number: usize) -> Self {
        let name = format!("writer-{number}");
        let session = Session::join(store, PoolId::random(), 1, &name.parse().unwrap(), "").await.unwrap();
        let options = WriteOptions { workers: 1, pack_bytes: 1 << 20, ..WriteOptions::default() };
        let domain = Domain::default_domain();
        let writer = Writer::new(store.clone(), session.clone(), domain, Cache::new(4 << 20), options);
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), number as u64);
        let (claim, base) = Self::begin(store, &session, &writer, dir.path(), &name).await;
        Self { session, writer, claim, dir, snaps: vec![base.version], base }
    }

    async fn begin(
        store: &Store,
        session: &Session,
        writer: &Writer,
        dir: &Path,
        name: &str,
    ) -> (Claim, VersionRef) {
        let begun = lifecycle::begin_create(store, new_record(&id(name), session, name)).await.unwrap();
        let claim = Claim::of(&begun.into_inner().value);
        let operation = session.begin().unwrap();
        let tree = writer.put(File::open(dir).unwrap().into(), None).await.unwrap().tree;
        lifecycle::finish_create(&operation, &claim, Some(data_head(tree.clone())), "").await.unwrap();
        (claim, tree)
    }

    /// Writes two files and makes that durable. The sixth version from the end is thinned with it.
    async fn write(&mut self, salt: u64) {
        let mut changes = Changes::default();
        for offset in 0..2 {
            // Two files of no order, so that packs die by halves.
            let roll = blake3::hash(&(salt * 2 + offset).to_le_bytes()).as_bytes()[0];
            let name = format!("file-{:02}", usize::from(roll) % FILES);
            fs::write(self.dir.path().join(&name), noise(1_000_000 + salt * 2 + offset)).unwrap();
            changes
                .root
                .children
                .insert(name.into_bytes(), ChildChange::Content { ranges: None, inline: None });
        }
        let operation = self.session.begin().unwrap();
        let parent = Parent { tree: self.base.clone(), changes };
        let root = File::open(self.dir.path()).unwrap().into();
        let written = self.writer.put(root, Some(parent)).await.unwrap();
        self.snaps.push(written.tree.version);
        let publication = Publication {
            heads: data_head(written.tree.clone()),
            role: Role::Manual,
            label: String::new(),
            release: false,
            charge_bytes: None,
        };
        let known = Known::data(self.snaps.iter().copied());
        lifecycle::publish(&operation, &self.claim, &known, publication).await.unwrap();
        self.base = written.tree;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn half_of_a_bucket_is_garbage_and_eight_writers_go_on_and_its_bytes_fall() {
    let disk = MemoryStore::new();
    let store =
        Store::create_or_open(Arc::new(disk.clone()), Arc::new(SystemClock)).await.unwrap().into_inner();
    let mut volumes = Vec::new();
    for number in 0..WRITERS {
        volumes.push(Volume::create(&store, number).await);
    }
    let writes = Arc::new(AtomicU64::new(0));
    for _ in 0..8 {
        for volume in &mut volumes {
            volume.write(writes.fetch_add(1, Ordering::Relaxed)).await;
        }
    }
    // As much again that is deleted, and so is garbage once its grace is over.
    let living = bytes_of(&disk).await;
    let mut dead = 0;
    while bytes_of(&disk).await < living * 2 {
        let Volume { session, writer, .. } = &volumes[dead % WRITERS];
        let (name, dir) = (format!("dead-{dead}"), tempfile::tempdir().unwrap());
        fill(dir.path(), 100 + dead as u64);
        Volume::begin(&store, session, writer, dir.path(), &name).await;
        lifecycle::delete(&store, &id(&name), None, Authority::Force).await.unwrap();
        dead += 1;
    }
    let before = bytes_of(&disk).await;

    let allowed = Arc::new(Semaphore::new(0));
    let first = writes.load(Ordering::Relaxed);
    let mut running = Vec::new();
    for mut volume in volumes {
        let (allowed, writes, session) = (Arc::clone(&allowed), Arc::clone(&writes), volume.session.clone());
        running.push(tokio::spawn(async move {
            while let Ok(permit) = allowed.acquire().await {
                permit.forget();
                volume.write(writes.fetch_add(1, Ordering::Relaxed)).await;
            }
            volume
        }));
        // What a node's loop does.
        tokio::spawn(async move {
            while session.raise().await.is_ok() && session.beat().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    let settings = Settings {
        grace: Duration::ZERO,
        poll: Duration::from_millis(10),
        least_gain_bytes: 4096,
        ..Settings::default()
    };
    let mut collector = Collector::new(store.clone(), settings);
    let began = Instant::now();
    let (mut deleted, mut evacuated, mut most, mut rounds) = (0, 0, before, 0);
    let fell = loop {
        allowed.add_permits(SYNCS_OF_A_ROUND - allowed.available_permits().min(SYNCS_OF_A_ROUND));
        let report = collector.round().await.unwrap();
        assert!(report.fenced.is_empty() && report.waiting.is_empty(), "{report:?}");
        (deleted, evacuated) = (deleted + report.deleted_bytes, evacuated + report.evacuated);
        (most, rounds) = (most.max(report.pack_bytes), rounds + 1);
        let now = bytes_of(&disk).await;
        let busy = writes.load(Ordering::Relaxed) >= first + 400;
        if busy && evacuated > 0 && deleted > living && now < before * 3 / 4 {
            break now;
        }
        assert!(
            began.elapsed() < Duration::from_secs(600),
            "{now} bytes are left of {before} after 10 minutes"
        );
    };
    let seconds = began.elapsed().as_secs_f64();
    allowed.close();
    let written = writes.load(Ordering::Relaxed) - first;
    let uploaded = written * 2 * FILE_BYTES as u64;
    println!(
        "{before} bytes, half of them garbage; {fell} after {seconds:.1} s, in which {written} syncs of {WRITERS} writers \
         put {uploaded} bytes more; {deleted} bytes deleted in {rounds} rounds, {evacuated} packs rewritten, {most} at most"
    );
    let mut session = None;
    for volume in running {
        let volume = volume.await.unwrap();
        for file in 0..FILES {
            let name = format!("file-{file:02}");
            let path = types::VolumePath::parse(&name).unwrap();
            let stored = reader(&store).read(&volume.base, &path, 0..u64::MAX).await.unwrap();
            assert!(stored == fs::read(volume.dir.path().join(&name)).unwrap(), "{name}");
        }
        session = Some(volume.session);
    }
    drop(session);
    // Everything that is listed is whole, and what is left is about as much as is alive.
    for record in cas::record::list(&store).await.unwrap() {
        for tree in record.value.references() {
            let report = reader(&store).verify(tree).await.unwrap();
            assert!(report.is_whole(), "{:?}", report.damages);
        }
    }
    tokio::time::sleep(Duration::from_millis(120)).await;
    for _ in 0..6 {
        collector.round().await.unwrap();
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
    let left = bytes_of(&disk).await;
    println!("{left} bytes at rest");
    // Packs of which more than 70 % is alive stay as they are.
    assert!(left < before * 2 / 3, "{left} of {before}");
}
