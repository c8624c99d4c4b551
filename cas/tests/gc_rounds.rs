//! Rounds of the collector: what goes, what stays, what is rewritten, and what a crash at any call leaves.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on says where"
)]

mod world;

use std::collections::BTreeSet;
use std::time::Duration;

use cas::gc::{Collector, Phase, Step, Verdict, read_pin};
use cas::lifecycle::{self, Authority};
use cas::objects::{CallKind, Condition, Fault, Objects as _};
use cas::record::State;
use cas::tree::put_flat;
use cas::{Claim, Role, VersionRef, references};
use types::PackId;
use world::{DAY, Node, TEN, World, domain, eager, files, half_dead, id, new_record, read_files, reader};

async fn confirm_packs(node: &Node, tree: &VersionRef) -> BTreeSet<PackId> {
    let manifest = reader(&node.store).manifest(tree).await.unwrap();
    manifest.packs.iter().map(|needed| PackId::clone(&needed.pack)).collect()
}

/// Runs rounds until nothing moves; the nodes follow.
async fn quiesce(collector: &mut Collector, nodes: &[&Node]) -> (u64, u64) {
    let (mut deleted, mut evacuated) = (0, 0);
    for _ in 0..40 {
        collector.begin();
        for node in nodes {
            node.session.raise().await.unwrap();
        }
        let step = collector.step().await.unwrap();
        for node in nodes {
            node.session.raise().await.unwrap();
        }
        deleted += collector.report().deleted;
        evacuated += collector.report().evacuated;
        assert!(collector.report().fenced.is_empty(), "who follows is not fenced");
        if step == Step::Idle {
            return (deleted, evacuated);
        }
    }
    panic!("the collection does not end");
}

#[tokio::test]
async fn what_nothing_names_goes_and_the_rest_stays() {
    let world = World::new();
    let node = world.node("a").await;
    let (_, tree) = node.create_files(&id("v"), &files(&TEN, 0)).await;
    {
        let operation = node.session.begin().unwrap();
        put_flat(&operation, &domain(), &files(&TEN, 1), None).await.unwrap();
    }
    let (_, mut collector) = world.collector().await;
    assert_eq!(world.keys("pack/").await.len(), 2);
    node.session.beat().await.unwrap();
    assert_eq!(quiesce(&mut collector, &[&node]).await, (1, 0));
    assert_eq!(world.keys("pack/").await, [cas::keys::pack(&tree.manifest.pack).as_str()]);
    assert_eq!(world.prove_all().await, 1);
}

#[tokio::test]
async fn a_store_without_garbage_is_not_written_to() {
    let world = World::new();
    let node = world.node("a").await;
    node.create_files(&id("v"), &files(&TEN, 0)).await;
    let (faults, mut collector) = world.collector().await;
    node.session.beat().await.unwrap();
    assert_eq!(collector.step().await.unwrap(), Step::Idle);
    assert_eq!(faults.counts().writes(), 0);
    assert!(world.keys("gc").await.is_empty());
}

#[tokio::test]
async fn records_are_read_again_only_where_they_changed_and_manifests_once() {
    let world = World::new();
    let node = world.node("a").await;
    for name in ["u", "v", "w"] {
        node.create_files(&id(name), &files(&TEN, 0)).await;
    }
    let (faults, mut collector) = world.collector().await;
    node.session.beat().await.unwrap();
    collector.step().await.unwrap();
    faults.reset();
    collector.step().await.unwrap();
    let idle = faults.reset().calls();
    lifecycle::set_attributes(&node.store, &id("v"), &world::set("k", "v")).await.unwrap();
    collector.step().await.unwrap();
    assert_eq!(faults.reset().calls(), idle + 1, "one record changed");
}

