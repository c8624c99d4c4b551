//! What is left here of volumes and templates that were deleted while they were elsewhere.
//!
//! Whoever deletes tells the nodes that have something; this finds what nobody was told of, because node or hub was away.
//! Only what no session here owns is asked about, so volumes that are idle cost no request.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cas::Record;
use cas::record::State;
use types::{Classify as _, Kind, VolumeId};

use crate::error::Error;
use crate::layout::{self, Place};
use crate::node::Node;
use crate::volume::Standing;

/// How often the records of such copies are read. A tombstone stays for days, and a start looks too.
const LOOK: Duration = Duration::from_secs(3600);

impl Node {
    /// Looks from time to time, until the node stops.
    pub(crate) async fn keep_no_leftovers(self: Arc<Self>) {
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let stop = self.stop().clone();
        // The first tick comes at once, when a start has just looked.
        tick.tick().await;
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            if let Err(error) = self.drop_leftovers().await {
                tracing::warn!(%error, "whether copies here were deleted is not known; the next look tells");
            }
        }
    }

    /// Drops the copies of other nodes' volumes, and the trees of templates, whose records say that they were deleted.
    /// Returns of which.
    ///
    /// # Errors
    /// The store cannot be read, or the pool not be written.
    pub async fn drop_leftovers(self: &Arc<Self>) -> Result<Vec<VolumeId>, Error> {
        let volumes = self.volumes().all().into_iter();
        let relatives = volumes.filter(|volume| volume.look(|facts| facts.standing == Standing::Relative));
        let mut asked: BTreeSet<VolumeId> = relatives.map(|volume| volume.id.clone()).collect();
        asked.extend(self.idle_templates().into_iter().map(|(id, _)| id));
        let mut gone = Vec::new();
        for id in asked {
            match self.drop_leftover(&id).await {
                Ok(true) => gone.push(id),
                Ok(false) => {}
                // Mounted, or somebody works on it: the next look finds it again.
                Err(error) if matches!(error.kind(), Kind::Aborted | Kind::FailedPrecondition) => {
                    tracing::debug!(volume = %id, %error, "what is here of it stays for now");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(gone)
    }

    /// Drops what is here of a record, if that was deleted. One that was not, or came back since, is left alone.
    ///
    /// # Errors
    /// It is mounted, somebody works on it, or pool or store failed.
    pub async fn drop_leftover(self: &Arc<Self>, id: &VolumeId) -> Result<bool, Error> {
        let guard = self.locks().try_acquire(id, "drop")?;
        let (node, id) = (Arc::clone(self), id.clone());
        self.detached("drop", async move {
            let _guard = guard;
            node.session()?;
            // Without a record nobody can say that it is not needed.
            let Some(record) = cas::record::read(node.store(), &id).await? else { return Ok(false) };
            if !matches!(record.value.state, State::Deleted | State::Purged) {
                return Ok(false);
            }
            node.require_unmounted(&id)?;
            node.bury_locked(&record.value).await
        })
        .await
    }

    /// Drops what is here of a record that was deleted. The caller has the lock, and nothing is mounted.
    pub(crate) async fn bury_locked(self: &Arc<Self>, record: &Record) -> Result<bool, Error> {
        let mut dropped = false;
        let here = self.volumes().find(&record.id);
        if let Some(volume) = here.filter(|here| here.look(|facts| facts.about.birth == record.birth)) {
            if volume.look(|facts| facts.standing == Standing::Relative) {
                self.drop_copy(&volume, false).await?;
            } else {
                // It was deleted by force, or after this session was fenced: what was not published is kept.
                self.settle_locked(&volume).await?;
            }
            dropped = true;
        }
        for (_, place) in self.idle_templates().into_iter().filter(|(id, _)| *id == record.id) {
            self.put_away(&place).await?;
            dropped = true;
        }
        if dropped {
            tracing::info!(volume = %record.id, "the copy of a deleted volume is dropped");
        }
        Ok(dropped)
    }

    /// The trees of templates that nobody reads and nothing grew from, and whose they are.
    fn idle_templates(&self) -> Vec<(VolumeId, Place)> {
        let idle = self.shelf().idle().into_iter().map(|(place, _)| place);
        let of = |place: &Place| layout::template_name(&place.template_text()).map(|(id, _)| id);
        idle.filter(Place::is_template).filter_map(|place| Some((of(&place)?, place))).collect()
    }
}
