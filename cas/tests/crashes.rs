//! Dying at every call to the store of every operation that writes there, before the call and after it, and losing each
//! answer; then a new life of the process does the same again. What was asked for holds, every listed version is whole, and
//! what nothing names is collected. Each operation prints at how many of the places that exist it died.
//!
//! Of what needs a pool the same is in `csi/tests/crash`, of collection in `gc_rounds`, of the upkeep of pages in `timeline`.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::print_stdout,
    reason = "a test that cannot go on says where; the places are for people"
)]

mod world;

use std::time::Duration;

use cas::entry::data_head;
use cas::gc::{Collector, Step, Verdict};
use cas::lifecycle::{self, Authority, NewSealed, Right, Taken, Target};
use cas::names::{self, Expected, NameKind};
use cas::objects::{Fault, crashes};
use cas::record::{Quota, State};
use cas::tree::put_flat;
use cas::{Claim, Entry, Error, Known, Record, RecordKind, Role, Session, Store, VersionRef, session};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use types::MemberName;
use world::{Node, World, domain, eager, files, id, new_record, request, set};

const HOUR: Duration = Duration::from_secs(3600);

/// What an operation begins with, beside the volume `v` that [`begin`] makes.
type Prepare = for<'a> fn(&'a World, &'a Node) -> BoxFuture<'a, ()>;
/// What is killed, and what the next life does again.
type Operation = for<'a> fn(&'a World, &'a Node) -> BoxFuture<'a, Result<(), Error>>;
/// What holds afterwards.
type Holds = for<'a> fn(&'a Store, &'a Record) -> BoxFuture<'a, ()>;

fn nothing<'a>(_: &'a World, _: &'a Node) -> BoxFuture<'a, ()> {
    async {}.boxed()
}

fn tree(entry: &Entry) -> VersionRef {
    entry.heads[&MemberName::data()].clone()
}

async fn record(node: &Node) -> Result<Record, Error> {
    Ok(cas::record::get(&node.store, &id("v")).await?.value)
}

/// What the node knows of `v`: all of its versions.
fn known(record: &Record) -> Known {
    Known::data(record.entries.iter().map(|entry| tree(entry).version))
}

fn head(record: &Record) -> VersionRef {
    tree(record.head_entry().unwrap())
}

/// A node with the volume `v`, which has two versions.
async fn begin(world: &World) -> Node {
    let node = world.node("a").await;
    let (claim, first) = node.create_files(&id("v"), &files(&[("a", 3000), ("b", 3000)], 1)).await;
    node.publish_files(&claim, &first, &files(&[("a", 3000), ("b", 3000)], 2), Role::Event).await.unwrap();
    node
}

async fn enumerate(what: &str, prepare: Prepare, operation: Operation, holds: Holds) {
    let calls = {
        let world = World::new();
        let node = begin(&world).await;
        prepare(&world, &node).await;
        node.faults.reset();
        operation(&world, &node).await.unwrap();
        let calls = node.faults.counts().calls();
        proved(&world, &node.store, holds).await;
        calls
    };
    let lost = (0..calls).map(|index| (index, Fault::LostAnswer));
    let (mut died, mut answered) = (0, 0);
    for (index, fault) in crashes(calls).chain(lost) {
        let world = World::new();
        let mut node = begin(&world).await;
        prepare(&world, &node).await;
        node.faults.reset();
        node.faults.at_call(index, fault);
        let end = node.faults.until_death(operation(&world, &node)).await;
        let place = format!("{what}: {fault:?} at call {index}");
        match (fault, end) {
            (Fault::LostAnswer, Some(Ok(()))) => answered += 1,
            // A read that was not answered ends it; nothing is half done.
            (Fault::LostAnswer, Some(Err(error))) => {
                let away = matches!(error, Error::Object(_) | Error::Tree(_) | Error::Unsettled { .. });
                assert!(away, "{place}: {error}");
            }
            (_, None) => {
                died += 1;
                node.faults.heal();
                node.faults.revive();
                node.restart().await;
            }
            (_, Some(end)) => panic!("{place}: it lived: {end:?}"),
        }
        node.faults.heal();
        operation(&world, &node).await.unwrap_or_else(|error| panic!("{place}: the next life: {error}"));
        proved(&world, &node.store, holds).await;
    }
    assert_eq!(died, 2 * calls, "{what}");
    println!(
        "{what}: died at {died} of {} places ({calls} calls), went on after {answered} of {calls} lost answers",
        2 * calls
    );
}

