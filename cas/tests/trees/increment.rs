//! A put of what changed makes the same version as a put of everything, and a restore of the difference the same tree.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cas::{Changes, ChildChange, DirChange, RestoreOptions};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use crate::place::{Place, open};
use crate::tools::differences_no_root;
use crate::walked::{changes, walk};

fn all(root: &Path, want: impl Fn(&std::fs::Metadata) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let facts = std::fs::symlink_metadata(&path).unwrap();
            if facts.is_dir() {
                todo.push(path.clone());
            }
            if want(&facts) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn bytes(random: &mut StdRng) -> Vec<u8> {
    let len = match random.random_range(0..10) {
        0 => 0,
        1..5 => random.random_range(1..200),
        5..7 => random.random_range(200..70_000),
        7..9 => random.random_range(60_000..1_100_000),
        _ => random.random_range(1_000_000..3_000_000),
    };
    let mut bytes = vec![0; len];
    random.fill_bytes(&mut bytes);
    if random.random_bool(0.3) {
        let from = len / 3;
        bytes[from..from + len / 3].fill(0);
    }
    bytes
}

/// Does one thing to the tree; what cannot be done is not.
fn mutate(root: &Path, random: &mut StdRng) {
    let dirs: Vec<PathBuf> =
        std::iter::once(root.to_path_buf()).chain(all(root, std::fs::Metadata::is_dir)).collect();
    let files = all(root, std::fs::Metadata::is_file);
    let any = all(root, |_| true);
    let dir = dirs.choose(random).unwrap().clone();
    let new = dir.join(format!(
        "{}{}",
        ["a", "b", "m", "z", "a.b"].choose(random).unwrap(),
        random.random_range(0..40)
    ));
    let operation = random.random_range(0..16);
    match operation {
        0..3 => drop(std::fs::write(&new, bytes(random))),
        3 => drop(std::fs::create_dir(&new)),
        4 => drop(std::os::unix::fs::symlink("somewhere", &new)),
        5 | 6 => {
            if let Some(file) = files.choose(random) {
                use std::os::unix::fs::FileExt as _;
                let len = std::fs::metadata(file).unwrap().len();
                let open = std::fs::OpenOptions::new().write(true).open(file).unwrap();
                let at = random.random_range(0..=len + 10);
                open.write_all_at(&bytes(random)[..].iter().take(5_000).copied().collect::<Vec<u8>>(), at)
                    .unwrap();
            }
        }
        7 => {
            if let Some(file) = files.choose(random) {
                let open = std::fs::OpenOptions::new().write(true).open(file).unwrap();
                open.set_len(random.random_range(0..3_000_000)).unwrap();
            }
        }
        8 => {
            if let Some(file) = files.choose(random) {
                drop(std::fs::hard_link(file, &new));
            }
        }
        9..11 => {
            if let Some(path) = any.choose(random) {
                drop(std::fs::rename(path, &new));
            }
        }
        11 => {
            if let Some(moved) = dirs[1..].choose(random) {
                drop(std::fs::rename(moved, &new));
            }
        }
        12 => {
            if let Some(path) = any.choose(random) {
                let facts = std::fs::symlink_metadata(path).unwrap();
                if facts.is_dir() {
                    std::fs::remove_dir_all(path).unwrap();
                } else {
                    std::fs::remove_file(path).unwrap();
                }
            }
        }
        13 => {
            if let Some(path) = all(root, |facts| !facts.is_symlink()).choose(random) {
                use std::os::unix::fs::PermissionsExt as _;
                let mode = *[0o755, 0o700, 0o775].choose(random).unwrap();
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
            }
        }
        14 => {
            if let Some(file) = files.choose(random) {
                let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(random.random_range(0..1 << 60));
                std::fs::OpenOptions::new().write(true).open(file).unwrap().set_modified(time).unwrap();
            }
        }
        _ => {
            // Replaced by something else under the same name.
            if let Some(file) = files.choose(random) {
                std::fs::remove_file(file).unwrap();
                if random.random_bool(0.5) {
                    std::fs::create_dir(file).unwrap();
                } else {
                    std::fs::write(file, bytes(random)).unwrap();
                }
            }
        }
    }
}

/// One history: every step is put both ways, and every difference restored.
async fn history(seed: u64, steps: usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let place = Place::new().await;
    let (source, target) = (place.new_dir("source"), place.new_dir("target"));
    for _ in 0..60 {
        mutate(&source, &mut random);
    }
    let mut tree = place.put(&source).await.tree;
    place.restore(&tree, &target).await.unwrap();
    let first = tree.clone();
    for step in 0..steps {
        let what = format!("seed {seed}, step {step}");
        let before = walk(&source);
        for _ in 0..random.random_range(0..8) {
            mutate(&source, &mut random);
        }
        let changes = changes(&before, &walk(&source));
        let full = place.put(&source).await;
        let increment = place.put_changes(&source, &tree, changes.clone()).await;
        assert_eq!(increment.tree.version, full.tree.version, "{what}: {changes:#?}");
        assert_eq!((increment.files, increment.bytes), (full.files, full.bytes), "{what}");
        if increment.tree.version == tree.version {
            assert_eq!(
                (increment.objects_written, &increment.tree, increment.changed),
                (0, &tree, false),
                "{what}"
            );
        } else {
            assert_eq!(increment.objects_written, 1, "{what}");
        }
        let report = place.reader.verify(&increment.tree).await.unwrap();
        assert!(report.is_whole(), "{what}: {:#?} {changes:#?}", report.damages);
        let reader = place.cold();
        let options = RestoreOptions { workers: 2, ..RestoreOptions::default() };
        reader.restore_difference(&tree, &increment.tree, open(&target), options.clone()).await.unwrap();
        assert_eq!(place.put(&target).await.tree.version, full.tree.version, "{what}: restored");
        assert_eq!(differences_no_root(&source, &target), "", "{what}");
        tree = increment.tree;
    }
    // And over many versions at once, back to the first.
    place.reader.restore_difference(&tree, &first, open(&target), RestoreOptions::default()).await.unwrap();
    assert_eq!(place.put(&target).await.tree.version, first.version, "seed {seed}: back to the first");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_increment_is_the_same_version_as_a_full_scan() {
    let histories = std::env::var("TREE_HISTORIES").map_or(6, |text| text.parse().unwrap());
    let seed: u64 = std::env::var("TREE_SEED")
        .map_or_else(|_| u64::from(rand::random::<u32>()), |text| text.parse().unwrap());
    eprintln!("TREE_SEED={seed} TREE_HISTORIES={histories}");
    for number in 0..histories {
        history(seed + number, 12).await;
    }
}

#[tokio::test]
async fn nothing_changed_writes_nothing() {
    let place = Place::new().await;
    let source = place.new_dir("source");
    std::fs::write(source.join("a"), b"a").unwrap();
    let written = place.put(&source).await;
    let again = place.put_changes(&source, &written.tree, Changes::default()).await;
    assert_eq!((again.tree, again.changed, again.objects_written), (written.tree, false, 0));
}

#[tokio::test]
async fn a_long_history_of_small_changes_names_few_packs() {
    let place = Place::new().await;
    let source = place.new_dir("source");
    for dir in 0..10 {
        std::fs::create_dir(source.join(format!("dir-{dir}"))).unwrap();
        for file in 0..20 {
            std::fs::write(source.join(format!("dir-{dir}/file-{file}")), format!("{file}").repeat(300))
                .unwrap();
        }
    }
    std::fs::write(source.join("large"), vec![7; 5 << 20]).unwrap();
    std::fs::hard_link(source.join("dir-3/file-3"), source.join("dir-9/other-name")).unwrap();
    let mut tree = place.put(&source).await.tree;
    let mut most = 0;
    for number in 0..200u64 {
        let (dir, file) = (number % 10, number / 10 % 20);
        let path = source.join(format!("dir-{dir}/file-{file}"));
        let several = (dir, file) == (3, 3);
        let (name, ranges) = if several {
            // The large file in its stead: a cell of it goes into the pack of this sync.
            let open = std::fs::OpenOptions::new().write(true).open(source.join("large")).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&open, &number.to_le_bytes(), number << 14).unwrap();
            (None, Some(std::iter::once(number << 14..(number << 14) + 8).collect()))
        } else {
            std::fs::write(&path, format!("change {number}").repeat(200)).unwrap();
            (Some(format!("file-{file}").into_bytes()), None)
        };
        let content = ChildChange::Content { ranges, inline: None };
        let children = match name {
            Some(name) => {
                let below = DirChange { relist: false, children: [(name, content)].into() };
                [(format!("dir-{dir}").into_bytes(), ChildChange::Directory(below))].into()
            }
            None => [(b"large".to_vec(), content)].into(),
        };
        let changes = Changes { root: DirChange { relist: false, children }, ..Changes::default() };
        tree = place.put_changes(&source, &tree, changes).await.tree;
        let packs = place.reader.manifest(&tree).await.unwrap().packs.len();
        most = most.max(packs);
        if number % 20 == 19 {
            let report = place.reader.verify(&tree).await.unwrap();
            assert!(report.is_whole(), "{number}: {:?}", report.damages);
            assert_eq!(tree.version, place.put(&source).await.tree.version, "{number}");
        }
    }
    assert!((10..=14).contains(&most), "{most} packs");
    let target = place.new_dir("target");
    place.restore(&tree, &target).await.unwrap();
    assert_eq!(std::fs::read(target.join("dir-9/other-name")).unwrap(), b"3".repeat(300));
}

#[tokio::test]
async fn that_a_file_far_down_has_another_name_is_known_to_all_directories_above_it() {
    let place = Place::new().await;
    let source = place.new_dir("source");
    std::fs::create_dir_all(source.join("a/b")).unwrap();
    std::fs::create_dir(source.join("x")).unwrap();
    std::fs::write(source.join("a/b/first"), vec![7; 50_000]).unwrap();
    let mut tree = place.put(&source).await.tree;
    let steps: [fn(&Path); 2] = [
        |source| std::fs::hard_link(source.join("a/b/first"), source.join("x/other")).unwrap(),
        // The other name is the path of the first, so this changes it too.
        |source| std::fs::rename(source.join("a"), source.join("m")).unwrap(),
    ];
    for step in steps {
        let before = walk(&source);
        step(&source);
        let changes = changes(&before, &walk(&source));
        let increment = place.put_changes(&source, &tree, changes.clone()).await;
        assert_eq!(increment.tree.version, place.put(&source).await.tree.version, "{changes:#?}");
        tree = increment.tree;
    }
    let target = place.new_dir("target");
    place.restore(&tree, &target).await.unwrap();
    assert_eq!(differences_no_root(&source, &target), "");
}
