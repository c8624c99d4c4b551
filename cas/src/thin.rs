//! Which entries of a timeline go, decided by age and role. Pure.
//!
//! Time is the store's. It may be too early (nothing is thinned that should be), never too late. At most two entries
//! go with one write, so a clock that jumps a year costs two entries at the most before somebody sees it.
//!
//! An entry's fate is known as soon as the sync entry that followed it is: it goes after an hour if that one is of the
//! same hour, after a day if it is of the same day, else after a week. So what goes next from a page of older entries can
//! be told when the page is written ([`look`]), and no sync has to read it.

use std::collections::BTreeSet;
use std::time::Duration;

use types::{EntryId, Hash, Timestamp};

use crate::entry::{Entry, Role};
use crate::page::OlderPage;
use crate::record::Record;

/// How many entries one write of a record may remove.
pub const MAX_REMOVED: usize = 2;

/// How many manual entries stay, where the record's [`MAX_SNAPSHOTS`] does not say otherwise.
pub const MAX_MANUAL: usize = 5;

/// The attribute of a record that says how many manual entries stay: 1 to [`MOST_MANUAL`].
pub const MAX_SNAPSHOTS: &str = "max-snapshots";

/// The most that [`MAX_SNAPSHOTS`] may say: a record holds its manual entries itself, and stays small.
pub const MOST_MANUAL: usize = 32;

/// How many steps stay, and for how long.
pub const MAX_STEPS: usize = 1000;
const STEP_AGE: Duration = SYNC_DAILY;

const HOUR_SECONDS: u64 = 3600;
const DAY_SECONDS: u64 = 24 * HOUR_SECONDS;
/// Younger than this, every sync stays.
const SYNC_ALL: Duration = Duration::from_secs(HOUR_SECONDS);
/// Younger than this, the newest sync of every hour.
const SYNC_HOURLY: Duration = Duration::from_secs(DAY_SECONDS);
/// Younger than this, the newest sync of every day; older, none.
const SYNC_DAILY: Duration = Duration::from_secs(7 * DAY_SECONDS);

/// How many entries of a page that go next are named in the record: a page is read once for as many of them.
const NEXT_OF_A_PAGE: usize = 32;

/// What goes with the next write of a record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// From pages: the page, and the number in it.
    pub paged: Vec<(Hash, usize)>,
    /// From the record itself.
    pub entries: Vec<EntryId>,
    /// The oldest page of which it is not known any more what goes next.
    pub review: Option<Hash>,
}

/// When an entry goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    After(Timestamp),
    /// Not before this; what follows it will tell.
    NotBefore(Timestamp),
}

/// The fate of an entry by its age. `next` is the time of the sync entry that followed it.
fn fate(entry: &Entry, next: Option<Timestamp>, now: Timestamp) -> Fate {
    match entry.role {
        Role::Event | Role::Manual => Fate::Stays,
        Role::Step => Fate::After(entry.time.plus(STEP_AGE)),
        Role::Sync => match next {
            Some(next) if bucket(next, HOUR_SECONDS) == bucket(entry.time, HOUR_SECONDS) => {
                Fate::After(entry.time.plus(SYNC_ALL))
            }
            Some(next) if bucket(next, DAY_SECONDS) == bucket(entry.time, DAY_SECONDS) => {
                Fate::After(entry.time.plus(SYNC_HOURLY))
            }
            Some(_) => Fate::After(entry.time.plus(SYNC_DAILY)),
            None => match [SYNC_ALL, SYNC_HOURLY].into_iter().find(|age| now <= entry.time.plus(*age)) {
                Some(age) => Fate::NotBefore(entry.time.plus(age)),
                None => Fate::After(entry.time.plus(SYNC_DAILY)),
            },
        },
    }
}

fn bucket(time: Timestamp, seconds: u64) -> i64 {
    time.seconds_and_nanos().0.div_euclid(i64::try_from(seconds).expect("a day fits i64"))
}

/// The times of known sync entries.
#[derive(Debug)]
struct Syncs(BTreeSet<Timestamp>);

impl Syncs {
    fn of<'a>(entries: impl Iterator<Item = &'a Entry>, pages: &[OlderPage]) -> Self {
        let syncs = entries.filter(|entry| entry.role == Role::Sync).map(|entry| entry.time);
        Self(syncs.chain(pages.iter().filter_map(|page| page.first_sync)).collect())
    }

    fn after(&self, time: Timestamp) -> Option<Timestamp> {
        self.0.range(time.plus(Duration::from_nanos(1))..).next().copied()
    }
}

/// Returns how many manual entries of a record stay.
pub fn max_manual(record: &Record) -> usize {
    let said = record.attributes.get(MAX_SNAPSHOTS).and_then(|said| said.parse().ok());
    said.filter(|said| (1..=MOST_MANUAL).contains(said)).unwrap_or(MAX_MANUAL)
}

