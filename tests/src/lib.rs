//! Fixtures of the whole-system tests: real daemons, real pools, real stores.

#![expect(clippy::print_stderr, reason = "a fixture speaks to whoever runs the tests")]

pub mod cluster;
pub mod daemon;
pub mod fake_node;
pub mod figures;
pub mod kubernetes;
pub mod machines;
pub mod outer;
pub mod proxy;
pub mod require;
pub mod sail;
pub mod same;
pub mod stores;
pub mod tree;
