//! What this process knows to be stored: contents, cells and directories of every dedup domain, by their hash.
//!
//! Bounded: when the younger half is full the older half is forgotten, and what is found there becomes young again.
//! Entries are made when an upload was acknowledged or a stored node was read, never before.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use types::{Domain, PackId, VersionId};

use crate::gc::Pin;
use crate::tree::location::{Extent, Location};

/// About what one entry takes: key and place, and the room that a hash table leaves free.
const ENTRY_BYTES: usize = 96;

/// A content, or a cell of a large file by its chaining value. BLAKE3 keeps the two apart.
pub(in crate::tree) type Known = ([u8; 32], Location, u32);

/// A directory: its id, a hash of the flags below it that are not in its id, and where its node lies.
pub(in crate::tree) type KnownDir = (VersionId, u64, Extent);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Bytes(u32, [u8; 32]),
    Directory(u32, VersionId, u64),
}

/// A place in few bytes. `len` is a directory's; the length of bytes is known by whoever asks.
#[derive(Debug, Clone, Copy)]
struct Spot {
    pack: u32,
    frame: u32,
    stored_len: u32,
    raw_len: u32,
    offset: u32,
    len: u32,
}

#[derive(Debug, Default)]
struct Inner {
    domains: HashMap<Domain, u32>,
    packs: Vec<Arc<PackId>>,
    numbers: HashMap<Arc<PackId>, u32>,
    /// Packs that the pin condemned: what lies in them is not known any more.
    dropped: HashSet<u32>,
    young: HashMap<Key, Spot>,
    old: HashMap<Key, Spot>,
}

/// Contents that are known to be stored. Shared by everything that this process reads and writes.
pub struct DedupIndex {
    inner: Mutex<Inner>,
    half: usize,
}

impl fmt::Debug for DedupIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DedupIndex({} of {} entries)", self.len(), 2 * self.half)
    }
}

