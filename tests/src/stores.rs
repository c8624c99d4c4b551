//! Stores for a cluster: the directory store, and a real S3 server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail, ensure};
use cas::objects::StoreUrl;

use crate::cluster::Options;

/// Which store a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory of the cluster.
    Directory,
    /// S3, as `OPENSAIL_TEST_S3` says, or a MinIO of our own where `hack/minio build` has been run.
    S3,
}

impl Kind {
    /// Options for a cluster with this store; nothing where there is none.
    ///
    /// # Errors
    /// There is none, and `REQUIRE_S3=1` says that there must be.
    pub fn options(self) -> Result<Option<Options>> {
        match self {
            Self::Directory => Ok(Some(Options::default())),
            Self::S3 => match server()? {
                Some(server) => Ok(Some(Options {
                    store: Some(server.url()?),
                    environment: server.environment.clone(),
                    ..Options::default()
                })),
                None => Ok(None),
            },
        }
    }
}

/// Opens the store at `url`, or makes it.
///
/// # Errors
/// It cannot be reached.
pub async fn create(url: &str) -> Result<cas::Store> {
    let objects = url.parse::<StoreUrl>()?.connect().await?;
    let clock = std::sync::Arc::new(types::SystemClock);
    Ok(cas::Store::create_or_open(objects, clock).await?.into_inner())
}

#[derive(Debug)]
struct Server {
    url: String,
    environment: Vec<(String, String)>,
}

impl Server {
    /// A store of its own for each cluster: a fresh prefix.
    fn url(&self) -> Result<String> {
        let StoreUrl::S3(mut url) = self.url.parse()? else { bail!("{} is no s3:// URL", self.url) };
        let own = format!("test-{}", ulid::Ulid::generate().to_string().to_lowercase());
        url.prefix = Some(match &url.prefix {
            Some(prefix) => prefix.join(&own)?,
            None => own.parse()?,
        });
        Ok(url.to_string())
    }
}

fn server() -> Result<Option<&'static Server>> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    if let Some(server) = SERVER.get_or_init(|| from_environment().or_else(|| own().ok())) {
        return Ok(Some(server));
    }
    if std::env::var("REQUIRE_S3").is_ok_and(|value| value == "1") {
        bail!("this test needs an S3 server (OPENSAIL_TEST_S3, or hack/minio build), and REQUIRE_S3=1");
    }
    eprintln!("SKIPPED: this test needs an S3 server: OPENSAIL_TEST_S3, or hack/minio build");
    Ok(None)
}

fn from_environment() -> Option<Server> {
    Some(Server { url: std::env::var("OPENSAIL_TEST_S3").ok()?, environment: Vec::new() })
}

/// Starts MinIO; it ends with this process.
fn own() -> Result<Server> {
    let hack = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/minio");
    let directory: PathBuf = std::env::temp_dir().join(format!("opensail-minio-{}", std::process::id()));
    let mut command = Command::new(hack);
    command.arg("start").arg(directory).args(["--with", &std::process::id().to_string()]);
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut environment = Vec::new();
    let mut url = None;
    for line in String::from_utf8(output.stdout)?.lines() {
        match line.split_once('=').context("NAME=value")? {
            ("OPENSAIL_TEST_S3", value) => url = Some(value.to_owned()),
            (name, value) => environment.push((name.to_owned(), value.to_owned())),
        }
    }
    Ok(Server { url: url.context("a URL")?, environment })
}
