//! A cluster of the real daemons on this machine, started as a person would start it: by `sailctl dev up`.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use proto::files::files_client::FilesClient;
use proto::files::{WriteHeader, WriteRequest, write_request};
use proto::hub::hub_client::HubClient;
use proto::hub::{ListNodesRequest, ResolveRequest};
use proto::node::node_client::NodeClient;
use serde_json::Value;
use tonic::Status;
use tonic::transport::Channel;
use types::SystemClock;

use crate::machines::Machines;
use crate::require;
use crate::tree::Content;

/// Where files are in memory.
const MEMORY: &str = "/dev/shm";

/// A process that was killed ends when what it does in the kernel ends.
const GONE: Duration = Duration::from_secs(60);

/// How a test wants its cluster.
#[derive(Debug, Default)]
pub struct Options {
    /// Where it lives; absent: a directory that goes away with the cluster.
    pub directory: Option<PathBuf>,
    /// The store's URL; absent: a directory store in `directory`.
    pub store: Option<String>,
    /// Further variables of the daemons.
    pub environment: Vec<(String, String)>,
    /// Further arguments of `dev up`.
    pub arguments: Vec<String>,
    /// Each node is a machine of its own, with its own mounts.
    pub machines: bool,
    /// A directory of our own is in memory, where this machine has files in memory.
    pub memory: bool,
    /// Further arguments of the nodes' daemons, where they are machines.
    pub node_arguments: Vec<String>,
}

/// A running cluster. Dropping it stops the daemons and takes the pools down.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    environment: Vec<(String, String)>,
    nodes: Vec<String>,
    handle: Handle,
    machines: Option<Machines>,
    /// Keeps a directory of our own until the daemons are gone.
    temporary: Option<tempfile::TempDir>,
    kept: bool,
}

/// Ways into a cluster that tasks can share.
#[derive(Debug, Clone)]
pub struct Handle {
    hub: String,
    store: String,
    /// Made on first use, inside a runtime; a cluster is also of use without one.
    client: Arc<OnceLock<HubClient<Channel>>>,
}

impl Cluster {
    /// Starts a hub and `nodes` nodes; nothing where this machine cannot (see [`require`]).
    ///
    /// # Errors
    /// The cluster does not come up.
    pub fn start(name: &str, nodes: u16) -> Result<Option<Self>> {
        Self::start_with(name, nodes, Options::default())
    }

    /// Starts one as `options` want it.
    ///
    /// # Errors
    /// The cluster does not come up.
    pub fn start_with(name: &str, nodes: u16, options: Options) -> Result<Option<Self>> {
        if !require::btrfs()? {
            return Ok(None);
        }
        let temporary = match &options.directory {
            Some(_) => None,
            None => {
                let place = Path::new(if options.memory { MEMORY } else { "" });
                let place = if place.is_dir() { place.to_owned() } else { std::env::temp_dir() };
                Some(tempfile::Builder::new().prefix(&format!("opensail-{name}-")).tempdir_in(place)?)
            }
        };
        let directory = match (&options.directory, &temporary) {
            (Some(directory), _) => directory.clone(),
            (None, Some(temporary)) => temporary.path().to_owned(),
            (None, None) => unreachable!("one of them was made above"),
        };
        let mut arguments = vec!["dev".to_owned(), "up".to_owned(), "--nodes".to_owned(), nodes.to_string()];
        // A test decides when a volume is synced; the interval must not do it behind its back.
        arguments.extend(["--sync-interval".to_owned(), "1h".to_owned()]);
        if let Some(store) = &options.store {
            arguments.extend(["--store".to_owned(), store.clone()]);
        }
        arguments.extend(options.arguments.iter().cloned());
        let names: Vec<String> = (1..=nodes).map(|number| format!("node-{number}")).collect();
        let machines =
            options.machines.then(|| Machines::start(names.clone(), &options.node_arguments)).transpose()?;
        let sailctl =
            machines.as_ref().map_or_else(|| binary("sailctl"), |machines| Ok(machines.sailctl()))?;
        dev(&sailctl, &directory, &options.environment, &arguments)?;
        let context: Value = serde_json::from_slice(&std::fs::read(directory.join("context.json"))?)?;
        let text = |field: &str| context[field].as_str().map(str::to_owned).context("a field of the context");
        let handle = Handle { hub: text("hub")?, store: text("store")?, client: Arc::default() };
        Ok(Some(Self {
            directory,
            environment: options.environment,
            nodes: names,
            handle,
            machines,
            temporary,
            kept: false,
        }))
    }

    /// Names of the nodes.
    pub fn nodes(&self) -> Vec<String> {
        self.nodes.clone()
    }

    /// Ways in.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Where the cluster lives.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Variables of its daemons, beside those of this process.
    pub fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    /// The backing file of a node's pool.
    pub fn pool_image(&self, node: &str) -> PathBuf {
        self.directory.join(node).join("pool.img")
    }

    /// The CSI socket of a node.
    pub fn csi_socket(&self, node: &str) -> PathBuf {
        self.directory.join(node).join("csi.sock")
    }

