//! `opensail-csi`: parse, log, build, run.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use csi::config::{Cli, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let stop = CancellationToken::new();
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stopper = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopper.cancel();
    });
    let trouble = match cli.command {
        Command::Node(config) => {
            Box::pin(csi::server::run(*config, stop)).await.err().map(|error| proto::status::message(&error))
        }
        Command::Controller(config) => {
            csi::csi::controller::run(config, stop).await.err().map(|error| proto::status::message(&error))
        }
    };
    Ok(match trouble {
        None => ExitCode::SUCCESS,
        Some(trouble) => {
            tracing::error!("{trouble}");
            ExitCode::FAILURE
        }
    })
}
