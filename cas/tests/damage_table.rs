//! Damage to every kind of object of a store: deleted, cut, flipped. Each is found and named, with the volumes, versions
//! and files that it touches; everything else goes on working, and what is whole of a version can be taken out.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on says where"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use cas::entry::data_head;
use cas::lifecycle::{self, Publication};
use cas::names::{self, Expected, NameKind};
use cas::objects::{Condition, Key, MemoryStore, Objects as _, list_all};
use cas::record::{NewRecord, Quota};
use cas::scrub::{Damage, Scrub};
use cas::{
    Cache, Claim, Known, Reader, RecordKind, RestoreOptions, Role, Session, Store, VersionRef, WriteOptions,
    Writer,
};
use serde_json::json;
use types::{Domain, Nonce, PoolId, SystemClock, VolumeId};

/// A store with two volumes that share nothing but the session, and one object of every kind.
struct World {
    objects: MemoryStore,
    trees: tempfile::TempDir,
    shop: VersionRef,
    /// The packs of each volume, as keys.
    needs: BTreeMap<&'static str, BTreeSet<String>>,
}

const SHOP: &str = "shop";
const OTHER: &str = "other";

fn id(text: &str) -> VolumeId {
    text.parse().unwrap()
}

fn open(path: &Path) -> std::os::fd::OwnedFd {
    File::open(path).unwrap().into()
}

fn noise(seed: u32, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
    noise
}

fn fill(root: &Path, seed: u32) {
    for number in 0..30_u32 {
        let dir = root.join(format!("d{}/e{}", number % 4, number % 3));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("f{number}")), noise(seed + number, 4_000)).unwrap();
    }
    std::fs::write(root.join("large"), noise(seed + 1_000, 1_500_000)).unwrap();
    std::fs::hard_link(root.join("large"), root.join("large-too")).unwrap();
    std::os::unix::fs::symlink("large", root.join("link")).unwrap();
}

async fn store(objects: &MemoryStore) -> Store {
    Store::create_or_open(Arc::new(objects.clone()), Arc::new(SystemClock)).await.unwrap().into_inner()
}

impl World {
    async fn new() -> Self {
        let objects = MemoryStore::new();
        let store = store(&objects).await;
        let session =
            Session::join(&store, PoolId::random(), 1, &"node-a".parse().unwrap(), "host").await.unwrap();
        let trees = tempfile::tempdir().unwrap();
        let mut shop = None;
        let mut needs = BTreeMap::new();
        for (number, name) in [SHOP, OTHER].into_iter().enumerate() {
            let root = trees.path().join(name);
            std::fs::create_dir(&root).unwrap();
            fill(&root, u32::try_from(number).unwrap() * 100_000);
            let options = WriteOptions { pack_bytes: 1 << 18, ..WriteOptions::default() };
            let writer =
                Writer::new(store.clone(), session.clone(), Domain::default_domain(), Cache::new(0), options);
            let record = NewRecord {
                id: id(name),
                kind: RecordKind::Volume,
                domain: Domain::default_domain(),
                owner: session.id(),
                node: session.node().clone(),
                origin: None,
                request: format!("make-{name}").parse().unwrap(),
                quota: Quota { limit_bytes: None, charge_bytes: 0 },
                attributes: BTreeMap::new(),
            };
            let begun = lifecycle::begin_create(&store, record).await.unwrap().into_inner();
            let claim = Claim::of(&begun.value);
            let operation = session.begin().unwrap();
            let tree = writer.put(open(&root), None).await.unwrap().tree;
            lifecycle::finish_create(&operation, &claim, Some(data_head(tree.clone())), "made")
                .await
                .unwrap();
            // So many entries that older ones go into a page.
            for label in 0..if name == SHOP { 70 } else { 1 } {
                let publication = Publication {
                    heads: data_head(tree.clone()),
                    role: Role::Event,
                    label: label.to_string(),
                    release: false,
                    charge_bytes: None,
                };
                let known = Known::data([tree.version]);
                lifecycle::publish(&operation, &claim, &known, publication).await.unwrap();
            }
            let wanted = name.parse().unwrap();
            names::point(&store, NameKind::Volume, &wanted, &id(name), Expected::Free).await.unwrap();
            let manifest = Reader::new(store.clone(), Cache::new(0)).manifest(&tree).await.unwrap();
            let mut packs: BTreeSet<String> =
                manifest.packs.iter().map(|needed| format!("pack/{}", needed.pack)).collect();
            packs.insert(format!("pack/{}", tree.manifest.pack));
            needs.insert(name, packs);
            shop.get_or_insert(tree);
        }
        let shop = shop.unwrap();
        // What a collector writes.
        let gc = json!({"format": 1, "rev": 1, "nonce": Nonce::random(), "epoch": 3, "phase": "idle",
            "condemned": [], "doomed": [], "relocations": {}});
        let moved = json!({"format": 1, "pack": "default/01arz3ndektsv4rrffq69g5fav.3.17", "to": {}});
        for (key, value) in [("gc", gc), ("moved/default/01arz3ndektsv4rrffq69g5fav.3.17", moved)] {
            let key: Key = key.parse().unwrap();
            let bytes = cas::encode(&key, &value).unwrap();
            objects.put(&key, bytes, &Condition::IfAbsent).await.unwrap();
        }
        session.raise().await.unwrap();
        Self { objects, trees, shop, needs }
    }

