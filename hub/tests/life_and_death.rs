//! What the hub promises when nodes, hubs and answers go away.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use cas::objects::{DirStore, Objects};
use cas::session::SessionState;
use orchestrator::{Health, Location, NewFork, NewProject, NodeState, Point, Project, Projects};
use support::{Cluster, TIMINGS, eventually, version};
use tonic::{Code, Status};
use types::{Classify, Kind, NodeName};

async fn project_on(projects: &Projects, node: &str, request: &str) -> Project {
    let new = NewProject {
        request: Some(request.parse().unwrap()),
        node: node.parse().ok(),
        ..NewProject::default()
    };
    projects.create(new).await.unwrap()
}

fn on(node: &str) -> Vec<NodeName> {
    vec![node.parse().unwrap()]
}

async fn epoch(projects: &Projects, project: &Project) -> u64 {
    projects.get(project).await.unwrap().epoch.0
}

/// What a call is refused with once a node that was just killed is known to be dead. It does not answer at first; then
/// it is silent and waited for, and the caller is told to come again.
async fn verdict<E: Classify>(refused: impl AsyncFn() -> E) -> E {
    assert_eq!(refused().await.kind(), Kind::Unavailable);
    eventually("it is known to be dead", async || refused().await.kind() != Kind::Unavailable).await;
    refused().await
}

#[tokio::test]
async fn a_volume_of_a_dead_node_is_taken_over_with_its_last_durable_state() {
    let mut cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let shop = project_on(&projects, "a", "one").await;
    cluster.node("a").write(&shop.id, "durable");
    projects.sync(&shop).await.unwrap();
    cluster.node("a").write(&shop.id, "not durable");
    cluster.node("a").kill();
    // Nothing else may take it over: it would lose what was not durable, and nobody asked for that.
    let error = verdict(async || projects.sync(&shop).await.unwrap_err()).await;
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    let error = projects.hibernate(&shop).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    let unreachable = projects.get(&shop).await.unwrap();
    assert_eq!(unreachable.health, Health::OwnerUnreachable);
    assert!(matches!(projects.locate(&shop).await.unwrap(), Location::OwnerUnreachable { .. }));
    let nodes = projects.nodes().await.unwrap();
    assert_eq!(nodes[0].state, NodeState::Dead);
    let woken = projects.wake(&shop, &[]).await.unwrap();
    assert_eq!((woken.node.as_str(), woken.version), ("b", Some(version("durable"))));
    assert!(woken.taken_over && woken.last_durable.is_some());
    assert_eq!(cluster.node("b").live(&shop.id).unwrap(), "durable");
    let dead = cluster.node("a").session.id();
    let session = cas::session::read(&cluster.store, &dead).await.unwrap().unwrap().value;
    assert_eq!(session.state, SessionState::Fenced);
    let again = projects.wake(&shop, &[]).await.unwrap();
    assert!(!again.taken_over);
    // The dead one comes back with a new session, and cannot publish what it held.
    cluster.nodes[0].restart().await;
    assert_ne!(cluster.node("a").session.id(), dead);
    cluster.heard("a").await;
    assert_eq!(projects.get(&shop).await.unwrap().node, "b".parse().ok());
}

#[tokio::test]
async fn a_copy_of_the_present_is_never_an_older_state_because_the_owner_died() {
    let mut cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let shop = project_on(&projects, "a", "one").await;
    cluster.node("a").write(&shop.id, "durable");
    projects.sync(&shop).await.unwrap();
    cluster.node("a").write(&shop.id, "acknowledged");
    cluster.node("a").kill();
    let fork = |at: Option<Point>, request: &str| NewFork {
        request: Some(request.parse().unwrap()),
        at,
        ..NewFork::default()
    };
    let error = verdict(async || projects.fork(&shop, fork(None, "copy")).await.unwrap_err()).await;
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    assert!(error.to_string().contains("name an entry or version"), "{error}");
    let seal = |name: &str| proto::hub::SealVolumeRequest {
        volume_id: shop.id.to_string(),
        request_id: name.to_owned(),
        kind: proto::node::RecordKind::Snapshot.into(),
        ..proto::hub::SealVolumeRequest::default()
    };
    let error = cluster.client().seal_volume(seal("snap")).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    // Who asks for the durable state gets it, without its owner.
    let durable = projects.fork(&shop, fork(Some(Point::Version(version("durable"))), "old")).await.unwrap();
    assert_eq!((durable.node, durable.version), ("b".parse().ok(), Some(version("durable"))));
    cluster.nodes[0].restart().await;
    cluster.heard("a").await;
    let copy = projects.fork(&shop, fork(None, "copy")).await.unwrap();
    assert_eq!(copy.version, Some(version("acknowledged")));
}

