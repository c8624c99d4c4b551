//! Bundles: published states that never change, and what calls about them answer.

use std::collections::BTreeMap;

use proto::convert::{InvalidField, optional, required, time};
use proto::hub;
use types::{NodeName, RequestId, ResourceName, Timestamp, VersionId, VolumeId};

use crate::project::Quota;

/// The attribute of an installed project that names the bundle it came from.
pub const FORKED_FROM: &str = "forked_from";

/// A published state. The same state is the same bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Its id.
    pub id: VolumeId,
    /// A name that leads to it.
    pub name: Option<ResourceName>,
    /// What it holds.
    pub version: VersionId,
    /// The project that it was published from first.
    pub source: Option<VolumeId>,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// Whether the call made it, or found it.
    pub made: bool,
}

impl TryFrom<hub::Bundle> for Bundle {
    type Error = InvalidField;

    fn try_from(bundle: hub::Bundle) -> Result<Self, InvalidField> {
        Ok(Self {
            id: required("bundle_id", &bundle.bundle_id)?,
            name: optional("name", &bundle.name)?,
            version: required("version", &bundle.version)?,
            source: optional("source_volume_id", &bundle.source_volume_id)?,
            created: bundle.created.map(time),
            made: bundle.made,
        })
    }
}

/// What an installed bundle is to be.
#[derive(Debug, Clone, Default)]
pub struct NewInstall {
    /// The caller's name for this request; a retry with the same one gets the same project.
    pub request: Option<RequestId>,
    /// A name for people.
    pub name: Option<ResourceName>,
    /// There if possible.
    pub node_hint: Option<NodeName>,
    /// How much it may hold.
    pub quota: Quota,
    /// What else the platform wants to remember with it.
    pub attributes: BTreeMap<String, String>,
}
