//! Figures with their limits: what `hack/bench` prints and writes.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

/// One measured value beside the limit that was measured interleaved with it.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// The group that measured it.
    pub group: &'static str,
    /// What was measured, with the store and the cache state.
    pub name: String,
    /// The value.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What it is compared with.
    pub limit: String,
    /// The limit's value in the same unit.
    pub limit_value: f64,
    /// `value / limit_value`.
    pub ratio: f64,
    /// The target in words.
    pub target: String,
    /// Whether the target was met.
    pub met: bool,
}

/// What a figure has to stay below.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// At most this many times the limit.
    Times(f64),
    /// At most the limit and this much.
    Plus(f64),
    /// At most the limit.
    Limit,
    /// Nothing: it stands beside the other for comparison.
    Beside,
}

impl Figure {
    /// Compares `value` with `limit_value`.
    pub fn new(
        group: &'static str,
        name: impl Into<String>,
        (value, unit): (f64, &'static str),
        (limit, limit_value): (&str, f64),
        target: Target,
    ) -> Self {
        let (bound, words) = match target {
            Target::Times(times) => (limit_value * times, format!("<= {times} x {limit}")),
            Target::Plus(more) => (limit_value + more, format!("<= {limit} + {more} {unit}")),
            Target::Limit => (limit_value, format!("<= {limit}")),
            Target::Beside => (f64::INFINITY, format!("beside {limit}")),
        };
        Self {
            group,
            name: name.into(),
            value,
            unit,
            limit: limit.to_owned(),
            limit_value,
            ratio: if limit_value == 0.0 { 0.0 } else { value / limit_value },
            target: words,
            met: value <= bound,
        }
    }
}

/// Returns the median.
///
/// # Panics
/// There are no samples.
pub fn median(samples: &[Duration]) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// Returns what 99 of 100 samples are at most.
///
/// # Panics
/// There are no samples.
pub fn p99(samples: &[Duration]) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * 99).div_ceil(100) - 1]
}

/// Milliseconds with their fraction.
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Lays the figures out as a table.
pub fn table(figures: &[Figure]) -> String {
    let mut text = String::new();
    for figure in figures {
        let verdict = if figure.met { "met" } else { "MISSED" };
        writeln!(
            text,
            "{:<8} {:<58} {:>10.2} {:<7} | {:<44} {:>10.2} | {:>5.2}x | {verdict}",
            figure.group,
            figure.name,
            figure.value,
            figure.unit,
            figure.target,
            figure.limit_value,
            figure.ratio
        )
        .expect("writing to a String does not fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_held_against_its_target() {
        let cases = [
            (10.0, 8.0, Target::Times(1.5), true),
            (13.0, 8.0, Target::Times(1.5), false),
            (10.0, 8.0, Target::Plus(3.0), true),
            (12.0, 8.0, Target::Plus(3.0), false),
            (8.0, 8.0, Target::Limit, true),
        ];
        for (value, limit, target, met) in cases {
            let figure = Figure::new("g", "n", (value, "ms"), ("raw", limit), target);
            assert_eq!(figure.met, met, "{figure:?}");
        }
    }
}
