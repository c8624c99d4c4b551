//! The filesystem under a pool: its loop file, its space, what it can do, what survives, and the cleaner.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::time::Duration;

use btrfs::scratch::ScratchPool;
use btrfs::{Errno, Error, cleaner, commit, encoded, features, filesystem, loopdev, send, space, subvolume};

macro_rules! pool {
    ($name:literal) => {
        match ScratchPool::or_skip($name) {
            Some(pool) => pool,
            None => return,
        }
    };
}

#[test]
fn a_pool_file_is_made_once_and_mounted_again() {
    let pool = pool!("a_pool_file_is_made_once_and_mounted_again");
    assert!(!loopdev::make_pool_file(&pool.file(), 1 << 30, "x").unwrap(), "the second time it is there");
    assert_eq!(fs::metadata(pool.file()).unwrap().len(), 2 << 30);
    pool.root().unwrap().create_subvolume("kept", None).unwrap();
    for _ in 0..5 {
        pool.unmount().unwrap();
        pool.mount().unwrap();
    }
    assert!(pool.root().unwrap().exists("kept").unwrap());
    pool.unmount().unwrap();
    // The device lets its file go by itself.
    for _ in 0..100 {
        if loopdev::attached(&pool.file()).unwrap().is_none() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("still attached");
}

#[test]
fn a_file_gets_one_device_only() {
    let pool = pool!("a_file_gets_one_device_only");
    let device = loopdev::attached(&pool.file()).unwrap().expect("it is mounted");
    assert!(device.starts_with("/dev"));
    let error = loopdev::LoopDevice::attach(&pool.file()).unwrap_err();
    assert!(error.is(Errno::EBUSY) && error.to_string().contains("/dev/loop"), "{error}");
}

#[test]
fn many_devices_at_once_do_not_take_each_others() {
    let pool = pool!("many_devices_at_once_do_not_take_each_others");
    let files: Vec<_> = (0..8).map(|n| pool.file().with_file_name(format!("f{n}"))).collect();
    for file in &files {
        loopdev::create_backing_file(file, 1 << 20).unwrap();
    }
    let paths: std::collections::BTreeSet<_> = std::thread::scope(|scope| {
        let attached: Vec<_> =
            files.iter().map(|file| scope.spawn(|| loopdev::LoopDevice::attach(file).unwrap())).collect();
        let devices: Vec<_> = attached.into_iter().map(|thread| thread.join().unwrap()).collect();
        devices.iter().map(|device| device.path().to_owned()).collect()
    });
    assert_eq!(paths.len(), 8);
    let device = loopdev::LoopDevice::attach(&files[0]).unwrap();
    device.detach().unwrap();
}

#[test]
fn a_filesystem_is_not_made_over_another() {
    let pool = pool!("a_filesystem_is_not_made_over_another");
    pool.unmount().unwrap();
    let error = filesystem::format(&pool.file(), "again").unwrap_err();
    assert!(matches!(&error, Error::Tool { said, .. } if said.contains("exist")), "{error}");
    let small = pool.file().with_file_name("small");
    let error = loopdev::make_pool_file(&small, 1 << 20, "small").unwrap_err();
    assert!(matches!(error, Error::Tool { .. }), "{error}");
    assert!(!small.exists() && !small.with_file_name("small.new").exists(), "nothing half-made is left");
}

#[test]
fn what_dying_half_way_left_is_made_anew() {
    let pool = pool!("what_dying_half_way_left_is_made_anew");
    let file = pool.file().with_file_name("second.img");
    fs::write(file.with_file_name("second.img.new"), "half made").unwrap();
    assert!(loopdev::make_pool_file(&file, 1 << 30, "x").unwrap());
    assert!(file.exists() && !file.with_file_name("second.img.new").exists());
}

#[test]
fn a_commit_is_what_survives_a_power_loss() {
    let pool = pool!("a_commit_is_what_survives_a_power_loss");
    let root = pool.root().unwrap();
    root.create_subvolume("committed", None).unwrap();
    let transid = commit::start(&root).unwrap();
    commit::wait(&root, transid).unwrap();
    commit::wait(&root, transid).unwrap();
    assert!(space::filesystem(&root).unwrap().generation >= transid);
    root.create_subvolume("not-committed", None).unwrap();
    let copy = pool.copy().unwrap();
    drop(root);
    pool.become_copy(&copy).unwrap();
    let root = pool.root().unwrap();
    assert!(root.exists("committed").unwrap());
    assert!(!root.exists("not-committed").unwrap(), "or this test shows nothing");
}

#[test]
fn a_snapshot_and_a_commit_keep_what_was_only_in_the_page_cache() {
    let pool = pool!("a_snapshot_and_a_commit_keep_what_was_only_in_the_page_cache");
    let root = pool.root().unwrap();
    let data = root.create_subvolume("data", None).unwrap();
    fs::write(pool.mount_point().join("data/file"), vec![7; 1 << 20]).unwrap();
    root.snapshot(&data, "base", true, None).unwrap();
    commit::commit(&root).unwrap();
    let copy = pool.copy().unwrap();
    drop((root, data));
    pool.become_copy(&copy).unwrap();
    assert_eq!(fs::read(pool.mount_point().join("base/file")).unwrap(), vec![7; 1 << 20]);
}

#[test]
fn the_cleaner_is_waited_for() {
    let pool = pool!("the_cleaner_is_waited_for");
    let root = pool.root().unwrap();
    let live = subvolume::id(&root.create_subvolume("live", None).unwrap()).unwrap();
    let mut ids = Vec::new();
    for n in 0..20 {
        root.create_subvolume(format!("v{n}"), None).unwrap();
        fs::write(pool.mount_point().join(format!("v{n}/file")), vec![7; 1 << 20]).unwrap();
    }
    commit::sync_all(&root).unwrap();
    for n in 0..20 {
        ids.extend(root.delete_subvolume(format!("v{n}")).unwrap());
    }
    assert!(cleaner::queued(&root).unwrap() <= 20);
    cleaner::wait(&root, &ids, Duration::from_secs(60)).unwrap();
    assert_eq!(cleaner::queued(&root).unwrap(), 0);
    assert_eq!(subvolume::roots(&root).unwrap().len(), 1);
    cleaner::wait(&root, &ids, Duration::ZERO).unwrap();
    assert!(cleaner::wait(&root, &[live], Duration::ZERO).unwrap_err().is(Errno::EEXIST));
}

#[test]
fn a_deleted_subvolume_that_somebody_has_open_is_not_cleaned() {
    let pool = pool!("a_deleted_subvolume_that_somebody_has_open_is_not_cleaned");
    let root = pool.root().unwrap();
    let open = root.create_subvolume("data", None).unwrap();
    let ids = root.delete_subvolume("data").unwrap();
    let soon = Duration::from_millis(300);
    assert!(
        matches!(cleaner::wait(&root, &ids, soon), Err(Error::TimedOut { waited, .. }) if waited == soon)
    );
    assert!(subvolume::roots(&root).unwrap().iter().any(|root| root.id == ids[0] && root.deleted));
    drop(open);
    cleaner::wait(&root, &ids, Duration::from_secs(60)).unwrap();
}

#[test]
fn space_and_devices_are_told() {
    let pool = pool!("space_and_devices_are_told");
    let root = pool.root().unwrap();
    let before = space::space(&root).unwrap();
    assert_eq!(before.device_bytes, 2 << 30);
    assert_eq!(
        (before.data.copies, before.metadata.copies),
        (1, 2),
        "mkfs keeps metadata twice on one device"
    );
    assert!(before.available_bytes() > 1 << 30 && before.available_metadata_bytes() > 64 << 20, "{before:?}");
    assert!(before.global_reserve.total_bytes > 0 && before.system.total_bytes > 0);
    let mut noise = vec![0; 100 << 20];
    File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    fs::write(pool.mount_point().join("noise"), noise).unwrap();
    commit::sync_all(&root).unwrap();
    let after = space::space(&root).unwrap();
    assert_eq!(after.data.used_bytes - before.data.used_bytes, 100 << 20);

    let devices = space::devices(&root).unwrap();
    assert_eq!(devices.len(), 1);
    assert_eq!((devices[0].id, devices[0].errors(), devices[0].total_bytes), (1, 0, 2 << 30));
    assert_eq!(Some(devices[0].path.clone()), loopdev::attached(&pool.file()).unwrap());
    let filesystem = space::filesystem(&root).unwrap();
    assert_eq!((filesystem.devices, filesystem.node_bytes, filesystem.sector_bytes), (1, 16384, 4096));
    assert!(fs::exists(format!("/sys/fs/btrfs/{}", filesystem.uuid)).unwrap());
}

#[test]
fn features_are_what_the_kernel_says() {
    let pool = pool!("features_are_what_the_kernel_says");
    assert!(features::kernel_has_btrfs());
    let features = features::probe(&pool.root().unwrap()).unwrap();
    println!("{features:?}");
    assert_eq!(features.simple_quota, fs::exists("/sys/fs/btrfs/features/simple_quota").unwrap());
    assert!(features.acl == fs::exists("/sys/fs/btrfs/features/acl").unwrap());
    assert!(features.kernel.major >= 5 && features.send_stream >= 1);
    if !features.kernel.at_least(6, 14) {
        assert!(!features.pre_content);
    }
    assert!(filesystem::is_btrfs(pool.root().unwrap()).unwrap());
}

#[test]
fn a_send_stream_is_a_second_opinion() {
    let pool = pool!("a_send_stream_is_a_second_opinion");
    let root = pool.root().unwrap();
    let data = root.create_subvolume("data", None).unwrap();
    fs::write(pool.mount_point().join("data/file"), vec![7; 1 << 20]).unwrap();
    let first = root.snapshot(&data, "first", true, None).unwrap();
    let second = root.snapshot(&data, "second", true, None).unwrap();
    fs::write(pool.mount_point().join("data/more"), "more").unwrap();
    let third = root.snapshot(&data, "third", true, None).unwrap();
    let stream = |snapshot, options| {
        let (mut reader, writer) = std::io::pipe().unwrap();
        std::thread::scope(|scope| {
            let sending = scope.spawn(move || send::send(snapshot, options, writer.as_fd()));
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            sending.join().unwrap().map(|()| bytes)
        })
    };
    let parent_id = Some(subvolume::id(&first).unwrap());
    let whole = stream(&first, send::Options::default()).unwrap();
    assert!(whole.starts_with(b"btrfs-stream\0") && whole.len() > 1 << 20);
    let nothing = stream(&second, send::Options { parent_id, ..Default::default() }).unwrap();
    let something = stream(&third, send::Options { parent_id, without_data: true }).unwrap();
    assert!(nothing.len() < 200 && something.len() > nothing.len(), "{} {}", nothing.len(), something.len());
    assert!(stream(&data, send::Options::default()).unwrap_err().is(Errno::EPERM), "only read-only ones");
}

#[test]
fn a_frame_is_written_as_it_is_and_read_as_what_is_in_it() {
    let pool = pool!("a_frame_is_written_as_it_is_and_read_as_what_is_in_it");
    let root = pool.root().unwrap();
    let file = File::create(root.proc_path().join("encoded")).unwrap();
    let bytes: Vec<u8> = (0..300_000u32).flat_map(|n| (n / 100).to_le_bytes()).take(300_000).collect();
    let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
    compressor.set_parameter(zstd::zstd_safe::CParameter::WindowLog(17)).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (number, raw) in bytes.chunks(encoded::RAW_MAX).enumerate() {
        let frame = compressor.compress(raw).unwrap();
        encoded::write(file.as_fd(), (number * encoded::RAW_MAX) as u64, &frame, raw.len()).unwrap();
    }
    assert_eq!(fs::read(root.proc_path().join("encoded")).unwrap(), bytes);
    let refused = encoded::write(file.as_fd(), 0, &bytes[..4_096], 4_096).unwrap_err();
    assert!(refused.is(Errno::EINVAL) && refused.to_string().contains("ENCODED_WRITE"), "{refused}");
}
