//! A judge that sees nothing is no judge: each kind of statement, left out or made smaller, is noticed.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use cas::{Changes, ChildChange, DirChange};

use crate::volume::{Volume, put};

type Work = fn(&Path);
type Plant = fn(&mut Changes);

fn open(path: &Path) -> fs::File {
    fs::OpenOptions::new().write(true).open(path).unwrap()
}

fn directory<'c>(changes: &'c mut Changes, name: &str) -> &'c mut DirChange {
    match changes.root.children.get_mut(name.as_bytes()) {
        Some(ChildChange::Directory(change) | ChildChange::Moved { change, .. }) => change,
        other => panic!("{other:?}"),
    }
}

const CLASSES: [(&str, Work, Plant); 14] = [
    ("create", |live| put(live.join("d/new"), "x"), |changes| directory(changes, "d").relist = false),
    (
        "mkdir",
        |live| fs::create_dir(live.join("d/new")).unwrap(),
        |changes| directory(changes, "d").relist = false,
    ),
    (
        "unlink",
        |live| fs::remove_file(live.join("d/small")).unwrap(),
        |changes| {
            directory(changes, "d").relist = false;
        },
    ),
    (
        "rewrite",
        |live| put(live.join("d/small"), "y"),
        |changes| {
            directory(changes, "d").children.clear();
        },
    ),
    (
        "pwrite",
        |live| open(&live.join("d/big")).write_all_at(b"here", 500_000).unwrap(),
        |changes| {
            let Some(ChildChange::Content { ranges: Some(ranges), .. }) =
                directory(changes, "d").children.get_mut(&b"big"[..])
            else {
                panic!("no ranges");
            };
            ranges.clear();
        },
    ),
    (
        "append",
        |live| open(&live.join("d/big")).write_all_at(b"here", 1 << 20).unwrap(),
        |changes| {
            let metadata = ChildChange::Metadata { from: None };
            directory(changes, "d").children.insert(b"big".to_vec(), metadata);
        },
    ),
    (
        "truncate",
        |live| open(&live.join("d/big")).set_len(1000).unwrap(),
        |changes| {
            let metadata = ChildChange::Metadata { from: None };
            directory(changes, "d").children.insert(b"big".to_vec(), metadata);
        },
    ),
    (
        "chmod",
        |live| fs::set_permissions(live.join("d/small"), fs::Permissions::from_mode(0o600)).unwrap(),
        |changes| directory(changes, "d").children.clear(),
    ),
    (
        "xattr of a directory",
        |live| {
            rustix::fs::setxattr(live.join("d"), "user.x", b"y", rustix::fs::XattrFlags::empty()).unwrap();
        },
        |changes| directory(changes, "d").relist = false,
    ),
    (
        "rename",
        |live| fs::rename(live.join("d/small"), live.join("e/small")).unwrap(),
        |changes| {
            let wrong = ChildChange::Metadata { from: None };
            directory(changes, "e").children.insert(b"small".to_vec(), wrong);
        },
    ),
    (
        "rename of a directory",
        |live| fs::rename(live.join("d"), live.join("f")).unwrap(),
        |changes| {
            changes.root.relist = false;
        },
    ),
    (
        "rename over another directory",
        |live| {
            fs::remove_dir_all(live.join("e")).unwrap();
            fs::rename(live.join("d"), live.join("e")).unwrap();
        },
        |changes| drop(changes.root.children.remove(&b"e"[..])),
    ),
    (
        "link",
        |live| fs::hard_link(live.join("d/small"), live.join("e/link")).unwrap(),
        |changes| changes.links.clear(),
    ),
    (
        "link that becomes the first name",
        |live| fs::hard_link(live.join("d/small"), live.join("a link")).unwrap(),
        |changes| directory(changes, "d").children.clear(),
    ),
];

#[test]
fn a_planted_miss_is_caught_in_each_class() {
    let Some(mut volume) = Volume::create("planted misses") else { return };
    for (class, work, plant) in CLASSES {
        let live = volume.live();
        for left in fs::read_dir(&live).unwrap() {
            let left = left.unwrap().path();
            if left.is_dir() { fs::remove_dir_all(left).unwrap() } else { fs::remove_file(left).unwrap() }
        }
        put(live.join("d/small"), "x");
        put(live.join("d/big"), blake3::hash(b"").as_bytes().repeat(1 << 15));
        put(live.join("e/other"), "x");
        volume.step().unwrap();
        work(&live);
        let (_, mut changes) = volume.timed();
        assert!(volume.judge(&changes), "{class}: what is said is enough");
        plant(&mut changes);
        let noticed = catch_unwind(AssertUnwindSafe(|| !volume.judge(&changes))).unwrap_or(true);
        assert!(noticed, "{class}: a miss passed");
        volume.step().unwrap();
    }
}
