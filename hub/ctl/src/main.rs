//! The operator's door. Everything is in the library; this parses and hands the exit code back.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    ctl::run(ctl::cli::Cli::parse())
}
