//! The CSI Node service on a real pool: what is mounted, what is not, and that no answer ever loses data.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cas::objects::{CallKind, Fault};
use common::kubelet::{Kubelet, capability, code, mounts_below, noise};
use common::{TestPool, has_btrfs, head, id, live, request, stop, store};
use csi::create::CreateRequest;
use csi::csi::DRIVER;
use csi::csi::identity::{Plugin, Readiness};
use nix::mount::{MsFlags, mount};
use proptest::prelude::*;
use proto::csi::v1 as api;
use proto::csi::v1::identity_server::Identity as _;
use proto::csi::v1::node_server::Node as _;
use proto::csi::v1::volume_capability::access_mode::Mode;
use proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use tonic::{Code, Request};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defect1_w21_demand02_unpublish_never_deletes_data() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    std::fs::write(live(&node, "vol-1").join("db"), "precious").unwrap();
    let kubelet = Kubelet::new(&node);
    assert_eq!(kubelet.publish(kubelet.publish_request("vol-1", "t")).await, Code::Ok);
    // Twice is once.
    assert_eq!(kubelet.publish(kubelet.publish_request("vol-1", "t")).await, Code::Ok);
    assert_eq!(mounts_below(kubelet.dir.path()).len(), 1);
    // A race or a restart of somebody stacks two more.
    let target = kubelet.target("t");
    for _ in 0..2 {
        mount(Some(&live(&node, "vol-1")), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    }
    assert_eq!(kubelet.unpublish("vol-1", "t").await, Code::Ok);
    assert!(!target.exists() && mounts_below(kubelet.dir.path()).is_empty());
    assert_eq!(std::fs::read(live(&node, "vol-1").join("db")).unwrap(), b"precious");
    assert_eq!(kubelet.unpublish("vol-1", "t").await, Code::Ok, "the second call finds it done");
    // What somebody wrote into the directory itself is left, and said.
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("late"), "late").unwrap();
    assert_eq!(kubelet.unpublish("vol-1", "t").await, Code::FailedPrecondition);
    assert_eq!(std::fs::read(target.join("late")).unwrap(), b"late");
    // Somebody else's mount is not ours to take off.
    let other = kubelet.target("other");
    std::fs::create_dir(&other).unwrap();
    node.create(request("vol-2")).await.unwrap();
    assert_eq!(kubelet.publish(kubelet.publish_request("vol-2", "other")).await, Code::Ok);
    assert_eq!(kubelet.unpublish("vol-1", "other").await, Code::FailedPrecondition);
    assert_eq!(kubelet.publish(kubelet.publish_request("vol-1", "other")).await, Code::FailedPrecondition);
    assert_eq!(mounts_below(kubelet.dir.path()), [other]);
    assert_eq!(kubelet.unpublish("vol-2", "other").await, Code::Ok);
    // A mounted volume is never deleted.
    assert_eq!(kubelet.publish(kubelet.publish_request("vol-1", "again")).await, Code::Ok);
    let error = node.delete(&id("vol-1")).await.unwrap_err();
    assert!(matches!(error, csi::error::Error::Mounted { .. }), "{error}");
    assert_eq!(kubelet.unpublish("vol-1", "again").await, Code::Ok);
    drop(kubelet);
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w45_read_only_is_read_only_and_flags_are_set() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    let kubelet = Kubelet::new(&node);
    let readonly = api::NodePublishVolumeRequest { readonly: true, ..kubelet.publish_request("vol-1", "ro") };
    assert_eq!(kubelet.publish(readonly.clone()).await, Code::Ok);
    let error = std::fs::write(kubelet.target("ro").join("x"), "x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EROFS));
    // Beside it the same volume can be written, and what is written is seen.
    let noexec = api::NodePublishVolumeRequest {
        volume_capability: capability(Mode::SingleNodeMultiWriter, &["noexec", "suid"]),
        ..kubelet.publish_request("vol-1", "rw")
    };
    assert_eq!(kubelet.publish(noexec).await, Code::Ok);
    std::fs::write(kubelet.target("rw").join("x"), "seen").unwrap();
    assert_eq!(std::fs::read(kubelet.target("ro").join("x")).unwrap(), b"seen");
    let mounts = csi::mounts::read().unwrap();
    let rw = csi::mounts::at(&mounts, &kubelet.target("rw")).unwrap();
    assert!(rw.has_option("noexec") && rw.has_option("nodev") && rw.has_option("noatime"), "{rw:?}");
    assert!(!rw.has_option("nosuid") && !rw.has_option("ro"), "{rw:?}");
    // The same target in another way.
    let writable = api::NodePublishVolumeRequest { readonly: false, ..readonly.clone() };
    assert_eq!(kubelet.publish(writable).await, Code::AlreadyExists);
    // A crash between the mount and its flags: the retry sets them.
    mount(
        None::<&str>,
        &kubelet.target("ro"),
        None::<&str>,
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND,
        None::<&str>,
    )
    .unwrap();
    assert_eq!(kubelet.publish(readonly).await, Code::Ok);
    std::fs::write(kubelet.target("ro").join("y"), "y").unwrap_err();
    for target in ["ro", "rw"] {
        assert_eq!(kubelet.unpublish("vol-1", target).await, Code::Ok);
    }
    drop(kubelet);
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand09_a_single_writer_is_alone() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(request("vol-1")).await.unwrap();
    let kubelet = Kubelet::new(&node);
    let single = |target: &str| api::NodePublishVolumeRequest {
        volume_capability: capability(Mode::SingleNodeSingleWriter, &[]),
        ..kubelet.publish_request("vol-1", target)
    };
    // Both at once: one is the writer, the other is told no or to come back.
    let both = tokio::join!(kubelet.publish(single("a")), kubelet.publish(single("b")));
    let codes = [both.0, both.1];
    assert_eq!(codes.iter().filter(|code| **code == Code::Ok).count(), 1, "{codes:?}");
    let writer = if both.0 == Code::Ok { "a" } else { "b" };
    assert_eq!(kubelet.publish(single(writer)).await, Code::Ok, "the same target again");
    assert_eq!(kubelet.publish(single("c")).await, Code::FailedPrecondition);
    assert_eq!(mounts_below(kubelet.dir.path()).len(), 1);
    assert_eq!(kubelet.unpublish("vol-1", writer).await, Code::Ok);
    assert_eq!(kubelet.publish(single("c")).await, Code::Ok);
    assert_eq!(kubelet.unpublish("vol-1", "c").await, Code::Ok);
    drop(kubelet);
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defect4_demand08_stats_are_the_volumes_and_the_limit_holds() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    let limit = 64 << 20;
    node.create(CreateRequest { limit_bytes: Some(limit), ..request("vol-1") }).await.unwrap();
    let kubelet = Kubelet::new(&node);
    assert_eq!(kubelet.stats("vol-1", "t").await, Err(Code::NotFound), "it is not published");
    assert_eq!(kubelet.publish(kubelet.publish_request("vol-1", "t")).await, Code::Ok);
    let written = 20 << 20;
    std::fs::write(kubelet.target("t").join("noise"), noise(written)).unwrap();
    Command::new("sync").arg("-f").arg(kubelet.target("t")).status().unwrap();
    let usage = kubelet.stats("vol-1", "t").await.unwrap();
    let (total, used) = (u64::try_from(usage.total).unwrap(), usize::try_from(usage.used).unwrap());
    assert_eq!(total, limit);
    assert!(used.abs_diff(written) < written / 100, "{used} of {written}");
    assert_eq!(usage.available, usage.total - usage.used);
    // Deletes at the limit work, and what is over it is refused to the writer.
    let error = std::fs::write(kubelet.target("t").join("more"), noise(100 << 20)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EDQUOT));
    std::fs::remove_file(kubelet.target("t").join("more")).unwrap();
    // Growing is seen at once, with no step of the node's.
    node.set_quota(&id("vol-1"), Some(limit * 2)).await.unwrap();
    assert_eq!(u64::try_from(kubelet.stats("vol-1", "t").await.unwrap().total).unwrap(), limit * 2);
    std::fs::write(kubelet.target("t").join("more"), noise(80 << 20)).unwrap();
    assert_eq!(kubelet.unpublish("vol-1", "t").await, Code::Ok);
    drop(kubelet);
    stop(node).await;
}

