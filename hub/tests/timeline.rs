//! What the hub promises about points in time: branches, pins, entries in pages, bundles and templates.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use orchestrator::{FORKED_FROM, NewFork, NewInstall, NewProject, Point, RecordKind, Role};
use support::{Cluster, version};
use types::{Classify as _, Kind, ResourceName};

fn named(name: &str) -> NewProject {
    NewProject { request: Some(name.parse().unwrap()), name: name.parse().ok(), ..NewProject::default() }
}

fn name(text: &str) -> ResourceName {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_branch_is_made_moved_and_removed_and_holds_its_entry() {
    let cluster = Cluster::start(&["a"]).await;
    let projects = cluster.projects();
    let shop = projects.create(named("shop")).await.unwrap();
    let mut entries = Vec::new();
    for number in 0..8 {
        cluster.node("a").write(&shop.id, &format!("v{number}"));
        entries.push(projects.snapshot(&shop, format!("{number}")).await.unwrap());
        if number == 0 {
            let at = Some(Point::Entry(entries[0].id));
            assert_eq!(projects.set_branch(&shop, "golden", at, false).await.unwrap().id, entries[0].id);
        }
    }
    // Manual entries roll; what is named stays.
    let left = projects.timeline(&shop, 100).await.unwrap();
    let manual = left.iter().filter(|entry| entry.role == Role::Manual).count();
    assert_eq!(manual, 6, "the newest five and the one that has a name");
    let golden = left.iter().find(|entry| entry.branch.as_deref() == Some("golden")).unwrap();
    assert_eq!(golden.id, entries[0].id);

    let head = Some(Point::Version(version("v7")));
    let taken = projects.set_branch(&shop, "golden", head, false).await.unwrap_err();
    assert_eq!(taken.kind(), Kind::AlreadyExists, "{taken}");
    assert_eq!(projects.set_branch(&shop, "golden", head, true).await.unwrap().id, entries[7].id);
    projects.set_branch(&shop, "golden", head, false).await.unwrap();
    assert_eq!(projects.get(&shop).await.unwrap().branches["golden"], entries[7].id.to_string());
    let gone = Some(Point::Entry(entries[1].id));
    assert_eq!(projects.set_branch(&shop, "x", gone, false).await.unwrap_err().kind(), Kind::NotFound);
    for bad in ["", "with space", "ünï", &"x".repeat(129)] {
        let error = projects.set_branch(&shop, bad, None, false).await.unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{bad:?}: {error}");
    }
    for _ in 0..2 {
        projects.delete_branch(&shop, "golden").await.unwrap();
    }
    assert!(projects.get(&shop).await.unwrap().branches.is_empty());
}

#[tokio::test]
async fn a_snapshot_whose_answer_was_lost_is_made_once() {
    let cluster = Cluster::start(&["a"]).await;
    let projects = cluster.projects();
    let shop = projects.create(named("shop")).await.unwrap();
    cluster.node("a").write(&shop.id, "lunch");
    let first = projects.snapshot(&shop, "before lunch").await.unwrap();
    let again = projects.snapshot(&shop, "before lunch").await.unwrap();
    assert_eq!(again.id, first.id);
    // What was written meanwhile is another state, which nobody may lose.
    cluster.node("a").write(&shop.id, "soup");
    let after = projects.snapshot(&shop, "before lunch").await.unwrap();
    assert_eq!((after.id == first.id, after.version), (false, version("soup")));
}

#[tokio::test]
async fn a_pin_is_its_owners_and_works_on_a_sleeping_volume() {
    let cluster = Cluster::start(&["a"]).await;
    let projects = cluster.projects();
    let shop = projects.create(named("shop")).await.unwrap();
    cluster.node("a").write(&shop.id, "v1");
    let first = projects.snapshot(&shop, "first").await.unwrap();
    projects.hibernate(&shop).await.unwrap();
    projects.pin(&shop, "export-7", Some(Point::Entry(first.id))).await.unwrap();
    projects.pin(&shop, "backup", None).await.unwrap();
    let pins = projects.get(&shop).await.unwrap().pins;
    assert_eq!(pins["export-7"], first.id.to_string());
    assert_eq!(pins.len(), 2);
    assert_eq!(cluster.node("a").calls("acquire"), 0, "nothing is woken for it");
    projects.unpin(&shop, "export-7").await.unwrap();
    projects.unpin(&shop, "nobody").await.unwrap();
    assert_eq!(projects.get(&shop).await.unwrap().pins.len(), 1);
}

#[tokio::test]
async fn what_is_in_a_page_is_listed_forked_and_gone_back_to() {
    let cluster = Cluster::start(&["a"]).await;
    let projects = cluster.projects();
    let shop = projects.create(named("shop")).await.unwrap();
    for number in 0..100 {
        cluster.node("a").write(&shop.id, &format!("v{number}"));
        projects.sync(&shop).await.unwrap();
    }
    let record = cas::record::get(&cluster.store, &shop.id).await.unwrap().value;
    assert!(!record.older.is_empty() && record.find_version(&version("v3")).is_none());
    let timeline = projects.timeline(&shop, 1_000).await.unwrap();
    assert_eq!(timeline.len(), 101);
    assert!(timeline.windows(2).all(|two| two[0].previous == Some(two[1].id)), "newest first, without a gap");
    let old = timeline.iter().find(|entry| entry.version == version("v3")).unwrap();
    for point in [Point::Entry(old.id), Point::Version(old.version)] {
        let fork = projects.fork(&shop, NewFork { at: Some(point), ..NewFork::default() }).await.unwrap();
        assert_eq!(cluster.node("a").live(&fork.id).unwrap(), "v3");
    }
    let restored = projects.restore(&shop, Point::Entry(old.id)).await.unwrap();
    assert_eq!(restored.version, version("v3"));
    projects.set_branch(&shop, "old", Some(Point::Version(version("v5"))), false).await.unwrap();
    assert_eq!(projects.timeline(&shop, 1_000).await.unwrap().len(), 102);
}

#[tokio::test]
async fn a_bundle_is_its_state_whoever_publishes_it_and_stays_while_something_came_from_it() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let projects = cluster.projects();
    let shop = projects.create(named("shop")).await.unwrap();
    let node = shop.node.clone().unwrap();
    cluster.node(node.as_str()).write(&shop.id, "v1");
    let first = projects.publish(&shop, None, Some(&name("shop-app"))).await.unwrap();
    assert!(first.made && first.version == version("v1"));
    // The same state again: present, by version, of a fork, of a sleeping volume, and of the bundle itself.
    let again = projects.publish(&shop, Some(Point::Version(version("v1"))), None).await.unwrap();
    let fork = projects.fork(&shop, NewFork::default()).await.unwrap();
    let of_fork = projects.publish(&fork, None, None).await.unwrap();
    projects.hibernate(&fork).await.unwrap();
    let asleep = projects.publish(&fork, None, Some(&name("other"))).await.unwrap();
    let of_itself = projects.publish(&first.id, None, None).await.unwrap();
    for same in [&again, &of_fork, &asleep, &of_itself] {
        assert_eq!((&same.id, same.made), (&first.id, false));
    }
    cluster.node(node.as_str()).write(&shop.id, "v2");
    let second = projects.publish(&shop, None, Some(&name("shop-app"))).await.unwrap();
    assert!(second.made && second.id != first.id);
    let bundles = projects.bundles().await.unwrap();
    assert_eq!(bundles.len(), 2);
    assert!(bundles.iter().all(|bundle| bundle.source == Some(shop.id.clone())));

    // It is installed after its source is gone, by name and by id.
    projects.delete(&shop).await.unwrap();
    let new = NewInstall { request: Some("install".parse().unwrap()), ..NewInstall::default() };
    let installed =
        projects.install(&"shop-app".parse::<orchestrator::VolumeRef>().unwrap(), new.clone()).await.unwrap();
    assert_eq!(installed.kind, RecordKind::Volume);
    assert_eq!(installed.origin.clone().unwrap().volume, second.id);
    assert_eq!(installed.attributes[FORKED_FROM], "shop-app");
    let holder = installed.node.clone().unwrap();
    assert_eq!(cluster.node(holder.as_str()).live(&installed.id).unwrap(), "v2");
    let retried =
        projects.install(&"shop-app".parse::<orchestrator::VolumeRef>().unwrap(), new).await.unwrap();
    assert_eq!(retried.id, installed.id, "a retry is the same volume");
    projects.install(&first.id, NewInstall::default()).await.unwrap();

    let refused = projects.delete_bundle(&second.id).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::FailedPrecondition, "{refused}");
    assert!(refused.to_string().contains(installed.id.as_str()), "who came from it is said: {refused}");
    assert_eq!(
        projects.delete(&second.id).await.unwrap_err().kind(),
        Kind::FailedPrecondition,
        "by any door"
    );
    assert_eq!(projects.bundles().await.unwrap().len(), 2);
    projects.delete(&installed).await.unwrap();
    for _ in 0..2 {
        projects.delete_bundle(&second.id).await.unwrap();
    }
    assert_eq!(projects.bundles().await.unwrap().len(), 1);
    let gone = projects
        .install(&"shop-app".parse::<orchestrator::VolumeRef>().unwrap(), NewInstall::default())
        .await;
    assert_eq!(gone.unwrap_err().kind(), Kind::NotFound);
    // What is no bundle is none.
    let volume = projects.install(&fork.id, NewInstall::default()).await.unwrap_err();
    assert_eq!(volume.kind(), Kind::NotFound, "{volume}");
}

