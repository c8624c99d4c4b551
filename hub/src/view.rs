//! What callers see of a record: the record itself, where its owner is, and what the owner's node said last.

use cas::record::{Record, RecordKind};
use cas::{Entry, Role};
use proto::convert::timestamp;
use proto::{hub, node as wire};
use types::{EntryId, VersionId};

use crate::catalog::NAME;
use crate::flight::Operation;
use crate::liveness::Liveness;

/// What is known of a volume's owner.
#[derive(Debug, Clone, Default)]
pub struct OwnerSeen {
    /// Whether its session lives; nothing for a volume without owner.
    pub liveness: Option<Liveness>,
    /// The volume as its node described it.
    pub volume: Option<wire::Volume>,
    /// What is being done to it.
    pub operation: Option<Operation>,
}

/// Returns the version of an entry.
pub fn version_of(entry: &Entry) -> Option<VersionId> {
    entry.version()
}

/// Returns the durable head's version.
pub fn head_version(record: &Record) -> Option<VersionId> {
    record.head_entry().and_then(version_of)
}

/// Returns the wire's word for a kind.
pub fn wire_kind(kind: RecordKind) -> wire::RecordKind {
    match kind {
        RecordKind::Volume => wire::RecordKind::Volume,
        RecordKind::Snapshot => wire::RecordKind::Snapshot,
        RecordKind::Template => wire::RecordKind::Template,
        RecordKind::Bundle => wire::RecordKind::Bundle,
        RecordKind::Orphan => wire::RecordKind::Orphan,
    }
}

/// Returns the kind that the wire's word means; `default` where it says nothing.
pub fn record_kind(kind: wire::RecordKind, default: RecordKind) -> RecordKind {
    match kind {
        wire::RecordKind::Unspecified => default,
        wire::RecordKind::Volume => RecordKind::Volume,
        wire::RecordKind::Snapshot => RecordKind::Snapshot,
        wire::RecordKind::Template => RecordKind::Template,
        wire::RecordKind::Bundle => RecordKind::Bundle,
        wire::RecordKind::Orphan => RecordKind::Orphan,
    }
}

/// Returns the wire's word for a role.
pub fn wire_role(role: Role) -> wire::EntryRole {
    match role {
        Role::Sync => wire::EntryRole::Sync,
        Role::Manual => wire::EntryRole::Manual,
        Role::Event => wire::EntryRole::Event,
        Role::Step => wire::EntryRole::Step,
    }
}

/// Says how a volume is, and why, where the why is not its node's to tell.
fn health(volume: &hub::Volume, seen: &OwnerSeen) -> (wire::Health, String) {
    if record_kind(volume.kind(), RecordKind::Volume).is_sealed() {
        return (wire::Health::Healthy, String::new());
    }
    match &seen.operation {
        Some(Operation::Move(node)) => return (wire::Health::Moving, format!("on its way to {node}")),
        Some(Operation::Ensure(_) | Operation::Restore(_)) => {
            return (wire::Health::Restoring, "being brought to a node".to_owned());
        }
        Some(Operation::Create(_) | Operation::Delete(_) | Operation::Hibernate) | None => {}
    }
    let node = if volume.node.is_empty() { "its node" } else { &volume.node };
    match seen.liveness {
        None => (wire::Health::Asleep, String::new()),
        Some(Liveness::Fenced) => (
            wire::Health::Asleep,
            format!("{node} was fenced; what it had not synced comes back as an orphan if it returns"),
        ),
        Some(Liveness::Suspect) => (wire::Health::OwnerUnreachable, format!("{node} is silent")),
        Some(Liveness::Dead) => {
            (wire::Health::OwnerUnreachable, format!("{node} is dead; wake the volume to take it over"))
        }
        Some(Liveness::Live) => match &seen.volume {
            Some(volume) => (volume.health(), volume.detail.clone()),
            None => (wire::Health::Unspecified, "its node has not told of it yet".to_owned()),
        },
    }
}

/// Describes a volume.
pub fn volume(record: &Record, seen: &OwnerSeen) -> hub::Volume {
    with_owner(stored(record), seen)
}

