//! Parts of a version: restored alone, and read without restoring, with a cache that is smaller than the tree.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use cas::objects::{CallKind, FaultStore, MemoryStore};
use cas::tree::{FoundKind, TreeError};
use cas::{Cache, Reader, RestoreOptions, WriteOptions};
use types::VolumePath;

use crate::place::{Place, open};
use crate::tools::{differences, may_make_everything, metadata, nasty_tree};

fn path(text: &str) -> VolumePath {
    VolumePath::parse(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_entry_of_a_tree_is_restored_alone_as_it_is_restored_with_all() {
    if !may_make_everything() {
        return;
    }
    let place = Place::new().await;
    let source = place.new_dir("source");
    nasty_tree(&source);
    let tree = place.writer.put(open(&source), None).await.unwrap().tree;
    let mut restored = 0;
    for entry in std::fs::read_dir(&source).unwrap() {
        let name = entry.unwrap().file_name();
        let target = place.new_dir(&format!("target-{restored}"));
        let at = VolumePath::parse(name.as_encoded_bytes()).unwrap();
        let options = RestoreOptions::default();
        place.reader.restore_part(&tree, &at, open(&target), name.as_encoded_bytes(), options).await.unwrap();
        let alone = place.new_dir(&format!("alone-{restored}"));
        // The same by hand: all that is not the entry taken away from a copy of the source.
        crate::tools::run("cp", &["-a", source.join(&name).to_str().unwrap_or("."), alone.to_str().unwrap()]);
        if name.to_str().is_some() {
            // A copy of one name knows no later names elsewhere, and its parent's metadata is its own.
            let (left, right) = (alone.join(&name), target.join(&name));
            if left.is_dir() && !left.is_symlink() {
                assert_eq!(metadata(&left), metadata(&right), "{name:?}");
            }
            if name == "many" {
                assert_eq!(differences(&left, &right), "", "{name:?}");
            }
        }
        restored += 1;
    }
    assert!(restored > 10, "{restored}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_a_file_that_is_elsewhere_become_that_file() {
    let place = Place::new().await;
    let source = place.new_dir("source");
    std::fs::create_dir_all(source.join("b/deep")).unwrap();
    std::fs::create_dir(source.join("a")).unwrap();
    let large = vec![7_u8; 3 << 20];
    std::fs::write(source.join("a/small"), "small").unwrap();
    std::fs::write(source.join("a/large"), &large).unwrap();
    std::fs::write(source.join("b/inside"), "inside").unwrap();
    for (from, to) in [
        ("a/small", "b/s1"),
        ("a/small", "b/deep/s2"),
        ("a/large", "b/l1"),
        ("a/large", "b/l2"),
        ("b/inside", "b/k"),
    ] {
        std::fs::hard_link(source.join(from), source.join(to)).unwrap();
    }
    let tree = place.writer.put(open(&source), None).await.unwrap().tree;
    let target = place.new_dir("target");
    let options = RestoreOptions::default();
    place.reader.restore_part(&tree, &path("b"), open(&target), b"new", options.clone()).await.unwrap();
    let inode = |name: &str| std::fs::metadata(target.join("new").join(name)).unwrap().ino();
    assert_eq!(std::fs::read(target.join("new/s1")).unwrap(), b"small");
    assert_eq!(std::fs::read(target.join("new/l2")).unwrap(), large);
    assert_eq!((inode("s1"), inode("l1"), inode("inside")), (inode("deep/s2"), inode("l2"), inode("k")));
    // One file, by its first name, by a later one, and by another name on disk.
    for (number, from) in ["a/large", "b/l1", "b/deep/s2"].into_iter().enumerate() {
        let name = format!("one-{number}");
        place
            .reader
            .restore_part(&tree, &path(from), open(&target), name.as_bytes(), options.clone())
            .await
            .unwrap();
        let expected = std::fs::read(source.join(from)).unwrap();
        assert!(std::fs::read(target.join(name)).unwrap() == expected, "{from}");
    }
    let missing =
        place.reader.restore_part(&tree, &path("b/none"), open(&target), b"x", options.clone()).await;
    assert!(matches!(missing, Err(TreeError::NotFound { .. })), "{missing:?}");
    let taken = place.reader.restore_part(&tree, &path("a/small"), open(&target), b"new", options).await;
    assert!(taken.is_err(), "what is there is not written over");
}

/// 20,000 small files in 400 directories, three deep.
fn wide_tree(root: &Path) {
    for outer in 0..20 {
        for inner in 0..20 {
            let dir = root.join(format!("d{outer:02}/e{inner:02}"));
            std::fs::create_dir_all(&dir).unwrap();
            for file in 0..50 {
                let mut content = vec![0; 900];
                blake3::Hasher::new_keyed(&[outer; 32])
                    .update(&[inner, file])
                    .finalize_xof()
                    .fill(&mut content);
                std::fs::write(dir.join(format!("f{file:02}")), content).unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_byte_of_a_file_of_a_cold_version_takes_few_requests_and_little_memory() {
    let faults = FaultStore::new(Arc::new(MemoryStore::default()));
    let place = Place::with(Arc::new(faults.clone()), WriteOptions::default()).await;
    let source = place.new_dir("source");
    wide_tree(&source);
    let written = place.writer.put(open(&source), None).await.unwrap();
    let mut most = (0, 0);
    for name in ["d00/e00/f00", "d07/e13/f31", "d19/e19/f49"] {
        let reader = Reader::new(place.store.clone(), Cache::new(64 << 20));
        faults.reset();
        let bytes = reader.read(&written.tree, &path(name), 0..1).await.unwrap();
        assert_eq!(bytes[..], std::fs::read(source.join(name)).unwrap()[..1]);
        let counts = faults.reset();
        let gets = counts.of(CallKind::GetRange) + counts.of(CallKind::Get);
        assert_eq!(gets, counts.calls(), "nothing but reads");
        most = (most.0.max(gets), most.1.max(counts.bytes_read));
    }
    println!("the first byte of a cold version: {} requests, {} bytes", most.0, most.1);
    assert!(most.0 <= 3, "{} requests", most.0);

    // All of it, read by path in an order that helps nobody, with a cache of a fraction of the tree.
    let (bound, total) = (256 << 10, written.bytes);
    assert!(total > 40 * bound as u64, "{total} bytes of files");
    let cache = Cache::new(bound);
    let reader = Reader::new(place.store.clone(), Arc::clone(&cache));
    for number in 0..400_usize {
        let (outer, inner, file) = (number * 7 % 20, number * 13 % 20, number * 29 % 50);
        let name = format!("d{outer:02}/e{inner:02}/f{file:02}");
        let bytes = reader.read(&written.tree, &path(&name), 0..u64::MAX).await.unwrap();
        assert!(bytes[..] == std::fs::read(source.join(&name)).unwrap()[..], "{name}");
        assert!(cache.bytes() <= bound, "{} bytes are kept", cache.bytes());
    }
    let listed = reader.list(&written.tree, &path("d03"), None, 100).await.unwrap();
    assert!(listed.iter().all(|found| matches!(found.kind, FoundKind::Directory { entries: 50 })));
}

#[tokio::test(flavor = "multi_thread")]
async fn links_are_followed_inside_a_version_and_not_out_of_it() {
    let place = Place::new().await;
    let source = place.new_dir("source");
    std::fs::create_dir_all(source.join("a/b")).unwrap();
    std::fs::write(source.join("a/file"), "content").unwrap();
    for (target, name) in [
        ("a", "dir"),
        ("../file", "a/b/up"),
        ("dir/b/up", "chain"),
        ("../../x", "a/out"),
        ("/etc/passwd", "absolute"),
        ("loop", "loop"),
        ("nowhere", "dangling"),
    ] {
        std::os::unix::fs::symlink(target, source.join(name)).unwrap();
    }
    let tree = place.writer.put(open(&source), None).await.unwrap().tree;
    let leads = async |from: &str, last: bool| {
        place.reader.resolve(&tree, &path(from), last).await.map(|to| to.to_string())
    };
    for (from, last, to) in [
        ("a/file", true, "a/file"),
        ("dir", false, "dir"),
        ("dir", true, "a"),
        ("dir/file", true, "a/file"),
        ("chain", true, "a/file"),
        ("a/b/up", true, "a/file"),
        ("dangling", true, "nowhere"),
        ("none/at/all", true, "none/at/all"),
    ] {
        assert_eq!(leads(from, last).await.unwrap(), to, "{from}");
    }
    for from in ["a/out", "absolute", "absolute/x", "loop"] {
        let error = leads(from, true).await.unwrap_err();
        assert!(matches!(error, TreeError::LeadsOut { .. }), "{from}: {error}");
    }
}
