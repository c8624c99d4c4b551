//! Everything but packs is thrown away: what was stored is found again, restored, and not stored once more.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use cas::objects::{MemoryStore, Objects as _, list_all};
use cas::tree::{Dedup, DedupIndex, Reindexed};
use cas::{
    Cache, Changes, ChildChange, Parent, Reader, RestoreOptions, Session, Store, VersionRef, WriteOptions,
    Writer, Written,
};
use types::{Domain, PoolId, SystemClock, VersionId};

fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A project: many small files, a large one of several cells, and what changes with `version`.
fn project(root: &Path, salt: u32, version: u32) {
    for package in 0..10 {
        let dir = root.join(format!("package-{package}/lib"));
        std::fs::create_dir_all(&dir).unwrap();
        for file in 0..30 {
            std::fs::write(dir.join(file.to_string()), noise(salt + package * 100 + file, 700)).unwrap();
        }
    }
    std::fs::write(root.join("large"), noise(salt + 9_002, 3_000_000)).unwrap();
    std::fs::write(root.join("now"), format!("version {version} of {salt}")).unwrap();
}

/// The files below a directory.
fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

async fn session(store: &Store) -> Session {
    Session::join(store, PoolId::random(), 1, &"node".parse().unwrap(), "host").await.unwrap()
}

async fn open(disk: &MemoryStore) -> Store {
    Store::create_or_open(Arc::new(disk.clone()), Arc::new(SystemClock)).await.unwrap().into_inner()
}

/// Puts a directory whole, without looking for what is stored already unless `index` knows it.
async fn put(store: &Store, domain: &str, root: &Path, index: Option<&Arc<DedupIndex>>) -> Written {
    let session = session(store).await;
    let operation = session.begin().unwrap();
    let domain: Domain = domain.parse().unwrap();
    let mut writer =
        Writer::new(store.clone(), session, domain, Cache::new(16 << 20), WriteOptions::default());
    if let Some(index) = index {
        let dedup = Dedup { index: Arc::clone(index), witness: operation.witness(), ask: None };
        writer = writer.deduplicating(dedup);
    }
    writer.put(std::fs::File::open(root).unwrap().into(), None).await.unwrap()
}

/// Deletes everything but packs.
async fn throw_away(disk: &MemoryStore) {
    for meta in list_all(disk, "").await.unwrap() {
        if !meta.key.as_str().starts_with("pack/") {
            disk.delete(&meta.key).await.unwrap();
        }
    }
}

async fn reindex(disk: &MemoryStore) -> (Reader, Reindexed) {
    let reader = Reader::of(Arc::new(disk.clone()), Cache::new(16 << 20));
    let mut seen = 0;
    let found = reader.reindex(|_| seen += 1).await.unwrap();
    assert_eq!(seen, found.packs);
    (reader, found)
}

async fn restored(reader: &Reader, tree: &VersionRef) -> BTreeMap<String, Vec<u8>> {
    let target = tempfile::tempdir().unwrap();
    let dir = std::fs::File::open(target.path()).unwrap();
    let options = RestoreOptions { owners: false, ..RestoreOptions::default() };
    reader.restore(tree, dir.into(), options).await.unwrap();
    files(target.path())
}

