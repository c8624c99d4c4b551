//! What networks and servers do, done to a real S3 server by a proxy: nothing that was acknowledged is lost, nothing is
//! published twice, and every request ends in a bounded time.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use cas::objects::{CallKind, Condition, Key, ObjectError, Objects, Sse, StoreUrl, contract, list_all};
use tests::cluster::{Cluster, Options};
use tests::proxy::{Fault, Method, Proxy};
use tests::same::{keep, same};
use tests::stores::Kind;

/// No request may take longer, whatever happens to it: one attempt's bound, and what a loaded machine adds.
const BOUND: Duration = Duration::from_secs(25);

/// Options of a cluster whose store is behind a proxy.
fn behind() -> Result<Option<(Proxy, Options)>> {
    let Some(options) = Kind::S3.options()? else { return Ok(None) };
    let (proxy, url) = Proxy::before(options.store.as_deref().context("S3 has a URL")?)?;
    Ok(Some((proxy, Options { store: Some(url), ..options })))
}

/// A store behind a proxy, with the credentials in the environment of this process.
async fn store() -> Result<Option<(Proxy, String, Arc<dyn Objects>)>> {
    let Some((proxy, options)) = behind()? else { return Ok(None) };
    credentials(&options.environment);
    let url = options.store.context("it was set above")?;
    let objects = url.parse::<StoreUrl>()?.connect().await?;
    Ok(Some((proxy, url, objects)))
}

#[expect(unsafe_code, clippy::disallowed_methods, reason = "the SDK reads its credentials here")]
fn credentials(environment: &[(String, String)]) {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        for (name, value) in environment {
            // SAFETY: every test that reads the environment comes through here first, and it is written once.
            unsafe { std::env::set_var(name, value) }
        }
    });
}

/// The address with encryption at rest.
fn encrypted(url: &str, sse: Option<Sse>) -> Result<StoreUrl> {
    let StoreUrl::S3(mut url) = url.parse()? else { anyhow::bail!("{url} is no bucket") };
    url.sse = sse;
    Ok(StoreUrl::S3(url))
}

