//! What the predecessor got wrong in its store, by the numbers of its list of weaknesses: each test fails where the store
//! behaves as that one did. Those of collection, of nodes and of the timeline have their numbers beside their own tests.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on says where"
)]

mod world;

use std::path::Path;
use std::sync::Arc;

use cas::lifecycle;
use cas::names::{self, Expected, NameKind};
use cas::objects::{CallKind, Fault, FaultStore, MemoryStore, Objects as _, list_all};
use cas::session;
use cas::tree::TreeError;
use cas::{
    Cache, Changes, ChildChange, Error, Operation, Parent, Reader, RestoreOptions, Session, Store,
    VersionRef, WriteOptions, Writer, Written,
};
use types::{Classify as _, Domain, Kind, PoolId, SystemClock, VolumePath};
use world::{World, id, knows, publication, set, version, versions};

/// A store that counts, with a writer and readers of trees.
struct Trees {
    disk: MemoryStore,
    faults: FaultStore,
    store: Store,
    writer: Writer,
    _operation: Operation,
    dir: tempfile::TempDir,
}

impl Trees {
    async fn new() -> Self {
        let disk = MemoryStore::new();
        let faults = FaultStore::new(Arc::new(disk.clone()));
        let opened = Store::create_or_open(Arc::new(faults.clone()), Arc::new(SystemClock)).await;
        let store = opened.unwrap().into_inner();
        let session =
            Session::join(&store, PoolId::random(), 1, &"node-a".parse().unwrap(), "host").await.unwrap();
        let operation = session.begin().unwrap();
        let (domain, cache) = (Domain::default_domain(), Cache::new(32 << 20));
        let writer = Writer::new(store.clone(), session, domain, cache, WriteOptions::default());
        Self { disk, faults, store, writer, _operation: operation, dir: tempfile::tempdir().unwrap() }
    }

    fn new_dir(&self, name: &str) -> std::path::PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    }

    async fn put(&self, path: &Path, parent: Option<Parent>) -> Written {
        self.writer.put(std::fs::File::open(path).unwrap().into(), parent).await.unwrap()
    }

    fn cold(&self) -> Reader {
        Reader::new(self.store.clone(), Cache::new(32 << 20))
    }

    async fn restore(&self, tree: &VersionRef, path: &Path) -> Result<(), TreeError> {
        let dir = std::fs::File::open(path).unwrap();
        self.cold().restore(tree, dir.into(), RestoreOptions::default()).await.map(drop)
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// One file of a directory was written.
fn one_changed(name: &str) -> Changes {
    let mut changes = Changes::default();
    changes
        .root
        .children
        .insert(name.as_bytes().to_vec(), ChildChange::Content { ranges: None, inline: None });
    changes
}

#[tokio::test]
async fn w03_a_read_error_never_rewrites_a_record_or_a_name() {
    let world = World::new();
    let node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    node.publish(&claim, &["v0"], "v1").await.unwrap();
    let name = "golden".parse().unwrap();
    names::point(&node.store, NameKind::Template, &name, &id("v"), Expected::Free).await.unwrap();
    let keys = ["vol/v", "name/template/golden"].map(|key| key.parse().unwrap());
    let before =
        [world.disk.get(&keys[0]).await.unwrap().bytes, world.disk.get(&keys[1]).await.unwrap().bytes];
    let operations = async || {
        let publish = node.publish(&claim, &["v0", "v1"], "v2").await.map(drop);
        let edit = lifecycle::set_attributes(&node.store, &id("v"), &set("k", "1")).await.map(drop);
        let point =
            names::point(&node.store, NameKind::Template, &name, &id("w"), Expected::Any).await.map(drop);
        [publish, edit, point]
    };
    // A timeout or 503 of every read: each write fails, and writes nothing.
    for prefix in ["vol/", "name/"] {
        node.faults.every(CallKind::Get, prefix, Fault::Unavailable);
        let [publish, edit, point] = operations().await;
        let failed = if prefix == "vol/" { publish.is_err() && edit.is_err() } else { point.is_err() };
        assert!(failed, "a read of {prefix} failed, and the write went on");
        node.faults.heal();
        assert_eq!(world.disk.get(&keys[usize::from(prefix == "name/")]).await.unwrap().bytes, {
            if prefix == "vol/" { before[0].clone() } else { before[1].clone() }
        });
        // What the other one did meanwhile is undone, for the next round.
        for (key, bytes) in keys.iter().zip(&before) {
            world.disk.damage(key, |now| *now = bytes.to_vec());
        }
    }
    // Bytes that cannot be understood.
    for key in &keys {
        world.disk.damage(key, |bytes| bytes.truncate(20));
    }
    for answer in operations().await {
        assert!(matches!(answer, Err(Error::Corrupt { .. })), "{answer:?}");
    }
    for key in &keys {
        assert_eq!(world.disk.get(key).await.unwrap().bytes.len(), 20, "{key} was written over");
    }
}

#[tokio::test]
async fn w04_what_a_version_names_does_not_change_with_a_name() {
    let world = World::new();
    let node = world.node("a").await;
    node.create(&id("old"), "base-1").await;
    node.create(&id("new"), "base-2").await;
    let name = "nextjs".parse().unwrap();
    names::point(&node.store, NameKind::Template, &name, &id("old"), Expected::Free).await.unwrap();
    let resolved = names::resolve(&node.store, NameKind::Template, &name).await.unwrap().unwrap();
    // The template is refreshed: a new record, and its name moves. There is no moment without the template.
    names::point(&node.store, NameKind::Template, &name, &id("new"), Expected::Id(&id("old"))).await.unwrap();
    assert_eq!(
        versions(&world.record(&resolved).await),
        [version("base-1")],
        "who resolved it has what it got"
    );
    let again =
        names::point(&node.store, NameKind::Template, &name, &id("x"), Expected::Id(&id("old"))).await;
    assert!(matches!(again, Err(Error::NameTaken { .. })), "{again:?}");
}

#[tokio::test]
async fn w16_an_owner_that_lost_its_place_moves_no_head() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let claim = a.create(&id("v"), "v0").await;
    session::fence(&b.store, &a.session.id()).await.unwrap();
    let taken = b.acquire(&id("v")).await.unwrap();
    b.publish(&taken, &["v0"], "line-of-b").await.unwrap();
    // The old owner, with everything that it knows, through every door.
    let known = knows(&["v0"]);
    let operation = a.session.begin().unwrap();
    let heads = world::put_version(&operation, "line-of-a").await.unwrap();
    let publish = lifecycle::publish(&operation, &claim, &known, publication(heads.clone())).await;
    assert!(matches!(publish, Err(Error::Lost { .. })), "{publish:?}");
    let target = lifecycle::Target::Heads(heads.clone());
    let restore = lifecycle::restore_head(&operation, &claim, &known, target, "").await;
    assert!(matches!(restore, Err(Error::Lost { .. })), "{restore:?}");
    let release = lifecycle::release(&operation, &claim, &known, &cas::entry::tips(&heads)).await;
    assert!(release.is_err(), "{release:?}");
    assert_eq!(versions(&world.record(&id("v")).await), ["v0", "line-of-b"].map(version), "one line");
}

