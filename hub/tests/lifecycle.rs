//! What the hub promises about making, copying, finding and deleting volumes.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use orchestrator::{Location, NewFork, NewProject, NodeState, Point, Quota, RecordKind, Role};
use support::{Cluster, eventually, version};
use tonic::Status;
use types::{ByteSize, Classify as _, Kind};

fn named(request: &str) -> NewProject {
    NewProject { request: Some(request.parse().unwrap()), ..NewProject::default() }
}

fn fork(request: &str) -> NewFork {
    NewFork { request: Some(request.parse().unwrap()), ..NewFork::default() }
}

#[tokio::test]
async fn the_same_create_again_is_the_same_volume_and_another_one_is_refused() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let first = projects.create(named("one")).await.unwrap();
    let again = projects.create(named("one")).await.unwrap();
    assert_eq!(first.id, again.id);
    assert_eq!(cluster.node("a").calls("create") + cluster.node("b").calls("create"), 1);
    assert_eq!(first.quota, Some(ByteSize(5 << 30)), "never unlimited unless asked");
    let other = NewProject { quota: Quota::Unlimited, ..named("one") };
    assert_eq!(projects.create(other).await.unwrap_err().kind(), Kind::AlreadyExists);
    let unlimited = projects.create(NewProject { quota: Quota::Unlimited, ..named("two") }).await.unwrap();
    assert_eq!(unlimited.quota, None);
    projects.delete(&first).await.unwrap();
    let gone = projects.create(named("one")).await.unwrap_err();
    assert_eq!(gone.kind(), Kind::AlreadyExists, "{gone}");
}

