//! A CSI socket: made for its group alone, served until told to stop, and given up when somebody removes its file, as
//! kubelet then waits for a new one.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use proto::csi::v1::identity_server::IdentityServer;
use proto::csi::v1::node_server::NodeServer;
use proto::metrics::Calls;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::DRIVER;
use super::error::Error;
use super::identity::{Plugin, Readiness};
use super::node::{CsiNode, NodeOptions};
use crate::node::Node;

/// How often the socket's file is looked for.
const WATCH: Duration = Duration::from_secs(1);

/// Calls under way at the end have this long.
const GRACE: Duration = Duration::from_secs(4);

/// The options of the node's socket.
#[derive(Debug, Clone, Args)]
pub struct NodeSocket {
    /// Where the CSI socket is made; without one there is no CSI.
    #[arg(long, value_name = "PATH")]
    pub csi_socket: Option<PathBuf>,

    /// The driver's name.
    #[arg(long, value_name = "NAME", default_value = DRIVER)]
    pub csi_driver: String,

    /// How many volumes may be published here; 0: as many as the scheduler likes.
    #[arg(long, value_name = "COUNT", default_value = "0")]
    pub csi_max_volumes: u32,
}

/// Binds the socket of a node, if it is to have one. The server ends with the node; a socket that vanished ends the node
/// by `stop`, as a process that kubelet cannot find is of no use.
///
/// # Errors
/// The socket cannot be made.
pub fn node(node: &Arc<Node>, stop: &CancellationToken) -> Result<(), Error> {
    let options = node.config().csi.clone();
    let Some(path) = &options.csi_socket else { return Ok(()) };
    let socket = Socket::bind(path)?;
    let channel = node.config().hub.as_ref().and_then(|hub| proto::client::channel(hub).ok());
    let readiness = Readiness::Node { node: Arc::clone(node), hub: channel.map(proto::client::hub) };
    let identity = Plugin::new(options.csi_driver.clone(), readiness);
    let service = CsiNode::new(
        Arc::clone(node),
        NodeOptions { driver: options.csi_driver, max_volumes: options.csi_max_volumes },
    );
    let routes = Routes::new(IdentityServer::new(identity)).add_service(NodeServer::new(service));
    let calls = Calls::new(node.metrics().clone());
    let (ended, stop) = (node.stop().clone(), stop.clone());
    node.tasks().spawn(async move {
        if let Err(error) = socket.serve(routes, calls, ended).await {
            tracing::error!(%error, "the CSI socket is lost");
            stop.cancel();
        }
    });
    Ok(())
}

/// A bound socket that nobody serves yet.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
    inode: (u64, u64),
}

impl Socket {
    /// Binds `path`, mode 0660, in place of a socket that an earlier process left.
    ///
    /// # Errors
    /// It cannot be made there; a file that is no socket is left alone.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Socket { path: path.to_owned(), source };
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path).map_err(failed)?,
            Ok(_) => return Err(failed(std::io::Error::from(std::io::ErrorKind::AlreadyExists))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
        let found = std::fs::symlink_metadata(path).map_err(failed)?;
        Ok(Self { path: path.to_owned(), listener, inode: (found.dev(), found.ino()) })
    }

    /// Serves `routes` until `stop`, and counts the calls.
    ///
    /// # Errors
    /// [`Error::SocketGone`] where the file vanished or is another one's, or the server failed.
    pub async fn serve(self, routes: Routes, calls: Calls, stop: CancellationToken) -> Result<(), Error> {
        let Self { path, listener, inode } = self;
        tracing::info!(socket = %path.display(), "serving CSI");
        let ending = CancellationToken::new();
        let end = ending.clone();
        let server = tonic::transport::Server::builder()
            .layer(calls)
            .add_routes(routes)
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
                end.cancelled().await;
            });
        tokio::pin!(server);
        let gone = tokio::select! {
            served = &mut server => return served.map_err(Error::Serve),
            () = stop.cancelled() => false,
            () = vanished(&path, inode) => true,
        };
        ending.cancel();
        let served = tokio::time::timeout(GRACE, server).await.unwrap_or(Ok(()));
        if gone {
            return Err(Error::SocketGone { path });
        }
        served.map_err(Error::Serve)
    }
}

async fn vanished(path: &Path, inode: (u64, u64)) {
    loop {
        tokio::time::sleep(WATCH).await;
        match tokio::fs::symlink_metadata(path).await {
            Ok(found) if (found.dev(), found.ino()) == inode => {}
            Ok(_) => return,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => tracing::debug!(%error, "the socket's file cannot be looked at"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_for_its_group_and_replaces_one_that_was_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("csi.sock");
        drop(Socket::bind(&path).unwrap());
        let again = Socket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        drop(again);
        let file = directory.path().join("file");
        std::fs::write(&file, "mine").unwrap();
        Socket::bind(&file).unwrap_err();
        assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    }

    #[tokio::test]
    async fn a_socket_whose_file_is_removed_ends_its_server() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("csi.sock");
        let socket = Socket::bind(&path).unwrap();
        let calls = Calls::new(proto::metrics::Metrics::default());
        let serving = tokio::spawn(socket.serve(Routes::default(), calls, CancellationToken::new()));
        std::fs::remove_file(&path).unwrap();
        let ended = tokio::time::timeout(WATCH * 5, serving).await.unwrap().unwrap();
        assert!(matches!(ended, Err(Error::SocketGone { .. })));
    }
}
