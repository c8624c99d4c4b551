//! Edits that need no ownership: quota, attributes, branches, pins. They add no reference. The owner's next publish finds
//! that the record moved and applies itself again.

use std::collections::BTreeMap;

use types::{Change, EntryId, VolumeId};

use crate::error::Error;
use crate::record::{self, Record, State};
use crate::store::{Store, Stored};
use crate::timeline::{self, Point};
use crate::update::{Next, update};

/// How many attributes a volume may have.
const MAX_ATTRIBUTES: usize = 64;
/// The most bytes of an attribute's key.
const MAX_ATTRIBUTE_KEY_BYTES: usize = 128;
/// The most bytes of an attribute's value.
const MAX_ATTRIBUTE_VALUE_BYTES: usize = 4096;
/// The most bytes of all attributes together, so that records stay small.
const MAX_ATTRIBUTES_BYTES: usize = 16 << 10;
/// How many branches, and how many pins, a volume may have.
const MAX_BRANCHES: usize = 128;
/// How often an entry may move between pages while it is being named.
const MAX_LOOKS: usize = 4;

/// Sets the limit; `None` is unlimited.
pub async fn set_quota(
    store: &Store,
    id: &VolumeId,
    limit_bytes: Option<u64>,
) -> Result<Change<Stored<Record>>, Error> {
    edit(store, id, |record| {
        record.quota.limit_bytes = limit_bytes;
        Ok(())
    })
    .await
}

/// Sets and (with `None`) removes attributes.
pub async fn set_attributes(
    store: &Store,
    id: &VolumeId,
    changes: &BTreeMap<String, Option<String>>,
) -> Result<Change<Stored<Record>>, Error> {
    edit(store, id, |record| {
        for (key, value) in changes {
            match value {
                Some(value) => record.attributes.insert(key.clone(), value.clone()),
                None => record.attributes.remove(key),
            };
        }
        check_attributes(&record.attributes)
    })
    .await
}

/// How an exchange of attributes ended.
#[derive(Debug)]
pub enum Exchanged {
    /// The attributes are as wanted, by this write or before it.
    Done(Box<Change<Stored<Record>>>),
    /// An attribute is not as expected, and nothing was written.
    Differs {
        /// Which.
        key: String,
        /// What it is.
        found: Option<String>,
    },
}

/// Sets attributes, all or none, where others are as expected (`None`: not there). Where all are as wanted already, they
/// are: what was expected may have been so before an answer was lost.
pub async fn exchange_attributes(
    store: &Store,
    id: &VolumeId,
    expected: &BTreeMap<String, Option<String>>,
    wanted: &BTreeMap<String, Option<String>>,
) -> Result<Exchanged, Error> {
    let changed = edit(store, id, |record| {
        if differs(record, wanted).is_none() || differs(record, expected).is_some() {
            return Ok(());
        }
        for (key, value) in wanted {
            match value {
                Some(value) => record.attributes.insert(key.clone(), value.clone()),
                None => record.attributes.remove(key),
            };
        }
        check_attributes(&record.attributes)
    })
    .await?;
    let record = match &changed {
        Change::Made(stored) | Change::Already(stored) => &stored.value,
    };
    if differs(record, wanted).is_none() {
        return Ok(Exchanged::Done(Box::new(changed)));
    }
    // What was wanted is not there, so something was not as expected at the time.
    let key = differs(record, expected).or_else(|| differs(record, wanted)).unwrap_or_default();
    let found = record.attributes.get(&key).cloned();
    Ok(Exchanged::Differs { key, found })
}

/// The first of `expected` that a record's attributes are not (`None`: not there).
pub(super) fn differs(record: &Record, expected: &BTreeMap<String, Option<String>>) -> Option<String> {
    let other = expected.iter().find(|(key, value)| record.attributes.get(*key) != value.as_ref());
    other.map(|(key, _)| key.clone())
}

/// What a branch may name already when it is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Nothing else: [`Error::BranchTaken`].
    Refuse,
    /// Whatever it is: the branch moves.
    Move,
}

/// Names an entry of the volume, which is then never thinned.
pub async fn set_branch(
    store: &Store,
    id: &VolumeId,
    branch: &str,
    entry: EntryId,
    taken: Taken,
) -> Result<Change<Stored<Record>>, Error> {
    check_name(branch)?;
    name_entry(store, id, |record| &mut record.branches, branch, entry, taken).await
}

