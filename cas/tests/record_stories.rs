//! The stories of PROTOCOL.md §4, as far as records, sessions and pins tell them.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on says where"
)]

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cas::entry::{Heads, Tips, data_head};
use cas::gc::Phase;
use cas::guard::Known;
use cas::lifecycle::{self, Authority, NewSealed};
use cas::names::{self, Expected, NameKind};
use cas::objects::{CallKind, Condition, Fault, Objects};
use cas::record::{Quota, State};
use cas::session::{self, Resumed};
use cas::{Claim, Error, LostReason, RecordKind, Role, Session, references};
use types::{Change, Clock as _, MemberName, PackId, PoolId, VolumeId};
use world::*;

fn lost(error: Error) -> LostReason {
    match error {
        Error::Lost { reason, .. } => reason,
        other => panic!("not lost, but: {other}"),
    }
}

#[tokio::test]
async fn story_02_a_pool_that_went_back_in_time_never_publishes_over_the_head() {
    let world = World::new();
    let node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    node.publish(&claim, &["v0"], "v1").await.unwrap();
    // The pool is restored from a snapshot taken at v0: same session, same epoch, older state.
    let reason = lost(node.publish(&claim, &["v0"], "other").await.unwrap_err());
    assert!(matches!(reason, LostReason::Diverged { .. }), "{reason}");
    assert_eq!(world.record(&id("v")).await.head_tips()[&MemberName::data()], version("v1"));
}

#[tokio::test]
async fn story_03_a_crash_after_the_record_and_before_base_turns_publishes_on() {
    let world = World::new();
    let mut node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    node.publish(&claim, &["v0"], "v1").await.unwrap();
    node.restart().await;
    // Base is still v0, and snap/v1 was committed before the record named it.
    node.publish(&claim, &["v0", "v1"], "v2").await.unwrap();
    assert_eq!(versions(&world.record(&id("v")).await), ["v0", "v1", "v2"].map(version));
}

#[tokio::test]
async fn story_05_a_node_that_was_ignored_for_an_hour_publishes_nothing() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let claim = a.create(&id("v"), "v0").await;
    // The publish is on its way when the collection fences the session and takes its records from it.
    a.faults.every(CallKind::Put, "vol/", Fault::Held);
    let unsettled = a.publish(&claim, &["v0"], "v1").await.unwrap_err();
    assert!(matches!(unsettled, Error::Unsettled { .. }), "{unsettled}");
    session::fence(&b.store, &a.session.id()).await.unwrap();
    lifecycle::unseat(&b.store, &id("v"), &a.session.id()).await.unwrap();
    a.faults.heal();
    assert!(a.faults.deliver_held().await.iter().all(Result::is_err));
    let reason = lost(a.publish(&claim, &["v0"], "v1").await.unwrap_err());
    assert_eq!(reason, LostReason::Owner { found: None });
    assert_eq!(versions(&world.record(&id("v")).await), [version("v0")]);
}

#[tokio::test]
async fn story_06_a_fork_of_a_condemned_version_waits() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    a.create(&id("source"), "v0").await;
    let pack = PackId::clone(
        &world.record(&id("source")).await.head_entry().unwrap().heads[&MemberName::data()].manifest.pack,
    );
    world.condemn(1, [pack.clone()]).await;
    b.session.raise().await.unwrap();
    let operation = b.session.begin().unwrap();
    let refused =
        references::confirm_version(&operation, &id("source"), &version("v0"), &BTreeSet::new()).await;
    assert!(matches!(refused, Err(Error::Condemned { .. })), "{refused:?}");
    drop(operation);
    // The second mark found the reference and freed it.
    world.write_gc(1, Phase::Idle, BTreeSet::new(), BTreeSet::new()).await;
    b.session.raise().await.unwrap();
    let operation = b.session.begin().unwrap();
    let entry = references::confirm_version(&operation, &id("source"), &version("v0"), &BTreeSet::new())
        .await
        .unwrap();
    let record = new_record(&id("fork"), &b.session, "fork");
    let claim = Claim::of(&lifecycle::begin_create(&b.store, record).await.unwrap().into_inner().value);
    lifecycle::finish_create(&operation, &claim, Some(entry.heads), "forked").await.unwrap();
    assert_eq!(versions(&world.record(&id("fork")).await), [version("v0")]);
}

#[tokio::test]
async fn story_06_a_fork_looks_through_moved_packs() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    a.create(&id("source"), "v0").await;
    let record = world.record(&id("source")).await;
    let named = &record.head_entry().unwrap().heads[&MemberName::data()].manifest.pack;
    // An earlier collection has copied what was alive in it, and it is gone; the version goes on naming it.
    let (pool, bytes) = (PoolId::random(), "v0");
    let [first, second]: [PackId; 2] = [1, 2].map(|seq| format!("default/{pool}.1.{seq}").parse().unwrap());
    for (from, to) in [(named.as_ref(), &first), (&first, &second)] {
        let moves = [(to.clone(), vec![cas::gc::Move { old: 8, new: 8, len: 60 }])];
        let moved = cas::gc::Moved { format: 1, pack: from.clone(), to: moves.into() };
        let key = format!("moved/{from}").parse().unwrap();
        let json = serde_json::to_vec(&moved).unwrap();
        world.disk.put(&key, json.into(), &Condition::IfAbsent).await.unwrap();
    }
    world.disk.put(&cas::keys::pack(&second), bytes.into(), &Condition::IfAbsent).await.unwrap();
    world.disk.delete(&cas::keys::pack(named)).await.unwrap();
    // The next one condemns what has the bytes now. Its second mark may come between this look and the fork's record,
    // when the source has thinned the version: then nobody copies them.
    world.condemn(1, [second.clone()]).await;
    b.session.raise().await.unwrap();
    let operation = b.session.begin().unwrap();
    let confirm = async || {
        references::confirm_version(&operation, &id("source"), &version("v0"), &BTreeSet::new()).await
    };
    let refused = confirm().await;
    assert!(matches!(&refused, Err(Error::Condemned { packs }) if *packs == [second.clone()]), "{refused:?}");
    world.write_gc(1, Phase::Idle, BTreeSet::new(), BTreeSet::new()).await;
    b.session.raise().await.unwrap();
    operation.recheck([]).unwrap();
    confirm().await.unwrap();
}

