//! Contents that are stored already: found across versions, processes and the hub's hooks, and never across domains.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use cas::gc::{Gc, Phase};
use cas::objects::{CallKind, Condition, Fault, FaultStore, MemoryStore, Objects};
use cas::tree::{AskHooks, Dedup, DedupIndex, SharedPacks};
use cas::{Cache, Operation, Reader, Session, Store, VersionRef, WriteOptions, Writer, Written};
use futures::FutureExt as _;
use types::{Domain, Hash, Nonce, PackId, PoolId, Rev, SystemClock};

use crate::place::open;

/// A node: its own session, index and cache, in front of a store that others share.
struct Node {
    store: Store,
    session: Session,
    index: Arc<DedupIndex>,
    cache: Arc<Cache>,
    ask: Option<AskHooks>,
    packs: SharedPacks,
}

impl Node {
    async fn new(objects: &Arc<dyn Objects>) -> Self {
        let store =
            Store::create_or_open(Arc::clone(objects), Arc::new(SystemClock)).await.unwrap().into_inner();
        let session =
            Session::join(&store, PoolId::random(), 1, &"node".parse().unwrap(), "host").await.unwrap();
        Self {
            store,
            session,
            index: DedupIndex::new(8 << 20),
            cache: Cache::new(16 << 20),
            ask: None,
            packs: SharedPacks::default(),
        }
    }

    async fn put(&self, domain: &str, path: &Path) -> (Written, Operation) {
        let operation = self.session.begin().unwrap();
        let witness = operation.witness();
        let dedup = Dedup { index: Arc::clone(&self.index), witness, ask: self.ask.clone() };
        let (store, session, cache) = (self.store.clone(), self.session.clone(), Arc::clone(&self.cache));
        let domain: Domain = domain.parse().unwrap();
        let writer = Writer::new(store, session, domain, cache, WriteOptions::default())
            .deduplicating(dedup)
            .sharing(self.packs.clone());
        (writer.put(open(path), None).await.unwrap(), operation)
    }

    /// A reader of a process that has read nothing.
    fn cold(&self) -> Reader {
        Reader::new(self.store.clone(), Cache::new(16 << 20))
    }

    async fn whole(&self, tree: &VersionRef) {
        let report = self.cold().verify(tree).await.unwrap();
        assert!(report.is_whole(), "{:?}", report.damages);
    }
}

fn store() -> Arc<dyn Objects> {
    Arc::new(MemoryStore::default())
}

fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A project: packages of small files, a medium and a large file. `salt` is in one small file alone.
fn project(root: &Path, salt: &str) {
    for package in 0..20 {
        let dir = root.join(format!("package-{package}/lib"));
        std::fs::create_dir_all(&dir).unwrap();
        for file in 0..50 {
            std::fs::write(dir.join(file.to_string()), noise(package * 100 + file, 700)).unwrap();
        }
    }
    std::fs::write(root.join("medium"), noise(90_001, 300_000)).unwrap();
    std::fs::write(root.join("large"), noise(90_002, 3_000_000)).unwrap();
    std::fs::write(root.join("own"), format!("{salt} is what only this project has: {salt:200}")).unwrap();
}

fn two_projects() -> (tempfile::TempDir, tempfile::TempDir) {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    project(one.path(), "one");
    project(two.path(), "two");
    (one, two)
}

/// What a second project costs that has only its nodes and one small file of its own.
const LITTLE: u64 = 200_000;

#[tokio::test]
async fn a_second_volume_of_the_domain_stores_only_what_is_new() {
    let node = Node::new(&store()).await;
    let (one, two) = two_projects();
    let (first, _first) = node.put("a", one.path()).await;
    let (second, _second) = node.put("a", two.path()).await;
    assert!(first.bytes_uploaded > 4_000_000, "{first:?}");
    assert!(second.bytes_uploaded < LITTLE, "{second:?}");
    node.whole(&second.tree).await;
    let alone = Node::new(&store()).await.put("a", two.path()).await.0;
    assert_eq!(second.tree.version, alone.tree.version, "where bytes lie is not in the identity");
}

#[tokio::test]
async fn the_same_tree_again_is_one_pack_with_a_manifest() {
    let node = Node::new(&store()).await;
    let (one, _) = two_projects();
    let (first, _first) = node.put("a", one.path()).await;
    let (again, _again) = node.put("a", one.path()).await;
    assert_eq!(again.tree.version, first.tree.version);
    assert_eq!(again.objects_written, 1);
    assert!(again.bytes_uploaded < 2_000, "a directory that is known is not written again: {again:?}");
    node.whole(&again.tree).await;
}

#[tokio::test]
async fn another_domain_stores_its_own() {
    let node = Node::new(&store()).await;
    let (one, _) = two_projects();
    let (first, _first) = node.put("a", one.path()).await;
    let (other, _other) = node.put("b", one.path()).await;
    // The times of the directories differ, and so do a few bytes.
    assert_eq!(other.bytes_uploaded / 10_000, first.bytes_uploaded / 10_000);
    let manifest = node.cold().manifest(&other.tree).await.unwrap();
    assert!(manifest.packs.iter().all(|needed| needed.pack.domain.as_str() == "b"), "{manifest:?}");
}

