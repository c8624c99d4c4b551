//! Ten thousand volumes that nobody writes to: how quickly they are made, what the node's memory is, what a sweep costs.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use btrfs::{Dir, GroupId};
use futures::{StreamExt as _, TryStreamExt as _};
use proto::node::node_client::NodeClient;
use proto::node::{CreateVolumeRequest, GetNodeRequest};
use tests::cluster::scrape;
use tests::daemon::Daemon;
use tests::figures::{Figure, Target, millis};
use tonic::transport::Channel;

/// How many creates are under way at once.
const AT_ONCE: usize = 32;

/// How long the processor time of an idle node is counted.
const WINDOW: Duration = Duration::from_secs(20);

/// Sweeps of the window that has some.
const INTERVAL: Duration = Duration::from_secs(1);

/// Raw empty subvolumes in turn with the creates.
const RAW: usize = 2_000;

/// A node on a pool of its own, without a hub. What is mounted goes with it.
struct Alone<'a> {
    place: &'a Path,
    port: u16,
    metrics: String,
    daemon: Daemon,
    node: NodeClient<Channel>,
}

impl<'a> Alone<'a> {
    async fn start(place: &'a Path, sync_interval: &str) -> Result<(Self, Duration)> {
        let free =
            || Ok::<_, std::io::Error>(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
        let (port, metrics) = (free()?, format!("127.0.0.1:{}", free()?));
        let (listen, url) = (format!("127.0.0.1:{port}"), format!("dir://{}", place.join("store").display()));
        let pool = place.join("pool").display().to_string();
        let arguments = [
            ["--node", "alone"],
            ["--pool", &pool],
            ["--pool-size", "8Gi"],
            ["--store", &url],
            ["--listen", &listen],
            ["--sync-interval", sync_interval],
            ["--metrics", &metrics],
        ]
        .concat();
        let started = Instant::now();
        let arguments: Vec<&str> = std::iter::once("node").chain(arguments).collect();
        let mut daemon = Daemon::start("opensail-csi", &arguments, &place.join("node.log"))?;
        let node = proto::client::node(proto::client::channel(&listen)?);
        while node.clone().get_node(GetNodeRequest {}).await.is_err() {
            ensure!(daemon.runs()?, "the node ended: {}", daemon.said()?);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok((Self { place, port, metrics, daemon, node }, started.elapsed()))
    }

    fn mount(&self) -> std::path::PathBuf {
        self.place.join("pool/mnt")
    }

    async fn create(&self, number: usize) -> Result<Duration> {
        let request = CreateVolumeRequest {
            volume_id: format!("vol-{number}"),
            request_id: format!("make-{number}"),
            quota_bytes: Some(1 << 30),
            ..CreateVolumeRequest::default()
        };
        let started = Instant::now();
        self.node.clone().create_volume(request).await?;
        Ok(started.elapsed())
    }

    /// What the daemon does in one window in which nobody asks it for anything.
    async fn idle(&self) -> Result<Idle> {
        let (cpu, requests) = (self.daemon.cpu()?, self.requests()?);
        tokio::time::sleep(WINDOW).await;
        Ok(Idle { cpu: self.daemon.cpu()? - cpu, requests: self.requests()? - requests })
    }

    /// All that it asked its store for so far.
    fn requests(&self) -> Result<f64> {
        let told = scrape(&self.metrics)?;
        let counted = told.iter().filter(|(name, _)| name.starts_with("opensail_store_requests_total"));
        Ok(counted.map(|(_, count)| count).sum())
    }
}

/// An idle window: processor time and requests to the store.
struct Idle {
    cpu: Duration,
    requests: f64,
}

/// Unmounts a pool when dropped, whatever became of its daemon.
struct Unmounted(std::path::PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("-l").arg(&self.0).output());
    }
}

