//! Hostile ids and random requests, valid and not, to every call of every service, as frames over the real sockets.
//!
//! The requests come from the .proto files themselves, so a new call or field is tried without anybody's doing. Half of them
//! mean well: known ids, sensible values, so that they get past the parsing. The rest mix in what nobody should send, down
//! to text that is no UTF-8 and frames that are no message. `OPENSAIL_HOSTILE_ROUNDS` and `OPENSAIL_HOSTILE_SEED` for more.

#![allow(clippy::print_stderr, reason = "a failure needs its seed")]

#[path = "hostile/frames.rs"]
mod frames;
#[path = "hostile/wire.rs"]
mod wire;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use frames::{Frames, Known};
use futures::StreamExt as _;
use proto::csi::v1 as csi;
use proto::csi::v1::controller_client::ControllerClient;
use tests::cluster::{Cluster, Options, unix_channel};
use tonic::Code;
use tonic::transport::Channel;
use wire::Answer;

/// A caller of any of these services gives up later than this.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the way there and back may add on a busy machine.
const SLACK: Duration = Duration::from_secs(2);

/// Calls under way at once: they meet each other's volumes.
const AT_ONCE: usize = 8;

/// What lies beside the pools, and must neither be read nor changed.
const CANARY: &str = "CANARY-IN-A-COAL-MINE";

/// Whose calls are made where.
const SERVED: [(&str, &[&str]); 4] = [
    ("controller", &["csi.v1.Identity", "csi.v1.Controller", "csi.v1.GroupController"]),
    ("kubelet", &["csi.v1.Identity", "csi.v1.Node"]),
    ("hub", &["opensail.hub.v1.Hub"]),
    (
        "node",
        &[
            "opensail.node.v1.Node",
            "opensail.node.v1.Groups",
            "opensail.node.v1.Settings",
            "opensail.files.v1.Files",
        ],
    ),
];

/// The codes that the CSI specification gives to a call, beside those of every call.
fn codes(call: &str) -> &'static [Code] {
    use Code::{AlreadyExists, FailedPrecondition, NotFound, OutOfRange, ResourceExhausted};
    match call {
        "CreateVolume" => &[NotFound, AlreadyExists, ResourceExhausted, OutOfRange],
        "DeleteVolume" | "DeleteSnapshot" | "DeleteVolumeGroupSnapshot" => &[FailedPrecondition],
        "ControllerPublishVolume" => &[NotFound, AlreadyExists, FailedPrecondition, ResourceExhausted],
        // "Still mounted there" and "something else is mounted" are not in the tables; the general scheme has them.
        "ControllerUnpublishVolume" | "NodeUnpublishVolume" => &[NotFound, FailedPrecondition],
        "CreateSnapshot" => &[NotFound, AlreadyExists, ResourceExhausted, FailedPrecondition],
        "CreateVolumeGroupSnapshot" => &[NotFound, AlreadyExists, FailedPrecondition, ResourceExhausted],
        "ControllerExpandVolume" | "NodeExpandVolume" => {
            &[NotFound, FailedPrecondition, OutOfRange, ResourceExhausted]
        }
        "NodeStageVolume" | "NodePublishVolume" => {
            &[NotFound, AlreadyExists, FailedPrecondition, OutOfRange, ResourceExhausted]
        }
        "NodeUnstageVolume"
        | "NodeGetVolumeStats"
        | "ValidateVolumeCapabilities"
        | "GetSnapshot"
        | "ControllerGetVolume"
        | "GetVolumeGroupSnapshot" => &[NotFound],
        // A volume at its limit has no room for a property; the general scheme has that.
        "ControllerModifyVolume" => &[NotFound, ResourceExhausted],
        _ => &[],
    }
}

/// Codes of every CSI call: a missing or wrong field, an operation that goes on, and what may pass.
const EVERY_CALL: [Code; 5] =
    [Code::Ok, Code::InvalidArgument, Code::Aborted, Code::Unavailable, Code::DeadlineExceeded];

/// Says what is wrong with an answer, if anything is.
fn judge(service: &str, call: &str, broken: bool, answer: &Answer) -> Option<String> {
    let Answer { code, message, took, bytes } = answer;
    if *took > DEADLINE + SLACK {
        return Some(format!("was answered after {took:?}"));
    }
    if bytes.windows(CANARY.len()).any(|some| some == CANARY.as_bytes()) || message.contains(CANARY) {
        return Some("told what lies outside of the pool".to_owned());
    }
    // What cannot be decoded never reaches us: the library says so, in every language.
    if broken && *code == Code::Internal && message.contains("decode") {
        return None;
    }
    let wrong = if service.starts_with("csi.") {
        !EVERY_CALL.contains(code) && !codes(call).contains(code)
    } else {
        // A call that nobody serves is told without a word.
        matches!(code, Code::Internal | Code::Unknown | Code::DataLoss | Code::Cancelled)
            || (*code == Code::Unimplemented && message.is_empty())
    };
    wrong.then(|| format!("answered {code:?}: {message}"))
}

