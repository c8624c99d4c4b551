//! Attributes of a record that nodes act upon.

/// How new files are compressed: `zstd`, `lzo`, `zlib`, `none`, or `default` (the pool's way).
pub const COMPRESSION: &str = "compression";

/// How often changes are made durable: a time (`60s`, `5m`), or `default` (the node's interval).
pub const SYNC_INTERVAL: &str = "sync-interval";

/// What happens at the capacity: `hard` (writes fail), `burst` (they fail a quarter beyond it), or `soft` (it is only told).
pub const QUOTA_CLASS: &str = "quota-class";

/// All of them.
pub const ALL: [&str; 3] = [COMPRESSION, SYNC_INTERVAL, QUOTA_CLASS];
