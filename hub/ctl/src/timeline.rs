//! A volume in time: snapshot, log, restore, sync.

use orchestrator::{Point, Projects, TimelineEntry, VolumeRef};
use types::EntryId;

use crate::call::patiently;
use crate::cli::{RestoreArgs, SnapshotArgs};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::target::digits;
use crate::view::{Entry, Restored, Synced};

/// More than a record keeps at hand; what is older is read page by page anyway.
const WHOLE: usize = 1_000_000;

/// Keeps the present state on the timeline.
///
/// # Errors
/// The hub says no.
pub async fn snapshot(context: &Context, output: &Output, args: SnapshotArgs) -> Result<()> {
    let projects = context.projects()?;
    let entry = patiently(async || projects.snapshot(&args.volume, args.label.clone()).await)
        .await
        .map_err(Error::asked(format!("snapshot {}", args.volume)))?;
    output.one(&Entry::from(entry))
}

/// Shows the timeline.
///
/// # Errors
/// There is no such volume.
pub async fn log(context: &Context, output: &Output, target: &VolumeRef) -> Result<()> {
    let entries = entries(&context.projects()?, target).await?;
    output.list(&entries.into_iter().map(Entry::from).collect::<Vec<_>>())
}

/// Takes a volume back to an entry of its timeline.
///
/// # Errors
/// There is no such entry, or the hub says no.
pub async fn restore(context: &Context, output: &Output, args: RestoreArgs) -> Result<()> {
    let words = match (&args.what.version, &args.version) {
        (Some(words), None) | (None, Some(words)) => words.clone(),
        (Some(_), Some(_)) | (None, None) => {
            return Err(Error::usage(
                format!("{} is to be restored to one version", args.what.volume),
                format!("write `sailctl restore {}@VERSION`; `sailctl log` shows them", args.what.volume),
            ));
        }
    };
    if !args.what.path.is_root() {
        return crate::files::restore(context, output, &args.what, &words, args.to.as_ref()).await;
    }
    if args.to.is_some() {
        return Err(Error::usage(
            "--to is where a file or directory goes",
            "write VOL@VERSION:PATH before it",
        ));
    }
    let (target, to) = (&args.what.volume, words.as_str());
    let projects = context.projects()?;
    let volume = projects.get(target).await.map_err(Error::asked(format!("look up {target}")))?;
    let entry = resolve(&projects, target, to).await?;
    let spinner = output.spinner(&format!("restoring {target}"));
    let restored = patiently(async || projects.restore(&volume.id, Point::Entry(entry)).await)
        .await
        .map_err(Error::asked(format!("restore {target}")))?;
    spinner.finish_and_clear();
    output.one(&Restored::new(volume.id, restored))
}

/// Makes the present state durable.
///
/// # Errors
/// The hub says no.
pub async fn sync(context: &Context, output: &Output, target: &VolumeRef) -> Result<()> {
    let projects = context.projects()?;
    let volume = projects.get(target).await.map_err(Error::asked(format!("look up {target}")))?;
    let spinner = output.spinner(&format!("syncing {target}"));
    let synced = patiently(async || projects.sync(&volume.id).await)
        .await
        .map_err(Error::asked(format!("sync {target}")))?;
    spinner.finish_and_clear();
    output.one(&Synced::new(volume.id, synced))
}

/// Finds the entry that a person means by its first digits, or by those of its version: of several entries with
/// one version, the newest.
///
/// # Errors
/// None has these digits, or several do.
pub async fn resolve(projects: &Projects, target: &VolumeRef, words: &str) -> Result<EntryId> {
    let start = digits(words)?;
    let entries = entries(projects, target).await?;
    let spelled: Vec<_> =
        entries.iter().map(|entry| (entry.id.to_string(), entry.version.to_string())).collect();
    match pick(&spelled, start) {
        Picked::One(number) => Ok(entries[number].id),
        Picked::None => Err(Error::state(
            format!("no entry and no version on the timeline of {target} begins with {words}"),
            format!("`sailctl log {target}` shows them"),
        )),
        Picked::Several => Err(Error::usage(
            format!("several entries or versions of {target} begin with {words}"),
            "write more of its digits; `sailctl log -o json` shows all of them",
        )),
    }
}

#[derive(Debug, PartialEq)]
pub(crate) enum Picked {
    /// The number of the entry.
    One(usize),
    None,
    Several,
}

/// Chooses among (entry, version), newest first.
pub(crate) fn pick(entries: &[(String, String)], start: &str) -> Picked {
    let numbered = || entries.iter().enumerate();
    let by_entry: Vec<_> = numbered().filter(|(_, (entry, _))| entry.starts_with(start)).collect();
    let by_version: Vec<_> = numbered().filter(|(_, (_, version))| version.starts_with(start)).collect();
    let one_version = by_version.iter().all(|(_, (_, version))| *version == by_version[0].1.1);
    match (by_entry.as_slice(), by_version.as_slice()) {
        ([], []) => Picked::None,
        ([(number, _)], []) => Picked::One(*number),
        ([], [(newest, _), ..]) if one_version => Picked::One(*newest),
        _ => Picked::Several,
    }
}

async fn entries(projects: &Projects, target: &VolumeRef) -> Result<Vec<TimelineEntry>> {
    projects.timeline(target, WHOLE).await.map_err(Error::asked(format!("read the timeline of {target}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_digits_name_an_entry_or_the_newest_of_a_version() {
        let entries = [("aa11", "5555"), ("aa22", "6666"), ("bb33", "5555"), ("cc44", "5577")]
            .map(|(entry, version)| (entry.to_owned(), version.to_owned()));
        for (words, picked) in [
            ("aa11", Picked::One(0)),
            ("bb", Picked::One(2)),
            ("5555", Picked::One(0)),
            ("55", Picked::Several),
            ("aa", Picked::Several),
            ("ff", Picked::None),
        ] {
            assert_eq!(pick(&entries, words), picked, "{words}");
        }
    }
}
