//! The stories of PROTOCOL.md §4 that are about collection, each with the real collector, and the predecessor's weaknesses
//! W-01, W-13 and W-26.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on says where"
)]

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cas::entry::data_head;
use cas::gc::{Collector, Phase, Step, Verdict, read_pin};
use cas::lifecycle::{self, Authority, NewSealed, Publication};
use cas::objects::{CallKind, Fault, FaultStore, MemoryStore, Objects as _, list_all};
use cas::record::{Quota, State};
use cas::session::SessionState;
use cas::tree::put_flat;
use cas::{
    Claim, Error, Known, LostReason, RecordKind, Role, Session, Store, VersionRef, references, session,
};
use types::{Clock as _, ManualClock, MemberName, PackId, PoolId, VolumeId};
use world::{BEGIN, Node, World, domain, eager, files, id, new_record, publication, read_files, reader};

const FILES: [(&str, usize); 4] = [("a", 3000), ("b", 3000), ("c", 3000), ("d", 3000)];
const DAY: Duration = Duration::from_secs(24 * 3600);

async fn packs_of(node: &Node, tree: &VersionRef) -> BTreeSet<PackId> {
    let manifest = reader(&node.store).manifest(tree).await.unwrap();
    let mut packs: BTreeSet<PackId> =
        manifest.packs.iter().map(|needed| PackId::clone(&needed.pack)).collect();
    packs.insert(PackId::clone(&tree.manifest.pack));
    packs
}

/// Deletes a volume and gives up its entries, as a collection does after the grace.
async fn purge(world: &World, node: &Node, volume: &VolumeId) {
    let record = lifecycle::delete(&node.store, volume, None, Authority::Force).await.unwrap().into_inner();
    world.clock.advance(Duration::from_secs(1));
    lifecycle::purge(&node.store, volume, record.value.birth, Duration::ZERO, world.clock.now())
        .await
        .unwrap();
    node.session.beat().await.unwrap();
}

/// Makes a volume from a version of another, as far as the record.
async fn fork(node: &Node, operation: &cas::Operation, tree: &VersionRef, name: &str) -> Result<(), Error> {
    let new = new_record(&id(name), &node.session, name);
    let claim = Claim::of(&lifecycle::begin_create(&node.store, new).await?.into_inner().value);
    lifecycle::finish_create(operation, &claim, Some(data_head(tree.clone())), "").await.map(drop)
}

/// Steps until idle, while `follow` raise their pins.
async fn collect(collector: &mut Collector, follow: &[&Node]) {
    for _ in 0..20 {
        for node in follow {
            node.session.raise().await.unwrap();
        }
        if collector.step().await.unwrap() == Step::Idle {
            return;
        }
    }
    panic!("the collection does not end");
}

/// A collector that fences nobody.
async fn patient(world: &World) -> Collector {
    let (_, store) = world.open().await;
    Collector::new(store, cas::gc::Settings { fence_after: DAY, ..eager() })
}

#[tokio::test]
async fn story_04_what_is_uploaded_and_not_published_yet_is_not_collected() {
    let world = World::new();
    let node = world.node("a").await;
    let (claim, tree) = node.create_files(&id("v"), &files(&FILES, 0)).await;
    let operation = node.session.begin().unwrap();
    let next = put_flat(&operation, &domain(), &files(&FILES, 1), None).await.unwrap();
    // Something else is garbage, so a round runs, and the node follows it.
    let other = world.node("b").await;
    other.create_files(&id("gone"), &files(&FILES, 9)).await;
    purge(&world, &other, &id("gone")).await;
    other.session.raise().await.unwrap();
    node.session.raise().await.unwrap();
    let mut collector = patient(&world).await;
    assert_eq!(collector.step().await.unwrap(), Step::Moved);
    assert_eq!(collector.step().await.unwrap(), Step::Waiting, "the operation holds the pin");
    let own = cas::keys::pack(&next.manifest.pack);
    assert!(
        !read_pin(&node.store).await.unwrap().avoided.contains(&*next.manifest.pack),
        "it is not even judged"
    );
    let known = Known::data([tree.version]);
    lifecycle::publish(&operation, &claim, &known, publication(data_head(next))).await.unwrap();
    drop(operation);
    collect(&mut collector, &[&node, &other]).await;
    world.disk.head(&own).await.unwrap();
    world.prove_all().await;
}

