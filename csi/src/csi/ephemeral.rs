//! Inline volumes: scratch space that a pod brings with it, from a template or empty, and that goes with the pod.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cas::names::{self, NameKind};
use types::{ByteSize, MemberName, RequestId, ResourceName, VolumeId};

use super::error::Error;
use crate::create::CreateRequest;
use crate::node::Node;
use crate::volume::Volume;

/// The attribute of such a volume: nobody will ask for it again.
const ATTRIBUTE: &str = "csi/ephemeral";

/// How ids of inline volumes begin: they tell themselves from handles of other volumes.
const PREFIX: &str = "eph";

fn request(handle: &str) -> Option<RequestId> {
    format!("ephemeral:{handle}").parse().ok()
}

/// The id of the inline volume that kubelet calls `handle`.
pub(super) fn id(handle: &str) -> Option<VolumeId> {
    request(handle).map(|request| VolumeId::for_request(PREFIX, &request))
}

/// Makes an inline volume, or finds it. `template` and `size` are its attributes in the pod.
///
/// # Errors
/// An attribute is wrong, the template is not there, or the node could not make it.
pub(super) async fn make(
    node: &Arc<Node>,
    handle: &str,
    context: &HashMap<String, String>,
) -> Result<Arc<Volume>, Error> {
    let wrong = |key: &str, reason: String| Error::Parameter { key: key.to_owned(), reason };
    let request = request(handle).ok_or_else(|| wrong("volume_id", "is no handle".to_owned()))?;
    let id = VolumeId::for_request(PREFIX, &request);
    if let Some(volume) = node.volumes().find(&id) {
        return Ok(volume);
    }
    let mut limit = node.config().default_quota;
    let mut origin = None;
    for (key, value) in context {
        match key.as_str() {
            "size" => {
                limit = value.parse::<ByteSize>().map_err(|error| wrong(key, error.to_string()))?;
            }
            "template" => origin = Some(template(node, value).await?),
            sidecar if sidecar.starts_with("csi.storage.k8s.io/") => {}
            _ => return Err(wrong(key, "is not known; size and template are".to_owned())),
        }
    }
    let create = CreateRequest {
        id,
        request,
        origin,
        limit_bytes: Some(limit.0),
        domain: None,
        attributes: BTreeMap::from([(ATTRIBUTE.to_owned(), "true".to_owned())]),
    };
    let made = node.create(create).await.map_err(|error| Error::Status(error.into()))?;
    Ok(made.into_inner())
}

async fn template(node: &Node, name: &str) -> Result<(VolumeId, types::VersionId), Error> {
    let missing = || Error::NotFound { what: "template", id: name.chars().take(128).collect() };
    let store = |error: cas::Error| Error::Status(proto::status::status(&error));
    let name: ResourceName = name.parse().map_err(|_| missing())?;
    let volume = names::resolve(node.store(), NameKind::Template, &name).await.map_err(store)?;
    let volume = volume.ok_or_else(missing)?;
    let record = cas::record::read(node.store(), &volume).await.map_err(store)?.ok_or_else(missing)?;
    let version = record.value.head_tips().get(&MemberName::data()).copied().ok_or_else(missing)?;
    Ok((volume, version))
}

/// Deletes an inline volume once nothing of it is mounted any more.
///
/// # Errors
/// The node could not.
pub(super) async fn drop(node: &Arc<Node>, id: &VolumeId) -> Result<(), Error> {
    match node.delete(id).await {
        // Another target of the same pod shows it.
        Ok(_) | Err(crate::error::Error::Mounted { .. }) => Ok(()),
        Err(error) => Err(Error::Status(error.into())),
    }
}
