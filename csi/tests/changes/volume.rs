//! A live volume on a scratch pool and its snapshots.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use btrfs::Dir;
use btrfs::scratch::ScratchPool;
use cas::Changes;
use csi::changes::{Error, changes};

use crate::model::{Effort, Node, apply, difference, walk};
use crate::sent::Replay;
use crate::store::{Cost, Judge};

pub(crate) struct Volume {
    pool: ScratchPool,
    live: String,
    base: String,
    made: u32,
    /// What is not needed any more. It goes right before the next snapshot: deleting commits, and what comes after a
    /// snapshot should fall into the very next transaction. (A fork's line can be told while its source is there.)
    left: Vec<String>,
    tree: Rc<Node>,
    store: Judge,
    replay: Option<Replay>,
}

/// What one step from a snapshot to the next took.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) changes: Changes,
    pub(crate) effort: Effort,
    pub(crate) cost: Cost,
    /// Nothing but reading everything could tell.
    pub(crate) full_scan: Option<&'static str>,
}

impl Volume {
    /// An empty one; nothing where there is no btrfs.
    pub(crate) fn create(test: &str) -> Option<Self> {
        let pool = ScratchPool::or_skip(test)?;
        pool.root().unwrap().create_subvolume("live", None).unwrap();
        let mut volume = Self {
            pool,
            replay: None,
            live: "live".to_owned(),
            base: String::new(),
            made: 0,
            left: Vec::new(),
            store: Judge::new(),
            tree: Rc::new(Node::HardLink(types::VolumePath::ROOT)),
        };
        let base = volume.snapshot_of("live", true);
        volume.tree = walk(&volume.path(&base)).0;
        volume.store.step(&volume.path(&base), None).unwrap();
        volume.base = base;
        Some(volume)
    }

    /// From now on `btrfs send` is a judge too.
    pub(crate) fn replay(&mut self) {
        let mut replay = Replay::new(self.pool.mount_point().join("replayed"));
        replay.step(None, &self.path(&self.base)).unwrap();
        self.replay = Some(replay);
    }

    pub(crate) fn root(&self) -> Dir {
        self.pool.root().unwrap()
    }

    /// Where the live tree can be written to.
    pub(crate) fn live(&self) -> PathBuf {
        self.path(&self.live)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.pool.mount_point().join(name)
    }

    /// Steps of which `btrfs send` made a stream that cannot be replayed.
    pub(crate) fn unplayable(&self) -> u64 {
        self.replay.as_ref().map_or(0, |replay| replay.unplayable)
    }

    /// The last snapshot.
    pub(crate) fn base(&self) -> PathBuf {
        self.path(&self.base)
    }

    fn snapshot_of(&mut self, source: &str, readonly: bool) -> String {
        self.made += 1;
        let name = format!("{}-{}", if readonly { "snap" } else { "fork" }, self.made);
        let root = self.root();
        let source = root.open_dir(source).unwrap();
        csi::clone::clone(&source, &root, &name, readonly, None).unwrap();
        name
    }

    /// Goes on with a fork of the live tree, or of the base: what was written since is then lost.
    pub(crate) fn fork(&mut self, of_base: bool) {
        let source = if of_base { self.base.clone() } else { self.live.clone() };
        let fork = self.snapshot_of(&source, false);
        self.left.push(std::mem::replace(&mut self.live, fork));
    }

    /// Takes a snapshot and finds what changed since the last several times; the best time counts.
    pub(crate) fn timed(&mut self) -> (Duration, Changes) {
        let name = self.snapshot_of(&self.live.clone(), true);
        let root = self.root();
        let (base, snapshot) = (root.open_dir(&self.base).unwrap(), root.open_dir(&name).unwrap());
        let mut best = Duration::MAX;
        let mut found = Changes::default();
        for _ in 0..5 {
            let begun = Instant::now();
            found = changes(&base, &snapshot).unwrap();
            best = best.min(begun.elapsed());
        }
        drop((base, snapshot));
        root.delete_subvolume(&name).unwrap();
        (best, found)
    }

    /// Tells if these changes lead from the last snapshot to what is live now.
    pub(crate) fn judge(&mut self, changes: &Changes) -> bool {
        let name = self.snapshot_of(&self.live.clone(), true);
        let disk = self.path(&name);
        let same = apply(&disk, &self.tree, changes).0 == walk(&disk).0;
        self.root().delete_subvolume(&name).unwrap();
        same
    }

    /// Takes a snapshot, finds what changed since the last, and holds it against a walk of everything and, if that was
    /// asked for, against `btrfs send`.
    pub(crate) fn step(&mut self) -> Result<Step, String> {
        let root = self.root();
        let kept: Vec<String> = self.left.extract_if(.., |left| left.starts_with("snap")).collect();
        for left in kept {
            root.delete_subvolume(&left).unwrap();
        }
        let name = self.snapshot_of(&self.live.clone(), true);
        let (base, snapshot) = (root.open_dir(&self.base).unwrap(), root.open_dir(&name).unwrap());
        let disk = self.path(&name);
        let (whole, _) = walk(&disk);
        let step = match changes(&base, &snapshot) {
            Ok(changes) => {
                let (tree, effort) = apply(&disk, &self.tree, &changes);
                if let Some(difference) = difference(&tree, &whole, "") {
                    return Err(format!("{difference}\n{changes:#?}"));
                }
                let cost = self
                    .store
                    .step(&disk, Some(changes.clone()))
                    .map_err(|told| format!("store: {told}\n{changes:#?}"))?;
                Step { changes, effort, cost, full_scan: None }
            }
            Err(Error::FullScan { reason }) => {
                self.store.step(&disk, None)?;
                Step {
                    changes: Changes::default(),
                    effort: Effort::default(),
                    cost: Cost::default(),
                    full_scan: Some(reason),
                }
            }
            Err(error) => return Err(error.to_string()),
        };
        drop((base, snapshot));
        let base = self.path(&self.base);
        if let Some(replay) = &mut self.replay {
            replay.step(Some(&base), &disk).map_err(|told| format!("btrfs send: {told}"))?;
        }
        for left in self.left.drain(..) {
            root.delete_subvolume(&left).unwrap();
        }
        self.left.push(std::mem::replace(&mut self.base, name));
        self.tree = whole;
        Ok(step)
    }
}

/// Writes a file, with the directories above it.
pub(crate) fn put(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    let path = path.as_ref();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}
