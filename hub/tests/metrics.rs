//! What a hub tells of its store and of the collection is what happened there.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cas::entry::data_head;
use cas::lifecycle;
use cas::objects::{MemoryStore, Objects, PatientStore};
use cas::record::{NewRecord, Quota};
use hub::{Collection, Settings};
use support::{Cluster, TIMINGS, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

async fn scrape(address: std::net::SocketAddr) -> BTreeMap<String, f64> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (_, text) = answer.split_once("\r\n\r\n").unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(k, v)| (k.to_owned(), v.parse().unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_tells_what_it_asked_of_the_store_and_what_was_collected() {
    let objects: Arc<dyn Objects> = Arc::new(PatientStore::new(Arc::new(MemoryStore::new())));
    let collection = Collection { interval: Duration::from_millis(100), grace: Duration::ZERO };
    let settings = Settings { timings: TIMINGS, collection, ..Settings::default() };
    let cluster = Cluster::start_as(Arc::clone(&objects), settings, &["node-a"]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    hub::metrics::serve(&cluster.hub.hub, listener);

    // A volume with a real tree is made and deleted.
    let session = cluster.node("node-a").session.clone();
    let domain = types::Domain::default_domain();
    let new = NewRecord {
        id: "vol-1".parse().unwrap(),
        kind: cas::RecordKind::Volume,
        domain: domain.clone(),
        owner: session.id(),
        node: session.node().clone(),
        origin: None,
        request: "make-one".parse().unwrap(),
        quota: Quota::default(),
        attributes: BTreeMap::new(),
    };
    let begun = lifecycle::begin_create(session.store(), new).await.unwrap().into_inner();
    let operation = session.begin().unwrap();
    let files = [("file".to_owned(), "what is in it".into())].into();
    let tree = cas::tree::put_flat(&operation, &domain, &files, None).await.unwrap();
    let claim = cas::Claim::of(&begun.value);
    lifecycle::finish_create(&operation, &claim, Some(data_head(tree)), "").await.unwrap();
    drop(operation);
    let authority = lifecycle::Authority::Owner(session.id());
    lifecycle::delete(session.store(), &claim.id, None, authority).await.unwrap();
    eventually("the deleted volume is purged and its packs go", async || {
        session.raise().await.unwrap();
        let told = scrape(address).await;
        told["opensail_gc_objects_total{what=\"purged\"}"] >= 1.0
            && told["opensail_gc_objects_total{what=\"deleted\"}"] >= 1.0
    })
    .await;

    cluster.client().get_hub(proto::hub::GetHubRequest {}).await.unwrap();
    let told = scrape(address).await;
    assert!(told["opensail_gc_bytes_total{what=\"deleted\"}"] > 0.0, "{told:?}");
    assert!(told["opensail_gc_round_seconds_count{outcome=\"done\"}"] >= 1.0, "{told:?}");
    let traffic = objects.traffic();
    for (call, kind) in [("get", cas::objects::CallKind::Get), ("put", cas::objects::CallKind::Put)] {
        let counted = told[&format!("opensail_store_requests_total{{call=\"{call}\"}}")];
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let now = traffic.of(kind) as f64;
        assert!(counted > 0.0 && counted <= now, "{call}: {counted} of {now}");
    }
    assert!(told["opensail_store_bytes_total{direction=\"written\"}"] > 0.0);

    // Each name stands in a README, and each of the README's is told.
    let ours = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let nodes = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../csi/README.md")).unwrap();
    let names = |text: &str, prefix: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words.filter(|word| word.starts_with(prefix) && !word.ends_with('_')).map(str::to_owned).collect()
    };
    let mut documented = names(&ours, "opensail_");
    documented.extend(names(&nodes, "opensail_store_"));
    let told: BTreeSet<String> = told
        .keys()
        .map(|name| name.split('{').next().unwrap())
        .map(|name| {
            ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
        })
        .map(str::to_owned)
        .collect();
    assert_eq!(told, documented);
}
