//! The timeline of a volume, whole: the entries in its record and those in the pages that the record points to.
//!
//! What is written by nobody else while it is read is read as it was: a page goes away only after the record that named
//! it was replaced. Then [`Error::NoPage`] says so, and the caller reads the record again.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use types::{EntryId, Hash, Timestamp, VersionId};

use crate::VersionRef;
use crate::entry::Entry;
use crate::error::Error;
use crate::page::{self, OlderPage, Page};
use crate::record::Record;
use crate::store::Store;

/// How many pages are read at once.
const READ_AHEAD: usize = 8;

/// How often a record may be replaced while its pages are read.
const MAX_ROUNDS: u32 = 4;

/// Where in a record's pages an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The page.
    pub page: Hash,
    /// Its number there.
    pub number: usize,
}

/// An entry and where it is; `None` is the record itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The entry.
    pub entry: Entry,
    /// Its place.
    pub place: Option<Place>,
}

/// What names an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Its id.
    Entry(EntryId),
    /// A version of one of its members; of several entries the newest.
    Version(VersionId),
}

impl Point {
    fn is(&self, entry: &Entry) -> bool {
        match self {
            Self::Entry(id) => entry.id == *id,
            Self::Version(version) => entry.heads.values().any(|head| head.version == *version),
        }
    }
}

/// Returns every entry of a record, oldest first: those in its pages too.
pub async fn entries(store: &Store, record: &Record) -> Result<Vec<Entry>, Error> {
    let pages: Vec<Arc<Page>> = futures::stream::iter(record.older.clone().into_iter().map(|summary| {
        let (store, id) = (store.clone(), record.id.clone());
        async move { page::read(&store, &id, &summary).await }
    }))
    .buffered(READ_AHEAD)
    .try_collect()
    .await?;
    let mut entries: Vec<Entry> =
        record.older.iter().zip(&pages).flat_map(|(summary, page)| left(summary, page)).cloned().collect();
    entries.extend(record.entries.iter().cloned());
    // Stable, so that entries of one time stay as they were written.
    entries.sort_by_key(|entry| entry.time);
    Ok(entries)
}

/// Returns every reference that a record holds, those in its pages too: what keeps packs alive. Complete, or an error.
///
/// The pages themselves ([`Record::page_keys`]) are kept alive by the record as well.
pub async fn references(store: &Store, record: &Record) -> Result<Vec<VersionRef>, Error> {
    let entries = entries(store, record).await?;
    Ok(entries.into_iter().flat_map(|entry| entry.heads.into_values()).collect())
}

/// Finds an entry. Pages are read newest first, and only if the record does not hold it.
pub async fn find(store: &Store, record: &Record, point: &Point) -> Result<Option<Located>, Error> {
    if let Some(entry) = record.entries.iter().rev().find(|entry| point.is(entry)) {
        return Ok(Some(Located { entry: entry.clone(), place: None }));
    }
    for summary in record.older.iter().rev() {
        let page = page::read(store, &record.id, summary).await?;
        let found = page
            .entries
            .iter()
            .enumerate()
            .rev()
            .find(|(number, entry)| !summary.gone.contains(*number) && point.is(entry));
        if let Some((number, entry)) = found {
            let place = Place { page: summary.page, number };
            return Ok(Some(Located { entry: entry.clone(), place: Some(place) }));
        }
    }
    Ok(None)
}

/// Finds the newest entry at a version.
pub async fn find_version(
    store: &Store,
    record: &Record,
    version: &VersionId,
) -> Result<Option<Entry>, Error> {
    Ok(find(store, record, &Point::Version(*version)).await?.map(|located| located.entry))
}

/// Finds an entry by its id.
pub async fn find_entry(store: &Store, record: &Record, id: &EntryId) -> Result<Option<Entry>, Error> {
    Ok(find(store, record, &Point::Entry(*id)).await?.map(|located| located.entry))
}

/// Reads a record and finds an entry on it, from where it is now.
pub async fn locate(store: &Store, id: &types::VolumeId, point: &Point) -> Result<Option<Located>, Error> {
    let mut rounds = 0;
    loop {
        let record = crate::record::get(store, id).await?.value;
        match find(store, &record, point).await {
            Err(Error::NoPage { .. }) if rounds < MAX_ROUNDS => rounds += 1,
            found => return found,
        }
    }
}

/// Lists up to `limit` entries, newest first: those before `before`, an entry that an earlier list ended with, which may
/// have been thinned since. Tells also if there are more.
pub async fn list(
    store: &Store,
    record: &Record,
    before: Option<(Timestamp, EntryId)>,
    limit: usize,
) -> Result<(Vec<Entry>, bool), Error> {
    let order = |entry: &Entry| (entry.time, entry.id);
    let wanted = |entry: &&Entry| before.is_none_or(|before| order(entry) < before);
    let mut found: Vec<Entry> = record.entries.iter().filter(wanted).cloned().collect();
    let mut pages: Vec<&OlderPage> =
        record.older.iter().filter(|page| before.is_none_or(|before| page.oldest <= before.0)).collect();
    // The page with the newest entry last.
    pages.sort_by_key(|page| page.newest);
    loop {
        found.sort_by_key(|entry| std::cmp::Reverse(order(entry)));
        // What is newer than everything unread is in its place.
        let unread = pages.last().map(|page| page.newest);
        let placed = found.iter().take_while(|entry| unread.is_none_or(|unread| entry.time > unread)).count();
        if placed > limit || pages.is_empty() {
            let more = found.len() > limit;
            found.truncate(limit);
            return Ok((found, more));
        }
        if let Some(summary) = pages.pop() {
            let page = page::read(store, &record.id, summary).await?;
            found.extend(left(summary, &page).filter(wanted).cloned());
        }
    }
}

/// The entries of a page that are on the timeline.
fn left<'a>(summary: &'a OlderPage, page: &'a Page) -> impl Iterator<Item = &'a Entry> {
    let entries = page.entries.iter().enumerate();
    entries.filter(|(number, _)| !summary.gone.contains(*number)).map(|(_, entry)| entry)
}
