//! Volumes on real pools, with the store in memory: they come to be, become durable, move, and are restored.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::process::Command;
use std::sync::Arc;

use cas::objects::{CallKind, Fault};
use cas::{Retry, Role};
use common::{TestPool, differences, fill, fork, has_btrfs, head, id, live, names, request, sh, stop, store};
use csi::basis::Basis;
use csi::create::CreateRequest;
use csi::error::Error;
use csi::files::LiveVolumes as _;
use csi::restore::Wanted;
use csi::sync::SyncRequest;
use types::{Change, Classify as _, Kind};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_sleeps_on_one_node_and_wakes_on_another() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    let volume = a.create(request("vol-1")).await.unwrap();
    assert!(volume.is_made());
    fill(&live(&a, "vol-1"));
    let copy = tempfile::tempdir().unwrap();
    sh(&format!("cp -a {}/. {}/", live(&a, "vol-1").display(), copy.path().display()));
    let synced = a.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert!(synced.changed && synced.objects_written >= 2, "{synced:?}");
    // While it is owned nobody else gets it.
    let error = b.acquire(&id("vol-1"), false).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    std::fs::write(live(&a, "vol-1").join("late"), "written after the sync").unwrap();
    std::fs::write(copy.path().join("late"), "written after the sync").unwrap();
    sh(&format!(
        "touch -r {0}/late {1}/late; touch -r {0} {1}",
        live(&a, "vol-1").display(),
        copy.path().display()
    ));
    let released = a.release(&id("vol-1"), false).await.unwrap();
    assert!(a.volumes().find(&id("vol-1")).is_none());
    assert!(names(a.pool().path().join("volumes")).is_empty());
    let there = b.acquire(&id("vol-1"), false).await.unwrap();
    assert_eq!(head(&there), released.version);
    assert_eq!(differences(copy.path(), &live(&b, "vol-1")), "");
    // The same tree, the same id: nothing to write.
    let again = b.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert_eq!((again.version, again.changed), (released.version, false));
    assert!(again.epoch > released.epoch);
    stop(a).await;
    stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_changed_nothing_writes_nothing() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    fill(&live(&node, "vol-1"));
    let first = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    faults.reset();
    for _ in 0..2 {
        let again = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
        assert_eq!((again.version, again.changed, again.objects_written), (first.version, false, 0));
    }
    // Touched and put back: the tree is what it was.
    let readme = live(&node, "vol-1").join("README");
    sh(&format!("chmod 600 {0}; chmod 644 {0}", readme.display()));
    let again = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert_eq!((again.version, again.changed), (first.version, false));
    assert_eq!(faults.counts().of(CallKind::Put), 0, "a sync without a change writes nothing");
    // A snapshot that somebody asked for is an entry of its own, of the same version.
    let named = SyncRequest { role: Role::Manual, label: "before lunch".to_owned() };
    let asked = node.sync(&id("vol-1"), named.clone()).await.unwrap();
    assert_eq!((asked.version, asked.changed), (first.version, true));
    assert_ne!(asked.entry, first.entry);
    // Who lost the answer and asks again gets that one.
    let again = node.sync(&id("vol-1"), named).await.unwrap();
    assert_eq!((again.entry, again.changed), (asked.entry, false));
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_change_costs_one_pack_and_one_record() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    fill(&live(&node, "vol-1"));
    node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    std::fs::write(live(&node, "vol-1").join("src/main.rs"), "fn main() { edited() }\n").unwrap();
    faults.reset();
    let synced = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert!(synced.changed);
    let puts = faults.counts().of(CallKind::Put);
    assert!(puts <= 3, "{puts} writes");
    assert_eq!(synced.objects_written, puts);
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_moves_no_data_and_lives_on_its_own() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    let source = node.create(request("vol-1")).await.unwrap().into_inner();
    fill(&live(&node, "vol-1"));
    node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    faults.reset();
    let made = node.create(fork("vol-2", "vol-1", head(&source))).await.unwrap();
    assert!(made.is_made());
    let counts = faults.counts();
    assert_eq!(counts.of(CallKind::Put), 2, "creating, then live: no data");
    assert_eq!(counts.calls(), 4, "and the source's record and the session read: {counts:?}");
    assert_eq!(head(&made.into_inner()), head(&source));
    assert_eq!(differences(&live(&node, "vol-1"), &live(&node, "vol-2")), "");
    // The second call is told.
    assert!(!node.create(fork("vol-2", "vol-1", head(&source))).await.unwrap().is_made());
    // The source moves on and goes; the fork's base stays until the fork has moved on as well.
    std::fs::write(live(&node, "vol-1").join("README"), "changed in the source\n").unwrap();
    node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert_eq!(std::fs::read_to_string(live(&node, "vol-2").join("README")).unwrap(), "hello\n");
    node.delete(&id("vol-1")).await.unwrap();
    std::fs::write(live(&node, "vol-2").join("new"), "in the fork\n").unwrap();
    let synced = node.sync(&id("vol-2"), SyncRequest::plain()).await.unwrap();
    assert!(synced.changed);
    assert_eq!(
        names(node.pool().path().join("volumes")),
        ["vol-2"],
        "nothing needs the source's snapshots any more"
    );
    // The cold way: on a node that has nothing near.
    let other = TestPool::new("node-b");
    let there = other.start(&store).await;
    there.create(fork("vol-3", "vol-2", synced.version)).await.unwrap();
    assert_eq!(differences(&live(&node, "vol-2"), &live(&there, "vol-3")), "");
    stop(node).await;
    stop(there).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_is_one_commit_and_forks_that_come_together_share_theirs() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    let source = node.create(request("vol-1")).await.unwrap().into_inner();
    fill(&live(&node, "vol-1"));
    node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    let version = head(&source);
    let root = btrfs::Dir::open(node.pool().path()).unwrap();
    let commits = || btrfs::commit::count(&root).unwrap();
    btrfs::commit::sync_all(&root).unwrap();
    let mut alone = Vec::new();
    for n in 0..5 {
        let before = commits();
        let made = node.create(fork(&format!("alone-{n}"), "vol-1", version)).await.unwrap().into_inner();
        alone.push(commits() - before);
        let described = node.describe(&made).await.unwrap();
        assert_eq!(
            (described.used_bytes, described.dirty),
            (0, false),
            "a fork is charged for what it writes"
        );
    }
    // The kernel commits by itself too, now and then.
    alone.sort_unstable();
    assert_eq!(alone[2], 1, "the snapshot's own commit is the fork's: {alone:?}");
    const TOGETHER: u64 = 32;
    // While they wait for the store nothing keeps their snapshots apart.
    faults.every(CallKind::Put, "vol/", Fault::Delay(std::time::Duration::from_millis(50)));
    let before = commits();
    let forks = (0..TOGETHER).map(|n| {
        let node = Arc::clone(&node);
        tokio::spawn(async move { node.create(fork(&format!("fork-{n}"), "vol-1", version)).await.unwrap() })
    });
    for made in futures::future::join_all(forks).await {
        let made = made.unwrap().into_inner();
        assert_eq!(node.describe(&made).await.unwrap().used_bytes, 0);
    }
    let shared = commits() - before;
    assert!(shared <= TOGETHER / 2, "{TOGETHER} forks needed {shared} commits");
    assert_eq!(differences(&live(&node, "vol-1"), &live(&node, "fork-7")), "");
    stop(node).await;
    // Nothing of it depends on what this process remembers.
    let node = pool.start(&store).await;
    assert_eq!(node.volumes().len(), 38);
    assert!(!node.create(fork("fork-7", "vol-1", version)).await.unwrap().is_made());
    assert!(node.volumes().all().iter().all(|volume| !volume.facts().about.unborn));
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restoring_keeps_what_was_there_as_a_branch() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    fill(&live(&node, "vol-1"));
    let before = tempfile::tempdir().unwrap();
    let first = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    sh(&format!("cp -a {}/. {}/", live(&node, "vol-1").display(), before.path().display()));
    std::fs::remove_file(live(&node, "vol-1").join("README")).unwrap();
    std::fs::write(live(&node, "vol-1").join("unsynced"), "kept in the branch").unwrap();
    let restored = node.restore(&id("vol-1"), Wanted::Entry(first.entry)).await.unwrap();
    assert_eq!(restored.version, first.version);
    assert!(restored.branch.starts_with("pre-restore/") && !restored.restart_to_see_it);
    assert_eq!(differences(before.path(), &live(&node, "vol-1")), "");
    // And to the branch, which has what was never synced by anybody else.
    let record = cas::record::get(&store, &id("vol-1")).await.unwrap().value;
    let branch = record.branches[&restored.branch];
    node.restore(&id("vol-1"), Wanted::Entry(branch)).await.unwrap();
    assert_eq!(std::fs::read_to_string(live(&node, "vol-1").join("unsynced")).unwrap(), "kept in the branch");
    std::fs::write(live(&node, "vol-1").join("more"), "x").unwrap();
    assert!(node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap().changed);
    let error = node.restore(&id("vol-1"), Wanted::Version(types::VersionId([9; 32]))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(names(node.pool().path().join("volumes/vol-1")), ["about", "base", "data", "snap"]);
    assert!(names(node.pool().path().join("staging")).is_empty());
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_comes_late_undoes_nothing() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    a.create(request("vol-1")).await.unwrap();
    let first = a.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    std::fs::write(live(&a, "vol-1").join("second"), "x").unwrap();
    let second = a.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    // A hub decides on a restore and dies, with the order on its way. The caller's repeat is done, and something is written.
    let restore = Basis { head: Some(second.entry), epoch: None };
    a.restore_if(&id("vol-1"), Wanted::Entry(first.entry), restore).await.unwrap();
    std::fs::write(live(&a, "vol-1").join("acknowledged"), "x").unwrap();
    let error = a.restore_if(&id("vol-1"), Wanted::Entry(first.entry), restore).await.unwrap_err();
    assert!(matches!(error, Error::Late { .. }) && error.kind() == Kind::Aborted, "{error}");
    assert_eq!(names(live(&a, "vol-1")), ["acknowledged"]);
    // The same with a move: the repeat released it, and it has been taken again since.
    let given_up = Basis { epoch: Some(second.epoch), head: None };
    a.release_if(&id("vol-1"), true, given_up).await.unwrap();
    let held = a.acquire_if(&id("vol-1"), false, given_up).await.unwrap();
    let error = a.release_if(&id("vol-1"), true, given_up).await.unwrap_err();
    assert!(matches!(error, Error::Late { .. }), "{error}");
    // A repeat whose first answer was lost finds the volume here, whatever it was decided on.
    a.acquire_if(&id("vol-1"), false, given_up).await.unwrap();
    // It was put to sleep again: the order to take it that went to another node is void.
    let epoch = held.claim(a.session_id().unwrap()).unwrap().epoch;
    a.release_if(&id("vol-1"), false, Basis { epoch: Some(epoch), head: None }).await.unwrap();
    let error = b.acquire_if(&id("vol-1"), false, given_up).await.unwrap_err();
    assert!(matches!(error, Error::Late { .. }), "{error}");
    b.acquire(&id("vol-1"), false).await.unwrap();
    let limit = |bytes: u64, before: Option<u64>| (Some(bytes), Some(before));
    let (to, before) = limit(2 << 30, Some(1 << 30));
    b.set_quota_if(&id("vol-1"), to, before).await.unwrap();
    b.set_quota_if(&id("vol-1"), to, before).await.unwrap();
    let (to, before) = limit(3 << 30, Some(1 << 30));
    let error = b.set_quota_if(&id("vol-1"), to, before).await.unwrap_err();
    assert!(matches!(error, Error::Late { .. }), "{error}");
    stop(a).await;
    stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_to_a_tree_that_a_restore_may_be_about_to_replace() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let brief = Retry { patience: std::time::Duration::from_millis(100), ..Retry::default() };
    let pool = TestPool::new("node-a");
    let node = pool.start(&store.with_retry(brief)).await;
    node.create(request("vol-1")).await.unwrap();
    let first = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    std::fs::write(live(&node, "vol-1").join("second"), "x").unwrap();
    node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    faults.every(CallKind::Put, "vol/", Fault::Held);
    let error = node.restore(&id("vol-1"), Wanted::Entry(first.entry)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    let error = node.open(&id("vol-1")).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Aborted, "{error}");
    // It happened after all. From then on the restored tree is there, and may be written to.
    faults.heal();
    faults.deliver_held().await;
    node.settle_all().await;
    drop(node.open(&id("vol-1")).await.unwrap());
    assert!(names(live(&node, "vol-1")).is_empty());
    std::fs::write(live(&node, "vol-1").join("third"), "x").unwrap();
    assert!(node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap().changed);
    // What did not arrive is sent again: it happens now.
    faults.every(CallKind::Put, "vol/", Fault::Unavailable);
    node.restore(&id("vol-1"), Wanted::Entry(first.entry)).await.unwrap_err();
    node.open(&id("vol-1")).await.unwrap_err();
    faults.heal();
    node.settle_all().await;
    drop(node.open(&id("vol-1")).await.unwrap());
    assert!(names(live(&node, "vol-1")).is_empty());
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_under_a_mount_says_so_and_keeps_what_is_still_written() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    let first = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    std::fs::write(live(&node, "vol-1").join("second"), "x").unwrap();
    node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    let point = tempfile::tempdir().unwrap();
    sh(&format!("mount --bind {} {}", live(&node, "vol-1").display(), point.path().display()));
    let restored = node.restore(&id("vol-1"), Wanted::Entry(first.entry)).await;
    std::fs::write(point.path().join("late"), "by the pod").unwrap();
    let error = node.delete(&id("vol-1")).await;
    let still = names(point.path());
    sh(&format!("umount {}", point.path().display()));
    assert!(restored.unwrap().restart_to_see_it);
    assert_eq!(error.unwrap_err().kind(), Kind::FailedPrecondition, "what is mounted is never deleted");
    assert_eq!(still, ["late", "second"], "the mount keeps the old tree");
    assert!(names(live(&node, "vol-1")).is_empty());
    node.settle_all().await;
    assert_eq!(names(node.pool().path().join("volumes/vol-1")), ["about", "base", "data", "snap"]);
    let records = cas::record::list(&store).await.unwrap();
    assert_eq!(records.len(), 1, "no orphan: the volume is still this node's");
    let record = &records[0].value;
    assert_eq!(record.branches.keys().collect::<Vec<_>>(), ["pre-restore/1", "pre-restore/2"]);
    assert_eq!(record.head_entry().unwrap().version(), Some(first.version), "the line did not move");
    let late = record.branches["pre-restore/2"];
    node.restore(&id("vol-1"), Wanted::Entry(late)).await.unwrap();
    assert_eq!(
        names(live(&node, "vol-1")),
        ["late", "second"],
        "what the pod wrote after the restore is kept"
    );
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_place_keeps_late_writes_as_an_orphan() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    a.create(request("vol-1")).await.unwrap();
    a.create(request("vol-2")).await.unwrap();
    std::fs::write(live(&a, "vol-1").join("durable"), "x").unwrap();
    a.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    std::fs::write(live(&a, "vol-1").join("late"), "not synced").unwrap();
    std::fs::write(live(&a, "vol-2").join("late"), "not synced").unwrap();
    // Declared dead: fenced, and one of its volumes is woken elsewhere.
    cas::session::fence(&store, &a.session_id().unwrap()).await.unwrap();
    b.acquire(&id("vol-1"), false).await.unwrap();
    assert_eq!(names(live(&b, "vol-1")), ["durable"]);
    let error = a.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Aborted, "{error}");
    let before = a.session_id().unwrap();
    a.beat(false).await.unwrap();
    assert_ne!(a.session_id().unwrap(), before, "a fenced session is dead for ever");
    // The one that nobody took is this node's again, with everything in it.
    assert_eq!(names(live(&a, "vol-2")), ["late"]);
    assert!(a.sync(&id("vol-2"), SyncRequest::plain()).await.unwrap().changed);
    // The other is only a relative here now; what was written late is an orphan.
    assert!(names(live(&a, "vol-1")).is_empty());
    let records = cas::record::list(&store).await.unwrap();
    let orphan = records.iter().find(|record| record.value.kind == cas::RecordKind::Orphan).unwrap();
    let tree = orphan.value.head_entry().unwrap().heads.values().next().unwrap();
    let late = b.reader().stat(tree, &types::VolumePath::parse("late").unwrap()).await.unwrap();
    assert!(late.is_some());
    // B went on undisturbed.
    std::fs::write(live(&b, "vol-1").join("on-b"), "x").unwrap();
    assert!(b.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap().changed);
    stop(a).await;
    stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_forced_deletion_found_unpublished_is_kept_as_an_orphan() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    node.create(request("vol-2")).await.unwrap();
    for name in ["vol-1", "vol-2"] {
        std::fs::write(live(&node, name).join("first"), "published").unwrap();
        node.sync(&id(name), SyncRequest::plain()).await.unwrap();
    }
    std::fs::write(live(&node, "vol-1").join("late"), "not published yet").unwrap();
    for name in ["vol-1", "vol-2"] {
        cas::lifecycle::delete(&store, &id(name), None, cas::lifecycle::Authority::Force).await.unwrap();
    }
    // The owner learns it with its next sync, or at its next start.
    let lost = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap_err();
    assert_eq!(lost.kind(), Kind::Aborted, "{lost}");
    stop(node).await;
    let node = pool.start(&store).await;
    assert!(names(node.pool().path().join("volumes")).is_empty(), "both copies are dropped");
    let records = cas::record::list(&store).await.unwrap();
    let orphans: Vec<_> =
        records.iter().filter(|record| record.value.kind == cas::RecordKind::Orphan).collect();
    assert_eq!(orphans.len(), 1, "only what was not published is kept");
    let tree = orphans[0].value.head_entry().unwrap().heads.values().next().unwrap();
    let late = types::VolumePath::parse("late").unwrap();
    assert!(node.reader().stat(tree, &late).await.unwrap().is_some());
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nested_subvolumes_keep_their_files_through_fork_template_and_sync() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    let volume = a.create(request("vol-1")).await.unwrap().into_inner();
    let path = live(&a, "vol-1");
    sh(&format!(
        "mkdir {0}/d; btrfs -q subvolume create {0}/d/nested; echo one > {0}/d/nested/file",
        path.display()
    ));
    let first = a.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    faults.reset();
    let again = a.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert_eq!((again.version, again.changed), (first.version, false));
    assert_eq!(faults.counts().of(CallKind::Put), 0);
    // A write in the nested one alone leaves its parent's generation alone.
    sh(&format!("echo two > {}/d/nested/file", path.display()));
    let second = a.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert!(second.changed && second.version != first.version);
    a.create(fork("vol-2", "vol-1", head(&volume))).await.unwrap();
    assert_eq!(differences(&path, &live(&a, "vol-2")), "");
    b.ensure_template(&id("vol-1")).await.unwrap();
    b.create(fork("vol-3", "vol-1", second.version)).await.unwrap();
    assert_eq!(std::fs::read_to_string(live(&b, "vol-3").join("d/nested/file")).unwrap(), "two\n");
    a.restore(&id("vol-1"), Wanted::Entry(first.entry)).await.unwrap();
    assert_eq!(std::fs::read_to_string(path.join("d/nested/file")).unwrap(), "one\n");
    a.delete(&id("vol-1")).await.unwrap();
    assert!(!path.exists());
    stop(a).await;
    stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_holds_also_for_a_nested_subvolume_and_moves_with_the_volume() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    let mut wish = request("vol-1");
    wish.limit_bytes = Some(64 << 20);
    a.create(wish).await.unwrap();
    let write = |path: std::path::PathBuf, mib: u32| {
        let script = format!("head -c {mib}M /dev/urandom > {0} && sync {0}", path.display());
        Command::new("sh").args(["-c", &script]).output().unwrap().status.success()
    };
    sh(&format!("btrfs -q subvolume create {}/nested", live(&a, "vol-1").display()));
    assert!(write(live(&a, "vol-1").join("nested/some"), 30));
    assert!(!write(live(&a, "vol-1").join("nested/more"), 60), "the limit is for all of it");
    std::fs::remove_file(live(&a, "vol-1").join("nested/more")).unwrap();
    a.set_quota(&id("vol-1"), Some(128 << 20)).await.unwrap();
    assert!(write(live(&a, "vol-1").join("nested/more"), 60));
    a.release(&id("vol-1"), false).await.unwrap();
    let there = b.acquire(&id("vol-1"), false).await.unwrap();
    assert_eq!(there.facts().about.limit_bytes, Some(128 << 20));
    assert!(!write(live(&b, "vol-1").join("too-much"), 60), "the same is left as there");
    std::fs::remove_file(live(&b, "vol-1").join("too-much")).unwrap();
    assert!(write(live(&b, "vol-1").join("little"), 20));
    stop(a).await;
    stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_operation_at_a_time_and_a_caller_that_leaves_stops_nothing() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    let guard = node.locks().try_acquire(&id("vol-1"), "test").unwrap();
    for error in [
        node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap_err(),
        node.release(&id("vol-1"), false).await.unwrap_err(),
        node.delete(&id("vol-1")).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Aborted, "{error}");
    }
    drop(guard);
    std::fs::write(live(&node, "vol-1").join("file"), "x").unwrap();
    // The caller goes away at its first wait.
    let leaver = Arc::clone(&node);
    let left = tokio::time::timeout(std::time::Duration::from_millis(1), async move {
        leaver.sync(&id("vol-1"), SyncRequest::plain()).await
    });
    drop(left.await);
    for _ in 0..100 {
        if !node.describe(&node.volumes().get(&id("vol-1")).unwrap()).await.unwrap().dirty {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let again = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert!(!again.changed, "the sync that nobody waited for has done it");
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_is_made_once_and_ids_are_never_used_twice() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    assert_eq!(node.delete(&id("vol-1")).await.unwrap(), Change::Made(()));
    assert_eq!(node.delete(&id("vol-1")).await.unwrap(), Change::Already(()));
    assert_eq!(node.delete(&id("vol-9")).await.unwrap(), Change::Already(()));
    assert!(names(node.pool().path().join("volumes")).is_empty());
    let mut groups = 1;
    for _ in 0..100 {
        node.tidy().await.unwrap();
        groups = node
            .pool()
            .run(|root| {
                Ok(btrfs::quota::groups(root)?.into_keys().filter(|group| group.level() == 1).count())
            })
            .await
            .unwrap();
        if groups == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(groups, 0, "its quota group goes with it");
    let error = node.create(request("vol-1")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::AlreadyExists, "{error}");
    assert!(matches!(node.acquire(&id("vol-1"), false).await.unwrap_err(), Error::NoRecord { .. }));
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_store_makes_the_pool_read_only_and_drops_nothing() {
    if !has_btrfs() {
        return;
    }
    let (first, _) = store().await;
    let (second, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&first).await;
    node.create(request("vol-1")).await.unwrap();
    fill(&live(&node, "vol-1"));
    stop(node).await;
    let node = pool.start(&second).await;
    let error = node.create(request("vol-2")).await.unwrap_err();
    assert!(matches!(error, Error::WrongStore { .. }), "{error}");
    assert!(node.sync(&id("vol-1"), SyncRequest::plain()).await.is_err());
    assert!(node.delete(&id("vol-1")).await.is_err());
    assert!(live(&node, "vol-1").join("README").exists());
    assert!(node.checks().await.unwrap().iter().any(|check| check.name == "store id" && !check.ok));
    stop(node).await;
    let node = pool.start(&first).await;
    assert!(node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap().changed);
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_restart_keeps_the_session_and_moves_nothing() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    fill(&live(&node, "vol-1"));
    node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    std::fs::write(live(&node, "vol-1").join("unsynced"), "x").unwrap();
    let session = node.session_id();
    let epoch = node.volumes().get(&id("vol-1")).unwrap().claim(session.unwrap()).unwrap().epoch;
    stop(node).await;
    faults.reset();
    let node = pool.start(&store).await;
    assert_eq!(node.session_id(), session);
    assert_eq!(node.volumes().get(&id("vol-1")).unwrap().claim(session.unwrap()).unwrap().epoch, epoch);
    assert!(faults.counts().of(CallKind::Put) <= 1, "only the session's own beat");
    assert!(live(&node, "vol-1").join("unsynced").exists());
    assert!(node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap().changed);
    stop(node).await;
    // Without state.db the store says which session it was.
    for name in ["state.db", "state.db-wal", "state.db-shm"] {
        drop(std::fs::remove_file(pool.mount().join(name)));
    }
    let node = pool.start(&store).await;
    assert_eq!(node.session_id(), session);
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_takes_only_the_difference_when_the_head_was_prefetched() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    a.create(request("vol-1")).await.unwrap();
    fill(&live(&a, "vol-1"));
    sh(&format!("head -c 8M /dev/urandom > {}/random", live(&a, "vol-1").display()));
    let synced = a.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert_eq!(b.prefetch(&id("vol-1")).await.unwrap(), synced.version);
    std::fs::write(live(&a, "vol-1").join("README"), "edited\n").unwrap();
    a.release(&id("vol-1"), true).await.unwrap();
    faults.reset();
    b.acquire(&id("vol-1"), false).await.unwrap();
    assert!(faults.counts().bytes_read < 1 << 20, "{} bytes were read", faults.counts().bytes_read);
    assert_eq!(std::fs::read_to_string(live(&b, "vol-1").join("README")).unwrap(), "edited\n");
    let copy = tempfile::tempdir().unwrap();
    sh(&format!("cp -a {}/. {}/", live(&b, "vol-1").display(), copy.path().display()));
    // And back, where the base was kept.
    b.release(&id("vol-1"), false).await.unwrap();
    a.acquire(&id("vol-1"), false).await.unwrap();
    assert_eq!(differences(copy.path(), &live(&a, "vol-1")), "");
    stop(a).await;
    stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acquire_never_touches_a_tree_that_is_in_its_place() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    a.create(request("vol-1")).await.unwrap();
    let late = live(&a, "vol-1").join("late");
    std::fs::write(&late, "in no version").unwrap();
    let target = tempfile::tempdir().unwrap();
    sh(&format!("mount --bind {} {}", live(&a, "vol-1").display(), target.path().display()));
    b.acquire(&id("vol-1"), true).await.unwrap();
    std::fs::write(live(&b, "vol-1").join("on-b"), "x").unwrap();
    b.release(&id("vol-1"), false).await.unwrap();
    // Its place is lost, the mount keeps the tree, and nobody in this process knows of it.
    a.volumes().remove(&id("vol-1"));
    let error = a.acquire(&id("vol-1"), false).await.unwrap_err();
    assert_eq!(std::fs::read_to_string(&late).ok().as_deref(), Some("in no version"), "{error}");
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    let record = cas::record::get(&store, &id("vol-1")).await.unwrap().value;
    assert_eq!(record.owner, None, "it was not taken for a tree that cannot be put in its place");
    sh(&format!("umount {}", target.path().display()));
    // Then what was written late is kept, and the head comes.
    a.acquire(&id("vol-1"), false).await.unwrap();
    assert_eq!(names(live(&a, "vol-1")), ["on-b"]);
    let records = cas::record::list(&store).await.unwrap();
    assert!(records.iter().any(|record| record.value.kind == cas::RecordKind::Orphan), "{records:?}");
    stop(a).await;
    stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waking_where_the_version_is_takes_one_commit_and_failing_leaves_the_relative() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let pool = TestPool::new("node-a");
    let brief = Retry { patience: std::time::Duration::from_millis(100), ..Retry::default() };
    let node = pool.start(&store.clone().with_retry(brief)).await;
    node.create(CreateRequest { limit_bytes: Some(64 << 20), ..request("vol-1") }).await.unwrap();
    fill(&live(&node, "vol-1"));
    node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    let copy = tempfile::tempdir().unwrap();
    sh(&format!("cp -a {}/. {}/", live(&node, "vol-1").display(), copy.path().display()));
    let root = btrfs::Dir::open(node.pool().path()).unwrap();
    let mut woken = Vec::new();
    for round in 0..5 {
        node.release(&id("vol-1"), true).await.unwrap();
        let link = |name| std::fs::read_link(pool.mount().join("volumes/vol-1").join(name)).unwrap();
        let on_disk = || ["about", "base"].map(link);
        let (relative, was) = (node.volumes().get(&id("vol-1")).unwrap().facts(), on_disk());
        faults.plan(|call| {
            if call.kind == CallKind::Put && call.key.starts_with("vol/") {
                Fault::Unavailable
            } else {
                Fault::None
            }
        });
        node.acquire(&id("vol-1"), false).await.unwrap_err();
        faults.heal();
        let left = node.volumes().get(&id("vol-1")).unwrap().facts();
        assert_eq!((left.standing, left.base), (relative.standing, relative.base), "round {round}");
        assert_eq!(on_disk(), was, "round {round}");
        assert!(!live(&node, "vol-1").exists(), "what nobody owns is not in its place");
        btrfs::commit::sync_all(&root).unwrap();
        let before = btrfs::commit::count(&root).unwrap();
        node.acquire(&id("vol-1"), false).await.unwrap();
        woken.push(btrfs::commit::count(&root).unwrap() - before);
        assert_eq!(differences(copy.path(), &live(&node, "vol-1")), "");
    }
    // The kernel commits by itself too, now and then.
    woken.sort_unstable();
    assert_eq!(woken[2], 1, "the clone's own commit is the wake's: {woken:?}");
    stop(node).await;
    let node = pool.start(&store).await;
    assert_eq!(differences(copy.path(), &live(&node, "vol-1")), "");
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn near_its_limit_a_volume_gets_back_what_snapshots_hold() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    let mut wish = request("vol-1");
    wish.limit_bytes = Some(100 << 20);
    let volume = node.create(wish).await.unwrap().into_inner();
    let path = live(&node, "vol-1").join("big");
    let fill = format!("head -c 92M /dev/urandom > {0} && sync {0}", path.display());
    sh(&fill);
    let asked = SyncRequest { role: Role::Manual, label: "with the big file".to_owned() };
    node.sync(&id("vol-1"), asked).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    sh(&format!("sync -f {}", live(&node, "vol-1").display()));
    let used = |node: Arc<csi::node::Node>| async move {
        let about = node.volumes().get(&id("vol-1")).unwrap().facts().about;
        node.pool().run(move |root| csi::local::used(root, &about)).await.unwrap()
    };
    assert!(used(Arc::clone(&node)).await > 90 << 20, "the snapshots hold it");
    node.relieve().await;
    let mut free = false;
    for _ in 0..100 {
        node.tidy().await.unwrap();
        free = used(Arc::clone(&node)).await < 10 << 20;
        if free {
            break;
        }
        // The cleaner works at its own pace.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(free);
    sh(&fill);
    assert!(!volume.facts().trouble.contains("limit"));
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_full_of_data_or_of_metadata_says_so_and_still_syncs_and_deletes() {
    if !has_btrfs() {
        return;
    }
    for kind in ["data", "metadata"] {
        let (store, _) = store().await;
        let pool = TestPool::sized("node-a", "300Mi");
        let node = pool.start(&store).await;
        let mut wish = request("vol-1");
        wish.limit_bytes = None;
        node.create(wish).await.unwrap();
        std::fs::write(live(&node, "vol-1").join("file"), "x").unwrap();
        let path = live(&node, "vol-1");
        if kind == "data" {
            sh(&format!("head -c 500M /dev/urandom > {}/fill 2>/dev/null || true", path.display()));
        } else {
            // All of the disk goes to data and comes back as room for data; then small files, which live in the metadata.
            sh(&format!(
                "mkdir {0}/m {0}/a; i=0; while fallocate -l 4M {0}/a/$i 2>/dev/null; do i=$((i+1)); done",
                path.display()
            ));
            let mut bytes = [0_u8; 1900];
            let full = (0..100_000_u32).any(|n| {
                bytes.iter_mut().for_each(|byte| *byte = rand::random());
                std::fs::write(path.join(format!("m/{n}")), bytes).is_err()
            });
            assert!(full);
            std::fs::remove_dir_all(path.join("a")).unwrap();
        }
        drop(Command::new("sync").arg("-f").arg(pool.mount()).status());
        let error = node.create(request("vol-2")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::ResourceExhausted, "{kind}: {error}");
        assert!(error.to_string().contains(kind), "{error}");
        assert!(names(node.pool().path().join("staging")).is_empty());
        assert_eq!(names(node.pool().path().join("volumes")), ["vol-1"]);
        // A sync may find no room for its snapshot, but it says so and leaves nothing.
        match node.sync(&id("vol-1"), SyncRequest::plain()).await {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), Kind::ResourceExhausted, "{kind}: {error}"),
        }
        sh(&format!("rm -rf {0}/fill {0}/m; sync -f {0}", live(&node, "vol-1").display()));
        node.delete(&id("vol-1")).await.unwrap();
        let mut back = false;
        for _ in 0..100 {
            back = node.create(request("vol-2")).await.is_ok();
            if back {
                break;
            }
            node.tidy().await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert!(back, "{kind}: there is room again");
        stop(node).await;
    }
}
