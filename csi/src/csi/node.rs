//! The Node service: stage takes a volume for this node and materialises it, publish is a bind mount and nothing else,
//! unstage makes durable what was written. Works on without hub and controller.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::convert::InvalidField;
use proto::csi::v1 as csi;
use proto::csi::v1::node_server;
use proto::csi::v1::node_service_capability::{Rpc, Type, rpc};
use proto::csi::v1::volume_usage::Unit;
use tonic::{Request, Response, Status};
use types::{Change, VolumeId};

use super::capability::{Access, MountOptions, access};
use super::error::Error;
use super::identity::READONLY_POOL;
use super::{ephemeral, facts, id, mount};
use crate::local;
use crate::locks::{Locks, VolumeGuard};
use crate::node::Node;
use crate::sync::SyncRequest;
use crate::volume::Volume;

/// What kubelet puts into the volume context of an inline volume.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";

/// Stats that take longer are answered from what was known last.
const STATS_BOUND: Duration = Duration::from_secs(1);

/// The key of the epoch in a publish context.
pub(super) const EPOCH: &str = "epoch";

/// What the Node service is told at start.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// The driver's name.
    pub driver: String,
    /// How many volumes may be published here; 0: as many as the scheduler likes.
    pub max_volumes: u32,
}

#[derive(Debug, Clone, Copy)]
struct Numbers {
    used_bytes: u64,
    total_bytes: u64,
}

/// The Node service of one node.
#[derive(Debug)]
pub struct CsiNode {
    node: Arc<Node>,
    options: NodeOptions,
    /// One publication of a volume at a time, so that two cannot both be the only one.
    publications: Locks,
    known: Mutex<HashMap<VolumeId, Numbers>>,
}

impl CsiNode {
    /// Serves `node`.
    pub fn new(node: Arc<Node>, options: NodeOptions) -> Self {
        Self { node, options, publications: Locks::default(), known: Mutex::default() }
    }

    /// Finds a volume of this node by its handle.
    fn here(&self, handle: &str) -> Result<Arc<Volume>, Error> {
        if handle.is_empty() {
            return Err(InvalidField::Missing { field: "volume_id" }.into());
        }
        let named = handle.parse::<VolumeId>().ok().and_then(|id| self.node.volumes().find(&id));
        let inline = || ephemeral::id(handle).and_then(|id| self.node.volumes().find(&id));
        named.or_else(inline).ok_or_else(|| not_found(handle))
    }

    fn publishing(&self, id: &VolumeId) -> Result<VolumeGuard, Error> {
        self.publications.try_acquire(id, "publish").map_err(|error| Error::Status(error.into()))
    }

