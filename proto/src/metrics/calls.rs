//! Counts calls as they pass, and ends those whose callers have no time left: a layer around a gRPC server.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tonic::body::Body;
use tonic::codegen::Body as HttpBody;
use tonic::codegen::{Bytes, http};
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::{Kind, Metric, Metrics};

/// How many calls there were, how they ended and how long they took.
pub const CALLS: Metric = Metric {
    name: "opensail_rpc_seconds",
    help: "Calls by service, method and gRPC code, and how long they took.",
    kind: Kind::Histogram,
    labels: &["service", "method", "code"],
};

/// What a caller made up must not become a label.
const UNKNOWN: &str = "unknown";

/// Where a status stands in headers or trailers.
const STATUS: &str = "grpc-status";

/// Where a caller says how long it waits.
const TIMEOUT: &str = "grpc-timeout";

/// As long as a caller that does not say it.
const FOREVER: Duration = Duration::MAX;

/// The layer.
#[derive(Debug, Clone)]
pub struct Calls {
    metrics: Metrics,
}

impl Calls {
    /// Counts into `metrics`.
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for Calls {
    type Service = CountedCalls<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CountedCalls { inner, metrics: self.metrics.clone() }
    }
}

/// A service whose calls are counted.
#[derive(Debug, Clone)]
pub struct CountedCalls<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, R> Service<http::Request<R>> for CountedCalls<S>
where
    S: Service<http::Request<R>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<R>) -> Self::Future {
        let mut call = Call::begin(self.metrics.clone(), request.uri().path());
        let patience = patience(request.headers()).unwrap_or(FOREVER);
        // Its time begins here and not with its first poll: tonic's own timer is made after this one and looked at after
        // it, and would call the end of that time CANCELLED, which nobody tries again.
        let answer = tokio::time::timeout(patience, self.inner.call(request));
        Box::pin(async move {
            let answer = match answer.await {
                Ok(answer) => answer?,
                Err(_) => Status::deadline_exceeded(format!("no answer within {patience:?}")).into_http(),
            };
            call.read(answer.headers());
            let (head, body) = answer.into_parts();
            Ok(http::Response::from_parts(head, Body::new(CountedBody { inner: body, call })))
        })
    }
}

/// Reads how long a caller waits: at most eight digits and a unit.
fn patience(headers: &http::HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// One call. It is counted when it is dropped, as what was last heard of it.
#[derive(Debug)]
struct Call {
    metrics: Metrics,
    service: String,
    method: String,
    started: Instant,
    code: Code,
}

impl Call {
    fn begin(metrics: Metrics, path: &str) -> Self {
        let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((UNKNOWN, UNKNOWN));
        let (service, method) = (service.to_owned(), method.to_owned());
        // A call that never answers was given up by its caller.
        Self { metrics, service, method, started: Instant::now(), code: Code::Cancelled }
    }

    fn read(&mut self, headers: &http::HeaderMap) {
        if let Some(status) = headers.get(STATUS) {
            self.code = Code::from_bytes(status.as_bytes());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // What no service knows is no name of ours.
        let (service, method) = if self.code == Code::Unimplemented {
            (UNKNOWN, UNKNOWN)
        } else {
            (self.service.as_str(), self.method.as_str())
        };
        let code = format!("{:?}", self.code);
        self.metrics.observe(&CALLS, &[service, method, &code], self.started.elapsed());
    }
}

/// The answer's body: its last part says how the call ended.
#[derive(Debug)]
pub struct CountedBody {
    inner: Body,
    call: Call,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            let trailers = trailers.clone();
            self.call.read(&trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_caller_waits_is_read_in_all_units() {
        let read =
            |text: &str| patience(&[(TIMEOUT.parse().unwrap(), text.parse().unwrap())].into_iter().collect());
        for (text, expected) in [
            ("2H", Some(7_200_000_000_000)),
            ("3M", Some(180_000_000_000)),
            ("4S", Some(4_000_000_000)),
            ("05m", Some(5_000_000)),
            ("6u", Some(6_000)),
            ("99999999n", Some(99_999_999)),
            ("100000000n", None),
            ("-1S", None),
            ("S", None),
            ("", None),
            ("1x", None),
        ] {
            assert_eq!(read(text), expected.map(Duration::from_nanos), "{text}");
        }
    }

    #[tokio::test]
    async fn a_call_whose_caller_has_no_time_left_is_told_so_and_counted_so() {
        let metrics = Metrics::default();
        let silent = tower::service_fn(|_: http::Request<Body>| {
            std::future::pending::<Result<http::Response<Body>, std::convert::Infallible>>()
        });
        let mut service = Calls::new(metrics.clone()).layer(silent);
        let request = http::Request::builder().uri("/some.Service/Method").header(TIMEOUT, "5m");
        let answer = service.call(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        drop(answer);
        assert!(metrics.text().contains("code=\"DeadlineExceeded\""), "{}", metrics.text());
    }
}
