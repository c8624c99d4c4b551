//! SIGKILL at random points of a loop of create, write, sync, fork, snapshot, restore, take-over and delete.
//! Afterwards every acknowledged version restores byte-equal, and every live tree is what was last acknowledged.
//!
//! The bounded form runs with the other tests. The long one: `KILLS=500 cargo test -p tests --test kill`.
//! `KILL_SEED` repeats a schedule as far as timing allows.

#![expect(clippy::print_stdout, reason = "the seed and the counts are what a person needs of it")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use proto::hub::{
    CreateVolumeRequest, DeleteVolumeRequest, EnsureCachedRequest, ForkVolumeRequest, GetVolumeRequest,
    ListEntriesRequest, RestoreVolumeRequest, SnapshotVolumeRequest, TriggerSyncRequest,
};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tests::cluster::Cluster;
use tests::tree::{Content, Tree, compare};

/// A call that a kill interrupted is repeated until it is answered; after this long something is wedged.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);

/// How long a call is thought to take before one was seen.
const FIRST_GUESS: Duration = Duration::from_millis(10);

/// The reader's cache, below the size of what is read.
const CACHE_BYTES: usize = 16 << 20;

/// The rolling snapshots of a volume are five; the test takes no more, so that none is thinned by rule.
const SNAPSHOTS: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Op {
    Create,
    Write,
    Sync,
    Fork,
    Snapshot,
    Restore,
    TakeOver,
    Delete,
}

#[derive(Debug, Default)]
struct Volume {
    files: Tree,
    /// The last acknowledged durable state, which a take-over brings back.
    durable: Tree,
    /// Acknowledged versions with what they hold.
    acknowledged: BTreeMap<String, Tree>,
    snapshots: usize,
    deleted: bool,
}

#[derive(Debug)]
struct Run {
    cluster: Cluster,
    rng: SmallRng,
    volumes: BTreeMap<String, Volume>,
    requests: u64,
    kills: usize,
    kills_inside: BTreeMap<Op, usize>,
    done: BTreeMap<Op, usize>,
    /// How long a call of each kind took when it was last left alone: where in it a kill falls is drawn from that.
    took: BTreeMap<Op, Duration>,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_version_survives_kills_at_random_points() -> Result<()> {
    let Some(cluster) = Cluster::start("kill", 2)? else { return Ok(()) };
    let kills: usize = std::env::var("KILLS").ok().map_or(Ok(40), |text| text.parse())?;
    let seed: u64 = match std::env::var("KILL_SEED") {
        Ok(text) => text.parse()?,
        Err(_) => rand::random(),
    };
    println!("KILL_SEED={seed} KILLS={kills}");
    let mut run = Run {
        cluster,
        rng: SmallRng::seed_from_u64(seed),
        volumes: BTreeMap::new(),
        requests: 0,
        kills: 0,
        kills_inside: BTreeMap::new(),
        done: BTreeMap::new(),
        took: BTreeMap::new(),
    };
    while run.kills < kills {
        run.step().await.with_context(|| format!("seed {seed}, after {} kills", run.kills))?;
    }
    run.check_all().await.with_context(|| format!("seed {seed}"))?;
    let inside: usize = run.kills_inside.values().sum();
    println!(
        "seed {seed}: {} kills, {inside} of them inside a call: {:?}; calls: {:?}",
        run.kills, run.kills_inside, run.done
    );
    for op in [Op::Sync, Op::Restore] {
        ensure!(
            run.kills_inside.contains_key(&op),
            "no kill landed inside a {op:?}: the test proved nothing about it"
        );
    }
    Ok(())
}

impl Run {
    async fn step(&mut self) -> Result<()> {
        let op = self.draw_op();
        let volume = self.draw_volume();
        let (op, volume) = match (op, volume) {
            (Op::Create, _) | (_, None) => (Op::Create, String::new()),
            (op, Some(volume)) => (op, volume),
        };
        if op == Op::TakeOver {
            return self.take_over(&volume).await;
        }
        // A write is short and there are many; the calls that the test is about are killed more often than not.
        let wanted = self.rng.random_bool(if op == Op::Write { 0.1 } else { 0.6 });
        let call = self.prepare(op, &volume);
        let running = call.clone();
        let finished = Arc::new(AtomicBool::new(false));
        let finished_setter = Arc::clone(&finished);
        let cluster = self.cluster.handle();
        let started = Instant::now();
        let attempt = tokio::spawn(async move {
            let answer = running.send(&cluster).await;
            finished_setter.store(true, Ordering::SeqCst);
            answer
        });
        let mut victims = Vec::new();
        if wanted {
            let longest = self.took.get(&op).copied().unwrap_or(FIRST_GUESS);
            let pause = longest.mul_f64(self.rng.random_range(0.0..1.0));
            victims = self.draw_victims(&volume).await;
            tokio::time::sleep(pause.saturating_sub(started.elapsed())).await;
            if !finished.load(Ordering::SeqCst) {
                *self.kills_inside.entry(op).or_default() += 1;
            }
            for victim in &victims {
                self.cluster.kill(victim)?;
                self.kills += 1;
            }
        }
        let first = attempt.await?;
        if victims.is_empty() && first.is_ok() {
            self.took.insert(op, started.elapsed());
        }
        if wanted {
            println!("{op:?} {call:?}: killed {victims:?}, first answer {}", first.is_ok());
        }
        for victim in &victims {
            self.cluster.restart(victim)?;
        }
        let answer = match first {
            Ok(answer) => answer,
            Err(status) => {
                // A daemon that was restarted in an earlier step may still be telling what it holds.
                let may_pass = proto::status::kind(&status).is_retryable();
                ensure!(
                    may_pass || !victims.is_empty(),
                    "{op:?} {volume} failed with nothing killed: {status}"
                );
                self.repeat(&call).await?
            }
        };
        self.acknowledge(op, &volume, &call, answer);
        *self.done.entry(op).or_default() += 1;
        if !victims.is_empty() && op != Op::Delete {
            let id = if op == Op::Create || op == Op::Fork { self.last_made() } else { volume };
            self.check_live(&id).await?;
        }
        Ok(())
    }

