//! Packs that small puts fill together: those of one domain that run at the same time. One request then stores what a
//! tick changed in several volumes.
//!
//! A put joins the open pack when it begins. With the first put that has no more frames nobody joins any more, and with the
//! last, or when the first has waited long enough, the pack goes to the store. Every put that has a frame in it
//! waits for the answer. Should one of them fail, its frames are garbage and the others' are not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::watch;
use types::{Domain, PackId, SessionId};

use crate::Session;
use crate::tree::error::TreeError;
use crate::tree::frame::{Frame, HEADER_LEN};
use crate::tree::location::Location;
use crate::tree::pack::PackBuilder;

/// Frames of one put in a shared pack, in stored bytes; one that has more to store fills packs of its own.
const SHARE_MAX: usize = 1 << 20;

/// A shared pack is closed when it has this many bytes.
const PACK_FULL: usize = 16 << 20;

/// The first that is done waits this long for the others.
const PATIENCE: Duration = Duration::from_millis(100);

/// The open packs of a process, one for each session and domain. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct SharedPacks(Arc<Mutex<OpenPacks>>);

type OpenPacks = HashMap<(SessionId, Domain), Arc<Pack>>;

/// Whether a pack is stored: unknown, yes, no.
type Answer = Option<bool>;

#[derive(Debug)]
struct Pack {
    session: Session,
    domain: Domain,
    state: Mutex<State>,
    answer: watch::Sender<Answer>,
}

#[derive(Debug)]
struct State {
    /// Its name, with its first frame.
    id: Option<Arc<PackId>>,
    /// Not once it is on its way.
    builder: Option<PackBuilder>,
    /// Puts that may still place frames.
    placing: usize,
    /// Nobody joins any more.
    sealed: bool,
}

/// A pack that takes no more frames.
type Closed = (Arc<PackId>, PackBuilder, Arc<Pack>);

/// One put's part in a shared pack.
#[derive(Debug)]
pub(super) struct Share {
    pack: Arc<Pack>,
    used: usize,
}

/// A pack that has to be sent, by whoever holds this. Dropped without an answer it counts as not stored.
#[derive(Debug)]
pub(super) struct Departure {
    pub(super) id: Arc<PackId>,
    pub(super) bytes: Bytes,
    pack: Arc<Pack>,
}

impl SharedPacks {
    /// Joins the open pack of a domain, or opens one.
    pub(super) fn join(&self, session: &Session, domain: &Domain) -> Share {
        let mut packs = self.0.lock().expect("no holder of this lock panics");
        let key = (session.id(), domain.clone());
        if let Some(pack) = packs.get(&key) {
            let mut state = pack.lock();
            if !state.sealed {
                state.placing += 1;
                return Share { pack: Arc::clone(pack), used: 0 };
            }
        }
        packs.retain(|_, pack| !pack.lock().sealed);
        let state =
            Mutex::new(State { id: None, builder: Some(PackBuilder::new(0)), placing: 1, sealed: false });
        let (session, domain, answer) = (session.clone(), domain.clone(), watch::Sender::new(None));
        let pack = Arc::new(Pack { session, domain, state, answer });
        packs.insert(key, Arc::clone(&pack));
        Share { pack, used: 0 }
    }
}

impl Pack {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Closes it, for whoever sends it.
    fn close(self: &Arc<Self>, state: &mut State) -> Option<Closed> {
        state.sealed = true;
        let id = Arc::clone(state.id.as_ref()?);
        Some((id, state.builder.take()?, Arc::clone(self)))
    }
}

impl Share {
    /// Places a frame. `None`: there is no more room for this put.
    pub(super) fn place(&mut self, frame: &Frame, runtime: &Handle) -> Result<Option<Location>, TreeError> {
        let stored = HEADER_LEN + frame.payload.len();
        let mut state = self.pack.lock();
        let State { id, builder, .. } = &mut *state;
        let Some(builder) = builder else { return Ok(None) };
        if self.used + stored > SHARE_MAX || builder.len_with(stored) > PACK_FULL {
            return Ok(None);
        }
        let pack = match id {
            Some(id) => id,
            None => {
                let next = runtime.block_on(self.pack.session.next_pack(&self.pack.domain))?;
                id.insert(Arc::new(next))
            }
        };
        self.used += stored;
        Ok(Some(Location {
            pack: Arc::clone(pack),
            offset: builder.push(frame),
            stored_len: frame.header.stored_len(),
            raw_len: frame.header.raw_len,
        }))
    }

    /// Places no more frames, and goes on. Somebody else sends the pack, or this put in the end.
    pub(super) fn step_aside(self) -> Option<Waiting> {
        let id = self.pack.lock().id.clone().filter(|_| self.used > 0)?;
        Some(Waiting { id, pack: Arc::clone(&self.pack), used: self.used })
    }

    /// Places no more frames, and is done. The last one gets the pack, to send it.
    pub(super) fn leave(self) -> Option<(Waiting, Option<Departure>)> {
        let waiting = self.step_aside()?;
        let mut state = waiting.pack.lock();
        let closed = if state.placing == 0 { waiting.pack.close(&mut state) } else { None };
        drop(state);
        Some((waiting, closed.map(Departure::new)))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.pack.lock();
        state.placing -= 1;
        state.sealed = true;
    }
}

