//! The nodes that this hub hears or watches: who they are, what they hold, and whether they live.
//!
//! It is kept in memory only: a node sends all of it when it dials in, and what an absent node once said would be read
//! as if it were still so.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use proto::node::node_client::NodeClient;
use proto::{hub, node as wire};
use tokio::sync::watch;
use tonic::transport::Channel;
use types::{Clock, NodeName, SessionId, Timestamp, VersionId, VolumeId};

use crate::error::Error;
use crate::liveness::{Liveness, Signs, Timings, judge};
use crate::placement::{self, Budget};

/// How a node introduced itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// Its name.
    pub node: NodeName,
    /// Its session.
    pub session: SessionId,
    /// host:port of its services.
    pub address: String,
    /// Its zone, or empty.
    pub zone: String,
    /// Its build.
    pub version: String,
}

/// What a node holds, as it told last. Shared rather than copied: a node may hold tens of thousands of volumes and tells of
/// each change, while many operations look.
type Held = Arc<Mutex<HashMap<VolumeId, wire::Volume>>>;

fn held(volumes: &Held) -> MutexGuard<'_, HashMap<VolumeId, wire::Volume>> {
    volumes.lock().expect("no holder of this lock panics")
}

/// A live node that can be asked.
#[derive(Debug, Clone)]
pub struct LiveNode {
    /// How it introduced itself.
    pub introduction: Introduction,
    /// A client that dials it.
    pub client: NodeClient<Channel>,
    /// What it said of its pool.
    pub capacity: Option<wire::Capacity>,
    /// Where a template or another content is at hand, as `<volume>@<version>`.
    templates: Arc<HashSet<String>>,
    volumes: Held,
}

impl LiveNode {
    /// Returns its name.
    pub fn name(&self) -> &NodeName {
        &self.introduction.node
    }

    /// Tells if it holds a relative of this version: the volume itself, or the materialised template.
    pub fn has_content(&self, volume: &VolumeId, version: Option<&VersionId>) -> bool {
        held(&self.volumes).contains_key(volume)
            || version.is_some_and(|version| self.templates.contains(&format!("{volume}@{version}")))
    }

    /// Returns what it last said is free of its CPU and memory.
    pub fn free(&self) -> Option<Budget> {
        let compute = self.capacity.as_ref()?.compute?;
        Some(Budget {
            cpu_millis: compute.available_cpu_millis,
            memory_bytes: compute.available_memory_bytes,
        })
    }

    /// Returns what placement looks at.
    pub fn candidate(&self, content: Option<(&VolumeId, Option<&VersionId>)>) -> placement::Candidate {
        placement::Candidate {
            node: self.name().clone(),
            room: self.capacity.as_ref().map(|capacity| placement::Room {
                total_bytes: capacity.total_bytes,
                available_bytes: capacity.available_bytes,
                volumes: capacity.volumes,
            }),
            free: self.free(),
            has_content: content.is_some_and(|(volume, version)| self.has_content(volume, version)),
        }
    }
}

#[derive(Debug)]
struct Contact {
    introduction: Introduction,
    client: NodeClient<Channel>,
    /// Counts the streams of this session: a message from an older one is dropped.
    stream: u64,
    capacity: Option<wire::Capacity>,
    checks: Vec<wire::Check>,
    volumes: Held,
    templates: Arc<HashSet<String>>,
}

#[derive(Debug)]
struct Known {
    node: NodeName,
    signs: Signs,
    heard_wall: Option<Timestamp>,
    /// What tells one beat from the next.
    beat: Option<String>,
    contact: Option<Contact>,
}

/// The registry of nodes, by session.
#[derive(Debug)]
pub struct Nodes {
    known: Mutex<HashMap<SessionId, Known>>,
    clock: Arc<dyn Clock>,
    timings: Timings,
    changed: watch::Sender<u64>,
}

/// One stream of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attachment {
    /// Whose.
    pub session: SessionId,
    stream: u64,
}

