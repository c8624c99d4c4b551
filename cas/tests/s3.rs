//! The contract and the error answers on a real S3 server.
//!
//! The server is the one of `OPENSAIL_TEST_S3` (a store's URL; credentials as the SDK finds them), or a MinIO that
//! `hack/minio start` starts, if it has been built (`hack/minio build`). Without either the tests skip loudly, or fail
//! where `REQUIRE_S3=1`.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests may, and a skip must be heard")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use cas::objects::{
    Condition, DirStore, Etag, Key, ObjectError, Objects, StoreUrl, contract, list_all, probe,
};
use ulid::Ulid;

/// A server's URL, and the credentials in the environment of this process.
fn server() -> Option<&'static str> {
    static SERVER: OnceLock<Option<String>> = OnceLock::new();
    SERVER
        .get_or_init(|| {
            let found = std::env::var("OPENSAIL_TEST_S3").ok().or_else(minio::start);
            if found.is_none() {
                assert!(
                    std::env::var("REQUIRE_S3").as_deref() != Ok("1"),
                    "REQUIRE_S3=1, and there is no S3 server"
                );
                eprintln!("SKIPPED: no OPENSAIL_TEST_S3, and no MinIO built by hack/minio build");
            }
            found
        })
        .as_deref()
}

/// A MinIO of our own, stopped when the test process ends.
mod minio {
    use super::*;

    fn hack() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/minio")
    }

    pub(super) fn start() -> Option<String> {
        let built = Command::new(hack()).arg("path").output().ok()?;
        if !built.status.success() {
            return None;
        }
        let directory = std::env::temp_dir().join(format!("opensail-test-minio-{}", std::process::id()));
        let started = Command::new(hack())
            .arg("start")
            .arg(&directory)
            // Ends it with this process, however that ends.
            .args(["--with", &std::process::id().to_string()])
            .output()
            .expect("hack/minio runs");
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        let lines = String::from_utf8(started.stdout).expect("text");
        let mut url = None;
        for (name, value) in lines.lines().filter_map(|line| line.split_once('=')) {
            if name == "OPENSAIL_TEST_S3" {
                url = Some(value.to_owned());
            } else {
                set(name, value);
            }
        }
        url
    }

    #[expect(unsafe_code, clippy::disallowed_methods, reason = "the SDK reads its credentials here")]
    fn set(name: &str, value: &str) {
        // SAFETY: every test comes through `server` first, which runs once before any of them reads the environment.
        unsafe { std::env::set_var(name, value) }
    }
}

async fn connect(url: &str) -> std::sync::Arc<dyn Objects> {
    url.parse::<StoreUrl>().unwrap().connect().await.unwrap()
}