    /// Runs work on the pool, where blocking is allowed.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&crate::pool::Pool, &btrfs::Dir) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let pool = self.node.pool().clone();
        let done = self.node.pool().run(move |root| Ok(work(&pool, root))).await;
        done.map_err(|error| Error::Status(error.into()))?
    }

    async fn stage(&self, request: csi::NodeStageVolumeRequest) -> Result<(), Error> {
        let id = id("volume", "volume_id", &request.volume_id)?;
        if request.staging_target_path.is_empty() {
            return Err(InvalidField::Missing { field: "staging_target_path" }.into());
        }
        access(request.volume_capability.as_ref())?;
        let volume = self.held(&id).await?;
        check_epoch(&self.node, &volume, &request.publish_context)
    }

    /// The volume, taken for this node if nobody has it. Materialising goes on when the caller leaves, and the next call
    /// is told that it does (ABORTED) until it is done.
    async fn held(&self, id: &VolumeId) -> Result<Arc<Volume>, Error> {
        let session = self.node.session().map_err(status)?;
        if let Some(volume) = self.node.volumes().find(id)
            && volume.claim(session.id()).is_ok()
        {
            return Ok(volume);
        }
        match self.node.acquire(id, false).await {
            Ok(volume) => Ok(volume),
            Err(crate::error::Error::NoRecord { .. }) => Err(not_found(id.as_str())),
            Err(error @ crate::error::Error::Owned { .. }) => {
                Err(Error::NotHere { volume: id.clone(), why: error.to_string() })
            }
            Err(error) => Err(status(error)),
        }
    }

    /// Makes durable what was written. The volume stays this node's until somebody else needs it.
    async fn unstage(&self, request: csi::NodeUnstageVolumeRequest) -> Result<(), Error> {
        if request.staging_target_path.is_empty() {
            return Err(InvalidField::Missing { field: "staging_target_path" }.into());
        }
        let volume = match self.here(&request.volume_id) {
            Err(Error::NotFound { .. }) => return Ok(()),
            volume => volume?,
        };
        let session = self.node.session().map_err(status)?;
        // A copy that is not owned has nothing that may be published.
        if volume.claim(session.id()).is_err() {
            return Ok(());
        }
        self.node.sync(&volume.id, SyncRequest::plain()).await.map_err(status)?;
        Ok(())
    }

    async fn publish(&self, request: csi::NodePublishVolumeRequest) -> Result<(), Error> {
        if request.volume_id.is_empty() {
            return Err(InvalidField::Missing { field: "volume_id" }.into());
        }
        if request.target_path.is_empty() {
            return Err(InvalidField::Missing { field: "target_path" }.into());
        }
        let Access { readonly, exclusive, options } = access(request.volume_capability.as_ref())?;
        let options = MountOptions { readonly: readonly || request.readonly, ..options };
        let inline = request.volume_context.get(EPHEMERAL).is_some_and(|value| value == "true");
        let volume = if inline {
            ephemeral::make(&self.node, &request.volume_id, &request.volume_context).await?
        } else {
            if request.staging_target_path.is_empty() {
                return Err(Error::NotHere {
                    volume: id("volume", "volume_id", &request.volume_id)?,
                    why: "it was not staged: staging_target_path is missing".to_owned(),
                });
            }
            self.here(&request.volume_id)?
        };
        let publishing = self.publishing(&volume.id)?;
        // Nothing takes the volume away or swaps it while it is being mounted.
        let entered = volume.enter().await.map_err(status)?;
        let session = self.node.session().map_err(status)?;
        volume
            .claim(session.id())
            .map_err(|error| Error::NotHere { volume: volume.id.clone(), why: error.to_string() })?;
        check_epoch(&self.node, &volume, &request.publish_context)?;
        let (id, path) = (volume.id.clone(), request.target_path);
        let change = self
            .run(move |pool, root| {
                // With the work, not with the caller: one whose patience ends must not let the next one in beside it.
                let _held = (publishing, entered);
                let target = target(&path)?;
                if exclusive && let Some(other) = mount::elsewhere(pool, &id, &target)?.first() {
                    return Err(Error::SingleWriter { volume: id, target: other.display().to_string() });
                }
                let live = local::live(root, &id).map_err(status)?;
                mount::bind(pool, &id, &live, &target, options)
            })
            .await?;
        if change.is_made() {
            tracing::info!(volume = %volume.id, readonly = options.readonly, "published");
            self.node.volumes().touch(&volume.id);
        }
        Ok(())
    }

    async fn unpublish(&self, request: csi::NodeUnpublishVolumeRequest) -> Result<(), Error> {
        if request.volume_id.is_empty() {
            return Err(InvalidField::Missing { field: "volume_id" }.into());
        }
        if request.target_path.is_empty() {
            return Err(InvalidField::Missing { field: "target_path" }.into());
        }
        let (handle, path) = (request.volume_id, request.target_path);
        let candidates = [handle.parse::<VolumeId>().ok(), ephemeral::id(&handle)];
        let inline = candidates[1].clone().and_then(|id| self.node.volumes().find(&id));
        let id = match (&inline, candidates.into_iter().flatten().next()) {
            (Some(inline), _) => inline.id.clone(),
            (None, Some(id)) => id,
            // No id, so nothing of ours can be there.
            (None, None) => return Ok(()),
        };
        let publishing = self.publishing(&id)?;
        let here = id.clone();
        let change = self
            .run(move |pool, _| {
                let _held = publishing;
                match mount::target("target_path", &path)? {
                    Some(target) => mount::unbind(pool, &here, &target),
                    None => Ok(Change::Already(())),
                }
            })
            .await?;
        if change.is_made() {
            tracing::info!(volume = %id, "unpublished");
            self.node.volumes().touch(&id);
        }
        if let Some(inline) = inline {
            ephemeral::drop(&self.node, &inline.id).await?;
        }
        Ok(())
    }

    async fn stats(
        &self,
        request: csi::NodeGetVolumeStatsRequest,
    ) -> Result<csi::NodeGetVolumeStatsResponse, Error> {
        if request.volume_id.is_empty() {
            return Err(InvalidField::Missing { field: "volume_id" }.into());
        }
        if request.volume_path.is_empty() {
            return Err(InvalidField::Missing { field: "volume_path" }.into());
        }
        let volume = self.here(&request.volume_id)?;
        let (id, path) = (volume.id.clone(), request.volume_path);
        let node = Arc::clone(&self.node);
        let look = async {
            let (mounted, writable) = self
                .run(move |pool, _| {
                    let Some(target) = mount::target("volume_path", &path)? else { return Ok((false, true)) };
                    let mounted = matches!(mount::top(pool, &id, &target)?, mount::Top::Volume { .. });
                    Ok((mounted, pool.is_writable().unwrap_or(false)))
                })
                .await?;
            if !mounted {
                return Err(Error::NotFound {
                    what: "published volume at this path",
                    id: volume.id.to_string(),
                });
            }
            if !writable {
                // Its trees may not even be read any more.
                return Ok(None);
            }
            let described = node.describe(&volume).await.map_err(status)?;
            let total_bytes = match described.quota_bytes {
                0 => node.capacity().await.map_err(status)?.available_bytes + described.used_bytes,
                limit => limit,
            };
            Ok(Some((Numbers { used_bytes: described.used_bytes, total_bytes }, described)))
        };
        let known = || self.known.lock().expect("no holder of this lock panics").get(&volume.id).copied();
        let abnormal = |message: String| csi::VolumeCondition { abnormal: true, message };
        let (numbers, condition) = match tokio::time::timeout(STATS_BOUND, look).await {
            Ok(looked) => match looked? {
                Some((numbers, described)) => {
                    self.known
                        .lock()
                        .expect("no holder of this lock panics")
                        .insert(volume.id.clone(), numbers);
                    (Some(numbers), facts::condition(described.health(), &described.detail))
                }
                None => (known(), abnormal(READONLY_POOL.to_owned())),
            },
            Err(_) => {
                let numbers = known().ok_or(Error::UnderWay { doing: "looking at the volume" })?;
                let message =
                    format!("the pool does not answer within {STATS_BOUND:?}: these numbers are old");
                (Some(numbers), abnormal(message))
            }
        };
        // No row for inodes: btrfs has no number of them.
        let row = |numbers: Numbers| csi::VolumeUsage {
            available: facts::bytes(numbers.total_bytes.saturating_sub(numbers.used_bytes)),
            total: facts::bytes(numbers.total_bytes),
            used: facts::bytes(numbers.used_bytes),
            unit: Unit::Bytes.into(),
        };
        Ok(csi::NodeGetVolumeStatsResponse {
            usage: numbers.into_iter().map(row).collect(),
            volume_condition: Some(condition),
        })
    }

    /// The controller has set the limit already. A call that asks for more than there is sets it here.
    async fn expand(
        &self,
        request: csi::NodeExpandVolumeRequest,
    ) -> Result<csi::NodeExpandVolumeResponse, Error> {
        if request.volume_id.is_empty() {
            return Err(InvalidField::Missing { field: "volume_id" }.into());
        }
        if request.volume_path.is_empty() {
            return Err(InvalidField::Missing { field: "volume_path" }.into());
        }
        if request.volume_capability.is_some() {
            access(request.volume_capability.as_ref())?;
        }
        let volume = self.here(&request.volume_id)?;
        let limit = volume.facts().about.limit_bytes.unwrap_or(0);
        let required =
            request.capacity_range.map_or(0, |range| u64::try_from(range.required_bytes).unwrap_or(0));
        if limit != 0 && required > limit {
            self.node.set_quota(&volume.id, Some(required)).await.map_err(status)?;
            return Ok(csi::NodeExpandVolumeResponse { capacity_bytes: facts::bytes(required) });
        }
        Ok(csi::NodeExpandVolumeResponse { capacity_bytes: facts::bytes(limit) })
    }
}

