//! What the predecessor got wrong on its nodes, by the numbers of its list of weaknesses: each test fails where the node
//! behaves as that one did.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cas::objects::{CallKind, Fault};
use common::{
    TestPool, differences, fill, fork, has_btrfs, head, id, life, live, names, request, seal, stop, store,
};
use csi::node::Node;
use csi::restore::Wanted;
use csi::sync::SyncRequest;
use types::VersionId;

async fn durable(node: &Arc<Node>, name: &str) -> VersionId {
    node.sync(&id(name), SyncRequest::plain()).await.unwrap().version
}

/// A template that is a record of its own.
async fn template(node: &Arc<Node>, volume: &str, template: &str) -> VersionId {
    node.seal(seal(volume, template, cas::RecordKind::Template)).await.unwrap().into_inner()
}

fn copy_of(path: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let status = std::process::Command::new("rsync")
        .args(["-aHAXS"])
        .arg(format!("{}/", path.display()))
        .arg(format!("{}/", copy.path().display()))
        .status();
    assert!(status.unwrap().success());
    copy
}

#[test]
fn w02_a_crash_inside_a_sync_drops_no_write_from_the_line() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = life(store());
    let (pool, other) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let copy = life(async {
        let node = pool.start(&store).await;
        node.create(request("vol-1")).await.unwrap();
        fill(&live(&node, "vol-1"));
        durable(&node, "vol-1").await;
        std::fs::write(live(&node, "vol-1").join("in-the-window"), "written before the crash").unwrap();
        // The snapshot is taken and named, the pack is stored, and the process dies before the record.
        faults.at(CallKind::Put, "vol/", 0, Fault::DieBefore);
        let syncing = Arc::clone(&node);
        let work = tokio::spawn(async move { drop(syncing.sync(&id("vol-1"), SyncRequest::plain()).await) });
        assert!(faults.until_death(work).await.is_none());
        copy_of(&live(&node, "vol-1"))
    });
    faults.heal();
    faults.revive();
    life(async {
        let node = pool.start(&store).await;
        // It is known that something is not durable, and each sync takes what came since the last one.
        let synced = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
        assert!(synced.changed, "the crash window is taken for published");
        for round in 0..3 {
            for path in [copy.path().to_owned(), live(&node, "vol-1")] {
                std::fs::write(path.join(format!("later-{round}")), format!("{round}").repeat(1_000))
                    .unwrap();
            }
            let synced = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
            assert!(synced.changed && synced.files_changed >= 1, "{synced:?}");
        }
        node.release(&id("vol-1"), false).await.unwrap();
        let there = other.start(&store).await;
        there.acquire(&id("vol-1"), false).await.unwrap();
        for path in ["in-the-window", "later-0", "later-2", "src/main.rs"] {
            let found = std::fs::read(live(&there, "vol-1").join(path)).unwrap();
            assert_eq!(found, std::fs::read(copy.path().join(path)).unwrap(), "{path}");
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w04_a_template_is_taken_by_its_version_and_another_of_its_name_is_not() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    let mut versions = Vec::new();
    for (volume, sealed, text) in [("vol-1", "base-1", "old base"), ("vol-2", "base-2", "new base")] {
        a.create(request(volume)).await.unwrap();
        std::fs::write(live(&a, volume).join("base"), text).unwrap();
        versions.push(template(&a, volume, sealed).await);
    }
    // A node that has only the newer one makes the older one from the store, and not from what it has.
    b.ensure_template(&id("base-2")).await.unwrap();
    b.create(fork("fork-1", "base-1", versions[0])).await.unwrap();
    assert_eq!(std::fs::read_to_string(live(&b, "fork-1").join("base")).unwrap(), "old base");
    let mixed = b.create(fork("fork-2", "base-1", versions[1])).await;
    assert!(mixed.is_err(), "a version that the template does not list");
    stop(a).await;
    stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w09_a_volume_that_came_from_elsewhere_syncs_its_change_and_keeps_its_timeline() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    a.create(request("vol-1")).await.unwrap();
    fill(&live(&a, "vol-1"));
    durable(&a, "vol-1").await;
    let before = cas::record::get(&store, &id("vol-1")).await.unwrap().value.entries.len();
    a.release(&id("vol-1"), false).await.unwrap();
    b.acquire(&id("vol-1"), false).await.unwrap();
    std::fs::write(live(&b, "vol-1").join("README"), "x").unwrap();
    let synced = b.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert!(!synced.full_scan && synced.bytes_uploaded < 20_000, "everything was sent again: {synced:?}");
    let record = cas::record::get(&store, &id("vol-1")).await.unwrap().value;
    assert_eq!(record.entries.len(), before + 1);
    let previous = record.head_entry().unwrap().previous.unwrap();
    assert!(record.entry(&previous).is_some(), "the line goes on from where it was");
    stop(a).await;
    stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w10_restoring_to_what_a_volume_was_made_from_takes_nothing_from_it() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    fill(&live(&node, "vol-1"));
    let version = template(&node, "vol-1", "base-1").await;
    node.ensure_template(&id("base-1")).await.unwrap();
    let copy = copy_of(&live(&node, "vol-1"));
    node.create(fork("fork-1", "base-1", version)).await.unwrap();
    std::fs::write(live(&node, "fork-1").join("README"), "mine").unwrap();
    durable(&node, "fork-1").await;
    node.restore(&id("fork-1"), Wanted::Version(version)).await.unwrap();
    for round in 0..3 {
        std::fs::write(live(&node, "fork-1").join("again"), round.to_string()).unwrap();
        durable(&node, "fork-1").await;
        node.tidy().await.unwrap();
    }
    node.delete(&id("fork-1")).await.unwrap();
    node.create(fork("fork-2", "base-1", version)).await.unwrap();
    assert_eq!(differences(copy.path(), &live(&node, "fork-2")), "");
    assert_eq!(names(node.pool().path().join("templates")).len(), 1);
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w11_there_is_no_moment_without_the_volume_in_a_restore() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    let path = live(&node, "vol-1");
    std::fs::write(path.join("which"), "first").unwrap();
    let first = durable(&node, "vol-1").await;
    std::fs::write(path.join("which"), "second").unwrap();
    let second = durable(&node, "vol-1").await;
    let (stop_looking, looked) = (Arc::new(AtomicBool::new(false)), path.clone());
    let ends = Arc::clone(&stop_looking);
    let watcher = std::thread::spawn(move || {
        let mut looks = 0_u64;
        while !ends.load(Ordering::Relaxed) {
            assert!(std::fs::symlink_metadata(&looked).expect("the volume is there").is_dir());
            // A look that began in a tree that is being deleted finds nothing in it, as a process in it would.
            if let Ok(found) = std::fs::read_to_string(looked.join("which")) {
                assert!(found == "first" || found == "second", "{found}");
            }
            assert!(names(&looked).iter().all(|name| name == "which"), "nothing is nested in it");
            looks += 1;
        }
        looks
    });
    for round in 0..10 {
        let wanted = if round % 2 == 0 { first } else { second };
        node.restore(&id("vol-1"), Wanted::Version(wanted)).await.unwrap();
        let record = cas::record::get(&store, &id("vol-1")).await.unwrap().value;
        assert_eq!(record.head_entry().unwrap().version(), Some(wanted), "disk and head go together");
    }
    stop_looking.store(true, Ordering::Relaxed);
    let looks = watcher.join().unwrap();
    assert!(looks > 10, "{looks}");
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w12_what_is_written_during_a_sync_is_in_the_next_one() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    for round in 0..5 {
        std::fs::write(live(&node, "vol-1").join("before"), round.to_string()).unwrap();
        // The write comes when the snapshot is taken and its record under way.
        let path = live(&node, "vol-1").join("during");
        let mut written = false;
        faults.plan(move |call| {
            if call.kind == CallKind::Put && call.key.starts_with("vol/") && !written {
                written = true;
                std::fs::write(&path, format!("during {round}")).unwrap();
            }
            Fault::None
        });
        durable(&node, "vol-1").await;
        faults.heal();
        let next = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
        assert!(next.changed, "round {round}: the flag was cleared over a write");
        let tree = node.volumes().get(&id("vol-1")).unwrap().facts().head.unwrap().tree;
        let during = types::VolumePath::parse("during").unwrap();
        let read = node.reader().read(&tree, &during, 0..u64::MAX).await.unwrap();
        assert_eq!(read, format!("during {round}"));
        assert!(
            !node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap().changed,
            "and then it is clean"
        );
    }
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w24_what_is_half_made_is_never_taken_for_a_volume() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    durable(&node, "vol-1").await;
    let root = node.pool().path().to_owned();
    let make = |path: &str| {
        let made =
            std::process::Command::new("btrfs").args(["subvolume", "create"]).arg(root.join(path)).output();
        assert!(made.unwrap().status.success(), "{path}");
    };
    // Something on its way in, a snapshot without a name yet, and names that are no ids.
    for path in
        ["staging/incoming", "volumes/vol-1@transfer", "volumes/vol-1/snap/.pending", "volumes/Not-An-Id"]
    {
        make(path);
    }
    stop(node).await;
    let node = pool.start(&store).await;
    let volumes: Vec<String> = node.volumes().all().iter().map(|volume| volume.id.to_string()).collect();
    assert_eq!(volumes, ["vol-1"]);
    assert!(names(root.join("staging")).is_empty(), "half-made: swept");
    assert!(!root.join("volumes/vol-1/snap/.pending").exists());
    assert!(root.join("volumes/Not-An-Id").exists(), "not ours: left alone");
    let records = cas::record::list(&store).await.unwrap();
    assert_eq!(records.len(), 1, "and nothing of it was published");
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w29_a_fork_and_a_move_cost_what_changed() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    let volume = a.create(request("vol-1")).await.unwrap().into_inner();
    let mut noise = vec![0; 20 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    std::fs::write(live(&a, "vol-1").join("large"), &noise).unwrap();
    durable(&a, "vol-1").await;
    faults.reset();
    a.create(fork("fork-1", "vol-1", head(&volume))).await.unwrap();
    assert!(faults.reset().bytes_written < 10_000, "a fork moves no data");
    std::fs::write(live(&a, "fork-1").join("small"), "x").unwrap();
    let synced = a.sync(&id("fork-1"), SyncRequest::plain()).await.unwrap();
    assert!(!synced.full_scan && synced.bytes_uploaded < 10_000, "the first sync of a fork: {synced:?}");
    // The second node has the one and takes the other: what they share is not read again.
    a.release(&id("vol-1"), false).await.unwrap();
    b.acquire(&id("vol-1"), false).await.unwrap();
    a.release(&id("fork-1"), false).await.unwrap();
    faults.reset();
    b.acquire(&id("fork-1"), false).await.unwrap();
    let read = faults.counts().bytes_read;
    assert!(read < 1 << 20, "{read} bytes were read for a difference of one");
    stop(a).await;
    stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w30_a_restore_needs_room_for_the_tree_and_not_for_its_history() {
    const FILE: usize = 24 << 20;
    const VERSIONS: u32 = 16;
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    // All that was ever stored is more than the second pool has in all.
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::sized("node-b", "320Mi"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    a.create(request("vol-1")).await.unwrap();
    let mut noise = vec![0; FILE];
    for version in 0..VERSIONS {
        blake3::Hasher::new().update(&version.to_le_bytes()).finalize_xof().fill(&mut noise);
        std::fs::write(live(&a, "vol-1").join("large"), &noise).unwrap();
        durable(&a, "vol-1").await;
    }
    assert!(faults.counts().bytes_written > 320 << 20, "{:?}", faults.counts());
    a.release(&id("vol-1"), false).await.unwrap();
    faults.reset();
    b.acquire(&id("vol-1"), false).await.unwrap();
    let read = faults.counts().bytes_read;
    assert!(read < (FILE + FILE / 10) as u64, "{read} bytes were read for a tree of {FILE}");
    assert_eq!(std::fs::read(live(&b, "vol-1").join("large")).unwrap(), noise);
    assert!(names(b.pool().path().join("staging")).is_empty());
    stop(a).await;
    stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w31_a_new_owner_of_every_file_costs_no_contents() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    let mut noise = vec![0; 10_000];
    for number in 0_u32..1_000 {
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut noise);
        std::fs::write(live(&node, "vol-1").join(format!("f{number}")), &noise).unwrap();
    }
    let first = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert!(first.bytes_uploaded > 9 << 20, "{first:?}");
    let chown = |to: &str| {
        let done = std::process::Command::new("chown").args(["-R", to]).arg(live(&node, "vol-1")).status();
        assert!(done.unwrap().success());
    };
    chown("1000:1000");
    let owned = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert!(owned.changed && owned.bytes_uploaded < 150_000, "{owned:?}");
    // The same owner again moves every ctime and changes nothing: not one byte.
    chown("1000:1000");
    let same = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert!(!same.changed && same.bytes_uploaded == 0, "{same:?}");
    stop(node).await;
}

#[test]
fn w33_no_operation_of_a_node_starts_a_process() {
    fn look(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                look(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                // Once, when a pool is made and mounted; and tests.
                if ["device.rs", "filesystem.rs", "tests.rs"].iter().any(|name| path.ends_with(name)) {
                    continue;
                }
                for word in ["process::Command", "Command::new(", "posix_spawn", "libc::fork"] {
                    if text.contains(word) {
                        found.push(format!("{}: {word}", path.display()));
                    }
                }
            }
        }
    }
    let mut found = Vec::new();
    for room in ["src", "btrfs/src", "../cas/src"] {
        look(&Path::new(env!("CARGO_MANIFEST_DIR")).join(room), &mut found);
    }
    assert!(found.is_empty(), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w33_a_long_operation_on_one_volume_holds_no_other() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("slow")).await.unwrap();
    std::fs::write(live(&node, "slow").join("file"), "x").unwrap();
    // Its sync stands before the store until all the others are done.
    faults.every(CallKind::Put, "vol/slow", Fault::Delay(Duration::from_secs(3_600)));
    let slow = Arc::clone(&node);
    let sync = tokio::spawn(async move { slow.sync(&id("slow"), SyncRequest::plain()).await });
    for number in 0..4 {
        let name = format!("vol-{number}");
        node.create(request(&name)).await.unwrap();
        durable(&node, &name).await;
        node.delete(&id(&name)).await.unwrap();
    }
    assert!(!sync.is_finished(), "the one is still waiting");
    sync.abort();
    node.stop().cancel();
}
