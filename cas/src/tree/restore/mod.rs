//! Making a version on disk.

mod difference;
mod engine;
mod part;
mod target;
mod walk;
mod window;
mod worker;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use self::difference::Change;
use self::target::Target;
use self::window::Failures;
use self::worker::{Counts, Queue, Site};
use super::error::TreeError;
use super::location::VersionRef;
use super::read::Reader;

/// How a version is restored.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Threads that decompress, check and write.
    pub workers: usize,
    /// The most bytes that are fetched and not written yet.
    pub budget_bytes: usize,
    /// Owners are restored. Without it everything belongs to the caller, who needs no privilege for it.
    pub owners: bool,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self { workers: crate::blocking::parallelism(), budget_bytes: 40 << 20, owners: true }
    }
}

/// What a restore did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restored {
    /// Names made or changed that are not directories.
    pub files: u64,
    /// Directories made or changed.
    pub directories: u64,
    /// Names removed, with all below them counted.
    pub removed: u64,
    /// Bytes written into files.
    pub bytes: u64,
    /// Bytes fetched from the store.
    pub bytes_fetched: u64,
    /// Requests made to the store.
    pub requests: u64,
}

impl Reader {
    /// Makes the version in `target`, an empty directory. Every byte is proved against the version. Nothing is
    /// flushed: the caller does one `syncfs` before the tree counts. After an error the target holds a part.
    pub async fn restore(
        &self,
        tree: &VersionRef,
        target: OwnedFd,
        options: RestoreOptions,
    ) -> Result<Restored, TreeError> {
        let root = self.fetch.root(tree).await?;
        let site = Site::new(Some(Target::new(target, options.owners)), None);
        engine::run(&self.fetch.ahead(tree).await?, Arc::new(site), &options, move |walk| {
            if let Some(target) = &walk.site.target {
                target.prepare()?;
            }
            walk.tree(Arc::from(&b""[..]), root)
        })
        .await
    }

    /// Makes in `target`, an empty directory, all of a version that is not damaged. What is lost is not there, not even in
    /// part, and is told with its path ([`TreeError::lost_path`]); a directory's stands for all below it.
    ///
    /// # Errors
    /// The root is damaged, so that nothing can be found; or the store or the target failed.
    pub async fn rescue(
        &self,
        tree: &VersionRef,
        target: OwnedFd,
        options: RestoreOptions,
    ) -> Result<(Restored, Vec<TreeError>), TreeError> {
        let root = self.fetch.root(tree).await?;
        let site = Arc::new(Site::new(Some(Target::new(target, options.owners)), Some(usize::MAX)));
        let restored =
            engine::run(&self.fetch.ahead(tree).await?, Arc::clone(&site), &options, move |walk| {
                if let Some(target) = &walk.site.target {
                    target.prepare()?;
                }
                walk.tree(Arc::from(&b""[..]), root)
            })
            .await?;
        Ok((restored, site.failures.damages()))
    }

    /// Turns `target`, which holds exactly the version `from`, into the version `to`. Only what differs is fetched and
    /// touched.
    pub async fn restore_difference(
        &self,
        from: &VersionRef,
        to: &VersionRef,
        target: OwnedFd,
        options: RestoreOptions,
    ) -> Result<Restored, TreeError> {
        if from.version == to.version {
            return Ok(Restored::default());
        }
        let old = self.fetch.root(from).await?;
        let new = self.fetch.root(to).await?;
        let site = Site::new(Some(Target::new(target, options.owners)), None);
        engine::run(&self.fetch, Arc::new(site), &options, move |walk| {
            let mut change = Change { walk, links_touched: false };
            change.run(old, Arc::clone(&new))?;
            if change.links_touched && new.totals.links > 0 {
                change.walk.finish()?;
                change.relink(new)?;
            }
            Ok(())
        })
        .await
    }
}

impl Site {
    /// A place to restore into, or to verify without one; damage up to `collect` is gathered.
    fn new(target: Option<Target>, collect: Option<usize>) -> Self {
        Self { target, failures: Failures::new(collect), counts: Counts::default(), queue: Queue::default() }
    }
}

/// Reads a whole version and proves it. Returns what was read and what is damaged.
pub(super) async fn check(
    reader: &Reader,
    tree: &VersionRef,
    collect: usize,
) -> Result<(Restored, Vec<TreeError>), TreeError> {
    let root = match reader.fetch.root(tree).await {
        Ok(root) => root,
        Err(error) if error.is_damage() => return Ok((Restored::default(), vec![error])),
        Err(error) => return Err(error),
    };
    let site = Arc::new(Site::new(None, Some(collect)));
    let read = engine::run(
        &reader.fetch.ahead(tree).await?,
        Arc::clone(&site),
        &RestoreOptions::default(),
        move |walk| walk.tree(Arc::from(&b""[..]), root),
    )
    .await?;
    Ok((read, site.failures.damages()))
}
