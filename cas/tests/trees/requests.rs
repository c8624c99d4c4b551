//! How often a restore asks the store.

use std::sync::Arc;

use cas::WriteOptions;
use cas::objects::MemoryStore;

use crate::place::Place;

/// Directories of the tree, and files in each that no other directory has.
const DIRS: u32 = 20;
const OWN: u32 = 900;

/// Files that a directory has in common with all others before it.
const COMMON: u32 = 5;

fn noise(seed: u32) -> [u8; 200] {
    let mut bytes = [0; 200];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[tokio::test]
async fn a_pack_is_asked_for_once_although_equal_files_stand_everywhere() {
    let options = WriteOptions { pack_bytes: 256 << 10, ..WriteOptions::default() };
    let place = Place::with(Arc::new(MemoryStore::default()), options).await;
    let source = place.new_dir("source");
    for dir in 0..DIRS {
        let path = source.join(format!("{dir:02}"));
        std::fs::create_dir(&path).unwrap();
        for file in 0..OWN {
            std::fs::write(path.join(format!("own-{file}")), noise(dir * OWN + file)).unwrap();
        }
        for file in (0..dir).flat_map(|before| (0..COMMON).map(move |n| before * OWN + n)) {
            std::fs::write(path.join(format!("common-{file}")), noise(file)).unwrap();
        }
    }
    let tree = place.put(&source).await.tree;
    let packs = place.reader.manifest(&tree).await.unwrap().packs.len() as u64;
    assert!(packs >= 12, "{packs} packs");
    let restored = place.restore(&tree, &place.new_dir("target")).await.unwrap();
    assert_eq!(restored.files, u64::from(DIRS * OWN + DIRS * (DIRS - 1) / 2 * COMMON));
    // Some are asked for by the first window, which is a short one, and by the next.
    assert!(restored.requests <= packs + packs / 2, "{} requests for {packs} packs", restored.requests);
}
