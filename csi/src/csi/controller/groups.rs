//! Group snapshots: snapshots of several volumes that share one transaction. A group is what its members say about it;
//! there is no record of its own that could disagree.

use std::collections::{BTreeSet, HashMap};

use proto::convert::{InvalidField, time};
use proto::csi::v1 as csi;
use proto::hub;
use proto::node::RecordKind;
use types::{RequestId, VolumeId};

use super::list::{Filter, LARGEST_PAGE, Page};
use super::{CsiController, bounded};
use crate::csi::error::Error;
use crate::csi::{facts, id, name, parameters};

impl CsiController {
    pub(super) async fn group(
        &self,
        request: csi::CreateVolumeGroupSnapshotRequest,
    ) -> Result<csi::VolumeGroupSnapshot, Error> {
        let name = name(&request.name)?;
        if request.source_volume_ids.is_empty() {
            return Err(InvalidField::Missing { field: "source_volume_ids" }.into());
        }
        parameters::none(&request.parameters)?;
        let mut sources = Vec::with_capacity(request.source_volume_ids.len());
        for source in &request.source_volume_ids {
            sources.push(id("volume", "source_volume_ids", source)?);
        }
        let group = self.group_id(name);
        let made = self.members(&group).await?;
        if !made.is_empty() {
            let of: BTreeSet<String> = made.iter().map(|one| facts::snapshot(one).source_volume_id).collect();
            let wanted: BTreeSet<String> = sources.iter().map(ToString::to_string).collect();
            if of == wanted {
                return Ok(describe(&group, &made));
            }
            // Some of those wanted: the rest of a creation that was cut short.
            if !of.is_subset(&wanted) {
                return Err(Error::Different { name: name.to_owned(), id: group, what: "set of volumes" });
            }
        }
        for source in &sources {
            self.volume(source).await?;
        }
        let attributes = HashMap::from([
            (facts::GROUP.to_owned(), group.clone()),
            (facts::GROUP_NAME.to_owned(), name.to_owned()),
        ]);
        let seal = hub::SealGroupRequest {
            volume_ids: sources.iter().map(ToString::to_string).collect(),
            unique_name: format!("csi:{}:group:{name}", self.driver),
            kind: RecordKind::Snapshot.into(),
            attributes,
        };
        let sealed = bounded("taking the group snapshot", self.hub().seal_group(seal)).await?.sealed;
        tracing::info!(group, members = sealed.len(), "group snapshot taken");
        Ok(describe(&group, &sealed))
    }

    /// The same name is the same group, whichever members it has.
    fn group_id(&self, name: &str) -> String {
        let text = format!("group:{}", blake3::hash(format!("{}:{name}", self.driver).as_bytes()).to_hex());
        let request: RequestId = text.parse().expect("hex digits are printable");
        VolumeId::for_request("group", &request).to_string()
    }

    async fn members(&self, group: &str) -> Result<Vec<hub::Volume>, Error> {
        let filter = Filter { kind: RecordKind::Snapshot, attribute: (facts::GROUP, group), origin: "" };
        let page = Page { size: LARGEST_PAGE, after: String::new() };
        Ok(self.records(filter, &page).await?.0)
    }

    /// Deletes the members. A group without any is deleted.
    pub(super) async fn drop_group(
        &self,
        request: csi::DeleteVolumeGroupSnapshotRequest,
    ) -> Result<(), Error> {
        let group = match id("group snapshot", "group_snapshot_id", &request.group_snapshot_id) {
            Err(Error::NotFound { .. }) => return Ok(()),
            group => group?,
        };
        let members = self.members(group.as_str()).await?;
        check_members(&members, &request.snapshot_ids)?;
        for member in members {
            self.drop_record(&member.volume_id).await?;
        }
        Ok(())
    }

    pub(super) async fn find_group(
        &self,
        request: csi::GetVolumeGroupSnapshotRequest,
    ) -> Result<csi::VolumeGroupSnapshot, Error> {
        let group = id("group snapshot", "group_snapshot_id", &request.group_snapshot_id)?;
        let members = self.members(group.as_str()).await?;
        if members.is_empty() {
            return Err(Error::NotFound { what: "group snapshot", id: group.to_string() });
        }
        check_members(&members, &request.snapshot_ids)?;
        Ok(describe(group.as_str(), &members))
    }
}

/// Refuses snapshots that are of another group.
fn check_members(members: &[hub::Volume], named: &[String]) -> Result<(), Error> {
    let foreign = named.iter().find(|named| !members.iter().any(|member| member.volume_id == **named));
    match foreign {
        Some(snapshot) if !members.is_empty() => {
            let reason = format!("{:?} is not in this group", snapshot.chars().take(128).collect::<String>());
            Err(InvalidField::Malformed { field: "snapshot_ids", reason }.into())
        }
        Some(_) | None => Ok(()),
    }
}

fn describe(group: &str, members: &[hub::Volume]) -> csi::VolumeGroupSnapshot {
    let created = members.iter().filter_map(|member| member.created).min_by_key(|created| time(*created));
    csi::VolumeGroupSnapshot {
        group_snapshot_id: group.to_owned(),
        snapshots: members.iter().map(facts::snapshot).collect(),
        creation_time: created,
        ready_to_use: true,
    }
}
