//! Nothing a client names is opened outside its volume (rule 8).

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::files::change::Change as Asked;
use proto::files::{Delete, MakeDirectory, MakeSymlink, Move, SetMode};
use tonic::Code;

use crate::served::{Served, header, listing, names};

/// Every call on `path`; gives the codes of those that failed.
async fn codes(served: &Served, path: &[u8]) -> Vec<(&'static str, Option<Code>)> {
    let bytes = || path.to_vec().into();
    let to = || b"taken".to_vec().into();
    vec![
        ("read", served.read(path).await.err().map(|s| s.code())),
        ("write", served.write(header(path), b"x").await.err().map(|s| s.code())),
        (
            "write with parents in place",
            served
                .write(proto::files::WriteHeader { parents: true, in_place: true, ..header(path) }, b"x")
                .await
                .err()
                .map(|s| s.code()),
        ),
        ("list", served.page(listing(path)).await.err().map(|s| s.code())),
        (
            "mkdir",
            served
                .change(Asked::MakeDirectory(MakeDirectory { path: bytes(), parents: true, mode: None }))
                .await
                .err(),
        ),
        ("mode", served.change(Asked::SetMode(SetMode { path: bytes(), mode: 0o777 })).await.err()),
        (
            "symlink",
            served
                .change(Asked::MakeSymlink(MakeSymlink { path: bytes(), target: b"x".to_vec().into() }))
                .await
                .err(),
        ),
        (
            "move from",
            served.change(Asked::Move(Move { from: bytes(), to: to(), replace: true })).await.err(),
        ),
        (
            "move to",
            served
                .change(Asked::Move(Move { from: b"present".to_vec().into(), to: bytes(), replace: true }))
                .await
                .err(),
        ),
        ("delete", served.change(Asked::Delete(Delete { path: bytes(), recursive: true })).await.err()),
    ]
}

fn secret_is_untouched(served: &Served) {
    assert_eq!(names(served.outer()), ["secrets", "volume"]);
    assert_eq!(names(served.outer().join("secrets")), ["secret"]);
    assert_eq!(std::fs::read(served.outer().join("secrets/secret")).unwrap(), b"secret");
    let mode = std::fs::metadata(served.outer().join("secrets/secret")).unwrap();
    assert_ne!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o777);
}

