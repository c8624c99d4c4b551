//! The day on which everything but the packs is lost: records, sessions, names, the store's own object, the hub's memory
//! and the nodes. `sailctl reindex` finds what was stored, and takes it out.

use anyhow::{Context as _, Result};
use tests::cluster::Cluster;
use tests::same::{keep, same};

#[test]
fn what_was_durable_comes_back_from_packs_alone() -> Result<()> {
    let Some(cluster) = Cluster::start("packs", 1)? else { return Ok(()) };
    cluster.json(&["create", "shop"])?;
    for number in 0..40 {
        cluster.write(
            &format!("shop:src/{number}"),
            format!("file {number}\n").repeat(50 * number).as_bytes(),
        )?;
    }
    let first = version(&cluster.json(&["sync", "shop"])?)?;
    let copies = tempfile::tempdir()?;
    let (before, after) = (copies.path().join("before"), copies.path().join("after"));
    keep(&cluster.path("shop")?, &before)?;
    cluster.write("shop:src/7", b"changed")?;
    cluster.write("shop:large", &vec![7; 3 << 20])?;
    let second = version(&cluster.json(&["sync", "shop"])?)?;
    keep(&cluster.path("shop")?, &after)?;
    cluster.kill("node-1")?;
    cluster.kill("hub")?;

    let store = cluster.directory().join("store");
    for entry in std::fs::read_dir(&store)? {
        let path = entry?.path();
        // The mark says that it is a directory store, and nothing of what is in it.
        match path.file_name().and_then(|name| name.to_str()) {
            Some("pack" | ".opensail-store") => {}
            Some(_) | None if path.is_dir() => std::fs::remove_dir_all(path)?,
            Some(_) | None => std::fs::remove_file(path)?,
        }
    }
    let refused = cluster.refused(&["verify", "shop"])?;
    assert_ne!(refused.code, 0, "nothing else knows of it any more");

    let found = cluster.json(&["reindex"])?;
    let versions = found["versions"].as_array().context("versions")?;
    for wanted in [&first, &second] {
        let found = versions.iter().find(|found| found["version"] == **wanted).context("a version")?;
        assert_eq!(found["missing"], serde_json::json!([]));
    }
    assert_eq!(found["damages"], serde_json::json!([]));
    for (wanted, copy) in [(&first, &before), (&second, &after)] {
        let target = tempfile::tempdir()?;
        let place = target.path().to_str().context("a path of text")?;
        // Its first digits are enough.
        let restored = cluster.json(&["reindex", &wanted[..16], place])?;
        assert_eq!(restored["lost"], serde_json::json!([]));
        same(copy, target.path())?;
    }
    let refused = cluster.refused(&["reindex", "0123456789abcdef", "/tmp/nowhere"])?;
    assert!(refused.words.contains("no pack holds"), "{refused:?}");
    Ok(())
}

fn version(synced: &serde_json::Value) -> Result<String> {
    Ok(synced["version"].as_str().context("a version")?.to_owned())
}
