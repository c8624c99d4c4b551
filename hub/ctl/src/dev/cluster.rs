//! What a cluster on this machine consists of, kept in `cluster.json`; and where its things lie.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use types::Timestamp;

use super::process::Process;
use crate::context::{Context, below_home, user_file};
use crate::error::{Error, Result};

/// The hub among the daemons.
pub(super) const HUB: &str = "hub";

/// The only form of the file so far.
const FORMAT: u32 = 1;

/// A cluster as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cluster {
    format: u32,
    pub(super) store: String,
    pub(super) pool_size: String,
    pub(super) sync_interval: String,
    pub(super) dead: String,
    pub(super) quota: String,
    pub(super) hub: String,
    pub(super) nodes: Vec<Node>,
}

/// A node of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) address: String,
}

impl Cluster {
    /// Chooses addresses for a new cluster.
    pub(super) fn new(place: &Place, args: &crate::cli::UpArgs) -> Result<Self> {
        let store = args.store.clone().unwrap_or_else(|| place.default_store());
        let mut cluster = Self {
            format: FORMAT,
            store,
            pool_size: args.pool_size.clone(),
            sync_interval: args.sync_interval.to_string(),
            dead: args.dead.to_string(),
            quota: args.quota.clone(),
            hub: free_address()?,
            nodes: Vec::new(),
        };
        cluster.grow(args.nodes)?;
        Ok(cluster)
    }

    /// Adds nodes up to this many.
    pub(super) fn grow(&mut self, nodes: u16) -> Result<()> {
        for number in self.nodes.len() + 1..=usize::from(nodes) {
            self.nodes.push(Node { name: format!("node-{number}"), address: free_address()? });
        }
        Ok(())
    }

    /// Names of all daemons, the hub first.
    pub(super) fn daemons(&self) -> impl Iterator<Item = &str> {
        std::iter::once(HUB).chain(self.nodes.iter().map(|node| node.name.as_str()))
    }

    /// The context for commands.
    pub(super) fn context(&self) -> Context {
        Context::new(self.hub.clone(), self.store.clone())
    }
}

/// Ports for daemons are taken from below the range that the kernel gives to clients, so that one stays free while
/// its daemon is down.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

fn free_address() -> Result<String> {
    const TRIES: u32 = 1_000;
    for _ in 0..TRIES {
        // A ULID ends in random bits; nothing here needs better ones.
        let random = u16::try_from(ulid::Ulid::generate().0 & 0xffff).expect("sixteen bits");
        let address = format!("127.0.0.1:{}", PORTS.start + random % (PORTS.end - PORTS.start));
        if TcpListener::bind(&address).is_ok() {
            return Ok(address);
        }
    }
    Err(Error::state("no free port was found on 127.0.0.1", "end what listens on so many ports"))
}

/// The directory of a cluster.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) directory: PathBuf,
}

impl Place {
    /// Takes the directory that was named, else the user's.
    pub(super) fn new(directory: Option<PathBuf>) -> Result<Self> {
        let directory = match directory {
            Some(directory) => directory,
            None => below_home("XDG_DATA_HOME", ".local/share")?.join("opensail-dev"),
        };
        let directory =
            std::path::absolute(&directory).map_err(|error| Error::path("find", &directory, error))?;
        Ok(Self { directory: directory.canonicalize().unwrap_or(directory) })
    }

    /// Makes the directory unless it is there.
    pub(super) fn create(&mut self) -> Result<()> {
        let failed = |error| Error::path("make the directory", &self.directory, error);
        fs::create_dir_all(self.run()).map_err(failed)?;
        self.directory = self.directory.canonicalize().map_err(failed)?;
        Ok(())
    }

    /// Keeps other `dev` commands out while this one works.
    pub(super) fn lock(&self) -> Result<Flock<fs::File>> {
        let file = self.run().join("lock");
        let open = fs::File::options().append(true).create(true).open(&file);
        let open = open.map_err(|error| Error::path("open", &file, error))?;
        Flock::lock(open, FlockArg::LockExclusiveNonblock).map_err(|(_, _)| {
            Error::state(
                format!("another `sailctl dev` command works on {}", self.directory.display()),
                "wait for its end, and again",
            )
        })
    }

