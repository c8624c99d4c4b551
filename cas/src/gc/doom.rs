//! Condemned → doomed → idle: waiting for sessions, the second mark, and the only deletions of packs that there are.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use types::{Change, PackId, SessionId};

use super::collector::{Collector, Step};
use super::judge;
use super::moved::{Moved, Moves};
use super::object::{Gc, Phase};
use super::roots::pack_of;
use super::sparse::{MAX_MOVED_FRAMES, is_sparse, live_bytes, measure};
use super::wait::is_dead;
use crate::codec;
use crate::error::Error;
use crate::keys;
use crate::objects::{Condition, Key, list_all};
use crate::session::{self, SessionRecord, SessionState};
use crate::settle::{self, Settled};
use crate::store::Stored;
use crate::tree::{Evacuator, Frames};
use crate::update::{Next, swap, update};

/// How many deletions are under way at once.
const DELETES: usize = 16;

impl Collector {
    /// Condemned → doomed, once every live session knows what is condemned and no other can publish.
    pub(super) async fn doom(&mut self, stored: Stored<Gc>) -> Result<Step, Error> {
        let epoch = stored.value.epoch;
        if !self.all_follow(epoch).await? || !self.drain(epoch).await? {
            return Ok(Step::Waiting);
        }
        // From here on no reference to a condemned pack can be made, so what this mark does not find stays unfound.
        self.roots.refresh().await?;
        self.delete_pages(epoch).await?;
        let living = judge::living(self.roots.named(), &self.roots.moved);
        let (used, mut doomed): (BTreeSet<PackId>, BTreeSet<PackId>) =
            stored.value.condemned.iter().cloned().partition(|pack| living.contains_key(pack));
        let relocations = self.evacuate(&used).await?;
        self.report.rescued += (used.len() - relocations.len()) as u64;
        self.report.evacuated += relocations.len() as u64;
        doomed.extend(relocations.keys().cloned());
        let next = Gc {
            phase: Phase::Doomed,
            condemned: BTreeSet::new(),
            doomed,
            relocations,
            ..stored.value.clone()
        };
        self.write(Some(stored), next).await
    }

    /// Tells if every live session has pinned `epoch`. One that is behind and dead is fenced.
    async fn all_follow(&mut self, epoch: u64) -> Result<bool, Error> {
        loop {
            let sessions = session::list(&self.store).await?;
            let now = self.store.clock().monotonic();
            let behind = self.beats.look(sessions.iter().map(|session| &session.value), epoch, now);
            if behind.is_empty() {
                return Ok(true);
            }
            let mut fenced = false;
            let fence_after = self.settings.fence_after;
            for session in behind.iter().filter(|behind| is_dead(behind, fence_after)) {
                fenced |= self.fence(&session.session, epoch).await?;
            }
            if !fenced {
                self.report.waiting = behind;
                return Ok(false);
            }
        }
    }

    /// Fences a session if it is as still as it was seen, and behind.
    async fn fence(&mut self, id: &SessionId, epoch: u64) -> Result<bool, Error> {
        let seen = self.beats.beat(id);
        let key = keys::session(id);
        let fenced = swap::<SessionRecord, _>(&self.store, None, &key, |current| {
            let session = &current.value;
            let moved = session.pin >= epoch || Some(session.beat) != seen;
            if moved || session.state == SessionState::Fenced {
                return Ok(Next::Already);
            }
            Ok(Next::Write(SessionRecord { state: SessionState::Fenced, ..session.clone() }))
        });
        let made = matches!(fenced.await?, Some(Change::Made(_)));
        if made {
            tracing::warn!(session = %id, epoch, "fenced: it stood still and does not follow the collection");
            self.report.fenced.push(*id);
        }
        // Whatever it is now, the sessions are to be read again.
        Ok(true)
    }

