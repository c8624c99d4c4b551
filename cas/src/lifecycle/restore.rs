//! Restore-to: the head moves to an older version before the live subvolume does. The old head stays as an entry and as
//! the branch `pre-restore/<n>`.

use types::{Change, EntryId};

use crate::entry::{Entry, Heads, Role, tips};
use crate::error::Error;
use crate::guard::{Claim, Known};
use crate::record::{self, Record};
use crate::references;
use crate::session::Operation;
use crate::store::Stored;
use crate::timeline::{self, Located, Point};
use crate::update::{Next, update};

/// What the head becomes.
#[derive(Debug, Clone)]
pub enum Target {
    /// What an entry of this volume says.
    Entry(EntryId),
    /// Versions of elsewhere, proven under the operation.
    Heads(Heads),
}

/// Where the head is now, and where it was.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The record.
    pub record: Stored<Record>,
    /// The new head.
    pub entry: EntryId,
    /// The branch that holds the old head; `None` if there was none.
    pub branch: Option<String>,
}

/// Moves the head to `target` by U(G, head := target), as a new entry that follows the old head.
///
/// The caller has synced, and has committed `snap/<version>` of the target. It exchanges the live subvolume afterwards.
/// The target may be in a page of older entries.
pub async fn restore_head(
    operation: &Operation,
    claim: &Claim,
    known: &Known,
    target: Target,
    label: &str,
) -> Result<Restored, Error> {
    let session = operation.session();
    let older = match &target {
        Target::Entry(id) => {
            let record = record::get(session.store(), &claim.id).await?.value;
            timeline::find(session.store(), &record, &Point::Entry(*id)).await?
        }
        Target::Heads(_) => None,
    };
    let mut time = None;
    let mut attempted: Vec<(EntryId, Option<String>)> = Vec::new();
    let mut stands = None;
    let changed = update(session.store(), Some(operation), &claim.id, |current| {
        let record = &current.value;
        session.observe(current.modified);
        let time = *time.get_or_insert_with(|| session.store_time());
        if let Some(done) = attempted.iter().rev().find(|(entry, _)| record.entry(entry).is_some()) {
            stands = Some(done.clone());
            return Ok(Next::Already);
        }
        super::guard(record, &session.id(), claim, known)?;
        let heads = match &target {
            // A reference that the replaced record holds, itself or in a page, is proven (rule R, b).
            Target::Entry(id) => {
                let located = older.as_ref().filter(|located| record.holds(located));
                let entry = located.map(|located: &Located| &located.entry).or_else(|| record.entry(id));
                entry.ok_or_else(|| Error::NoEntry { id: claim.id.clone(), entry: *id })?.heads.clone()
            }
            Target::Heads(heads) => {
                references::check(operation, record, heads)?;
                heads.clone()
            }
        };
        let mut next = record.clone();
        let branch = record.head.map(|head| {
            let branch = free_branch(record);
            next.branches.insert(branch.clone(), head);
            roll_branches(&mut next);
            branch
        });
        let time = super::time_after(record, time);
        let entry = Entry::new(&claim.id, heads, record.head, time, Role::Event, label, claim.epoch)?;
        attempted.push((entry.id, branch.clone()));
        stands = Some((entry.id, branch));
        super::grow(&mut next, entry, session.store_time());
        Ok(Next::Write(next))
    });
    let record = match changed.await? {
        Change::Made(record) => super::keep_small(operation, claim, record).await,
        Change::Already(record) => record,
    };
    let (entry, branch) = stands.expect("a decision that ends well names its entry");
    Ok(Restored { record, entry, branch })
}

/// How many states from before a restore keep their branch. Without a bound a volume that is restored by a program would
/// fill its record with them.
const MAX_PRE_RESTORE: usize = 32;

/// Lets the oldest `pre-restore/<n>` go when there are too many; its entry is thinned like any other from then on.
fn roll_branches(record: &mut Record) {
    let mut numbers: Vec<u64> = record.branches.keys().filter_map(|name| number(name)).collect();
    numbers.sort_unstable();
    for number in &numbers[..numbers.len().saturating_sub(MAX_PRE_RESTORE)] {
        record.branches.remove(&format!("pre-restore/{number}"));
    }
}

fn number(branch: &str) -> Option<u64> {
    branch.strip_prefix("pre-restore/")?.parse().ok()
}

/// Keeps `heads` beside the line, as an entry with the branch `pre-restore/<n>`: what was still written to a tree after a
/// restore had replaced it. The head stays where it is. Returns nothing where every version is on the timeline already.
///
/// `heads` are proven under the operation.
pub async fn keep_branch(
    operation: &Operation,
    claim: &Claim,
    known: &Known,
    heads: Heads,
    label: &str,
) -> Result<Option<String>, Error> {
    let session = operation.session();
    let wanted = tips(&heads);
    let mut time = None;
    let mut kept = None;
    let changed = update(session.store(), Some(operation), &claim.id, |current| {
        let record = &current.value;
        session.observe(current.modified);
        let time = *time.get_or_insert_with(|| session.store_time());
        // Also this call's own write, found again.
        if record.entries.iter().any(|entry| tips(&entry.heads) == wanted) {
            return Ok(Next::Already);
        }
        super::guard(record, &session.id(), claim, known)?;
        references::check(operation, record, &heads)?;
        let branch = free_branch(record);
        let time = super::time_after(record, time);
        let before = newest_branch(record);
        let entry = Entry::new(&claim.id, heads.clone(), before, time, Role::Event, label, claim.epoch)?;
        let mut next = record.clone();
        next.branches.insert(branch.clone(), entry.id);
        next.entries.push(entry);
        roll_branches(&mut next);
        kept = Some(branch);
        Ok(Next::Write(next))
    });
    changed.await?;
    Ok(kept)
}

/// Returns what the newest restore kept.
fn newest_branch(record: &Record) -> Option<EntryId> {
    let newest =
        record.branches.iter().filter_map(|(name, entry)| Some((number(name)?, *entry))).max_by_key(|b| b.0);
    newest.map(|(_, entry)| entry)
}

/// Returns the first `pre-restore/<n>` after every one there is, so that a number is not taken again while a later one
/// stands.
fn free_branch(record: &Record) -> String {
    let numbers = record.branches.keys().filter_map(|name| number(name));
    format!("pre-restore/{}", numbers.max().unwrap_or(0) + 1)
}
