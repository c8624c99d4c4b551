//! Snapshots: sealed records of their own, which neither roll nor go with their source.

use std::collections::HashMap;

use proto::convert::InvalidField;
use proto::csi::v1 as csi;
use proto::hub;
use proto::node::RecordKind;
use tonic::Code;
use types::VolumeId;

use super::list::{Filter, Page};
use super::{CsiController, bounded};
use crate::csi::error::Error;
use crate::csi::{facts, id, name, parameters};

impl CsiController {
    pub(super) async fn snapshot(&self, request: csi::CreateSnapshotRequest) -> Result<csi::Snapshot, Error> {
        let name = name(&request.name)?;
        if request.source_volume_id.is_empty() {
            return Err(InvalidField::Missing { field: "source_volume_id" }.into());
        }
        parameters::none(&request.parameters)?;
        let source = id("volume", "source_volume_id", &request.source_volume_id)?;
        let unique_name = format!("csi:{}:{name}", self.driver);
        if let Some(made) = self.sealed(&unique_name).await? {
            return same(name, &made, &source);
        }
        self.volume(&source).await?;
        let attributes = HashMap::from([(facts::NAME.to_owned(), name.to_owned())]);
        let made = self.seal(&source, unique_name, attributes).await?;
        tracing::info!(volume = %source, snapshot = %made.volume_id, "snapshot taken");
        same(name, &made, &source)
    }

    /// Seals the present state of a volume.
    pub(super) async fn seal(
        &self,
        source: &VolumeId,
        unique_name: String,
        attributes: HashMap<String, String>,
    ) -> Result<hub::Volume, Error> {
        let request = hub::SealVolumeRequest {
            volume_id: source.to_string(),
            unique_name,
            kind: RecordKind::Snapshot.into(),
            attributes,
            ..Default::default()
        };
        bounded("taking the snapshot", self.hub().seal_volume(request)).await
    }

    /// Returns the living snapshot of this name.
    pub(super) async fn sealed(&self, unique_name: &str) -> Result<Option<hub::Volume>, Error> {
        let request = hub::GetVolumeRequest {
            unique_name: unique_name.to_owned(),
            kind: RecordKind::Snapshot.into(),
            ..Default::default()
        };
        match bounded("looking for the name", self.hub().get_volume(request)).await {
            Ok(found) => Ok(Some(found)),
            Err(Error::Status(status)) if status.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the snapshot with this id.
    pub(super) async fn find_snapshot(&self, text: &str) -> Result<hub::Volume, Error> {
        let id = id("snapshot", "snapshot_id", text)?;
        let found = self.record(&id).await?.filter(|found| found.kind() == RecordKind::Snapshot);
        found.ok_or_else(|| Error::NotFound { what: "snapshot", id: id.to_string() })
    }

    /// Deletes a snapshot. What cannot be an id was never there; what is no snapshot is not touched.
    pub(super) async fn drop_snapshot(&self, text: &str) -> Result<(), Error> {
        let snapshot = match self.find_snapshot(text).await {
            Err(Error::NotFound { .. }) => return Ok(()),
            snapshot => snapshot?,
        };
        self.drop_record(&snapshot.volume_id).await
    }

    pub(super) async fn drop_record(&self, id: &str) -> Result<(), Error> {
        let request = hub::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        bounded("deleting the snapshot", self.hub().delete_volume(request)).await?;
        tracing::info!(snapshot = id, "snapshot deleted");
        Ok(())
    }

    pub(super) async fn snapshots(
        &self,
        request: csi::ListSnapshotsRequest,
    ) -> Result<csi::ListSnapshotsResponse, Error> {
        use csi::list_snapshots_response::Entry;
        let page = Page::parse(request.max_entries, &request.starting_token)?;
        let entry = |record: &hub::Volume| Entry { snapshot: Some(facts::snapshot(record)) };
        if !request.snapshot_id.is_empty() {
            let found = match self.find_snapshot(&request.snapshot_id).await {
                Ok(found) => Some(found),
                Err(Error::NotFound { .. }) => None,
                Err(error) => return Err(error),
            };
            let of_source = |found: &hub::Volume| {
                request.source_volume_id.is_empty()
                    || facts::snapshot(found).source_volume_id == request.source_volume_id
            };
            let entries = found.iter().filter(|found| of_source(found)).map(entry).collect();
            return Ok(csi::ListSnapshotsResponse { entries, next_token: String::new() });
        }
        let filter =
            Filter { kind: RecordKind::Snapshot, attribute: ("", ""), origin: &request.source_volume_id };
        let (records, next_token) = self.records(filter, &page).await?;
        Ok(csi::ListSnapshotsResponse { entries: records.iter().map(entry).collect(), next_token })
    }
}

/// Answers a snapshot that is there already, if it is of this volume.
fn same(name: &str, made: &hub::Volume, source: &VolumeId) -> Result<csi::Snapshot, Error> {
    let snapshot = facts::snapshot(made);
    if snapshot.source_volume_id != source.as_str() {
        let (name, id) = (name.to_owned(), made.volume_id.clone());
        return Err(Error::Different { name, id, what: "source volume" });
    }
    Ok(snapshot)
}
