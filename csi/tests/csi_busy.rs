//! Nothing blocks on anything else: one operation on a volume, deadlines, a store that hangs, and what answers meanwhile.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cas::Store;
use cas::objects::{CallKind, Fault};
use cas::record::RecordKind;
use common::kubelet::{Kubelet, code, dial, may_pass, mounts_below, noise};
use common::{TestPool, has_btrfs, head, id, live, request, stop, store};
use csi::node::Node;
use csi::restore::Wanted;
use csi::sync::SyncRequest;
use proto::csi::v1::node_server::Node as _;
use tonic::{Code, Request, Status};
use types::VersionId;

/// How long a caller waits here, and how long the machine may take to tell it so.
const DEADLINE: Duration = Duration::from_millis(500);
const SLACK: Duration = Duration::from_secs(20);

/// What can be asked for a volume, by kubelet or by what the controller orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    /// NodeUnstageVolume of a volume that was written to.
    Unstage,
    /// NodeExpandVolume beyond the limit.
    Expand,
    /// DeleteVolume.
    Delete,
    /// Back to an earlier version.
    Restore,
    /// What a publication at another node begins with.
    Release,
    /// CreateSnapshot.
    Snapshot,
}

impl Call {
    const ALL: [Self; 6] =
        [Self::Unstage, Self::Expand, Self::Delete, Self::Restore, Self::Release, Self::Snapshot];

    async fn make(self, node: &Arc<Node>, kubelet: &Kubelet, name: &str, first: VersionId) -> Code {
        let volume = id(name);
        let said = |result: Result<(), csi::error::Error>| {
            result.err().map_or(Code::Ok, |error| Status::from(error).code())
        };
        match self {
            Self::Unstage => kubelet.unstage(name).await,
            Self::Expand => kubelet.grow(name, "t", 2 << 30).await,
            Self::Delete => said(node.delete(&volume).await.map(drop)),
            Self::Restore => said(node.restore(&volume, Wanted::Version(first)).await.map(drop)),
            Self::Release => said(node.release(&volume, false).await.map(drop)),
            Self::Snapshot => {
                let sealed = format!("snap-{name}");
                said(node.seal(common::seal(name, &sealed, RecordKind::Snapshot)).await.map(drop))
            }
        }
    }

    /// Two of these are one sync after the other, and the second is told of its own.
    fn queues_behind(self, held: Self) -> bool {
        let syncs = [Self::Unstage, Self::Snapshot];
        syncs.contains(&self) && syncs.contains(&held)
    }
}

async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < SLACK * 3, "{what}: not yet");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand10_of_two_calls_on_a_volume_one_is_made_and_the_other_is_told_to_come_back() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    let kubelet = Arc::new(Kubelet::new(&node));
    for held in Call::ALL {
        let name = format!("vol-{held:?}").to_lowercase();
        let volume = node.create(request(&name)).await.unwrap().into_inner();
        let first = head(&volume);
        std::fs::write(live(&node, &name).join("file"), "first").unwrap();
        node.sync(&volume.id, SyncRequest::plain()).await.unwrap();
        std::fs::write(live(&node, &name).join("file"), "second").unwrap();
        // It stands before its write of the record.
        faults.every(CallKind::Put, &format!("vol/{name}"), Fault::Stall);
        let (at, with, of) = (Arc::clone(&node), Arc::clone(&kubelet), name.clone());
        let one = tokio::spawn(async move { held.make(&at, &with, &of, first).await });
        until("the first call has the volume", || node.locks().running(&volume.id).is_some()).await;
        until("it has come to its write", || faults.counts().faults > 0).await;
        let running = node.locks().running(&volume.id);
        for other in Call::ALL.into_iter().filter(|other| !other.queues_behind(held)) {
            let answer = other.make(&node, &kubelet, &name, first).await;
            assert_eq!(answer, Code::Aborted, "{other:?} while {held:?}");
            assert_eq!(node.locks().running(&volume.id), running, "{other:?} changed what {held:?} does");
        }
        assert_eq!(faults.reset().faults, 1, "one write of {held:?} is under way");
        assert!(!one.is_finished(), "{held:?} waited all the time");
        faults.heal();
        assert_eq!(one.await.unwrap(), Code::Ok, "{held:?}");
        // What was told to come back comes back; the same again finds it done.
        if !matches!(held, Call::Delete | Call::Release) {
            assert_eq!(held.make(&node, &kubelet, &name, first).await, Code::Ok, "{held:?} again");
            assert_eq!(Call::Expand.make(&node, &kubelet, &name, first).await, Code::Ok);
        }
        assert_eq!(Call::Delete.make(&node, &kubelet, &name, first).await, Code::Ok);
        assert_eq!(Call::Delete.make(&node, &kubelet, &name, first).await, Code::Ok);
    }
    drop(kubelet);
    stop(node).await;
}

