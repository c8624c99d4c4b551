//! Pools on real loop files: what is accepted, what is refused and with which words.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use btrfs::{Dir, subvolume};
use common::{TestPool, has_btrfs, sh};
use csi::error::Error;
use csi::pool::Pool;
use types::{Classify as _, Kind};

#[tokio::test]
async fn a_pool_is_made_once_and_keeps_its_id() {
    if !has_btrfs() {
        return;
    }
    let test = TestPool::new("node-a");
    let first = Pool::open(test.config()).await.unwrap();
    let id = first.id();
    assert!(first.has_quota() && first.is_noatime());
    drop(first);
    // The mount of an earlier life is found again.
    let second = Pool::open(test.config()).await.unwrap();
    assert_eq!(second.id(), id);
    drop(second);
    sh(&format!("umount {}", test.mount().display()));
    let third = Pool::open(test.config()).await.unwrap();
    assert_eq!(third.id(), id);
    assert_eq!(common::names(third.path()), ["lock", "pool.json", "staging", "templates", "volumes"]);
}

#[tokio::test]
async fn a_second_daemon_on_one_pool_is_refused() {
    if !has_btrfs() {
        return;
    }
    let test = TestPool::new("node-a");
    let first = Pool::open(test.config()).await.unwrap();
    let error = Pool::open(test.config()).await.unwrap_err();
    assert!(matches!(error, Error::PoolInUse { .. }), "{error}");
    // By the mount point as well.
    let mut config = test.config();
    config.pool = test.mount();
    config.pool_size = None;
    let error = Pool::open(config.clone()).await.unwrap_err();
    assert!(matches!(error, Error::PoolInUse { .. }), "{error}");
    drop(first);
    assert!(Pool::open(config).await.is_ok());
}

#[tokio::test]
async fn what_is_not_btrfs_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let test = TestPool::new("node-a");
    let mut config = test.config();
    config.pool = directory.path().to_owned();
    config.pool_size = None;
    let error = Pool::open(config).await.unwrap_err();
    assert!(common::names(directory.path()).is_empty());
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(error.to_string().contains("--pool-size"), "{error}");
    let mut config = test.config();
    config.pool_size = Some(types::ByteSize(1 << 20));
    let error = Pool::open(config).await.unwrap_err();
    assert!(matches!(error, Error::PoolTooSmall { .. }), "{error}");
    assert_eq!(common::names(test.dir.path()), [""; 0], "nothing half-made is left");
}

#[tokio::test]
async fn a_device_with_something_else_on_it_is_not_formatted() {
    if !has_btrfs() {
        return;
    }
    let test = TestPool::new("node-a");
    let file = test.dir.path().join("disk");
    sh(&format!("truncate -s 512M {0} && mkfs.ext4 -q -F {0}", file.display()));
    let mut config = test.config();
    config.pool_size = None;
    config.device = Some(file.clone());
    let error = Pool::open(config).await.unwrap_err();
    assert!(matches!(error, Error::NotBtrfs { .. }), "{error}");
    assert!(error.to_string().contains("ext4"), "{error}");
}

#[tokio::test]
async fn a_read_only_pool_is_refused() {
    if !has_btrfs() {
        return;
    }
    let test = TestPool::new("node-a");
    drop(Pool::open(test.config()).await.unwrap());
    sh(&format!("mount -o remount,ro {}", test.mount().display()));
    let error = Pool::open(test.config()).await.unwrap_err();
    assert!(matches!(error, Error::PoolReadOnly { .. }), "{error}");
    sh(&format!("mount -o remount,rw {}", test.mount().display()));
}

#[tokio::test]
async fn a_full_pool_takes_nothing_new_and_says_so() {
    if !has_btrfs() {
        return;
    }
    let test = TestPool::sized("node-a", "300Mi");
    let pool = Pool::open(test.config()).await.unwrap();
    pool.require_room().await.unwrap();
    // Random bytes: zeros would be compressed away.
    sh(&format!(
        "head -c 400M /dev/urandom > {0}/fill 2>/dev/null || true; sync -f {0}/fill",
        test.mount().display()
    ));
    let error = pool.require_room().await.unwrap_err();
    assert_eq!(error.kind(), Kind::ResourceExhausted);
    assert!(error.to_string().contains("data space"), "{error}");
    std::fs::remove_file(test.mount().join("fill")).unwrap();
    pool.commit_with_data().await.unwrap();
    pool.require_room().await.unwrap();
}

#[tokio::test]
async fn staging_is_swept_with_the_subvolumes_in_it() {
    if !has_btrfs() {
        return;
    }
    let test = TestPool::new("node-a");
    let pool = Pool::open(test.config()).await.unwrap();
    pool.run(|root| {
        let staging = root.open_dir("staging")?;
        let inside = staging.create_dir("half", 0o755)?;
        let outer = inside.create_subvolume("data", None)?;
        drop(outer.create_subvolume("nested", None)?);
        drop(staging.create_subvolume("other", None)?);
        subvolume::set_readonly(&outer, true)?;
        Ok(())
    })
    .await
    .unwrap();
    drop(pool);
    let pool = Pool::open(test.config()).await.unwrap();
    assert!(common::names(pool.path().join("staging")).is_empty());
}

#[tokio::test]
async fn a_clone_takes_nested_subvolumes_and_times_along() {
    if !has_btrfs() {
        return;
    }
    let test = TestPool::new("node-a");
    let pool = Pool::open(test.config()).await.unwrap();
    let root = pool.path().to_owned();
    pool.run(|root| {
        let source = root.create_subvolume("source", None)?;
        let sub = source.create_dir("dir", 0o755)?;
        let nested = sub.create_subvolume("nested", None)?;
        drop(nested.create_subvolume("deeper", None)?);
        Ok(())
    })
    .await
    .unwrap();
    std::fs::write(root.join("source/dir/nested/deeper/file"), "x").unwrap();
    std::fs::write(root.join("source/dir/nested/file"), "y").unwrap();
    sh(&format!("touch -d '2001-01-01' {0}/source/dir/nested {0}/source/dir {0}/source", root.display()));
    let marks = pool
        .run(|root| {
            let source = root.open_dir("source")?;
            Ok(csi::clone::clone(&source, root, "copy", true, None)?.marks)
        })
        .await
        .unwrap();
    assert_eq!(marks.len(), 3);
    assert_eq!(common::differences(&root.join("source"), &root.join("copy")), "");
    let copy = Dir::open(root.join("copy")).unwrap();
    assert!(subvolume::is_readonly(&copy).unwrap());
    assert!(subvolume::is_readonly(&copy.open_beneath("dir/nested/deeper").unwrap()).unwrap());
}

#[tokio::test]
async fn many_callers_share_few_commits() {
    if !has_btrfs() {
        return;
    }
    let test = TestPool::new("node-a");
    let pool = Pool::open(test.config()).await.unwrap();
    let generation = |pool: Pool| async move {
        pool.run(|root| Ok(btrfs::space::filesystem(root)?.generation)).await.unwrap()
    };
    let before = generation(pool.clone()).await;
    let callers = (0..100).map(|n| {
        let pool = pool.clone();
        tokio::spawn(async move {
            pool.run(move |root| Ok(root.create_dir(format!("d{n}"), 0o755).map(drop)?)).await.unwrap();
            pool.commit().await.unwrap();
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    let after = generation(pool.clone()).await;
    assert!(after - before <= 30, "{} commits for 100 callers", after - before);
}
