//! Deletions wait for the kernel's cleaner, so that what waits for it stays bounded: with simple quotas it manages some
//! fifty subvolumes a second, and a deletion takes it a tenth of a millisecond to ask for.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use btrfs::cleaner;
use tokio::time::Instant;

use crate::error::Error;
use crate::node::Node;

/// What a volume's deletion brings: its tree and the snapshot that it grew from. What tenants nested comes on top.
const SUBVOLUMES: u64 = 2;

/// How long a deletion waits for its turn before its caller is told to come back.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often the queue is looked at meanwhile.
const POLL: Duration = Duration::from_millis(100);

/// The deletions that have begun. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deletions {
    begun: Arc<Mutex<u64>>,
    /// Held by the one that wakes the cleaner: that is a commit.
    waking: Arc<tokio::sync::Mutex<()>>,
}

/// The right to delete one volume; given back on drop, when what it deleted is in the kernel's queue.
#[derive(Debug)]
pub(crate) struct Deletion(Arc<Mutex<u64>>);

impl Drop for Deletion {
    fn drop(&mut self) {
        *self.0.lock().expect("no code panics while it holds this lock") -= 1;
    }
}

impl Deletions {
    /// Begins one where there is room for it in the queue of `queued()`, looked at while no other begins.
    fn begin<E>(&self, most: u64, queued: impl FnOnce() -> Result<u64, E>) -> Result<Option<Deletion>, E> {
        let mut begun = self.begun.lock().expect("no code panics while it holds this lock");
        let queued = queued()?;
        if !has_room(most, queued, *begun) {
            return Ok(None);
        }
        *begun += 1;
        Ok(Some(Deletion(Arc::clone(&self.begun))))
    }
}

/// Whether one more deletion fits beside those that wait for the cleaner and those that have begun. With none of either
/// there is always room, however small the bound.
fn has_room(most: u64, queued: u64, begun: u64) -> bool {
    queued + begun == 0 || queued + (begun + 1) * SUBVOLUMES <= most
}

impl Node {
    /// Waits until the kernel's cleaner has room for what a volume's deletion gives it.
    ///
    /// # Errors
    /// [`Error::CleanerBehind`]: it is behind, and stays so.
    pub(crate) async fn begin_deletion(&self) -> Result<Deletion, Error> {
        let most = self.config().deleted_most;
        let until = Instant::now() + PATIENCE;
        loop {
            let deletions = self.deletions().clone();
            let begun = self.pool().run(move |root| Ok(deletions.begin(most, || cleaner::queued(root))?));
            if let Some(deletion) = begun.await? {
                return Ok(deletion);
            }
            if Instant::now() >= until {
                return Err(Error::CleanerBehind { most });
            }
            if let Ok(_waking) = self.deletions().waking.try_lock() {
                self.pool().run(|root| Ok(cleaner::wait(root, &[], Duration::ZERO)?)).await?;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{Classify as _, Kind};

    #[test]
    fn deletions_fill_the_cleaners_queue_and_no_more() {
        for (most, queued, begun, expected) in
            [(8, 0, 0, true), (8, 6, 0, true), (8, 7, 0, false), (8, 4, 1, true), (8, 4, 2, false)]
        {
            assert_eq!(has_room(most, queued, begun), expected, "{queued} + {begun} of {most}");
        }
        assert!(has_room(0, 0, 0) && !has_room(0, 1, 0) && !has_room(0, 0, 1), "one by one, but not never");
    }

    #[test]
    fn a_deletion_counts_until_it_has_ended() {
        let deletions = Deletions::default();
        let empty = || Ok::<_, Error>(0);
        let first = deletions.begin(2, empty).unwrap().unwrap();
        assert!(deletions.begin(2, empty).unwrap().is_none());
        drop(first);
        assert!(deletions.begin(2, empty).unwrap().is_some());
        let behind = Error::CleanerBehind { most: 2 };
        assert!(behind.kind() == Kind::ResourceExhausted && behind.kind().is_retryable());
    }
}