impl DedupIndex {
    /// Makes an index that takes at most about `max_bytes`.
    pub fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), half: (max_bytes / ENTRY_BYTES / 2).max(1) })
    }

    /// Returns how many entries it has.
    pub fn len(&self) -> usize {
        let inner = self.lock();
        inner.young.len() + inner.old.len()
    }

    /// Tells if nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells if anything of this domain was ever learned.
    pub fn knows(&self, domain: &Domain) -> bool {
        self.lock().domains.contains_key(domain)
    }

    /// Forgets what lies in packs that the pin condemns. Call it with every pin that is raised.
    pub fn follow(&self, pin: &Pin) {
        let mut inner = self.lock();
        let dropped: HashSet<u32> =
            pin.avoided.iter().filter_map(|pack| inner.numbers.get(pack).copied()).collect();
        if dropped.is_subset(&inner.dropped) {
            return;
        }
        inner.young.retain(|_, spot| !dropped.contains(&spot.pack));
        inner.old.retain(|_, spot| !dropped.contains(&spot.pack));
        inner.dropped.extend(dropped);
    }

    /// Forgets what lies in one pack, which turned out not to be there.
    pub(in crate::tree) fn forget(&self, pack: &PackId) {
        let mut inner = self.lock();
        let Some(number) = inner.numbers.get(pack).copied() else { return };
        inner.young.retain(|_, spot| spot.pack != number);
        inner.old.retain(|_, spot| spot.pack != number);
    }

    pub(in crate::tree) fn find(&self, domain: &Domain, hash: &[u8; 32]) -> Option<(Location, u32)> {
        let mut inner = self.lock();
        let spot = inner.touch(domain, self.half, |number| Key::Bytes(number, *hash))?;
        Some((inner.location(spot), spot.offset))
    }

    pub(in crate::tree) fn find_dir(&self, domain: &Domain, id: VersionId, flags: u64) -> Option<Extent> {
        let mut inner = self.lock();
        let spot = inner.touch(domain, self.half, |number| Key::Directory(number, id, flags))?;
        Some(Extent { frames: vec![inner.location(spot)], offset: spot.offset, len: u64::from(spot.len) })
    }

    /// Takes what is stored, as a version of `domain` names it. Only what lies in packs of that domain and of the public
    /// one counts: the version may have come from yet another.
    pub(in crate::tree) fn learn(&self, domain: &Domain, known: Vec<Known>, dirs: Vec<KnownDir>) {
        let mut inner = self.lock();
        inner.domain(domain);
        for (hash, frame, offset) in known {
            if domain.may_name(&frame.pack.domain)
                && let Some(spot) = inner.spot(&frame, offset, 0)
            {
                let number = inner.domain(&frame.pack.domain);
                inner.keep(Key::Bytes(number, hash), spot, self.half);
            }
        }
        for (id, flags, extent) in dirs {
            if let [frame] = extent.frames.as_slice()
                && domain.may_name(&frame.pack.domain)
                && let Ok(len) = u32::try_from(extent.len)
                && let Some(spot) = inner.spot(frame, extent.offset, len)
            {
                let number = inner.domain(&frame.pack.domain);
                inner.keep(Key::Directory(number, id, flags), spot, self.half);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of this lock panics")
    }
}

impl Inner {
    fn domain(&mut self, domain: &Domain) -> u32 {
        if let Some(number) = self.domains.get(domain) {
            return *number;
        }
        let next = u32::try_from(self.domains.len()).expect("fewer domains than fit into memory");
        self.domains.insert(domain.clone(), next);
        next
    }

    /// A frame's place in few bytes; nothing where its pack is condemned.
    fn spot(&mut self, frame: &Location, offset: u32, len: u32) -> Option<Spot> {
        let pack = match self.numbers.get(&frame.pack) {
            Some(number) => *number,
            None => {
                let number = u32::try_from(self.packs.len()).ok()?;
                self.packs.push(Arc::clone(&frame.pack));
                self.numbers.insert(Arc::clone(&frame.pack), number);
                number
            }
        };
        if self.dropped.contains(&pack) {
            return None;
        }
        let Location { offset: at, stored_len, raw_len, .. } = *frame;
        Some(Spot { pack, frame: at, stored_len, raw_len, offset, len })
    }

    fn location(&self, spot: Spot) -> Location {
        let Spot { pack, frame, stored_len, raw_len, .. } = spot;
        Location { pack: Arc::clone(&self.packs[pack as usize]), offset: frame, stored_len, raw_len }
    }

    fn keep(&mut self, key: Key, spot: Spot, half: usize) {
        if self.young.len() >= half {
            self.old = std::mem::take(&mut self.young);
            self.tidy();
        }
        self.young.insert(key, spot);
    }

    /// Finds a key in a domain, or in the public one.
    fn touch(&mut self, domain: &Domain, half: usize, key: impl Fn(u32) -> Key) -> Option<Spot> {
        [Some(domain), Some(&Domain::public()).filter(|public| *public != domain)]
            .into_iter()
            .flatten()
            .find_map(|domain| {
                let key = key(*self.domains.get(domain)?);
                if let Some(spot) = self.young.get(&key) {
                    return Some(*spot);
                }
                let spot = self.old.remove(&key)?;
                self.keep(key, spot, half);
                Some(spot)
            })
    }

    /// Numbers the packs anew that something still lies in: names are forgotten with the last entry.
    fn tidy(&mut self) {
        let used: HashSet<u32> = self.old.values().map(|spot| spot.pack).collect();
        if used.len() * 2 > self.packs.len() {
            return;
        }
        let packs = std::mem::take(&mut self.packs);
        self.numbers.clear();
        self.dropped.clear();
        let mut moved = HashMap::new();
        for number in used {
            let pack = Arc::clone(&packs[number as usize]);
            let next = u32::try_from(self.packs.len()).expect("fewer than before");
            self.numbers.insert(Arc::clone(&pack), next);
            self.packs.push(pack);
            moved.insert(number, next);
        }
        for spot in self.old.values_mut() {
            spot.pack = moved[&spot.pack];
        }
    }
}

#[cfg(test)]
mod tests {
    use types::{PoolId, SessionId};

    use super::*;

    fn domain(text: &str) -> Domain {
        text.parse().unwrap()
    }

    fn frame(name: &str, seq: u64) -> Location {
        let session = SessionId { pool: PoolId(ulid::Ulid::from_bytes([1; 16])), number: 1 };
        let pack = Arc::new(PackId { domain: domain(name), session, seq });
        Location { pack, offset: 8, stored_len: 100, raw_len: 200 }
    }

    fn known(number: u32, frame: &Location) -> Known {
        (*blake3::hash(&number.to_le_bytes()).as_bytes(), frame.clone(), number)
    }

    #[test]
    fn what_was_learned_is_found_in_its_own_domain_alone() {
        let index = DedupIndex::new(1 << 20);
        let (ours, theirs) = (frame("a", 1), frame("b", 1));
        index.learn(&domain("a"), vec![known(1, &ours), known(2, &theirs)], Vec::new());
        let hash = |number| known(number, &ours).0;
        assert_eq!(index.find(&domain("a"), &hash(1)), Some((ours.clone(), 1)));
        assert_eq!(index.find(&domain("b"), &hash(1)), None, "another domain's bytes are not ours to name");
        assert_eq!(index.find(&domain("a"), &hash(2)), None, "a pack of another domain was taken in");
    }

    #[test]
    fn a_condemned_pack_is_forgotten_and_stays_so() {
        let index = DedupIndex::new(1 << 20);
        let (one, two) = (frame("a", 1), frame("a", 2));
        index.learn(&domain("a"), vec![known(1, &one), known(2, &two)], Vec::new());
        index.follow(&Pin { epoch: 2, avoided: [PackId::clone(&one.pack)].into(), ..Pin::default() });
        let find = |number| index.find(&domain("a"), &known(number, &one).0);
        assert_eq!((find(1).is_some(), find(2).is_some()), (false, true));
        // An upload that was acknowledged before, and is told late.
        index.learn(&domain("a"), vec![known(3, &one)], Vec::new());
        assert_eq!(find(3), None);
    }

    #[test]
    fn it_keeps_its_bound_and_what_is_asked_for() {
        let index = DedupIndex::new(1_000 * ENTRY_BYTES);
        let wanted = known(0, &frame("a", 0));
        index.learn(&domain("a"), vec![wanted.clone()], Vec::new());
        for number in 1..10_000 {
            index.learn(&domain("a"), vec![known(number, &frame("a", u64::from(number)))], Vec::new());
            assert!(index.len() <= 1_000, "{} entries", index.len());
            assert_eq!(index.find(&domain("a"), &wanted.0), Some((wanted.1.clone(), 0)), "{number}");
        }
        assert!(index.lock().packs.len() < 3_000, "names of packs are kept that nothing lies in");
    }
}
