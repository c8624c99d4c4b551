//! One random thing that a process in a pod may do. What the kernel refuses is refused.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use btrfs::Dir;
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngExt as _};

/// Files that are held open, also when they have no name any more.
#[derive(Debug, Default)]
pub(crate) struct Held(Vec<File>);

const KINDS: u32 = 34;
const NESTED: u32 = 30;

/// Does one, and says which. Nested subvolumes come only if that is asked for.
pub(crate) fn operate(random: &mut StdRng, live: &Path, held: &mut Held, nest: bool) -> String {
    let kind = loop {
        let kind = random.random_range(0..KINDS);
        if nest || kind != NESTED {
            break kind;
        }
    };
    let (files, directories) = tree(live);
    let file = files.choose(random).cloned();
    let other = files.choose(random).cloned();
    // Not the root itself.
    let directory = directories[1..].choose(random).cloned();
    let fresh = directories.choose(random).unwrap().join(name(random));
    let directory = directory.unwrap_or_else(|| fresh.clone());
    let size = size(random);
    let said =
        |what: &str, path: &Path| format!("{what} {}", path.strip_prefix(live).unwrap_or(path).display());
    let file = file.unwrap_or_else(|| fresh.clone());
    let other = other.unwrap_or_else(|| fresh.clone());
    match kind {
        0..=3 => {
            let content = content(random, size);
            if !fresh.symlink_metadata().is_ok_and(|metadata| !metadata.is_file()) {
                let _refused = fs::write(&fresh, content);
            }
            said("create", &fresh)
        }
        4 | 5 => {
            let _refused = fs::create_dir(&fresh);
            said("mkdir", &fresh)
        }
        6 => {
            let _refused = fs::remove_file(&file);
            said("unlink", &file)
        }
        7 => {
            let _refused = if random.random_bool(0.2) {
                fs::remove_dir_all(&directory)
            } else {
                fs::remove_dir(&directory)
            };
            said("rmdir", &directory)
        }
        8 | 9 => {
            let to = if random.random_bool(0.3) { other } else { fresh };
            let _refused = fs::rename(&file, &to);
            format!("{} to {}", said("rename", &file), to.display())
        }
        10 | 11 => {
            let _refused = fs::rename(&directory, &fresh);
            format!("{} to {}", said("rename directory", &directory), fresh.display())
        }
        12 | 13 => {
            let _refused = fs::hard_link(&file, &fresh);
            format!("{} to {}", said("link", &file), fresh.display())
        }
        14 | 15 => write(random, &file, |random, file, length| {
            let at = random.random_range(0..=length);
            let size = [1, 100, 4096, 5000].choose(random).copied().unwrap();
            let bytes = content(random, size);
            file.write_all_at(&bytes, at)
        })
        .map_or_else(|| said("no pwrite", &file), |()| said("pwrite", &file)),
        16 => write(random, &file, |random, file, _| {
            let mut file = file;
            file.seek(SeekFrom::End(0))?;
            let size = [1, 3000, 70_000].choose(random).copied().unwrap();
            let bytes = content(random, size);
            file.write_all(&bytes)
        })
        .map_or_else(|| said("no append", &file), |()| said("append", &file)),
        17 | 18 => write(random, &file, |random, file, length| {
            let to = if random.random_bool(0.5) { random.random_range(0..=length) } else { length * 2 + 10 };
            file.set_len(to)
        })
        .map_or_else(|| said("no truncate", &file), |()| said("truncate", &file)),
        19 => allocate(
            random,
            &file,
            FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        )
        .map_or_else(|| said("no punch", &file), |()| said("punch", &file)),
        20 => {
            let keep = if random.random_bool(0.5) {
                FallocateFlags::FALLOC_FL_KEEP_SIZE
            } else {
                FallocateFlags::empty()
            };
            allocate(random, &file, FallocateFlags::FALLOC_FL_ZERO_RANGE | keep)
                .map_or_else(|| said("no zero-range", &file), |()| said("zero-range", &file))
        }
        21 => {
            let keep = if random.random_bool(0.5) {
                FallocateFlags::FALLOC_FL_KEEP_SIZE
            } else {
                FallocateFlags::empty()
            };
            allocate(random, &file, keep)
                .map_or_else(|| said("no preallocate", &file), |()| said("preallocate", &file))
        }
        22 => {
            let path = if random.random_bool(0.5) { &file } else { &directory };
            let mode = random.random_range(0..0o1000) | 0o700;
            let _refused = fs::set_permissions(path, fs::Permissions::from_mode(mode));
            said("chmod", path)
        }
        23 => {
            let path = if random.random_bool(0.5) { &file } else { &directory };
            let _refused = std::os::unix::fs::lchown(path, Some(random.random_range(0..3)), Some(7));
            said("chown", path)
        }
        24 => {
            let path = if random.random_bool(0.5) { &file } else { &directory };
            let value = "x".repeat(random.random_range(0..3000));
            run(
                "setfattr",
                &["-h", "-n", ["user.a", "user.b", "trusted.c"].choose(random).unwrap(), "-v", &value],
                path,
            );
            said("setfattr", path)
        }
        25 => {
            if let Some(from) = file.to_str().filter(|_| is_file(&file)) {
                run("cp", &["--reflink=always", from], &fresh);
            }
            said("reflink copy", &file)
        }
        26 => {
            let (from, to) = (random.random_range(0..20) * 4096, random.random_range(0..20) * 4096);
            let order = format!("reflink {} {from} {to} 16384", file.display());
            if is_file(&file) && is_file(&other) {
                run("xfs_io", &["-c", &order], &other);
            }
            said("reflink range", &other)
        }
        27 => {
            let (a, b) = if random.random_bool(0.5) { (&file, &other) } else { (&directory, &other) };
            let _refused = renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE);
            format!("{} with {}", said("exchange", a), b.display())
        }
        28 => {
            let length = fs::metadata(&file).map_or(0, |metadata| metadata.len());
            if length > 0 && is_file(&file) {
                let at = random.random_range(0..length);
                let end = (length - at).min(3000);
                let map = format!("mmap -rw 0 {length}");
                let write = format!("mwrite -S {} {at} {end}", random.random_range(1..255));
                run("xfs_io", &["-c", &map, "-c", &write], &file);
            }
            said("mmap write", &file)
        }
        29 => {
            match random.random_range(0..3) {
                0 => run("chattr", &["+C"], &directory),
                1 => run("chattr", &["+C"], &file),
                _ if is_file(&file) => run("chattr", &[["+c", "-c"].choose(random).unwrap()], &file),
                _ => {}
            }
            said("attributes", &directory)
        }
        NESTED => {
            nested(random, &directory, &fresh);
            said("nested", &fresh)
        }
        31 => {
            if random.random_bool(0.5) {
                let _refused = symlink("anywhere", &fresh);
            } else {
                let _refused = nix::unistd::mkfifo(&fresh, nix::sys::stat::Mode::S_IRWXU);
            }
            said("symlink or fifo", &fresh)
        }
        32 => {
            // Open without a name, or with one that goes later.
            if is_file(&file)
                && let Ok(file) = File::open(&file)
            {
                held.0.push(file);
            }
            if held.0.len() > 4 {
                held.0.clear();
            }
            let _refused = fs::remove_file(&file);
            said("unlink while open", &file)
        }
        _ => {
            if random.random_bool(0.5) {
                nix::unistd::syncfs(File::open(live).unwrap()).unwrap();
                "sync".to_owned()
            } else {
                if is_file(&file) {
                    run("btrfs", &["-q", "filesystem", "defragment"], &file);
                }
                said("defragment", &file)
            }
        }
    }
}

