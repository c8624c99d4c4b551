//! SIGKILL at random points of a loop of create, write, sync, fork, snapshot, restore, take-over and delete.
//! After each kill the volume that it fell upon and another one are what was acknowledged; at the end of a cluster's life
//! every acknowledged version restores byte-equal from the store alone, and every live tree is the last acknowledged one.
//!
//! A cluster lives for [`LIFE`] kills; then the next one begins. The bounded form is a part of one life. The long one:
//! `KILLS=10000 KILL_CLUSTERS=8 cargo test -p tests --test kill -- --nocapture`. `KILL_SEED` repeats a schedule as
//! far as timing allows; each life prints its own. `KEEP=failed` leaves the cluster of a life that failed.

mod call;
mod life;
mod tally;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use call::Op;
use life::Life;
use tally::Tally;
use tests::cluster::{Cluster, Options};

/// How many kills a cluster sees. All that it acknowledged is restored at its end, and an hour's syncs are thinned by rule:
/// so it ends long before.
const LIFE: usize = 250;

#[test]
fn every_acknowledged_version_survives_kills_at_random_points() -> Result<()> {
    let kills = number("KILLS", 40)?;
    let clusters = number("KILL_CLUSTERS", 1)?;
    let seed: u64 = match std::env::var("KILL_SEED") {
        Ok(text) => text.parse()?,
        Err(_) => rand::random(),
    };
    println!("KILL_SEED={seed} KILLS={kills} KILL_CLUSTERS={clusters}");
    let (begun, lives, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let (total, began) = (Mutex::new(Tally::default()), Instant::now());
    // A cluster is started and asked for by a thread of its own, which may wait for it.
    let one_after_another = || -> Result<()> {
        loop {
            let wanted = kills.saturating_sub(begun.fetch_add(LIFE, Ordering::Relaxed)).min(LIFE);
            if wanted == 0 || failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let seed = seed.wrapping_add(lives.fetch_add(1, Ordering::Relaxed) as u64);
            let Some(tally) = live(seed, wanted)? else { return Ok(()) };
            let mut total = total.lock().expect("no thread panics with it");
            total.add(&tally);
            println!(
                "KILL_SEED={seed} lived: {} kills of {kills}, {:.0} s",
                total.kills,
                began.elapsed().as_secs_f64()
            );
        }
    };
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let begin =
            || scope.spawn(|| one_after_another().inspect_err(|_| failed.store(true, Ordering::Relaxed)));
        let threads: Vec<_> = (0..clusters).map(|_| begin()).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a thread of the test does not panic"))
            .collect()
    });
    results.into_iter().collect::<Result<()>>()?;
    let total = total.into_inner().expect("no thread panicked with it");
    if total.kills == 0 {
        return Ok(());
    }
    println!("{total}\n{:.0} s for all", began.elapsed().as_secs_f64());
    ensure!(total.checked > 0, "nothing was acknowledged");
    for op in [Op::Sync, Op::Restore] {
        ensure!(total.inside(op) > 0, "no kill landed inside a {op:?}: the test proved nothing about it");
    }
    Ok(())
}

/// One cluster from its beginning to its end; nothing where this machine cannot.
fn live(seed: u64, kills: usize) -> Result<Option<Tally>> {
    // A node that is killed for good is waited for; everything lies in memory, so that a kill and not the disk is what takes time.
    let arguments = ["--dead".to_owned(), "4s".to_owned()].to_vec();
    let options = Options { arguments, memory: true, ..Options::default() };
    let Some(cluster) = Cluster::start_with("kill", 2, options)? else { return Ok(None) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut life = Life::new(cluster, seed);
    let lived = runtime.block_on(async {
        while life.tally.kills < kills {
            life.step().await.with_context(|| format!("after {} kills", life.tally.kills))?;
        }
        life.check_all().await
    });
    if lived.is_err() {
        life.cluster.has_failed();
    }
    lived.with_context(|| format!("run it again with KILL_SEED={seed}"))?;
    Ok(Some(life.tally.clone()))
}

fn number(name: &str, default: usize) -> Result<usize> {
    std::env::var(name).map_or(Ok(default), |text| text.parse().with_context(|| name.to_owned()))
}
