//! What a node is told when it starts. Read once; nothing looks at the environment later.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use types::{ByteSize, NodeName};

/// OpenSail Storage on one node.
#[derive(Debug, Parser)]
#[command(name = "opensail-csi", version)]
pub struct Cli {
    /// What to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The parts that this binary can be.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Keeps volumes on this node's pool and makes them durable in the store.
    Node(Box<NodeConfig>),
    /// Serves CSI's Controller to the sidecars of a Kubernetes cluster.
    Controller(crate::csi::controller::ControllerConfig),
}

/// Whether volumes have limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuotaMode {
    /// Simple quotas (Linux 6.7 and later), one level-1 group per volume.
    On,
    /// No limits at all: said out loud, and shown by `sailctl doctor`.
    Off,
}

/// The configuration of `opensail-csi node`.
#[derive(Debug, Clone, Args)]
pub struct NodeConfig {
    /// This node's name (in Kubernetes: the node's).
    #[arg(long)]
    pub node: NodeName,

    /// Where the pool is: a mounted btrfs, or a directory in which a loop file (with --pool-size) or the device
    /// (with --device) is mounted at `mnt`.
    #[arg(long, value_name = "PATH")]
    pub pool: PathBuf,

    /// Size of the loop file `PATH/pool.img`, made at the first start. It is sparse: it takes what is written.
    #[arg(long, value_name = "SIZE", conflicts_with = "device")]
    pub pool_size: Option<ByteSize>,

    /// A block device with btrfs on it. One without any filesystem is formatted; one with another is refused.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<PathBuf>,

    /// The object store: `dir:///path` or `s3://bucket/prefix?endpoint=...`.
    #[arg(long, value_name = "URL")]
    pub store: String,

    /// Where the gRPC services listen. Port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9741")]
    pub listen: String,

    /// The address that the hub and other nodes dial; without it, the one that --listen got.
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,

    /// The hub to attach to. Without one the node works alone.
    #[arg(long, value_name = "HOST:PORT")]
    pub hub: Option<String>,

    /// How often volumes that changed are made durable; 0s: only when asked.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub sync_interval: Duration,

    /// Whether volumes have limits.
    #[arg(long, value_enum, default_value = "on")]
    pub quota: QuotaMode,

    /// The zone that the hub may prefer.
    #[arg(long, default_value = "")]
    pub zone: String,

    /// The limit of a volume that is created without one.
    #[arg(long, value_name = "SIZE", default_value = "5Gi")]
    pub default_quota: ByteSize,

    /// How often the session shows in the store that it lives.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = parse_duration)]
    pub beat: Duration,

    /// Where `GET /metrics` is answered, in plain text to whoever asks; without it nowhere.
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics: Option<String>,

    /// The most bytes that packs take to the store in a second, for all volumes together; absent: as fast as it goes.
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    pub upload_limit: Option<ByteSize>,

    /// The most bytes that packs take from the store in a second, for all volumes together; absent: as fast as it goes.
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    pub download_limit: Option<ByteSize>,

    /// How long after a walk over the packs that this pool wrote the next begins, to find damage in the store; 0s: never.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_duration)]
    pub scrub_interval: Duration,

    /// Bytes a second that this walk reads; 0: as fast as it goes.
    #[arg(long, value_name = "SIZE", default_value = "8Mi")]
    pub scrub_rate: ByteSize,

    /// How many deleted subvolumes may wait for the kernel to give their space back; a deletion beyond them waits.
    #[arg(long, value_name = "COUNT", default_value = "512")]
    pub deleted_most: u64,

    /// What is evicted when the pool fills up.
    #[command(flatten)]
    pub marks: Marks,

    /// The CSI services of this node.
    #[command(flatten)]
    pub csi: crate::csi::serve::NodeSocket,

    /// FOR TESTS ONLY: answers before the pool's commit. A power cut then loses what was acknowledged.
    #[arg(long, hide = true, env = "OPENSAIL_UNSAFE_NO_COMMIT")]
    pub unsafe_no_commit: bool,
}

/// When copies that are durable elsewhere leave the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct Marks {
    /// Percent of the pool in use above which idle, clean, durable copies and templates are evicted, those used longest
    /// ago first; 100: never.
    #[arg(long = "evict-above", value_name = "PERCENT", default_value = "85", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub high: u8,

    /// Percent of the pool in use at which eviction ends.
    #[arg(long = "evict-below", value_name = "PERCENT", default_value = "70", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub low: u8,

    /// How long nothing must have used a copy before it may be evicted.
    #[arg(long = "evict-idle", value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    pub idle: Duration,
}

impl Marks {
    /// Tells if nothing is ever evicted.
    pub fn is_off(&self) -> bool {
        self.high >= 100
    }

    /// Refuses marks that would evict without an end.
    ///
    /// # Errors
    /// The lower mark is not below the upper one.
    pub fn check(&self) -> Result<(), String> {
        if self.is_off() || self.low < self.high {
            return Ok(());
        }
        Err(format!(
            "--evict-below {} is not below --evict-above {}: eviction ends at the lower mark",
            self.low, self.high
        ))
    }
}

/// Parses a rate: a size, a second.
fn parse_rate(text: &str) -> Result<ByteSize, String> {
    match text.trim_end_matches("/s").parse::<ByteSize>() {
        Ok(ByteSize(0)) => {
            Err("a rate of 0 would let nothing through; leave the option out for no limit".to_owned())
        }
        Ok(rate) => Ok(rate),
        Err(error) => Err(error.to_string()),
    }
}

/// Parses a time as people write it: `500ms`, `60s`, `5m`, `1h`; a bare number is seconds.
///
/// # Errors
/// The text is not a time.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("{text:?} is not a time: write 500ms, 60s, 5m or 1h");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn marks_have_room_between_them_and_rates_let_something_through() {
        let marks = |high, low| Marks { high, low, idle: Duration::ZERO };
        for (high, low, good) in
            [(85, 70, true), (1, 0, true), (70, 70, false), (50, 80, false), (100, 100, true)]
        {
            assert_eq!(marks(high, low).check().is_ok(), good, "{high} {low}");
        }
        assert_eq!(parse_rate("10Mi"), Ok(ByteSize(10 << 20)));
        assert_eq!(parse_rate("10Mi/s"), Ok(ByteSize(10 << 20)));
        assert!(parse_rate("0").unwrap_err().contains("leave the option out"));
        assert!(parse_rate("fast").is_err());
    }

    #[test]
    fn times_parse_as_people_write_them() {
        for (text, millis) in
            [("500ms", 500), ("60s", 60_000), ("7", 7_000), ("5m", 300_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "s", "-1s", "1.5s", "5 m", "1d", "99999999999999999999h"] {
            assert!(parse_duration(text).unwrap_err().contains("is not a time"), "{text}");
        }
    }
}
