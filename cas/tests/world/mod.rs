//! A store in memory, processes with faults of their own, and versions that need no trees.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cas::entry::{data_head, tips};
use cas::gc::{Collector, Gc, Phase};
use cas::lifecycle::{self, Publication, Published};
use cas::objects::{Condition, FaultStore, MemoryStore, Objects as _, list_all};
use cas::record::{NewRecord, Quota};
use cas::tree::{Files, put_flat};
use cas::{
    Cache, Claim, Error, Heads, Known, Operation, Reader, Record, RecordKind, Retry, Role, Session, Store,
    Stored, TreeError, VersionRef,
};
use types::{
    Change, Domain, ManualClock, MemberName, Nonce, PackId, PoolId, RequestId, Rev, Timestamp, VersionId,
    VolumeId, VolumePath,
};

/// Short pauses and little patience, so that an unreachable store is an answer within a test.
pub(crate) const RETRY: Retry = Retry {
    first: Duration::from_micros(50),
    longest: Duration::from_micros(400),
    patience: Duration::from_millis(3),
};

/// Where the store's time begins.
pub(crate) const BEGIN: Timestamp = Timestamp(1_800_000_000_000_000_000);

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// Ten files, so that parts of their pack can die.
pub(crate) const TEN: [(&str, usize); 10] = [
    ("a", 5000),
    ("b", 5000),
    ("c", 5000),
    ("d", 5000),
    ("e", 5000),
    ("f", 5000),
    ("g", 5000),
    ("h", 5000),
    ("i", 5000),
    ("j", 5000),
];

pub(crate) struct World {
    pub(crate) disk: MemoryStore,
    pub(crate) clock: ManualClock,
}

/// A process of a node: its own faults between it and the common store.
pub(crate) struct Node {
    pub(crate) faults: FaultStore,
    pub(crate) store: Store,
    pub(crate) session: Session,
}

pub(crate) fn domain() -> Domain {
    Domain::default_domain()
}

pub(crate) fn id(text: &str) -> VolumeId {
    text.parse().unwrap()
}

pub(crate) fn version(text: &str) -> VersionId {
    VersionId(*blake3::hash(text.as_bytes()).as_bytes())
}

pub(crate) fn new_record(id: &VolumeId, session: &Session, request: &str) -> NewRecord {
    NewRecord {
        id: id.clone(),
        kind: RecordKind::Volume,
        domain: domain(),
        owner: session.id(),
        node: session.node().clone(),
        origin: None,
        request: request.parse().unwrap(),
        quota: Quota { limit_bytes: Some(5 << 30), charge_bytes: 0 },
        attributes: BTreeMap::new(),
    }
}

/// Puts a pack and names a version in it.
pub(crate) async fn put_version(operation: &Operation, text: &str) -> Result<Heads, Error> {
    let session = operation.session();
    let pack = session.next_pack(&domain()).await?;
    session.put_pack(&pack, Bytes::from(text.to_owned())).await?;
    Ok(data_head(reference(&pack, text)))
}

/// Files with bytes that depend on `salt` and do not compress.
pub(crate) fn files(list: &[(&str, usize)], salt: u64) -> Files {
    list.iter()
        .map(|(name, len)| {
            let mut bytes = vec![0; *len];
            let mut hasher = blake3::Hasher::new();
            hasher.update(name.as_bytes()).update(&salt.to_le_bytes()).finalize_xof().fill(&mut bytes);
            ((*name).to_owned(), Bytes::from(bytes))
        })
        .collect()
}

/// A reader that remembers nothing.
pub(crate) fn reader(store: &Store) -> Reader {
    Reader::new(store.clone(), Cache::new(0))
}

/// Reads all files of a version, each proved.
pub(crate) async fn read_files(store: &Store, tree: &VersionRef) -> Result<Files, TreeError> {
    let reader = reader(store);
    let mut files = Files::new();
    for found in reader.list(tree, &VolumePath::ROOT, None, usize::MAX).await? {
        let path = VolumePath::parse(&found.name).unwrap();
        files.insert(String::from_utf8(found.name).unwrap(), reader.read(tree, &path, 0..u64::MAX).await?);
    }
    Ok(files)
}

