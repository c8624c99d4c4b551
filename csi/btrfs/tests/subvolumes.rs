//! Subvolumes on a real filesystem: made, listed, marked, swapped, deleted with all that users put in them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use btrfs::scratch::ScratchPool;
use btrfs::{Dir, Errno, Error, subvolume};

macro_rules! pool {
    ($name:literal) => {
        match ScratchPool::or_skip($name) {
            Some(pool) => pool,
            None => return,
        }
    };
}

#[test]
fn a_subvolume_is_made_once_and_known() {
    let pool = pool!("a_subvolume_is_made_once_and_known");
    let root = pool.root().unwrap();
    let made = root.create_subvolume("data", None).unwrap();
    assert!(subvolume::is_subvolume(&made).unwrap());
    let info = subvolume::info(&made).unwrap();
    assert_eq!(info.id, subvolume::id(&made).unwrap());
    assert_eq!(info.parent_id, Some(subvolume::TOP_LEVEL_ID));
    assert_eq!(info.dir_inode, Some(subvolume::ROOT_INODE));
    assert_eq!((info.parent_uuid, info.received_uuid, info.readonly), (None, None, false));
    assert!(root.create_subvolume("data", None).unwrap_err().is(Errno::EEXIST));

    let plain = root.create_dir("plain", 0o755).unwrap();
    assert!(!subvolume::is_subvolume(&plain).unwrap());
    assert_eq!(subvolume::id(&plain).unwrap(), subvolume::TOP_LEVEL_ID);
}

#[test]
fn a_name_that_is_a_path_is_refused_before_the_kernel_sees_it() {
    let pool = pool!("a_name_that_is_a_path_is_refused_before_the_kernel_sees_it");
    let root = pool.root().unwrap();
    let source = root.create_subvolume("source", None).unwrap();
    for bad in ["", ".", "..", "a/b", "../x", "/tmp/x", "nul\0"] {
        assert!(matches!(root.create_subvolume(bad, None), Err(Error::Name { .. })), "{bad:?}");
        assert!(matches!(root.snapshot(&source, bad, true, None), Err(Error::Name { .. })), "{bad:?}");
        assert!(matches!(root.delete_subvolume(bad), Err(Error::Name { .. })), "{bad:?}");
    }
    let odd = OsStr::from_bytes(b"not utf-8 \xff\n");
    root.create_subvolume(odd, None).unwrap();
    assert_eq!(root.delete_subvolume(odd).unwrap().len(), 1);
}

#[test]
fn a_snapshot_holds_what_its_source_held() {
    let pool = pool!("a_snapshot_holds_what_its_source_held");
    let root = pool.root().unwrap();
    let source = root.create_subvolume("source", None).unwrap();
    fs::write(pool.mount_point().join("source/file"), "before").unwrap();
    let snapshot = root.snapshot(&source, "readonly", true, None).unwrap();
    fs::write(pool.mount_point().join("source/file"), "after").unwrap();
    assert_eq!(fs::read(pool.mount_point().join("readonly/file")).unwrap(), b"before");

    let info = subvolume::info(&snapshot).unwrap();
    assert!(info.readonly && subvolume::is_readonly(&snapshot).unwrap());
    assert_eq!(info.parent_uuid, Some(subvolume::info(&source).unwrap().uuid));
    let refused = fs::write(pool.mount_point().join("readonly/file"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::EROFS as i32));

    // A fork: a writable snapshot of a read-only one.
    root.snapshot(&snapshot, "fork", false, None).unwrap();
    fs::write(pool.mount_point().join("fork/file"), "fork").unwrap();
    assert_eq!(fs::read(pool.mount_point().join("readonly/file")).unwrap(), b"before");

    let plain = root.create_dir("plain", 0o755).unwrap();
    assert!(matches!(root.snapshot(&plain, "no", true, None), Err(Error::NotSubvolume { .. })));
}

#[test]
fn read_only_can_be_set_and_taken_back() {
    let pool = pool!("read_only_can_be_set_and_taken_back");
    let data = pool.root().unwrap().create_subvolume("data", None).unwrap();
    for readonly in [true, true, false, false] {
        subvolume::set_readonly(&data, readonly).unwrap();
        assert_eq!(subvolume::is_readonly(&data).unwrap(), readonly);
        assert_eq!(fs::write(pool.mount_point().join("data/file"), "x").is_err(), readonly);
    }
}