#[tokio::test]
async fn story_06_a_reference_that_nobody_proved_is_refused() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    a.create(&id("source"), "v0").await;
    let claim = b.create(&id("v"), "w0").await;
    let heads = world.record(&id("source")).await.head_entry().unwrap().heads.clone();
    let operation = b.session.begin().unwrap();
    let refused = lifecycle::publish(&operation, &claim, &knows(&["w0"]), publication(heads.clone())).await;
    assert!(matches!(refused, Err(Error::Unproven { .. })), "{refused:?}");
    let packs = BTreeSet::from([PackId::clone(&heads[&MemberName::data()].manifest.pack)]);
    references::confirm(&operation, &packs).await.unwrap();
    lifecycle::publish(&operation, &claim, &knows(&["w0"]), publication(heads)).await.unwrap();
}

#[tokio::test]
async fn story_07_a_joiner_reads_the_collection_again_after_its_session_is_there() {
    let world = World::new();
    let (faults, store) = world.open().await;
    let pack: PackId = format!("default/{}.1.1", PoolId::random()).parse().unwrap();
    // Between the joiner's first read and its session, the collection condemns a pack.
    let disk = world.disk.clone();
    let mut condemned = false;
    let gc = cas::gc::Gc {
        format: 1,
        rev: types::Rev(1),
        nonce: types::Nonce::random(),
        epoch: 7,
        phase: Phase::Condemned,
        condemned: BTreeSet::from([pack.clone()]),
        doomed: BTreeSet::new(),
        relocations: BTreeMap::new(),
    };
    let bytes = serde_json::to_vec(&gc).unwrap();
    faults.plan(move |call| {
        if call.kind == CallKind::Put && call.key.starts_with("session/") && !condemned {
            condemned = true;
            let key = "gc".parse().unwrap();
            let put = disk.put(&key, bytes.clone().into(), &Condition::IfAbsent);
            futures::executor::block_on(put).unwrap();
        }
        Fault::None
    });
    let session = Session::join(&store, PoolId::random(), 1, &"a".parse().unwrap(), "a").await.unwrap();
    assert!(!session.begin().unwrap().pin().allows(&pack));
    let told = session::read(&store, &session.id()).await.unwrap().unwrap().value;
    assert_eq!(told.pin, 7);
}

#[tokio::test]
async fn story_08_a_write_that_may_still_land_holds_the_pin_until_it_is_settled() {
    let world = World::new();
    let node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    node.faults.every(CallKind::Put, "vol/", Fault::Held);
    let unsettled = node.publish(&claim, &["v0"], "v1").await.unwrap_err();
    assert!(matches!(unsettled, Error::Unsettled { .. }), "{unsettled}");
    world.condemn(1, []).await;
    // The store refuses to say: the pin stays where the write began.
    assert!(node.session.raise().await.is_err());
    assert_eq!(session::read(&node.store, &node.session.id()).await.unwrap().unwrap().value.pin, 0);
    assert_eq!(node.session.beat().await.unwrap().pin, 0);
    // It answers again: the same bytes are sent, and only then the pin moves.
    node.faults.heal();
    node.session.raise().await.unwrap();
    assert_eq!(session::read(&node.store, &node.session.id()).await.unwrap().unwrap().value.pin, 1);
    assert!(node.faults.deliver_held().await.iter().all(Result::is_err), "the late ones find a moved record");
    assert_eq!(versions(&world.record(&id("v")).await), ["v0", "v1"].map(version));
}

#[tokio::test]
async fn story_08_a_write_of_the_life_before_a_crash_cannot_land_after_the_pin_has_moved() {
    let world = World::new();
    let mut node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    node.faults.every(CallKind::Put, "vol/", Fault::Held);
    node.publish(&claim, &["v0"], "v1").await.unwrap_err();
    node.faults.heal();
    node.restart().await;
    world.condemn(1, []).await;
    node.session.raise().await.unwrap();
    assert_eq!(session::read(&node.store, &node.session.id()).await.unwrap().unwrap().value.pin, 1);
    assert!(node.faults.deliver_held().await.iter().all(Result::is_err));
    assert_eq!(versions(&world.record(&id("v")).await), [version("v0")]);
    node.publish(&claim, &["v0"], "v1").await.unwrap();
}

#[tokio::test]
async fn story_08_a_caller_that_goes_away_leaves_its_write_registered() {
    let world = World::new();
    let node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    node.faults.every(CallKind::Put, "vol/", Fault::Delay(Duration::from_secs(3600)));
    let dropped = tokio::time::timeout(Duration::from_millis(20), node.publish(&claim, &["v0"], "v1")).await;
    assert!(dropped.is_err());
    node.faults.heal();
    world.condemn(1, []).await;
    node.session.raise().await.unwrap();
    // Settled by sending it: the version stands, and the next sync finds it as its head.
    assert_eq!(versions(&world.record(&id("v")).await), ["v0", "v1"].map(version));
    node.publish(&claim, &["v0", "v1"], "v2").await.unwrap();
}

