//! What kubelet asks of a node: its calls, and the directories that it brings.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "tests: each file uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use csi::csi::DRIVER;
use csi::csi::node::{CsiNode, NodeOptions};
use csi::node::Node;
use proto::csi::v1 as api;
use proto::csi::v1::node_client::NodeClient;
use proto::csi::v1::node_server::Node as _;
use proto::csi::v1::volume_capability::access_mode::Mode;
use proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use rand::Rng as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

pub fn capability(mode: Mode, flags: &[&str]) -> Option<api::VolumeCapability> {
    Some(api::VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume {
            mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..Default::default()
        })),
    })
}

pub fn code<T>(answer: Result<Response<T>, Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

pub struct Kubelet {
    pub service: CsiNode,
    pub dir: tempfile::TempDir,
}

impl Kubelet {
    pub fn new(node: &Arc<Node>) -> Self {
        let options = NodeOptions { driver: DRIVER.to_owned(), max_volumes: 7 };
        let dir = tempfile::Builder::new().prefix("opensail-kubelet-").tempdir().unwrap();
        Self { service: CsiNode::new(Arc::clone(node), options), dir }
    }

    pub fn target(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn publish_request(&self, volume: &str, target: &str) -> api::NodePublishVolumeRequest {
        api::NodePublishVolumeRequest {
            volume_id: volume.to_owned(),
            target_path: self.target(target).display().to_string(),
            staging_target_path: self.target("staging").display().to_string(),
            volume_capability: capability(Mode::SingleNodeWriter, &[]),
            ..Default::default()
        }
    }

    pub async fn publish(&self, request: api::NodePublishVolumeRequest) -> Code {
        code(self.service.node_publish_volume(Request::new(request)).await)
    }

    pub async fn unpublish(&self, volume: &str, target: &str) -> Code {
        let target_path = self.target(target).display().to_string();
        let request = api::NodeUnpublishVolumeRequest { volume_id: volume.to_owned(), target_path };
        code(self.service.node_unpublish_volume(Request::new(request)).await)
    }

    pub async fn stats(&self, volume: &str, target: &str) -> Result<api::VolumeUsage, Code> {
        let request = self.stats_request(volume, target);
        let answer = self.service.node_get_volume_stats(Request::new(request)).await;
        let answer = answer.map_err(|status| status.code())?.into_inner();
        assert_eq!(answer.usage.len(), 1, "no row of zeros for inodes");
        assert!(!answer.volume_condition.unwrap().abnormal);
        Ok(answer.usage[0])
    }

    pub fn stage_request(&self, volume: &str) -> api::NodeStageVolumeRequest {
        api::NodeStageVolumeRequest {
            volume_id: volume.to_owned(),
            staging_target_path: self.target("staging").display().to_string(),
            volume_capability: capability(Mode::SingleNodeWriter, &[]),
            ..Default::default()
        }
    }

    pub async fn stage(&self, volume: &str) -> Code {
        code(self.service.node_stage_volume(Request::new(self.stage_request(volume))).await)
    }

    pub fn unstage_request(&self, volume: &str) -> api::NodeUnstageVolumeRequest {
        api::NodeUnstageVolumeRequest {
            volume_id: volume.to_owned(),
            staging_target_path: self.target("staging").display().to_string(),
        }
    }

    pub async fn unstage(&self, volume: &str) -> Code {
        code(self.service.node_unstage_volume(Request::new(self.unstage_request(volume))).await)
    }

    /// An inline volume of this handle, at a target.
    pub fn inline_request(&self, handle: &str, target: &str) -> api::NodePublishVolumeRequest {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        api::NodePublishVolumeRequest {
            staging_target_path: String::new(),
            volume_context: [pair("csi.storage.k8s.io/ephemeral", "true"), pair("size", "32Mi")].into(),
            ..self.publish_request(handle, target)
        }
    }

    pub fn stats_request(&self, volume: &str, target: &str) -> api::NodeGetVolumeStatsRequest {
        api::NodeGetVolumeStatsRequest {
            volume_id: volume.to_owned(),
            volume_path: self.target(target).display().to_string(),
            ..Default::default()
        }
    }

    pub async fn grow(&self, volume: &str, target: &str, bytes: i64) -> Code {
        let request = api::NodeExpandVolumeRequest {
            volume_id: volume.to_owned(),
            volume_path: self.target(target).display().to_string(),
            capacity_range: Some(api::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            ..Default::default()
        };
        code(self.service.node_expand_volume(Request::new(request)).await)
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        // What a failed test left mounted must not be deleted into.
        for point in mounts_below(self.dir.path()) {
            let status = Command::new("umount").arg("-l").arg(point).status();
            assert!(status.is_ok_and(|status| status.success()) || std::thread::panicking());
        }
    }
}

pub fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let mounts = csi::mounts::read().unwrap();
    mounts.into_iter().map(|mount| mount.point).filter(|point| point.starts_with(path)).collect()
}

/// Incompressible bytes.
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    rand::rng().fill_bytes(&mut noise);
    noise
}

/// The CSI socket of a node that was started with one.
pub async fn dial(socket: &Path) -> NodeClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    NodeClient::new(endpoint.connect().await.unwrap())
}

/// What a caller makes of an answer that may pass: kubelet takes none of these for the last word.
pub fn may_pass(code: Code) -> bool {
    matches!(code, Code::Aborted | Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
}

/// Asks until the answer is not one that passes, as kubelet does.
pub async fn patiently(mut call: impl AsyncFnMut() -> Code) -> Code {
    let mut answer = call().await;
    for _ in 0..600 {
        if !may_pass(answer) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        answer = call().await;
    }
    answer
}