#[tokio::test]
async fn story_04_a_reference_made_under_the_old_pin_is_found_by_the_second_mark() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let (_, tree) = a.create_files(&id("v"), &files(&FILES, 0)).await;
    let operation = b.session.begin().unwrap();
    let needs = packs_of(&b, &tree).await;
    references::confirm_version(&operation, &id("v"), &tree.version, &needs).await.unwrap();
    purge(&world, &a, &id("v")).await;
    a.session.beat().await.unwrap();
    let mut collector = patient(&world).await;
    assert_eq!(collector.step().await.unwrap(), Step::Moved);
    a.session.raise().await.unwrap();
    b.session.raise().await.unwrap();
    assert_eq!(collector.step().await.unwrap(), Step::Waiting);
    assert_eq!(collector.report().waiting[0].session, b.session.id());
    fork(&b, &operation, &tree, "fork").await.unwrap();
    drop(operation);
    collect(&mut collector, &[&a, &b]).await;
    assert_eq!(read_files(&b.store, &tree).await.unwrap(), files(&FILES, 0));
}

#[tokio::test]
async fn story_05_a_node_that_was_ignored_for_an_hour_names_nothing_that_was_collected() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let (_, tree) = a.create_files(&id("v"), &files(&FILES, 0)).await;
    let (claim, mine) = b.create_files(&id("w"), &files(&FILES, 1)).await;
    // b is about to write two records: its volume's next version, and a fork of v. Then it hangs.
    let operation = b.session.begin().unwrap();
    let needs = packs_of(&b, &tree).await;
    references::confirm_version(&operation, &id("v"), &tree.version, &needs).await.unwrap();
    let next = put_flat(&operation, &domain(), &files(&FILES, 2), None).await.unwrap();
    let new = new_record(&id("fork"), &b.session, "fork");
    let begun = Claim::of(&lifecycle::begin_create(&b.store, new).await.unwrap().into_inner().value);
    purge(&world, &a, &id("v")).await;
    a.session.raise().await.unwrap();
    let (_, mut collector) = world.collector().await;
    for _ in 0..8 {
        a.session.raise().await.unwrap();
        collector.step().await.unwrap();
        a.session.raise().await.unwrap();
    }
    assert!(collector.report().fenced.contains(&b.session.id()));
    assert!(world.disk.head(&cas::keys::pack(&tree.manifest.pack)).await.is_err(), "v's pack is gone");
    // It returns, and believes that it is an hour ago.
    let known = Known::data([mine.version]);
    let published = lifecycle::publish(&operation, &claim, &known, publication(data_head(next))).await;
    let refused = matches!(&published, Err(Error::Lost { reason: LostReason::Owner { found: None }, .. }));
    assert!(refused, "{published:?}");
    let forked = lifecycle::finish_create(&operation, &begun, Some(data_head(tree)), "").await;
    assert!(matches!(forked, Err(Error::Fenced { .. })), "{forked:?}");
    drop(operation);
    let next = Session::join_next(&b.store, b.session.id().pool, 0, b.session.node(), "").await.unwrap();
    assert_eq!(next.pin().epoch, read_pin(&b.store).await.unwrap().epoch);
    world.prove_all().await;
}

#[tokio::test]
async fn story_06_a_fork_of_a_version_that_its_source_then_thins_stays_whole() {
    let world = World::new();
    let node = world.node("a").await;
    let (claim, mut tree) = node.create_files(&id("v"), &files(&FILES, 0)).await;
    let mut old = Vec::new();
    for salt in 1..4 {
        tree = node.publish_files(&claim, &tree, &files(&FILES, salt), Role::Manual).await.unwrap();
        old.push(tree.clone());
    }
    let operation = node.session.begin().unwrap();
    let source = &old[0];
    let needs = packs_of(&node, source).await;
    references::confirm_version(&operation, &id("v"), &source.version, &needs).await.unwrap();
    for salt in 4..12 {
        tree = node.publish_files(&claim, &tree, &files(&FILES, salt), Role::Manual).await.unwrap();
    }
    assert!(world.record(&id("v")).await.find_version(&source.version).is_none(), "it was thinned");
    node.session.beat().await.unwrap();
    let mut collector = patient(&world).await;
    // Its pack is not young for the collection any more once the operation is over, so it may be condemned then.
    collector.step().await.unwrap();
    fork(&node, &operation, source, "fork").await.unwrap();
    drop(operation);
    collect(&mut collector, &[&node]).await;
    assert_eq!(read_files(&node.store, source).await.unwrap(), files(&FILES, 1));
    world.prove_all().await;
}