#[tokio::test]
async fn story_14_a_pack_whose_upload_failed_is_referred_to_by_nobody() {
    let world = World::new();
    let node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    let neighbour = node.create(&id("w"), "w0").await;
    let operation = node.session.begin().unwrap();
    let pack = node.session.next_pack(&domain()).await.unwrap();
    node.faults.every(CallKind::Put, "pack/", Fault::Unavailable);
    assert!(node.session.put_pack(&pack, "shared".into()).await.is_err());
    node.faults.heal();
    // The pack has a name and was sent, and the neighbour counted on it: by memory, and by looking.
    let heads = data_head(reference(&pack, "shared"));
    for (claim, known) in [(&claim, "v0"), (&neighbour, "w0")] {
        let refused =
            lifecycle::publish(&operation, claim, &knows(&[known]), publication(heads.clone())).await;
        assert!(matches!(refused, Err(Error::Unproven { .. })), "{refused:?}");
    }
    let looked = references::confirm(&operation, &BTreeSet::from([pack.clone()])).await;
    assert!(matches!(looked, Err(Error::NoPack { .. })), "{looked:?}");
    // It is acknowledged, and then both may.
    node.session.put_pack(&pack, "shared".into()).await.unwrap();
    for (claim, known) in [(&claim, "v0"), (&neighbour, "w0")] {
        lifecycle::publish(&operation, claim, &knows(&[known]), publication(heads.clone())).await.unwrap();
    }
}

#[tokio::test]
async fn story_16_another_store_or_none_is_an_error_and_nothing_is_written() {
    let world = World::new();
    let (_, store) = world.open().await;
    assert!(matches!(store.expect_id(types::StoreId::random()), Err(Error::WrongStore { .. })));
    let foreign = World::new();
    foreign.disk.put(&"vol/x".parse().unwrap(), "x".into(), &Condition::IfAbsent).await.unwrap();
    let clock = Arc::new(foreign.clock.clone());
    let objects: Arc<dyn Objects> = Arc::new(foreign.disk.clone());
    let refused = cas::Store::create_or_open(Arc::clone(&objects), Arc::<types::ManualClock>::clone(&clock))
        .await
        .unwrap_err();
    assert!(matches!(refused, Error::NotOurs { .. }), "{refused}");
    assert!(matches!(cas::Store::open(objects, clock).await, Err(Error::NoStore { .. })));
    assert!(foreign.disk.head(&"store".parse().unwrap()).await.is_err());
}

#[tokio::test]
async fn story_16_a_listing_that_cannot_be_read_whole_is_an_error() {
    let world = World::new();
    let node = world.node("a").await;
    node.create(&id("v"), "v0").await;
    node.faults.at(CallKind::Get, "vol/", 0, Fault::Unavailable);
    assert!(cas::record::list(&node.store).await.is_err());
    node.faults.heal();
    world.disk.put(&"vol/junk".parse().unwrap(), "{}".into(), &Condition::IfAbsent).await.unwrap();
    assert!(matches!(cas::record::list(&node.store).await, Err(Error::Corrupt { .. })));
}

#[tokio::test]
async fn story_17_a_clock_that_jumps_a_year_thins_two_entries_at_most() {
    let world = World::new();
    let node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    let mut known = vec!["v0".to_owned()];
    let publish = async |known: &mut Vec<String>, text: String| {
        let operation = node.session.begin().unwrap();
        let heads = put_version(&operation, &text).await.unwrap();
        let knows = knows(&known.iter().map(String::as_str).collect::<Vec<_>>());
        let publication = lifecycle::Publication { role: Role::Sync, ..publication(heads) };
        lifecycle::publish(&operation, &claim, &knows, publication).await.unwrap();
        known.push(text);
    };
    for n in 0..20 {
        world.clock.advance(Duration::from_secs(60));
        publish(&mut known, format!("s{n}")).await;
    }
    assert_eq!(world.record(&id("v")).await.entries.len(), 21);
    world.clock.advance(Duration::from_secs(365 * 86_400));
    publish(&mut known, "late".to_owned()).await;
    let record = world.record(&id("v")).await;
    assert_eq!(record.entries.len(), 20, "one came, two went");
    assert!(record.entries.iter().any(|entry| entry.role == Role::Event), "events stay");
    // A wall clock that goes back does not move the store's time back: times stay in order.
    world.clock.set_wall(BEGIN);
    publish(&mut known, "back".to_owned()).await;
    let times: Vec<_> = world.record(&id("v")).await.entries.iter().map(|entry| entry.time).collect();
    assert!(times.is_sorted());
}

#[tokio::test]
async fn story_18_an_answer_that_was_lost_is_found_again() {
    let world = World::new();
    let node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    for (n, fault) in
        [Fault::LostAnswer, Fault::Duplicate, Fault::Unavailable, Fault::Conflict, Fault::Precondition]
            .into_iter()
            .enumerate()
    {
        let (before, after) = (format!("v{n}"), format!("v{}", n + 1));
        node.faults.at(CallKind::Put, "vol/", 0, fault);
        assert!(node.publish(&claim, &[&before], &after).await.unwrap().is_made(), "{fault:?}");
    }
    let expected: Vec<_> = (0..6).map(|n| version(&format!("v{n}"))).collect();
    assert_eq!(versions(&world.record(&id("v")).await), expected, "each once");
}

#[tokio::test]
async fn story_18_a_label_on_top_of_a_lost_answer_does_not_publish_twice() {
    let world = World::new();
    let (node, hub) = (world.node("a").await, world.node("hub").await);
    let claim = node.create(&id("v"), "v0").await;
    // The write happens, its answer is lost, and the hub edits the record before the owner asks again.
    let store = hub.store.clone();
    let (told, mut tell) = tokio::sync::mpsc::channel::<()>(1);
    let editor = tokio::spawn(async move {
        tell.recv().await;
        lifecycle::set_attributes(&store, &id("v"), &set("name", "x")).await.unwrap();
    });
    let mut nth = 0;
    node.faults.plan(move |call| {
        if call.kind != CallKind::Put || !call.key.starts_with("vol/") {
            return Fault::None;
        }
        nth += 1;
        match nth {
            1 => {
                told.try_send(()).unwrap();
                Fault::LostAnswer
            }
            2 => Fault::Delay(Duration::from_millis(20)),
            _ => Fault::None,
        }
    });
    let published = node.publish(&claim, &["v0", "v1"], "v1").await.unwrap().into_inner();
    editor.await.unwrap();
    let record = world.record(&id("v")).await;
    assert_eq!(versions(&record), ["v0", "v1"].map(version));
    assert_eq!(record.head, Some(published.entry));
    assert_eq!(record.attributes["name"], "x");
}