pub(crate) async fn sweep(place: &Path, volumes: usize) -> Result<Vec<Figure>> {
    let place = tempfile::Builder::new().prefix("sweep-").tempdir_in(place)?;
    std::fs::create_dir(place.path().join("pool"))?;
    let _unmounted = Unmounted(place.path().join("pool/mnt"));
    let (alone, _) = Alone::start(place.path(), "1h").await?;

    let started = Instant::now();
    let creates = (0..volumes).map(|number| alone.create(number));
    let mut times: VecDeque<Duration> =
        futures::stream::iter(creates).buffered(AT_ONCE).try_collect().await?;
    let took = started.elapsed();
    let raw = raw(&alone.mount())?;
    times.make_contiguous().sort_unstable();
    let p99 = times.get(times.len() * 99 / 100).copied().context("creates")?;
    println!(
        "sweep: {volumes} volumes made, {AT_ONCE} at once, in {:.1} s ({:.2} ms each, p99 {:.0} ms; a raw empty subvolume \
         with its group {:.3} ms)",
        took.as_secs_f64(),
        millis(took) / as_f64(volumes),
        millis(p99),
        millis(raw),
    );
    let made_rss = alone.daemon.rss_mib()?;
    let without = alone.idle().await?;
    alone.daemon.stop()?;

    let (alone, start) = Alone::start(place.path(), &format!("{}s", INTERVAL.as_secs())).await?;
    // The first sweep looks at each volume, the next ones do not.
    tokio::time::sleep(INTERVAL * 4).await;
    let with = alone.idle().await?;
    let rss = alone.daemon.rss_mib()?;
    println!(
        "sweep: restart with {volumes} volumes in {:.2} s; idle node {:.1} % of a processor without sweeps; on port {}; RSS \
         {made_rss:.0} MiB after making them, {rss:.0} MiB after a restart",
        start.as_secs_f64(),
        without.cpu.as_secs_f64() / WINDOW.as_secs_f64() * 100.0,
        alone.port,
    );
    let said = alone.daemon.said()?;
    ensure!(!said.contains("synced"), "a sweep of volumes that nobody wrote to synced some");
    alone.daemon.stop()?;
    let sweeps = WINDOW.as_secs_f64() / INTERVAL.as_secs_f64();
    let each = millis(with.cpu.saturating_sub(without.cpu)) / sweeps;
    // The session's beats go on, one more or less in a window: what is left for a sweep is told in whole requests.
    let asked = ((with.requests - without.requests) / sweeps).round().max(0.0);
    println!(
        "sweep: requests to the store in {} s: {} with {sweeps} sweeps, {} without (the session's beats)",
        WINDOW.as_secs(),
        with.requests,
        without.requests,
    );
    Ok(vec![
        Figure::new(
            "sweep",
            format!("processor time of a sweep over {volumes} idle volumes"),
            (each, "ms"),
            ("50 ms", 50.0),
            Target::Limit,
        ),
        Figure::new(
            "sweep",
            format!("requests to the store of a sweep over {volumes} idle volumes"),
            (asked, "requests"),
            ("0 requests", 0.0),
            Target::Limit,
        ),
        Figure::new(
            "sweep",
            format!("memory of a node with {volumes} idle volumes"),
            (rss.max(made_rss), "MiB"),
            ("256 MiB", 256.0),
            Target::Limit,
        ),
    ])
}

/// Makes empty subvolumes with quota groups and no daemon, and one commit; answers the time for each.
fn raw(pool: &Path) -> Result<Duration> {
    let scratch = Dir::open(pool)?.create_dir("bench-raw", 0o700)?;
    let started = Instant::now();
    for number in 0..RAW {
        let group = GroupId::volume((1 << 40) + number as u64).context("a group")?;
        btrfs::quota::create_group(&scratch, group)?;
        btrfs::quota::limit(&scratch, group, Some(1 << 30))?;
        scratch.create_subvolume(format!("raw-{number}"), Some(group))?;
    }
    btrfs::commit::commit(&scratch)?;
    let each = started.elapsed() / u32::try_from(RAW)?;
    for number in 0..RAW {
        scratch.delete_subvolume(format!("raw-{number}"))?;
    }
    drop(scratch);
    Dir::open(pool)?.remove_dir("bench-raw")?;
    Ok(each)
}

#[expect(clippy::cast_precision_loss, reason = "counts of volumes")]
fn as_f64(count: usize) -> f64 {
    count as f64
}