    /// What a scrub with nothing in its memory finds.
    async fn scrub(objects: &MemoryStore) -> Vec<Damage> {
        Scrub::new(store(objects).await, None).whole(|_| {}).await.unwrap().damages
    }

    /// Everything that does not need the damaged object goes on.
    async fn others_work(&self, objects: &MemoryStore, damaged: &str, what: &str) {
        let store = store(objects).await;
        let mut touched = 0;
        for name in [SHOP, OTHER] {
            // The session's and the collector's objects are nobody's data, and so are names.
            let mine = damaged == format!("vol/{name}")
                || damaged.starts_with(&format!("page/{name}/"))
                || self.needs[name].contains(damaged);
            if mine {
                touched += 1;
                continue;
            }
            let record = cas::record::get(&store, &id(name)).await.unwrap().value;
            let head = record.head_entry().unwrap().heads.values().next().unwrap();
            let reader = Reader::new(store.clone(), Cache::new(8 << 20));
            assert!(reader.verify(head).await.unwrap().is_whole(), "{what}: {name}");
        }
        assert!(touched <= 1, "{what}: they share nothing");
        if !damaged.starts_with("vol/") {
            assert_eq!(cas::record::list(&store).await.unwrap().len(), 2, "{what}");
        }
    }

    /// What of the shop is whole is restored, and only that; what is lost is told.
    async fn rescue(&self, objects: &MemoryStore, what: &str) -> Option<BTreeSet<String>> {
        let target = tempfile::tempdir().unwrap();
        let reader = Reader::new(store(objects).await, Cache::new(8 << 20));
        let rescued = reader.rescue(&self.shop, open(target.path()), RestoreOptions::default()).await;
        let (restored, damages) = match rescued {
            Ok(rescued) => rescued,
            // The root itself: nothing can be found.
            Err(error) => {
                assert!(
                    error.to_string().contains("pack ") || error.to_string().contains('/'),
                    "{what}: {error}"
                );
                return None;
            }
        };
        let lost: BTreeSet<String> = damages
            .iter()
            .filter_map(|damage| damage.lost_path())
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect();
        let source = self.trees.path().join(SHOP);
        let is_lost = |path: &str| lost.iter().any(|l| path == l || path.starts_with(&format!("{l}/")));
        let mut whole = 0;
        for path in paths(&source) {
            let (left, right) = (source.join(&path), target.path().join(&path));
            if is_lost(path.to_str().unwrap()) {
                assert!(
                    right.symlink_metadata().is_err(),
                    "{what}: {} is lost, and half of it is there",
                    path.display()
                );
                continue;
            }
            if left.symlink_metadata().unwrap().is_file() {
                assert!(
                    std::fs::read(&left).unwrap() == std::fs::read(&right).unwrap(),
                    "{what}: {}",
                    path.display()
                );
            } else {
                right.symlink_metadata().unwrap();
            }
            whole += 1;
        }
        assert!(restored.files > 0 || whole == 0, "{what}");
        Some(lost)
    }
}

/// Everything below a directory, relative to it.
fn paths(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(root.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let path = dir.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                todo.push(path.clone());
            }
            found.push(path);
        }
    }
    found
}

#[derive(Debug, Clone, Copy)]
enum Harm {
    Delete,
    Cut(usize),
    Flip(usize),
}

fn harms(len: usize) -> Vec<Harm> {
    let mut harms = vec![Harm::Delete, Harm::Cut(0), Harm::Cut(len / 2), Harm::Cut(len - 1)];
    harms.extend([0, 3, len / 3, len / 2, len * 9 / 10, len - 1].map(Harm::Flip));
    harms
}