#[tokio::test]
async fn story_20_a_released_volume_is_published_by_nobody() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let claim = a.create(&id("v"), "v0").await;
    // A write is under way when the volume is released and acquired elsewhere.
    a.faults.every(CallKind::Put, "vol/", Fault::Held);
    a.publish(&claim, &["v0"], "late").await.unwrap_err();
    a.faults.heal();
    let sent = a.release(&claim, "v0").await;
    // The release settles the earlier write first: it landed, and what is clean is no longer the head.
    assert!(matches!(sent, Err(Error::Lost { reason: LostReason::Diverged { .. }, .. })), "{sent:?}");
    assert!(a.release(&claim, "late").await.unwrap().is_made());
    assert!(!a.release(&claim, "late").await.unwrap().is_made());
    let theirs = b.acquire(&id("v")).await.unwrap();
    assert!(theirs.epoch > claim.epoch);
    let reason = lost(a.publish(&claim, &["v0", "late"], "later").await.unwrap_err());
    assert_eq!(reason, LostReason::Owner { found: Some(b.session.id()) });
    assert!(a.faults.deliver_held().await.iter().all(Result::is_err));
    b.publish(&theirs, &["late"], "b1").await.unwrap();
}

#[tokio::test]
async fn story_20_publish_and_release_are_one_write() {
    let world = World::new();
    let node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    let operation = node.session.begin().unwrap();
    let heads = put_version(&operation, "v1").await.unwrap();
    let last = lifecycle::Publication { release: true, ..publication(heads) };
    node.faults.reset();
    node.faults.at(CallKind::Put, "vol/", 0, Fault::LostAnswer);
    lifecycle::publish(&operation, &claim, &knows(&["v0"]), last.clone()).await.unwrap();
    let record = world.record(&id("v")).await;
    assert_eq!((record.owner, record.epoch), (None, claim.epoch));
    assert!(!lifecycle::publish(&operation, &claim, &knows(&["v0"]), last).await.unwrap().is_made());
    assert_eq!(versions(&world.record(&id("v")).await), ["v0", "v1"].map(version));
}

#[tokio::test]
async fn story_21_a_session_declared_dead_loses_and_keeps_its_work_as_an_orphan() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let claim = a.create(&id("v"), "v0").await;
    let owned = b.acquire(&id("v")).await.unwrap_err();
    assert!(matches!(owned, Error::Owned { .. }), "a live owner is not taken from: {owned}");
    assert!(session::fence(&b.store, &a.session.id()).await.unwrap().is_made());
    assert!(!session::fence(&b.store, &a.session.id()).await.unwrap().is_made());
    let theirs = b.acquire(&id("v")).await.unwrap();
    b.publish(&theirs, &["v0"], "b1").await.unwrap();
    let reason = lost(a.publish(&claim, &["v0"], "a1").await.unwrap_err());
    assert_eq!(reason, LostReason::Owner { found: Some(b.session.id()) });
    assert!(matches!(a.session.beat().await, Err(Error::Fenced { .. })));
    assert!(matches!(a.session.begin(), Err(Error::Fenced { .. })));
    assert!(matches!(Session::resume(&a.store, a.session.id(), None).await.unwrap(), Resumed::Fenced));
    // The pool opens a new session, and what it still held becomes a record of its own, once.
    let again =
        Session::join_next(&a.store, a.session.id().pool, 1, &"a".parse().unwrap(), "a").await.unwrap();
    assert_eq!(again.id().number, 2);
    let operation = again.begin().unwrap();
    let heads = put_version(&operation, "a1").await.unwrap();
    let orphan = lifecycle::make_orphan(&operation, &claim, &domain(), heads.clone(), "taken").await.unwrap();
    assert!(orphan.is_made());
    let orphan = orphan.into_inner().value;
    assert_eq!((orphan.kind, orphan.owner, orphan.state), (RecordKind::Orphan, None, State::Live));
    let second = lifecycle::make_orphan(&operation, &claim, &domain(), heads, "taken").await.unwrap();
    assert!(!second.is_made());
    assert!(matches!(
        lifecycle::acquire(&again, &orphan.id, &Tips::new(), false).await,
        Err(Error::Sealed { .. })
    ));
}

#[tokio::test]
async fn story_23_of_two_clones_of_a_pool_one_loses() {
    let world = World::new();
    let node = world.node("a").await;
    let remembered = node.session.nonce();
    let clone = match Session::resume(&node.store, node.session.id(), Some(remembered)).await.unwrap() {
        Resumed::Live(session) => session,
        other => panic!("{other:?}"),
    };
    assert!(matches!(node.session.beat().await, Err(Error::Stolen { .. })));
    assert!(matches!(node.session.begin(), Err(Error::Stolen { .. })));
    clone.beat().await.unwrap();
    let third = Session::resume(&node.store, node.session.id(), Some(remembered)).await.unwrap();
    assert!(matches!(third, Resumed::Stolen), "{third:?}");
    // The same host name is no identity, and a number is used once.
    let pool = node.session.id().pool;
    let taken = Session::join(&node.store, pool, 1, &"a".parse().unwrap(), "a").await;
    assert!(matches!(taken, Err(Error::SessionTaken { .. })));
    let other = world.node("a").await;
    assert_ne!(other.session.id(), node.session.id());
}