/// Two projects in two domains, each with several versions. Returns what each version holds.
async fn stored(disk: &MemoryStore) -> BTreeMap<VersionId, BTreeMap<String, Vec<u8>>> {
    let store = open(disk).await;
    let mut wanted = BTreeMap::new();
    for (domain, salt) in [("a", 0), ("b", 50_000)] {
        let root = tempfile::tempdir().unwrap();
        let session = session(&store).await;
        let _operation = session.begin().unwrap();
        let cache = Cache::new(16 << 20);
        let domain: Domain = domain.parse().unwrap();
        let writer = Writer::new(store.clone(), session, domain, Arc::clone(&cache), WriteOptions::default());
        let mut parent: Option<VersionRef> = None;
        for version in 0..3 {
            project(root.path(), salt, version);
            let now = ChildChange::Content { ranges: None, inline: None };
            let mut changes = Changes::default();
            changes.root.children.insert(b"now".to_vec(), now);
            let changed = parent.take().map(|tree| Parent { tree, changes });
            let written =
                writer.put(std::fs::File::open(root.path()).unwrap().into(), changed).await.unwrap();
            wanted.insert(written.tree.version, files(root.path()));
            parent = Some(written.tree);
        }
    }
    wanted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_version_is_found_and_restored_from_packs_alone() {
    let disk = MemoryStore::new();
    let wanted = stored(&disk).await;
    throw_away(&disk).await;
    let (reader, found) = reindex(&disk).await;
    assert_eq!((found.damages.len(), found.without_footer), (0, 0), "{found:?}");
    assert!(found.data_frames > 0 && found.tree_frames > 0);
    let versions: BTreeSet<VersionId> = found.versions.iter().map(|found| found.tree.version).collect();
    assert_eq!(versions, wanted.keys().copied().collect(), "all of them, and no other");
    for version in &found.versions {
        assert!(version.missing.is_empty(), "{version:?}");
        assert_eq!(version.totals.files, wanted[&version.tree.version].len() as u64);
        assert_eq!(restored(&reader, &version.tree).await, wanted[&version.tree.version]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pack_without_its_footer_is_listed_from_its_frames_and_a_missing_one_is_named() {
    let disk = MemoryStore::new();
    let wanted = stored(&disk).await;
    throw_away(&disk).await;
    let packs: Vec<_> = list_all(&disk, "pack/").await.unwrap().into_iter().map(|meta| meta.key).collect();
    for pack in &packs {
        disk.damage(pack, |bytes| bytes.truncate(bytes.len() - 5));
    }
    let (reader, found) = reindex(&disk).await;
    assert_eq!(found.without_footer, packs.len() as u64);
    assert_eq!(found.versions.len(), wanted.len());
    for version in &found.versions {
        assert_eq!(restored(&reader, &version.tree).await, wanted[&version.tree.version]);
    }
    // The largest pack of all has the contents of a whole project.
    let sizes = list_all(&disk, "pack/").await.unwrap();
    let largest = &sizes.iter().max_by_key(|meta| meta.size).unwrap().key;
    let own =
        found.versions.iter().any(|found| largest.as_str().ends_with(&found.tree.manifest.pack.to_string()));
    disk.delete(largest).await.unwrap();
    let (_, found) = reindex(&disk).await;
    let missing = found.versions.iter().filter(|version| !version.missing.is_empty());
    let named = missing.flat_map(|version| &version.missing).map(|pack| format!("pack/{pack}"));
    assert_eq!(named.collect::<BTreeSet<_>>(), BTreeSet::from([largest.to_string()]));
    assert_eq!(found.versions.len(), wanted.len() - usize::from(own), "a manifest in it is gone with it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_found_is_not_stored_again() {
    let disk = MemoryStore::new();
    drop(stored(&disk).await);
    throw_away(&disk).await;
    let (reader, found) = reindex(&disk).await;
    // A store with a new head over the old packs.
    let head = MemoryStore::new();
    drop(open(&head).await);
    for meta in list_all(&head, "").await.unwrap() {
        let object = head.get(&meta.key).await.unwrap();
        disk.put(&meta.key, object.bytes, &cas::objects::Condition::IfAbsent).await.unwrap();
    }
    let store = open(&disk).await;
    let index = DedupIndex::new(8 << 20);
    for version in &found.versions {
        reader.learn(&index, &version.tree.manifest.pack.domain, &version.tree).await.unwrap();
    }
    let root = tempfile::tempdir().unwrap();
    project(root.path(), 0, 7);
    let knowing = put(&store, "a", root.path(), Some(&index)).await;
    assert!(knowing.bytes_uploaded < 100_000, "{knowing:?}");
    let ignorant = put(&store, "a", root.path(), None).await;
    assert!(ignorant.bytes_uploaded > 3_000_000, "{ignorant:?}");
    assert_eq!(restored(&Reader::new(store.clone(), Cache::new(0)), &knowing.tree).await, files(root.path()));
}
