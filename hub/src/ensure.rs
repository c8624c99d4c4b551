//! Bringing a volume to a node: there already, moved from a node that lives, woken from the store, or taken over from a
//! dead one.
//!
//! Each round reads the record and decides again, so an answer that was lost, or another hub's order, is found instead of
//! repeated. The nodes write the record; what happens between two orders leaves the volume asleep in the store, whole.

use std::sync::Arc;

use cas::record::Record;
use proto::{hub as api, node as wire};
use types::{Classify as _, Kind, NodeName, VolumeId};

use crate::core::{Done, Hub, Whereabouts, look_at};
use crate::create::goes_elsewhere;
use crate::error::Error;
use crate::flight::{Course, Operation};
use crate::nodes::LiveNode;
use crate::placement::{Budget, Wish, place};
use crate::view::head_version;

/// How many nodes are tried before the caller is told; also how often a caller whose candidates differ from those of the
/// operation it joined tries its own.
const ROUNDS: usize = 3;

/// Makes a volume usable on one of `candidates` (none: any) that has `budget` free.
pub async fn ensure(
    hub: &Arc<Hub>,
    volume: &VolumeId,
    candidates: &[NodeName],
    budget: Budget,
) -> Result<api::EnsureCachedResponse, Error> {
    let operation = Operation::Ensure(budget);
    for _ in 0..ROUNDS {
        let answer = fly(hub, volume, operation.clone(), candidates, budget).await?;
        if candidates.is_empty() || candidates.iter().any(|candidate| candidate.as_str() == answer.node) {
            return Ok(answer);
        }
    }
    Err(Error::Busy { volume: volume.clone(), operation: operation.describe() })
}

/// Moves a volume to a node.
pub async fn move_to(hub: &Arc<Hub>, volume: &VolumeId, node: &NodeName) -> Result<(), Error> {
    let operation = Operation::Move(node.clone());
    fly(hub, volume, operation, std::slice::from_ref(node), Budget::default()).await.map(drop)
}

async fn fly(
    hub: &Arc<Hub>,
    volume: &VolumeId,
    operation: Operation,
    candidates: &[NodeName],
    budget: Budget,
) -> Result<api::EnsureCachedResponse, Error> {
    let (owned, id, allowed) = (Arc::clone(hub), volume.clone(), candidates.to_vec());
    let work = |course: Arc<Course<Done>>| async move {
        bring(&owned, &id, &allowed, budget, &course).await.map(Done::Ensured)
    };
    match hub.flights.fly(volume, operation, work).await? {
        Done::Ensured(answer) => Ok(answer),
        Done::Volume | Done::Named(_) | Done::Made(_) | Done::Restored(_) => {
            Err(Error::OperationDied { volume: volume.clone() })
        }
    }
}

/// Puts a volume to sleep: published, released, and off its node.
pub async fn hibernate(hub: &Arc<Hub>, volume: &VolumeId) -> Result<(), Error> {
    let (owned, id) = (Arc::clone(hub), volume.clone());
    let work = |_| async move {
        let record = owned.catalog.volume(&id).await?;
        match owned.whereabouts(&record, owned.reconnect_time()).await? {
            Whereabouts::Asleep => {}
            Whereabouts::Live(node) => drop(release(&owned, &node, &record, false).await?),
            Whereabouts::Fenced => return Err(dead(&record)),
            Whereabouts::Dead { node, .. } => return Err(Error::OwnerDead { volume: id, node }),
            Whereabouts::Silent { node } => return Err(Error::OwnerSilent { volume: id, node }),
        }
        Ok(Done::Volume)
    };
    hub.flights.fly(volume, Operation::Hibernate, work).await.map(drop)
}

/// Says that a volume's owner was fenced and nobody took it over.
pub fn dead(record: &Record) -> Error {
    let node = record.node.as_ref().map_or_else(String::new, ToString::to_string);
    Error::OwnerDead { volume: record.id.clone(), node }
}