#[tokio::test]
async fn story_23_pack_numbers_are_not_used_twice_whatever_is_forgotten() {
    let world = World::new();
    let mut node = world.node("a").await;
    let mut seen = BTreeSet::new();
    for life in 0..3 {
        let operation = node.session.begin().unwrap();
        for _ in 0..10 {
            assert!(seen.insert(node.session.next_pack(&domain()).await.unwrap()), "life {life}");
        }
        drop(operation);
        // All memory of the session is lost but its id.
        node.session = match Session::resume(&node.store, node.session.id(), None).await.unwrap() {
            Resumed::Live(session) => session,
            other => panic!("{other:?}"),
        };
    }
    let operation = node.session.begin().unwrap();
    for _ in 0..5000 {
        assert!(seen.insert(node.session.next_pack(&domain()).await.unwrap()), "more than one block");
    }
    drop(operation);
    assert!(matches!(node.session.next_pack(&domain()).await, Err(Error::NoOperation { .. })));
}

#[tokio::test]
async fn story_25_an_operator_takes_a_volume_from_an_owner_that_lives() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let claim = a.create(&id("v"), "v0").await;
    let tips = world.record(&id("v")).await.head_tips();
    let taken = lifecycle::acquire(&b.session, &id("v"), &tips, true).await.unwrap().into_inner();
    assert_eq!(taken.from, Some(a.session.id()));
    assert!(matches!(lost(a.publish(&claim, &["v0"], "a1").await.unwrap_err()), LostReason::Owner { .. }));
}

#[tokio::test]
async fn story_26_a_name_made_again_is_not_the_old_ones_to_remove() {
    let world = World::new();
    let (_, store) = world.open().await;
    let name = "web".parse().unwrap();
    let point = async |id: &VolumeId, expected: Expected<'_>| {
        names::point(&store, NameKind::Template, &name, id, expected).await
    };
    assert!(point(&id("t1"), Expected::Free).await.unwrap().is_made());
    assert!(!point(&id("t1"), Expected::Free).await.unwrap().is_made());
    assert!(matches!(point(&id("t2"), Expected::Free).await, Err(Error::NameTaken { .. })));
    assert!(names::remove(&store, NameKind::Template, &name, &id("t1")).await.unwrap().is_made());
    assert_eq!(names::resolve(&store, NameKind::Template, &name).await.unwrap(), None);
    assert!(point(&id("t2"), Expected::Free).await.unwrap().is_made());
    // The old one's removal arrives late.
    assert!(names::remove(&store, NameKind::Template, &name, &id("t1")).await.is_err());
    point(&id("t3"), Expected::Id(&id("t2"))).await.unwrap();
    assert_eq!(names::list(&store, NameKind::Template).await.unwrap(), [(name.clone(), id("t3"))]);
    assert!(names::list(&store, NameKind::Bundle).await.unwrap().is_empty());
}

#[tokio::test]
async fn story_26_only_the_tombstone_of_the_same_birth_speaks_of_a_copy() {
    let world = World::new();
    let node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    let other = Some(types::Birth::random());
    let owner = Authority::Owner(node.session.id());
    assert!(matches!(
        lifecycle::delete(&node.store, &id("v"), other, owner).await,
        Err(Error::OtherBirth { .. })
    ));
    assert!(lifecycle::delete(&node.store, &id("v"), Some(claim.birth), owner).await.unwrap().is_made());
    let tombstone = world.record(&id("v")).await;
    assert_eq!((tombstone.birth, tombstone.state), (claim.birth, State::Deleted));
    let grace = Duration::from_secs(3600);
    let early = lifecycle::purge(&node.store, &id("v"), claim.birth, grace, node.session.store_time()).await;
    assert!(matches!(early, Err(Error::WrongState { .. })), "{early:?}");
    world.clock.advance(grace);
    let now = node.session.store_time();
    lifecycle::purge(&node.store, &id("v"), claim.birth, grace, now).await.unwrap();
    let purged = world.record(&id("v")).await;
    assert!(purged.entries.is_empty() && purged.holders.contains(&node.session.id().pool));
    let forgotten = lifecycle::forget_copy(&node.session, &id("v")).await.unwrap().into_inner();
    assert!(forgotten.value.holders.is_empty());
    assert!(lifecycle::undelete(&node.store, &id("v"), None).await.is_err());
}

#[tokio::test]
async fn story_27_nothing_is_answered_before_the_record_has_its_head() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let record = new_record(&id("v"), &a.session, "r1");
    lifecycle::begin_create(&a.store, record).await.unwrap();
    let begun = world.record(&id("v")).await;
    assert_eq!((begun.state, begun.references().count()), (State::Creating, 0));
    // A dies; the retry of the request is given to B and finishes there.
    session::fence(&b.store, &a.session.id()).await.unwrap();
    let record = new_record(&id("v"), &b.session, "r1");
    let begun = lifecycle::begin_create(&b.store, record).await.unwrap().into_inner();
    assert_eq!(begun.value.owner, Some(b.session.id()));
    let operation = b.session.begin().unwrap();
    let heads = put_version(&operation, "v0").await.unwrap();
    let claim = Claim::of(&begun.value);
    b.faults.at(CallKind::Put, "vol/", 0, Fault::LostAnswer);
    assert!(lifecycle::finish_create(&operation, &claim, Some(heads.clone()), "").await.unwrap().is_made());
    assert!(!lifecycle::finish_create(&operation, &claim, Some(heads), "").await.unwrap().is_made());
    assert_eq!(world.record(&id("v")).await.state, State::Live);
}

#[tokio::test]
async fn story_27_a_record_made_for_a_session_that_was_fenced_before_is_not_finished() {
    let world = World::new();
    let (a, hub) = (world.node("a").await, world.node("hub").await);
    let record = new_record(&id("v"), &a.session, "r1");
    session::fence(&hub.store, &a.session.id()).await.unwrap();
    let begun = lifecycle::begin_create(&hub.store, record).await.unwrap().into_inner();
    let operation = a.session.begin().unwrap();
    let heads = put_version(&operation, "v0").await.unwrap();
    let refused = lifecycle::finish_create(&operation, &Claim::of(&begun.value), Some(heads), "").await;
    assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
    assert_eq!(world.record(&id("v")).await.state, State::Creating);
}

