//! The collector: one round, step by step. Each step reads `gc`, does what its phase asks for, and ends with one
//! conditional write; a step that is done twice, late, or by two at once changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use types::{Domain, PackId, PoolId, SessionId, Timestamp};

use super::judge;
use super::object::{Gc, Phase};
use super::report::Report;
use super::roots::{Roots, pack_of};
use super::sparse::Sparse;
use super::sweep::Thinned;
use super::wait::Beats;
use crate::error::Error;
use crate::keys;
use crate::objects::{Key, list_all};
use crate::session::{self, SessionState};
use crate::store::{Store, Stored};
use crate::tree::{Cache, Reader};
use crate::update::{Next, create, swap};

/// How many packs one round condemns: the set is in one small object, which every session reads. The rest is the next
/// round's.
const MAX_CONDEMNED: usize = 4096;

/// How a collector works. The defaults are for production.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// A session that is behind is fenced when its beat stood still for this long, as seen from here.
    pub fence_after: Duration,
    /// How long a round waits for sessions before it ends for now. The next one goes on from there.
    pub patience: Duration,
    /// How often sessions are looked at meanwhile.
    pub poll: Duration,
    /// Packs with less of their bytes alive are rewritten; 0 rewrites none.
    pub live_share: f64,
    /// Packs are rewritten only where that gives at least this much back.
    pub least_gain_bytes: u64,
    /// How much one round copies.
    pub copy_bytes: u64,
    /// How many directory nodes one round reads to find out what is alive in packs.
    pub walk_nodes: usize,
    /// Bytes of nodes and frames that are kept in memory.
    pub cache_bytes: usize,
    /// Deleted volumes can be brought back for this long, by the store's clock.
    pub grace: Duration,
    /// Sessions that are over stay for this long; a pool's last one for thirty times this. After that the pool holds no
    /// copies any more, as far as purged records wait for it.
    pub retire_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self {
            fence_after: Duration::from_secs(60),
            patience: Duration::from_secs(300),
            poll: Duration::from_secs(1),
            live_share: 0.7,
            least_gain_bytes: 64 << 10,
            copy_bytes: 256 << 20,
            walk_nodes: 200_000,
            cache_bytes: 64 << 20,
            grace: 7 * DAY,
            retire_after: DAY,
        }
    }
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There is nothing to collect.
    Idle,
    /// The phase moved on.
    Moved,
    /// Live sessions do not follow yet: see [`Report::waiting`].
    Waiting,
}

/// Collects garbage in a store. Several may run at once; one is enough. Keep it between rounds: it remembers what it read.
#[derive(Debug)]
pub struct Collector {
    pub(super) store: Store,
    pub(super) settings: Settings,
    pub(super) reader: Reader,
    pub(super) roots: Roots,
    pub(super) sparse: Sparse,
    pub(super) beats: Beats,
    /// New packs are named as those of a session that never was, so nothing but `gc` decides about them.
    pub(super) writer: SessionId,
    pub(super) next_pack: Arc<AtomicU64>,
    pub(super) report: Report,
    pub(super) thinned: Thinned,
    /// Pages that nothing named when this epoch began. A page's name is never used twice, so once everybody has pinned the
    /// epoch nothing ever will, unless the second mark finds it.
    pub(super) pages: (u64, BTreeSet<Key>),
    /// A time that the store's clock has passed.
    pub(super) now: Timestamp,
}

impl Collector {
    /// Makes a collector that knows nothing yet.
    pub fn new(store: Store, settings: Settings) -> Self {
        let reader = Reader::new(store.clone(), Cache::new(settings.cache_bytes));
        Self {
            roots: Roots::new(store.clone(), reader.clone()),
            sparse: Sparse::default(),
            beats: Beats::default(),
            writer: SessionId { pool: PoolId::random(), number: 1 },
            next_pack: Arc::new(AtomicU64::new(1)),
            report: Report::default(),
            thinned: Thinned::new(),
            pages: (0, BTreeSet::new()),
            now: Timestamp::default(),
            store,
            settings,
            reader,
        }
    }

    /// Brings a round that is under way to its end, or one from beginning to end; then sweeps what is no pack. Ends early
    /// when patience with the sessions is over. Where there is more garbage than one round takes, goes on with it.
    ///
    /// # Errors
    /// Something could not be read or written. Nothing is half done: the next round, here or elsewhere, goes on.
    pub async fn round(&mut self) -> Result<Report, Error> {
        let until = Instant::now() + self.settings.patience;
        self.begin();
        let mut full = false;
        loop {
            let condemned = self.report.condemned;
            match self.step().await? {
                Step::Moved => match self.report.phase {
                    Some(Phase::Condemned) => {
                        full = self.report.condemned - condemned >= MAX_CONDEMNED as u64;
                    }
                    Some(Phase::Idle) if !full => break,
                    Some(Phase::Idle | Phase::Doomed) | None => {}
                },
                Step::Waiting if Instant::now() < until => tokio::time::sleep(self.settings.poll).await,
                Step::Waiting => return Ok(self.report().clone()),
                Step::Idle => break,
            }
        }
        self.sweep().await?;
        Ok(self.report().clone())
    }

    /// Forgets what the last round did.
    pub fn begin(&mut self) {
        self.report = Report::default();
    }

