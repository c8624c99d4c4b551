//! `doctor`: what hub, nodes and this machine found out, and what to do about what is wrong.

use orchestrator::NodeState;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::store;
use crate::view::Check;

/// Checks everything that can be reached. What cannot is a finding too.
///
/// # Errors
/// Something is not as it should be.
pub async fn run(context: &Context, output: &Output) -> Result<()> {
    let mut checks = hub(context).await?;
    checks.extend(store::checks(context).await);
    output.list(&checks)?;
    let wrong = checks.iter().filter(|check| !check.ok).count();
    if wrong == 0 {
        return Ok(());
    }
    Err(Error::Found {
        message: format!("{wrong} of {} checks are not ok", checks.len()),
        remedy: "see the last column above; then `sailctl doctor` again".to_owned(),
    })
}

/// Asks hub and nodes.
///
/// # Errors
/// The nodes cannot be listed.
pub async fn hub(context: &Context) -> Result<Vec<Check>> {
    let projects = context.projects()?;
    let status = match projects.hub_status().await {
        Ok(status) => status,
        Err(error) => {
            let detail = format!("{}: {}", context.hub, proto::status::message(&error));
            let remedy =
                "start it, or correct the address in the context file; nodes keep syncing without it";
            return Ok(vec![finding("hub", "reachable", false, detail, remedy)]);
        }
    };
    let found = format!(
        "{} version {}, {} nodes live, {} volumes",
        context.hub, status.version, status.nodes_live, status.volumes
    );
    let mut checks = vec![finding("hub", "reachable", true, found, "")];
    checks.extend(status.checks.into_iter().map(|check| Check::new("hub", check)));
    let nodes = projects.nodes().await.map_err(Error::asked("list the nodes"))?;
    if nodes.is_empty() {
        let remedy = "start `opensail-csi node` with --hub";
        checks.push(finding("hub", "nodes", false, "none has dialled in".to_owned(), remedy));
    }
    for node in nodes {
        let (live, detail) = match node.state {
            NodeState::Live => (true, format!("live at {}", node.address)),
            NodeState::Suspect => (false, "silent for a moment".to_owned()),
            NodeState::Dead => (false, "dead".to_owned()),
            NodeState::Unknown => (false, "in no known state".to_owned()),
        };
        let remedy =
            if live { "" } else { "read its log and start it again; its volumes can be woken elsewhere" };
        checks.push(finding(node.name.as_str(), "reachable", live, detail, remedy));
        checks.extend(node.checks.into_iter().map(|check| Check::new(node.name.as_str(), check)));
    }
    Ok(checks)
}

/// Makes a check of our own.
pub fn finding(place: &str, name: &str, ok: bool, detail: String, remedy: &str) -> Check {
    Check {
        place: place.to_owned(),
        name: name.to_owned(),
        ok,
        detail,
        remedy: Some(remedy.to_owned()).filter(|remedy| !remedy.is_empty()),
    }
}
