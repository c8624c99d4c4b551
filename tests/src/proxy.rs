//! A proxy in front of an S3 server that does to requests and answers what networks and servers do to them.
//!
//! One request a connection, read whole, then its fate is decided by a plan over what was asked. Bytes are passed on as
//! they came, so signatures stay good. Loopback only, plain HTTP.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use cas::objects::StoreUrl;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The most bytes of a request or an answer: an object may have 80 MiB.
const MOST: usize = 96 << 20;

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// It is passed on, and so is the answer.
    #[default]
    None,
    /// It is passed on after this time.
    Delay(Duration),
    /// It is taken and nothing is ever said.
    Stall,
    /// The answer stops in the middle of its body, and the connection stays open.
    StallInBody,
    /// The answer stops in the middle of its body, and the connection is closed.
    CutInBody,
    /// The connection is reset before the server hears of it.
    Reset,
    /// The proxy answers with this status, and the server does not hear of it.
    Status(u16),
    /// The server does it; its answer is lost.
    LoseAnswer,
    /// The caller hears nothing; the server gets it after this time.
    Late(Duration),
    /// The server gets it twice; the second answer is passed on.
    Duplicate,
    /// The server gets half of the body, and then the connection ends; so does the caller's.
    TruncateRequest,
    /// One bit of the request's body changes on the way.
    FlipRequest,
    /// One bit of the answer's body changes on the way.
    FlipAnswer,
    /// The answer comes at this many bytes a second.
    Slow(u64),
}

/// What kind of request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Of an object or a part of it.
    Get,
    /// Of a listing.
    List,
    /// Of what is known of an object.
    Head,
    /// A write.
    Put,
    /// A removal.
    Delete,
    /// Anything else.
    Other,
}

/// A request as the plan sees it.
#[derive(Debug, Clone)]
pub struct Asked {
    /// How many came before it since the last [`Proxy::reset`].
    pub index: usize,
    /// What kind.
    pub method: Method,
    /// The path with its bucket, without its query.
    pub path: String,
    /// Bytes of its body.
    pub bytes: usize,
    /// Headers, as they came.
    pub headers: String,
    /// What happened to it.
    pub fault: Fault,
}

impl Asked {
    /// Tells if it is of this kind and below this prefix of the store (`vol/`, `pack/`, …).
    pub fn is(&self, method: Method, prefix: &str) -> bool {
        self.method == method && self.path.contains(&format!("/{prefix}"))
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find_map(|(found, value)| found.eq_ignore_ascii_case(name).then(|| value.trim()))
    }
}

type Plan = Box<dyn FnMut(&Asked) -> Fault + Send>;

#[derive(Default)]
struct State {
    asked: Vec<Asked>,
    plan: Option<Plan>,
}

/// A running proxy; it ends with this value.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Starts one in front of `server`, an `http://host:port`, on a thread of its own.
    ///
    /// # Errors
    /// No port or no thread.
    pub fn start(server: &str) -> Result<Self> {
        let server = server.strip_prefix("http://").context("the server is no http:// URL")?.to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let state = Arc::<Mutex<State>>::default();
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::clone(&state);
        let thread = std::thread::Builder::new().name("proxy".to_owned()).spawn(move || {
            runtime.block_on(async {
                // Only fails outside of a runtime.
                if let Ok(listener) = TcpListener::from_std(listener) {
                    accept(listener, server, shared, stopped).await;
                }
            });
        })?;
        Ok(Self { address, state, stop, thread: Some(thread) })
    }

    /// Starts one in front of the server of a store, and returns the store's URL through it.
    ///
    /// # Errors
    /// The store is in no bucket of a plain HTTP server.
    pub fn before(store: &str) -> Result<(Self, String)> {
        let StoreUrl::S3(mut url) = store.parse()? else { bail!("{store} is no s3:// URL") };
        let proxy = Self::start(url.endpoint.as_deref().context("a server of our own")?)?;
        url.endpoint = Some(proxy.endpoint());
        Ok((proxy, url.to_string()))
    }

    /// Where it listens, as an endpoint.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Decides each request's fate by `plan`, in the order in which they come. Replaces any plan before it.
    pub fn plan(&self, plan: impl FnMut(&Asked) -> Fault + Send + 'static) {
        lock(&self.state).plan = Some(Box::new(plan));
    }

    /// Plans `fault` for the first `count` requests of a kind below a prefix.
    pub fn first(&self, count: usize, method: Method, prefix: &'static str, fault: Fault) {
        let mut left = count;
        self.plan(move |asked| {
            if left > 0 && asked.is(method, prefix) {
                left -= 1;
                fault
            } else {
                Fault::None
            }
        });
    }

    /// Ends all plans, forgets what was asked, and returns it.
    pub fn reset(&self) -> Vec<Asked> {
        let mut state = lock(&self.state);
        state.plan = None;
        std::mem::take(&mut state.asked)
    }

    /// How many requests of this kind came below a prefix since the last [`Self::reset`].
    pub fn count(&self, method: Method, prefix: &str) -> usize {
        lock(&self.state).asked.iter().filter(|asked| asked.is(method, prefix)).count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("a plan panicked")
}

async fn accept(
    listener: TcpListener,
    server: String,
    state: Arc<Mutex<State>>,
    mut stopped: watch::Receiver<bool>,
) {
    let server: Arc<str> = server.into();
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => {
                let Ok((caller, _)) = accepted else { continue };
                let (server, state) = (Arc::clone(&server), Arc::clone(&state));
                // A connection that breaks is what this is for.
                tokio::spawn(async move { drop(serve(caller, &server, &state).await) });
            }
        }
    }
}

struct Request {
    head: Vec<u8>,
    body: Vec<u8>,
}

