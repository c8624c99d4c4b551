//! The node.

pub mod files;
