//! What is no pack and nobody needs: sessions that are over, deleted and purged records, old entries of volumes without
//! an owner, and what probes left behind. Ages are by the store's clock, which may delay all of this, never force it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use types::{Change, Nonce, PoolId, SessionId, Timestamp, VolumeId};

use super::collector::Collector;
use super::roots::Known;
use crate::error::Error;
use crate::keys;
use crate::lifecycle::{self, Authority};
use crate::objects::{Condition, Etag, Key, list_all};
use crate::record::{self, RecordKind, State};
use crate::session::{self, SessionState};
use crate::upkeep;

/// A pool's last session stays for this many times as long as the others: its number must not come back while anything
/// of the pool may, and until then purged records wait for the pool.
const LAST_SESSION: u32 = 30;

/// A volume without an owner that did not change is looked at again after this long: what thins is hours old.
const THIN_AGAIN: Duration = Duration::from_secs(3600);

/// When volumes without an owner were thinned, and what they were then.
pub(super) type Thinned = HashMap<VolumeId, (Etag, Timestamp)>;

/// What is to be done about a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chore {
    /// Its grace is over.
    Purge,
    /// Nobody finished it.
    Abandon,
    /// Nobody holds a copy.
    Remove,
    /// Nobody who publishes to it would thin it.
    Thin,
}

/// Decides about one record. `pools` are those that have a session. Pure.
fn chore(known: &Known, pools: &BTreeSet<PoolId>, grace: Duration, now: Timestamp) -> Option<Chore> {
    let old = now.since(known.modified) >= grace;
    match known.state {
        State::Deleted => old.then_some(Chore::Purge),
        State::Creating => (old && known.owner.is_none()).then_some(Chore::Abandon),
        State::Purged => known.holders.is_disjoint(pools).then_some(Chore::Remove),
        State::Live => (known.kind == RecordKind::Volume && known.owner.is_none() && known.roots.len() > 1)
            .then_some(Chore::Thin),
    }
}

impl Collector {
    /// Sweeps, with the roots as they were read last.
    pub(super) async fn sweep(&mut self) -> Result<(), Error> {
        self.tell_time().await?;
        self.sweep_probes().await?;
        let pools = self.retire_sessions().await?;
        let chores: Vec<(VolumeId, Known, Chore)> = self
            .roots
            .records
            .iter()
            .filter_map(|(id, known)| {
                let chore = chore(known, &pools, self.settings.grace, self.now)?;
                Some((id.clone(), known.clone(), chore))
            })
            .collect();
        self.thinned.retain(|id, _| self.roots.records.contains_key(id));
        for (id, known, chore) in chores {
            match self.do_chore(&id, &known, chore).await {
                // Somebody changed it meanwhile; the next round looks again.
                Err(
                    Error::NoVolume { .. }
                    | Error::Gone { .. }
                    | Error::WrongState { .. }
                    | Error::OtherBirth { .. }
                    | Error::Owned { .. }
                    | Error::Contended { .. },
                ) => {}
                done => done?,
            }
        }
        Ok(())
    }

    async fn do_chore(&mut self, id: &VolumeId, known: &Known, chore: Chore) -> Result<(), Error> {
        let made = |change: Change<_>| u64::from(matches!(change, Change::Made(_)));
        match chore {
            Chore::Purge => {
                let (grace, now) = (self.settings.grace, self.now);
                let purged = lifecycle::purge(&self.store, id, known.birth, grace, now).await?;
                self.report.purged += made(purged);
            }
            Chore::Abandon => {
                drop(lifecycle::delete(&self.store, id, Some(known.birth), Authority::Unowned).await?);
            }
            // A purged record only loses holders, and ids are never used again for another birth of the same request.
            Chore::Remove => {
                self.store.objects().delete(&keys::volume(id)).await?;
                self.report.removed += 1;
            }
            Chore::Thin => {
                let now = self.now;
                let looked = self.thinned.get(id);
                if looked.is_some_and(|(etag, at)| *etag == known.etag && now.since(*at) < THIN_AGAIN) {
                    return Ok(());
                }
                let Some(record) = record::read(&self.store, id).await? else { return Ok(()) };
                if upkeep::thin_unowned(&self.store, &record, now).await? {
                    self.report.thinned += 1;
                } else {
                    self.thinned.insert(id.clone(), (record.etag, now));
                }
            }
        }
        Ok(())
    }

    /// Learns the store's time, if anything waits for it.
    async fn tell_time(&mut self) -> Result<(), Error> {
        let name = Nonce::random().to_string().to_lowercase();
        let key: Key = format!("{}/clock-{name}", keys::PROBES).parse().expect("a key of plain characters");
        let objects = self.store.objects();
        // A lost answer costs a stale time, and the object is swept later.
        if objects.put(&key, Bytes::from_static(b"what time is it?"), &Condition::IfAbsent).await.is_ok() {
            self.now = self.now.max(objects.head(&key).await?.modified);
        }
        objects.delete(&key).await?;
        Ok(())
    }

    async fn sweep_probes(&mut self) -> Result<(), Error> {
        for meta in list_all(&**self.store.objects(), keys::PROBES).await? {
            if self.now.since(meta.modified) >= self.settings.retire_after {
                self.store.objects().delete(&meta.key).await?;
                self.report.leftovers += 1;
            }
        }
        Ok(())
    }

    /// Deletes sessions that are over and own nothing; returns the pools that still have one.
    async fn retire_sessions(&mut self) -> Result<BTreeSet<PoolId>, Error> {
        let sessions = session::list(&self.store).await?;
        let mut last: BTreeMap<PoolId, u64> = BTreeMap::new();
        for session in &sessions {
            let number = last.entry(session.value.id.pool).or_default();
            *number = (*number).max(session.value.id.number);
        }
        let owners: BTreeSet<SessionId> =
            self.roots.records.values().filter_map(|known| known.owner).collect();
        let mut pools = BTreeSet::new();
        for session in &sessions {
            let id = session.value.id;
            let stay = match last.get(&id.pool) {
                Some(number) if *number == id.number => self.settings.retire_after * LAST_SESSION,
                Some(_) | None => self.settings.retire_after,
            };
            let over = session.value.state == SessionState::Fenced
                && !owners.contains(&id)
                && self.now.since(session.modified) >= stay;
            if over {
                self.store.objects().delete(&keys::session(&id)).await?;
                self.report.retired += 1;
            } else {
                pools.insert(id.pool);
            }
        }
        Ok(pools)
    }
}
