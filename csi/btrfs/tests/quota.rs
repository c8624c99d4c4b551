//! Limits that hold, also for a user who makes subvolumes of his own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use btrfs::scratch::ScratchPool;
use btrfs::{Dir, Errno, Error, GroupId, cleaner, commit, quota, subvolume};

const MIB: u64 = 1 << 20;

macro_rules! pool {
    ($name:literal) => {
        match ScratchPool::or_skip($name) {
            Some(pool) => pool,
            None => return,
        }
    };
}

fn group(dir: &Dir, number: u64, limit: u64) -> GroupId {
    let group = GroupId::volume(number).unwrap();
    assert!(quota::create_group(dir, group).unwrap());
    quota::limit(dir, group, Some(limit)).unwrap();
    group
}

/// Runs a shell command as an ordinary user; answers what it said.
fn as_user(directory: &Path, script: &str) -> (bool, String) {
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(directory)
        .env("LC_ALL", "C")
        .uid(1000)
        .gid(1000)
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn charged(dir: &Dir, group: GroupId) -> u64 {
    commit::sync_all(dir).unwrap();
    quota::usage(dir, group).unwrap().unwrap().referenced_bytes
}

/// Bytes that do not compress.
fn noise(path: &Path, mib: u64) -> std::io::Result<()> {
    let mut source = std::io::Read::take(fs::File::open("/dev/urandom")?, mib * MIB);
    let mut file = fs::File::create(path)?;
    std::io::copy(&mut source, &mut file)?;
    file.sync_all()
}

#[test]
fn simple_quotas_are_turned_on_once() {
    let pool = pool!("simple_quotas_are_turned_on_once");
    let root = pool.root().unwrap();
    assert_eq!(quota::state(&root).unwrap(), quota::State::Off);
    assert_eq!(quota::usage(&root, GroupId::subvolume(5)).unwrap(), None);
    assert!(quota::groups(&root).unwrap().is_empty());
    assert!(quota::enable_simple(&root).unwrap());
    assert_eq!(quota::state(&root).unwrap(), quota::State::Simple);
    assert!(!quota::enable_simple(&root).unwrap());
    drop(root);
    pool.unmount().unwrap();
    pool.mount().unwrap();
    assert_eq!(quota::state(&pool.root().unwrap()).unwrap(), quota::State::Simple, "it is kept");
}

#[test]
fn classic_qgroups_are_refused() {
    let pool = pool!("classic_qgroups_are_refused");
    let enabled = Command::new("btrfs").args(["quota", "enable"]).arg(pool.mount_point()).status().unwrap();
    assert!(enabled.success());
    let root = pool.root().unwrap();
    assert_eq!(quota::state(&root).unwrap(), quota::State::Classic);
    assert!(matches!(quota::enable_simple(&root), Err(Error::ClassicQuota { .. })));
}

#[test]
fn a_group_can_be_made_limited_and_removed_twice() {
    let pool = pool!("a_group_can_be_made_limited_and_removed_twice");
    let root = pool.root().unwrap();
    quota::enable_simple(&root).unwrap();
    let group = GroupId::volume(7).unwrap();
    assert!(quota::limit(&root, group, Some(MIB)).unwrap_err().is(Errno::ENOENT));
    assert!(quota::create_group(&root, group).unwrap());
    assert!(!quota::create_group(&root, group).unwrap());
    for limit in [Some(100 * MIB), Some(100 * MIB), None, None, Some(5 * MIB)] {
        quota::limit(&root, group, limit).unwrap();
        commit::commit(&root).unwrap();
        assert_eq!(quota::usage(&root, group).unwrap().unwrap().limit_bytes, limit);
    }
    assert!(quota::remove_group(&root, group).unwrap());
    assert!(!quota::remove_group(&root, group).unwrap());
    commit::commit(&root).unwrap();
    assert_eq!(quota::usage(&root, group).unwrap(), None);
}

#[test]
fn the_limit_is_there_from_the_first_moment() {
    let pool = pool!("the_limit_is_there_from_the_first_moment");
    let root = pool.root().unwrap();
    quota::enable_simple(&root).unwrap();
    let group = group(&root, 1, 20 * MIB);
    let data = root.create_subvolume("data", Some(group)).unwrap();
    let fork = root.snapshot(&data, "fork", false, Some(group)).unwrap();
    commit::commit(&root).unwrap();
    let members = quota::groups(&root).unwrap()[&group].members.clone();
    let expected = [&data, &fork].map(|dir| GroupId::subvolume(subvolume::id(dir).unwrap()));
    assert_eq!(members, expected);
    // Membership in a group that is not there fails the whole call: no subvolume without a limit.
    let absent = GroupId::volume(99).unwrap();
    let refused = root.create_subvolume("unlimited", Some(absent));
    assert!(refused.is_err(), "{refused:?}");
    assert!(!root.exists("unlimited").unwrap());
}

#[test]
fn writing_stops_at_the_limit_and_deleting_works_there() {
    let pool = pool!("writing_stops_at_the_limit_and_deleting_works_there");
    let root = pool.root().unwrap();
    quota::enable_simple(&root).unwrap();
    let group = group(&root, 1, 20 * MIB);
    root.create_subvolume("data", Some(group)).unwrap();
    let file = pool.mount_point().join("data/file");
    let refused = noise(&file, 40).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::EDQUOT as i32));
    let full = charged(&root, group);
    assert!((15 * MIB..=20 * MIB).contains(&full), "{full}");
    fs::remove_file(&file).unwrap();
    assert!(charged(&root, group) < MIB);
    noise(&file, 10).unwrap();

    // A limit below what is charged is accepted, and holds.
    quota::limit(&root, group, Some(MIB)).unwrap();
    assert!(noise(&pool.mount_point().join("data/other"), 2).is_err());
    quota::limit(&root, group, None).unwrap();
    noise(&pool.mount_point().join("data/other"), 30).unwrap();
}

