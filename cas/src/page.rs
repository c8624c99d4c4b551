//! Pages of older entries: immutable objects `page/<volume>/<hash>` that a record points to, so that it stays small.
//!
//! - A page is written, and acknowledged, before the record that names it, under an operation whose pin holds it (rule R).
//! - It carries a nonce, so its name is never used twice: what no record names, and what no operation in flight wrote,
//!   nobody will ever name.
//! - An entry leaves a page by being marked as gone in the record's [`OlderPage`]; then it holds no bytes any more.
//! - Heads, branch tips, pinned and manual entries are never in a page: the record holds them whole.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use types::{Hash, Nonce, Timestamp, VolumeId};

use crate::codec;
use crate::entry::Entry;
use crate::error::Error;
use crate::keys;
use crate::objects::list_all;
use crate::store::Store;

/// The most entries of a page. With the longest labels it stays below the limit of small objects.
pub const MAX_PAGE_ENTRIES: usize = 1024;

/// How many bytes of pages a process remembers.
const CACHE_BYTES: usize = 8 << 20;

/// An immutable page of older entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    format: u32,
    volume: VolumeId,
    nonce: Nonce,
    /// Oldest first.
    pub entries: Vec<Entry>,
}

/// What a record says of one of its pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OlderPage {
    /// The hash of the page's bytes, and its name.
    pub page: Hash,
    /// How many entries it holds, those that are gone among them.
    pub entries: u32,
    /// The entries that are not on the timeline any more, or that the record itself holds again.
    #[serde(default, skip_serializing_if = "Gone::is_empty")]
    pub gone: Gone,
    /// The time of its oldest entry.
    pub oldest: Timestamp,
    /// The time of its newest entry.
    pub newest: Timestamp,
    /// How many steps in it are not gone.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub steps: u32,
    /// The time of its first sync entry when the page was last looked at: tells older pages what followed theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_sync: Option<Timestamp>,
    /// The next entries to be thinned, by number, and the time after which each goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub due: Vec<(u16, Timestamp)>,
    /// Its first steps, by number: the next to go when there are too many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first_steps: Vec<u16>,
    /// From when on `due` may miss something, and the page is to be looked at again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub review: Option<Timestamp>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl OlderPage {
    /// Returns how many of its entries are on the timeline.
    pub fn left(&self) -> usize {
        (self.entries as usize).saturating_sub(self.gone.len())
    }

    /// Checks what must hold in every record.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.entries == 0 || self.entries as usize > MAX_PAGE_ENTRIES {
            return Err("a page has 1 to 1,024 entries");
        }
        if self.gone.len() >= self.entries as usize || self.gone.end() > self.entries as usize {
            return Err("a page of which nothing is left is not named");
        }
        let numbers = self.due.iter().map(|(number, _)| number).chain(&self.first_steps);
        if self.steps > self.entries || numbers.into_iter().any(|n| u32::from(*n) >= self.entries) {
            return Err("a page's summary names an entry that it does not hold");
        }
        Ok(())
    }
}

/// Numbers of entries that are gone from a page, as bits; in JSON as hex digits.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Gone(Vec<u8>);

impl Gone {
    /// Tells if none is gone.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns how many are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|byte| byte.count_ones() as usize).sum()
    }

    /// Tells if this one is.
    pub fn contains(&self, number: usize) -> bool {
        self.0.get(number / 8).is_some_and(|byte| byte >> (number % 8) & 1 == 1)
    }

    /// Marks this one as gone.
    pub(crate) fn insert(&mut self, number: usize) {
        if self.0.len() <= number / 8 {
            self.0.resize(number / 8 + 1, 0);
        }
        self.0[number / 8] |= 1 << (number % 8);
    }

    /// One more than the greatest number.
    fn end(&self) -> usize {
        self.0
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at * 8 + (8 - self.0[at].leading_zeros() as usize))
    }
}

impl fmt::Debug for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gone({})", self.len())
    }
}

impl Serialize for Gone {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Gone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = hex::decode(&text).map_err(serde::de::Error::custom)?;
        if bytes.len() > MAX_PAGE_ENTRIES / 8 || bytes.last() == Some(&0) {
            return Err(serde::de::Error::custom("more bits than a page has entries, or zeros at the end"));
        }
        Ok(Self(bytes))
    }
}

