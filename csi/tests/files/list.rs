use std::os::unix::ffi::OsStrExt as _;

use proto::files::{FileType, ListRequest};
use tonic::Code;

use crate::served::{Served, listing};

/// All pages of a listing, each cut at `limit`.
async fn all(served: &Served, request: ListRequest, limit: u32) -> Vec<Vec<u8>> {
    let mut paths = Vec::new();
    let mut after = Vec::new();
    loop {
        let asked = ListRequest { limit, after: after.into(), ..request.clone() };
        let (entries, next) = served.page(asked).await.unwrap();
        assert!(entries.len() <= limit as usize);
        paths.extend(entries.iter().map(|entry| entry.path.to_vec()));
        if next.is_empty() {
            return paths;
        }
        assert_eq!(entries.len(), limit as usize, "a cut page is a full one");
        after = next;
    }
}

#[tokio::test]
async fn a_listing_is_in_the_order_of_names_and_pages_join_without_a_seam() {
    let served = Served::start().await;
    let root = served.root();
    for directory in ["b", "b/x", "b/x/deep", "b.d", "c"] {
        std::fs::create_dir(root.join(directory)).unwrap();
    }
    for file in ["a", "b/1", "b/2", "b/x/y", "b/x/deep/z", "b/z", "b.d/1", "b-", "d"] {
        std::fs::write(root.join(file), file).unwrap();
    }
    std::os::unix::fs::symlink("b", root.join("link")).unwrap();
    std::fs::write(root.join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
    let expected: Vec<&[u8]> = vec![
        b"a",
        b"b",
        b"b/1",
        b"b/2",
        b"b/x",
        b"b/x/deep",
        b"b/x/deep/z",
        b"b/x/y",
        b"b/z",
        b"b-",
        b"b.d",
        b"b.d/1",
        b"c",
        b"d",
        b"link",
        b"\xff",
    ];
    let recursive = ListRequest { recursive: true, ..listing("") };
    for limit in 1..=20 {
        assert_eq!(all(&served, recursive.clone(), limit).await, expected, "pages of {limit}");
    }
    let flat: Vec<&[u8]> = expected.iter().copied().filter(|path| !path.contains(&b'/')).collect();
    for limit in 1..=12 {
        assert_eq!(all(&served, listing(""), limit).await, flat, "pages of {limit}");
    }
    let below: Vec<&[u8]> = vec![b"b/1", b"b/2", b"b/x", b"b/x/deep", b"b/x/deep/z", b"b/x/y", b"b/z"];
    for limit in 1..=8 {
        assert_eq!(all(&served, ListRequest { recursive: true, ..listing("b") }, limit).await, below);
    }
    let through: Vec<&[u8]> = vec![b"link/1", b"link/2", b"link/x", b"link/z"];
    assert_eq!(
        all(&served, listing("link"), 3).await,
        through,
        "a link to a directory lists what it leads to"
    );
}

#[tokio::test]
async fn a_page_begins_after_its_cursor_whatever_became_of_it() {
    let served = Served::start().await;
    for directory in ["a", "b"] {
        std::fs::create_dir(served.root().join(directory)).unwrap();
        std::fs::write(served.root().join(directory).join("1"), "").unwrap();
    }
    let asked =
        |after: &str| ListRequest { recursive: true, after: after.as_bytes().to_vec().into(), ..listing("") };
    for (after, first) in [("a/0", "a/1"), ("a/2", "b"), ("a/1/gone", "b"), ("aa/x/y", "b"), ("b/1", "")] {
        let (entries, _) = served.page(asked(after)).await.unwrap();
        let path = entries.first().map(|entry| entry.path.to_vec()).unwrap_or_default();
        assert_eq!(path, first.as_bytes(), "after {after}");
    }
}

#[tokio::test]
async fn entries_say_what_they_are() {
    let served = Served::start().await;
    let root = served.root();
    std::fs::create_dir(root.join("directory")).unwrap();
    std::fs::write(root.join("file"), "12345").unwrap();
    std::os::unix::fs::symlink("no/where", root.join("symlink")).unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let (entries, _) = served.page(listing("")).await.unwrap();
    let types: Vec<FileType> = entries.iter().map(proto::files::Entry::r#type).collect();
    assert_eq!(
        types,
        [FileType::Directory, FileType::Fifo, FileType::File, FileType::Socket, FileType::Symlink]
    );
    assert_eq!((entries[2].size, entries[4].target.as_ref()), (5, &b"no/where"[..]));
    assert!(
        entries.iter().all(|entry| entry.modified.is_some() && entry.uid == nix::unistd::geteuid().as_raw())
    );
}

#[tokio::test]
async fn limits_are_kept() {
    let served = Served::start().await;
    for number in 0..1_100 {
        std::fs::write(served.root().join(format!("{number:04}")), "").unwrap();
    }
    let (entries, next) = served.page(listing("")).await.unwrap();
    assert_eq!((entries.len(), next.as_slice()), (1_000, &b"0999"[..]));
    let (entries, next) = served.page(ListRequest { limit: 10_000, ..listing("") }).await.unwrap();
    assert_eq!((entries.len(), next.len()), (1_100, 0));
    let (entries, next) = served.page(ListRequest { limit: 1_100, ..listing("") }).await.unwrap();
    assert_eq!(
        (entries.len(), next.len()),
        (1_100, 0),
        "a page that holds the rest says that it is the last"
    );
    for (request, code) in [
        (ListRequest { limit: 10_001, ..listing("") }, Code::InvalidArgument),
        (listing("none"), Code::NotFound),
        (listing("0000"), Code::InvalidArgument),
        (ListRequest { after: b"elsewhere/x".to_vec().into(), ..listing("0000") }, Code::InvalidArgument),
    ] {
        assert_eq!(served.page(request).await.unwrap_err().code(), code);
    }
}

#[tokio::test]
async fn long_names_do_not_make_a_message_too_long() {
    let served = Served::start().await;
    let target = "t".repeat(4_000);
    for number in 0..1_500 {
        std::os::unix::fs::symlink(&target, served.root().join(format!("{number:0>255}"))).unwrap();
    }
    assert_eq!(all(&served, listing(""), 1_500).await.len(), 1_500);
}
