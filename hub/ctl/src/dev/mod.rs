//! A cluster on this machine: the real daemons, loop pools, and a store in a directory or in S3.
//!
//! Everything lies in one directory (`cluster.json`, `context.json`, `hub.db`, `*.log`, `run/*.pid`, `node-N/`,
//! `store/`), and every command can be repeated: what is there already is left as it is. Nothing waits for a time to
//! pass; a daemon is up when the hub calls it live.

mod cluster;
mod daemon;
mod pools;
mod process;

use std::time::Duration;

use cas::objects::StoreUrl;
use nix::sys::signal::Signal;
use serde::Serialize;
use types::{ByteSize, Timestamp};

use crate::cli::{DevCommand, DownArgs, UpArgs};
use crate::error::{Error, Result};
use crate::output::{Fields, Output, Row, dash};
use cluster::{Cluster, HUB, Place};
use daemon::Binaries;

/// Daemons stop within 10 s of being asked; the rest is for a machine that is busy.
const STOP: Duration = Duration::from_secs(20);

/// Runs a `dev` command.
///
/// # Errors
/// As each command says.
pub async fn run(command: DevCommand, output: &Output) -> Result<()> {
    match command {
        DevCommand::Up(args) => up(args, output).await,
        DevCommand::Down(args) => down(args, output).await,
        DevCommand::Kill(args) => {
            let place = Place::new(args.place.dir)?;
            kill(&place, &place.existing()?, &args.daemon, output).await
        }
        DevCommand::Start(args) => {
            let place = Place::new(args.place.dir)?;
            let cluster = place.existing()?;
            known(&cluster, &args.daemon)?;
            let binaries = Binaries::find()?;
            let _lock = place.lock()?;
            daemon::start(&place, &cluster, &binaries, &args.daemon)?;
            daemon::live(&place, &cluster, &[&args.daemon]).await?;
            status(&place, &cluster, output)
        }
        DevCommand::Status(args) => {
            let place = Place::new(args.dir)?;
            status(&place, &place.existing()?, output)
        }
    }
}

/// Starts what does not run yet, and waits until every node is live.
async fn up(args: UpArgs, output: &Output) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::state(
            "a node mounts its pool, and only root may mount",
            "run it as root, or in a virtual machine or privileged container",
        ));
    }
    args.pool_size
        .parse::<ByteSize>()
        .map_err(|error| Error::usage(error.to_string(), "as in --pool-size 8Gi"))?;
    if let Some(store) = &args.store {
        let url: StoreUrl = store.parse().map_err(|error: cas::objects::InvalidStoreUrl| {
            Error::usage(error.to_string(), "leave --store out for a directory of the cluster's own")
        })?;
        if matches!(url, StoreUrl::Memory) {
            return Err(Error::usage(
                "several daemons cannot share a store in memory",
                "give dir:// or s3://",
            ));
        }
    }
    let binaries = Binaries::find()?;
    let mut place = Place::new(args.place.dir.clone())?;
    place.create()?;
    let _lock = place.lock()?;
    let before = place.cluster()?;
    let cluster = match before.clone() {
        Some(cluster) => again(cluster, &args)?,
        None => Cluster::new(&place, &args)?,
    };
    let known = before.as_ref().map_or(0, |before| before.nodes.len());
    for node in cluster.nodes.iter().skip(known) {
        place.require_free(&node.name)?;
    }
    place.save(&cluster)?;
    let spinner = output.spinner("starting");
    let mut started = Vec::new();
    let outcome = start_all(&place, &cluster, &binaries, &mut started).await;
    spinner.finish_and_clear();
    if let Err(error) = outcome {
        undo(&place, before.as_ref(), &cluster, &started).await?;
        return Err(error);
    }
    let pointed = place.point_user_here()?;
    status(&place, &cluster, output)?;
    if started.is_empty() {
        output.remark("all of it was running already");
    }
    if !pointed {
        output.remark(&format!("export SAILCTL_CONTEXT={}", place.context().display()));
    }
    Ok(())
}

/// Takes back what a start did that failed: what it found running stays, and what had data before keeps it.
async fn undo(place: &Place, before: Option<&Cluster>, cluster: &Cluster, started: &[String]) -> Result<()> {
    for daemon in started.iter().rev() {
        stop(place, daemon).await?;
        if daemon != HUB {
            pools::clear(&place.pool(daemon)).await?;
        }
    }
    match before {
        None => place.purge(cluster),
        Some(before) => {
            let added = cluster.nodes.iter().skip(before.nodes.len());
            place
                .save(before)
                .and_then(|()| place.remove(added.flat_map(|node| place.of(&node.name)).collect()))
        }
    }
}

async fn start_all(
    place: &Place,
    cluster: &Cluster,
    binaries: &Binaries,
    started: &mut Vec<String>,
) -> Result<()> {
    for daemon in cluster.daemons() {
        if daemon::start(place, cluster, binaries, daemon)? {
            started.push(daemon.to_owned());
        }
    }
    daemon::live(place, cluster, &cluster.daemons().collect::<Vec<_>>()).await
}

