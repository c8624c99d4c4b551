//! Lives of a node on one pool and one store, the places where they end, and what must hold in the next one.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use cas::Store;
use cas::objects::{Fault, FaultStore, crashes};
use csi::deaths::Point;
use csi::node::Node;
use csi::sync::SyncRequest;
use futures::FutureExt as _;
use futures::future::BoxFuture;

pub(crate) use crate::common::life;
use crate::common::{self, TestPool, differences, fill, id, live, names, request};

pub(crate) struct World {
    pub(crate) pool: TestPool,
    pub(crate) store: Store,
    pub(crate) faults: Arc<FaultStore>,
    /// What the volume's tree is when nothing more is written.
    copy: tempfile::TempDir,
}

pub(crate) type Operation = fn(Arc<Node>, String) -> BoxFuture<'static, ()>;
pub(crate) type Check = fn(&World, Arc<Node>, String) -> BoxFuture<'_, ()>;

impl World {
    pub(crate) fn new() -> Self {
        let (store, faults) = life(common::store());
        Self { pool: TestPool::new("node-a"), store, faults, copy: tempfile::tempdir().unwrap() }
    }

    /// A volume with a durable version and something written after it.
    pub(crate) async fn prepare(&self, node: &Arc<Node>, name: &str) {
        node.create(request(name)).await.unwrap();
        let path = live(node, name);
        fill(&path);
        node.sync(&id(name), SyncRequest::plain()).await.unwrap();
        std::fs::write(path.join("README"), "changed after the sync\n").unwrap();
        std::fs::remove_file(path.join("src/deep/file-7")).unwrap();
        self.remember(&path);
    }

    pub(crate) fn remember(&self, path: &Path) {
        let status = std::process::Command::new("rsync")
            .args(["-aHAXS", "--delete"])
            .arg(format!("{}/", path.display()))
            .arg(format!("{}/", self.copy.path().display()))
            .status();
        assert!(status.unwrap().success());
    }

    pub(crate) fn assert_same(&self, node: &Node, name: &str) {
        let different = differences(self.copy.path(), &live(node, name));
        assert_eq!(different, "", "{name}");
    }

    /// Gives the volume up and takes it again, so that what is compared came from the store.
    pub(crate) async fn assert_durable(&self, node: &Arc<Node>, name: &str) {
        node.release(&id(name), false).await.unwrap();
        node.acquire(&id(name), false).await.unwrap();
        self.assert_same(node, name);
    }

    /// Dies at each call of `operation` and at each of its steps on the pool, then lives again and checks.
    pub(crate) fn enumerate(&self, what: &str, prepare: Operation, operation: Operation, check: Check) {
        let (calls, steps) = life(async {
            let node = self.pool.start(&self.store).await;
            let name = format!("{what}-dry");
            self.prepare(&node, &name).await;
            prepare(Arc::clone(&node), name.clone()).await;
            self.faults.reset();
            node.pool().deaths().plan(None, || {});
            operation(Arc::clone(&node), name.clone()).await;
            let (calls, steps) = (self.faults.counts().calls(), node.pool().deaths().visited());
            check(self, node, name).await;
            (calls, steps)
        });
        let (_, expected) = STEPS.iter().find(|(name, _)| *name == what).unwrap();
        for step in *expected {
            assert!(steps.contains(step), "{what} does not pass {step:?}: {steps:?}");
        }
        let mut died = 0;
        for (index, fault) in crashes(calls) {
            let side = if fault == Fault::DieBefore { "before" } else { "after" };
            let plan = |_: &Node| self.faults.at_call(index, fault);
            died += u64::from(self.die(&format!("{what}-{index}-{side}"), prepare, operation, check, plan));
        }
        assert!(died >= calls, "{what}: died {died} times at {calls} calls");
        let mut died_at_steps = 0;
        for (index, step) in steps.iter().enumerate() {
            let faults = Arc::clone(&self.faults);
            let plan = |node: &Node| node.pool().deaths().plan(Some(index), move || faults.kill());
            let name = format!("{what}-step-{index}-{step:?}").to_ascii_lowercase();
            died_at_steps += usize::from(self.die(&name, prepare, operation, check, plan));
        }
        // A cut is tried again where the kernel put two snapshots into two commits, so lives differ in how often.
        assert!(died_at_steps == steps.len() || what == "group", "{what}: {died_at_steps} of {steps:?}");
        assert!(died_at_steps >= expected.len(), "{what}: {died_at_steps} of {steps:?}");
        let kinds: BTreeSet<&Point> = steps.iter().collect();
        eprintln!(
            "{what}: died {died} times at {calls} calls, and after each of {} steps on the pool ({} of {} that exist)",
            steps.len(),
            kinds.len(),
            Point::ALL.len(),
        );
    }

