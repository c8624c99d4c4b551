//! Each class of change by name: it is seen, and what is said of it is no more than it was.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use cas::{Changes, ChildChange, DirChange};
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use types::VolumePath;

use crate::volume::{Volume, put};

macro_rules! volume {
    ($name:literal) => {
        match Volume::create($name) {
            Some(volume) => volume,
            None => return,
        }
    };
}

/// What is said to have changed since the last snapshot.
fn step(volume: &mut Volume) -> Changes {
    let step = volume.step().unwrap();
    assert_eq!(step.full_scan, None);
    step.changes
}

/// What is said of one path.
fn said<'c>(changes: &'c Changes, path: &str) -> Option<&'c ChildChange> {
    let mut directory = &changes.root;
    let mut segments = path.split('/').peekable();
    while let Some(segment) = segments.next() {
        let child = directory.children.get(segment.as_bytes())?;
        if segments.peek().is_none() {
            return Some(child);
        }
        directory = match child {
            ChildChange::Directory(change) | ChildChange::Moved { change, .. } => change,
            _ => return None,
        };
    }
    None
}

/// How many names something is said of, directories on the way not counted.
fn count(change: &DirChange) -> usize {
    let children = change.children.values().map(|child| match child {
        ChildChange::Directory(change) => count(change),
        ChildChange::Moved { change, .. } => 1 + count(change),
        ChildChange::Metadata { .. } | ChildChange::Content { .. } | ChildChange::New => 1,
    });
    children.sum()
}

fn at(path: &str) -> Option<VolumePath> {
    Some(VolumePath::parse(path).unwrap())
}

