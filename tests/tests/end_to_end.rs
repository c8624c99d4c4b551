//! The whole system as a person uses it: the real daemons, real pools, `sailctl`, over a directory and over S3.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::cluster::Cluster;
use tests::same::{keep, run, same, same_content};
use tests::stores::Kind;

macro_rules! on_both_stores {
    ($($name:ident)*) => {
        mod directory {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name(tests::stores::Kind::Directory) })*
        }
        mod s3 {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name(tests::stores::Kind::S3) })*
        }
    };
}

on_both_stores! {
    what_is_written_is_durable_after_a_sync_and_a_second_sync_writes_nothing
    a_fork_is_a_copy_that_goes_its_own_way
    a_restore_brings_back_a_snapshot_and_keeps_the_present_as_a_branch
    a_volume_sleeps_and_wakes_on_the_other_node_with_every_kind_of_file
    a_volume_moves_with_what_was_never_synced
    a_dead_nodes_volume_wakes_elsewhere_with_its_last_durable_state
    a_template_is_a_directory_that_volumes_begin_with
    a_deleted_volume_is_gone_and_the_others_stay
    what_was_is_read_and_brought_back_asleep_or_awake
    a_bundle_is_installed_and_stays_while_something_came_from_it
    every_daemon_dies_and_nothing_that_was_acknowledged_is_lost
}

fn start(name: &str, nodes: u16, kind: Kind) -> Result<Option<Cluster>> {
    let Some(options) = kind.options()? else { return Ok(None) };
    Cluster::start_with(name, nodes, options)
}

/// A field that has to be a text.
fn text<'a>(document: &'a Value, field: &str) -> Result<&'a str> {
    document[field].as_str().with_context(|| format!("{field} of {document}"))
}

fn other(cluster: &Cluster, node: &str) -> String {
    cluster.nodes().into_iter().find(|name| name != node).expect("there are two")
}

fn what_is_written_is_durable_after_a_sync_and_a_second_sync_writes_nothing(kind: Kind) -> Result<()> {
    let Some(cluster) = start("sync", 1, kind)? else { return Ok(()) };
    cluster.json(&["create", "shop"])?;
    cluster.write("shop:src/main.rs", b"fn main() {}\n")?;
    assert_eq!(cluster.json(&["describe", "shop"])?["dirty"], true);
    let synced = cluster.json(&["sync", "shop"])?;
    assert_eq!(synced["changed"], true);
    assert!(synced["bytes_uploaded"].as_u64() > Some(0), "{synced}");
    assert!(synced["objects_written"].as_u64() <= Some(3), "one pack and the record: {synced}");
    let described = cluster.json(&["describe", "shop"])?;
    assert_eq!(described["version"], synced["version"]);
    assert_eq!(described["dirty"], false);
    let again = cluster.json(&["sync", "shop"])?;
    assert_eq!((&again["version"], &again["changed"]), (&synced["version"], &Value::Bool(false)));
    assert_eq!((again["objects_written"].as_u64(), again["bytes_uploaded"].as_u64()), (Some(0), Some(0)));
    let verified = cluster.json(&["verify", "shop"])?;
    assert_eq!((verified["whole"].as_bool(), verified["files"].as_u64()), (Some(true), Some(1)));
    // The same tree, however it came about, is the same version.
    cluster.write("shop:src/main.rs", b"fn main() { }\n")?;
    let changed = cluster.json(&["sync", "shop"])?;
    assert_ne!(changed["version"], synced["version"]);
    assert_eq!(cluster.json(&["log", "shop"])?[0]["version"], changed["version"]);
    Ok(())
}

