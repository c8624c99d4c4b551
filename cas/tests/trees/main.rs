//! Trees in and out of stores, compared by tools that share no code with ours.

mod place;
mod round_trip;
mod tools;
