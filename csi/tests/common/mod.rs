//! A real loop pool per test, and nodes on it. Needs root and btrfs: skipped loudly without, an error with
//! `REQUIRE_BTRFS=1`.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests: each file uses a part of it, and a skip is said out loud"
)]

pub mod kubelet;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cas::Store;
use cas::objects::{FaultStore, MemoryStore, Objects};
use cas::record::RecordKind;
use clap::Parser as _;
use csi::config::{Cli, Command as Run, NodeConfig};
use csi::create::CreateRequest;
use csi::node::Node;
use csi::pool::Pool;
use csi::seal::SealRequest;
use csi::volume::Volume;
use types::{Clock, RequestId, SystemClock, VersionId, VolumeId};

/// Tells if real pools can be made here.
pub fn has_btrfs() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let kernel = btrfs::features::kernel_has_btrfs();
    if root && kernel {
        return true;
    }
    let why = format!("needs root (have it: {root}) and btrfs (have it: {kernel})");
    assert!(
        std::env::var_os("REQUIRE_BTRFS").is_none_or(|v| v == "0"),
        "REQUIRE_BTRFS is set, but this {why}"
    );
    eprintln!("SKIPPED: {why}");
    false
}

/// A directory with a loop pool in it. Unmounted and removed when dropped.
pub struct TestPool {
    pub dir: tempfile::TempDir,
    pub name: String,
    pub size: &'static str,
}

impl TestPool {
    pub fn new(name: &str) -> Self {
        Self::sized(name, "2Gi")
    }

    pub fn sized(name: &str, size: &'static str) -> Self {
        let dir = tempfile::Builder::new().prefix("opensail-csi-").tempdir().unwrap();
        Self { dir, name: name.to_owned(), size }
    }

    pub fn mount(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    pub fn config(&self) -> NodeConfig {
        self.config_with(&[])
    }

    pub fn config_with(&self, more: &[&str]) -> NodeConfig {
        let pool = self.dir.path().to_str().unwrap();
        let mut arguments =
            vec!["opensail-csi", "node", "--node", &self.name, "--pool", pool, "--store", "memory:"];
        if !more.contains(&"--device") {
            arguments.extend(["--pool-size", self.size]);
        }
        if !more.contains(&"--sync-interval") {
            arguments.extend(["--sync-interval", "0s"]);
        }
        arguments.extend(["--listen", "127.0.0.1:0"]);
        arguments.extend(more);
        match Cli::parse_from(arguments).command {
            Run::Node(config) => *config,
            Run::Controller(_) => unreachable!("the arguments say node"),
        }
    }

    /// Starts a node, without its loops.
    pub async fn start(&self, store: &Store) -> Arc<Node> {
        self.try_start(store).await.unwrap()
    }

    /// Starts one that is told more.
    pub async fn start_with(&self, store: &Store, more: &[&str]) -> Arc<Node> {
        let config = self.config_with(more);
        let pool = Pool::open(config.clone()).await.unwrap();
        Node::start(config, "127.0.0.1:1".to_owned(), pool, store.clone()).await.unwrap()
    }

    pub async fn try_start(&self, store: &Store) -> Result<Arc<Node>, csi::error::Error> {
        let pool = Pool::open(self.config()).await?;
        Node::start(self.config(), "127.0.0.1:1".to_owned(), pool, store.clone()).await
    }
}

impl Drop for TestPool {
    fn drop(&mut self) {
        let mount = self.mount();
        // What a node's last blocking call still has open goes with a lazy unmount; the loop device goes with the mount.
        if Command::new("mountpoint").arg("-q").arg(&mount).status().is_ok_and(|status| status.success()) {
            let status = Command::new("umount").arg("-l").arg(&mount).status();
            assert!(status.is_ok_and(|status| status.success()) || std::thread::panicking());
        }
    }
}

/// One life of a process: what it leaves under way at its end stops there. Calls into the kernel end by themselves, as they
/// would after a kill.
pub fn life<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(20));
    result
}

