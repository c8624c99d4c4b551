//! Serving over TCP.

use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;

/// Takes the connections of a bound listener, each without Nagle's algorithm: an answer is several small frames, and with
/// it all but the first wait for the client's delayed acknowledgement, forty milliseconds.
pub fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::codegen::tokio_stream::StreamExt as _;

    #[tokio::test]
    async fn an_answer_does_not_wait_for_acknowledgements() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = incoming(listener);
        let client = tokio::net::TcpStream::connect(address).await.unwrap();
        let served = incoming.next().await.unwrap().unwrap();
        assert!(served.nodelay().unwrap());
        drop(client);
    }
}