async fn serve(mut caller: TcpStream, server: &str, state: &Mutex<State>) -> io::Result<()> {
    let Some(request) = take_request(&mut caller).await? else { return Ok(()) };
    let fault = decide(&request, state);
    match fault {
        Fault::None => answer(&mut caller, &pass(server, &request).await?).await,
        Fault::Delay(pause) => {
            tokio::time::sleep(pause).await;
            answer(&mut caller, &pass(server, &request).await?).await
        }
        Fault::Stall => until_closed(&mut caller).await,
        Fault::StallInBody => {
            let whole = pass(server, &request).await?;
            caller.write_all(&whole[..middle(&whole)]).await?;
            until_closed(&mut caller).await
        }
        Fault::CutInBody => {
            let whole = pass(server, &request).await?;
            answer(&mut caller, &whole[..middle(&whole)]).await
        }
        Fault::Reset => {
            caller.set_zero_linger()?;
            drop(caller);
            Ok(())
        }
        Fault::Status(status) => answer(&mut caller, &refusal(status)).await,
        Fault::LoseAnswer => pass(server, &request).await.map(drop),
        Fault::Late(pause) => {
            drop(caller);
            tokio::time::sleep(pause).await;
            pass(server, &request).await.map(drop)
        }
        Fault::Duplicate => {
            drop(pass(server, &request).await?);
            answer(&mut caller, &pass(server, &request).await?).await
        }
        Fault::TruncateRequest => {
            let mut upstream = TcpStream::connect(server).await?;
            upstream.write_all(&closing(&request.head)).await?;
            upstream.write_all(&request.body[..request.body.len() / 2]).await?;
            upstream.shutdown().await
        }
        Fault::FlipRequest => {
            let mut body = request.body.clone();
            if let Some(byte) = body.get_mut(request.body.len() / 2) {
                *byte ^= 1;
            }
            answer(&mut caller, &pass(server, &Request { head: request.head, body }).await?).await
        }
        Fault::FlipAnswer => {
            let mut whole = pass(server, &request).await?;
            let at = middle(&whole);
            if let Some(byte) = whole.get_mut(at) {
                *byte ^= 1;
            }
            answer(&mut caller, &whole).await
        }
        Fault::Slow(rate) => {
            let whole = pass(server, &request).await?;
            let step = usize::try_from(rate / 20).unwrap_or(usize::MAX).max(1);
            for part in whole.chunks(step) {
                caller.write_all(part).await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            caller.shutdown().await
        }
    }
}

/// Notes a request and asks the plan.
fn decide(request: &Request, state: &Mutex<State>) -> Fault {
    let head = String::from_utf8_lossy(&request.head);
    let (line, headers) = head.split_once("\r\n").unwrap_or((&head, ""));
    let mut words = line.split(' ');
    let (verb, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let method = match verb {
        "GET" if query.contains("list-type") => Method::List,
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        _ => Method::Other,
    };
    let mut state = lock(state);
    let mut asked = Asked {
        index: state.asked.len(),
        method,
        path: path.to_owned(),
        bytes: request.body.len(),
        headers: headers.to_owned(),
        fault: Fault::None,
    };
    asked.fault = state.plan.as_mut().map_or(Fault::None, |plan| plan(&asked));
    let fault = asked.fault;
    state.asked.push(asked);
    fault
}

/// Reads one request whole; nothing where the caller only connected.
async fn take_request(caller: &mut TcpStream) -> io::Result<Option<Request>> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = find(&bytes, b"\r\n\r\n") {
            break end + 4;
        }
        if bytes.len() > 64 << 10 || caller.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let mut body = bytes.split_off(head);
    let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    if text.contains("expect: 100-continue") && body.is_empty() {
        caller.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let length = header(&text, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    if length > MOST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    while body.len() < length {
        if caller.read_buf(&mut body).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Some(Request { head: bytes, body }))
}

/// Passes a request on, on a connection of its own, and returns the answer whole.
async fn pass(server: &str, request: &Request) -> io::Result<Vec<u8>> {
    let mut upstream = TcpStream::connect(server).await?;
    upstream.write_all(&closing(&request.head)).await?;
    // A server that refuses early may close before it has the body: its answer counts.
    let (mut answers, mut asks) = upstream.split();
    let mut whole = Vec::new();
    let (sent, read) = tokio::join!(asks.write_all(&request.body), answers.read_to_end(&mut whole));
    if whole.is_empty() {
        sent?;
        read?;
    }
    const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    Ok(match whole.strip_prefix(CONTINUE) {
        Some(rest) => rest.to_vec(),
        None => whole,
    })
}

/// The head of a request with a word that the server is to close after its answer. That header is not signed.
fn closing(head: &[u8]) -> Vec<u8> {
    let line = find(head, b"\r\n").map_or(head.len(), |end| end + 2);
    [&head[..line], b"Connection: close\r\n", &head[line..]].concat()
}

async fn answer(caller: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    caller.write_all(bytes).await?;
    caller.shutdown().await
}

/// Says nothing until the caller gives up.
async fn until_closed(caller: &mut TcpStream) -> io::Result<()> {
    let mut byte = [0];
    caller.read(&mut byte).await.map(drop)
}

/// A place in the middle of an answer's body; its end where it has none.
fn middle(whole: &[u8]) -> usize {
    let body = find(whole, b"\r\n\r\n").map_or(whole.len(), |end| end + 4);
    body + (whole.len() - body) / 2
}

fn refusal(status: u16) -> Vec<u8> {
    let code = match status {
        503 => "SlowDown",
        429 => "TooManyRequests",
        409 => "ConditionalRequestConflict",
        _ => "InternalError",
    };
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>planned</Message></Error>");
    format!(
        "HTTP/1.1 {status} Planned\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn header<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(found, _)| *found == name)
        .map(|(_, v)| v.trim())
}