fn a_fork_is_a_copy_that_goes_its_own_way(kind: Kind) -> Result<()> {
    let Some(cluster) = start("fork", 2, kind)? else { return Ok(()) };
    cluster.json(&["create", "shop"])?;
    cluster.write("shop:page.html", b"one")?;
    let forks = cluster.json(&["fork", "shop", "copy", "-n", "8"])?;
    let forks = forks.as_array().context("an array")?;
    assert_eq!(forks.len(), 8);
    let version = cluster.json(&["describe", "shop"])?["version"].clone();
    for fork in forks {
        assert_eq!((&fork["origin"]["version"], &fork["version"]), (&version, &version));
    }
    cluster.write("copy-3:page.html", b"two")?;
    cluster.write("shop:page.html", b"three")?;
    assert_eq!(cluster.cat("shop:page.html")?, b"three");
    assert_eq!(cluster.cat("copy-3:page.html")?, b"two");
    assert_eq!(cluster.cat("copy-8:page.html")?, b"one");
    // From a point on the timeline, with a path that is not the first's.
    let old = text(&forks[0], "version")?;
    let late = cluster.json(&["fork", "shop", "late", "--at", &old[..16]])?;
    assert_eq!(late[0]["version"], version);
    assert_eq!(cluster.cat("late:page.html")?, b"one");
    Ok(())
}

fn a_restore_brings_back_a_snapshot_and_keeps_the_present_as_a_branch(kind: Kind) -> Result<()> {
    let Some(cluster) = start("restore", 1, kind)? else { return Ok(()) };
    cluster.json(&["create", "shop"])?;
    cluster.write("shop:page.html", b"one")?;
    let first = cluster.json(&["snapshot", "shop", "--label", "before the sale"])?;
    assert_eq!(text(&first, "label")?, "before the sale");
    cluster.write("shop:page.html", b"two")?;
    cluster.write("shop:new/deep/file", b"more")?;
    let restored = cluster.json(&["restore", "shop", &text(&first, "entry")?[..12]])?;
    assert_eq!(restored["version"], first["version"]);
    assert_eq!(cluster.cat("shop:page.html")?, b"one");
    assert_eq!(cluster.refused(&["cat", "shop:new/deep/file"])?.code, 3);
    let described = cluster.json(&["describe", "shop"])?;
    assert_eq!((&described["version"], &described["dirty"]), (&first["version"], &Value::Bool(false)));
    let branch = text(&restored, "branch")?;
    let tip = text(&described["branches"], branch)?;
    cluster.json(&["restore", "shop", tip])?;
    assert_eq!(cluster.cat("shop:page.html")?, b"two");
    assert_eq!(cluster.cat("shop:new/deep/file")?, b"more");
    Ok(())
}

fn a_volume_sleeps_and_wakes_on_the_other_node_with_every_kind_of_file(kind: Kind) -> Result<()> {
    let Some(cluster) = start("sleep", 2, kind)? else { return Ok(()) };
    let kept = tempfile::tempdir()?;
    let created = cluster.json(&["create", "shop"])?;
    let node = text(&created, "node")?.to_owned();
    fill(Path::new(text(&created, "path")?), true)?;
    keep(&cluster.path("shop")?, &kept.path().join("tree"))?;
    let synced = cluster.json(&["sync", "shop"])?;
    let slept = cluster.json(&["hibernate", "shop"])?;
    assert_eq!((&slept["node"], &slept["version"]), (&Value::Null, &synced["version"]));
    assert!(!Path::new(text(&created, "path")?).exists(), "a sleeping volume keeps nothing on its node");
    // It is read without being woken, and not written.
    assert_eq!(cluster.cat("shop:plain")?, fs::read(kept.path().join("tree/plain"))?);
    let refused = cluster.refused(&["write", "shop:plain"])?;
    assert_eq!(refused.code, 3);
    assert!(refused.words.contains("sailctl wake shop"), "{}", refused.words);
    let woken = cluster.json(&["wake", "shop", "--node", &other(&cluster, &node)])?;
    assert_eq!(text(&woken, "node")?, other(&cluster, &node));
    assert_eq!((&woken["version"], &woken["taken_over"]), (&synced["version"], &Value::Bool(false)));
    same(&kept.path().join("tree"), &cluster.path("shop")?)?;
    // What woke is what sleeps again: nothing is uploaded, and the identity is the same.
    let again = cluster.json(&["sync", "shop"])?;
    assert_eq!((&again["version"], &again["changed"]), (&synced["version"], &Value::Bool(false)));
    Ok(())
}

