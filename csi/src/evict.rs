//! Room on a node: what is durable elsewhere and idle here leaves the pool when it fills up, longest unused first.
//!
//! Above the upper mark copies go until the lower mark is reached. What goes is a copy of something that the store has: a
//! template, a relative, a snapshot that is kept for forks, and last an owned volume, which is released first (its record
//! has no owner then, and it wakes anywhere). What was written to, is mounted, is published to a node, is pinned, or is
//! not known to be durable stays, however full the pool is. The space is measured after each step: what copies share
//! with others nobody can foretell.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cas::Record;
use cas::record::State;
use types::{Birth, Timestamp, VersionId, VolumeId};

use crate::config::Marks;
use crate::csi::facts::{MOBILITY, NODE};
use crate::error::Error;
use crate::layout::{self, Place};
use crate::node::Node;
use crate::volume::Standing;

/// How often the pool's use is looked at.
const PASS: Duration = Duration::from_secs(5);

/// How long the cleaner is waited for before the next copy goes too.
const CLEANING: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// Something in the pool that may leave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holding {
    /// The live tree of a volume that this node's session owns.
    Owned(VolumeId),
    /// Snapshots of a volume that is elsewhere.
    Relative(VolumeId),
    /// A template's tree.
    Template(Place),
    /// A snapshot of an owned volume that is kept for its own sake.
    Snapshot(Place),
}

impl Holding {
    fn is_owned(&self) -> bool {
        match self {
            Self::Owned(_) => true,
            Self::Relative(_) | Self::Template(_) | Self::Snapshot(_) => false,
        }
    }

    /// The record that says whether it may go.
    fn record(&self) -> Option<VolumeId> {
        match self {
            Self::Owned(id) | Self::Relative(id) => Some(id.clone()),
            Self::Template(place) => layout::template_name(&place.template_text()).map(|(id, _)| id),
            Self::Snapshot(place) => place.owner(),
        }
    }
}

/// What is known of a holding without asking the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) holding: Holding,
    /// When it was last used since this process began; nothing: before that.
    pub(crate) used: Option<Instant>,
    /// When it was last known to be durable.
    pub(crate) synced: Option<Timestamp>,
    /// The record that it belongs to, where the copy says it.
    pub(crate) birth: Option<Birth>,
    /// What it holds: this must be on the record.
    pub(crate) version: Option<VersionId>,
    /// It was written to since then, or something that was sent is not settled.
    pub(crate) dirty: bool,
    pub(crate) mounted: bool,
    /// An operation or another copy needs it.
    pub(crate) needed: bool,
}

/// Why something stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stays {
    /// It was used a moment ago.
    Recent,
    /// It has what the store has not.
    Dirty,
    /// Somebody works in it.
    Mounted,
    /// An operation, or a volume that grew from it, needs it.
    Needed,
    /// The store has no such version on the record that it belongs to.
    NotDurable,
    /// It is published to a node, bound to one, or read by somebody.
    Pinned,
}

/// Decides what can be said without the store.
pub(crate) fn may_go(copy: &Copy, now: Instant, began: Instant, idle: Duration) -> Result<(), Stays> {
    // Before this process is no reason: everything is that old right after a restart.
    let last = copy.used.unwrap_or(began);
    match copy {
        Copy { mounted: true, .. } => Err(Stays::Mounted),
        Copy { dirty: true, .. } => Err(Stays::Dirty),
        Copy { needed: true, .. } => Err(Stays::Needed),
        Copy { version: None, .. } => Err(Stays::NotDurable),
        _ if now.saturating_duration_since(last) < idle => Err(Stays::Recent),
        _ => Ok(()),
    }
}

