//! The operator's door. Everything is in the library; this hands the exit code back.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match ctl::cli::Cli::try_parse() {
        Ok(cli) => ctl::run(cli),
        Err(error) => ctl::output::usage(&error),
    }
}