#[tokio::test]
async fn a_template_of_the_public_domain_is_named_by_all_and_names_none() {
    let node = Node::new(&store()).await;
    let (one, two) = two_projects();
    let (_, _template) = node.put("public", one.path()).await;
    let (mine, _mine) = node.put("a", two.path()).await;
    assert!(mine.bytes_uploaded < LITTLE, "{mine:?}");
    node.whole(&mine.tree).await;
    let node = Node::new(&store()).await;
    let (mine, _mine) = node.put("a", one.path()).await;
    let (template, _template) = node.put("public", one.path()).await;
    assert_eq!(
        mine.bytes_uploaded / 10_000,
        template.bytes_uploaded / 10_000,
        "a tenant's bytes became public"
    );
}

#[tokio::test]
async fn a_restarted_node_learns_from_a_version_that_it_still_has() {
    let objects = store();
    let (one, two) = two_projects();
    let (first, _first) = Node::new(&objects).await.put("a", one.path()).await;
    let node = Node::new(&objects).await;
    node.cold().learn(&node.index, &"a".parse().unwrap(), &first.tree).await.unwrap();
    let (second, _second) = node.put("a", two.path()).await;
    assert!(second.bytes_uploaded < LITTLE, "{second:?}");
    node.whole(&second.tree).await;
}

#[tokio::test]
async fn a_pack_that_is_gone_is_stored_again() {
    let objects = store();
    let node = Node::new(&objects).await;
    let (one, two) = two_projects();
    let (first, first_operation) = node.put("a", one.path()).await;
    drop(first_operation);
    for needed in &node.cold().manifest(&first.tree).await.unwrap().packs {
        objects.delete(&cas::keys::pack(&needed.pack)).await.unwrap();
    }
    let (second, _second) = node.put("a", two.path()).await;
    assert_eq!(second.bytes_uploaded / 100_000, first.bytes_uploaded / 100_000);
    node.whole(&second.tree).await;
}

#[tokio::test]
async fn a_pack_that_the_pin_condemns_is_not_named() {
    let objects = store();
    let node = Node::new(&objects).await;
    let (one, two) = two_projects();
    let (first, first_operation) = node.put("a", one.path()).await;
    drop(first_operation);
    let manifest = node.cold().manifest(&first.tree).await.unwrap();
    let condemned: std::collections::BTreeSet<PackId> =
        manifest.packs.iter().map(|needed| PackId::clone(&needed.pack)).collect();
    let gc = Gc {
        format: cas::FORMAT,
        rev: Rev(1),
        nonce: Nonce::random(),
        epoch: 1,
        phase: Phase::Condemned,
        condemned: condemned.clone(),
        doomed: Default::default(),
        relocations: Default::default(),
    };
    let bytes = Bytes::from(serde_json::to_vec(&gc).unwrap());
    objects.put(&"gc".parse().unwrap(), bytes, &Condition::IfAbsent).await.unwrap();
    node.session.raise().await.unwrap();
    // The index was not told: the witness is what decides.
    let (second, _second) = node.put("a", two.path()).await;
    let manifest = node.cold().manifest(&second.tree).await.unwrap();
    assert!(manifest.packs.iter().all(|needed| !condemned.contains(&*needed.pack)), "{manifest:?}");
    node.whole(&second.tree).await;
}

#[tokio::test]
async fn a_hook_that_somebody_knows_brings_the_whole_version() {
    let objects = store();
    let (one, two) = two_projects();
    let (first, _first) = Node::new(&objects).await.put("a", one.path()).await;
    assert!(first.hooks.len() > 1, "{:?}", first.hooks);
    let asked = Arc::new(AtomicUsize::new(0));
    let mut node = Node::new(&objects).await;
    node.ask = Some({
        let (asked, hooks, tree) = (Arc::clone(&asked), first.hooks.clone(), first.tree.clone());
        Arc::new(move |_, wanted: Vec<Hash>| {
            asked.fetch_add(1, Ordering::Relaxed);
            let known = wanted.iter().any(|hook| hooks.contains(hook));
            futures::future::ready(Vec::from_iter(known.then(|| tree.clone()))).boxed()
        })
    });
    let (second, _second) = node.put("a", two.path()).await;
    assert!(second.bytes_uploaded < first.bytes_uploaded / 4, "{second:?}");
    assert!(asked.load(Ordering::Relaxed) <= 5, "one answer resolves the rest");
    node.whole(&second.tree).await;
}

