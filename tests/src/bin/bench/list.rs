//! Lists of fifty thousand volumes: made through the hub's API on fake nodes, listed through the CSI controller in pages
//! while others come and go.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use proto::csi::v1 as csi;
use proto::csi::v1::controller_client::ControllerClient;
use proto::hub::hub_client::HubClient;
use proto::hub::{CreateVolumeRequest, DeleteVolumeRequest, ListNodesRequest};
use tests::cluster::unix_channel;
use tests::daemon::Daemon;
use tests::fake_node::FakeNode;
use tests::figures::{Figure, Target, millis};
use tonic::transport::Channel;

const NODES: usize = 3;

/// More at once than this only queue.
const CREATES_AT_ONCE: usize = 32;

/// As external-provisioner asks, and one that the answer has to be bounded for.
const PAGES: [i32; 2] = [500, 0];

/// Makes `volumes` volumes in `place` and lists them.
pub(crate) async fn list(place: &Path, volumes: usize) -> Result<Vec<Figure>> {
    let place = tempfile::Builder::new().prefix("list-").tempdir_in(place)?;
    let url = format!("dir://{}", place.path().join("store").display());
    let store = tests::stores::create(&url).await?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let address = format!("127.0.0.1:{port}");
    let state = place.path().join("hub.db").display().to_string();
    let arguments = ["--listen", &address, "--store", &url, "--state", &state];
    let daemon = Daemon::start("opensail-hub", &arguments, &place.path().join("hub.log"))?;
    let hub = proto::client::hub(proto::client::channel(&address)?);
    let mut nodes = Vec::new();
    for number in 1..=NODES {
        nodes.push(FakeNode::start(&store, &format!("fake-{number}"), &address).await?);
    }
    until_live(&hub).await?;

    let started = Instant::now();
    let creates = (0..volumes).map(|number| create(hub.clone(), number));
    let mut alive: BTreeSet<String> =
        futures::stream::iter(creates).buffer_unordered(CREATES_AT_ONCE).try_collect().await?;
    println!(
        "list: {} volumes made through the hub in {:.1} s; hub RSS {:.0} MiB, state file {:.0} MiB",
        alive.len(),
        started.elapsed().as_secs_f64(),
        daemon.rss_mib()?,
        std::fs::metadata(&state)?.len() >> 20,
    );

    let socket = place.path().join("c.sock");
    let shown = socket.display().to_string();
    let arguments = ["controller", "--hub", &address, "--csi-socket", &shown];
    let controller = Daemon::start("opensail-csi", &arguments, &place.path().join("controller.log"))?;
    let csi = ControllerClient::new(unix_channel(&socket).await?).max_decoding_message_size(64 << 20);
    let mut figures = Vec::new();
    let mut number = volumes;
    for size in PAGES {
        let quiet = pages(&csi, size, async || Ok(())).await?;
        ensure!(quiet.ids.iter().eq(&alive), "{} of {} volumes were listed", quiet.ids.len(), alive.len());
        // In each pause between pages one volume goes that was listed or would be, and one comes.
        let before = alive.clone();
        let busy = pages(&csi, size, async || {
            let gone = alive.iter().nth(number * 7919 % alive.len()).cloned().context("a volume")?;
            hub.clone()
                .delete_volume(DeleteVolumeRequest { volume_id: gone.clone(), ..Default::default() })
                .await?;
            alive.remove(&gone);
            alive.insert(create(hub.clone(), number).await?);
            number += 1;
            Ok(())
        })
        .await?;
        let once: BTreeSet<&String> = busy.ids.iter().collect();
        ensure!(once.len() == busy.ids.len(), "a volume was listed twice");
        let missing = before.intersection(&alive).find(|id| !once.contains(id));
        ensure!(missing.is_none(), "{missing:?} was there all the time and is not in the list");
        let name =
            |what: &str| format!("{what}, {volumes} volumes in {} pages through CSI", quiet.times.len());
        for (what, listed) in [("slowest page", &quiet), ("slowest page under churn", &busy)] {
            let slowest = listed.times.iter().max().context("a page")?;
            figures.push(Figure::new(
                "list",
                name(what),
                (millis(*slowest), "ms"),
                ("1 s", 1000.0),
                Target::Limit,
            ));
        }
        let total = quiet.times.iter().sum();
        figures.push(Figure::new(
            "list",
            name("all pages"),
            (millis(total), "ms"),
            ("1 s", 1000.0),
            Target::Limit,
        ));
    }
    println!(
        "list: after it hub RSS {:.0} MiB, CSI controller RSS {:.0} MiB",
        daemon.rss_mib()?,
        controller.rss_mib()?
    );
    Ok(figures)
}

/// What a list gave.
struct Listed {
    ids: Vec<String>,
    times: Vec<Duration>,
}

/// All pages of the list, calling `between` after each but the last.
async fn pages(
    csi: &ControllerClient<Channel>,
    max_entries: i32,
    mut between: impl AsyncFnMut() -> Result<()>,
) -> Result<Listed> {
    let mut csi = csi.clone();
    let mut listed = Listed { ids: Vec::new(), times: Vec::new() };
    let mut starting_token = String::new();
    loop {
        let started = Instant::now();
        let page =
            csi.list_volumes(csi::ListVolumesRequest { max_entries, starting_token }).await?.into_inner();
        listed.times.push(started.elapsed());
        listed
            .ids
            .extend(page.entries.into_iter().filter_map(|entry| entry.volume).map(|volume| volume.volume_id));
        if page.next_token.is_empty() {
            return Ok(listed);
        }
        starting_token = page.next_token;
        between().await?;
    }
}

async fn create(mut hub: HubClient<Channel>, number: usize) -> Result<String> {
    let request = CreateVolumeRequest {
        unique_name: format!("pvc-{number:08}"),
        quota_bytes: Some(5 << 30),
        // What the CSI controller attaches.
        attributes: [
            ("csi/name", format!("pvc-{number:08}")),
            ("csi/mobility", "floating".to_owned()),
            ("csi/claim", format!("tenant-{}/data", number % 100)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into(),
        ..CreateVolumeRequest::default()
    };
    Ok(hub.create_volume(request).await?.into_inner().volume_id)
}

async fn until_live(hub: &HubClient<Channel>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let nodes = hub.clone().list_nodes(ListNodesRequest {}).await;
        if nodes.is_ok_and(|nodes| nodes.into_inner().nodes.len() == NODES) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "the hub does not hear its nodes");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
