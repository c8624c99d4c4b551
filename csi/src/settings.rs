//! Settings of a volume that can be changed while it is in use. They are attributes of its record, so they go where the
//! volume goes.

use std::time::Duration;

/// The attribute that says how new files are compressed: `zstd`, `lzo`, `zlib`, `none`, or `default` (the pool's).
pub const COMPRESSION: &str = "compression";

/// The attribute that says how often changes are made durable: a time (`60s`, `5m`), or `default` (the node's).
pub const SYNC_INTERVAL: &str = "sync-interval";

/// Syncing more often than this costs more than it can give.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// Checks a setting as people write it (`compression`, `syncInterval`), and answers the attribute that keeps it.
///
/// # Errors
/// It is unknown, or does not take the value; in words that follow `parameter "x": `.
pub fn attribute(key: &str, value: &str) -> Result<&'static str, String> {
    match key {
        "compression" => match value {
            "zstd" | "lzo" | "zlib" | "none" | "default" => Ok(COMPRESSION),
            _ => Err(format!("is zstd, lzo, zlib, none or default, not {value:?}")),
        },
        "syncInterval" => match sync_interval(value) {
            Ok(_) => Ok(SYNC_INTERVAL),
            Err(reason) => Err(reason),
        },
        _ => Err("is not known; compression and syncInterval are".to_owned()),
    }
}

/// Reads a sync interval; nothing means the node's.
///
/// # Errors
/// It is not a time, or too short.
pub fn sync_interval(value: &str) -> Result<Option<Duration>, String> {
    if value == "default" {
        return Ok(None);
    }
    let interval = crate::config::parse_duration(value)?;
    if interval < SHORTEST_INTERVAL {
        return Err(format!("is at least 1s, not {value:?}"));
    }
    Ok(Some(interval))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked_before_they_are_kept() {
        for (key, value, expected) in [
            ("compression", "zstd", Some(COMPRESSION)),
            ("compression", "best", None),
            ("syncInterval", "5m", Some(SYNC_INTERVAL)),
            ("syncInterval", "default", Some(SYNC_INTERVAL)),
            ("syncInterval", "10ms", None),
            ("syncInterval", "often", None),
            ("colour", "red", None),
        ] {
            assert_eq!(attribute(key, value).ok(), expected, "{key}={value}");
        }
    }
}
