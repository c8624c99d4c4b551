//! Trees that somebody made to harm: hashes are right and sizes, names and places lie. Reading, verifying and restoring
//! them ends in an error, touches nothing outside the target, and takes no more memory than an honest tree.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use types::{Clock, ContentId, SystemClock, VersionId, VolumePath};

use super::frame::{Compressor, FrameKind};
use super::fuzz;
use super::location::{Extent, Location, PackUse, VersionRef};
use super::manifest::{Manifest, PackNeeded};
use super::node::{Entry, Item, Metadata, Node};
use super::pack::PackBuilder;
use super::stored::{At, Data, Draft, Place, Totals, Uses};
use crate::objects::{Condition, MemoryStore, Objects};
use crate::{Cache, Reader, RestoreOptions, Store, keys};

/// More than any case here may take.
const MEMORY: u64 = 96 << 20;

/// Makes something say what is not so.
type Lie<T> = fn(&mut T);

/// A pack that holds one node and its manifest.
struct Forged {
    node: Node,
    places: Vec<Place<At>>,
    /// The node's frame holds these bytes instead.
    stored: Option<Vec<u8>>,
    /// Changes the node's frame in the pack, header and all.
    frame: Lie<Vec<u8>>,
    /// Changes the manifest.
    manifest: Lie<Manifest>,
}

fn meta() -> Metadata {
    Metadata { mode: 0o755, ..Metadata::default() }
}

fn entry(name: &[u8], item: Item) -> Entry {
    Entry { name: name.to_vec(), item }
}

fn file(size: u64) -> Item {
    Item::File { meta: meta(), size, content: ContentId([5; 32]) }
}

fn place(data: Data<At>) -> Place<At> {
    Place { linked: false, sparse: false, data }
}

fn forged(entries: Vec<(Entry, Data<At>)>) -> Forged {
    let (entries, places) = entries.into_iter().map(|(entry, data)| (entry, place(data))).unzip();
    Forged { node: Node { meta: meta(), entries }, places, stored: None, frame: |_| {}, manifest: |_| {} }
}

impl Forged {
    async fn put(self, objects: &MemoryStore) -> VersionRef {
        let own = PackUse { references: 1, bytes: 10 };
        let totals = Totals { files: 1, directories: 0, bytes: 5, links: 0 };
        let mut honest = self.node.encode();
        Draft { node: &self.node, places: &self.places, totals, uses: &Uses::new(), own }.put(&mut honest);
        let stored = self.stored.unwrap_or(honest);
        let version = VersionId(*blake3::hash(&self.node.encode()).as_bytes());
        let pack = fuzz::pack(1);
        let mut compressor = Compressor::new(3).unwrap();
        let mut builder = PackBuilder::new(1 << 12);
        let mut place = |frame: &super::frame::Frame| Location {
            pack: Arc::clone(&pack),
            offset: builder.push(frame),
            stored_len: frame.header.stored_len(),
            raw_len: frame.header.raw_len,
        };
        let frame = compressor.frame(FrameKind::Tree, &stored).unwrap();
        let root = place(&frame);
        let mut manifest = Manifest {
            version,
            root: Extent { frames: vec![root.clone()], offset: 0, len: stored.len() as u64 },
            totals,
            packs: vec![PackNeeded { pack: Arc::clone(&pack), object_bytes: None, used: own }],
        };
        (self.manifest)(&mut manifest);
        let manifest = place(&compressor.frame(FrameKind::Manifest, &manifest.encode()).unwrap());
        let mut bytes = builder.finish().to_vec();
        let (from, to) = (root.offset as usize, root.offset as usize + root.stored_len as usize);
        let mut changed = bytes[from..to].to_vec();
        (self.frame)(&mut changed);
        bytes.splice(from..to, changed);
        objects.put(&keys::pack(&pack), bytes.into(), &Condition::IfAbsent).await.unwrap();
        VersionRef { version, manifest }
    }
}

fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Everything that reads a tree, on a hostile one.
async fn is_refused(what: &str, forged: Forged) {
    let objects = MemoryStore::new();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let opened = Store::create_or_open(Arc::new(objects.clone()) as Arc<dyn Objects>, clock).await;
    let tree = forged.put(&objects).await;
    let reader = Reader::new(opened.unwrap().into_inner(), Cache::new(1 << 20));
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "untouched").unwrap();
    let target = outside.path().join("target");
    std::fs::create_dir(&target).unwrap();
    let before = memory();
    let report = reader.verify(&tree).await;
    assert!(report.is_err() || !report.unwrap().is_whole(), "{what}: verify finds nothing");
    let dir = std::fs::File::open(&target).unwrap();
    let restored = reader.restore(&tree, dir.into(), RestoreOptions::default()).await;
    assert!(restored.is_err(), "{what}: restored");
    let error = restored.unwrap_err().to_string();
    assert!(error.len() > 10, "{what}: {error}");
    let names: Vec<_> = reader.list(&tree, &VolumePath::ROOT, None, usize::MAX).await.map_or_else(
        |_| Vec::new(),
        |all| all.into_iter().map(|found| String::from_utf8_lossy(&found.name).into_owned()).collect(),
    );
    for name in names {
        if let Ok(path) = VolumePath::parse(&name) {
            drop(reader.read(&tree, &path, 0..u64::MAX).await);
            drop(reader.list(&tree, &path, None, usize::MAX).await);
        }
    }
    let grown = memory().saturating_sub(before);
    assert!(grown < MEMORY, "{what}: took {grown} bytes");
    assert_outside(what, outside.path());
}

fn assert_outside(what: &str, outside: &Path) {
    let mut names: Vec<_> =
        std::fs::read_dir(outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["secret", "target"], "{what}");
    assert_eq!(std::fs::read_to_string(outside.join("secret")).unwrap(), "untouched", "{what}");
}

#[tokio::test]
async fn a_name_that_leads_out_is_refused() {
    for name in [&b"../escaped"[..], b"..", b".", b"a/b", b"/etc/passwd", b"a\0b", b"", &[b'x'; 256]] {
        let one = forged(vec![(entry(name, file(3)), Data::Inline(b"abc".to_vec()))]);
        is_refused(&format!("{:?}", String::from_utf8_lossy(name)), one).await;
    }
}

#[tokio::test]
async fn a_later_name_that_leads_out_makes_no_link() {
    for first in
        [&b"../secret"[..], b"../../../../etc/passwd", b"/etc/passwd", b"out/secret", b"missing", b"a/../b"]
    {
        let out = Item::Symlink { meta: Metadata { mode: 0o777, ..meta() }, target: b"..".to_vec() };
        let one = forged(vec![
            (entry(b"out", out), Data::Nothing),
            (entry(b"stolen", Item::HardLink { first: first.to_vec() }), Data::Nothing),
        ]);
        is_refused(&String::from_utf8_lossy(first), one).await;
    }
}

#[tokio::test]
async fn a_directory_that_is_its_own_child_is_not_walked_for_ever() {
    for (what, at) in [
        ("itself", At::Here { offset: 0, len: 60 }),
        ("the manifest", At::There(Extent { frames: vec![fuzz::frame(1, 8, 100)], offset: 0, len: 100 })),
        ("nowhere", At::There(Extent { frames: vec![fuzz::frame(9, u32::MAX, 100)], offset: 0, len: 100 })),
    ] {
        let child = Item::Directory { id: VersionId([3; 32]) };
        is_refused(what, forged(vec![(entry(b"again", child), Data::Directory(at))])).await;
    }
}

#[tokio::test]
async fn sizes_that_lie_are_refused_and_take_no_memory() {
    for size in [4, 1 << 20, 1 << 40, 1 << 60, u64::MAX] {
        let inline = Data::Inline(b"abc".to_vec());
        is_refused(&format!("inline {size}"), forged(vec![(entry(b"f", file(size)), inline)])).await;
        let slice = Data::Slice { frame: fuzz::frame(1, 8, 100), offset: 0 };
        is_refused(&format!("slice {size}"), forged(vec![(entry(b"f", file(size)), slice)])).await;
    }
    let root = At::There(Extent { frames: vec![fuzz::frame(1, 8, 100)], offset: 0, len: 1 << 60 });
    let uses = vec![(None, PackUse { references: u64::MAX, bytes: u64::MAX })];
    let map = Data::Map(super::stored::MapPlace { cell_log2: 17, root, uses });
    is_refused("map", forged(vec![(entry(b"f", file(1 << 60)), map)])).await;
}

