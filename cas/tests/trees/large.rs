//! Large files, many names, long paths, and reading parts of them.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use cas::objects::MemoryStore;
use cas::tree::{Difference, FoundKind};
use cas::{Changes, ChildChange, DirChange, WriteOptions};
use types::VolumePath;

use crate::place::Place;

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&len.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn path(text: &str) -> VolumePath {
    VolumePath::parse(text).unwrap()
}

#[tokio::test]
async fn a_content_id_is_the_hash_of_the_file_and_every_range_reads_back() {
    let place = Place::new().await;
    let source = place.new_dir("source");
    let edges = [128, 1 << 16, 1 << 17, 1 << 18, 1 << 20, (1 << 20) + (1 << 17), 9 << 17, 1 << 21];
    let mut sizes = vec![0, 1];
    sizes.extend(edges.iter().flat_map(|edge: &usize| [edge - 1, *edge, edge + 1]));
    for size in &sizes {
        std::fs::write(source.join(size.to_string()), noise(*size)).unwrap();
    }
    let tree = place.put(&source).await.tree;
    let reader = place.cold();
    for size in sizes {
        let (at, bytes) = (path(&size.to_string()), noise(size));
        let found = reader.stat(&tree, &at).await.unwrap().unwrap();
        let FoundKind::File { size: told, content } = found.kind else { panic!("{found:?}") };
        assert_eq!((told, content.as_bytes()), (size as u64, blake3::hash(&bytes).as_bytes()), "{size}");
        for (from, to) in
            [(0, size), (size / 2, size / 2 + 10), (size.saturating_sub(3), size + 100), (size, size + 1)]
        {
            let read = reader.read(&tree, &at, from as u64..to as u64).await.unwrap();
            assert_eq!(read[..], bytes[from.min(size)..to.min(size)], "{size}: {from}..{to}");
        }
    }
}

#[tokio::test]
async fn a_changed_cell_of_a_file_of_many_pages_costs_one_cell() {
    let place = Place::new().await;
    let source = place.new_dir("source");
    let file = source.join("database");
    let size = (70u64 << 20) + 5;
    let open = OpenOptions::new().write(true).read(true).create(true).truncate(true).open(&file).unwrap();
    open.set_len(size).unwrap();
    for at in [0, 5 << 20, 40 << 20] {
        open.write_all_at(&noise(300_000), at).unwrap();
    }
    let first = place.put(&source).await;
    let mut tree = first.tree;
    let mut length = size;
    // Inside a page, across pages, a page of zeros, cells to zeros, longer, much longer, shorter, one page, and back.
    for (at, bytes, len) in [
        (5 << 20, noise(10), size),
        ((32 << 20) - 5, noise(10), size),
        (60 << 20, noise(100), size),
        (5 << 20, vec![0; 1 << 20], size),
        (size, noise(3), size + 3),
        (100 << 20, noise(1_000), (100 << 20) + 1_000),
        (0, noise(20), (32 << 20) + 1),
        (1 << 20, noise(20), 32 << 20),
        (2 << 20, noise(20), 30 << 20),
        (33 << 20, noise(20), 34 << 20),
    ] {
        open.write_all_at(&bytes, at).unwrap();
        open.set_len(len).unwrap();
        let end = (at + bytes.len() as u64).min(len);
        let mut ranges = Vec::from_iter((at < end).then_some(at..end));
        if len > length {
            ranges.push(length..len);
        }
        length = len;
        let children =
            [(b"database".to_vec(), ChildChange::Content { ranges: Some(ranges), inline: None })].into();
        let changes = Changes { root: DirChange { relist: false, children }, ..Changes::default() };
        let increment = place.put_changes(&source, &tree, changes).await;
        let what = format!("{} bytes at {at}, then {len} long", bytes.len());
        assert_eq!(increment.tree.version, place.put(&source).await.tree.version, "{what}");
        assert!(increment.bytes_uploaded < 700_000, "{what}: {increment:?}");
        let found = place.cold().stat(&increment.tree, &path("database")).await.unwrap().unwrap();
        let FoundKind::File { content, .. } = found.kind else { panic!("{found:?}") };
        assert_eq!(content.as_bytes(), blake3::hash(&std::fs::read(&file).unwrap()).as_bytes(), "{what}");
        let report = place.reader.verify(&increment.tree).await.unwrap();
        assert!(report.is_whole(), "{what}: {:?}", report.damages);
        tree = increment.tree;
    }
}

