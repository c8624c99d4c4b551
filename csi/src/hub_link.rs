//! The node's session with the hub: hello, the whole inventory, then heartbeats and what changed. Lost, it is dialled
//! again; the node works on without it.

use std::sync::Arc;
use std::time::Duration;

use proto::hub::{
    AttachRequest, AttachResponse, Heartbeat, Hello, Inventory, attach_request, attach_response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::error::Error;
use crate::node::Node;

/// How long to wait before the first redial; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The hub notices a node within this long after it came back.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Until the hub says how often.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(1);

/// Usage moves without an event of ours, so the whole inventory is sent again this often.
const WHOLE_INVENTORY: Duration = Duration::from_secs(30);

/// Messages on their way to the hub. More means that it does not read: then the link is dead.
const QUEUE: usize = 8;

/// Volumes in one message, which has to stay far below 4 MiB.
const VOLUMES_PER_MESSAGE: usize = 1_000;

/// Keeps a session with the hub until the node stops.
pub async fn run(node: Arc<Node>, hub: String) {
    let stop = node.stop().clone();
    let mut pause = FIRST_PAUSE;
    loop {
        let ended = stop.run_until_cancelled(attach(&node, &hub, &mut pause)).await;
        node.known_bytes().set_attached(false);
        match ended {
            None => return,
            Some(Ok(())) => tracing::info!(hub, "the hub ended the session"),
            Some(Err(status)) => {
                tracing::warn!(hub, code = ?status.code(), reason = status.message(), "no session with the hub; the node works on");
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One session with the hub, until it ends.
async fn attach(node: &Arc<Node>, hub: &str, pause: &mut Duration) -> Result<(), Status> {
    let channel = proto::client::channel(hub).map_err(|error| Status::unavailable(error.to_string()))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    // In the queue before the call: the hub waits for the hello before it answers.
    let session = node.session_id();
    send(&sender, attach_request::Message::Hello(hello(node))).await?;
    let mut answers = proto::client::hub(channel).attach(ReceiverStream::new(receiver)).await?.into_inner();
    let mut heartbeat = DEFAULT_HEARTBEAT;
    let mut tick = tokio::time::interval(heartbeat);
    let mut last_whole = None;
    loop {
        tokio::select! {
            answer = answers.message() => match answer? {
                None => return Ok(()),
                Some(AttachResponse { message: Some(attach_response::Message::Welcome(welcome)) }) => {
                    *pause = FIRST_PAUSE;
                    node.known_bytes().set_attached(true);
                    heartbeat = match welcome.heartbeat_millis {
                        0 => DEFAULT_HEARTBEAT,
                        millis => Duration::from_millis(millis.into()),
                    };
                    tick = tokio::time::interval(heartbeat);
                    tracing::info!(hub, "attached");
                }
                Some(AttachResponse { message: Some(attach_response::Message::Fenced(_)) }) => {
                    tracing::warn!(hub, "the hub says that this session was declared dead");
                    node.suspect_fenced();
                    return Ok(());
                }
                Some(AttachResponse { message: None }) => {}
            },
            _ = tick.tick() => {
                if node.session_id() != session {
                    // A new session says hello anew.
                    return Ok(());
                }
                let whole = last_whole.is_none_or(|at: tokio::time::Instant| at.elapsed() >= WHOLE_INVENTORY);
                for inventory in inventories(node, whole).await? {
                    send(&sender, attach_request::Message::Inventory(inventory)).await?;
                }
                if whole {
                    last_whole = Some(tokio::time::Instant::now());
                }
                let heartbeat = Heartbeat { capacity: Some(node.capacity().await?), checks: node.checks().await? };
                send(&sender, attach_request::Message::Heartbeat(heartbeat)).await?;
            }
        }
    }
}

async fn send(sender: &mpsc::Sender<AttachRequest>, message: attach_request::Message) -> Result<(), Status> {
    sender
        .send(AttachRequest { message: Some(message) })
        .await
        .map_err(|_| Status::unavailable("the hub closed the stream"))
}

fn hello(node: &Node) -> Hello {
    Hello {
        node: node.name().to_string(),
        session: node.session_id().map(|id| id.to_string()).unwrap_or_default(),
        address: node.address().to_owned(),
        zone: node.config().zone.clone(),
        store_id: node.store().id().to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// What the hub should know: everything, or what changed since it was last told.
async fn inventories(node: &Node, whole: bool) -> Result<Vec<Inventory>, Error> {
    let (changed, gone) = node.volumes().take_touched();
    let volumes = if whole { node.volumes().all() } else { changed };
    if !whole && volumes.is_empty() && gone.is_empty() {
        return Ok(Vec::new());
    }
    let mut messages: Vec<Inventory> = Vec::new();
    for some in volumes.chunks(VOLUMES_PER_MESSAGE) {
        let volumes = node.describe_all(some.to_vec()).await?;
        messages.push(Inventory { volumes, ..Inventory::default() });
    }
    if messages.is_empty() {
        messages.push(Inventory::default());
    }
    let first = messages.first_mut().expect("one was just added if there was none");
    first.removed = gone.iter().map(ToString::to_string).collect();
    first.templates = node.shelf().templates();
    // The first of several replaces what the hub believed, the others add to it.
    first.complete = whole;
    Ok(messages)
}
