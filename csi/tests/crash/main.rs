//! Dying at every call to the store, before and after it happens, and after every step on the pool, in each operation;
//! then a new life on the same pool. Nothing that was answered is lost, nothing half-made is left, and the same request
//! again ends well. Each test prints the places where it died; [`world::STEPS`] says which steps must be among them, and that
//! none exists that no operation dies at. Operations on records alone are in `cas/tests/crashes.rs`.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::drop_non_drop, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod several;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use cas::objects::{CallKind, Fault};
use common::{TestPool, fork, has_btrfs, head, id, live, names, request, seal};
use csi::deaths::Point;
use csi::node::Node;
use csi::restore::Wanted;
use csi::seal::SealRequest;
use csi::sync::SyncRequest;
use futures::FutureExt as _;
use types::Change;
use world::{Check, Operation, STEPS, World, life, nothing};

#[test]
fn no_step_on_the_pool_is_there_at_which_no_operation_dies() {
    let mut of = BTreeMap::new();
    for (what, steps) in STEPS {
        for step in *steps {
            of.entry(*step).or_insert_with(Vec::new).push(*what);
        }
    }
    let never: Vec<_> = Point::ALL.iter().filter(|point| !of.contains_key(point)).collect();
    assert!(never.is_empty(), "{never:?}");
    eprintln!("{} of {} points are in operations that die at them", of.len(), Point::ALL.len());
}

#[test]
fn a_kill_inside_a_sync_loses_nothing() {
    if !has_btrfs() {
        return;
    }
    World::new().enumerate(
        "sync",
        nothing,
        |node, name| async move { drop(node.sync(&id(&name), SyncRequest::plain()).await) }.boxed(),
        |world, node, name| {
            async move {
                world.assert_same(&node, &name);
                node.sync(&id(&name), SyncRequest::plain()).await.unwrap();
                world.assert_durable(&node, &name).await;
            }
            .boxed()
        },
    );
}

#[test]
fn a_write_of_a_killed_process_that_arrives_late_takes_nothing_from_the_next_life() {
    if !has_btrfs() {
        return;
    }
    let world = World::new();
    let name = "vol-1".to_owned();
    life(async {
        let node = world.pool.start(&world.store).await;
        world.prepare(&node, &name).await;
        // The publication is on its way when the process is killed.
        let mut sent = false;
        world.faults.plan(move |call| {
            if sent {
                return Fault::DieBefore;
            }
            sent = call.kind == CallKind::Put && call.key.starts_with("vol/");
            if sent { Fault::Held } else { Fault::None }
        });
        let syncing = Arc::clone(&node);
        let work = tokio::spawn(async move { drop(syncing.sync(&id("vol-1"), SyncRequest::plain()).await) });
        assert!(world.faults.until_death(work).await.is_none());
    });
    world.faults.heal();
    world.faults.revive();
    life(async {
        let node = world.pool.start(&world.store).await;
        std::fs::write(live(&node, &name).join("acknowledged"), "in the next life").unwrap();
        assert_eq!(world.faults.deliver_held().await.len(), 1);
        world.remember(&live(&node, &name));
        node.sync(&id(&name), SyncRequest::plain()).await.unwrap();
        world.assert_durable(&node, &name).await;
        let records = cas::record::list(&world.store).await.unwrap();
        assert!(records.iter().all(|record| record.value.kind == cas::RecordKind::Volume), "no orphan");
    });
}

/// Kills a node while a write of a record that `operation` sends is on its way, writes in the next life, lets the write
/// arrive, and has another node take the volume where it can.
fn arrives_late(operation: Operation, sent: u64) {
    let world = World::new();
    let other = TestPool::new("node-b");
    let name = "vol-1".to_owned();
    life(async {
        let node = world.pool.start(&world.store).await;
        world.prepare(&node, &name).await;
        node.sync(&id(&name), SyncRequest::plain()).await.unwrap();
        let mut writes = 0;
        world.faults.plan(move |call| {
            if writes > sent {
                return Fault::DieBefore;
            }
            writes += u64::from(call.kind == CallKind::Put && call.key.starts_with("vol/"));
            if writes > sent { Fault::Held } else { Fault::None }
        });
        let work = tokio::spawn(operation(Arc::clone(&node), name.clone()));
        assert!(world.faults.until_death(work).await.is_none());
    });
    world.faults.heal();
    world.faults.revive();
    life(async {
        let node = world.pool.start(&world.store).await;
        std::fs::write(live(&node, &name).join("acknowledged"), "in the next life").unwrap();
        world.remember(&live(&node, &name));
        assert_eq!(world.faults.deliver_held().await.len(), 1);
        let there = other.start(&world.store).await;
        let taken = there.acquire(&id(&name), false).await;
        assert!(taken.is_err(), "it was taken while its owner had something that nobody else had");
        node.sync(&id(&name), SyncRequest::plain()).await.unwrap();
        world.assert_durable(&node, &name).await;
        let records = cas::record::list(&world.store).await.unwrap();
        assert!(records.iter().all(|record| record.value.kind == cas::RecordKind::Volume), "no orphan");
    });
}