/// Decides by the record whether the store has what is here, and nobody counts on its being here.
pub(crate) fn record_allows(copy: &Copy, record: Option<&Record>) -> Result<(), Stays> {
    let Some(record) = record else { return Err(Stays::NotDurable) };
    if copy.birth.is_some_and(|birth| birth != record.birth) {
        return Err(Stays::NotDurable);
    }
    let listed = copy.version.is_some_and(|version| record.find_version(&version).is_some());
    let gone = matches!(record.state, State::Deleted | State::Purged);
    if !(listed && record.state == State::Live || gone && !copy.holding.is_owned()) {
        return Err(Stays::NotDurable);
    }
    let attribute = |name| record.attributes.get(name).map(String::as_str);
    let bound = attribute(NODE).is_some() || attribute(MOBILITY) == Some("pinned");
    if copy.holding.is_owned() && (bound || !record.pins.is_empty()) { Err(Stays::Pinned) } else { Ok(()) }
}

/// Puts what may go in order: what is no volume of this node's before what is, then by last use, the oldest first.
pub(crate) fn order(copies: &mut [Copy]) {
    copies.sort_by_key(|copy| (copy.used, copy.holding.is_owned(), copy.synced));
}

/// How full a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) total_bytes: u64,
    pub(crate) available_bytes: u64,
}

impl Use {
    /// Tells if more than this part is in use.
    pub(crate) fn is_above(&self, percent: u8) -> bool {
        let used = self.total_bytes.saturating_sub(self.available_bytes);
        u128::from(used) * 100 > u128::from(self.total_bytes) * u128::from(percent)
    }
}

/// What a pass did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evicted {
    /// What left the pool, in order.
    pub gone: Vec<Holding>,
    /// What stayed, and why.
    pub stayed: Vec<(Holding, Stays)>,
    /// The pool is still above the lower mark, and nothing more may go.
    pub short: bool,
}

