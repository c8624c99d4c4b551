//! What changed between two snapshots, on a real btrfs, judged by a walk of everything, by the store, and by `btrfs send`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::wildcard_enum_match_arm,
    clippy::type_complexity,
    reason = "tests"
)]

mod classes;
mod cost;
mod fuzz;
mod inventory;
mod model;
mod operations;
mod planted;
mod sent;
mod store;
mod volume;
