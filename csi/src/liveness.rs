//! What goes on without being asked: the session's beat, the interval syncs, and what waits for a mount to go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use btrfs::GroupId;
use types::{Classify as _, Kind, SessionId};

use crate::error::Error;
use crate::node::Node;
use crate::sync::SyncRequest;
use crate::volume::{Standing, Volume};

/// How often volumes that are not settled are looked at again: fenced ones, and those whose old tree is still mounted.
const MAINTENANCE: Duration = Duration::from_secs(2);

/// The pin is raised with every this many beats: garbage collection waits for the slowest session.
const BEATS_PER_RAISE: u32 = 5;

impl Node {
    /// Starts the loops. They end when the node stops; a pass that runs is finished first.
    pub fn spawn_loops(self: &Arc<Self>) {
        if self.require_own_store().is_err() {
            return;
        }
        let node = Arc::clone(self);
        self.tasks().spawn(async move { node.keep_session().await });
        let node = Arc::clone(self);
        self.tasks().spawn(async move { node.keep_settled().await });
        let node = Arc::clone(self);
        self.tasks().spawn(async move { node.keep_no_leftovers().await });
        if !self.config().scrub_interval.is_zero() {
            let node = Arc::clone(self);
            self.tasks().spawn(async move { node.keep_scrubbed().await });
        }
        if !self.config().marks.is_off() {
            let node = Arc::clone(self);
            self.tasks().spawn(async move { node.keep_room().await });
        }
        if !self.config().sync_interval.is_zero() {
            let node = Arc::clone(self);
            self.tasks().spawn(async move { node.keep_synced().await });
        }
    }

