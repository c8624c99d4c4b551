//! What goes in comes out.

use std::sync::Arc;

use cas::WriteOptions;
use cas::objects::{DirStore, MemoryStore};

use crate::place::Place;
use crate::tools::{differences, may_make_everything, nasty_tree};

#[tokio::test]
async fn a_nasty_tree_comes_back_as_it_was() {
    if !may_make_everything() {
        return;
    }
    let place = Place::new().await;
    let source = place.new_dir("source");
    nasty_tree(&source);
    let written = place.put(&source).await;
    assert!(written.full_scan && written.changed);
    let target = place.new_dir("target");
    place.restore(&written.tree, &target).await.unwrap();
    assert_eq!(differences(&source, &target), "");
    let again = place.put(&target).await;
    assert_eq!(again.tree.version, written.tree.version);
    let report = place.reader.verify(&written.tree).await.unwrap();
    assert!(report.is_whole(), "{:#?}", report.damages);
    assert_eq!((report.files, report.bytes), (written.files, written.bytes));
}

#[tokio::test]
async fn many_small_packs_and_one_worker_give_the_same_tree() {
    if !may_make_everything() {
        return;
    }
    let place = Place::new().await;
    let source = place.new_dir("source");
    nasty_tree(&source);
    let written = place.put(&source).await;
    let dir = tempfile::tempdir().unwrap();
    let options = WriteOptions { pack_bytes: 1 << 18, workers: 1, ..WriteOptions::default() };
    let small = Place::with(Arc::new(DirStore::create_or_open(dir.path()).await.unwrap()), options).await;
    let again = small.put(&source).await;
    assert_eq!(again.tree.version, written.tree.version);
    assert!(again.objects_written > 10, "{again:?}");
    let target = small.new_dir("target");
    small.restore(&again.tree, &target).await.unwrap();
    assert_eq!(differences(&source, &target), "");
}

#[tokio::test]
async fn a_tree_needs_no_root() {
    let place = Place::with(Arc::new(MemoryStore::default()), WriteOptions::default()).await;
    let source = place.new_dir("source");
    std::fs::create_dir_all(source.join("a/b")).unwrap();
    std::fs::write(source.join("a/b/c"), b"hello").unwrap();
    std::fs::write(source.join("large"), vec![7; 3 << 20]).unwrap();
    std::fs::hard_link(source.join("large"), source.join("a/large")).unwrap();
    let written = place.put(&source).await;
    assert_eq!((written.files, written.bytes, written.objects_written), (3, 5 + (3 << 20), 1));
    let target = place.new_dir("target");
    place.restore(&written.tree, &target).await.unwrap();
    assert_eq!(std::fs::read(target.join("a/b/c")).unwrap(), b"hello");
    assert_eq!(std::fs::read(target.join("a/large")).unwrap(), vec![7; 3 << 20]);
    assert_eq!(place.put(&target).await.tree.version, written.tree.version);
}