    fn draw_op(&mut self) -> Op {
        let alive = self.volumes.values().filter(|volume| !volume.deleted).count();
        match self.rng.random_range(0..100) {
            0..8 => Op::Create,
            8..45 => Op::Write,
            45..68 => Op::Sync,
            68..76 => Op::Fork,
            76..82 => Op::Snapshot,
            82..94 => Op::Restore,
            94..96 => Op::TakeOver,
            _ if alive > 6 => Op::Delete,
            _ => Op::Sync,
        }
    }

    fn draw_volume(&mut self) -> Option<String> {
        let alive: Vec<&String> = self.volumes.iter().filter(|(_, v)| !v.deleted).map(|(id, _)| id).collect();
        if alive.is_empty() { None } else { Some(alive[self.rng.random_range(0..alive.len())].clone()) }
    }

    async fn draw_victims(&mut self, volume: &str) -> Vec<String> {
        let nodes = self.cluster.nodes();
        let owner = match self.cluster.handle().owner(volume).await {
            Some(owner) => owner,
            None => nodes[self.rng.random_range(0..nodes.len())].clone(),
        };
        match self.rng.random_range(0..10) {
            0..7 => vec![owner],
            7..9 => vec!["hub".to_owned()],
            _ => vec![owner, "hub".to_owned()],
        }
    }

    fn prepare(&mut self, op: Op, volume: &str) -> Call {
        self.requests += 1;
        let request_id = format!("kill-{}", self.requests);
        let volume_id = volume.to_owned();
        match op {
            Op::Create => Call::Create { request_id },
            Op::Write => Call::Write {
                volume_id,
                path: format!("d{}/f{}", self.rng.random_range(0..3), self.rng.random_range(0..8)),
                content: Content::draw(&mut self.rng),
            },
            Op::Fork => Call::Fork { volume_id, request_id },
            Op::Snapshot if self.volumes[volume].snapshots < SNAPSHOTS => {
                Call::Snapshot { volume_id, label: request_id }
            }
            Op::Restore if !self.volumes[volume].acknowledged.is_empty() => {
                let versions: Vec<&String> = self.volumes[volume].acknowledged.keys().collect();
                let version = versions[self.rng.random_range(0..versions.len())].clone();
                Call::Restore { volume_id, version }
            }
            Op::Delete => Call::Delete { volume_id },
            Op::Sync | Op::Snapshot | Op::Restore | Op::TakeOver => Call::Sync { volume_id },
        }
    }

