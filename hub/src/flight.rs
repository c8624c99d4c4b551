//! One lifecycle operation at a time on a volume. The same operation asked for again joins it; another is told to come
//! back. An operation runs to its end whoever leaves, so a retry finds it under way or done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use types::{NodeName, VolumeId};

use crate::error::Error;
use crate::placement::Budget;
use crate::settings::Attributes;

/// More operations at once than this are a caller gone wild, not work.
const MOST_FLIGHTS: usize = 1024;

/// What is being done to a volume. Equal operations are joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// It is being made, by the request that says this.
    Create(String),
    /// It is being deleted where its attributes are these.
    Delete(Attributes),
    /// It is being brought to an entry or version.
    Restore(String),
    /// It is being made usable somewhere, with this much free beside it.
    Ensure(Budget),
    /// It is being moved to a node.
    Move(NodeName),
    /// It is being put to sleep.
    Hibernate,
}

impl Operation {
    /// Says what is under way, for an error and for Status.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Create(_) => "being created",
            Self::Delete(_) => "being deleted",
            Self::Restore(_) => "being restored",
            Self::Ensure(_) => "being brought to a node",
            Self::Move(_) => "being moved",
            Self::Hibernate => "being put to sleep",
        }
    }
}

type Landing<T> = Option<Result<T, Arc<Error>>>;

#[derive(Debug)]
struct Flight<T> {
    operation: Operation,
    towards: Option<NodeName>,
    landed: watch::Receiver<Landing<T>>,
}

/// The operations under way, by volume.
#[derive(Debug)]
pub struct Flights<T> {
    flying: Arc<Mutex<HashMap<VolumeId, Flight<T>>>>,
    tasks: TaskTracker,
}

/// Lets an operation say where it takes its volume, while it is under way.
#[derive(Debug)]
pub struct Course<T> {
    volume: VolumeId,
    flying: Arc<Mutex<HashMap<VolumeId, Flight<T>>>>,
}

impl<T> Course<T> {
    /// Says that the volume is on its way to `node`.
    pub fn towards(&self, node: &NodeName) {
        let mut flying = self.flying.lock().expect("no holder of this lock panics");
        if let Some(flight) = flying.get_mut(&self.volume) {
            flight.towards = Some(node.clone());
        }
    }
}

/// The flight ends with its task, also when that panics.
impl<T> Drop for Course<T> {
    fn drop(&mut self) {
        self.flying.lock().expect("no holder of this lock panics").remove(&self.volume);
    }
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// Keeps its tasks in `tasks`.
    pub fn new(tasks: TaskTracker) -> Self {
        Self { flying: Arc::default(), tasks }
    }

    /// Runs `work` on the volume, or joins the same operation that is under way.
    ///
    /// # Errors
    /// [`Error::Busy`] where another operation is; else what the operation ended with.
    pub async fn fly<F>(
        &self,
        volume: &VolumeId,
        operation: Operation,
        work: impl FnOnce(Arc<Course<T>>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut landed = {
            let mut flying = self.flying.lock().expect("no holder of this lock panics");
            match flying.get(volume) {
                Some(flight) if flight.operation == operation => flight.landed.clone(),
                Some(flight) => {
                    return Err(Error::Busy {
                        volume: volume.clone(),
                        operation: flight.operation.describe(),
                    });
                }
                None if flying.len() >= MOST_FLIGHTS => return Err(Error::TooBusy { most: MOST_FLIGHTS }),
                None if self.tasks.is_closed() => return Err(Error::ShuttingDown),
                None => {
                    let (land, landed) = watch::channel(None);
                    flying
                        .insert(volume.clone(), Flight { operation, towards: None, landed: landed.clone() });
                    let course =
                        Arc::new(Course { volume: volume.clone(), flying: Arc::clone(&self.flying) });
                    let future = work(Arc::clone(&course));
                    self.tasks.spawn(async move {
                        let outcome = future.await.map_err(Arc::new);
                        // Free the volume before anybody hears of it: who hears may ask for the next thing at once.
                        drop(course);
                        land.send_replace(Some(outcome));
                    });
                    landed
                }
            }
        };
        let outcome = landed
            .wait_for(Option::is_some)
            .await
            .map_err(|_| Error::OperationDied { volume: volume.clone() })?;
        match outcome.as_ref() {
            Some(Ok(done)) => Ok(done.clone()),
            Some(Err(error)) => Err(Error::Operation(Arc::clone(error))),
            None => Err(Error::OperationDied { volume: volume.clone() }),
        }
    }

    /// Returns what is under way on a volume, and where it takes it.
    pub fn current(&self, volume: &VolumeId) -> Option<(Operation, Option<NodeName>)> {
        let flying = self.flying.lock().expect("no holder of this lock panics");
        flying.get(volume).map(|flight| (flight.operation.clone(), flight.towards.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    fn volume() -> VolumeId {
        "vol-1".parse().unwrap()
    }

    #[tokio::test]
    async fn the_same_operation_is_joined_and_another_is_told_to_come_back() {
        let flights = Arc::new(Flights::<u32>::new(TaskTracker::new()));
        let runs = Arc::new(AtomicU32::new(0));
        let (go, gone) = watch::channel(false);
        let fly = |operation: Operation| {
            let (flights, runs, mut gone) = (Arc::clone(&flights), Arc::clone(&runs), gone.clone());
            async move {
                flights
                    .fly(&volume(), operation, |_| async move {
                        runs.fetch_add(1, Ordering::SeqCst);
                        gone.wait_for(|go| *go).await.unwrap();
                        Ok(7)
                    })
                    .await
            }
        };
        let first = tokio::spawn(fly(Operation::Ensure(Budget::default())));
        let second = tokio::spawn(fly(Operation::Ensure(Budget::default())));
        tokio::time::sleep(Duration::from_millis(20)).await;
        let other = fly(Operation::Delete(Attributes::new())).await.unwrap_err();
        assert!(matches!(other, Error::Busy { .. }), "{other}");
        go.send_replace(true);
        assert_eq!((first.await.unwrap().unwrap(), second.await.unwrap().unwrap()), (7, 7));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert!(flights.current(&volume()).is_none());
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_does_not_stop_its_operation() {
        let flights = Arc::new(Flights::<u32>::new(TaskTracker::new()));
        let (done, mut finished) = watch::channel(false);
        let id = volume();
        let left = tokio::time::timeout(
            Duration::from_millis(10),
            flights.fly(&id, Operation::Ensure(Budget::default()), |_| async move {
                tokio::time::sleep(Duration::from_millis(40)).await;
                done.send_replace(true);
                Ok(1)
            }),
        );
        left.await.unwrap_err();
        finished.wait_for(|done| *done).await.unwrap();
    }

    #[tokio::test]
    async fn an_operation_that_panics_frees_its_volume() {
        let flights = Flights::<u32>::new(TaskTracker::new());
        let error = flights
            .fly(&volume(), Operation::Ensure(Budget::default()), |_| async { panic!("on purpose") })
            .await
            .unwrap_err();
        assert!(matches!(error, Error::OperationDied { .. }), "{error}");
        let operation = Operation::Delete(Attributes::new());
        assert_eq!(flights.fly(&volume(), operation, |_| async { Ok(2) }).await.unwrap(), 2);
    }
}
