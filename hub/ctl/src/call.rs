//! Asking again where the answer was "not now".

use std::time::Duration;

use types::{Classify, Kind};

/// How long another operation on the volume may take before a person is told to try again: a sync of a few hundred
/// megabytes ends within it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two tries; it doubles up to the second one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Calls until the answer is other than "something else works on the volume just now", for a while.
///
/// # Errors
/// The last answer.
pub async fn patiently<T, E: Classify>(call: impl AsyncFnMut() -> Result<T, E>) -> Result<T, E> {
    retried(PATIENCE, |kind| kind == Kind::Aborted, call).await
}

/// Calls until the answer is one that waiting does not change, for as long as `patience`.
///
/// # Errors
/// The last answer.
pub async fn retried<T, E: Classify>(
    patience: Duration,
    passes: impl Fn(Kind) -> bool,
    mut call: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let end = tokio::time::Instant::now() + patience;
    let mut pause = FIRST_PAUSE;
    loop {
        match call().await {
            Err(error) if passes(error.kind()) && tokio::time::Instant::now() < end => {
                tracing::debug!(kind = ?error.kind(), "not now: trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Says(Kind);

    impl Classify for Says {
        fn kind(&self) -> Kind {
            self.0
        }
    }

    #[tokio::test]
    async fn a_volume_that_is_busy_is_asked_again_for_a_while() {
        let mut calls = 0;
        let answer = patiently(async || {
            calls += 1;
            if calls < 3 { Err(Says(Kind::Aborted)) } else { Ok(7) }
        });
        assert_eq!(answer.await.unwrap(), 7);
        assert_eq!(calls, 3);
    }

    #[tokio::test]
    async fn an_answer_that_waiting_does_not_change_is_taken_at_once() {
        let mut calls = 0;
        let answer = patiently(async || {
            calls += 1;
            Err::<(), _>(Says(Kind::NotFound))
        });
        assert_eq!(answer.await.unwrap_err().kind(), Kind::NotFound);
        assert_eq!(calls, 1);
        let never = retried(Duration::ZERO, |_| true, async || Err::<(), _>(Says(Kind::Aborted)));
        assert_eq!(never.await.unwrap_err().kind(), Kind::Aborted);
    }
}
