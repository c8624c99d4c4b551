//! The one place where the pool's commit is awaited. Callers that come together share one: START_SYNC, then WAIT_SYNC.

use std::sync::Mutex;

use tokio::sync::watch;

/// Which commits have been asked for and which have ended. A commit that is under way when a caller comes may have
/// begun before the caller's change, so the caller waits for the next one.
#[derive(Debug)]
pub(super) struct Commits {
    next: Mutex<Turn>,
}

#[derive(Debug)]
struct Turn {
    /// Set by the leader of the commit that later callers join.
    waiting: Option<watch::Receiver<Outcome>>,
}

/// What the callers of one commit learn. The error is text, because everyone gets it.
type Outcome = Option<Result<(), i32>>;

/// What a caller is in the commit that it joined.
pub(super) enum Part {
    /// Runs the commit when the one before it has ended.
    Lead(watch::Sender<Outcome>),
    /// Waits for it.
    Follow(watch::Receiver<Outcome>),
}

impl Commits {
    pub(super) fn new() -> Self {
        Self { next: Mutex::new(Turn { waiting: None }) }
    }

    /// Joins the commit that has not begun yet.
    pub(super) fn join(&self) -> Part {
        let mut turn = self.next.lock().expect("no code panics while it holds this lock");
        // A leader that was dropped before it began leaves a closed channel: take its place.
        if let Some(receiver) = turn.waiting.as_ref().filter(|receiver| receiver.has_changed().is_ok()) {
            return Part::Follow(receiver.clone());
        }
        let (sender, receiver) = watch::channel(None);
        turn.waiting = Some(receiver);
        Part::Lead(sender)
    }

    /// From here on callers wait for the next commit: this one begins.
    pub(super) fn begin(&self) {
        self.next.lock().expect("no code panics while it holds this lock").waiting = None;
    }
}

/// Waits for the leader. Nothing where the leader went away: the caller has to join again.
pub(super) async fn outcome(mut receiver: watch::Receiver<Outcome>) -> Option<Result<(), i32>> {
    match receiver.wait_for(Option::is_some).await {
        Ok(outcome) => *outcome,
        Err(_) => None,
    }
}
