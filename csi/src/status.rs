//! What the node says about itself: its volumes, its room, and what it found out about kernel, pool and store.

use std::sync::Arc;

use btrfs::Dir;
use cas::{Record, Stored};
use proto::convert::timestamp;
use proto::node::{self, Capacity, Check, Health, NodeStatus};
use types::{MemberName, VolumeId};

use crate::error::Error;
use crate::layout;
use crate::local;
use crate::node::Node;
use crate::volume::{Facts, Standing, Volume};

/// How many volumes are looked at in one visit to the pool: others wait for its door meanwhile.
const LOOKED_AT_ONCE: usize = 64;

impl Node {
    /// Describes a volume.
    ///
    /// # Errors
    /// The pool cannot be read.
    pub async fn describe(&self, volume: &Arc<Volume>) -> Result<node::Volume, Error> {
        let described = self.describe_all(vec![Arc::clone(volume)]).await?.pop();
        described.ok_or_else(|| Error::NotHere { volume: volume.id.clone() })
    }

    /// Describes volumes, without those that have gone. The mounts are read once, and the pool is entered once for many.
    ///
    /// # Errors
    /// The pool cannot be read.
    pub async fn describe_all(&self, volumes: Vec<Arc<Volume>>) -> Result<Vec<node::Volume>, Error> {
        let mounted = self.pool().mounted()?;
        let mut described = Vec::with_capacity(volumes.len());
        for some in volumes.chunks(LOOKED_AT_ONCE) {
            let looks = some.to_vec();
            let found = self
                .pool()
                .run(move |root| {
                    let looks = looks.into_iter().map(|volume| {
                        let facts = volume.facts();
                        match look(root, &volume.id, &facts) {
                            Ok(look) => Ok(Some((volume, facts, look))),
                            Err(Error::NotHere { .. }) => Ok(None),
                            Err(error) => Err(error),
                        }
                    });
                    looks.collect::<Result<Vec<_>, Error>>()
                })
                .await?;
            let found = found.into_iter().flatten();
            described.extend(found.map(|(volume, facts, look)| {
                self.tell(&volume.id, facts, look, mounted.shows(&layout::volume(&volume.id)))
            }));
        }
        Ok(described)
    }

    /// Describes a volume that was made this moment, with its record: nothing in it counts yet, nobody wrote to it or has
    /// it mounted.
    ///
    /// # Errors
    /// The record cannot be encoded.
    pub(crate) fn describe_born(
        &self,
        volume: &Volume,
        record: &Stored<Record>,
    ) -> Result<node::Volume, Error> {
        let told = self.tell(&volume.id, volume.facts(), Look { used: 0, dirty: false }, false);
        let bytes = cas::encode(&cas::keys::volume(&volume.id), &record.value)?.to_vec();
        let record = node::StoredRecord { bytes, etag: record.etag.as_str().to_owned() };
        Ok(node::Volume { record: Some(record), ..told })
    }

    fn tell(&self, id: &VolumeId, facts: Facts, look: Look, mounted: bool) -> node::Volume {
        let Look { used, dirty } = look;
        let relative = facts.standing == Standing::Relative;
        let me = self.session_id();
        let (epoch, owned, health) = match &facts.standing {
            Standing::Owned { session, epoch } if Some(*session) == me => (epoch.0, true, Health::Healthy),
            Standing::Owned { epoch, .. } | Standing::Fenced { epoch } => (epoch.0, false, Health::Fenced),
            Standing::Relative => (0, false, Health::Asleep),
            Standing::Quarantined { .. } => (0, false, Health::Degraded),
        };
        let health = match (health, self.locks().running(id)) {
            (Health::Healthy, Some("sync")) => Health::Syncing,
            (Health::Healthy, Some("restore")) => Health::Restoring,
            (Health::Healthy, Some("release")) => Health::Moving,
            (Health::Healthy, _) if facts.restart_to_see_it => Health::RestartToSeeIt,
            (Health::Healthy, _) if !facts.trouble.is_empty() => Health::Behind,
            (Health::Healthy, _) if is_over(&facts.about, used) => Health::Degraded,
            (health, _) => health,
        };
        let detail = match &facts.standing {
            Standing::Quarantined { reason } => reason.clone(),
            Standing::Owned { .. } if facts.trouble.is_empty() && is_over(&facts.about, used) => {
                format!(
                    "over its capacity: {} of {} are used, quota class {}",
                    size(used),
                    size(facts.about.limit_bytes.unwrap_or(0)),
                    facts.about.class.as_str()
                )
            }
            Standing::Owned { .. } | Standing::Fenced { .. } | Standing::Relative => facts.trouble.clone(),
        };
        let origin = facts.origin.as_ref().map(|origin| node::Origin {
            volume_id: origin.volume.to_string(),
            version: origin.versions.get(&MemberName::data()).map(ToString::to_string).unwrap_or_default(),
        });
        let path = self.pool().path().join(layout::data(id));
        node::Volume {
            volume_id: id.to_string(),
            epoch,
            version: facts.head.map(|head| head.tree.version.to_string()).unwrap_or_default(),
            dirty,
            quota_bytes: facts.about.limit_bytes.unwrap_or(0),
            used_bytes: used,
            health: health.into(),
            detail,
            mounted,
            last_sync: facts.last_sync.map(timestamp),
            origin,
            owned,
            record: None,
            path: if relative { String::new() } else { path.display().to_string() },
        }
    }

