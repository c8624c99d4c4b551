//! Typed clients: one way to dial, with the limits and timeouts that every caller here wants.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::{files::files_client::FilesClient, hub::hub_client::HubClient, node::node_client::NodeClient};

/// No message is larger: contents travel in chunks, lists in pages.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// How long to wait for a connection before the peer counts as away.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that breaks without a word is noticed after this long.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Prepares a channel to `address` (`host:port` or a URL). It connects on first use, and again after a failure.
///
/// # Errors
/// The address is not one.
pub fn channel(address: &str) -> Result<Channel, tonic::transport::Error> {
    let url = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    Ok(Endpoint::from_shared(url)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .connect_lazy())
}

/// Makes a client of the hub.
pub fn hub(channel: Channel) -> HubClient<Channel> {
    HubClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// Makes a client of a node.
pub fn node(channel: Channel) -> NodeClient<Channel> {
    NodeClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// Makes a client of a node's files.
pub fn files(channel: Channel) -> FilesClient<Channel> {
    FilesClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}
