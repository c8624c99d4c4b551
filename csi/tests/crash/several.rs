//! What is more than one step on one volume: settings, a group that is cut and sealed, a repair.

use std::sync::Arc;

use cas::RecordKind;
use cas::{Cache, Reader};
use csi::cut::{Member, SealedGroup};
use csi::error::Error;
use csi::node::Node;
use csi::restore::Wanted;
use csi::settings::SettingsKeeper;
use csi::sync::SyncRequest;
use futures::FutureExt as _;

use crate::common::{fork, has_btrfs, head, id, live, request};
use crate::world::World;

const DIRECTORIES: [&str; 4] = ["", "src", "src/deep", "src/deep/er"];

/// How a directory compresses, as btrfs tells it.
fn compression(node: &Node, name: &str, directory: &str) -> String {
    let path = live(node, name).join(directory);
    let output =
        std::process::Command::new("btrfs").args(["property", "get"]).arg(&path).arg("compression").output();
    String::from_utf8(output.unwrap().stdout).unwrap().trim().to_owned()
}

#[test]
fn a_kill_while_settings_are_applied_is_made_good_by_the_next_look() {
    if !has_btrfs() {
        return;
    }
    World::new().enumerate(
        "settings",
        |node, name| {
            async move {
                let wanted =
                    [(proto::settings::COMPRESSION, "zstd"), (proto::settings::QUOTA_CLASS, "burst")];
                let wanted = wanted.map(|(key, value)| (key.to_owned(), Some(value.to_owned())));
                let changes = wanted.into_iter().collect();
                cas::lifecycle::set_attributes(node.store(), &id(&name), &changes).await.unwrap();
            }
            .boxed()
        },
        |node, name| {
            async move {
                let volume = node.volumes().get(&id(&name)).unwrap();
                drop(SettingsKeeper::new(node).apply(&volume).await);
            }
            .boxed()
        },
        |_, node, name| {
            async move {
                let volume = node.volumes().get(&id(&name)).unwrap();
                SettingsKeeper::new(Arc::clone(&node)).apply(&volume).await.unwrap();
                assert_eq!(volume.facts().about.class, csi::quota_class::QuotaClass::Burst);
                for directory in DIRECTORIES {
                    assert_eq!(
                        compression(&node, &name, directory),
                        "compression=zstd",
                        "{name}: {directory}"
                    );
                }
                assert_eq!(std::fs::read(live(&node, &name).join("src/deep/er/big")).unwrap().len(), 3 << 20);
                node.sync(&id(&name), SyncRequest::plain()).await.unwrap();
            }
            .boxed()
        },
    );
}

fn members(name: &str) -> Vec<Member> {
    let member = |volume: String| Member {
        sealed: id(&format!("{volume}-s")),
        request: format!("seal-{volume}").parse().unwrap(),
        volume: id(&volume),
        attributes: Default::default(),
    };
    vec![member(name.to_owned()), member(format!("{name}-b"))]
}

/// Where the machine is so busy that no two snapshots share a commit, the caller comes back.
async fn seal_group(node: &Arc<Node>, name: &str) -> Result<SealedGroup, Error> {
    loop {
        match Box::pin(node.seal_group(members(name), RecordKind::Snapshot)).await {
            Err(Error::NoCut { .. }) => {}
            sealed => return sealed,
        }
    }
}

