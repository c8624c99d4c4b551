//! The stories of PROTOCOL.md §4 that a pool tells. The others are in `cas/tests/record_stories.rs`; the table in
//! `tests/README.md` has all of them.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use cas::objects::{CallKind, Fault};
use common::{TestPool, differences, fill, has_btrfs, id, life, live, names, request, sh, stop, store};
use csi::deaths::Point;
use csi::node::Node;
use csi::restore::Wanted;
use csi::sync::SyncRequest;
use types::{Classify as _, Kind, VolumePath};

#[test]
fn story_01_a_crash_around_the_swap_of_a_restore_mixes_no_two_trees() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = life(store());
    // Just before the swap, after it, and after base has turned.
    for point in [Point::BesideLive, Point::Exchanged, Point::BaseSet] {
        let (pool, other) = (TestPool::new("node-a"), TestPool::new("node-b"));
        let name = format!("vol-{point:?}").to_ascii_lowercase();
        let copy = tempfile::tempdir().unwrap();
        life(async {
            let node = pool.start(&store).await;
            node.create(request(&name)).await.unwrap();
            fill(&live(&node, &name));
            let first = node.sync(&id(&name), SyncRequest::plain()).await.unwrap();
            sh(&format!("rsync -aHAXS {}/ {}/", live(&node, &name).display(), copy.path().display()));
            // The tree of now shares hardly anything with the one that comes back.
            sh(&format!(
                "rm -r {0}/src; seq 5000 > {0}/README; mkdir {0}/other",
                live(&node, &name).display()
            ));
            node.sync(&id(&name), SyncRequest::plain()).await.unwrap();
            let deaths = node.pool().deaths().clone();
            let kills = Arc::clone(&faults);
            // How many points come before the one in question is counted on another volume's restore.
            let dry = format!("{name}-dry");
            node.create(request(&dry)).await.unwrap();
            fill(&live(&node, &dry));
            let before = node.sync(&id(&dry), SyncRequest::plain()).await.unwrap();
            sh(&format!(
                "rm -r {0}/src; seq 5000 > {0}/README; mkdir {0}/other",
                live(&node, &dry).display()
            ));
            node.sync(&id(&dry), SyncRequest::plain()).await.unwrap();
            deaths.plan(None, || {});
            node.restore(&id(&dry), Wanted::Entry(before.entry)).await.unwrap();
            let index = deaths.visited().iter().rposition(|visited| *visited == point).unwrap();
            deaths.plan(Some(index), move || kills.kill());
            let dying = Arc::clone(&node);
            let volume = id(&name);
            let work = tokio::spawn(async move {
                drop(dying.restore(&volume, Wanted::Entry(first.entry)).await);
            });
            assert!(faults.until_death(work).await.is_none(), "{point:?}");
        });
        faults.heal();
        faults.revive();
        life(async {
            let node = pool.start(&store).await;
            // The record had moved: the swap is finished. What is written now is an increment on the right tree.
            std::fs::write(live(&node, &name).join("after"), "x").unwrap();
            std::fs::write(copy.path().join("after"), "x").unwrap();
            sh(&format!(
                "touch -r {0}/after {1}/after; touch -r {0} {1}",
                live(&node, &name).display(),
                copy.path().display()
            ));
            node.sync(&id(&name), SyncRequest::plain()).await.unwrap();
            node.release(&id(&name), false).await.unwrap();
            let there = other.start(&store).await;
            there.acquire(&id(&name), false).await.unwrap();
            assert_eq!(differences(copy.path(), &live(&there, &name)), "", "{point:?}");
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn story_02_a_pool_that_went_back_in_time_loads_the_head_again_and_keeps_what_it_had() {
    if !has_btrfs() {
        return;
    }
    let (pool, (store, _)) = (TestPool::new("node-a"), store().await);
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    std::fs::write(live(&node, "vol-1").join("first"), "1").unwrap();
    let kept = SyncRequest { role: cas::Role::Manual, label: "kept".to_owned() };
    let first = node.sync(&id("vol-1"), kept).await.unwrap().version;
    // The machine's disk is saved here, and comes back after the next version was acknowledged.
    let (mount, directory) = (pool.mount(), pool.mount().join("volumes/vol-1"));
    let (mount, directory) = (mount.display(), directory.display());
    sh(&format!("btrfs subvolume snapshot {directory}/data {mount}/saved"));
    std::fs::write(live(&node, "vol-1").join("second"), "2").unwrap();
    let second = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap().version;
    stop(node).await;
    sh(&format!(
        "btrfs subvolume delete {directory}/data {directory}/snap/{second}; mv {mount}/saved {directory}/data; \
         ln -sfn ../../volumes/vol-1/snap/{first} {directory}/base; echo late >{directory}/data/late"
    ));

    let node = pool.start(&store).await;
    let volume = node.volumes().get(&id("vol-1")).unwrap();
    volume
        .claim(node.session_id().unwrap())
        .expect("its session owns the volume, and the head is here again");
    let path = live(&node, "vol-1");
    assert_eq!(std::fs::read_to_string(path.join("second")).unwrap(), "2");
    assert!(!path.join("late").exists());
    std::fs::write(path.join("third"), "3").unwrap();
    node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    let record = cas::record::get(&store, &id("vol-1")).await.unwrap().value;
    assert!(
        record.entries.iter().any(|entry| entry.version() == Some(second)),
        "what was acknowledged stays"
    );
    let records = cas::record::list(&store).await.unwrap();
    let orphan = records.iter().find(|record| record.value.kind == cas::RecordKind::Orphan).unwrap();
    let tree = orphan.value.head_entry().unwrap().heads.values().next().unwrap().clone();
    let late = VolumePath::parse("late").unwrap();
    assert!(node.reader().stat(&tree, &late).await.unwrap().is_some(), "what the old disk had is an orphan");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn story_11_a_write_that_comes_after_the_snapshot_is_answered_by_the_next_sync() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    std::fs::write(live(&node, "vol-1").join("first"), "x").unwrap();
    // The first sync stands before its record; its snapshot is taken.
    let (taken, mut is_taken) = tokio::sync::mpsc::channel(1);
    let mut held = false;
    faults.plan(move |call| {
        if call.kind == CallKind::Put && call.key.starts_with("vol/") && !held {
            held = true;
            taken.try_send(()).unwrap();
            return Fault::Delay(Duration::from_millis(300));
        }
        Fault::None
    });
    let syncing = Arc::clone(&node);
    let first = tokio::spawn(async move { syncing.sync(&id("vol-1"), SyncRequest::plain()).await });
    is_taken.recv().await.unwrap();
    std::fs::write(live(&node, "vol-1").join("second"), "x").unwrap();
    let second = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    let first = first.await.unwrap().unwrap();
    assert_ne!(first.version, second.version, "the caller was given a snapshot from before its write");
    let record = cas::record::get(&store, &id("vol-1")).await.unwrap().value;
    let tree = record.entry(&second.entry).unwrap().heads.values().next().unwrap().clone();
    assert!(node.reader().stat(&tree, &VolumePath::parse("second").unwrap()).await.unwrap().is_some());
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn story_12_a_write_in_a_nested_subvolume_makes_its_volume_dirty() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    a.create(request("vol-1")).await.unwrap();
    sh(&format!("btrfs -q subvolume create {}/inner", live(&a, "vol-1").display()));
    a.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert!(!a.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap().changed);
    std::fs::write(live(&a, "vol-1").join("inner/file"), "only in there").unwrap();
    // What the sweep, a sync and a release go by.
    a.sync_all().await;
    assert!(!a.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap().changed, "the sweep has taken it");
    std::fs::write(live(&a, "vol-1").join("inner/late"), "and this").unwrap();
    a.release(&id("vol-1"), false).await.unwrap();
    b.acquire(&id("vol-1"), false).await.unwrap();
    assert_eq!(names(live(&b, "vol-1").join("inner")), ["file", "late"]);
    stop(a).await;
    stop(b).await;
}

/// Puts what is written into a volume's directory under a mount, while `work` is done.
async fn mounted<T>(node: &Arc<Node>, name: &str, work: impl AsyncFnOnce(&std::path::Path) -> T) -> T {
    let point = tempfile::tempdir().unwrap();
    sh(&format!("mount --bind {} {}", live(node, name).display(), point.path().display()));
    let result = work(point.path()).await;
    sh(&format!("umount {}", point.path().display()));
    result
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn story_24_an_order_to_drop_what_a_node_owns_or_has_mounted_destroys_nothing() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    a.create(request("vol-1")).await.unwrap();
    std::fs::write(live(&a, "vol-1").join("acknowledged"), "locally").unwrap();
    // Somebody who thinks that the volume lives elsewhere tells the other node to delete it: it belongs to one that lives.
    let refused = b.delete(&id("vol-1")).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::FailedPrecondition, "{refused}");
    // The owner is told to give it up or to delete it under a pod.
    let (released, deleted, seen) = mounted(&a, "vol-1", async |point| {
        let released = a.release(&id("vol-1"), false).await;
        (released, a.delete(&id("vol-1")).await, names(point))
    })
    .await;
    assert_eq!(released.unwrap_err().kind(), Kind::FailedPrecondition);
    assert_eq!(deleted.unwrap_err().kind(), Kind::FailedPrecondition);
    assert_eq!(seen, ["acknowledged"]);
    assert_eq!(names(live(&a, "vol-1")), ["acknowledged"]);
    a.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    stop(a).await;
    stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn story_29_a_restore_under_a_mount_keeps_what_the_mount_shows() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    let first = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    std::fs::write(live(&node, "vol-1").join("second"), "x").unwrap();
    let (restored, seen) = mounted(&node, "vol-1", async |point| {
        let restored = node.restore(&id("vol-1"), Wanted::Entry(first.entry)).await.unwrap();
        std::fs::write(point.join("late"), "by the pod").unwrap();
        (restored, names(point))
    })
    .await;
    assert!(restored.restart_to_see_it, "{restored:?}");
    assert_eq!(seen, ["late", "second"], "the mount shows the old tree, and takes writes");
    assert!(names(live(&node, "vol-1")).is_empty(), "the volume is what was wanted");
    node.settle_all().await;
    // What the pod wrote afterwards is on a record; nothing is left beside the live tree.
    let mut kept = false;
    for record in cas::record::list(&store).await.unwrap() {
        for entry in &record.value.entries {
            let tree = entry.heads.values().next().unwrap();
            kept |= node.reader().stat(tree, &VolumePath::parse("late").unwrap()).await.unwrap().is_some();
        }
    }
    assert!(kept);
    assert_eq!(names(node.pool().path().join("volumes/vol-1")), ["about", "base", "data", "snap"]);
    stop(node).await;
}
