//! Identity: who this is, what it offers, and whether it can work right now.

use std::sync::Arc;
use std::time::Duration;

use proto::csi::v1 as csi;
use proto::csi::v1::identity_server::Identity;
use proto::csi::v1::plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion};
use proto::hub::GetHubRequest;
use proto::hub::hub_client::HubClient;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::node::Node;

/// A probe is quick, or the thing is not ready.
const BOUND: Duration = Duration::from_secs(2);

/// What is said of a pool that the kernel does not write to any more.
pub(super) const READONLY_POOL: &str = "the pool is read-only; look at dmesg";

/// Tells whether a plugin can work.
#[derive(Debug)]
pub enum Readiness {
    /// The node: its pool, its session with the store, and the hub if it has one.
    Node {
        /// Which.
        node: Arc<Node>,
        /// Its hub.
        hub: Option<HubClient<Channel>>,
    },
    /// The controller: its hub.
    Controller(HubClient<Channel>),
}

impl Readiness {
    /// Returns why not, or nothing where all is well.
    async fn trouble(&self) -> Option<String> {
        match self {
            Self::Controller(hub) => hub_trouble(hub).await,
            Self::Node { node, hub } => {
                if let Some(trouble) = node_trouble(node).await {
                    return Some(trouble);
                }
                match hub {
                    Some(hub) => hub_trouble(hub).await,
                    None => None,
                }
            }
        }
    }
}

async fn node_trouble(node: &Node) -> Option<String> {
    if let Err(error) = node.require_own_store() {
        return Some(error.to_string());
    }
    if node.session_id().is_none() {
        return Some("there is no live session".to_owned());
    }
    let trouble = node.store_trouble();
    if !trouble.is_empty() {
        return Some(trouble);
    }
    let pool = node.pool().clone();
    let looking = node.pool().run(move |_| Ok(pool.is_writable()));
    match tokio::time::timeout(BOUND, looking).await {
        Ok(Ok(Ok(writable))) => (!writable).then(|| READONLY_POOL.to_owned()),
        Ok(Ok(Err(errno))) => Some(format!("the pool cannot be looked at: {errno}")),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("the pool does not answer".to_owned()),
    }
}

async fn hub_trouble(hub: &HubClient<Channel>) -> Option<String> {
    let mut hub = hub.clone();
    match tokio::time::timeout(BOUND, hub.get_hub(GetHubRequest {})).await {
        Ok(Ok(_)) => None,
        Ok(Err(status)) => Some(format!("the hub: {}", status.message())),
        Err(_) => Some("the hub does not answer".to_owned()),
    }
}

/// The Identity service.
#[derive(Debug)]
pub struct Plugin {
    name: String,
    readiness: Readiness,
}

impl Plugin {
    /// Serves the identity of the driver `name`.
    pub fn new(name: String, readiness: Readiness) -> Self {
        Self { name, readiness }
    }
}

#[tonic::async_trait]
impl Identity for Plugin {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: self.name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        let service = |kind: service::Type| Type::Service(Service { r#type: kind.into() });
        let capabilities = [
            service(service::Type::ControllerService),
            service(service::Type::VolumeAccessibilityConstraints),
            service(service::Type::GroupControllerService),
            Type::VolumeExpansion(VolumeExpansion { r#type: volume_expansion::Type::Online.into() }),
        ];
        Ok(Response::new(csi::GetPluginCapabilitiesResponse {
            capabilities: capabilities
                .into_iter()
                .map(|capability| csi::PluginCapability { r#type: Some(capability) })
                .collect(),
        }))
    }

    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        let trouble = self.readiness.trouble().await;
        if let Some(trouble) = &trouble {
            tracing::warn!(trouble, "not ready");
        }
        Ok(Response::new(csi::ProbeResponse { ready: Some(trouble.is_none()) }))
    }
}