#[test]
fn a_users_own_subvolume_is_charged_to_his_volume() {
    let pool = pool!("a_users_own_subvolume_is_charged_to_his_volume");
    let root = pool.root().unwrap();
    quota::enable_simple(&root).unwrap();
    let group = group(&root, 1, 100 * MIB);
    root.create_subvolume("data", Some(group)).unwrap();
    let data = pool.mount_point().join("data");
    std::os::unix::fs::chown(&data, Some(1000), Some(1000)).unwrap();

    let (made, said) = as_user(
        &data,
        "btrfs subvolume create a && btrfs subvolume create a/b && btrfs subvolume snapshot a c",
    );
    assert!(made, "{said}");
    let (written, said) = as_user(
        &data,
        "dd if=/dev/urandom of=f bs=1M count=40 conv=fsync && dd if=/dev/urandom of=a/f bs=1M count=40 conv=fsync",
    );
    assert!(written, "{said}");
    for place in ["a/more", "a/b/more", "c/more", "more"] {
        let (written, said) =
            as_user(&data, &format!("dd if=/dev/urandom of={place} bs=1M count=300 conv=fsync"));
        assert!(!written && said.contains("quota exceeded"), "{place}: {said}");
    }
    let full = charged(&root, group);
    assert!((90 * MIB..=100 * MIB).contains(&full), "{full}");

    assert!(charged(&root, group) <= 100 * MIB);
    // At the limit he cannot even snapshot; we can, and can delete, because our directories are outside.
    let (made, said) = as_user(&data, "btrfs subvolume snapshot a d");
    assert!(!made && said.contains("quota exceeded"), "{said}");
    // He can neither lift the limit nor leave the group.
    let (lifted, _) = as_user(&data, "btrfs qgroup limit none 1/1 .");
    assert!(!lifted);
    root.snapshot(&Dir::open(&data).unwrap(), "base", true, None).unwrap();
    root.create_subvolume("new", Some(group)).unwrap();
    root.exchange("data", &root, "new").unwrap();
    assert_eq!(root.delete_subvolume("new").unwrap().len(), 4);
    commit::commit(&root).unwrap();
    assert_eq!(
        quota::usage(&root, group).unwrap().unwrap().limit_bytes,
        Some(100 * MIB),
        "the limit is as it was"
    );
}

