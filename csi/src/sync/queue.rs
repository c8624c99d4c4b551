//! Who may share a sync: callers that came before its snapshot.

use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::{SyncRequest, Synced};
use crate::error::Error;

/// What the callers of one sync learn.
pub(super) type Outcome = Option<Result<Synced, Arc<Error>>>;

/// The sync of a volume that has not taken its snapshot yet. Callers may join that one and no other: what they wrote
/// would not be in the snapshot of one that is further.
#[derive(Debug, Default)]
pub(crate) struct SyncQueue {
    waiting: Mutex<Option<(SyncRequest, watch::Receiver<Outcome>)>>,
    /// Held by the sync that runs.
    pub(super) turn: tokio::sync::Mutex<()>,
}

/// What a caller is in the sync that it asked for.
pub(super) enum Joined {
    /// It runs it.
    Lead(watch::Sender<Outcome>),
    /// It waits for it.
    Follow(watch::Receiver<Outcome>),
    /// One of another kind waits already.
    Refused,
}

impl SyncQueue {
    /// Joins the sync that waits for its snapshot, or begins one.
    pub(super) fn join(&self, request: &SyncRequest) -> Joined {
        let mut waiting = self.waiting.lock().expect("no code panics while it holds this lock");
        // A leader that ended without an answer has closed its channel.
        if let Some((of, receiver)) = waiting.as_ref().filter(|(_, receiver)| receiver.has_changed().is_ok())
        {
            return if of == request { Joined::Follow(receiver.clone()) } else { Joined::Refused };
        }
        let (sender, receiver) = watch::channel(None);
        *waiting = Some((request.clone(), receiver));
        Joined::Lead(sender)
    }

    /// The snapshot is about to be taken: whoever comes now waits for the next sync.
    pub(crate) fn close(&self) {
        *self.waiting.lock().expect("no code panics while it holds this lock") = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cas::Role;

    #[test]
    fn a_caller_joins_only_a_sync_of_its_kind_that_has_no_snapshot_yet() {
        let queue = SyncQueue::default();
        let plain = SyncRequest::plain();
        let named = SyncRequest { role: Role::Manual, label: "before lunch".to_owned() };
        let Joined::Lead(leader) = queue.join(&plain) else { panic!("the first one leads") };
        assert!(matches!(queue.join(&plain), Joined::Follow(_)));
        assert!(matches!(queue.join(&named), Joined::Refused));
        queue.close();
        let Joined::Lead(second) = queue.join(&plain) else { panic!("the snapshot is taken") };
        assert!(matches!(queue.join(&plain), Joined::Follow(_)));
        drop(second);
        assert!(matches!(queue.join(&named), Joined::Lead(_)), "a leader that ended has no followers");
        drop(leader);
    }
}
