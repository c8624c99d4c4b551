//! Sealing: the present state of a volume becomes a record of its own (snapshot, template, bundle), made by the volume's
//! owner, or from its durable head by any node where it sleeps.

use std::collections::BTreeMap;
use std::sync::Arc;

use cas::record::{Record, RecordKind, State as Life};
use proto::node as wire;
use types::{RequestId, VersionId, VolumeId};

use crate::core::{Done, Hub};
use crate::error::Error;
use crate::flight::Operation;
use crate::order::{anybody, owner};
use crate::unique::prefix;
use crate::view::{head_version, wire_kind};

/// A record that is to be sealed.
#[derive(Debug, Clone)]
pub struct NewSeal {
    /// Of which volume.
    pub source: VolumeId,
    /// Which version of it; nothing: the present state.
    pub version: Option<VersionId>,
    /// The caller's name for it.
    pub request: RequestId,
    /// What it becomes.
    pub kind: RecordKind,
    /// What is attached to it.
    pub attributes: BTreeMap<String, String>,
}

/// Seals, or joins or finds the attempt that does. Returns the new record's id.
pub async fn seal(hub: &Arc<Hub>, new: NewSeal) -> Result<VolumeId, Error> {
    let id = VolumeId::for_request(prefix(new.kind), &new.request);
    let operation = Operation::Create(format!("{} of {}", new.kind, new.source));
    let (owned, sealed) = (Arc::clone(hub), id.clone());
    let work = |_| async move { make(&owned, &sealed, new).await.map(|()| Done::Volume) };
    hub.flights.fly(&id, operation, work).await?;
    Ok(id)
}

pub(crate) async fn make(hub: &Hub, id: &VolumeId, new: NewSeal) -> Result<(), Error> {
    if let Some(record) = hub.catalog.read(id).await? {
        let source = record.origin.as_ref().map(|origin| &origin.volume);
        if source.is_some_and(|source| *source != new.source) {
            return Err(Error::MadeDifferently { volume: id.clone(), what: "source" });
        }
        match record.state {
            Life::Live => return Ok(()),
            Life::Deleted | Life::Purged => return Err(Error::MadeAndDeleted { volume: id.clone() }),
            Life::Creating => {}
        }
    }
    // What is sealed may be sealed again as something else.
    let source = hub.catalog.living(&new.source).await?;
    let (node, version) = match new.version {
        // Any node can: all that a version is lies in the store.
        Some(version) => (anybody(hub, &source)?, Some(version.to_string())),
        None => match owner(hub, &source, hub.reconnect_time()).await? {
            Some(node) => (node, None),
            None => (anybody(hub, &source)?, Some(durable(&source)?)),
        },
    };
    let request = wire::SealVersionRequest {
        volume_id: new.source.to_string(),
        version: version.unwrap_or_default(),
        sealed_id: id.to_string(),
        request_id: new.request.to_string(),
        kind: wire_kind(new.kind).into(),
        attributes: new.attributes.into_iter().collect(),
    };
    let answer = hub.order(&node, "seal the volume", request, |mut client, request| async move {
        client.seal_version(request).await
    });
    answer.await?;
    tracing::info!(volume = %new.source, sealed = %id, node = %node.name(), "sealed a volume");
    Ok(())
}

fn durable(source: &Record) -> Result<String, Error> {
    let version = head_version(source).ok_or_else(|| Error::NoVersion { volume: source.id.clone() })?;
    Ok(version.to_string())
}
