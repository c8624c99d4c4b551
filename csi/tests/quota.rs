//! A limit stays fair: what local snapshots hold does not keep a tenant from writing, and a limit means the same on every
//! node.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests, and a figure must be seen")]

mod common;

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cas::Role;
use common::{TestPool, fork, has_btrfs, head, id, live, request, stop, store};
use csi::create::CreateRequest;
use csi::node::Node;
use csi::sync::SyncRequest;

const MIB: usize = 1 << 20;

/// Writes random bytes, durably; tells if there was room for all of them.
fn write(path: &Path, bytes: usize) -> bool {
    let mut noise = vec![0; bytes];
    let seed = rand::random::<u64>().to_le_bytes();
    blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut noise);
    let written = std::fs::File::create(path).and_then(|mut file| {
        file.write_all(&noise)?;
        file.sync_all()
    });
    match written {
        Ok(()) => true,
        Err(error) => {
            let full = [nix::libc::EDQUOT, nix::libc::ENOSPC].map(Some);
            assert!(full.contains(&error.raw_os_error()), "{error}");
            drop(std::fs::remove_file(path));
            false
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_volume_whose_tenant_deletes_half_is_writable_again_within_five_seconds() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(CreateRequest { limit_bytes: Some(100 << 20), ..request("vol-1") }).await.unwrap();
    let root = live(&node, "vol-1");
    for number in 0..9 {
        assert!(write(&root.join(format!("file-{number}")), 10 * MIB));
    }
    // Its base and a snapshot that somebody asked for hold all of it.
    let asked = SyncRequest { role: Role::Manual, label: "full".to_owned() };
    node.sync(&id("vol-1"), asked).await.unwrap();
    assert!(!write(&root.join("more"), 20 * MIB), "it is full");
    node.spawn_loops();
    // A machine that has other things to do gets another try.
    let mut took = Vec::new();
    for round in 0..3 {
        for number in 0..5 {
            std::fs::remove_file(root.join(format!("file-{number}"))).unwrap();
        }
        let deleted = Instant::now();
        while !write(&root.join("again"), 30 * MIB) {
            assert!(deleted.elapsed() < Duration::from_secs(60), "never");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        took.push(deleted.elapsed());
        if deleted.elapsed() < Duration::from_secs(5) {
            break;
        }
        assert!(round < 2, "writable again after {took:?}");
        std::fs::remove_file(root.join("again")).unwrap();
        for number in 0..5 {
            while !write(&root.join(format!("file-{number}")), 10 * MIB) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    }
    eprintln!("writable again after {took:?}");
    // The limit holds all the same.
    let mut fits = 0;
    while write(&root.join(format!("rest-{fits}")), 10 * MIB) {
        fits += 1;
        assert!(fits < 10, "the limit is gone");
    }
    stop(node).await;
}

/// Makes `clone`, which may be charged less than the 60 MiB of its template.
async fn small_clone(node: &Arc<Node>, limit_bytes: u64) {
    let template =
        node.create(CreateRequest { limit_bytes: None, ..request("template") }).await.unwrap().into_inner();
    assert!(write(&live(node, "template").join("large"), 60 * MIB));
    node.sync(&id("template"), SyncRequest::plain()).await.unwrap();
    let fork = fork("clone", "template", head(&template));
    node.create(CreateRequest { limit_bytes: Some(limit_bytes), ..fork }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_limited_below_its_templates_size_wakes_on_a_second_node_with_the_room_it_had() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    small_clone(&a, 20 << 20).await;
    assert!(write(&live(&a, "clone").join("own"), 8 * MIB), "a clone is charged for what it writes");
    a.sync(&id("clone"), SyncRequest::plain()).await.unwrap();
    a.release(&id("clone"), false).await.unwrap();
    // There everything comes from the store and is charged; what remains is what remained.
    b.acquire(&id("clone"), false).await.unwrap();
    let root = live(&b, "clone");
    assert_eq!(std::fs::metadata(root.join("large")).unwrap().len(), 60 << 20);
    assert!(write(&root.join("fits"), 8 * MIB), "12 of 20 MiB remained");
    assert!(!write(&root.join("too-much"), 8 * MIB), "and no more");
    let volume = b.volumes().get(&id("clone")).unwrap();
    assert_eq!(volume.facts().about.limit_bytes, Some(20 << 20), "what people see is what they asked for");
    stop(a).await;
    stop(b).await;
}

/// What the node says that a volume uses.
async fn used(node: &Arc<Node>, name: &str) -> u64 {
    // The kernel tells charges as of the last commit, and of what was deleted when it has cleaned up.
    for _ in 0..600 {
        node.tidy().await.unwrap();
        if node.pool().run(|root| Ok(btrfs::cleaner::queued(root)?)).await.unwrap() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    node.tidy().await.unwrap();
    node.pool().commit_with_data().await.unwrap();
    node.describe(&node.volumes().get(&id(name)).unwrap()).await.unwrap().used_bytes
}

/// Asserts what is used, within a hundredth and the roots of a few trees.
async fn assert_used(node: &Arc<Node>, name: &str, mib: usize, when: &str) {
    let (used, expected) = (used(node, name).await, u64::try_from(mib * MIB).unwrap());
    eprintln!("{when}: {used} of {expected}");
    assert!(used.abs_diff(expected) <= expected / 100 + (96 << 10), "{when}: {used}, not {expected}");
}

/// Writes files of ten MiB until there is no room, and tells how many fit.
fn fits(root: &Path) -> usize {
    let mut files = 0;
    while write(&root.join(format!("fill-{files}")), 10 * MIB) {
        files += 1;
        assert!(files < 50, "the limit is gone");
    }
    for file in 0..files {
        std::fs::remove_file(root.join(format!("fill-{file}"))).unwrap();
    }
    files
}

/// Moves a volume, as the hub does: fetched near, given up, taken.
async fn travel(name: &str, from: &Arc<Node>, to: &Arc<Node>) {
    to.prefetch(&id(name)).await.unwrap();
    from.release(&id(name), true).await.unwrap();
    to.acquire(&id(name), false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_volume_brings_to_a_node_that_had_it_or_fetched_it_is_its_own_there() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (mut a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    let limited = |mib: u64| CreateRequest { limit_bytes: Some(mib << 20), ..request("vol-1") };
    a.create(limited(85)).await.unwrap();
    for file in 0..5 {
        assert!(write(&live(&a, "vol-1").join(format!("file-{file}")), 10 * MIB));
    }
    a.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert_used(&a, "vol-1", 50, "where it was made").await;
    // Fetched near first: what the fetched snapshot holds is the volume's.
    travel("vol-1", &a, &b).await;
    assert_used(&b, "vol-1", 50, "where it was fetched").await;
    assert_eq!(fits(&live(&b, "vol-1")), 3, "as much is left as was left");
    for file in 0..4 {
        std::fs::remove_file(live(&b, "vol-1").join(format!("file-{file}"))).unwrap();
    }
    b.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert_used(&b, "vol-1", 10, "after a deletion there").await;
    assert_eq!(fits(&live(&b, "vol-1")), 7, "what was deleted made room");
    assert!(write(&live(&b, "vol-1").join("own"), 20 * MIB));
    // Back where an old snapshot of it is, after a restart that has to know whose group is whose.
    stop(a).await;
    a = pool_a.start(&store).await;
    assert_eq!(a.volumes().len(), 1, "the relative");
    travel("vol-1", &b, &a).await;
    assert_used(&a, "vol-1", 30, "where an old snapshot was").await;
    assert_eq!(fits(&live(&a, "vol-1")), 5);
    std::fs::remove_file(live(&a, "vol-1").join("own")).unwrap();
    std::fs::remove_file(live(&a, "vol-1").join("file-4")).unwrap();
    a.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert_used(&a, "vol-1", 0, "empty").await;
    assert_eq!(fits(&live(&a, "vol-1")), 8);
    // There and back without anything new, and then gone with its groups.
    travel("vol-1", &a, &b).await;
    travel("vol-1", &b, &a).await;
    assert_eq!(fits(&live(&a, "vol-1")), 8);
    a.delete(&id("vol-1")).await.unwrap();
    b.settle_all().await;
    stop(b).await;
    let b = pool_b.start(&store).await;
    for node in [&a, &b] {
        assert!(node.volumes().is_empty());
        let started = Instant::now();
        loop {
            node.tidy().await.unwrap();
            let groups = node.pool().run(|root| Ok(btrfs::quota::groups(root)?)).await.unwrap();
            if groups.keys().all(|group| group.level() == 0) {
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "groups are left: {groups:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    stop(a).await;
    stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_is_charged_for_its_own_on_each_node_it_comes_to_and_comes_back_to() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    small_clone(&a, 45 << 20).await;
    assert!(write(&live(&a, "clone").join("own"), 10 * MIB));
    a.sync(&id("clone"), SyncRequest::plain()).await.unwrap();
    travel("clone", &a, &b).await;
    assert_used(&b, "clone", 10, "fetched whole").await;
    assert_eq!(fits(&live(&b, "clone")), 3);
    assert!(write(&live(&b, "clone").join("more"), 10 * MIB));
    std::fs::remove_file(live(&b, "clone").join("own")).unwrap();
    travel("clone", &b, &a).await;
    assert_used(&a, "clone", 10, "beside its template again").await;
    assert_eq!(fits(&live(&a, "clone")), 3);
    travel("clone", &a, &b).await;
    assert_used(&b, "clone", 10, "where it was fetched whole once").await;
    assert_eq!(fits(&live(&b, "clone")), 3);
    std::fs::remove_file(live(&b, "clone").join("more")).unwrap();
    b.sync(&id("clone"), SyncRequest::plain()).await.unwrap();
    assert_used(&b, "clone", 0, "without anything of its own").await;
    assert_eq!(fits(&live(&b, "clone")), 4);
    stop(a).await;
    stop(b).await;
}
