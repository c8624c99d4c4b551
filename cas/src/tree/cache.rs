//! What this process has read lately: directory nodes and frames, by where they lie.
//!
//! By place and not by hash: the same directory may lie in packs of two dedup domains, and what is written must only
//! name those of its own. Bounded in bytes; the least used goes first. Shared by the writer and all readers.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use types::PackId;

use super::location::{Extent, Location};
use super::manifest::Manifest;
use super::stored::StoredNode;
use crate::gc::{Move, Moved};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Frame(Location),
    Node(Extent),
    Manifest(Location),
    Moved(PackId),
}

#[derive(Debug, Clone)]
enum Kept {
    Frame(Bytes),
    Node(Arc<StoredNode>),
    Manifest(Arc<Manifest>),
    Moved(Arc<Moved>),
}

#[derive(Debug)]
struct Slot {
    kept: Kept,
    cost: usize,
    /// The place in `order` that counts; older ones are left over from earlier uses.
    tick: u64,
}

#[derive(Debug, Default)]
struct Inner {
    slots: HashMap<Key, Slot>,
    order: VecDeque<(u64, Key)>,
    bytes: usize,
    tick: u64,
}

/// A bounded cache of directory nodes and frames.
pub struct Cache {
    inner: Mutex<Inner>,
    max_bytes: usize,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cache({} of {} bytes)", self.bytes(), self.max_bytes)
    }
}

impl Cache {
    /// Makes a cache that holds at most about `max_bytes`.
    pub fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(Inner::default()), max_bytes })
    }

    /// Returns how many bytes it holds.
    pub fn bytes(&self) -> usize {
        self.inner.lock().expect("no holder of this lock panics").bytes
    }

    fn get(&self, key: &Key) -> Option<Kept> {
        let mut inner = self.inner.lock().expect("no holder of this lock panics");
        inner.tick += 1;
        let tick = inner.tick;
        let slot = inner.slots.get_mut(key)?;
        slot.tick = tick;
        let kept = slot.kept.clone();
        inner.order.push_back((tick, key.clone()));
        // Left-over places are swept when they outnumber the slots.
        if inner.order.len() > 2 * inner.slots.len() + 64 {
            let Inner { slots, order, .. } = &mut *inner;
            order.retain(|(tick, key)| slots.get(key).is_some_and(|slot| slot.tick == *tick));
        }
        Some(kept)
    }

    fn keep(&self, key: Key, kept: Kept, cost: usize) {
        // One thing must not throw out all the others.
        if cost > self.max_bytes / 4 {
            return;
        }
        let mut inner = self.inner.lock().expect("no holder of this lock panics");
        inner.tick += 1;
        let tick = inner.tick;
        if let Some(old) = inner.slots.insert(key.clone(), Slot { kept, cost, tick }) {
            inner.bytes -= old.cost;
        }
        inner.bytes += cost;
        inner.order.push_back((tick, key));
        while inner.bytes > self.max_bytes {
            let Some((tick, key)) = inner.order.pop_front() else { break };
            if inner.slots.get(&key).is_some_and(|slot| slot.tick == tick) {
                let gone = inner.slots.remove(&key).expect("it was there a line above");
                inner.bytes -= gone.cost;
            }
        }
    }

    pub(crate) fn frame(&self, location: &Location) -> Option<Bytes> {
        match self.get(&Key::Frame(location.clone()))? {
            Kept::Frame(bytes) => Some(bytes),
            Kept::Node(_) | Kept::Manifest(_) | Kept::Moved(_) => None,
        }
    }

    pub(crate) fn keep_frame(&self, location: &Location, raw: &Bytes) {
        self.keep(Key::Frame(location.clone()), Kept::Frame(raw.clone()), raw.len() + 256);
    }

    pub(crate) fn node(&self, extent: &Extent) -> Option<Arc<StoredNode>> {
        match self.get(&Key::Node(extent.clone()))? {
            Kept::Node(node) => Some(node),
            Kept::Frame(_) | Kept::Manifest(_) | Kept::Moved(_) => None,
        }
    }

    pub(crate) fn keep_node(&self, extent: &Extent, node: &Arc<StoredNode>) {
        self.keep(Key::Node(extent.clone()), Kept::Node(Arc::clone(node)), node.cost());
    }

    pub(crate) fn manifest(&self, location: &Location) -> Option<Arc<Manifest>> {
        match self.get(&Key::Manifest(location.clone()))? {
            Kept::Manifest(manifest) => Some(manifest),
            Kept::Frame(_) | Kept::Node(_) | Kept::Moved(_) => None,
        }
    }

    pub(crate) fn moved(&self, pack: &PackId) -> Option<Arc<Moved>> {
        match self.get(&Key::Moved(pack.clone()))? {
            Kept::Moved(moved) => Some(moved),
            Kept::Frame(_) | Kept::Node(_) | Kept::Manifest(_) => None,
        }
    }

    pub(crate) fn keep_moved(&self, moved: &Arc<Moved>) {
        let moves: usize = moved.to.values().map(Vec::len).sum();
        let cost = 256 + moved.to.len() * 160 + moves * size_of::<Move>();
        self.keep(Key::Moved(moved.pack.clone()), Kept::Moved(Arc::clone(moved)), cost);
    }

    pub(crate) fn keep_manifest(&self, location: &Location, manifest: &Arc<Manifest>) {
        let cost = 256 + manifest.packs.len() * 160;
        self.keep(Key::Manifest(location.clone()), Kept::Manifest(Arc::clone(manifest)), cost);
    }
}
