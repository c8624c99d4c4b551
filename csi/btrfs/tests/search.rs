//! The tree search sees each class of change between two snapshots, and nothing where nothing changed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use btrfs::scratch::ScratchPool;
use btrfs::search::{ExtentData, FileType, Key, Search, kind, tree};
use btrfs::{Dir, Errno, subvolume};

macro_rules! pool {
    ($name:literal) => {
        match ScratchPool::or_skip($name) {
            Some(pool) => pool,
            None => return,
        }
    };
}

/// What a search says has changed since a transaction.
#[derive(Debug, Default)]
struct Seen {
    inodes: BTreeSet<u64>,
    /// Offset and length of extents made since, by inode.
    extents: BTreeMap<u64, Vec<(u64, u64)>>,
    /// Entries made since.
    names: BTreeSet<(u64, Vec<u8>)>,
}

fn changes(snapshot: &Dir, since: u64) -> Seen {
    let mut seen = Seen::default();
    let mut search = Search::new(snapshot, tree::OF_DIRECTORY, Key::FIRST..=Key::LAST).newer_than(since);
    while let Some(item) = search.next_item().unwrap() {
        assert!(item.transid > since, "an old leaf");
        match item.key.kind {
            kind::INODE_ITEM if item.inode().unwrap().transid > since => {
                seen.inodes.insert(item.key.objectid);
            }
            kind::EXTENT_DATA => {
                let extent = item.extent().unwrap();
                if extent.generation > since {
                    let range = (item.key.offset, extent.file_bytes());
                    seen.extents.entry(item.key.objectid).or_default().push(range);
                }
            }
            kind::DIR_INDEX => {
                for entry in item.dir_entries().unwrap().iter().filter(|entry| entry.transid > since) {
                    seen.names.insert((item.key.objectid, entry.name.to_vec()));
                }
            }
            _ => {}
        }
    }
    seen
}

/// A volume with a first snapshot, and what is in it.
struct Volume {
    pool: ScratchPool,
    root: Dir,
    data: Dir,
    number: u32,
    base: Dir,
}

impl Volume {
    fn new(pool: ScratchPool) -> Self {
        let root = pool.root().unwrap();
        let data = root.create_subvolume("data", None).unwrap();
        let path = pool.mount_point().join("data");
        fs::write(path.join("small"), "small").unwrap();
        fs::write(path.join("large"), vec![7; 1 << 20]).unwrap();
        fs::write(path.join("other"), vec![8; 1 << 20]).unwrap();
        fs::create_dir(path.join("dir")).unwrap();
        fs::write(path.join("dir/child"), "child").unwrap();
        fs::create_dir(path.join("empty")).unwrap();
        let base = root.snapshot(&data, "base", true, None).unwrap();
        Self { pool, root, data, number: 0, base }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.pool.mount_point().join("data").join(name)
    }

    fn inode(&self, name: &str) -> u64 {
        fs::symlink_metadata(self.path(name)).unwrap().ino()
    }

    /// Does something and answers what changed since the last snapshot.
    fn after(&mut self, change: impl FnOnce(&Path)) -> Seen {
        change(&self.pool.mount_point().join("data"));
        let since = subvolume::info(&self.base).unwrap().otransid;
        self.number += 1;
        self.base = self.root.snapshot(&self.data, format!("s{}", self.number), true, None).unwrap();
        changes(&self.base, since)
    }
}