/// Runs a line of shell that has to succeed.
pub fn sh(command: &str) {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Ends a node as a clean stop does, so that its pool can be opened again.
pub async fn stop(node: Arc<Node>) {
    node.shut_down(Duration::from_secs(5)).await;
    drop_node(node).await;
}

/// Drops everything of a node without a word to anybody.
pub async fn drop_node(node: Arc<Node>) {
    node.stop().cancel();
    let weak = Arc::downgrade(&node);
    drop(node);
    for _ in 0..500 {
        if weak.strong_count() == 0 {
            // The last user of the pool may be a blocking call that ends about now.
            tokio::time::sleep(Duration::from_millis(20)).await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("something still holds the node");
}

/// A store in memory, and the faults in front of it.
pub async fn store() -> (Store, Arc<FaultStore>) {
    let faults = Arc::new(FaultStore::new(Arc::new(MemoryStore::new())));
    (store_over(&faults).await, faults)
}

pub async fn store_over(faults: &Arc<FaultStore>) -> Store {
    let objects: Arc<dyn Objects> = Arc::clone(faults) as Arc<dyn Objects>;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    Store::create_or_open(objects, clock).await.unwrap().into_inner()
}

pub fn id(text: &str) -> VolumeId {
    text.parse().unwrap()
}

pub fn request(name: &str) -> CreateRequest {
    CreateRequest {
        id: id(name),
        request: format!("make-{name}").parse::<RequestId>().unwrap(),
        origin: None,
        limit_bytes: Some(1 << 30),
        domain: None,
        attributes: Default::default(),
    }
}

pub fn fork(name: &str, source: &str, version: VersionId) -> CreateRequest {
    CreateRequest { origin: Some((id(source), version)), ..request(name) }
}

/// A record that the present state of a volume is sealed as.
pub fn seal(volume: &str, sealed: &str, kind: RecordKind) -> SealRequest {
    SealRequest {
        id: id(volume),
        version: None,
        sealed: id(sealed),
        request: format!("seal-{sealed}").parse().unwrap(),
        kind,
        attributes: Default::default(),
    }
}

/// Where a volume's live tree is.
pub fn live(node: &Node, volume: &str) -> PathBuf {
    node.pool().path().join(csi::layout::data(&id(volume)))
}

pub fn head(volume: &Volume) -> VersionId {
    volume.facts().head.unwrap().tree.version
}

/// Says every way in which two trees differ, by a tool that shares no code with ours. Empty: they are the same.
pub fn differences(a: &Path, b: &Path) -> String {
    let output = Command::new("rsync")
        .args(["-naHAXSi", "--delete", "--checksum", "--numeric-ids"])
        .arg(format!("{}/", a.display()))
        .arg(format!("{}/", b.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A tree with every kind of thing in it.
pub fn fill(root: &Path) {
    std::fs::create_dir_all(root.join("src/deep/er")).unwrap();
    std::fs::write(root.join("README"), "hello\n").unwrap();
    std::fs::write(root.join("src/main.rs"), "fn main() {}\n".repeat(100)).unwrap();
    std::fs::write(root.join("src/deep/er/big"), vec![7_u8; 3 << 20]).unwrap();
    std::os::unix::fs::symlink("main.rs", root.join("src/link")).unwrap();
    std::fs::hard_link(root.join("README"), root.join("src/deep/README")).unwrap();
    for n in 0..50 {
        std::fs::write(root.join(format!("src/deep/file-{n}")), format!("file {n}\n").repeat(n)).unwrap();
    }
    let status =
        Command::new("setfattr").args(["-n", "user.note", "-v", "x"]).arg(root.join("README")).status();
    assert!(status.unwrap().success());
}

/// The names in a directory.
pub fn names(path: impl AsRef<Path>) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
