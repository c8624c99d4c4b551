//! Pages of older entries and `moved/`: objects that stand behind a record and are believed less than it. Changed ones are
//! refused or understood; a read never gives other bytes, and where one cannot be believed nothing is collected.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use cas::gc::Step;
use cas::lifecycle;
use cas::objects::{Condition, Key, MemoryStore, Objects as _, list_all};
use cas::scrub::Scrub;
use cas::timeline::{self, Point};
use cas::tree::Files;
use cas::{Error, Record, Store, VersionRef};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use types::{Clock as _, Hash};

use crate::mutate::mutate;
use crate::world::{self, World, eager, half_dead, id, knows, publication, put_version, read_files};
use crate::{is_clear, number};

/// The object without its proof: then what decodes it is looked at, and not only the hash.
fn plain(bytes: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(bytes).unwrap();
    let (plain, _) = text.rsplit_once(",\"check\":").unwrap();
    format!("{plain}}}").into_bytes()
}

async fn keys(disk: &MemoryStore, prefix: &str) -> Vec<Key> {
    list_all(disk, prefix).await.unwrap().into_iter().map(|meta| meta.key).collect()
}

async fn open(world: &World, disk: &MemoryStore) -> Store {
    let clock = std::sync::Arc::new(world.clock.clone());
    let store = Store::open(std::sync::Arc::new(disk.clone()), clock).await.unwrap();
    store.with_retry(world::RETRY)
}

/// Collects as far as it goes, with nobody alive.
async fn collect(store: &Store) -> Result<(), Error> {
    for session in cas::session::list(store).await? {
        cas::session::fence(store, &session.value.id).await?;
    }
    let mut collector = cas::gc::Collector::new(store.clone(), eager());
    for _ in 0..20 {
        if collector.step().await? == Step::Idle {
            collector.round().await?;
            return Ok(());
        }
    }
    panic!("the collection does not end");
}

#[test]
fn a_changed_page_is_refused_and_a_page_that_lies_breaks_nothing() {
    let (rounds, seed) = (number("HOSTILE_ROUNDS", 100), number("HOSTILE_SEED", 1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let world = World::new();
        let node = world.node("a").await;
        let claim = node.create(&id("v"), "v0").await;
        for number in 1..80 {
            world.clock.advance(Duration::from_secs(1));
            node.session.raise().await.unwrap();
            let operation = node.session.begin().unwrap();
            let heads = put_version(&operation, &format!("v{number}")).await.unwrap();
            let known = knows(&[&format!("v{}", number - 1)]);
            lifecycle::publish(&operation, &claim, &known, publication(heads)).await.unwrap();
        }
        let record = world.record(&id("v")).await;
        assert!(!record.older.is_empty(), "there is a page");
        let key: Key = format!("page/v/{}", record.older[0].page).parse().unwrap();
        let good = world.disk.get(&key).await.unwrap().bytes;
        let (mut refused, mut read) = (0, 0);
        for round in 0..rounds {
            let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003) + round);
            let bad = mutate(&plain(&good), &mut random);
            let what = || format!("HOSTILE_SEED={seed} round {round}: {}", String::from_utf8_lossy(&bad));
            // Under its own name it is never believed; under the name that fits, the record says it is this one.
            for renamed in [false, true] {
                let disk = world.disk.fork();
                let store = open(&world, &disk).await;
                if renamed {
                    plant(&disk, &record, &bad).await;
                } else {
                    disk.damage(&key, |bytes| bytes.clone_from(&bad));
                }
                let packs = keys(&disk, "pack/").await;
                let now = cas::record::get(&store, &id("v")).await.unwrap();
                let entries = timeline::entries(&store, &now.value).await;
                let wanted = Point::Version(world::version("v3"));
                let mut errors: Vec<Error> = Vec::new();
                errors.extend(timeline::find(&store, &now.value, &wanted).await.err());
                errors.extend(cas::upkeep::thin_unowned(&store, &now, world.clock.now()).await.err());
                errors.extend(collect(&store).await.err());
                let pages_readable = entries.is_ok();
                errors.extend(entries.err());
                for error in &errors {
                    assert!(is_clear(error), "{}\n{error:?}", what());
                }
                if !pages_readable {
                    refused += 1;
                    assert_eq!(keys(&disk, "pack/").await, packs, "{} lost packs", what());
                } else {
                    assert!(renamed, "{} was believed under another's name", what());
                    read += 1;
                }
                drop(Scrub::new(store.clone(), None).whole(|_| ()).await);
            }
        }
        println!(
            "pages: {refused} of {} refused, {read} told another history that holds together",
            2 * rounds
        );
        assert!(refused > rounds, "mutations are hardly ever found");
    });
}