#[tokio::test]
async fn story_07_what_an_old_memory_or_hint_names_is_looked_up_under_the_pin() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let (_, tree) = a.create_files(&id("v"), &files(&FILES, 0)).await;
    let remembered = packs_of(&b, &tree).await;
    purge(&world, &a, &id("v")).await;
    a.session.raise().await.unwrap();
    let mut collector = patient(&world).await;
    collector.step().await.unwrap();
    for node in [&a, &b] {
        node.session.raise().await.unwrap();
    }
    // Condemned: an index drops it, and one that did not is refused.
    assert!(remembered.iter().all(|pack| !b.session.pin().allows(pack)));
    let operation = b.session.begin().unwrap();
    let refused = references::confirm(&operation, &remembered).await;
    assert!(matches!(refused, Err(Error::Condemned { .. })), "{refused:?}");
    drop(operation);
    collect(&mut collector, &[&a, &b]).await;
    // Gone: a hub that was restored from yesterday's database still offers it.
    let operation = b.session.begin().unwrap();
    let refused = references::confirm(&operation, &remembered).await;
    assert!(matches!(refused, Err(Error::NoPack { .. })), "{refused:?}");
    let refused = fork(&b, &operation, &tree, "fork").await;
    assert!(matches!(refused, Err(Error::Unproven { .. })), "{refused:?}");
}

#[tokio::test]
async fn story_07_a_session_that_joins_during_a_round_is_waited_for_until_it_has_read_again() {
    let world = World::new();
    let a = world.node("a").await;
    a.create_files(&id("v"), &files(&FILES, 0)).await;
    purge(&world, &a, &id("v")).await;
    a.session.raise().await.unwrap();
    let mut collector = patient(&world).await;
    // b reads gc, and dies between the create of its session and its second look.
    let (faults, store) = world.open().await;
    faults.at(CallKind::Put, "session/", 0, Fault::DieAfter);
    let pool = PoolId::random();
    let name = "b".parse().unwrap();
    let joined = faults.until_death(Session::join(&store, pool, 1, &name, "")).await;
    assert!(joined.is_none());
    assert_eq!(collector.step().await.unwrap(), Step::Moved);
    a.session.raise().await.unwrap();
    assert_eq!(collector.step().await.unwrap(), Step::Waiting);
    assert_eq!(collector.report().waiting[0].session.pool, pool);
    let b = world.node("c").await;
    assert_eq!(b.session.pin().epoch, read_pin(&b.store).await.unwrap().epoch);
}

#[tokio::test]
async fn story_08_a_write_that_nobody_waits_for_any_more_holds_the_collection_until_it_is_settled() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let (_, tree) = a.create_files(&id("v"), &files(&FILES, 0)).await;
    let operation = b.session.begin().unwrap();
    let needs = packs_of(&b, &tree).await;
    references::confirm_version(&operation, &id("v"), &tree.version, &needs).await.unwrap();
    let new = new_record(&id("fork"), &b.session, "fork");
    let claim = Claim::of(&lifecycle::begin_create(&b.store, new).await.unwrap().into_inner().value);
    b.faults.every(CallKind::Put, "vol/", Fault::Held);
    let given_up =
        lifecycle::finish_create(&operation, &claim, Some(data_head(tree.clone())), "").await.unwrap_err();
    assert!(matches!(given_up, Error::Unsettled { .. }), "{given_up}");
    drop(operation);
    purge(&world, &a, &id("v")).await;
    a.session.raise().await.unwrap();
    let mut collector = patient(&world).await;
    collector.step().await.unwrap();
    a.session.raise().await.unwrap();
    b.session.raise().await.unwrap_err();
    assert_eq!(collector.step().await.unwrap(), Step::Waiting);
    // Now it lands.
    b.faults.heal();
    b.faults.deliver_held().await;
    collect(&mut collector, &[&a, &b]).await;
    assert_eq!(world.record(&id("fork")).await.head_tips().len(), 1);
    world.prove_all().await;
}

