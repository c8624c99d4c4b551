//! Keeps records small: moves older entries into pages, merges pages, and looks again at pages from which things go.
//!
//! It runs behind a publish, as a write of its own, and about once in thirty of them: what it fails to do is done after the
//! next one, and nothing depends on it. The page first, then the record that names it in place of the entries.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use types::{EntryId, Timestamp};

use crate::entry::{Entry, Role};
use crate::error::Error;
use crate::guard::{Claim, check_owner};
use crate::keys;
use crate::objects::Condition;
use crate::page::{self, Gone, MAX_PAGE_ENTRIES, OlderPage, Page};
use crate::record::Record;
use crate::session::Operation;
use crate::settle::{self, Settled};
use crate::store::{Store, Stored};
use crate::thin;
use crate::update::{Next, update};

/// How many of the newest entries a record holds itself. What people and syncs look at is nearly always among them.
pub const INLINE: usize = 32;

/// How many entries move into a page at once, at least: the upkeep is paid by as many publishes.
const SPILL: usize = 32;

/// From this number on, the two neighbours that have least are made one.
const MAX_PAGES: usize = 24;

/// What is to be done to a record.
#[derive(Debug, PartialEq, Eq)]
enum Work {
    /// These entries go into a page, with all that is left in as many of the newest pages.
    Spill { moved: BTreeSet<EntryId>, absorbed: usize },
    /// This page and the next become one.
    Merge(usize),
    /// It is to be seen what goes next from this page.
    Look(usize),
}

/// Decides. Pure.
fn decide(record: &Record, now: Timestamp) -> Option<Work> {
    let kept = record.kept_entries();
    let old = &record.entries[..record.entries.len().saturating_sub(INLINE)];
    let moved: BTreeSet<EntryId> = old
        .iter()
        .filter(|entry| entry.role != Role::Manual && !kept.contains(&entry.id))
        .map(|entry| entry.id)
        .collect();
    if moved.len() >= SPILL {
        // Like a binary counter: each entry is written again once for each doubling of its page.
        let (mut count, mut absorbed) = (moved.len(), 0);
        for page in record.older.iter().rev() {
            if page.left() > count || page.left() + count > MAX_PAGE_ENTRIES {
                break;
            }
            count += page.left();
            absorbed += 1;
        }
        return Some(Work::Spill { moved, absorbed });
    }
    if record.older.len() > MAX_PAGES {
        let sums = record.older.windows(2).map(|two| two[0].left() + two[1].left()).enumerate();
        let least = sums.filter(|(_, sum)| *sum <= MAX_PAGE_ENTRIES).min_by_key(|(_, sum)| *sum);
        if let Some((at, _)) = least {
            return Some(Work::Merge(at));
        }
    }
    let review = thin::plan(record, now).review?;
    record.older.iter().position(|page| page.page == review).map(Work::Look)
}