/// Puts the page under the name that its bytes have, and lets the record name it.
async fn plant(disk: &MemoryStore, record: &Record, page: &[u8]) {
    let hash = Hash(*blake3::hash(page).as_bytes());
    let key: Key = format!("page/v/{hash}").parse().unwrap();
    drop(disk.put(&key, Bytes::copy_from_slice(page), &Condition::IfAbsent).await);
    let mut record = record.clone();
    record.older[0].page = hash;
    let key: Key = "vol/v".parse().unwrap();
    let bytes = cas::encode(&key, &record).unwrap();
    disk.damage(&key, |old| *old = bytes.to_vec());
}

/// A store in which the frames of a version that is listed have moved.
async fn moved(world: &World) -> (VersionRef, Files) {
    let node = world.node("a").await;
    let (_, tree) = half_dead(world, &node).await;
    // What is not young any more is told with a beat.
    node.session.beat().await.unwrap();
    let (_, mut collector) = world.collector().await;
    for _ in 0..40 {
        node.session.raise().await.unwrap();
        let step = collector.step().await.unwrap();
        node.session.raise().await.unwrap();
        if step == Step::Idle {
            break;
        }
    }
    let bytes = read_files(&node.store, &tree).await.unwrap();
    (tree, bytes)
}

#[test]
fn a_changed_moved_object_gives_no_other_bytes_and_lets_nothing_be_collected() {
    let (rounds, seed) = (number("HOSTILE_ROUNDS", 100), number("HOSTILE_SEED", 1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let world = World::new();
        let (tree, good_files) = moved(&world).await;
        let moved_keys = keys(&world.disk, "moved/").await;
        assert!(!moved_keys.is_empty(), "frames have moved");
        let (mut refused, mut read) = (0, 0);
        for round in 0..rounds {
            for key in &moved_keys {
                let good = world.disk.get(key).await.unwrap().bytes;
                let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003) + round);
                for proved in [true, false] {
                    let bad =
                        if proved { mutate(&good, &mut random) } else { mutate(&plain(&good), &mut random) };
                    let what = || {
                        format!("HOSTILE_SEED={seed} round {round} {key}: {}", String::from_utf8_lossy(&bad))
                    };
                    let disk = world.disk.fork();
                    disk.damage(key, |bytes| bytes.clone_from(&bad));
                    let store = open(&world, &disk).await;
                    match read_files(&store, &tree).await {
                        Ok(found) => {
                            assert_eq!(found, good_files, "{}", what());
                            read += 1;
                        }
                        Err(error) => {
                            let error = Error::from(error);
                            assert!(is_clear(&error), "{}\n{error:?}", what());
                            refused += 1;
                        }
                    }
                    drop(Scrub::new(store.clone(), None).whole(|_| ()).await);
                    let before: BTreeSet<Key> = keys(&disk, "pack/").await.into_iter().collect();
                    if let Err(error) = collect(&store).await {
                        assert!(is_clear(&error), "{}\n{error:?}", what());
                        let after: BTreeSet<Key> = keys(&disk, "pack/").await.into_iter().collect();
                        assert_eq!(before, after, "{} let packs be deleted", what());
                    }
                }
            }
        }
        println!("moved: {refused} reads refused, {read} with the right bytes");
        assert!(refused > rounds / 4 && read > 0, "{refused} {read}");
    });
}