impl Node {
    /// Keeps room in the pool until the node stops.
    pub(crate) async fn keep_room(self: Arc<Self>) {
        let mut tick = tokio::time::interval(PASS);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let stop = self.stop().clone();
        let mut said = false;
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            match self.make_room(self.config().marks).await {
                Ok(Evicted { short: true, stayed, .. }) if !said => {
                    said = true;
                    tracing::warn!(
                        kept = stayed.len(),
                        "the pool is above its mark, and nothing in it may be evicted"
                    );
                }
                Ok(Evicted { short, .. }) => said &= short,
                Err(error) => tracing::warn!(%error, "room could not be made; the next pass tries again"),
            }
        }
    }

    /// Evicts what may go, if the pool is above the upper mark, until it is at the lower one.
    ///
    /// # Errors
    /// The pool cannot be read. What cannot be evicted is told in the answer.
    pub async fn make_room(self: &Arc<Self>, marks: Marks) -> Result<Evicted, Error> {
        let mut evicted = Evicted::default();
        if marks.is_off() || self.session().is_err() {
            return Ok(evicted);
        }
        self.note_mounts()?;
        if !self.pool_use().await?.is_above(marks.high) {
            return Ok(evicted);
        }
        // What nobody needs, and what waits for the cleaner, goes before anything that somebody may want.
        self.tidy().await?;
        self.wait_for_cleaner().await?;
        let mut copies = self.copies().await?;
        order(&mut copies);
        let now = Instant::now();
        for copy in copies {
            if !self.pool_use().await?.is_above(marks.low) {
                return Ok(evicted);
            }
            if let Err(stays) = may_go(&copy, now, self.began(), marks.idle) {
                evicted.stayed.push((copy.holding, stays));
                continue;
            }
            match self.evict(&copy).await {
                Ok(None) => {
                    tracing::info!(what = ?copy.holding, "evicted: the store has it");
                    evicted.gone.push(copy.holding);
                    self.wait_for_cleaner().await?;
                }
                Ok(Some(stays)) => evicted.stayed.push((copy.holding, stays)),
                // Somebody works on it, or the store is away: it stays, and the others are looked at.
                Err(error) => {
                    tracing::debug!(what = ?copy.holding, %error, "not evicted");
                    evicted.stayed.push((copy.holding, Stays::Needed));
                }
            }
        }
        evicted.short = self.pool_use().await?.is_above(marks.low);
        Ok(evicted)
    }

    /// Lets one copy go, if its record allows it too.
    async fn evict(self: &Arc<Self>, copy: &Copy) -> Result<Option<Stays>, Error> {
        let Some(id) = copy.holding.record() else { return Ok(Some(Stays::NotDurable)) };
        let record = cas::record::read(self.store(), &id).await?;
        if let Err(stays) = record_allows(copy, record.as_ref().map(|stored| &stored.value)) {
            return Ok(Some(stays));
        }
        match &copy.holding {
            Holding::Owned(id) => {
                let volume = self.volumes().get(id)?;
                // For sure, this time: what is in the page cache counts.
                if self.is_written(&volume).await? {
                    return Ok(Some(Stays::Dirty));
                }
                // Whatever is written from here on is published by the release itself, which also looks at the mounts.
                self.release(id, false).await?;
            }
            Holding::Relative(id) => {
                let _guard = self.locks().try_acquire(id, "evict")?;
                let volume = self.volumes().get(id)?;
                if volume.facts().standing != Standing::Relative {
                    return Ok(Some(Stays::Needed));
                }
                self.require_unmounted(id)?;
                self.drop_copy(&volume, false).await?;
            }
            Holding::Template(place) | Holding::Snapshot(place) => {
                let _guard = self.locks().try_acquire(&id, "evict")?;
                let unsettled =
                    self.volumes().find(&id).map(|volume| volume.facts().unsettled).unwrap_or_default();
                if unsettled.contains(place) || !self.shelf().is_idle(place) {
                    return Ok(Some(Stays::Needed));
                }
                self.put_away(place).await?;
            }
        }
        Ok(None)
    }

    /// What in the pool may be a candidate at all.
    async fn copies(self: &Arc<Self>) -> Result<Vec<Copy>, Error> {
        let Some(me) = self.session_id() else { return Ok(Vec::new()) };
        let mounted = self.pool().mounted()?;
        let mut copies = Vec::new();
        for volume in self.volumes().all() {
            let facts = volume.facts();
            let version = facts.base.as_ref().map(|base| base.tree.version);
            let (holding, dirty) = match facts.standing {
                Standing::Relative => (Holding::Relative(volume.id.clone()), false),
                Standing::Owned { session, .. } if session == me => {
                    let at_head = facts.head.as_ref().map(|head| head.tree.version) == version;
                    let settled = facts.unsettled.is_empty() && !facts.restart_to_see_it;
                    let dirty = !(at_head && settled) || self.is_dirty(&volume).await.unwrap_or(true);
                    (Holding::Owned(volume.id.clone()), dirty)
                }
                Standing::Owned { .. } | Standing::Fenced { .. } | Standing::Quarantined { .. } => continue,
            };
            copies.push(Copy {
                holding,
                used: volume.last_use(),
                synced: facts.last_sync,
                birth: Some(facts.about.birth),
                version,
                dirty,
                mounted: mounted.shows(&layout::volume(&volume.id)),
                needed: self.locks().running(&volume.id).is_some(),
            });
        }
        // Looking at the volumes took its time.
        let mounted = self.pool().mounted()?;
        for (place, used) in self.shelf().idle() {
            let owned = |id| self.volumes().find(&id).is_some_and(|volume| volume.claim(me).is_ok());
            let holding = match place.owner() {
                None => Holding::Template(place.clone()),
                Some(id) if owned(id.clone()) => Holding::Snapshot(place.clone()),
                // Of a relative: it goes with it.
                Some(_) => continue,
            };
            copies.push(Copy {
                holding,
                used,
                synced: None,
                birth: None,
                version: place.version(),
                dirty: false,
                mounted: mounted.shows(place.path()),
                needed: false,
            });
        }
        Ok(copies)
    }

    /// What is mounted is in use.
    fn note_mounts(&self) -> Result<(), Error> {
        let mounted = self.pool().mounted()?;
        for volume in self.volumes().all() {
            if mounted.shows(&layout::volume(&volume.id)) {
                volume.note_use();
            }
        }
        Ok(())
    }

    async fn pool_use(&self) -> Result<Use, Error> {
        let capacity = self.capacity().await?;
        Ok(Use { total_bytes: capacity.total_bytes, available_bytes: capacity.available_bytes })
    }

    /// Waits for the kernel to give back the space of what was deleted, for a bounded time.
    async fn wait_for_cleaner(&self) -> Result<(), Error> {
        let until = Instant::now() + CLEANING;
        loop {
            let queued = self
                .pool()
                .run(|root| {
                    btrfs::cleaner::wait(root, &[], Duration::ZERO)?;
                    Ok(btrfs::cleaner::queued(root)?)
                })
                .await?;
            if queued == 0 || Instant::now() >= until {
                // The one that the cleaner is at is not counted; a last commit gives back what it has done so far.
                return self.pool().run(|root| Ok(btrfs::cleaner::wait(root, &[], Duration::ZERO)?)).await;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(holding: Holding) -> Copy {
        Copy {
            holding,
            used: None,
            synced: None,
            birth: None,
            version: Some(VersionId([1; 32])),
            dirty: false,
            mounted: false,
            needed: false,
        }
    }

    fn id(text: &str) -> VolumeId {
        text.parse().unwrap()
    }

    fn owned() -> Copy {
        copy(Holding::Owned(id("vol-1")))
    }

    #[test]
    fn what_is_written_mounted_needed_recent_or_unknown_stays() {
        let began = Instant::now();
        let (now, idle) = (began + Duration::from_secs(3_600), Duration::from_secs(300));
        let recent = now.checked_sub(Duration::from_secs(10));
        let long_ago = began.checked_add(Duration::from_secs(60));
        for (name, copy, expected) in [
            ("idle since the start", owned(), Ok(())),
            ("used long ago", Copy { used: long_ago, ..owned() }, Ok(())),
            ("used now", Copy { used: recent, ..owned() }, Err(Stays::Recent)),
            ("written", Copy { dirty: true, ..owned() }, Err(Stays::Dirty)),
            ("mounted", Copy { mounted: true, ..owned() }, Err(Stays::Mounted)),
            ("mounted and written", Copy { mounted: true, dirty: true, ..owned() }, Err(Stays::Mounted)),
            ("needed", Copy { needed: true, ..owned() }, Err(Stays::Needed)),
            ("of no version", Copy { version: None, ..owned() }, Err(Stays::NotDurable)),
        ] {
            assert_eq!(may_go(&copy, now, began, idle), expected, "{name}");
        }
        assert_eq!(may_go(&owned(), began, began, idle), Err(Stays::Recent), "a restart is no reason");
    }

    #[test]
    fn the_longest_unused_goes_first_and_volumes_of_this_node_after_copies() {
        let now = Instant::now();
        let at = |seconds| now.checked_add(Duration::from_secs(seconds));
        let template = |n| copy(Holding::Template(Place::template(&id("tpl"), &VersionId([n; 32]))));
        let mut copies = vec![
            Copy { used: at(30), ..template(1) },
            Copy { used: at(10), ..owned() },
            Copy { used: at(20), ..copy(Holding::Relative(id("vol-2"))) },
            Copy { synced: Some(Timestamp(9)), ..copy(Holding::Owned(id("vol-3"))) },
            Copy { synced: Some(Timestamp(5)), ..copy(Holding::Owned(id("vol-4"))) },
            template(2),
        ];
        order(&mut copies);
        let names: Vec<Holding> = copies.into_iter().map(|copy| copy.holding).collect();
        let expected = [
            template(2).holding,
            Holding::Owned(id("vol-4")),
            Holding::Owned(id("vol-3")),
            owned().holding,
            Holding::Relative(id("vol-2")),
            template(1).holding,
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn eviction_begins_above_one_mark_and_ends_at_the_other() {
        let used = |used: u64| Use { total_bytes: 1_000, available_bytes: 1_000 - used };
        for (bytes, high, low) in [
            (850, false, true),
            (851, true, true),
            (700, false, false),
            (701, false, true),
            (0, false, false),
        ] {
            assert_eq!((used(bytes).is_above(85), used(bytes).is_above(70)), (high, low), "{bytes}");
        }
        // A pool without room for metadata promises nothing, and is full.
        assert!(Use { total_bytes: 1_000, available_bytes: 0 }.is_above(99));
    }
}