/// The cluster, a controller, and what must not be touched. Mounts go before the cluster does.
struct Victim {
    targets: tempfile::TempDir,
    controller: Child,
    channels: BTreeMap<&'static str, Channel>,
    pids: BTreeMap<String, String>,
    canaries: Vec<PathBuf>,
    cluster: Cluster,
}

impl Victim {
    async fn start() -> Result<Option<Self>> {
        let options = Options { arguments: vec!["--dead".to_owned(), "4s".to_owned()], ..Options::default() };
        let Some(cluster) = Cluster::start_with("hostile", 2, options)? else { return Ok(None) };
        let (controller, socket) = cluster.csi_controller()?;
        let nodes =
            cluster.handle().hub().list_nodes(proto::hub::ListNodesRequest {}).await?.into_inner().nodes;
        let address = nodes.first().context("a node")?.address.clone();
        let context: serde_json::Value =
            serde_json::from_slice(&std::fs::read(cluster.directory().join("context.json"))?)?;
        let channels = BTreeMap::from([
            ("controller", unix_channel(&socket).await?),
            ("kubelet", unix_channel(&cluster.csi_socket("node-1")).await?),
            ("hub", proto::client::channel(context["hub"].as_str().context("the hub's address")?)?),
            ("node", proto::client::channel(&address)?),
        ]);
        let targets = tempfile::Builder::new().prefix("opensail-targets-").tempdir()?;
        // Where `..` leads from a volume, a pool and the cluster.
        let directory = cluster.directory();
        let above = [
            directory.to_owned(),
            directory.join("node-1"),
            directory.join("node-1/mnt"),
            targets.path().into(),
        ];
        let canaries: Vec<PathBuf> = above.iter().map(|above| above.join("canary")).collect();
        for canary in &canaries {
            std::fs::create_dir_all(canary.join("inner/data"))?;
            std::fs::write(canary.join("inner/data/file"), CANARY)?;
            std::fs::write(canary.join("file"), CANARY)?;
        }
        let pids = pids(directory)?;
        Ok(Some(Self { targets, controller, channels, pids, canaries, cluster }))
    }

    fn csi(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channels["controller"].clone())
    }

    /// What is there now, for the requests that mean well.
    async fn known(&self) -> Result<Known> {
        let volumes = self.csi().list_volumes(csi::ListVolumesRequest::default()).await?.into_inner().entries;
        let snapshots =
            self.csi().list_snapshots(csi::ListSnapshotsRequest::default()).await?.into_inner().entries;
        let snapshots: Vec<csi::Snapshot> =
            snapshots.into_iter().filter_map(|entry| entry.snapshot).collect();
        Ok(Known {
            volumes: volumes
                .into_iter()
                .filter_map(|entry| entry.volume)
                .map(|volume| volume.volume_id)
                .collect(),
            groups: snapshots.iter().map(|snapshot| snapshot.group_snapshot_id.clone()).collect(),
            snapshots: snapshots.into_iter().map(|snapshot| snapshot.snapshot_id).collect(),
            targets: self.targets.path().to_owned(),
            canaries: self.canaries.clone(),
        })
    }

    /// Everything beside the pools, byte by byte, and where the pools are mounted.
    fn outside(&self) -> Result<String> {
        let mut seen = String::new();
        for canary in &self.canaries {
            let listed = Command::new("find")
                .arg(canary)
                .args([
                    "-printf",
                    "%p %y %m %U:%G %s %T@ %n\\n",
                    "(",
                    "-type",
                    "f",
                    "-exec",
                    "sha256sum",
                    "{}",
                    ";",
                    ")",
                ])
                .args(["-o", "-true"])
                .output()?;
            ensure!(
                listed.status.success(),
                "{canary:?} is gone: {}",
                String::from_utf8_lossy(&listed.stderr)
            );
            seen.push_str(&String::from_utf8(listed.stdout)?);
        }
        Ok(seen)
    }

    /// Mounts of the pools that are neither the pool itself nor a publication where one may be.
    fn stray_mounts(&self) -> Result<Vec<String>> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let lines: Vec<Vec<&str>> = mounts.lines().map(|line| line.split(' ').collect()).collect();
        let pools: Vec<PathBuf> =
            self.cluster.nodes().iter().map(|node| self.cluster.directory().join(node).join("mnt")).collect();
        let devices: Vec<&str> = lines
            .iter()
            .filter(|line| pools.iter().any(|pool| Path::new(line[4]) == pool))
            .map(|line| line[2])
            .collect();
        ensure!(devices.len() == pools.len(), "the pools are not mounted any more");
        let stray = lines.iter().filter(|line| {
            let point = Path::new(line[4]);
            devices.contains(&line[2])
                && !pools.iter().any(|pool| point == pool)
                && !point.starts_with(self.targets.path())
        });
        Ok(stray.map(|line| line.join(" ")).collect())
    }

    fn logs(&self) -> Result<Vec<(PathBuf, String)>> {
        let mut logs = Vec::new();
        for entry in std::fs::read_dir(self.cluster.directory())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                logs.push((path.clone(), String::from_utf8_lossy(&std::fs::read(path)?).into_owned()));
            }
        }
        Ok(logs)
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter(|point| Path::new(point).starts_with(self.targets.path())) {
            if !Command::new("umount").arg(point).status().is_ok_and(|status| status.success()) {
                eprintln!("{point} is left mounted");
            }
        }
        if let Err(error) = self.controller.kill().and_then(|()| self.controller.wait()) {
            eprintln!("the controller: {error}");
        }
    }
}