async fn harm(objects: &MemoryStore, key: &Key, harm: Harm) {
    match harm {
        Harm::Delete => objects.delete(key).await.unwrap(),
        Harm::Cut(len) => assert!(objects.damage(key, |bytes| bytes.truncate(len))),
        Harm::Flip(at) => assert!(objects.damage(key, |bytes| bytes[at] ^= 1)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_to_any_object_is_named_and_the_rest_works() {
    let world = World::new().await;
    assert_eq!(World::scrub(&world.objects).await, [], "nothing is damaged");
    let listed = list_all(&world.objects, "").await.unwrap();
    let mut kinds = BTreeMap::<String, usize>::new();
    for meta in &listed {
        let key = meta.key.as_str();
        let kind = key.split('/').next().unwrap();
        *kinds.entry(kind.to_owned()).or_default() += 1;
        for one in harms(usize::try_from(meta.size).unwrap()) {
            let what = format!("{key}: {one:?} of {}", meta.size);
            let objects = world.objects.fork();
            harm(&objects, &meta.key, one).await;
            if kind == "store" {
                // Nothing of it is used: it might be another store's prefix.
                let opened = Store::create_or_open(Arc::new(objects.clone()), Arc::new(SystemClock)).await;
                let error = opened.map(drop).unwrap_err();
                assert!(error.to_string().contains("store"), "{what}: {error}");
                continue;
            }
            let damages = World::scrub(&objects).await;
            let named = damages.iter().find(|damage| damage.key == key);
            match (kind, one) {
                // Nothing refers to a name, and nothing but its pack to a move: their absence is no damage. A lookup
                // says that there is none, and the hub writes names again from the records that claim them.
                ("name" | "moved", Harm::Delete) => assert_eq!(damages, [], "{what}"),
                _ => assert!(named.is_some(), "{what}: named are {damages:?}"),
            }
            assert!(damages.iter().all(|damage| damage.key == key), "{what}: {damages:?}");
            world.others_work(&objects, key, &what).await;
        }
    }
    eprintln!("{kinds:?}");
    for kind in ["store", "session", "vol", "page", "pack", "name", "gc", "moved"] {
        assert!(kinds.contains_key(kind), "there is a {kind}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_pack_names_its_files_and_all_others_are_rescued() {
    let world = World::new().await;
    let packs = &world.needs[SHOP];
    assert!(packs.len() >= 4, "{}", packs.len());
    let (mut partly, mut wholly) = (0, 0);
    for key in packs {
        let key: Key = key.parse().unwrap();
        let len = usize::try_from(world.objects.head(&key).await.unwrap().size).unwrap();
        for one in harms(len) {
            let what = format!("{key}: {one:?} of {len}");
            let objects = world.objects.fork();
            harm(&objects, &key, one).await;
            let damages = World::scrub(&objects).await;
            let damage = damages.iter().find(|damage| damage.key == key.as_str()).unwrap();
            let told: BTreeSet<String> =
                damage.touches.iter().flat_map(|touches| touches.paths.iter().cloned()).collect();
            assert!(damage.touches.iter().all(|touches| touches.volume == id(SHOP)), "{what}: {damage:?}");
            match world.rescue(&objects, &what).await {
                None => {
                    wholly += 1;
                    assert!(told.contains("/"), "{what}: {told:?}");
                }
                Some(lost) => {
                    partly += usize::from(!lost.is_empty());
                    // The scrub tells directories with a slash; a rescue tells other names of a file as well.
                    let told: BTreeSet<String> =
                        told.iter().map(|path| path.trim_end_matches('/').to_owned()).collect();
                    let lost: BTreeSet<String> =
                        lost.into_iter().filter(|path| path != "large-too").collect();
                    // A frame that is damaged in part: the scrub names all files in it, and those that are what their own
                    // hashes say are rescued all the same.
                    assert!(lost.is_subset(&told), "{what}: {lost:?} of {told:?}");
                    if matches!(one, Harm::Delete) {
                        assert_eq!(told, lost, "{what}");
                    }
                }
            }
        }
    }
    eprintln!("{partly} times a part was lost and the rest restored, {wholly} times the root");
    assert!(partly > 10 && wholly > 0);
}

#[tokio::test]
async fn a_read_of_one_file_is_proved_by_the_file_itself() {
    // A frame that is sound and is another one of the same length, as a server that mixes up objects would give.
    let world = World::new().await;
    let reader = Reader::new(store(&world.objects).await, Cache::new(0));
    let path = types::VolumePath::parse("d0/e0/f0").unwrap();
    let whole = reader.read(&world.shop, &path, 0..u64::MAX).await.unwrap();
    assert_eq!(whole, Bytes::from(noise(0, 4_000)));
    for meta in list_all(&world.objects, "pack/").await.unwrap() {
        let objects = world.objects.fork();
        let swapped = objects.damage(&meta.key, |bytes| {
            let frames = cas::tree::Footer::reindex(bytes);
            for pair in frames.windows(2) {
                let (a, b) = (pair[0], pair[1]);
                if a.header.payload_len == b.header.payload_len && a.header.raw_len == b.header.raw_len {
                    let len = 56 + a.header.payload_len as usize;
                    let (start, next) = (a.offset as usize, b.offset as usize);
                    let first = bytes[start..start + len].to_vec();
                    bytes.copy_within(next..next + len, start);
                    bytes[next..next + len].copy_from_slice(&first);
                }
            }
        });
        assert!(swapped);
        let reader = Reader::new(store(&objects).await, Cache::new(0));
        // It is what it was, or it is refused; never something else.
        if let Ok(read) = reader.read(&world.shop, &path, 0..u64::MAX).await {
            assert_eq!(read, whole, "{}", meta.key);
        }
    }
}