    async fn repeat(&self, call: &Call) -> Result<Answer> {
        let cluster = self.cluster.handle();
        let mut last = None;
        let repeated = tokio::time::timeout(ANSWER_WITHIN, async {
            loop {
                match call.send(&cluster).await {
                    Ok(answer) => return answer,
                    Err(status) => last = Some(status),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        repeated.with_context(|| format!("{call:?} is still not answered: {last:?}"))
    }

    fn acknowledge(&mut self, _op: Op, volume: &str, call: &Call, answer: Answer) {
        match call {
            Call::Create { .. } => {
                let made = Volume::default();
                self.volumes
                    .entry(answer.volume_id)
                    .or_insert(made)
                    .acknowledged
                    .insert(answer.version, Tree::new());
            }
            Call::Write { path, content, .. } => {
                self.known(volume).files.insert(path.clone(), *content);
            }
            Call::Sync { .. } | Call::Snapshot { .. } => {
                let known = self.known(volume);
                known.snapshots += usize::from(matches!(call, Call::Snapshot { .. }));
                known.durable = known.files.clone();
                known.acknowledged.insert(answer.version, known.files.clone());
            }
            Call::Fork { .. } => {
                // The source was made durable first: that is part of what was acknowledged.
                let source = self.known(volume);
                source.durable = source.files.clone();
                let files = source.files.clone();
                source.acknowledged.insert(answer.version.clone(), files.clone());
                let acknowledged = BTreeMap::from([(answer.version, files.clone())]);
                self.volumes.insert(
                    answer.volume_id,
                    Volume { files: files.clone(), durable: files, acknowledged, ..Volume::default() },
                );
            }
            Call::Restore { version, .. } => {
                let known = self.known(volume);
                known.files = known.acknowledged[version].clone();
                known.durable = known.files.clone();
            }
            Call::Delete { .. } => self.known(volume).deleted = true,
        }
    }

    fn known(&mut self, volume: &str) -> &mut Volume {
        self.volumes.get_mut(volume).expect("drawn from this map")
    }

    fn last_made(&self) -> String {
        let make = format!("kill-{}", self.requests);
        let request = make.parse().expect("a request id");
        types::VolumeId::for_request("vol", &request).to_string()
    }

    /// Kills the owner for good, wakes the volume elsewhere with its last durable version, and lets the owner return.
    async fn take_over(&mut self, volume: &str) -> Result<()> {
        let Some(owner) = self.cluster.handle().owner(volume).await else { return Ok(()) };
        let other = self.cluster.nodes().into_iter().find(|node| *node != owner).context("two nodes")?;
        println!("TakeOver {volume}: killed {owner}");
        self.cluster.kill(&owner)?;
        self.kills += 1;
        *self.kills_inside.entry(Op::TakeOver).or_default() += 1;
        let cluster = self.cluster.handle();
        let woken = tokio::time::timeout(ANSWER_WITHIN, async {
            loop {
                let request = EnsureCachedRequest {
                    volume_id: volume.to_owned(),
                    candidates: vec![other.clone()],
                    ..EnsureCachedRequest::default()
                };
                if let Ok(answer) = cluster.hub().ensure_cached(request).await {
                    return answer.into_inner();
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await
        .context("the volume was not taken over")?;
        ensure!(woken.node == other, "woken on {} instead of {other}", woken.node);
        let known = self.known(volume);
        known.files = known.durable.clone();
        self.check_live(volume).await?;
        self.cluster.restart(&owner)?;
        *self.done.entry(Op::TakeOver).or_default() += 1;
        Ok(())
    }

    /// The live tree holds exactly what was acknowledged.
    async fn check_live(&self, volume: &str) -> Result<()> {
        let cluster = self.cluster.handle();
        let path = tokio::time::timeout(ANSWER_WITHIN, async {
            loop {
                let request =
                    GetVolumeRequest { volume_id: volume.to_owned(), ..GetVolumeRequest::default() };
                if let Ok(answer) = cluster.hub().get_volume(request).await {
                    let path = answer.into_inner().path;
                    if !path.is_empty() && Path::new(&path).exists() {
                        return path;
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
        .with_context(|| format!("{volume} has no live tree"))?;
        compare(&self.volumes[volume].files, Path::new(&path))
            .with_context(|| format!("live tree of {volume}"))
    }

    /// Restores every acknowledged version from the store alone and compares its bytes.
    async fn check_all(&self) -> Result<()> {
        let store = self.cluster.store().await?;
        let reader = cas::Reader::new(store.clone(), cas::Cache::new(CACHE_BYTES));
        let mut checked = 0;
        for (id, volume) in &self.volumes {
            let record = cas::record::read(&store, &id.parse()?)
                .await?
                .with_context(|| format!("the record of {id} is gone"))?
                .value;
            for (version, tree) in &volume.acknowledged {
                let reference = record
                    .entries
                    .iter()
                    .flat_map(|entry| entry.heads.values())
                    .find(|head| head.version.to_string() == *version)
                    .with_context(|| {
                        format!("{id}: acknowledged version {version} is not on its timeline")
                    })?;
                let target = tempfile::tempdir()?;
                reader
                    .restore(
                        reference,
                        std::fs::File::open(target.path())?.into(),
                        cas::RestoreOptions::default(),
                    )
                    .await
                    .with_context(|| format!("{id}@{version} does not restore"))?;
                compare(tree, target.path()).with_context(|| format!("{id}@{version}"))?;
                checked += 1;
            }
        }
        println!("{checked} acknowledged versions of {} volumes restored byte-equal", self.volumes.len());
        ensure!(checked > 0, "nothing was acknowledged");
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Call {
    Create { request_id: String },
    Write { volume_id: String, path: String, content: Content },
    Sync { volume_id: String },
    Fork { volume_id: String, request_id: String },
    Snapshot { volume_id: String, label: String },
    Restore { volume_id: String, version: String },
    Delete { volume_id: String },
}

#[derive(Debug, Default)]
struct Answer {
    volume_id: String,
    version: String,
}

impl Call {
    async fn send(&self, cluster: &tests::cluster::Handle) -> Result<Answer, tonic::Status> {
        let mut hub = cluster.hub();
        match self.clone() {
            Self::Create { request_id } => {
                let request = CreateVolumeRequest { request_id, ..CreateVolumeRequest::default() };
                let volume = hub.create_volume(request).await?.into_inner();
                Ok(Answer { volume_id: volume.volume_id, version: volume.version })
            }
            Self::Write { volume_id, path, content } => {
                cluster.write(&volume_id, &path, content, false).await?;
                Ok(Answer::default())
            }
            Self::Sync { volume_id } => {
                let sync = hub.trigger_sync(TriggerSyncRequest { volume_id }).await?.into_inner();
                Ok(Answer { version: sync.version, ..Answer::default() })
            }
            Self::Fork { volume_id, request_id } => {
                let request = ForkVolumeRequest {
                    request_id,
                    source_volume_id: volume_id,
                    ..ForkVolumeRequest::default()
                };
                let volume = hub.fork_volume(request).await?.into_inner();
                Ok(Answer { volume_id: volume.volume_id, version: volume.version })
            }
            Self::Snapshot { volume_id, label } => {
                let entry =
                    hub.snapshot_volume(SnapshotVolumeRequest { volume_id, label }).await?.into_inner();
                Ok(Answer { version: entry.version, ..Answer::default() })
            }
            Self::Restore { volume_id, version } => {
                let entries = hub
                    .list_entries(ListEntriesRequest {
                        volume_id: volume_id.clone(),
                        ..ListEntriesRequest::default()
                    })
                    .await?
                    .into_inner()
                    .entries;
                if !entries.iter().any(|entry| entry.version == version) {
                    return Err(tonic::Status::data_loss(format!(
                        "{version} is acknowledged but not listed"
                    )));
                }
                hub.restore_volume(RestoreVolumeRequest {
                    volume_id,
                    version,
                    ..RestoreVolumeRequest::default()
                })
                .await?;
                Ok(Answer::default())
            }
            Self::Delete { volume_id } => {
                hub.delete_volume(DeleteVolumeRequest { volume_id }).await?;
                Ok(Answer::default())
            }
        }
    }
}