#[tokio::test]
async fn a_sparse_pack_is_rewritten_and_every_version_still_reads() {
    let world = World::new();
    let node = world.node("a").await;
    let (claim, tree) = half_dead(&world, &node).await;
    let before = read_files(&node.store, &tree).await.unwrap();
    let packs = world.keys("pack/").await;
    node.session.beat().await.unwrap();

    let (_, mut collector) = world.collector().await;
    let (_, evacuated) = quiesce(&mut collector, &[&node]).await;
    assert!(evacuated > 0);
    assert!(!world.keys("moved/").await.is_empty());
    let left = world.keys("pack/").await;
    assert!(packs.iter().any(|pack| !left.contains(pack)), "something went");
    assert_eq!(read_files(&node.store, &tree).await.unwrap(), before);
    world.prove_all().await;

    // The version id is what it was, the next version builds on what moved, and a fork refers to it.
    let mut now = before.clone();
    now.extend(files(&[("k", 4000)], 9));
    let next = node.publish_files(&claim, &tree, &now, Role::Event).await.unwrap();
    assert_eq!(read_files(&node.store, &next).await.unwrap(), now);
    let operation = node.session.begin().unwrap();
    let needs = confirm_packs(&node, &next).await;
    let entry = references::confirm_version(&operation, &id("v"), &next.version, &needs).await.unwrap();
    let fork = new_record(&id("fork"), &node.session, "fork");
    let begun = lifecycle::begin_create(&node.store, fork).await.unwrap().into_inner();
    lifecycle::finish_create(&operation, &Claim::of(&begun.value), Some(entry.heads), "").await.unwrap();
    drop(operation);
    quiesce(&mut collector, &[&node]).await;
    world.prove_all().await;

    // When the last who names it is purged, the pack, its way and its new place go.
    for name in ["v", "fork"] {
        lifecycle::delete(&node.store, &id(name), None, Authority::Owner(node.session.id())).await.unwrap();
    }
    world.clock.advance(DAY * 8);
    node.session.raise().await.unwrap();
    collector.round().await.unwrap();
    quiesce(&mut collector, &[&node]).await;
    assert!(world.keys("pack/").await.is_empty(), "I8: {:?}", world.keys("pack/").await);
    assert!(world.keys("moved/").await.is_empty());
}

#[tokio::test]
async fn frames_that_moved_twice_are_found_and_a_rewrite_ends() {
    let world = World::new();
    let node = world.node("a").await;
    let (claim, mut tree) = half_dead(&world, &node).await;
    let (_, mut collector) = world.collector().await;
    let mut now = read_files(&node.store, &tree).await.unwrap();
    for salt in 10..13 {
        node.session.beat().await.unwrap();
        quiesce(&mut collector, &[&node]).await;
        world.prove_all().await;
        // Most of what was just moved dies.
        world.clock.advance(DAY * 8);
        node.session.raise().await.unwrap();
        let names: Vec<_> = TEN.iter().skip(usize::try_from(salt).unwrap() % 5).take(6).copied().collect();
        for half in names.chunks(3) {
            now.extend(files(half, salt));
            tree = node.publish_files(&claim, &tree, &now, Role::Sync).await.unwrap();
            world.clock.advance(DAY * 8);
            node.session.raise().await.unwrap();
        }
    }
    node.session.beat().await.unwrap();
    quiesce(&mut collector, &[&node]).await;
    assert_eq!(read_files(&node.store, &tree).await.unwrap(), now);
    world.prove_all().await;
}

#[tokio::test]
async fn a_fork_waits_while_the_pack_of_its_source_is_condemned_and_then_goes_on() {
    let world = World::new();
    let node = world.node("a").await;
    let (_, tree) = half_dead(&world, &node).await;
    node.session.beat().await.unwrap();
    let (_, mut collector) = world.collector().await;
    assert_eq!(collector.step().await.unwrap(), Step::Moved);
    node.session.raise().await.unwrap();
    let needs = confirm_packs(&node, &tree).await;
    let pin = node.session.pin();
    assert!(needs.iter().any(|pack| !pin.allows_listed(pack)), "a pack of the head is being rewritten");
    let operation = node.session.begin().unwrap();
    let refused = references::confirm_version(&operation, &id("v"), &tree.version, &needs).await;
    assert!(matches!(refused, Err(cas::Error::Condemned { .. })), "{refused:?}");
    // Doomed, but its live frames are in a new pack: what is listed may be referred to, what is not may not.
    assert_eq!(collector.step().await.unwrap(), Step::Moved);
    assert_eq!(collector.report().phase, Some(Phase::Doomed));
    references::confirm_version(&operation, &id("v"), &tree.version, &needs).await.unwrap();
    let moving = read_pin(&node.store).await.unwrap().evacuated;
    assert!(references::confirm(&operation, &moving).await.is_err());
}