#[tokio::test]
async fn a_fenced_owner_that_is_back_is_waited_for_and_not_passed_over() {
    let mut cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let shop = project_on(&projects, "a", "one").await;
    cluster.node("a").write(&shop.id, "acknowledged");
    cluster.node("a").kill();
    cas::session::fence(&cluster.store, &cluster.node("a").session.id()).await.unwrap();
    let new = || NewFork { request: Some("copy".parse().unwrap()), ..NewFork::default() };
    eventually("it is seen to be fenced", async || {
        projects.fork(&shop, new()).await.unwrap_err().kind() == Kind::FailedPrecondition
    })
    .await;
    cluster.nodes[0].restart().await;
    cluster.heard("a").await;
    // It has not taken its volume again yet.
    let error = projects.fork(&shop, new()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_node_that_only_the_hub_does_not_hear_keeps_its_volumes() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let shop = project_on(&projects, "a", "one").await;
    cluster.node("a").cut_from_hub();
    eventually("it is missed", async || projects.nodes().await.unwrap()[0].state == NodeState::Suspect).await;
    let error = projects.wake(&shop, &on("b")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert_eq!(cluster.node("b").calls("acquire"), 0);
    let session = cas::session::read(&cluster.store, &cluster.node("a").session.id()).await.unwrap().unwrap();
    assert_eq!(session.value.state, SessionState::Live);
}

#[tokio::test]
async fn w05_a_restart_of_a_node_moves_nothing() {
    let mut cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let shop = project_on(&projects, "a", "one").await;
    let before = epoch(&projects, &shop).await;
    cluster.node("a").write(&shop.id, "written before");
    for _ in 0..3 {
        cluster.nodes[0].restart().await;
        let woken = projects.wake(&shop, &[]).await.unwrap();
        assert_eq!((woken.node.as_str(), woken.epoch.0, woken.taken_over), ("a", before, false));
    }
    assert_eq!(cluster.node("a").live(&shop.id).unwrap(), "written before");
}

#[tokio::test]
async fn a_hub_without_memory_finds_everything_again_and_moves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let objects: Arc<dyn Objects> =
        Arc::new(DirStore::create_or_open(&directory.path().join("store")).await.unwrap());
    let mut cluster = Cluster::start_on(objects, &["a", "b"]).await;
    let projects = cluster.projects();
    let shop = project_on(&projects, "a", "one").await;
    let asleep = project_on(&projects, "b", "two").await;
    projects.hibernate(&asleep).await.unwrap();
    cluster.replace_hub().await;
    let projects = cluster.projects();
    // At once, while no node has dialed in: complete, because the store is asked.
    assert_eq!(projects.list(None).await.unwrap().len(), 2);
    let synced = projects.sync(&shop).await.unwrap();
    assert_eq!(synced.epoch, shop.epoch);
    assert_eq!(project_on(&projects, "a", "one").await.id, shop.id, "a retry of a create finds it");
    assert_eq!(cluster.node("a").calls("create"), 1);
    assert!(matches!(projects.locate(&asleep).await.unwrap(), Location::Asleep { .. }));
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    assert_eq!((a.calls("acquire"), b.calls("acquire")), (0, 0));
}

#[tokio::test]
async fn a_hub_that_just_started_declares_nobody_dead_and_finds_a_dead_node_in_the_end() {
    let mut cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let shop = project_on(&projects, "a", "one").await;
    cluster.node("a").kill();
    cluster.replace_hub().await;
    cluster.heard("b").await;
    let projects = cluster.projects();
    let began = std::time::Instant::now();
    let woken = projects.wake(&shop, &[]).await.unwrap();
    assert_eq!((woken.node.as_str(), woken.taken_over), ("b", true));
    assert!(began.elapsed() + Duration::from_millis(500) >= TIMINGS.dead, "{:?}", began.elapsed());
}

#[tokio::test]
async fn callers_at_once_wake_a_volume_once_and_all_hear_of_it() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let shop = project_on(&projects, "a", "one").await;
    projects.hibernate(&shop).await.unwrap();
    for node in ["a", "b"] {
        cluster.node(node).delay("acquire", Duration::from_millis(300));
    }
    let wakes: Vec<_> = (0..16)
        .map(|_| {
            let (projects, shop) = (projects.clone(), shop.clone());
            tokio::spawn(async move { projects.wake(&shop, &[]).await.unwrap() })
        })
        .collect();
    eventually("it shows as on its way", async || {
        matches!(projects.locate(&shop).await.unwrap(), Location::Restoring { node: Some(_) })
    })
    .await;
    let mut answers = Vec::new();
    for wake in wakes {
        answers.push(wake.await.unwrap());
    }
    assert!(answers.iter().all(|answer| answer == &answers[0]), "{answers:?}");
    assert_eq!(cluster.node("a").calls("acquire") + cluster.node("b").calls("acquire"), 1);
}

