//! The store, for the commands that read or write it without the hub.

use std::sync::Arc;

use cas::Store;
use cas::objects::{Objects, StoreUrl, probe};
use types::{Clock, SystemClock};

use crate::context::Context;
use crate::doctor::finding;
use crate::error::{Error, Result};
use crate::view::Check;

/// Opens the store of the context.
///
/// # Errors
/// It cannot be reached, or is none.
pub async fn open(context: &Context) -> Result<Store> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let objects = connect(context).await?;
    Store::open(objects, clock).await.map_err(Error::of_store(format!("open the store {}", context.store)))
}

/// Reaches what is where the context says, whatever it is.
///
/// # Errors
/// It cannot be reached.
pub async fn connect(context: &Context) -> Result<Arc<dyn Objects>> {
    let url: StoreUrl = context.store.parse().map_err(|error: cas::objects::InvalidStoreUrl| {
        Error::usage(error.to_string(), "correct `store` in the context file")
    })?;
    url.connect()
        .await
        .map_err(|error| Error::store(format!("connect to the store {}", context.store), &error))
}

/// Probes the store from here: a person's machine may reach what the nodes do not, and the other way round.
pub async fn checks(context: &Context) -> Vec<Check> {
    let objects = match connect(context).await {
        Ok(objects) => objects,
        Err(error) => return vec![finding("store", "reachable", false, error.to_string(), &error.remedy())],
    };
    let report = match probe(objects.as_ref()).await {
        Ok(report) => report,
        Err(error) => {
            let error = Error::store("use it", &error);
            return vec![finding("store", "usable", false, error.to_string(), &error.remedy())];
        }
    };
    let remedy = "use a store with conditional writes: AWS S3, MinIO, R2, or a local directory";
    let mut checks = vec![finding("store", "usable", true, report.store.clone(), "")];
    for (name, works) in [
        ("conditional create", report.conditional_create),
        ("conditional update", report.conditional_update),
        ("strong reads", report.strong_reads),
    ] {
        let detail = if works { "works".to_owned() } else { report.problems.join("; ") };
        checks.push(finding("store", name, works, detail, if works { "" } else { remedy }));
    }
    checks
}
