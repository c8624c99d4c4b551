//! Bundles: published states that never change.

use orchestrator::{NewInstall, Point, Projects};

use crate::call::patiently;
use crate::cli::BundleCommand;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::target::VersionTarget;
use crate::timeline::resolve;
use crate::view::{Bundle, Gone, Volume};

/// Publishes, lists, installs and deletes bundles.
///
/// # Errors
/// There is no such state or bundle, or it is in use.
pub async fn run(context: &Context, output: &Output, command: BundleCommand) -> Result<()> {
    let projects = context.projects()?;
    match command {
        BundleCommand::Publish(args) => {
            let at = point(&projects, &args.what).await?;
            let spinner = output.spinner(&format!("publishing {}", args.what.volume));
            let made =
                patiently(async || projects.publish(&args.what.volume, at, args.name.as_ref()).await).await;
            spinner.finish_and_clear();
            let asked = Error::asked(format!("publish {}", args.what.volume));
            output.one(&Bundle::from(made.map_err(asked)?))
        }
        BundleCommand::Ls => {
            let bundles = projects.bundles().await.map_err(Error::asked("list the bundles"))?;
            output.list(&bundles.into_iter().map(Bundle::from).collect::<Vec<_>>())
        }
        BundleCommand::Install(args) => {
            let new = NewInstall {
                request: Some(args.request_id.unwrap_or_else(types::RequestId::random)),
                name: args.name,
                node_hint: args.node,
                quota: args.quota.unwrap_or_default(),
                ..NewInstall::default()
            };
            let made = patiently(async || projects.install(&args.bundle, new.clone()).await).await;
            let asked = Error::asked(format!("install {}", args.bundle));
            output.one(&Volume::from(made.map_err(asked)?))
        }
        BundleCommand::Rm(args) => {
            let gone = patiently(async || projects.delete_bundle(&args.name).await).await;
            gone.map_err(Error::asked(format!("delete the bundle {}", args.name)))?;
            output.list(&[Gone { name: args.name.to_string() }])
        }
    }
}

/// The point that a person means; nothing where no version is named.
///
/// # Errors
/// There is no such point.
pub async fn point(projects: &Projects, target: &VersionTarget) -> Result<Option<Point>> {
    Ok(match &target.version {
        Some(words) => Some(Point::Entry(resolve(projects, &target.volume, words).await?)),
        None => None,
    })
}
