//! Settings of a volume that can be changed while it is in use. They are attributes of its record, so they go where the
//! volume goes; its node reads them when it takes the volume and when it is told that they changed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use btrfs::Dir;
use futures::StreamExt as _;
use proto::convert::required;
use proto::node::settings_server::Settings;
use proto::node::{ApplySettingsRequest, ApplySettingsResponse};
use proto::settings::{COMPRESSION, QUOTA_CLASS, SYNC_INTERVAL};
use tonic::{Request, Response, Status};
use types::{Classify as _, Epoch, Kind, Timestamp, VolumeId};

use crate::deaths::{Point, pass};
use crate::error::Error;
use crate::local;
use crate::node::Node;
use crate::quota_class::QuotaClass;
use crate::volume::{Facts, Standing, Volume};

/// Syncing more often than this costs more than it can give.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// How often volumes that are new here are looked for, and intervals are looked at.
const TICK: Duration = Duration::from_secs(1);

/// How many volumes are looked at at once.
const AT_ONCE: usize = 4;

/// Directories deeper than this keep how they compress.
const DEEPEST: usize = 128;

/// The property that btrfs keeps for a file or directory, and new things in a directory inherit.
const PROPERTY: &str = "btrfs.compression";

/// Checks a setting as people write it (`compression`, `syncInterval`, `quotaClass`), and answers the attribute that keeps it.
///
/// # Errors
/// It is unknown, or does not take the value; in words that follow `parameter "x": `.
pub fn attribute(key: &str, value: &str) -> Result<&'static str, String> {
    match key {
        "compression" => match value {
            "zstd" | "lzo" | "zlib" | "none" | "default" => Ok(COMPRESSION),
            _ => Err(format!("is zstd, lzo, zlib, none or default, not {value:?}")),
        },
        "syncInterval" => sync_interval(value).map(|_| SYNC_INTERVAL),
        "quotaClass" => match QuotaClass::parse(value) {
            Some(_) => Ok(QUOTA_CLASS),
            None => Err(format!("is hard, burst or soft, not {value:?}")),
        },
        _ => Err("is not known; compression, syncInterval and quotaClass are".to_owned()),
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

/// Acts upon the settings of one node's volumes.
#[derive(Debug, Clone)]
pub struct SettingsKeeper {
    node: Arc<Node>,
}

impl SettingsKeeper {
    /// Acts for `node`.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// Reads the settings of volumes that are new here, and syncs those that have an interval of their own, until the
    /// node stops.
    pub async fn run(self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let stop = self.node.stop().clone();
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            let mut volumes = self.node.volumes().all();
            let now = self.node.store().clock().now();
            volumes.retain(|volume| volume.look(|facts| is_new(facts) || is_due(facts, now)));
            futures::stream::iter(volumes).for_each_concurrent(AT_ONCE, |volume| self.look_at(volume)).await;
        }
    }

    async fn look_at(&self, volume: Arc<Volume>) {
        if volume.look(is_new)
            && let Err(error) = self.apply(&volume).await
        {
            // It is tried again with the next tick.
            tracing::debug!(volume = %volume.id, %error, "its settings are not read yet");
        }
        let now = self.node.store().clock().now();
        if !volume.look(|facts| is_due(facts, now)) {
            return;
        }
        match self.node.sync_with_others(&volume.id).await {
            Ok(_) => {}
            Err(error) if error.kind() == Kind::Aborted => {}
            Err(error) => tracing::warn!(volume = %volume.id, %error, "not synced"),
        }
    }

    /// Reads and acts upon the settings of a volume that is owned here. Returns how many directories changed.
    ///
    /// # Errors
    /// Pool or store failed.
    pub async fn apply(&self, volume: &Arc<Volume>) -> Result<u64, Error> {
        let Some(epoch) = volume.look(owned_under) else { return Ok(0) };
        let Some(record) = cas::record::read(self.node.store(), &volume.id).await? else { return Ok(0) };
        let attributes = record.value.attributes;
        // What somebody wrote past the checks changes nothing.
        let interval = attributes.get(SYNC_INTERVAL).and_then(|value| sync_interval(value).ok()).flatten();
        volume.update(|facts| facts.sync_interval = interval);
        self.node.set_quota_class(volume, QuotaClass::of(&attributes)).await?;
        let mut changed = 0;
        if let Some(value) = attributes.get(COMPRESSION)
            && attribute("compression", value).is_ok()
        {
            let (id, value) = (volume.id.clone(), value.clone());
            changed =
                self.node.pool().run(move |root| compress(&local::live(root, &id)?, &value, DEEPEST)).await?;
        }
        volume.update(|facts| facts.settings_of = Some(epoch));
        Ok(changed)
    }
}

