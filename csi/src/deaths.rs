//! Places between two steps on the pool at which a process may die, so that tests can die at each of them.
//!
//! A death stops everything that goes through the pool's door from there on, as a kill does: the step after it is not
//! made, no undo is made, and whoever waits for the pool waits for ever. In builds without debug assertions nobody dies.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::Error;

macro_rules! points {
    ($($(#[doc = $text:literal])+ $name:ident,)+) => {
        /// A place between two steps.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Point { $($(#[doc = $text])+ $name,)+ }

        impl Point {
            /// All that exist.
            pub const ALL: &[Self] = &[$(Self::$name,)+];
        }
    };
}

points! {
    /// A volume's directory is there, without the one for its snapshots.
    DirectoryMade,
    /// A quota group is there, without a limit.
    GroupMade,
    /// An empty subvolume is in staging.
    StagedEmpty,
    /// A clone is in staging.
    StagedClone,
    /// A fork is in its place, and no record says so.
    Planted,
    /// A staged tree that is not needed is gone.
    Unstaged,
    /// A staged tree is in its place.
    MovedIn,
    /// A snapshot is taken, and has no name yet.
    SnapshotTaken,
    /// It has the name of its version.
    SnapshotNamed,
    /// A snapshot that is not needed is gone.
    SnapshotDropped,
    /// The snapshots of a group are taken; whether in one transaction is not known.
    GroupTaken,
    /// `base` leads to another snapshot.
    BaseSet,
    /// The facts of a copy are written.
    AboutSet,
    /// The kernel keeps another limit.
    Limited,
    /// A directory has its property, those above it have not.
    PropertySet,
    /// A live tree is out of sight, and not deleted.
    LiveHidden,
    /// A live tree is deleted, the rest of its directory not.
    LiveDeleted,
    /// A snapshot that nobody needs is deleted, its empty directory not.
    PlaceDeleted,
    /// The new tree of a restore is beside live.
    BesideLive,
    /// It is live, and base is that of the old one.
    Exchanged,
    /// The tree that it replaced is deleted.
    OldDeleted,
    /// A template's tree is in its wrapper, in staging.
    TemplateWrapped,
    /// It is read-only.
    TemplateSealed,
    /// It is in its place.
    TemplatePlaced,
    /// A clone has its root, and stubs where subvolumes are nested.
    CloneRooted,
    /// A nested subvolume is in the place of its stub.
    CloneNested,
    /// The pool's commit is about to be waited for.
    CommitBegun,
    /// It is on disk.
    Committed,
}

/// Which points were passed, and at which the process dies. Clones share it.
#[derive(Clone, Default)]
pub struct Deaths(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    visited: Vec<Point>,
    fatal: Option<usize>,
    dead: bool,
    told: Option<Box<dyn FnOnce() + Send>>,
}

impl fmt::Debug for Deaths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deaths").field("visited", &self.lock().visited).finish_non_exhaustive()
    }
}

thread_local! {
    /// Whose door this thread has gone through.
    static HERE: RefCell<Option<Deaths>> = const { RefCell::new(None) };
}

/// Whose door this thread has gone through, for threads that it starts: what they do is counted there too.
pub(crate) fn here() -> Deaths {
    HERE.with_borrow(Clone::clone).unwrap_or_default()
}

/// Passes a point.
///
/// # Errors
/// The process dies here, or has died: the caller makes no further step, also not to clean up.
pub(crate) fn pass(point: Point) -> Result<(), Error> {
    if !cfg!(debug_assertions) {
        return Ok(());
    }
    let deaths = HERE.with_borrow(Clone::clone);
    deaths.map_or(Ok(()), |deaths| deaths.reach(point))
}

impl Deaths {
    /// Counts from zero, and dies at the point with this index (`None`: at none). `told` is called in the moment of death.
    pub fn plan(&self, fatal: Option<usize>, told: impl FnOnce() + Send + 'static) {
        let mut state = self.lock();
        *state = State { fatal, told: Some(Box::new(told)), ..State::default() };
    }

    /// The points that were passed, in order.
    pub fn visited(&self) -> Vec<Point> {
        self.lock().visited.clone()
    }

    /// Whether the process is dead.
    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Runs blocking work with this as what its points are counted by.
    pub(crate) fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        if !cfg!(debug_assertions) {
            return work();
        }
        HERE.set(Some(self.clone()));
        let result = work();
        HERE.set(None);
        result
    }

    /// Returns at once, or never where the process is dead.
    pub(crate) async fn survive(&self) {
        if cfg!(debug_assertions) && self.is_dead() {
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn reach(&self, point: Point) -> Result<(), Error> {
        if !cfg!(debug_assertions) {
            return Ok(());
        }
        let mut state = self.lock();
        if !state.dead {
            state.dead = state.fatal == Some(state.visited.len());
            state.visited.push(point);
            let told = if state.dead { state.told.take() } else { None };
            let dead = state.dead;
            drop(state);
            told.into_iter().for_each(|told| told());
            return if dead { Err(Error::ShuttingDown) } else { Ok(()) };
        }
        Err(Error::ShuttingDown)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_pass_no_point_and_tell_once() {
        let (deaths, told) = (Deaths::default(), Arc::new(Mutex::new(0)));
        let count = Arc::clone(&told);
        deaths.plan(Some(1), move || *count.lock().unwrap() += 1);
        let steps = deaths.enter(|| {
            let first = pass(Point::StagedEmpty);
            let second = pass(Point::MovedIn);
            (first.is_ok(), second.is_ok(), pass(Point::BaseSet).is_ok())
        });
        assert_eq!(steps, (true, false, false));
        assert_eq!(deaths.visited(), [Point::StagedEmpty, Point::MovedIn]);
        assert_eq!((*told.lock().unwrap(), deaths.is_dead()), (1, true));
        assert!(pass(Point::BaseSet).is_ok(), "outside the door nobody dies");
    }
}
