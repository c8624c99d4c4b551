use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use proto::files::change::Change as Asked;
use proto::files::{Delete, MakeDirectory, MakeSymlink, Move, SetMode};
use tonic::Code;

use crate::served::{Served, header, names};

fn mkdir(path: &str) -> Asked {
    Asked::MakeDirectory(MakeDirectory { path: path.as_bytes().to_vec().into(), parents: false, mode: None })
}

fn mkdir_all(path: &str) -> Asked {
    Asked::MakeDirectory(MakeDirectory {
        path: path.as_bytes().to_vec().into(),
        parents: true,
        mode: Some(0o711),
    })
}

fn mv(from: &str, to: &str, replace: bool) -> Asked {
    Asked::Move(Move { from: from.as_bytes().to_vec().into(), to: to.as_bytes().to_vec().into(), replace })
}

fn rm(path: &str, recursive: bool) -> Asked {
    Asked::Delete(Delete { path: path.as_bytes().to_vec().into(), recursive })
}

fn ln(path: &str, target: &str) -> Asked {
    Asked::MakeSymlink(MakeSymlink {
        path: path.as_bytes().to_vec().into(),
        target: target.as_bytes().to_vec().into(),
    })
}

fn chmod(path: &str, mode: u32) -> Asked {
    Asked::SetMode(SetMode { path: path.as_bytes().to_vec().into(), mode })
}

#[tokio::test]
async fn every_change_can_be_made_twice_and_the_second_says_already() {
    let served = Served::start().await;
    served.write(header("file"), b"x").await.unwrap();
    for change in [
        mkdir("d"),
        mkdir_all("d/e/f"),
        ln("link", "file"),
        chmod("file", 0o600),
        chmod("link", 0o640),
        mv("file", "d/moved", false),
        rm("d/moved", false),
        rm("d", true),
        rm("link", true),
    ] {
        assert_eq!(served.change(change.clone()).await, Ok(true), "{change:?}");
        assert_eq!(served.change(change.clone()).await, Ok(false), "{change:?}");
    }
    assert_eq!(served.change(rm("none/none", false)).await, Ok(false));
    assert_eq!(names(served.root()), [""; 0]);
}

#[tokio::test]
async fn a_batch_stops_at_its_first_failure() {
    let served = Served::start().await;
    let results =
        served.batch(vec![mkdir("a"), mkdir("a"), mv("none", "b", false), mkdir("c")]).await.unwrap();
    let told: Vec<(bool, bool, i32)> =
        results.iter().map(|result| (result.ok, result.changed, result.code)).collect();
    assert_eq!(told, [(true, true, 0), (true, false, 0), (false, false, Code::NotFound.into())]);
    assert!(results[2].error.contains("none"), "{}", results[2].error);
    assert_eq!(names(served.root()), ["a"]);
    let results = served.batch(vec![mkdir("x"), mkdir("../y"), mkdir("z")]).await.unwrap();
    assert_eq!(results.len(), 2);
    assert_eq!(results[1].code, i32::from(Code::InvalidArgument));
    assert_eq!(names(served.root()), ["a", "x"]);
}

