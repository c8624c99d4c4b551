//! Records, sessions, names, `gc`, pages, `moved/` and the store's own object, changed in every way: each reader and each operation
//! answers with an error or with what is there, and what could not be read is not written over.
//!
//! `HOSTILE_ROUNDS=N` looks at N changes of each kind of object (100), `HOSTILE_SEED=S` begins elsewhere.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on says where"
)]

mod mutate;
mod parts;
#[path = "../world/mod.rs"]
mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cas::lifecycle::{self, Authority};
use cas::names::{self, Expected, NameKind};
use cas::objects::{Key, MemoryStore, Objects as _, list_all};
use cas::session::{self, Resumed};
use cas::{Claim, Error, Session, Store, references};
use mutate::mutate;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use types::{Classify as _, Kind};
use world::{World, id, knows, publication, set, version};

struct Scene {
    world: World,
    objects: Vec<(Key, Bytes)>,
    node: world::Node,
    claim: Claim,
}

impl Scene {
    async fn new() -> Self {
        let world = World::new();
        let node = world.node("a").await;
        let claim = node.create(&id("v"), "v0").await;
        node.publish(&claim, &["v0"], "v1").await.unwrap();
        let entry = world.record(&id("v")).await.entries[0].id;
        let taken = lifecycle::Taken::Refuse;
        lifecycle::set_branch(&node.store, &id("v"), "main", entry, taken).await.unwrap();
        lifecycle::set_attributes(&node.store, &id("v"), &set("name", "x")).await.unwrap();
        let name = "n".parse().unwrap();
        names::point(&node.store, NameKind::Volume, &name, &id("v"), Expected::Free).await.unwrap();
        let record = world.record(&id("v")).await;
        let pack = &record.entries[0].heads.values().next().unwrap().manifest.pack;
        world.condemn(1, [types::PackId::clone(pack)]).await;
        let mut objects = Vec::new();
        for meta in list_all(&world.disk, "").await.unwrap() {
            if !meta.key.as_str().starts_with("pack/") {
                objects.push((meta.key.clone(), world.disk.get(&meta.key).await.unwrap().bytes));
            }
        }
        Self { world, objects, node, claim }
    }

    /// Everything that reads or changes such an object. What it answers is free; that it answers, and how it fails, not.
    async fn try_everything(&self, store: &Store) -> Vec<Error> {
        let mut errors = Vec::new();
        let mut note = |answer: Result<(), Error>| errors.extend(answer.err());
        let volume = id("v");
        let name = "n".parse().unwrap();
        note(cas::record::read(store, &volume).await.map(drop));
        note(cas::record::list(store).await.map(drop));
        note(session::list(store).await.map(drop));
        note(cas::gc::read_pin(store).await.map(drop));
        note(names::resolve(store, NameKind::Volume, &name).await.map(drop));
        note(names::list(store, NameKind::Volume).await.map(drop));
        note(lifecycle::set_quota(store, &volume, Some(1)).await.map(drop));
        note(names::point(store, NameKind::Volume, &name, &id("w"), Expected::Any).await.map(drop));
        let session = self.node.session.id();
        match Session::resume(store, session, None).await {
            Ok(Resumed::Live(session)) => {
                note(session.raise().await.map(drop));
                note(session.beat().await.map(drop));
                if let Ok(operation) = session.begin() {
                    let confirmed =
                        references::confirm_version(&operation, &volume, &version("v0"), &BTreeSet::new())
                            .await;
                    note(confirmed.map(drop));
                    if let Ok(heads) = world::put_version(&operation, "v2").await {
                        let known = knows(&["v0", "v1"]);
                        let published =
                            lifecycle::publish(&operation, &self.claim, &known, publication(heads));
                        note(published.await.map(drop));
                    }
                    let tips = std::collections::BTreeMap::new();
                    note(lifecycle::release(&operation, &self.claim, &knows(&[]), &tips).await.map(drop));
                }
            }
            Ok(Resumed::Fenced | Resumed::Stolen | Resumed::Gone) => {}
            Err(error) => note(Err(error)),
        }
        note(lifecycle::delete(store, &volume, None, Authority::Force).await.map(drop));
        note(session::fence(store, &session).await.map(drop));
        errors
    }
}

