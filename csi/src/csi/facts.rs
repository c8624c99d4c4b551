//! What the controller keeps in a record's attributes, and how a record looks to CSI.

use std::collections::HashMap;

use proto::csi::v1 as csi;
use proto::{hub, node as wire};

use super::parameters::Mobility;

/// The name that CSI gave.
pub(crate) const NAME: &str = "csi/name";
/// The parameters that it was made with, in one line.
pub(crate) const PARAMETERS: &str = "csi/parameters";
/// What it was made from: `snapshot:<id>` or `volume:<id>`.
pub(crate) const SOURCE: &str = "csi/source";
/// Where the volume may be used.
pub(crate) const MOBILITY: &str = "csi/mobility";
/// The node that a pinned volume is pinned to, wherever it sleeps.
pub(crate) const PINNED: &str = "csi/pinned";
/// The claim that it is for.
pub(crate) const CLAIM: &str = "csi/claim";
/// The node where it is published. This attribute is the fence: it is set only where it is not there.
pub(crate) const NODE: &str = "csi/node";
/// Whether it is published read-only.
pub(crate) const READONLY: &str = "csi/readonly";
/// The group that a snapshot belongs to.
pub(crate) const GROUP: &str = "csi/group";
/// The name that CSI gave to the group.
pub(crate) const GROUP_NAME: &str = "csi/group-name";

/// The topology key of a driver.
pub(crate) fn topology_key(driver: &str) -> String {
    format!("{driver}/node")
}

/// The topology of one node.
pub(crate) fn topology(driver: &str, node: &str) -> csi::Topology {
    csi::Topology { segments: HashMap::from([(topology_key(driver), node.to_owned())]) }
}

/// Returns an attribute, or the empty text.
pub(crate) fn attribute<'v>(volume: &'v hub::Volume, key: &str) -> &'v str {
    volume.attributes.get(key).map_or("", String::as_str)
}

/// Where the volume may be used.
pub(crate) fn mobility(volume: &hub::Volume) -> Mobility {
    Mobility::parse(attribute(volume, MOBILITY)).unwrap_or_default()
}

/// A size as CSI writes it.
pub(crate) fn bytes(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Describes a volume.
pub(crate) fn volume(driver: &str, volume: &hub::Volume) -> csi::Volume {
    use csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
    let source = match attribute(volume, SOURCE).split_once(':') {
        Some(("snapshot", id)) => Some(Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() })),
        Some(("volume", id)) => Some(Type::Volume(VolumeSource { volume_id: id.to_owned() })),
        Some(_) | None => None,
    };
    let accessible_topology = match mobility(volume) {
        Mobility::Pinned => vec![topology(driver, attribute(volume, PINNED))],
        Mobility::Floating => Vec::new(),
    };
    csi::Volume {
        capacity_bytes: bytes(volume.quota_bytes),
        volume_id: volume.volume_id.clone(),
        volume_context: HashMap::new(),
        content_source: source.map(|source| csi::VolumeContentSource { r#type: Some(source) }),
        accessible_topology,
    }
}

/// The nodes where it is published.
pub(crate) fn published(volume: &hub::Volume) -> Vec<String> {
    volume.attributes.get(NODE).cloned().into_iter().collect()
}

/// How it is, in the two words that CSI has.
pub(crate) fn condition(health: wire::Health, detail: &str) -> csi::VolumeCondition {
    let (abnormal, words) = match health {
        wire::Health::Healthy => (false, "healthy"),
        wire::Health::Syncing => (false, "syncing"),
        wire::Health::Moving => (false, "moving to another node"),
        wire::Health::Restoring => (false, "being brought to a node"),
        wire::Health::Asleep => (false, "asleep in the store"),
        wire::Health::Unspecified => (false, "its node has not told of it yet"),
        wire::Health::RestartToSeeIt => (false, "restored under a mount: restart the pod to see it"),
        wire::Health::Behind => (true, "changes are not durable yet"),
        wire::Health::OwnerUnreachable => (true, "its node is not heard"),
        wire::Health::Fenced => (true, "its node lost it: what is written there now is kept apart"),
        wire::Health::Degraded => (true, "degraded"),
    };
    let message = if detail.is_empty() { words.to_owned() } else { format!("{words}: {detail}") };
    csi::VolumeCondition { abnormal, message }
}

/// Describes a snapshot.
pub(crate) fn snapshot(record: &hub::Volume) -> csi::Snapshot {
    csi::Snapshot {
        size_bytes: bytes(record.quota_bytes),
        snapshot_id: record.volume_id.clone(),
        source_volume_id: record.origin.as_ref().map_or_else(String::new, |origin| origin.volume_id.clone()),
        creation_time: record.created,
        // A record that is there names bytes that are stored.
        ready_to_use: true,
        group_snapshot_id: attribute(record, GROUP).to_owned(),
    }
}
