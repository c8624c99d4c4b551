//! The one door from async code in this crate to work that blocks: files, hashing of much data, `flock`.
//!
//! A call takes a permit, moves it onto a blocking thread, and gives it back when the work is done. **Dropping the
//! future does not stop the work**; the permit stays with it until its end. So all work that goes through here must
//! be repeatable.

use std::sync::OnceLock;
use std::thread;

use tokio::sync::Semaphore;
use tokio::task;

/// How much blocking work runs at once. Disks gain nothing from more, and tokio's own limit (512 threads) is no bound
/// on memory when each job holds a pack of 16 MiB.
const PERMITS: usize = 64;

static DOOR: Semaphore = Semaphore::const_new(PERMITS);

/// Runs `work` on a blocking thread and waits for what it returns. A panic in it goes on in the caller.
pub async fn run<T, F>(work: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let permit = DOOR.acquire().await.expect("the door is never closed");
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    let job = task::spawn_blocking(move || {
        let answer = work();
        drop(permit);
        answer
    });
    match job.await {
        Ok(answer) => answer,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // Blocking work that has started cannot be cancelled; work that has not is dropped only with the runtime.
        Err(_) => std::future::pending().await,
    }
}

/// How many threads are worth starting for work that computes. Asked once: the answer is read from several files.
pub fn parallelism() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_runs_and_answers() {
        assert_eq!(run(|| 6 * 7).await, 42);
    }

    #[tokio::test]
    #[should_panic(expected = "in the work")]
    async fn a_panic_in_the_work_reaches_its_caller() {
        run(|| panic!("in the work")).await;
    }
}