#[tokio::test]
async fn w23_no_byte_is_believed_unread() {
    let trees = Trees::new().await;
    let source = trees.new_dir("source");
    std::fs::write(source.join("file"), noise(1, 300_000)).unwrap();
    std::fs::write(source.join("small"), noise(2, 5_000)).unwrap();
    let tree = trees.put(&source, None).await.tree;
    let pack = list_all(&trees.disk, "pack/").await.unwrap()[0].clone();
    for at in (0..usize::try_from(pack.size).unwrap()).step_by(9_973) {
        let good = trees.disk.get(&pack.key).await.unwrap().bytes;
        trees.disk.damage(&pack.key, |bytes| bytes[at] ^= 4);
        for name in ["file", "small"] {
            let path = VolumePath::parse(name).unwrap();
            if let Ok(read) = trees.cold().read(&tree, &path, 0..u64::MAX).await {
                assert_eq!(
                    read,
                    std::fs::read(source.join(name)).unwrap(),
                    "byte {at}: wrong bytes were given out"
                );
            }
        }
        let target = trees.new_dir(&format!("target-{at}"));
        if let Err(error) = trees.restore(&tree, &target).await {
            assert_eq!(error.kind(), Kind::DataLoss, "{error}");
        } else {
            assert_eq!(std::fs::read(target.join("file")).unwrap(), noise(1, 300_000), "byte {at}");
        }
        assert!(!trees.cold().verify(&tree).await.unwrap().is_whole(), "byte {at} is not found");
        trees.disk.damage(&pack.key, |bytes| *bytes = good.to_vec());
    }
}

#[tokio::test]
async fn w23_a_body_that_was_cut_on_the_way_is_found() {
    let trees = Trees::new().await;
    let source = trees.new_dir("source");
    std::fs::write(source.join("file"), noise(1, 300_000)).unwrap();
    // On the way back: no read believes it.
    let tree = trees.put(&source, None).await.tree;
    for (kind, n) in
        [CallKind::Get, CallKind::GetRange].into_iter().flat_map(|kind| (0..3).map(move |n| (kind, n)))
    {
        trees.faults.at(kind, "pack/", n, Fault::Truncate);
        let target = trees.new_dir(&format!("{kind:?}-{n}"));
        match trees.restore(&tree, &target).await {
            Ok(()) => assert_eq!(std::fs::read(target.join("file")).unwrap(), noise(1, 300_000)),
            Err(error) => assert_eq!(error.kind(), Kind::DataLoss, "{error}"),
        }
    }
    trees.faults.heal();
    // On the way there: it is found when the version is proven.
    std::fs::write(source.join("file"), noise(2, 300_000)).unwrap();
    trees.faults.at(CallKind::Put, "pack/", 0, Fault::Truncate);
    let tree = trees.put(&source, None).await.tree;
    trees.faults.heal();
    let report = trees.cold().verify(&tree).await;
    assert!(report.is_err() || !report.unwrap().is_whole());
}

