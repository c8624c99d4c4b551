//! Rule R: a write of a record may add only references to bytes that are proven to be stored and to stay.
//!
//! (a) Packs acknowledged to this operation. (b) References that the replaced record holds already. (c) Packs that were
//! seen after the pin (in a record or in the store), and are neither condemned nor doomed there: [`confirm`] and
//! [`confirm_version`]. What is not proven is refused by [`check`], which every lifecycle write calls.

use std::collections::{BTreeSet, HashSet};

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;
use types::{PackId, VersionId, VolumeId};

use crate::VersionRef;
use crate::entry::{Entry, Heads};
use crate::error::Error;
use crate::gc::{Moved, read_moved};
use crate::keys;
use crate::record::{self, Record, State};
use crate::session::Operation;
use crate::store::Store;
use crate::timeline::{self, Located, Point};

/// How many packs are looked up at once.
const LOOK_AHEAD: usize = 16;

/// How often a version may move between pages while it is looked for.
const MAX_LOOKS: u32 = 4;

/// The pause between looks at a collection that is waited for.
const PAUSE: Duration = Duration::from_millis(200);

/// Confirms packs by looking each up in the store, now, under the operation's pin.
pub async fn confirm(operation: &Operation, packs: &BTreeSet<PackId>) -> Result<(), Error> {
    allowed(operation, packs)?;
    let looks = futures::stream::iter(packs.clone().into_iter().map(|pack| {
        let store = operation.session().store().clone();
        async move {
            match store.objects().head(&keys::pack(&pack)).await {
                Ok(_) => Ok(()),
                Err(error) if error.is_not_found() => Err(Error::NoPack { pack }),
                Err(error) => Err(error.into()),
            }
        }
    }));
    looks.buffer_unordered(LOOK_AHEAD).try_collect::<()>().await?;
    operation.confirm(packs.iter().cloned());
    Ok(())
}

/// Confirms a version of another record: reads that record now, under the pin, and finds the version on it.
///
/// `packs` are those that the version's manifest names; its manifest's own pack is added. Returns the entry. The caller
/// reads the manifest between [`Operation`]'s begin and this call. While the collection has condemned one of the packs,
/// to rewrite it, this waits for it with the store's patience; then it is [`Error::Condemned`]: try later, or copy.
pub async fn confirm_version(
    operation: &Operation,
    source: &VolumeId,
    version: &VersionId,
    packs: &BTreeSet<PackId>,
) -> Result<Entry, Error> {
    let began = Instant::now();
    let mut looks = 0;
    loop {
        match confirm_now(operation, source, version, packs).await {
            Err(Error::Condemned { .. })
                if began.elapsed() < operation.session().store().retry().patience =>
            {
                tokio::time::sleep(PAUSE).await;
                operation.session().raise().await?;
                // What was confirmed before may be condemned too; then the operation stays, and so does the answer.
                match operation.recheck([]) {
                    Ok(()) | Err(Error::Condemned { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            // The record was replaced while its page was read.
            Err(Error::NoPage { .. }) if looks < MAX_LOOKS => looks += 1,
            confirmed => return confirmed,
        }
    }
}

async fn confirm_now(
    operation: &Operation,
    source: &VolumeId,
    version: &VersionId,
    packs: &BTreeSet<PackId>,
) -> Result<Entry, Error> {
    let record = record::get(operation.session().store(), source).await?;
    confirm_listed(operation, &record.value, version, packs).await
}

/// The same for a record that the caller has read since the operation began, without waiting for anything.
pub async fn confirm_listed(
    operation: &Operation,
    record: &Record,
    version: &VersionId,
    packs: &BTreeSet<PackId>,
) -> Result<Entry, Error> {
    let found = timeline::find(operation.session().store(), record, &Point::Version(*version)).await?;
    let missing = || Error::NoVersion { id: record.id.clone(), version: *version };
    let Located { entry, .. } = found.ok_or_else(missing)?;
    // A deleted record's entries are roots until it is purged, but nobody starts something new from it.
    if record.state == State::Deleted || record.state == State::Purged {
        return Err(Error::WrongState { id: record.id.clone(), state: record.state });
    }
    let mut packs = packs.clone();
    packs.extend(entry.heads.values().map(|head| PackId::clone(&head.manifest.pack)));
    let pin = operation.pin();
    refuse(packs.iter().filter(|pack| !pin.allows_listed(pack)))?;
    if !pin.avoided.is_empty() {
        // A pack that moved keeps its name, and what has its frames now may be condemned like any other.
        let holders = holders(operation.session().store(), &packs).await?;
        refuse(holders.iter().filter(|pack| !pin.allows_listed(pack)))?;
    }
    operation.confirm(packs);
    operation.confirm_versions(entry.heads.values());
    Ok(entry)
}

/// Returns the packs that frames of these were moved to, however often they moved on.
async fn holders(store: &Store, packs: &BTreeSet<PackId>) -> Result<BTreeSet<PackId>, Error> {
    let mut holders = BTreeSet::new();
    let mut todo = packs.clone();
    while !todo.is_empty() {
        let looks = futures::stream::iter(todo.into_iter().map(|pack| {
            let store = store.clone();
            async move { read_moved(&store, &pack).await }
        }));
        let found: Vec<Option<Moved>> = looks.buffer_unordered(LOOK_AHEAD).try_collect().await?;
        let to = found.into_iter().flatten().flat_map(|moved| moved.to.into_keys());
        // Those that are new: a circle that somebody made ends.
        todo = to.filter(|pack| !packs.contains(pack) && holders.insert(pack.clone())).collect();
    }
    Ok(holders)
}

/// Refuses packs that the operation's pin condemns.
fn allowed(operation: &Operation, packs: &BTreeSet<PackId>) -> Result<(), Error> {
    let pin = operation.pin();
    refuse(packs.iter().filter(|pack| !pin.allows(pack)))
}

fn refuse<'a>(packs: impl Iterator<Item = &'a PackId>) -> Result<(), Error> {
    let packs: Vec<PackId> = packs.cloned().collect();
    if packs.is_empty() { Ok(()) } else { Err(Error::Condemned { packs }) }
}

/// Refuses heads that add a reference which nobody proved. The pack that holds the manifest stands for what was put under
/// this operation or confirmed; what an increment took over is proven if the record that is replaced lists its base, or if
/// that was confirmed. A base that is listed nowhere may be collected already.
pub(crate) fn check(operation: &Operation, record: &Record, heads: &Heads) -> Result<(), Error> {
    let held: HashSet<&VersionRef> = record.references().collect();
    for head in heads.values() {
        let mut tree = head.clone();
        // From the version to what it was built on, until something is listed, was confirmed, or was put whole.
        while !held.contains(&tree) && !operation.confirmed(&tree) {
            if !operation.proves(&tree.manifest.pack) {
                return Err(Error::Unproven { pack: PackId::clone(&tree.manifest.pack) });
            }
            match operation.session().built_on(&tree) {
                Some(base) => tree = base,
                None => break,
            }
        }
    }
    Ok(())
}
