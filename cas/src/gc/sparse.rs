//! Which packs are worth rewriting: most of their bytes are dead.
//!
//! Manifests say how much a version uses of a pack, not what. So a cheap guess from them picks packs, and only for those
//! trees are read, to find the frames that are alive.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use types::PackId;

use super::collector::{Collector, Look};
use super::judge::{self, Life};
use super::moved::Moved;
use super::roots::{Roots, unreadable};
use crate::error::Error;
use crate::tree::{Frames, Living, MAX_HOPS, Reader, TreeError, plain_bytes};

/// How many frames one round moves: where they went is in one small object until it is done.
pub(super) const MAX_MOVED_FRAMES: usize = 16_384;

/// How many footers are read at once.
const READ_AHEAD: usize = 16;

/// What was found out about packs, which never change.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    /// Plain bytes of a pack; `None` where it does not say.
    plain: HashMap<PackId, Option<u64>>,
    /// Packs that were measured and found not worth it, by what named them then.
    dense: HashMap<PackId, u64>,
}

/// The packs that trees name and whose frames are in `packs` now, `packs` included.
fn sources(packs: &BTreeSet<PackId>, moved: &BTreeMap<PackId, Arc<Moved>>) -> BTreeSet<PackId> {
    let mut found = packs.clone();
    loop {
        let more: Vec<PackId> = moved
            .iter()
            .filter(|(from, moved)| !found.contains(*from) && moved.to.keys().any(|to| found.contains(to)))
            .map(|(from, _)| from.clone())
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// Where a frame that trees name lies now.
fn resolve(moved: &BTreeMap<PackId, Arc<Moved>>, pack: &PackId, offset: u32) -> Option<(PackId, u32)> {
    let (mut pack, mut offset) = (pack.clone(), offset);
    for _ in 0..=MAX_HOPS {
        let Some(on) = moved.get(&pack) else { return Some((pack, offset)) };
        let (to, place) = on.find(offset)?;
        (pack, offset) = (to.clone(), place.new);
    }
    None
}

/// The longest way that leads to a pack.
fn hops(moved: &BTreeMap<PackId, Arc<Moved>>, pack: &PackId) -> u32 {
    let mut at = BTreeSet::from([pack.clone()]);
    for hops in 0..MAX_HOPS {
        let before: BTreeSet<PackId> = moved
            .iter()
            .filter(|(_, moved)| moved.to.keys().any(|to| at.contains(to)))
            .map(|(from, _)| from.clone())
            .collect();
        if before.is_empty() {
            return hops;
        }
        at = before;
    }
    MAX_HOPS
}

/// Finds the frames of `packs` that versions use. `None`: that would take too long to find out.
pub(super) async fn measure(
    reader: &Reader,
    roots: &Roots,
    packs: &BTreeSet<PackId>,
    nodes: usize,
) -> Result<Option<BTreeMap<PackId, Frames>>, Error> {
    let sources = sources(packs, &roots.moved);
    let mut living = Living::new(reader, sources.clone(), nodes);
    for (volume, root) in roots.versions() {
        if !roots.needs(root).iter().any(|(pack, _)| sources.contains(&**pack)) {
            continue;
        }
        match living.add(&root.tree).await {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => return Err(unreadable(volume.clone(), root.entry, error)),
        }
    }
    let mut frames: BTreeMap<PackId, Frames> = BTreeMap::new();
    for (pack, offsets) in &living.frames {
        for (offset, len) in offsets {
            if let Some((at, offset)) = resolve(&roots.moved, pack, *offset)
                && packs.contains(&at)
            {
                frames.entry(at).or_default().insert(offset, *len);
            }
        }
    }
    Ok(Some(frames))
}

/// Tells if rewriting a pack of `size` bytes of which `live` are alive is worth it.
pub(super) fn is_sparse(size: u64, live: u64, share: f64, least_gain_bytes: u64) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "a share need not be exact")]
    let below = (live as f64) < size as f64 * share;
    below && size.saturating_sub(live) >= least_gain_bytes.max(1)
}

pub(super) fn live_bytes(frames: &Frames) -> u64 {
    frames.values().map(|len| u64::from(*len)).sum()
}