    /// Takes every record from the sessions that are over: U(owner = it → none, epoch+1). That also ends what they still
    /// have under way. A session that is not there is over: only collection removes one.
    async fn drain(&mut self, epoch: u64) -> Result<bool, Error> {
        self.roots.refresh_records().await?;
        let mut over: BTreeMap<SessionId, bool> = BTreeMap::new();
        let owned: Vec<_> =
            self.roots.records.iter().filter_map(|(id, known)| Some((id.clone(), known.owner?))).collect();
        for (id, owner) in owned {
            let is_over = match over.get(&owner) {
                Some(is_over) => *is_over,
                None => {
                    // Read now: it may have joined since the sessions were listed.
                    let found = session::read(&self.store, &owner).await?.map(|found| found.value);
                    let live = found.filter(|session| session.state == SessionState::Live);
                    if live.as_ref().is_some_and(|session| session.pin < epoch) {
                        return Ok(false);
                    }
                    over.insert(owner, live.is_none());
                    live.is_none()
                }
            };
            if !is_over {
                continue;
            }
            let taken = update(&self.store, None, &id, |current| {
                let mut next = current.value.clone();
                if next.owner != Some(owner) {
                    return Ok(Next::Already);
                }
                // Whoever takes it next carries on from here, and says what may be lost.
                next.takeover = Some(next.taken_from(owner, None, self.store.clock().now()));
                next.owner = None;
                next.epoch = next.epoch.next();
                Ok(Next::Write(next))
            });
            match taken.await {
                Ok(change) => self.report.drained += u64::from(matches!(change, Change::Made(_))),
                Err(Error::NoVolume { .. } | Error::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Deletes pages that nothing named when the epoch began, and that the second mark did not find either.
    async fn delete_pages(&mut self, epoch: u64) -> Result<(), Error> {
        let (of, pages) = std::mem::take(&mut self.pages);
        let named = self.roots.pages();
        for page in pages.iter().filter(|page| of == epoch && !named.contains(page)) {
            self.store.objects().delete(page).await?;
            self.report.leftovers += 1;
        }
        Ok(())
    }

    /// Copies the live frames of those packs that are sparse. What is copied here and not committed is garbage.
    async fn evacuate(&mut self, packs: &BTreeSet<PackId>) -> Result<BTreeMap<PackId, Moves>, Error> {
        let mut sizes = BTreeMap::new();
        for pack in packs {
            match self.store.objects().head(&keys::pack(pack)).await {
                Ok(meta) => drop(sizes.insert(pack.clone(), meta.size)),
                // It was evacuated before, and what was condemned is the way to it.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let here: BTreeSet<PackId> = sizes.keys().cloned().collect();
        if here.is_empty() || self.settings.live_share <= 0.0 {
            return Ok(BTreeMap::new());
        }
        let found = measure(&self.reader, &self.roots, &here, self.settings.walk_nodes).await?;
        let Some(found) = found else { return Ok(BTreeMap::new()) };
        let mut evacuator = Evacuator::new(self.names());
        let (mut bytes, mut moved) = (0, 0);
        let mut made = Vec::new();
        let none = Frames::new();
        for pack in &here {
            // Also one that is only a part of a way on which nothing is left.
            let frames = found.get(pack).unwrap_or(&none);
            let live = live_bytes(frames);
            let sparse =
                is_sparse(sizes[pack], live, self.settings.live_share, self.settings.least_gain_bytes);
            let fits = bytes + live <= self.settings.copy_bytes && moved + frames.len() <= MAX_MOVED_FRAMES;
            if !sparse || !fits {
                continue;
            }
            match evacuator.copy(&self.reader, pack, frames).await {
                Ok(full) => {
                    (bytes, moved) = (bytes + live, moved + frames.len());
                    for (id, bytes) in full {
                        made.push(put_new(&self.store, &id, bytes).await?);
                    }
                }
                Err(error) if error.is_damage() => {
                    self.report.troubles.push(format!("pack {pack} stays as it is: {error}"));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let (full, moves) = evacuator.finish().await;
        for (id, bytes) in full {
            made.push(put_new(&self.store, &id, bytes).await?);
        }
        self.report.copied += made.len() as u64;
        self.report.copied_bytes += made.iter().sum::<u64>();
        Ok(moves)
    }

    /// Doomed → idle: says where frames went, deletes, and looks whether all is gone.
    pub(super) async fn delete(&mut self, stored: Stored<Gc>) -> Result<Step, Error> {
        let gc = &stored.value;
        for (pack, to) in &gc.relocations {
            let moved = Moved { format: codec::FORMAT, pack: pack.clone(), to: to.clone() };
            put_moved(&self.store, &moved).await?;
        }
        let (sizes, moved) = self.doomed_left(gc).await?;
        let objects = self.store.objects();
        let keys = sizes.keys().map(keys::pack).chain(moved.iter().map(keys::moved));
        futures::stream::iter(keys.collect::<Vec<Key>>())
            .map(|key| async move { objects.delete(&key).await })
            .buffer_unordered(DELETES)
            .try_collect::<()>()
            .await?;
        self.report.deleted += sizes.len() as u64;
        self.report.deleted_bytes += sizes.values().sum::<u64>();
        let (sizes, moved) = self.doomed_left(gc).await?;
        if !sizes.is_empty() || !moved.is_empty() {
            let left = sizes.len() + moved.len();
            self.report.troubles.push(format!("{left} objects are still listed after they were deleted"));
            return Ok(Step::Waiting);
        }
        let next =
            Gc { phase: Phase::Idle, doomed: BTreeSet::new(), relocations: BTreeMap::new(), ..gc.clone() };
        self.write(Some(stored), next).await
    }

    /// What is still there of the doomed: packs with their lengths, and `moved/` of those that have none to keep.
    async fn doomed_left(&self, gc: &Gc) -> Result<(BTreeMap<PackId, u64>, BTreeSet<PackId>), Error> {
        let mut packs = BTreeMap::new();
        for meta in list_all(&**self.store.objects(), keys::PACKS).await? {
            let pack = pack_of(&meta, keys::PACKS)?;
            if gc.doomed.contains(&pack) {
                packs.insert(pack, meta.size);
            }
        }
        let mut moved = BTreeSet::new();
        for meta in list_all(&**self.store.objects(), keys::MOVED).await? {
            let pack = pack_of(&meta, keys::MOVED)?;
            if gc.doomed.contains(&pack) && !gc.relocations.contains_key(&pack) {
                moved.insert(pack);
            }
        }
        Ok((packs, moved))
    }
}

/// Puts a pack under a name of this collector's own.
async fn put_new(store: &crate::Store, id: &PackId, bytes: Bytes) -> Result<u64, Error> {
    let (key, len) = (keys::pack(id), bytes.len() as u64);
    match settle::put(store, &key, &bytes, &Condition::IfAbsent).await? {
        Settled::Written(_) => Ok(len),
        // An earlier request of this write made it.
        Settled::Refused if store.objects().get(&key).await?.bytes == bytes => Ok(len),
        Settled::Refused | Settled::Absent => Err(Error::ForeignPack { pack: id.clone() }),
    }
}

/// Says where a pack's frames went. Any leader says the same, because the committed `gc` does.
async fn put_moved(store: &crate::Store, moved: &Moved) -> Result<(), Error> {
    let key = keys::moved(&moved.pack);
    let bytes = codec::encode(&key, moved)?;
    match settle::put(store, &key, &bytes, &Condition::IfAbsent).await? {
        Settled::Written(_) => Ok(()),
        Settled::Refused | Settled::Absent => match settle::read::<Moved>(store, &key).await? {
            Some(found) if found.value == *moved => Ok(()),
            // Another leader finished this round and the next one found nobody who names the pack.
            None => Err(Error::Contended { key: keys::gc() }),
            Some(_) => Err(Error::corrupt(&key, "it does not say where the collection put the frames")),
        },
    }
}