#[tokio::test]
async fn a_hint_that_lies_costs_bytes_and_nothing_else() {
    let objects = store();
    let (one, two) = two_projects();
    let (first, _first) = Node::new(&objects).await.put("a", one.path()).await;
    let mut lie = first.tree.clone();
    lie.manifest.offset += 1;
    let mut wrong = first.tree.clone();
    wrong.version.0[0] ^= 1;
    let mut node = Node::new(&objects).await;
    let lies = Arc::new(std::sync::Mutex::new(vec![lie, wrong]));
    node.ask = Some(Arc::new(move |_, _| {
        futures::future::ready(Vec::from_iter(lies.lock().unwrap().pop())).boxed()
    }));
    let (second, _second) = node.put("a", two.path()).await;
    assert_eq!(second.bytes_uploaded / 100_000, first.bytes_uploaded / 100_000);
    node.whole(&second.tree).await;
}

#[tokio::test]
async fn somebody_who_never_answers_is_asked_once() {
    let (one, _) = two_projects();
    let mut node = Node::new(&store()).await;
    let asked = Arc::new(AtomicUsize::new(0));
    node.ask = Some({
        let asked = Arc::clone(&asked);
        Arc::new(move |_, _| {
            asked.fetch_add(1, Ordering::Relaxed);
            futures::future::pending().boxed()
        })
    });
    let (first, _first) = node.put("a", one.path()).await;
    let workers = WriteOptions::default().workers;
    assert!(asked.load(Ordering::Relaxed) <= workers, "they may ask at the same time");
    node.whole(&first.tree).await;
}

#[tokio::test]
async fn sparse_and_linked_directories_are_not_taken_for_plain_ones() {
    let node = Node::new(&store()).await;
    let (plain, sparse) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    let stamp = |path: &Path| std::fs::File::open(path).unwrap().set_modified(time).unwrap();
    for (root, holes) in [(plain.path(), false), (sparse.path(), true)] {
        let dir = root.join("dir");
        std::fs::create_dir(&dir).unwrap();
        let file = std::fs::File::create(dir.join("file")).unwrap();
        if holes {
            file.set_len(200_000).unwrap();
        } else {
            std::os::unix::fs::FileExt::write_all_at(&file, &[0; 200_000], 0).unwrap();
        }
        file.set_modified(time).unwrap();
        stamp(&dir);
        stamp(root);
    }
    let (one, _one) = node.put("a", plain.path()).await;
    let (two, _two) = node.put("a", sparse.path()).await;
    assert_eq!(one.tree.version, two.tree.version);
    let target = tempfile::tempdir().unwrap();
    let options = cas::RestoreOptions::default();
    node.cold().restore(&two.tree, open(target.path()), options).await.unwrap();
    let blocks =
        std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(target.path().join("dir/file")).unwrap());
    assert_eq!(blocks, 0, "the second had a hole");
}

/// Small trees that have nothing in common.
fn small_trees(count: u32) -> Vec<tempfile::TempDir> {
    let tree = |number| {
        let dir = tempfile::tempdir().unwrap();
        for file in 0..20 {
            std::fs::write(dir.path().join(file.to_string()), noise(number * 100 + file, 900)).unwrap();
        }
        dir
    };
    (0..count).map(tree).collect()
}

async fn put_together(node: &Node, trees: &[tempfile::TempDir]) -> Vec<(Written, Operation)> {
    futures::future::join_all(trees.iter().map(|tree| node.put("a", tree.path()))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn puts_that_run_at_once_share_packs_and_each_is_whole() {
    let node = Node::new(&store()).await;
    let trees = small_trees(8);
    let written = put_together(&node, &trees).await;
    let packs: u64 = written.iter().map(|(written, _)| written.objects_written).sum();
    assert!(packs < 8, "{packs} packs for eight small trees");
    for (written, operation) in &written {
        node.whole(&written.tree).await;
        assert!(operation.witness().proves(&written.tree.manifest.pack), "a record may name it");
    }
    // A pack of others' frames, too: the next version of one of them starts from it.
    let (again, _again) = node.put("a", trees[3].path()).await;
    assert_eq!(again.tree.version, written[3].0.tree.version);
    node.whole(&again.tree).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shared_pack_that_is_not_stored_is_told_to_all() {
    let faults = FaultStore::new(Arc::new(MemoryStore::default()));
    let node = Node::new(&(Arc::new(faults.clone()) as Arc<dyn Objects>)).await;
    faults.every(CallKind::Put, "pack/", Fault::Precondition);
    let trees = small_trees(4);
    let puts = trees.iter().map(|tree| async {
        let operation = node.session.begin().unwrap();
        let dedup = Dedup { index: Arc::clone(&node.index), witness: operation.witness(), ask: None };
        let (store, session, cache) = (node.store.clone(), node.session.clone(), Arc::clone(&node.cache));
        let domain: Domain = "a".parse().unwrap();
        let writer = Writer::new(store, session, domain, cache, WriteOptions::default())
            .deduplicating(dedup)
            .sharing(node.packs.clone());
        writer.put(open(tree.path()), None).await
    });
    for put in futures::future::join_all(puts).await {
        put.unwrap_err();
    }
    assert!(node.index.is_empty(), "what was not acknowledged is not known");
}