/// A nested subvolume is made, renamed or deleted.
fn nested(random: &mut StdRng, directory: &Path, fresh: &Path) {
    let (Some(parent), Some(name)) = (fresh.parent(), fresh.file_name()) else { return };
    let Ok(parent) = Dir::open(parent) else { return };
    if random.random_bool(0.7) {
        if let Ok(made) = parent.create_subvolume(name, None) {
            let _refused = fs::write(made.proc_path().join("inside"), content(random, 5000));
        }
    } else if let (Some(above), Some(name)) = (directory.parent(), directory.file_name())
        && let (Ok(above), Ok(target)) = (Dir::open(above), Dir::open(directory))
        && btrfs::subvolume::is_subvolume(&target).unwrap_or(false)
    {
        let _refused = above.delete_subvolume(name);
    }
}

fn write(
    random: &mut StdRng,
    path: &Path,
    work: impl FnOnce(&mut StdRng, &File, u64) -> std::io::Result<()>,
) -> Option<()> {
    if !is_file(path) {
        return None;
    }
    let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
    let length = file.metadata().ok()?.len();
    if length > 8 << 20 {
        return file.set_len(1 << 20).ok();
    }
    work(random, &file, length).ok()
}

fn allocate(random: &mut StdRng, path: &Path, flags: FallocateFlags) -> Option<()> {
    write(random, path, |random, file, length| {
        let at = random.random_range(0..=length);
        let bytes = random.random_range(1..200_000);
        fallocate(file, flags, i64::try_from(at).unwrap(), bytes).map_err(Into::into)
    })
}

/// Runs a tool on a path, not for long: some open what they are given, and a fifo waits for its other end.
fn run(program: &str, arguments: &[&str], path: &Path) {
    let _refused = Command::new("timeout")
        .args(["5", program])
        .args(arguments)
        .arg(path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

fn size(random: &mut StdRng) -> usize {
    let sizes = [0, 1, 100, 1_500, 3_000, 5_000, 60_000, 300_000, 1_500_000];
    sizes.choose(random).copied().unwrap()
}

/// Half of it compresses well.
fn content(random: &mut StdRng, size: usize) -> Vec<u8> {
    let mut bytes = vec![random.random::<u8>(); size];
    if random.random_bool(0.5) {
        random.fill_bytes(&mut bytes);
    }
    bytes
}

fn name(random: &mut StdRng) -> PathBuf {
    let names: [&[u8]; 12] =
        [b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"\xff\xfe", b"a b", b"-", b"a.b", &[b'n'; 255]];
    PathBuf::from(std::ffi::OsStr::from_bytes(names.choose(random).unwrap()))
}

/// All that is not a directory, and all directories, the root first.
fn tree(live: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut files, mut directories) = (Vec::new(), vec![live.to_owned()]);
    let mut at = 0;
    while at < directories.len() {
        let mut entries: Vec<_> =
            fs::read_dir(&directories[at]).unwrap().map(|entry| entry.unwrap()).collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            if entry.file_type().unwrap().is_dir() {
                if directories.len() < 200 && entry.path().as_os_str().len() < 3000 {
                    directories.push(entry.path());
                }
            } else {
                files.push(entry.path());
            }
        }
        at += 1;
    }
    (files, directories)
}

fn is_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_file())
}