#[tokio::test]
async fn story_08_what_lands_after_its_session_was_fenced_and_drained_changes_nothing() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let (_, tree) = a.create_files(&id("v"), &files(&FILES, 0)).await;
    let operation = b.session.begin().unwrap();
    let needs = packs_of(&b, &tree).await;
    references::confirm_version(&operation, &id("v"), &tree.version, &needs).await.unwrap();
    let new = new_record(&id("fork"), &b.session, "fork");
    let claim = Claim::of(&lifecycle::begin_create(&b.store, new).await.unwrap().into_inner().value);
    b.faults.every(CallKind::Put, "vol/", Fault::Held);
    drop(lifecycle::finish_create(&operation, &claim, Some(data_head(tree.clone())), "").await);
    purge(&world, &a, &id("v")).await;
    a.session.raise().await.unwrap();
    let (_, mut collector) = world.collector().await;
    collector.step().await.unwrap();
    a.session.raise().await.unwrap();
    while collector.report().phase != Some(Phase::Idle) {
        collector.step().await.unwrap();
    }
    b.faults.heal();
    let late = b.faults.deliver_held().await;
    assert!(!late.is_empty() && late.iter().all(Result::is_err), "{late:?}");
    assert_eq!(world.record(&id("fork")).await.references().count(), 0);
}

#[tokio::test]
async fn story_09_a_leader_that_stalls_anywhere_deletes_nothing_that_was_named_since() {
    let world = World::new();
    let node = world.node("a").await;
    node.create_files(&id("v"), &files(&FILES, 0)).await;
    node.create_files(&id("w"), &files(&FILES, 1)).await;
    purge(&world, &node, &id("v")).await;
    node.session.raise().await.unwrap();
    let (slow, mut stalled) = world.collector().await;
    let mut other = patient(&world).await;
    // Its condemnation is on its way while another's round begins and ends.
    slow.every(CallKind::Put, "gc", Fault::Held);
    stalled.step().await.unwrap_err();
    collect(&mut other, &[&node]).await;
    assert!(slow.deliver_held().await.iter().all(Result::is_err), "the first condemnation is too late");
    // It dooms: everything was read, and its write waits. Another takes over; then the same packs cannot be doomed twice.
    purge(&world, &node, &id("w")).await;
    slow.heal();
    node.session.raise().await.unwrap();
    assert_eq!(stalled.step().await.unwrap(), Step::Moved);
    node.session.raise().await.unwrap();
    slow.every(CallKind::Put, "gc", Fault::Held);
    stalled.step().await.unwrap_err();
    collect(&mut other, &[&node]).await;
    let epoch = read_pin(&node.store).await.unwrap().epoch;
    assert!(slow.deliver_held().await.iter().all(Result::is_err));
    // It deletes: each deletion waits until long after the next round.
    let (_, tree) = node.create_files(&id("x"), &files(&FILES, 2)).await;
    node.create_files(&id("y"), &files(&FILES, 3)).await;
    purge(&world, &node, &id("y")).await;
    slow.heal();
    for _ in 0..2 {
        node.session.raise().await.unwrap();
        assert_eq!(stalled.step().await.unwrap(), Step::Moved);
    }
    assert_eq!(stalled.report().phase, Some(Phase::Doomed));
    slow.every(CallKind::Delete, "", Fault::Held);
    stalled.step().await.unwrap_err();
    collect(&mut other, &[&node]).await;
    node.create_files(&id("z"), &files(&FILES, 3)).await;
    slow.deliver_held().await;
    assert!(read_pin(&node.store).await.unwrap().epoch > epoch);
    assert_eq!(read_files(&node.store, &tree).await.unwrap(), files(&FILES, 2));
    assert_eq!(world.prove_all().await, 2);
}

