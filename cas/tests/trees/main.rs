//! Trees in and out of stores, compared by tools that share no code with ours.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::wildcard_enum_match_arm,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test that cannot go on says where"
)]

mod damage;
mod dedup;
mod increment;
mod large;
mod part;
mod place;
mod requests;
mod round_trip;
mod tools;
mod walked;