    /// How much room there is.
    ///
    /// # Errors
    /// The pool cannot be read.
    pub async fn capacity(&self) -> Result<Capacity, Error> {
        let space = self.pool().run(|root| Ok(btrfs::space::space(root)?)).await?;
        let used = space.data.used_bytes + space.metadata.used_bytes;
        let promisable = crate::pool::promisable(&space);
        // No promise can be kept without metadata, however much room there is for data.
        let available = if crate::pool::room(&space).is_ok() { promisable } else { 0 };
        Ok(Capacity {
            total_bytes: promisable + used,
            available_bytes: available,
            used_bytes: used,
            volumes: u32::try_from(self.volumes().len()).unwrap_or(u32::MAX),
            compute: self.meter().look(),
        })
    }

    /// What the node found out, good and bad.
    ///
    /// # Errors
    /// The pool cannot be read.
    pub async fn checks(&self) -> Result<Vec<Check>, Error> {
        let features = self.pool().features();
        let kernel = features.kernel.release.clone();
        let mut checks = vec![
            check("kernel", true, &kernel, ""),
            check(
                "quota",
                self.pool().has_quota(),
                if self.pool().has_quota() {
                    "simple quotas, one group per volume"
                } else {
                    "off: volumes have no limits"
                },
                "start with --quota=on on Linux 6.7 or newer",
            ),
            check(
                "acl",
                features.acl,
                if features.acl {
                    "POSIX ACLs are kept"
                } else {
                    "no POSIX ACLs: a tree that has some cannot be restored here"
                },
                "use a kernel with CONFIG_BTRFS_FS_POSIX_ACL",
            ),
            check(
                "pre-content events",
                features.pre_content,
                if features.pre_content {
                    "files can be filled on first use"
                } else {
                    "missing: volumes are restored whole"
                },
                "use Linux 6.14 or newer",
            ),
            check(
                "noatime",
                self.pool().is_noatime(),
                if self.pool().is_noatime() {
                    "reads do not count as writes"
                } else {
                    "a read counts as a write, so volumes look dirty"
                },
                "mount the pool with -o noatime",
            ),
        ];
        if self.pool().is_without_commit() {
            checks.push(check(
                "commit",
                false,
                "TAKEN OUT by --unsafe-no-commit: a power cut loses what was acknowledged",
                "start without it",
            ));
        }
        if !self.config().scrub_interval.is_zero() {
            let (ok, said) = self.state().scrub().await?.say();
            let remedy =
                "`sailctl scrub --now` says what it touches; `sailctl repair VOL` puts it back from its node";
            checks.push(check("scrub", ok, &said, remedy));
        }
        let (space, devices, queued) = self
            .pool()
            .run(|root| {
                Ok((btrfs::space::space(root)?, btrfs::space::devices(root)?, btrfs::cleaner::queued(root)?))
            })
            .await?;
        let room = crate::pool::room(&space);
        let detail = room.as_ref().err().map_or_else(
            || {
                format!(
                    "{} for data, {} for metadata",
                    size(space.available_bytes()),
                    size(space.available_metadata_bytes())
                )
            },
            ToString::to_string,
        );
        checks.push(check("space", room.is_ok(), &detail, "delete volumes or add a device"));
        let errors: u64 = devices.iter().map(btrfs::space::Device::errors).sum();
        checks.push(check(
            "devices",
            errors == 0,
            &format!("{errors} errors on {} devices", devices.len()),
            "look at dmesg and replace the device",
        ));
        checks.push(check("cleaner", true, &format!("{queued} deleted subvolumes wait"), ""));
        let trouble = self.store_trouble();
        let store = if trouble.is_empty() { self.store().objects().describe() } else { trouble.clone() };
        checks.push(check(
            "store",
            trouble.is_empty(),
            &store,
            "check that the store can be reached and written",
        ));
        let own = self.require_own_store();
        let detail = own.as_ref().err().map_or_else(|| self.store().id().to_string(), ToString::to_string);
        checks.push(check("store id", own.is_ok(), &detail, "start with the store that the pool belongs to"));
        let quarantined = self
            .volumes()
            .all()
            .iter()
            .filter(|volume| matches!(volume.facts().standing, Standing::Quarantined { .. }))
            .count();
        checks.push(check(
            "quarantine",
            quarantined == 0,
            &format!("{quarantined} copies without a record"),
            "look at `list` and the store; nothing was dropped",
        ));
        Ok(checks)
    }

    /// The whole of it.
    ///
    /// # Errors
    /// The pool cannot be read.
    pub async fn status(&self) -> Result<NodeStatus, Error> {
        Ok(NodeStatus {
            node: self.name().to_string(),
            session: self.session_id().map(|id| id.to_string()).unwrap_or_default(),
            store_id: self.store().id().to_string(),
            capacity: Some(self.capacity().await?),
            checks: self.checks().await?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address: self.address().to_owned(),
            zone: self.config().zone.clone(),
        })
    }
}

/// What the pool says of a volume.
#[derive(Debug, Clone, Copy)]
struct Look {
    used: u64,
    dirty: bool,
}

fn look(root: &Dir, id: &VolumeId, facts: &Facts) -> Result<Look, Error> {
    let used = facts.about.charge(local::used(root, &facts.about)?);
    let dirty = match &facts.base {
        _ if facts.standing == Standing::Relative => false,
        None => true,
        Some(base) => local::roots(&local::live(root, id)?)? != base.roots,
    };
    Ok(Look { used, dirty })
}

/// Whether more is used than the capacity. In the hard class that is a limit set below what was there.
fn is_over(about: &crate::about::About, used_bytes: u64) -> bool {
    about.limit_bytes.is_some_and(|limit| used_bytes > limit)
}

fn size(bytes: u64) -> types::ByteSize {
    types::ByteSize(bytes)
}

fn check(name: &str, ok: bool, detail: &str, remedy: &str) -> Check {
    let remedy = if ok { String::new() } else { remedy.to_owned() };
    Check { name: name.to_owned(), ok, detail: detail.to_owned(), remedy }
}