fn key(text: &str) -> Key {
    text.parse().expect("a key")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_survives_each_fault_in_a_bounded_time() -> Result<()> {
    let Some((proxy, _, store)) = store().await? else { return Ok(()) };
    let pack = Bytes::from((0..60_000_u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<_>>());
    store.put(&key("pack/a"), pack.clone(), &Condition::IfAbsent).await?;
    // What happens to the first request, and how long a caller may wait. A hedge comes after the p95, which is far below
    // a second here; the rest is for a machine that has other things to do.
    let hedged = Duration::from_secs(6);
    for (fault, times, bound) in [
        (Fault::None, 1, hedged),
        (Fault::Delay(Duration::from_secs(600)), 1, hedged),
        (Fault::Stall, 1, hedged),
        (Fault::StallInBody, 1, hedged),
        (Fault::Slow(200), 1, hedged),
        (Fault::Duplicate, 1, hedged),
        (Fault::Reset, 2, hedged),
        (Fault::CutInBody, 2, hedged),
        (Fault::LoseAnswer, 2, hedged),
        (Fault::Status(500), 3, hedged),
        (Fault::Status(503), 5, BOUND),
        (Fault::Status(429), 5, BOUND),
    ] {
        proxy.reset();
        // The store is learned, and the budget for hedges filled.
        for _ in 0..25 {
            store.get_range(&key("pack/a"), 0..60_000).await?;
        }
        let before = store.traffic();
        proxy.reset();
        proxy.first(times, Method::Get, "pack/", fault);
        let began = Instant::now();
        let read =
            store.get_range(&key("pack/a"), 100..50_100).await.with_context(|| format!("{fault:?}"))?;
        let took = began.elapsed();
        ensure!(read == pack.slice(100..50_100), "{fault:?}: other bytes");
        ensure!(took < bound, "{fault:?} took {took:?}");
        let after = store.traffic();
        let sent = after.of(CallKind::GetRange) - before.of(CallKind::GetRange);
        ensure!(
            usize::try_from(sent)? == proxy.count(Method::Get, "pack/"),
            "{fault:?}: every request is counted"
        );
        let hedges = after.hedges - before.hedges;
        eprintln!("{fault:?} x{times}: {took:?}, {sent} requests, {hedges} hedges");
        ensure!(
            hedges <= 1 && usize::try_from(sent)? <= times + 2,
            "{fault:?}: {sent} requests, {hedges} hedges"
        );
        // Listings and heads go the same way.
        proxy.first(1, Method::List, "", fault);
        ensure!(store.list("pack/", None).await?.entries.len() == 1, "{fault:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_sent_once_whatever_happens_to_it() -> Result<()> {
    let Some((proxy, _, store)) = store().await? else { return Ok(()) };
    // What happens to the one request, what the caller hears, and whether the object is there.
    for (number, (fault, heard, there)) in [
        (Fault::None, "ok", true),
        (Fault::Delay(Duration::from_millis(300)), "ok", true),
        (Fault::LoseAnswer, "unavailable", true),
        (Fault::CutInBody, "ok", true),
        (Fault::Duplicate, "precondition", true),
        (Fault::Reset, "unavailable", false),
        (Fault::Status(500), "unavailable", false),
        (Fault::Status(503), "busy", false),
        (Fault::Status(429), "busy", false),
        (Fault::Status(409), "conflict", false),
        (Fault::TruncateRequest, "unavailable", false),
        (Fault::FlipRequest, "unavailable", false),
        (Fault::Stall, "unavailable", false),
    ]
    .into_iter()
    .enumerate()
    {
        proxy.reset();
        proxy.first(1, Method::Put, "vol/", fault);
        let key = key(&format!("vol/{number}"));
        let bytes = Bytes::from(vec![b'x'; 100_000]);
        let began = Instant::now();
        let answer = store.put(&key, bytes.clone(), &Condition::IfAbsent).await;
        ensure!(began.elapsed() < BOUND, "{fault:?} took {:?}", began.elapsed());
        let said = match &answer {
            Ok(_) => "ok",
            Err(ObjectError::Unavailable { .. }) => "unavailable",
            Err(ObjectError::Busy { .. }) => "busy",
            Err(ObjectError::Precondition { .. }) => "precondition",
            Err(ObjectError::Conflict { .. }) => "conflict",
            Err(error) => anyhow::bail!("{fault:?}: {error}"),
        };
        ensure!(said == heard, "{fault:?}: {answer:?}");
        assert_eq!(proxy.count(Method::Put, "vol/"), 1, "{fault:?}");
        match store.get(&key).await {
            Ok(object) => ensure!(there && object.bytes == bytes, "{fault:?}: it is there"),
            Err(error) => ensure!(!there && error.is_not_found(), "{fault:?}: {error}"),
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_increment_is_lost_or_made_twice_on_a_bad_network() -> Result<()> {
    let Some((proxy, _, store)) = store().await? else { return Ok(()) };
    store.put(&key("vol/counter"), "0".into(), &Condition::IfAbsent).await?;
    let seed = rand::random::<u64>();
    eprintln!("seed {seed}");
    proxy.plan(move |asked| weather(seed, asked.index, 30));
    contract::increment(&*store, &key("vol/counter"), 3, 10).await;
    proxy.reset();
    let text = store.get(&key("vol/counter")).await?.bytes;
    ensure!(text.starts_with(b"30 "), "{text:?} with seed {seed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encryption_at_rest_is_asked_for_with_every_write() -> Result<()> {
    let Some((proxy, url, _)) = store().await? else { return Ok(()) };
    let own_key = Sse::Kms(Some("opensail-test".to_owned()));
    for (number, (sse, algorithm, kms_key)) in [
        (None, None, None),
        (Some(Sse::Aes256), Some("AES256"), None),
        (Some(Sse::Kms(None)), Some("aws:kms"), None),
        (Some(own_key), Some("aws:kms"), Some("opensail-test")),
    ]
    .into_iter()
    .enumerate()
    {
        let store = encrypted(&url, sse)?.connect().await?;
        proxy.reset();
        let name = key(&format!("pack/{number}"));
        let put = store.put(&name, "bytes".into(), &Condition::IfAbsent).await;
        let asked = proxy.reset();
        let asked = asked.iter().find(|asked| asked.method == Method::Put).context("a put")?;
        assert_eq!(asked.header("x-amz-server-side-encryption"), algorithm);
        assert_eq!(asked.header("x-amz-server-side-encryption-aws-kms-key-id"), kms_key);
        // A server without a key service says so; one with it gives back what it was given.
        match put {
            Ok(_) => assert_eq!(store.get(&name).await?.bytes, "bytes"),
            Err(error) => ensure!(
                algorithm.is_some() && matches!(error, ObjectError::Misconfigured { .. }),
                "{algorithm:?}: {error}"
            ),
        }
    }
    Ok(())
}

/// What happens to a request, by its number: most of the time nothing.
fn weather(seed: u64, index: usize, percent: u64) -> Fault {
    let roll = blake(seed, index);
    if roll % 100 >= percent {
        return Fault::None;
    }
    let faults = [
        Fault::Delay(Duration::from_millis(150)),
        Fault::Reset,
        Fault::CutInBody,
        Fault::LoseAnswer,
        Fault::LoseAnswer,
        Fault::Late(Duration::from_millis(400)),
        Fault::Duplicate,
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(429),
        Fault::TruncateRequest,
        Fault::FlipRequest,
    ];
    let which = usize::try_from(roll / 100).unwrap_or(0);
    faults[which % faults.len()]
}

/// A number that looks random and is the same for the same seed.
fn blake(seed: u64, index: usize) -> u64 {
    let mut state = seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for _ in 0..3 {
        state ^= state >> 31;
        state = state.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    state >> 8
}

#[test]
fn each_fault_of_a_publishing_write_publishes_once() -> Result<()> {
    let Some((proxy, options)) = behind()? else { return Ok(()) };
    let Some(cluster) = Cluster::start_with("faults", 1, options)? else { return Ok(()) };
    cluster.json(&["create", "shop"])?;
    let entries =
        || -> Result<usize> { Ok(cluster.json(&["log", "shop"])?.as_array().context("a list")?.len()) };
    for (number, (prefix, fault)) in ["vol/", "pack/"]
        .into_iter()
        .flat_map(|prefix| {
            [
                Fault::LoseAnswer,
                Fault::Duplicate,
                Fault::Late(Duration::from_millis(500)),
                Fault::Reset,
                Fault::CutInBody,
                Fault::Status(500),
                Fault::Status(503),
                Fault::Status(409),
                Fault::TruncateRequest,
                Fault::FlipRequest,
                Fault::Stall,
            ]
            .map(|fault| (prefix, fault))
        })
        .enumerate()
    {
        let before = entries()?;
        let content = format!("{number}: {prefix} {fault:?}");
        cluster.write("shop:page", content.as_bytes())?;
        proxy.reset();
        proxy.first(1, Method::Put, prefix, fault);
        let began = Instant::now();
        let synced = cluster.json(&["sync", "shop"]).with_context(|| content.clone())?;
        let took = began.elapsed();
        ensure!(took < BOUND, "{content} took {took:?}");
        assert_eq!(synced["changed"], true, "{content}");
        assert_eq!(entries()?, before + 1, "{content}: published once");
        assert_eq!(cluster.json(&["log", "shop"])?[0]["version"], synced["version"], "{content}");
        let asked = proxy.reset();
        let sent = asked.iter().filter(|asked| asked.is(Method::Put, prefix)).count();
        eprintln!("{content}: {took:?}, sent {sent} times");
        ensure!((1..=3).contains(&sent), "{content}: sent {sent} times");
        // What was on its way and came later changed nothing.
        std::thread::sleep(Duration::from_millis(if matches!(fault, Fault::Late(_)) { 700 } else { 0 }));
        assert_eq!(entries()?, before + 1, "{content}: published once");
        assert_eq!(cluster.json(&["verify", "shop"])?["whole"], true, "{content}");
    }
    Ok(())
}

#[test]
fn a_stalled_read_does_not_hold_up_a_wake() -> Result<()> {
    let Some((proxy, options)) = behind()? else { return Ok(()) };
    let Some(cluster) = Cluster::start_with("stall", 2, options)? else { return Ok(()) };
    let created = cluster.json(&["create", "shop"])?;
    let path = PathBuf::from(created["path"].as_str().context("a path")?);
    for number in 0..40_u8 {
        std::fs::write(path.join(format!("file-{number}")), vec![number; 50_000])?;
    }
    let kept = tempfile::tempdir()?;
    keep(&path, &kept.path().join("tree"))?;
    let node = created["node"].as_str().context("a node")?.to_owned();
    let other = cluster.nodes().into_iter().find(|name| *name != node).context("there are two")?;
    cluster.json(&["hibernate", "shop"])?;
    proxy.reset();
    // One read of a pack in three never ends, the first of them too. Each costs a hedge.
    let mut reads = 0;
    proxy.plan(move |asked| {
        reads += usize::from(asked.is(Method::Get, "pack/"));
        if asked.is(Method::Get, "pack/") && reads % 3 == 1 { Fault::StallInBody } else { Fault::None }
    });
    let began = Instant::now();
    cluster.json(&["wake", "shop", "--node", &other])?;
    let took = began.elapsed();
    let stalled = proxy.reset().iter().filter(|asked| asked.fault == Fault::StallInBody).count();
    eprintln!("woke in {took:?} over {stalled} stalled reads");
    ensure!(stalled > 0, "nothing stalled");
    ensure!(took < BOUND, "{took:?}");
    same(&kept.path().join("tree"), &cluster.path("shop")?)
}

#[test]
fn nothing_acknowledged_is_lost_on_a_bad_network() -> Result<()> {
    let Some((proxy, options)) = behind()? else { return Ok(()) };
    let Some(cluster) = Cluster::start_with("weather", 2, options)? else { return Ok(()) };
    let seed = rand::random::<u64>();
    eprintln!("seed {seed}");
    proxy.reset();
    proxy.plan(move |asked| weather(seed, asked.index, 20));
    let began = Instant::now();
    let run = |arguments: &[&str]| -> Result<serde_json::Value> {
        // A caller tries again what may pass, as Kubernetes does; the second call must find the first one's work.
        let mut last = None;
        for _ in 0..20 {
            match cluster.json(arguments) {
                Ok(answer) => return Ok(answer),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("it was tried")?.context(format!("seed {seed}")))
    };
    let created = run(&["create", "shop"])?;
    let nodes = cluster.nodes();
    let mut acknowledged = Vec::new();
    let kept = tempfile::tempdir()?;
    let mut at = created["node"].as_str().context("a node")?.to_owned();
    for round in 0..12_u8 {
        let path = cluster.path("shop")?;
        std::fs::create_dir_all(path.join(format!("d{round}")))?;
        std::fs::write(path.join(format!("d{round}/small")), format!("round {round}"))?;
        std::fs::write(path.join("large"), vec![round; 700_000])?;
        let tree = kept.path().join(format!("tree-{round}"));
        keep(&path, &tree)?;
        let synced = run(&["sync", "shop"])?;
        acknowledged.push((synced["version"].as_str().context("a version")?.to_owned(), tree));
        match round % 4 {
            1 => drop(run(&["fork", "shop", &format!("fork-{round}")])?),
            3 => {
                at = nodes.iter().find(|name| **name != at).context("there are two")?.clone();
                run(&["move", "shop", "--to", &at])?;
            }
            _ => {}
        }
    }
    let took = began.elapsed();
    let asked = proxy.reset();
    let hit = asked.iter().filter(|asked| asked.fault != Fault::None).count();
    eprintln!("{} requests, {hit} with a fault, in {took:?}", asked.len());
    ensure!(hit > 20, "the weather was fine: {hit}");
    ensure!(took < Duration::from_secs(300), "{took:?}");
    // Now the sky is clear: each version that was acknowledged is on the line, once, whole, and what it was.
    let log = cluster.json(&["log", "shop"])?;
    let log = log.as_array().context("a list")?;
    for (number, (version, tree)) in acknowledged.iter().enumerate() {
        let times = log.iter().filter(|entry| entry["version"] == **version).count();
        ensure!(times == 1, "{version} of round {number} is there {times} times; seed {seed}");
        let name = format!("check-{number}");
        let fork = cluster.json(&["fork", "shop", &name, "--at", &version[..16]])?;
        same(tree, fork[0]["path"].as_str().context("a path")?.as_ref())
            .with_context(|| format!("round {number}, seed {seed}"))?;
        assert_eq!(cluster.json(&["verify", &name])?["whole"], true, "seed {seed}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds_on_encrypted_objects_and_a_slow_line() -> Result<()> {
    let Some((proxy, url, plain)) = store().await? else { return Ok(()) };
    let encrypted = encrypted(&url, Some(Sse::Aes256))?.connect().await?;
    let probe = encrypted.put(&key("probe/x"), "x".into(), &Condition::IfAbsent).await;
    // A server that somebody else set up may have no keys.
    let store = if matches!(probe, Err(ObjectError::Misconfigured { .. })) { plain } else { encrypted };
    proxy.plan(
        |asked| if asked.index % 7 == 0 { Fault::Delay(Duration::from_millis(60)) } else { Fault::None },
    );
    contract::check(&*store).await;
    proxy.reset();
    ensure!(list_all(&*store, "contract/").await?.is_empty(), "it cleans up");
    Ok(())
}
