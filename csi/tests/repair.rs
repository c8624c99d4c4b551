//! What the store lost and this pool still has comes back: found by the node's own scrub, put into new packs, named by
//! every record that holds it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use cas::objects::{FaultStore, Key, MemoryStore, Objects as _, list_all};
use cas::record::RecordKind;
use cas::scrub::Scrub;
use cas::{Cache, Reader, Store};
use common::{TestPool, differences, fill, has_btrfs, head, id, live, request, stop, store_over};
use csi::node::Node;
use csi::seal::SealRequest;
use csi::sync::SyncRequest;
use types::{VersionId, VolumeId};

async fn memory() -> (MemoryStore, Store) {
    let memory = MemoryStore::new();
    let store = store_over(&Arc::new(FaultStore::new(Arc::new(memory.clone())))).await;
    (memory, store)
}

async fn is_whole(store: &Store, volume: &VolumeId, version: &VersionId) -> bool {
    let record = cas::record::get(store, volume).await.unwrap().value;
    let entry = record.find_version(version).unwrap();
    let tree = entry.heads.values().next().unwrap();
    Reader::new(store.clone(), Cache::new(1 << 20)).verify(tree).await.unwrap().is_whole()
}

async fn packs(memory: &MemoryStore) -> Vec<Key> {
    list_all(memory, "pack/").await.unwrap().into_iter().map(|meta| meta.key).collect()
}

