//! `GET /metrics`: one small answer for each connection, and nothing else.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::Metrics;

/// A request is a line and some headers.
const LONGEST_REQUEST: usize = 8 << 10;

/// A scraper is quick, or it is none.
const PATIENCE: Duration = Duration::from_secs(10);

/// Scrapers at once. More of them wait.
const AT_ONCE: usize = 4;

/// What is served, and what is looked up first.
#[derive(Debug, Clone)]
pub struct Endpoint<G> {
    /// The process's metrics.
    pub metrics: Metrics,
    /// Brings gauges up to date. Old numbers are shown where that takes longer than a scraper waits.
    pub gather: G,
}

/// Answers scrapers until it is dropped.
///
/// # Errors
/// The listener failed.
pub async fn serve<G, F>(listener: TcpListener, endpoint: Endpoint<G>) -> io::Result<()>
where
    G: Fn() -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send,
{
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            // A client that went away in between, or no file handles for a moment.
            Err(error) => {
                tracing::debug!(%error, "a scraper could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let endpoint = endpoint.clone();
        tokio::spawn(async move {
            let _place = place;
            // A scraper that breaks off is its own business.
            drop(tokio::time::timeout(PATIENCE, answer(stream, &endpoint)).await);
        });
    }
}

async fn answer<G, F>(mut stream: TcpStream, endpoint: &Endpoint<G>) -> io::Result<()>
where
    G: Fn() -> F,
    F: Future<Output = ()>,
{
    let mut request = Vec::new();
    let mut part = [0_u8; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut part).await?;
        if read == 0 || request.len() + read > LONGEST_REQUEST {
            return Ok(());
        }
        request.extend_from_slice(&part[..read]);
    }
    let mut words = request.split(|byte| *byte == b' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some(b"GET"), Some(path)) if path.split(|byte| *byte == b'?').next() == Some(b"/metrics") => {
            // Half of what a scraper waits; what is not known by then is shown as it was.
            drop(tokio::time::timeout(PATIENCE / 2, (endpoint.gather)()).await);
            ("200 OK", endpoint.metrics.text())
        }
        (Some(b"GET"), _) => ("404 Not Found", "only /metrics is here\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET is answered\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Metric};
    use super::*;

    const LOOKS: Metric =
        Metric { name: "opensail_looks_total", help: "Looks.", kind: Kind::Counter, labels: &[] };

    async fn ask(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_scraper_gets_what_is_so_now_and_nothing_else_is_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Metrics::default();
        let looked = metrics.clone();
        let gather = move || {
            let looked = looked.clone();
            async move { looked.add(&LOOKS, &[], 1) }
        };
        let serving = tokio::spawn(serve(listener, Endpoint { metrics, gather }));
        for times in 1..=2 {
            let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.ends_with(&format!("opensail_looks_total {times}\n")), "{answer}");
        }
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405"),
            ("\r\n\r\n", "HTTP/1.1 405"),
        ] {
            assert!(ask(address, request).await.starts_with(status), "{request}");
        }
        assert_eq!(ask(address, &"x".repeat(LONGEST_REQUEST + 1)).await, "");
        serving.abort();
    }
}
