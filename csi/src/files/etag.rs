//! Etags: the content's BLAKE3 where the file is small or somebody asked, else a weak one that costs nothing.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use nix::sys::stat::{FileStat, SFlag, fstat};
use types::VolumePath;

use super::beneath::kind;
use super::entry::size;
use super::error::Error;

/// Files up to this size have their content hashed for an etag without being asked; it takes about 10 ms.
pub(super) const STRONG_BYTES: u64 = 8 << 20;

/// How much is hashed before the thread is given back.
const STEP_BYTES: u64 = 64 << 20;

const BUFFER_BYTES: usize = 128 << 10;

/// Returns the weak etag: it changes whenever the content does, and sometimes when it does not.
pub(super) fn weak(stat: &FileStat) -> String {
    let changed = i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec);
    format!("W/{:x}-{:x}-{changed:x}", stat.st_ino, stat.st_size)
}

/// Returns the etag that a file of this status has without reading it.
pub(super) fn free(stat: &FileStat) -> Option<String> {
    (kind(stat) == SFlag::S_IFREG && size(stat) > STRONG_BYTES).then(|| weak(stat))
}

/// Tells if an etag is a weak one.
pub(super) fn is_weak(etag: &str) -> bool {
    etag.starts_with("W/")
}

/// Returns the etag of an open file in the form that `like` has: weak for weak, the content's hash for all else.
pub(super) fn like(like: &str, file: &File, path: &VolumePath) -> Result<String, Error> {
    if is_weak(like) {
        return Ok(weak(&fstat(file).map_err(Error::os("stat", path))?));
    }
    let file = file.try_clone().map_err(|error| io("hash", path, &error))?;
    let mut hashing = Hashing::new(file, u64::MAX, path.clone());
    loop {
        hashing = hashing.step()?;
        if let Some(digest) = hashing.digest() {
            return Ok(digest);
        }
    }
}

/// A file's content on its way to a hash, in steps that give the thread back in between.
#[derive(Debug)]
pub(super) struct Hashing {
    file: File,
    path: VolumePath,
    hasher: Box<blake3::Hasher>,
    at: u64,
    end: u64,
    done: bool,
}

impl Hashing {
    /// Begins with the first `length` bytes of `file`, or all there are.
    pub(super) fn new(file: File, length: u64, path: VolumePath) -> Self {
        Self { file, path, hasher: Box::default(), at: 0, end: length, done: false }
    }

    /// Hashes the next part.
    pub(super) fn step(mut self) -> Result<Self, Error> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let until = self.end.min(self.at.saturating_add(STEP_BYTES));
        while self.at < until {
            let want = usize::try_from(until - self.at).unwrap_or(usize::MAX).min(buffer.len());
            let read = read_at(&self.file, &mut buffer[..want], self.at, &self.path)?;
            self.hasher.update(&buffer[..read]);
            self.at += read as u64;
            if read < want {
                self.done = true;
                return Ok(self);
            }
        }
        self.done = self.at == self.end;
        Ok(self)
    }

    /// Returns the hash in hex once everything went in.
    pub(super) fn digest(&self) -> Option<String> {
        self.done.then(|| self.hasher.finalize().to_hex().to_string())
    }
}

/// Fills `buffer` from `offset`; fewer bytes only at the end of the file.
pub(super) fn read_at(
    file: &File,
    buffer: &mut [u8],
    offset: u64,
    path: &VolumePath,
) -> Result<usize, Error> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io("read", path, &error)),
        }
    }
    Ok(filled)
}

/// Makes an error of one of the standard library's, which is the kernel's.
pub(super) fn io(doing: &'static str, path: &VolumePath, error: &std::io::Error) -> Error {
    let source = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0));
    Error::Os { doing, path: path.clone(), source }
}
