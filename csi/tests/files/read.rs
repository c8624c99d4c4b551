use std::os::unix::ffi::OsStrExt as _;

use proto::files::ReadRequest;
use tonic::Code;

use crate::served::{Served, hash, noise, request};

#[tokio::test]
async fn a_file_is_read_whole_with_the_hash_of_its_content() {
    let served = Served::start().await;
    for (name, bytes) in
        [("empty", 0), ("small", 5), ("chunk", 1 << 20), ("more", (1 << 20) + 1), ("edge", 8 << 20)]
    {
        let content = noise(bytes, 1);
        std::fs::write(served.root().join(name), &content).unwrap();
        let (entry, read) = served.read(name).await.unwrap();
        assert!(read == content, "{name}");
        assert_eq!((entry.size, entry.etag), (bytes as u64, hash(&content)), "{name}");
    }
}

#[tokio::test]
async fn a_range_is_cut_to_what_is_there() {
    let served = Served::start().await;
    for size in [10_usize, 3 << 20, 9 << 20] {
        let content = noise(size, 2);
        std::fs::write(served.root().join("file"), &content).unwrap();
        let size = size as u64;
        for (offset, length) in [
            (0, None),
            (3, Some(4)),
            (size - 1, None),
            (size, None),
            (size + 1, Some(5)),
            (0, Some(0)),
            (size / 2, Some(u64::MAX)),
            (u64::MAX, Some(u64::MAX)),
        ] {
            let asked = ReadRequest { offset, length, ..request("file") };
            let (entry, read, _) = served.read_with(asked).await.unwrap();
            let from = offset.min(size);
            let to = offset.saturating_add(length.unwrap_or(u64::MAX)).min(size);
            let expected = &content[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()];
            assert!(read == expected, "{offset} {length:?} of {size}");
            assert_eq!(entry.size, size);
        }
    }
}

#[tokio::test]
async fn an_etag_that_still_holds_is_answered_without_data() {
    let served = Served::start().await;
    for size in [5, 2 << 20, 9 << 20] {
        let content = noise(size, 3);
        std::fs::write(served.root().join("file"), &content).unwrap();
        let etag = served.read("file").await.unwrap().0.etag;
        assert_eq!(etag.starts_with("W/"), size > 8 << 20);
        for known in [etag, hash(&content)] {
            let asked = ReadRequest { if_none_match: known.clone(), ..request("file") };
            let (entry, data, not_modified) = served.read_with(asked).await.unwrap();
            assert!(not_modified && data.is_empty() && entry.etag == known, "{known}");
        }
        for known in ["W/1-2-3".to_owned(), hash(b"other"), "nonsense".to_owned()] {
            let asked = ReadRequest { if_none_match: known, ..request("file") };
            let (_, data, not_modified) = served.read_with(asked).await.unwrap();
            assert!(!not_modified && data == content);
        }
    }
}

#[tokio::test]
async fn names_of_any_bytes_and_of_255_of_them_are_names() {
    let served = Served::start().await;
    for name in [&b"\xff\xfe not utf-8"[..], &[b'n'; 255], b"new\nline", b" ", b"-rf", b"\\"] {
        std::fs::write(served.root().join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
        assert_eq!(served.read(name).await.unwrap().1, b"x");
        assert_eq!(served.stat(name).await.unwrap().path, name);
    }
}

#[tokio::test]
async fn what_is_not_a_file_is_not_read() {
    let served = Served::start().await;
    std::fs::create_dir(served.root().join("d")).unwrap();
    std::fs::write(served.root().join("f"), "").unwrap();
    assert_eq!(served.read("d").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(served.read("").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(served.read("f/x").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(served.read("none").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(served.read("none/none").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_file_changed_while_it_is_read_does_not_pass_for_the_one_of_its_etag() {
    let served = Served::start().await;
    let path = served.root().join("file");
    std::fs::write(&path, noise(8 << 20, 4)).unwrap();
    let mut messages = served.client.clone().read(request("file")).await.unwrap().into_inner();
    messages.message().await.unwrap().unwrap();
    // In place, as a process in a pod may: appending is harmless, overwriting is not.
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"more", 8 << 20).unwrap();
    messages.message().await.unwrap().unwrap();
    file.write_all_at(b"other", 7 << 20).unwrap();
    let mut outcome = Ok(());
    while outcome.is_ok() {
        match messages.message().await {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(status) => outcome = Err(status.code()),
        }
    }
    assert_eq!(outcome, Err(Code::Aborted));
}

#[tokio::test]
async fn stat_computes_the_hash_of_a_large_file_where_asked() {
    let served = Served::start().await;
    let content = noise(70 << 20, 5);
    std::fs::write(served.root().join("large"), &content).unwrap();
    assert_eq!(served.stat("large").await.unwrap().etag, hash(&content));
    let root = served.stat("").await.unwrap();
    assert_eq!(root.r#type(), proto::files::FileType::Directory);
    assert!(root.etag.is_empty() && root.path.is_empty());
}
