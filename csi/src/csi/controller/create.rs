//! CreateVolume and DeleteVolume. The name is the hub's unique name, so the same name is the same volume for as long as it
//! lives; what it was made with is in its attributes, so a retry with other words is told apart after any crash.

use std::collections::HashMap;

use proto::convert::InvalidField;
use proto::csi::v1 as csi;
use proto::csi::v1::volume_content_source::Type as Source;
use proto::hub;
use proto::node::RecordKind;
use tonic::Code;
use types::{Classify as _, Kind};

use super::capacity::{Accessible, Room, choose};
use super::{CsiController, bounded};
use crate::csi::capability::accesses;
use crate::csi::error::Error;
use crate::csi::parameters::{Mobility, Parameters, mutable};
use crate::csi::{facts, id, name};

/// What a volume gets that asks for no size.
const DEFAULT_BYTES: u64 = 5 << 30;

/// A size that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// At least.
    pub required_bytes: u64,
    /// At most; 0: no matter.
    pub limit_bytes: u64,
}

impl Size {
    /// Reads a range.
    pub(super) fn parse(range: Option<csi::CapacityRange>) -> Result<Self, Error> {
        let range = range.unwrap_or_default();
        let malformed =
            |reason: &str| InvalidField::Malformed { field: "capacity_range", reason: reason.to_owned() };
        let size = |bytes: i64| u64::try_from(bytes).map_err(|_| malformed("a size is negative"));
        let size =
            Self { required_bytes: size(range.required_bytes)?, limit_bytes: size(range.limit_bytes)? };
        if size.limit_bytes != 0 && size.limit_bytes < size.required_bytes {
            return Err(malformed("limit_bytes is less than required_bytes").into());
        }
        Ok(size)
    }

    /// The size that a new volume gets: exactly what is required.
    fn choose(self, source_bytes: u64) -> Result<u64, Error> {
        let wanted =
            if self.required_bytes > 0 { self.required_bytes } else { DEFAULT_BYTES.max(source_bytes) };
        let wanted = if self.limit_bytes > 0 { wanted.min(self.limit_bytes) } else { wanted };
        if wanted < source_bytes {
            let reason = format!("{wanted} bytes are less than the {source_bytes} of the source");
            return Err(Error::Capacity { reason });
        }
        Ok(wanted)
    }

    fn holds(self, bytes: u64) -> bool {
        bytes >= self.required_bytes && (self.limit_bytes == 0 || bytes <= self.limit_bytes)
    }
}

/// A volume that is asked for.
struct Wanted<'a> {
    name: &'a str,
    unique_name: String,
    size: Size,
    accessible: Accessible,
    parameters: Parameters,
    settings: HashMap<String, String>,
    /// What it is made from, in words that its attributes keep.
    source: String,
}

/// Whether a look at what there is may answer better than an error of this kind: the name may be another volume's, or the
/// rooms others than they were.
fn may_be_otherwise(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::AlreadyExists
            | Kind::FailedPrecondition
            | Kind::NotFound
            | Kind::OutOfRange
            | Kind::InvalidArgument
            | Kind::ResourceExhausted
    )
}

impl CsiController {
    pub(super) async fn create(&self, request: csi::CreateVolumeRequest) -> Result<csi::Volume, Error> {
        let name = name(&request.name)?;
        accesses(&request.volume_capabilities)?;
        let size = Size::parse(request.capacity_range)?;
        let parameters = Parameters::parse(&request.parameters)?;
        let settings = mutable(&request.mutable_parameters)?;
        let source = match request.volume_content_source.map(|source| source.r#type) {
            None => None,
            Some(Some(source)) => Some(source),
            Some(None) => return Err(InvalidField::Missing { field: "volume_content_source.type" }.into()),
        };
        let source_text = match &source {
            None => String::new(),
            Some(Source::Snapshot(snapshot)) => format!("snapshot:{}", snapshot.snapshot_id),
            Some(Source::Volume(volume)) => format!("volume:{}", volume.volume_id),
        };
        let wanted = Wanted {
            name,
            unique_name: format!("csi:{}:{name}", self.driver),
            size,
            accessible: Accessible::parse(&self.driver, request.accessibility_requirements.as_ref()),
            parameters,
            settings: settings.into_iter().collect(),
            source: source_text,
        };
        // A name is new as a rule, and the hub finds out which it is: one call instead of three.
        if source.is_none()
            && let Some(rooms) = self.rooms_lately()
        {
            match self.make(&wanted, None, &rooms).await {
                Ok(made) => return self.same(&wanted, &made),
                Err(error) if may_be_otherwise(error.kind()) => {
                    tracing::debug!(%error, "not made at once; looking at what there is");
                }
                Err(error) => return Err(error),
            }
        }
        let found = async {
            match &source {
                None => Ok(None),
                Some(source) => self.source(source).await.map(Some),
            }
        };
        // Asked at once, and judged one after the other: a volume that is there is answered whatever became of its source.
        let (made, found, rooms) = tokio::join!(self.made(&wanted.unique_name), found, self.rooms());
        let made = match made? {
            Some(made) => made,
            None => self.make(&wanted, found?.as_ref(), &rooms?).await?,
        };
        // Somebody else's request of this name may have been first.
        self.same(&wanted, &made)
    }

