//! Random operations, many rounds: what is said to have changed is enough, each time.

use std::time::{Instant, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::operations::{Held, operate};
use crate::volume::Volume;

/// Rounds of each test in an ordinary run; `OPENSAIL_CHANGES_ROUNDS` for more.
const ROUNDS: u64 = 500;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn what_is_said_to_have_changed_is_enough_whatever_was_done() {
    fuzz(false);
}

/// Without `btrfs send`: where a subvolume was nested, it leaves directories behind that it could not remove.
#[test]
fn what_is_said_to_have_changed_is_enough_with_nested_subvolumes() {
    fuzz(true);
}

fn fuzz(nest: bool) {
    let Some(mut volume) = Volume::create("changes fuzz") else { return };
    if !nest {
        volume.replay();
    }
    let rounds = number("OPENSAIL_CHANGES_ROUNDS").unwrap_or(ROUNDS);
    #[allow(clippy::disallowed_methods, reason = "a seed")]
    let seed = number("OPENSAIL_CHANGES_SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs());
    println!("OPENSAIL_CHANGES_SEED={seed} OPENSAIL_CHANGES_ROUNDS={rounds}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut held = Held::default();
    let (mut operations, mut full_scans, mut read, mut uploaded) = (0, 0, 0, 0);
    let begun = Instant::now();
    for round in 0..rounds {
        let mut done = Vec::new();
        for _ in 0..random.random_range(0..24) {
            done.push(operate(&mut random, &volume.live(), &mut held, nest));
        }
        operations += done.len();
        match random.random_range(0..20) {
            0 => {
                held = Held::default();
                volume.fork(false);
                done.push("fork of live".to_owned());
            }
            1 => {
                held = Held::default();
                volume.fork(true);
                done.push("fork of base".to_owned());
            }
            _ => {}
        }
        match volume.step() {
            Ok(step) => {
                read += step.effort.files_read;
                uploaded += step.cost.bytes_uploaded;
                if let Some(reason) = step.full_scan {
                    println!("round {round}: full scan: {reason}");
                    full_scans += 1;
                }
            }
            Err(difference) => {
                panic!("seed {seed} round {round}: {difference}\nafter {done:#?}");
            }
        }
    }
    println!(
        "{rounds} rounds, {operations} operations, {read} files read, {uploaded} bytes uploaded, {full_scans} full scans, {:?}",
        begun.elapsed()
    );
    let unplayable = volume.unplayable();
    assert!(unplayable * 100 <= rounds, "{unplayable} of {rounds} streams could not be replayed");
    assert!(full_scans * 20 <= rounds, "{full_scans} of {rounds} needed a full scan");
}
