//! Room in a small real pool: what is durable and idle goes, longest unused first, and nothing else ever does.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cas::objects::{CallKind, Fault};
use common::{TestPool, differences, has_btrfs, head, id, live, request, sh, stop, store};
use csi::config::Marks;
use csi::create::CreateRequest;
use csi::evict::{Evicted, Holding, Stays};
use csi::node::Node;
use csi::sync::SyncRequest;

const MIB: usize = 1 << 20;

/// Everything that may go, goes.
const ALL: Marks = Marks { high: 1, low: 0, idle: Duration::ZERO };

fn noise(path: &Path, bytes: usize) {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(path.as_os_str().as_encoded_bytes()).finalize_xof().fill(&mut noise);
    std::fs::write(path, noise).unwrap();
}

/// A volume with so much in it, durable.
async fn filled(node: &Arc<Node>, name: &str, bytes: usize) {
    node.create(CreateRequest { limit_bytes: None, ..request(name) }).await.unwrap();
    noise(&live(node, name).join("noise"), bytes);
    node.sync(&id(name), SyncRequest::plain()).await.unwrap();
}

fn owned(name: &str) -> Holding {
    Holding::Owned(id(name))
}

async fn percent(node: &Node) -> u64 {
    let capacity = node.capacity().await.unwrap();
    (capacity.total_bytes - capacity.available_bytes) * 100 / capacity.total_bytes
}

