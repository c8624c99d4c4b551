//! The same calls on what a volume was, and parts of it brought back.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use cas::objects::{FaultStore, MemoryStore, crashes};
use cas::{Cache, Operation, Reader, Session, Store, VersionRef, WriteOptions, Writer};
use csi::files::ColdVolume;
use proto::files::difference::Kind;
use proto::files::{
    DiffRequest, Entry, FileType, ListRequest, ReadRequest, RestoreRequest, RestoreResponse, StatRequest,
};
use tonic::{Code, Status};
use types::{Domain, Hash, PoolId, SystemClock};

use crate::served::{Served, VOLUME, hash, names, noise};

/// A store that versions of the served directory are put into.
struct Past {
    faults: FaultStore,
    store: Store,
    writer: Writer,
    _operation: Operation,
}

impl Past {
    async fn new() -> Self {
        let faults = FaultStore::new(Arc::new(MemoryStore::default()));
        let store = Store::create_or_open(Arc::new(faults.clone()), Arc::new(SystemClock))
            .await
            .unwrap()
            .into_inner();
        let session = Session::join(&store, PoolId::random(), 1, &"n".parse().unwrap(), "h").await.unwrap();
        let operation = session.begin().unwrap();
        let (cache, domain) = (Cache::new(8 << 20), Domain::default_domain());
        let writer = Writer::new(store.clone(), session, domain, cache, WriteOptions::default());
        Self { faults, store, writer, _operation: operation }
    }

    /// Keeps the directory as it is now, as a point of `volume`. Returns how the point is called.
    async fn keep(&self, served: &Served, volume: &str) -> String {
        let root: OwnedFd = std::fs::File::open(served.root()).unwrap().into();
        let tree = self.writer.put(root, None).await.unwrap().tree;
        let version = Hash(*tree.version.as_bytes());
        served.cold.lock().unwrap().insert((volume.to_owned(), Some(version)), self.cold(&tree));
        served.cold.lock().unwrap().insert((volume.to_owned(), None), self.cold(&tree));
        format!("{volume}@{version}")
    }

    fn cold(&self, tree: &VersionRef) -> ColdVolume {
        ColdVolume { reader: Reader::new(self.store.clone(), Cache::new(1 << 20)), tree: tree.clone() }
    }
}

async fn stat(served: &Served, volume: &str, path: &str) -> Result<Entry, Status> {
    let request =
        StatRequest { volume_id: volume.to_owned(), path: path.as_bytes().to_vec().into(), with_etag: true };
    served.client.clone().stat(request).await.map(tonic::Response::into_inner)
}

async fn list(served: &Served, volume: &str, recursive: bool, limit: u32) -> Vec<Entry> {
    let (mut all, mut after) = (Vec::new(), Vec::new());
    loop {
        let request = ListRequest {
            volume_id: volume.to_owned(),
            recursive,
            limit,
            after: after.into(),
            ..ListRequest::default()
        };
        let (entries, next) = served.page(request).await.unwrap();
        all.extend(entries);
        if next.is_empty() {
            return all;
        }
        after = next;
    }
}

async fn read(served: &Served, volume: &str, path: &str) -> Result<Vec<u8>, Status> {
    let path = path.as_bytes().to_vec().into();
    let request = ReadRequest { volume_id: volume.to_owned(), path, ..ReadRequest::default() };
    served.read_with(request).await.map(|(_, data, _)| data)
}

async fn restore(served: &Served, from: &str, path: &str, to: &str) -> Result<RestoreResponse, Status> {
    let request = RestoreRequest {
        volume_id: VOLUME.to_owned(),
        from: from.to_owned(),
        path: path.as_bytes().to_vec().into(),
        to: to.as_bytes().to_vec().into(),
    };
    served.client.clone().restore(request).await.map(tonic::Response::into_inner)
}

fn fill(root: &Path) {
    std::fs::create_dir_all(root.join("src/deep/er")).unwrap();
    std::fs::create_dir(root.join("empty")).unwrap();
    std::fs::write(root.join("readme"), "one").unwrap();
    std::fs::write(root.join("src/large"), noise(3 << 20, 1)).unwrap();
    for number in 0..300 {
        std::fs::write(root.join(format!("src/deep/f{number:03}")), format!("{number}")).unwrap();
    }
    std::fs::write(root.join("src/deep/er/last"), "last").unwrap();
    std::os::unix::fs::symlink("src/deep", root.join("link")).unwrap();
    std::os::unix::fs::symlink("/etc", root.join("out")).unwrap();
}