/// What a second `dev up` may ask of a cluster: the same, or more nodes.
fn again(mut cluster: Cluster, args: &UpArgs) -> Result<Cluster> {
    if let Some(store) = args.store.as_ref().filter(|store| **store != cluster.store) {
        return Err(Error::state(
            format!("the cluster in this directory has the store {}, not {store}", cluster.store),
            "choose another --dir, or `sailctl dev down --purge` first",
        ));
    }
    if usize::from(args.nodes) < cluster.nodes.len() {
        return Err(Error::state(
            format!("the cluster in this directory has {} nodes", cluster.nodes.len()),
            "ask for at least as many, or `sailctl dev down --purge` first",
        ));
    }
    cluster.grow(args.nodes)?;
    Ok(cluster)
}

/// Stops the daemons, nodes first, and takes their pools out of the kernel.
async fn down(args: DownArgs, output: &Output) -> Result<()> {
    let place = Place::new(args.place.dir)?;
    let directory = place.directory.display().to_string();
    let Some(cluster) = place.cluster()? else {
        return output.one(&Down { directory, purged: false, already: true });
    };
    let _lock = place.lock()?;
    let spinner = output.spinner("stopping");
    let mut daemons: Vec<_> = cluster.daemons().collect();
    daemons.reverse();
    for daemon in &daemons {
        if let Some(process) = place.process(daemon)? {
            process.signal(Signal::SIGTERM).map_err(|error| Error::local("stop", *daemon, error))?;
        }
    }
    for daemon in &daemons {
        stop(&place, daemon).await?;
    }
    pools::clear(&place.directory).await?;
    spinner.finish_and_clear();
    place.point_user_away();
    if args.purge {
        place.purge(&cluster)?;
    }
    output.one(&Down { directory, purged: args.purge, already: false })
}

#[derive(Debug, Serialize)]
struct Down {
    directory: String,
    purged: bool,
    already: bool,
}

impl Fields for Down {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        let what = match (self.already, self.purged) {
            (true, _) => "there was no cluster in",
            (false, true) => "gone, with its data",
            (false, false) => "stopped; the data is in",
        };
        vec![(what, self.directory.clone())]
    }
}

/// Asks a daemon to stop, and ends it where it does not.
async fn stop(place: &Place, daemon: &str) -> Result<()> {
    let Some(process) = place.process(daemon)? else { return Ok(()) };
    let failed = |error| Error::local("stop", daemon, error);
    process.signal(Signal::SIGTERM).map_err(failed)?;
    if !process.gone(STOP).await {
        process.signal(Signal::SIGKILL).map_err(failed)?;
        if !process.gone(STOP).await {
            return Err(Error::state(
                format!("{daemon} (pid {}) does not end, not even by SIGKILL", process.pid),
                "it waits in the kernel: `dmesg` may say for what",
            ));
        }
    }
    let file = place.pid(daemon);
    std::fs::remove_file(&file).map_err(|error| Error::path("remove", &file, error))
}

async fn kill(place: &Place, cluster: &Cluster, daemon: &str, output: &Output) -> Result<()> {
    known(cluster, daemon)?;
    let running = place.process(daemon)?.filter(process::Process::is_running);
    let Some(process) = running else {
        return Err(Error::state(format!("{daemon} does not run"), format!("`sailctl dev start {daemon}`")));
    };
    process.signal(Signal::SIGKILL).map_err(|error| Error::local("kill", daemon, error))?;
    if !process.gone(STOP).await {
        return Err(Error::state(format!("{daemon} (pid {}) does not end", process.pid), "see `dmesg`"));
    }
    status(place, cluster, output)
}

fn known(cluster: &Cluster, daemon: &str) -> Result<()> {
    if cluster.daemons().any(|name| name == daemon) {
        return Ok(());
    }
    let names: Vec<_> = cluster.daemons().collect();
    Err(Error::usage(format!("there is no daemon {daemon:?}"), format!("there are {}", names.join(", "))))
}

#[derive(Debug, Serialize)]
struct Daemon {
    daemon: String,
    running: bool,
    pid: Option<i32>,
    address: String,
    log: String,
    pool: Option<String>,
}

impl Row for Daemon {
    const HEADS: &'static [&'static str] = &["DAEMON", "PID", "ADDRESS", "LOG"];

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        vec![self.daemon.clone(), dash(self.pid.as_ref()), self.address.clone(), self.log.clone()]
    }
}

fn status(place: &Place, cluster: &Cluster, output: &Output) -> Result<()> {
    let mut daemons = Vec::new();
    for name in cluster.daemons() {
        let process = place.process(name)?.filter(process::Process::is_running);
        let node = cluster.nodes.iter().find(|node| node.name == name);
        daemons.push(Daemon {
            daemon: name.to_owned(),
            running: process.is_some(),
            pid: process.map(|process| process.pid),
            address: node.map_or(&cluster.hub, |node| &node.address).clone(),
            log: place.log(name).display().to_string(),
            pool: (name != HUB).then(|| place.pool(name).display().to_string()),
        });
    }
    output.list(&daemons)
}
