//! Bundles, and names of points in time.

use serde::Serialize;
use types::{EntryId, ResourceName, Timestamp, VersionId, VolumeId};

use super::Time;
use crate::output::{Fields, Row, ago, dash};

/// A published state.
#[derive(Debug, Serialize)]
pub struct Bundle {
    /// Its record.
    pub id: VolumeId,
    /// A name that leads to it.
    pub name: Option<ResourceName>,
    /// Its tree.
    pub version: VersionId,
    /// The volume that it was published from first.
    pub source: Option<VolumeId>,
    /// When.
    pub created: Option<Time>,
    /// Whether this command made it: the same state is the same bundle.
    pub changed: bool,
}

impl From<orchestrator::Bundle> for Bundle {
    fn from(bundle: orchestrator::Bundle) -> Self {
        Self {
            id: bundle.id,
            name: bundle.name,
            version: bundle.version,
            source: bundle.source,
            created: bundle.created.map(Time),
            changed: bundle.made,
        }
    }
}

impl Row for Bundle {
    const HEADS: &'static [&'static str] = &["NAME", "ID", "VERSION", "SOURCE", "AGE"];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        vec![
            dash(self.name.as_ref()),
            self.id.to_string(),
            self.version.short(),
            dash(self.source.as_ref()),
            ago(self.created, now),
        ]
    }
}

impl Fields for Bundle {
    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        vec![
            ("id", self.id.to_string()),
            ("name", dash(self.name.as_ref())),
            ("version", self.version.to_string()),
            ("source", dash(self.source.as_ref())),
            ("changed", self.changed.to_string()),
        ]
    }
}

/// A branch or a pin.
#[derive(Debug, Serialize)]
pub struct Named {
    /// The branch, or who pins.
    pub name: String,
    /// The entry.
    pub entry: EntryId,
}

impl Row for Named {
    const HEADS: &'static [&'static str] = &["NAME", "ENTRY"];

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        vec![self.name.clone(), self.entry.short()]
    }
}

/// A name that does not lead anywhere any more.
#[derive(Debug, Serialize)]
pub struct Gone {
    /// The branch, pin, bundle or template, as it was said.
    pub name: String,
}

impl Row for Gone {
    const HEADS: &'static [&'static str] = &["GONE"];

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        vec![self.name.clone()]
    }
}
