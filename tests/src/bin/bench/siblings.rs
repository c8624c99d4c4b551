//! What must not grow with the number of siblings: the sync and the restore of one fork of a template, with 1, 10 and 100
//! other forks of it in the domain and on the node, each with an edit of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use proto::hub::{CreateVolumeRequest, EnsureCachedRequest, ForkVolumeRequest, HibernateVolumeRequest};
use proto::hub::{TriggerSyncRequest, Volume};
use tests::cluster::{Cluster, Options};
use tests::figures::{Figure, Target, median, millis};
use tests::stores::Kind;

const GROUP: &str = "cost";
/// How many siblings there are when it is measured.
const SIBLINGS: [usize; 3] = [1, 10, 100];
const FILES: usize = 1_000;
const ROUNDS: usize = 9;
/// Where siblings are, and where there are none.
const NODES: [&str; 2] = ["node-1", "node-2"];

/// What an operation took, round by round.
#[derive(Debug, Default)]
struct Taken {
    times: Vec<Duration>,
    requests: Vec<u32>,
}

impl Taken {
    /// The median: a node beats meanwhile, and its beats are requests too.
    fn requests(&self) -> f64 {
        let mut sorted = self.requests.clone();
        sorted.sort_unstable();
        f64::from(sorted[sorted.len() / 2])
    }
}

/// Sync and restore with few and with many siblings. Requests are counted where there is a server to send them to.
pub(crate) async fn siblings() -> Result<Vec<Figure>> {
    let s3 = Kind::S3.options()?;
    let counted = s3.is_some();
    let options = Options { machines: true, memory: true, ..s3.unwrap_or_default() };
    let cluster =
        Cluster::start_with("siblings", 2, options)?.context("this machine cannot run the benchmark")?;
    let bench = Siblings { cluster };
    let template = bench.template().await?;
    let measured = bench.fork(&template, "measured").await?;
    let mut there = 0;
    let mut taken = BTreeMap::new();
    for siblings in SIBLINGS {
        while there < siblings {
            let sibling = bench.fork(&template, &format!("sibling-{there}")).await?;
            bench.edit(&sibling, &format!("sibling {there}"))?;
            bench.sync(&sibling.volume_id).await?;
            there += 1;
        }
        taken.insert(siblings, bench.measure(&measured, siblings).await?);
    }
    let operations = ["sync of one edit", "wake beside the siblings", "wake where there are none"];
    let (first, last) = (SIBLINGS[0], SIBLINGS[SIBLINGS.len() - 1]);
    let mut figures = Vec::new();
    for (number, operation) in operations.into_iter().enumerate() {
        let few: &Taken = &taken[&first][number];
        let beside = format!("with {first}");
        for siblings in SIBLINGS.into_iter().skip(1) {
            let many: &Taken = &taken[&siblings][number];
            let target = |times| if siblings == last { Target::Times(times) } else { Target::Beside };
            figures.push(Figure::new(
                GROUP,
                format!("{operation}, {siblings} siblings, p50"),
                (millis(median(&many.times)), "ms"),
                (&beside, millis(median(&few.times))),
                target(1.25),
            ));
            if counted {
                figures.push(Figure::new(
                    GROUP,
                    format!("{operation}, {siblings} siblings"),
                    (many.requests(), "requests"),
                    (&beside, few.requests()),
                    target(1.0),
                ));
            }
        }
    }
    Ok(figures)
}

struct Siblings {
    cluster: Cluster,
}

impl Siblings {
    async fn template(&self) -> Result<String> {
        let request = CreateVolumeRequest {
            request_id: "siblings-template".to_owned(),
            node_hint: NODES[0].to_owned(),
            ..CreateVolumeRequest::default()
        };
        let made = self.cluster.handle().hub().create_volume(request).await?.into_inner();
        let path = self.cluster.on(NODES[0], Path::new(&made.path));
        for file in 0..FILES {
            let directory = path.join(format!("d{}", file % 40));
            fs::create_dir_all(&directory)?;
            fs::write(directory.join(format!("f{file}")), format!("{file}\n").repeat(400))?;
        }
        self.sync(&made.volume_id).await?;
        Ok(made.volume_id)
    }

    async fn fork(&self, template: &str, name: &str) -> Result<Volume> {
        let request = ForkVolumeRequest {
            request_id: format!("siblings-{name}"),
            source_volume_id: template.to_owned(),
            node_hint: NODES[0].to_owned(),
            ..ForkVolumeRequest::default()
        };
        Ok(self.cluster.handle().hub().fork_volume(request).await?.into_inner())
    }

    fn edit(&self, volume: &Volume, text: &str) -> Result<()> {
        let path: PathBuf = self.cluster.on(NODES[0], Path::new(&volume.path));
        Ok(fs::write(path.join("d1/edited"), text)?)
    }

    async fn sync(&self, volume: &str) -> Result<()> {
        let request = TriggerSyncRequest { volume_id: volume.to_owned() };
        self.cluster.handle().hub().trigger_sync(request).await?;
        Ok(())
    }

    async fn sleep(&self, volume: &str) -> Result<()> {
        let request = HibernateVolumeRequest { volume_id: volume.to_owned() };
        self.cluster.handle().hub().hibernate_volume(request).await?;
        Ok(())
    }

    async fn wake(&self, volume: &str, node: &str) -> Result<()> {
        let request = EnsureCachedRequest {
            volume_id: volume.to_owned(),
            candidates: vec![node.to_owned()],
            ..EnsureCachedRequest::default()
        };
        self.cluster.handle().hub().ensure_cached(request).await?;
        let owner = self.cluster.handle().owner(volume).await;
        ensure!(owner.as_deref() == Some(node), "{volume} woke on {owner:?}");
        Ok(())
    }

    /// One edit made durable; asleep and awake where the siblings are; asleep and awake where they are not.
    async fn measure(&self, volume: &Volume, siblings: usize) -> Result<[Taken; 3]> {
        let mut taken: [Taken; 3] = Default::default();
        let [sync, beside, cold] = &mut taken;
        let id = volume.volume_id.as_str();
        for round in 0..ROUNDS {
            self.edit(volume, &format!("round {round} beside {siblings}"))?;
            self.take(sync, NODES[0], self.sync(id)).await?;
            self.sleep(id).await?;
            self.take(beside, NODES[0], self.wake(id, NODES[0])).await?;
            self.sleep(id).await?;
            self.take(cold, NODES[1], self.wake(id, NODES[1])).await?;
            self.sleep(id).await?;
            self.wake(id, NODES[0]).await?;
        }
        Ok(taken)
    }

    async fn take(
        &self,
        taken: &mut Taken,
        node: &str,
        operation: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let before = self.requests(node)?;
        let started = Instant::now();
        operation.await?;
        taken.times.push(started.elapsed());
        taken.requests.push(self.requests(node)? - before);
        Ok(())
    }

    /// Requests that a node has sent to the store.
    fn requests(&self, node: &str) -> Result<u32> {
        let told = self.cluster.metrics(node)?;
        let of_store = told.iter().filter(|(name, _)| name.starts_with("opensail_store_requests_total"));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of requests")]
        Ok(of_store.map(|(_, count)| *count).sum::<f64>() as u32)
    }
}
