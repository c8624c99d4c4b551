//! Sealing several volumes at one moment: by the one node that holds those that are awake, in one transaction of its pool.
//! What sleeps does not change, so its durable head is its state at that moment too.

use std::collections::BTreeMap;
use std::sync::Arc;

use cas::record::{Record, RecordKind, State as Life};
use proto::convert::InvalidField;
use proto::node as wire;
use proto::node::groups_client::GroupsClient;
use types::{RequestId, VolumeId};

use crate::core::{Done, Hub};
use crate::error::Error;
use crate::flight::Operation;
use crate::nodes::LiveNode;
use crate::order::owner;
use crate::seal::{NewSeal, seal};
use crate::unique::{UniqueName, prefix, request};
use crate::view::wire_kind;

/// A group is for the volumes of one application.
const MOST_MEMBERS: usize = 32;

/// A group that is to be sealed.
#[derive(Debug, Clone)]
pub struct NewGroup {
    /// Of which volumes.
    pub volumes: Vec<VolumeId>,
    /// The group's unique name.
    pub name: String,
    /// What its members become.
    pub kind: RecordKind,
    /// What is attached to each.
    pub attributes: BTreeMap<String, String>,
}

/// Seals a group, or joins or finds the attempt that does. Returns the ids of the new records.
pub async fn seal_group(hub: &Arc<Hub>, new: NewGroup) -> Result<Vec<VolumeId>, Error> {
    let malformed = |reason: &str| InvalidField::Malformed { field: "volume_ids", reason: reason.to_owned() };
    if new.volumes.is_empty() || new.volumes.len() > MOST_MEMBERS {
        return Err(malformed("a group has 1 to 32").into());
    }
    if (1..new.volumes.len()).any(|at| new.volumes[..at].contains(&new.volumes[at])) {
        return Err(malformed("a volume is in it twice").into());
    }
    let mut requests = Vec::with_capacity(new.volumes.len());
    for volume in &new.volumes {
        let name = UniqueName::new(new.kind, &format!("{}/{volume}", new.name));
        requests.push(request(hub, &name).await?);
    }
    let ids: Vec<VolumeId> =
        requests.iter().map(|request| VolumeId::for_request(prefix(new.kind), request)).collect();
    let sealed = ids.clone();
    // One flight for the group, in the name of its first member.
    let first = ids.first().cloned().ok_or_else(|| malformed("a group has 1 to 32"))?;
    let operation = Operation::Create(format!("group of {:?}", new.volumes));
    let owned = Arc::clone(hub);
    let work = |_| async move { make(&owned, new, requests, &sealed).await.map(|()| Done::Volume) };
    hub.flights.fly(&first, operation, work).await?;
    Ok(ids)
}

async fn make(
    hub: &Arc<Hub>,
    new: NewGroup,
    requests: Vec<RequestId>,
    ids: &[VolumeId],
) -> Result<(), Error> {
    let mut awake: Vec<(usize, Record)> = Vec::new();
    let mut asleep: Vec<usize> = Vec::new();
    let mut holder: Option<LiveNode> = None;
    let mut sealed = 0;
    for (at, (volume, id)) in new.volumes.iter().zip(ids).enumerate() {
        sealed += usize::from(hub.catalog.read(id).await?.is_some_and(|record| record.state == Life::Live));
        let record = hub.catalog.volume(volume).await?;
        match owner(hub, &record, hub.reconnect_time()).await? {
            Some(node) => {
                if let Some(holder) = &holder
                    && holder.introduction.session != node.introduction.session
                {
                    let nodes = format!("{} and {}", holder.name(), node.name());
                    return Err(Error::GroupApart { nodes });
                }
                holder = Some(node);
                awake.push((at, record));
            }
            None => asleep.push(at),
        }
    }
    if sealed == ids.len() {
        return Ok(());
    }
    if let Some(node) = holder {
        let members = awake.iter().map(|(at, record)| wire::seal_group_request::Member {
            volume_id: record.id.to_string(),
            sealed_id: ids[*at].to_string(),
            request_id: requests[*at].to_string(),
            attributes: new.attributes.clone().into_iter().collect(),
        });
        let order = wire::SealGroupRequest { members: members.collect(), kind: wire_kind(new.kind).into() };
        let mut client = GroupsClient::new(channel(&node)?);
        let answer = client.seal_group(order).await;
        answer.map_err(|status| Error::Node {
            node: node.name().clone(),
            action: "seal the group",
            status,
        })?;
    }
    for at in asleep {
        let one = NewSeal {
            source: new.volumes[at].clone(),
            version: None,
            request: requests[at].clone(),
            kind: new.kind,
            attributes: new.attributes.clone(),
        };
        // The first member's flight is this one.
        if at == 0 { crate::seal::make(hub, &ids[at], one).await? } else { seal(hub, one).await.map(drop)? }
    }
    Ok(())
}

/// A channel of its own to a node, for services that the hub rarely asks.
pub(crate) fn channel(node: &LiveNode) -> Result<tonic::transport::Channel, Error> {
    let address = &node.introduction.address;
    proto::client::channel(address).map_err(|source| Error::Address {
        node: node.name().clone(),
        address: address.clone(),
        source,
    })
}
