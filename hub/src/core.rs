//! The hub's parts in one place, and the two questions that every operation begins with: where is the volume, and who
//! answers there.

use std::sync::Arc;
use std::time::Duration;

use cas::Store;
use cas::record::Record;
use cas::session::SessionState;
use futures::StreamExt as _;
use proto::node as wire;
use proto::node::node_client::NodeClient;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use types::{Classify as _, Clock, Kind, NodeName, RequestId, SessionId, VolumeId};

use crate::catalog::Catalog;
use crate::config::Settings;
use crate::error::Error;
use crate::flight::Flights;
use crate::hooks::Hooks;
use crate::liveness::Liveness;
use crate::nodes::{LiveNode, Nodes};
use crate::state::State;
use crate::view::OwnerSeen;

/// Materialising a large volume takes minutes; a node that dies meanwhile breaks the connection long before this.
const ORDER_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// A look at a node is quick or the node is not well.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// How many sessions are looked at in the store at once.
const LOOKS_AT_ONCE: usize = 8;

/// What an operation on a volume ended with.
#[derive(Debug, Clone)]
pub enum Done {
    /// There is nothing more to say than what the volume says.
    Volume,
    /// Its name stands for what another request makes.
    Named(RequestId),
    /// It was made, and its node told this of it.
    Made(Box<wire::Volume>),
    /// It can be used there.
    Ensured(proto::hub::EnsureCachedResponse),
    /// It was restored.
    Restored(wire::RestoreVolumeResponse),
}

/// Where a volume is.
#[derive(Debug)]
pub enum Whereabouts {
    /// It has no owner.
    Asleep,
    /// Its owner was fenced, so anybody may take it.
    Fenced,
    /// Its owner answers.
    Live(Box<LiveNode>),
    /// Its owner is dead and may be fenced.
    Dead {
        /// The owner.
        session: SessionId,
        /// Its node, for people.
        node: String,
    },
    /// Nobody knows whether its owner lives.
    Silent {
        /// Its node, for people.
        node: String,
    },
}

/// All that the hub is made of.
#[derive(Debug)]
pub struct Hub {
    /// What it was told at start.
    pub settings: Settings,
    /// The store.
    pub store: Store,
    /// Its memory.
    pub state: State,
    /// Records as it reads them.
    pub catalog: Catalog,
    /// The nodes.
    pub nodes: Nodes,
    /// What is being done.
    pub flights: Flights<Done>,
    /// Which versions hold which contents: hints for nodes.
    pub hooks: Hooks,
    /// What it tells Prometheus.
    pub metrics: proto::metrics::Metrics,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// Ends streams and loops.
    pub stop: CancellationToken,
    /// What has to end before the process does.
    pub tasks: TaskTracker,
}

impl Hub {
    /// Puts the parts together.
    pub fn new(settings: Settings, store: Store, state: State) -> Arc<Self> {
        let clock = Arc::clone(store.clock());
        let tasks = TaskTracker::new();
        Arc::new(Self {
            catalog: Catalog::new(store.clone(), state.clone()),
            nodes: Nodes::new(Arc::clone(&clock), settings.timings),
            flights: Flights::new(tasks.clone()),
            hooks: Hooks::default(),
            settings,
            store,
            state,
            metrics: proto::metrics::Metrics::default(),
            clock,
            stop: CancellationToken::new(),
            tasks,
        })
    }

    /// Looks at a session's beat in the store. False where the store has no such session.
    pub async fn look(&self, session: SessionId) -> Result<bool, Error> {
        let started = self.clock.monotonic();
        let Some(stored) = cas::session::read(&self.store, &session).await? else { return Ok(false) };
        let record = stored.value;
        self.nodes.watch(session, &record.node, None);
        // The revision moves with every write of the session, and with nothing else.
        let fenced = record.state == SessionState::Fenced;
        self.nodes.saw(session, started, format!("{}.{}", record.rev, record.nonce), fenced);
        Ok(true)
    }