    /// Shows in the store that this session lives, and opens the next one when it was fenced.
    async fn keep_session(self: Arc<Self>) {
        let mut tick = tokio::time::interval(self.config().beat);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut beats: u32 = 0;
        let stop = self.stop().clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
                () = self.suspected() => {}
            }
            beats = beats.wrapping_add(1);
            match self.beat(beats.is_multiple_of(BEATS_PER_RAISE)).await {
                Ok(()) => self.set_store_trouble(String::new()),
                Err(error) => {
                    let trouble = proto::status::message(&error);
                    // Said once, not with every beat.
                    if self.store_trouble() != trouble {
                        tracing::warn!(%error, "the session cannot show that it lives");
                    }
                    self.set_store_trouble(trouble);
                }
            }
        }
    }

    /// One beat. A session that is over is followed by the next, which takes its volumes again.
    ///
    /// # Errors
    /// The store cannot be reached.
    pub async fn beat(self: &Arc<Self>, raise: bool) -> Result<(), Error> {
        let beat = match self.session() {
            Ok(session) if raise => session.raise().await.map(|pin| self.known_bytes().index().follow(&pin)),
            Ok(_) => Ok(()),
            Err(_) => return self.succeed().await,
        };
        let beat = match (beat, self.session()) {
            (Ok(()), Ok(session)) => session.beat().await.map(drop),
            (beat, _) => beat,
        };
        match beat {
            Ok(()) => Ok(()),
            Err(
                cas::Error::Fenced { session }
                | cas::Error::Stolen { session }
                | cas::Error::NoSession { session },
            ) => {
                tracing::warn!(%session, "the session is over: it was fenced, or another process has this pool");
                self.set_session(None);
                self.succeed().await
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn succeed(self: &Arc<Self>) -> Result<(), Error> {
        let session = self.next_session().await?;
        tracing::info!(session = %session.id(), "a new session lives");
        self.set_session(Some(session));
        self.settle_all().await;
        Ok(())
    }

    async fn keep_settled(self: Arc<Self>) {
        let mut tick = tokio::time::interval(MAINTENANCE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let stop = self.stop().clone();
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            self.settle_all().await;
            // With every pass: a tenant who deletes at the limit can write again within five seconds.
            self.relieve().await;
            if let Err(error) = self.tidy().await {
                tracing::warn!(%error, "what nobody needs could not be deleted; the next pass or start does it");
            }
        }
    }

    /// Deletes the snapshots that nobody needs any more, and wakes the kernel's cleaner for what was deleted: by itself it
    /// looks every thirty seconds.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn tidy(&self) -> Result<(), Error> {
        let (free, groups) = (self.shelf().take_free(), self.take_spare_groups());
        let spare = groups.clone();
        let left = self.pool().run(move |root| {
            crate::local::delete_places(root, &free)?;
            if btrfs::cleaner::queued(root)? > 0 {
                btrfs::cleaner::wait(root, &[], Duration::ZERO)?;
            }
            // Busy as long as an extent is charged to one of its members.
            if spare.is_empty() { Ok(Vec::new()) } else { Ok(btrfs::quota::remove_unused(root, spare)?) }
        });
        let left = left.await;
        for group in left.as_ref().map_or_else(|_| groups.into_iter().collect(), Vec::clone) {
            self.add_spare_group(group);
        }
        left.map(drop)
    }

    /// Looks again at every volume that is not as it should be.
    pub async fn settle_all(self: &Arc<Self>) {
        let Some(me) = self.session_id() else { return };
        for volume in self.volumes().all() {
            if let Err(error) = self.look_after(&volume, me).await
                && error.kind() != Kind::Aborted
            {
                tracing::warn!(volume = %volume.id, %error, "not settled yet");
                volume.update(|facts| facts.trouble = proto::status::message(&error));
            }
        }
    }

    /// Gives back what local snapshots hold of a tenant's limit. A charge stays until the last reference to its extent
    /// goes, so near the limit the durable copies go, and the base turns.
    pub async fn relieve(self: &Arc<Self>) {
        let Some(me) = self.session_id() else { return };
        // One search for all of them, however many there are.
        let near = match self.pool().run(|root| Ok(near_their_limits(btrfs::quota::groups(root)?))).await {
            Ok(near) => near,
            Err(error) => {
                tracing::warn!(%error, "the limits cannot be looked at");
                return;
            }
        };
        if near.is_empty() {
            return;
        }
        for volume in self.volumes().all() {
            if volume.look(|facts| facts.about.group).is_some_and(|group| near.contains(&group))
                && volume.claim(me).is_ok()
                && let Err(error) = self.relieve_one(&volume).await
                && error.kind() != Kind::Aborted
            {
                tracing::warn!(volume = %volume.id, %error, "near its limit, and nothing could be given back");
            }
        }
    }

    async fn relieve_one(self: &Arc<Self>, volume: &Arc<Volume>) -> Result<(), Error> {
        if self.is_dirty(volume).await? {
            self.sync(&volume.id, SyncRequest::plain()).await?;
        }
        let facts = volume.facts();
        for place in self.shelf().of_volume(&volume.id) {
            // A copy that others grew from stays for them; one whose publication is not settled may be the head.
            if !facts.unsettled.contains(&place) {
                self.put_away(&place).await?;
            }
        }
        Ok(())
    }

    async fn look_after(self: &Arc<Self>, volume: &Arc<Volume>, me: SessionId) -> Result<(), Error> {
        let (settled, restart_to_see_it) = volume.look(|facts| {
            let settled = match facts.standing {
                Standing::Owned { session, .. } => session == me && facts.unsettled.is_empty(),
                Standing::Fenced { .. } => false,
                Standing::Relative | Standing::Quarantined { .. } => true,
            };
            (settled, facts.restart_to_see_it && !matches!(facts.standing, Standing::Quarantined { .. }))
        });
        if settled && !restart_to_see_it {
            return Ok(());
        }
        let _guard = self.locks().try_acquire(&volume.id, "settle")?;
        if !settled {
            self.settle_locked(volume).await?;
        }
        if restart_to_see_it {
            self.drop_old_trees(volume).await?;
        }
        Ok(())
    }

    /// Makes every volume durable that was written to.
    async fn keep_synced(self: Arc<Self>) {
        let mut tick = tokio::time::interval(self.config().sync_interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let stop = self.stop().clone();
        // The first tick comes at once, when everything was just settled.
        tick.tick().await;
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            self.sync_all().await;
        }
    }
}

/// The numbers of the volumes' groups that use nine tenths of what they may.
fn near_their_limits(groups: BTreeMap<GroupId, btrfs::quota::Group>) -> BTreeSet<u64> {
    let near = |usage: &btrfs::quota::Usage| {
        usage.limit_bytes.is_some_and(|limit| usage.referenced_bytes >= limit / 10 * 9)
    };
    groups
        .into_iter()
        .filter(|(id, group)| id.level() == 1 && near(&group.usage))
        .map(|(id, _)| id.number())
        .collect()
}
