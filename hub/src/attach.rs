//! A node's stream: it introduces itself, then tells how it is and what it holds, for as long as both live.
//!
//! The end of a stream means nothing by itself: a node that restarts comes back before it is missed.

use std::sync::Arc;
use std::time::Duration;

use cas::session::SessionState;
use proto::convert::{optional, required};
use proto::hub::{AttachRequest, AttachResponse, Fenced, Hello, Welcome, attach_request, attach_response};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use types::StoreId;

use crate::core::Hub;
use crate::error::Error;
use crate::liveness::Liveness;
use crate::nodes::{Attachment, Introduction};
use crate::state::KnownNode;

/// A node that dialed in and says nothing is not waited for.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// The hub says two things on a stream: welcome, and how it ends.
const ANSWERS: usize = 2;

/// The hub's half of a stream.
pub type Answers = ReceiverStream<Result<AttachResponse, Status>>;

/// Serves one node until it or the hub ends the stream.
pub fn attach(hub: &Arc<Hub>, messages: Streaming<AttachRequest>) -> Answers {
    let (answer, answers) = mpsc::channel(ANSWERS);
    let hub = Arc::clone(hub);
    let tasks = hub.tasks.clone();
    tasks.spawn(async move {
        let stop = hub.stop.clone();
        let outcome = stop.run_until_cancelled(serve(&hub, messages, &answer)).await;
        let last = match outcome {
            None => Err(Error::ShuttingDown.into()),
            Some(Ok(())) => return,
            Some(Err(Error::Fenced { session })) => {
                tracing::warn!(%session, "told a node that its session is fenced");
                Ok(AttachResponse { message: Some(attach_response::Message::Fenced(Fenced {})) })
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "ended the stream of a node");
                Err(error.into())
            }
        };
        // The node may have gone already.
        drop(answer.try_send(last));
    });
    ReceiverStream::new(answers)
}

async fn serve(
    hub: &Hub,
    mut messages: Streaming<AttachRequest>,
    answer: &mpsc::Sender<Result<AttachResponse, Status>>,
) -> Result<(), Error> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, messages.message()).await.map_err(|_| Error::NoHello)?;
    let Ok(Some(AttachRequest { message: Some(attach_request::Message::Hello(hello)) })) = first else {
        return Err(Error::NoHello);
    };
    let introduction = introduce(hub, hello).await?;
    let attachment = welcome(hub, introduction.clone()).await?;
    let heartbeat_millis = u32::try_from(hub.settings.timings.heartbeat.as_millis()).unwrap_or(u32::MAX);
    let message = Some(attach_response::Message::Welcome(Welcome { heartbeat_millis }));
    drop(answer.try_send(Ok(AttachResponse { message })));
    loop {
        let message = match messages.message().await {
            Ok(Some(AttachRequest { message: Some(message) })) => message,
            // A message of a newer build that this one does not know; it says that the node lives.
            Ok(Some(AttachRequest { message: None })) => continue,
            Ok(None) => return Ok(()),
            Err(status) => {
                tracing::debug!(node = %introduction.node, %status, "the stream of a node broke");
                return Ok(());
            }
        };
        let goes_on = match message {
            attach_request::Message::Hello(hello) => {
                let again = introduce(hub, hello).await?;
                if again.session != attachment.session {
                    return Err(Error::NoHello);
                }
                hub.nodes.introduce_again(attachment, again)?
            }
            attach_request::Message::Heartbeat(heartbeat) => hub.nodes.heartbeat(attachment, heartbeat),
            attach_request::Message::Inventory(inventory) => hub.nodes.inventory(attachment, inventory),
        };
        if !goes_on {
            let session = attachment.session;
            return match hub.nodes.liveness(session) {
                Some(Liveness::Fenced) => Err(Error::Fenced { session }),
                // A newer stream of the same session took over.
                Some(Liveness::Live | Liveness::Suspect | Liveness::Dead) | None => Ok(()),
            };
        }
    }
}

/// Reads a hello, and refuses a node of another store.
async fn introduce(hub: &Hub, hello: Hello) -> Result<Introduction, Error> {
    let theirs: Option<StoreId> = optional("store_id", &hello.store_id)?;
    if theirs != Some(hub.store.id()) {
        return Err(Error::OtherStore { theirs: hello.store_id, ours: hub.store.id() });
    }
    let introduction = Introduction {
        node: required("node", &hello.node)?,
        session: required("session", &hello.session)?,
        address: required("address", &hello.address)?,
        zone: hello.zone,
        version: hello.version,
    };
    let session = introduction.session;
    let stored = cas::session::read(&hub.store, &session).await?.ok_or(Error::UnknownSession { session })?;
    match stored.value.state {
        SessionState::Live => Ok(introduction),
        SessionState::Fenced => Err(Error::Fenced { session }),
    }
}

async fn welcome(hub: &Hub, introduction: Introduction) -> Result<Attachment, Error> {
    let known = KnownNode {
        node: introduction.node.clone(),
        session: introduction.session,
        address: introduction.address.clone(),
        zone: introduction.zone.clone(),
        version: introduction.version.clone(),
        heard: hub.clock.now(),
    };
    let attachment = hub.nodes.attach(introduction)?;
    hub.state.put_node(known.clone()).await?;
    tracing::info!(node = %known.node, session = %known.session, address = known.address, "a node dialed in");
    Ok(attachment)
}
