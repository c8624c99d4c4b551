//! Other people's tools, which compare what we made. A test that needs one, or root, says loudly when it is skipped.

use std::path::Path;
use std::process::Command;

/// Runs a program and returns what it prints; panics when it fails.
pub fn run(program: &str, args: &[&str]) -> String {
    let output =
        Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Tells if the tests may make every kind of file. Fails instead where they must.
pub fn may_make_everything() -> bool {
    let root = rustix::process::geteuid().is_root();
    let missing: Vec<&str> = ["rsync", "getfattr", "setfattr", "setfacl", "setcap", "mknod", "python3"]
        .into_iter()
        .filter(|tool| Command::new("which").arg(tool).output().map_or(true, |found| !found.status.success()))
        .collect();
    if root && missing.is_empty() {
        return true;
    }
    let why = if root { format!("{missing:?} are missing") } else { "not root".to_owned() };
    assert!(std::env::var_os("REQUIRE_BTRFS").is_none(), "must not be skipped: {why}");
    eprintln!("SKIPPED: {why}");
    false
}

/// What differs between two trees, by rsync, getfattr and a list of holes; nothing if they are the same.
pub fn differences(left: &Path, right: &Path) -> String {
    let from = format!("{}/", left.display());
    let to = format!("{}/", right.display());
    let mut told = run(
        "rsync",
        &["-naHAXS", "--numeric-ids", "--checksum", "--delete", "--itemize-changes", &from, &to],
    );
    for (what, left, right) in [
        ("attributes", attributes(left), attributes(right)),
        ("holes", holes(left), holes(right)),
        ("metadata", metadata(left), metadata(right)),
    ] {
        if left != right {
            told += &format!("--- {what}\n{left}\n+++\n{right}\n");
        }
    }
    told
}

/// The same for trees that need no root, and for tests that run often: by rsync alone.
pub fn differences_no_root(left: &Path, right: &Path) -> String {
    if Command::new("rsync").arg("--version").output().is_err() {
        return String::new();
    }
    let from = format!("{}/", left.display());
    let to = format!("{}/", right.display());
    run("rsync", &["-naHS", "--numeric-ids", "--checksum", "--delete", "--itemize-changes", &from, &to])
}

fn attributes(root: &Path) -> String {
    let script = "cd \"$1\" && find . -print0 | sort -z | xargs -0 -r getfattr -h -d -m - --absolute-names | grep -v '^btrfs\\.'";
    run("sh", &["-c", script, "sh", root.to_str().unwrap()])
}

/// Every file's parts with data, by a program of its own.
fn holes(root: &Path) -> String {
    let script = r#"
import os, sys, stat
root = os.fsencode(sys.argv[1])
lines = []
for base, dirs, files in os.walk(root):
    for name in files:
        path = os.path.join(base, name)
        facts = os.lstat(path)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1 and False:
            continue
        fd = os.open(path, os.O_RDONLY)
        parts, at = [], 0
        while at < facts.st_size:
            try:
                data = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                break
            hole = os.lseek(fd, data, os.SEEK_HOLE)
            parts.append((data, hole))
            at = hole
        os.close(fd)
        lines.append((os.path.relpath(path, root), facts.st_size, parts))
for line in sorted(lines):
    print(line)
"#;
    run("python3", &["-c", script, root.to_str().unwrap()])
}

/// Kind, mode, owner, times, size, link target and device of everything, in nanoseconds, which rsync does not compare.
pub fn metadata(root: &Path) -> String {
    let script = "cd \"$1\" && find . -printf '%y %m %U %G %T@ %n %l %p ' -a \\( -type d -printf '\\n' -o -printf '%s\\n' \\) | sort";
    run("sh", &["-c", script, "sh", root.to_str().unwrap()])
}

/// Makes a tree with every kind of file, name and metadata that there is.
pub fn nasty_tree(root: &Path) {
    let script = r##"
set -eu
cd "$1"
umask 022
printf '' > empty
printf 'x' > one
head -c 127 /dev/urandom > n127
head -c 128 /dev/urandom > n128
head -c 129 /dev/urandom > n129
for size in 65535 65536 65537 131071 131072 131073 262144 1048575 1048576 1048577 1179648 1179649 3000000; do
  head -c $size /dev/urandom > r$size
  head -c $size /dev/zero | tr '\0' 'z' > z$size
done
mkdir -p many/a many/b deep
i=0; while [ $i -lt 300 ]; do echo "file $i $(head -c 40 /dev/urandom | od -An -tx1)" > many/a/$i; i=$((i+1)); done
cp many/a/1?? many/b/
cp r3000000 many/b/copy-of-large
d=deep; i=0; while [ $i -lt 40 ]; do d=$d/dddddddddddddddddddd; i=$((i+1)); done; mkdir -p "$d"; echo bottom > "$d/bottom"
mkdir empty-dir; mkdir 'a b' a a.b
echo x > a/x; echo y > a.b/y; echo z > 'a b/z'
ln -s one link; ln -s /nonexistent/$(printf 'y%.0s' $(seq 200)) dangling; ln -s . loop
ln one hard1; ln one a/hard2; ln r1048577 a.b/hard-large; ln link a/hard-symlink
mkfifo fifo; mknod char c 1 3; mknod block b 7 200; mknod big-device c 300 70000
ln fifo a/hard-fifo
python3 -c 'import socket,sys; s=socket.socket(socket.AF_UNIX); s.bind("socket")'
python3 - <<'P'
import os
os.makedirs(b"names", exist_ok=True)
for name in [b"n" * 255, b"\xff\xfe not utf-8", b"new\nline", b"-dash", b"sp ace", "ü-umlaut".encode(), b"\\back", b"*", b"\x01\x7f"]:
    with open(b"names/" + name, "wb") as f: f.write(name)
with open("sparse", "wb") as f:
    f.truncate(10 << 20); f.seek(4096 * 3); f.write(b"data" * 1024); f.seek(5 << 20); f.write(b"x" * 8192)
with open("sparse-small", "wb") as f:
    f.truncate(65000); f.seek(8192); f.write(b"y" * 4096)
with open("sparse-tail", "wb") as f:
    f.write(b"q" * 4096); f.truncate(3 << 20)
with open("all-hole", "wb") as f: f.truncate(40 << 20)
with open("zeros-not-holes", "wb") as f: f.write(b"\0" * (2 << 20))
with open("sparse-linked", "wb") as f:
    f.truncate(5 << 20); f.seek(1 << 20); f.write(b"w" * 4096)
os.link("sparse-linked", "sparse-linked-too")
P
setfattr -n user.test -v value one
setfattr -n user.big -v "$(head -c 1500 /dev/urandom | base64 -w0)" n128
setfattr -n user.empty n129
setfattr -n trusted.secret -v t empty
setfattr -h -n trusted.onlink -v t dangling
setfattr -n trusted.onfifo -v t fifo
setfattr -n user.ondir -v d many
setfacl -m u:1234:rwx,g:4321:r r65536
setfacl -m u:77:rx -m d:u:78:rwx -m d:g::rx many/b
setfacl -m u:9:rw hard1
cp /bin/true capable; chown 5:6 capable; setcap cap_net_raw+ep capable
chown 1000:1001 n127 empty-dir; chown -h 7:8 dangling; chown 3:4 fifo char socket
chmod 0000 n127; chmod 4755 n129; chmod 2750 many/a; chmod 1777 empty-dir; chmod 0400 r65537; chmod 0111 a.b/y; chmod 640 char
touch -d '1969-12-31 23:59:58.123456789' one; touch -d '2038-01-20 00:00:00.5' n128; touch -h -d '2001-02-03 04:05:06.789' dangling
touch -d '2100-01-01' a; touch -d '1980-01-01 00:00:00.000000001' many/b; touch -d '2020-02-02' fifo many "$d"
chmod 0500 "a b"
touch -d '1999-09-09 09:09:09.999999999' .
"##;
    run("sh", &["-c", script, "sh", root.to_str().unwrap()]);
}