#[test]
fn each_class_of_change_is_seen_and_nothing_else() {
    let mut volume = Volume::new(pool!("each_class_of_change_is_seen_and_nothing_else"));
    const ROOT: u64 = subvolume::ROOT_INODE;
    let (small, large, dir) = (volume.inode("small"), volume.inode("large"), volume.inode("dir"));
    let child = volume.inode("dir/child");

    let seen = volume.after(|_| {});
    assert!(seen.inodes.is_empty() && seen.extents.is_empty() && seen.names.is_empty(), "nothing: {seen:?}");
    let seen = volume.after(|path| drop(fs::read(path.join("large")).unwrap()));
    assert!(seen.inodes.is_empty(), "read: {seen:?}");

    let seen = volume.after(|path| fs::write(path.join("new"), "x").unwrap());
    let new = volume.inode("new");
    assert_eq!(seen.inodes, [ROOT, new].into(), "create");
    assert_eq!(seen.names, [(ROOT, b"new".to_vec())].into(), "create");

    let seen = volume.after(|path| {
        File::options()
            .write(true)
            .open(path.join("large"))
            .unwrap()
            .write_all_at(&[9; 4096], 65536)
            .unwrap();
    });
    assert_eq!(seen.inodes, [large].into(), "write");
    assert_eq!(seen.extents, [(large, vec![(65536, 4096)])].into(), "write");

    let seen = volume.after(|path| {
        File::options()
            .write(true)
            .open(path.join("large"))
            .unwrap()
            .write_all_at(&[9; 10], 1 << 20)
            .unwrap();
    });
    assert_eq!(seen.inodes, [large].into(), "append");
    assert_eq!(seen.extents, [(large, vec![(1 << 20, 4096)])].into(), "append");

    let seen = volume
        .after(|path| File::options().write(true).open(path.join("large")).unwrap().set_len(8192).unwrap());
    assert_eq!(seen.inodes, [large].into(), "shrink");
    assert!(seen.extents.is_empty(), "shrink is seen in the inode and the list of extents only: {seen:?}");

    let seen = volume.after(|path| {
        let punched = Command::new("fallocate")
            .args(["-p", "-o", "4096", "-l", "4096"])
            .arg(path.join("other"))
            .status();
        assert!(punched.unwrap().success());
    });
    assert_eq!(seen.inodes, [volume.inode("other")].into(), "punch");
    assert!(seen.extents.is_empty(), "a hole is the absence of an item: {seen:?}");

    let seen = volume.after(|path| fs::rename(path.join("dir/child"), path.join("moved")).unwrap());
    assert_eq!(seen.inodes, [ROOT, dir, child].into(), "rename");
    assert_eq!(seen.names, [(ROOT, b"moved".to_vec())].into(), "rename");

    let seen = volume.after(|path| fs::hard_link(path.join("moved"), path.join("dir/link")).unwrap());
    assert_eq!(seen.inodes, [dir, child].into(), "link");
    assert_eq!(seen.names, [(dir, b"link".to_vec())].into(), "link");

    let seen = volume.after(|path| fs::remove_file(path.join("dir/link")).unwrap());
    assert_eq!((seen.inodes, seen.names), ([dir, child].into(), [].into()), "unlink");

    let seen = volume.after(|path| {
        fs::set_permissions(path.join("small"), fs::Permissions::from_mode(0o600)).unwrap();
    });
    assert_eq!(seen.inodes, [small].into(), "chmod");

    let seen = volume.after(|path| {
        let set = Command::new("python3")
            .args(["-c", "import os,sys; os.setxattr(sys.argv[1], 'user.k', b'v')"])
            .arg(path.join("small"))
            .status();
        assert!(set.unwrap().success());
    });
    assert_eq!(seen.inodes, [small].into(), "xattr");

    let seen = volume.after(|path| fs::create_dir(path.join("made")).unwrap());
    assert_eq!(seen.inodes, [ROOT, volume.inode("made")].into(), "mkdir");

    let seen = volume.after(|path| fs::remove_dir(path.join("empty")).unwrap());
    assert_eq!((seen.inodes, seen.names), ([ROOT].into(), [].into()), "rmdir");

    let seen = volume.after(|path| std::os::unix::fs::symlink("target", path.join("symlink")).unwrap());
    assert_eq!(seen.inodes, [ROOT, volume.inode("symlink")].into(), "symlink");

    let seen = volume.after(|path| {
        let made =
            Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(path.join("nested")).status();
        assert!(made.unwrap().success());
    });
    assert_eq!(seen.inodes, [ROOT].into(), "nested subvolume");
}

