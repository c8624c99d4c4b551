//! A Postgres server under pgbench in a volume: what each sync sends, against exactly the pages that changed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use btrfs::Dir;
use tests::figures::{Figure, Target};

use crate::bench::{Bench, pool_of, pool_path, run, shell};

const GROUP: &str = "database";

/// A page of Postgres.
const PAGE: usize = 8 << 10;

/// Syncs that are measured, after one that stores everything and one that finds out which files are updated in place.
const WINDOWS: usize = 4;

/// Length of a window.
const SECONDS: u32 = 15;

/// Transactions in a second.
const RATE: u32 = 100;

/// A server whose data directory is a bind mount of a volume, so that its user can reach it. It ends with the value.
struct Server {
    programs: PathBuf,
    directory: PathBuf,
    running: bool,
}

impl Server {
    fn start(volume: &Path, directory: PathBuf) -> Result<Self> {
        let programs = fs::read_dir("/usr/lib/postgresql")
            .context("postgresql is not installed: hack/bench installs it")?
            .next()
            .context("postgresql is not installed")??
            .path()
            .join("bin");
        fs::create_dir_all(&directory)?;
        run(Command::new("mount").arg("--bind").arg(volume).arg(&directory))?;
        let mut server = Self { programs, directory, running: false };
        let data = server.directory.join("data");
        fs::create_dir(&data)?;
        run(Command::new("chown").args(["-R", "65534:65534"]).arg(&data))?;
        server.as_user(
            "initdb",
            &["-A", "trust", "-U", "bench", "--no-sync", "-D", &data.display().to_string()],
        )?;
        let options = format!(
            "-k {0} -c listen_addresses= -c max_wal_size=256MB -c checkpoint_timeout=30s",
            data.display()
        );
        let log = data.join("server.log").display().to_string();
        server.as_user(
            "pg_ctl",
            &["-w", "-s", "-l", &log, "-o", &options, "-D", &data.display().to_string(), "start"],
        )?;
        server.running = true;
        server.pgbench(&["-i", "-q", "-s", "10"])?;
        Ok(server)
    }

    fn as_user(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(self.programs.join(program));
        command.args(arguments).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        let output = command.stderr(Stdio::piped()).spawn()?.wait_with_output()?;
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    fn pgbench(&self, arguments: &[&str]) -> Result<()> {
        let host = self.directory.join("data").display().to_string();
        let mut all = vec!["-h", &host, "-U", "bench"];
        all.extend(arguments);
        all.push("postgres");
        self.as_user("pgbench", &all)
    }

    fn window(&self) -> Result<()> {
        self.pgbench(&["-n", "-c", "4", "-T", &SECONDS.to_string(), "-R", &RATE.to_string()])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let data = self.directory.join("data").display().to_string();
        if self.running {
            let _stopped = self.as_user("pg_ctl", &["-w", "-s", "-m", "immediate", "-D", &data, "stop"]);
        }
        let _unmounted = shell(&format!("umount -l '{}'", self.directory.display()));
    }
}

impl Bench {
    /// Bytes of each sync of a database, against its changed pages.
    pub(crate) async fn database(&self) -> Result<Vec<Figure>> {
        let empty = crate::tool::empty(&self.work, "database-empty")?;
        let volume = self.volume_of("bench-database", "database", "node-1", &empty).await?;
        let mount = std::env::temp_dir().join(format!("opensail-bench-pg-{}", std::process::id()));
        let server = Server::start(&volume.path, mount)?;
        let pool = pool_of(&volume)?;
        let (mut sent, mut exact, mut raw) = (0, 0, 0);
        for window in 0..WINDOWS + 2 {
            let name = |window: usize| format!("bench-database-{window}");
            server.window()?;
            pool.snapshot(&Dir::open(&volume.path)?, name(window), true, None)?;
            let synced = self.sync(&volume.id).await?;
            if window >= 2 {
                let root = pool_path(&volume);
                let pages = Pages::between(&root.join(name(window - 1)), &root.join(name(window)))?;
                (sent, exact, raw) = (sent + synced.bytes_uploaded, exact + pages.packed, raw + pages.raw);
            }
            if window >= 1 {
                pool.delete_subvolume(name(window - 1))?;
            }
        }
        pool.delete_subvolume(format!("bench-database-{}", WINDOWS + 1))?;
        drop(server);
        self.delete(volume.id).await?;
        #[expect(clippy::cast_precision_loss, reason = "megabytes")]
        let each = |bytes: u64| bytes as f64 / 1e6 / WINDOWS as f64;
        let what = format!(
            "Postgres, {RATE} transactions/s: sent for {SECONDS} s, mean of {WINDOWS} ({:.1} MB of pages)",
            each(raw)
        );
        Ok(vec![Figure::new(
            GROUP,
            what,
            (each(sent), "MB"),
            ("changed 8 KiB pages, zstd -3", each(exact)),
            Target::Times(1.3),
        )])
    }
}

/// The pages in which two trees differ: their bytes, and those of each compressed by itself.
#[derive(Debug, Default)]
struct Pages {
    raw: u64,
    packed: u64,
}

impl Pages {
    fn between(old: &Path, new: &Path) -> Result<Self> {
        let (old, new) = (files(old)?, files(new)?);
        let mut pages = Self::default();
        let (mut left, mut right) = ([0; PAGE], [0; PAGE]);
        for (name, path) in new {
            let file = fs::File::open(path)?;
            let before = old.get(&name).map(fs::File::open).transpose()?;
            for offset in (0..file.metadata()?.len()).step_by(PAGE) {
                let len = file.read_at(&mut right, offset)?;
                let same = match &before {
                    Some(before) => before.read_at(&mut left, offset)? == len && left[..len] == right[..len],
                    None => false,
                };
                if !same && right[..len].iter().any(|byte| *byte != 0) {
                    pages.raw += len as u64;
                    pages.packed += zstd::bulk::compress(&right[..len], 3)?.len() as u64;
                }
            }
        }
        Ok(pages)
    }
}

fn files(root: &Path) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let (mut found, mut queue) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(next) = queue.pop() {
        for entry in fs::read_dir(&next)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                queue.push(entry.path());
            } else if entry.file_type()?.is_file() {
                found.insert(entry.path().strip_prefix(root)?.to_owned(), entry.path());
            }
        }
    }
    Ok(found)
}