#[tokio::test]
async fn story_16_an_error_in_any_page_of_a_listing_ends_the_round() {
    let clock = ManualClock::new(BEGIN);
    let disk = MemoryStore::with_clock(Arc::new(clock.clone())).with_page_entries(2);
    let faults = FaultStore::new(Arc::new(disk.clone()));
    let open = Store::create_or_open(Arc::new(faults.clone()), Arc::new(clock)).await.unwrap().into_inner();
    let store = open.with_retry(world::RETRY);
    let session = Session::join(&store, PoolId::random(), 1, &"a".parse().unwrap(), "").await.unwrap();
    let node = Node { faults: faults.clone(), store: store.clone(), session };
    for name in ["s", "t", "u", "v", "w"] {
        node.create_files(&id(name), &files(&FILES, 0)).await;
    }
    node.session.beat().await.unwrap();
    let mut ended = 0;
    for prefix in ["vol/", "pack/", "session/", "moved/", "page/"] {
        for nth in 0..3 {
            faults.at(CallKind::List, prefix, nth, Fault::Unavailable);
            let mut collector = Collector::new(store.clone(), eager());
            for _ in 0..4 {
                if collector.step().await.is_err() {
                    ended += 1;
                    break;
                }
                faults.heal();
                node.session.raise().await.unwrap();
            }
        }
    }
    assert!(ended >= 9, "{ended}");
    assert_eq!(list_all(&disk, "pack/").await.unwrap().len(), 5);
}

#[tokio::test]
async fn story_17_a_machine_whose_clock_is_a_year_ahead_purges_retires_and_thins_nothing() {
    let stores = ManualClock::new(BEGIN);
    let disk = MemoryStore::with_clock(Arc::new(stores));
    let wrong = ManualClock::new(BEGIN.plus(DAY * 365));
    let store = Store::create_or_open(Arc::new(disk), Arc::new(wrong)).await.unwrap().into_inner();
    let session = Session::join(&store, PoolId::random(), 1, &"a".parse().unwrap(), "").await.unwrap();
    let faults = FaultStore::new(Arc::clone(store.objects()));
    let node = Node { faults, store: store.clone(), session };
    let (claim, mut tree) = node.create_files(&id("sleeps"), &files(&FILES, 0)).await;
    for salt in 1..6 {
        tree = node.publish_files(&claim, &tree, &files(&FILES, salt), Role::Sync).await.unwrap();
    }
    let clean = [(MemberName::data(), tree.version)].into();
    let operation = node.session.begin().unwrap();
    lifecycle::release(&operation, &claim, &Known::data([tree.version]), &clean).await.unwrap();
    drop(operation);
    node.create_files(&id("gone"), &files(&FILES, 0)).await;
    lifecycle::delete(&store, &id("gone"), None, Authority::Force).await.unwrap();
    let over = Session::join(&store, PoolId::random(), 1, &"b".parse().unwrap(), "").await.unwrap();
    over.close().await.unwrap();
    let mut collector = Collector::new(store.clone(), eager());
    for _ in 0..3 {
        node.session.raise().await.unwrap();
        let report = collector.round().await.unwrap();
        assert_eq!((report.purged, report.thinned, report.retired), (0, 0, 0));
    }
    assert_eq!(cas::record::get(&store, &id("gone")).await.unwrap().value.state, State::Deleted);
    assert_eq!(cas::record::get(&store, &id("sleeps")).await.unwrap().value.entries.len(), 6);
    assert_eq!(session::list(&store).await.unwrap().len(), 2);
}

#[tokio::test]
async fn story_30_a_first_sync_of_hours_does_not_stop_collection_and_keeps_its_packs() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let (claim, base) = b.create_files(&id("big"), &files(&FILES, 0)).await;
    let operation = b.session.begin().unwrap();
    let mut collector = patient(&world).await;
    let mut packs = BTreeSet::new();
    let mut last = None;
    for round in 0..4 {
        // The long operation uploads on, and moves its pin from time to time.
        let tree = put_flat(&operation, &domain(), &files(&FILES, 100 + round), None).await.unwrap();
        packs.insert(cas::keys::pack(&tree.manifest.pack));
        last = Some(tree);
        let name = id(&format!("short-{round}"));
        a.create_files(&name, &files(&FILES, round)).await;
        purge(&world, &a, &name).await;
        let before = read_pin(&a.store).await.unwrap().epoch;
        for _ in 0..4 {
            a.session.raise().await.unwrap();
            b.session.raise().await.unwrap();
            operation.recheck([]).unwrap();
            b.session.raise().await.unwrap();
            collector.step().await.unwrap();
        }
        assert!(read_pin(&a.store).await.unwrap().epoch > before, "rounds go on");
    }
    assert!(collector.report().fenced.is_empty());
    for pack in &packs {
        world.disk.head(pack).await.expect("an unfinished operation keeps its packs");
    }
    let known = Known::data([base.version]);
    let last = last.unwrap();
    lifecycle::publish(&operation, &claim, &known, publication(data_head(last.clone()))).await.unwrap();
    drop(operation);
    b.session.beat().await.unwrap();
    collect(&mut collector, &[&a, &b]).await;
    assert_eq!(world.keys("pack/").await.len(), 2, "what it did not use went");
    assert_eq!(read_files(&b.store, &last).await.unwrap(), files(&FILES, 103));
}

