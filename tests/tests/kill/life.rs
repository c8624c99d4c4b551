//! One cluster's life: calls, kills among them, and what must be there afterwards.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use proto::hub::{EnsureCachedRequest, GetVolumeRequest};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tests::cluster::Cluster;
use tests::tree::{Content, Tree, compare};

use crate::call::{Answer, Call, Op};
use crate::tally::{Moment, Tally};

/// A call that a kill interrupted is repeated until it is answered; after this long something is wedged.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// How long a call is thought to take before one was seen.
const FIRST_GUESS: Duration = Duration::from_millis(10);

/// The reader's cache, below the size of what is read.
const CACHE_BYTES: usize = 16 << 20;

/// The rolling snapshots of a volume are 32 here (`max-snapshots`); the test takes far fewer, so that none is thinned by rule.
const SNAPSHOTS: usize = 5;

#[derive(Debug, Default)]
pub(crate) struct Volume {
    files: Tree,
    /// The last acknowledged durable state, which a take-over brings back.
    durable: Tree,
    /// Acknowledged versions with what they hold.
    acknowledged: BTreeMap<String, Tree>,
    snapshots: usize,
    deleted: bool,
}

#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) cluster: Cluster,
    rng: SmallRng,
    volumes: BTreeMap<String, Volume>,
    requests: u64,
    /// How long a call of each kind took when it was last left alone: where in it a kill falls is drawn from that.
    took: BTreeMap<Op, Duration>,
    pub(crate) tally: Tally,
}

impl Life {
    pub(crate) fn new(cluster: Cluster, seed: u64) -> Self {
        let (volumes, took, tally) = (BTreeMap::new(), BTreeMap::new(), Tally::default());
        Self { cluster, rng: SmallRng::seed_from_u64(seed), volumes, requests: 0, took, tally }
    }

    pub(crate) async fn step(&mut self) -> Result<()> {
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
        let wanted = self.rng.random_bool(if op == Op::Write { 0.1 } else { 0.8 });
        let victims = if wanted { self.draw_victims(&volume).await } else { Vec::new() };
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
        if !victims.is_empty() {
            let share = self.rng.random_range(0.0..1.0);
            let longest = self.took.get(&op).copied().unwrap_or(FIRST_GUESS);
            tokio::time::sleep(longest.mul_f64(share).saturating_sub(started.elapsed())).await;
            let quarter = [0.25, 0.5, 0.75].iter().filter(|end| share > **end).count();
            let answered = finished.load(Ordering::SeqCst);
            for victim in &victims {
                self.cluster.kill(victim)?;
            }
            self.tally.kill(op, &victims, if answered { Moment::Answered } else { Moment::Quarter(quarter) });
        }
        // At once, as kubelet would: a hub that sees a node go waits for what becomes of it.
        self.restart(&victims)?;
        let calling = Instant::now();
        let first = attempt.await?;
        if victims.is_empty() && first.is_ok() {
            self.took.insert(op, started.elapsed());
        }
        self.tally.spend("calls", calling.elapsed());
        let answer = match first {
            Ok(answer) => answer,
            Err(status) => {
                // A daemon that was restarted in an earlier step may still be telling what it holds.
                let may_pass = proto::status::kind(&status).is_retryable();
                ensure!(
                    may_pass || !victims.is_empty(),
                    "{op:?} {volume} failed with nothing killed: {status}"
                );
                let repeating = Instant::now();
                let answer = self.repeat(&call).await?;
                self.tally.spend("repeating", repeating.elapsed());
                answer
            }
        };
        self.acknowledge(&volume, &call, answer);
        self.tally.done(op);
        if !victims.is_empty() {
            let checking = Instant::now();
            if op != Op::Delete {
                let id = if op == Op::Create || op == Op::Fork { self.last_made() } else { volume };
                self.check_live(&id).await?;
            }
            if let Some(other) = self.draw_volume() {
                self.check_live(&other).await?;
            }
            self.tally.spend("checking", checking.elapsed());
        }
        Ok(())
    }

    fn restart(&mut self, victims: &[String]) -> Result<()> {
        let restarting = Instant::now();
        for victim in victims {
            self.cluster.restart(victim)?;
        }
        self.tally.spend("restarting", restarting.elapsed());
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
                tokio::time::sleep(PAUSE).await;
            }
        })
        .await;
        repeated.with_context(|| format!("{call:?} is still not answered: {last:?}"))
    }

    fn acknowledge(&mut self, volume: &str, call: &Call, answer: Answer) {
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
        let taking = Instant::now();
        self.cluster.kill(&owner)?;
        self.tally.kill(Op::TakeOver, std::slice::from_ref(&owner), Moment::Quarter(0));
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
                tokio::time::sleep(PAUSE).await;
            }
        })
        .await
        .context("the volume was not taken over")?;
        ensure!(woken.node == other, "woken on {} instead of {other}", woken.node);
        let known = self.known(volume);
        known.files = known.durable.clone();
        self.check_live(volume).await?;
        self.tally.spend("taking over", taking.elapsed());
        self.restart(&[owner])?;
        self.tally.done(Op::TakeOver);
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
                tokio::time::sleep(PAUSE).await;
            }
        })
        .await
        .with_context(|| format!("{volume} has no live tree"))?;
        compare(&self.volumes[volume].files, Path::new(&path))
            .with_context(|| format!("live tree of {volume}"))
    }

    /// Every live tree is what was acknowledged, and every acknowledged version restores from the store alone.
    pub(crate) async fn check_all(&mut self) -> Result<()> {
        let checking = Instant::now();
        for (id, volume) in &self.volumes {
            if !volume.deleted {
                self.check_live(id).await?;
            }
        }
        self.tally.checked += self.check_versions().await?;
        self.tally.spend("checking all", checking.elapsed());
        Ok(())
    }

    /// Restores every acknowledged version from the store alone and compares its bytes.
    async fn check_versions(&self) -> Result<usize> {
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
        Ok(checked)
    }
}
