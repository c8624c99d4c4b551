//! `scrub`, `rescue`, `repair`: finding damage in the store, taking out what is whole, and putting back what a node still has.

use std::path::Path;

use cas::scrub::Scrub;
use cas::{Cache, Reader, RestoreOptions, VersionRef};
use indicatif::ProgressBar;
use orchestrator::{Location, VolumeRef};
use proto::node::RepairVolumeRequest;

use crate::context::Context;
use crate::doctor;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::store;
use crate::target::VersionTarget;
use crate::verify;
use crate::view::{Repaired, Rescued, ScrubDone, TakenOut};

/// Memory for directory nodes.
pub const CACHE_BYTES: usize = 256 << 20;

/// Shows what the nodes' own scrubs found.
///
/// # Errors
/// The hub cannot be asked, or something is damaged.
pub async fn found(context: &Context, output: &Output) -> Result<()> {
    let mut checks = doctor::hub(context).await?;
    checks.retain(|check| check.name == "scrub" || !check.ok && check.name == "reachable");
    output.list(&checks)?;
    if checks.iter().all(|check| check.ok) {
        return Ok(());
    }
    Err(Error::Found {
        message: "damage was found in the store, or a node cannot be asked".to_owned(),
        remedy: "`sailctl scrub --now` reads everything and says what is touched".to_owned(),
    })
}

/// Reads everything in the store and proves it.
///
/// # Errors
/// Something is damaged, or the store could not be read.
pub async fn scrub(context: &Context, output: &Output, bytes_per_second: Option<u64>) -> Result<()> {
    let store = store::open(context).await?;
    let spinner: ProgressBar = output.spinner("reading the store");
    let done = Scrub::new(store, bytes_per_second)
        .whole(|sofar| spinner.set_message(format!("{} packs read", sofar.packs)))
        .await
        .map_err(Error::of_store("scrub the store".to_owned()))?;
    spinner.finish_and_clear();
    let damaged = done.damages.len();
    output.one(&ScrubDone::from(done))?;
    if damaged == 0 {
        return Ok(());
    }
    Err(Error::Found {
        message: format!("{damaged} objects are damaged or missing"),
        remedy: "delete nothing; `sailctl repair VOL` puts back what the volume's node still has, `sailctl rescue VOL \
                 DIR` takes out what is whole"
            .to_owned(),
    })
}

/// Restores what is whole of a version into a directory of this machine.
///
/// # Errors
/// Something is lost, which is listed; or nothing could be restored.
pub async fn rescue(
    context: &Context,
    output: &Output,
    target: &VersionTarget,
    directory: &Path,
) -> Result<()> {
    let store = store::open(context).await?;
    let record = verify::find(context, &store, &target.volume).await?;
    let entry = &verify::choose(&store, &record, target).await?;
    let reader = Reader::new(store, Cache::new(CACHE_BYTES));
    let mut rescued = Rescued::new(record.id.clone(), entry);
    let spinner = output.spinner(&format!("restoring what is whole of {}", target.volume));
    for (member, tree) in &entry.heads {
        // One member goes straight into the directory; several each into one of their own.
        let place =
            if entry.heads.len() == 1 { directory.to_owned() } else { directory.join(member.as_str()) };
        let what = format!("{}@{}", record.id, tree.version.short());
        take_out(&reader, tree, &what, &place, &mut rescued.taken).await?;
    }
    spinner.finish_and_clear();
    output.one(&rescued)?;
    told(&rescued.taken, || {
        format!("`sailctl log {}` shows other versions, which may have them", target.volume)
    })
}

/// Restores what is whole of a tree, which is called `what`, into a directory of this machine.
///
/// # Errors
/// The directory cannot be made, or nothing could be restored.
pub async fn take_out(
    reader: &Reader,
    tree: &VersionRef,
    what: &str,
    directory: &Path,
    taken: &mut TakenOut,
) -> Result<()> {
    let local = |action: &'static str| {
        let what = directory.display().to_string();
        move |source| Error::Local { action, what, source }
    };
    std::fs::create_dir_all(directory).map_err(local("make"))?;
    let open = std::fs::File::open(directory).map_err(local("open"))?;
    let options = RestoreOptions { owners: nix::unistd::geteuid().is_root(), ..RestoreOptions::default() };
    let (restored, lost) = reader
        .rescue(tree, open.into(), options)
        .await
        .map_err(|error| Error::store(format!("restore {what}"), &error))?;
    taken.add(&restored, &lost);
    Ok(())
}

/// An error if something is lost.
///
/// # Errors
/// Something is.
pub fn told(taken: &TakenOut, remedy: impl FnOnce() -> String) -> Result<()> {
    if taken.is_whole() {
        return Ok(());
    }
    Err(Error::Found { message: format!("{} paths are lost", taken.lost.len()), remedy: remedy() })
}

/// Asks the node that holds a volume to put back what is damaged of it in the store.
///
/// # Errors
/// It is on no node, or damaged versions are on none any more.
pub async fn repair(context: &Context, output: &Output, target: &VolumeRef) -> Result<()> {
    let projects = context.projects()?;
    let id = projects.get(target).await.map_err(Error::asked(format!("look up {target}")))?.id;
    let location = projects.locate(&id).await.map_err(Error::asked(format!("find the node of {target}")))?;
    let Location::Cached { address, .. } = location else {
        return Err(Error::state(
            format!("{target} is on no node, so nobody has what the store lost"),
            format!("`sailctl rescue {target} DIR` takes out what is whole"),
        ));
    };
    let channel = proto::client::channel(&address).map_err(|error| {
        Error::call(format!("reach {target}"), tonic::Status::internal(error.to_string()))
    })?;
    let request = RepairVolumeRequest { volume_id: id.to_string() };
    let answer = proto::client::node(channel).repair_volume(request).await;
    let answer = answer.map_err(|status| Error::call(format!("repair {target}"), status))?.into_inner();
    let lost = answer.lost.len();
    output.one(&Repaired::new(id, answer))?;
    if lost == 0 {
        return Ok(());
    }
    Err(Error::Found {
        message: format!("{lost} damaged versions are on no node any more"),
        remedy: format!("`sailctl rescue {target}@VERSION DIR` takes out what is whole of one"),
    })
}
