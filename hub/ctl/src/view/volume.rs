//! A volume, and what acting on a whole one answers.

use std::collections::BTreeMap;

use orchestrator::Project;
use serde::Serialize;
use types::{Epoch, NodeName, SessionId, Timestamp, VersionId, VolumeId};

use super::{Time, some};
use crate::output::{Fields, Row, ago, dash, size};

/// A version of some volume.
#[derive(Debug, Serialize)]
pub struct Origin {
    /// The volume it came from.
    pub volume: VolumeId,
    /// 64 hex digits.
    pub version: VersionId,
}

/// A volume.
#[derive(Debug, Serialize)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// The name that people gave it; else its id.
    pub name: String,
    /// Where it is; nothing while it sleeps.
    pub node: Option<NodeName>,
    /// Grows with every change of owner.
    pub epoch: Epoch,
    /// The durable head; nothing before the first.
    pub version: Option<VersionId>,
    /// Something was written since the head.
    pub dirty: bool,
    /// It is mounted on its node.
    pub mounted: bool,
    /// Health in a word.
    pub health: String,
    /// And in a sentence.
    pub detail: Option<String>,
    /// The most it may hold; 0: unlimited.
    pub quota_bytes: u64,
    /// What it holds.
    pub used_bytes: u64,
    /// volume, snapshot, template, bundle, orphan.
    pub kind: String,
    /// What it was made from.
    pub origin: Option<Origin>,
    /// When it was made.
    pub created: Option<Time>,
    /// When its head was published.
    pub last_sync: Option<Time>,
    /// The session that owns it.
    pub session: Option<SessionId>,
    /// Its dedup domain.
    pub domain: Option<types::Domain>,
    /// What was remembered with it.
    pub attributes: BTreeMap<String, String>,
    /// Branch to entry.
    pub branches: BTreeMap<String, String>,
    /// The live tree on its node.
    pub path: Option<String>,
}

impl From<Project> for Volume {
    fn from(project: Project) -> Self {
        Self {
            id: project.id,
            name: project.name,
            node: project.node,
            epoch: project.epoch,
            version: project.version,
            dirty: project.dirty,
            mounted: project.mounted,
            health: project.health.to_string(),
            detail: some(project.detail),
            quota_bytes: project.quota.map_or(0, |quota| quota.0),
            used_bytes: project.used.0,
            kind: project.kind.to_string(),
            origin: project.origin.map(|origin| Origin { volume: origin.volume, version: origin.version }),
            created: project.created.map(Time),
            last_sync: project.last_sync.map(Time),
            session: project.session,
            domain: project.domain,
            attributes: project.attributes,
            branches: project.branches,
            path: some(project.path),
        }
    }
}

fn quota(bytes: u64) -> String {
    if bytes == 0 { "unlimited".to_owned() } else { size(bytes) }
}

fn yes(flag: bool) -> String {
    if flag { "yes" } else { "no" }.to_owned()
}

impl Row for Volume {
    const HEADS: &'static [&'static str] = &[
        "ID", "NAME", "KIND", "NODE", "EPOCH", "VERSION", "DIRTY", "USED", "QUOTA", "HEALTH", "SYNCED", "AGE",
    ];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.id.to_string(),
            if self.name == self.id.as_str() { "-".to_owned() } else { self.name.clone() },
            self.kind.clone(),
            dash(self.node.as_ref()),
            self.epoch.to_string(),
            dash(self.version.map(|version| version.short()).as_ref()),
            yes(self.dirty),
            size(self.used_bytes),
            quota(self.quota_bytes),
            self.health.clone(),
            ago(self.last_sync, now),
            ago(self.created, now),
        ]
    }
}

impl Fields for Volume {
    fn fields(&self, now: Timestamp) -> Vec<(&'static str, String)> {
        let health = match &self.detail {
            Some(detail) => format!("{}: {detail}", self.health),
            None => self.health.clone(),
        };
        let when = |time: Option<Time>| time.map(|time| format!("{} ({} ago)", time.0, ago(Some(time), now)));
        let mut fields = vec![
            ("id", self.id.to_string()),
            ("name", self.name.clone()),
            ("kind", self.kind.clone()),
            ("health", health),
            ("node", dash(self.node.as_ref())),
            ("path", dash(self.path.as_ref())),
            ("epoch", self.epoch.to_string()),
            ("session", dash(self.session.as_ref())),
            ("version", dash(self.version.as_ref())),
            ("dirty", yes(self.dirty)),
            ("mounted", yes(self.mounted)),
            ("used", format!("{} of {}", size(self.used_bytes), quota(self.quota_bytes))),
            ("domain", dash(self.domain.as_ref())),
            ("last sync", dash(when(self.last_sync).as_ref())),
            ("created", dash(when(self.created).as_ref())),
        ];
        if let Some(origin) = &self.origin {
            fields.push(("made from", format!("{}@{}", origin.volume, origin.version)));
        }
        fields.extend(self.branches.iter().map(|(name, entry)| ("branch", format!("{name} = {entry}"))));
        fields.extend(self.attributes.iter().map(|(key, value)| ("attribute", format!("{key} = {value}"))));
        fields
    }
}

/// What a deletion answers.
#[derive(Debug, Serialize)]
pub struct Removed {
    /// The volume's id.
    pub id: VolumeId,
}

impl Row for Removed {
    const HEADS: &'static [&'static str] = &["DELETED"];

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        vec![self.id.to_string()]
    }
}

/// What a wake answers.
#[derive(Debug, Serialize)]
pub struct Woken {
    /// The volume's id.
    pub id: VolumeId,
    /// Where it is now.
    pub node: NodeName,
    /// Under which epoch.
    pub epoch: Epoch,
    /// Its durable head.
    pub version: Option<VersionId>,
    /// It was taken from a node that died: what that node wrote after `last_durable` is not in it.
    pub taken_over: bool,
    /// When the head was published, where it was taken over.
    pub last_durable: Option<Time>,
}

impl Woken {
    /// Makes the view of an answer.
    pub fn new(id: VolumeId, woken: orchestrator::Woken) -> Self {
        Self {
            id,
            node: woken.node,
            epoch: woken.epoch,
            version: woken.version,
            taken_over: woken.taken_over,
            last_durable: woken.last_durable.map(Time),
        }
    }
}

impl Fields for Woken {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("id", self.id.to_string()),
            ("node", self.node.to_string()),
            ("epoch", self.epoch.to_string()),
            ("version", dash(self.version.as_ref())),
        ];
        if self.taken_over {
            let since =
                self.last_durable.map_or_else(|| "the last sync".to_owned(), |time| time.0.to_string());
            fields.push(("taken over", format!("what the dead node wrote after {since} is not in it")));
        }
        fields
    }
}
