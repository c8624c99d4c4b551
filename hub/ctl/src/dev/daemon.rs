//! Starting daemons, and knowing when they are up.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orchestrator::NodeState;
use proto::node::GetNodeRequest;

use super::cluster::{Cluster, HUB, Place};
use super::process::Process;
use crate::error::{Error, Result};

/// Where the daemons' programs are: beside this one.
#[derive(Debug)]
pub(super) struct Binaries {
    hub: PathBuf,
    csi: PathBuf,
}

impl Binaries {
    pub(super) fn find() -> Result<Self> {
        let own = std::env::current_exe().map_err(|error| Error::local("find", "this program", error))?;
        let find = |name: &str| {
            let path = own.with_file_name(name);
            let runs = fs::metadata(&path)
                .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
            if runs {
                return Ok(path);
            }
            Err(Error::state(
                format!("{} is not there", path.display()),
                "build all of it: cargo build --release --bins",
            ))
        };
        Ok(Self { hub: find("opensail-hub")?, csi: find("opensail-csi")? })
    }
}

/// Starts a daemon unless it runs; says whether it did.
pub(super) fn start(place: &Place, cluster: &Cluster, binaries: &Binaries, daemon: &str) -> Result<bool> {
    if place.process(daemon)?.is_some_and(|process| process.is_running()) {
        return Ok(false);
    }
    let (binary, arguments) = command(place, cluster, binaries, daemon);
    let process = Process::spawn(binary, &arguments, &place.log(daemon))
        .map_err(|error| Error::path("start", binary, error))?;
    let file = place.pid(daemon);
    process.save(&file).map_err(|error| Error::path("write", &file, error))?;
    Ok(true)
}

/// The kernel takes 107 bytes.
const LONGEST_SOCKET: usize = 100;

fn command<'a>(
    place: &Place,
    cluster: &Cluster,
    binaries: &'a Binaries,
    daemon: &str,
) -> (&'a Path, Vec<OsString>) {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut push = |name: &str, value: OsString| arguments.extend([name.into(), value]);
    let Some(node) = cluster.nodes.iter().find(|node| node.name == daemon) else {
        push("--listen", cluster.hub.clone().into());
        push("--store", cluster.store.clone().into());
        push("--state", place.hub_state().into());
        push("--heartbeat", "500ms".into());
        push("--suspect", "2s".into());
        push("--dead", cluster.dead.clone().into());
        return (&binaries.hub, arguments);
    };
    push("--node", node.name.clone().into());
    push("--pool", place.pool(&node.name).into());
    push("--pool-size", cluster.pool_size.clone().into());
    push("--store", cluster.store.clone().into());
    push("--listen", node.address.clone().into());
    push("--hub", cluster.hub.clone().into());
    push("--sync-interval", cluster.sync_interval.clone().into());
    push("--quota", cluster.quota.clone().into());
    // A socket's path has to be short; where it cannot be, there is no CSI.
    let socket = place.pool(&node.name).join("csi.sock");
    if socket.as_os_str().len() < LONGEST_SOCKET {
        push("--csi-socket", socket.into());
    }
    arguments.insert(0, "node".into());
    (&binaries.csi, arguments)
}

/// A pool of any size is made within seconds; a restart reads one object. This is for a machine that is very busy.
const START: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

/// Waits until these daemons are up, or one of them has ended. A node is up when the hub calls it live; where there is
/// no hub, when it answers itself.
pub(super) async fn live(place: &Place, cluster: &Cluster, daemons: &[&str]) -> Result<()> {
    let projects = cluster.context().projects()?;
    let running = |daemon: &str| -> Result<bool> {
        Ok(place.process(daemon)?.is_some_and(|process| process.is_running()))
    };
    let end = tokio::time::Instant::now() + START;
    loop {
        for daemon in daemons {
            if !running(daemon)? {
                return Err(ended(place, daemon));
            }
        }
        let missing = if running(HUB)? {
            match projects.nodes().await {
                Ok(nodes) => daemons.iter().find(|daemon| {
                    **daemon != HUB && !nodes.iter().any(|node| is_heard(place, node, daemon))
                }),
                Err(_) => Some(&HUB),
            }
        } else {
            let mut missing = None;
            for daemon in daemons {
                if !answers(cluster, daemon).await {
                    missing = Some(daemon);
                }
            }
            missing
        };
        let Some(missing) = missing else { return Ok(()) };
        if tokio::time::Instant::now() >= end {
            let words = last_words(place, missing);
            let message = format!("not live after {} s; its last words: {words}", START.as_secs());
            let remedy = format!("read {}", place.log(missing).display());
            return Err(Error::Daemon { daemon: (*missing).to_owned(), message, remedy });
        }
        tokio::time::sleep(POLL).await;
    }
}

/// One that was killed a moment ago is still called live; it must have been heard since its start.
fn is_heard(place: &Place, node: &orchestrator::Node, daemon: &str) -> bool {
    node.name.as_str() == daemon && node.state == NodeState::Live && node.last_heard >= place.started(daemon)
}

async fn answers(cluster: &Cluster, daemon: &str) -> bool {
    let Some(node) = cluster.nodes.iter().find(|node| node.name == daemon) else { return false };
    match proto::client::channel(&node.address) {
        Ok(channel) => proto::client::node(channel).get_node(GetNodeRequest {}).await.is_ok(),
        Err(_) => false,
    }
}

fn ended(place: &Place, daemon: &str) -> Error {
    let words = last_words(place, daemon);
    let remedy = words
        .lines()
        .find_map(|line| line.trim().strip_prefix("what to do: "))
        .map_or_else(|| "see its words above".to_owned(), str::to_owned);
    Error::Daemon { daemon: daemon.to_owned(), message: words, remedy }
}

/// The end of a daemon's log, which may go when the start is undone: so it is said, not pointed to.
fn last_words(place: &Place, daemon: &str) -> String {
    const LINES: usize = 8;
    let log = fs::read(place.log(daemon)).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return "it said nothing".to_owned();
    }
    format!("\n  {}", lines[lines.len().saturating_sub(LINES)..].join("\n  "))
}
