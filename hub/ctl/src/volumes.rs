//! Volumes as a whole: create, ls, describe, fork, rm, move, hibernate, wake.

use std::time::Duration;

use orchestrator::{NewFork, NewProject, Point, Projects, RecordKind, VolumeRef};
use types::{Classify as _, InvalidId, Kind, NodeName, RequestId, ResourceName};

use crate::call::{patiently, retried};
use crate::cli::{CreateArgs, ForkArgs, WakeArgs};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::timeline;
use crate::view::{Removed, Volume, Woken};

/// How long a wake waits for a silent owner to be known dead, and for a place to come up.
const WAKE_PATIENCE: Duration = Duration::from_secs(90);

/// Makes a volume.
///
/// # Errors
/// The hub says no.
pub async fn create(context: &Context, output: &Output, args: CreateArgs) -> Result<()> {
    let projects = context.projects()?;
    let what = args.name.as_ref().map_or_else(|| "a volume".to_owned(), ToString::to_string);
    if args.request_id.is_none()
        && let Some(name) = &args.name
    {
        free(&projects, name).await?;
    }
    let new = NewProject {
        // Chosen once: a retry gets the same volume.
        request: Some(args.request_id.unwrap_or_else(RequestId::random)),
        name: args.name,
        template: args.template,
        node: args.node,
        node_hint: None,
        quota: args.quota.unwrap_or_default(),
        domain: args.domain,
        attributes: args.attributes.into_iter().collect(),
    };
    let volume = patiently(async || projects.create(new.clone()).await)
        .await
        .map_err(Error::asked(format!("create {what}")))?;
    output.one(&Volume::from(volume))
}

/// Lists the volumes, and what nodes that lost their place had written; templates have a list of their own.
///
/// # Errors
/// The hub cannot answer whole.
pub async fn list(context: &Context, output: &Output, node: Option<&NodeName>, all: bool) -> Result<()> {
    let mut volumes = context.projects()?.list(node).await.map_err(Error::asked("list the volumes"))?;
    volumes.retain(|volume| all || matches!(volume.kind, RecordKind::Volume | RecordKind::Orphan));
    output.list(&volumes.into_iter().map(Volume::from).collect::<Vec<_>>())
}

/// Shows a volume.
///
/// # Errors
/// There is none of this id or name.
pub async fn describe(context: &Context, output: &Output, target: &VolumeRef) -> Result<()> {
    let volume = context.projects()?.get(target).await.map_err(Error::asked(format!("look up {target}")))?;
    output.one(&Volume::from(volume))
}

/// Makes copies of one state of a volume.
///
/// # Errors
/// The hub says no; the copies that were made stay.
pub async fn fork(context: &Context, output: &Output, args: ForkArgs) -> Result<()> {
    let projects = context.projects()?;
    let mut at = match &args.at {
        Some(at) => Some(Point::Entry(timeline::resolve(&projects, &args.volume, at).await?)),
        None => None,
    };
    let mut forks = Vec::new();
    for number in 1..=args.count {
        let name = args.name.as_ref().map(|name| numbered(name, number, args.count)).transpose()?;
        if let Some(name) = &name {
            free(&projects, name).await?;
        }
        let new = NewFork {
            request: Some(RequestId::random()),
            at,
            name,
            node_hint: args.node.clone(),
            quota: args.quota.unwrap_or_default(),
            ..NewFork::default()
        };
        let fork = patiently(async || projects.fork(&args.volume, new.clone()).await)
            .await
            .map_err(Error::asked(format!("fork {}", args.volume)))?;
        // The others are of the same state as the first, whatever is written meanwhile.
        at = at.or_else(|| fork.origin.as_ref().map(|origin| Point::Version(origin.version)));
        forks.push(Volume::from(fork));
    }
    output.list(&forks)
}

/// The hub takes any name; a person who gives one that is taken could use neither volume by it.
async fn free(projects: &Projects, name: &ResourceName) -> Result<()> {
    let target: VolumeRef = name.as_str().parse().map_err(|error: InvalidId| Error::Target(error.into()))?;
    match projects.get(&target).await {
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        Err(error) if error.kind() != Kind::FailedPrecondition => {
            Err(Error::asked(format!("look up {name}"))(error))
        }
        _ => Err(Error::state(
            format!("a volume with the name {name} is there already"),
            format!("choose another name; `sailctl describe {name}` shows the one there is"),
        )),
    }
}

fn numbered(name: &ResourceName, number: u32, count: u32) -> Result<ResourceName> {
    if count == 1 {
        return Ok(name.clone());
    }
    format!("{name}-{number}").parse().map_err(|error: InvalidId| Error::Target(error.into()))
}

/// Deletes volumes.
///
/// # Errors
/// One of them is not there, or the hub says no; those before it are gone.
pub async fn remove(context: &Context, output: &Output, targets: &[VolumeRef]) -> Result<()> {
    let projects = context.projects()?;
    let mut removed = Vec::new();
    for target in targets {
        // Deleting what is not there is fine for a retry, and a typing mistake for a person.
        let volume = projects.get(target).await.map_err(Error::asked(format!("look up {target}")))?;
        patiently(async || projects.delete(&volume.id).await)
            .await
            .map_err(Error::asked(format!("delete {target}")))?;
        removed.push(Removed { id: volume.id });
    }
    output.list(&removed)
}

/// Moves a volume to a node.
///
/// # Errors
/// The hub says no.
pub async fn relocate(context: &Context, output: &Output, target: &VolumeRef, to: &NodeName) -> Result<()> {
    let projects = context.projects()?;
    let spinner = output.spinner(&format!("moving {target}"));
    let volume = patiently(async || projects.move_to(target, to).await)
        .await
        .map_err(Error::asked(format!("move {target} to {to}")))?;
    spinner.finish_and_clear();
    output.one(&Volume::from(volume))
}

/// Puts a volume to sleep.
///
/// # Errors
/// The hub says no.
pub async fn hibernate(context: &Context, output: &Output, target: &VolumeRef) -> Result<()> {
    let projects = context.projects()?;
    let spinner = output.spinner(&format!("putting {target} to sleep"));
    let volume = patiently(async || projects.hibernate(target).await)
        .await
        .map_err(Error::asked(format!("hibernate {target}")))?;
    spinner.finish_and_clear();
    output.one(&Volume::from(volume))
}

/// Makes a volume usable on a node.
///
/// # Errors
/// No node can take it.
pub async fn wake(context: &Context, output: &Output, args: WakeArgs) -> Result<()> {
    let projects = context.projects()?;
    let target = &args.volume;
    // A hub or volume that is not there is told at once; a node that is not yet known dead is waited for.
    let volume = projects.get(target).await.map_err(Error::asked(format!("look up {target}")))?;
    let spinner = output.spinner(&format!("waking {target}"));
    let passes = |kind| matches!(kind, Kind::Aborted | Kind::Unavailable | Kind::DeadlineExceeded);
    let woken = retried(WAKE_PATIENCE, passes, async || projects.wake(&volume.id, &args.node).await)
        .await
        .map_err(Error::asked(format!("wake {target}")))?;
    spinner.finish_and_clear();
    output.one(&Woken::new(volume.id, woken))
}
