//! The lifecycle of projects over the hub's client: what a platform calls, with answers in words of `types`.
//!
//! ```no_run
//! # async fn example() -> Result<(), orchestrator::Error> {
//! use orchestrator::{NewFork, NewProject, Projects};
//!
//! let projects = Projects::connect("127.0.0.1:9750")?;
//! let shop = projects.create(NewProject { name: "shop".parse().ok(), ..NewProject::default() }).await?;
//! let copy = projects.fork(&shop, NewFork::default()).await?;
//! projects.hibernate(&copy).await?;
//! # Ok(()) }
//! ```

mod bundle;
mod cluster;
mod error;
mod project;
mod projects;
mod timeline;

pub use bundle::{Bundle, FORKED_FROM, NewInstall};
pub use cluster::{Capacity, Check, HubStatus, Location, Node, NodeState, Template};
pub use error::Error;
pub use project::{Health, NewFork, NewProject, Origin, Point, Project, Quota, RecordKind, VolumeRef};
pub use projects::{LONG_CALL, Projects, SHORT_CALL};
pub use timeline::{Restored, Role, Synced, TimelineEntry, Woken};
