//! What this node knows of bytes that are stored already: the index, what it is filled with, and the hub's hooks.
//!
//! Filled by what the node writes and by what it restores. After a restart, the first tree of a domain that is read whole
//! finds it empty: then it learns from the bases of the domain's volumes, which the pool remembers. The hub is told some
//! contents of every version that is stored, and asked while one is. All of this is hints.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cas::tree::{AskHooks, Dedup, DedupIndex, SharedPacks, Writer, Written};
use cas::{Operation, VersionRef};
use futures::FutureExt as _;
use proto::hub::hub_client::HubClient;
use proto::hub::{FindHooksRequest, StoredVersion, TellHooksRequest};
use tonic::transport::Channel;
use types::{Domain, Hash};

use crate::node::Node;

/// What the index may take of memory.
const INDEX_BYTES: usize = 64 << 20;

/// Versions that are read to fill the index of a domain after a restart.
const RELATIVES: usize = 4;

/// Hooks in one message: far below the largest one.
const HOOKS_PER_MESSAGE: usize = 16_384;

/// See the module.
#[derive(Debug)]
pub struct KnownBytes {
    index: Arc<DedupIndex>,
    /// Packs that the volumes of a tick fill together.
    packs: SharedPacks,
    hub: Option<HubClient<Channel>>,
    /// The hub answered lately: one that does not is not asked, so that no sync waits for it.
    attached: Arc<AtomicBool>,
}

impl KnownBytes {
    /// Knows nothing yet. `hub` is its address.
    pub(crate) fn new(hub: Option<&str>) -> Self {
        let hub = hub.and_then(|hub| proto::client::channel(hub).ok()).map(proto::client::hub);
        Self {
            index: DedupIndex::new(INDEX_BYTES),
            packs: SharedPacks::default(),
            hub,
            attached: Arc::default(),
        }
    }

    /// The index.
    pub fn index(&self) -> &Arc<DedupIndex> {
        &self.index
    }

    /// Notes whether there is a session with the hub.
    pub(crate) fn set_attached(&self, attached: bool) {
        self.attached.store(attached, Ordering::Relaxed);
    }

    fn ask(&self) -> Option<AskHooks> {
        let (hub, attached) = (self.hub.clone()?, Arc::clone(&self.attached));
        Some(Arc::new(move |domain, hooks| find(hub.clone(), Arc::clone(&attached), domain, hooks).boxed()))
    }

    async fn tell(&self, domain: Domain, tree: VersionRef, hooks: Vec<Hash>) {
        let Some(hub) = self.hub.clone().filter(|_| self.attached.load(Ordering::Relaxed)) else { return };
        for some in hooks.chunks(HOOKS_PER_MESSAGE) {
            let request = TellHooksRequest {
                domain: domain.to_string(),
                version: Some(StoredVersion {
                    version: tree.version.to_string(),
                    manifest: tree.manifest.to_string(),
                }),
                hooks: some.iter().map(|hook| hook.as_bytes().to_vec()).collect(),
            };
            if let Err(status) = hub.clone().tell_hooks(request).await {
                tracing::debug!(code = ?status.code(), "the hub was not told what a version holds");
                return;
            }
        }
    }
}

async fn find(
    mut hub: HubClient<Channel>,
    attached: Arc<AtomicBool>,
    domain: Domain,
    hooks: Vec<Hash>,
) -> Vec<VersionRef> {
    if !attached.load(Ordering::Relaxed) {
        return Vec::new();
    }
    let hooks = hooks.iter().map(|hook| hook.as_bytes().to_vec()).collect();
    match hub.find_hooks(FindHooksRequest { domain: domain.to_string(), hooks }).await {
        Ok(answer) => answer.into_inner().versions.iter().filter_map(parse).collect(),
        Err(status) => {
            tracing::debug!(code = ?status.code(), "the hub does not say who holds a content");
            Vec::new()
        }
    }
}

/// A hint that cannot be read is none.
fn parse(stored: &StoredVersion) -> Option<VersionRef> {
    Some(VersionRef { version: stored.version.parse().ok()?, manifest: stored.manifest.parse().ok()? })
}

impl Node {
    /// A writer of trees into a domain, which stores only what is new there. Its puts are part of `operation`, and if it
    /// `shares` they may wait for others, to fill packs with them.
    pub(crate) fn writer(&self, operation: &Operation, domain: &Domain, shares: bool) -> Writer {
        let known = self.known_bytes();
        let dedup =
            Dedup { index: Arc::clone(known.index()), witness: operation.witness(), ask: known.ask() };
        let (store, session, cache) =
            (self.store().clone(), operation.session().clone(), Arc::clone(self.cache()));
        let writer =
            Writer::new(store, session, domain.clone(), cache, Default::default()).deduplicating(dedup);
        if shares { writer.sharing(known.packs.clone()) } else { writer }
    }

    /// Fills the index of a domain that nothing is known of, from the versions that its volumes here grew from.
    pub(crate) async fn learn_relatives(&self, domain: &Domain) {
        let index = self.known_bytes().index();
        if index.knows(domain) {
            return;
        }
        let mut trees: Vec<VersionRef> = Vec::new();
        for volume in self.volumes().all() {
            let facts = volume.facts();
            if facts.domain == *domain
                && let Some(base) = facts.base
                && !trees.iter().any(|tree| tree.version == base.tree.version)
            {
                trees.push(base.tree);
            }
        }
        for tree in trees.iter().take(RELATIVES) {
            if let Err(error) = self.reader().learn(index, domain, tree).await {
                tracing::debug!(version = %tree.version.short(), %error, "nothing is learned from a base");
            }
        }
    }

    /// Takes note of a version that was just restored.
    pub(crate) fn learn_restored(self: &Arc<Self>, domain: &Domain, tree: &VersionRef) {
        let (node, domain, tree) = (Arc::clone(self), domain.clone(), tree.clone());
        self.tasks().spawn(async move {
            let reader = node.reader();
            let learned = reader.learn(node.known_bytes().index(), &domain, &tree);
            let learned = node.stop().run_until_cancelled(learned).await;
            if let Some(Err(error)) = learned {
                tracing::debug!(version = %tree.version.short(), %error, "nothing is learned from what was restored");
            }
        });
    }

    /// Tells the hub what a version holds, beside what comes next.
    pub(crate) fn tell_hooks(self: &Arc<Self>, domain: &Domain, written: &Written) {
        if written.hooks.is_empty() {
            return;
        }
        let (node, domain, tree) = (Arc::clone(self), domain.clone(), written.tree.clone());
        let hooks = written.hooks.clone();
        self.tasks().spawn(async move {
            let tell = node.known_bytes().tell(domain, tree, hooks);
            node.stop().run_until_cancelled(tell).await
        });
    }
}
