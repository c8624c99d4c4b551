//! `sailctl`: the operator's door to a cluster, and the way to run one on this machine.
//!
//! A command talks to the hub, to the node that holds a volume, or to the store; it prints one table or one JSON
//! document on standard output, and what went wrong on standard error with what to do about it. `output` is the only
//! module that prints; `error` decides the exit code.

pub mod branch;
pub mod bundle;
pub mod call;
pub mod cli;
pub mod context;
pub mod copy;
pub mod damage;
pub mod dev;
pub mod doctor;
pub mod error;
pub mod files;
pub mod gc;
pub mod limit;
pub mod nodes;
pub mod output;
pub mod reindex;
pub mod store;
pub mod target;
pub mod template;
pub mod timeline;
pub mod verify;
pub mod view;
pub mod volumes;

use std::process::ExitCode;
use std::time::Duration;

use cli::{Cli, Command};
use context::Context;
pub use error::{Error, Result};
use output::Output;

/// Runs one command to its end and says how it ended.
pub fn run(cli: Cli) -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::new(if cli.verbose { "debug" } else { "error" }))
        .init();
    let output = Output::new(cli.output, cli.quiet);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => return output.failure(&Error::local("start", "the async runtime", source)),
    };
    let limit = cli.timeout.map_or_else(|| cli.command.default_timeout(), |timeout| timeout.0);
    let outcome = runtime.block_on(async {
        // Boxed: the future of all commands is large.
        let command = Box::pin(dispatch(cli, &output));
        match tokio::time::timeout(limit, command).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::Timeout { limit }),
        }
    });
    // What a timeout left behind on a worker thread must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output.failure(&error),
    }
}

async fn dispatch(cli: Cli, output: &Output) -> Result<()> {
    if let Command::Dev(command) = cli.command {
        return dev::run(command, output).await;
    }
    let context = Context::load(cli.context.as_deref())?;
    match cli.command {
        Command::Dev(_) => unreachable!("answered above"),
        Command::Nodes => nodes::list(&context, output).await,
        Command::Doctor => doctor::run(&context, output).await,
        Command::Create(args) => volumes::create(&context, output, args).await,
        Command::Ls(args) => match args.what {
            Some(what) => files::list(&context, output, &what, args.recursive).await,
            None => volumes::list(&context, output, args.node.as_ref(), args.all).await,
        },
        Command::Describe(args) => volumes::describe(&context, output, &args.volume).await,
        Command::Fork(args) => volumes::fork(&context, output, args).await,
        Command::Rm(args) => volumes::remove(&context, output, &args.volumes).await,
        Command::Move(args) => volumes::relocate(&context, output, &args.volume, &args.to).await,
        Command::Hibernate(args) => volumes::hibernate(&context, output, &args.volume).await,
        Command::Wake(args) => volumes::wake(&context, output, args).await,
        Command::Snapshot(args) => timeline::snapshot(&context, output, args).await,
        Command::Log(args) => timeline::log(&context, output, &args.volume).await,
        Command::Restore(args) => timeline::restore(&context, output, args).await,
        Command::Branch(command) => branch::run(&context, output, command).await,
        Command::Pin(command) => branch::pins(&context, output, command).await,
        Command::Bundle(command) => bundle::run(&context, output, command).await,
        Command::Sync(args) => timeline::sync(&context, output, &args.volume).await,
        Command::Template(cli::TemplateCommand::Create(args)) => {
            template::create(&context, output, args).await
        }
        Command::Template(cli::TemplateCommand::Publish(args)) => {
            template::publish(&context, output, args).await
        }
        Command::Template(cli::TemplateCommand::Ls) => template::list(&context, output).await,
        Command::Template(cli::TemplateCommand::Rm(args)) => {
            template::remove(&context, output, &args.name).await
        }
        Command::Cp(args) => copy::run(&context, output, args).await,
        Command::Cat(args) => files::cat(&context, output, &args.file).await,
        Command::Stat(args) => files::stat(&context, output, &args.file).await,
        Command::Tree(args) => files::tree(&context, output, &args.file).await,
        Command::Diff(args) => files::diff(&context, output, &args).await,
        Command::Write(args) => files::write(&context, output, args).await,
        Command::Gc(args) => gc::run(&context, output, &args).await,
        Command::Verify(args) => verify::run(&context, output, &args.volume).await,
        Command::Scrub(args) if args.now => {
            damage::scrub(&context, output, args.rate.map(|rate| rate.0)).await
        }
        Command::Scrub(_) => damage::found(&context, output).await,
        Command::Reindex(args) => reindex::run(&context, output, args).await,
        Command::Rescue(args) => damage::rescue(&context, output, &args.volume, &args.directory).await,
        Command::Repair(args) => damage::repair(&context, output, &args.volume).await,
    }
}
