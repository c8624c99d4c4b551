//! The node: volumes on a btrfs pool, made durable in the store, moved by whoever asks, one writer at a time.
//!
//! `README.md` beside this crate says what holds and why; `PROTOCOL.md` in the project says who may write what.

pub mod about;
pub mod acquire;
pub mod basis;
pub mod changes;
pub mod clone;
pub mod cold;
pub mod compute;
pub mod config;
pub mod create;
pub mod csi;
pub mod cut;
pub mod delete;
pub mod error;
pub mod files;
pub mod fork;
pub mod hub_link;
pub mod known;
pub mod layout;
pub mod liveness;
pub mod local;
pub mod locks;
pub mod materialise;
pub mod metrics;
pub mod mounts;
pub mod node;
pub mod pool;
pub mod quota;
pub mod quota_class;
pub mod relative;
pub mod release;
pub mod restore;
pub mod seal;
pub mod server;
pub mod service;
pub mod settings;
pub mod settle;
pub mod shelf;
pub mod start;
pub mod state;
pub mod status;
pub mod sweep;
pub mod sync;
pub mod volume;
pub mod volumes;