#[tokio::test]
async fn w25_the_same_content_is_the_same_version_and_is_not_stored_again() {
    let trees = Trees::new().await;
    let (first, second) = (trees.new_dir("first"), trees.new_dir("second"));
    for dir in [&first, &second] {
        for number in 0..40 {
            std::fs::write(dir.join(format!("f{number}")), noise(number, 10_000)).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 + number);
            std::fs::File::options()
                .append(true)
                .open(dir.join(format!("f{number}")))
                .unwrap()
                .set_modified(time)
                .unwrap();
        }
        std::fs::File::open(dir).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    let one = trees.put(&first, None).await;
    let again = trees.put(&first, Some(Parent { tree: one.tree.clone(), changes: Changes::default() })).await;
    assert_eq!((again.tree.version, again.bytes_uploaded), (one.tree.version, 0), "no change, no byte");
    let other = trees.put(&second, None).await;
    assert_eq!(other.tree.version, one.tree.version, "an identity of content, not of a place or a stream");
}

#[tokio::test]
async fn w27_a_restore_costs_the_same_after_any_number_of_syncs() {
    let trees = Trees::new().await;
    let source = trees.new_dir("source");
    for number in 0..50 {
        std::fs::write(source.join(format!("f{number}")), noise(number, 20_000)).unwrap();
    }
    let mut tree = trees.put(&source, None).await.tree;
    let mut costs = Vec::new();
    for round in 1..=120_u64 {
        let name = format!("f{}", round % 10);
        std::fs::write(source.join(&name), noise(1_000 + round, 20_000)).unwrap();
        tree = trees.put(&source, Some(Parent { tree, changes: one_changed(&name) })).await.tree;
        if round == 10 || round == 120 {
            let target = trees.new_dir(&format!("target-{round}"));
            trees.faults.reset();
            trees.restore(&tree, &target).await.unwrap();
            costs.push(trees.faults.counts());
        }
    }
    let gets = |counts: &cas::objects::Counts| counts.calls();
    println!("restore after 10 syncs: {} requests, {} bytes", gets(&costs[0]), costs[0].bytes_read);
    println!("restore after 120 syncs: {} requests, {} bytes", gets(&costs[1]), costs[1].bytes_read);
    assert!(gets(&costs[1]) <= gets(&costs[0]) + 4, "{costs:?}");
    assert!(costs[1].bytes_read <= costs[0].bytes_read * 11 / 10 + 100_000, "{costs:?}");
}

#[tokio::test]
async fn w28_a_sync_costs_the_same_after_any_number_of_syncs() {
    let world = World::new();
    let node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    let mut costs = Vec::new();
    let mut last = "v0".to_owned();
    for round in 1..=400 {
        let next = format!("v{round}");
        node.faults.reset();
        node.publish(&claim, &[&last], &next).await.unwrap();
        if round == 50 || round == 400 {
            costs.push(node.faults.counts());
        }
        last = next;
    }
    for counts in &costs {
        println!(
            "{} requests, {} bytes written, {} bytes read",
            counts.calls(),
            counts.bytes_written,
            counts.bytes_read
        );
    }
    assert!(costs[1].calls() <= costs[0].calls() + 1, "{costs:?}");
    assert!(costs[1].bytes_written <= 64 << 10 && costs[1].bytes_read <= 64 << 10, "{costs:?}");
}

#[tokio::test]
async fn w32_no_object_is_too_large_to_be_stored_and_nothing_is_written_twice() {
    let trees = Trees::new().await;
    let source = trees.new_dir("source");
    std::fs::write(source.join("large"), noise(7, 150 << 20)).unwrap();
    trees.faults.reset();
    let written = trees.put(&source, None).await;
    let counts = trees.faults.counts();
    let packs = list_all(&trees.disk, "pack/").await.unwrap();
    let total: u64 = packs.iter().map(|meta| meta.size).sum();
    assert!(packs.len() > 1 && packs.iter().all(|meta| meta.size <= cas::tree::PACK_MAX as u64), "{packs:?}");
    assert_eq!(
        (counts.of(CallKind::Put), counts.bytes_written),
        (packs.len() as u64, total),
        "each byte once"
    );
    assert_eq!(written.bytes_uploaded, total);
    assert!(trees.cold().verify(&written.tree).await.unwrap().is_whole());
}