async fn seal(node: &Arc<Node>, volume: &str, sealed: &str, version: VersionId) {
    let request = common::seal(volume, sealed, RecordKind::Snapshot);
    node.seal(SealRequest { version: Some(version), ..request }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_damaged_pack_of_a_version_is_put_back_from_its_node() {
    if !has_btrfs() {
        return;
    }
    let (memory, store) = memory().await;
    let (pool, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let node = pool.start(&store).await;
    let volume = node.create(request("vol-1")).await.unwrap().into_inner();
    fill(&live(&node, "vol-1"));
    node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    let version = head(&volume);
    seal(&node, "vol-1", "snap-1", version).await;
    let entries: Vec<_> = cas::record::get(&store, &id("vol-1"))
        .await
        .unwrap()
        .value
        .entries
        .iter()
        .map(|entry| entry.id)
        .collect();
    assert_eq!(
        node.repair(&id("vol-1")).await.unwrap().versions,
        [],
        "nothing is damaged, nothing is written"
    );
    for harm in ["flip", "cut", "delete"] {
        let needed: BTreeSet<String> = {
            let record = cas::record::get(&store, &id("vol-1")).await.unwrap().value;
            let tree = record.find_version(&version).unwrap().heads.values().next().unwrap().clone();
            let manifest = Reader::new(store.clone(), Cache::new(0)).manifest(&tree).await.unwrap();
            manifest.packs.iter().map(|needed| format!("pack/{}", needed.pack)).collect()
        };
        for key in packs(&memory).await.iter().filter(|key| needed.contains(key.as_str())) {
            match harm {
                "flip" => assert!(memory.damage(key, |bytes| {
                    let at = bytes.len() / 2;
                    bytes[at] ^= 1;
                })),
                "cut" => assert!(memory.damage(key, |bytes| bytes.truncate(bytes.len() / 2))),
                _ => memory.delete(key).await.unwrap(),
            }
        }
        assert!(!is_whole(&store, &id("vol-1"), &version).await, "{harm}");
        let repaired = node.repair(&id("vol-1")).await.unwrap();
        assert_eq!(repaired.versions, [version], "{harm}: {repaired:?}");
        assert!(
            repaired.bytes_uploaded > 0 && repaired.lost.iter().all(|lost| *lost != version),
            "{repaired:?}"
        );
        assert_eq!(repaired.records, [id("vol-1"), id("snap-1")], "{harm}");
        for record in ["vol-1", "snap-1"] {
            assert!(is_whole(&store, &id(record), &version).await, "{harm}: {record}");
        }
    }
    // No entry came or went, and the next increment builds on what was put back.
    let after = cas::record::get(&store, &id("vol-1")).await.unwrap().value;
    assert_eq!(after.entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), entries);
    std::fs::write(live(&node, "vol-1").join("later"), "after the repair").unwrap();
    let synced = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    assert!(synced.changed && !synced.full_scan, "{synced:?}");
    assert!(is_whole(&store, &id("vol-1"), &synced.version).await);
    let copy = tempfile::tempdir().unwrap();
    let from = live(&node, "vol-1");
    assert!(
        std::process::Command::new("cp")
            .arg("-a")
            .arg(from.join("."))
            .arg(copy.path())
            .status()
            .unwrap()
            .success()
    );
    node.release(&id("vol-1"), false).await.unwrap();
    let other = pool_b.start(&store).await;
    other.acquire(&id("vol-1"), false).await.unwrap();
    assert_eq!(differences(copy.path(), &live(&other, "vol-1")), "");
    stop(node).await;
    stop(other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_snapshot_has_is_told_as_lost_and_the_rest_is_put_back() {
    if !has_btrfs() {
        return;
    }
    let (memory, store) = memory().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    std::fs::write(live(&node, "vol-1").join("file"), vec![1; 200_000]).unwrap();
    let first = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap().version;
    let old = packs(&memory).await;
    std::fs::write(live(&node, "vol-1").join("file"), vec![2; 200_000]).unwrap();
    let second = node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap().version;
    for key in packs(&memory).await {
        memory.delete(&key).await.unwrap();
    }
    let repaired = node.repair(&id("vol-1")).await.unwrap();
    assert!(repaired.versions.contains(&second) && repaired.lost.contains(&first), "{repaired:?}");
    assert!(is_whole(&store, &id("vol-1"), &second).await && !is_whole(&store, &id("vol-1"), &first).await);
    assert!(!old.is_empty());
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scrub_goes_on_after_a_restart_finds_damage_and_repairs_it() {
    if !has_btrfs() {
        return;
    }
    let (memory, store) = memory().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    // More packs than one part of a walk.
    for number in 0..20_u8 {
        std::fs::write(live(&node, "vol-1").join("file"), format!("number {number}")).unwrap();
        if number < 10 {
            // These stay, so that the head needs packs with numbers of one digit, which are listed last.
            let mut noise = vec![0; 100_000];
            blake3::Hasher::new().update(&[number]).finalize_xof().fill(&mut noise);
            std::fs::write(live(&node, "vol-1").join(format!("kept-{number}")), noise).unwrap();
        }
        node.sync(&id("vol-1"), SyncRequest::plain()).await.unwrap();
    }
    assert!(!node.scrub_part().await.unwrap(), "there is more");
    let progress = node.state().scrub().await.unwrap();
    assert_eq!((progress.packs, progress.found.len()), (16, 0));
    assert!(progress.after.is_some());
    // The last pack is damaged, which the head needs.
    let last = packs(&memory).await.pop().unwrap();
    assert!(memory.damage(&last, |bytes| bytes[5_000] ^= 1));
    stop(node).await;
    let node = pool.start(&store).await;
    assert_eq!(node.state().scrub().await.unwrap(), progress, "it goes on where it was");
    let version = head(&node.volumes().get(&id("vol-1")).unwrap());
    assert!(!is_whole(&store, &id("vol-1"), &version).await);
    while !node.scrub_part().await.unwrap() {}
    let ended = node.state().scrub().await.unwrap();
    assert_eq!(ended.before.iter().map(|(object, _)| object.as_str()).collect::<Vec<_>>(), [last.as_str()]);
    assert!(ended.finished.is_some() && ended.after.is_none());
    let check = node.checks().await.unwrap().into_iter().find(|check| check.name == "scrub").unwrap();
    assert!(!check.ok && check.detail.contains(last.as_str()), "{check:?}");
    assert!(is_whole(&store, &id("vol-1"), &version).await, "and it was put back");
    // The damaged pack is still there, and nothing that is the present of anything needs it.
    let damages = Scrub::new(store.clone(), None).whole(|_| {}).await.unwrap().damages;
    assert_eq!(damages.len(), 1);
    assert!(damages[0].touches.iter().all(|touches| touches.version != version), "{damages:?}");
    stop(node).await;
}