#[tokio::test]
async fn a_hostile_path_is_refused_by_every_call() {
    let served = Served::start().await;
    std::fs::write(served.root().join("present"), "here").unwrap();
    let long_name = vec![b'n'; 256];
    let long_path = b"d/".repeat(2048);
    let hostile: [&[u8]; 12] = [
        b"..",
        b"../secrets/secret",
        b"../../../../etc/passwd",
        b"a/../../secrets/secret",
        b"a/../present",
        b"./present",
        b"a//b",
        b"a\0b",
        b"present\0",
        b"//etc/passwd",
        &long_name,
        &long_path,
    ];
    for path in hostile {
        for (call, code) in codes(&served, path).await {
            assert_eq!(code, Some(Code::InvalidArgument), "{call} {:?}", String::from_utf8_lossy(path));
        }
        assert_eq!(served.stat(path).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(names(served.root()), ["present"]);
    secret_is_untouched(&served);
}

#[tokio::test]
async fn an_absolute_path_is_one_of_the_volume() {
    let served = Served::start().await;
    assert_eq!(served.read("/etc/passwd").await.unwrap_err().code(), Code::NotFound);
    served.write(header("/present"), b"x").await.unwrap();
    assert_eq!(names(served.root()), ["present"]);
}

#[tokio::test]
async fn a_symlink_that_leads_out_is_not_followed_at_any_component() {
    let served = Served::start().await;
    let root = served.root();
    std::fs::write(root.join("present"), "here").unwrap();
    std::fs::create_dir(root.join("in")).unwrap();
    let secrets = served.outer().join("secrets");
    symlink("../secrets", root.join("relative")).unwrap();
    symlink(&secrets, root.join("absolute")).unwrap();
    symlink("../..", root.join("in/up")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    symlink("relative", root.join("twice")).unwrap();
    symlink("../secrets/secret", root.join("last")).unwrap();
    symlink(secrets.join("secret"), root.join("last-absolute")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    let etc = format!("/proc/self/root{}", secrets.join("secret").display());
    symlink(etc, root.join("last-magic")).unwrap();

    for path in
        ["relative/secret", "absolute/secret", "in/up/secrets/secret", "magic/etc/passwd", "twice/secret"]
    {
        for (call, code) in codes(&served, path.as_bytes()).await {
            assert_eq!(code, Some(Code::InvalidArgument), "{call} {path}");
        }
        assert_eq!(served.stat(path).await.unwrap_err().code(), Code::InvalidArgument, "{path}");
        secret_is_untouched(&served);
    }
    for path in ["last", "last-absolute", "last-magic", "loop", "relative"] {
        assert_eq!(served.read(path).await.unwrap_err().code(), Code::InvalidArgument, "read {path}");
        assert_eq!(
            served.write(header(path), b"x").await.unwrap_err().code(),
            Code::InvalidArgument,
            "write {path}"
        );
        let mode = Asked::SetMode(SetMode { path: path.into(), mode: 0o777 });
        assert_eq!(served.change(mode).await, Err(Code::InvalidArgument), "mode {path}");
        let entry = served.stat(path).await.unwrap();
        assert_eq!(entry.r#type(), proto::files::FileType::Symlink);
        assert!(!entry.target.is_empty());
        // The link itself is the volume's: it may go.
        let delete = Asked::Delete(Delete { path: path.into(), recursive: true });
        assert_eq!(served.change(delete).await, Ok(true), "{path}");
        secret_is_untouched(&served);
    }
}

#[tokio::test]
async fn a_symlink_that_stays_inside_is_followed() {
    let served = Served::start().await;
    let root = served.root();
    std::fs::create_dir_all(root.join("a/b")).unwrap();
    std::fs::write(root.join("a/file"), "one").unwrap();
    symlink("../file", root.join("a/b/up")).unwrap();
    symlink("a/b", root.join("short")).unwrap();
    assert_eq!(served.read("short/up").await.unwrap().1, b"one");
    served.write(header("short/up"), b"two").await.unwrap();
    assert_eq!(std::fs::read(root.join("a/file")).unwrap(), b"two");
    assert!(std::fs::symlink_metadata(root.join("a/b/up")).unwrap().is_symlink(), "the link stays a link");
    symlink("not-yet", root.join("dangling")).unwrap();
    assert!(served.write(header("dangling"), b"new").await.unwrap().created);
    assert_eq!(std::fs::read(root.join("not-yet")).unwrap(), b"new");
}

#[tokio::test]
async fn a_fifo_does_not_hold_a_reader_or_a_writer() {
    let served = Served::start().await;
    nix::unistd::mkfifo(&served.root().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for result in [
        served.read("fifo").await.map(drop),
        served.write(header("fifo"), b"x").await.map(drop),
        served.write(proto::files::WriteHeader { in_place: true, ..header("fifo") }, b"x").await.map(drop),
    ] {
        let status = result.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("fifo"), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_symlink_swapped_in_during_calls_never_leads_out() {
    let served = Arc::new(Served::start().await);
    let root = served.root();
    std::fs::create_dir(root.join("real")).unwrap();
    std::fs::write(root.join("real/secret"), "inside").unwrap();
    symlink("../secrets", root.join("evil")).unwrap();
    symlink("real", root.join("way")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let swapper = {
        let (stop, root) = (Arc::clone(&stop), root.clone());
        std::thread::spawn(move || {
            let mut swaps = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                // A directory, a link that leads out, and back, under one name.
                let directory = std::fs::File::open(&root).unwrap();
                let exchange = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                nix::fcntl::renameat2(&directory, "real", &directory, "evil", exchange).unwrap();
                swaps += 1;
            }
            swaps
        })
    };
    let (mut inside, mut refused) = (0, 0);
    for round in 0..600 {
        let path = if round % 2 == 0 { "real/secret" } else { "way/secret" };
        match served.read(path).await {
            Ok((_, content)) => {
                assert_ne!(content, b"secret", "round {round}");
                inside += 1;
            }
            Err(_) => refused += 1,
        }
        let _refused_or_not = served.write(header(path), b"inside").await;
        let mode = Asked::SetMode(SetMode { path: path.into(), mode: 0o777 });
        let _refused_or_not = served.change(mode).await;
        let delete = Asked::Delete(Delete { path: format!("{path}-not").into(), recursive: true });
        let _refused_or_not = served.change(delete).await;
    }
    stop.store(true, Ordering::Relaxed);
    let swaps = swapper.join().unwrap();
    println!("{swaps} swaps, {inside} reads inside, {refused} refused");
    assert!(swaps > 0 && inside > 0 && refused > 0);
    secret_is_untouched(&served);
}

#[tokio::test]
async fn an_unknown_or_malformed_volume_is_a_clear_error() {
    let served = Served::start().await;
    for (volume, code) in
        [("other", Code::NotFound), ("", Code::InvalidArgument), ("../x", Code::InvalidArgument)]
    {
        let request = proto::files::StatRequest { volume_id: volume.into(), ..Default::default() };
        assert_eq!(served.client.clone().stat(request).await.unwrap_err().code(), code, "{volume:?}");
    }
}
