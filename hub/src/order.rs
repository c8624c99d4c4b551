//! Orders that need the owner of a volume: sync, snapshot, restore; and delete, which needs it only if it lives.

use std::sync::Arc;
use std::time::Duration;

use cas::names::NameKind;
use cas::record::{Record, RecordKind, State as Life};
use cas::timeline;
use proto::node as wire;
use types::{Classify as _, Kind, NodeName, ResourceName, VolumeId};

use crate::catalog::NAME;
use crate::core::{Done, Hub, Whereabouts};
use crate::create::Point;
use crate::ensure::{dead, ensure};
use crate::error::Error;
use crate::flight::Operation;
use crate::nodes::LiveNode;
use crate::placement::{Budget, NoPlace};
use crate::settings::Attributes;
use crate::view::head_version;

/// How often a delete looks again for a node that can do it, and a restore at what it is decided on.
const ROUNDS: usize = 2;

/// How often a node is told to drop a copy that another operation has, and how long between.
const TELLS: usize = 10;
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// The owner of a volume, or nobody where it sleeps. A dead owner is an error: taking a volume over loses what that node
/// had not synced, and nobody asked for that here. A silent one is waited for, at most `bound`.
pub(crate) async fn owner(hub: &Hub, record: &Record, bound: Duration) -> Result<Option<LiveNode>, Error> {
    let volume = || record.id.clone();
    match hub.whereabouts(record, bound).await? {
        Whereabouts::Live(node) => Ok(Some(*node)),
        Whereabouts::Asleep => Ok(None),
        // Its pool is back with a new session, and about to take again what it had.
        Whereabouts::Fenced if is_back(hub, record) => {
            let node = record.node.as_ref().map_or_else(String::new, ToString::to_string);
            Err(Error::OwnerSilent { volume: volume(), node })
        }
        Whereabouts::Fenced => Err(dead(record)),
        Whereabouts::Dead { node, .. } => Err(Error::OwnerDead { volume: volume(), node }),
        Whereabouts::Silent { node } => Err(Error::OwnerSilent { volume: volume(), node }),
    }
}

/// Whether the pool of a fenced owner lives again.
fn is_back(hub: &Hub, record: &Record) -> bool {
    let pool = record.owner.map(|owner| owner.pool);
    hub.nodes.live().iter().any(|node| Some(node.introduction.session.pool) == pool)
}

/// The owner of a volume, which is woken where it sleeps.
async fn awake(hub: &Arc<Hub>, volume: &VolumeId) -> Result<LiveNode, Error> {
    let record = hub.catalog.volume(volume).await?;
    if let Some(node) = owner(hub, &record, hub.reconnect_time()).await? {
        return Ok(node);
    }
    let woken = ensure(hub, volume, &[], Budget::default()).await?;
    let node = proto::convert::required("node", &woken.node)?;
    let gone = || Error::OwnerSilent { volume: volume.clone(), node: woken.node.clone() };
    hub.nodes.live_by_name(&node).ok_or_else(gone)
}

/// Makes the present state durable. What sleeps is durable already.
pub async fn sync(hub: &Arc<Hub>, volume: &VolumeId) -> Result<wire::SyncVolumeResponse, Error> {
    let record = hub.catalog.volume(volume).await?;
    match owner(hub, &record, hub.reconnect_time()).await? {
        Some(node) => sync_on(hub, &node, volume, String::new(), wire::EntryRole::Sync).await,
        None => Ok(wire::SyncVolumeResponse {
            version: head_version(&record).map_or_else(String::new, |version| version.to_string()),
            entry_id: record.head.map_or_else(String::new, |head| head.to_string()),
            epoch: record.epoch.0,
            ..wire::SyncVolumeResponse::default()
        }),
    }
}

async fn sync_on(
    hub: &Hub,
    node: &LiveNode,
    volume: &VolumeId,
    label: String,
    role: wire::EntryRole,
) -> Result<wire::SyncVolumeResponse, Error> {
    let request = wire::SyncVolumeRequest { volume_id: volume.to_string(), label, role: role.into() };
    hub.order(node, "sync the volume", request, |mut client, request| async move {
        client.sync_volume(request).await
    })
    .await
}

/// Makes the present state a durable entry that does not thin with the others.
pub async fn snapshot(hub: &Arc<Hub>, volume: &VolumeId, label: String) -> Result<proto::hub::Entry, Error> {
    let node = awake(hub, volume).await?;
    let synced = sync_on(hub, &node, volume, label.clone(), wire::EntryRole::Manual).await?;
    let id = proto::convert::required("entry_id", &synced.entry_id)?;
    let record = hub.catalog.volume(volume).await?;
    Ok(match record.entry(&id) {
        Some(entry) => crate::view::entry(&record, entry),
        // So many were made meanwhile that it rolled off; the node acknowledged it all the same.
        None => proto::hub::Entry {
            entry_id: synced.entry_id,
            version: synced.version,
            role: wire::EntryRole::Manual.into(),
            label,
            ..proto::hub::Entry::default()
        },
    })
}