/// What the node said, as it is said on the wire.
fn status(error: crate::error::Error) -> Error {
    Error::Status(error.into())
}

fn not_found(handle: &str) -> Error {
    Error::NotFound { what: "volume", id: handle.chars().take(128).collect() }
}

fn target(path: &str) -> Result<PathBuf, Error> {
    let missing = || Error::Mount {
        doing: "find the directory of",
        target: path.to_owned(),
        source: std::io::Error::from_raw_os_error(nix::libc::ENOENT),
    };
    mount::target("target_path", path)?.ok_or_else(missing)
}

/// Refuses a publication that was granted before the volume changed its owner.
fn check_epoch(node: &Node, volume: &Volume, context: &HashMap<String, String>) -> Result<(), Error> {
    let Some(given) = context.get(EPOCH).and_then(|text| text.parse::<u64>().ok()) else { return Ok(()) };
    let session = node.session().map_err(status)?;
    let here = volume.claim(session.id()).map_err(status)?.epoch.0;
    if given > here {
        return Err(Error::StaleEpoch { volume: volume.id.clone(), given, here });
    }
    Ok(())
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl node_server::Node for CsiNode {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Answer<csi::NodeStageVolumeResponse> {
        self.stage(request.into_inner()).await?;
        Ok(Response::new(csi::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Answer<csi::NodeUnstageVolumeResponse> {
        self.unstage(request.into_inner()).await?;
        Ok(Response::new(csi::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Answer<csi::NodePublishVolumeResponse> {
        Box::pin(self.publish(request.into_inner())).await?;
        Ok(Response::new(csi::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Answer<csi::NodeUnpublishVolumeResponse> {
        Box::pin(self.unpublish(request.into_inner())).await?;
        Ok(Response::new(csi::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Answer<csi::NodeGetVolumeStatsResponse> {
        Ok(Response::new(self.stats(request.into_inner()).await?))
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Answer<csi::NodeExpandVolumeResponse> {
        Ok(Response::new(self.expand(request.into_inner()).await?))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Answer<csi::NodeGetCapabilitiesResponse> {
        let capabilities = [
            rpc::Type::StageUnstageVolume,
            rpc::Type::GetVolumeStats,
            rpc::Type::ExpandVolume,
            rpc::Type::VolumeCondition,
            rpc::Type::SingleNodeMultiWriter,
        ];
        Ok(Response::new(csi::NodeGetCapabilitiesResponse {
            capabilities: capabilities
                .into_iter()
                .map(|kind| csi::NodeServiceCapability {
                    r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
                })
                .collect(),
        }))
    }

    async fn node_get_info(&self, _: Request<csi::NodeGetInfoRequest>) -> Answer<csi::NodeGetInfoResponse> {
        let name = self.node.name().to_string();
        Ok(Response::new(csi::NodeGetInfoResponse {
            accessible_topology: Some(facts::topology(&self.options.driver, &name)),
            node_id: name,
            max_volumes_per_node: i64::from(self.options.max_volumes),
        }))
    }
}
