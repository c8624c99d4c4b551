//! The Files service in process, over a directory of any filesystem.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "tests")]

mod batch;
mod cold;
mod confined;
mod list;
mod read;
mod served;
mod write;