fn a_volume_moves_with_what_was_never_synced(kind: Kind) -> Result<()> {
    let Some(cluster) = start("move", 2, kind)? else { return Ok(()) };
    let kept = tempfile::tempdir()?;
    let created = cluster.json(&["create", "shop"])?;
    let from = text(&created, "node")?.to_owned();
    cluster.write("shop:synced", b"one")?;
    cluster.json(&["sync", "shop"])?;
    cluster.write("shop:never synced", b"two")?;
    keep(&cluster.path("shop")?, &kept.path().join("tree"))?;
    let to = other(&cluster, &from);
    let moved = cluster.json(&["move", "shop", "--to", &to])?;
    assert_eq!(text(&moved, "node")?, to);
    assert!(moved["epoch"].as_u64() > created["epoch"].as_u64());
    same(&kept.path().join("tree"), &cluster.path("shop")?)?;
    assert!(!Path::new(text(&created, "path")?).exists(), "the source's copy is gone");
    // Moving it to where it is changes nothing.
    assert_eq!(cluster.json(&["move", "shop", "--to", &to])?["epoch"], moved["epoch"]);
    Ok(())
}

fn a_dead_nodes_volume_wakes_elsewhere_with_its_last_durable_state(kind: Kind) -> Result<()> {
    let Some(cluster) = start("takeover", 2, kind)? else { return Ok(()) };
    let kept = tempfile::tempdir()?;
    let created = cluster.json(&["create", "shop"])?;
    let node = text(&created, "node")?.to_owned();
    cluster.write("shop:page.html", b"durable")?;
    keep(&cluster.path("shop")?, &kept.path().join("tree"))?;
    let synced = cluster.json(&["sync", "shop"])?;
    cluster.write("shop:page.html", b"never synced")?;
    cluster.kill(&node)?;
    let woken = cluster.json(&["wake", "shop"])?;
    assert_eq!(text(&woken, "node")?, other(&cluster, &node));
    assert_eq!((&woken["taken_over"], &woken["version"]), (&Value::Bool(true), &synced["version"]));
    same(&kept.path().join("tree"), &cluster.path("shop")?)?;
    cluster.write("shop:page.html", b"written after")?;
    cluster.json(&["sync", "shop"])?;
    // The dead node comes back, and has lost its place: what it held is kept beside the line, not on it.
    cluster.restart(&node)?;
    assert_eq!(cluster.cat("shop:page.html")?, b"written after");
    let described = cluster.json(&["describe", "shop"])?;
    assert_eq!(text(&described, "node")?, other(&cluster, &node));
    assert!(described["epoch"].as_u64() > created["epoch"].as_u64());
    Ok(())
}

fn a_template_is_a_directory_that_volumes_begin_with(kind: Kind) -> Result<()> {
    let Some(cluster) = start("template", 2, kind)? else { return Ok(()) };
    let source = tempfile::tempdir()?;
    fill(source.path(), false)?;
    let from = source.path().to_str().context("a name in UTF-8")?;
    let made = cluster.json(&["template", "create", "app", "--from", from])?;
    let again = cluster.json(&["template", "create", "app", "--from", from])?;
    assert_eq!((&made["changed"], &again["changed"]), (&Value::Bool(true), &Value::Bool(false)));
    assert_eq!((&made["id"], &made["version"]), (&again["id"], &again["version"]));
    let listed = cluster.json(&["template", "ls"])?;
    assert_eq!((&listed[0]["name"], &listed[0]["version"]), (&Value::from("app"), &made["version"]));
    for node in cluster.nodes() {
        let volume =
            cluster.json(&["create", &format!("on-{node}"), "--template", "app", "--node", &node])?;
        assert_eq!((text(&volume, "node")?, &volume["version"]), (node.as_str(), &made["version"]));
        assert_eq!((&volume["dirty"], &volume["origin"]["version"]), (&Value::Bool(false), &made["version"]));
        same(source.path(), Path::new(text(&volume, "path")?))?;
    }
    // The same bytes from another place are the same version; a volume made before stays as it is.
    fs::write(source.path().join("added"), "later")?;
    let changed = cluster.json(&["template", "create", "app", "--from", from])?;
    assert_ne!(changed["version"], made["version"]);
    assert_eq!(cluster.refused(&["cat", "on-node-1:added"])?.code, 3);
    Ok(())
}