    /// Returns what was done since [`Self::begin`].
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Does what the present phase asks for.
    ///
    /// # Errors
    /// As for [`Self::round`]; [`Error::Contended`] when another collector moved on first.
    pub async fn step(&mut self) -> Result<Step, Error> {
        let stored = self.store.read::<Gc>(&keys::gc()).await?;
        if let Some(stored) = &stored {
            crate::update::Versioned::check(&stored.value, &keys::gc())?;
            self.now = self.now.max(stored.modified);
        }
        let gc = stored.as_ref().map_or_else(Gc::never, |stored| stored.value.clone());
        self.tell(&gc);
        match (gc.phase, stored) {
            (Phase::Idle, stored) => self.condemn(gc, stored).await,
            (Phase::Condemned, Some(stored)) => self.doom(stored).await,
            (Phase::Doomed, Some(stored)) => self.delete(stored).await,
            (Phase::Condemned | Phase::Doomed, None) => unreachable!("an absent object says idle"),
        }
    }

    fn tell(&mut self, gc: &Gc) {
        self.report.epoch = gc.epoch;
        self.report.phase = Some(gc.phase);
        self.report.waiting.clear();
    }

    /// Reads what there is and what names it: 1. packs, then sessions, then records. A pack of a live session that is
    /// listed here has its session in the second listing; one below its `low` that is in use is named in the third.
    pub(super) async fn look(&mut self) -> Result<Look, Error> {
        let pages = list_all(&**self.store.objects(), keys::PAGES).await?;
        let pages = pages.into_iter().map(|meta| meta.key).collect();
        let mut packs = BTreeMap::new();
        for meta in list_all(&**self.store.objects(), keys::PACKS).await? {
            packs.insert(pack_of(&meta, keys::PACKS)?, meta.size);
        }
        let mut lows = BTreeMap::new();
        for session in session::list(&self.store).await? {
            self.now = self.now.max(session.modified);
            if session.value.state == SessionState::Live {
                lows.insert(session.value.id, session.value.low);
            }
        }
        self.roots.refresh().await?;
        Ok(Look { packs, pages, lows })
    }

    /// Idle → condemned: what nothing names, and what is worth rewriting.
    async fn condemn(&mut self, gc: Gc, stored: Option<Stored<Gc>>) -> Result<Step, Error> {
        let look = self.look().await?;
        self.report.packs = look.packs.len() as u64;
        self.report.pack_bytes = look.packs.values().sum();
        let living = judge::living(self.roots.named(), &self.roots.moved);
        let known = look.packs.keys().chain(self.roots.moved.keys());
        let mut condemned = judge::garbage(known, &living, &look.lows);
        let room = MAX_CONDEMNED.saturating_sub(condemned.len());
        let sparse = self.find_sparse(&look, &living, room).await?;
        condemned.extend(sparse.into_iter().map(|(pack, _)| pack));
        let condemned: BTreeSet<PackId> = condemned.into_iter().take(MAX_CONDEMNED).collect();
        let mut pages = look.pages;
        let named = self.roots.pages();
        pages.retain(|page| !named.contains(page));
        if condemned.is_empty() && pages.is_empty() {
            return Ok(Step::Idle);
        }
        let (epoch, count) = (gc.epoch + 1, condemned.len() as u64);
        let step = self.write(stored, Gc { epoch, phase: Phase::Condemned, condemned, ..gc }).await?;
        // Only if this very listing came before the epoch: another leader's may have begun while we looked.
        self.pages = (epoch, pages);
        self.report.condemned += count;
        Ok(step)
    }

    /// Writes `gc` if it is still what was read.
    pub(super) async fn write(&mut self, read: Option<Stored<Gc>>, next: Gc) -> Result<Step, Error> {
        let key = keys::gc();
        let moved_on = || Error::Contended { key: keys::gc() };
        match read {
            None => {
                let first = Gc { rev: types::Rev(1), ..next.clone() };
                create(&self.store, &key, first).await?.map_err(|_| moved_on())?;
            }
            Some(read) => {
                let written = swap::<Gc, _>(&self.store, None, &key, |current| {
                    if current.etag == read.etag { Ok(Next::Write(next.clone())) } else { Err(moved_on()) }
                });
                written.await?.ok_or_else(|| Error::Gone { key: key.clone() })?;
            }
        }
        self.tell(&next);
        Ok(Step::Moved)
    }

    /// Returns what names new packs. A number is used up when it is given, whatever becomes of the pack: a write that
    /// failed may still happen.
    pub(super) fn names(&self) -> impl FnMut(&Domain) -> PackId + use<> {
        let (session, next_pack) = (self.writer, Arc::clone(&self.next_pack));
        move |domain| {
            let seq = next_pack.fetch_add(1, Ordering::Relaxed);
            PackId { domain: domain.clone(), session, seq }
        }
    }
}

/// What there is.
#[derive(Debug)]
pub(super) struct Look {
    /// Packs and their lengths.
    pub(super) packs: BTreeMap<PackId, u64>,
    /// Pages of older entries.
    pub(super) pages: BTreeSet<Key>,
    /// `low` of each live session.
    pub(super) lows: BTreeMap<SessionId, u64>,
}

impl Look {
    /// What is there again as a map for quick looks.
    pub(super) fn sizes(&self) -> HashMap<&PackId, u64> {
        self.packs.iter().map(|(pack, size)| (pack, *size)).collect()
    }
}