/// The server's URL with a prefix of this test's own.
fn scratch(server: &str, change: impl FnOnce(&mut cas::objects::S3Url)) -> String {
    let StoreUrl::S3(mut url) = server.parse().unwrap() else { panic!("{server} is no s3:// URL") };
    let own = format!("test-{}", Ulid::generate().to_string().to_lowercase());
    url.prefix = Some(match &url.prefix {
        Some(prefix) => prefix.join(&own).unwrap(),
        None => own.parse().unwrap(),
    });
    change(&mut url);
    url.to_string()
}

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn s3_keeps_the_contract() {
    let Some(server) = server() else { return };
    let store = connect(&scratch(server, |_| {})).await;
    contract::check(&*store).await;
    assert!(list_all(&*store, "").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_probe_finds_a_real_server_fit() {
    let Some(server) = server() else { return };
    let store = connect(&scratch(server, |_| {})).await;
    let report = probe(&*store).await.unwrap();
    assert!(report.is_fit(), "{report:?}");
    assert!(list_all(&*store, "").await.unwrap().is_empty(), "the probe cleans up");
}

#[tokio::test]
async fn conditional_writes_answer_as_the_protocol_needs() {
    let Some(server) = server() else { return };
    let store = connect(&scratch(server, |_| {})).await;
    let key = key("vol/a");
    let never = Condition::IfMatch(Etag::new("\"d41d8cd98f00b204e9800998ecf8427e\""));
    assert!(matches!(store.put(&key, "x".into(), &never).await, Err(ObjectError::NotFound { .. })), "404");
    let etag = store.put(&key, "1".into(), &Condition::IfAbsent).await.unwrap();
    assert!(
        matches!(store.put(&key, "2".into(), &never).await, Err(ObjectError::Precondition { .. })),
        "412"
    );
    let again = store.put(&key, "2".into(), &Condition::IfAbsent).await;
    assert!(matches!(again, Err(ObjectError::Precondition { .. })), "412");
    store.put(&key, "2".into(), &Condition::IfMatch(etag)).await.unwrap();
    store.delete(&key).await.unwrap();
    assert!(store.list("vol/", None).await.unwrap().entries.is_empty(), "a listing is not behind a delete");
}

#[tokio::test]
async fn a_listing_goes_over_pages_and_past_strangers() {
    let Some(server) = server() else { return };
    let url = scratch(server, |_| {});
    let store = connect(&url).await;
    let names: Vec<Key> = (0..1100).map(|n| key(&format!("many/{n:04}"))).collect();
    for some in names.chunks(50) {
        let puts = some.iter().map(|key| store.put(key, "x".into(), &Condition::IfAbsent));
        for answer in futures::future::join_all(puts).await {
            answer.unwrap();
        }
    }
    let first = store.list("many/", None).await.unwrap();
    assert_eq!(first.entries.len(), 1000);
    assert_eq!(first.next.as_ref(), Some(&names[999]));
    let all = list_all(&*store, "").await.unwrap();
    assert_eq!(all.into_iter().map(|meta| meta.key).collect::<Vec<_>>(), names);
    for some in names.chunks(50) {
        futures::future::join_all(some.iter().map(|key| store.delete(key))).await;
    }
}

#[tokio::test]
async fn wrong_settings_are_clear_errors() {
    let Some(server) = server() else { return };
    let store = connect(&scratch(server, |url| url.bucket = "opensail-no-such-bucket".to_owned())).await;
    let error = probe(&*store).await.unwrap_err();
    assert!(error.to_string().contains("no such bucket"), "{error}");
    // Nobody listens on port 1.
    let store = connect(&scratch(server, |url| url.endpoint = Some("http://127.0.0.1:1".to_owned()))).await;
    let error = probe(&*store).await.unwrap_err();
    assert!(matches!(error, ObjectError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}

#[tokio::test]
async fn a_write_is_sent_once_and_a_read_again() {
    // A server that answers 503 to everything and counts.
    let Some(server) = server() else { return };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut requests) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 8192];
            let length = stream.read(&mut head).await.unwrap();
            let verb = String::from_utf8_lossy(&head[..length]).split(' ').next().unwrap().to_owned();
            sender.send(verb).await.unwrap();
            let answer = "HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let store = connect(&scratch(server, |url| url.endpoint = Some(format!("http://{address}")))).await;
    let mut seen = || std::iter::from_fn(|| requests.try_recv().ok()).collect::<Vec<_>>();
    let error = store.put(&key("a"), "x".into(), &Condition::IfAbsent).await.unwrap_err();
    assert!(matches!(error, ObjectError::Unavailable { .. }) && error.is_outcome_unknown(), "{error:?}");
    assert_eq!(seen(), ["PUT"], "a conditional write is sent once");
    store.delete(&key("a")).await.unwrap_err();
    assert_eq!(seen(), ["DELETE"]);
    store.head(&key("a")).await.unwrap_err();
    assert_eq!(seen().len(), 4, "a read is sent again");
}

#[tokio::test]
async fn a_directory_is_fit_too() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirStore::create_or_open(&directory.path().join("store")).await.unwrap();
    let report = probe(&store).await.unwrap();
    assert!(report.is_fit(), "{report:?}");
    assert!(list_all(&store, "").await.unwrap().is_empty());
}