fn a_deleted_volume_is_gone_and_the_others_stay(kind: Kind) -> Result<()> {
    let Some(cluster) = start("delete", 2, kind)? else { return Ok(()) };
    let created = cluster.json(&["create", "shop"])?;
    cluster.write("shop:page.html", b"one")?;
    cluster.json(&["fork", "shop", "copy"])?;
    cluster.json(&["rm", "shop"])?;
    assert_eq!(cluster.refused(&["describe", "shop"])?.code, 3);
    assert_eq!(cluster.refused(&["rm", text(&created, "id")?])?.code, 3);
    assert!(!Path::new(text(&created, "path")?).exists());
    assert_eq!(cluster.cat("copy:page.html")?, b"one");
    assert_eq!(cluster.json(&["verify", "copy"])?["whole"], true);
    let listed = cluster.json(&["ls"])?;
    let names: Vec<_> = listed.as_array().context("an array")?.iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["copy"]);
    // The name is free again, and the next one is another volume.
    assert_ne!(cluster.json(&["create", "shop"])?["id"], created["id"]);
    Ok(())
}

fn every_daemon_dies_and_nothing_that_was_acknowledged_is_lost(kind: Kind) -> Result<()> {
    let Some(cluster) = start("deaths", 2, kind)? else { return Ok(()) };
    cluster.json(&["create", "synced"])?;
    cluster.write("synced:file", b"durable")?;
    let synced = cluster.json(&["sync", "synced"])?;
    cluster.json(&["create", "local"])?;
    // `write` answers when the bytes are on the node's disk.
    cluster.write("local:file", b"on disk")?;
    for daemon in ["hub", "node-1", "node-2"] {
        cluster.kill(daemon)?;
    }
    fs::remove_file(cluster.directory().join("hub.db")).context("the hub's memory goes with it")?;
    for daemon in ["hub", "node-1", "node-2"] {
        cluster.restart(daemon)?;
    }
    assert_eq!(cluster.cat("synced:file")?, b"durable");
    assert_eq!(cluster.cat("local:file")?, b"on disk");
    let listed = cluster.json(&["ls"])?;
    assert_eq!(listed.as_array().map(Vec::len), Some(2));
    let described = cluster.json(&["describe", "synced"])?;
    assert_eq!((&described["version"], &described["dirty"]), (&synced["version"], &Value::Bool(false)));
    Ok(())
}

#[test]
fn a_subvolume_inside_a_volume_keeps_its_files() -> Result<()> {
    let Some(cluster) = start("nested", 2, Kind::Directory)? else { return Ok(()) };
    let kept = tempfile::tempdir()?;
    let created = cluster.json(&["create", "shop"])?;
    let path = cluster.path("shop")?;
    run(Command::new("btrfs").args(["subvolume", "create"]).arg(path.join("db")))?;
    fs::write(path.join("db/rows"), "one")?;
    cluster.json(&["sync", "shop"])?;
    // A write that only the inner subvolume sees.
    fs::write(path.join("db/rows"), "two")?;
    let synced = cluster.json(&["sync", "shop"])?;
    assert_eq!(synced["changed"], true);
    keep(&path, &kept.path().join("tree"))?;
    cluster.json(&["fork", "shop", "copy"])?;
    same(&kept.path().join("tree"), &cluster.path("copy")?)?;
    cluster.json(&["move", "shop", "--to", &other(&cluster, text(&created, "node")?)])?;
    same(&kept.path().join("tree"), &cluster.path("shop")?)
}

