//! The threads and requests of a restore or a verification, put together.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};

use super::walk::Walk;
use super::window::RangeUnit;
use super::worker::{Counts, Ready, Site, Worker, name_lost};
use super::{RestoreOptions, Restored};
use crate::tree::error::TreeError;
use crate::tree::fetch::Fetch;
use crate::tree::thread::lead;

/// Requests in flight at once.
const REQUESTS: usize = 16;

/// Fetches what `walk` asks for and works on it; returns when all is done.
pub(super) async fn run<F>(
    fetch: &Fetch,
    site: Arc<Site>,
    options: &RestoreOptions,
    walk: F,
) -> Result<Restored, TreeError>
where
    F: FnOnce(&mut Walk<'_>) -> Result<(), TreeError> + Send + 'static,
{
    let (sender, mut ranges) = mpsc::channel::<RangeUnit>(4);
    let workers = options.workers.max(1);
    // In KiB, so that the number of permits fits. A range that is larger than the budget goes alone.
    let budget = (options.budget_bytes >> 10).clamp(1, Semaphore::MAX_PERMITS >> 1);
    let semaphore = Arc::new(Semaphore::new(budget));
    let mut work = pin!({
        let (fetch, site, runtime) = (fetch.clone(), Arc::clone(&site), Handle::current());
        lead(move || threads(&fetch, &site, &runtime, sender, workers, walk))
    });
    let mut requests = FuturesUnordered::new();
    let mut finished = None;
    loop {
        tokio::select! {
            biased;
            Some(()) = requests.next(), if !requests.is_empty() => {}
            Some(unit) = ranges.recv(), if requests.len() < REQUESTS => {
                requests.push(bring(fetch, &site, &semaphore, budget, unit));
            }
            done = &mut work, if finished.is_none() => {
                finished = Some(done);
            }
            else => break,
        }
    }
    let walked = finished.unwrap_or(Err(TreeError::Stopped("its thread went away")));
    // What stopped the work says more than that it stopped.
    match (walked, site.failures.error()) {
        (Ok(()), None) => {}
        (Err(TreeError::Stopped(_)) | Ok(()), Some(error)) => return Err(error),
        (Err(error), _) => return Err(error),
    }
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let Counts { files, directories, removed, bytes, bytes_fetched, requests } = &site.counts;
    Ok(Restored {
        files: read(files),
        directories: read(directories),
        removed: read(removed),
        bytes: read(bytes),
        bytes_fetched: read(bytes_fetched),
        requests: read(requests),
    })
}

/// Fetches one range and gives it to the workers.
async fn bring(fetch: &Fetch, site: &Arc<Site>, semaphore: &Arc<Semaphore>, budget: usize, unit: RangeUnit) {
    let len = unit.range.end - unit.range.start;
    let permits = usize::try_from(len >> 10).unwrap_or(budget).clamp(1, budget);
    let permits = u32::try_from(permits).unwrap_or(u32::MAX);
    let permit = Arc::clone(semaphore).acquire_many_owned(permits).await.expect("the budget is never closed");
    if site.failures.failed() {
        return;
    }
    Counts::add(&site.counts.requests, 1);
    match fetch.range(&unit.pack, unit.range.clone()).await {
        Ok(bytes) => {
            Counts::add(&site.counts.bytes_fetched, len);
            site.queue.push(Ready::Range(unit, bytes, permit));
        }
        Err(error) if site.failures.collects() && error.is_damage() && unit.frames.len() > 1 => {
            // A pack that was cut: what lies before the cut is still good.
            for frame in unit.frames {
                let range = frame.location.range();
                match fetch.range(&unit.pack, range).await {
                    Ok(stored) => site.check_alone(&frame, &stored),
                    Err(error) => {
                        name_lost(&site.failures, &frame);
                        site.failures.report(error);
                    }
                }
            }
        }
        Err(error) => {
            for frame in &unit.frames {
                name_lost(&site.failures, frame);
            }
            site.failures.report(error);
        }
    }
}

fn threads<F>(
    fetch: &Fetch,
    site: &Site,
    runtime: &Handle,
    ranges: mpsc::Sender<RangeUnit>,
    workers: usize,
    walk: F,
) -> Result<(), TreeError>
where
    F: FnOnce(&mut Walk<'_>) -> Result<(), TreeError>,
{
    // Whatever happens to this thread, the workers must end.
    struct Close<'a>(&'a Site);
    impl Drop for Close<'_> {
        fn drop(&mut self) {
            self.0.queue.close();
        }
    }
    thread::scope(|scope| {
        let close = Close(site);
        for _ in 0..workers {
            scope.spawn(move || Worker::new(site).run());
        }
        let mut walker = Walk::new(site, fetch, runtime, ranges);
        let walked = walk(&mut walker).and_then(|()| walker.finish());
        if let Err(error) = &walked
            && !matches!(error, TreeError::Stopped(_))
        {
            site.failures.report(TreeError::Stopped("the walk failed"));
        }
        drop(close);
        walked
    })
}