/// Removes a branch; its entry is thinned like any other from now on.
pub async fn remove_branch(
    store: &Store,
    id: &VolumeId,
    branch: &str,
) -> Result<Change<Stored<Record>>, Error> {
    edit(store, id, |record| {
        record.branches.remove(branch);
        Ok(())
    })
    .await
}

/// Keeps an entry from being thinned while `reader` needs it; `None` lets it go.
pub async fn set_pin(
    store: &Store,
    id: &VolumeId,
    reader: &str,
    entry: Option<EntryId>,
) -> Result<Change<Stored<Record>>, Error> {
    check_name(reader)?;
    if let Some(entry) = entry {
        return name_entry(store, id, |record| &mut record.pins, reader, entry, Taken::Move).await;
    }
    edit(store, id, |record| {
        record.pins.remove(reader);
        Ok(())
    })
    .await
}

/// Refuses attributes that would make a record big.
pub(crate) fn check_attributes(attributes: &BTreeMap<String, String>) -> Result<(), Error> {
    let invalid = |what: &str, rule| Err(Error::Invalid { what: what.chars().take(80).collect(), rule });
    if attributes.len() > MAX_ATTRIBUTES {
        return invalid("attributes", "a volume has at most 64");
    }
    for (key, value) in attributes {
        if key.is_empty() || key.len() > MAX_ATTRIBUTE_KEY_BYTES {
            return invalid(key, "an attribute's key has 1 to 128 bytes");
        }
        if value.len() > MAX_ATTRIBUTE_VALUE_BYTES {
            return invalid(key, "an attribute's value has at most 4096 bytes");
        }
    }
    let total: usize = attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
    if total > MAX_ATTRIBUTES_BYTES {
        return invalid("attributes", "together they have at most 16 KiB");
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), Error> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@".contains(&byte);
    if (1..=128).contains(&name.len()) && name.bytes().all(valid) {
        return Ok(());
    }
    let rule = "1 to 128 characters of A-Z, a-z, 0-9 and -_./:@";
    Err(Error::Invalid { what: name.chars().take(80).collect(), rule })
}

/// Names an entry. One in a page comes back into the record: what is named is held there, and never thinned.
async fn name_entry(
    store: &Store,
    id: &VolumeId,
    names: impl Fn(&mut Record) -> &mut BTreeMap<String, EntryId> + Send + Sync,
    name: &str,
    entry: EntryId,
    taken: Taken,
) -> Result<Change<Stored<Record>>, Error> {
    let missing = || Error::NoEntry { id: id.clone(), entry };
    for _ in 0..MAX_LOOKS {
        let record = record::get(store, id).await?.value;
        let located = timeline::find(store, &record, &Point::Entry(entry)).await?.ok_or_else(missing)?;
        let named = edit(store, id, |record| {
            if record.entry(&entry).is_none() {
                if !record.holds(&located) {
                    return Err(missing());
                }
                record.promote(&located);
            }
            let names = names(record);
            if let Some(tip) = names.get(name).filter(|tip| **tip != entry)
                && taken == Taken::Refuse
            {
                return Err(Error::BranchTaken { id: id.clone(), branch: name.to_owned(), tip: *tip });
            }
            names.insert(name.to_owned(), entry);
            if names.len() > MAX_BRANCHES {
                return Err(Error::Invalid {
                    what: name.to_owned(),
                    rule: "a volume has at most 128 branches or pins",
                });
            }
            Ok(())
        });
        match named.await {
            // It moved to another page, or went, between the look and the write.
            Err(Error::NoEntry { .. }) => {}
            named => return named,
        }
    }
    Err(missing())
}

/// Edits a record that is not deleted; `Already` when the edit changes nothing.
async fn edit(
    store: &Store,
    id: &VolumeId,
    change: impl Fn(&mut Record) -> Result<(), Error> + Send + Sync,
) -> Result<Change<Stored<Record>>, Error> {
    update(store, None, id, |current| {
        let record = &current.value;
        match record.state {
            State::Live | State::Creating => {}
            State::Deleted | State::Purged => {
                return Err(Error::WrongState { id: id.clone(), state: record.state });
            }
        }
        let mut next = record.clone();
        change(&mut next)?;
        Ok(if next == *record { Next::Already } else { Next::Write(next) })
    })
    .await
}
