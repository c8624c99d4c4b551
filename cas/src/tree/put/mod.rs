//! Putting a directory into the store.

mod batch;
mod build;
mod cells;
mod compact;
mod frames;
mod increment;
mod large;
mod level;
mod line;
mod links;
mod open;
mod packs;
mod past;
mod relink;
mod scan;
mod shared;

use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use types::{Domain, Hash, PackId};

use self::batch::{Batch, Shop, Worker};
pub(in crate::tree) use self::batch::{is_zero, join};
use self::build::{Builder, Made};
use self::compact::Emptied;
use self::increment::Increment;
use self::level::Level;
use self::line::Line;
use self::links::Links;
use self::open::Taker;
use self::packs::Packs;
use self::past::Past;
use self::relink::relink;
use self::scan::{Cutter, Scanner};
pub use self::shared::SharedPacks;
use self::shared::{Departure, Share, Waiting};
use super::cache::Cache;
use super::changes::Changes;
use super::dedup::{Dedup, Known, KnownDir, Lookup};
use super::error::TreeError;
use super::fetch::Fetch;
use super::inventory::{Inventory, Root};
use super::location::VersionRef;
use super::manifest::Manifest;
use super::stored::Totals;
use super::thread::lead;
use crate::{Session, Store, blocking};

/// Batches on the line for each worker, each at most about 1 MiB of plain bytes.
const LINE_FOR_A_WORKER: usize = 8;

/// Workers beside one for each processor: so many wait for the disk while the others compress.
const READING: usize = 2;

/// How a tree is written.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// The zstd level of frames; 2 at most while more puts run than there are processors, or the store waits for a whole
    /// tree to be compressed.
    pub zstd_level: i32,
    /// A pack is closed when it has this many bytes.
    pub pack_bytes: usize,
    /// Threads that read, hash and compress.
    pub workers: usize,
    /// Packs on their way to the store at once; each is `pack_bytes` of memory.
    pub uploads: usize,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self { zstd_level: 3, pack_bytes: 16 << 20, workers: blocking::parallelism() + READING, uploads: 4 }
    }
}

/// The version that a put starts from, and what changed since.
#[derive(Debug, Clone)]
pub struct Parent {
    /// The version.
    pub tree: VersionRef,
    /// What changed since.
    pub changes: Changes,
}

/// What a put did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The version. Every pack it names was acknowledged.
    pub tree: VersionRef,
    /// It is not the parent's.
    pub changed: bool,
    /// Files that were read, made, moved or removed.
    pub files_changed: u64,
    /// Files in the version: all names that are not directories.
    pub files: u64,
    /// Bytes of all files in the version.
    pub bytes: u64,
    /// Bytes sent to the store.
    pub bytes_uploaded: u64,
    /// Objects sent to the store.
    pub objects_written: u64,
    /// The whole directory was read.
    pub full_scan: bool,
    /// Some of the contents and cells that were read: what the version can be found by, for whoever answers
    /// [`AskHooks`](super::AskHooks).
    pub hooks: Vec<Hash>,
}

/// Puts directories into a store, under one session and in one dedup domain.
#[derive(Clone)]
pub struct Writer {
    store: Store,
    session: Session,
    domain: Domain,
    cache: Arc<Cache>,
    options: WriteOptions,
    dedup: Option<Dedup>,
    sharing: Option<SharedPacks>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("domain", &self.domain)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// Makes a writer. `cache` is shared with the readers of the process.
    pub fn new(
        store: Store,
        session: Session,
        domain: Domain,
        cache: Arc<Cache>,
        options: WriteOptions,
    ) -> Self {
        Self { store, session, domain, cache, options, dedup: None, sharing: None }
    }

    /// Stores nothing that is known to be stored in the writer's domain, and learns what it stores. A put then has to be
    /// part of the operation that `dedup` is a witness of.
    #[must_use]
    pub fn deduplicating(self, dedup: Dedup) -> Self {
        Self { dedup: Some(dedup), ..self }
    }

    /// Lets puts that store little fill packs together with others of the domain that run at the same time. Only a writer
    /// that is deduplicating does.
    #[must_use]
    pub fn sharing(self, packs: SharedPacks) -> Self {
        Self { sharing: Some(packs), ..self }
    }

    /// Puts the directory `root` into the store and returns its version, when every pack of it was acknowledged.
    ///
    /// With a parent only what its changes name is read; if nothing changed, the answer is the parent and nothing is
    /// written. The caller holds a session's operation from before this call until a record names the version.
    /// A directory that is written to meanwhile is an error: put a read-only snapshot.
    pub async fn put(&self, root: OwnedFd, parent: Option<Parent>) -> Result<Written, TreeError> {
        self.put_told(root.into(), parent).await
    }