#[tokio::test]
async fn a_state_that_was_deleted_as_a_bundle_can_be_published_again() {
    let cluster = Cluster::start(&["a"]).await;
    let projects = cluster.projects();
    let shop = projects.create(named("shop")).await.unwrap();
    let first = projects.publish(&shop, None, None).await.unwrap();
    projects.delete_bundle(&first.id).await.unwrap();
    let second = projects.publish(&shop, None, None).await.unwrap();
    assert!(second.made && second.id != first.id, "an id is never used twice");
}

#[tokio::test]
async fn a_template_is_published_from_a_volume_and_its_name_moves() {
    let cluster = Cluster::start(&["a"]).await;
    let projects = cluster.projects();
    let shop = projects.create(named("shop")).await.unwrap();
    cluster.node("a").write(&shop.id, "v1");
    let first = projects.publish_template(&name("base"), &shop, None).await.unwrap();
    let again = projects.publish_template(&name("base"), &shop, None).await.unwrap();
    assert_eq!((first.version, &first.volume), (Some(version("v1")), &again.volume));
    let made = projects.create(NewProject { template: "base".parse().ok(), ..named("one") }).await.unwrap();
    assert_eq!(cluster.node("a").live(&made.id).unwrap(), "v1");
    cluster.node("a").write(&shop.id, "v2");
    let second = projects.publish_template(&name("base"), &shop, None).await.unwrap();
    assert_ne!(second.volume, first.volume);
    let names: Vec<_> =
        projects.templates().await.unwrap().into_iter().map(|template| template.name).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    let by_name = |text: &str| text.parse::<orchestrator::VolumeRef>().unwrap();
    let refused = projects.delete_template(&first.volume).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::FailedPrecondition, "{refused}");
    for _ in 0..2 {
        projects.delete_template(by_name("base")).await.unwrap();
    }
    assert!(projects.templates().await.unwrap().is_empty());
    projects.delete(&made).await.unwrap();
    projects.delete_template(&first.volume).await.unwrap();
}