/// Decides what goes with the next write, oldest first. What is named (the head, branch tips, pins) never goes.
pub fn plan(record: &Record, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let kept = record.kept_entries();
    let is = |role: Role| record.entries.iter().filter(move |entry| entry.role == role).count();
    let paged_steps: usize = record.older.iter().map(|page| page.steps as usize).sum();
    let mut steps_over = (is(Role::Step) + paged_steps).saturating_sub(MAX_STEPS);
    for page in &record.older {
        let mut going: Vec<usize> = Vec::new();
        going.extend(page.first_steps.iter().take(steps_over).map(|number| usize::from(*number)));
        let known = page.first_steps.len().min(steps_over);
        let wanted = (page.steps as usize).min(steps_over);
        steps_over -= wanted;
        let due = page.due.iter().filter(|(_, after)| now > *after).map(|(number, _)| usize::from(*number));
        going.extend(
            due.filter(|number| !page.first_steps[..known].iter().any(|n| usize::from(*n) == *number)),
        );
        plan.paged.extend(going.into_iter().map(|number| (page.page, number)));
        // What is known to go goes first, two with each write; then the page is read again.
        let more = wanted > 0 && known == 0 || page.review.is_some_and(|review| now >= review);
        let unknown = more && !plan.paged.iter().any(|(paged, _)| *paged == page.page);
        if unknown && plan.review.is_none() {
            plan.review = Some(page.page);
        }
    }
    let mut manual_over = is(Role::Manual).saturating_sub(max_manual(record));
    let syncs = Syncs::of(record.entries.iter(), &record.older);
    for entry in &record.entries {
        let over = match entry.role {
            Role::Manual => &mut manual_over,
            Role::Step => &mut steps_over,
            Role::Sync | Role::Event => &mut 0,
        };
        let too_many = *over > 0;
        *over = over.saturating_sub(1);
        let too_old = match fate(entry, syncs.after(entry.time), now) {
            Fate::Stays | Fate::NotBefore(_) => false,
            Fate::After(after) => now > after,
        };
        if (too_many || too_old) && !kept.contains(&entry.id) {
            plan.entries.push(entry.id);
        }
    }
    plan.paged.truncate(MAX_REMOVED);
    plan.entries.truncate(MAX_REMOVED - plan.paged.len());
    plan
}

/// Takes what the plan says off a record.
pub(crate) fn apply(record: &mut Record, plan: &Plan) {
    record.entries.retain(|entry| !plan.entries.contains(&entry.id));
    for (page, number) in &plan.paged {
        leave(record, page, *number);
    }
}

/// Marks an entry as gone from its page, and forgets a page of which nothing is left.
pub(crate) fn leave(record: &mut Record, page: &Hash, number: usize) {
    let Some(older) = record.older.iter_mut().find(|older| older.page == *page) else { return };
    if older.gone.contains(number) {
        return;
    }
    older.gone.insert(number);
    let is = |n: &u16| usize::from(*n) == number;
    // Steps go from the oldest on, so one that goes is among the first.
    if older.first_steps.iter().any(is) {
        older.steps = older.steps.saturating_sub(1);
        older.first_steps.retain(|n| !is(n));
    }
    older.due.retain(|(n, _)| !is(n));
    record.older.retain(|older| older.left() > 0);
}

/// Describes a page to a record: what is in it, and what goes from it next. `followed_by` and `others` are the entries and
/// pages that the record will hold beside it.
pub(crate) fn look(
    older: &OlderPage,
    entries: &[Entry],
    followed_by: &[Entry],
    others: &[OlderPage],
    now: Timestamp,
) -> OlderPage {
    let left = || entries.iter().enumerate().filter(|(number, _)| !older.gone.contains(*number));
    let number = |number: usize| u16::try_from(number).expect("a page has at most 1,024 entries");
    let all = left().map(|(_, entry)| entry);
    let syncs = Syncs::of(all.clone().chain(followed_by), others);
    let mut due = Vec::new();
    let mut review: Option<Timestamp> = None;
    let mut review_at = |time: Timestamp| review = Some(review.map_or(time, |review| review.min(time)));
    for (at, entry) in left() {
        match fate(entry, syncs.after(entry.time), now) {
            Fate::Stays => {}
            Fate::After(after) => due.push((number(at), after)),
            Fate::NotBefore(time) => review_at(time.plus(Duration::from_nanos(1))),
        }
    }
    due.sort_by_key(|(_, after)| *after);
    if let Some((_, after)) = due.get(NEXT_OF_A_PAGE) {
        review_at(*after);
        due.truncate(NEXT_OF_A_PAGE);
    }
    let steps: Vec<u16> =
        left().filter(|(_, entry)| entry.role == Role::Step).map(|(at, _)| number(at)).collect();
    OlderPage {
        steps: u32::try_from(steps.len()).expect("a page has at most 1,024 entries"),
        first_sync: all.clone().find(|entry| entry.role == Role::Sync).map(|entry| entry.time),
        due,
        first_steps: steps.into_iter().take(NEXT_OF_A_PAGE).collect(),
        review,
        ..older.clone()
    }
}