#[tokio::test]
async fn a_round_that_dies_at_any_call_is_finished_by_the_next() {
    let mut points = 0;
    loop {
        let world = World::new();
        let node = world.node("a").await;
        let (_, tree) = half_dead(&world, &node).await;
        {
            let operation = node.session.begin().unwrap();
            put_flat(&operation, &domain(), &files(&TEN, 77), None).await.unwrap();
        }
        let before = read_files(&node.store, &tree).await.unwrap();
        node.session.beat().await.unwrap();
        let (faults, mut collector) = world.collector().await;
        let fault = if points % 2 == 0 { Fault::DieBefore } else { Fault::DieAfter };
        faults.reset();
        faults.at_call(points / 2, fault);
        let mut died = false;
        for _ in 0..8 {
            match faults.until_death(collector.step()).await {
                None => {
                    died = true;
                    break;
                }
                Some(Ok(Step::Idle)) => break,
                Some(_) => {}
            }
            node.session.raise().await.unwrap();
            world.prove_all().await;
        }
        world.prove_all().await;
        if !died {
            break;
        }
        let (_, mut next) = world.collector().await;
        quiesce(&mut next, &[&node]).await;
        world.prove_all().await;
        assert_eq!(read_files(&node.store, &tree).await.unwrap(), before);
        let explained = next.explain().await.unwrap();
        let left: Vec<_> = explained.iter().filter(|one| one.verdict != Verdict::Keep).collect();
        assert!(left.is_empty(), "at call {}: {left:?}", points / 2);
        points += 1;
    }
    println!("died before and after each of {} calls", points / 2);
    assert!(points > 40, "{points}");
}

#[tokio::test]
async fn a_read_error_ends_the_round_and_nothing_is_deleted() {
    let world = World::new();
    let node = world.node("a").await;
    half_dead(&world, &node).await;
    node.session.beat().await.unwrap();
    let packs = world.keys("pack/").await;
    for prefix in ["vol/", "session/", "pack/", "moved/", "gc"] {
        let (faults, mut collector) = world.collector().await;
        faults.plan(move |call| if call.key.starts_with(prefix) { Fault::Unavailable } else { Fault::None });
        for _ in 0..4 {
            drop(collector.step().await);
            node.session.raise().await.unwrap();
        }
    }
    assert_eq!(world.keys("pack/").await.len(), packs.len());
    world.prove_all().await;
}

#[tokio::test]
async fn a_version_whose_manifest_is_gone_stops_the_collection_and_is_named() {
    let world = World::new();
    let node = world.node("a").await;
    let (_, tree) = node.create_files(&id("v"), &files(&TEN, 0)).await;
    world.disk.delete(&cas::keys::pack(&tree.manifest.pack)).await.unwrap();
    node.session.beat().await.unwrap();
    let (_, mut collector) = world.collector().await;
    let error = collector.round().await.unwrap_err();
    assert!(matches!(&error, cas::Error::UnreadableRoot { volume, .. } if *volume == id("v")), "{error}");
}

#[tokio::test]
async fn a_damaged_frame_is_not_copied_and_its_pack_stays() {
    let world = World::new();
    let node = world.node("a").await;
    let (_, tree) = half_dead(&world, &node).await;
    node.session.beat().await.unwrap();
    let (_, mut collector) = world.collector().await;
    assert_eq!(collector.step().await.unwrap(), Step::Moved);
    node.session.raise().await.unwrap();
    // A bit of a file that is alive flips.
    let mut flipped = 0;
    for pack in read_pin(&node.store).await.unwrap().avoided {
        flipped += u32::from(world.disk.damage(&cas::keys::pack(&pack), |bytes| {
            for byte in bytes.iter_mut().skip(100).step_by(200) {
                *byte ^= 1;
            }
        }));
    }
    assert!(flipped > 0);
    let before = world.keys("pack/").await;
    while collector.step().await.unwrap() == Step::Moved {
        node.session.raise().await.unwrap();
        if collector.report().phase == Some(Phase::Idle) {
            break;
        }
    }
    assert!(!collector.report().troubles.is_empty());
    for pack in confirm_packs(&node, &tree).await {
        let key = cas::keys::pack(&pack);
        assert!(
            !before.iter().any(|k| k == key.as_str()) || world.disk.head(&key).await.is_ok(),
            "{key} stays"
        );
    }
}

