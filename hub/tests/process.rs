//! The hub as a process: it says what is wrong at start and what to do, and it stops when told to.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

fn hub(directory: &Path, listen: &str, store: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_opensail-hub"));
    command.args(["--listen", listen, "--store", store]);
    command.arg("--state").arg(directory.join("hub.db")).env("RUST_LOG", "info");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn store(directory: &Path) -> String {
    format!("dir://{}", directory.join("store").display())
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Waits until it listens and answers.
fn ready(child: &mut Child, listen: &str) {
    let began = Instant::now();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let projects = {
        let _inside = runtime.enter();
        orchestrator::Projects::connect(listen).unwrap()
    };
    while runtime.block_on(projects.hub_status()).is_err() {
        assert!(child.try_wait().unwrap().is_none(), "the hub ended");
        assert!(began.elapsed() < PATIENCE, "the hub is not ready");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn fails(mut command: Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    assert!(!status.success(), "{stderr}");
    stderr
}

fn terminate(child: &Child) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
}

#[test]
fn a_sigterm_ends_it_in_time_and_the_next_one_starts() {
    let directory = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let listen = free_port();
        let mut child = hub(directory.path(), &listen, &store(directory.path())).spawn().unwrap();
        ready(&mut child, &listen);
        terminate(&child);
        let began = Instant::now();
        assert!(child.wait().unwrap().success());
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn a_port_in_use_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let said = fails(hub(directory.path(), &listen, &store(directory.path())));
    assert!(
        said.contains(&format!("cannot listen on {listen}")) && said.contains("another --listen"),
        "{said}"
    );
    assert!(!directory.path().join("hub.db").exists(), "nothing half-made is left behind");
}

#[test]
fn a_second_hub_on_one_state_file_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let listen = free_port();
    let mut first = hub(directory.path(), &listen, &store(directory.path())).spawn().unwrap();
    ready(&mut first, &listen);
    let said = fails(hub(directory.path(), &free_port(), &store(directory.path())));
    assert!(said.contains("in use by another hub"), "{said}");
    // The kernel gives the lock back, whatever ended its holder.
    first.kill().unwrap();
    first.wait().unwrap();
    let listen = free_port();
    let mut next = hub(directory.path(), &listen, &store(directory.path())).spawn().unwrap();
    ready(&mut next, &listen);
    terminate(&next);
    assert!(next.wait().unwrap().success());
}

#[test]
fn a_store_that_cannot_be_used_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let missing = format!("dir://{}/no/such/parent", directory.path().display());
    let nobody = format!("s3://bucket?endpoint=http://{}&region=x&path_style=true", free_port());
    for url in [missing, nobody] {
        let mut command = hub(directory.path(), &free_port(), &url);
        command.env("AWS_ACCESS_KEY_ID", "x").env("AWS_SECRET_ACCESS_KEY", "x");
        let said = fails(command);
        assert!(said.contains("cannot use the store") && said.contains("check --store"), "{url}: {said}");
    }
    let said = fails(hub(directory.path(), &free_port(), "ftp://x"));
    assert!(said.contains("dir:///abs/path"), "{said}");
}

#[test]
fn a_store_of_somebody_else_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("store");
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("holiday.jpg"), b"x").unwrap();
    let said = fails(hub(directory.path(), &free_port(), &store(directory.path())));
    assert!(said.contains("cannot use the store"), "{said}");
    assert_eq!(std::fs::read(place.join("holiday.jpg")).unwrap(), b"x");
}

#[test]
fn timings_that_would_declare_everybody_dead_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = hub(directory.path(), &free_port(), &store(directory.path()));
    command.args(["--heartbeat", "10s"]);
    let said = fails(command);
    assert!(said.contains("must grow"), "{said}");
}