impl Collector {
    /// Finds packs that are worth rewriting and older than everything unfinished; at most `most`, and no more than a
    /// round copies. Those that give most back come first.
    pub(super) async fn find_sparse(
        &mut self,
        look: &Look,
        living: &BTreeMap<PackId, Life>,
        most: usize,
    ) -> Result<Vec<(PackId, u64)>, Error> {
        let share = self.settings.live_share;
        if share <= 0.0 || most == 0 {
            return Ok(Vec::new());
        }
        let sizes = look.sizes();
        let least = self.settings.least_gain_bytes;
        self.sparse.plain.retain(|pack, _| sizes.contains_key(pack));
        self.sparse.dense.retain(|pack, _| sizes.contains_key(pack));
        let old: Vec<(PackId, u64)> = living
            .keys()
            .filter(|pack| !judge::is_young(pack, &look.lows))
            .filter_map(|pack| Some((pack.clone(), *sizes.get(pack)?)))
            .filter(|(_, size)| is_sparse(*size, 0, share, least))
            .collect();
        self.read_footers(&old).await?;
        let (used, marks) = self.used();
        let mut packs = BTreeMap::new();
        for (pack, size) in old {
            let used = used.get(&pack).copied().unwrap_or(0);
            let plain = self.sparse.plain.get(&pack).copied().flatten();
            let mark = marks.get(&pack).copied().unwrap_or(0);
            if plain.is_some_and(|plain| is_sparse(plain, used, share, 1))
                && self.sparse.dense.get(&pack) != Some(&mark)
                && hops(&self.roots.moved, &pack) < MAX_HOPS / 2
            {
                packs.insert(pack, (size, mark));
            }
        }
        if packs.is_empty() {
            return Ok(Vec::new());
        }
        let names = packs.keys().cloned().collect();
        let Some(frames) = measure(&self.reader, &self.roots, &names, self.settings.walk_nodes).await? else {
            self.report
                .troubles
                .push("there is too much to read to find sparse packs in this round".to_owned());
            return Ok(Vec::new());
        };
        let mut sparse = Vec::new();
        for (pack, (size, mark)) in packs {
            let empty = Frames::new();
            let alive = frames.get(&pack).unwrap_or(&empty);
            let live = live_bytes(alive);
            if is_sparse(size, live, share, least) && alive.len() <= MAX_MOVED_FRAMES {
                sparse.push((pack, size, live, alive.len()));
            } else {
                self.sparse.dense.insert(pack, mark);
            }
        }
        sparse.sort_by_key(|(_, size, live, _)| std::cmp::Reverse(size - live));
        let (mut bytes, mut moved) = (0, 0);
        sparse.truncate(most);
        sparse.retain(|(_, _, live, frames)| {
            let fits = bytes + live <= self.settings.copy_bytes && moved + frames <= MAX_MOVED_FRAMES;
            if fits {
                (bytes, moved) = (bytes + live, moved + frames);
            }
            fits
        });
        Ok(sparse.into_iter().map(|(pack, _, live, _)| (pack, live)).collect())
    }

    /// Learns how many plain bytes packs have.
    async fn read_footers(&mut self, packs: &[(PackId, u64)]) -> Result<(), Error> {
        let unknown: Vec<(PackId, u64)> =
            packs.iter().filter(|(pack, _)| !self.sparse.plain.contains_key(pack)).cloned().collect();
        let reader = &self.reader;
        let mut reads = futures::stream::iter(unknown)
            .map(|(pack, size)| async move {
                match plain_bytes(reader, &pack, size).await {
                    Ok(plain) => Ok((pack, Some(plain))),
                    // A pack without a good footer is the scrub's to tell; here it is left as it is.
                    Err(error) if error.is_damage() => Ok((pack, None)),
                    Err(TreeError::Object(error)) => Err(Error::from(error)),
                    Err(error) => Err(error.into()),
                }
            })
            .buffer_unordered(READ_AHEAD);
        while let Some((pack, plain)) = reads.try_next().await? {
            self.sparse.plain.insert(pack, plain);
        }
        Ok(())
    }

    /// The most that one version uses of each pack, wherever its frames are now, and what stands for those versions.
    fn used(&self) -> (HashMap<PackId, u64>, HashMap<PackId, u64>) {
        let mut named: HashMap<PackId, (u64, u64)> = HashMap::new();
        for (_, root) in self.roots.versions() {
            let mut hasher = DefaultHasher::new();
            root.tree.manifest.hash(&mut hasher);
            let mark = hasher.finish();
            for (pack, used) in self.roots.needs(root) {
                let slot = named.entry(PackId::clone(pack)).or_default();
                *slot = (slot.0.max(used.bytes), slot.1 ^ mark);
            }
        }
        let (mut used, mut marks) = (HashMap::new(), HashMap::new());
        for (pack, (bytes, mark)) in named {
            // Frames of one old pack may have gone to several, so this may be too much, and then a pack stays.
            let mut todo = vec![pack];
            let mut seen = BTreeSet::new();
            while let Some(pack) = todo.pop() {
                if !seen.insert(pack.clone()) {
                    continue;
                }
                match self.roots.moved.get(&pack) {
                    Some(moved) => todo.extend(moved.to.keys().cloned()),
                    None => {
                        *used.entry(pack.clone()).or_insert(0) += bytes;
                        *marks.entry(pack).or_insert(0) ^= mark;
                    }
                }
            }
        }
        (used, marks)
    }
}
