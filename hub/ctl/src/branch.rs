//! Branches and pins: names for points of a timeline.

use std::collections::BTreeMap;

use orchestrator::{Projects, VolumeRef};

use crate::bundle::point;
use crate::cli::{BranchCommand, PinCommand};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::view::{Entry, Gone, Named};

/// Lists, makes, moves and removes branches.
///
/// # Errors
/// There is no such point, or the name is taken.
pub async fn run(context: &Context, output: &Output, command: BranchCommand) -> Result<()> {
    let projects = context.projects()?;
    match command {
        BranchCommand::Ls(args) => list(&projects, output, &args.volume, |project| project.branches).await,
        BranchCommand::Set(args) => {
            let at = point(&projects, &args.at).await?;
            let set = projects.set_branch(&args.at.volume, &args.name, at, args.may_move).await;
            let entry = set.map_err(Error::asked(format!("set the branch {}", args.name)))?;
            output.one(&Entry::from(entry))
        }
        BranchCommand::Rm(args) => {
            let gone = projects.delete_branch(&args.volume, &args.name).await;
            gone.map_err(Error::asked(format!("remove the branch {}", args.name)))?;
            output.list(&[Gone { name: args.name }])
        }
    }
}

/// Lists, makes and removes pins.
///
/// # Errors
/// There is no such point.
pub async fn pins(context: &Context, output: &Output, command: PinCommand) -> Result<()> {
    let projects = context.projects()?;
    match command {
        PinCommand::Ls(args) => list(&projects, output, &args.volume, |project| project.pins).await,
        PinCommand::Set(args) => {
            let at = point(&projects, &args.at).await?;
            let set = projects.pin(&args.at.volume, &args.name, at).await;
            output.one(&Entry::from(set.map_err(Error::asked(format!("pin for {}", args.name)))?))
        }
        PinCommand::Rm(args) => {
            let gone = projects.unpin(&args.volume, &args.name).await;
            gone.map_err(Error::asked(format!("unpin for {}", args.name)))?;
            output.list(&[Gone { name: args.name }])
        }
    }
}

async fn list(
    projects: &Projects,
    output: &Output,
    target: &VolumeRef,
    names: impl Fn(orchestrator::Project) -> BTreeMap<String, String>,
) -> Result<()> {
    let project = projects.get(target).await.map_err(Error::asked(format!("look up {target}")))?;
    let named = names(project).into_iter().map(|(name, entry)| {
        let entry = entry.parse().map_err(|_| {
            Error::state(format!("the hub says that {name} names {entry:?}"), "report this hub")
        })?;
        Ok(Named { name, entry })
    });
    output.list(&named.collect::<Result<Vec<_>>>()?)
}