async fn open(disk: &MemoryStore, scene: &Scene) -> Result<Store, Error> {
    let clock = Arc::new(scene.world.clock.clone());
    Store::open(Arc::new(disk.clone()), clock).await.map(|store| store.with_retry(world::RETRY))
}

/// A number from the environment.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Tells if an error may be the answer to an object that is not what it should be.
fn is_clear(error: &Error) -> bool {
    // A record that can be read may say anything: then the answer is that of its state.
    error.kind() != Kind::Internal && error.to_string().len() > 10 && !error.to_string().contains("panick")
}

#[test]
fn a_changed_object_is_refused_or_understood_and_never_half() {
    let (rounds, seed) = (number("HOSTILE_ROUNDS", 100), number("HOSTILE_SEED", 1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let scene = Scene::new().await;
        let kinds: BTreeSet<&str> =
            scene.objects.iter().filter_map(|(key, _)| key.as_str().split('/').next()).collect();
        assert_eq!(kinds, BTreeSet::from(["gc", "name", "session", "store", "vol"]));
        for (key, good) in &scene.objects {
            let mut refused = 0;
            for round in 0..rounds {
                let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003) + round);
                let bad = mutate(good, &mut random);
                let disk = scene.world.disk.fork();
                disk.damage(key, |bytes| bytes.clone_from(&bad));
                let what = || format!("HOSTILE_SEED={seed} round {round} {key}: {}", String::from_utf8_lossy(&bad));
                let errors = match open(&disk, &scene).await {
                    Ok(store) => scene.try_everything(&store).await,
                    Err(error) => vec![error],
                };
                for error in &errors {
                    assert!(is_clear(error), "{}\n{error:?}", what());
                }
                let unread = |error: &Error| {
                    matches!(error, Error::Corrupt { key: of, .. } | Error::NewerFormat { key: of, .. } if of == key)
                        || matches!(error, Error::NotOurs { .. })
                };
                if errors.iter().any(unread) {
                    refused += 1;
                    // An object that could not be read is as it was.
                    let now = disk.get(key).await.unwrap().bytes;
                    let first = errors.iter().position(unread) == Some(0) || key.as_str() != "vol/v";
                    assert!(!first || now == bad, "{} was written over", what());
                }
            }
            println!("{key}: {refused} of {rounds} changed objects refused");
            assert!(refused > rounds / 4, "{key}: mutations of it are hardly ever found");
        }
    });
}

#[tokio::test]
async fn an_object_that_is_far_too_long_is_refused_before_it_is_parsed() {
    let scene = Scene::new().await;
    for (key, _) in &scene.objects {
        let disk = scene.world.disk.fork();
        disk.damage(key, |bytes| bytes.resize(3 << 20, b' '));
        let began = std::time::Instant::now();
        let errors = match open(&disk, &scene).await {
            Ok(store) => scene.try_everything(&store).await,
            Err(error) => vec![error],
        };
        assert!(errors.iter().any(|error| error.to_string().contains("too many")), "{key}: {errors:?}");
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn nesting_without_end_is_an_error_and_no_overflow_of_the_stack() {
    let scene = Scene::new().await;
    for (key, _) in &scene.objects {
        for (open_with, close_with) in [("[", "]"), ("{\"a\":", "}")] {
            let disk = scene.world.disk.fork();
            let deep = format!(
                "{{\"format\":1,\"id\":{}1{}}}",
                open_with.repeat(100_000),
                close_with.repeat(100_000)
            );
            disk.damage(key, |bytes| *bytes = deep.clone().into_bytes());
            let errors = match open(&disk, &scene).await {
                Ok(store) => scene.try_everything(&store).await,
                Err(error) => vec![error],
            };
            assert!(!errors.is_empty(), "{key}");
            assert_eq!(disk.get(key).await.unwrap().bytes, deep, "{key}");
        }
    }
}