/// Brings a volume back to a point on its timeline.
pub async fn restore(
    hub: &Arc<Hub>,
    volume: &VolumeId,
    point: Point,
) -> Result<wire::RestoreVolumeResponse, Error> {
    let wanted = match point {
        Point::Entry(entry) => entry.to_string(),
        Point::Version(version) => version.to_string(),
        Point::Present => return Err(Error::NoEntry { volume: volume.clone(), wanted: String::new() }),
    };
    let missing = || Error::NoEntry { volume: volume.clone(), wanted: wanted.clone() };
    let record = hub.catalog.volume(volume).await?;
    find(hub, &record, point).await?.ok_or_else(missing)?;
    let node = awake(hub, volume).await?;
    let (owned, id) = (Arc::clone(hub), volume.clone());
    let work = |_| async move {
        for _ in 1..ROUNDS {
            match bring_back(&owned, &node, &id, point).await {
                // A sync came between our look and the node's: look again.
                Err(error) if error.kind() == Kind::Aborted => {}
                outcome => return outcome,
            }
        }
        bring_back(&owned, &node, &id, point).await
    };
    match hub.flights.fly(volume, Operation::Restore(wanted), work).await? {
        Done::Restored(answer) => Ok(answer),
        Done::Volume | Done::Named(_) | Done::Made(_) | Done::Ensured(_) => {
            Err(Error::OperationDied { volume: volume.clone() })
        }
    }
}

/// Orders one restore, decided on what the record says now: the order is void once the head has moved.
async fn bring_back(hub: &Hub, node: &LiveNode, volume: &VolumeId, point: Point) -> Result<Done, Error> {
    let record = hub.catalog.volume(volume).await?;
    let text = |wanted: Option<String>| wanted.unwrap_or_default();
    let request = wire::RestoreVolumeRequest {
        volume_id: volume.to_string(),
        entry_id: text(if let Point::Entry(entry) = point { Some(entry.to_string()) } else { None }),
        version: text(if let Point::Version(version) = point { Some(version.to_string()) } else { None }),
        if_head: text(record.head.map(|head| head.to_string())),
    };
    let answer = hub.order(node, "restore the volume", request, |mut client, request| async move {
        client.restore_volume(request).await
    });
    answer.await.map(Done::Restored)
}

/// Finds a point of a timeline, in the record or in a page of older entries. The present is the head.
pub(crate) async fn find(hub: &Hub, record: &Record, point: Point) -> Result<Option<cas::Entry>, Error> {
    Ok(match point {
        Point::Entry(entry) => timeline::find_entry(&hub.store, record, &entry).await?,
        Point::Version(version) => timeline::find_version(&hub.store, record, &version).await?,
        Point::Present => record.head_entry().cloned(),
    })
}

/// The names that lead to records of a kind, where names do.
pub(crate) fn name_kind(kind: RecordKind) -> Option<NameKind> {
    match kind {
        RecordKind::Template => Some(NameKind::Template),
        RecordKind::Bundle => Some(NameKind::Bundle),
        RecordKind::Volume | RecordKind::Snapshot | RecordKind::Orphan => None,
    }
}

/// Deletes a record whose attributes are as `expected`. One that is not there is deleted.
pub async fn delete(hub: &Arc<Hub>, volume: &VolumeId, expected: Attributes) -> Result<(), Error> {
    let (owned, id) = (Arc::clone(hub), volume.clone());
    let operation = Operation::Delete(expected.clone());
    let work = |_| async move {
        let mut outcome = Ok(());
        for _ in 0..ROUNDS {
            outcome = remove(&owned, &id, &expected).await;
            match &outcome {
                // Its node died a moment ago: the next look waits until that is sure.
                Err(error) if error.kind() == Kind::Unavailable && error.node().is_some() => {}
                Ok(()) | Err(_) => break,
            }
        }
        outcome.map(|()| Done::Volume)
    };
    hub.flights.fly(volume, operation, work).await.map(drop)
}