    /// Reads the cluster; nothing where none was ever started.
    pub(super) fn cluster(&self) -> Result<Option<Cluster>> {
        let file = self.file();
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::path("read", &file, error)),
        };
        match serde_json::from_slice::<Cluster>(&text) {
            Ok(cluster) if cluster.format == FORMAT => Ok(Some(cluster)),
            _ => Err(Error::state(
                format!("{} was not written by this sailctl", file.display()),
                "use the sailctl that made it, or another --dir",
            )),
        }
    }

    /// The cluster, which must be there.
    pub(super) fn existing(&self) -> Result<Cluster> {
        self.cluster()?.ok_or_else(|| {
            Error::state(
                format!("there is no cluster in {}", self.directory.display()),
                "start one with `sailctl dev up`, or name its directory with --dir",
            )
        })
    }

    /// Writes the cluster and its context, each whole or not at all.
    pub(super) fn save(&self, cluster: &Cluster) -> Result<()> {
        for (file, text) in [
            (self.file(), serde_json::to_vec_pretty(cluster)),
            (self.context(), serde_json::to_vec_pretty(&cluster.context())),
        ] {
            let text = text.expect("strings and lists of them serialise");
            let part = file.with_extension("part");
            fs::write(&part, text)
                .and_then(|()| fs::rename(&part, &file))
                .map_err(|error| Error::path("write", &file, error))?;
        }
        Ok(())
    }

    /// Makes this cluster the one that commands speak to, unless they speak to another; says whether they speak to
    /// this one.
    pub(super) fn point_user_here(&self) -> Result<bool> {
        let user = user_file()?;
        // A link that leads nowhere is left over from a cluster that is gone.
        if user.exists() {
            return Ok(fs::read_link(&user).is_ok_and(|target| target == self.context()));
        }
        let failed = |error| Error::path("write", &user, error);
        fs::create_dir_all(user.parent().expect("it has two")).map_err(failed)?;
        let part = user.with_extension(format!("part-{}", std::process::id()));
        std::os::unix::fs::symlink(self.context(), &part)
            .and_then(|()| fs::rename(&part, &user))
            .map_err(failed)?;
        Ok(true)
    }

    /// Takes back what [`Place::point_user_here`] did, if it is still so.
    pub(super) fn point_user_away(&self) {
        if let Ok(user) = user_file()
            && fs::read_link(&user).is_ok_and(|target| target == self.context())
        {
            // A link that stays says "no such file" when it is used, which is true.
            drop(fs::remove_file(user));
        }
    }

    /// The process that was last started for a daemon.
    pub(super) fn process(&self, daemon: &str) -> Result<Option<Process>> {
        let file = self.pid(daemon);
        Process::load(&file).map_err(|error| Error::path("read", &file, error))
    }

    /// When a daemon was last started.
    pub(super) fn started(&self, daemon: &str) -> Option<Timestamp> {
        Some(self.pid(daemon).metadata().ok()?.modified().ok()?.into())
    }

    pub(super) fn context(&self) -> PathBuf {
        self.directory.join("context.json")
    }

    pub(super) fn file(&self) -> PathBuf {
        self.directory.join("cluster.json")
    }

    pub(super) fn log(&self, daemon: &str) -> PathBuf {
        self.directory.join(format!("{daemon}.log"))
    }

    pub(super) fn run(&self) -> PathBuf {
        self.directory.join("run")
    }

    pub(super) fn pid(&self, daemon: &str) -> PathBuf {
        self.run().join(format!("{daemon}.pid"))
    }

    pub(super) fn pool(&self, node: &str) -> PathBuf {
        self.directory.join(node)
    }

    pub(super) fn hub_state(&self) -> PathBuf {
        self.directory.join("hub.db")
    }

    /// The store's directory, where no other store was given.
    pub(super) fn store(&self) -> PathBuf {
        self.directory.join("store")
    }

    fn default_store(&self) -> String {
        format!("dir://{}", self.store().display())
    }

    /// Removes everything that a cluster made here, and the directory if nothing else is in it.
    pub(super) fn purge(&self, cluster: &Cluster) -> Result<()> {
        let mut paths = vec![self.context(), self.file(), self.run(), self.store()];
        // SQLite and the hub keep files beside the database.
        let state = self.hub_state().file_name().unwrap_or_default().to_owned();
        let listed =
            fs::read_dir(&self.directory).map_err(|error| Error::path("list", &self.directory, error))?;
        let beside = listed.filter_map(std::result::Result::ok).map(|entry| entry.path());
        paths.extend(beside.filter(|path| {
            path.file_name().is_some_and(|name| name.as_bytes().starts_with(state.as_bytes()))
        }));
        paths.extend(cluster.daemons().flat_map(|daemon| self.of(daemon)));
        self.remove(paths)?;
        // It stays where somebody else keeps something in it.
        drop(fs::remove_dir(&self.directory));
        Ok(())
    }

    /// Refuses to take over what this cluster did not make.
    pub(super) fn require_free(&self, node: &str) -> Result<()> {
        let pool = self.pool(node);
        if pool.symlink_metadata().is_err() {
            return Ok(());
        }
        Err(Error::state(
            format!("{} is there, and no pool of this cluster", pool.display()),
            "move it away, or choose another --dir",
        ))
    }

    /// What a daemon has here.
    pub(super) fn of(&self, daemon: &str) -> Vec<PathBuf> {
        let pool = (daemon != HUB).then(|| self.pool(daemon));
        [self.log(daemon), self.pid(daemon)].into_iter().chain(pool).collect()
    }

    /// Removes files and directories; those that are not there are fine.
    pub(super) fn remove(&self, paths: Vec<PathBuf>) -> Result<()> {
        for path in paths {
            let removed = match path.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path),
                Ok(_) => fs::remove_file(&path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            };
            removed.map_err(|error| Error::path("remove", &path, error))?;
        }
        Ok(())
    }
}