#[tokio::test]
async fn explain_says_why_each_object_stays_or_goes() {
    let world = World::new();
    let node = world.node("a").await;
    let (_, tree) = half_dead(&world, &node).await;
    let lost = {
        let operation = node.session.begin().unwrap();
        put_flat(&operation, &domain(), &files(&TEN, 7), None).await.unwrap()
    };
    node.session.beat().await.unwrap();
    let operation = node.session.begin().unwrap();
    let young = put_flat(&operation, &domain(), &files(&TEN, 8), None).await.unwrap();
    world.disk.put(&"probe/x".parse().unwrap(), "x".into(), &Condition::IfAbsent).await.unwrap();
    world.disk.put(&"elsewhere".parse().unwrap(), "x".into(), &Condition::IfAbsent).await.unwrap();
    let (faults, mut collector) = world.collector().await;
    let explained = collector.explain().await.unwrap();
    assert_eq!(faults.counts().writes(), 0, "a dry run writes nothing");
    assert_eq!(explained.len(), world.keys("").await.len(), "each object once");
    let of = |key: &str| {
        let one = explained.iter().find(|one| one.object == key).unwrap_or_else(|| panic!("{key}"));
        (one.verdict, one.why.clone())
    };
    let pack = |tree: &VersionRef| cas::keys::pack(&tree.manifest.pack).as_str().to_owned();
    let (verdict, why) = of(&pack(&lost));
    assert_eq!((verdict, why.as_str()), (Verdict::Go, "nothing names it"));
    let (verdict, why) = of(&pack(&young));
    assert!(verdict == Verdict::Keep && why.contains(&node.session.id().to_string()), "{why}");
    let (verdict, why) = of(&pack(&tree));
    assert!(verdict != Verdict::Go && why.contains("of v"), "{why}");
    assert!(explained.iter().any(|one| one.verdict == Verdict::Rewrite && one.why.contains("are alive")));
    assert_eq!(of("probe/x").0, Verdict::Go);
    assert_eq!(of("elsewhere").0, Verdict::Foreign);
    assert_eq!(of("store").0, Verdict::Keep);
    assert!(of("vol/v").1.contains("live"));
}

#[tokio::test]
async fn a_sweep_purges_retires_thins_and_clears_by_the_stores_clock() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let (claim, _) = a.create_files(&id("gone"), &files(&TEN, 0)).await;
    drop(claim);
    lifecycle::delete(&a.store, &id("gone"), None, Authority::Owner(a.session.id())).await.unwrap();
    // A volume that sleeps with two syncs of one hour.
    let (claim, mut tree) = b.create_files(&id("sleeps"), &files(&TEN, 1)).await;
    for salt in 2..5 {
        tree = b.publish_files(&claim, &tree, &files(&TEN, salt), Role::Sync).await.unwrap();
    }
    {
        let operation = b.session.begin().unwrap();
        let clean = [(types::MemberName::data(), tree.version)].into();
        let known = cas::Known::data([tree.version]);
        lifecycle::release(&operation, &claim, &known, &clean).await.unwrap();
    }
    // A creation that nobody finished: its session is over.
    let never = new_record(&id("never"), &b.session, "never");
    lifecycle::begin_create(&b.store, never).await.unwrap();
    b.session.close().await.unwrap();
    world.disk.put(&"probe/old".parse().unwrap(), "x".into(), &Condition::IfAbsent).await.unwrap();
    let (_, store) = world.open().await;
    let mut collector = Collector::new(store, eager());
    let mut round = async || {
        a.session.raise().await.unwrap();
        collector.round().await.unwrap();
        quiesce(&mut collector, &[&a]).await;
        collector.round().await.unwrap()
    };
    round().await;
    assert_eq!(world.record(&id("gone")).await.state, State::Deleted, "within its grace");
    assert_eq!(world.record(&id("sleeps")).await.entries.len(), 4);
    assert_eq!(world.record(&id("never")).await.owner, Some(b.session.id()), "nothing was condemned");

    world.clock.advance(DAY * 2);
    round().await;
    assert_eq!(world.record(&id("gone")).await.state, State::Deleted);
    assert!(world.keys("probe").await.is_empty());
    for _ in 0..3 {
        world.clock.advance(Duration::from_secs(7200));
        round().await;
    }
    assert_eq!(world.record(&id("sleeps")).await.entries.len(), 2, "one sync of the hour, and the event");

    world.clock.advance(DAY * 6);
    round().await;
    let gone = world.record(&id("gone")).await;
    assert!(gone.state == State::Purged && gone.entries.is_empty(), "{:?}", gone.state);
    assert!(gone.holders.contains(&a.session.id().pool), "a still has its copy");
    round().await;
    assert_eq!(world.keys("vol/gone").await.len(), 1, "it waits for a");
    lifecycle::forget_copy(&a.session, &id("gone")).await.unwrap();
    round().await;
    assert!(world.keys("vol/gone").await.is_empty(), "everybody confirmed");
    assert_eq!(world.keys("session/").await.len(), 2, "the last session of a pool stays for long");
    // b never comes back: its last session goes, and nothing waits for its copies.
    world.clock.advance(DAY * 31);
    round().await;
    assert_eq!(world.keys("session/").await.len(), 1);
    world.prove_all().await;
}