impl Page {
    /// Makes a page that nobody else makes.
    pub(crate) fn new(volume: &VolumeId, entries: Vec<Entry>) -> Self {
        Self { format: codec::FORMAT, volume: volume.clone(), nonce: Nonce::random(), entries }
    }

    /// Returns its bytes and their hash, which is its name.
    pub(crate) fn encode(&self) -> Result<(Hash, Bytes), Error> {
        let bytes = codec::encode(&keys::pages_of(&self.volume), self)?;
        Ok((Hash(*blake3::hash(&bytes).as_bytes()), bytes))
    }
}

/// Reads a page that a record names. Its bytes are proved by its name; what was read is remembered.
///
/// One that is not there is [`Error::NoPage`]: the record that named it was replaced since, or the store lost it.
pub async fn read(store: &Store, volume: &VolumeId, summary: &OlderPage) -> Result<Arc<Page>, Error> {
    if let Some(page) = store.pages().get(&summary.page) {
        return Ok(page);
    }
    let key = keys::page(volume, &summary.page);
    let object = match store.objects().get(&key).await {
        Ok(object) => object,
        Err(error) if error.is_not_found() => return Err(Error::NoPage { key }),
        Err(error) => return Err(error.into()),
    };
    if *blake3::hash(&object.bytes).as_bytes() != *summary.page.as_bytes() {
        return Err(Error::corrupt(&key, "its bytes are not those that its name promises"));
    }
    let page: Page = codec::decode(&object)?;
    let whole = page.volume == *volume
        && page.entries.len() == summary.entries as usize
        && page.entries.iter().all(|entry| !entry.heads.is_empty() && entry.is_itself(volume));
    if !whole {
        return Err(Error::corrupt(&key, "it is not the page that the record describes"));
    }
    let page = Arc::new(page);
    store.pages().keep(summary.page, &page, object.bytes.len());
    Ok(page)
}

/// A page as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Whose it is.
    pub volume: VolumeId,
    /// Its name.
    pub page: Hash,
    /// The object.
    pub meta: crate::objects::Meta,
}

/// Lists all pages of the store, named by a record or not: complete, or an error.
pub async fn list(store: &Store) -> Result<Vec<Listed>, Error> {
    let listed = list_all(&**store.objects(), keys::PAGES).await?;
    let parse = |meta: crate::objects::Meta| {
        let text = meta.key.as_str().strip_prefix(keys::PAGES).and_then(|text| text.split_once('/'));
        let parsed = text.and_then(|(volume, page)| Some((volume.parse().ok()?, page.parse().ok()?)));
        let (volume, page) = parsed.ok_or_else(|| Error::corrupt(&meta.key, "it is no page's name"))?;
        Ok(Listed { volume, page, meta })
    };
    listed.into_iter().map(parse).collect()
}

/// What this process has read or written of pages lately. They are immutable, so what is here is right for ever.
#[derive(Default)]
pub(crate) struct PageCache(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    pages: HashMap<Hash, (Arc<Page>, usize)>,
    /// Oldest first: the first that came is the first that goes.
    order: VecDeque<Hash>,
    bytes: usize,
}

impl PageCache {
    fn get(&self, page: &Hash) -> Option<Arc<Page>> {
        self.kept().pages.get(page).map(|(page, _)| Arc::clone(page))
    }

