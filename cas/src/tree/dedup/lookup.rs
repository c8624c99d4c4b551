//! Asking, while a tree is put, if bytes are stored already.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::runtime::Handle;
use types::{Domain, Hash, PackId, VersionId};

use super::index::DedupIndex;
use super::{hook, is_hook, learn};
use crate::session::Witness;
use crate::tree::fetch::Fetch;
use crate::tree::location::{Extent, Location, VersionRef};
use crate::tree::stored::StoredNode;

/// Packs of others that one put may begin to name. A version of too many packs is slow to read and to move.
const PACKS_MAX: usize = 32;

/// Versions that others pointed to and that are read for one put.
const VERSIONS_MAX: usize = 4;

/// After so many hooks that nobody knew half as many are asked for, and so on: this is something new.
const MISSES: u32 = 32;

/// A put waits this long for an answer about hooks; then it asks no more.
const PATIENCE: Duration = Duration::from_millis(500);

/// Says which versions of a domain hold these contents, the best first. Best effort: what it says is a hint.
pub type AskHooks = Arc<dyn Fn(Domain, Vec<Hash>) -> BoxFuture<'static, Vec<VersionRef>> + Send + Sync>;

/// How a put finds what is stored already: under an operation, whose pin every pack is looked at.
#[derive(Clone)]
pub struct Dedup {
    /// What this process knows.
    pub index: Arc<DedupIndex>,
    /// The operation that the put is part of.
    pub witness: Witness,
    /// Who knows more, if anybody.
    pub ask: Option<AskHooks>,
}

impl fmt::Debug for Dedup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dedup").field("index", &self.index).field("asks", &self.ask.is_some()).finish()
    }
}

/// The questions of one put.
pub(in crate::tree) struct Lookup {
    dedup: Option<Dedup>,
    fetch: Fetch,
    domain: Domain,
    runtime: Handle,
    /// The packs that were looked at: the length of each that may be named.
    packs: Mutex<HashMap<Arc<PackId>, Option<u64>>>,
    /// Versions that were read because somebody pointed to them.
    read: Mutex<Vec<VersionRef>>,
    asks: AtomicBool,
    hooks: AtomicU32,
    misses: AtomicU32,
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookup").field("dedup", &self.dedup).finish_non_exhaustive()
    }
}

impl Lookup {
    pub(in crate::tree) fn new(dedup: Option<Dedup>, fetch: Fetch, domain: Domain, runtime: Handle) -> Self {
        let asks = dedup.as_ref().is_some_and(|dedup| dedup.ask.is_some());
        Self {
            dedup,
            fetch,
            domain,
            runtime,
            packs: Mutex::default(),
            read: Mutex::default(),
            asks: AtomicBool::new(asks),
            hooks: AtomicU32::new(0),
            misses: AtomicU32::new(0),
        }
    }

    /// Sees to it that nothing in these packs is found.
    pub(in crate::tree) fn avoid<'a>(&self, packs: impl Iterator<Item = &'a Arc<PackId>>) {
        let mut seen = self.packs.lock().expect("no holder of this lock panics");
        seen.extend(packs.map(|pack| (Arc::clone(pack), None)));
    }

    /// Finds bytes by their hash (a file's content, or a cell's chaining value) and their length.
    pub(in crate::tree) fn find(&self, hash: &[u8; 32], len: u64) -> Option<(Location, u32)> {
        let found = self.bytes(hash);
        if found.is_some() || !self.asks.load(Ordering::Relaxed) || !is_hook(hash, len) {
            return found;
        }
        let spacing = 1 << (self.misses.load(Ordering::Relaxed) / MISSES).min(16);
        if !self.hooks.fetch_add(1, Ordering::Relaxed).is_multiple_of(spacing) {
            return None;
        }
        self.ask(hook(hash));
        self.bytes(hash)
    }

    fn bytes(&self, hash: &[u8; 32]) -> Option<(Location, u32)> {
        let dedup = self.dedup.as_ref()?;
        let found = dedup.index.find(&self.domain, hash)?;
        self.may_name(dedup, &found.0.pack).then_some(found)
    }

    /// Finds a directory with all below it.
    pub(in crate::tree) fn directory(&self, id: VersionId, flags: u64) -> Option<(Arc<StoredNode>, Extent)> {
        let dedup = self.dedup.as_ref()?;
        let extent = dedup.index.find_dir(&self.domain, id, flags)?;
        if !extent.frames.iter().all(|frame| self.may_name(dedup, &frame.pack)) {
            return None;
        }
        let node = self.runtime.block_on(self.fetch.node(&extent, id));
        let node = node.inspect_err(|error| self.distrust(dedup, &extent.frames[0].pack, error)).ok()?;
        node.uses.keys().all(|pack| self.may_name(dedup, pack)).then_some((node, extent))
    }

    /// Returns the length of a pack of others that this put may name.
    pub(in crate::tree) fn pack_len(&self, pack: &Arc<PackId>) -> Option<u64> {
        *self.packs.lock().expect("no holder of this lock panics").get(pack)?
    }

    /// Looks at a pack under the operation's pin, once. The lock is held meanwhile: others want the same one.
    fn may_name(&self, dedup: &Dedup, pack: &Arc<PackId>) -> bool {
        let mut packs = self.packs.lock().expect("no holder of this lock panics");
        if let Some(seen) = packs.get(pack) {
            return seen.is_some();
        }
        if !self.domain.may_name(&pack.domain) || packs.values().flatten().count() >= PACKS_MAX {
            packs.insert(Arc::clone(pack), None);
            return false;
        }
        let len = self.runtime.block_on(dedup.witness.confirm(pack)).unwrap_or_else(|error| {
            tracing::debug!(%pack, %error, "a pack of others cannot be named");
            None
        });
        if len.is_none() {
            dedup.index.forget(pack);
        }
        packs.insert(Arc::clone(pack), len);
        len.is_some()
    }

    /// A hint led to something else than it said.
    fn distrust(&self, dedup: &Dedup, pack: &Arc<PackId>, error: &dyn fmt::Display) {
        tracing::debug!(%pack, %error, "what was known of a pack is wrong");
        dedup.index.forget(pack);
        self.packs.lock().expect("no holder of this lock panics").insert(Arc::clone(pack), None);
    }

    /// Asks whoever knows more, and reads what they point to.
    fn ask(&self, hook: Hash) {
        let Some(Dedup { index, ask: Some(ask), .. }) = &self.dedup else { return };
        let mut read = self.read.lock().expect("no holder of this lock panics");
        // Somebody else asked while this one waited for the lock.
        if index.find(&self.domain, hook.as_bytes()).is_some() {
            return;
        }
        let answer = ask(self.domain.clone(), vec![hook]);
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, answer).await });
        let Ok(versions) = answer else {
            self.asks.store(false, Ordering::Relaxed);
            return;
        };
        let Some(version) = versions.into_iter().find(|version| !read.contains(version)) else {
            self.misses.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.misses.store(0, Ordering::Relaxed);
        if let Err(error) = self.runtime.block_on(learn::learn(&self.fetch, index, &self.domain, &version)) {
            tracing::debug!(version = %version.version.short(), %error, "a hint led nowhere");
        }
        read.push(version);
        if read.len() >= VERSIONS_MAX {
            self.asks.store(false, Ordering::Relaxed);
        }
    }
}