/// Describes what a record says. Its node and session are those of its owner or the last one, whatever became of it.
pub fn stored(record: &Record) -> hub::Volume {
    hub::Volume {
        volume_id: record.id.to_string(),
        name: record.attributes.get(NAME).cloned().unwrap_or_else(|| record.id.to_string()),
        node: text(record.node.as_ref()),
        epoch: record.epoch.0,
        version: text(head_version(record)),
        quota_bytes: record.quota.limit_bytes.unwrap_or(0),
        used_bytes: record.quota.charge_bytes,
        origin: record.origin.as_ref().map(|origin| wire::Origin {
            volume_id: origin.volume.to_string(),
            version: text(origin.versions.values().next()),
        }),
        kind: wire_kind(record.kind).into(),
        created: Some(timestamp(record.created)),
        last_sync: record.head_entry().map(|entry| timestamp(entry.time)),
        session: text(record.owner),
        domain: record.domain.to_string(),
        attributes: record.attributes.clone().into_iter().collect(),
        branches: record.branches.iter().map(|(name, tip)| (name.clone(), tip.to_string())).collect(),
        takeover: record.taken_over().map(|takeover| hub::Takeover {
            from_node: text(takeover.node.as_ref()),
            last_durable: takeover.durable.map(timestamp),
            taken: Some(timestamp(takeover.taken)),
        }),
        pins: record.pins.iter().map(|(owner, entry)| (owner.clone(), entry.to_string())).collect(),
        ..hub::Volume::default()
    }
}

/// Adds to what a record says what is known of its owner.
pub fn with_owner(mut described: hub::Volume, seen: &OwnerSeen) -> hub::Volume {
    let (health, detail) = health(&described, seen);
    described.health = health.into();
    described.detail = match &described.takeover {
        Some(takeover) if detail.is_empty() => taken_over(takeover),
        Some(_) | None => detail,
    };
    if !matches!(seen.liveness, Some(Liveness::Live | Liveness::Suspect | Liveness::Dead)) {
        described.node.clear();
        described.session.clear();
    }
    let Some(told) = seen.volume.as_ref().filter(|_| seen.liveness == Some(Liveness::Live)) else {
        return described;
    };
    described.dirty = told.dirty;
    described.used_bytes = told.used_bytes;
    described.mounted = told.mounted;
    described.path.clone_from(&told.path);
    // A sync that finds nothing changed writes no entry, but the present is durable all the same.
    if let Some(synced) = told.last_sync
        && described.last_sync.is_none_or(|entry| proto::convert::time(entry) < proto::convert::time(synced))
    {
        described.last_sync = Some(synced);
    }
    described
}

/// Leaves out what a list of many does not show.
pub fn brief(mut described: hub::Volume) -> hub::Volume {
    for text in [
        &mut described.name,
        &mut described.version,
        &mut described.session,
        &mut described.domain,
        &mut described.path,
    ] {
        *text = String::new();
    }
    described.branches.clear();
    described.pins.clear();
    described
}

fn taken_over(takeover: &hub::Takeover) -> String {
    let from = &takeover.from_node;
    match takeover.last_durable {
        Some(durable) => {
            let durable = proto::convert::time(durable);
            format!("taken over from {from}: what was written there after {durable} is not in it")
        }
        None => format!("taken over from {from}, where nothing of it was durable"),
    }
}

/// Describes an entry of a record.
pub fn entry(record: &Record, entry: &Entry) -> hub::Entry {
    let branch = record.branches.iter().find(|(_, tip)| **tip == entry.id);
    hub::Entry {
        entry_id: entry.id.to_string(),
        version: text(version_of(entry)),
        previous: text(entry.previous),
        time: Some(timestamp(entry.time)),
        role: wire_role(entry.role).into(),
        label: entry.label.clone(),
        head: record.head == Some(entry.id),
        branch: branch.map_or_else(String::new, |(name, _)| name.clone()),
    }
}

/// Returns a page of the timeline, newest first, and the token of the next one. A token is the last entry shown; where
/// that was thinned since, the page goes on with what is older than it was.
pub async fn timeline(
    store: &cas::Store,
    record: &Record,
    token: Option<(types::Timestamp, EntryId)>,
    size: usize,
) -> Result<(Vec<hub::Entry>, Option<String>), cas::Error> {
    let (page, more) = cas::timeline::list(store, record, token, size).await?;
    let next = page.last().filter(|_| more).map(|last| format!("{}.{}", last.time.0, last.id));
    Ok((page.iter().map(|one| entry(record, one)).collect(), next))
}

/// Reads the token of a timeline.
pub fn timeline_token(text: &str) -> Option<(types::Timestamp, EntryId)> {
    let (time, id) = text.split_once('.')?;
    Some((types::Timestamp(time.parse().ok()?), id.parse().ok()?))
}

fn text(value: Option<impl ToString>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}