#[tokio::test]
async fn many_creates_of_one_request_at_once_make_one_volume() {
    let cluster = Cluster::start(&["a", "b"]).await;
    cluster.node("a").delay("create", Duration::from_millis(200));
    let creates = (0..8).map(|_| {
        let projects = cluster.projects();
        tokio::spawn(async move { projects.create(named("one")).await.unwrap().id })
    });
    let mut ids = Vec::new();
    for create in creates.collect::<Vec<_>>() {
        ids.push(create.await.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(cluster.node("a").calls("create") + cluster.node("b").calls("create"), 1);
}

#[tokio::test]
async fn a_create_goes_where_it_was_asked_to_or_says_why_not() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let there = NewProject { node: "b".parse().ok(), ..named("one") };
    assert_eq!(projects.create(there).await.unwrap().node, "b".parse().ok());
    let nowhere = NewProject { node: "c".parse().ok(), ..named("two") };
    let error = projects.create(nowhere).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(error.to_string().contains("node c is not live"), "{error}");
    let hinted = NewProject { node_hint: "c".parse().ok(), ..named("three") };
    projects.create(hinted).await.unwrap();
}

#[tokio::test]
async fn a_create_that_one_node_refuses_is_made_by_another() {
    let cluster = Cluster::start(&["a", "b"]).await;
    cluster.node("a").fail("create", 9, Status::resource_exhausted("the pool is full"));
    let made = cluster.projects().create(named("one")).await.unwrap();
    assert_eq!(made.node, "b".parse().ok());
    cluster.node("b").fail("create", 9, Status::resource_exhausted("the pool is full"));
    let error = cluster.projects().create(named("two")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::ResourceExhausted);
    assert!(error.to_string().contains("the pool is full"), "{error}");
}

#[tokio::test]
async fn a_create_whose_answer_was_lost_is_finished_by_its_maker() {
    let cluster = Cluster::start(&["a", "b"]).await;
    cluster.node("a").lose_answer("create");
    let made = cluster.projects().create(named("one")).await.unwrap();
    assert_eq!(made.node, "a".parse().ok());
    assert_eq!(cluster.node("b").calls("create"), 0, "the record says who made it");
}

#[tokio::test]
async fn a_project_begins_with_its_template() {
    let cluster = Cluster::start(&["a"]).await;
    let projects = cluster.projects();
    let missing = NewProject { template: "node".parse().ok(), ..named("one") };
    let error = projects.create(missing.clone()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    let old = support::node::template(&cluster.store, "node", "node 20").await;
    let id = support::node::template(&cluster.store, "node", "node 22").await;
    let made = projects.create(missing).await.unwrap();
    assert_eq!(cluster.node("a").live(&made.id).unwrap(), "node 22");
    assert_eq!(made.origin.clone().unwrap().volume, id);
    assert_eq!(made.quota, Some(ByteSize(5 << 30)));
    let template = projects.template(&"node".parse().unwrap()).await.unwrap();
    assert_eq!((template.volume, template.version), (id.clone(), Some(version("node 22"))));
    assert_eq!(projects.templates().await.unwrap().len(), 1);
    let list = projects.list(None).await.unwrap();
    assert!(list.iter().any(|project| project.id == old && project.kind == RecordKind::Template));
    let error = projects.wake(&id, &[]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    // The older one's name belongs to the newer one: it stays.
    projects.delete(&old).await.unwrap();
    assert_eq!(projects.templates().await.unwrap().len(), 1);
    let error = projects.delete(&id).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    assert!(error.to_string().contains(made.id.as_str()), "who uses it is said: {error}");
    assert_eq!(projects.templates().await.unwrap().len(), 1, "its name still leads to it");
    projects.delete(&made.id).await.unwrap();
    projects.delete(&id).await.unwrap();
    assert!(projects.templates().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_fork_holds_what_its_source_holds_now_and_stands_beside_it() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let quota = Quota::Bytes(ByteSize(1 << 30));
    let source = projects.create(NewProject { node: "b".parse().ok(), quota, ..named("one") }).await.unwrap();
    cluster.node("b").write(&source.id, "written");
    let copy = projects.fork(&source, fork("copy")).await.unwrap();
    assert_eq!((copy.node, copy.version), ("b".parse().ok(), Some(version("written"))));
    assert_eq!(copy.quota, Some(ByteSize(1 << 30)));
    assert_eq!(copy.origin.unwrap().volume, source.id);
    // A retry later is the same fork, whatever the source holds by then.
    cluster.node("b").write(&source.id, "later");
    let again = projects.fork(&source, fork("copy")).await.unwrap();
    assert_eq!((again.id, again.version), (copy.id, Some(version("written"))));
    let error = projects.create(named("copy")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::AlreadyExists, "{error}");
}

#[tokio::test]
async fn a_fork_of_a_point_of_a_sleeping_source_needs_no_waking() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let source = projects.create(NewProject { node: "a".parse().ok(), ..named("one") }).await.unwrap();
    cluster.node("a").write(&source.id, "first");
    let first = projects.snapshot(&source, "first").await.unwrap();
    cluster.node("a").write(&source.id, "second");
    projects.hibernate(&source).await.unwrap();
    let at = |at: Option<Point>, request: &str| NewFork { at, ..fork(request) };
    let old = projects.fork(&source, at(Some(Point::Entry(first.id)), "f1")).await.unwrap();
    assert_eq!(old.version, Some(version("first")));
    let same = projects.fork(&source, at(Some(Point::Version(version("first"))), "f2")).await.unwrap();
    assert_eq!(same.version, Some(version("first")));
    let present = projects.fork(&source, at(None, "f3")).await.unwrap();
    assert_eq!(present.version, Some(version("second")));
    assert!(matches!(projects.locate(&source).await.unwrap(), Location::Asleep { .. }));
    let nothing = at(Some(Point::Version(version("never"))), "f4");
    assert_eq!(projects.fork(&source, nothing).await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn a_snapshot_stands_on_the_timeline_and_can_be_gone_back_to() {
    let cluster = Cluster::start(&["a"]).await;
    let projects = cluster.projects();
    let shop = projects.create(named("one")).await.unwrap();
    cluster.node("a").write(&shop.id, "v1");
    let first = projects.snapshot(&shop, "before").await.unwrap();
    assert_eq!((first.role, first.label.as_str(), first.head), (Role::Manual, "before", true));
    cluster.node("a").write(&shop.id, "v2");
    assert!(projects.get(&shop).await.unwrap().dirty);
    let synced = projects.sync(&shop).await.unwrap();
    assert!(synced.changed && synced.version == version("v2"));
    assert!(!projects.sync(&shop).await.unwrap().changed);
    assert!(!projects.get(&shop).await.unwrap().dirty);
    let restored = projects.restore(&shop, Point::Entry(first.id)).await.unwrap();
    assert_eq!(restored.version, version("v1"));
    assert_eq!(cluster.node("a").live(&shop.id).unwrap(), "v1");
    let timeline = projects.timeline(&shop, 100).await.unwrap();
    assert!(timeline[0].head && timeline[0].version == version("v1"));
    assert_eq!(timeline[1].branch, restored.branch, "the present state was kept");
    assert_eq!(timeline[1].version, version("v2"));
    assert_eq!(projects.timeline(&shop, 2).await.unwrap(), timeline[..2]);
    // A sync comes between the hub's look and the node's: it looks again, and the order is decided anew.
    cluster.node("a").write(&shop.id, "fourth");
    cluster.node("a").delay("restore", Duration::from_millis(300));
    let before = cluster.node("a").calls("restore");
    let restore = {
        let (projects, shop) = (projects.clone(), shop.clone());
        tokio::spawn(async move { projects.restore(&shop, Point::Entry(first.id)).await.unwrap() })
    };
    eventually("the order is on its way", async || cluster.node("a").calls("restore") > before).await;
    projects.sync(&shop).await.unwrap();
    assert_eq!(restore.await.unwrap().version, version("v1"));
    assert_eq!(cluster.node("a").calls("restore"), before + 2);
    let unknown = Point::Entry("00".repeat(32).parse().unwrap());
    assert_eq!(projects.restore(&shop, unknown).await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn a_timeline_pages_without_gaps() {
    let cluster = Cluster::start(&["a"]).await;
    let projects = cluster.projects();
    let shop = projects.create(named("one")).await.unwrap();
    for step in 0..4 {
        cluster.node("a").write(&shop.id, &format!("v{step}"));
        projects.snapshot(&shop, format!("v{step}")).await.unwrap();
    }
    let all = projects.timeline(&shop, 100).await.unwrap();
    let mut paged = Vec::new();
    let mut page_token = String::new();
    loop {
        let request =
            proto::hub::ListEntriesRequest { volume_id: shop.id.to_string(), page_size: 2, page_token };
        let page = cluster.client().list_entries(request).await.unwrap().into_inner();
        assert!(page.entries.len() <= 2);
        paged.extend(page.entries.into_iter().map(|entry| entry.entry_id));
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    assert_eq!(paged, all.iter().map(|entry| entry.id.to_string()).collect::<Vec<_>>());
    let garbage = proto::hub::ListEntriesRequest {
        volume_id: shop.id.to_string(),
        page_size: 2,
        page_token: "x".into(),
    };
    let error = cluster.client().list_entries(garbage).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn a_delete_works_awake_and_asleep_and_twice() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let awake = projects.create(named("one")).await.unwrap();
    let asleep = projects.create(named("two")).await.unwrap();
    projects.hibernate(&asleep).await.unwrap();
    for project in [&awake, &asleep] {
        projects.delete(project).await.unwrap();
        projects.delete(project).await.unwrap();
        assert_eq!(projects.get(project).await.unwrap_err().kind(), Kind::NotFound);
    }
    assert!(projects.list(None).await.unwrap().is_empty());
    projects.delete(&"never-was".parse::<orchestrator::VolumeRef>().unwrap()).await.unwrap();
    projects.delete(&"Never.Was".parse::<orchestrator::VolumeRef>().unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_unique_name_stands_for_its_id_and_a_common_one_is_refused() {
    let cluster = Cluster::start(&["a"]).await;
    let projects = cluster.projects();
    let name = |name: &str, request: &str| NewProject { name: name.parse().ok(), ..named(request) };
    let shop = projects.create(name("My.Shop", "one")).await.unwrap();
    assert_eq!(shop.name, "My.Shop");
    let by_name: orchestrator::VolumeRef = "My.Shop".parse().unwrap();
    assert_eq!(projects.get(&by_name).await.unwrap().id, shop.id);
    let other = projects.create(name("My.Shop", "two")).await.unwrap();
    let error = projects.get(&by_name).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    projects.delete(&other).await.unwrap();
    assert_eq!(projects.get(&by_name).await.unwrap().id, shop.id);
    for hostile in ["../../x", "a/b", "a\0b", "/abs", "", &"x".repeat(4096)] {
        let request = proto::hub::GetVolumeRequest { volume_id: hostile.to_owned(), ..Default::default() };
        let error = cluster.client().get_volume(request).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{hostile:?}");
    }
}

#[tokio::test]
async fn a_list_pages_without_gaps_while_volumes_come_and_go() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let mut ids = Vec::new();
    for number in 0..7 {
        let node = if number % 2 == 0 { "a" } else { "b" };
        let new = NewProject { node: node.parse().ok(), ..named(&format!("r{number}")) };
        ids.push(projects.create(new).await.unwrap().id);
    }
    ids.sort();
    let mut seen = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = proto::hub::ListVolumesRequest { page_size: 2, page_token, ..Default::default() };
        let page = cluster.client().list_volumes(request).await.unwrap().into_inner();
        seen.extend(page.volumes.into_iter().map(|volume| volume.volume_id));
        if seen.len() == 2 {
            // What was listed already goes away: the rest is neither skipped nor shown twice.
            projects.delete(&ids[0]).await.unwrap();
        }
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    assert_eq!(seen, ids.iter().map(ToString::to_string).collect::<Vec<_>>());
    let on_b = projects.list("b".parse().ok().as_ref()).await.unwrap();
    assert!(on_b.len() == 3 && on_b.iter().all(|project| project.node == "b".parse().ok()));
    let request = proto::hub::ListVolumesRequest { page_token: "../x".into(), ..Default::default() };
    let error = cluster.client().list_volumes(request).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn one_operation_at_a_time_and_the_other_is_told_aborted() {
    let cluster = Cluster::start(&["a"]).await;
    let projects = cluster.projects();
    let shop = projects.create(named("one")).await.unwrap();
    cluster.node("a").write(&shop.id, "v1");
    let first = projects.snapshot(&shop, "").await.unwrap();
    cluster.node("a").delay("restore", Duration::from_millis(800));
    let restoring = {
        let (projects, shop) = (projects.clone(), shop.clone());
        tokio::spawn(async move { projects.restore(&shop, Point::Entry(first.id)).await })
    };
    eventually("the restore began", async || cluster.node("a").calls("restore") == 1).await;
    assert_eq!(projects.delete(&shop).await.unwrap_err().kind(), Kind::Aborted);
    assert_eq!(projects.hibernate(&shop).await.unwrap_err().kind(), Kind::Aborted);
    restoring.await.unwrap().unwrap();
    projects.delete(&shop).await.unwrap();
}

#[tokio::test]
async fn attributes_and_status_are_told() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let attributes = BTreeMap::from([("tier".to_owned(), "pro".to_owned())]);
    let shop = projects.create(NewProject { attributes, ..named("one") }).await.unwrap();
    assert_eq!(shop.attributes["tier"], "pro");
    assert_eq!(shop.name, shop.id.to_string(), "a volume without a name is called by its id");
    assert!(shop.path.ends_with("/data"));
    let status = projects.hub_status().await.unwrap();
    assert_eq!((status.nodes_live, status.volumes), (2, 1));
    assert_eq!(status.store_id, Some(cluster.store.id()));
    assert!(status.checks.iter().all(|check| check.ok), "{:?}", status.checks);
    let nodes = projects.nodes().await.unwrap();
    assert_eq!(nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(nodes.iter().all(|node| node.state == NodeState::Live && node.capacity.is_some()));
    let located = projects.locate(&shop).await.unwrap();
    let Location::Cached { node, address, .. } = located else { panic!("{located:?}") };
    assert_eq!(address, cluster.node(node.as_str()).address.to_string());
}

#[tokio::test]
async fn a_unique_name_is_one_volume_until_that_is_deleted() {
    let cluster = Cluster::start(&["a"]).await;
    let mut client = cluster.client();
    let request = || proto::hub::CreateVolumeRequest { unique_name: "pvc / 1".into(), ..Default::default() };
    let first = client.create_volume(request()).await.unwrap().into_inner();
    let again = client.create_volume(request()).await.unwrap().into_inner();
    assert_eq!(first.volume_id, again.volume_id);
    let by_name = proto::hub::GetVolumeRequest { unique_name: "pvc / 1".into(), ..Default::default() };
    assert_eq!(client.get_volume(by_name.clone()).await.unwrap().into_inner().volume_id, first.volume_id);
    let gone = proto::hub::DeleteVolumeRequest { volume_id: first.volume_id.clone(), ..Default::default() };
    client.delete_volume(gone).await.unwrap();
    assert_eq!(client.get_volume(by_name).await.unwrap_err().code(), tonic::Code::NotFound);
    let next = client.create_volume(request()).await.unwrap().into_inner();
    assert_ne!(next.volume_id, first.volume_id, "an id is never used twice");
}

#[tokio::test]
async fn attributes_are_set_where_others_are_as_expected() {
    let cluster = Cluster::start(&["a"]).await;
    let shop = cluster.projects().create(named("one")).await.unwrap();
    let mut client = cluster.client();
    let set = |expected: &str, wanted: &str| proto::hub::SetAttributesRequest {
        volume_id: shop.id.to_string(),
        attributes: [("held-by".to_owned(), wanted.to_owned())].into(),
        expected: [("held-by".to_owned(), expected.to_owned())].into(),
    };
    let held = client.set_attributes(set("", "pod-1")).await.unwrap().into_inner();
    assert_eq!(held.attributes["held-by"], "pod-1");
    let error = client.set_attributes(set("", "pod-2")).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition, "{error}");
    let free = client.set_attributes(set("pod-1", "")).await.unwrap().into_inner();
    assert!(!free.attributes.contains_key("held-by"));
    let listed = |attribute: &str| proto::hub::ListVolumesRequest {
        attribute: attribute.into(),
        ..Default::default()
    };
    client.set_attributes(set("", "pod-2")).await.unwrap();
    assert_eq!(client.list_volumes(listed("held-by")).await.unwrap().into_inner().volumes.len(), 1);
    assert!(client.list_volumes(listed("other")).await.unwrap().into_inner().volumes.is_empty());
}
