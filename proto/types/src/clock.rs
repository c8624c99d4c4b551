//! Time as a value that is passed in: liveness, retention and intervals are about time, so tests own it.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Nanoseconds since the Unix epoch, UTC; negative before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Returns the time `duration` later, at the end of the range if it would leave it.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)))
    }

    /// Returns how long after `earlier` this is; zero if it is not after.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Splits into whole seconds and the nanoseconds after them (0 to 999,999,999).
    pub fn seconds_and_nanos(self) -> (i64, u32) {
        const NANOS: i64 = 1_000_000_000;
        let nanos = u32::try_from(self.0.rem_euclid(NANOS)).expect("a remainder by 10^9 fits u32");
        (self.0.div_euclid(NANOS), nanos)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let nanos = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |n| -n),
        };
        Self(nanos)
    }
}

/// RFC 3339 in UTC with whole seconds, for people and JSON.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, _) = self.seconds_and_nanos();
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, day) = civil_from_days(days);
        let (hour, minute, second) = (second / 3_600, second % 3_600 / 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Days since 1970-01-01 to a proleptic Gregorian date (Hinnant, "chrono-compatible low-level date algorithms").
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Tells the time. Production passes [`SystemClock`], tests a [`ManualClock`].
pub trait Clock: fmt::Debug + Send + Sync {
    /// Returns the wall time. It may jump; nothing that decides liveness may use it.
    fn now(&self) -> Timestamp;

    /// Returns a time that only moves forward, for intervals and liveness.
    fn monotonic(&self) -> Instant;
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the machine for the wall time")]
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }

    fn monotonic(&self) -> Instant {
        Instant::now()
    }
}

/// A clock that moves only when told to. Clones share their time.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<Mutex<(Timestamp, Instant)>>);

impl ManualClock {
    /// Starts at `wall`.
    pub fn new(wall: Timestamp) -> Self {
        Self(Arc::new(Mutex::new((wall, Instant::now()))))
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let mut times = self.0.lock().expect("no holder of this lock panics");
        times.0 = times.0.plus(by);
        times.1 += by;
    }

    /// Sets the wall clock alone, as a lying NTP server would.
    pub fn set_wall(&self, wall: Timestamp) {
        self.0.lock().expect("no holder of this lock panics").0 = wall;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.0.lock().expect("no holder of this lock panics").0
    }

    fn monotonic(&self) -> Instant {
        self.0.lock().expect("no holder of this lock panics").1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_prints_as_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_305_599, "2026-11-21T23:59:59Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(Timestamp(seconds * 1_000_000_000).to_string(), text);
        }
    }

    #[test]
    fn a_time_before_the_epoch_splits_into_positive_nanos() {
        assert_eq!(Timestamp(-1).seconds_and_nanos(), (-1, 999_999_999));
    }
}