/// What was asked for holds, every listed version is whole, and when nobody lives any more, all garbage goes.
async fn proved(world: &World, store: &Store, holds: Holds) {
    let record = cas::record::get(store, &id("v")).await.unwrap().value;
    holds(store, &record).await;
    world.prove_all().await;
    for session in session::list(store).await.unwrap() {
        session::fence(store, &session.value.id).await.unwrap();
    }
    let mut collector = Collector::new(store.clone(), eager());
    for round in 0.. {
        assert!(round < 60, "the collection does not end");
        if collector.step().await.unwrap() == Step::Idle {
            break;
        }
    }
    let explained = collector.explain().await.unwrap();
    let packs = explained.iter().filter(|one| one.object.starts_with("pack/"));
    let left: Vec<_> = packs.filter(|one| one.verdict != Verdict::Keep).collect();
    assert!(left.is_empty(), "garbage stays: {left:?}");
    world.prove_all().await;
}

#[tokio::test]
async fn names_point_where_they_were_pointed_wherever_their_writer_dies() {
    async fn resolved(store: &Store) -> Option<types::VolumeId> {
        names::resolve(store, NameKind::Template, &"app".parse().unwrap()).await.unwrap()
    }
    async fn point(node: &Node, to: &str) -> Result<(), Error> {
        let name = "app".parse().unwrap();
        names::point(&node.store, NameKind::Template, &name, &id(to), Expected::Any).await.map(drop)
    }
    enumerate(
        "a name is made",
        nothing,
        |_, node| async { point(node, "one").await }.boxed(),
        |store, _| async { assert_eq!(resolved(store).await, Some(id("one"))) }.boxed(),
    )
    .await;
    enumerate(
        "a name is moved",
        |_, node| async { point(node, "one").await.unwrap() }.boxed(),
        |_, node| async { point(node, "two").await }.boxed(),
        |store, _| async { assert_eq!(resolved(store).await, Some(id("two"))) }.boxed(),
    )
    .await;
    enumerate(
        "a name is removed",
        |_, node| async { point(node, "one").await.unwrap() }.boxed(),
        |_, node| {
            async {
                let name = "app".parse().unwrap();
                names::remove(&node.store, NameKind::Template, &name, &id("one")).await.map(drop)
            }
            .boxed()
        },
        |store, _| async { assert_eq!(resolved(store).await, None) }.boxed(),
    )
    .await;
}

#[tokio::test]
async fn settings_are_what_was_asked_for_wherever_their_writer_dies() {
    enumerate(
        "a limit is set",
        nothing,
        |_, node| async { lifecycle::set_quota(&node.store, &id("v"), Some(7)).await.map(drop) }.boxed(),
        |_, record| {
            let limit = record.quota.limit_bytes;
            async move { assert_eq!(limit, Some(7)) }.boxed()
        },
    )
    .await;
    enumerate(
        "attributes are set",
        nothing,
        |_, node| {
            async { lifecycle::set_attributes(&node.store, &id("v"), &set("k", "x")).await.map(drop) }.boxed()
        },
        |_, record| {
            let value = record.attributes.get("k").cloned();
            async move { assert_eq!(value.as_deref(), Some("x")) }.boxed()
        },
    )
    .await;
    enumerate(
        "attributes are exchanged",
        |_, node| {
            async { drop(lifecycle::set_attributes(&node.store, &id("v"), &set("k", "x")).await.unwrap()) }
                .boxed()
        },
        |_, node| {
            async {
                let (old, new) = (set("k", "x"), set("k", "y"));
                lifecycle::exchange_attributes(&node.store, &id("v"), &old, &new).await.map(drop)
            }
            .boxed()
        },
        |_, record| {
            let value = record.attributes.get("k").cloned();
            async move { assert_eq!(value.as_deref(), Some("y")) }.boxed()
        },
    )
    .await;
    enumerate(
        "a branch is set",
        nothing,
        |_, node| {
            async {
                let entry = record(node).await?.entries[1].id;
                lifecycle::set_branch(&node.store, &id("v"), "kept", entry, Taken::Move).await.map(drop)
            }
            .boxed()
        },
        |_, record| {
            let (branch, entry) = (record.branches.get("kept").copied(), record.entries[1].id);
            async move { assert_eq!(branch, Some(entry)) }.boxed()
        },
    )
    .await;
    enumerate(
        "a branch is removed",
        |_, node| {
            async {
                let entry = record(node).await.unwrap().entries[1].id;
                lifecycle::set_branch(&node.store, &id("v"), "kept", entry, Taken::Move).await.unwrap();
            }
            .boxed()
        },
        |_, node| async { lifecycle::remove_branch(&node.store, &id("v"), "kept").await.map(drop) }.boxed(),
        |_, record| {
            let branches = record.branches.clone();
            async move { assert!(branches.is_empty()) }.boxed()
        },
    )
    .await;
    enumerate(
        "a pin is set",
        nothing,
        |_, node| {
            async {
                let entry = record(node).await?.entries[0].id;
                lifecycle::set_pin(&node.store, &id("v"), "reader", Some(entry)).await.map(drop)
            }
            .boxed()
        },
        |_, record| {
            let pin = record.pins.get("reader").copied();
            let entry = record.entries[0].id;
            async move { assert_eq!(pin, Some(entry)) }.boxed()
        },
    )
    .await;
}

