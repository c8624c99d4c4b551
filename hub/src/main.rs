//! `opensail-hub`: the Volume Hub as a process.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cas::Store;
use cas::objects::{StoreUrl, probe};
use clap::Parser;
use hub::state::State;
use hub::{Collection, Hub, Settings, Timings};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use types::{ByteSize, SystemClock};

/// Calls under way at a SIGTERM have this long; Kubernetes kills after 30 seconds, people wait for 10.
const GRACE: Duration = Duration::from_secs(8);

/// A store that does not answer at start is an error to read, not a process that hangs.
const STORE_TIMEOUT: Duration = Duration::from_secs(60);

/// Which volume is where, and under which epoch.
#[derive(Debug, Parser)]
#[command(name = "opensail-hub", version)]
struct Arguments {
    /// Where to listen for nodes and clients.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9750", env = "OPENSAIL_HUB_LISTEN")]
    listen: String,
    /// The store that holds everything: dir:///path, s3://bucket/prefix?endpoint=..&region=..&path_style=true.
    #[arg(long, value_name = "URL", env = "OPENSAIL_STORE")]
    store: StoreUrl,
    /// The hub's memory: a file that can be deleted at any time while no hub runs.
    #[arg(long, value_name = "PATH", env = "OPENSAIL_HUB_STATE")]
    state: PathBuf,
    /// Where `GET /metrics` is answered, in plain text to whoever asks; without it nowhere.
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
    /// What a volume gets that asks for nothing.
    #[arg(long, value_name = "SIZE", default_value = "5Gi")]
    default_quota: ByteSize,
    /// How often nodes speak.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time)]
    heartbeat: Duration,
    /// Silence after which nothing new is placed on a node.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = time)]
    suspect: Duration,
    /// Silence, here and in the store, after which a node's volumes may be taken over.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    dead: Duration,
    /// How long after a garbage collection the next one begins; 0s: never.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time)]
    gc_interval: Duration,
    /// How long a deleted volume can be brought back.
    #[arg(long, value_name = "TIME", default_value = "168h", value_parser = time)]
    gc_grace: Duration,
}

/// Reads `250ms`, `3s`, `2m`, `1h`.
fn time(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let per_unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("write 250ms, 3s, 2m or 1h".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "write 250ms, 3s, 2m or 1h".to_owned())?;
    Ok(Duration::from_millis(number.saturating_mul(per_unit)))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match serve(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", proto::status::message(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(arguments: Arguments) -> anyhow::Result<()> {
    let timings =
        Timings { heartbeat: arguments.heartbeat, suspect: arguments.suspect, dead: arguments.dead }
            .check()?;
    // Handlers first: a signal during a slow start ends it too.
    let shutdown = CancellationToken::new();
    tokio::spawn(signals(shutdown.clone())?);
    let building = Box::pin(build(&arguments, timings));
    let Some(built) = shutdown.run_until_cancelled(building).await else { return Ok(()) };
    let (hub, listener) = built?;
    if let Some(address) = &arguments.metrics {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}; choose another --metrics"))?;
        hub::metrics::serve(&hub, listener);
    }
    let address = listener.local_addr()?;
    tracing::info!(%address, store = %arguments.store, store_id = %hub.store.id(), "ready");
    hub::run(hub, listener, shutdown, GRACE).await?;
    tracing::info!("stopped");
    Ok(())
}

/// Binds first, so that a port in use is said at once; then proves the store, then takes the state file.
async fn build(arguments: &Arguments, timings: Timings) -> anyhow::Result<(Arc<Hub>, TcpListener)> {
    let listener = TcpListener::bind(&arguments.listen).await.with_context(|| {
        format!("cannot listen on {}; choose another --listen or stop what uses it", arguments.listen)
    })?;
    let opening = async {
        let objects = arguments.store.connect().await?;
        probe(&*objects).await?.require_fit()?;
        let store = Store::create_or_open(objects, Arc::new(SystemClock)).await?;
        anyhow::Ok(store.into_inner())
    };
    let store = tokio::time::timeout(STORE_TIMEOUT, opening)
        .await
        .with_context(|| format!("no answer within {STORE_TIMEOUT:?}"))
        .flatten()
        .with_context(|| {
            format!(
                "cannot use the store {}; check --store, its credentials and the network",
                arguments.store
            )
        })?;
    let state = State::open(&arguments.state, store.id())?;
    let collection = Collection { interval: arguments.gc_interval, grace: arguments.gc_grace };
    let settings = Settings { default_quota: arguments.default_quota, timings, collection };
    Ok((Hub::new(settings, store, state), listener))
}

/// Cancels `shutdown` at the first SIGTERM or SIGINT.
fn signals(shutdown: CancellationToken) -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
    })
}