pub(crate) fn reference(pack: &PackId, text: &str) -> VersionRef {
    VersionRef { version: version(text), manifest: format!("{pack}:0+16/16").parse().unwrap() }
}

pub(crate) fn publication(heads: Heads) -> Publication {
    Publication { heads, role: Role::Event, label: String::new(), release: false, charge_bytes: None }
}

pub(crate) fn set(key: &str, value: &str) -> BTreeMap<String, Option<String>> {
    BTreeMap::from([(key.to_owned(), Some(value.to_owned()))])
}

impl World {
    pub(crate) fn new() -> Self {
        let clock = ManualClock::new(BEGIN);
        Self { disk: MemoryStore::with_clock(Arc::new(clock.clone())), clock }
    }

    /// A process's way to the store, with faults of its own.
    pub(crate) async fn open(&self) -> (FaultStore, Store) {
        let faults = FaultStore::new(Arc::new(self.disk.clone()));
        let store =
            Store::create_or_open(Arc::new(faults.clone()), Arc::new(self.clock.clone())).await.unwrap();
        (faults, store.into_inner().with_retry(RETRY))
    }

    /// A node with a pool of its own.
    pub(crate) async fn node(&self, name: &str) -> Node {
        let (faults, store) = self.open().await;
        let session = Session::join(&store, PoolId::random(), 1, &name.parse().unwrap(), name).await.unwrap();
        Node { faults, store, session }
    }

    pub(crate) async fn record(&self, id: &VolumeId) -> Record {
        let (_, store) = self.open().await;
        cas::record::get(&store, id).await.unwrap().value
    }

    /// Writes `gc` as a collector would.
    pub(crate) async fn write_gc(
        &self,
        epoch: u64,
        phase: Phase,
        condemned: BTreeSet<PackId>,
        doomed: BTreeSet<PackId>,
    ) {
        let key = "gc".parse().unwrap();
        let gc = Gc {
            format: 1,
            rev: Rev(epoch),
            nonce: Nonce::random(),
            epoch,
            phase,
            condemned,
            doomed,
            relocations: BTreeMap::new(),
        };
        let condition = match self.disk.head(&key).await {
            Ok(meta) => Condition::IfMatch(meta.etag),
            Err(_) => Condition::IfAbsent,
        };
        self.disk.put(&key, serde_json::to_vec(&gc).unwrap().into(), &condition).await.unwrap();
    }

    pub(crate) async fn condemn(&self, epoch: u64, packs: impl IntoIterator<Item = PackId>) {
        self.write_gc(epoch, Phase::Condemned, packs.into_iter().collect(), BTreeSet::new()).await;
    }
}

impl World {
    /// The keys below a prefix.
    pub(crate) async fn keys(&self, prefix: &str) -> Vec<String> {
        let listed = list_all(&self.disk, prefix).await.unwrap();
        listed.into_iter().map(|meta| meta.key.as_str().to_owned()).collect()
    }

    /// A collector with faults of its own, which waits for nobody and rewrites wherever something is gained.
    pub(crate) async fn collector(&self) -> (FaultStore, Collector) {
        let (faults, store) = self.open().await;
        (faults, Collector::new(store, eager()))
    }

    /// Proves every version that a record lists, from what is in the store.
    pub(crate) async fn prove_all(&self) -> usize {
        let (_, store) = self.open().await;
        let mut proved = 0;
        for record in cas::record::list(&store).await.unwrap() {
            for tree in record.value.references() {
                let report = reader(&store).verify(tree).await.unwrap();
                assert!(report.is_whole(), "I1: {}: {:?}", record.value.id, report.damages);
                proved += 1;
            }
        }
        proved
    }
}

/// Settings for tests: sessions that are behind are fenced at the first look.
pub(crate) fn eager() -> cas::gc::Settings {
    cas::gc::Settings {
        fence_after: Duration::ZERO,
        patience: Duration::ZERO,
        poll: Duration::from_micros(50),
        least_gain_bytes: 1,
        ..cas::gc::Settings::default()
    }
}