/// W-01: the predecessor deleted whatever a list of projects did not name: databases, forks, snapshots, what was seconds
/// old. Here every kind of record, every member, every named or pinned entry and everything unfinished is a root.
#[tokio::test]
async fn w01_collection_keeps_whatever_any_record_names() {
    let world = World::new();
    let node = world.node("a").await;
    let mut roots: BTreeMap<String, VersionRef> = BTreeMap::new();
    let (claim, base) = node.create_files(&id("volume"), &files(&FILES, 0)).await;
    // A service volume is a member of its base's record.
    let operation = node.session.begin().unwrap();
    let data = put_flat(&operation, &domain(), &files(&FILES, 1), None).await.unwrap();
    let postgres = put_flat(&operation, &domain(), &files(&FILES, 2), None).await.unwrap();
    let heads = [(MemberName::data(), data.clone()), ("postgres".parse().unwrap(), postgres.clone())].into();
    let both = Publication { role: Role::Manual, ..publication(heads) };
    lifecycle::publish(&operation, &claim, &Known::data([base.version]), both).await.unwrap();
    roots.insert("a member".to_owned(), postgres);
    roots.insert("the data".to_owned(), data);
    roots.insert("the first version".to_owned(), base);
    for (kind, salt) in [
        (RecordKind::Snapshot, 10),
        (RecordKind::Template, 11),
        (RecordKind::Bundle, 12),
        (RecordKind::Orphan, 13),
    ] {
        let tree = put_flat(&operation, &domain(), &files(&FILES, salt), None).await.unwrap();
        let name = format!("sealed-{kind}");
        let new = NewSealed {
            id: id(&name),
            kind,
            domain: domain(),
            heads: data_head(tree.clone()),
            origin: None,
            request: name.parse().unwrap(),
            label: String::new(),
            quota: Quota::default(),
            attributes: BTreeMap::new(),
        };
        lifecycle::seal(&operation, new).await.unwrap();
        roots.insert(name, tree);
    }
    drop(operation);
    let (_, deleted) = node.create_files(&id("deleted"), &files(&FILES, 20)).await;
    lifecycle::delete(&node.store, &id("deleted"), None, Authority::Force).await.unwrap();
    roots.insert("what can be brought back".to_owned(), deleted);
    let (claim, old) = node.create_files(&id("named"), &files(&FILES, 30)).await;
    let mut tree = old.clone();
    for salt in 31..45 {
        tree = node.publish_files(&claim, &tree, &files(&FILES, salt), Role::Manual).await.unwrap();
        if salt == 31 {
            let entry = world.record(&id("named")).await.head.unwrap();
            lifecycle::set_branch(&node.store, &id("named"), "keep", entry, lifecycle::Taken::Refuse)
                .await
                .unwrap();
            roots.insert("a branch".to_owned(), tree.clone());
        }
        if salt == 32 {
            let entry = world.record(&id("named")).await.head.unwrap();
            lifecycle::set_pin(&node.store, &id("named"), "hydration", Some(entry)).await.unwrap();
            roots.insert("a pinned entry".to_owned(), tree.clone());
        }
    }
    roots.insert("the head".to_owned(), tree);
    // Seconds old, and named by nothing yet: a fork that is being made and a version that is being uploaded.
    let operation = node.session.begin().unwrap();
    let young = put_flat(&operation, &domain(), &files(&FILES, 50), None).await.unwrap();
    roots.insert("an upload".to_owned(), young);
    let unused = put_flat(&node.session.begin().unwrap(), &domain(), &files(&FILES, 51), None).await.unwrap();

    node.session.beat().await.unwrap();
    let mut collector = patient(&world).await;
    let explained = collector.explain().await.unwrap();
    for _ in 0..6 {
        node.session.raise().await.unwrap();
        operation.recheck([]).unwrap();
        node.session.raise().await.unwrap();
        collector.step().await.unwrap();
    }
    assert!(collector.report().deleted > 0, "and thinned versions did go");
    for (what, tree) in &roots {
        let report = reader(&node.store).verify(tree).await.unwrap();
        assert!(report.is_whole(), "{what}: {:?}", report.damages);
        let key = cas::keys::pack(&tree.manifest.pack);
        let one = explained.iter().find(|one| one.object == key.as_str()).unwrap();
        assert!(one.verdict != Verdict::Go, "{what}: {}", one.why);
    }
    drop(operation);
    node.session.beat().await.unwrap();
    collect(&mut collector, &[&node]).await;
    assert!(
        reader(&node.store).manifest(&unused).await.is_err(),
        "what nobody named goes when its operation is over"
    );
}