    /// Starts a CSI controller, and returns it with its socket.
    ///
    /// # Errors
    /// It does not come up.
    pub fn csi_controller(&self) -> Result<(Child, PathBuf)> {
        self.csi_controller_named("controller")
    }

    /// Starts one more, whose socket and log have this name.
    ///
    /// # Errors
    /// It does not come up.
    pub fn csi_controller_named(&self, name: &str) -> Result<(Child, PathBuf)> {
        let socket = self.directory.join(format!("{name}.sock"));
        let log = std::fs::File::create(self.directory.join(format!("{name}.log")))?;
        let mut controller = Command::new(binary("opensail-csi")?);
        controller.arg("controller").arg("--hub").arg(&self.handle.hub).arg("--csi-socket").arg(&socket);
        controller.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let controller = controller.stderr(log).spawn()?;
        for _ in 0..200 {
            if socket.exists() {
                return Ok((controller, socket));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("the CSI controller does not come up; see {name}.log in {}", self.directory.display())
    }

    /// Ends a daemon (a node's name, or `hub`) with SIGKILL, at once, and returns when it is gone. (`dev kill` would take as
    /// long to start as many a call takes.)
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn kill(&self, daemon: &str) -> Result<()> {
        let file = self.directory.join("run").join(format!("{daemon}.pid"));
        let process: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        let pid = process["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.with_context(|| format!("{} names no process", file.display()))?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
            .with_context(|| format!("kill {daemon}"))?;
        let killed = Instant::now();
        while is_there(pid) {
            ensure!(killed.elapsed() < GONE, "{daemon} (pid {pid}) does not end; see dmesg");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Starts a daemon that was killed, and waits until it is live.
    ///
    /// # Errors
    /// It does not come back.
    pub fn restart(&self, daemon: &str) -> Result<()> {
        self.dev(&["dev", "start", daemon])
    }

    /// Runs `sailctl` against this cluster and returns what it did.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn sailctl(&self, arguments: &[&str]) -> Result<std::process::Output> {
        let mut command = self.command()?;
        command.args(arguments);
        command.output().with_context(|| format!("{command:?}"))
    }

    /// Opens the store without any daemon.
    ///
    /// # Errors
    /// The store does not open.
    pub async fn store(&self) -> Result<cas::Store> {
        let url: cas::objects::StoreUrl = self.handle.store.parse()?;
        Ok(cas::Store::open(url.connect().await?, Arc::new(SystemClock)).await?)
    }

    /// A path of a node, as this process gets to it.
    pub fn on(&self, node: &str, path: &Path) -> PathBuf {
        self.machines.as_ref().map_or_else(|| path.to_owned(), |machines| machines.path(node, path))
    }

    /// Where a node's pool is mounted, as this process gets to it.
    pub fn pool(&self, node: &str) -> PathBuf {
        self.on(node, &self.directory.join(node).join("mnt"))
    }

    /// A command that runs where a node's mounts are.
    pub fn command_on(&self, node: &str, program: &str) -> Command {
        self.machines.as_ref().map_or_else(|| Command::new(program), |all| all.command(node, program))
    }

    /// The mount points where a node runs, oldest first.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn mounts(&self, node: &str) -> Result<Vec<PathBuf>> {
        match &self.machines {
            Some(machines) => machines.mounts(node),
            None => {
                let table = std::fs::read_to_string("/proc/self/mountinfo")?;
                Ok(table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect())
            }
        }
    }

    /// What a node tells Prometheus: each line's name with its labels, and its value.
    ///
    /// # Errors
    /// It is no machine of its own, or its daemon does not answer.
    pub fn metrics(&self, node: &str) -> Result<BTreeMap<String, f64>> {
        let address = self.machines.as_ref().and_then(|machines| machines.metrics(node));
        scrape(address.with_context(|| format!("{node} is no machine"))?)
    }

    /// Leaves the daemons and pools where `KEEP` is `failed`: something went wrong that somebody will want to look at.
    pub fn has_failed(&mut self) {
        self.kept = std::env::var("KEEP").is_ok_and(|value| value == "failed");
    }

    /// The log of a daemon.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn log(&self, daemon: &str) -> Result<String> {
        let log = std::fs::read(self.directory.join(format!("{daemon}.log")))?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    fn dev(&self, arguments: &[&str]) -> Result<()> {
        let sailctl = self.machines.as_ref().map_or_else(|| binary("sailctl"), |all| Ok(all.sailctl()))?;
        dev(
            &sailctl,
            &self.directory,
            &self.environment,
            &arguments.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(),
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // KEEP=1 leaves the daemons and pools for inspection; `sailctl dev down --purge` ends them.
        if self.kept || std::env::var("KEEP").is_ok_and(|value| value == "1") {
            eprintln!("kept: {}", self.directory.display());
            self.machines.iter_mut().for_each(Machines::keep);
            drop(self.temporary.take().map(tempfile::TempDir::keep));
            return;
        }
        let sailctl = self.machines.as_ref().map_or_else(|| binary("sailctl"), |all| Ok(all.sailctl()));
        let arguments = ["dev", "down", "--purge"].map(str::to_owned);
        // The daemons are the last in their namespaces then, and the mounts go with them.
        if let Some(machines) = &mut self.machines {
            machines.end();
        }
        let down = sailctl.and_then(|sailctl| dev(&sailctl, &self.directory, &self.environment, &arguments));
        if let Err(error) = down {
            eprintln!("{error:#}");
        }
    }
}

impl Handle {
    /// A client of the hub.
    ///
    /// # Panics
    /// The context's address is none.
    pub fn hub(&self) -> HubClient<Channel> {
        let client =
            || proto::client::hub(proto::client::channel(&self.hub).expect("it was written by dev up"));
        self.client.get_or_init(client).clone()
    }

    /// The node that holds a volume now.
    pub async fn owner(&self, volume: &str) -> Option<String> {
        let answer =
            self.hub().resolve(ResolveRequest { volume_id: volume.to_owned() }).await.ok()?.into_inner();
        if answer.node.is_empty() { None } else { Some(answer.node) }
    }

    /// A client of a node by its name.
    ///
    /// # Errors
    /// The hub does not know the node, or is away.
    pub async fn node(&self, name: &str) -> Result<NodeClient<Channel>, Status> {
        let nodes = self.hub().list_nodes(ListNodesRequest {}).await?.into_inner().nodes;
        let node = nodes
            .into_iter()
            .find(|node| node.node == name)
            .ok_or_else(|| Status::not_found(format!("the hub knows no {name}")))?;
        Ok(proto::client::node(channel(&node.address)?))
    }

    /// A client of the files of a volume, on the node that holds it.
    ///
    /// # Errors
    /// The volume is nowhere, or the hub is away.
    pub async fn files(&self, volume: &str) -> Result<FilesClient<Channel>, Status> {
        let answer = self.hub().resolve(ResolveRequest { volume_id: volume.to_owned() }).await?.into_inner();
        if answer.address.is_empty() {
            return Err(Status::unavailable(format!("{volume} is on no node")));
        }
        Ok(proto::client::files(channel(&answer.address)?))
    }

    /// Writes a file through the node that holds its volume.
    ///
    /// # Errors
    /// The write was not acknowledged.
    pub async fn write(&self, volume: &str, path: &str, content: Content, sync: bool) -> Result<(), Status> {
        let header = WriteHeader {
            volume_id: volume.to_owned(),
            path: path.as_bytes().to_vec().into(),
            parents: true,
            sync,
            ..WriteHeader::default()
        };
        let mut parts = vec![WriteRequest { part: Some(write_request::Part::Header(header)) }];
        for chunk in content.bytes().chunks(1 << 20) {
            parts.push(WriteRequest { part: Some(write_request::Part::Data(chunk.to_vec().into())) });
        }
        self.files(volume).await?.write(tokio_stream::iter(parts)).await?;
        Ok(())
    }
}

/// Reads what a daemon tells Prometheus.
///
/// # Errors
/// It does not answer, or a line is not what Prometheus reads.
pub fn scrape(address: &str) -> Result<BTreeMap<String, f64>> {
    let mut stream = std::net::TcpStream::connect(address).with_context(|| address.to_owned())?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, text) = answer.split_once("\r\n\r\n").context("no head")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            Ok((name.to_owned(), value.parse()?))
        })
        .collect()
}

/// A channel to a socket, once something listens on it.
///
/// # Errors
/// Nothing does for a minute.
pub async fn unix_channel(path: &Path) -> Result<Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("unix://{}", path.display()))?;
    for _ in 0..600 {
        if let Ok(channel) = endpoint.connect().await {
            return Ok(channel);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("nothing listens on {}", path.display())
}

fn channel(address: &str) -> Result<Channel, Status> {
    proto::client::channel(address).map_err(|error| Status::internal(format!("{address}: {error}")))
}

fn dev(
    sailctl: &Path,
    directory: &Path,
    environment: &[(String, String)],
    arguments: &[String],
) -> Result<()> {
    let mut command = Command::new(sailctl);
    command.args(arguments).arg("--dir").arg(directory);
    command.envs(environment.iter().map(|(key, value)| (key, value)));
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "sailctl {}: {}: {}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Tells if a process is there, and not only its remains. The state follows the name in brackets; a leader that is a zombie
/// says nothing of its threads, which is the twentieth field.
fn is_there(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let (state, threads) = (fields.next(), fields.nth(16).and_then(|threads| threads.parse::<u32>().ok()));
    !matches!((state, threads), (Some("Z" | "X"), Some(0 | 1)))
}

/// Finds a binary that was built beside the running test.
///
/// # Errors
/// It is not there: `cargo build` makes it, which `hack/test` does first.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let directory =
        own.ancestors().skip(1).find(|directory| directory.join(name).is_file()).with_context(|| {
            format!("no {name} beside {}: run `cargo build --workspace` first", own.display())
        })?;
    Ok(directory.join(name))
}
