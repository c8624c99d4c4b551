//! Publishing: the fence. A volume has one node at a time; the attribute that names it is set only where there is none,
//! and only then is the volume brought there, under a new epoch if it was elsewhere.

use std::collections::HashMap;

use proto::convert::{self, InvalidField};
use proto::csi::v1 as csi;
use proto::hub;
use types::VolumeId;

use super::{CsiController, bounded};
use crate::csi::capability::{access, accesses};
use crate::csi::error::Error;
use crate::csi::node::EPOCH;
use crate::csi::parameters::{Parameters, mutable};
use crate::csi::{facts, id};

/// The key that says in a publish context up to when a volume is whole that was taken over from a dead node.
const LAST_DURABLE: &str = "lastDurable";
/// The key that says when it was taken over: what was written between the two times is not in it.
const TAKEN_OVER: &str = "takenOver";
/// The key that says from which node.
const TAKEN_FROM: &str = "takenFrom";

/// How often another controller may get in between.
const ROUNDS: usize = 4;

impl CsiController {
    pub(super) async fn publish(
        &self,
        request: csi::ControllerPublishVolumeRequest,
    ) -> Result<HashMap<String, String>, Error> {
        if request.volume_id.is_empty() {
            return Err(InvalidField::Missing { field: "volume_id" }.into());
        }
        if request.node_id.is_empty() {
            return Err(InvalidField::Missing { field: "node_id" }.into());
        }
        let access = access(request.volume_capability.as_ref())?;
        let readonly = request.readonly || access.readonly;
        let id = id("volume", "volume_id", &request.volume_id)?;
        let node = request.node_id;
        let volume = self.volume(&id).await?;
        // A node has a session for each of its lives.
        let lives: Vec<_> = self.nodes().await?.into_iter().filter(|known| known.node == node).collect();
        if lives.is_empty() {
            return Err(Error::NotFound { what: "node", id: node.chars().take(253).collect() });
        }
        if !lives.iter().any(|life| life.state() == hub::node::State::Live) {
            return Err(Error::NodeAway { node });
        }
        let pinned = facts::attribute(&volume, facts::PINNED);
        if !pinned.is_empty() && pinned != node {
            return Err(Error::Pinned { volume: id, node: pinned.to_owned() });
        }
        self.fence(&id, volume, &node, readonly).await?;
        let request = hub::EnsureCachedRequest {
            volume_id: id.to_string(),
            candidates: vec![node.clone()],
            ..Default::default()
        };
        let held = bounded("bringing the volume to the node", self.hub().ensure_cached(request)).await;
        let held = held?;
        tracing::info!(volume = %id, %node, epoch = held.epoch, readonly, "published");
        let mut context = HashMap::from([(EPOCH.to_owned(), held.epoch.to_string())]);
        // Of the record, so that every retry says the same.
        let volume = self.volume(&id).await?;
        if let Some(takeover) = volume.takeover.filter(|_| volume.epoch == held.epoch) {
            let time = |time: Option<_>| {
                time.map_or_else(|| "never".to_owned(), |time| convert::time(time).to_string())
            };
            let (durable, taken) = (time(takeover.last_durable), time(takeover.taken));
            tracing::warn!(volume = %id, %node, from = takeover.from_node, last_durable = %durable, %taken,
                "taken over from a dead node; what was written between these times is not in it");
            context.insert(LAST_DURABLE.to_owned(), durable);
            context.insert(TAKEN_OVER.to_owned(), taken);
            context.insert(TAKEN_FROM.to_owned(), takeover.from_node);
        }
        Ok(context)
    }