/// W-13: the first node that cleaned up removed the tombstone, so a second, offline copy came back to life; and where no
/// copy was left, nobody removed it. Here it stays until every pool that has a copy confirmed or is retired, and then goes.
#[tokio::test]
async fn w13_a_tombstone_stays_until_every_copy_is_gone_and_then_goes() {
    let world = World::new();
    let (a, b, c) = (world.node("a").await, world.node("b").await, world.node("c").await);
    let mut collector = patient(&world).await;
    let rounds = async |collector: &mut Collector, live: &[&Node]| {
        for _ in 0..3 {
            for node in live {
                node.session.raise().await.unwrap();
            }
            collector.round().await.unwrap();
        }
    };
    let (claim, tree) = a.create_files(&id("v"), &files(&FILES, 0)).await;
    let birth = claim.birth;
    let operation = a.session.begin().unwrap();
    let clean = [(MemberName::data(), tree.version)].into();
    lifecycle::release(&operation, &claim, &Known::data([tree.version]), &clean).await.unwrap();
    drop(operation);
    for node in [&b, &c] {
        let claim = node.acquire(&id("v")).await.unwrap();
        let operation = node.session.begin().unwrap();
        lifecycle::release(&operation, &claim, &Known::data([tree.version]), &clean).await.unwrap();
    }
    lifecycle::delete(&a.store, &id("v"), None, Authority::Unowned).await.unwrap();
    world.clock.advance(DAY * 8);
    rounds(&mut collector, &[&a, &b, &c]).await;
    assert_eq!(world.record(&id("v")).await.state, State::Purged);
    // The first that cleans up does not take it away.
    lifecycle::forget_copy(&a.session, &id("v")).await.unwrap();
    rounds(&mut collector, &[&a, &b, &c]).await;
    // b was offline all the time. It finds the tombstone of its copy's birth, so it may drop that, and says so.
    let tombstone = cas::record::get(&b.store, &id("v")).await.unwrap().value;
    assert!(tombstone.state == State::Purged && tombstone.birth == birth);
    lifecycle::forget_copy(&b.session, &id("v")).await.unwrap();
    rounds(&mut collector, &[&a, &b, &c]).await;
    assert_eq!(world.keys("vol/v").await.len(), 1, "c has a copy");
    // c never comes back. Its session is fenced, and much later it counts as retired.
    session::fence(&a.store, &c.session.id()).await.unwrap();
    rounds(&mut collector, &[&a, &b]).await;
    assert_eq!(world.keys("vol/v").await.len(), 1);
    world.clock.advance(DAY * 31);
    rounds(&mut collector, &[&a, &b]).await;
    assert!(world.keys("vol/v").await.is_empty(), "nobody waits for ever");
    // The same name again is another birth, and the old copy on c's disk says so.
    let (claim, _) = a.create_files(&id("v"), &files(&FILES, 1)).await;
    assert_ne!(claim.birth, birth);
    // Where no copy was left, nothing stays.
    let (_, _) = b.create_files(&id("w"), &files(&FILES, 2)).await;
    lifecycle::delete(&b.store, &id("w"), None, Authority::Owner(b.session.id())).await.unwrap();
    lifecycle::forget_copy(&b.session, &id("w")).await.unwrap();
    world.clock.advance(DAY * 8);
    rounds(&mut collector, &[&a, &b]).await;
    assert!(world.keys("vol/w").await.is_empty());
}