#[test]
fn a_release_of_a_killed_process_that_arrives_late_takes_the_volume_from_nobody() {
    if has_btrfs() {
        arrives_late(|node, name| async move { drop(node.release(&id(&name), false).await) }.boxed(), 0);
    }
}

#[test]
fn a_restore_of_a_killed_process_that_arrives_late_is_no_head_that_nobody_knows() {
    if has_btrfs() {
        arrives_late(
            |node, name| {
                async move {
                    let record = cas::record::get(node.store(), &id(&name)).await.unwrap().value;
                    drop(node.restore(&id(&name), Wanted::Entry(record.entries[1].id)).await);
                }
                .boxed()
            },
            0,
        );
    }
}

#[test]
fn a_kill_inside_a_create_or_fork_leaves_nothing_half_made() {
    if !has_btrfs() {
        return;
    }
    let world = World::new();
    world.enumerate(
        "create",
        nothing,
        |node, name| async move { drop(node.create(request(&format!("{name}-new"))).await) }.boxed(),
        |_, node, name| {
            async move {
                let new = format!("{name}-new");
                node.create(request(&new)).await.unwrap();
                std::fs::write(live(&node, &new).join("file"), "x").unwrap();
                node.sync(&id(&new), SyncRequest::plain()).await.unwrap();
                assert!(!node.create(request(&new)).await.unwrap().is_made());
            }
            .boxed()
        },
    );
    world.enumerate(
        "fork",
        |node, name| async move { drop(node.sync(&id(&name), SyncRequest::plain()).await.unwrap()) }.boxed(),
        |node, name| {
            async move {
                let version = head(&node.volumes().get(&id(&name)).unwrap());
                drop(node.create(fork(&format!("{name}-fork"), &name, version)).await);
            }
            .boxed()
        },
        |world, node, name| {
            async move {
                let version = head(&node.volumes().get(&id(&name)).unwrap());
                let new = format!("{name}-fork");
                node.create(fork(&new, &name, version)).await.unwrap();
                world.assert_same(&node, &new);
                world.assert_durable(&node, &new).await;
            }
            .boxed()
        },
    );
}

#[test]
fn a_kill_inside_a_release_or_acquire_keeps_one_owner_and_every_byte() {
    if !has_btrfs() {
        return;
    }
    let world = World::new();
    world.enumerate(
        "release",
        nothing,
        |node, name| async move { drop(node.release(&id(&name), false).await) }.boxed(),
        |world, node, name| {
            async move {
                node.acquire(&id(&name), false).await.unwrap();
                world.assert_same(&node, &name);
                world.assert_durable(&node, &name).await;
            }
            .boxed()
        },
    );
    let acquire: Operation = |node, name| async move { drop(node.acquire(&id(&name), false).await) }.boxed();
    let is_the_same: Check = |world, node, name| {
        async move {
            node.acquire(&id(&name), false).await.unwrap();
            world.assert_same(&node, &name);
        }
        .boxed()
    };
    // From the store, and from the snapshot that the release left.
    let all: Operation =
        |node, name| async move { drop(node.release(&id(&name), false).await.unwrap()) }.boxed();
    let but_a_copy: Operation =
        |node, name| async move { drop(node.release(&id(&name), true).await.unwrap()) }.boxed();
    world.enumerate("acquire", all, acquire, is_the_same);
    world.enumerate("reacquire", but_a_copy, acquire, is_the_same);
}

#[test]
fn a_kill_inside_a_restore_ends_in_one_of_the_two_trees() {
    if !has_btrfs() {
        return;
    }
    async fn first(node: &Node, name: &str) -> Wanted {
        let record = cas::record::get(node.store(), &id(name)).await.unwrap().value;
        Wanted::Entry(record.entries[1].id)
    }
    World::new().enumerate(
        "restore",
        |node, name| {
            async move {
                node.sync(&id(&name), SyncRequest::plain()).await.unwrap();
                // The newest state is not durable yet: a restore has to make it so first.
                std::fs::write(live(&node, &name).join("late"), "x").unwrap();
            }
            .boxed()
        },
        |node, name| {
            async move {
                let wanted = first(&node, &name).await;
                drop(node.restore(&id(&name), wanted).await);
            }
            .boxed()
        },
        |_, node, name| {
            async move {
                let path = live(&node, &name);
                let readme = std::fs::read_to_string(path.join("README")).unwrap();
                assert_eq!(readme == "hello\n", !path.join("late").exists(), "one of the two, not a mixture");
                let wanted = first(&node, &name).await;
                let restored = node.restore(&id(&name), wanted).await.unwrap();
                assert_eq!(std::fs::read_to_string(path.join("README")).unwrap(), "hello\n");
                assert!(path.join("src/deep/file-7").exists());
                // What was there before can be had back.
                let record = cas::record::get(node.store(), &id(&name)).await.unwrap().value;
                let mut found = false;
                for branch in record.branches.values() {
                    let tree = record.entry(branch).unwrap().heads.values().next().unwrap();
                    let late = types::VolumePath::parse("late").unwrap();
                    found |= node.reader().stat(tree, &late).await.unwrap().is_some();
                }
                assert!(found, "{restored:?}");
                node.sync(&id(&name), SyncRequest::plain()).await.unwrap();
            }
            .boxed()
        },
    );
}