#[tokio::test]
async fn a_change_that_cannot_be_is_a_clear_error() {
    let served = Served::start().await;
    let root = served.root();
    served.write(header("file"), b"x").await.unwrap();
    served.write(header("other"), b"y").await.unwrap();
    std::fs::create_dir_all(root.join("full/below")).unwrap();
    symlink("elsewhere", root.join("link")).unwrap();
    for (change, code) in [
        (mkdir("file"), Code::AlreadyExists),
        (mkdir("none/d"), Code::NotFound),
        (mkdir("file/d"), Code::InvalidArgument),
        (mkdir_all("file/d/e"), Code::InvalidArgument),
        (mv("file", "other", false), Code::AlreadyExists),
        (mv("file", "none/x", false), Code::NotFound),
        (mv("full", "full/below/x", false), Code::InvalidArgument),
        (mv("file", "full", true), Code::InvalidArgument),
        (mv("", "x", false), Code::InvalidArgument),
        (mv("file", "", true), Code::InvalidArgument),
        (rm("full", false), Code::FailedPrecondition),
        (rm("", true), Code::InvalidArgument),
        (ln("file", "x"), Code::AlreadyExists),
        (ln("link", "not the same"), Code::AlreadyExists),
        (ln("x", ""), Code::NotFound),
        (chmod("none", 0o600), Code::NotFound),
        (chmod("file", 0o100_600), Code::InvalidArgument),
        (mkdir(".opensail-write.0123456789abcdef"), Code::InvalidArgument),
    ] {
        assert_eq!(served.change(change.clone()).await, Err(code), "{change:?}");
    }
    assert_eq!(names(&root), ["file", "full", "link", "other"]);
    let many = vec![mkdir("d"); 257];
    assert_eq!(served.batch(many).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(std::fs::read(root.join("file")).unwrap(), b"x");
}

#[tokio::test]
async fn a_move_replaces_where_asked_and_joins_two_names_of_one_file() {
    let served = Served::start().await;
    let root = served.root();
    served.write(header("a"), b"a").await.unwrap();
    served.write(header("b"), b"b").await.unwrap();
    assert_eq!(served.change(mv("a", "b", true)).await, Ok(true));
    assert_eq!(std::fs::read(root.join("b")).unwrap(), b"a");
    std::fs::hard_link(root.join("b"), root.join("c")).unwrap();
    assert_eq!(served.change(mv("b", "c", true)).await, Ok(true));
    assert_eq!(names(&root), ["c"]);
    assert_eq!(served.change(mv("c", "c", false)).await, Ok(false));
}

#[tokio::test]
async fn a_new_directory_has_the_mode_that_was_asked_for() {
    let served = Served::start().await;
    served.change(mkdir_all("a/b")).await.unwrap();
    served.change(mkdir("c")).await.unwrap();
    let mode =
        |path: &str| std::fs::metadata(served.root().join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("a"), mode("a/b"), mode("c")), (0o755, 0o711, 0o755));
    served.change(chmod("a", 0o2770)).await.unwrap();
    assert_eq!(mode("a"), 0o2770);
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(served.root().join("c"), Some(1000), Some(1000)).unwrap();
        served.batch(vec![mkdir("c/d"), ln("c/l", "x")]).await.unwrap();
        for name in ["c/d", "c/l"] {
            let metadata = std::fs::symlink_metadata(served.root().join(name)).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (1000, 1000), "{name}");
        }
    }
}

#[tokio::test]
async fn deleting_a_tree_follows_no_link_and_needs_few_descriptors() {
    let served = Served::start().await;
    let top = served.root().join("top");
    std::fs::create_dir(&top).unwrap();
    // Deeper than any path can name, as a process with a working directory can make it.
    let mut at: std::os::fd::OwnedFd = std::fs::File::open(&top).unwrap().into();
    let name = "d".repeat(100);
    for _ in 0..300 {
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::sys::stat::mkdirat(&at, name.as_str(), mode).unwrap();
        let link = served.outer().join("secrets");
        nix::unistd::symlinkat(&link, &at, "link").unwrap();
        let flags = nix::fcntl::OFlag::O_DIRECTORY;
        at = nix::fcntl::openat(&at, name.as_str(), flags, nix::sys::stat::Mode::empty()).unwrap();
    }
    drop(at);
    for number in 0..500 {
        std::fs::write(top.join(format!("{number}")), "").unwrap();
        std::fs::create_dir(top.join(format!("d{number}"))).unwrap();
    }
    assert_eq!(served.change(rm("top", true)).await, Ok(true));
    assert_eq!(names(served.root()), [""; 0]);
    assert_eq!(names(served.outer().join("secrets")), ["secret"]);
}

#[tokio::test]
async fn a_directory_that_looks_empty_can_be_deleted() {
    let served = Served::start().await;
    std::fs::create_dir(served.root().join("d")).unwrap();
    std::fs::write(served.root().join("d/.opensail-write.0123456789abcdef"), "half").unwrap();
    assert_eq!(served.change(rm("d", false)).await, Ok(true));
}