impl Departure {
    /// Hashes all of the pack: not under a lock.
    fn new((id, builder, pack): Closed) -> Self {
        Self { id, bytes: builder.finish(), pack }
    }

    /// Tells the others.
    pub(super) fn answer(self, stored: bool) {
        self.pack.answer.send_replace(Some(stored));
    }
}

impl Drop for Departure {
    fn drop(&mut self) {
        self.pack.answer.send_if_modified(|answer| {
            let unknown = answer.is_none();
            if unknown {
                *answer = Some(false);
            }
            unknown
        });
    }
}

/// A put that has frames in a shared pack.
#[derive(Debug)]
pub(super) struct Waiting {
    id: Arc<PackId>,
    pack: Arc<Pack>,
    used: usize,
}

impl Waiting {
    pub(super) fn id(&self) -> &Arc<PackId> {
        &self.id
    }

    /// Bytes of it that are this put's.
    pub(super) fn used(&self) -> u64 {
        self.used as u64
    }

    /// Waits until the pack is stored, or until it is this put that has to send it.
    pub(super) async fn answered(&self) -> Result<Option<Departure>, TreeError> {
        let mut answer = self.pack.answer.subscribe();
        if tokio::time::timeout(PATIENCE, answer.wait_for(Option::is_some)).await.is_err() {
            let closed = self.pack.close(&mut self.pack.lock());
            if let Some(closed) = closed {
                return Ok(Some(Departure::new(closed)));
            }
        }
        let stored = answer.wait_for(Option::is_some).await.is_ok_and(|answer| *answer == Some(true));
        if stored { Ok(None) } else { Err(TreeError::Stopped("a pack that it shares was not stored")) }
    }
}

#[cfg(test)]
mod tests {
    use types::{PoolId, SystemClock};

    use super::*;
    use crate::Store;
    use crate::objects::MemoryStore;
    use crate::tree::frame::{Compressor, FrameKind};

    async fn session() -> Session {
        let clock = Arc::new(SystemClock);
        let store =
            Store::create_or_open(Arc::new(MemoryStore::default()), clock).await.unwrap().into_inner();
        Session::join(&store, PoolId::random(), 1, &"node".parse().unwrap(), "host").await.unwrap()
    }

    fn frame() -> Frame {
        Compressor::new(3).unwrap().frame(FrameKind::Data, &[7; 1_000]).unwrap()
    }

    fn join(packs: &SharedPacks, session: &Session) -> Share {
        packs.join(session, &Domain::default_domain())
    }

    /// Places a frame as a put does: away from the runtime.
    async fn place(mut share: Share) -> (Share, Option<Location>) {
        let runtime = Handle::current();
        let placed = std::thread::spawn(move || {
            let location = share.place(&frame(), &runtime).unwrap();
            (share, location)
        });
        while !placed.is_finished() {
            tokio::task::yield_now().await;
        }
        placed.join().unwrap()
    }

    #[tokio::test]
    async fn the_last_one_sends_and_all_hear() {
        let (packs, session) = (SharedPacks::default(), session().await);
        let _operation = session.begin().unwrap();
        let ((one, first_place), (two, second_place)) =
            (place(join(&packs, &session)).await, place(join(&packs, &session)).await);
        assert_ne!(first_place.unwrap(), second_place.unwrap());
        let (first, none) = one.leave().unwrap();
        assert!(none.is_none(), "the other has not placed all of its frames");
        let (_late, elsewhere) = place(join(&packs, &session)).await;
        assert_ne!(elsewhere.unwrap().pack, *first.id(), "nobody joins a pack that somebody waits for");
        let (_second, departure) = two.leave().unwrap();
        departure.unwrap().answer(true);
        assert!(first.answered().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn one_that_fails_or_dawdles_holds_nobody_up() {
        let (packs, session) = (SharedPacks::default(), session().await);
        let _operation = session.begin().unwrap();
        let failing = join(&packs, &session);
        let ((one, _), (two, _)) = (place(join(&packs, &session)).await, place(join(&packs, &session)).await);
        drop(failing);
        let (waiting, none) = one.leave().unwrap();
        assert!(none.is_none());
        let departure = waiting.answered().await.unwrap().unwrap();
        let (two, none) = place(two).await;
        assert!(none.is_none(), "what is on its way takes no more frames");
        let (second, none) = two.leave().unwrap();
        assert!(none.is_none());
        // Whoever was to send it went away.
        drop(departure);
        second.answered().await.unwrap_err();
    }

    #[tokio::test]
    async fn one_that_placed_nothing_waits_for_nobody() {
        let (packs, session) = (SharedPacks::default(), session().await);
        let _operation = session.begin().unwrap();
        let (idle, (one, _)) = (join(&packs, &session), place(join(&packs, &session)).await);
        assert!(idle.leave().is_none());
        assert!(one.leave().unwrap().1.is_some(), "it is the last, and sends its own");
    }
}