#[tokio::test]
async fn story_28_a_delete_that_races_a_sync_loses_nothing() {
    let world = World::new();
    let (a, hub) = (world.node("a").await, world.node("hub").await);
    let claim = a.create(&id("v"), "v0").await;
    let refused = lifecycle::delete(&hub.store, &id("v"), None, Authority::Unowned).await;
    assert!(matches!(refused, Err(Error::Owned { .. })), "the owner publishes first: {refused:?}");
    a.publish(&claim, &["v0"], "v1").await.unwrap();
    lifecycle::delete(&a.store, &id("v"), Some(claim.birth), Authority::Owner(a.session.id())).await.unwrap();
    let reason = lost(a.publish(&claim, &["v0", "v1"], "v2").await.unwrap_err());
    assert_eq!(reason, LostReason::State { found: State::Deleted });
    let back = lifecycle::undelete(&hub.store, &id("v"), None).await.unwrap().into_inner().value;
    assert_eq!((back.state, back.owner), (State::Live, None));
    assert_eq!(versions(&back), ["v0", "v1"].map(version));
    a.acquire(&id("v")).await.unwrap();
}

#[tokio::test]
async fn story_30_a_long_operation_moves_its_pin_and_keeps_its_packs() {
    let world = World::new();
    let node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    let long = node.session.begin().unwrap();
    let heads = put_version(&long, "v1").await.unwrap();
    let first = heads[&MemberName::data()].manifest.pack.seq;
    let foreign: PackId = format!("default/{}.1.1", PoolId::random()).parse().unwrap();
    world.condemn(1, [foreign.clone()]).await;
    node.session.raise().await.unwrap();
    assert_eq!(node.session.beat().await.unwrap().pin, 0, "it does not know the new set yet");
    assert!(matches!(long.recheck([&foreign]), Err(Error::Condemned { .. })));
    assert_eq!(node.session.beat().await.unwrap().pin, 0);
    long.recheck([]).unwrap();
    let beat = node.session.beat().await.unwrap();
    assert_eq!((beat.pin, beat.low), (1, first), "moved on, and its own packs are still its own");
    lifecycle::publish(&long, &claim, &knows(&["v0"]), publication(heads)).await.unwrap();
    drop(long);
    assert_eq!(node.session.beat().await.unwrap().low, first + 1);
}

#[tokio::test]
async fn story_32_members_move_together() {
    let world = World::new();
    let node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    let database: MemberName = "postgres".parse().unwrap();
    let operation = node.session.begin().unwrap();
    let mut heads = put_version(&operation, "v1").await.unwrap();
    heads.extend(
        put_version(&operation, "p1").await.unwrap().into_values().map(|head| (database.clone(), head)),
    );
    lifecycle::publish(&operation, &claim, &knows(&["v0"]), publication(heads.clone())).await.unwrap();
    // A pool whose base is new and whose database is not is not where the head is.
    let mut known = Known::data([version("v1")]);
    known.add(database.clone(), version("p0"));
    let refused = lifecycle::publish(&operation, &claim, &known, publication(heads.clone())).await;
    assert!(matches!(lost(refused.unwrap_err()), LostReason::Diverged { .. }));
    known.add(database, version("p1"));
    lifecycle::publish(&operation, &claim, &known, publication(heads)).await.unwrap();
    assert_eq!(world.record(&id("v")).await.head_tips().len(), 2);
}

#[tokio::test]
async fn story_33_the_same_state_twice_is_two_writes() {
    let world = World::new();
    let node = world.node("a").await;
    node.create(&id("v"), "v0").await;
    let before = world.record(&id("v")).await;
    lifecycle::set_attributes(&node.store, &id("v"), &set("k", "1")).await.unwrap();
    let between = world.record(&id("v")).await;
    lifecycle::set_attributes(&node.store, &id("v"), &BTreeMap::from([("k".to_owned(), None)]))
        .await
        .unwrap();
    let after = world.record(&id("v")).await;
    assert_eq!(before.attributes, after.attributes);
    let nonces: BTreeSet<_> = [&before, &between, &after].map(|record| record.nonce).into();
    assert_eq!(nonces.len(), 3);
    assert_eq!(after.rev.0, before.rev.0 + 2);
}

#[tokio::test]
async fn story_35_the_retry_of_a_forgotten_request_finds_its_volume() {
    let world = World::new();
    let node = world.node("a").await;
    let id = VolumeId::for_request("vol", &request("r1"));
    let first = lifecycle::begin_create(&node.store, new_record(&id, &node.session, "r1")).await.unwrap();
    assert!(first.is_made());
    let second = lifecycle::begin_create(&node.store, new_record(&id, &node.session, "r1")).await.unwrap();
    assert!(!second.is_made());
    assert_eq!(first.into_inner().value.birth, second.into_inner().value.birth);
    let other = lifecycle::begin_create(&node.store, new_record(&id, &node.session, "r2")).await;
    assert!(matches!(other, Err(Error::OtherRequest { .. })));
}

#[tokio::test]
async fn a_restore_keeps_the_old_head_as_an_entry_and_a_branch() {
    let world = World::new();
    let node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    node.publish(&claim, &["v0"], "v1").await.unwrap();
    let record = world.record(&id("v")).await;
    let (first, second) = (record.entries[0].id, record.entries[1].id);
    let operation = node.session.begin().unwrap();
    let target = lifecycle::Target::Entry(first);
    node.faults.at(CallKind::Put, "vol/", 0, Fault::LostAnswer);
    let restored =
        lifecycle::restore_head(&operation, &claim, &knows(&["v1"]), target, "to the first").await.unwrap();
    let record = world.record(&id("v")).await;
    assert_eq!(versions(&record), ["v0", "v1", "v0"].map(version), "three entries and two versions");
    assert_eq!(record.branches[restored.branch.as_deref().unwrap()], second);
    assert_eq!(record.head, Some(restored.entry));
    assert_eq!(restored.branch.as_deref(), Some("pre-restore/1"));
    // The swap has not happened; a start finds a head that it knows and goes on.
    node.publish(&claim, &["v0", "v1"], "v2").await.unwrap();
    let unknown = lifecycle::Target::Entry(types::EntryId([7; 32]));
    let refused = lifecycle::restore_head(&operation, &claim, &knows(&["v2"]), unknown, "").await;
    assert!(matches!(refused, Err(Error::NoEntry { .. })), "{refused:?}");
}

