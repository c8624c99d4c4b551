//! Quota classes: what happens at a volume's capacity. The capacity itself is what was asked for, in every class.

use std::collections::BTreeMap;

use proto::settings::QUOTA_CLASS;
use serde::{Deserialize, Serialize};

/// A burst may go beyond the capacity by one part in this many.
const BURST_PART: u64 = 4;

/// What happens at a volume's capacity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuotaClass {
    /// Writes fail with `EDQUOT`.
    #[default]
    Hard,
    /// The volume is told to be over its capacity; writes fail a quarter beyond it.
    Burst,
    /// The volume is told to be over its capacity, and can fill the pool.
    Soft,
}

impl QuotaClass {
    /// The word in parameters and attributes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hard => "hard",
            Self::Burst => "burst",
            Self::Soft => "soft",
        }
    }

    /// Reads the word.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Hard, Self::Burst, Self::Soft].into_iter().find(|class| class.as_str() == text)
    }

    /// The class that a record's attributes say. What somebody wrote past the checks is the strictest.
    pub fn of(attributes: &BTreeMap<String, String>) -> Self {
        attributes.get(QUOTA_CLASS).and_then(|text| Self::parse(text)).unwrap_or_default()
    }

    /// Where writes stop, for a volume of this capacity; nothing: nowhere.
    pub fn stop_bytes(self, capacity_bytes: u64) -> Option<u64> {
        match self {
            Self::Hard => Some(capacity_bytes),
            Self::Burst => Some(capacity_bytes.saturating_add(capacity_bytes / BURST_PART)),
            Self::Soft => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_decides_where_writes_stop_and_an_unknown_one_is_hard() {
        for (text, expected) in
            [("hard", Some(1000)), ("burst", Some(1250)), ("soft", None), ("gold", Some(1000))]
        {
            let attributes = BTreeMap::from([(QUOTA_CLASS.to_owned(), text.to_owned())]);
            assert_eq!(QuotaClass::of(&attributes).stop_bytes(1000), expected, "{text}");
        }
        assert_eq!(QuotaClass::Burst.stop_bytes(u64::MAX), Some(u64::MAX));
        assert_eq!(QuotaClass::parse("HARD"), None);
    }
}