impl Node {
    /// Creates a volume with files.
    pub(crate) async fn create_files(&self, id: &VolumeId, files: &Files) -> (Claim, VersionRef) {
        let record = new_record(id, &self.session, &format!("create-{id}"));
        let claim =
            Claim::of(&lifecycle::begin_create(&self.store, record).await.unwrap().into_inner().value);
        let operation = self.session.begin().unwrap();
        let tree = put_flat(&operation, &domain(), files, None).await.unwrap();
        lifecycle::finish_create(&operation, &claim, Some(data_head(tree.clone())), "created").await.unwrap();
        (claim, tree)
    }

    /// Publishes files as the next version after `base`.
    pub(crate) async fn publish_files(
        &self,
        claim: &Claim,
        base: &VersionRef,
        files: &Files,
        role: Role,
    ) -> Result<VersionRef, Error> {
        let operation = self.session.begin()?;
        let reader = reader(&self.store);
        let tree = put_flat(&operation, &domain(), files, Some((&reader, base))).await?;
        let known = Known::data([base.version, tree.version]);
        let publication = Publication { role, ..publication(data_head(tree.clone())) };
        lifecycle::publish(&operation, claim, &known, publication).await?;
        Ok(tree)
    }

    /// Creates a volume whose head is the version `text`.
    pub(crate) async fn create(&self, id: &VolumeId, text: &str) -> Claim {
        let request = format!("create-{id}");
        let record = new_record(id, &self.session, &request);
        let begun = lifecycle::begin_create(&self.store, record).await.unwrap().into_inner();
        let claim = Claim::of(&begun.value);
        let operation = self.session.begin().unwrap();
        let heads = put_version(&operation, text).await.unwrap();
        lifecycle::finish_create(&operation, &claim, Some(heads), "created").await.unwrap();
        claim
    }

    /// Publishes the version `text`, knowing `known`.
    pub(crate) async fn publish(
        &self,
        claim: &Claim,
        known: &[&str],
        text: &str,
    ) -> Result<Change<Published>, Error> {
        let operation = self.session.begin()?;
        let heads = put_version(&operation, text).await?;
        lifecycle::publish(&operation, claim, &knows(known), publication(heads)).await
    }

    pub(crate) async fn release(&self, claim: &Claim, clean: &str) -> Result<Change<Stored<Record>>, Error> {
        let operation = self.session.begin()?;
        let tips = BTreeMap::from([(MemberName::data(), version(clean))]);
        lifecycle::release(&operation, claim, &knows(&[clean]), &tips).await
    }

    /// Acquires a volume as it is read now.
    pub(crate) async fn acquire(&self, id: &VolumeId) -> Result<Claim, Error> {
        let record = cas::record::get(&self.store, id).await?.value;
        let acquired = lifecycle::acquire(&self.session, id, &record.head_tips(), false).await?;
        Ok(acquired.into_inner().claim)
    }

    /// The process ends and starts again with its memory of the session.
    pub(crate) async fn restart(&mut self) {
        let resumed =
            Session::resume(&self.store, self.session.id(), Some(self.session.nonce())).await.unwrap();
        match resumed {
            cas::session::Resumed::Live(session) => self.session = session,
            other => panic!("the session is {other:?}"),
        }
    }
}

pub(crate) fn knows(texts: &[&str]) -> Known {
    Known::data(texts.iter().map(|text| version(text)))
}

pub(crate) fn versions(record: &Record) -> Vec<VersionId> {
    record.entries.iter().map(|entry| tips(&entry.heads)[&MemberName::data()]).collect()
}

pub(crate) fn request(text: &str) -> RequestId {
    text.parse().unwrap()
}

/// A volume whose first pack is 20 % alive: two of ten files are still those of the first version, which was thinned.
pub(crate) async fn half_dead(world: &World, node: &Node) -> (Claim, VersionRef) {
    let mut now = files(&TEN, 0);
    let (claim, first) = node.create_files(&id("v"), &files(&[("z", 10)], 0)).await;
    let mut tree = node.publish_files(&claim, &first, &now, Role::Sync).await.unwrap();
    for (salt, names) in [(1, &TEN[..4]), (2, &TEN[4..8])] {
        world.clock.advance(DAY * 8);
        node.session.raise().await.unwrap();
        now.extend(files(names, salt));
        tree = node.publish_files(&claim, &tree, &now, Role::Sync).await.unwrap();
    }
    (claim, tree)
}