/// Process ids by daemon.
fn pids(directory: &Path) -> Result<BTreeMap<String, String>> {
    let mut pids = BTreeMap::new();
    for entry in std::fs::read_dir(directory.join("run"))? {
        let entry = entry?;
        pids.insert(entry.file_name().to_string_lossy().into_owned(), std::fs::read_to_string(entry.path())?);
    }
    Ok(pids)
}

fn number(variable: &str, default: u64) -> Result<u64> {
    std::env::var(variable).map_or(Ok(default), |text| text.parse()).context(variable.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_ids_and_random_requests_to_every_call_touch_nothing_outside_and_end_nothing() -> Result<()> {
    let Some(mut victim) = Victim::start().await? else { return Ok(()) };
    let seed = number("OPENSAIL_HOSTILE_SEED", rand::random())?;
    let rounds = number("OPENSAIL_HOSTILE_ROUNDS", 40)?;
    let frames = Arc::new(Frames::compile()?);
    let mut calls = Vec::new();
    for (place, services) in SERVED {
        for service in services {
            let methods = frames.methods(service);
            ensure!(!methods.is_empty(), "the .proto files have no service {service}");
            calls.extend(methods.into_iter().map(|method| (place, *service, method)));
        }
    }
    let before = victim.outside()?;
    let (mut answered, mut sent) = (BTreeMap::<String, BTreeMap<String, u64>>::new(), 0_u64);
    let wrong = Mutex::new(Vec::new());
    for round in 0..rounds {
        let known = Arc::new(victim.known().await?);
        let requests = calls.iter().enumerate().map(|(at, (place, service, method))| {
            let (frames, known, channel) =
                (Arc::clone(&frames), Arc::clone(&known), victim.channels[place].clone());
            let seed = seed ^ (round << 32) ^ at as u64;
            let wrong = &wrong;
            async move {
                let sent = frames.request(method, &known, seed);
                let path = format!("/{service}/{}", method.name);
                let broken = sent.broken;
                let answer = wire::call(channel, &path, sent.frames, DEADLINE).await;
                if let Some(why) = judge(service, &method.name, broken, &answer) {
                    wrong
                        .lock()
                        .expect("no holder panics")
                        .push(format!("{path} (round {round}): {why}; sent {}", sent.shown));
                }
                (path, answer.code)
            }
        });
        let answers: Vec<(String, Code)> =
            futures::stream::iter(requests).buffer_unordered(AT_ONCE).collect().await;
        for (path, code) in answers {
            *answered.entry(path).or_default().entry(format!("{code:?}")).or_default() += 1;
            sent += 1;
        }
    }
    let wrong = wrong.into_inner()?;
    eprintln!("{sent} requests to {} calls, seed {seed}", calls.len());
    for (path, codes) in &answered {
        eprintln!("{path} {codes:?}");
    }
    ensure!(
        wrong.is_empty(),
        "seed {seed}: {} wrong answers:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
    // A test of refusals alone would say nothing.
    for call in
        ["csi.v1.Controller/CreateVolume", "csi.v1.Node/NodePublishVolume", "opensail.files.v1.Files/Write"]
    {
        ensure!(answered[&format!("/{call}")].contains_key("Ok"), "seed {seed}: no {call} succeeded");
    }
    ensure!(victim.outside()? == before, "seed {seed}: something outside of the pools was touched");
    let stray = victim.stray_mounts()?;
    ensure!(stray.is_empty(), "seed {seed}: {stray:?}");
    ensure!(pids(victim.cluster.directory())? == victim.pids, "seed {seed}: a daemon was started anew");
    ensure!(victim.controller.try_wait()?.is_none(), "seed {seed}: the controller ended");
    for (path, log) in victim.logs()? {
        ensure!(!log.contains("panicked"), "seed {seed}: {} tells of a panic:\n{log}", path.display());
    }
    // All of it still works.
    let began = Instant::now();
    let made = victim
        .csi()
        .create_volume(frames::create("after-all"))
        .await?
        .into_inner()
        .volume
        .context("a volume")?;
    let gone = csi::DeleteVolumeRequest { volume_id: made.volume_id, ..Default::default() };
    victim.csi().delete_volume(gone).await?;
    ensure!(began.elapsed() < DEADLINE, "a plain create and delete took {:?}", began.elapsed());
    Ok(())
}