/// A node with a CSI socket.
async fn served(pool: &TestPool, store: &Store) -> (Arc<Node>, PathBuf) {
    let socket = pool.dir.path().join("csi.sock");
    let node = pool.start_with(store, &["--csi-socket", socket.to_str().unwrap()]).await;
    csi::csi::serve::node(&node, node.stop()).unwrap();
    (node, socket)
}

fn by_deadline<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand10_with_a_store_that_hangs_calls_end_by_their_deadlines_and_retries_join_one_operation() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let (pool_a, pool_b) = (TestPool::new("node-a"), TestPool::new("node-b"));
    let a = pool_a.start(&store).await;
    a.create(request("vol-1")).await.unwrap();
    common::fill(&live(&a, "vol-1"));
    a.release(&id("vol-1"), false).await.unwrap();
    let (b, socket) = served(&pool_b, &store).await;
    let kubelet = Kubelet::new(&b);
    let client = dial(&socket).await;
    for name in ["vol-2", "vol-3"] {
        b.create(request(name)).await.unwrap();
        std::fs::write(live(&b, name).join("file"), name).unwrap();
    }
    assert_eq!(kubelet.publish(kubelet.publish_request("vol-2", "t")).await, Code::Ok);
    let handle = format!("csi-{}", "0123456789abcdef".repeat(4));
    faults.plan(|_| Fault::Stall);
    faults.reset();
    // Each is asked for again and again, as kubelet does: none is final, and no retry begins anything that goes on already.
    for call in ["stage", "unstage", "inline"] {
        let (mut begun, before) = (Vec::new(), faults.counts().calls());
        for attempt in 0..4 {
            let mut client = client.clone();
            let started = Instant::now();
            let answer = match call {
                "stage" => code(client.node_stage_volume(by_deadline(kubelet.stage_request("vol-1"))).await),
                "unstage" => {
                    code(client.node_unstage_volume(by_deadline(kubelet.unstage_request("vol-3"))).await)
                }
                _ => {
                    let inline = kubelet.inline_request(&handle, "inline");
                    code(client.node_publish_volume(by_deadline(inline)).await)
                }
            };
            assert!(may_pass(answer), "{call} {attempt}: {answer:?}");
            assert!(started.elapsed() < DEADLINE + SLACK, "{call} {attempt}: {:?}", started.elapsed());
            if attempt == 0 {
                until("it has come to the store", || faults.counts().calls() > before).await;
            }
            begun.push(faults.counts().calls());
        }
        // Each of the three retries would have brought a call of its own.
        assert!(begun[3] - begun[0] <= 1, "{call}: retries began others: {begun:?}");
    }
    // What needs no store goes on, on other volumes and on those.
    for round in 0..3 {
        let target = format!("more-{round}");
        let mut client = client.clone();
        let publish = kubelet.publish_request("vol-2", &target);
        client.node_publish_volume(publish).await.unwrap();
        client.node_publish_volume(kubelet.publish_request("vol-3", "t3")).await.unwrap();
        for (volume, target) in [("vol-2", "t"), ("vol-2", target.as_str()), ("vol-3", "t3")] {
            let stats = client.node_get_volume_stats(kubelet.stats_request(volume, target)).await.unwrap();
            assert!(!stats.into_inner().volume_condition.unwrap().abnormal, "{volume} {target}");
            assert_eq!(std::fs::read(kubelet.target(target).join("file")).unwrap(), volume.as_bytes());
        }
        for (volume, target) in [("vol-2", target.as_str()), ("vol-3", "t3")] {
            assert_eq!(kubelet.unpublish(volume, target).await, Code::Ok);
        }
    }
    assert!(b.locks().running(&id("vol-1")).is_some() && b.locks().running(&id("vol-3")).is_some());
    // It is back: the retries find what went on all the time.
    faults.heal();
    let mut answers = Vec::new();
    until("the volume is staged", || b.volumes().find(&id("vol-1")).is_some()).await;
    for name in ["vol-1", "vol-3"] {
        until("nothing is under way", || b.locks().running(&id(name)).is_none()).await;
    }
    answers.push(kubelet.stage("vol-1").await);
    answers.push(kubelet.unstage("vol-3").await);
    answers.push(kubelet.publish(kubelet.publish_request("vol-1", "t1")).await);
    let inline =
        common::kubelet::patiently(async || kubelet.publish(kubelet.inline_request(&handle, "inline")).await);
    answers.push(inline.await);
    assert_eq!(answers, [Code::Ok; 4]);
    assert_eq!(std::fs::read(kubelet.target("t1").join("README")).unwrap(), b"hello\n");
    assert_eq!(mounts_below(kubelet.dir.path()).len(), 3);
    for (volume, target) in [("vol-1", "t1"), ("vol-2", "t"), (handle.as_str(), "inline")] {
        assert_eq!(kubelet.unpublish(volume, target).await, Code::Ok);
    }
    assert_eq!(common::names(b.pool().path().join("volumes")), ["vol-1", "vol-2", "vol-3"]);
    assert_eq!(common::names(b.pool().path().join("staging")), [""; 0]);
    drop(kubelet);
    stop(a).await;
    stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand10_stats_answer_while_their_volume_is_worked_on_and_while_the_pool_does_not_answer() {
    if !has_btrfs() {
        return;
    }
    let (store, faults) = store().await;
    let pool = TestPool::new("node-a");
    let node = pool.start(&store).await;
    let volume = node.create(request("vol-1")).await.unwrap().into_inner();
    let first = head(&volume);
    let kubelet = Arc::new(Kubelet::new(&node));
    assert_eq!(kubelet.publish(kubelet.publish_request("vol-1", "t")).await, Code::Ok);
    for (held, named) in [(Call::Unstage, "sync"), (Call::Restore, "restore"), (Call::Expand, "set quota")] {
        std::fs::write(live(&node, "vol-1").join("file"), noise(1 << 20)).unwrap();
        faults.every(CallKind::Put, "vol/vol-1", Fault::Stall);
        let (at, with) = (Arc::clone(&node), Arc::clone(&kubelet));
        let one = tokio::spawn(async move { held.make(&at, &with, "vol-1", first).await });
        until("the volume is worked on", || node.locks().running(&volume.id) == Some(named)).await;
        for _ in 0..3 {
            let usage = kubelet.stats("vol-1", "t").await.unwrap();
            assert!(usage.total >= 1 << 30, "{usage:?}");
        }
        assert_eq!(node.locks().running(&volume.id), Some(named), "it was worked on all the time");
        faults.heal();
        assert_eq!(one.await.unwrap(), Code::Ok, "{held:?}");
    }
    // Every thread that may look at the pool hangs: what was known last is told, and that it is old.
    let before = kubelet.stats("vol-1", "t").await.unwrap();
    let (release, gate) = std::sync::mpsc::sync_channel::<()>(1);
    let gate = Arc::new(std::sync::Mutex::new(gate));
    let hanging = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let mut hung = Vec::new();
    for _ in 0..8 {
        let (at, gate, hanging) = (Arc::clone(&node), Arc::clone(&gate), Arc::clone(&hanging));
        hung.push(tokio::spawn(async move {
            let hang = move |_: &btrfs::Dir| {
                hanging.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                assert!(gate.lock().unwrap().recv().is_err(), "it is dropped");
                Ok(())
            };
            at.pool().run(hang).await
        }));
    }
    until("all hang", || hanging.load(std::sync::atomic::Ordering::SeqCst) == 8).await;
    let request = kubelet.stats_request("vol-1", "t");
    let answer = tokio::time::timeout(SLACK, kubelet.service.node_get_volume_stats(Request::new(request)));
    let answer = answer.await.unwrap().unwrap().into_inner();
    assert_eq!(answer.usage, [before]);
    let condition = answer.volume_condition.unwrap();
    assert!(condition.abnormal && condition.message.contains("old"), "{condition:?}");
    drop(release);
    for hung in hung {
        hung.await.unwrap().unwrap();
    }
    assert_eq!(kubelet.stats("vol-1", "t").await.unwrap(), before);
    assert_eq!(kubelet.unpublish("vol-1", "t").await, Code::Ok);
    drop(kubelet);
    stop(node).await;
}