    /// Has the volume made, or found where it is there.
    async fn make(
        &self,
        wanted: &Wanted<'_>,
        found: Option<&hub::Volume>,
        rooms: &[Room],
    ) -> Result<hub::Volume, Error> {
        let Wanted { name, unique_name, size, accessible, parameters, settings, source } = wanted;
        let quota = size.choose(found.map_or(0, |found| found.quota_bytes))?;
        let needed = if size.required_bytes > 0 { quota } else { 0 };
        let node = choose(accessible, rooms, needed)?;
        let (node, node_hint) = match (parameters.mobility, found) {
            (Mobility::Pinned, _) => (node, String::new()),
            // Beside its source, where nobody said a node.
            (Mobility::Floating, Some(_)) if accessible.anywhere => (String::new(), String::new()),
            (Mobility::Floating, _) => (String::new(), node),
        };
        let mut attributes = settings.clone();
        for (key, value) in [
            (facts::NAME, *name),
            (facts::PARAMETERS, &parameters.fingerprint()),
            (facts::SOURCE, source),
            (facts::MOBILITY, parameters.mobility.as_str()),
            (facts::PINNED, if parameters.mobility == Mobility::Pinned { node.as_str() } else { "" }),
            (facts::CLAIM, &parameters.claim),
        ] {
            if !value.is_empty() {
                attributes.insert(key.to_owned(), value.to_owned());
            }
        }
        let made = match found {
            Some(found) => {
                let request = hub::ForkVolumeRequest {
                    unique_name: unique_name.clone(),
                    source_volume_id: found.volume_id.clone(),
                    quota_bytes: Some(quota),
                    node,
                    node_hint,
                    attributes,
                    ..Default::default()
                };
                bounded("making the volume", self.hub().fork_volume(request)).await?
            }
            None => {
                let request = hub::CreateVolumeRequest {
                    unique_name: unique_name.clone(),
                    template: parameters.template.as_ref().map_or_else(String::new, ToString::to_string),
                    quota_bytes: Some(quota),
                    node,
                    node_hint,
                    domain: parameters.domain.clone(),
                    attributes,
                    ..Default::default()
                };
                bounded("making the volume", self.hub().create_volume(request)).await?
            }
        };
        tracing::info!(volume = %made.volume_id, node = %made.node, bytes = made.quota_bytes, "created");
        Ok(made)
    }

    /// Returns the living volume of this name.
    async fn made(&self, unique_name: &str) -> Result<Option<hub::Volume>, Error> {
        let request = hub::GetVolumeRequest {
            unique_name: unique_name.to_owned(),
            kind: RecordKind::Volume.into(),
            ..Default::default()
        };
        match bounded("looking for the name", self.hub().get_volume(request)).await {
            Ok(found) => Ok(Some(found)),
            Err(Error::Status(status)) if status.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Answers a volume that is there already, if it is what was asked for.
    fn same(&self, wanted: &Wanted<'_>, made: &hub::Volume) -> Result<csi::Volume, Error> {
        let differs = |what: &'static str| {
            let name = wanted.name.to_owned();
            Err(Error::Different { name, id: made.volume_id.clone(), what })
        };
        if !wanted.size.holds(made.quota_bytes) {
            return differs("capacity");
        }
        if facts::attribute(made, facts::SOURCE) != wanted.source {
            return differs("content source");
        }
        if facts::attribute(made, facts::PARAMETERS) != wanted.parameters.fingerprint() {
            return differs("set of parameters");
        }
        Ok(facts::volume(&self.driver, made))
    }

    async fn source(&self, source: &Source) -> Result<hub::Volume, Error> {
        match source {
            Source::Snapshot(snapshot) => {
                let id = id("snapshot", "snapshot_id", &snapshot.snapshot_id)?;
                let found = self.record(&id).await?.filter(|found| found.kind() == RecordKind::Snapshot);
                found.ok_or_else(|| Error::NotFound { what: "snapshot", id: id.to_string() })
            }
            Source::Volume(volume) => self.volume(&id("volume", "volume_id", &volume.volume_id)?).await,
        }
    }

    /// Deletes a volume that is published nowhere. What cannot be an id was never there.
    pub(super) async fn delete(&self, text: &str) -> Result<(), Error> {
        let id = match id("volume", "volume_id", text) {
            Err(Error::NotFound { .. }) => return Ok(()),
            id => id?,
        };
        let volume = match self.volume(&id).await {
            Err(Error::NotFound { .. }) => return Ok(()),
            volume => volume?,
        };
        if let Some(node) = facts::published(&volume).pop() {
            return Err(Error::PublishedAt { volume: id, node });
        }
        if volume.mounted {
            return Err(Error::StillMounted { volume: id, node: volume.node });
        }
        // A publication that comes in between is not overlooked: the record puts the two in order.
        let expected = [(facts::NODE.to_owned(), String::new())].into();
        let request = hub::DeleteVolumeRequest { volume_id: id.to_string(), expected };
        bounded("deleting the volume", self.hub().delete_volume(request)).await?;
        tracing::info!(volume = %id, "deleted");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(required_bytes: i64, limit_bytes: i64) -> Result<Size, Kind> {
        Size::parse(Some(csi::CapacityRange { required_bytes, limit_bytes })).map_err(|error| error.kind())
    }

    #[test]
    fn a_capacity_is_exact_and_never_less_than_its_source() {
        for (required, limit, source, expected) in [
            (100, 100, 0, Ok(100)),
            (100, 0, 0, Ok(100)),
            (0, 100, 0, Ok(100)),
            (0, 0, 0, Ok(DEFAULT_BYTES)),
            (0, 0, DEFAULT_BYTES * 2, Ok(DEFAULT_BYTES * 2)),
            (100, 0, 101, Err(Kind::OutOfRange)),
            (0, 100, 101, Err(Kind::OutOfRange)),
            (100, 99, 0, Err(Kind::InvalidArgument)),
            (-1, 0, 0, Err(Kind::InvalidArgument)),
        ] {
            let chosen =
                size(required, limit).and_then(|size| size.choose(source).map_err(|error| error.kind()));
            assert_eq!(chosen, expected, "{required} {limit} {source}");
        }
    }
}
