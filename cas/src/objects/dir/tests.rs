//! The contract on real files, with other processes, and after crashes.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use super::*;
use crate::objects::{contract, list_all};

async fn store() -> (tempfile::TempDir, DirStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = DirStore::create_or_open(&directory.path().join("store")).await.unwrap();
    (directory, store)
}

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_directory_keeps_the_contract() {
    let (_directory, store) = store().await;
    contract::check(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_handles_on_one_directory_are_one_store() {
    let (_directory, store) = store().await;
    let other = DirStore::create_or_open(store.root()).await.unwrap();
    let counter = key("counter");
    store.put(&counter, "0".into(), &Condition::IfAbsent).await.unwrap();
    let (a, b) = futures::join!(
        contract::increment(&store, &counter, 3, 10),
        contract::increment(&other, &counter, 3, 10)
    );
    assert_eq!(a.max(b), 60);
}

#[tokio::test]
async fn what_is_asked_is_counted() {
    let (_directory, store) = store().await;
    let key = key("a");
    store.put(&key, "12345".into(), &Condition::IfAbsent).await.unwrap();
    store.put(&key, "1".into(), &Condition::IfAbsent).await.unwrap_err();
    store.get(&key).await.unwrap();
    store.get_range(&key, 1..3).await.unwrap();
    store.head(&key).await.unwrap();
    store.list("", None).await.unwrap();
    store.delete(&key).await.unwrap();
    let traffic = store.clone().traffic();
    let counts = CallKind::ALL.map(|kind| (kind, traffic.of(kind)));
    for (kind, count) in counts {
        assert_eq!(count, if kind == CallKind::Put { 2 } else { 1 }, "{kind:?}");
    }
    assert_eq!((traffic.bytes_written, traffic.bytes_read), (6, 7));
}

const CHILD: &str = "OPENSAIL_TEST_DIR_CHILD";

/// Does nothing unless it is started by the test below, as another process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_process() {
    if let Ok(path) = std::env::var(CHILD) {
        let store = DirStore::create_or_open(Path::new(&path)).await.unwrap();
        contract::increment(&store, &key("counter"), 2, 25).await;
    }
}

#[tokio::test]
async fn processes_that_share_a_directory_lose_no_update() {
    let (_directory, store) = store().await;
    store.put(&key("counter"), "0".into(), &Condition::IfAbsent).await.unwrap();
    let children: Vec<_> = (0..3)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "objects::dir::tests::child_process"])
                .env(CHILD, store.root())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let counter = store.get(&key("counter")).await.unwrap();
    assert!(counter.bytes.starts_with(b"150 "), "{counter:?}");
}

#[tokio::test]
async fn what_a_crash_left_is_not_listed_and_goes_at_the_next_open() {
    let (_directory, store) = store().await;
    store.put(&key("vol/a"), "x".into(), &Condition::IfAbsent).await.unwrap();
    let temporary = store.root().join(TEMPORARY);
    fs::write(temporary.join("left"), "half an obj").unwrap();
    let mut living = Temp::create(&temporary).unwrap();
    living.file().write_all(b"still being written").unwrap();
    assert_eq!(list_all(&store, "").await.unwrap().len(), 1);
    DirStore::create_or_open(store.root()).await.unwrap();
    assert!(!temporary.join("left").exists(), "nobody writes it");
    assert!(living.path().exists(), "a living process writes it");
}

#[tokio::test]
async fn a_write_that_is_refused_leaves_nothing() {
    let (_directory, store) = store().await;
    let etag = store.put(&key("a"), "1".into(), &Condition::IfAbsent).await.unwrap();
    store.put(&key("a"), "2".into(), &Condition::IfMatch(etag.clone())).await.unwrap();
    store.put(&key("a"), "3".into(), &Condition::IfMatch(etag)).await.unwrap_err();
    store.put(&key("a"), "3".into(), &Condition::IfAbsent).await.unwrap_err();
    assert_eq!(fs::read_dir(store.root().join(TEMPORARY)).unwrap().count(), 0);
}

