//! Finds what changed between two read-only snapshots, `find_changes BASE SNAPSHOT`, and prints as JSON what it took:
//! the median of several searches, the caches warm.

#![expect(clippy::print_stdout, reason = "its answer goes to whoever ran it")]

use std::time::{Duration, Instant};

use btrfs::Dir;
use btrfs::search::{Key, Search, tree};
use nix::time::{ClockId, clock_gettime};

const ROUNDS: usize = 9;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, snapshot] = arguments.as_slice() else { return Err("find_changes BASE SNAPSHOT".into()) };
    let (base, snapshot) = (Dir::open(base)?, Dir::open(snapshot)?);
    let since = btrfs::subvolume::info(&base)?.otransid;
    let cpu = || clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from);
    let (mut took, mut searched) = (Vec::new(), Vec::new());
    let mut changed = false;
    for _ in 0..ROUNDS {
        // What the kernel needs to hand over the leaves, nothing done with them.
        let before = cpu()?;
        let mut search = Search::new(&snapshot, tree::OF_DIRECTORY, Key::FIRST..=Key::LAST).newer_than(since);
        while search.next_item()?.is_some() {}
        searched.push(cpu()? - before);
        let (started, before) = (Instant::now(), cpu()?);
        changed = !csi::changes::changes(&base, &snapshot)?.root.is_empty();
        took.push((cpu()? - before, started.elapsed()));
    }
    took.sort();
    searched.sort();
    let (cpu, wall) = took[ROUNDS / 2];
    println!(
        "{}",
        serde_json::json!({
            "cpu_seconds": cpu.as_secs_f64(),
            "seconds": wall.as_secs_f64(),
            "search_cpu_seconds": searched[ROUNDS / 2].as_secs_f64(),
            "changed": changed,
        })
    );
    Ok(())
}