impl Nodes {
    /// Makes an empty registry.
    pub fn new(clock: Arc<dyn Clock>, timings: Timings) -> Self {
        Self { known: Mutex::default(), clock, timings, changed: watch::Sender::new(0) }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<SessionId, Known>> {
        self.known.lock().expect("no holder of this lock panics")
    }

    fn change(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn judge(&self, known: &Known) -> Liveness {
        judge(self.clock.monotonic(), &known.signs, &self.timings)
    }

    /// Begins to watch a session that was found in the store or in the state file. A known one is left alone.
    pub fn watch(&self, session: SessionId, node: &NodeName, heard: Option<Timestamp>) {
        let now = self.clock.monotonic();
        self.known().entry(session).or_insert_with(|| Known {
            node: node.clone(),
            signs: Signs::new(now),
            heard_wall: heard,
            beat: None,
            contact: None,
        });
    }

    /// Takes a node that dialed in.
    ///
    /// # Errors
    /// Another pool's live node has the name, the session is fenced, or the address is none.
    pub fn attach(&self, introduction: Introduction) -> Result<Attachment, Error> {
        let channel = proto::client::channel(&introduction.address).map_err(|source| Error::Address {
            node: introduction.node.clone(),
            address: introduction.address.clone(),
            source,
        })?;
        let client = proto::client::node(channel);
        let session = introduction.session;
        let now = self.clock.monotonic();
        let wall = self.clock.now();
        let mut all = self.known();
        let namesake = all.iter().find(|(other, known)| {
            other.pool != session.pool
                && known.node == introduction.node
                && self.judge(known) == Liveness::Live
        });
        if let Some((other, _)) = namesake {
            return Err(Error::NameTaken { node: introduction.node, pool: other.pool });
        }
        let known = all.entry(session).or_insert_with(|| Known {
            node: introduction.node.clone(),
            signs: Signs::new(now),
            heard_wall: None,
            beat: None,
            contact: None,
        });
        if known.signs.fenced {
            return Err(Error::Fenced { session });
        }
        known.node = introduction.node.clone();
        known.signs.heard = Some(now);
        known.heard_wall = Some(wall);
        let stream = known.contact.as_ref().map_or(1, |contact| contact.stream + 1);
        // What an earlier stream said stays until the new one's complete inventory replaces it.
        let before = known.contact.take();
        let (capacity, checks, volumes, templates) = match before {
            Some(contact) => (contact.capacity, contact.checks, contact.volumes, contact.templates),
            None => (None, Vec::new(), Arc::default(), Arc::default()),
        };
        known.contact = Some(Contact { introduction, client, stream, capacity, checks, volumes, templates });
        drop(all);
        self.change();
        Ok(Attachment { session, stream })
    }

    /// Notes that a stream said something; `tell` takes it in. False where a newer stream of the session took over, or
    /// the session was fenced: this one is to end.
    fn heard(&self, attachment: Attachment, tell: impl FnOnce(&mut Contact)) -> bool {
        let now = self.clock.monotonic();
        let wall = self.clock.now();
        let mut all = self.known();
        let Some(known) = all.get_mut(&attachment.session) else { return false };
        if known.signs.fenced {
            return false;
        }
        let Some(contact) = known.contact.as_mut().filter(|contact| contact.stream == attachment.stream)
        else {
            return false;
        };
        known.signs.heard = Some(now);
        known.heard_wall = Some(wall);
        tell(contact);
        drop(all);
        self.change();
        true
    }

    /// Takes in a heartbeat.
    pub fn heartbeat(&self, attachment: Attachment, heartbeat: hub::Heartbeat) -> bool {
        self.heard(attachment, |contact| {
            contact.capacity = heartbeat.capacity;
            contact.checks = heartbeat.checks;
        })
    }

    /// Takes in a node's new address or zone.
    pub fn introduce_again(&self, attachment: Attachment, introduction: Introduction) -> Result<bool, Error> {
        let channel = proto::client::channel(&introduction.address).map_err(|source| Error::Address {
            node: introduction.node.clone(),
            address: introduction.address.clone(),
            source,
        })?;
        Ok(self.heard(attachment, |contact| {
            contact.client = proto::client::node(channel);
            contact.introduction = introduction;
        }))
    }

    /// Takes in what a node holds. Volumes whose ids do not parse are left out and logged.
    pub fn inventory(&self, attachment: Attachment, inventory: hub::Inventory) -> bool {
        self.heard(attachment, |contact| {
            if inventory.complete {
                contact.volumes = Arc::default();
                contact.templates = Arc::default();
            }
            let mut volumes = held(&contact.volumes);
            for volume in inventory.volumes {
                match volume.volume_id.parse::<VolumeId>() {
                    Ok(id) => drop(volumes.insert(id, volume)),
                    Err(error) => tracing::warn!(%error, "a node's inventory names no volume"),
                }
            }
            for removed in inventory.removed.iter().filter_map(|id| id.parse::<VolumeId>().ok()) {
                volumes.remove(&removed);
            }
            drop(volumes);
            // Templates are few: a node names all it has, each time it names any.
            if inventory.complete || !inventory.templates.is_empty() {
                contact.templates = Arc::new(inventory.templates.into_iter().collect());
            }
        })
    }

    /// Notes what a look at a session in the store, begun at `started`, found.
    pub fn saw(&self, session: SessionId, started: Instant, beat: String, fenced: bool) {
        let now = self.clock.monotonic();
        let mut all = self.known();
        let Some(known) = all.get_mut(&session) else { return };
        if known.beat.as_ref() != Some(&beat) {
            known.beat = Some(beat);
            known.signs.beat_moved = Some(now);
        }
        known.signs.beat_read = Some(started);
        known.signs.fenced |= fenced;
        drop(all);
        self.change();
    }

    /// Notes that a node did not answer: until it speaks again, nobody counts on it.
    pub fn doubt(&self, session: SessionId) {
        let now = self.clock.monotonic();
        if let Some(known) = self.known().get_mut(&session) {
            known.signs.doubted = Some(now);
        }
        self.change();
    }

    /// Notes that a session is fenced.
    pub fn fenced(&self, session: SessionId) {
        if let Some(known) = self.known().get_mut(&session) {
            known.signs.fenced = true;
        }
        self.change();
    }

    /// Judges a session; nothing for one that is not watched.
    pub fn liveness(&self, session: SessionId) -> Option<Liveness> {
        self.known().get(&session).map(|known| self.judge(known))
    }

    /// Counts the sessions that are so.
    pub fn count(&self, liveness: Liveness) -> u64 {
        let known = self.known();
        known.values().map(|known| u64::from(self.judge(known) == liveness)).sum()
    }

    /// Returns the sessions whose beats should be looked at: those not heard of late, or all that are not fenced.
    pub fn to_look_at(&self, all: bool) -> Vec<SessionId> {
        self.known()
            .iter()
            .filter(|(_, known)| match self.judge(known) {
                Liveness::Live => all,
                Liveness::Suspect | Liveness::Dead => true,
                Liveness::Fenced => false,
            })
            .map(|(session, _)| *session)
            .collect()
    }

    /// Waits until a session is known to be live or dead, at most for `bound`.
    pub async fn settle(&self, session: SessionId, bound: Duration) -> Liveness {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                match self.liveness(session) {
                    Some(Liveness::Suspect) | None => {}
                    Some(settled) => return settled,
                }
                // Silence changes a verdict without any message, so look again from time to time.
                drop(tokio::time::timeout(self.timings.heartbeat, changed.changed()).await);
            }
        };
        match tokio::time::timeout(bound, wait).await {
            Ok(settled) => settled,
            Err(_) => self.liveness(session).unwrap_or(Liveness::Suspect),
        }
    }