fn big() -> Vec<u8> {
    let mut content = vec![0; 4 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    content
}

#[test]
fn nothing_changed_is_nothing() {
    let mut volume = volume!("nothing changed");
    put(volume.live().join("a/b"), "x");
    step(&mut volume);
    assert_eq!(step(&mut volume), Changes::default());
    fs::read(volume.live().join("a/b")).unwrap();
    let changes = step(&mut volume);
    // Reading moves the access time where the pool is not mounted noatime; that is no content.
    assert!(!matches!(said(&changes, "a/b"), Some(ChildChange::Content { .. } | ChildChange::New)));
}

#[test]
fn the_first_write_after_a_snapshot_and_the_last_before_the_next_are_both_seen() {
    let mut volume = volume!("the bound");
    for round in 0..40 {
        put(volume.live().join("first"), format!("{round}"));
        put(volume.live().join("last"), format!("{round}"));
        let changes = step(&mut volume);
        assert_eq!(count(&changes.root), 2, "round {round}: {changes:#?}");
        put(volume.live().join("at once"), "x");
        let changes = step(&mut volume);
        assert_eq!(count(&changes.root), 1, "round {round}: {changes:#?}");
    }
}

#[test]
fn a_new_directory_is_named_once() {
    let mut volume = volume!("a new directory");
    for number in 0..50 {
        put(volume.live().join(format!("new/{number}/file")), "x");
    }
    let changes = step(&mut volume);
    assert_eq!(said(&changes, "new"), Some(&ChildChange::New));
    assert!(changes.root.relist);
    assert_eq!(count(&changes.root), 1);
}

#[test]
fn a_small_file_that_is_rewritten_comes_with_its_bytes() {
    let mut volume = volume!("inline");
    put(volume.live().join("a/small"), "before");
    put(volume.live().join("a/other"), "other");
    step(&mut volume);
    OpenOptions::new()
        .write(true)
        .open(volume.live().join("a/small"))
        .unwrap()
        .write_all_at(b"after!", 0)
        .unwrap();
    let changes = step(&mut volume);
    let expected = ChildChange::Content { ranges: None, inline: Some("after!".into()) };
    assert_eq!(said(&changes, "a/small"), Some(&expected));
    assert_eq!(count(&changes.root), 1);
    assert!(!changes.root.relist, "no list of names changed");
}

#[test]
fn metadata_is_told_from_content() {
    let mut volume = volume!("metadata");
    for (name, content) in [("small", b"small".to_vec()), ("big", big())] {
        put(volume.live().join(name), content);
    }
    symlink("x", volume.live().join("link")).unwrap();
    step(&mut volume);
    let live = volume.live();
    let works: [(&str, &dyn Fn(&Path)); 4] = [
        ("chmod", &|path| fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap()),
        ("chown", &|path| std::os::unix::fs::chown(path, Some(5), Some(6)).unwrap()),
        ("times", &|path| {
            let file = fs::File::open(path).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        }),
        ("xattr", &|path| {
            rustix::fs::setxattr(path, "user.x", b"y", rustix::fs::XattrFlags::empty()).unwrap();
        }),
    ];
    for (what, work) in works {
        work(&live.join("small"));
        work(&live.join("big"));
        let changes = step(&mut volume);
        for name in ["small", "big"] {
            assert_eq!(said(&changes, name), Some(&ChildChange::Metadata { from: None }), "{what} of {name}");
        }
    }
    std::os::unix::fs::lchown(live.join("link"), Some(5), Some(6)).unwrap();
    let changes = step(&mut volume);
    assert_eq!(said(&changes, "link"), Some(&ChildChange::Metadata { from: None }));
}

#[test]
fn a_write_into_a_large_file_names_its_range() {
    let mut volume = volume!("ranges");
    put(volume.live().join("big"), big());
    step(&mut volume);
    let path = volume.live().join("big");
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let ranges = |volume: &mut Volume| {
        let changes = step(volume);
        match said(&changes, "big") {
            Some(ChildChange::Content { ranges: Some(ranges), inline: None }) => ranges.clone(),
            other => panic!("{other:?}"),
        }
    };
    let covers = |ranges: &[std::ops::Range<u64>], from: u64, to: u64, slack: u64| {
        let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        assert!(ranges.iter().any(|range| range.start <= from && range.end >= to), "{ranges:?} {from}..{to}");
        assert!(bytes <= to - from + slack, "{ranges:?} is more than {from}..{to} and {slack}");
    };
    let block = 4096;
    file.write_all_at(b"here", 1_000_000).unwrap();
    covers(&ranges(&mut volume), 1_000_000, 1_000_004, 2 * block);
    // What is compressed is rewritten by extents of at most 128 KiB.
    fallocate(
        &file,
        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        1 << 20,
        1 << 20,
    )
    .unwrap();
    covers(&ranges(&mut volume), 1 << 20, 2 << 20, 2 * block);
    file.write_all_at(b"tail", 4 << 20).unwrap();
    covers(&ranges(&mut volume), 4 << 20, (4 << 20) + 4, 2 * block);
    file.set_len(3 << 20).unwrap();
    covers(&ranges(&mut volume), (3 << 20) - 1, 3 << 20, 2 * block);
    file.set_len(5 << 20).unwrap();
    covers(&ranges(&mut volume), 3 << 20, 5 << 20, 2 * block);
    fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 5 << 20, 1 << 20).unwrap();
    let changes = step(&mut volume);
    assert_eq!(
        said(&changes, "big"),
        Some(&ChildChange::Metadata { from: None }),
        "space beyond the end is not content"
    );
    fs::copy(&path, volume.live().join("copy")).unwrap();
    step(&mut volume);
    // A reflink shares an old extent: only comparing the lists shows it.
    let order = "reflink big 0 262144 131072".replace("big", path.to_str().unwrap());
    let status = Command::new("xfs_io").args(["-c", &order]).arg(&path).output();
    if status.is_ok_and(|output| output.status.success()) {
        covers(&ranges(&mut volume), 262_144, 393_216, 2 * block);
    } else {
        eprintln!("SKIPPED: a reflink of a range needs xfs_io");
    }
}

