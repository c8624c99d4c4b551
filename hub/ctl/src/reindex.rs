//! `reindex`: what a store holds, told by its packs alone. For the day on which records, names and the store's own object are
//! lost: it asks neither the hub nor any of them.

use std::path::Path;

use cas::tree::{IndexedVersion, Reindexed};
use cas::{Cache, Reader};

use crate::cli::ReindexArgs;
use crate::context::Context;
use crate::damage::{self, CACHE_BYTES};
use crate::error::{Error, Result};
use crate::output::Output;
use crate::store;
use crate::view::{Indexed, RescuedVersion, TakenOut};

/// Lists what packs hold, or restores a version that they hold.
///
/// # Errors
/// The store could not be read, something is damaged, or there is no such version.
pub async fn run(context: &Context, output: &Output, args: ReindexArgs) -> Result<()> {
    let reader = Reader::of(store::connect(context).await?, Cache::new(CACHE_BYTES));
    let spinner = output.spinner("reading packs");
    let found = reader
        .reindex(|sofar| spinner.set_message(format!("{} packs read", sofar.packs)))
        .await
        .map_err(|error| Error::store("read the packs", &error))?;
    spinner.finish_and_clear();
    let (Some(version), Some(directory)) = (args.version, args.directory) else {
        return list(output, found);
    };
    restore(output, &reader, choose(&found, &version)?, &directory).await
}

fn list(output: &Output, found: Reindexed) -> Result<()> {
    let damaged = found.damages.len();
    output.one(&Indexed::from(found))?;
    if damaged == 0 {
        return Ok(());
    }
    Err(Error::Found {
        message: format!("{damaged} objects or frames cannot be read"),
        remedy: "delete nothing; `sailctl reindex VERSION DIR` restores what is whole of a version"
            .to_owned(),
    })
}

/// Finds the version that begins with these digits.
fn choose<'a>(found: &'a Reindexed, wanted: &str) -> Result<&'a IndexedVersion> {
    let fits = |found: &&IndexedVersion| found.tree.version.to_string().starts_with(wanted);
    let mut fitting = found.versions.iter().filter(fits);
    match (fitting.next(), fitting.next()) {
        (Some(version), None) => Ok(version),
        (None, _) => Err(Error::state(
            format!("no pack holds a version {wanted}"),
            "`sailctl reindex` lists those that packs hold",
        )),
        (Some(_), Some(_)) => {
            Err(Error::usage(format!("{wanted} is the beginning of several versions"), "give more digits"))
        }
    }
}

async fn restore(output: &Output, reader: &Reader, found: &IndexedVersion, directory: &Path) -> Result<()> {
    let mut rescued = RescuedVersion { version: found.tree.version, taken: TakenOut::default() };
    let spinner = output.spinner("restoring what is whole");
    let what = found.tree.version.short();
    damage::take_out(reader, &found.tree, &what.to_string(), directory, &mut rescued.taken).await?;
    spinner.finish_and_clear();
    output.one(&rescued)?;
    damage::told(&rescued.taken, || "`sailctl reindex` lists other versions, which may have them".to_owned())
}
