//! `nodes`.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::view::Node;

/// Lists the nodes.
///
/// # Errors
/// The hub cannot be asked.
pub async fn list(context: &Context, output: &Output) -> Result<()> {
    let nodes = context.projects()?.nodes().await.map_err(Error::asked("list the nodes"))?;
    output.list(&nodes.into_iter().map(Node::from).collect::<Vec<_>>())
}
