//! Templates: made from a directory of this machine, and listed.
//!
//! This process writes the template itself, as a session of its own: packs first, then the record, then the name that
//! points to it. What it leaves behind when it dies before the record is garbage, which GC removes.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use cas::lifecycle::{NewSealed, seal};
use cas::names::{self, Expected, NameKind};
use cas::record::Quota;
use cas::{Cache, RecordKind, Session, Store, WriteOptions, Writer, Written, entry, record};
use orchestrator::VolumeRef;
use types::{Domain, NodeName, PoolId, RequestId, ResourceName, VolumeId};

use crate::bundle::point;
use crate::call::patiently;
use crate::cli::{TemplateArgs, TemplatePublishArgs};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::store;
use crate::view::{Gone, Template, TemplateMade};

/// Nodes and hub take a session for dead whose beat stands still for several seconds.
const BEAT: Duration = Duration::from_secs(1);

/// Directory nodes are read back only where a directory is very large.
const CACHE_BYTES: usize = 64 << 20;

/// Makes a template of a directory.
///
/// # Errors
/// It is none, or the store does not take it.
pub async fn create(context: &Context, output: &Output, args: TemplateArgs) -> Result<()> {
    let directory = File::open(&args.from).map_err(|error| Error::path("open", &args.from, error))?;
    let metadata = directory.metadata().map_err(|error| Error::path("look at", &args.from, error))?;
    if !metadata.is_dir() {
        let message = format!("{} is not a directory", args.from.display());
        return Err(Error::usage(message, "--from names the directory whose content the template gets"));
    }
    let failed = Error::of_store(format!("make the template {}", args.name));
    let store = store::open(context).await?;
    let spinner = output.spinner(&format!("reading {}", args.from.display()));
    let node: NodeName = "sailctl".parse().expect("it is a node name");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let session = Session::join(&store, PoolId::random(), 1, &node, host.trim()).await.map_err(&failed)?;
    let domain = args.domain.unwrap_or_else(Domain::default_domain);
    let work = Box::pin(put(&store, &session, &domain, &args.name, directory.into()));
    let made = tokio::select! {
        made = work => made,
        error = beats(&session) => Err(error),
        stopped = tokio::signal::ctrl_c() => Err(match stopped {
            Ok(()) => Error::state("stopped before it was done: there is no new template", "run it again"),
            Err(error) => Error::local("wait for", "signals", error),
        }),
    };
    // The session's end is part of the work: one that is left live would hold up garbage collection.
    let closed = session.close().await.map_err(&failed);
    spinner.finish_and_clear();
    let made = made?;
    closed?;
    output.one(&made)
}

async fn put(
    store: &Store,
    session: &Session,
    domain: &Domain,
    name: &ResourceName,
    directory: OwnedFd,
) -> Result<TemplateMade> {
    let failed = Error::of_store(format!("make the template {name}"));
    let operation = session.begin().map_err(&failed)?;
    let cache = Cache::new(CACHE_BYTES);
    let writer = Writer::new(store.clone(), session.clone(), domain.clone(), cache, WriteOptions::default());
    let written = writer
        .put(directory, None)
        .await
        .map_err(|error| Error::store(format!("read into {name}"), &error))?;
    if let Some(id) = same(store, name, &written).await? {
        return Ok(TemplateMade::new(name, id, written, false));
    }
    let request = RequestId::random();
    let id = VolumeId::for_request("tpl", &request);
    let sealed = NewSealed {
        id: id.clone(),
        kind: RecordKind::Template,
        domain: domain.clone(),
        heads: entry::data_head(written.tree.clone()),
        origin: None,
        request,
        label: "template".to_owned(),
        quota: Quota::default(),
        attributes: [("name".to_owned(), name.to_string())].into(),
    };
    seal(&operation, sealed).await.map_err(&failed)?;
    names::point(store, NameKind::Template, name, &id, Expected::Any).await.map_err(&failed)?;
    Ok(TemplateMade::new(name, id, written, true))
}

/// The record that the name points to, if it has this tree already.
async fn same(store: &Store, name: &ResourceName, written: &Written) -> Result<Option<VolumeId>> {
    let failed = Error::of_store(format!("look at the template {name}"));
    let Some(id) = names::resolve(store, NameKind::Template, name).await.map_err(&failed)? else {
        return Ok(None);
    };
    let record = record::read(store, &id).await.map_err(&failed)?;
    let head = record.and_then(|record| record.value.head_entry().and_then(entry::Entry::version));
    Ok((head == Some(written.tree.version)).then_some(id))
}

/// Beats until it fails; the work beside it ends the wait.
async fn beats(session: &Session) -> Error {
    loop {
        tokio::time::sleep(BEAT).await;
        if let Err(error) = session.beat().await {
            return Error::of_store("keep the session alive")(error);
        }
    }
}

/// Publishes a state of a volume as a template.
///
/// # Errors
/// There is no such state, or the hub says no.
pub async fn publish(context: &Context, output: &Output, args: TemplatePublishArgs) -> Result<()> {
    let projects = context.projects()?;
    let at = point(&projects, &args.what).await?;
    let asked = Error::asked(format!("publish {} as the template {}", args.what.volume, args.name));
    let made = patiently(async || projects.publish_template(&args.name, &args.what.volume, at).await).await;
    output.list(&[Template::from(made.map_err(asked)?)])
}

/// Deletes a template.
///
/// # Errors
/// Something was made from it, or the hub says no.
pub async fn remove(context: &Context, output: &Output, name: &VolumeRef) -> Result<()> {
    let projects = context.projects()?;
    let gone = patiently(async || projects.delete_template(name).await).await;
    gone.map_err(Error::asked(format!("delete the template {name}")))?;
    output.list(&[Gone { name: name.to_string() }])
}

/// Lists the templates.
///
/// # Errors
/// The hub cannot be asked.
pub async fn list(context: &Context, output: &Output) -> Result<()> {
    let templates = context.projects()?.templates().await.map_err(Error::asked("list the templates"))?;
    output.list(&templates.into_iter().map(Template::from).collect::<Vec<_>>())
}