#[test]
fn a_kill_while_a_group_is_sealed_makes_all_members_of_one_cut_or_none() {
    if !has_btrfs() {
        return;
    }
    World::new().enumerate(
        "group",
        |node, name| {
            async move {
                let other = format!("{name}-b");
                node.create(request(&other)).await.unwrap();
                std::fs::write(live(&node, &other).join("other"), &name).unwrap();
            }
            .boxed()
        },
        |node, name| async move { drop(seal_group(&node, &name).await) }.boxed(),
        |world, node, name| {
            async move {
                // What is written after the cut is in no member of it, and the retry finds a cut that was begun.
                let sealed = |which: &str| id(&format!("{name}{which}-s"));
                let begun = cas::record::read(node.store(), &sealed("")).await.unwrap().is_some();
                let other = format!("{name}-b");
                std::fs::write(live(&node, &other).join("later"), "x").unwrap();
                let group = seal_group(&node, &name).await.unwrap();
                assert_eq!(group.transaction.is_none(), begun, "{name}: begun and cut again, or neither");
                let again = seal_group(&node, &name).await.unwrap();
                assert_eq!(again.versions, group.versions, "{name}");
                for (which, version) in [("", group.versions[0]), ("-b", group.versions[1])] {
                    let new = format!("{name}{which}-fork");
                    node.create(fork(&new, sealed(which).as_str(), version)).await.unwrap();
                }
                world.assert_same(&node, &format!("{name}-fork"));
                let new = live(&node, &format!("{name}-b-fork"));
                assert_eq!(std::fs::read_to_string(new.join("other")).unwrap(), name);
                assert_eq!(new.join("later").exists(), !begun, "{name}: one member is of another moment");
            }
            .boxed()
        },
    );
}

#[test]
fn a_kill_inside_a_repair_is_made_good_by_the_next_one() {
    if !has_btrfs() {
        return;
    }
    World::new().enumerate(
        "repair",
        |node, name| {
            async move {
                // Nobody else has these bytes.
                std::fs::write(live(&node, &name).join("own"), name.repeat(20_000)).unwrap();
                node.sync(&id(&name), SyncRequest::plain()).await.unwrap();
                let tree = node.volumes().get(&id(&name)).unwrap().facts().head.unwrap().tree;
                let key = format!("pack/{}", tree.manifest.pack).parse().unwrap();
                node.store().objects().delete(&key).await.unwrap();
            }
            .boxed()
        },
        |node, name| async move { drop(node.repair(&id(&name)).await) }.boxed(),
        |_, node, name| {
            async move {
                drop(node.repair(&id(&name)).await.unwrap());
                let volume = node.volumes().get(&id(&name)).unwrap();
                let version = head(&volume);
                let record = cas::record::get(node.store(), &id(&name)).await.unwrap().value;
                let entry = record.find_version(&version).unwrap();
                let tree = entry.heads.values().next().unwrap();
                let report =
                    Reader::new(node.store().clone(), Cache::new(1 << 20)).verify(tree).await.unwrap();
                assert!(report.is_whole(), "{name}: {:?}", report.damages);
                // What comes after is built on what was put back.
                std::fs::write(live(&node, &name).join("later"), "x").unwrap();
                let synced = node.sync(&id(&name), SyncRequest::plain()).await.unwrap();
                assert!(synced.changed, "{name}");
            }
            .boxed()
        },
    );
}

#[test]
fn a_kill_inside_a_restore_to_another_volumes_version_keeps_the_owner() {
    if !has_btrfs() {
        return;
    }
    World::new().enumerate(
        "origin",
        |node, name| {
            async move {
                node.sync(&id(&name), SyncRequest::plain()).await.unwrap();
                let version = head(&node.volumes().get(&id(&name)).unwrap());
                let new = format!("{name}-fork");
                node.create(fork(&new, &name, version)).await.unwrap();
                std::fs::write(live(&node, &new).join("own"), "in the fork").unwrap();
            }
            .boxed()
        },
        |node, name| {
            async move {
                // The snapshot of that version in the pool is the source's.
                let version = head(&node.volumes().get(&id(&name)).unwrap());
                drop(node.restore(&id(&format!("{name}-fork")), Wanted::Version(version)).await);
            }
            .boxed()
        },
        |world, node, name| {
            async move {
                let new = format!("{name}-fork");
                let volume = node.volumes().get(&id(&new)).unwrap();
                volume.claim(node.session_id().unwrap()).unwrap();
                let record = cas::record::get(node.store(), &id(&new)).await.unwrap().value;
                assert_eq!(
                    record.epoch,
                    types::Epoch(1),
                    "{name}: the copy was taken for one of another time"
                );
                let version = head(&node.volumes().get(&id(&name)).unwrap());
                node.restore(&id(&new), Wanted::Version(version)).await.unwrap();
                world.assert_same(&node, &new);
                world.assert_durable(&node, &new).await;
            }
            .boxed()
        },
    );
}