/// W-26: the predecessor never deleted a blob. Here a store whose volumes are deleted becomes empty.
#[tokio::test]
async fn w26_the_bytes_of_what_is_deleted_come_back() {
    let world = World::new();
    let node = world.node("a").await;
    for n in 0..6 {
        let (claim, mut tree) = node.create_files(&id(&format!("v-{n}")), &files(&FILES, n)).await;
        for salt in 0..8 {
            let next = files(&FILES[..2], 100 * n + salt);
            tree = node.publish_files(&claim, &tree, &next, Role::Manual).await.unwrap();
        }
    }
    let bytes =
        async || list_all(&world.disk, "pack/").await.unwrap().iter().map(|meta| meta.size).sum::<u64>();
    let full = bytes().await;
    let mut collector = patient(&world).await;
    node.session.beat().await.unwrap();
    collect(&mut collector, &[&node]).await;
    let thinned = bytes().await;
    for n in 0..6 {
        let volume = id(&format!("v-{n}"));
        lifecycle::delete(&node.store, &volume, None, Authority::Owner(node.session.id())).await.unwrap();
        lifecycle::forget_copy(&node.session, &volume).await.unwrap();
    }
    world.clock.advance(DAY * 8);
    node.session.raise().await.unwrap();
    collector.round().await.unwrap();
    collect(&mut collector, &[&node]).await;
    collector.round().await.unwrap();
    println!("{full} bytes, {thinned} after thinned versions went, {} after the volumes went", bytes().await);
    assert!(thinned < full && bytes().await == 0);
    assert!(world.keys("vol/").await.is_empty() && world.keys("moved/").await.is_empty());
}

#[tokio::test]
async fn a_record_whose_owners_session_is_missing_is_drained_like_a_fenced_ones() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    b.create_files(&id("w"), &files(&FILES, 0)).await;
    a.create_files(&id("v"), &files(&FILES, 1)).await;
    purge(&world, &a, &id("v")).await;
    // Somebody deleted what only collection may delete.
    world.disk.delete(&cas::keys::session(&b.session.id())).await.unwrap();
    a.session.raise().await.unwrap();
    let mut collector = patient(&world).await;
    collect(&mut collector, &[&a]).await;
    let record = world.record(&id("w")).await;
    assert!(record.owner.is_none() && record.epoch.0 == 2, "{:?}", record.owner);
    a.acquire(&id("w")).await.unwrap();
}

#[tokio::test]
async fn a_session_that_stands_still_is_fenced_only_if_it_is_behind() {
    let world = World::new();
    let (a, idle) = (world.node("a").await, world.node("idle").await);
    let (_, store) = world.open().await;
    let settings = cas::gc::Settings { fence_after: Duration::from_secs(60), ..eager() };
    let mut collector = Collector::new(store.clone(), settings);
    a.create_files(&id("v"), &files(&FILES, 0)).await;
    a.session.beat().await.unwrap();
    for _ in 0..3 {
        world.clock.advance(Duration::from_secs(1000));
        collector.step().await.unwrap();
    }
    assert!(store_state(&store, &idle).await == SessionState::Live, "no round needs it");
    purge(&world, &a, &id("v")).await;
    a.session.raise().await.unwrap();
    collector.step().await.unwrap();
    a.session.raise().await.unwrap();
    assert_eq!(collector.step().await.unwrap(), Step::Waiting);
    world.clock.advance(Duration::from_secs(59));
    assert_eq!(collector.step().await.unwrap(), Step::Waiting);
    idle.session.beat().await.unwrap();
    world.clock.advance(Duration::from_secs(59));
    assert_eq!(collector.step().await.unwrap(), Step::Waiting, "it gave a sign");
    world.clock.advance(Duration::from_secs(59));
    assert_eq!(collector.step().await.unwrap(), Step::Waiting);
    world.clock.advance(Duration::from_secs(2));
    assert_eq!(collector.step().await.unwrap(), Step::Moved);
    assert!(store_state(&store, &idle).await == SessionState::Fenced);
}

async fn store_state(store: &Store, node: &Node) -> SessionState {
    session::read(store, &node.session.id()).await.unwrap().unwrap().value.state
}