#[tokio::test]
async fn a_file_that_was_cut_grown_or_flipped_at_its_end_is_damage() {
    let (_directory, store) = store().await;
    let path = store.root().join("vol/a@");
    store.put(&key("vol/a"), "some bytes".into(), &Condition::IfAbsent).await.unwrap();
    let whole = fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[10] ^= 1;
    for bytes in [&whole[..whole.len() - 1], &whole[..3], &[], &[&whole[..], b"x"].concat(), &flipped] {
        fs::write(&path, bytes).unwrap();
        for answer in [
            store.get(&key("vol/a")).await.map(drop),
            store.head(&key("vol/a")).await.map(drop),
            store.list("", None).await.map(drop),
        ] {
            assert!(matches!(answer, Err(ObjectError::Damaged { .. })), "{answer:?}");
        }
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(store.get(&key("vol/a")).await.unwrap().bytes, "some bytes");
}

#[tokio::test]
async fn a_directory_with_other_files_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("thesis.tex"), "").unwrap();
    let error = DirStore::create_or_open(directory.path()).await.unwrap_err();
    assert!(error.to_string().contains("holds other files"), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    let error = DirStore::create_or_open(&directory.path().join("not/there")).await.unwrap_err();
    assert!(error.to_string().contains("above it does not exist"), "{error}");
    let error = DirStore::create_or_open(Path::new("relative")).await.unwrap_err();
    assert!(error.to_string().contains("absolute"), "{error}");
    let error = DirStore::create_or_open(&directory.path().join("thesis.tex")).await.unwrap_err();
    assert!(matches!(error, ObjectError::Misconfigured { .. }), "{error:?}");
}

#[tokio::test]
async fn a_store_of_a_newer_format_is_refused() {
    let (_directory, store) = store().await;
    fs::write(store.root().join(MARKER), "opensail directory store 2\n").unwrap();
    let error = DirStore::create_or_open(store.root()).await.unwrap_err();
    assert!(error.to_string().contains("another version"), "{error}");
}

#[tokio::test]
async fn strangers_beside_the_objects_are_not_listed() {
    let (_directory, store) = store().await;
    store.put(&key("vol/a"), "x".into(), &Condition::IfAbsent).await.unwrap();
    fs::create_dir(store.root().join("lost+found")).unwrap();
    fs::set_permissions(store.root().join("lost+found"), fs::Permissions::from_mode(0o0)).unwrap();
    fs::write(store.root().join("vol/README"), "notes").unwrap();
    assert_eq!(list_all(&store, "").await.unwrap().len(), 1);
    std::os::unix::fs::symlink("/etc", store.root().join("elsewhere")).unwrap();
    assert!(store.list("", None).await.is_err(), "a link might hide objects");
}

#[tokio::test]
async fn a_listing_of_many_objects_has_many_pages() {
    let (_directory, store) = store().await;
    store.put(&key("pack/x"), "x".into(), &Condition::IfAbsent).await.unwrap();
    // Written past the store: so many fsyncs would prove nothing here.
    let many = walk::PAGE_ENTRIES * 2 + 500;
    let bytes = fs::read(store.root().join("pack/x@")).unwrap();
    for n in 0..many {
        fs::write(store.root().join(format!("pack/{n}@")), &bytes).unwrap();
    }
    let first = store.list("pack/", None).await.unwrap();
    assert_eq!(first.entries.len(), walk::PAGE_ENTRIES);
    assert!(first.next.is_some());
    let all = list_all(&store, "").await.unwrap();
    assert_eq!(all.len(), many + 1);
    assert!(all.is_sorted_by(|a, b| a.key < b.key));
}

/// A mount that takes no writes any more, and goes with this value.
struct ReadOnlyMount(tempfile::TempDir);

