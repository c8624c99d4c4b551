//! Attributes of a record that nodes act upon.

/// How new files are compressed: `zstd`, `lzo`, `zlib`, `none`, or `default` (the pool's way).
pub const COMPRESSION: &str = "compression";

/// How often changes are made durable: a time (`60s`, `5m`), or `default` (the node's interval).
pub const SYNC_INTERVAL: &str = "sync-interval";

/// All of them.
pub const ALL: [&str; 2] = [COMPRESSION, SYNC_INTERVAL];