    /// Looks at the sessions that are silent, or at all.
    pub async fn look_around(&self, all: bool) -> Result<(), Error> {
        let looks = self.nodes.to_look_at(all).into_iter().map(|session| self.look(session));
        let mut looks = futures::stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE);
        let mut outcome = Ok(());
        while let Some(look) = looks.next().await {
            outcome = outcome.and(look.map(drop));
        }
        outcome
    }

    /// Begins to watch every session that the store has.
    pub async fn look_at_store(&self) -> Result<(), Error> {
        for meta in cas::objects::list_all(&**self.store.objects(), cas::keys::SESSIONS).await? {
            let text = meta.key.as_str().strip_prefix(cas::keys::SESSIONS).unwrap_or_default();
            let session = text.parse().map_err(|_| Error::ForeignObject { key: meta.key.clone() })?;
            if self.nodes.liveness(session).is_none() {
                self.look(session).await?;
            }
        }
        Ok(())
    }

    /// How long an operation that has to be sure waits for a verdict: a node that died a moment ago is dead after the
    /// grace, and a look at the store must follow.
    pub fn verdict_time(&self) -> Duration {
        self.settings.timings.dead * 2 + self.settings.timings.heartbeat * 2
    }

    /// How long an operation that can be asked again waits for a node that is just coming back: nodes redial a hub that
    /// was away within a few seconds.
    pub fn reconnect_time(&self) -> Duration {
        self.settings.timings.dead
    }

    /// Finds out where a volume is, waiting at most `bound` for a silent owner to speak or to be dead.
    pub async fn whereabouts(&self, record: &Record, bound: Duration) -> Result<Whereabouts, Error> {
        let Some(session) = record.owner else { return Ok(Whereabouts::Asleep) };
        let node = || {
            let named = self.nodes.name_of(session).or_else(|| record.node.clone());
            named.map_or_else(|| format!("session {session}"), |node| node.to_string())
        };
        if self.nodes.liveness(session).is_none() && !self.look(session).await? {
            return Ok(Whereabouts::Silent { node: node() });
        }
        Ok(match self.nodes.settle(session, bound).await {
            Liveness::Live => match self.nodes.live_session(session) {
                Some(live) => Whereabouts::Live(Box::new(live)),
                None => Whereabouts::Silent { node: node() },
            },
            Liveness::Suspect => Whereabouts::Silent { node: node() },
            Liveness::Dead => Whereabouts::Dead { session, node: node() },
            Liveness::Fenced => Whereabouts::Fenced,
        })
    }

    /// Notes that a node did not answer a call. One that lives speaks again within a heartbeat.
    pub fn doubt(&self, node: &NodeName) {
        if let Some(silent) = self.nodes.live_by_name(node) {
            self.nodes.doubt(silent.introduction.session);
        }
    }

    /// Gives a node an order that may take long. One that does not answer is doubted.
    pub async fn order<T, A, F>(
        &self,
        node: &LiveNode,
        action: &'static str,
        message: T,
        call: impl FnOnce(NodeClient<Channel>, Request<T>) -> F,
    ) -> Result<A, Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let answer = ask(node, action, ORDER_TIMEOUT, message, call).await;
        if let Err(error) = &answer
            && error.kind() == Kind::Unavailable
        {
            self.doubt(node.name());
        }
        answer
    }

    /// Fences the session of a dead node, after one more look at its beat.
    pub async fn fence(&self, volume: &VolumeId, session: SessionId) -> Result<(), Error> {
        self.look(session).await?;
        match self.nodes.liveness(session) {
            Some(Liveness::Fenced) => return Ok(()),
            Some(Liveness::Dead) => {}
            Some(Liveness::Live | Liveness::Suspect) | None => {
                let node = self.nodes.name_of(session).map_or_else(String::new, |node| node.to_string());
                return Err(Error::OwnerSilent { volume: volume.clone(), node });
            }
        }
        let change = cas::session::fence(&self.store, &session).await?;
        if change.is_made() {
            tracing::warn!(%session, %volume, "fenced the session of a dead node");
        }
        self.nodes.fenced(session);
        Ok(())
    }

    /// Returns what is known of a volume's owner without asking anybody.
    pub fn owner_seen(&self, volume: &VolumeId, owner: Option<SessionId>) -> OwnerSeen {
        OwnerSeen {
            liveness: owner.map(|owner| self.nodes.liveness(owner).unwrap_or(Liveness::Suspect)),
            volume: owner.and_then(|owner| self.nodes.volume(owner, volume)),
            operation: self.flights.current(volume).map(|(operation, _)| operation),
        }
    }

    /// Returns what is known of a volume's owner, with what its node says right now where that answers.
    pub async fn owner_asked(&self, record: &Record) -> OwnerSeen {
        let mut seen = self.owner_seen(&record.id, record.owner);
        if let Some(live) = record.owner.and_then(|owner| self.nodes.live_session(owner)) {
            match look_at(&live, &record.id).await {
                Ok(volume) => seen.volume = Some(volume),
                Err(error) => {
                    tracing::debug!(volume = %record.id, %error, "the node did not describe its volume");
                }
            }
        }
        seen
    }

    /// Describes a volume as it is now.
    pub async fn describe(&self, volume: &VolumeId) -> Result<proto::hub::Volume, Error> {
        let record = self.catalog.living(volume).await?;
        let seen = self.owner_asked(&record).await;
        Ok(crate::view::volume(&record, &seen))
    }

    /// The same for a volume of which its owner has told this moment, so that it need not be asked again.
    pub async fn describe_told(
        &self,
        volume: &VolumeId,
        told: wire::Volume,
    ) -> Result<proto::hub::Volume, Error> {
        let record = match &told.record {
            Some(record) => self.catalog.told(volume, record).await?,
            None => self.catalog.living(volume).await?,
        };
        let seen = if told.owned && told.epoch == record.epoch.0 {
            OwnerSeen { volume: Some(told), ..self.owner_seen(volume, record.owner) }
        } else {
            // It went on since.
            self.owner_asked(&record).await
        };
        Ok(crate::view::volume(&record, &seen))
    }
}

/// Asks a node how a volume is.
pub async fn look_at(node: &LiveNode, volume: &VolumeId) -> Result<wire::Volume, Error> {
    let request = wire::GetVolumeRequest { volume_id: volume.to_string() };
    ask(node, "describe the volume", LOOK_TIMEOUT, request, |mut client, request| async move {
        client.get_volume(request).await
    })
    .await
}

async fn ask<T, A, F>(
    node: &LiveNode,
    action: &'static str,
    bound: Duration,
    message: T,
    call: impl FnOnce(NodeClient<Channel>, Request<T>) -> F,
) -> Result<A, Error>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    let failed = |status| Error::Node { node: node.name().clone(), action, status };
    let mut request = Request::new(message);
    request.set_timeout(bound);
    let timeout = || Status::deadline_exceeded(format!("no answer within {bound:?}"));
    let answer = tokio::time::timeout(bound, call(node.client.clone(), request)).await;
    answer.unwrap_or_else(|_| Err(timeout())).map(Response::into_inner).map_err(failed)
}

/// Returns the candidates that a caller named, parsed.
pub fn candidates(names: &[String]) -> Result<Vec<NodeName>, Error> {
    Ok(names.iter().map(|name| proto::convert::required("candidates", name)).collect::<Result<_, _>>()?)
}