#[test]
fn generation_moves_by_snapshotting_and_ctransid_only_by_writing() {
    let mut volume = Volume::new(pool!("generation_moves_by_snapshotting_and_ctransid_only_by_writing"));
    let info = |dir: &Dir| subvolume::info(dir).unwrap();
    let (live, first) = (info(&volume.data), info(&volume.base));
    volume.after(|_| {});
    let second = info(&volume.base);
    assert!(info(&volume.data).generation > live.generation, "snapshotting moves it");
    assert!(second.generation > first.generation);
    assert_eq!(second.ctransid, first.ctransid, "nothing was written");
    volume.after(|path| drop(fs::read(path.join("large")).unwrap()));
    assert_eq!(info(&volume.base).ctransid, first.ctransid, "reading is not writing");

    type Change = fn(&Path);
    let table: [(&str, Change); 5] = [
        ("append without fsync", |path| {
            let file = File::options().append(true).open(path.join("small")).unwrap();
            std::io::Write::write_all(&mut &file, b"x").unwrap();
        }),
        ("one byte in place", |path| {
            File::options().write(true).open(path.join("large")).unwrap().write_all_at(b"x", 5).unwrap();
        }),
        ("chmod", |path| fs::set_permissions(path.join("small"), fs::Permissions::from_mode(0o644)).unwrap()),
        ("mkdir", |path| fs::create_dir(path.join("m")).unwrap()),
        ("rmdir", |path| fs::remove_dir(path.join("m")).unwrap()),
    ];
    for (name, change) in table {
        let before = info(&volume.base);
        volume.after(change);
        let after = info(&volume.base);
        assert!(after.ctransid > before.ctransid, "{name}");
        assert!(after.ctransid > before.otransid, "{name}: later than the snapshot before it was made");
        assert!(after.ctransid <= after.otransid, "{name}: not later than the snapshot that has it");
    }
}

#[test]
fn items_say_what_stat_says() {
    let pool = pool!("items_say_what_stat_says");
    let root = pool.root().unwrap();
    let data = root.create_subvolume("data", None).unwrap();
    let path = pool.mount_point().join("data");
    fs::write(path.join("inline"), "inline bytes").unwrap();
    fs::create_dir(path.join("dir")).unwrap();
    fs::hard_link(path.join("inline"), path.join("dir/second")).unwrap();
    fs::hard_link(path.join("inline"), path.join("third")).unwrap();
    std::os::unix::fs::symlink("the target", path.join("symlink")).unwrap();
    data.create_subvolume("nested", None).unwrap();
    File::create(path.join("sparse")).unwrap().write_all_at(&[1; 4096], 1 << 30).unwrap();
    std::os::unix::fs::chown(path.join("inline"), Some(12), Some(34)).unwrap();
    let snapshot = root.snapshot(&data, "snapshot", true, None).unwrap();

    let stat = fs::symlink_metadata(path.join("inline")).unwrap();
    let mut search = Search::new(&snapshot, tree::OF_DIRECTORY, Key::object(stat.ino()));
    let (mut names, mut inline) = (BTreeSet::new(), Vec::new());
    while let Some(item) = search.next_item().unwrap() {
        match item.key.kind {
            kind::INODE_ITEM => {
                let inode = item.inode().unwrap();
                assert_eq!(
                    (inode.size, inode.nlink, inode.uid, inode.gid, inode.mode),
                    (stat.size(), 3, 12, 34, stat.mode())
                );
                assert_eq!(
                    (inode.mtime.seconds, i64::from(inode.mtime.nanoseconds)),
                    (stat.mtime(), stat.mtime_nsec())
                );
            }
            kind::INODE_REF => {
                names.extend(
                    item.inode_refs().unwrap().iter().map(|name| (name.dir_inode, name.name.to_vec())),
                );
            }
            kind::EXTENT_DATA => inline = item.extent().unwrap().inline_bytes().unwrap().to_vec(),
            other => panic!("{other}"),
        }
    }
    let dir = fs::metadata(path.join("dir")).unwrap().ino();
    assert_eq!(
        names,
        [(256, b"inline".to_vec()), (256, b"third".to_vec()), (dir, b"second".to_vec())].into()
    );
    assert_eq!(inline, b"inline bytes");

    let mut types = BTreeMap::new();
    let mut search = Search::new(&snapshot, tree::OF_DIRECTORY, Key::object_kind(256, kind::DIR_INDEX));
    while let Some(item) = search.next_item().unwrap() {
        for entry in item.dir_entries().unwrap() {
            types.insert(entry.name.to_vec(), (entry.file_type, entry.subvolume.is_some()));
        }
    }
    assert_eq!(types[b"symlink".as_slice()], (FileType::Symlink, false));
    assert_eq!(types[b"dir".as_slice()], (FileType::Directory, false));
    // In the snapshot the entry still leads to the nested subvolume, though it cannot be opened there.
    assert_eq!(types[b"nested".as_slice()], (FileType::Directory, true));

    let sparse = fs::metadata(path.join("sparse")).unwrap().ino();
    let mut search = Search::new(&snapshot, tree::OF_DIRECTORY, Key::object_kind(sparse, kind::EXTENT_DATA));
    let item = search.next_item().unwrap().unwrap();
    assert_eq!(item.key.offset, 1 << 30, "with no-holes a hole is the absence of an item");
    let extent = item.extent().unwrap();
    assert!(matches!(extent.data, ExtentData::Regular { bytes: 4096, .. }) && !extent.is_zero());
    assert!(search.next_item().unwrap().is_none());
}

