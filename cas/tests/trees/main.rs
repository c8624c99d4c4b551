//! Trees in and out of stores, compared by tools that share no code with ours.

mod increment;
mod place;
mod round_trip;
mod tools;
mod walked;