#[test]
fn files_are_copied_in_and_out() -> Result<()> {
    let Some(cluster) = start("copy", 1, Kind::Directory)? else { return Ok(()) };
    let here = tempfile::tempdir()?;
    let (source, back) = (here.path().join("source"), here.path().join("back"));
    fs::create_dir_all(source.join("a/b/empty"))?;
    fs::write(source.join("a/b/large"), vec![7; 5 << 20])?;
    for number in 0..300 {
        fs::write(source.join(format!("a/{number}")), format!("{number}"))?;
    }
    fs::write(source.join("a/script"), "#!/bin/sh\n")?;
    fs::set_permissions(source.join("a/script"), fs::Permissions::from_mode(0o4750))?;
    symlink("../../outside", source.join("a/link"))?;
    cluster.json(&["create", "shop"])?;
    let (from, to) = (source.to_str().context("UTF-8")?, back.to_str().context("UTF-8")?);
    let copied = cluster.json(&["cp", from, "shop:src"])?;
    assert_eq!((copied["files"].as_u64(), copied["symlinks"].as_u64()), (Some(302), Some(1)));
    same_content(&source, &cluster.path("shop")?.join("src"))?;
    cluster.json(&["cp", "shop:src", to])?;
    same_content(&source, &back)?;
    // Into a directory that is there, a copy comes to lie below it; what is in a directory, beside what is there.
    cluster.json(&["cp", &format!("{from}/a/script"), "shop:src"])?;
    cluster.json(&["cp", &format!("{from}/."), "shop:src"])?;
    let listed = cluster.json(&["ls", "shop:src"])?;
    let paths: Vec<_> = listed.as_array().context("an array")?.iter().map(|one| &one["path"]).collect();
    assert_eq!(paths, ["src/a", "src/script"]);
    cluster.json(&["cp", "shop:src/a/script", &format!("{to}/alone")])?;
    assert_eq!(fs::metadata(back.join("alone"))?.permissions().mode() & 0o7777, 0o4750);
    Ok(())
}

#[test]
fn documents_keep_their_fields() -> Result<()> {
    let Some(cluster) = start("contract", 1, Kind::Directory)? else { return Ok(()) };
    let source = tempfile::tempdir()?;
    let from = source.path().to_str().context("UTF-8")?;
    let volume = "id name node epoch version dirty mounted health detail quota_bytes used_bytes kind origin created \
                  last_sync session domain attributes branches path";
    let node =
        "node state session address zone volumes total_bytes used_bytes available_bytes last_heard checks";
    let entry = "entry version previous time role label head branch";
    let file = "path type size mode uid gid modified etag target";
    for (arguments, fields) in [
        (
            &["template", "create", "app", "--from", from][..],
            "name id version files bytes bytes_uploaded objects_written changed",
        ),
        (&["template", "ls"], "name id version created nodes"),
        (&["create", "shop", "--attribute", "team=blue", "--quota", "1Gi"], volume),
        (&["cp", from, "shop:src"], "files directories symlinks bytes skipped"),
        (&["describe", "shop"], volume),
        (&["ls"], volume),
        (&["ls", "shop:"], file),
        (&["snapshot", "shop"], entry),
        (&["log", "shop"], entry),
        (&["fork", "shop", "copy"], volume),
        (
            &["sync", "shop"],
            "id version entry changed bytes_uploaded objects_written files_changed full_scan took_ms epoch",
        ),
        (&["verify", "shop"], "id entry version files directories bytes packs whole damages"),
        (&["nodes"], node),
        (&["doctor"], "place name ok detail remedy"),
        (&["hibernate", "shop"], volume),
        (&["wake", "shop"], "id node epoch version taken_over last_durable"),
        (&["rm", "copy"], "id"),
    ] {
        let document = cluster.json(arguments)?;
        let object = document.as_array().map_or(&document, |list| &list[0]);
        let object = object.as_object().with_context(|| format!("{arguments:?}: {document}"))?;
        let missing: Vec<_> =
            fields.split_whitespace().filter(|field| !object.contains_key(*field)).collect();
        ensure!(missing.is_empty(), "{arguments:?} has no {missing:?}: {document}");
    }
    let described = cluster.json(&["describe", "shop"])?;
    assert_eq!(described["attributes"]["team"], "blue");
    assert_eq!(described["quota_bytes"], 1 << 30);
    Ok(())
}

#[test]
fn a_cluster_that_is_up_is_left_as_it_is_and_one_that_was_down_goes_on() -> Result<()> {
    let Some(cluster) = start("again", 1, Kind::Directory)? else { return Ok(()) };
    cluster.json(&["create", "shop"])?;
    cluster.write("shop:file", b"kept")?;
    let directory = cluster.directory().to_str().context("UTF-8")?;
    let before = cluster.json(&["dev", "status", "--dir", directory])?;
    let again = cluster.json(&["dev", "up", "--nodes", "1", "--dir", directory])?;
    assert_eq!(before, again, "the same processes");
    let down = cluster.json(&["dev", "down", "--dir", directory])?;
    assert_eq!((&down["purged"], &down["already"]), (&Value::Bool(false), &Value::Bool(false)));
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains(directory), "nothing stays mounted");
    cluster.json(&["dev", "up", "--nodes", "2", "--dir", directory])?;
    assert_eq!(cluster.cat("shop:file")?, b"kept");
    assert_eq!(cluster.json(&["nodes"])?.as_array().map(Vec::len), Some(2));
    Ok(())
}