fn marks(high: u64, low: u64) -> Marks {
    Marks { high: u8::try_from(high).unwrap(), low: u8::try_from(low).unwrap(), idle: Duration::ZERO }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_unused_goes_until_the_lower_mark_and_wakes_as_it_was() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::sized("node-a", "600Mi");
    let node = pool.start(&store).await;
    for name in ["vol-a", "vol-b", "vol-c"] {
        filled(&node, name, 60 * MIB).await;
    }
    let copy = tempfile::tempdir().unwrap();
    let from = live(&node, "vol-b");
    assert!(Command::new("cp").arg("-a").arg(from.join(".")).arg(copy.path()).status().unwrap().success());
    // A file call uses the first, so the second was unused for longest.
    drop(node.volumes().get(&id("vol-a")).unwrap().enter().await.unwrap());
    let full = percent(&node).await;
    assert!(full > 30, "{full} %");
    assert_eq!(
        node.make_room(marks(full + 1, full - 5)).await.unwrap(),
        Evicted::default(),
        "not above the mark"
    );
    let evicted = node.make_room(marks(full - 1, full - 5)).await.unwrap();
    assert_eq!(evicted.gone, [owned("vol-b")], "{evicted:?}");
    assert!(!evicted.short && percent(&node).await <= full - 5, "{} %", percent(&node).await);
    // Released, then dropped: nobody owns it, and it wakes here or elsewhere as it was.
    let record = cas::record::get(&store, &id("vol-b")).await.unwrap().value;
    assert_eq!(record.owner, None);
    assert!(node.volumes().find(&id("vol-b")).is_none() && !from.exists());
    let woken = node.acquire(&id("vol-b"), false).await.unwrap();
    assert_eq!(Some(head(&woken)), record.head_entry().and_then(|entry| entry.version()));
    assert_eq!(differences(copy.path(), &live(&node, "vol-b")), "");
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_dirty_mounted_pinned_published_or_in_use_stays_in_a_full_pool() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let (pool, pool_b) = (TestPool::sized("node-a", "600Mi"), TestPool::sized("node-b", "600Mi"));
    let (node, other) = (pool.start(&store).await, pool_b.start(&store).await);
    let with = |name: &str, attribute: &str, value: &str| {
        let attributes = [(attribute.to_owned(), value.to_owned())].into_iter().collect();
        CreateRequest { attributes, ..request(name) }
    };
    node.create(with("pinned", "csi/mobility", "pinned")).await.unwrap();
    node.create(with("published", "csi/node", "node-a")).await.unwrap();
    for name in ["idle", "dirty", "mounted", "locked"] {
        filled(&node, name, 5 * MIB).await;
    }
    noise(&live(&node, "dirty").join("more"), MIB);
    let target = tempfile::tempdir().unwrap();
    let mount = |arguments: &[&str]| {
        assert!(Command::new(arguments[0]).args(&arguments[1..]).status().unwrap().success());
    };
    let at = target.path().to_str().unwrap().to_owned();
    mount(&["mount", "--bind", live(&node, "mounted").to_str().unwrap(), &at]);
    let lock = node.locks().try_acquire(&id("locked"), "restore").unwrap();
    // A template, and the copy of a volume of another node.
    let sealed = other.create(request("base")).await.unwrap().into_inner();
    noise(&live(&other, "base").join("noise"), 5 * MIB);
    other.sync(&id("base"), SyncRequest::plain()).await.unwrap();
    drop(sealed);
    node.prefetch(&id("base")).await.unwrap();
    let version = node.ensure_template(&id("base")).await.unwrap();

    // With the store away nothing can be known to be durable, and nothing goes.
    faults.every(CallKind::Get, "vol/", Fault::Unavailable);
    let none = node.make_room(ALL).await.unwrap();
    assert_eq!(none.gone, [], "{none:?}");
    faults.heal();
    // Nothing goes that was used a moment ago either.
    let recent = node.make_room(Marks { idle: Duration::from_secs(600), ..ALL }).await.unwrap();
    assert_eq!(recent.gone, [], "{recent:?}");

    let evicted = node.make_room(ALL).await.unwrap();
    let stayed = |name: &str| {
        evicted.stayed.iter().find(|(holding, _)| *holding == owned(name)).map(|(_, stays)| *stays)
    };
    assert_eq!(stayed("dirty"), Some(Stays::Dirty), "{evicted:?}");
    assert_eq!(stayed("mounted"), Some(Stays::Mounted), "{evicted:?}");
    assert_eq!(stayed("locked"), Some(Stays::Needed), "{evicted:?}");
    assert_eq!(stayed("pinned"), Some(Stays::Pinned), "{evicted:?}");
    assert_eq!(stayed("published"), Some(Stays::Pinned), "{evicted:?}");
    let template = Holding::Template(csi::layout::Place::template(&id("base"), &version));
    assert!(evicted.gone.contains(&owned("idle")), "{evicted:?}");
    assert!(evicted.gone.contains(&Holding::Relative(id("base"))), "{evicted:?}");
    assert!(evicted.gone.contains(&template), "{evicted:?}");
    assert_eq!(evicted.gone.len(), 3, "{evicted:?}");
    assert!(evicted.short, "and the pool is still above the mark: said");
    assert!(live(&node, "mounted").join("noise").exists() && target.path().join("noise").exists());
    // The other node's volume is untouched, and what was evicted comes back.
    assert!(live(&other, "base").exists());
    assert_eq!(node.ensure_template(&id("base")).await.unwrap(), version);
    node.acquire(&id("idle"), false).await.unwrap();
    drop(lock);
    mount(&["umount", &at]);
    // Synced and unmounted, they may go too.
    node.sync(&id("dirty"), SyncRequest::plain()).await.unwrap();
    let rest = node.make_room(ALL).await.unwrap();
    for name in ["dirty", "mounted", "locked", "idle"] {
        assert!(rest.gone.contains(&owned(name)), "{name}: {rest:?}");
    }
    stop(node).await;
    stop(other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_as_room_can_be_used() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::sized("node-a", "400Mi");
    let node = pool.start(&store).await;
    node.create(CreateRequest { limit_bytes: None, ..request("vol-1") }).await.unwrap();
    let told = node.capacity().await.unwrap().available_bytes;
    // All that was promised is written, and there is still room to make something and to make it durable.
    noise(&live(&node, "vol-1").join("noise"), usize::try_from(told).unwrap());
    node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    node.create(request("vol-2")).await.unwrap();
    std::fs::write(live(&node, "vol-2").join("file"), "there is room").unwrap();
    node.sync(&id("vol-2"), SyncRequest::plain()).await.unwrap();
    let left = node.capacity().await.unwrap().available_bytes;
    assert!(left < told / 10, "{left} of {told}");
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_of_what_was_deleted_elsewhere_go_on_a_running_node() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (node, other) = (pool_a.start(&store).await, pool_b.start(&store).await);
    for name in ["gone", "kept", "mounted", "told"] {
        filled(&node, name, MIB).await;
        node.release(&id(name), true).await.unwrap();
        other.acquire(&id(name), false).await.unwrap();
    }
    filled(&node, "mine", MIB).await;
    let version = node.ensure_template(&id("gone")).await.unwrap();
    let template = pool_a.mount().join(csi::layout::Place::template(&id("gone"), &version).path());
    assert!(template.exists());
    let target = tempfile::tempdir().unwrap();
    let snapshots = pool_a.mount().join("volumes/mounted/snap");
    sh(&format!("mount --bind {} {}", snapshots.display(), target.path().display()));
    // One read for each of the four that are elsewhere, none for what is this node's.
    faults.reset();
    assert!(node.drop_leftovers().await.unwrap().is_empty());
    assert_eq!(faults.counts().calls(), 4, "{:?}", faults.counts());
    for name in ["gone", "mounted", "told"] {
        other.delete(&id(name)).await.unwrap();
    }

    assert_eq!(node.drop_leftovers().await.unwrap(), [id("gone"), id("told")]);
    let here = |name: &str| pool_a.mount().join("volumes").join(name).exists();
    assert!(!here("gone") && !here("told") && !template.exists());
    assert!(here("kept") && here("mounted") && here("mine"));
    // What is mounted goes when it is not any more; telling is as good as looking, and changes nothing where nothing was
    // deleted.
    sh(&format!("umount {}", target.path().display()));
    assert!(node.drop_leftover(&id("mounted")).await.unwrap());
    assert!(!node.drop_leftover(&id("kept")).await.unwrap());
    assert!(!node.drop_leftover(&id("mine")).await.unwrap());
    assert!(!here("mounted") && here("kept") && live(&node, "mine").exists());
    stop(node).await;
    stop(other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_deposed_owner_did_not_publish_is_kept_when_it_is_told_of_the_deletion() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    filled(&node, "vol-1", MIB).await;
    std::fs::write(live(&node, "vol-1").join("late"), "not published").unwrap();
    cas::lifecycle::delete(&store, &id("vol-1"), None, cas::lifecycle::Authority::Force).await.unwrap();
    node.drop_leftover(&id("vol-1")).await.unwrap();
    assert!(node.volumes().find(&id("vol-1")).is_none());
    let records = cas::record::list(&store).await.unwrap();
    let orphans = records.iter().filter(|record| record.value.kind == cas::RecordKind::Orphan).count();
    assert_eq!(orphans, 1, "{records:?}");
    stop(node).await;
}
