//! Whatever is done to an object of the store is found and named, and is never taken for the truth.

use std::sync::Arc;

use cas::objects::{MemoryStore, Objects as _, list_all};
use cas::tree::TreeError;
use cas::{Cache, Reader, Store, VersionRef, WriteOptions};
use types::{Classify as _, Kind, SystemClock};

use crate::place::{Place, open};

/// A tree with files of every class, in several packs.
async fn stored() -> (MemoryStore, Place, VersionRef) {
    let objects = MemoryStore::new();
    let options = WriteOptions { pack_bytes: 1 << 17, ..WriteOptions::default() };
    let place = Place::with(Arc::new(objects.clone()), options).await;
    let source = place.new_dir("source");
    for number in 0u32..60 {
        let dir = source.join(format!("d{}", number % 7));
        std::fs::create_dir_all(&dir).unwrap();
        let noise: Vec<u8> =
            blake3::hash(&number.to_le_bytes()).as_bytes().iter().copied().cycle().take(3_000).collect();
        std::fs::write(dir.join(format!("f{number}")), &noise[..(number as usize * 50).min(3_000)]).unwrap();
    }
    let mut large = vec![0; 1_500_000];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut large);
    std::fs::write(source.join("large"), &large).unwrap();
    let mut one_frame = vec![0; 100_000];
    blake3::Hasher::new().update(b"other noise").finalize_xof().fill(&mut one_frame);
    std::fs::write(source.join("one-frame"), &one_frame).unwrap();
    let tree = place.put(&source).await.tree;
    (objects, place, tree)
}

async fn reader(objects: &MemoryStore) -> Reader {
    let store = Store::open(Arc::new(objects.clone()), Arc::new(SystemClock)).await.unwrap();
    Reader::new(store, Cache::new(8 << 20))
}

/// Damage is told by `verify`, and a restore fails and says which object; nothing panics.
async fn is_found(objects: &MemoryStore, tree: &VersionRef, key: &str, what: &str) {
    let reader = reader(objects).await;
    let report = reader.verify(tree).await.unwrap();
    assert!(!report.is_whole(), "{what}: not found");
    let pack = key.strip_prefix("pack/").unwrap();
    let named = report.damages.iter().any(|damage| damage.to_string().contains(pack));
    assert!(named, "{what}: {pack} is not named by {:?}", report.damages);
    assert!(report.damages.iter().all(|damage| damage.kind() == Kind::DataLoss), "{what}");
}

#[tokio::test]
async fn flipped_cut_and_deleted_packs_are_found_and_named() {
    let (objects, place, tree) = stored().await;
    let packs = list_all(&objects, "pack/").await.unwrap();
    assert!(packs.len() >= 4, "{}", packs.len());
    for meta in &packs {
        let key = meta.key.to_string();
        let len = usize::try_from(meta.size).unwrap();
        for at in [0, 9, 30, 100, len / 3, len / 2, len - 45, len - 20, len - 1] {
            let damaged = objects.fork();
            damaged.damage(&meta.key, |bytes| bytes[at] ^= 0x10);
            is_found(&damaged, &tree, &key, &format!("{key}: byte {at} of {len} flipped")).await;
        }
        for len in [0, 7, 60, len / 2, len - 1] {
            let damaged = objects.fork();
            damaged.damage(&meta.key, |bytes| bytes.truncate(len));
            is_found(&damaged, &tree, &key, &format!("{key}: cut to {len}")).await;
        }
        let damaged = objects.fork();
        damaged.delete(&meta.key).await.unwrap();
        is_found(&damaged, &tree, &key, &format!("{key}: deleted")).await;
        let target = place.new_dir(&format!("deleted-{}", key.replace('/', "-")));
        let error = reader(&damaged)
            .await
            .restore(&tree, open(&target), cas::RestoreOptions::default())
            .await
            .unwrap_err();
        assert!(
            matches!(&error, TreeError::MissingPack { pack } if key.ends_with(&pack.to_string())),
            "{error}"
        );
    }
}

#[tokio::test]
async fn files_in_a_damaged_frame_are_named_and_the_others_are_good() {
    let (objects, place, tree) = stored().await;
    let report = place.reader.verify(&tree).await.unwrap();
    assert!(report.is_whole());
    // The frame of the file that has one of its own.
    let path = types::VolumePath::parse("one-frame").unwrap();
    let whole = place.reader.read(&tree, &path, 0..u64::MAX).await.unwrap();
    let key = list_all(&objects, "pack/").await.unwrap();
    let mut hit = 0;
    for meta in key {
        let damaged = objects.fork();
        let needle = whole[50_000..50_100].to_vec();
        damaged.damage(&meta.key, |bytes| {
            if let Some(at) = bytes.windows(100).position(|window| window == needle) {
                bytes[at] ^= 1;
                hit += 1;
            }
        });
        if hit == 1 {
            hit += 1;
            let report = reader(&damaged).await.verify(&tree).await.unwrap();
            let files: Vec<String> = report
                .damages
                .iter()
                .filter_map(|damage| match damage {
                    TreeError::DamagedFile { path, .. } => Some(String::from_utf8_lossy(path).into_owned()),
                    _ => None,
                })
                .collect();
            assert_eq!(files, ["one-frame"], "{:?}", report.damages);
            let error = reader(&damaged).await.read(&tree, &path, 0..10).await.unwrap_err();
            assert_eq!(error.kind(), Kind::DataLoss, "{error}");
        }
    }
    assert!(hit > 0, "random bytes are stored as they are");
}

#[tokio::test]
async fn a_location_that_leads_elsewhere_is_not_believed() {
    let (objects, place, tree) = stored().await;
    let source = place.new_dir("other");
    std::fs::write(source.join("x"), b"other").unwrap();
    let other = place.put(&source).await.tree;
    let mixed = VersionRef { version: tree.version, manifest: other.manifest };
    let error = reader(&objects).await.manifest(&mixed).await.unwrap_err();
    assert!(matches!(error, TreeError::WrongTree { .. }), "{error}");
}
