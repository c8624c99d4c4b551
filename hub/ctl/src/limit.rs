//! Times as people write them.

use std::time::Duration;

/// A length of time: 250ms, 90s, 5m, 2h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub Duration);

impl std::str::FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| "write a number and ms, s, m or h".to_owned())?;
        let millis = match unit {
            "ms" => Some(number),
            "s" | "" => number.checked_mul(1_000),
            "m" => number.checked_mul(60_000),
            "h" => number.checked_mul(3_600_000),
            _ => return Err("the units are ms, s, m and h".to_owned()),
        };
        // A year: what is longer is a mistake, and would overflow the runtime's clock.
        match millis {
            Some(0) => Err("it must be more than nothing".to_owned()),
            Some(millis) if millis <= 366 * 86_400_000 => Ok(Self(Duration::from_millis(millis))),
            _ => Err("it is longer than a year".to_owned()),
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let millis = self.0.as_millis();
        if millis.is_multiple_of(1_000) { write!(f, "{}s", millis / 1_000) } else { write!(f, "{millis}ms") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_parse_as_people_write_them() {
        for (text, millis) in
            [("250ms", 250), ("90s", 90_000), ("90", 90_000), ("5m", 300_000), ("2h", 7_200_000)]
        {
            assert_eq!(text.parse::<Limit>().unwrap().0.as_millis(), millis, "{text}");
        }
        for text in ["", "0s", "s", "-1s", "1.5s", "1d", "99999999999999999999s", "18446744073709551615h"] {
            assert!(text.parse::<Limit>().is_err(), "{text}");
        }
    }
}
