//! Bundles and templates: versions that were published, as records of their own. A bundle is made from its state, so the
//! same state of a dedup domain is the same bundle, however often and from whichever volume it is published; a template
//! is found by a name, which moves.
//!
//! What is made from one holds its own references, so deleting it would lose nobody's bytes. It is refused all the same
//! while something says that it was made from it: whoever asks where a volume came from gets an answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use cas::names::{self, Expected, NameKind};
use cas::record::{Record, RecordKind, State as Life};
use proto::hub as api;
use types::{ResourceName, VersionId, VolumeId};

use crate::catalog::NAME;
use crate::core::Hub;
use crate::create::Point;
use crate::error::Error;
use crate::order::{find as find_point, sync};
use crate::records::Range;
use crate::seal::{NewSeal, seal};
use crate::unique::{UniqueName, request};
use crate::view::{head_version, wire_kind};

/// How many of those that use a record are named when its deletion is refused.
const NAMED_USERS: usize = 5;

/// Publishes a version as a bundle, or finds the bundle that it is already.
pub async fn publish(
    hub: &Arc<Hub>,
    source: &VolumeId,
    point: Point,
    name: Option<&ResourceName>,
) -> Result<api::Bundle, Error> {
    let (domain, version) = version_of(hub, source, point).await?;
    let (id, made) =
        sealed(hub, source, version, RecordKind::Bundle, &format!("{domain}:{version}"), name).await?;
    if let Some(name) = name {
        names::point(&hub.store, NameKind::Bundle, name, &id, Expected::Any).await?;
    }
    let record = hub.catalog.living(&id).await?;
    Ok(api::Bundle { made, ..describe(&record, name) })
}

/// Publishes a version as the template of a name.
pub async fn publish_template(
    hub: &Arc<Hub>,
    source: &VolumeId,
    point: Point,
    name: &ResourceName,
) -> Result<(), Error> {
    let (domain, version) = version_of(hub, source, point).await?;
    let state = format!("{name}\n{domain}:{version}");
    let (id, _) = sealed(hub, source, version, RecordKind::Template, &state, Some(name)).await?;
    names::point(&hub.store, NameKind::Template, name, &id, Expected::Any).await?;
    Ok(())
}

/// The version that a point is; the present is made durable first.
async fn version_of(hub: &Arc<Hub>, source: &VolumeId, point: Point) -> Result<(String, VersionId), Error> {
    let record = hub.catalog.living(source).await?;
    let none = || Error::NoVersion { volume: source.clone() };
    let version = match point {
        Point::Present if record.kind == RecordKind::Volume => {
            let synced = sync(hub, source).await?;
            proto::convert::optional("version", &synced.version)?.ok_or_else(none)?
        }
        Point::Present => head_version(&record).ok_or_else(none)?,
        Point::Entry(_) | Point::Version(_) => {
            let wanted = match point {
                Point::Entry(entry) => entry.to_string(),
                Point::Version(version) => version.to_string(),
                Point::Present => String::new(),
            };
            let entry = find_point(hub, &record, point).await?;
            let entry = entry.ok_or(Error::NoEntry { volume: source.clone(), wanted })?;
            match point {
                Point::Version(version) => version,
                Point::Entry(_) | Point::Present => entry.version().ok_or_else(none)?,
            }
        }
    };
    Ok((record.domain.to_string(), version))
}

/// Seals a version under a name that only one living record of the kind has. Tells if it was made now.
async fn sealed(
    hub: &Arc<Hub>,
    source: &VolumeId,
    version: VersionId,
    kind: RecordKind,
    state: &str,
    name: Option<&ResourceName>,
) -> Result<(VolumeId, bool), Error> {
    let unique = UniqueName::new(kind, state);
    let before = crate::unique::living(hub, &unique).await?;
    if let Some(record) = before {
        return Ok((record.id, false));
    }
    let attributes: BTreeMap<String, String> =
        name.map(|name| (NAME.to_owned(), name.to_string())).into_iter().collect();
    let request = request(hub, &unique).await?;
    let new = NewSeal { source: source.clone(), version: Some(version), request, kind, attributes };
    Ok((seal(hub, new).await?, true))
}

