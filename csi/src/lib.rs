//! The node: volumes on a btrfs pool, made durable in the store, moved by whoever asks, one writer at a time.
//!
//! `README.md` beside this crate says what holds and why; `PROTOCOL.md` in the project says who may write what.

pub mod about;
pub mod clone;
pub mod config;
pub mod error;
pub mod files;
pub mod layout;
pub mod locks;
pub mod mounts;
pub mod pool;
pub mod shelf;
pub mod state;