#[tokio::test]
async fn a_volume_is_deleted_brought_back_and_purged_wherever_it_is_killed() {
    fn delete<'a>(_: &'a World, node: &'a Node) -> BoxFuture<'a, Result<(), Error>> {
        let authority = Authority::Owner(node.session.id());
        async move { lifecycle::delete(&node.store, &id("v"), None, authority).await.map(drop) }.boxed()
    }
    fn is(state: State) -> impl Fn(&Record) {
        move |record| assert_eq!(record.state, state)
    }
    enumerate("delete", nothing, delete, |_, record| {
        is(State::Deleted)(record);
        assert!(record.owner.is_none() && record.entries.len() > 1, "a tombstone holds its bytes");
        async {}.boxed()
    })
    .await;
    enumerate(
        "undelete",
        |world, node| async { delete(world, node).await.unwrap() }.boxed(),
        |_, node| async { lifecycle::undelete(&node.store, &id("v"), None).await.map(drop) }.boxed(),
        |_, record| {
            is(State::Live)(record);
            async {}.boxed()
        },
    )
    .await;
    enumerate(
        "purge",
        |world, node| {
            async {
                delete(world, node).await.unwrap();
                world.clock.advance(2 * HOUR);
            }
            .boxed()
        },
        |world, node| {
            async {
                let birth = record(node).await?.birth;
                let now = types::Clock::now(&world.clock);
                lifecycle::purge(&node.store, &id("v"), birth, HOUR, now).await.map(drop)
            }
            .boxed()
        },
        |_, record| {
            is(State::Purged)(record);
            assert!(record.entries.is_empty());
            async {}.boxed()
        },
    )
    .await;
}

async fn seal(node: &Node, sealed: &str, kind: RecordKind) -> Result<(), Error> {
    let operation = node.session.begin()?;
    let record = record(node).await?;
    let head = head(&record);
    let manifest = world::reader(&node.store).manifest(&head).await?;
    let packs = manifest.packs.iter().map(|needed| types::PackId::clone(&needed.pack)).collect();
    let entry = cas::references::confirm_version(&operation, &id("v"), &head.version, &packs).await?;
    let new = NewSealed {
        id: id(sealed),
        kind,
        domain: domain(),
        heads: entry.heads,
        origin: None,
        request: request(sealed),
        label: String::new(),
        quota: Quota::default(),
        attributes: Default::default(),
    };
    lifecycle::seal(&operation, new).await.map(drop)
}