#[tokio::test]
async fn a_directory_larger_than_a_frame_works() {
    let place = Place::with(
        Arc::new(MemoryStore::new()),
        WriteOptions { pack_bytes: 1 << 20, ..WriteOptions::default() },
    )
    .await;
    let source = place.new_dir("source");
    let entries = std::env::var("TREE_ENTRIES").map_or(30_000, |text| text.parse::<u64>().unwrap());
    let many = source.join("many");
    std::fs::create_dir(&many).unwrap();
    for number in 0..entries {
        std::fs::write(many.join(format!("{number:07}")), number.to_le_bytes()).unwrap();
    }
    let written = place.put(&source).await;
    assert_eq!(written.files, entries);
    let reader = place.cold();
    let listed = reader.list(&written.tree, &path("many"), Some(b"0000009"), 3).await.unwrap();
    assert_eq!(listed[0].name, b"0000010");
    let read = reader.read(&written.tree, &path("many/0029999"), 0..8).await.unwrap();
    assert_eq!(read[..], 29_999u64.to_le_bytes());
    let target = place.new_dir("target");
    place.restore(&written.tree, &target).await.unwrap();
    assert_eq!(place.put(&target).await.tree.version, written.tree.version);
    std::fs::write(many.join("0000005"), b"new").unwrap();
    let below = DirChange {
        relist: false,
        children: [(b"0000005".to_vec(), ChildChange::Content { ranges: None, inline: None })].into(),
    };
    let root =
        DirChange { relist: false, children: [(b"many".to_vec(), ChildChange::Directory(below))].into() };
    let increment = place.put_changes(&source, &written.tree, Changes { root, ..Changes::default() }).await;
    assert_eq!(increment.tree.version, place.put(&source).await.tree.version);
    let differences = reader.diff(&written.tree, &increment.tree, 10).await.unwrap();
    assert_eq!(differences, [Difference::Modified(path("many/0000005"))]);
    assert!(place.reader.verify(&increment.tree).await.unwrap().is_whole());
}

#[tokio::test]
async fn paths_longer_than_a_system_call_takes_work() {
    let place = Place::new().await;
    let source = place.new_dir("source");
    // Made and removed by a shell, step by step: the path as a whole has 12,000 bytes.
    let name = "d".repeat(200);
    let script = format!(
        "cd \"$1\" && i=0 && while [ $i -lt 60 ]; do mkdir {name} && cd {name} || exit 1; i=$((i+1)); done; echo bottom > file; ln -s x link"
    );
    crate::tools::run("bash", &["-c", &script, "sh", source.to_str().unwrap()]);
    let written = place.put(&source).await;
    let target = place.new_dir("target");
    place.restore(&written.tree, &target).await.unwrap();
    assert_eq!(place.put(&target).await.tree.version, written.tree.version);
    assert_eq!((written.files, written.bytes), (2, 7));
}

#[tokio::test]
async fn a_version_does_not_depend_on_the_filesystem() {
    let place = Place::new().await;
    let source = place.new_dir("source");
    std::fs::create_dir(source.join("dir")).unwrap();
    std::fs::write(source.join("dir/file"), noise(100_000)).unwrap();
    std::fs::write(source.join("large"), noise(3_000_000)).unwrap();
    std::os::unix::fs::symlink("large", source.join("link")).unwrap();
    let written = place.put(&source).await;
    for elsewhere in [Path::new(env!("CARGO_TARGET_TMPDIR")), Path::new("/dev/shm"), Path::new("/tmp")] {
        if !elsewhere.is_dir() {
            continue;
        }
        let target = tempfile::tempdir_in(elsewhere).unwrap();
        place.restore(&written.tree, target.path()).await.unwrap();
        assert_eq!(
            place.put(target.path()).await.tree.version,
            written.tree.version,
            "{}",
            elsewhere.display()
        );
    }
}

