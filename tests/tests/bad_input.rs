//! Wrong requests and broken surroundings: each is told clearly, with what to do, and leaves nothing half-made behind.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use proto::files::{ReadRequest, WriteHeader, WriteRequest, write_request::Part};
use tests::cluster::{Cluster, binary};
use tests::require;
use tests::sail::{Refusal, refusal};
use tests::same::run;

/// What an error of the command line always has.
fn told(refusal: &Refusal, code: i32, words: &str) -> Result<()> {
    let Refusal { code: found, words: said } = refusal;
    ensure!(*found == code, "exit code {found} instead of {code}: {said}");
    ensure!(said.contains("error: "), "no error: {said}");
    ensure!(said.contains(words), "nothing about {words:?}: {said}");
    ensure!(!said.contains("panicked"), "{said}");
    ensure!(said.contains("what to do: "), "nothing to do: {said}");
    ensure!(said.len() < 2_000, "too many words: {said}");
    Ok(())
}

#[test]
fn wrong_requests_are_told_and_change_nothing() -> Result<()> {
    let Some(cluster) = Cluster::start("wrong", 2)? else { return Ok(()) };
    let outside = tempfile::tempdir()?;
    let here = |name: &str| outside.path().join(name).to_str().map(str::to_owned).expect("UTF-8");
    fs::write(here("file"), "x")?;
    cluster.json(&["create", "shop"])?;
    cluster.write("shop:dir/file", b"x")?;
    symlink(outside.path(), cluster.path("shop")?.join("out"))?;
    symlink("/etc", cluster.path("shop")?.join("etc"))?;
    cluster.json(&["sync", "shop"])?;
    let before = cluster.json(&["describe", "shop"])?;
    let long = "a".repeat(4_096);
    let name = "n".repeat(256);
    let table: &[(&[&str], i32, &str)] = &[
        // Unknown.
        (&["describe", "nowhere"], 3, "nowhere"),
        (&["rm", "nowhere"], 3, "nowhere"),
        (&["sync", "nowhere"], 3, "nowhere"),
        (&["fork", "nowhere"], 3, "nowhere"),
        (&["wake", "nowhere"], 3, "nowhere"),
        (&["verify", "nowhere"], 3, "nowhere"),
        (&["cat", "nowhere:file"], 3, "nowhere"),
        (&["move", "shop", "--to", "nowhere"], 3, "nowhere"),
        (&["create", "x", "--node", "nowhere"], 3, "nowhere"),
        (&["create", "x", "--template", "nowhere"], 3, "nowhere"),
        (&["cat", "shop:nothing"], 3, "nothing"),
        (&["cp", "shop:nothing", &here("copy")], 3, "nothing"),
        (&["cp", &here("nothing"), "shop:copy"], 3, "nothing"),
        (&["restore", "shop", "ffffffffffff"], 3, "ffffffffffff"),
        (&["fork", "shop", "--at", "ffffffffffff"], 3, "ffffffffffff"),
        (&["verify", "shop@ffffffffffff"], 3, "ffffffffffff"),
        (&["template", "create", "t", "--from", &here("nothing")], 3, "nothing"),
        // Not what it should be.
        (&["cat", "shop:dir"], 2, "directory"),
        (&["write", "shop:dir"], 2, "directory"),
        (&["create", "shop"], 3, "shop"),
        (&["template", "create", "t", "--from", &here("file")], 2, "not a directory"),
        (&["cp", &here("file"), "shop:dir/file/x"], 2, "dir/file"),
        // Malformed and hostile.
        (&["describe", "../../x"], 2, "../../x"),
        (&["describe", "/etc/passwd"], 2, "/etc/passwd"),
        (&["describe", ""], 2, ""),
        (&["describe", &long], 2, "aaaa"),
        (&["create", "../x"], 2, "../x"),
        (&["create", "x", "--node", "../x"], 2, "../x"),
        (&["create", "x", "--template", "../../store"], 2, "../../store"),
        (&["create", "x", "--domain", "../x"], 2, "../x"),
        (&["create", "x", "--request-id", "a b"], 2, "a b"),
        (&["create", "x", "--quota", "0"], 2, "unlimited"),
        (&["create", "x", "--quota", "-1"], 2, "-1"),
        (&["create", "x", "--quota", "99999999999999999999"], 2, "size"),
        (&["move", "shop", "--to", "a/b"], 2, "a/b"),
        (&["restore", "shop", "../../x"], 2, "../../x"),
        (&["verify", "shop@../x"], 2, "../x"),
        (&["template", "create", "../x", "--from", "/tmp"], 2, "../x"),
        (&["cat", "shop:../../etc/passwd"], 2, "../../etc/passwd"),
        (&["cat", "shop:dir/../../x"], 2, "'..'"),
        (&["write", &format!("shop:{long}")], 2, "longer"),
        (&["write", &format!("shop:{name}")], 2, "255"),
        (&["cp", &here("file"), "shop:../x"], 2, "../x"),
        (&["cp", "shop:a", "shop:b"], 2, "volume"),
        (&["cp", "/a", "/b"], 2, "volume"),
        // Links that lead out.
        (&["cat", "shop:etc/passwd"], 2, "etc/passwd"),
        (&["cat", "shop:out/file"], 2, "out/file"),
        (&["write", "shop:out/made"], 2, "out/made"),
        (&["cp", &here("file"), "shop:out/made"], 2, "out/made"),
    ];
    let mut wrong = Vec::new();
    for (arguments, code, words) in table {
        let answer = cluster.refused(arguments).and_then(|refusal| told(&refusal, *code, words));
        if let Err(error) = answer {
            wrong.push(format!(
                "sailctl {}: {error:#}",
                arguments.join(" ").chars().take(100).collect::<String>()
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let after = cluster.json(&["sync", "shop"])?;
    assert_eq!(
        (&after["changed"], &after["version"]),
        (&false.into(), &before["version"]),
        "nothing has changed"
    );
    assert_eq!(cluster.json(&["ls"])?.as_array().map(Vec::len), Some(1));
    assert_eq!(cluster.json(&["template", "ls"])?.as_array().map(Vec::len), Some(0));
    assert!(!Path::new(&here("made")).exists() && !Path::new(&here("copy")).exists());
    nothing_half_made(&cluster)
}

/// No volume without a record, no staged thing, in any pool.
fn nothing_half_made(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let pool = cluster.directory().join(node).join("mnt");
        let staged: Vec<_> = fs::read_dir(pool.join("staging"))?.collect();
        ensure!(staged.is_empty(), "{staged:?}");
    }
    Ok(())
}

#[tokio::test]
async fn paths_that_no_command_line_can_hold_are_refused_by_the_node() -> Result<()> {
    let Some(cluster) = Cluster::start("raw", 1)? else { return Ok(()) };
    let volume = cluster.json(&["create", "shop"])?["id"].as_str().context("an id")?.to_owned();
    let mut files = cluster.handle().files(&volume).await?;
    let long = [b'a'; 5_000];
    for path in [&b"a\0b"[..], b"../x", b"/../x", b"a/../../x", b"a//b", &long] {
        let request =
            ReadRequest { volume_id: volume.clone(), path: path.to_vec().into(), ..Default::default() };
        let status = files.read(request).await.err().context("it was read")?;
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
        let header =
            WriteHeader { volume_id: volume.clone(), path: path.to_vec().into(), ..Default::default() };
        let request = tokio_stream::once(WriteRequest { part: Some(Part::Header(header)) });
        let status = files.write(request).await.err().context("it was written")?;
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    }
    for id in ["", "../shop", "a/b", "a\0b", &"a".repeat(4_096)] {
        let request =
            ReadRequest { volume_id: id.to_owned(), path: b"x".to_vec().into(), ..Default::default() };
        let status = files.read(request).await.err().context("it was read")?;
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{id:?}: {status}");
    }
    Ok(())
}

/// `dev up` in a fresh directory that has to fail, and leaves nothing.
fn up_fails(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Refusal> {
    let parent = tempfile::tempdir()?;
    let directory = parent.path().join("cluster");
    let mut command = Command::new(binary("sailctl")?);
    command.args(["dev", "up", "--nodes", "1", "--dir"]).arg(&directory).args(arguments);
    command.env("XDG_CONFIG_HOME", parent.path()).envs(environment.iter().copied());
    let refusal = refusal(&mut command)?;
    ensure!(!directory.exists(), "{} stays behind", directory.display());
    let name = directory.to_str().context("UTF-8")?;
    ensure!(!fs::read_to_string("/proc/self/mountinfo")?.contains(name), "a mount stays behind");
    Ok(refusal)
}

#[test]
fn a_store_that_cannot_be_reached_is_told() -> Result<()> {
    if !require::btrfs()? {
        return Ok(());
    }
    let from = Instant::now();
    let keys = [("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x")];
    let store = "s3://bucket?endpoint=http://127.0.0.1:1&region=us-east-1&path_style=true";
    told(&up_fails(&["--store", store], &keys)?, 1, "127.0.0.1:1")?;
    assert!(from.elapsed() < Duration::from_secs(60), "{:?}", from.elapsed());
    Ok(())
}

#[test]
fn a_store_that_is_none_is_told() -> Result<()> {
    if !require::btrfs()? {
        return Ok(());
    }
    for store in ["ftp://x", "s3://", "dir://relative", "", "s3://bucket?colour=blue"] {
        told(&up_fails(&["--store", store], &[])?, 2, store)?;
    }
    told(&up_fails(&["--pool-size", "many"], &[])?, 2, "many")
}

#[test]
fn a_store_without_conditional_writes_is_told() -> Result<()> {
    if !require::btrfs()? {
        return Ok(());
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/careless_s3.py");
    let mut server =
        Command::new("python3").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut port = String::new();
    BufReader::new(server.stdout.take().context("it was asked for")?).read_line(&mut port)?;
    let keys = [("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x")];
    let store =
        format!("s3://bucket?endpoint=http://127.0.0.1:{}&region=us-east-1&path_style=true", port.trim());
    let answer = up_fails(&["--store", &store], &keys);
    drop(server.stdin.take());
    server.wait()?;
    told(&answer?, 1, "conditional writes")
}

#[test]
fn a_store_that_cannot_be_written_is_told() -> Result<()> {
    if !require::btrfs()? {
        return Ok(());
    }
    // Root may write anywhere but on a read-only mount.
    let parent = tempfile::tempdir()?;
    let (store, seen) = (parent.path().join("store"), parent.path().join("seen"));
    fs::create_dir(&store)?;
    fs::create_dir(&seen)?;
    run(Command::new("mount").args(["--bind", "-o", "ro"]).arg(&store).arg(&seen))?;
    let answer = up_fails(&["--store", &format!("dir://{}", seen.display())], &[]);
    run(Command::new("umount").arg(&seen))?;
    told(&answer?, 1, "read-only")
}

#[test]
fn a_port_in_use_is_told() -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let place = tempfile::tempdir()?;
    let store = format!("dir://{}", place.path().join("store").display());
    let mut hub = Command::new(binary("opensail-hub")?);
    hub.args(["--listen", &address, "--store", &store, "--state"]).arg(place.path().join("hub.db"));
    let said = refusal(&mut hub)?;
    ensure!(said.words.contains(&address), "{}", said.words);
    if !require::btrfs()? {
        return Ok(());
    }
    let mut node = Command::new(binary("opensail-csi")?);
    node.args([
        "node",
        "--node",
        "one",
        "--listen",
        &address,
        "--store",
        &store,
        "--pool-size",
        "1Gi",
        "--pool",
    ]);
    node.arg(place.path().join("pool"));
    let said = refusal(&mut node)?;
    ensure!(said.words.contains(&address), "{}", said.words);
    let left = place.path().join("pool/pool.img").exists();
    ensure!(!left, "a pool was made for a node that could not start");
    Ok(())
}

#[test]
fn a_second_daemon_on_a_pool_is_refused() -> Result<()> {
    let Some(cluster) = Cluster::start("second", 1)? else { return Ok(()) };
    let context: serde_json::Value =
        serde_json::from_slice(&fs::read(cluster.directory().join("context.json"))?)?;
    let mut node = Command::new(binary("opensail-csi")?);
    node.args(["node", "--node", "two", "--listen", "127.0.0.1:0", "--pool-size", "8Gi"]);
    node.args(["--store", context["store"].as_str().context("a store")?, "--pool"]);
    node.arg(cluster.directory().join("node-1"));
    let said = refusal(&mut node)?;
    ensure!(said.words.contains("node-1"), "{}", said.words);
    // The first one does not notice.
    cluster.json(&["create", "shop"])?;
    cluster.write("shop:file", b"x")?;
    assert_eq!(cluster.json(&["sync", "shop"])?["changed"], true);
    Ok(())
}

#[test]
fn a_hub_that_is_away_is_told_and_one_that_is_silent_times_out() -> Result<()> {
    let place = tempfile::tempdir()?;
    let context = place.path().join("context.json");
    let sailctl = |arguments: &[&str]| -> Result<Refusal> {
        let mut command = Command::new(binary("sailctl")?);
        refusal(command.arg("--context").arg(&context).args(arguments))
    };
    told(&sailctl(&["nodes"])?, 3, "context.json")?;
    fs::write(&context, "no context")?;
    told(&sailctl(&["nodes"])?, 2, "context.json")?;
    let write = |hub: &str| fs::write(&context, format!(r#"{{"format":1,"hub":"{hub}","store":"memory:"}}"#));
    write("127.0.0.1:1")?;
    told(&sailctl(&["nodes"])?, 1, "nodes")?;
    told(&sailctl(&["wake", "shop"])?, 1, "shop")?;
    write("no address at all")?;
    told(&sailctl(&["nodes"])?, 2, "no address")?;
    // It takes the connection and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    write(&silent.local_addr()?.to_string())?;
    told(&sailctl(&["--timeout", "300ms", "nodes"])?, 124, "0.3 s")
}

#[test]
fn a_cluster_that_is_not_there_is_told() -> Result<()> {
    let place = tempfile::tempdir()?;
    let directory = place.path().to_str().context("UTF-8")?;
    for command in ["kill", "start"] {
        let mut sailctl = Command::new(binary("sailctl")?);
        told(&refusal(sailctl.args(["dev", command, "node-1", "--dir", directory]))?, 3, directory)?;
    }
    // There is nothing to stop, which is what was wanted.
    run(Command::new(binary("sailctl")?).args(["dev", "down", "--dir", directory]))
}

#[test]
fn what_stands_in_the_way_of_a_cluster_is_left_alone() -> Result<()> {
    let Some(cluster) = Cluster::start("way", 1)? else { return Ok(()) };
    let directory = cluster.directory().to_str().context("UTF-8")?;
    let before = cluster.json(&["dev", "status", "--dir", directory])?;
    fs::write(cluster.directory().join("node-2"), "precious")?;
    let up = ["dev", "up", "--dir", directory, "--nodes"];
    told(&cluster.refused(&[&up[..], &["2"]].concat())?, 3, "node-2")?;
    assert_eq!(fs::read(cluster.directory().join("node-2"))?, b"precious");
    fs::remove_file(cluster.directory().join("node-2"))?;
    told(&cluster.refused(&[&up[..], &["1", "--store", "dir:///elsewhere"]].concat())?, 3, "elsewhere")?;
    assert_eq!(cluster.json(&["dev", "status", "--dir", directory])?, before);
    Ok(())
}