/// Under which epoch the settings of a volume that was just made need not be read again: it was made with its quota class,
/// and what it asks for beyond that takes a look at its tree or its record.
pub(crate) fn born_with(attributes: &BTreeMap<String, String>, epoch: Epoch) -> Option<Epoch> {
    let more = [COMPRESSION, SYNC_INTERVAL].into_iter().any(|key| attributes.contains_key(key));
    (!more).then_some(epoch)
}

fn owned_under(facts: &Facts) -> Option<Epoch> {
    match facts.standing {
        Standing::Owned { epoch, .. } => Some(epoch),
        Standing::Relative | Standing::Fenced { .. } | Standing::Quarantined { .. } => None,
    }
}

/// Whether its settings were not read since it came here.
fn is_new(facts: &Facts) -> bool {
    owned_under(facts).is_some_and(|epoch| facts.settings_of != Some(epoch))
}

/// Whether it has an interval of its own, which is over.
fn is_due(facts: &Facts, now: Timestamp) -> bool {
    owned_under(facts).is_some()
        && facts
            .sync_interval
            .is_some_and(|interval| facts.last_sync.is_none_or(|last| now.since(last) >= interval))
}

/// Sets the property on a directory and on those in it that have another. Where the top says it already, so do the others:
/// it is set last. Symlinks are not followed, and other filesystems not entered.
fn compress(directory: &Dir, value: &str, depth: usize) -> Result<u64, Error> {
    let wanted: &[u8] = match value {
        "default" => b"",
        value => value.as_bytes(),
    };
    if property(directory)? == wanted || depth == 0 {
        return Ok(0);
    }
    let mut changed = 1;
    for name in directory.entries()? {
        if let Some(inner) = subdirectory(directory, &name)? {
            changed += compress(&inner, value, depth - 1)?;
        }
    }
    let set = if wanted.is_empty() {
        rustix::fs::fremovexattr(directory.as_fd(), PROPERTY)
    } else {
        rustix::fs::fsetxattr(directory.as_fd(), PROPERTY, wanted, rustix::fs::XattrFlags::empty())
    };
    match set {
        Ok(()) | Err(rustix::io::Errno::NODATA) => {
            pass(Point::PropertySet)?;
            Ok(changed)
        }
        Err(errno) => Err(Error::Io { doing: "setting how a directory is compressed", source: errno.into() }),
    }
}

fn subdirectory(directory: &Dir, name: &OsStr) -> Result<Option<Dir>, Error> {
    match directory.open_dir(name) {
        Ok(inner) => Ok(Some(inner)),
        // No directory, a symlink, or gone since it was listed.
        Err(error)
            if [btrfs::Errno::ENOTDIR, btrfs::Errno::ELOOP, btrfs::Errno::ENOENT]
                .into_iter()
                .any(|errno| error.is(errno)) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn property(directory: &Dir) -> Result<Vec<u8>, Error> {
    // "zlib", "zstd:15" and the like.
    let mut value = [0_u8; 32];
    match rustix::fs::fgetxattr(directory.as_fd(), PROPERTY, &mut value) {
        Ok(length) => Ok(value[..length].to_vec()),
        Err(rustix::io::Errno::NODATA) => Ok(Vec::new()),
        Err(errno) => Err(Error::Io { doing: "reading how a directory is compressed", source: errno.into() }),
    }
}

#[tonic::async_trait]
impl Settings for SettingsKeeper {
    async fn apply_settings(
        &self,
        request: Request<ApplySettingsRequest>,
    ) -> Result<Response<ApplySettingsResponse>, Status> {
        let id: VolumeId = required("volume_id", &request.into_inner().volume_id)?;
        let directories = match self.node.volumes().find(&id) {
            Some(volume) => self.apply(&volume).await?,
            None => 0,
        };
        Ok(Response::new(ApplySettingsResponse { directories }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_volume_was_made_with_is_not_read_again() {
        let with = |key: &str| BTreeMap::from([(key.to_owned(), "zstd".to_owned())]);
        for (attributes, read) in [
            (BTreeMap::new(), true),
            (with("csi/name"), true),
            (with(QUOTA_CLASS), true),
            (with(COMPRESSION), false),
            (with(SYNC_INTERVAL), false),
        ] {
            assert_eq!(born_with(&attributes, Epoch(3)), read.then_some(Epoch(3)), "{attributes:?}");
        }
    }

    #[test]
    fn settings_are_checked_before_they_are_kept() {
        for (key, value, expected) in [
            ("compression", "zstd", Some(COMPRESSION)),
            ("compression", "best", None),
            ("syncInterval", "5m", Some(SYNC_INTERVAL)),
            ("syncInterval", "default", Some(SYNC_INTERVAL)),
            ("syncInterval", "10ms", None),
            ("syncInterval", "often", None),
            ("quotaClass", "burst", Some(QUOTA_CLASS)),
            ("quotaClass", "gold", None),
            ("colour", "red", None),
        ] {
            assert_eq!(attribute(key, value).ok(), expected, "{key}={value}");
        }
    }
}
