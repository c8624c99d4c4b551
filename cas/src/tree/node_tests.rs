//! Golden vectors, which are never edited, and bytes that are not ours.

use proptest::prelude::*;
use types::{ContentId, VersionId};

use super::node::{Entry, Item, Metadata, Node, is_name, tree_order};

fn meta(mode: u32) -> Metadata {
    Metadata {
        mode,
        uid: 1000,
        gid: 100,
        mtime_seconds: 1_700_000_000,
        mtime_nanos: 123_456_789,
        xattrs: vec![],
    }
}

fn entry(name: &[u8], item: Item) -> Entry {
    Entry { name: name.to_vec(), item }
}

/// One entry of every kind, a name that is not UTF-8, a time before the epoch, attributes.
fn everything() -> Node {
    let old = Metadata { mtime_seconds: -1, mtime_nanos: 999_999_999, ..meta(0o4755) };
    let xattrs = vec![(b"security.capability".to_vec(), vec![0, 1, 2]), (b"user.a".to_vec(), b"b".to_vec())];
    let hello = ContentId(*blake3::hash(b"hello").as_bytes());
    Node {
        meta: Metadata { xattrs, ..meta(0o2775) },
        entries: vec![
            entry(b"block", Item::Device { meta: meta(0o660), block: true, major: 7, minor: 300 }),
            entry(b"char", Item::Device { meta: meta(0o666), block: false, major: 1, minor: 3 }),
            entry(b"dir", Item::Directory { id: Node::default().id() }),
            entry(b"fifo", Item::Fifo { meta: meta(0o600) }),
            entry(b"file", Item::File { meta: old, size: 5, content: hello }),
            entry(b"hard", Item::HardLink { first: b"a/b".to_vec() }),
            entry(b"link", Item::Symlink { meta: meta(0o777), target: b"../x".to_vec() }),
            entry(b"socket", Item::Socket { meta: meta(0o755) }),
            entry(b"\xff\xfe", Item::File { meta: meta(0), size: 0, content: ContentId([0xaf; 32]) }),
        ],
    }
}

#[test]
fn golden_empty_directory() {
    assert_eq!(hex::encode(Node::default().encode()), "4f536e3100000000000000");
    assert_eq!(Node::default().id().to_string(), EMPTY_ID);
}

#[test]
fn golden_directory_with_everything() {
    let node = everything();
    assert_eq!(hex::encode(node.encode()), EVERYTHING);
    assert_eq!(node.id().to_string(), EVERYTHING_ID);
    assert_eq!(Node::decode(&hex::decode(EVERYTHING).unwrap()).unwrap(), node);
}

const EMPTY_ID: &str = "ef9a7241b5b57f5a160e4a299b0997b53bbd16058d887cbbc50731d85ef688fb";
const EVERYTHING: &str = concat!(
    "4f536e31fd0be8076480c49fd50c959aef3a021373656375726974792e6361706162696c697479030001020675736572",
    "2e6101620905626c6f636b08b003e8076480c49fd50c959aef3a0007ac02046368617207b603e8076480c49fd50c959a",
    "ef3a0001030364697202ef9a7241b5b57f5a160e4a299b0997b53bbd16058d887cbbc50731d85ef688fb046669666f05",
    "8003e8076480c49fd50c959aef3a000466696c6501ed13e8076401ff93ebdc030005ea8f163db38682925e4491c5e58d",
    "4bb3506ef8c14eb78a86e908c5624a67200f04686172640403612f62046c696e6b03ff03e8076480c49fd50c959aef3a",
    "00042e2e2f7806736f636b657406ed03e8076480c49fd50c959aef3a0002fffe0100e8076480c49fd50c959aef3a0000",
    "afafafafafafafafafafafafafafafafafafafafafafafafafafafafafafafaf",
);
const EVERYTHING_ID: &str = "a3536c325650d4d943d97603450752124e9a6c7f9a1d880b5b2b38292160c3e0";