#[test]
fn a_rename_costs_one_name_whatever_is_below() {
    let mut volume = volume!("rename");
    for number in 0..100 {
        put(volume.live().join(format!("from/deep/{number}")), "x");
    }
    put(volume.live().join("file"), "x");
    put(volume.live().join("to/present"), "x");
    step(&mut volume);
    fs::rename(volume.live().join("from"), volume.live().join("to/there")).unwrap();
    fs::rename(volume.live().join("file"), volume.live().join("to/file")).unwrap();
    let changes = step(&mut volume);
    assert_eq!(count(&changes.root), 2, "{changes:#?}");
    let Some(ChildChange::Moved { from, change }) = said(&changes, "to/there") else {
        panic!("{changes:#?}")
    };
    assert_eq!(Some(from.clone()), at("from"));
    assert!(change.children.is_empty());
    assert_eq!(said(&changes, "to/file"), Some(&ChildChange::Metadata { from: at("file") }));
    // Into a directory that is new itself, with something changed inside on the way.
    fs::create_dir(volume.live().join("new")).unwrap();
    fs::rename(volume.live().join("to/there"), volume.live().join("new/again")).unwrap();
    put(volume.live().join("new/again/deep/7"), "y");
    put(volume.live().join("new/file"), "y");
    let changes = step(&mut volume);
    assert!(
        matches!(said(&changes, "new/again"), Some(ChildChange::Moved { from, .. }) if Some(from.clone()) == at("to/there"))
    );
    assert_eq!(said(&changes, "new/file"), Some(&ChildChange::New));
    assert_eq!(count(&changes.root), 3, "{changes:#?}");
}

#[test]
fn names_that_change_places_are_told_apart() {
    let mut volume = volume!("exchange");
    for name in ["a/file", "b/file", "one", "two"] {
        put(volume.live().join(name), name);
    }
    step(&mut volume);
    let live = volume.live();
    let exchange = |a: &str, b: &str| {
        renameat2(AT_FDCWD, &live.join(a), AT_FDCWD, &live.join(b), RenameFlags::RENAME_EXCHANGE).unwrap();
    };
    exchange("a", "b");
    exchange("one", "two");
    let changes = step(&mut volume);
    assert_eq!(said(&changes, "one"), Some(&ChildChange::Metadata { from: at("two") }));
    assert!(
        matches!(said(&changes, "a"), Some(ChildChange::Moved { from, .. }) if Some(from.clone()) == at("b"))
    );
    // A directory replaced by another of its name, and a file by a directory.
    fs::remove_dir_all(live.join("a")).unwrap();
    put(live.join("a/other"), "x");
    fs::remove_file(live.join("one")).unwrap();
    put(live.join("one/inside"), "x");
    step(&mut volume);
    exchange("a", "two");
    step(&mut volume);
}

#[test]
fn removing_names_nothing_but_the_list_they_were_in() {
    let mut volume = volume!("remove");
    for number in 0..100 {
        put(volume.live().join(format!("a/{number}/x")), "x");
    }
    step(&mut volume);
    fs::remove_dir_all(volume.live().join("a/7")).unwrap();
    let changes = step(&mut volume);
    assert_eq!(count(&changes.root), 0);
    assert!(matches!(said(&changes, "a"), Some(ChildChange::Directory(change)) if change.relist));
    // Open without a name: not in the tree.
    let held = fs::File::create(volume.live().join("held")).unwrap();
    fs::remove_file(volume.live().join("held")).unwrap();
    held.write_all_at(b"x", 0).unwrap();
    assert_eq!(count(&step(&mut volume).root), 0);
}

#[test]
fn all_names_of_an_inode_that_has_several_are_told() {
    let mut volume = volume!("links");
    let live = volume.live();
    put(live.join("b/first"), "x");
    fs::create_dir(live.join("c")).unwrap();
    step(&mut volume);
    fs::hard_link(live.join("b/first"), live.join("c/second")).unwrap();
    let changes = step(&mut volume);
    let names: Vec<Vec<VolumePath>> = changes.links.values().cloned().collect();
    assert_eq!(names, [vec![at("b/first").unwrap(), at("c/second").unwrap()]]);
    // A directory above one of the names moves: nothing wrote to the inode, but its first name is another now.
    fs::rename(live.join("b"), live.join("d")).unwrap();
    let changes = step(&mut volume);
    let names: Vec<Vec<VolumePath>> = changes.links.values().cloned().collect();
    assert_eq!(names, [vec![at("c/second").unwrap(), at("d/first").unwrap()]]);
    assert_eq!(said(&changes, "c/second"), Some(&ChildChange::Metadata { from: at("b/first") }));
    // Written through one name; then the first goes, and the other is the file.
    fs::write(live.join("d/first"), "y").unwrap();
    step(&mut volume);
    fs::remove_file(live.join("c/second")).unwrap();
    let changes = step(&mut volume);
    assert!(changes.links.is_empty());
    assert_eq!(said(&changes, "d/first"), Some(&ChildChange::Metadata { from: at("c/second") }));
    // So many that the kernel needs another kind of item for them.
    fs::create_dir(live.join("many")).unwrap();
    for number in 0..300 {
        fs::hard_link(live.join("d/first"), live.join(format!("many/{number:0>200}"))).unwrap();
    }
    let changes = step(&mut volume);
    assert_eq!(changes.links.values().next().map(Vec::len), Some(301));
    fs::rename(live.join("many"), live.join("moved")).unwrap();
    step(&mut volume);
}