/// Finds a bundle by its id or by its name.
pub async fn find(hub: &Hub, text: &str) -> Result<Record, Error> {
    let missing = || Error::NoBundle { bundle: text.to_owned() };
    let name: ResourceName = proto::convert::required("bundle", text)?;
    let by_id = match text.parse::<VolumeId>() {
        Ok(id) => hub.catalog.read(&id).await?,
        Err(_) => None,
    };
    let record = match by_id {
        Some(record) => Some(record),
        None => match names::resolve(&hub.store, NameKind::Bundle, &name).await? {
            Some(id) => hub.catalog.read(&id).await?,
            None => None,
        },
    };
    let record = record.filter(|record| record.state == Life::Live).ok_or_else(missing)?;
    if record.kind == RecordKind::Bundle { Ok(record) } else { Err(missing()) }
}

/// Finds the bundle or template that is to be deleted, by its id or its name: also one that is deleted and whose name still
/// leads to it.
pub async fn find_to_delete(hub: &Hub, kind: RecordKind, text: &str) -> Result<Option<VolumeId>, Error> {
    let name: ResourceName = proto::convert::required("name", text)?;
    if let Ok(id) = text.parse::<VolumeId>()
        && let Some(record) = hub.catalog.read(&id).await?
        && record.kind == kind
    {
        return Ok(Some(id));
    }
    match crate::order::name_kind(kind) {
        Some(names) => Ok(names::resolve(&hub.store, names, &name).await?),
        None => Ok(None),
    }
}

/// Lists all bundles, each once, with the name that leads to it.
pub async fn list(hub: &Hub) -> Result<Vec<api::Bundle>, Error> {
    let named: BTreeMap<VolumeId, ResourceName> = names::list(&hub.store, NameKind::Bundle)
        .await?
        .into_iter()
        .filter(|(name, _)| !crate::unique::is_unique(name))
        .map(|(name, id)| (id, name))
        .collect();
    let mut bundles = Vec::new();
    for id in records(hub, Some(RecordKind::Bundle), None).await? {
        match hub.catalog.living(&id).await {
            Ok(record) => bundles.push(describe(&record, named.get(&id))),
            // Deleted since the listing.
            Err(Error::NoVolume { .. } | Error::NotMadeYet { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bundles)
}

fn describe(record: &Record, name: Option<&ResourceName>) -> api::Bundle {
    let own = record.attributes.get(NAME).cloned().unwrap_or_default();
    api::Bundle {
        bundle_id: record.id.to_string(),
        name: name.map_or(own, ToString::to_string),
        version: head_version(record).map_or_else(String::new, |version| version.to_string()),
        source_volume_id: record.origin.as_ref().map_or_else(String::new, |origin| origin.volume.to_string()),
        created: Some(proto::convert::timestamp(record.created)),
        made: false,
    }
}

/// Refuses to delete a bundle or template while something says that it was made from it.
pub async fn refuse_while_used(hub: &Hub, record: &Record) -> Result<(), Error> {
    match record.kind {
        RecordKind::Bundle | RecordKind::Template => {}
        RecordKind::Volume | RecordKind::Snapshot | RecordKind::Orphan => return Ok(()),
    }
    let users = records(hub, None, Some(&record.id)).await?;
    if users.is_empty() {
        return Ok(());
    }
    let mut told: Vec<String> = users.iter().take(NAMED_USERS).map(ToString::to_string).collect();
    if users.len() > NAMED_USERS {
        told.push(format!("{} more", users.len() - NAMED_USERS));
    }
    Err(Error::InUse { volume: record.id.clone(), kind: record.kind.as_str(), users: told.join(", ") })
}

/// The ids of living records of a kind, or made from one: complete, or an error.
async fn records(
    hub: &Hub,
    kind: Option<RecordKind>,
    origin: Option<&VolumeId>,
) -> Result<Vec<VolumeId>, Error> {
    hub.catalog.begin_list(false).await?;
    let range = Range {
        after: String::new(),
        kind: kind.map(|kind| wire_kind(kind).into()),
        origin: origin.map_or_else(String::new, ToString::to_string),
        limit: usize::MAX,
    };
    let records = hub.catalog.range(range).await?;
    Ok(records.into_iter().map(|(id, ..)| id).collect())
}
