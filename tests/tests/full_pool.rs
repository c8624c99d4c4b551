//! A pool that is full, of data and of metadata: what is there stays readable, new things are refused with a reason, and
//! room that is made is room.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::cluster::{Cluster, Options};
use tests::same::run;

/// Writes random bytes until there is no room, also after a commit has given back what was only reserved.
const DATA: &str = r"
import os, sys
refused = 0
with open(sys.argv[1] + '/fill', 'ab', buffering=0) as fill:
    while refused < 5:
        try:
            fill.write(os.urandom(1 << 18)); os.fdatasync(fill.fileno()); refused = 0
        except OSError as error:
            assert error.errno == 28, error
            os.sync(); refused += 1
";

/// Fills leaves of the tree with attributes until there is no room.
const METADATA: &str = r"
import os, sys
refused = number = 0
while refused < 5:
    number += 1
    name = f'{sys.argv[1]}/fill-{os.getpid()}-{number}'
    try:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY)); os.setxattr(name, 'user.fill', os.urandom(15000))
        refused = 0
        if number % 200 == 0: os.sync()
    except OSError as error:
        assert error.errno == 28, error
        os.sync(); refused += 1
";

#[test]
fn a_pool_full_of_data_refuses_new_things_and_keeps_the_old() -> Result<()> {
    full("data", DATA)
}

#[test]
fn a_pool_full_of_metadata_refuses_new_things_and_keeps_the_old() -> Result<()> {
    full("metadata", METADATA)
}

fn full(what: &str, fill: &str) -> Result<()> {
    let options = Options { arguments: vec!["--pool-size".into(), "400Mi".into()], ..Options::default() };
    let Some(cluster) = Cluster::start_with(&format!("full-{what}"), 1, options)? else { return Ok(()) };
    cluster.json(&["create", "shop"])?;
    cluster.write("shop:page.html", b"one")?;
    let synced = cluster.json(&["sync", "shop"])?;
    cluster.json(&["create", "filler", "--quota", "unlimited"])?;
    // Metadata must not take the last of what data could have, or data is full first: a file keeps data's part open.
    run(Command::new("bash")
        .args(["-c", "head -c 64M /dev/urandom > \"$0\"/part && sync -f \"$0\" && fallocate -p -o 0 -l 60M \"$0\"/part"])
        .arg(cluster.path("filler")?))?;
    // `doctor` exits with 1 and says which of the two it is. The kernel gives room back for a moment after it has refused.
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        run(Command::new("python3").args(["-c", fill]).arg(cluster.path("filler")?))?;
        let doctor = cluster.sailctl(&["-o", "json", "doctor"])?;
        let checks: Vec<serde_json::Value> = serde_json::from_slice(&doctor.stdout)?;
        let space = checks.iter().find(|check| check["name"] == "space").context("a check of the space")?;
        if space["ok"] == false {
            ensure!(doctor.status.code() == Some(1), "{}", doctor.status);
            ensure!(space["detail"].as_str().is_some_and(|said| said.contains(what)), "{space}");
            break;
        }
        ensure!(Instant::now() < end, "it does not get full: {space}");
    }
    let refused = cluster.refused(&["create", "late"])?;
    assert_eq!(refused.code, 1, "{}", refused.words);
    ensure!(refused.words.contains("room"), "{}", refused.words);
    ensure!(refused.words.contains("what to do: "), "{}", refused.words);
    assert_eq!(cluster.json(&["ls"])?.as_array().map(Vec::len), Some(2), "nothing half-made");
    // What is there can be read, and what is durable stays so.
    assert_eq!(cluster.cat("shop:page.html")?, b"one");
    assert_eq!(cluster.json(&["describe", "shop"])?["version"], synced["version"]);
    assert_eq!(cluster.json(&["verify", "shop"])?["whole"], true);
    // Its tenant makes room in it, and then it can be deleted: that publishes it first, which takes a little metadata.
    // Space comes back when the cleaner has been through it.
    run(Command::new("bash")
        .args(["-c", "rm -f \"$0\"/fill* && sync -f \"$0\""])
        .arg(cluster.path("filler")?))?;
    cluster.json(&["rm", "filler"])?;
    let end = Instant::now() + Duration::from_secs(120);
    while !cluster.sailctl(&["create", "late"])?.status.success() {
        ensure!(Instant::now() < end, "no room came back: {}", cluster.refused(&["create", "late"])?.words);
        std::thread::sleep(Duration::from_millis(200));
    }
    cluster.write("late:page.html", b"two").context("there is room")?;
    cluster.write("shop:page.html", b"three")?;
    assert_eq!(cluster.json(&["sync", "shop"])?["changed"], true);
    Ok(())
}
