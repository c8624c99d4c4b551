//! The thread that leads one put, restore or verification.
//!
//! Not through `blocking::run`: that door's permits are also what a directory store needs to answer, and this work
//! waits for the store. As many leaders as permits would wait for ever.

use std::thread;

use tokio::sync::{Semaphore, oneshot};

use super::error::TreeError;

/// How many of them at once: each has its workers, and memory for its packs or its budget.
const LEADERS: usize = 16;

static LEADER: Semaphore = Semaphore::const_new(LEADERS);

/// Runs `work` on a thread of its own. Dropping the future does not stop it: the work ends when it finds that nobody
/// takes what it makes.
pub(crate) async fn lead<T, F>(work: F) -> Result<T, TreeError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, TreeError> + Send + 'static,
{
    let permit = LEADER.acquire().await.expect("it is never closed");
    let (answer, answered) = oneshot::channel();
    let leader = thread::Builder::new().name("tree".to_owned()).spawn(move || {
        let result = work();
        drop(permit);
        // Nobody listens any more: the caller has gone.
        let _unheard = answer.send(result);
    });
    if let Err(source) = leader {
        return Err(TreeError::io("start a thread", b"", source));
    }
    answered.await.unwrap_or(Err(TreeError::Stopped("a thread of it panicked")))
}