    /// The same of a directory with an inventory: what that tells of is not looked at, and a file only opened where its
    /// bytes are not told.
    pub async fn put_told(&self, root: Root, parent: Option<Parent>) -> Result<Written, TreeError> {
        let level = Arc::new(Level::of(self.options.zstd_level, parent.is_none()));
        let (sender, mut packs) = mpsc::channel(1);
        let fetch = Fetch::new(Arc::clone(self.store.objects()), Arc::clone(&self.cache));
        let lookup = Lookup::new(self.dedup.clone(), fetch.clone(), self.domain.clone(), Handle::current());
        let Root { fd, inventory } = root;
        let shop = Shop {
            root: fd,
            lookup,
            packs: Arc::new(Packs::new(
                self.session.clone(),
                self.domain.clone(),
                Handle::current(),
                sender,
                self.options.pack_bytes,
                self.share(),
                Arc::clone(&level),
            )),
            known: Mutex::default(),
            hooks: Mutex::default(),
            level: Arc::clone(&level),
        };
        let base = parent.as_ref().map(|parent| parent.tree.clone());
        let job = Put {
            shop,
            inventory,
            fetch,
            parent,
            workers: self.options.workers.max(1),
            runtime: Handle::current(),
        };
        let mut work = pin!(lead(move || job.run()));
        let mut uploads = FuturesUnordered::new();
        let (mut bytes_uploaded, mut objects_written) = (0, 0);
        let mut made: Option<Result<Done, TreeError>> = None;
        loop {
            tokio::select! {
                biased;
                Some(sent) = uploads.next(), if !uploads.is_empty() => {
                    let sent: Result<u64, crate::Error> = sent;
                    match sent {
                        Ok(bytes) => (bytes_uploaded, objects_written) = (bytes_uploaded + bytes, objects_written + 1),
                        Err(error) => {
                            // The work finds the way to the store closed, and ends.
                            drop(packs);
                            let _stopped = work.await;
                            return Err(error.into());
                        }
                    }
                }
                Some((id, bytes)) = packs.recv(), if uploads.len() < self.options.uploads.max(1) => {
                    level.sent();
                    let bytes: Bytes = bytes;
                    let id: Arc<PackId> = id;
                    uploads.push(async move {
                        let len = bytes.len() as u64;
                        self.session.put_pack(&id, bytes).await.map(|_| len)
                    });
                }
                done = &mut work, if made.is_none() => {
                    made = Some(done);
                }
                else => break,
            }
        }
        let Done { tree, totals, changed, files_changed, full_scan, known, dirs, hooks, shared } =
            made.unwrap_or(Err(TreeError::Stopped("its thread went away")))?;
        if let (Some((waiting, departure)), Some(dedup)) = (shared, &self.dedup) {
            objects_written += self.shared(&waiting, departure, dedup).await?;
            bytes_uploaded += waiting.used();
        }
        // Every upload was answered: only now does this count as stored.
        if let Some(dedup) = &self.dedup {
            dedup.index.learn(&self.domain, known, dirs);
        }
        if let Some(base) = &base {
            self.session.note_built(&tree, base);
        }
        let Totals { files, bytes, .. } = totals;
        Ok(Written {
            tree,
            changed,
            files_changed,
            files,
            bytes,
            bytes_uploaded,
            objects_written,
            full_scan,
            hooks,
        })
    }
}

impl Writer {
    fn share(&self) -> Option<Share> {
        let sharing = self.sharing.as_ref().filter(|_| self.dedup.is_some())?;
        Some(sharing.join(&self.session, &self.domain))
    }

    /// Waits until a shared pack is stored, or stores it. Returns how many objects this wrote.
    async fn shared(
        &self,
        waiting: &Waiting,
        departure: Option<Departure>,
        dedup: &Dedup,
    ) -> Result<u64, TreeError> {
        let departure = match departure {
            Some(departure) => Some(departure),
            None => waiting.answered().await?,
        };
        let sent = u64::from(departure.is_some());
        if let Some(departure) = departure {
            let stored = self.session.put_pack(&departure.id, departure.bytes.clone()).await;
            departure.answer(stored.is_ok());
            stored?;
        }
        // Its name may be older than this operation, which then does not protect it by itself.
        let id = waiting.id();
        if !dedup.witness.proves(id) && dedup.witness.confirm(id).await?.is_none() {
            return Err(TreeError::Stopped("a pack that it shares may not be named any more"));
        }
        Ok(sent)
    }
}

/// What the threads of a put made.
#[derive(Debug)]
struct Done {
    tree: VersionRef,
    totals: Totals,
    changed: bool,
    files_changed: u64,
    full_scan: bool,
    /// What was stored.
    known: Vec<Known>,
    dirs: Vec<KnownDir>,
    hooks: Vec<Hash>,
    /// The pack that it has frames in together with others, and the pack itself if this put has to send it.
    shared: Option<(Waiting, Option<Departure>)>,
}

