//! The sweep over all volumes: it finds every write, and costs nothing where there was none.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::{TestPool, fork, has_btrfs, head, id, live, request, stop, store};
use csi::node::Node;
use csi::restore::Wanted;
use csi::sync::SyncRequest;
use futures::StreamExt as _;
use types::VersionId;

const VOLUMES: usize = 30;

fn name(number: usize) -> String {
    format!("vol-{number}")
}

fn heads(node: &Arc<Node>) -> Vec<VersionId> {
    (0..VOLUMES).map(|number| head(&node.volumes().get(&id(&name(number))).unwrap())).collect()
}

fn write(node: &Node, number: usize, file: impl AsRef<Path>) {
    std::fs::write(live(node, &name(number)).join(file), format!("written to {number}")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_syncs_what_was_written_to_and_asks_the_store_nothing_for_the_rest() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    for number in 0..VOLUMES {
        node.create(request(&name(number))).await.unwrap();
    }
    // Looked at one by one the first time, in one search from then on: both have to see the same.
    for round in 0..3 {
        node.sync_all().await;
        faults.reset();
        node.sync_all().await;
        assert_eq!(faults.counts().calls(), 0, "round {round}: nothing was written");

        let before = heads(&node);
        let written = BTreeSet::from([round, 7, VOLUMES - 1]);
        for number in &written {
            write(&node, *number, format!("file-{round}"));
        }
        node.sync_all().await;
        let after = heads(&node);
        let moved: BTreeSet<usize> = (0..VOLUMES).filter(|n| before[*n] != after[*n]).collect();
        assert_eq!(moved, written, "round {round}");
    }
    stop(node).await;
}

/// Only the sweep's packs are shared: there nobody waits for an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_is_asked_for_fills_its_own_pack_and_waits_for_no_other() {
    const TOGETHER: usize = 8;
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    for number in 0..TOGETHER {
        node.create(request(&name(number))).await.unwrap();
    }
    for round in 0..4 {
        let syncs = (0..TOGETHER).map(|number| {
            write(&node, number, format!("file-{round}"));
            let (node, name) = (Arc::clone(&node), name(number));
            tokio::spawn(async move { node.sync(&id(&name), SyncRequest::plain()).await.unwrap() })
        });
        for synced in futures::future::join_all(syncs.collect::<Vec<_>>()).await {
            assert_eq!(
                synced.unwrap().objects_written,
                2,
                "round {round}: a pack of its own, and the record"
            );
        }
    }
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_sees_writes_in_nested_subvolumes_after_restores_and_in_forks() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    for number in 0..VOLUMES {
        node.create(request(&name(number))).await.unwrap();
    }
    let empty = head(&node.volumes().get(&id("vol-0")).unwrap());
    node.create(fork("vol-fork", "vol-0", empty)).await.unwrap();
    node.sync_all().await;
    node.sync_all().await;

    let sees = async |what: &str, volume: &str, write: &dyn Fn()| {
        let volume = node.volumes().get(&id(volume)).unwrap();
        let before = head(&volume);
        write();
        node.sync_all().await;
        assert_ne!(head(&volume), before, "{what}");
    };
    let nested = live(&node, "vol-1").join("nested");
    sees("a nested subvolume that was made", "vol-1", &|| {
        let made = Command::new("btrfs").args(["subvolume", "create"]).arg(&nested).output();
        assert!(made.unwrap().status.success());
    })
    .await;
    // Not in live itself: a write to the nested one leaves that alone.
    sees("a write in a nested subvolume", "vol-1", &|| std::fs::write(nested.join("in"), "it").unwrap())
        .await;
    sees("a write in a fork", "vol-fork", &|| {
        std::fs::write(live(&node, "vol-fork").join("mine"), "x").unwrap();
    })
    .await;

    faults.reset();
    node.sync_all().await;
    assert_eq!(faults.counts().calls(), 0, "a nested subvolume that nobody wrote to");

    // A restore exchanges two subvolumes: the one that the sweep knew is not live any more, and stays for its mount.
    let before = head(&node.volumes().get(&id("vol-2")).unwrap());
    sees("a write", "vol-2", &|| write(&node, 2, "first")).await;
    let mounted = Mounted::bind(&live(&node, "vol-2"));
    node.restore(&id("vol-2"), Wanted::Version(before)).await.unwrap();
    assert_eq!(head(&node.volumes().get(&id("vol-2")).unwrap()), before);
    sees("a write after a restore", "vol-2", &|| write(&node, 2, "second")).await;
    let synced = node.sync(&id("vol-2"), SyncRequest::plain()).await.unwrap();
    assert!(!synced.changed, "the sweep had stored all of it");
    drop(mounted);
    stop(node).await;
}

/// Many commits close behind each other: the kernel misses a request for one now and then, and by itself looks again after
/// thirty seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_creates_does_not_wait_for_the_kernels_own_commit() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    let creates = (0..800).map(|number| {
        let node = Arc::clone(&node);
        async move {
            let started = std::time::Instant::now();
            node.create(request(&name(number))).await.unwrap();
            started.elapsed()
        }
    });
    let times: Vec<_> = futures::stream::iter(creates).buffer_unordered(32).collect().await;
    let slowest = times.into_iter().max().unwrap();
    assert!(slowest < std::time::Duration::from_secs(15), "a create took {slowest:?}");
    stop(node).await;
}

/// A bind mount that goes away.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn bind(path: &Path) -> Self {
        let at = tempfile::tempdir().unwrap();
        let done = Command::new("mount").arg("--bind").arg(path).arg(at.path()).status().unwrap();
        assert!(done.success());
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.0.path()).status());
    }
}