async fn remove(hub: &Arc<Hub>, volume: &VolumeId, expected: &Attributes) -> Result<(), Error> {
    let Some(record) = hub.catalog.read(volume).await? else { return Ok(()) };
    match record.state {
        // What deleted it may have died before its name went.
        Life::Deleted | Life::Purged => return forget_name(hub, &record).await,
        Life::Creating | Life::Live => {}
    }
    crate::bundle::refuse_while_used(hub, &record).await?;
    let node = match hub.whereabouts(&record, hub.verdict_time()).await? {
        Whereabouts::Live(node) => *node,
        Whereabouts::Asleep | Whereabouts::Fenced => anybody(hub, &record)?,
        Whereabouts::Dead { session, .. } => {
            let node = anybody(hub, &record)?;
            hub.fence(volume, session).await?;
            node
        }
        Whereabouts::Silent { node } => return Err(Error::OwnerSilent { volume: volume.clone(), node }),
    };
    let expected = expected.iter().map(|(key, value)| (key.clone(), value.clone().unwrap_or_default()));
    let request = wire::DeleteVolumeRequest {
        volume_id: volume.to_string(),
        expected: expected.collect(),
        copy_only: false,
    };
    let answer = hub.order(&node, "delete the volume", request, |mut client, request| async move {
        client.delete_volume(request).await
    });
    answer.await?;
    hub.catalog.read(volume).await?;
    if let Err(used) = crate::bundle::refuse_while_used(hub, &record).await {
        // Somebody began with it between the look and the tombstone.
        cas::lifecycle::undelete(&hub.store, volume, Some(record.birth)).await?;
        hub.catalog.read(volume).await?;
        return Err(used);
    }
    forget_name(hub, &record).await?;
    crate::unique::retire(hub, &record).await;
    tell_holders(hub, &record, node.name());
    tracing::info!(%volume, node = %node.name(), "deleted a volume");
    Ok(())
}

/// Lets the other nodes that have something of a deleted record drop it. Nobody waits for that: a node that is not told
/// finds the tombstone when it looks.
fn tell_holders(hub: &Arc<Hub>, record: &Record, told: &NodeName) {
    let version = head_version(record);
    // The record knows of copies that a node has not told of yet, and the nodes of templates, which no record names.
    let holds = |node: &LiveNode| {
        node.name() != told
            && (record.holders.contains(&node.introduction.session.pool)
                || node.has_content(&record.id, version.as_ref()))
    };
    for node in hub.nodes.live().into_iter().filter(holds) {
        let (owned, volume, stop) = (Arc::clone(hub), record.id.clone(), hub.stop.clone());
        hub.tasks.spawn(async move {
            if let Some(Err(error)) = stop.run_until_cancelled(drop_copy(&owned, &node, &volume)).await {
                tracing::debug!(%volume, node = %node.name(), %error, "a copy of a deleted volume stays for now");
            }
        });
    }
}

/// Has a node drop what it has of a deleted record. Another operation there may have it for a moment.
async fn drop_copy(hub: &Hub, node: &LiveNode, volume: &VolumeId) -> Result<(), Error> {
    for _ in 1..TELLS {
        match ask_to_drop(hub, node, volume).await {
            Err(error) if error.kind() == Kind::Aborted => tokio::time::sleep(TELL_AGAIN).await,
            told => return told,
        }
    }
    ask_to_drop(hub, node, volume).await
}

async fn ask_to_drop(hub: &Hub, node: &LiveNode, volume: &VolumeId) -> Result<(), Error> {
    let request = wire::DeleteVolumeRequest {
        volume_id: volume.to_string(),
        copy_only: true,
        ..wire::DeleteVolumeRequest::default()
    };
    let dropped = hub.order(node, "drop a copy", request, |mut client, request| async move {
        client.delete_volume(request).await
    });
    dropped.await.map(drop)
}

/// Takes away the name that leads to a record that is deleted. It goes last: whoever repeats a deletion that was cut short
/// still finds by it what is to be deleted, and for all others a name that leads to a tombstone leads nowhere.
async fn forget_name(hub: &Hub, record: &Record) -> Result<(), Error> {
    if let Some(kind) = name_kind(record.kind)
        && let Some(name) = record.attributes.get(NAME).and_then(|name| name.parse::<ResourceName>().ok())
    {
        match cas::names::remove(&hub.store, kind, &name, &record.id).await {
            // The name was given to a newer one since.
            Ok(_) | Err(cas::Error::NameTaken { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Returns a node that can write a tombstone: one with a copy, which it then drops, if there is one.
pub(crate) fn anybody(hub: &Hub, record: &Record) -> Result<LiveNode, Error> {
    let mut live = hub.nodes.live();
    let with_copy = live.iter().position(|node| node.has_content(&record.id, None));
    if live.is_empty() {
        return Err(NoPlace::NoneLive { allowed: Vec::new() }.into());
    }
    Ok(live.swap_remove(with_copy.unwrap_or(0)))
}