/// As uid 1000: makes a nested subvolume and writes incompressible bytes into it until it is stopped.
const NEST: &str = "
import os, fcntl, struct, sys
os.setgid(1000); os.setuid(1000)
os.chdir(sys.argv[1])
fd = os.open('.', os.O_RDONLY)
fcntl.ioctl(fd, 0x5000940e, bytearray(struct.pack('q4088s', 0, b'nest')))
written = 0
try:
    with open('nest/data', 'wb', buffering=0) as out:
        for _ in range(300):
            written += out.write(os.urandom(1 << 20))
        os.fsync(out.fileno())
except OSError as error:
    print(error.errno, written)
    sys.exit(0)
print(0, written)
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand04_a_nested_subvolume_of_a_user_does_not_escape_the_limit() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    node.create(CreateRequest { limit_bytes: Some(100 << 20), ..request("vol-1") }).await.unwrap();
    let kubelet = Kubelet::new(&node);
    std::fs::set_permissions(kubelet.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(kubelet.publish(kubelet.publish_request("vol-1", "t")).await, Code::Ok);
    let target = kubelet.target("t");
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o777)).unwrap();
    let output = Command::new("python3").args(["-c", NEST]).arg(&target).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut numbers = said.split_whitespace().map(|word| word.parse::<u64>().unwrap());
    let (errno, written) = (numbers.next().unwrap(), numbers.next().unwrap());
    assert_eq!(errno, u64::try_from(nix::libc::EDQUOT).unwrap(), "{said}");
    assert!(written <= 101 << 20, "{written}");
    assert_eq!(kubelet.unpublish("vol-1", "t").await, Code::Ok);
    drop(kubelet);
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand07_staging_takes_what_sleeps_refuses_a_stale_epoch_and_unstaging_makes_durable() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    let volume = a.create(request("vol-1")).await.unwrap().into_inner();
    let (on_a, on_b) = (Kubelet::new(&a), Kubelet::new(&b));
    let stage = |kubelet: &Kubelet, epoch: &str| {
        Request::new(api::NodeStageVolumeRequest {
            volume_id: "vol-1".to_owned(),
            staging_target_path: kubelet.target("staging").display().to_string(),
            volume_capability: capability(Mode::SingleNodeWriter, &[]),
            publish_context: HashMap::from([("epoch".to_owned(), epoch.to_owned())]),
            ..Default::default()
        })
    };
    assert_eq!(code(on_a.service.node_stage_volume(stage(&on_a, "1")).await), Code::Ok);
    // A publication under an epoch that this node has not reached: its ownership is an old one.
    assert_eq!(code(on_a.service.node_stage_volume(stage(&on_a, "7")).await), Code::FailedPrecondition);
    // The other node neither stages nor publishes what it does not own.
    assert_eq!(code(on_b.service.node_stage_volume(stage(&on_b, "1")).await), Code::FailedPrecondition);
    assert_eq!(on_b.publish(on_b.publish_request("vol-1", "t")).await, Code::NotFound);
    assert_eq!(on_a.publish(on_a.publish_request("vol-1", "t")).await, Code::Ok);
    std::fs::write(on_a.target("t").join("work"), "done").unwrap();
    // What is mounted is not given up.
    a.release(&id("vol-1"), false).await.unwrap_err();
    assert_eq!(on_a.unpublish("vol-1", "t").await, Code::Ok);
    let before = head(&volume);
    let unstage = Request::new(api::NodeUnstageVolumeRequest {
        volume_id: "vol-1".to_owned(),
        staging_target_path: on_a.target("staging").display().to_string(),
    });
    assert_eq!(code(on_a.service.node_unstage_volume(unstage).await), Code::Ok);
    let record = cas::record::get(&store, &id("vol-1")).await.unwrap().value;
    assert_ne!(record.head_tips()[&types::MemberName::data()], before, "unstaging made a version");
    a.release(&id("vol-1"), false).await.unwrap();
    assert_eq!(code(on_b.service.node_stage_volume(stage(&on_b, "2")).await), Code::Ok);
    assert_eq!(on_b.publish(on_b.publish_request("vol-1", "t")).await, Code::Ok);
    assert_eq!(std::fs::read(on_b.target("t").join("work")).unwrap(), b"done");
    assert_eq!(on_b.unpublish("vol-1", "t").await, Code::Ok);
    drop((on_a, on_b, volume));
    stop(a).await;
    stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inline_volume_comes_and_goes_with_its_pod() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    let kubelet = Kubelet::new(&node);
    let handle = format!("csi-{}", "0123456789abcdef".repeat(4));
    let inline = |extra: &[(&str, &str)]| {
        let mut context = HashMap::from([("csi.storage.k8s.io/ephemeral".to_owned(), "true".to_owned())]);
        context.extend(extra.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        api::NodePublishVolumeRequest {
            staging_target_path: String::new(),
            volume_context: context,
            ..kubelet.publish_request(&handle, "scratch")
        }
    };
    assert_eq!(kubelet.publish(inline(&[("template", "nope")])).await, Code::NotFound);
    assert_eq!(kubelet.publish(inline(&[("sise", "1Mi")])).await, Code::InvalidArgument);
    assert_eq!(kubelet.publish(inline(&[("size", "32Mi")])).await, Code::Ok);
    assert_eq!(kubelet.publish(inline(&[("size", "32Mi")])).await, Code::Ok);
    std::fs::write(kubelet.target("scratch").join("x"), "x").unwrap();
    assert_eq!(kubelet.stats(&handle, "scratch").await.unwrap().total, 32 << 20);
    assert_eq!(kubelet.unpublish(&handle, "scratch").await, Code::Ok);
    assert!(node.volumes().is_empty() && !kubelet.target("scratch").exists());
    assert_eq!(kubelet.unpublish(&handle, "scratch").await, Code::Ok);
    drop(kubelet);
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand09_a_group_is_cut_in_one_transaction() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    let names = ["vol-1", "vol-2", "vol-3"];
    for name in names {
        node.create(request(name)).await.unwrap();
        std::fs::write(live(&node, name).join("x"), name).unwrap();
    }
    let members = || -> Vec<csi::cut::Member> {
        names
            .iter()
            .map(|name| csi::cut::Member {
                volume: id(name),
                sealed: id(&format!("snap-{name}")),
                request: format!("seal-{name}").parse().unwrap(),
                attributes: Default::default(),
            })
            .collect()
    };
    let group = node.seal_group(members(), cas::RecordKind::Snapshot).await.unwrap();
    assert!(group.transaction.is_some(), "{group:?}");
    for (name, version) in names.iter().zip(&group.versions) {
        let record = cas::record::get(&store, &id(&format!("snap-{name}"))).await.unwrap().value;
        assert_eq!(record.head_tips().values().next(), Some(version));
        assert_eq!(record.origin.unwrap().volume, id(name));
    }
    // A retry finds what was sealed, whatever was written since.
    std::fs::write(live(&node, "vol-1").join("x"), "later").unwrap();
    let again = node.seal_group(members(), cas::RecordKind::Snapshot).await.unwrap();
    assert_eq!((again.versions, again.transaction), (group.versions, None));
    for name in names {
        assert!(!common::names(node.pool().path().join("volumes").join(name).join("snap")).is_empty());
    }
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defect2_w08_publish_mounts_only_what_this_node_owns_under_its_own_name() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    a.create(request("vol-1")).await.unwrap();
    let kubelet = Kubelet::new(&a);
    // The directory that the predecessor would have mounted: `<pool>/volumes/../../bait`.
    let bait = pool_a.dir.path().join("bait");
    std::fs::create_dir(&bait).unwrap();
    for handle in ["../../bait", "vol-1/../../../bait", "vol-1/data", "..", "/etc"] {
        assert_eq!(kubelet.publish(kubelet.publish_request(handle, "t")).await, Code::NotFound, "{handle}");
    }
    // A volume whose place was lost is a directory of that name and nothing to mount: neither while its session thinks
    // that it lives, nor after.
    std::fs::write(live(&a, "vol-1").join("work"), "done").unwrap();
    a.sync(&id("vol-1"), csi::sync::SyncRequest::plain()).await.unwrap();
    cas::session::fence(&store, &a.session_id().unwrap()).await.unwrap();
    b.acquire(&id("vol-1"), false).await.unwrap();
    a.beat(false).await.unwrap();
    let publication = kubelet.publish(kubelet.publish_request("vol-1", "t")).await;
    assert!(matches!(publication, Code::NotFound | Code::FailedPrecondition), "{publication:?}");
    // A copy that is only kept near is none either.
    a.prefetch(&id("vol-1")).await.unwrap();
    let publication = kubelet.publish(kubelet.publish_request("vol-1", "t")).await;
    assert!(matches!(publication, Code::NotFound | Code::FailedPrecondition), "{publication:?}");
    assert!(mounts_below(kubelet.dir.path()).is_empty());
    drop(kubelet);
    stop(a).await;
    stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_pass_is_never_a_final_code_and_the_retry_goes_on() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let (a, b) = (pool_a.start(&store).await, pool_b.start(&store).await);
    a.create(request("vol-1")).await.unwrap();
    common::fill(&live(&a, "vol-1"));
    a.release(&id("vol-1"), false).await.unwrap();
    let kubelet = Kubelet::new(&b);
    let stage = || {
        Request::new(api::NodeStageVolumeRequest {
            volume_id: "vol-1".to_owned(),
            staging_target_path: kubelet.target("staging").display().to_string(),
            volume_capability: capability(Mode::SingleNodeWriter, &[]),
            ..Default::default()
        })
    };
    // The store does not answer for the packs: kubelet's patience ends, the work goes on.
    faults.every(CallKind::GetRange, "pack/", Fault::Delay(Duration::from_millis(400)));
    let first = tokio::time::timeout(Duration::from_millis(200), kubelet.service.node_stage_volume(stage()));
    first.await.unwrap_err();
    // The retry is told that it does, and another volume does not wait for it.
    assert_eq!(code(kubelet.service.node_stage_volume(stage()).await), Code::Aborted);
    b.create(request("vol-2")).await.unwrap();
    assert_eq!(kubelet.publish(kubelet.publish_request("vol-2", "t")).await, Code::Ok);
    assert_eq!(kubelet.unpublish("vol-2", "t").await, Code::Ok);
    let mut codes = Vec::new();
    for _ in 0..600 {
        codes.push(code(kubelet.service.node_stage_volume(stage()).await));
        if codes.last() == Some(&Code::Ok) {
            break;
        }
        assert_eq!(codes.last(), Some(&Code::Aborted));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(codes.last(), Some(&Code::Ok), "{codes:?}");
    faults.heal();
    // The store is away: nothing of that is final.
    b.release(&id("vol-1"), false).await.unwrap();
    faults.plan(|_| Fault::Unavailable);
    let away = code(kubelet.service.node_stage_volume(stage()).await);
    assert_eq!(away, Code::Unavailable);
    faults.heal();
    assert_eq!(code(kubelet.service.node_stage_volume(stage()).await), Code::Ok);
    drop(kubelet);
    stop(a).await;
    stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defect7_demand08_probe_says_no_when_the_pool_cannot_be_written() {
    if !has_btrfs() {
        return;
    }
    let (store, _) = store().await;
    let pool = TestPool::new("node-a");
    // The pool's file lies on a disk that is smaller than it thinks: the kernel gives up writing in the middle.
    let mut disk = Command::new("mount");
    disk.args(["-t", "tmpfs", "-o", "size=300M", "disk"]).arg(pool.dir.path());
    assert!(disk.status().unwrap().success());
    let node = pool.start(&store).await;
    let readiness = Readiness::Node { node: Arc::clone(&node), hub: None };
    let plugin = Plugin::new(DRIVER.to_owned(), readiness);
    let ready = async || plugin.probe(Request::new(api::ProbeRequest {})).await.unwrap().into_inner().ready;
    assert_eq!(ready().await, Some(true));
    node.create(CreateRequest { limit_bytes: None, ..request("vol-1") }).await.unwrap();
    let kubelet = Kubelet::new(&node);
    assert_eq!(kubelet.publish(kubelet.publish_request("vol-1", "t")).await, Code::Ok);
    kubelet.stats("vol-1", "t").await.unwrap();
    let file = live(&node, "vol-1").join("noise");
    let mut said = Some(true);
    for _ in 0..40 {
        let failed = std::fs::write(&file, noise(64 << 20)).is_err();
        // Metadata has to be written for the kernel to notice.
        Command::new("sync").arg("-f").arg(node.pool().path()).status().unwrap();
        drop(std::fs::create_dir(live(&node, "vol-1").join(format!("d{failed}"))));
        drop(std::fs::rename(&file, file.with_extension(ulid::Ulid::generate().to_string())));
        said = ready().await;
        if said == Some(false) {
            break;
        }
    }
    assert_eq!(said, Some(false));
    // The volume says so too, and what is read-only can be unpublished.
    let stats =
        kubelet.service.node_get_volume_stats(Request::new(kubelet.stats_request("vol-1", "t"))).await;
    let condition = stats.unwrap().into_inner().volume_condition.unwrap();
    assert!(condition.abnormal && condition.message.contains("read-only"), "{condition:?}");
    assert_eq!(kubelet.unpublish("vol-1", "t").await, Code::Ok);
    drop(kubelet);
    drop(plugin);
    node.stop().cancel();
    common::drop_node(node).await;
    Command::new("umount").arg("-l").arg(pool.mount()).status().unwrap();
    assert!(Command::new("umount").arg("-l").arg(pool.dir.path()).status().unwrap().success());
}

#[test]
fn defect2_demand03_hostile_ids_and_paths_reach_nothing() {
    if !has_btrfs() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (store, _) = runtime.block_on(store());
    let pool = TestPool::new("node-a");
    let node = runtime.block_on(pool.start(&store));
    runtime.block_on(node.create(request("vol-1"))).unwrap();
    let kubelet = Kubelet::new(&node);
    let bait = kubelet.target("bait");
    std::fs::create_dir(&bait).unwrap();
    std::fs::write(bait.join("file"), "bait").unwrap();
    let text = prop_oneof![
        Just(String::new()),
        Just("../../bait".to_owned()),
        Just("/etc".to_owned()),
        Just("vol-1/../vol-1".to_owned()),
        Just(".".to_owned()),
        Just("a\0b".to_owned()),
        Just("vol-1".to_owned()),
        Just(bait.display().to_string()),
        Just("/proc/self/root".to_owned()),
        Just("relative/path".to_owned()),
        Just("x".repeat(5000)),
        "\\PC{0,40}",
    ];
    let mode = prop_oneof![Just(0), Just(1), Just(5), Just(7), any::<i32>()];
    let strategy = (proptest::collection::vec(text, 4), mode, any::<bool>(), any::<i64>());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    runner
        .run(&strategy, |(texts, mode, readonly, bytes)| {
            let service = &kubelet.service;
            let [volume_id, path, staging, flag]: [String; 4] = texts.try_into().unwrap();
            let volume_capability = Some(api::VolumeCapability {
                access_mode: Some(AccessMode { mode }),
                access_type: Some(AccessType::Mount(MountVolume {
                    mount_flags: vec![flag.clone()],
                    ..Default::default()
                })),
            });
            // A target is kubelet's word, but it must never be one that hides what is there.
            let target_path = if path.starts_with('/') { bait.display().to_string() } else { path.clone() };
            let codes = runtime.block_on(async {
                [
                    code(
                        service
                            .node_stage_volume(Request::new(api::NodeStageVolumeRequest {
                                volume_id: volume_id.clone(),
                                staging_target_path: staging.clone(),
                                volume_capability: volume_capability.clone(),
                                ..Default::default()
                            }))
                            .await,
                    ),
                    code(
                        service
                            .node_publish_volume(Request::new(api::NodePublishVolumeRequest {
                                volume_id: volume_id.clone(),
                                target_path: if volume_id == "vol-1" {
                                    "nowhere".to_owned()
                                } else {
                                    target_path.clone()
                                },
                                staging_target_path: staging.clone(),
                                volume_capability: volume_capability.clone(),
                                readonly,
                                volume_context: HashMap::from([(flag.clone(), path.clone())]),
                                ..Default::default()
                            }))
                            .await,
                    ),
                    code(
                        service
                            .node_unpublish_volume(Request::new(api::NodeUnpublishVolumeRequest {
                                volume_id: volume_id.clone(),
                                target_path: target_path.clone(),
                            }))
                            .await,
                    ),
                    code(
                        service
                            .node_unstage_volume(Request::new(api::NodeUnstageVolumeRequest {
                                volume_id: volume_id.clone(),
                                staging_target_path: staging.clone(),
                            }))
                            .await,
                    ),
                    code(
                        service
                            .node_get_volume_stats(Request::new(api::NodeGetVolumeStatsRequest {
                                volume_id: volume_id.clone(),
                                volume_path: path.clone(),
                                staging_target_path: staging.clone(),
                            }))
                            .await,
                    ),
                    code(
                        service
                            .node_expand_volume(Request::new(api::NodeExpandVolumeRequest {
                                volume_id: volume_id.clone(),
                                volume_path: path.clone(),
                                capacity_range: Some(api::CapacityRange {
                                    required_bytes: bytes.min(1 << 40),
                                    limit_bytes: 0,
                                }),
                                ..Default::default()
                            }))
                            .await,
                    ),
                ]
            });
            for code in codes {
                prop_assert!(
                    !matches!(code, Code::Internal | Code::Unknown | Code::DataLoss),
                    "{:?} for {:?} {:?}",
                    codes,
                    volume_id,
                    path
                );
            }
            prop_assert_eq!(std::fs::read(bait.join("file")).unwrap(), b"bait");
            prop_assert!(mounts_below(kubelet.dir.path()).is_empty());
            Ok(())
        })
        .unwrap();
    assert_eq!(common::names(node.pool().path().join("volumes")), ["vol-1"]);
    drop(kubelet);
    runtime.block_on(stop(node));
}