#[tokio::test]
async fn a_manifest_that_lies_is_refused() {
    let honest = || forged(vec![(entry(b"f", file(3)), Data::Inline(b"abc".to_vec()))]);
    let cases: [(&str, Lie<Manifest>); 5] = [
        ("another version", |manifest| manifest.version = VersionId([1; 32])),
        ("a root of 2^60 bytes", |manifest| manifest.root.len = 1 << 60),
        ("a root that begins behind its frame", |manifest| manifest.root.offset = u32::MAX),
        ("a root in another pack", |manifest| manifest.root.frames = vec![fuzz::frame(7, 8, 100)]),
        ("a root frame of 16 MiB", |manifest| manifest.root.frames[0].raw_len = 16 << 20),
    ];
    for (what, lie) in cases {
        is_refused(what, Forged { manifest: lie, ..honest() }).await;
    }
}

#[tokio::test]
async fn a_frame_that_swells_is_cut_off() {
    let honest = || forged(vec![(entry(b"f", file(3)), Data::Inline(b"abc".to_vec()))]);
    // 64 MiB of zeros in a few kilobytes, in a frame that says it holds as much as an honest one does.
    let bomb = |frame: &mut Vec<u8>| {
        let payload = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        let len = u32::try_from(payload.len()).unwrap();
        frame.truncate(56);
        frame[5] = 1;
        frame[20..24].copy_from_slice(&len.to_le_bytes());
        frame.extend_from_slice(&payload);
    };
    let longest = |frame: &mut Vec<u8>| frame[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    let encrypted = |frame: &mut Vec<u8>| frame[6] = 1;
    let newer = |frame: &mut Vec<u8>| frame[3] = b'2';
    let cases: [(&str, Lie<Vec<u8>>); 4] =
        [("a bomb", bomb), ("4 GiB", longest), ("a cipher", encrypted), ("a newer frame", newer)];
    for (what, change) in cases {
        is_refused(what, Forged { frame: change, ..honest() }).await;
    }
}

#[tokio::test]
async fn counts_of_two_to_the_sixty_allocate_nothing() {
    let huge = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    let honest = || forged(vec![(entry(b"f", file(3)), Data::Inline(b"abc".to_vec()))]);
    let node = honest().node.encode();
    // Wherever a number stands, a huge one.
    for at in 4..node.len() {
        let stored: Vec<u8> =
            node[..at].iter().copied().chain(huge).chain(node[at + 1..].iter().copied()).collect();
        fuzz::decode_everything(&stored);
        if at < 40 {
            is_refused(&format!("byte {at}"), Forged { stored: Some(stored), ..honest() }).await;
        }
    }
}

#[tokio::test]
async fn a_target_that_has_a_way_out_in_it_is_not_followed() {
    // What is restored into is empty by contract; one that is not must not become a way out either.
    let honest = forged(vec![(entry(b"out", file(3)), Data::Inline(b"abc".to_vec()))]);
    let objects = MemoryStore::new();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let store = Store::create_or_open(Arc::new(objects.clone()) as Arc<dyn Objects>, clock).await.unwrap();
    let tree = honest.put(&objects).await;
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "untouched").unwrap();
    let target = outside.path().join("target");
    std::fs::create_dir(&target).unwrap();
    symlink("../secret", target.join("out")).unwrap();
    let reader = Reader::new(store.into_inner(), Cache::new(1 << 20));
    let dir = std::fs::File::open(&target).unwrap();
    drop(reader.restore(&tree, dir.into(), RestoreOptions::default()).await);
    assert_outside("a symlink in the target", outside.path());
}