#[tokio::test]
async fn callers_with_other_candidates_get_theirs_one_after_the_other() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let shop = project_on(&projects, "a", "one").await;
    cluster.node("b").delay("acquire", Duration::from_millis(200));
    let to_b = {
        let (projects, shop) = (projects.clone(), shop.clone());
        tokio::spawn(async move { projects.wake(&shop, &on("b")).await.unwrap() })
    };
    eventually("the move began", async || cluster.node("b").calls("acquire") > 0).await;
    let to_a = projects.wake(&shop, &on("a")).await.unwrap();
    assert_eq!(to_b.await.unwrap().node.as_str(), "b");
    assert_eq!(to_a.node.as_str(), "a");
}

#[tokio::test]
async fn a_caller_that_leaves_does_not_stop_a_wake_and_its_retry_joins() {
    let cluster = Cluster::start(&["a"]).await;
    let projects = cluster.projects();
    let shop = project_on(&projects, "a", "one").await;
    projects.hibernate(&shop).await.unwrap();
    cluster.node("a").delay("acquire", Duration::from_millis(600));
    let hasty = projects.clone().with_timeout(Duration::from_millis(100));
    let error = hasty.wake(&shop, &[]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded, "{error}");
    let woken = projects.wake(&shop, &[]).await.unwrap();
    assert_eq!(woken.node.as_str(), "a");
    assert_eq!(cluster.node("a").calls("acquire"), 1);
}

#[tokio::test]
async fn a_move_takes_everything_along() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let shop = project_on(&projects, "a", "one").await;
    cluster.node("a").write(&shop.id, "not synced yet");
    let moved = projects.move_to(&shop, &"b".parse().unwrap()).await.unwrap();
    assert_eq!((moved.node, moved.epoch.0), ("b".parse().ok(), shop.epoch.0 + 1));
    assert_eq!(cluster.node("b").live(&shop.id).unwrap(), "not synced yet");
    assert_eq!(cluster.node("a").live(&shop.id), None);
    assert_eq!(cluster.node("b").calls("prefetch"), 1);
    projects.move_to(&shop, &"b".parse().unwrap()).await.unwrap();
    assert_eq!(cluster.node("b").calls("acquire"), 1, "it is there already");
    let error = projects.move_to(&shop, &"z".parse().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
}