#[test]
fn names_that_do_not_fit_into_an_inode_ref_are_found() {
    let pool = pool!("names_that_do_not_fit_into_an_inode_ref_are_found");
    let root = pool.root().unwrap();
    let data = root.create_subvolume("data", None).unwrap();
    let path = pool.mount_point().join("data");
    fs::write(path.join("file"), "").unwrap();
    let name = |n: u32| format!("{n:0>200}");
    for n in 0..200 {
        fs::hard_link(path.join("file"), path.join(name(n))).unwrap();
    }
    let snapshot = root.snapshot(&data, "snapshot", true, None).unwrap();
    let inode = fs::metadata(path.join("file")).unwrap().ino();
    let mut found = BTreeSet::new();
    let mut extrefs = 0;
    let mut search = Search::new(&snapshot, tree::OF_DIRECTORY, Key::object(inode));
    while let Some(item) = search.next_item().unwrap() {
        let refs = match item.key.kind {
            kind::INODE_REF => item.inode_refs().unwrap(),
            kind::INODE_EXTREF => item.inode_extrefs().unwrap(),
            _ => continue,
        };
        extrefs += usize::from(item.key.kind == kind::INODE_EXTREF);
        for name in refs {
            assert_eq!(name.dir_inode, 256);
            found.insert(String::from_utf8(name.name.to_vec()).unwrap());
        }
    }
    assert!(extrefs > 0);
    let expected: BTreeSet<_> = (0..200).map(name).chain(["file".to_owned()]).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_large_tree_is_read_whole_and_in_order() {
    let pool = pool!("a_large_tree_is_read_whole_and_in_order");
    let root = pool.root().unwrap();
    let data = root.create_subvolume("data", None).unwrap();
    for n in 0..5000 {
        fs::write(pool.mount_point().join(format!("data/{n}")), vec![b'x'; n % 2000]).unwrap();
    }
    let snapshot = root.snapshot(&data, "snapshot", true, None).unwrap();
    let mut search = Search::new(&snapshot, tree::OF_DIRECTORY, Key::FIRST..=Key::LAST);
    let (mut last, mut inodes) = (None, 0);
    while let Some(item) = search.next_item().unwrap() {
        assert!(Some(item.key) > last);
        last = Some(item.key);
        inodes += u32::from(item.key.kind == kind::INODE_ITEM);
    }
    assert_eq!(inodes, 5001);
    // Skipping from inode to inode sees the same.
    let mut search = Search::new(&snapshot, tree::OF_DIRECTORY, Key::FIRST..=Key::LAST);
    let mut skipped = 0;
    while let Some(item) = search.next_item().unwrap() {
        let after = Key { objectid: item.key.objectid + 1, ..Key::FIRST };
        skipped += 1;
        search.seek(after);
    }
    assert_eq!(skipped, 5001);
}

#[test]
fn a_tree_that_is_not_there_is_an_error() {
    let pool = pool!("a_tree_that_is_not_there_is_an_error");
    let root = pool.root().unwrap();
    let mut search = Search::new(&root, 1 << 40, Key::FIRST..=Key::LAST);
    assert!(search.next_item().unwrap_err().is(Errno::ENOENT));
    let mut nothing = Search::new(&root, tree::OF_DIRECTORY, Key::LAST..=Key::FIRST);
    assert!(nothing.next_item().unwrap().is_none());
}