#[tokio::test]
async fn a_point_in_time_answers_as_the_live_volume_did() {
    let (served, past) = (Served::start().await, Past::new().await);
    fill(&served.root());
    let then = past.keep(&served, VOLUME).await;
    let comparable = |entry: Entry| {
        // A directory on disk has a size that is no part of its identity.
        let size = if entry.r#type() == FileType::Directory { 0 } else { entry.size };
        Entry { size, etag: String::new(), ..entry }
    };
    for (recursive, limit) in [(false, 3), (true, 7), (true, 1), (true, 10_000)] {
        let live: Vec<Entry> =
            list(&served, VOLUME, recursive, limit).await.into_iter().map(comparable).collect();
        let cold: Vec<Entry> =
            list(&served, &then, recursive, limit).await.into_iter().map(comparable).collect();
        assert!(live == cold, "recursive: {recursive}, limit: {limit}");
    }
    for path in ["readme", "src/large", "link/f007", "src/deep/er/last", "link", "src", ""] {
        let (live, cold) =
            (stat(&served, VOLUME, path).await.unwrap(), stat(&served, &then, path).await.unwrap());
        assert_eq!(live.etag, cold.etag, "{path}: an etag is the content's hash");
        assert_eq!(comparable(live), comparable(cold), "{path}");
        let (live, cold) = (read(&served, VOLUME, path).await, read(&served, &then, path).await);
        assert_eq!(live.as_ref().err().map(Status::code), cold.as_ref().err().map(Status::code), "{path}");
        assert!(live.ok() == cold.ok(), "{path}");
    }
    for path in ["none", "readme/x", "out", "out/passwd", "src/../../x"] {
        let live = read(&served, VOLUME, path).await.unwrap_err().code();
        let cold = read(&served, &then, path).await.unwrap_err().code();
        // The kernel says "not a directory" where a tree says "not there".
        assert!(live == cold || path == "readme/x", "{path}: {live:?}, {cold:?}");
    }
    // What is written now is not in what was.
    std::fs::write(served.root().join("readme"), "two").unwrap();
    std::fs::remove_dir_all(served.root().join("src")).unwrap();
    assert_eq!(read(&served, &then, "readme").await.unwrap(), b"one");
    assert_eq!(hash(&read(&served, &then, "src/large").await.unwrap()), hash(&noise(3 << 20, 1)));
    let part = ReadRequest {
        volume_id: then.clone(),
        path: b"src/large".to_vec().into(),
        offset: 1_000_000,
        length: Some(5),
        ..ReadRequest::default()
    };
    assert_eq!(served.read_with(part).await.unwrap().1, noise(3 << 20, 1)[1_000_000..1_000_005]);
    let etag = stat(&served, &then, "readme").await.unwrap().etag;
    let known = ReadRequest {
        volume_id: then.clone(),
        path: b"readme".to_vec().into(),
        if_none_match: etag,
        ..ReadRequest::default()
    };
    assert!(served.read_with(known).await.unwrap().2, "not modified");
}

#[tokio::test]
async fn what_was_is_not_written_to_and_what_is_not_there_is_said() {
    let (served, past) = (Served::start().await, Past::new().await);
    fill(&served.root());
    let then = past.keep(&served, VOLUME).await;
    let header = proto::files::WriteHeader {
        volume_id: then.clone(),
        path: b"readme".to_vec().into(),
        ..Default::default()
    };
    let refused = served.write(header, b"x").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("fork it"), "{refused}");
    for (volume, code) in [
        ("v@", Code::InvalidArgument),
        ("v@12", Code::InvalidArgument),
        ("../x@12", Code::InvalidArgument),
        ("w", Code::NotFound),
    ] {
        assert_eq!(stat(&served, volume, "readme").await.unwrap_err().code(), code, "{volume}");
    }
    // One that sleeps is read without a point.
    past.keep(&served, "asleep").await;
    assert_eq!(read(&served, "asleep", "readme").await.unwrap(), b"one");
}

#[tokio::test]
async fn a_difference_is_told_between_any_two_points() {
    let (served, past) = (Served::start().await, Past::new().await);
    fill(&served.root());
    let before = past.keep(&served, VOLUME).await;
    std::fs::write(served.root().join("readme"), "two").unwrap();
    std::fs::remove_file(served.root().join("src/deep/f003")).unwrap();
    std::fs::write(served.root().join("src/new"), "new").unwrap();
    let after = past.keep(&served, VOLUME).await;
    let diff = async |earlier: &str, later: &str, limit: u32| {
        let request = DiffRequest { earlier: earlier.to_owned(), later: later.to_owned(), limit };
        let mut stream = served.client.clone().diff(request).await.unwrap().into_inner();
        let (mut told, mut cut) = (Vec::new(), false);
        while let Some(message) = stream.message().await.unwrap() {
            cut = message.cut;
            for difference in message.differences {
                told.push((String::from_utf8(difference.path.to_vec()).unwrap(), difference.kind()));
            }
        }
        (told, cut)
    };
    let (told, cut) = diff(&before, &after, 0).await;
    let contents: Vec<_> = told.iter().filter(|(_, kind)| *kind != Kind::Metadata).cloned().collect();
    let expected = [("readme", Kind::Modified), ("src/deep/f003", Kind::Removed), ("src/new", Kind::Added)];
    assert_eq!(contents, expected.map(|(path, kind)| (path.to_owned(), kind)));
    assert!(!cut);
    assert_eq!(diff(&before, VOLUME, 0).await.0, told, "without a point it is the durable head");
    assert_eq!(diff(&after, &after, 0).await, (Vec::new(), false));
    let (one, cut) = diff(&before, &after, 1).await;
    assert_eq!((one.len(), cut), (1, true));
}