/// Every kind of file that a tree can hold. A source that is no btrfs may not have ACLs; they are tried by cas.
fn fill(root: &Path, acl: bool) -> Result<()> {
    let script = r#"
        set -e; cd "$1"
        echo plain > plain; touch empty; : > "$(printf 'not\377utf8')"; mkdir -p dir/deep "$(printf 'd%.0s' $(seq 255))"
        ln plain dir/hard; ln -s ../plain dir/soft; ln -s /nowhere dir/dangling
        mkfifo fifo; mknod null c 1 3; mknod disk b 7 0
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
        truncate -s 40M sparse; printf x | dd of=sparse bs=1 seek=20000000 conv=notrunc status=none
        head -c 3000000 /dev/urandom > large
        for i in $(seq 200); do echo "$i" > "dir/deep/$i"; done
        chmod 4755 plain; chmod 1777 dir; chmod 000 empty; chown 1234:5678 large dir/deep
        setfattr -n user.colour -v blue plain; setfattr -n user.on -v dir dir; cp plain capable
        setcap cap_net_bind_service+ep capable
        touch -d '1969-12-31 23:59:58.123456789' dir/deep/1; touch -h -d '2001-02-03 04:05:06.5' dir/soft
        touch -d '2010-01-01 00:00:00.000000001' dir/deep dir
        [ "$2" = no ] || { setfacl -m u:1234:rw plain; setfacl -d -m g:99:rx dir; }
    "#;
    run(Command::new("bash").args(["-c", script, "fill"]).arg(root).arg(if acl { "yes" } else { "no" }))
}

fn what_was_is_read_and_brought_back_asleep_or_awake(kind: Kind) -> Result<()> {
    let Some(cluster) = start("past", 2, kind)? else { return Ok(()) };
    cluster.json(&["create", "shop"])?;
    cluster.write("shop:src/page.html", b"one")?;
    cluster.write("shop:src/deep/file", b"deep")?;
    let first = cluster.json(&["snapshot", "shop", "--label", "first"])?;
    let then = format!("shop@{}", &text(&first, "entry")?[..12]);
    cluster.write("shop:src/page.html", b"two")?;
    cluster.write("shop:new", b"new")?;
    let second = cluster.json(&["snapshot", "shop"])?;
    let now = format!("shop@{}", &text(&second, "version")?[..12]);

    for asleep in [false, true] {
        if asleep {
            cluster.json(&["hibernate", "shop"])?;
            assert_eq!(cluster.cat("shop:src/page.html")?, b"two", "what sleeps is read without waking it");
        }
        assert_eq!(cluster.cat(&format!("{then}:src/page.html"))?, b"one");
        assert_eq!(cluster.cat(&format!("{now}:src/page.html"))?, b"two");
        assert_eq!(cluster.refused(&["cat", &format!("{then}:new")])?.code, 3);
        let stat = cluster.json(&["stat", &format!("{then}:src/page.html")])?;
        assert_eq!((text(&stat, "etag")?.len(), stat["size"].as_u64()), (64, Some(3)));
        let listed = cluster.json(&["ls", &format!("{then}:"), "-r"])?;
        let tree = cluster.json(&["tree", &then])?;
        assert_eq!(listed, tree);
        assert_eq!(listed.as_array().context("an array")?.len(), 4);
        let diff = cluster.json(&["diff", &then, &now])?;
        let told: Vec<(&str, &str)> = diff
            .as_array()
            .context("an array")?
            .iter()
            .filter(|one| one["change"] != "metadata")
            .map(|one| (one["change"].as_str().unwrap_or_default(), one["path"].as_str().unwrap_or_default()))
            .collect();
        assert_eq!(told, [("added", "new"), ("modified", "src/page.html")]);
        assert_eq!(cluster.json(&["describe", "shop"])?["node"].is_null(), asleep, "nothing was woken");
    }

    cluster.json(&["wake", "shop"])?;
    let part = cluster.json(&["restore", &format!("{then}:src/page.html")])?;
    assert_eq!(part["replaced"], true);
    assert_eq!(cluster.cat("shop:src/page.html")?, b"one");
    assert_eq!(cluster.cat("shop:new")?, b"new", "the rest stays");
    let copy = cluster.json(&["restore", &format!("{then}:src"), "--to", "old/src"])?;
    assert_eq!((copy["replaced"].as_bool(), copy["files"].as_u64()), (Some(false), Some(2)));
    assert_eq!(cluster.cat("shop:old/src/deep/file")?, b"deep");
    // And out of the store, to this machine.
    let outside = cluster.directory().join("outside");
    cluster.json(&["cp", &format!("{then}:src/."), outside.to_str().context("UTF-8")?])?;
    assert_eq!(fs::read(outside.join("deep/file"))?, b"deep");

    // Nothing is written into the past, and what is not there is said.
    assert_eq!(cluster.refused(&["cp", "/etc/hostname", &format!("{then}:x")])?.code, 2);
    assert_eq!(cluster.refused(&["cat", "shop@ffffffffffff:x"])?.code, 3);
    assert_eq!(cluster.refused(&["restore", "shop:src/page.html"])?.code, 2);
    assert_eq!(cluster.refused(&["restore", &format!("{then}:none")])?.code, 3);
    let synced = cluster.json(&["sync", "shop"])?;
    assert_eq!(cluster.json(&["verify", "shop"])?["version"], synced["version"]);
    Ok(())
}