#[test]
fn every_other_spelling_is_refused() {
    let with = |entries: Vec<Entry>| Node { meta: Metadata::default(), entries };
    let fifo = |name: &[u8]| entry(name, Item::Fifo { meta: Metadata::default() });
    let link = |first: &[u8]| entry(b"x", Item::HardLink { first: first.to_vec() });
    let long = vec![b'a'; 256];
    for (bad, why) in [
        (with(vec![fifo(b"b"), fifo(b"a")]), "not sorted"),
        (with(vec![fifo(b"a"), fifo(b"a")]), "twice"),
        (with(vec![fifo(b"a/b")]), "slash"),
        (with(vec![fifo(b"..")]), "dots"),
        (with(vec![fifo(b".")]), "dot"),
        (with(vec![fifo(b"")]), "empty"),
        (with(vec![fifo(b"a\0")]), "NUL"),
        (with(vec![fifo(&long)]), "long"),
        (with(vec![link(b"../x")]), "leads out"),
        (with(vec![link(b"/x")]), "absolute"),
        (with(vec![link(b"a//x")]), "empty segment"),
        (
            with(vec![entry(b"l", Item::Symlink { meta: meta(0o644), target: b"x".to_vec() })]),
            "mode of a link",
        ),
        (with(vec![entry(b"l", Item::Symlink { meta: meta(0o777), target: vec![] })]), "empty link"),
        (Node { meta: meta(0o10_000), entries: vec![] }, "mode"),
        (Node { meta: Metadata { mtime_nanos: 1_000_000_000, ..meta(0) }, entries: vec![] }, "nanoseconds"),
        (
            Node {
                meta: Metadata { xattrs: vec![(b"b".to_vec(), vec![]), (b"a".to_vec(), vec![])], ..meta(0) },
                entries: vec![],
            },
            "attributes not sorted",
        ),
    ] {
        assert!(Node::decode(&bad.encode()).is_err(), "{why}");
    }
    let good = everything().encode();
    assert!(Node::decode(&[&good[..], &[0]].concat()).is_err(), "bytes behind");
    for end in 0..good.len() {
        assert!(Node::decode(&good[..end]).is_err(), "cut at {end}");
    }
    // A count that no memory could hold.
    let mut huge = b"OSn1\0\0\0\0\0\0".to_vec();
    huge.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
    assert!(Node::decode(&huge).is_err());
}

#[test]
fn names_are_compared_segment_by_segment() {
    let mut paths = [&b"a.b/x"[..], b"a/x", b"a", b"a/b/c", b"b", b"a.b"];
    paths.sort_by(|left, right| tree_order(left, right));
    assert_eq!(paths, [&b"a"[..], b"a/b/c", b"a/x", b"a.b", b"a.b/x", b"b"]);
}

prop_compose! {
    fn any_meta()(
        mode in 0u32..0o10_000, uid: u32, gid: u32, mtime_seconds: i64, mtime_nanos in 0u32..1_000_000_000,
        xattrs in proptest::collection::btree_map(
            proptest::collection::vec(1u8.., 1..20), proptest::collection::vec(any::<u8>(), 0..40), 0..3),
    ) -> Metadata {
        Metadata { mode, uid, gid, mtime_seconds, mtime_nanos, xattrs: xattrs.into_iter().collect() }
    }
}

fn any_item() -> impl Strategy<Value = Item> {
    prop_oneof![
        (any_meta(), 0u64..1 << 62, any::<[u8; 32]>()).prop_map(|(meta, size, id)| Item::File {
            meta,
            size,
            content: ContentId(id)
        }),
        any::<[u8; 32]>().prop_map(|id| Item::Directory { id: VersionId(id) }),
        (any_meta(), proptest::collection::vec(1u8.., 1..100))
            .prop_map(|(meta, target)| Item::Symlink { meta: Metadata { mode: 0o777, ..meta }, target }),
        any_meta().prop_map(|meta| Item::Fifo { meta }),
        (any_meta(), any::<bool>(), any::<u32>(), any::<u32>())
            .prop_map(|(meta, block, major, minor)| Item::Device { meta, block, major, minor }),
    ]
}

fn any_node() -> impl Strategy<Value = Node> {
    let name = proptest::collection::vec(any::<u8>(), 1..30).prop_filter("a name", |name| is_name(name));
    (any_meta(), proptest::collection::btree_map(name, any_item(), 0..12)).prop_map(|(meta, entries)| Node {
        meta,
        entries: entries.into_iter().map(|(name, item)| Entry { name, item }).collect(),
    })
}

proptest! {
    #[test]
    fn a_node_comes_back(node in any_node()) {
        prop_assert_eq!(Node::decode(&node.encode()).unwrap(), node);
    }

    #[test]
    fn what_is_decoded_has_one_spelling(node in any_node(), at: prop::sample::Index, byte: u8) {
        let mut bytes = node.encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(other) = Node::decode(&bytes) {
            prop_assert_eq!(other.encode(), bytes);
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        super::fuzz::decode_everything(&bytes);
        for magic in [&b"OSn1"[..], b"OSc1", b"OSp1", b"OSm1", b"OSf1", b"OSpack1\n"] {
            super::fuzz::decode_everything(&[magic, &bytes].concat());
        }
    }
}
