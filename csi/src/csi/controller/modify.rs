//! Expanding and modifying a volume, mounted or not.

use proto::convert::InvalidField;
use proto::csi::v1 as csi;
use proto::hub;

use super::create::Size;
use super::{CsiController, bounded};
use crate::csi::capability::access;
use crate::csi::error::Error;
use crate::csi::parameters::mutable;
use crate::csi::{facts, id};

impl CsiController {
    /// Returns the capacity after expanding.
    pub(super) async fn expand(&self, request: csi::ControllerExpandVolumeRequest) -> Result<i64, Error> {
        if request.volume_id.is_empty() {
            return Err(InvalidField::Missing { field: "volume_id" }.into());
        }
        let range = request.capacity_range.ok_or(InvalidField::Missing { field: "capacity_range" })?;
        if request.volume_capability.is_some() {
            access(request.volume_capability.as_ref())?;
        }
        let size = Size::parse(Some(range))?;
        let id = id("volume", "volume_id", &request.volume_id)?;
        let volume = self.volume(&id).await?;
        let now = volume.quota_bytes;
        // 0: unlimited, which holds anything.
        if now == 0 || size.required_bytes <= now {
            if now != 0 && size.limit_bytes != 0 && size.limit_bytes < now {
                let reason = format!("the volume has {now} bytes, and volumes do not shrink");
                return Err(Error::Capacity { reason });
            }
            return Ok(facts::bytes(if now == 0 { size.required_bytes } else { now }));
        }
        let largest = self.rooms().await?.into_iter().map(|room| room.total_bytes).max();
        if largest.is_some_and(|largest| largest < size.required_bytes) {
            return Err(Error::Capacity {
                reason: format!("no node is as large as {} bytes", size.required_bytes),
            });
        }
        let request = hub::SetQuotaRequest { volume_id: id.to_string(), quota_bytes: size.required_bytes };
        let volume = bounded("setting the limit", self.hub().set_quota(request)).await?;
        tracing::info!(volume = %id, from = now, to = volume.quota_bytes, "expanded");
        Ok(facts::bytes(size.required_bytes))
    }

    pub(super) async fn modify(&self, request: csi::ControllerModifyVolumeRequest) -> Result<(), Error> {
        if request.volume_id.is_empty() {
            return Err(InvalidField::Missing { field: "volume_id" }.into());
        }
        let id = id("volume", "volume_id", &request.volume_id)?;
        self.volume(&id).await?;
        let settings = mutable(&request.mutable_parameters)?;
        if settings.is_empty() {
            return Ok(());
        }
        let request = hub::SetAttributesRequest {
            volume_id: id.to_string(),
            attributes: settings.into_iter().collect(),
            ..Default::default()
        };
        bounded("setting the attributes", self.hub().set_attributes(request)).await?;
        tracing::info!(volume = %id, "modified");
        Ok(())
    }
}
