//! Edits of a volume that need no ownership: its limit and its attributes. Nothing is woken or moved for them.

use std::collections::BTreeMap;

use cas::lifecycle::{self, Exchanged};
use cas::record::{Record, State};
use proto::node as wire;
use proto::node::settings_client::SettingsClient;
use types::VolumeId;

use crate::core::{Hub, Whereabouts};
use crate::error::Error;

/// Sets the limit: through the node that holds the volume, else in the record, where the next holder finds it.
pub async fn set_quota(hub: &Hub, volume: &VolumeId, limit_bytes: u64) -> Result<(), Error> {
    let record = hub.catalog.volume(volume).await?;
    match hub.whereabouts(&record, hub.reconnect_time()).await? {
        Whereabouts::Live(node) => {
            let request = wire::SetQuotaRequest {
                volume_id: volume.to_string(),
                quota_bytes: limit_bytes,
                if_quota_bytes: Some(record.quota.limit_bytes.unwrap_or(0)),
            };
            let answer = hub.order(&node, "set the limit", request, |mut client, request| async move {
                client.set_quota(request).await
            });
            answer.await?;
        }
        Whereabouts::Asleep | Whereabouts::Fenced => {
            let limit = (limit_bytes != 0).then_some(limit_bytes);
            lifecycle::set_quota(&hub.store, volume, limit).await.map_err(gone)?;
        }
        // A node that comes back with its session would go on with the old limit.
        Whereabouts::Dead { node, .. } => return Err(Error::OwnerDead { volume: volume.clone(), node }),
        Whereabouts::Silent { node } => return Err(Error::OwnerSilent { volume: volume.clone(), node }),
    }
    hub.catalog.read(volume).await?;
    Ok(())
}

/// Attributes that are to be, or are expected to be; nothing: not there.
pub type Attributes = BTreeMap<String, Option<String>>;

/// Sets attributes, all or none, where others are as expected.
pub async fn set_attributes(
    hub: &Hub,
    volume: &VolumeId,
    expected: &Attributes,
    wanted: &Attributes,
) -> Result<(), Error> {
    hub.catalog.living(volume).await?;
    let acted_upon = proto::settings::ALL.iter().any(|setting| wanted.contains_key(*setting));
    let outcome = lifecycle::exchange_attributes(&hub.store, volume, expected, wanted).await.map_err(gone)?;
    match outcome {
        Exchanged::Done(_) => {
            let record = hub.catalog.read(volume).await?;
            if let Some(record) = record.filter(|_| acted_upon) {
                tell(hub, &record).await?;
            }
            Ok(())
        }
        Exchanged::Differs { key, found } => {
            Err(Error::AttributeDiffers { volume: volume.clone(), key, found: found.unwrap_or_default() })
        }
    }
}

/// Tells the node that holds the volume. A node that is not heard reads the record when it takes the volume again.
async fn tell(hub: &Hub, record: &Record) -> Result<(), Error> {
    let Some(node) = record.owner.and_then(|owner| hub.nodes.live_session(owner)) else { return Ok(()) };
    let request = wire::ApplySettingsRequest { volume_id: record.id.to_string() };
    let mut client = SettingsClient::new(crate::group::channel(&node)?);
    let answer = client.apply_settings(request).await;
    let failed = |status| Error::Node { node: node.name().clone(), action: "act upon the settings", status };
    answer.map(drop).map_err(failed)
}

/// A volume that was deleted since it was looked at is one that is not there.
fn gone(error: cas::Error) -> Error {
    if let cas::Error::WrongState { id, state: State::Deleted | State::Purged } = &error {
        return Error::NoVolume { volume: id.to_string() };
    }
    error.into()
}