#[tokio::test]
async fn a_move_that_fails_leaves_the_volume_with_its_owner() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let shop = project_on(&projects, "a", "one").await;
    cluster.node("a").write(&shop.id, "mine");
    let b: NodeName = "b".parse().unwrap();
    cluster.node("b").fail("prefetch", 1, Status::failed_precondition("no"));
    projects.move_to(&shop, &b).await.unwrap_err();
    assert_eq!(cluster.node("a").calls("release"), 0, "nothing was given up");
    cluster.node("b").fail("acquire", 1, Status::failed_precondition("the pool is read-only"));
    let error = projects.move_to(&shop, &b).await.unwrap_err();
    assert!(error.to_string().contains("the pool is read-only"), "{error}");
    assert_eq!(cluster.node("a").live(&shop.id).unwrap(), "mine");
    assert_eq!(projects.get(&shop).await.unwrap().node, "a".parse().ok());
    // Both fail: it sleeps whole in the store, and says so; then it wakes.
    cluster.node("b").fail("acquire", 1, Status::failed_precondition("no"));
    cluster.node("a").fail("acquire", 1, Status::failed_precondition("no either"));
    let error = projects.move_to(&shop, &b).await.unwrap_err();
    assert!(error.to_string().contains("sleeps in the store"), "{error}");
    assert_eq!(projects.get(&shop).await.unwrap().health, Health::Asleep);
    projects.wake(&shop, &on("b")).await.unwrap();
    assert_eq!(cluster.node("b").live(&shop.id).unwrap(), "mine");
}

#[tokio::test]
async fn a_move_whose_answer_was_lost_is_found_done() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let shop = project_on(&projects, "a", "one").await;
    cluster.node("b").lose_answer("acquire");
    let moved = projects.move_to(&shop, &"b".parse().unwrap()).await.unwrap();
    assert_eq!(moved.node, "b".parse().ok());
    assert_eq!(cluster.node("a").calls("acquire"), 0);
}

#[tokio::test]
async fn a_mounted_volume_stays_where_it_is() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let shop = project_on(&projects, "a", "one").await;
    cluster.node("a").disk.lock().unwrap().copies.get_mut(&shop.id).unwrap().mounted = true;
    for error in [
        projects.move_to(&shop, &"b".parse().unwrap()).await.map(drop).unwrap_err(),
        projects.hibernate(&shop).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    }
    assert_eq!(projects.get(&shop).await.unwrap().node, "a".parse().ok());
}

#[tokio::test]
async fn a_wake_finds_another_node_where_the_best_one_is_full() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let shop = project_on(&projects, "a", "one").await;
    projects.hibernate(&shop).await.unwrap();
    cluster.node("a").fail("acquire", 9, Status::resource_exhausted("full"));
    assert_eq!(projects.wake(&shop, &[]).await.unwrap().node.as_str(), "b");
    projects.hibernate(&shop).await.unwrap();
    let error = projects.wake(&shop, &on("a")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::ResourceExhausted, "{error}");
    let error = projects.wake(&shop, &on("z")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
}

#[tokio::test]
async fn a_budget_moves_a_volume_to_where_it_fits_or_says_what_there_is() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let shop = project_on(&projects, "a", "one").await;
    let ask = |cpu: u64, memory_gib: u64, candidates: &[&str]| proto::hub::EnsureCachedRequest {
        volume_id: shop.id.to_string(),
        candidates: candidates.iter().map(ToString::to_string).collect(),
        budget_cpu_millis: cpu,
        budget_memory_bytes: memory_gib << 30,
    };
    let error = cluster.client().ensure_cached(ask(1, 0, &[])).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert!(error.message().contains("a has not said yet; b has not said yet"), "{error}");
    for (node, cpu, memory) in [("a", 500, 16), ("b", 4_000, 4)] {
        cluster.node(node).disk.lock().unwrap().compute = Some(proto::node::Compute {
            cpu_millis: 8_000,
            available_cpu_millis: cpu,
            memory_bytes: 32 << 30,
            available_memory_bytes: memory << 30,
        });
        let name = node.parse().unwrap();
        eventually("the hub was told", async || {
            cluster.hub.hub.nodes.live_by_name(&name).is_some_and(|node| node.free().is_some())
        })
        .await;
    }
    let answer = cluster.client().ensure_cached(ask(500, 16, &[])).await.unwrap().into_inner();
    assert_eq!(answer.node, "a", "it is there and fits");
    let answer = cluster.client().ensure_cached(ask(2_000, 4, &[])).await.unwrap().into_inner();
    assert_eq!(answer.node, "b", "it does not fit where it is");
    for (cpu, memory, candidates, said) in [
        (
            2_000,
            8,
            &[][..],
            "no node has 2.000 CPU and 8.0 GiB of memory free: a has 0.500 CPU and 16.0 GiB of memory; b has",
        ),
        (2_000, 4, &["a"][..], "a has 0.500 CPU and 16.0 GiB of memory"),
    ] {
        let error = cluster.client().ensure_cached(ask(cpu, memory, candidates)).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert!(error.message().contains(said), "{error}");
    }
    assert_eq!(projects.get(&shop).await.unwrap().node, "b".parse().ok(), "nothing moved");
}