impl Drop for ReadOnlyMount {
    fn drop(&mut self) {
        nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[tokio::test]
async fn a_read_only_store_is_read_and_says_what_it_is_when_it_is_written() {
    use nix::mount::{MsFlags, mount};
    let directory = tempfile::tempdir().unwrap();
    let none = None::<&str>;
    if mount(Some("tmpfs"), directory.path(), Some("tmpfs"), MsFlags::empty(), none).is_err() {
        eprintln!("SKIPPED: mounting needs root");
        return;
    }
    let mounted = ReadOnlyMount(directory);
    let root = mounted.0.path();
    let store = DirStore::create_or_open(&root.join("store")).await.unwrap();
    store.put(&key("vol/a"), "x".into(), &Condition::IfAbsent).await.unwrap();
    mount(none, root, none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).unwrap();
    let store = DirStore::create_or_open(&root.join("store")).await.unwrap();
    assert_eq!(store.get(&key("vol/a")).await.unwrap().bytes, "x");
    assert_eq!(list_all(&store, "").await.unwrap().len(), 1);
    let error = crate::objects::probe(&store).await.unwrap_err();
    assert!(matches!(error, ObjectError::ReadOnly { .. }), "{error:?}");
    assert!(error.to_string().contains("make it writable or name another store"), "{error}");
    let error = DirStore::create_or_open(&root.join("other")).await.unwrap_err();
    assert!(matches!(error, ObjectError::ReadOnly { .. }), "{error:?}");
}

#[tokio::test]
async fn a_full_disk_is_said_and_leaves_nothing() {
    use nix::mount::{MsFlags, mount};
    let directory = tempfile::tempdir().unwrap();
    if mount(Some("tmpfs"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some("size=1m")).is_err() {
        eprintln!("SKIPPED: mounting needs root");
        return;
    }
    let mounted = ReadOnlyMount(directory);
    let store = DirStore::create_or_open(&mounted.0.path().join("store")).await.unwrap();
    let error = store.put(&key("pack/a"), vec![7; 2 << 20].into(), &Condition::IfAbsent).await.unwrap_err();
    assert!(matches!(error, ObjectError::Full { .. }), "{error:?}");
    assert!(list_all(&store, "").await.unwrap().is_empty());
    assert_eq!(fs::read_dir(store.root().join(TEMPORARY)).unwrap().count(), 0);
}

/// Prints what a put and a read cost here. `cargo test -p cas --release dir_costs -- --ignored --nocapture`,
/// with `TMPDIR` on the disk in question.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "a measurement"]
async fn dir_costs() {
    use std::time::Instant;
    let (_directory, store) = store().await;
    let small = Bytes::from(vec![1; 1500]);
    let start = Instant::now();
    let mut etags = Vec::new();
    for n in 0..200 {
        etags.push(store.put(&key(&format!("vol/{n}")), small.clone(), &Condition::IfAbsent).await.unwrap());
    }
    println!("create, one after another: {:?}", start.elapsed() / 200);
    let start = Instant::now();
    for (n, etag) in etags.iter().enumerate() {
        let condition = Condition::IfMatch(etag.clone());
        store.put(&key(&format!("vol/{n}")), small.clone(), &condition).await.unwrap();
    }
    println!("update, one after another: {:?}", start.elapsed() / 200);
    let start = Instant::now();
    futures::future::join_all((0..400).map(|n| {
        let (store, small) = (store.clone(), small.clone());
        async move { store.put(&key(&format!("many/{n}")), small, &Condition::IfAbsent).await.unwrap() }
    }))
    .await;
    println!("create, 64 at once: {:?}", start.elapsed() / 400);
    let pack = Bytes::from(vec![3; 16 << 20]);
    let start = Instant::now();
    for n in 0..8 {
        store.put(&key(&format!("pack/{n}")), pack.clone(), &Condition::IfAbsent).await.unwrap();
    }
    println!("pack of 16 MiB: {:?}", start.elapsed() / 8);
    let start = Instant::now();
    for n in 0..2000_u64 {
        store.get_range(&key(&format!("pack/{}", n % 8)), n * 4096..n * 4096 + 65536).await.unwrap();
    }
    println!("range of 64 KiB: {:?}", start.elapsed() / 2000);
}