    /// One life that ends as planned, and the one after it. Returns whether the first one died.
    fn die(
        &self,
        name: &str,
        prepare: Operation,
        operation: Operation,
        check: Check,
        plan: impl FnOnce(&Node),
    ) -> bool {
        let name = name.to_owned();
        let died = life(async {
            let node = self.pool.start(&self.store).await;
            self.prepare(&node, &name).await;
            prepare(Arc::clone(&node), name.clone()).await;
            self.faults.reset();
            plan(&node);
            let work = tokio::spawn(operation(Arc::clone(&node), name.clone()));
            self.faults.until_death(work).await.is_none()
        });
        self.faults.heal();
        self.faults.revive();
        life(async {
            let node = self.pool.start(&self.store).await;
            assert!(names(node.pool().path().join("staging")).is_empty(), "{name}");
            check(self, Arc::clone(&node), name.clone()).await;
            assert!(names(node.pool().path().join("staging")).is_empty(), "{name}");
            let left = names(node.pool().path().join("volumes").join(&name));
            assert!(left.is_empty() || left == ["about", "base", "data", "snap"], "{name}: {left:?}");
            // The next point begins with an empty pool.
            for volume in node.volumes().all() {
                node.delete(&volume.id).await.unwrap();
            }
        });
        died
    }
}

/// The steps that an operation must at least pass.
pub(crate) const STEPS: &[(&str, &[Point])] = &[
    (
        "sync",
        &[
            Point::SnapshotTaken,
            Point::SnapshotNamed,
            Point::CommitBegun,
            Point::Committed,
            Point::BaseSet,
            Point::PlaceDeleted,
        ],
    ),
    ("nested", &[Point::CloneRooted, Point::CloneNested, Point::SnapshotTaken]),
    (
        "create",
        &[
            Point::DirectoryMade,
            Point::GroupMade,
            Point::StagedEmpty,
            Point::AboutSet,
            Point::SnapshotNamed,
            Point::BaseSet,
            Point::MovedIn,
            Point::Limited,
        ],
    ),
    ("fork", &[Point::DirectoryMade, Point::GroupMade, Point::AboutSet, Point::BaseSet, Point::Planted]),
    ("release", &[Point::SnapshotNamed, Point::LiveHidden, Point::LiveDeleted]),
    ("acquire", &[Point::StagedEmpty, Point::SnapshotTaken, Point::MovedIn, Point::Committed]),
    ("reacquire", &[Point::AboutSet, Point::BaseSet, Point::Planted, Point::Limited]),
    ("restore", &[Point::BesideLive, Point::Exchanged, Point::BaseSet, Point::OldDeleted]),
    (
        "origin",
        &[Point::SnapshotTaken, Point::BesideLive, Point::Exchanged, Point::BaseSet, Point::OldDeleted],
    ),
    ("delete", &[Point::SnapshotNamed, Point::LiveHidden, Point::LiveDeleted]),
    ("seal", &[Point::SnapshotTaken, Point::SnapshotDropped]),
    ("template", &[Point::StagedClone, Point::TemplateWrapped, Point::TemplateSealed, Point::TemplatePlaced]),
    ("prefetch", &[Point::SnapshotTaken, Point::Unstaged, Point::SnapshotNamed, Point::BaseSet]),
    ("quota", &[Point::Limited, Point::AboutSet, Point::Committed]),
    ("settings", &[Point::Limited, Point::AboutSet, Point::Committed, Point::PropertySet]),
    (
        "group",
        &[Point::CommitBegun, Point::SnapshotTaken, Point::GroupTaken, Point::SnapshotNamed, Point::BaseSet],
    ),
    ("repair", &[]),
];

pub(crate) fn nothing(_: Arc<Node>, _: String) -> BoxFuture<'static, ()> {
    async {}.boxed()
}