/// Does what is to be done to a record that was just written, if anything is. An owner passes its operation and claim.
pub(crate) async fn upkeep(
    operation: &Operation,
    claim: &Claim,
    current: Stored<Record>,
) -> Result<Stored<Record>, Error> {
    let session = operation.session();
    let (store, now) = (session.store(), session.store_time());
    let record = &current.value;
    let Some(work) = decide(record, now) else { return Ok(current) };
    let (mut replaced, moved) = match work {
        Work::Look(at) => {
            look_again(store, Some((operation, claim)), record, at, now).await?;
            return Ok(current);
        }
        Work::Merge(at) => (at..at + 2, BTreeSet::new()),
        Work::Spill { moved, absorbed } => (record.older.len() - absorbed..record.older.len(), moved),
    };
    let mut entries = match left_in(store, record, replaced.clone()).await {
        // A damaged page stays as it is, for a person to see; the record has to become small all the same.
        Err(Error::NoPage { .. } | Error::Corrupt { .. }) if !moved.is_empty() => {
            replaced = record.older.len()..record.older.len();
            Vec::new()
        }
        left => left?,
    };
    entries.extend(record.entries.iter().filter(|entry| moved.contains(&entry.id)).cloned());
    entries.sort_by_key(|entry| entry.time);
    let page = Arc::new(Page::new(&record.id, entries));
    let (name, bytes) = page.encode()?;
    let length = bytes.len();
    match settle::put(store, &keys::page(&record.id, &name), &bytes, &Condition::IfAbsent).await? {
        // Refused: an earlier request of this very write happened, because nobody else makes this name.
        Settled::Written(_) | Settled::Refused => {}
        Settled::Absent => return Err(Error::Gone { key: keys::page(&record.id, &name) }),
    }
    store.pages().keep(name, &page, length);

    let gone: Vec<OlderPage> = record.older[replaced.clone()].to_vec();
    let changed = update(store, Some(operation), &record.id, |current| {
        let record = &current.value;
        if record.older.iter().any(|older| older.page == name) {
            return Ok(Next::Already);
        }
        check_owner(record, &session.id(), claim)
            .map_err(|reason| Error::Lost { id: claim.id.clone(), reason })?;
        let at = record.older.windows(gone.len().max(1)).position(|pages| *pages == gone[..]);
        let at = if gone.is_empty() { Some(record.older.len()) } else { at };
        let kept = record.kept_entries();
        let still = moved.iter().all(|id| record.entry(id).is_some() && !kept.contains(id));
        // Somebody named one of them, or one of them went: it is done after the next publish.
        let (Some(at), true) = (at, still) else { return Ok(Next::Already) };
        let mut next = record.clone();
        next.entries.retain(|entry| !moved.contains(&entry.id));
        next.older.drain(at..at + gone.len());
        let bare = OlderPage {
            page: name,
            entries: u32::try_from(page.entries.len()).expect("a page has at most 1,024 entries"),
            gone: Gone::default(),
            oldest: page.entries.first().map_or(now, |entry| entry.time),
            newest: page.entries.last().map_or(now, |entry| entry.time),
            steps: 0,
            first_sync: None,
            due: Vec::new(),
            first_steps: Vec::new(),
            review: None,
        };
        let described = thin::look(&bare, &page.entries, &next.entries, &next.older, now);
        next.older.insert(at, described);
        Ok(Next::Write(next))
    });
    Ok(changed.await?.into_inner())
}

/// Reads what is left in some of a record's pages.
async fn left_in(store: &Store, record: &Record, pages: Range<usize>) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    for summary in &record.older[pages] {
        let page = page::read(store, &record.id, summary).await?;
        let left = page.entries.iter().enumerate().filter(|(number, _)| !summary.gone.contains(*number));
        entries.extend(left.map(|(_, entry)| entry.clone()));
    }
    Ok(entries)
}

/// Looks again at what goes next from the page `at`. `owner` is nobody where the record has none.
async fn look_again(
    store: &Store,
    owner: Option<(&Operation, &Claim)>,
    record: &Record,
    at: usize,
    now: Timestamp,
) -> Result<(), Error> {
    let summary = &record.older[at];
    let page = page::read(store, &record.id, summary).await?;
    let operation = owner.map(|(operation, _)| operation);
    update(store, operation, &record.id, |current| {
        let record = &current.value;
        let fits = match owner {
            Some((operation, claim)) => check_owner(record, &operation.session().id(), claim).is_ok(),
            None => record.owner.is_none(),
        };
        let at = record.older.iter().position(|older| older == summary);
        let (Some(at), true) = (at, fits) else { return Ok(Next::Already) };
        let mut next = record.clone();
        let others: Vec<OlderPage> = next.older.iter().filter(|older| *older != summary).cloned().collect();
        next.older[at] = thin::look(summary, &page.entries, &next.entries, &others, now);
        Ok(if next == *record { Next::Already } else { Next::Write(next) })
    })
    .await?;
    Ok(())
}

/// Thins a record that nobody owns: at most two entries. `now` is the store's time. Called by the collection.
pub async fn thin_unowned(store: &Store, record: &Stored<Record>, now: Timestamp) -> Result<bool, Error> {
    let before = &record.value;
    if before.owner.is_some() || before.kind.is_sealed() {
        return Ok(false);
    }
    if let Some(review) = thin::plan(before, now).review
        && let Some(at) = before.older.iter().position(|page| page.page == review)
    {
        look_again(store, None, before, at, now).await?;
    }
    let changed = update(store, None, &before.id, |current| {
        let record = &current.value;
        let plan = thin::plan(record, now);
        if record.owner.is_some() || plan.entries.is_empty() && plan.paged.is_empty() {
            return Ok(Next::Already);
        }
        let mut next = record.clone();
        thin::apply(&mut next, &plan);
        Ok(Next::Write(next))
    });
    Ok(matches!(changed.await?, types::Change::Made(_)))
}
