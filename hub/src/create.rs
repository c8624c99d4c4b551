//! Making volumes: empty, from a template, or as a fork.
//!
//! The id comes from the request, so a retry finds the first attempt wherever it got to: at nothing, at a record that is
//! being made (then only its maker may finish it, or anybody once its maker is fenced), or at a living volume. Two nodes
//! cannot make one volume: the record is created if absent.

use std::collections::BTreeMap;
use std::sync::Arc;

use cas::names::NameKind;
use cas::record::{Record, State as Life};
use proto::node as wire;
use serde::Serialize;
use types::{Classify as _, Domain, EntryId, Kind, NodeName, RequestId, ResourceName, VersionId, VolumeId};

use crate::catalog::NAME;
use crate::core::{Done, Hub, Whereabouts};
use crate::error::Error;
use crate::flight::{Course, Operation};
use crate::nodes::LiveNode;
use crate::order::owner;
use crate::placement::{Budget, Wish, place};
use crate::state::Intent;
use crate::unique::{self, UniqueName, claim};
use crate::view::head_version;

/// How many nodes are tried before the caller is told.
const ROUNDS: usize = 3;

/// What a new volume begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Source {
    /// Nothing.
    Empty,
    /// What the template of this name is now.
    Template(ResourceName),
    /// A point of another volume.
    Fork(VolumeId, Point),
}

/// A point of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Point {
    /// What is there now, made durable first.
    Present,
    /// An entry of its timeline.
    Entry(EntryId),
    /// A version of its timeline.
    Version(VersionId),
}

/// How much it may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Limit {
    /// What the source has, or what this hub gives.
    Default,
    /// So many bytes; 0: unlimited, asked for.
    Asked(u64),
}

/// A volume that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NewVolume {
    /// The caller's name for it.
    pub request: RequestId,
    /// Its unique name, where `request` is the first that the name stands for and nobody has looked yet.
    #[serde(skip)]
    pub unique: Option<UniqueName>,
    /// What it begins with.
    pub source: Source,
    /// There and nowhere else. Where it goes is not what it is: a retry may say another node.
    #[serde(skip)]
    pub required: Option<NodeName>,
    /// There if possible.
    #[serde(skip)]
    pub hint: Option<NodeName>,
    /// How much it may hold.
    pub limit: Limit,
    /// Its dedup domain.
    pub domain: Option<Domain>,
    /// Its attributes, the name among them.
    pub attributes: BTreeMap<String, String>,
}

/// A source that was looked up: the version that the new volume begins with.
struct Beginning {
    origin: Option<(VolumeId, VersionId)>,
    limit_bytes: u64,
    content_bytes: u64,
    /// Where the source is, which is the best place for a copy.
    beside: Option<NodeName>,
}

impl NewVolume {
    fn id(&self) -> VolumeId {
        VolumeId::for_request("vol", &self.request)
    }

    fn words(&self) -> String {
        serde_json::to_string(self).expect("strings, numbers and maps of strings can be written as JSON")
    }
}

/// Makes the volume, or joins or finds the attempt that does. Returns its id, and what the node told of it that made it
/// just now.
pub async fn create(hub: &Arc<Hub>, new: NewVolume) -> Result<(VolumeId, Option<wire::Volume>), Error> {
    match attempt(hub, new.clone()).await? {
        (_, Done::Named(request)) => told(attempt(hub, NewVolume { request, unique: None, ..new }).await?),
        done => told(done),
    }
}

fn told((id, done): (VolumeId, Done)) -> Result<(VolumeId, Option<wire::Volume>), Error> {
    match done {
        Done::Made(told) => Ok((id, Some(*told))),
        Done::Volume => Ok((id, None)),
        Done::Named(_) | Done::Ensured(_) | Done::Restored(_) => Err(Error::OperationDied { volume: id }),
    }
}

async fn attempt(hub: &Arc<Hub>, new: NewVolume) -> Result<(VolumeId, Done), Error> {
    let id = new.id();
    let operation = Operation::Create(new.words());
    let owned = Arc::clone(hub);
    let work = |course: Arc<Course<Done>>| async move { make(&owned, &new, &course).await };
    let done = hub.flights.fly(&id, operation, work).await?;
    Ok((id, done))
}