fn a_bundle_is_installed_and_stays_while_something_came_from_it(kind: Kind) -> Result<()> {
    let Some(cluster) = start("bundle", 2, kind)? else { return Ok(()) };
    cluster.json(&["create", "shop"])?;
    cluster.write("shop:page.html", b"one")?;
    let bundle = cluster.json(&["bundle", "publish", "shop", "--name", "shop-app"])?;
    assert_eq!(bundle["changed"], true);
    let again = cluster.json(&["bundle", "publish", "shop"])?;
    assert_eq!((&again["id"], &again["changed"]), (&bundle["id"], &Value::Bool(false)));
    cluster.json(&["rm", "shop"])?;
    let installed = cluster.json(&["bundle", "install", "shop-app", "mine"])?;
    assert_eq!((&installed["origin"]["volume"], &installed["version"]), (&bundle["id"], &bundle["version"]));
    assert_eq!(cluster.cat("mine:page.html")?, b"one");
    let id = text(&bundle, "id")?;
    assert_eq!(cluster.cat(&format!("{id}:page.html"))?, b"one", "a bundle is read without installing it");
    let refused = cluster.refused(&["bundle", "rm", "shop-app"])?;
    assert_eq!(refused.code, 3);

    let entry = cluster.json(&["branch", "set", "mine", "golden"])?;
    cluster.write("mine:page.html", b"two")?;
    cluster.json(&["sync", "mine"])?;
    let branches = cluster.json(&["branch", "ls", "mine"])?;
    assert_eq!((&branches[0]["name"], &branches[0]["entry"]), (&Value::from("golden"), &entry["entry"]));
    assert_eq!(cluster.refused(&["branch", "set", "mine", "golden"])?.code, 3);
    cluster.json(&["branch", "set", "mine", "golden", "--move"])?;
    cluster.json(&["branch", "rm", "mine", "golden"])?;
    cluster.json(&["pin", "set", "mine", "backup"])?;
    assert_eq!(cluster.json(&["pin", "ls", "mine"])?[0]["name"], "backup");
    cluster.json(&["pin", "rm", "mine", "backup"])?;

    let template = cluster.json(&["template", "publish", "mine", "base"])?;
    cluster.json(&["create", "third", "--template", "base"])?;
    assert_eq!(cluster.cat("third:page.html")?, b"two");
    assert_eq!(cluster.refused(&["template", "rm", "base"])?.code, 3);
    cluster.json(&["rm", "third"])?;
    cluster.json(&["template", "rm", "base"])?;
    assert_eq!(template[0]["name"], "base");
    cluster.json(&["rm", "mine"])?;
    cluster.json(&["bundle", "rm", "shop-app"])?;
    assert_eq!(cluster.json(&["bundle", "ls"])?, Value::Array(Vec::new()));
    Ok(())
}
