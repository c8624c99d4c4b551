//! What a process tells Prometheus: counters, gauges and histograms under names that are documented where they are defined,
//! as text over HTTP.
//!
//! Invariants:
//! - A label's values are a small set: never a volume, a file, or what a client made up.
//! - Counting never fails and never waits for a reader.

mod calls;
mod endpoint;
mod store;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub use calls::{CALLS, Calls, CountedBody, CountedCalls};
pub use endpoint::{Endpoint, serve};
pub use store::tell_traffic;

/// More label sets than this of one metric are an error of ours; the rest is counted together.
const MOST_SERIES: usize = 1_000;

/// The label value of what is counted together.
const OTHER: &str = "other";

/// Upper bounds of the buckets of every histogram, in seconds: from a read in memory to a restore.
const BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Is what it is now.
    Gauge,
    /// How long things took, in seconds.
    Histogram,
}

/// A metric's definition: a constant beside the code that counts.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name, `opensail_…`, with the unit last.
    pub name: &'static str,
    /// What it says, in a sentence.
    pub help: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
}

/// The metrics of one process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Mutex<BTreeMap<&'static str, Family>>>);

#[derive(Debug)]
struct Family {
    metric: &'static Metric,
    series: BTreeMap<Vec<String>, Series>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Series {
    /// Counter and gauge; of a histogram the sum.
    value: f64,
    count: u64,
    buckets: [u64; BUCKETS.len()],
}

impl Metrics {
    /// Shows a counter that nothing was counted in yet, as zero.
    pub fn show(&self, metric: &'static Metric, labels: &[&str]) {
        self.change(metric, labels, |_| {});
    }

    /// Adds to a counter.
    #[expect(clippy::cast_precision_loss, reason = "2^53 of anything is enough")]
    pub fn add(&self, metric: &'static Metric, labels: &[&str], more: u64) {
        self.change(metric, labels, |series| series.value += more as f64);
    }

    /// Sets a gauge.
    pub fn set(&self, metric: &'static Metric, labels: &[&str], value: f64) {
        self.change(metric, labels, |series| series.value = value);
    }

    /// Sets a gauge to a whole number.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is for people")]
    pub fn set_count(&self, metric: &'static Metric, labels: &[&str], value: u64) {
        self.set(metric, labels, value as f64);
    }

    /// Notes how long something took.
    pub fn observe(&self, metric: &'static Metric, labels: &[&str], took: Duration) {
        let seconds = took.as_secs_f64();
        self.change(metric, labels, |series| {
            series.value += seconds;
            series.count += 1;
            for (bucket, bound) in series.buckets.iter_mut().zip(BUCKETS) {
                *bucket += u64::from(seconds <= bound);
            }
        });
    }

    fn change(&self, metric: &'static Metric, labels: &[&str], change: impl FnOnce(&mut Series)) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let mut families = self.lock();
        let family =
            families.entry(metric.name).or_insert_with(|| Family { metric, series: BTreeMap::new() });
        let mut key: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        if family.series.len() >= MOST_SERIES && !family.series.contains_key(&key) {
            key.fill(OTHER.to_owned());
        }
        change(family.series.entry(key).or_default());
    }

    /// Everything, in Prometheus' text format 0.0.4.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for family in self.lock().values() {
            // Writing into a string does not fail.
            let _: fmt::Result = family.write(&mut text);
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Family>> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

impl Family {
    fn write(&self, text: &mut String) -> fmt::Result {
        let Metric { name, help, kind, labels } = self.metric;
        let word = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {word}")?;
        for (values, series) in &self.series {
            let pairs: Vec<String> = labels
                .iter()
                .zip(values)
                .map(|(label, value)| format!("{label}=\"{}\"", escape(value)))
                .collect();
            let set = |more: Option<String>| {
                let all: Vec<&str> = pairs.iter().map(String::as_str).chain(more.as_deref()).collect();
                if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
            };
            if *kind != Kind::Histogram {
                writeln!(text, "{name}{} {}", set(None), series.value)?;
                continue;
            }
            for (bound, count) in BUCKETS.iter().zip(series.buckets) {
                writeln!(text, "{name}_bucket{} {count}", set(Some(format!("le=\"{bound}\""))))?;
            }
            writeln!(text, "{name}_bucket{} {}", set(Some("le=\"+Inf\"".to_owned())), series.count)?;
            writeln!(text, "{name}_sum{} {}", set(None), series.value)?;
            writeln!(text, "{name}_count{} {}", set(None), series.count)?;
        }
        Ok(())
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: Metric =
        Metric { name: "opensail_done_total", help: "Things done.", kind: Kind::Counter, labels: &["how"] };
    const TOOK: Metric =
        Metric { name: "opensail_took_seconds", help: "How long.", kind: Kind::Histogram, labels: &[] };

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let metrics = Metrics::default();
        metrics.add(&DONE, &["well"], 2);
        metrics.clone().add(&DONE, &["well"], 1);
        metrics.show(&DONE, &["\"so\"\n"]);
        metrics.observe(&TOOK, &[], Duration::from_millis(30));
        let text = metrics.text();
        for line in [
            "# HELP opensail_done_total Things done.\n# TYPE opensail_done_total counter\n",
            "opensail_done_total{how=\"well\"} 3\n",
            "opensail_done_total{how=\"\\\"so\\\"\\n\"} 0\n",
            "opensail_took_seconds_bucket{le=\"0.025\"} 0\nopensail_took_seconds_bucket{le=\"0.05\"} 1\n",
            "opensail_took_seconds_bucket{le=\"+Inf\"} 1\n",
            "opensail_took_seconds_sum 0.03\nopensail_took_seconds_count 1\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn labels_do_not_grow_without_a_bound() {
        let metrics = Metrics::default();
        for number in 0..MOST_SERIES * 2 {
            metrics.add(&DONE, &[&number.to_string()], 1);
        }
        let text = metrics.text();
        assert_eq!(text.lines().count(), MOST_SERIES + 1 + 2);
        assert!(text.contains(&format!("opensail_done_total{{how=\"other\"}} {MOST_SERIES}\n")));
    }
}