#[test]
fn a_kill_inside_a_delete_is_finished_by_the_next_one() {
    if !has_btrfs() {
        return;
    }
    World::new().enumerate(
        "delete",
        nothing,
        |node, name| async move { drop(node.delete(&id(&name)).await) }.boxed(),
        |_, node, name| {
            async move {
                node.delete(&id(&name)).await.unwrap();
                assert_eq!(node.delete(&id(&name)).await.unwrap(), Change::Already(()));
                let left = names(node.pool().path().join("volumes").join(&name));
                assert!(left.is_empty(), "{name}: {left:?}");
            }
            .boxed()
        },
    );
}

/// The record that sealing makes.
fn sealed(name: &str, kind: cas::RecordKind) -> SealRequest {
    seal(name, &format!("{name}-s"), kind)
}

#[test]
fn a_kill_inside_a_seal_makes_one_record_or_none() {
    if !has_btrfs() {
        return;
    }
    World::new().enumerate(
        "seal",
        |node, name| async move { drop(node.sync(&id(&name), SyncRequest::plain()).await.unwrap()) }.boxed(),
        |node, name| async move { drop(node.seal(sealed(&name, cas::RecordKind::Snapshot)).await) }.boxed(),
        |world, node, name| {
            async move {
                let version = node.seal(sealed(&name, cas::RecordKind::Snapshot)).await.unwrap().into_inner();
                let again = node.seal(sealed(&name, cas::RecordKind::Snapshot)).await.unwrap();
                assert_eq!(again, Change::Already(version));
                // What was sealed outlives what it was made of.
                node.delete(&id(&name)).await.unwrap();
                let new = format!("{name}-fork");
                node.create(fork(&new, &format!("{name}-s"), version)).await.unwrap();
                world.assert_same(&node, &new);
            }
            .boxed()
        },
    );
}

#[test]
fn a_kill_while_a_template_or_a_head_is_brought_here_leaves_nothing_half_made() {
    if !has_btrfs() {
        return;
    }
    let world = World::new();
    world.enumerate(
        "template",
        |node, name| {
            async move {
                node.seal(sealed(&name, cas::RecordKind::Template)).await.unwrap();
            }
            .boxed()
        },
        |node, name| async move { drop(node.ensure_template(&id(&format!("{name}-s"))).await) }.boxed(),
        |world, node, name| {
            async move {
                let template = format!("{name}-s");
                let version = node.ensure_template(&id(&template)).await.unwrap();
                let new = format!("{name}-new");
                node.create(fork(&new, &template, version)).await.unwrap();
                world.assert_same(&node, &new);
            }
            .boxed()
        },
    );
    world.enumerate(
        "prefetch",
        |node, name| async move { drop(node.release(&id(&name), false).await.unwrap()) }.boxed(),
        |node, name| async move { drop(node.prefetch(&id(&name)).await) }.boxed(),
        |world, node, name| {
            async move {
                node.prefetch(&id(&name)).await.unwrap();
                node.acquire(&id(&name), false).await.unwrap();
                world.assert_same(&node, &name);
            }
            .boxed()
        },
    );
}

#[test]
fn a_kill_inside_a_sync_of_nested_subvolumes_keeps_their_files() {
    if !has_btrfs() {
        return;
    }
    World::new().enumerate(
        "nested",
        |node, name| {
            async move {
                let path = live(&node, &name).join("inner");
                let made =
                    std::process::Command::new("btrfs").args(["subvolume", "create"]).arg(&path).output();
                assert!(made.unwrap().status.success());
                std::fs::write(path.join("file"), "in a nested subvolume").unwrap();
            }
            .boxed()
        },
        |node, name| async move { drop(node.sync(&id(&name), SyncRequest::plain()).await) }.boxed(),
        |_, node, name| {
            async move {
                let file = || std::fs::read_to_string(live(&node, &name).join("inner/file")).unwrap();
                assert_eq!(file(), "in a nested subvolume");
                node.sync(&id(&name), SyncRequest::plain()).await.unwrap();
                node.release(&id(&name), false).await.unwrap();
                node.acquire(&id(&name), false).await.unwrap();
                assert_eq!(file(), "in a nested subvolume");
            }
            .boxed()
        },
    );
}

#[test]
fn a_kill_while_a_limit_is_set_leaves_the_limit_that_the_record_says() {
    if !has_btrfs() {
        return;
    }
    World::new().enumerate(
        "quota",
        nothing,
        |node, name| async move { drop(node.set_quota(&id(&name), Some(512 << 20)).await) }.boxed(),
        |world, node, name| {
            async move {
                world.assert_same(&node, &name);
                let volume = node.set_quota(&id(&name), Some(256 << 20)).await.unwrap();
                assert_eq!(volume.facts().about.limit_bytes, Some(256 << 20));
                world.assert_durable(&node, &name).await;
                let again = node.volumes().get(&id(&name)).unwrap();
                assert_eq!(again.facts().about.limit_bytes, Some(256 << 20));
            }
            .boxed()
        },
    );
}