    fn live_node(known: &Known) -> Option<LiveNode> {
        known.contact.as_ref().map(|contact| LiveNode {
            introduction: contact.introduction.clone(),
            client: contact.client.clone(),
            capacity: contact.capacity,
            templates: Arc::clone(&contact.templates),
            volumes: Arc::clone(&contact.volumes),
        })
    }

    /// Returns the live nodes, by name.
    pub fn live(&self) -> Vec<LiveNode> {
        let all = self.known();
        let live = all.values().filter(|known| self.judge(known) == Liveness::Live);
        let mut live: Vec<LiveNode> = live.filter_map(Self::live_node).collect();
        live.sort_by(|a, b| a.name().cmp(b.name()));
        live
    }

    /// Returns a live node by its name.
    pub fn live_by_name(&self, node: &NodeName) -> Option<LiveNode> {
        self.live().into_iter().find(|live| live.name() == node)
    }

    /// Returns the node of a session that is live.
    pub fn live_session(&self, session: SessionId) -> Option<LiveNode> {
        let all = self.known();
        all.get(&session).filter(|known| self.judge(known) == Liveness::Live).and_then(Self::live_node)
    }

    /// Returns the name of a watched session's node.
    pub fn name_of(&self, session: SessionId) -> Option<NodeName> {
        self.known().get(&session).map(|known| known.node.clone())
    }