#[tokio::test]
async fn a_file_that_grows_while_it_is_read_is_an_error_or_consistent() {
    let place = Place::new().await;
    let source = place.new_dir("source");
    std::fs::write(source.join("steady"), noise(5_000)).unwrap();
    let growing = source.join("growing");
    std::fs::write(&growing, noise(2_000_000)).unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (stop, growing) = (Arc::clone(&stop), growing.clone());
        move || {
            let file = OpenOptions::new().append(true).open(growing).unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::io::Write::write_all(&mut &file, &[1; 100]).unwrap();
            }
        }
    });
    let mut told = 0;
    for _ in 0..20 {
        match place.writer.put(crate::place::open(&source), None).await {
            Ok(written) => assert!(place.reader.verify(&written.tree).await.unwrap().is_whole()),
            Err(cas::TreeError::SourceChanged { path }) => {
                assert_eq!(path, b"growing");
                told += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
    assert!(told > 0, "a writer that never stops was not seen once");
}

#[tokio::test]
async fn a_target_that_is_not_empty_is_refused_and_untouched() {
    let place = Place::new().await;
    let source = place.new_dir("source");
    let written = place.put(&source).await;
    std::fs::write(source.join("mine"), b"mine").unwrap();
    let error = place.restore(&written.tree, &source).await.unwrap_err();
    assert!(matches!(error, cas::TreeError::TargetNotEmpty { name } if name == b"mine"));
    assert_eq!(std::fs::read(source.join("mine")).unwrap(), b"mine");
}

#[tokio::test]
async fn a_file_that_is_updated_in_place_gets_smaller_cells() {
    let place = Place::new().await;
    let source = place.new_dir("source");
    let file = source.join("database");
    let size = 40u64 << 20;
    std::fs::write(&file, noise(usize::try_from(size).unwrap())).unwrap();
    let open = OpenOptions::new().write(true).open(&file).unwrap();
    let mut tree = place.put(&source).await.tree;
    let mut sent = Vec::new();
    // The same pages again and again: the first time nobody knows, the second the file is cut anew, then it is cheap.
    for round in 0..4u64 {
        let mut ranges = Vec::new();
        for at in [5 << 20, 33 << 20, size - 8192] {
            open.write_all_at(&noise(8_000 + usize::try_from(round).unwrap()), at).unwrap();
            ranges.push(at..at + 8_192);
        }
        open.set_len(size).unwrap();
        let children =
            [(b"database".to_vec(), ChildChange::Content { ranges: Some(ranges), inline: None })].into();
        let changes = Changes { root: DirChange { relist: false, children }, ..Changes::default() };
        let increment = place.put_changes(&source, &tree, changes).await;
        sent.push(increment.bytes_uploaded);
        assert_eq!(increment.tree.version, place.put(&source).await.tree.version, "round {round}");
        let report = place.reader.verify(&increment.tree).await.unwrap();
        assert!(report.is_whole(), "round {round}: {:?}", report.damages);
        // On disk, from the version before: also where the sizes of the cells differ.
        let target = place.new_dir(&format!("target-{round}"));
        place.restore(&tree, &target).await.unwrap();
        let options = cas::RestoreOptions::default();
        place
            .cold()
            .restore_difference(&tree, &increment.tree, crate::place::open(&target), options)
            .await
            .unwrap();
        assert!(
            std::fs::read(target.join("database")).unwrap() == std::fs::read(&file).unwrap(),
            "round {round}"
        );
        tree = increment.tree;
    }
    let cell = 128 << 10;
    assert!(sent[0] > 3 * cell && sent[1] > 3 * cell, "{sent:?}");
    assert!(sent[2] < 2 * cell && sent[3] < 2 * cell, "cells of 32 KiB and their pages: {sent:?}");
}

#[tokio::test]
async fn a_cold_read_takes_three_requests() {
    let objects = MemoryStore::default();
    let counted = cas::objects::FaultStore::new(Arc::new(objects));
    let place = Place::with(Arc::new(counted.clone()), WriteOptions::default()).await;
    let source = place.new_dir("source");
    for package in 0..600 {
        let dir = source.join(format!("node_modules/package-{package}/lib"));
        std::fs::create_dir_all(&dir).unwrap();
        for file in 0..20 {
            std::fs::write(dir.join(format!("{file}.js")), noise(300 + package * 7 + file)).unwrap();
        }
    }
    let tree = place.put(&source).await.tree;
    let before = counted.counts().calls();
    let read = place.cold().read(&tree, &path("node_modules/package-77/lib/7.js"), 0..10).await.unwrap();
    assert_eq!(read.len(), 10);
    let took = counted.counts().calls() - before;
    assert!(took <= 3, "{took} requests");
}
