//! Where strings stop: fields of messages become values of `types`, and errors name the field.

use std::collections::BTreeMap;

use prost_types::{Duration, Timestamp};
use types::{Classify, InvalidPath, Kind, VolumePath};

/// A field that does not hold what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidField {
    /// A required field is empty.
    #[error("{field} is missing")]
    Missing {
        /// The field's name in the message.
        field: &'static str,
    },
    /// A field's text is not what it names.
    #[error("{field}: {reason}")]
    Malformed {
        /// The field's name in the message.
        field: &'static str,
        /// The parser's words.
        reason: String,
    },
    /// A path that leads nowhere inside a volume.
    #[error("{field}: {source}")]
    Path {
        /// The field's name in the message.
        field: &'static str,
        /// Which rule it breaks.
        source: InvalidPath,
    },
}

impl Classify for InvalidField {
    fn kind(&self) -> Kind {
        match self {
            Self::Missing { .. } | Self::Malformed { .. } | Self::Path { .. } => Kind::InvalidArgument,
        }
    }
}

impl From<InvalidField> for tonic::Status {
    fn from(error: InvalidField) -> Self {
        crate::status::status(&error)
    }
}

/// Parses a required field.
pub fn required<T>(field: &'static str, text: &str) -> Result<T, InvalidField>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    optional(field, text)?.ok_or(InvalidField::Missing { field })
}

/// Parses a field that may be empty.
pub fn optional<T>(field: &'static str, text: &str) -> Result<Option<T>, InvalidField>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|error: T::Err| InvalidField::Malformed { field, reason: error.to_string() })
}

/// Reads attributes that are to be, or are expected to be: an empty value is none.
pub fn attributes(values: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, Option<String>> {
    values.into_iter().map(|(key, value)| (key, (!value.is_empty()).then_some(value))).collect()
}

/// Takes a message that must be there.
pub fn present<T>(field: &'static str, value: Option<T>) -> Result<T, InvalidField> {
    value.ok_or(InvalidField::Missing { field })
}

/// Parses a path inside a volume; empty is the root.
pub fn path(field: &'static str, bytes: &[u8]) -> Result<VolumePath, InvalidField> {
    VolumePath::parse(bytes).map_err(|source| InvalidField::Path { field, source })
}

/// Makes the wire's timestamp.
pub fn timestamp(time: types::Timestamp) -> Timestamp {
    let (seconds, nanos) = time.seconds_and_nanos();
    Timestamp { seconds, nanos: i32::try_from(nanos).expect("less than 10^9") }
}

/// Reads the wire's timestamp; one outside the years 1677 to 2262 is cut to that range.
pub fn time(timestamp: Timestamp) -> types::Timestamp {
    types::Timestamp(
        timestamp.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(timestamp.nanos)),
    )
}

/// Makes the wire's duration.
pub fn duration(duration: std::time::Duration) -> Duration {
    Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).expect("less than 10^9"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::VolumeId;

    #[test]
    fn an_error_names_the_field_that_is_wrong() {
        assert_eq!(
            required::<VolumeId>("volume_id", "").unwrap_err(),
            InvalidField::Missing { field: "volume_id" }
        );
        let error = required::<VolumeId>("volume_id", "../../x").unwrap_err();
        assert!(error.to_string().starts_with("volume_id: \"../../x\" is not a volume id"), "{error}");
        assert!(path("path", b"../x").unwrap_err().to_string().starts_with("path: "));
    }

    #[test]
    fn times_survive_the_wire() {
        for nanos in [0, -1, 1_795_305_599_123_456_789] {
            assert_eq!(time(timestamp(types::Timestamp(nanos))).0, nanos);
        }
    }
}
