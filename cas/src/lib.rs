//! The content-addressed store: files, trees and records as objects in a bucket or a directory.

pub mod blocking;
pub mod objects;