#[test]
fn a_nested_subvolume_is_compared_with_what_it_was() {
    let mut volume = volume!("nested");
    put(volume.live().join("d/file"), "x");
    let parent = btrfs::Dir::open(volume.live().join("d")).unwrap();
    let nested = parent.create_subvolume("sub", None).unwrap();
    for number in 0..50 {
        put(volume.live().join(format!("d/sub/x/{number}")), "x");
    }
    let changes = step(&mut volume);
    assert_eq!(said(&changes, "d"), Some(&ChildChange::New));
    assert_eq!(count(&step(&mut volume).root), 0, "nothing changed in it");
    put(volume.live().join("d/sub/x/7"), "y");
    let changes = step(&mut volume);
    assert!(matches!(said(&changes, "d/sub/x/7"), Some(ChildChange::Content { .. })), "{changes:#?}");
    assert_eq!(count(&changes.root), 1);
    // A hard link inside is a matter of its own inodes.
    fs::hard_link(volume.live().join("d/sub/x/8"), volume.live().join("d/sub/a link")).unwrap();
    let changes = step(&mut volume);
    let names: Vec<Vec<VolumePath>> = changes.links.values().cloned().collect();
    assert_eq!(names, [vec![at("d/sub/a link").unwrap(), at("d/sub/x/8").unwrap()]]);
    // It moves: read whole.
    drop(nested);
    fs::rename(volume.live().join("d/sub"), volume.live().join("moved")).unwrap();
    let changes = step(&mut volume);
    assert_eq!(said(&changes, "moved"), Some(&ChildChange::New));
    btrfs::Dir::open(volume.live()).unwrap().delete_subvolume("moved").unwrap();
    let changes = step(&mut volume);
    assert_eq!(said(&changes, "moved"), None);
}

#[test]
fn forks_are_compared_with_the_base_they_grew_from() {
    let mut volume = volume!("forks");
    for number in 0..50 {
        put(volume.live().join(format!("d/{number}")), "x");
    }
    step(&mut volume);
    // Of live, with what was written since the base, and again of that.
    put(volume.live().join("d/1"), "y");
    volume.fork(false);
    put(volume.live().join("d/2"), "y");
    volume.fork(false);
    put(volume.live().join("d/3"), "y");
    assert_eq!(count(&step(&mut volume).root), 3);
    // Of the base itself.
    volume.fork(true);
    put(volume.live().join("d/4"), "z");
    assert_eq!(count(&step(&mut volume).root), 1);
}

#[test]
fn what_has_no_common_past_asks_for_a_full_scan() {
    let volume = volume!("no common past");
    let root = volume.root();
    let live = root.open_dir("live").unwrap();
    let other = root.create_subvolume("other", None).unwrap();
    let snapshot =
        |source: &btrfs::Dir, name: &str, readonly| root.snapshot(source, name, readonly, None).unwrap();
    let early = snapshot(&live, "early", true);
    let branch = snapshot(&live, "branch", false);
    let late = snapshot(&live, "late", true);
    let foreign = snapshot(&other, "foreign", true);
    let of_branch = snapshot(&branch, "of-branch", true);
    let full = |base: &btrfs::Dir, snapshot: &btrfs::Dir| {
        matches!(csi::changes::changes(base, snapshot), Err(csi::changes::Error::FullScan { .. }))
    };
    assert!(!full(&early, &late));
    assert!(!full(&early, &of_branch));
    assert!(full(&late, &early), "backwards");
    assert!(full(&late, &of_branch), "the branch was made before the base");
    assert!(full(&foreign, &late));
    assert!(full(&live, &late), "the base can still be written to");
    assert!(full(&early, &live), "so can the snapshot");
}