async fn bring(
    hub: &Hub,
    volume: &VolumeId,
    allowed: &[NodeName],
    budget: Budget,
    course: &Course<Done>,
) -> Result<api::EnsureCachedResponse, Error> {
    let mut failed: Vec<NodeName> = Vec::new();
    let mut last = None;
    let mut taken_over = false;
    for _ in 0..ROUNDS {
        let record = hub.catalog.volume(volume).await?;
        let outcome = match hub.whereabouts(&record, hub.verdict_time()).await? {
            Whereabouts::Live(node)
                if (allowed.is_empty() || allowed.contains(node.name())) && budget.fits(node.free()) =>
            {
                course.towards(node.name());
                here(hub, &node, &record).await
            }
            Whereabouts::Live(owner) => {
                let target = choose(hub, &record, allowed, budget, &failed)
                    .map_err(|error| last.take().unwrap_or(error))?;
                course.towards(target.name());
                relocate(hub, &record, &owner, &target).await
            }
            asleep @ (Whereabouts::Asleep | Whereabouts::Fenced | Whereabouts::Dead { .. }) => {
                // Before anything is fenced there has to be a place to go.
                let target = choose(hub, &record, allowed, budget, &failed)
                    .map_err(|error| last.take().unwrap_or(error))?;
                course.towards(target.name());
                if let Whereabouts::Dead { session, .. } = asleep {
                    hub.fence(volume, session).await?;
                }
                taken_over |= !matches!(asleep, Whereabouts::Asleep);
                acquire(hub, &target, &record).await.map(|held| (target.name().clone(), held))
            }
            Whereabouts::Silent { node } => return Err(Error::OwnerSilent { volume: volume.clone(), node }),
        };
        match outcome {
            Ok((node, held)) => {
                let durable = record.head_entry().filter(|_| taken_over);
                let head = head_version(&record).map_or_else(String::new, |version| version.to_string());
                tracing::info!(%volume, %node, epoch = held.epoch, taken_over, "a volume can be used");
                return Ok(api::EnsureCachedResponse {
                    node: node.to_string(),
                    epoch: held.epoch,
                    version: if held.version.is_empty() { head } else { held.version },
                    taken_over,
                    last_durable: durable.map(|entry| proto::convert::timestamp(entry.time)),
                });
            }
            Err(error) if goes_elsewhere(error.kind()) => {
                tracing::warn!(%volume, %error, "a volume could not be brought to a node");
                // After `Aborted`, another operation there or a lost race, and after silence, the record and the next
                // heartbeat say what is so now.
                if error.kind() == Kind::ResourceExhausted {
                    failed.extend(error.node().cloned());
                }
                last = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(last
        .unwrap_or(Error::Busy { volume: volume.clone(), operation: Operation::Ensure(budget).describe() }))
}

/// Verifies that the owner's node has the volume, and lets it materialise what it lost.
async fn here(hub: &Hub, node: &LiveNode, record: &Record) -> Result<(NodeName, wire::Volume), Error> {
    match look_at(node, &record.id).await {
        Ok(held) if held.owned => return Ok((node.name().clone(), held)),
        Ok(_) => {}
        Err(error) if error.kind() == Kind::NotFound => {}
        Err(error) => {
            if error.kind() == Kind::Unavailable {
                hub.doubt(node.name());
            }
            return Err(error);
        }
    }
    acquire(hub, node, record).await.map(|held| (node.name().clone(), held))
}

/// Moves a volume between two nodes that live. On the way it sleeps in the store for a moment; where the target cannot
/// take it, its old owner does again.
async fn relocate(
    hub: &Hub,
    record: &Record,
    owner: &LiveNode,
    target: &LiveNode,
) -> Result<(NodeName, wire::Volume), Error> {
    let volume = &record.id;
    let request = wire::PrefetchVolumeRequest { volume_id: volume.to_string() };
    let prefetched = hub.order(target, "fetch the volume", request, |mut client, request| async move {
        client.prefetch_volume(request).await
    });
    match prefetched.await {
        Ok(_) => {}
        // It only makes the pause shorter.
        Err(error) if error.kind() == Kind::Unimplemented => {}
        Err(error) => return Err(error),
    }
    // The copy stays: should the target fail, its owner has it back at once. The node drops it when it may.
    release(hub, owner, record, true).await?;
    match acquire(hub, target, record).await {
        Ok(held) => Ok((target.name().clone(), held)),
        Err(failed) => {
            let now = hub.catalog.volume(volume).await?;
            if now.owner == Some(target.introduction.session) {
                // It was done, and only the answer was lost; the next look finds it there.
                return Err(failed);
            }
            match acquire(hub, owner, &now).await {
                Ok(_) => Err(failed),
                Err(undo) => Err(Error::Stranded {
                    volume: volume.clone(),
                    failed: Box::new(failed),
                    undo: Box::new(undo),
                }),
            }
        }
    }
}

async fn acquire(hub: &Hub, node: &LiveNode, record: &Record) -> Result<wire::Volume, Error> {
    let request = wire::AcquireVolumeRequest {
        volume_id: record.id.to_string(),
        force: false,
        if_epoch: record.epoch.0,
    };
    hub.order(node, "take the volume", request, |mut client, request| async move {
        client.acquire_volume(request).await
    })
    .await
}

async fn release(
    hub: &Hub,
    node: &LiveNode,
    record: &Record,
    keep_copy: bool,
) -> Result<wire::ReleaseVolumeResponse, Error> {
    let request =
        wire::ReleaseVolumeRequest { volume_id: record.id.to_string(), keep_copy, if_epoch: record.epoch.0 };
    hub.order(node, "release the volume", request, |mut client, request| async move {
        client.release_volume(request).await
    })
    .await
}

/// Chooses where a volume goes that is not where it may be.
fn choose(
    hub: &Hub,
    record: &Record,
    allowed: &[NodeName],
    budget: Budget,
    failed: &[NodeName],
) -> Result<LiveNode, Error> {
    let live = hub.nodes.live();
    let wish = Wish {
        required: match allowed {
            [only] => Some(only.clone()),
            _ => None,
        },
        hint: None,
        allowed: allowed.to_vec(),
        content_bytes: record.quota.charge_bytes,
        budget,
    };
    let version = head_version(record);
    let candidates: Vec<_> = live
        .iter()
        .filter(|node| !failed.contains(node.name()))
        .map(|node| node.candidate(Some((&record.id, version.as_ref()))))
        .collect();
    let best = place(&wish, &candidates)?;
    let chosen = live.into_iter().find(|node| best.first() == Some(node.name()));
    Ok(chosen.expect("placement chooses among the nodes it was given"))
}