#[tokio::test]
async fn what_is_written_to_a_replaced_tree_is_kept_beside_the_line() {
    let world = World::new();
    let node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    node.publish(&claim, &["v0"], "v1").await.unwrap();
    let first = world.record(&id("v")).await.entries[0].id;
    let operation = node.session.begin().unwrap();
    let target = lifecycle::Target::Entry(first);
    lifecycle::restore_head(&operation, &claim, &knows(&["v1"]), target, "to the first").await.unwrap();
    let head = world.record(&id("v")).await.head;
    let late = put_version(&operation, "late").await.unwrap();
    let keep = async |known: &[&str], heads: &Heads| {
        lifecycle::keep_branch(&operation, &claim, &knows(known), heads.clone(), "late").await
    };
    // Its answer is lost: found again, it is there once.
    node.faults.at(CallKind::Put, "vol/", 0, Fault::LostAnswer);
    assert_eq!(keep(&["v0"], &late).await.unwrap().as_deref(), Some("pre-restore/2"));
    assert_eq!(keep(&["v0"], &late).await.unwrap(), None, "it is on the timeline");
    let record = world.record(&id("v")).await;
    assert_eq!(record.head, head, "the line goes on where it was");
    let kept = record.entry(&record.branches["pre-restore/2"]).unwrap();
    assert_eq!(kept.version(), Some(version("late")));
    assert_eq!(kept.previous, Some(record.branches["pre-restore/1"]), "it grew from what the restore kept");
    // Bytes that nobody proved, and a place that was lost, are refused.
    let unproven = data_head(reference(&"default/01m8a6z107z35dhth8cn12dhzn.1.1".parse().unwrap(), "x"));
    assert!(matches!(keep(&["v0"], &unproven).await, Err(Error::Unproven { .. })));
    let later = put_version(&operation, "later").await.unwrap();
    assert!(matches!(keep(&["elsewhere"], &later).await, Err(Error::Lost { .. })));
    node.publish(&claim, &["v0"], "v2").await.unwrap();
}

#[tokio::test]
async fn a_snapshot_is_a_record_of_its_own_and_never_owned() {
    let world = World::new();
    let node = world.node("a").await;
    node.create(&id("v"), "v0").await;
    let operation = node.session.begin().unwrap();
    let entry =
        references::confirm_version(&operation, &id("v"), &version("v0"), &BTreeSet::new()).await.unwrap();
    let sealed = |request: &str| NewSealed {
        id: id("snap"),
        kind: RecordKind::Snapshot,
        domain: domain(),
        heads: entry.heads.clone(),
        origin: None,
        request: request.parse().unwrap(),
        label: "before lunch".to_owned(),
        quota: Quota::default(),
        attributes: BTreeMap::new(),
    };
    node.faults.at(CallKind::Put, "vol/", 1, Fault::LostAnswer);
    assert!(lifecycle::seal(&operation, sealed("s")).await.unwrap().is_made());
    assert!(!lifecycle::seal(&operation, sealed("s")).await.unwrap().is_made());
    assert!(matches!(lifecycle::seal(&operation, sealed("t")).await, Err(Error::OtherRequest { .. })));
    let record = world.record(&id("snap")).await;
    assert_eq!((record.state, record.owner), (State::Live, None));
    let acquired = lifecycle::acquire(&node.session, &id("snap"), &record.head_tips(), true).await;
    assert!(matches!(acquired, Err(Error::Sealed { .. })));
}

#[tokio::test]
async fn a_sync_without_change_writes_nothing() {
    let world = World::new();
    let node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    let heads = world.record(&id("v")).await.head_entry().unwrap().heads.clone();
    let operation = node.session.begin().unwrap();
    node.faults.reset();
    let sync = lifecycle::Publication { role: Role::Sync, ..publication(heads.clone()) };
    assert!(matches!(
        lifecycle::publish(&operation, &claim, &knows(&["v0"]), sync).await.unwrap(),
        Change::Already(_)
    ));
    assert_eq!(node.faults.counts().writes(), 0);
    let manual = lifecycle::Publication { role: Role::Manual, ..publication(heads) };
    assert!(lifecycle::publish(&operation, &claim, &knows(&["v0"]), manual).await.unwrap().is_made());
    assert_eq!(node.faults.counts().writes(), 1, "a publish is one write beside its pack");
}

#[tokio::test]
async fn two_sessions_that_race_for_a_volume_do_not_both_get_it() {
    for _ in 0..50 {
        let world = World::new();
        let (a, b, c) = (world.node("a").await, world.node("b").await, world.node("c").await);
        let claim = c.create(&id("v"), "v0").await;
        c.release(&claim, "v0").await.unwrap();
        for node in [&a, &b] {
            node.faults.every(CallKind::Put, "vol/", Fault::Delay(Duration::from_micros(200)));
        }
        let volume = id("v");
        let (first, second) = tokio::join!(a.acquire(&volume), b.acquire(&volume));
        assert_eq!(u8::from(first.is_ok()) + u8::from(second.is_ok()), 1, "{first:?} {second:?}");
    }
}