    /// Returns a volume as its node last described it.
    pub fn volume(&self, session: SessionId, volume: &VolumeId) -> Option<wire::Volume> {
        let all = self.known();
        held(&all.get(&session)?.contact.as_ref()?.volumes).get(volume).cloned()
    }

    /// Returns the live nodes on which a template's version is at hand.
    pub fn holders(&self, volume: &VolumeId, version: Option<&VersionId>) -> Vec<NodeName> {
        let live = self.live();
        live.iter().filter(|node| node.has_content(volume, version)).map(|node| node.name().clone()).collect()
    }

    /// Returns the sessions that only the store knows.
    pub fn never_heard(&self) -> Vec<SessionId> {
        let all = self.known();
        all.iter().filter(|(_, known)| known.heard_wall.is_none()).map(|(session, _)| *session).collect()
    }

    /// Describes the nodes, by name: every one that ever dialed in, and those that only the store knows where
    /// `also` wants them (an operator's tool has a session too, and is no node). Of several sessions of a node the latest stands for it.
    pub fn describe(&self, also: impl Fn(SessionId) -> bool) -> Vec<hub::Node> {
        let all = self.known();
        let mut latest: HashMap<&NodeName, (&SessionId, &Known)> = HashMap::new();
        for (session, known) in all.iter().filter(|(id, known)| known.heard_wall.is_some() || also(**id)) {
            let rank = |session: &SessionId, known: &Known| {
                (known.contact.is_some(), known.signs.heard, session.number)
            };
            match latest.get(&known.node) {
                Some((other, kept)) if rank(other, kept) >= rank(session, known) => {}
                _ => drop(latest.insert(&known.node, (session, known))),
            }
        }
        let mut nodes: Vec<hub::Node> = latest
            .into_iter()
            .map(|(node, (session, known))| {
                let state = match self.judge(known) {
                    Liveness::Live => hub::node::State::Live,
                    Liveness::Suspect => hub::node::State::Suspect,
                    Liveness::Dead | Liveness::Fenced => hub::node::State::Dead,
                };
                let contact = known.contact.as_ref();
                hub::Node {
                    node: node.to_string(),
                    state: state.into(),
                    session: session.to_string(),
                    address: contact.map_or_else(String::new, |contact| contact.introduction.address.clone()),
                    zone: contact.map_or_else(String::new, |contact| contact.introduction.zone.clone()),
                    capacity: contact.and_then(|contact| contact.capacity),
                    last_heard: known.heard_wall.map(proto::convert::timestamp),
                    checks: contact.map_or_else(Vec::new, |contact| contact.checks.clone()),
                }
            })
            .collect();
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        nodes
    }
}
