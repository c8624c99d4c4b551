//! Growing pauses with jitter between the tries of one call, up to a patience.

use std::time::Duration;

use tokio::time::Instant;

use crate::store::Retry;

/// The pauses of one call.
#[derive(Debug)]
pub(crate) struct Pauses {
    retry: Retry,
    next: Duration,
    began: Instant,
}

impl Pauses {
    pub(crate) fn new(retry: Retry) -> Self {
        Self { retry, next: retry.first, began: Instant::now() }
    }

    /// Sleeps, unless patience is over: then it says so at once.
    pub(crate) async fn pause(&mut self) -> bool {
        if self.began.elapsed() >= self.retry.patience {
            return false;
        }
        // Between half and all of the pause, so that callers that failed together do not come back together.
        tokio::time::sleep(self.next.mul_f64(rand::random_range(0.5..=1.0))).await;
        self.next = (self.next * 2).min(self.retry.longest);
        true
    }
}
