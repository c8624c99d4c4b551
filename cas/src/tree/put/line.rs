//! The line from the scanner through the workers to the builder: batches leave in the order in which they came,
//! whatever order they are worked on, and only so many are on it at once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::tree::error::TreeError;

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<(u64, T)>,
    done: BTreeMap<u64, T>,
    dispatched: u64,
    taken: u64,
    closed: bool,
    /// Set by the first failure; everybody stops.
    failed: bool,
    error: Option<TreeError>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Line<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    most: u64,
}

const STOPPED: TreeError = TreeError::Stopped("another part of the work failed");

impl<T> Line<T> {
    pub(super) fn new(most: usize) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            done: BTreeMap::new(),
            dispatched: 0,
            taken: 0,
            closed: false,
            failed: false,
            error: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), most: most as u64 }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("no holder of this lock panics")
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        self.changed.wait(state).expect("no holder of this lock panics")
    }

    /// Hands a batch to the workers; waits while too many are on the line.
    pub(super) fn dispatch(&self, batch: T) -> Result<(), TreeError> {
        let mut state = self.lock();
        while !state.failed && state.dispatched - state.taken >= self.most {
            state = self.wait(state);
        }
        if state.failed {
            return Err(STOPPED);
        }
        let number = state.dispatched;
        state.dispatched += 1;
        state.waiting.push_back((number, batch));
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// No more batches will come.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Takes the next batch to work on. `None`: there are no more.
    pub(super) fn work(&self) -> Option<(u64, T)> {
        let mut state = self.lock();
        loop {
            if state.failed {
                return None;
            }
            if let Some(batch) = state.waiting.pop_front() {
                return Some(batch);
            }
            if state.closed {
                return None;
            }
            state = self.wait(state);
        }
    }

    /// Gives a batch back when its work is done.
    pub(super) fn done(&self, number: u64, batch: T) {
        self.lock().done.insert(number, batch);
        self.changed.notify_all();
    }

    /// Takes the next finished batch in order. `None`: that was the last.
    pub(super) fn next(&self) -> Result<Option<T>, TreeError> {
        let mut state = self.lock();
        loop {
            if state.failed {
                return Err(state.error.take().unwrap_or(STOPPED));
            }
            let next = state.taken;
            if let Some(batch) = state.done.remove(&next) {
                state.taken += 1;
                drop(state);
                self.changed.notify_all();
                return Ok(Some(batch));
            }
            if state.closed && state.taken == state.dispatched {
                return Ok(None);
            }
            state = self.wait(state);
        }
    }

    /// Stops everybody. The first error is the one that is told.
    pub(super) fn fail(&self, error: TreeError) {
        let mut state = self.lock();
        state.failed = true;
        if state.error.is_none() && !matches!(error, TreeError::Stopped(_)) {
            state.error = Some(error);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Takes the error that stopped the line.
    pub(super) fn error(&self) -> Option<TreeError> {
        self.lock().error.take()
    }
}
