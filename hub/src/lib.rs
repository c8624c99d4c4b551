//! The Volume Hub: which volume is where, and under which epoch.
//!
//! The truth is in the store: records name their owners, and nodes write them. The hub hears nodes, decides which of
//! them should take a volume, and asks. It can be lost with its disk, and no two hubs can harm a volume.

pub mod attach;
pub mod branch;
pub mod bundle;
pub mod catalog;
pub mod collect;
pub mod config;
pub mod core;
pub mod create;
pub mod ensure;
pub mod error;
pub mod flight;
pub mod group;
pub mod hooks;
pub mod liveness;
pub mod metrics;
pub mod nodes;
pub mod order;
pub mod placement;
pub mod records;
pub mod run;
pub mod seal;
pub mod service;
pub mod settings;
pub mod state;
pub mod unique;
pub mod view;

pub use collect::Collection;
pub use config::Settings;
pub use core::Hub;
pub use error::Error;
pub use liveness::Timings;
pub use run::{RunError, run};
