//! What is deleted waits for the kernel's cleaner: not too much of it at once, and its space is promised to nobody before it
//! is back.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests, and a figure must be seen")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::kubelet::noise;
use common::{TestPool, fork, has_btrfs, head, id, live, request, stop, store};
use csi::create::CreateRequest;
use csi::node::Node;
use csi::sync::SyncRequest;

/// How many deleted subvolumes may wait here.
const MOST: u64 = 12;
const FORKS: usize = 60;

async fn queued(node: &Node) -> u64 {
    node.pool().run(|root| Ok(btrfs::cleaner::queued(root)?)).await.unwrap()
}

/// Waits until the kernel has given back all that was deleted.
async fn cleaned(node: &Node) {
    let started = Instant::now();
    while queued(node).await > 0 {
        assert!(started.elapsed() < Duration::from_secs(120), "the cleaner is not done");
        node.tidy().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The one that it was at is not counted.
    node.tidy().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand05_many_deletions_at_once_wait_for_the_kernel_and_all_end() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start_with(&store, &["--deleted-most", &MOST.to_string()]).await;
    let template = node.create(request("template")).await.unwrap().into_inner();
    for number in 0..500 {
        std::fs::write(live(&node, "template").join(format!("file-{number}")), noise(3000)).unwrap();
    }
    node.sync(&template.id, SyncRequest::plain()).await.unwrap();
    let version = head(&template);
    for number in 0..FORKS {
        node.create(fork(&format!("vol-{number}"), "template", version)).await.unwrap();
    }
    let deletions: Vec<_> = (0..FORKS)
        .map(|number| {
            let node = Arc::clone(&node);
            tokio::spawn(async move { node.delete(&id(&format!("vol-{number}"))).await })
        })
        .collect();
    let mut most = 0;
    while deletions.iter().any(|deletion| !deletion.is_finished()) {
        most = most.max(queued(&node).await);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for deletion in deletions {
        assert!(deletion.await.unwrap().unwrap().is_made());
    }
    eprintln!("at most {most} waited for the cleaner while {FORKS} were deleted");
    assert!((1..=MOST).contains(&most), "{most}");
    assert_eq!(common::names(node.pool().path().join("volumes")), ["template"]);
    cleaned(&node).await;
    stop(node).await;
}

/// Sets so much aside for a file that it can be written.
fn reserve(path: &Path, bytes: u64) -> Result<(), nix::errno::Errno> {
    let file = std::fs::File::create(path).unwrap();
    nix::fcntl::posix_fallocate(&file, 0, i64::try_from(bytes).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand08_what_waits_for_the_cleaner_is_not_promised() {
    const SIZE: u64 = 300 << 20;
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::sized("node-a", "1Gi");
    let node = pool.start(&store).await;
    node.create(CreateRequest { limit_bytes: None, ..request("probe") }).await.unwrap();
    let mut seen = false;
    for round in 0..5 {
        let name = format!("vol-{round}");
        node.create(CreateRequest { limit_bytes: None, ..request(&name) }).await.unwrap();
        for part in 0..30 {
            std::fs::write(live(&node, &name).join(format!("part-{part}")), noise(10 << 20)).unwrap();
        }
        node.sync(&id(&name), SyncRequest::plain()).await.unwrap();
        let full = node.capacity().await.unwrap().available_bytes;
        node.delete(&id(&name)).await.unwrap();
        let promised = node.capacity().await.unwrap().available_bytes;
        // Nobody has woken the cleaner; on another machine it may have woken by itself.
        let waits = queued(&node).await > 0;
        // Whatever it is at, what is promised is there.
        let probe = live(&node, "probe").join("reserved");
        reserve(&probe, promised / 100 * 95).unwrap();
        std::fs::remove_file(&probe).unwrap();
        node.pool().commit().await.unwrap();
        cleaned(&node).await;
        let started = Instant::now();
        let mut back = 0;
        while back < full + SIZE / 100 * 95 {
            assert!(started.elapsed() < Duration::from_secs(60), "{back} of {full} and {SIZE}");
            node.tidy().await.unwrap();
            back = node.capacity().await.unwrap().available_bytes;
        }
        if waits {
            eprintln!("{full} before, {promised} while {name} waits for the cleaner, {back} afterwards");
            assert!(promised < full + SIZE / 100 * 5, "{promised} promised, where {full} was there");
            seen = true;
            break;
        }
    }
    assert!(seen, "the cleaner was never caught behind");
    stop(node).await;
}
