//! A snapshot's inventory says of every kind of thing what the kernel's calls say, and a lie in it is noticed.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use btrfs::Dir;
use bytes::Bytes;
use cas::tree::{Inventory, Name, Root, Told};
use csi::changes::told;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rustix::fs::XattrFlags;

use crate::store::Judge;
use crate::volume::{Volume, put};

fn noise(bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    content
}

/// One of everything that a tree can have.
fn everything(live: &Path) {
    put(live.join("empty"), "");
    put(live.join("small"), "a few bytes");
    put(live.join("a page"), noise(4096));
    put(live.join("a frame"), noise(300_000));
    put(live.join("large"), noise(3 << 20));
    put(live.join("sparse/in the middle"), "");
    let file = File::options().write(true).open(live.join("sparse/in the middle")).unwrap();
    file.write_all_at(&noise(8192), 0).unwrap();
    file.write_all_at(&noise(8192), 200_000).unwrap();
    put(live.join("sparse/at the end"), noise(5000));
    File::options().write(true).open(live.join("sparse/at the end")).unwrap().set_len(90_000).unwrap();
    put(live.join("sparse/a few and no more"), "few");
    File::options().write(true).open(live.join("sparse/a few and no more")).unwrap().set_len(3000).unwrap();
    put(live.join("sparse/nothing but"), "");
    File::options().write(true).open(live.join("sparse/nothing but")).unwrap().set_len(70_000).unwrap();
    put(live.join("sparse/large"), noise(2 << 20));
    File::options().write(true).open(live.join("sparse/large")).unwrap().set_len(9 << 20).unwrap();
    put(live.join("reserved"), noise(5000));
    let file = File::options().write(true).open(live.join("reserved")).unwrap();
    fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 1 << 20).unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, 40_000).unwrap();

    symlink("small", live.join("link")).unwrap();
    symlink("x/".repeat(1900), live.join("long link")).unwrap();
    for (name, kind, device) in [
        ("fifo", SFlag::S_IFIFO, 0),
        ("socket", SFlag::S_IFSOCK, 0),
        ("characters", SFlag::S_IFCHR, makedev(511, 70_000)),
        ("blocks", SFlag::S_IFBLK, makedev(8, 1)),
    ] {
        mknod(&live.join(name), kind, Mode::from_bits_truncate(0o640), device).unwrap();
    }
    put(live.join("several/first"), "several names");
    put(live.join("several/large"), noise(2 << 20));
    for number in 0..70 {
        fs::hard_link(live.join("several/first"), live.join(format!("several/name {number}"))).unwrap();
    }
    fs::hard_link(live.join("several/large"), live.join("a name of it")).unwrap();

    for name in ["attributes", "attributes/of a file", "attributes/of a link"] {
        match name {
            "attributes" => fs::create_dir(live.join(name)).unwrap(),
            "attributes/of a file" => put(live.join(name), noise(9000)),
            _ => symlink("nowhere", live.join(name)).unwrap(),
        }
        let set = |attribute: &str, value: &[u8]| {
            rustix::fs::lsetxattr(live.join(name), attribute, value, XattrFlags::empty()).unwrap();
        };
        set("trusted.one", b"1");
        if name != "attributes/of a link" {
            set("user.two", b"");
            set("user.a long one", &noise(2000));
        }
    }
    put(live.join("attributes/capable"), "by itself");
    let capability = [&[1, 0, 0, 2][..], &[0, 4, 0, 0], &[0; 12]].concat();
    let capable = live.join("attributes/capable");
    rustix::fs::setxattr(capable, "security.capability", &capability, XattrFlags::empty()).unwrap();
    let entry = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let list = [
        2u32.to_le_bytes().to_vec(),
        entry(1, 7, none),
        entry(2, 5, 1234),
        entry(4, 5, none),
        entry(16, 7, none),
        entry(32, 0, none),
    ];
    let listed = live.join("attributes");
    rustix::fs::setxattr(listed, "system.posix_acl_default", &list.concat(), XattrFlags::empty()).unwrap();

    put(live.join("written small/by us"), noise(100));
    fs::create_dir(live.join("compressed")).unwrap();
    rustix::fs::setxattr(live.join("compressed"), "btrfs.compression", b"zstd", XattrFlags::empty()).unwrap();
    put(live.join("compressed/small"), "the same ".repeat(150));
    put(live.join("compressed/larger"), "the same ".repeat(20_000));
    for number in 0..1500 {
        put(live.join(format!("many/{}", number * 7919 % 1500)), format!("{number}"));
    }
    let root = Dir::open(live).unwrap();
    root.open_dir("sparse").unwrap().create_subvolume("nested", None).unwrap();
    put(live.join("sparse/nested/deep/file"), "in another tree");
}