#[test]
fn a_full_volume_with_read_only_subvolumes_in_it_can_be_deleted() {
    let pool = pool!("a_full_volume_with_read_only_subvolumes_in_it_can_be_deleted");
    let root = pool.root().unwrap();
    quota::enable_simple(&root).unwrap();
    let group = group(&root, 1, 20 * MIB);
    let data = root.create_subvolume("data", Some(group)).unwrap();
    let a = data.create_subvolume("a", None).unwrap();
    a.create_subvolume("b", None).unwrap();
    assert!(noise(&pool.mount_point().join("data/a/b/file"), 40).is_err());
    // He marked them before it was full; here they are marked with no limit in the way.
    quota::limit(&root, group, None).unwrap();
    subvolume::set_readonly(&a, true).unwrap();
    subvolume::set_readonly(&data, true).unwrap();
    commit::commit(&root).unwrap();
    quota::limit(&root, group, Some(MIB)).unwrap();
    drop((a, data));
    assert_eq!(root.delete_subvolume("data").unwrap().len(), 3);
    commit::commit(&root).unwrap();
    assert_eq!(quota::usage(&root, group).unwrap().unwrap().limit_bytes, Some(MIB), "the limit is as it was");
}

#[test]
fn a_charge_stays_until_the_last_reference_goes_and_then_the_group_can() {
    let pool = pool!("a_charge_stays_until_the_last_reference_goes_and_then_the_group_can");
    let root = pool.root().unwrap();
    quota::enable_simple(&root).unwrap();
    let group = group(&root, 1, 100 * MIB);
    let data = root.create_subvolume("data", Some(group)).unwrap();
    noise(&pool.mount_point().join("data/file"), 30).unwrap();
    root.snapshot(&data, "base", true, None).unwrap();
    fs::remove_file(pool.mount_point().join("data/file")).unwrap();
    assert!(charged(&root, group) >= 30 * MIB, "the snapshot holds it");
    drop(data);

    let ids = root.delete_subvolume("data").unwrap();
    cleaner::wait(&root, &ids, Duration::from_secs(60)).unwrap();
    assert!(charged(&root, group) >= 30 * MIB, "also when the writer is gone");
    assert!(quota::remove_group(&root, group).unwrap_err().is(Errno::EBUSY));
    assert_eq!(quota::remove_unused(&root, [group]).unwrap(), [group]);

    let ids = root.delete_subvolume("base").unwrap();
    cleaner::wait(&root, &ids, Duration::from_secs(60)).unwrap();
    assert_eq!(charged(&root, group), 0);
    let left = quota::groups(&root).unwrap();
    println!("groups left: {left:?}");
    assert!(quota::remove_group(&root, group).unwrap_err().is(Errno::EBUSY), "the dead member keeps it");
    for _ in 0..2 {
        assert!(quota::remove_unused(&root, [group]).unwrap().is_empty(), "twice is once");
    }
    commit::commit(&root).unwrap();
    assert_eq!(quota::usage(&root, group).unwrap(), None);
}

#[test]
fn a_fork_starts_uncharged() {
    let pool = pool!("a_fork_starts_uncharged");
    let root = pool.root().unwrap();
    quota::enable_simple(&root).unwrap();
    let template = root.create_subvolume("template", None).unwrap();
    noise(&pool.mount_point().join("template/file"), 30).unwrap();
    let group = group(&root, 1, 20 * MIB);
    root.snapshot(&template, "fork", false, Some(group)).unwrap();
    assert!(charged(&root, group) < MIB, "only what is new counts");
    noise(&pool.mount_point().join("fork/new"), 10).unwrap();
    assert!(charged(&root, group) >= 10 * MIB);
    assert!(noise(&pool.mount_point().join("fork/more"), 20).is_err());
}