impl Done {
    /// The parent's version once more. What was placed on the way was not sent.
    fn unchanged(tree: VersionRef, totals: Totals, files_changed: u64, full_scan: bool) -> Self {
        let (known, dirs, hooks, shared) = Default::default();
        Self { tree, totals, changed: false, files_changed, full_scan, known, dirs, hooks, shared }
    }
}

/// The work of one put, away from the runtime.
#[derive(Debug)]
struct Put {
    shop: Shop,
    inventory: Option<Arc<dyn Inventory>>,
    fetch: Fetch,
    parent: Option<Parent>,
    workers: usize,
    runtime: Handle,
}

impl Put {
    fn run(self) -> Result<Done, TreeError> {
        let line = Line::new(self.workers * LINE_FOR_A_WORKER);
        let parent = match &self.parent {
            Some(parent) => Some(self.runtime.block_on(self.fetch.manifest(&parent.tree))?),
            None => None,
        };
        if let (Some(Parent { tree, changes }), Some(manifest)) = (&self.parent, &parent)
            && changes.root.is_empty()
            && changes.links.is_empty()
        {
            return Ok(Done::unchanged(tree.clone(), manifest.totals, 0, false));
        }
        let emptied = parent.as_ref().map_or_else(Emptied::default, |parent| Emptied::of(&parent.packs));
        self.shop.lookup.avoid(emptied.packs());
        let built = thread::scope(|scope| {
            for _ in 0..self.workers {
                scope.spawn(|| stop_on_panic(&line, || self.work(&line)));
            }
            scope.spawn(|| stop_on_panic(&line, || self.scan(&line, &emptied)));
            let built = self.build(&line, parent.as_deref(), &emptied);
            if built.is_err() {
                line.fail(TreeError::Stopped("the tree could not be written"));
            }
            built
        });
        // An error of the work says more than that it stopped.
        built.map_err(|error| {
            if matches!(error, TreeError::Stopped(_)) { line.error().unwrap_or(error) } else { error }
        })
    }

    fn work(&self, line: &Line<Batch>) -> Result<(), TreeError> {
        let mut worker = Worker::new(&self.shop)?;
        while let Some((number, mut batch)) = line.work() {
            worker.work(&mut batch)?;
            line.done(number, batch);
        }
        Ok(())
    }

    fn scan(&self, line: &Line<Batch>, emptied: &Emptied) -> Result<(), TreeError> {
        let root = &self.shop.root;
        let seen = Links::Seen(HashMap::new());
        let taker = Taker::new(root, self.inventory.as_deref())?;
        let mut scanner = Scanner { root, taker, cutter: Cutter::new(line), links: seen };
        match &self.parent {
            None => {
                scanner.walk(b"", b"")?;
                scanner.cutter.flush()?;
            }
            Some(Parent { tree, changes }) => {
                let manifest = self.runtime.block_on(self.fetch.manifest(tree))?;
                let node = self.runtime.block_on(self.fetch.node(&manifest.root, tree.version))?;
                let base = (node, manifest.root.clone());
                let past = Past { fetch: &self.fetch, runtime: &self.runtime, root: base.clone() };
                let (change, roles) = relink(&past, root.as_fd(), changes.clone())?;
                scanner.links = Links::Told(roles);
                let mut increment = Increment { past, scanner, emptied: emptied.clone() };
                increment.directory(&Arc::from(&b""[..]), b"", change, base)?;
                increment.scanner.cutter.flush()?;
            }
        }
        line.close();
        Ok(())
    }

    fn build(
        &self,
        line: &Line<Batch>,
        parent: Option<&Manifest>,
        emptied: &Emptied,
    ) -> Result<Done, TreeError> {
        let mut builder = Builder::new(&self.shop, &self.fetch.cache, emptied)?;
        while let Some(batch) = line.next()? {
            builder.take(batch)?;
        }
        let full_scan = self.parent.is_none();
        let files_changed = builder.files_changed;
        if let (Some(Parent { tree, .. }), Some(manifest)) = (&self.parent, parent)
            && builder.version()? == tree.version
        {
            return Ok(Done::unchanged(tree.clone(), manifest.totals, files_changed, full_scan));
        }
        let Made { tree, totals, dirs } = builder.finish(parent)?;
        let hooks = std::mem::take(&mut *self.shop.hooks.lock().expect("no holder of this lock panics"));
        Ok(Done {
            tree,
            totals,
            changed: true,
            files_changed,
            full_scan,
            known: self.shop.stored(),
            dirs,
            hooks,
            shared: self.shop.packs.shared(),
        })
    }
}

/// Runs a part of the work; its error or panic stops the line, so that nobody waits for it.
fn stop_on_panic(line: &Line<Batch>, part: impl FnOnce() -> Result<(), TreeError>) {
    struct Stop<'a>(&'a Line<Batch>, bool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            if !self.1 {
                self.0.fail(TreeError::Stopped("a thread of it panicked"));
            }
        }
    }
    let mut stop = Stop(line, false);
    if let Err(error) = part() {
        line.fail(error);
    }
    stop.1 = true;
}