#[tokio::test]
async fn a_create_whose_node_died_half_way_is_finished_by_another() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    // The record is there and its maker is gone before the first version.
    let request: types::RequestId = "one".parse().unwrap();
    let id = types::VolumeId::for_request("vol", &request);
    let a = cluster.node("a");
    let new = cas::record::NewRecord {
        id: id.clone(),
        kind: cas::RecordKind::Volume,
        domain: types::Domain::default_domain(),
        owner: a.session.id(),
        node: a.name.clone(),
        origin: None,
        request: request.clone(),
        quota: cas::record::Quota::default(),
        attributes: std::collections::BTreeMap::new(),
    };
    cas::lifecycle::begin_create(&cluster.store, new).await.unwrap();
    a.kill();
    assert!(projects.list(None).await.unwrap().is_empty(), "nobody was told that it exists");
    assert_eq!(projects.get(&id).await.unwrap_err().kind(), Kind::Aborted);
    let made = projects.create(NewProject { request: Some(request), ..NewProject::default() }).await.unwrap();
    assert_eq!((made.id, made.node), (id, "b".parse().ok()));
}

#[tokio::test]
async fn a_volume_of_a_dead_node_can_be_deleted() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let shop = project_on(&projects, "a", "one").await;
    cluster.node("a").kill();
    projects.delete(&shop).await.unwrap();
    assert_eq!(projects.get(&shop).await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn a_fenced_session_is_told_so_whether_it_is_attached_or_comes_back() {
    let cluster = Cluster::start(&["a"]).await;
    let a = cluster.node("a");
    cas::session::fence(&cluster.store, &a.session.id()).await.unwrap();
    eventually("an attached node is told", async || *a.told_fenced.borrow()).await;
    let nodes = cluster.projects().nodes().await.unwrap();
    assert_eq!(nodes[0].state, NodeState::Dead);
}

#[tokio::test]
async fn a_stream_that_is_no_nodes_is_refused_with_the_reason() {
    use proto::hub::{AttachRequest, Heartbeat, Hello, attach_request};
    let cluster = Cluster::start(&["a"]).await;
    let a = cluster.node("a");
    let hello = Hello {
        node: "a".into(),
        session: a.session.id().to_string(),
        address: a.address.to_string(),
        store_id: cluster.store.id().to_string(),
        ..Hello::default()
    };
    let elsewhere = types::StoreId::random().to_string();
    let unknown = types::SessionId { pool: types::PoolId::random(), number: 1 };
    let node = "a".parse().unwrap();
    let clone =
        cas::Session::join_next(&cluster.store, types::PoolId::random(), 0, &node, "h").await.unwrap();
    let table = [
        (attach_request::Message::Heartbeat(Heartbeat::default()), Code::InvalidArgument, "hello"),
        (
            attach_request::Message::Hello(Hello { store_id: elsewhere, ..hello.clone() }),
            Code::FailedPrecondition,
            "store",
        ),
        (
            attach_request::Message::Hello(Hello { session: unknown.to_string(), ..hello.clone() }),
            Code::FailedPrecondition,
            "session",
        ),
        (
            attach_request::Message::Hello(Hello { session: String::new(), ..hello.clone() }),
            Code::InvalidArgument,
            "session",
        ),
        (
            attach_request::Message::Hello(Hello { node: "../x".into(), ..hello.clone() }),
            Code::InvalidArgument,
            "node",
        ),
        (
            attach_request::Message::Hello(Hello { session: clone.id().to_string(), ..hello }),
            Code::AlreadyExists,
            "--node",
        ),
    ];
    for (message, code, word) in table {
        let messages = tokio_stream::iter([AttachRequest { message: Some(message) }]);
        let mut answers = cluster.client().attach(messages).await.unwrap().into_inner();
        let status = answers.message().await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(word), "{status}");
    }
}
