//! Counts calls as they pass: a layer around a gRPC server.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tonic::Code;
use tonic::body::Body;
use tonic::codegen::Body as HttpBody;
use tonic::codegen::{Bytes, http};
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
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            call.read(answer.headers());
            let (head, body) = answer.into_parts();
            Ok(http::Response::from_parts(head, Body::new(CountedBody { inner: body, call })))
        })
    }
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
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, tonic::Status>>> {
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