#[tokio::test]
async fn pages_stay_while_a_record_names_them_and_so_do_the_versions_in_them() {
    let world = World::new();
    let node = world.node("a").await;
    let (claim, mut tree) = node.create_files(&id("v"), &files(&TEN, 0)).await;
    for salt in 1..100 {
        tree = node.publish_files(&claim, &tree, &files(&TEN[..2], salt), Role::Event).await.unwrap();
    }
    let named = world.record(&id("v")).await.page_keys().count();
    assert!(named > 0);
    // A page whose record was never written.
    let stray = cas::keys::page(&id("v"), &types::Hash([7; 32]));
    world.disk.put(&stray, "stray".into(), &Condition::IfAbsent).await.unwrap();
    node.session.beat().await.unwrap();
    let (_, mut collector) = world.collector().await;
    let of = |explained: &[cas::gc::Explained]| {
        let pages = explained.iter().filter(|one| one.object.starts_with("page/"));
        pages.filter(|one| one.verdict == Verdict::Go).map(|one| one.object.clone()).collect::<Vec<_>>()
    };
    let going = of(&collector.explain().await.unwrap());
    assert!(going.contains(&stray.as_str().to_owned()));
    let packs = world.keys("pack/").await.len();
    quiesce(&mut collector, &[&node]).await;
    assert_eq!(world.keys("page/").await.len(), named, "those that were merged went, too: {going:?}");
    assert_eq!(world.keys("pack/").await.len(), packs, "100 versions are listed, and each has its pack");
    let (_, store) = world.open().await;
    let record = world.record(&id("v")).await;
    let all = cas::timeline::references(&store, &record).await.unwrap();
    assert_eq!(all.len(), 100);
    for tree in &all {
        assert!(reader(&store).verify(tree).await.unwrap().is_whole());
    }
}

/// A pack that was put for a round that failed may still arrive; the next attempt's has another name.
#[tokio::test]
async fn a_failed_attempt_to_rewrite_uses_its_names_up() {
    let world = World::new();
    let node = world.node("a").await;
    let (_, tree) = half_dead(&world, &node).await;
    let before = read_files(&node.store, &tree).await.unwrap();
    node.session.beat().await.unwrap();
    let (faults, mut collector) = world.collector().await;
    assert_eq!(collector.step().await.unwrap(), Step::Moved);
    node.session.raise().await.unwrap();
    faults.every(CallKind::Put, "pack/", Fault::Held);
    collector.step().await.unwrap_err();
    faults.heal();
    let there = world.keys("pack/").await;
    assert_eq!(collector.step().await.unwrap(), Step::Moved);
    let made: Vec<_> = world.keys("pack/").await.into_iter().filter(|key| !there.contains(key)).collect();
    assert!(!made.is_empty());
    let late = faults.deliver_held().await;
    assert!(!late.is_empty() && late.iter().any(Result::is_ok), "under a name of its own: {late:?}");
    quiesce(&mut collector, &[&node]).await;
    assert_eq!(read_files(&node.store, &tree).await.unwrap(), before);
    world.prove_all().await;
}