#[tokio::test]
async fn a_file_and_a_directory_come_back_in_one_step_with_all_that_they_were() {
    let (served, past) = (Served::start().await, Past::new().await);
    fill(&served.root());
    std::fs::hard_link(served.root().join("readme"), served.root().join("src/deep/hard")).unwrap();
    let then = past.keep(&served, VOLUME).await;
    std::fs::write(served.root().join("readme"), "two").unwrap();
    std::fs::remove_dir_all(served.root().join("src")).unwrap();

    let done = restore(&served, &then, "readme", "").await.unwrap();
    assert!(done.replaced && done.files == 1, "{done:?}");
    assert_eq!(std::fs::read(served.root().join("readme")).unwrap(), b"one");
    // Its parent is gone, and comes back as it was.
    let done = restore(&served, &then, "src/deep", "").await.unwrap();
    assert!(!done.replaced && done.files == 302, "{done:?}");
    assert_eq!(std::fs::read(served.root().join("src/deep/er/last")).unwrap(), b"last");
    assert_eq!(std::fs::read(served.root().join("src/deep/hard")).unwrap(), b"one");
    assert_eq!(names(served.root().join("src")), ["deep"]);
    // Elsewhere, in the place of something else, and twice.
    for replaced in [false, true] {
        let done = restore(&served, &then, "src/deep/er", "copies/er").await.unwrap();
        assert_eq!(done.replaced, replaced);
    }
    assert_eq!(names(served.root().join("copies/er")), ["last"]);
    assert_eq!(
        names(served.root()),
        ["copies", "empty", "link", "out", "readme", "src"],
        "nothing is left over"
    );

    for (from, path, to, code) in [
        (then.as_str(), "none", "", Code::NotFound),
        (then.as_str(), "", "", Code::InvalidArgument),
        (then.as_str(), "readme", "../x", Code::InvalidArgument),
        (then.as_str(), "readme", "out/x", Code::InvalidArgument),
        (then.as_str(), "readme", "readme/x", Code::InvalidArgument),
        ("v@12", "readme", "", Code::InvalidArgument),
    ] {
        let refused = restore(&served, from, path, to).await.unwrap_err();
        assert_eq!(refused.code(), code, "{from} {path} {to}: {refused}");
    }
    assert_eq!(names(served.outer().join("secrets")), ["secret"]);
    assert_eq!(names(served.root()), ["copies", "empty", "link", "out", "readme", "src"]);
}

/// Fails at every call to the store: what stands there stays whole, and the next restore leaves nothing over.
#[tokio::test]
async fn a_restore_that_breaks_off_at_any_call_changes_nothing_and_is_done_again() {
    let (served, past) = (Served::start().await, Past::new().await);
    fill(&served.root());
    let then = past.keep(&served, VOLUME).await;
    let mut points = 0;
    for (index, fault) in crashes(1_000) {
        std::fs::remove_dir_all(served.root().join("src")).unwrap();
        std::fs::create_dir(served.root().join("src")).unwrap();
        std::fs::write(served.root().join("src/mine"), "mine").unwrap();
        // A reader that has read nothing.
        let tree = served.cold.lock().unwrap().values().next().unwrap().tree.clone();
        for cold in served.cold.lock().unwrap().values_mut() {
            *cold = past.cold(&tree);
        }
        past.faults.reset();
        past.faults.at_call(index, fault);
        let done = past.faults.until_death(restore(&served, &then, "src", "")).await;
        let died = past.faults.is_dead();
        past.faults.revive();
        past.faults.heal();
        if !died {
            assert!(done.unwrap().unwrap().replaced);
            break;
        }
        points += 1;
        assert_eq!(names(served.root().join("src")), ["mine"], "point {points}");
        let listed = list(&served, VOLUME, false, 100).await;
        assert!(
            listed.iter().all(|entry| !entry.path.starts_with(b".opensail")),
            "what is staged is not listed"
        );
        for cold in served.cold.lock().unwrap().values_mut() {
            *cold = past.cold(&tree);
        }
        restore(&served, &then, "src", "").await.unwrap();
        assert_eq!(names(served.root().join("src")), ["deep", "large"]);
        assert_eq!(names(served.root()), ["empty", "link", "out", "readme", "src"], "nothing is left over");
    }
    println!("broke off at {points} points");
    assert!(points >= 4, "{points}");
}
