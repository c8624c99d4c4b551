//! The calls that are killed, and how they are sent: each can be sent again as it is.

use std::collections::HashMap;

use proto::hub::{
    CreateVolumeRequest, DeleteVolumeRequest, ForkVolumeRequest, ListEntriesRequest, RestoreVolumeRequest,
    SnapshotVolumeRequest, TriggerSyncRequest,
};
use tests::tree::Content;

/// What is done to volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Op {
    Create,
    Write,
    Sync,
    Fork,
    Snapshot,
    Restore,
    TakeOver,
    Delete,
}

#[derive(Debug, Clone)]
pub(crate) enum Call {
    Create { request_id: String },
    Write { volume_id: String, path: String, content: Content },
    Sync { volume_id: String },
    Fork { volume_id: String, request_id: String },
    Snapshot { volume_id: String, label: String },
    Restore { volume_id: String, version: String },
    Delete { volume_id: String },
}

#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) volume_id: String,
    pub(crate) version: String,
}

impl Call {
    pub(crate) async fn send(&self, cluster: &tests::cluster::Handle) -> Result<Answer, tonic::Status> {
        let mut hub = cluster.hub();
        match self.clone() {
            Self::Create { request_id } => {
                let attributes = attributes();
                let request =
                    CreateVolumeRequest { request_id, attributes, ..CreateVolumeRequest::default() };
                let volume = hub.create_volume(request).await?.into_inner();
                Ok(Answer { volume_id: volume.volume_id, version: volume.version })
            }
            Self::Write { volume_id, path, content } => {
                cluster.write(&volume_id, &path, content, false).await?;
                Ok(Answer::default())
            }
            Self::Sync { volume_id } => {
                let sync = hub.trigger_sync(TriggerSyncRequest { volume_id }).await?.into_inner();
                Ok(Answer { version: sync.version, ..Answer::default() })
            }
            Self::Fork { volume_id, request_id } => {
                let request = ForkVolumeRequest {
                    request_id,
                    source_volume_id: volume_id,
                    attributes: attributes(),
                    ..ForkVolumeRequest::default()
                };
                let volume = hub.fork_volume(request).await?.into_inner();
                Ok(Answer { volume_id: volume.volume_id, version: volume.version })
            }
            Self::Snapshot { volume_id, label } => {
                let entry =
                    hub.snapshot_volume(SnapshotVolumeRequest { volume_id, label }).await?.into_inner();
                Ok(Answer { version: entry.version, ..Answer::default() })
            }
            Self::Restore { volume_id, version } => {
                let entries = hub
                    .list_entries(ListEntriesRequest {
                        volume_id: volume_id.clone(),
                        ..ListEntriesRequest::default()
                    })
                    .await?
                    .into_inner()
                    .entries;
                if !entries.iter().any(|entry| entry.version == version) {
                    return Err(tonic::Status::data_loss(format!(
                        "{version} is acknowledged but not listed"
                    )));
                }
                hub.restore_volume(RestoreVolumeRequest {
                    volume_id,
                    version,
                    ..RestoreVolumeRequest::default()
                })
                .await?;
                Ok(Answer::default())
            }
            Self::Delete { volume_id } => {
                hub.delete_volume(DeleteVolumeRequest { volume_id, ..Default::default() }).await?;
                Ok(Answer::default())
            }
        }
    }
}

/// As many snapshots as there can be: one that was cut short and asked for again may stand twice, and must push no acknowledged
/// one out.
fn attributes() -> HashMap<String, String> {
    HashMap::from([("max-snapshots".to_owned(), "32".to_owned())])
}