#[test]
fn nested_subvolumes_are_found_with_their_paths() {
    let pool = pool!("nested_subvolumes_are_found_with_their_paths");
    let root = pool.root().unwrap();
    let data = root.create_subvolume("data", None).unwrap();
    let deep = data.create_dir("a", 0o755).unwrap().create_dir("b", 0o755).unwrap();
    let inner = deep.create_subvolume("inner", None).unwrap();
    inner.create_subvolume(OsStr::from_bytes(b"\xfe"), None).unwrap();
    data.create_subvolume("shallow", None).unwrap();
    root.create_subvolume("elsewhere", None).unwrap();

    let children = subvolume::children(&data).unwrap();
    assert_eq!(children.iter().map(|child| child.name.as_os_str()).collect::<Vec<_>>(), ["inner", "shallow"]);
    // Any directory of the subvolume will do.
    assert_eq!(subvolume::children(&deep).unwrap(), children);

    let nested = subvolume::nested(&data).unwrap();
    let paths: Vec<_> = nested.iter().map(|nested| nested.path.as_os_str().as_bytes()).collect();
    assert_eq!(paths, [b"a/b/inner".as_slice(), b"shallow", b"a/b/inner/\xfe"]);
    assert_eq!(nested[2].parent_id, nested[0].id);
    assert!(matches!(subvolume::nested(&deep), Err(Error::NotSubvolume { .. })));

    // In a snapshot they are empty directories of inode 2: silently missing.
    let snapshot = root.snapshot(&data, "snapshot", true, None).unwrap();
    assert_eq!(subvolume::nested(&snapshot).unwrap(), []);
    let ghost = snapshot.open_beneath("a/b/inner").unwrap();
    assert_eq!(ghost.stat().unwrap().st_ino, subvolume::EMPTY_SUBVOLUME_INODE);
    assert!(ghost.entries().unwrap().is_empty());
}

#[test]
fn deleting_takes_everything_below_deepest_first() {
    let pool = pool!("deleting_takes_everything_below_deepest_first");
    let root = pool.root().unwrap();
    let data = root.create_subvolume("data", None).unwrap();
    let a = data.create_dir("plain", 0o755).unwrap().create_subvolume("a", None).unwrap();
    let b = a.create_subvolume("b", None).unwrap();
    let c = b.create_dir("dir", 0o755).unwrap().create_subvolume("c", None).unwrap();
    // Read-only at every level: the name of what is in it cannot go.
    for dir in [&c, &b, &a, &data] {
        subvolume::set_readonly(dir, true).unwrap();
    }
    let ids: Vec<u64> = [&c, &b, &a, &data].map(|dir| subvolume::id(dir).unwrap()).into();
    drop((a, b, c, data));
    assert_eq!(root.delete_subvolume("data").unwrap(), ids);
    assert!(!root.exists("data").unwrap());
    assert_eq!(root.delete_subvolume("data").unwrap(), [], "the second time there is nothing");
}

#[test]
fn deleting_by_id_takes_one() {
    let pool = pool!("deleting_by_id_takes_one");
    let root = pool.root().unwrap();
    let data = root.create_subvolume("data", None).unwrap();
    let inner = subvolume::id(&data.create_subvolume("inner", None).unwrap()).unwrap();
    let id = subvolume::id(&data).unwrap();
    drop(data);
    assert!(root.delete_subvolume_by_id(id).unwrap_err().is(Errno::ENOTEMPTY));
    assert!(root.delete_subvolume_by_id(inner).unwrap());
    assert!(root.delete_subvolume_by_id(id).unwrap());
    assert!(!root.delete_subvolume_by_id(id).unwrap(), "the second time there is nothing");
    assert!(!root.delete_subvolume_by_id(1 << 40).unwrap());
}

#[test]
fn what_is_not_a_subvolume_is_not_deleted() {
    let pool = pool!("what_is_not_a_subvolume_is_not_deleted");
    let root = pool.root().unwrap();
    root.create_dir("plain", 0o755).unwrap();
    fs::write(pool.mount_point().join("file"), "x").unwrap();
    let data = root.create_subvolume("data", None).unwrap();
    std::os::unix::fs::symlink("data", pool.mount_point().join("link")).unwrap();
    assert!(matches!(root.delete_subvolume("plain"), Err(Error::NotSubvolume { .. })));
    assert!(root.delete_subvolume("file").is_err());
    assert!(root.delete_subvolume("link").is_err());
    assert!(subvolume::is_subvolume(&data).unwrap() && root.exists("plain").unwrap());
}

