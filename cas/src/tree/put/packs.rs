//! Filling packs: data and tree frames go into one pack while there is little, into two kinds when there is much.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;
use types::{Domain, PackId};

use super::level::Level;
use super::shared::{Departure, Share, Waiting};
use crate::Session;
use crate::tree::error::TreeError;
use crate::tree::frame::{Frame, FrameKind, HEADER_LEN};
use crate::tree::location::Location;
use crate::tree::pack::{PACK_MAX, PackBuilder};

#[derive(Debug)]
struct Open {
    id: Arc<PackId>,
    builder: PackBuilder,
}

#[derive(Debug, Default)]
struct Inner {
    /// Data frames, and everything while nothing was closed yet: a small sync is one pack.
    data: Option<Open>,
    /// Tree frames, once there is more than one pack: a listing then reads no data.
    tree: Option<Open>,
    closed: BTreeMap<Arc<PackId>, u64>,
    /// The first frames go into a pack with those of others, where there is one.
    share: Option<Share>,
    shared: Option<(Waiting, Option<Departure>)>,
}

/// The packs of one put.
#[derive(Debug)]
pub(super) struct Packs {
    inner: Mutex<Inner>,
    session: Session,
    domain: Domain,
    runtime: Handle,
    uploads: Sender<(Arc<PackId>, Bytes)>,
    target: usize,
    level: Arc<Level>,
}

impl Packs {
    pub(super) fn new(
        session: Session,
        domain: Domain,
        runtime: Handle,
        uploads: Sender<(Arc<PackId>, Bytes)>,
        target: usize,
        share: Option<Share>,
        level: Arc<Level>,
    ) -> Self {
        // A frame on top of a full pack must still fit the hard limit.
        let target = target.clamp(1 << 16, PACK_MAX / 2);
        let inner = Inner { share, ..Inner::default() };
        Self { inner: Mutex::new(inner), session, domain, runtime, uploads, target, level }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of this lock panics")
    }

    /// Puts a frame into a pack and says where it lies. Blocks while the store is slower than we are.
    pub(super) fn place(&self, frame: &Frame) -> Result<Location, TreeError> {
        let stored = HEADER_LEN + frame.payload.len();
        let mut inner = self.lock();
        if let Some(mut share) = inner.share.take() {
            if let Some(location) = share.place(frame, &self.runtime)? {
                inner.share = Some(share);
                return Ok(location);
            }
            inner.shared = share.step_aside().map(|waiting| (waiting, None));
        }
        let apart =
            frame.header.kind != FrameKind::Data && (inner.tree.is_some() || !inner.closed.is_empty());
        let full = {
            let open = if apart { &mut inner.tree } else { &mut inner.data };
            open.take_if(|open| open.builder.len_with(stored) > self.target && !open.builder.is_empty())
        };
        if let Some(full) = &full {
            inner.closed.insert(Arc::clone(&full.id), full.builder.final_len());
        }
        let open = if apart { &mut inner.tree } else { &mut inner.data };
        let open = match open {
            Some(open) => open,
            None => {
                let id = Arc::new(self.runtime.block_on(self.session.next_pack(&self.domain))?);
                open.insert(Open { id, builder: PackBuilder::new(self.target) })
            }
        };
        let location = Location {
            pack: Arc::clone(&open.id),
            offset: open.builder.push(frame),
            stored_len: frame.header.stored_len(),
            raw_len: frame.header.raw_len,
        };
        drop(inner);
        if let Some(full) = full {
            self.send(full)?;
        }
        Ok(location)
    }

    fn send(&self, open: Open) -> Result<(), TreeError> {
        let bytes = open.builder.finish();
        self.level.full();
        self.uploads.blocking_send((open.id, bytes)).map_err(|_| TreeError::Stopped("an upload failed"))
    }

    /// Closes the pack of data frames if the last tree frames lie in another, so that its length is known.
    pub(super) fn close_data(&self) -> Result<(), TreeError> {
        let mut inner = self.lock();
        if inner.tree.is_none() {
            return Ok(());
        }
        let Some(open) = inner.data.take() else { return Ok(()) };
        inner.closed.insert(Arc::clone(&open.id), open.builder.final_len());
        drop(inner);
        self.send(open)
    }

    /// Closes what is still open.
    pub(super) fn finish(&self) -> Result<(), TreeError> {
        let mut inner = self.lock();
        if let Some(share) = inner.share.take() {
            inner.shared = share.leave();
        }
        let open = [inner.data.take(), inner.tree.take()];
        drop(inner);
        open.into_iter().flatten().try_for_each(|open| self.send(open))
    }

    /// What became of the pack that was shared, once everything is placed.
    pub(super) fn shared(&self) -> Option<(Waiting, Option<Departure>)> {
        self.lock().shared.take()
    }

    /// Returns the length of a pack that was closed in this put.
    pub(super) fn closed_len(&self, pack: &Arc<PackId>) -> Option<u64> {
        self.lock().closed.get(pack).copied()
    }
}