async fn make(hub: &Hub, new: &NewVolume, course: &Course<Done>) -> Result<Done, Error> {
    let id = new.id();
    let named = async {
        match &new.unique {
            Some(name) => claim(hub, name).await,
            None => Ok(true),
        }
    };
    // At once: the name is taken, and asked is what the first attempt set out to do, how far it came, and what to begin with
    // if there was none. A name leads to its record before there is one, so that none is ever out of reach.
    let (named, intent, found, source) = tokio::join!(
        named,
        hub.state.intent(new.request.clone()),
        hub.catalog.read(&id),
        source_now(hub, &new.source)
    );
    let (named, intent, found) = (named?, intent?, found?);
    let gone = |record: &Record| matches!(record.state, Life::Deleted | Life::Purged);
    if let Some(name) = &new.unique
        && (!named || found.as_ref().is_some_and(gone))
    {
        return Ok(Done::Named(unique::request(hub, name).await?));
    }
    if intent.as_ref().is_some_and(|intent| intent.words != new.words()) {
        return Err(Error::MadeDifferently { volume: id, what: "set of parameters" });
    }
    let (mut found, mut source) = (Some(found), Some(source));
    let mut beginning = None;
    let mut failed: Vec<NodeName> = Vec::new();
    let mut last = None;
    for _ in 0..ROUNDS {
        let record = match found.take() {
            Some(found) => found,
            None => hub.catalog.read(&id).await?,
        };
        let maker = match &record {
            None => None,
            Some(record) => {
                check_source(record, new)?;
                match record.state {
                    Life::Live => return Ok(Done::Volume),
                    Life::Deleted | Life::Purged => return Err(Error::MadeAndDeleted { volume: id }),
                    Life::Creating => maker(hub, record).await?,
                }
            }
        };
        if let Some(source) = source.take() {
            let known = intent.as_ref().and_then(|intent| intent.origin.clone());
            beginning = Some(begin(hub, new, record.as_ref(), known, source).await?);
        }
        let Some(begins) = &beginning else { continue };
        let node = match maker {
            Some(node) => node,
            None => match choose(hub, new, begins, intent.as_ref(), &failed) {
                Ok(node) => node,
                // All that could be tried was: say what the last one said, not that there is none left.
                Err(error) => return Err(last.unwrap_or(error)),
            },
        };
        course.towards(node.name());
        let noted = hub.state.put_intent(Intent {
            request: new.request.clone(),
            volume: id.clone(),
            node: node.name().clone(),
            origin: begins.origin.clone(),
            words: new.words(),
            created: hub.clock.now(),
        });
        let request = wire::CreateVolumeRequest {
            volume_id: id.to_string(),
            request_id: new.request.to_string(),
            origin: begins.origin.as_ref().map(|(volume, version)| wire::Origin {
                volume_id: volume.to_string(),
                version: version.to_string(),
            }),
            quota_bytes: Some(begins.limit_bytes),
            domain: new.domain.as_ref().map_or_else(String::new, ToString::to_string),
            attributes: new.attributes.clone().into_iter().collect(),
        };
        let answer = hub.order(&node, "make the volume", request, |mut client, request| async move {
            client.create_volume(request).await
        });
        // Noted while the node works: where neither is known later, the record decides who makes it and from what.
        let (noted, answer) = tokio::join!(noted, answer);
        noted?;
        match answer {
            Ok(told) => {
                tracing::info!(volume = %id, node = %node.name(), "made a volume");
                return Ok(Done::Made(Box::new(told)));
            }
            Err(error) if goes_elsewhere(error.kind()) => {
                tracing::warn!(volume = %id, node = %node.name(), %error, "a node did not make a volume");
                failed.push(node.name().clone());
                last = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or(Error::NotMadeYet { volume: id }))
}

/// Tells if another node may succeed where one failed so. The record decides who made it, so asking is safe.
pub fn goes_elsewhere(kind: Kind) -> bool {
    match kind {
        Kind::Unavailable | Kind::ResourceExhausted | Kind::Aborted => true,
        Kind::InvalidArgument
        | Kind::OutOfRange
        | Kind::NotFound
        | Kind::AlreadyExists
        | Kind::FailedPrecondition
        | Kind::DeadlineExceeded
        | Kind::Cancelled
        | Kind::PermissionDenied
        | Kind::DataLoss
        | Kind::Unimplemented
        | Kind::Internal => false,
    }
}

/// Returns the node that has to finish a record that is being made; nothing where anybody may.
async fn maker(hub: &Hub, record: &Record) -> Result<Option<LiveNode>, Error> {
    match hub.whereabouts(record, hub.verdict_time()).await? {
        Whereabouts::Live(node) => Ok(Some(*node)),
        Whereabouts::Asleep | Whereabouts::Fenced => Ok(None),
        Whereabouts::Dead { session, .. } => {
            hub.fence(&record.id, session).await?;
            Ok(None)
        }
        Whereabouts::Silent { node } => Err(Error::OwnerSilent { volume: record.id.clone(), node }),
    }
}

/// Refuses a request that found a record made from something else.
fn check_source(record: &Record, new: &NewVolume) -> Result<(), Error> {
    let same = match (&new.source, &record.origin) {
        (Source::Empty, None) | (Source::Template(_), Some(_)) => true,
        (Source::Fork(volume, _), Some(origin)) => origin.volume == *volume,
        (Source::Empty, Some(_)) | (Source::Template(_) | Source::Fork(..), None) => false,
    };
    if same { Ok(()) } else { Err(Error::MadeDifferently { volume: record.id.clone(), what: "source" }) }
}

/// Reads the record that a source names now.
async fn source_now(hub: &Hub, source: &Source) -> Result<Option<Record>, Error> {
    match source {
        Source::Empty => Ok(None),
        Source::Template(name) => template(hub, name).await.map(Some),
        Source::Fork(volume, _) => hub.catalog.living(volume).await.map(Some),
    }
}

/// Looks up what the volume begins with: `source`, as it is now. A retry begins with what the first attempt did, which its
/// record or its intent says.
async fn begin(
    hub: &Hub,
    new: &NewVolume,
    record: Option<&Record>,
    known: Option<(VolumeId, VersionId)>,
    source: Result<Option<Record>, Error>,
) -> Result<Beginning, Error> {
    let known = record
        .and_then(|record| record.origin.as_ref())
        .and_then(|origin| origin.versions.values().next().map(|version| (origin.volume.clone(), *version)))
        .or(known);
    let limit = |source: Option<u64>| match new.limit {
        Limit::Asked(bytes) => bytes,
        Limit::Default => source.unwrap_or(hub.settings.default_quota.0),
    };
    let source = match (&new.source, &known) {
        // The name may point to another one since.
        (Source::Template(_), Some((volume, _))) => Some(hub.catalog.living(volume).await?),
        _ => source?,
    };
    let Some(source) = source else {
        return Ok(Beginning { origin: None, limit_bytes: limit(None), content_bytes: 0, beside: None });
    };
    let fork = matches!(new.source, Source::Fork(..));
    let version = match (&new.source, known) {
        (_, Some((_, version))) => version,
        (Source::Fork(_, point), None) => fork_version(hub, &source, *point).await?,
        (Source::Template(name), None) => head_version(&source)
            .ok_or_else(|| Error::EmptyTemplate { name: name.to_string(), volume: source.id.clone() })?,
        (Source::Empty, None) => unreachable!("an empty volume was answered above"),
    };
    let owner = source.owner.and_then(|owner| hub.nodes.live_session(owner));
    Ok(Beginning {
        // A fork of what is unlimited, because somebody asked for that, is so too.
        limit_bytes: limit(fork.then(|| source.quota.limit_bytes.unwrap_or(0))),
        content_bytes: source.quota.charge_bytes,
        beside: owner.map(|node| node.name().clone()),
        origin: Some((source.id, version)),
    })
}

/// Returns the record that a template's name points to.
pub async fn template(hub: &Hub, name: &ResourceName) -> Result<Record, Error> {
    let missing = || Error::NoTemplate { name: name.to_string() };
    let volume = cas::names::resolve(&hub.store, NameKind::Template, name).await?.ok_or_else(missing)?;
    match hub.catalog.living(&volume).await {
        Err(Error::NoVolume { .. }) => Err(missing()),
        other => other,
    }
}

async fn fork_version(hub: &Hub, source: &Record, point: Point) -> Result<VersionId, Error> {
    let no_entry = |wanted: String| Error::NoEntry { volume: source.id.clone(), wanted };
    match point {
        Point::Entry(entry) => {
            let found = crate::order::find(hub, source, point).await?;
            found.as_ref().and_then(crate::view::version_of).ok_or_else(|| no_entry(entry.to_string()))
        }
        Point::Version(version) => {
            let found = crate::order::find(hub, source, point).await?;
            found.map(|_| version).ok_or_else(|| no_entry(version.to_string()))
        }
        Point::Present => {
            // What a dead owner had not synced cannot be reached, and its last durable state is not what is there now:
            // whoever wants that names it, or wakes the source first.
            let Some(node) = owner(hub, source, hub.verdict_time()).await? else {
                return head_version(source).ok_or_else(|| Error::NoVersion { volume: source.id.clone() });
            };
            let request = wire::SyncVolumeRequest {
                volume_id: source.id.to_string(),
                label: String::new(),
                role: wire::EntryRole::Sync.into(),
            };
            let answer = hub.order(&node, "sync the source", request, |mut client, request| async move {
                client.sync_volume(request).await
            });
            Ok(proto::convert::required("version", &answer.await?.version)?)
        }
    }
}

/// Chooses the node for a volume that nobody is making.
fn choose(
    hub: &Hub,
    new: &NewVolume,
    begins: &Beginning,
    intent: Option<&Intent>,
    failed: &[NodeName],
) -> Result<LiveNode, Error> {
    let live = hub.nodes.live();
    let wish = Wish {
        required: new.required.clone(),
        // The first attempt's node may have done half of it.
        hint: intent
            .map(|intent| intent.node.clone())
            .or_else(|| new.hint.clone())
            .or_else(|| begins.beside.clone()),
        allowed: Vec::new(),
        content_bytes: begins.content_bytes,
        budget: Budget::default(),
    };
    let content = begins.origin.as_ref().map(|(volume, version)| (volume, Some(version)));
    let candidates: Vec<_> = live
        .iter()
        .filter(|node| !failed.contains(node.name()))
        .map(|node| node.candidate(content))
        .collect();
    let best = place(&wish, &candidates)?;
    let chosen = live.into_iter().find(|node| best.first() == Some(node.name()));
    Ok(chosen.expect("placement chooses among the nodes it was given"))
}

/// Puts a name for people among the attributes.
pub fn with_name(
    mut attributes: BTreeMap<String, String>,
    name: Option<&ResourceName>,
) -> BTreeMap<String, String> {
    if let Some(name) = name {
        attributes.insert(NAME.to_owned(), name.to_string());
    }
    attributes
}