#[test]
fn a_users_nested_subvolumes_do_not_stop_deletion_while_they_are_being_made() {
    let pool = pool!("a_users_nested_subvolumes_do_not_stop_deletion_while_they_are_being_made");
    let root = pool.root().unwrap();
    root.create_subvolume("data", None).unwrap();
    let data = pool.mount_point().join("data");
    std::os::unix::fs::chown(&data, Some(1000), Some(1000)).unwrap();
    let mut user = Command::new("sh")
        .args(["-c", "i=0; while btrfs subvolume create $0/$i >/dev/null 2>&1; do i=$((i+1)); done"])
        .arg(&data)
        .uid(1000)
        .gid(1000)
        .spawn()
        .unwrap();
    while subvolume::children(&Dir::open(&data).unwrap()).unwrap().len() < 5 {
        std::thread::yield_now();
    }
    let deleted = root.delete_subvolume("data").unwrap();
    user.wait().unwrap();
    assert!(deleted.len() > 5, "{deleted:?}");
    assert!(!root.exists("data").unwrap());
}

#[test]
fn two_subvolumes_change_places_in_one_step() {
    let pool = pool!("two_subvolumes_change_places_in_one_step");
    let root = pool.root().unwrap();
    let volume = root.create_dir("volume", 0o755).unwrap();
    let staging = root.create_dir("staging", 0o755).unwrap();
    let old = volume.create_subvolume("data", None).unwrap();
    let new = staging.create_subvolume("restored", None).unwrap();
    volume.exchange("data", &staging, "restored").unwrap();
    assert_eq!(subvolume::id(&volume.open_dir("data").unwrap()).unwrap(), subvolume::id(&new).unwrap());
    assert_eq!(subvolume::id(&staging.open_dir("restored").unwrap()).unwrap(), subvolume::id(&old).unwrap());
    // What is open goes on being what it was.
    assert_eq!(subvolume::id(&old).unwrap(), subvolume::info(&old).unwrap().id);
}

#[test]
fn a_path_is_found_from_an_inode() {
    let pool = pool!("a_path_is_found_from_an_inode");
    let root = pool.root().unwrap();
    let data = root.create_subvolume("data", None).unwrap();
    let dir = data.create_dir("dir", 0o755).unwrap();
    fs::write(pool.mount_point().join("data/dir/file"), "x").unwrap();
    let id = subvolume::id(&data).unwrap();
    let file = fs::metadata(pool.mount_point().join("data/dir/file")).unwrap();
    let file = std::os::unix::fs::MetadataExt::ino(&file);
    let path = |inode| subvolume::path_of(&root, id, inode).unwrap().map(|path| path.display().to_string());
    assert_eq!(path(subvolume::ROOT_INODE).as_deref(), Some(""));
    assert_eq!(path(dir.stat().unwrap().st_ino).as_deref(), Some("dir"));
    assert_eq!(path(file).as_deref(), Some("dir/file"));
    assert_eq!(path(1 << 40), None);
}

#[test]
fn every_subvolume_is_listed_with_what_says_whether_it_was_written() {
    let pool = pool!("every_subvolume_is_listed_with_what_says_whether_it_was_written");
    let root = pool.root().unwrap();
    // More than one batch of a search.
    let made: Vec<_> = (0..600).map(|n| root.create_subvolume(format!("v{n}"), None).unwrap()).collect();
    btrfs::commit::commit(&root).unwrap();
    let before = subvolume::roots(&root).unwrap();
    assert_eq!(before.len(), 600);
    fs::write(pool.mount_point().join("v17/file"), "x").unwrap();
    btrfs::commit::sync_all(&root).unwrap();
    let after = subvolume::roots(&root).unwrap();
    let written: Vec<u64> =
        before.iter().zip(&after).filter(|(b, a)| b.ctransid != a.ctransid).map(|(_, a)| a.id).collect();
    assert_eq!(written, [subvolume::id(&made[17]).unwrap()]);
    let info = subvolume::info(&made[17]).unwrap();
    let listed = after.iter().find(|listed| listed.id == info.id).unwrap();
    assert_eq!((listed.ctransid, listed.uuid), (info.ctransid, Some(info.uuid)));
}

#[test]
fn a_directory_elsewhere_is_told_apart() {
    let temp = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = Dir::open(temp.path()).unwrap();
    assert!(!btrfs::filesystem::is_btrfs(&dir).unwrap());
    assert!(!subvolume::is_subvolume(&dir).unwrap());
    assert!(matches!(subvolume::info(&dir), Err(Error::NotBtrfs { .. })));
    assert!(matches!(subvolume::id(&dir), Err(Error::NotBtrfs { .. })));
    assert!(matches!(btrfs::space::filesystem(&dir), Err(Error::NotBtrfs { .. })));
}
