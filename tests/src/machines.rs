//! Nodes as machines of their own: each has a mount namespace, so what one mounts no other sees.
//!
//! A process that does nothing holds the namespace, as an init would: a daemon that is killed leaves its mounts to it. The
//! daemons get there through a script that stands beside a `sailctl` of its own, where that looks for `opensail-csi`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::cluster::binary;

/// `unshare` needs a moment, on a busy machine.
const START: Duration = Duration::from_secs(20);

/// The machines of a cluster. Dropping them ends what they hold.
#[derive(Debug)]
pub struct Machines {
    bin: tempfile::TempDir,
    holders: BTreeMap<String, Machine>,
}

#[derive(Debug)]
struct Machine {
    holder: Child,
    /// Where its daemon tells its metrics.
    metrics: String,
}

impl Machines {
    /// Makes one for each node of this name. Its daemon gets these arguments beside those of `sailctl`.
    ///
    /// # Errors
    /// The kernel gives no namespace, or the daemons were not built.
    pub fn start(nodes: impl IntoIterator<Item = String>, arguments: &[String]) -> Result<Self> {
        let bin = tempfile::Builder::new().prefix("opensail-machines-").tempdir()?;
        for program in ["sailctl", "opensail-hub"] {
            fs::copy(binary(program)?, bin.path().join(program))?;
        }
        let mut machines = Self { bin, holders: BTreeMap::new() };
        for node in nodes {
            let holder = Command::new("unshare")
                .args(["--mount", "--propagation", "private", "sleep", "infinity"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .context("unshare")?;
            let metrics = free_address()?;
            fs::write(machines.bin.path().join(&node), format!("{} {metrics}\n", holder.id()))?;
            machines.holders.insert(node.clone(), Machine { holder, metrics });
            let started = Instant::now();
            while fs::read_link(machines.proc(&node).join("ns/mnt"))? == fs::read_link("/proc/self/ns/mnt")? {
                ensure!(started.elapsed() < START, "{node} gets no mount namespace");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let script = machines.bin.path().join("opensail-csi");
        let (bin, daemon) = (machines.bin.path().display(), binary("opensail-csi")?);
        fs::write(
            &script,
            format!(
                "#!/bin/sh\nfor word; do [ \"$before\" = --node ] && node=$word; before=$word; done\n\
                 read -r holder metrics < \"{bin}/$node\"\n\
                 exec nsenter --mount=/proc/\"$holder\"/ns/mnt -- '{}' \"$@\" --metrics \"$metrics\" {}\n",
                daemon.display(),
                arguments.join(" ")
            ),
        )?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(machines)
    }

    /// The `sailctl` that starts daemons on these machines.
    pub fn sailctl(&self) -> PathBuf {
        self.bin.path().join("sailctl")
    }

    /// A path of a machine, as this process gets to it.
    pub fn path(&self, node: &str, path: &Path) -> PathBuf {
        self.proc(node).join("root").join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A command that runs on a machine.
    pub fn command(&self, node: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount={}", self.proc(node).join("ns/mnt").display())).arg("--").arg(program);
        command
    }

    /// The mount points of a machine, oldest first.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn mounts(&self, node: &str) -> Result<Vec<PathBuf>> {
        let table = fs::read_to_string(self.proc(node).join("mountinfo"))?;
        Ok(table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect())
    }

    /// Where the daemon of a machine tells its metrics.
    pub fn metrics(&self, node: &str) -> Option<&str> {
        self.holders.get(node).map(|machine| machine.metrics.as_str())
    }

    fn proc(&self, node: &str) -> PathBuf {
        let holder = self.holders.get(node).map_or(0, |machine| machine.holder.id());
        Path::new("/proc").join(holder.to_string())
    }
}

/// A port that is free now; kept from nobody, but the kernel does not give it to the next who asks.
fn free_address() -> Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

impl Machines {
    /// Leaves the namespaces, for somebody to look around in them.
    pub fn keep(&mut self) {
        for (node, Machine { holder, .. }) in std::mem::take(&mut self.holders) {
            eprintln!("{node}: nsenter --mount=/proc/{}/ns/mnt", holder.id());
        }
    }

    /// Lets the namespaces go: each lives as long as a daemon is in it.
    pub fn end(&mut self) {
        for (node, Machine { mut holder, .. }) in std::mem::take(&mut self.holders) {
            if let Err(error) = holder.kill().and_then(|()| holder.wait()) {
                eprintln!("the machine of {node} does not end: {error}");
            }
        }
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        self.end();
    }
}