#[test]
fn an_inventory_says_of_everything_what_the_calls_say() {
    let Some(mut volume) = Volume::create("inventory") else { return };
    everything(&volume.live());
    // The judge puts it by its inventory too.
    volume.step().unwrap();
    let snapshot = volume.base();
    let judge = Judge::new();
    let told = judge.restored(told(Dir::open(&snapshot).unwrap()).unwrap(), &volume.path("told"));
    let walked = judge.restored(OwnedFd::from(File::open(&snapshot).unwrap()).into(), &volume.path("walked"));
    assert_eq!(told, walked);
    // What is sparse there is so here.
    let mut sparse = 0;
    let mut queue = vec![snapshot.clone()];
    while let Some(directory) = queue.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let inside = path.strip_prefix(&snapshot).unwrap();
            let facts = fs::symlink_metadata(&path).unwrap();
            if facts.is_dir() {
                queue.push(path);
            } else if facts.is_file() {
                let [told, walked] =
                    ["told", "walked"].map(|name| fs::metadata(volume.path(name).join(inside)).unwrap());
                assert_eq!(told.blocks(), walked.blocks(), "{}", inside.display());
                sparse += u32::from(told.size() > 4096 && told.blocks() * 512 < told.size());
            }
        }
    }
    assert!(sparse >= 4, "{sparse} files with holes");
}

/// An inventory of which one kind of statement is wrong.
#[derive(Debug)]
struct Lying {
    truth: Arc<csi::changes::Inventory>,
    names: fn(&mut Vec<Name>),
    told: fn(&mut Told),
}

impl Inventory for Lying {
    fn names(&self, directory: u64) -> io::Result<Vec<Name>> {
        let mut names = self.truth.names(directory)?;
        (self.names)(&mut names);
        Ok(names)
    }

    fn inodes(&self, numbers: &[u64], told: &mut dyn FnMut(u64, Told)) -> io::Result<()> {
        self.truth.inodes(numbers, &mut |number, mut truth| {
            (self.told)(&mut truth);
            told(number, truth);
        })
    }
}

const LIES: [(&str, fn(&mut Vec<Name>), fn(&mut Told)); 12] = [
    ("a name is left out", |names| drop(names.pop()), |_| {}),
    ("a name is another", |names| names.iter_mut().for_each(|name| name.name.push(b'x')), |_| {}),
    ("names lead elsewhere", swap, |_| {}),
    ("mode", |_| {}, |told| told.mode ^= 0o1),
    ("owner", |_| {}, |told| told.uid += 1),
    ("group", |_| {}, |told| told.gid += 1),
    ("size", |_| {}, |told| told.size += u64::from(told.size < 100)),
    ("links", |_| {}, |told| told.links = 1),
    ("device", |_| {}, |told| told.device.1 += 1),
    ("time", |_| {}, |told| told.modified.1 ^= 1),
    ("attributes", |_| {}, |told| told.xattrs = told.xattrs.as_ref().map(|_| Vec::new())),
    (
        "bytes",
        |_| {},
        |told| told.bytes = told.bytes.take().map(|bytes| Bytes::from(vec![b'y'; bytes.len()])),
    ),
];

fn swap(names: &mut Vec<Name>) {
    if let [first, .., last] = names.as_mut_slice() {
        std::mem::swap(&mut first.inode, &mut last.inode);
    }
}

#[test]
fn a_lie_in_an_inventory_is_caught_in_each_class() {
    let Some(mut volume) = Volume::create("inventory lies") else { return };
    everything(&volume.live());
    volume.step().unwrap();
    let snapshot = volume.base();
    let judge = Judge::new();
    let open = || Dir::open(&snapshot).unwrap();
    let truth = csi::changes::Inventory::of(open()).unwrap().unwrap();
    let put = |names: fn(&mut Vec<Name>), told: fn(&mut Told)| {
        let lying = Lying { truth: Arc::clone(&truth), names, told };
        judge.version(Root::told(open().into(), Arc::new(lying)))
    };
    let version = put(|_| {}, |_| {}).unwrap();
    for (class, names, told) in LIES {
        assert_ne!(put(names, told).ok(), Some(version), "{class}: a lie passed");
    }
}

#[test]
fn a_small_file_comes_with_its_bytes_also_where_the_pool_compresses() {
    let Some(mut volume) = Volume::create("inventory bytes") else { return };
    everything(&volume.live());
    volume.step().unwrap();
    let truth = csi::changes::Inventory::of(Dir::open(volume.base()).unwrap()).unwrap().unwrap();
    let find = |directory: u64, name: &str| {
        let names = truth.names(directory).unwrap();
        names.into_iter().find(|one| one.name == name.as_bytes()).unwrap().inode.unwrap()
    };
    for (directory, name, expected) in [
        ("compressed", "small", "the same ".repeat(150)),
        ("many", "7", fs::read_to_string(volume.live().join("many/7")).unwrap()),
    ] {
        let number = find(find(256, directory), name);
        let mut bytes = None;
        truth.inodes(&[number], &mut |_, told| bytes = told.bytes).unwrap();
        assert_eq!(bytes.as_deref(), Some(expected.as_bytes()), "{directory}/{name}");
    }
}