#[tokio::test]
async fn templates_bundles_and_snapshots_are_sealed_and_deleted_wherever_it_is_killed() {
    enumerate(
        "a template is sealed and named",
        nothing,
        |_, node| {
            async {
                seal(node, "sealed", RecordKind::Template).await?;
                let name = "app".parse().unwrap();
                names::point(&node.store, NameKind::Template, &name, &id("sealed"), Expected::Any)
                    .await
                    .map(drop)
            }
            .boxed()
        },
        |store, volume| {
            async {
                let sealed = cas::record::get(store, &id("sealed")).await.unwrap().value;
                assert_eq!((sealed.state, sealed.owner), (State::Live, None));
                assert_eq!(head(&sealed).version, head(volume).version);
            }
            .boxed()
        },
    )
    .await;
    // As the hub does it: the name last, so that who repeats it finds what is to go.
    enumerate(
        "a bundle and its name are deleted",
        |_, node| {
            async {
                seal(node, "sealed", RecordKind::Bundle).await.unwrap();
                let name = "app".parse().unwrap();
                names::point(&node.store, NameKind::Bundle, &name, &id("sealed"), Expected::Any)
                    .await
                    .unwrap();
            }
            .boxed()
        },
        |_, node| {
            async {
                let name = "app".parse().unwrap();
                lifecycle::delete(&node.store, &id("sealed"), None, Authority::Unowned).await?;
                names::remove(&node.store, NameKind::Bundle, &name, &id("sealed")).await.map(drop)
            }
            .boxed()
        },
        |store, _| {
            async {
                let sealed = cas::record::get(store, &id("sealed")).await.unwrap().value;
                assert_eq!(sealed.state, State::Deleted);
                let name = "app".parse().unwrap();
                assert_eq!(names::resolve(store, NameKind::Bundle, &name).await.unwrap(), None);
            }
            .boxed()
        },
    )
    .await;
}

#[tokio::test]
async fn a_volume_is_created_published_restored_released_and_taken_wherever_it_is_killed() {
    enumerate(
        "create",
        nothing,
        |_, node| {
            async {
                let new = new_record(&id("new"), &node.session, "new");
                let claim = Claim::of(&lifecycle::begin_create(&node.store, new).await?.into_inner().value);
                let operation = node.session.begin()?;
                let tree = put_flat(&operation, &domain(), &files(&[("x", 2000)], 9), None).await?;
                lifecycle::finish_create(&operation, &claim, Some(data_head(tree)), "").await.map(drop)
            }
            .boxed()
        },
        |store, _| {
            async {
                let new = cas::record::get(store, &id("new")).await.unwrap().value;
                assert_eq!((new.state, new.entries.len()), (State::Live, 1));
            }
            .boxed()
        },
    )
    .await;
    enumerate(
        "publish",
        nothing,
        |_, node| {
            async {
                let record = record(node).await?;
                let next = files(&[("a", 3000), ("b", 3000)], 3);
                node.publish_files(&Claim::of(&record), &head(&record), &next, Role::Sync).await.map(drop)
            }
            .boxed()
        },
        |_, record| {
            assert_eq!(record.entries.len(), 3, "once, whoever heard of it");
            async {}.boxed()
        },
    )
    .await;
    enumerate(
        "restore",
        nothing,
        |_, node| {
            async {
                let operation = node.session.begin()?;
                let record = record(node).await?;
                let first = Target::Entry(record.entries[0].id);
                lifecycle::restore_head(&operation, &Claim::of(&record), &known(&record), first, "")
                    .await
                    .map(drop)
            }
            .boxed()
        },
        |_, record| {
            assert_eq!(head(record), tree(&record.entries[0]));
            let kept = record.branches.values().filter_map(|entry| record.entry(entry));
            assert!(
                kept.into_iter().any(|entry| tree(entry) == tree(&record.entries[1])),
                "the old head is a branch"
            );
            async {}.boxed()
        },
    )
    .await;
    enumerate(
        "release",
        nothing,
        |_, node| {
            async {
                let operation = node.session.begin()?;
                let record = record(node).await?;
                // Releasing leaves the epoch: the claim of before is the one that the record still tells.
                let claim = Claim::of(&record);
                lifecycle::release(&operation, &claim, &known(&record), &record.head_tips()).await.map(drop)
            }
            .boxed()
        },
        |_, record| {
            assert!(record.owner.is_none());
            async {}.boxed()
        },
    )
    .await;
    enumerate(
        "acquire",
        |_, node| {
            async {
                let operation = node.session.begin().unwrap();
                let record = record(node).await.unwrap();
                let claim = Claim::of(&record);
                lifecycle::release(&operation, &claim, &known(&record), &record.head_tips()).await.unwrap();
            }
            .boxed()
        },
        |_, node| async { node.acquire(&id("v")).await.map(drop) }.boxed(),
        |_, record| {
            assert!(record.owner.is_some());
            async {}.boxed()
        },
    )
    .await;
}