#[tokio::test]
async fn an_acquire_of_a_head_that_moved_prepares_again() {
    let world = World::new();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let claim = a.create(&id("v"), "v0").await;
    let prepared = world.record(&id("v")).await.head_tips();
    a.publish(&claim, &["v0"], "v1").await.unwrap();
    a.release(&claim, "v1").await.unwrap();
    let refused = lifecycle::acquire(&b.session, &id("v"), &prepared, false).await;
    assert!(matches!(refused, Err(Error::HeadMoved { .. })), "{refused:?}");
    b.acquire(&id("v")).await.unwrap();
}

#[tokio::test]
async fn a_record_that_is_newer_hostile_or_another_ones_is_refused() {
    let world = World::new();
    let node = world.node("a").await;
    node.create(&id("v"), "v0").await;
    let key = cas::keys::volume(&id("v"));
    let good = String::from_utf8(world.disk.get(&key).await.unwrap().bytes.to_vec()).unwrap();
    let head = world.record(&id("v")).await.head.unwrap().to_string();
    let cases = [
        good.replacen("\"format\":1", "\"format\":2", 1),
        good.replacen("\"format\":1", "\"format\":0", 1),
        good.replacen("\"id\":\"v\"", "\"id\":\"w\"", 1),
        good.replacen("\"label\":\"created\"", "\"label\":\"other\"", 1),
        good.replacen(&format!("\"head\":\"{head}\""), &format!("\"head\":\"{}\"", "0".repeat(64)), 1),
        good.replacen("\"rev\"", "\"later\":1,\"rev\"", 1),
        good[..good.len() / 2].to_owned(),
        format!("{good}{}", " ".repeat(2 << 20)),
    ];
    for case in cases {
        assert_ne!(case, good);
        world.disk.damage(&key, |bytes| *bytes = case.clone().into_bytes());
        let error = cas::record::read(&node.store, &id("v")).await.unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. } | Error::NewerFormat { .. }), "{error}");
        let refused = lifecycle::set_quota(&node.store, &id("v"), None).await;
        assert!(refused.is_err(), "what cannot be read is not written over");
    }
    world.disk.damage(&key, |bytes| *bytes = good.clone().into_bytes());
    lifecycle::set_quota(&node.store, &id("v"), None).await.unwrap();
}

#[tokio::test]
async fn a_record_that_went_away_is_told_and_not_written_again() {
    let world = World::new();
    let node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    let disk = world.disk.clone();
    node.faults.plan(move |call| {
        if call.kind == CallKind::Put && call.key.starts_with("vol/") {
            futures::executor::block_on(disk.delete(&call.key.parse().unwrap())).unwrap();
        }
        Fault::None
    });
    let gone = node.publish(&claim, &["v0"], "v1").await.unwrap_err();
    assert!(matches!(gone, Error::Gone { .. }), "{gone}");
    let missing = node.publish(&claim, &["v0"], "v1").await.unwrap_err();
    assert!(matches!(missing, Error::NoVolume { .. }), "{missing}");
}

#[test]
fn the_store_time_of_the_world_begins_where_it_says() {
    assert_eq!(World::new().clock.now(), BEGIN);
}

#[tokio::test]
async fn a_record_says_how_its_owner_took_it_from_one_that_did_not_give_it() {
    let world = World::new();
    let (a, b, c) = (world.node("a").await, world.node("b").await, world.node("c").await);
    a.create(&id("v"), "v0").await;
    assert_eq!(world.record(&id("v")).await.takeover, None);
    let durable = world.record(&id("v")).await.head_entry().unwrap().time;
    session::fence(&b.store, &a.session.id()).await.unwrap();
    let claim = b.acquire(&id("v")).await.unwrap();
    let record = world.record(&id("v")).await;
    let takeover = record.taken_over().unwrap().clone();
    assert_eq!((takeover.from, takeover.by), (a.session.id(), Some(b.session.id())));
    assert_eq!((takeover.epoch, takeover.durable), (claim.epoch, Some(durable)));
    assert_eq!(takeover.window(), takeover.taken.since(durable));
    // It stays with the record, and speaks of this owner alone, whatever that one publishes.
    b.publish(&claim, &["v0"], "v1").await.unwrap();
    assert_eq!(world.record(&id("v")).await.taken_over(), Some(&takeover));
    b.release(&claim, "v1").await.unwrap();
    c.acquire(&id("v")).await.unwrap();
    let record = world.record(&id("v")).await;
    assert_eq!(record.taken_over(), None, "it was given to c");
    assert_eq!(record.takeover.as_deref(), Some(&takeover), "and is not forgotten");
    // Taken away first and taken later: the collector gives a dead owner's volumes to nobody.
    session::fence(&b.store, &c.session.id()).await.unwrap();
    lifecycle::unseat(&b.store, &id("v"), &c.session.id()).await.unwrap();
    assert_eq!(world.record(&id("v")).await.taken_over().unwrap().by, None);
    let claim = b.acquire(&id("v")).await.unwrap();
    let record = world.record(&id("v")).await;
    let takeover = record.taken_over().unwrap();
    assert_eq!((takeover.from, takeover.by), (c.session.id(), Some(b.session.id())));
    assert_eq!(takeover.epoch, claim.epoch);
    // A pool that takes its own volume again has all that it wrote.
    session::fence(&a.store, &b.session.id()).await.unwrap();
    let pool = b.session.id().pool;
    let again = Session::join_next(&b.store, pool, 1, &"b".parse().unwrap(), "b").await.unwrap();
    let tips = record.head_tips();
    lifecycle::acquire(&again, &id("v"), &tips, false).await.unwrap();
    assert_eq!(world.record(&id("v")).await.taken_over(), None);
    session::fence(&a.store, &again.id()).await.unwrap();
    lifecycle::unseat(&a.store, &id("v"), &again.id()).await.unwrap();
    let third = Session::join_next(&b.store, pool, 2, &"b".parse().unwrap(), "b").await.unwrap();
    lifecycle::acquire(&third, &id("v"), &tips, false).await.unwrap();
    assert_eq!(world.record(&id("v")).await.taken_over(), None);
}
