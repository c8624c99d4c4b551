//! `verify`: a whole version, read from the store and checked against its hashes. Nodes and hub are not trusted with it.

use cas::{Cache, Entry, Reader, Record, Store, record};
use orchestrator::VolumeRef;
use types::VolumeId;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::store;
use crate::target::{VersionTarget, digits};
use crate::timeline::{Picked, pick};
use crate::view::Verified;

/// Directory nodes that are read once more for each of their children.
const CACHE_BYTES: usize = 256 << 20;

/// Verifies a version, with all members.
///
/// # Errors
/// Something of it is missing or damaged, or it could not be read.
pub async fn run(context: &Context, output: &Output, target: &VersionTarget) -> Result<()> {
    let store = store::open(context).await?;
    let record = find(context, &store, &target.volume).await?;
    let entry = choose(&store, &record, target).await?;
    let spinner = output.spinner(&format!("reading {}", target.volume));
    let reader = Reader::new(store.clone(), Cache::new(CACHE_BYTES));
    let mut verified = Verified::new(record.id.clone(), &entry);
    for tree in entry.heads.values() {
        let report = reader.verify(tree).await.map_err(|error| {
            Error::store(format!("verify {}@{}", record.id, tree.version.short()), &error)
        })?;
        verified.add(&report);
    }
    spinner.finish_and_clear();
    output.one(&verified)?;
    if verified.whole {
        return Ok(());
    }
    Err(Error::Found {
        message: format!("{} is damaged in {} places", record.id, verified.damages.len()),
        remedy: format!(
            "delete nothing; `sailctl log {0}` shows other versions, and a node that holds {0} still has its tree",
            target.volume
        ),
    })
}

/// By id from the store, so that no hub is needed; by name from the hub.
pub(crate) async fn find(context: &Context, store: &Store, target: &VolumeRef) -> Result<Record> {
    let failed = Error::of_store(format!("read the record of {target}"));
    if let Ok(id) = target.as_str().parse::<VolumeId>()
        && let Some(record) = record::read(store, &id).await.map_err(&failed)?
    {
        return Ok(record.value);
    }
    let project = context.projects()?.get(target).await.map_err(Error::asked(format!("look up {target}")))?;
    Ok(record::get(store, &project.id).await.map_err(&failed)?.value)
}

pub(crate) async fn choose(store: &Store, record: &Record, target: &VersionTarget) -> Result<Entry> {
    let Some(words) = &target.version else {
        return record.head_entry().cloned().ok_or_else(|| {
            let message = format!("{} has no version yet", target.volume);
            Error::state(message, format!("`sailctl sync {}` makes one", target.volume))
        });
    };
    let start = digits(words)?;
    let failed = Error::of_store(format!("read the timeline of {}", target.volume));
    let mut newest_first = cas::timeline::entries(store, record).await.map_err(failed)?;
    newest_first.reverse();
    let spelled: Vec<_> = newest_first
        .iter()
        .map(|entry| {
            (entry.id.to_string(), entry.version().map_or_else(String::new, |version| version.to_string()))
        })
        .collect();
    match pick(&spelled, start) {
        Picked::One(number) => Ok(newest_first.swap_remove(number)),
        Picked::None => Err(Error::state(
            format!("no entry and no version of {} begins with {words}", target.volume),
            format!("`sailctl log {}` shows them", target.volume),
        )),
        Picked::Several => Err(Error::usage(
            format!("several entries or versions of {} begin with {words}", target.volume),
            "write more of its digits",
        )),
    }
}