#[tokio::test]
async fn what_is_kept_beside_the_line_is_kept_once_wherever_it_is_killed() {
    async fn put(node: &Node, salt: u64) -> Result<(cas::Operation, VersionRef), Error> {
        let operation = node.session.begin()?;
        let tree = put_flat(&operation, &domain(), &files(&[("x", 2000)], salt), None).await?;
        Ok((operation, tree))
    }
    enumerate(
        "a branch is kept",
        nothing,
        |_, node| {
            async {
                let (operation, tree) = put(node, 5).await?;
                let record = record(node).await?;
                let (claim, known) = (Claim::of(&record), known(&record));
                lifecycle::keep_branch(&operation, &claim, &known, data_head(tree), "").await.map(drop)
            }
            .boxed()
        },
        |_, record| {
            assert_eq!((record.branches.len(), record.entries.len()), (1, 3));
            async {}.boxed()
        },
    )
    .await;
    enumerate(
        "an orphan is made",
        nothing,
        |_, node| {
            async {
                let (operation, tree) = put(node, 6).await?;
                let claim = Claim::of(&record(node).await?);
                lifecycle::make_orphan(&operation, &claim, &domain(), data_head(tree), "lost").await.map(drop)
            }
            .boxed()
        },
        |store, _| {
            async {
                let all = cas::record::list(store).await.unwrap();
                let orphans = all.iter().filter(|record| record.value.kind == RecordKind::Orphan);
                assert_eq!(orphans.count(), 1);
            }
            .boxed()
        },
    )
    .await;
    enumerate(
        "a repair names new packs",
        nothing,
        |_, node| {
            async {
                let operation = node.session.begin()?;
                let again = files(&[("a", 3000), ("b", 3000)], 2);
                let tree = put_flat(&operation, &domain(), &again, None).await?;
                let record = record(node).await?;
                let (claim, known) = (Claim::of(&record), known(&record));
                lifecycle::rehome(&operation, &id("v"), Right::Owner(&claim, &known), &tree).await.map(drop)
            }
            .boxed()
        },
        |_, record| {
            assert_ne!(head(record).manifest.pack.seq, 2, "it lies where it was put again");
            assert_eq!(record.entries.len(), 2);
            async {}.boxed()
        },
    )
    .await;
}

#[tokio::test]
async fn a_session_is_joined_followed_and_fenced_wherever_it_is_killed() {
    enumerate(
        "the next session is joined",
        nothing,
        |_, node| {
            async {
                let id = node.session.id();
                let joined =
                    Session::join_next(&node.store, id.pool, id.number, node.session.node(), "").await;
                joined.map(drop)
            }
            .boxed()
        },
        |_, _| async {}.boxed(),
    )
    .await;
    enumerate(
        "the collection is followed",
        |world, _| async { world.condemn(1, []).await }.boxed(),
        |_, node| async { node.session.raise().await.map(drop) }.boxed(),
        |store, _| {
            async {
                let sessions = session::list(store).await.unwrap();
                assert!(sessions.iter().all(|session| session.value.pin == 1));
            }
            .boxed()
        },
    )
    .await;
    enumerate(
        "a session is fenced",
        |world, _| {
            async {
                let other = world.node("b").await;
                drop(other);
            }
            .boxed()
        },
        |_, node| {
            async {
                for found in session::list(&node.store).await? {
                    if found.value.id != node.session.id() {
                        session::fence(&node.store, &found.value.id).await?;
                    }
                }
                Ok(())
            }
            .boxed()
        },
        |store, record| {
            async {
                let sessions = session::list(store).await.unwrap();
                let live =
                    sessions.iter().filter(|session| session.value.state == session::SessionState::Live);
                assert_eq!(live.map(|session| session.value.id).collect::<Vec<_>>(), [record.owner.unwrap()]);
            }
            .boxed()
        },
    )
    .await;
}
