//! Puts a directory into a store, changes one file, puts that, restores it all, and prints what it took.
//!
//! `put_restore SOURCE STORE-DIR TARGET-DIR`. The store directory and the target are emptied first. With `REPEAT=n`
//! the first put and the restore are done n times.

#![expect(clippy::print_stderr, reason = "it is run by people")]

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use cas::objects::{DirStore, Objects};
use cas::{Cache, Reader, RestoreOptions, Session, Store, VerifyReport, WriteOptions, Writer};
use types::{Domain, PoolId, SystemClock};

/// Seconds of processor time of this process, in hundredths.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux has it");
    let after_name = stat.rsplit(')').next().expect("it has a name");
    let ticks = after_name.split_whitespace().skip(11).take(2).filter_map(|text| text.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it has a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

fn open(path: &str) -> OwnedFd {
    std::fs::File::open(path).unwrap_or_else(|error| panic!("{path}: {error}")).into()
}

fn empty(path: &str) {
    if Path::new(path).exists() {
        std::fs::remove_dir_all(path).expect("remove what was there");
    }
    std::fs::create_dir_all(path).expect("make the directory");
}

fn say(what: &str, since: (Instant, f64), more: &str) {
    eprintln!(
        "{what:<10} {:7.3} s {:7.3} CPU s  {more}  (peak {} MiB)",
        since.0.elapsed().as_secs_f64(),
        cpu() - since.1,
        peak_mib()
    );
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, store_dir, target] = arguments.as_slice() else { panic!("put_restore SOURCE STORE TARGET") };
    let repeat: usize = std::env::var("REPEAT").map_or(1, |text| text.parse().expect("a number"));
    let workers = std::env::var("WORKERS").map_or(2, |text| text.parse().expect("a number"));
    let mut last = None;
    for _ in 0..repeat {
        empty(store_dir);
        let objects: Arc<dyn Objects> =
            Arc::new(DirStore::create_or_open(Path::new(store_dir)).await.expect("the store"));
        let store =
            Store::create_or_open(objects, Arc::new(SystemClock)).await.expect("the store").into_inner();
        let node = "bench".parse().expect("a name");
        let session = Session::join(&store, PoolId::random(), 1, &node, "host").await.expect("a session");
        let operation = session.begin().expect("an operation");
        let cache = Cache::new(256 << 20);
        let options = WriteOptions { workers, ..WriteOptions::default() };
        let writer = Writer::new(store.clone(), session, Domain::default_domain(), cache, options);
        let since = (Instant::now(), cpu());
        let written = writer.put(open(source), None).await.expect("put");
        let more = format!(
            "{} files, {} MB in, {} MB out, {} objects",
            written.files,
            written.bytes / 1_000_000,
            written.bytes_uploaded / 1_000_000,
            written.objects_written
        );
        say("put", since, &more);
        last = Some((store, written, operation));
    }
    let (store, written, _operation) = last.expect("at least one round");
    for _ in 0..repeat {
        empty(target);
        let reader = Reader::new(store.clone(), Cache::new(64 << 20));
        let since = (Instant::now(), cpu());
        let options = RestoreOptions { workers, ..RestoreOptions::default() };
        let restored = reader.restore(&written.tree, open(target), options).await.expect("restore");
        let more = format!(
            "{} files, {} MB, {} requests, {} MB fetched",
            restored.files,
            restored.bytes / 1_000_000,
            restored.requests,
            restored.bytes_fetched / 1_000_000
        );
        say("restore", since, &more);
    }
    let reader = Reader::new(store.clone(), Cache::new(64 << 20));
    let since = (Instant::now(), cpu());
    let VerifyReport { files, bytes, damages, .. } = reader.verify(&written.tree).await.expect("verify");
    say("verify", since, &format!("{files} files, {} MB, {} damages", bytes / 1_000_000, damages.len()));
}