    pub(crate) fn keep(&self, name: Hash, page: &Arc<Page>, bytes: usize) {
        let mut kept = self.kept();
        if kept.pages.insert(name, (Arc::clone(page), bytes)).is_some() {
            return;
        }
        kept.order.push_back(name);
        kept.bytes += bytes;
        while kept.bytes > CACHE_BYTES && kept.order.len() > 1 {
            let Some(gone) = kept.order.pop_front() else { return };
            if let Some((_, bytes)) = kept.pages.remove(&gone) {
                kept.bytes -= bytes;
            }
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]
mod tests {
    use types::{Epoch, ManualClock, PackId, PoolId, VersionId};

    use super::*;
    use crate::VersionRef;
    use crate::entry::{Role, data_head};
    use crate::objects::{Condition, MemoryStore};

    #[test]
    fn what_is_gone_is_told_from_what_is_left() {
        let mut gone = Gone::default();
        for number in [0, 7, 8, 1023] {
            gone.insert(number);
            gone.insert(number);
        }
        let text = serde_json::to_string(&gone).unwrap();
        let again: Gone = serde_json::from_str(&text).unwrap();
        assert_eq!((again.len(), again.end()), (4, 1024));
        assert!(again.contains(8) && !again.contains(9) && !again.contains(5000));
        for bad in ["\"0\"", "\"zz\"", "\"0100\"", &format!("\"{}\"", "ff".repeat(129))] {
            assert!(serde_json::from_str::<Gone>(bad).is_err(), "{bad}");
        }
    }

    fn entries(volume: &VolumeId, count: u8) -> Vec<Entry> {
        let pack: PackId = format!("default/{}.1.1", PoolId::random()).parse().unwrap();
        let head = |n: u8| VersionRef {
            version: VersionId([n; 32]),
            manifest: format!("{pack}:{n}+16/16").parse().unwrap(),
        };
        let entry = |n: u8| {
            let time = Timestamp(i64::from(n));
            Entry::new(volume, data_head(head(n)), None, time, Role::Event, "", Epoch(1)).unwrap()
        };
        (0..count).map(entry).collect()
    }

    /// Another program's pages, damage, and pages of others are errors, and nothing of them is believed.
    #[tokio::test]
    async fn a_page_is_what_its_name_and_its_record_promise() {
        let objects = MemoryStore::new();
        let clock = Arc::new(ManualClock::new(Timestamp(0)));
        let store = Store::create_or_open(Arc::new(objects.clone()), clock).await.unwrap().into_inner();
        let volume: VolumeId = "v".parse().unwrap();
        let other: VolumeId = "w".parse().unwrap();
        let summary = |page: Hash, entries: u32| OlderPage {
            page,
            entries,
            gone: Gone::default(),
            oldest: Timestamp(0),
            newest: Timestamp(9),
            steps: 0,
            first_sync: None,
            due: Vec::new(),
            first_steps: Vec::new(),
            review: None,
        };
        let put = async |volume: &VolumeId, name: Hash, bytes: Bytes| {
            objects.put(&keys::page(volume, &name), bytes, &Condition::IfAbsent).await.unwrap();
        };
        use crate::objects::Objects as _;

        let (name, bytes) = Page::new(&volume, entries(&volume, 3)).encode().unwrap();
        put(&volume, name, bytes.clone()).await;
        assert!(matches!(read(&store, &volume, &summary(name, 2)).await, Err(Error::Corrupt { .. })));
        assert_eq!(read(&store, &volume, &summary(name, 3)).await.unwrap().entries.len(), 3);
        let twin = Page::new(&volume, entries(&volume, 3)).encode().unwrap().0;
        assert_ne!(twin, name, "a name is never used twice");
        assert!(matches!(read(&store, &volume, &summary(twin, 3)).await, Err(Error::NoPage { .. })));

        let flipped = Hash([7; 32]);
        put(&volume, flipped, bytes).await;
        assert!(matches!(read(&store, &volume, &summary(flipped, 3)).await, Err(Error::Corrupt { .. })));
        let (foreign, bytes) = Page::new(&other, entries(&other, 3)).encode().unwrap();
        put(&volume, foreign, bytes).await;
        assert!(matches!(read(&store, &volume, &summary(foreign, 3)).await, Err(Error::Corrupt { .. })));
        let mut forged = entries(&volume, 3);
        forged[1].label = "forged".to_owned();
        let (name, bytes) = Page::new(&volume, forged).encode().unwrap();
        put(&volume, name, bytes).await;
        assert!(matches!(read(&store, &volume, &summary(name, 3)).await, Err(Error::Corrupt { .. })));
        let listed = list(&store).await.unwrap();
        assert_eq!((listed.len(), &listed[0].volume), (4, &volume));
    }

    /// The longest id and label, and a label of characters that JSON writes with six.
    #[test]
    fn a_full_page_of_the_longest_entries_fits_into_a_small_object() {
        let volume: VolumeId = "v".repeat(63).parse().unwrap();
        let label = "\u{1}".repeat(256);
        let first = entries(&volume, 1).remove(0);
        let long = Entry::new(
            &volume,
            first.heads.clone(),
            Some(first.id),
            Timestamp(i64::MAX),
            Role::Event,
            &label,
            Epoch(u64::MAX),
        );
        let (long, plain) = (long.unwrap(), serde_json::to_vec(&first).unwrap().len());
        let bytes = serde_json::to_vec(&long).unwrap().len();
        println!("an entry has {plain} bytes without a label, at most about {bytes} with one");
        assert!(plain * MAX_PAGE_ENTRIES < codec::MAX_SMALL_OBJECT_BYTES);
    }
}