    /// Writes into the record that the volume is published at `node`, unless it is elsewhere.
    async fn fence(
        &self,
        id: &VolumeId,
        mut volume: hub::Volume,
        node: &str,
        readonly: bool,
    ) -> Result<(), Error> {
        let word = if readonly { "true" } else { "false" };
        for _ in 0..ROUNDS {
            match facts::attribute(&volume, facts::NODE) {
                "" => {
                    self.check_room(node).await?;
                    let wanted = [(facts::NODE, node), (facts::READONLY, word)];
                    if self.exchange(id, &[(facts::NODE, ""), (facts::READONLY, "")], &wanted).await? {
                        return Ok(());
                    }
                    volume = self.volume(id).await?;
                }
                holder if holder == node => {
                    let so = facts::attribute(&volume, facts::READONLY) == "true";
                    if so == readonly {
                        return Ok(());
                    }
                    let node = node.to_owned();
                    return Err(Error::PublishedOtherwise { volume: id.clone(), node, readonly: so });
                }
                holder => return Err(Error::PublishedAt { volume: id.clone(), node: holder.to_owned() }),
            }
        }
        Err(Error::UnderWay { doing: "another publication of the volume" })
    }

    async fn check_room(&self, node: &str) -> Result<(), Error> {
        if self.max_volumes == 0 {
            return Ok(());
        }
        let mut count: u32 = 0;
        let mut page_token = String::new();
        loop {
            let request = hub::ListVolumesRequest {
                page_token,
                attribute: facts::NODE.to_owned(),
                attribute_value: node.to_owned(),
                brief: true,
                ..Default::default()
            };
            let page = bounded("counting the node's volumes", self.hub().list_volumes(request)).await?;
            count = count.saturating_add(u32::try_from(page.volumes.len()).unwrap_or(u32::MAX));
            if count >= self.max_volumes {
                return Err(Error::NodeFull { node: node.to_owned(), most: self.max_volumes });
            }
            if page.next_page_token.is_empty() {
                return Ok(());
            }
            page_token = page.next_page_token;
        }
    }

    pub(super) async fn unpublish(
        &self,
        request: csi::ControllerUnpublishVolumeRequest,
    ) -> Result<(), Error> {
        let id = match id("volume", "volume_id", &request.volume_id) {
            Err(Error::NotFound { .. }) => return Ok(()),
            id => id?,
        };
        for _ in 0..ROUNDS {
            let volume = match self.volume(&id).await {
                // Deleted, so it is published nowhere.
                Err(Error::NotFound { .. }) => return Ok(()),
                volume => volume?,
            };
            let holder = facts::attribute(&volume, facts::NODE);
            if holder.is_empty() || (!request.node_id.is_empty() && request.node_id != holder) {
                return Ok(());
            }
            // A node that answers and has it mounted would go on writing.
            if volume.mounted && volume.node == holder {
                return Err(Error::StillMounted { volume: id, node: volume.node });
            }
            let expected = [(facts::NODE, holder)];
            if self.exchange(&id, &expected, &[(facts::NODE, ""), (facts::READONLY, "")]).await? {
                tracing::info!(volume = %id, node = holder, "unpublished");
                return Ok(());
            }
        }
        Err(Error::UnderWay { doing: "another publication of the volume" })
    }

    pub(super) async fn validate(
        &self,
        request: csi::ValidateVolumeCapabilitiesRequest,
    ) -> Result<csi::ValidateVolumeCapabilitiesResponse, Error> {
        use csi::validate_volume_capabilities_response::Confirmed;
        if request.volume_id.is_empty() {
            return Err(InvalidField::Missing { field: "volume_id" }.into());
        }
        if request.volume_capabilities.is_empty() {
            return Err(InvalidField::Missing { field: "volume_capabilities" }.into());
        }
        let id = id("volume", "volume_id", &request.volume_id)?;
        let volume = self.volume(&id).await?;
        let checked = accesses(&request.volume_capabilities)
            .and_then(|_| Parameters::parse(&request.parameters))
            .and_then(|parameters| {
                let made = facts::attribute(&volume, facts::PARAMETERS);
                let same =
                    request.parameters.is_empty() || made.is_empty() || parameters.fingerprint() == made;
                let reason = "the volume was made with others".to_owned();
                if same { Ok(()) } else { Err(Error::Parameter { key: "parameters".to_owned(), reason }) }
            })
            .and_then(|()| mutable(&request.mutable_parameters));
        Ok(match checked {
            Ok(_) => csi::ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: request.mutable_parameters,
                }),
                message: String::new(),
            },
            Err(error) => {
                csi::ValidateVolumeCapabilitiesResponse { confirmed: None, message: error.to_string() }
            }
        })
    }
}
