//! A limit stays fair: what local snapshots hold does not keep a tenant from writing, and a limit means the same on every
//! node.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests, and a figure must be seen")]

mod common;

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use cas::Role;
use common::{TestPool, fork, has_btrfs, head, id, live, request, stop, store};
use csi::create::CreateRequest;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_limited_below_its_templates_size_wakes_on_a_second_node_with_the_room_it_had() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    let template =
        a.create(CreateRequest { limit_bytes: None, ..request("template") }).await.unwrap().into_inner();
    assert!(write(&live(&a, "template").join("large"), 60 * MIB));
    a.sync(&id("template"), SyncRequest::plain()).await.unwrap();
    let small = CreateRequest { limit_bytes: Some(20 << 20), ..fork("clone", "template", head(&template)) };
    a.create(small).await.unwrap();
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
