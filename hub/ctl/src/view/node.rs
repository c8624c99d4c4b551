//! Nodes, what they found out about themselves, and templates.

use serde::Serialize;
use types::{NodeName, ResourceName, SessionId, Timestamp, VersionId, VolumeId};

use super::{Time, some};
use crate::output::{Row, ago, dash, size};

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Check {
    /// hub, store, or a node's name.
    pub place: String,
    /// What.
    pub name: String,
    /// All is well.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Check {
    /// Makes the view of a check at a place.
    pub fn new(place: &str, check: orchestrator::Check) -> Self {
        Self {
            place: place.to_owned(),
            name: check.name,
            ok: check.ok,
            detail: check.detail,
            remedy: some(check.remedy),
        }
    }
}

impl Row for Check {
    const HEADS: &'static [&'static str] = &["WHERE", "CHECK", "", "FOUND", "WHAT TO DO"];

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.place.clone(),
            self.name.clone(),
            if self.ok { "ok" } else { "NO" }.to_owned(),
            self.detail.clone(),
            self.remedy.clone().unwrap_or_default(),
        ]
    }
}

/// A node.
#[derive(Debug, Serialize)]
pub struct Node {
    /// Its name.
    pub node: NodeName,
    /// live, suspect, dead.
    pub state: String,
    /// The session it has.
    pub session: Option<SessionId>,
    /// Where its services are.
    pub address: String,
    /// Where it stands.
    pub zone: Option<String>,
    /// How many volumes it holds.
    pub volumes: u32,
    /// Size of its pool.
    pub total_bytes: u64,
    /// What is used.
    pub used_bytes: u64,
    /// What can still be promised.
    pub available_bytes: u64,
    /// When the hub heard it.
    pub last_heard: Option<Time>,
    /// What it found out about itself.
    pub checks: Vec<Check>,
}

impl From<orchestrator::Node> for Node {
    fn from(node: orchestrator::Node) -> Self {
        let capacity = node.capacity;
        Self {
            state: node.state.to_string(),
            zone: some(node.zone),
            last_heard: node.last_heard.map(Time),
            checks: node.checks.into_iter().map(|check| Check::new(node.name.as_str(), check)).collect(),
            node: node.name,
            session: node.session,
            address: node.address,
            volumes: capacity.map_or(0, |capacity| capacity.volumes),
            total_bytes: capacity.map_or(0, |capacity| capacity.total.0),
            used_bytes: capacity.map_or(0, |capacity| capacity.used.0),
            available_bytes: capacity.map_or(0, |capacity| capacity.available.0),
        }
    }
}

impl Row for Node {
    const HEADS: &'static [&'static str] =
        &["NODE", "STATE", "VOLUMES", "USED", "AVAILABLE", "TOTAL", "ADDRESS", "HEARD", "CHECKS"];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let wrong = self.checks.iter().filter(|check| !check.ok).count();
        vec![
            self.node.to_string(),
            self.state.clone(),
            self.volumes.to_string(),
            size(self.used_bytes),
            size(self.available_bytes),
            size(self.total_bytes),
            dash(some(self.address.clone()).as_ref()),
            ago(self.last_heard, now),
            if wrong == 0 { "ok".to_owned() } else { format!("{wrong} not ok: sailctl doctor") },
        ]
    }
}

/// A template.
#[derive(Debug, Serialize)]
pub struct Template {
    /// Its name.
    pub name: ResourceName,
    /// Its record.
    pub id: VolumeId,
    /// Its tree.
    pub version: Option<VersionId>,
    /// When it was made.
    pub created: Option<Time>,
    /// Where it is materialised.
    pub nodes: Vec<NodeName>,
}

impl From<orchestrator::Template> for Template {
    fn from(template: orchestrator::Template) -> Self {
        Self {
            name: template.name,
            id: template.volume,
            version: template.version,
            created: template.created.map(Time),
            nodes: template.nodes,
        }
    }
}

impl Row for Template {
    const HEADS: &'static [&'static str] = &["NAME", "ID", "VERSION", "ON NODES", "AGE"];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let nodes: Vec<_> = self.nodes.iter().map(ToString::to_string).collect();
        vec![
            self.name.to_string(),
            self.id.to_string(),
            dash(self.version.map(|version| version.short()).as_ref()),
            dash(some(nodes.join(",")).as_ref()),
            ago(self.created, now),
        ]
    }
}
