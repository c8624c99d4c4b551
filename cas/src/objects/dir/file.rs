//! One object's file: its bytes, and after them a trailer that says which write this is.
//!
//! The trailer has 32 bytes: `"\nOSOBJ1\n"`, a random nonce of 16 bytes, and the length of the bytes before it as a
//! little-endian u64. The nonce is the etag. Inode numbers and times would repeat; an extended attribute would get lost
//! with `cp`, and is not everywhere. At the end rather than the front, so that offsets are those of the object.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use types::Timestamp;
use ulid::Ulid;

use super::{error_of, is_absent};
use crate::objects::{Etag, Key, MAX_OBJECT_BYTES, Meta, Object, ObjectError};

/// Ends the name of an object's file. It is in no key, so a file and a directory never want the same name.
pub(super) const SUFFIX: char = '@';

const MAGIC: &[u8; 8] = b"\nOSOBJ1\n";
const TRAILER_BYTES: usize = 32;

/// Returns what is known of the object at `path`.
pub(super) fn meta(path: &Path, key: &Key) -> Result<Meta, ObjectError> {
    let (file, size, modified) = open_unread(path, key)?;
    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact_at(&mut trailer, size).map_err(|error| error_of(&format!("read {key}"), error))?;
    let etag = parse_trailer(&trailer, size).ok_or_else(|| damaged(path, key))?;
    Ok(Meta { key: key.clone(), size, etag, modified })
}

/// Reads the object whole.
pub(super) fn read(path: &Path, key: &Key) -> Result<Object, ObjectError> {
    let (mut file, size, modified) = open_unread(path, key)?;
    if size > MAX_OBJECT_BYTES {
        return Err(ObjectError::TooLarge { key: key.clone(), size, limit: MAX_OBJECT_BYTES });
    }
    let length = usize::try_from(size).expect("bounded above");
    let mut bytes = Vec::with_capacity(length + TRAILER_BYTES);
    (&mut file)
        .take(size + TRAILER_BYTES as u64)
        .read_to_end(&mut bytes)
        .map_err(|error| error_of(&format!("read {key}"), error))?;
    let etag = bytes
        .get(length..)
        .and_then(|trailer| trailer.try_into().ok())
        .and_then(|trailer| parse_trailer(trailer, size))
        .ok_or_else(|| damaged(path, key))?;
    bytes.truncate(length);
    Ok(Object { meta: Meta { key: key.clone(), size, etag, modified }, bytes: bytes.into() })
}

/// Reads exactly the bytes of `range`. The trailer is not looked at: a range is checked by who knows its hash.
pub(super) fn read_range(path: &Path, key: &Key, range: Range<u64>) -> Result<Bytes, ObjectError> {
    let (mut file, size, _) = open_unread(path, key)?;
    if range.start > range.end || range.end > size {
        return Err(ObjectError::Range { key: key.clone(), range, size: Some(size) });
    }
    let wanted = range.end - range.start;
    if wanted > MAX_OBJECT_BYTES {
        return Err(ObjectError::TooLarge { key: key.clone(), size: wanted, limit: MAX_OBJECT_BYTES });
    }
    let failed = |error| error_of(&format!("read {key}"), error);
    let mut bytes = Vec::with_capacity(usize::try_from(wanted).expect("bounded above"));
    file.seek(SeekFrom::Start(range.start)).map_err(failed)?;
    (&mut file).take(wanted).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 != wanted {
        return Err(damaged(path, key));
    }
    Ok(bytes.into())
}

/// Writes an object's bytes and a new trailer, and makes them durable. Returns the new etag.
pub(super) fn write(mut file: &File, bytes: &[u8]) -> io::Result<Etag> {
    let nonce: [u8; 16] = rand::random();
    let mut trailer = Vec::with_capacity(TRAILER_BYTES);
    trailer.extend_from_slice(MAGIC);
    trailer.extend_from_slice(&nonce);
    trailer.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    file.write_all(bytes)?;
    file.write_all(&trailer)?;
    file.sync_all()?;
    Ok(etag_of(&nonce))
}

fn etag_of(nonce: &[u8]) -> Etag {
    Etag::new(format!("\"{}\"", hex::encode(nonce)))
}

fn parse_trailer(trailer: &[u8; TRAILER_BYTES], size: u64) -> Option<Etag> {
    let (magic, rest) = trailer.split_at(MAGIC.len());
    let (nonce, length) = rest.split_at(16);
    (magic == MAGIC && length == size.to_le_bytes()).then(|| etag_of(nonce))
}

/// Opens the file and returns the object's size and time by what the filesystem says.
fn open_unread(path: &Path, key: &Key) -> Result<(File, u64, Timestamp), ObjectError> {
    let failed = |error: io::Error| {
        if is_absent(&error) {
            ObjectError::NotFound { key: key.clone() }
        } else {
            error_of(&format!("read {key}"), error)
        }
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let size = metadata
        .len()
        .checked_sub(TRAILER_BYTES as u64)
        .filter(|_| metadata.is_file())
        .ok_or_else(|| damaged(path, key))?;
    let modified = metadata.modified().map_err(failed)?.into();
    Ok((file, size, modified))
}

fn damaged(path: &Path, key: &Key) -> ObjectError {
    let source = format!("{} was cut, changed or put there by something else", path.display()).into();
    ObjectError::Damaged { what: format!("read {key}"), source }
}

/// A file that is being written. It goes away when dropped, unless it has been renamed.
pub(super) struct Temp {
    path: PathBuf,
    file: File,
    renamed: bool,
}

impl Temp {
    /// Makes a file in `directory`, locked against the sweep of another process.
    pub(super) fn create(directory: &Path) -> io::Result<Self> {
        loop {
            let path = directory.join(Ulid::generate().to_string());
            let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
            let temp = Self { path, file, renamed: false };
            temp.file.lock()?;
            // A sweep may have come between; then the file has no name any more.
            if temp.file.metadata()?.nlink() > 0 {
                return Ok(temp);
            }
        }
    }

    pub(super) fn file(&mut self) -> &File {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Says that the file has got its final name.
    pub(super) fn renamed(&mut self) {
        self.renamed = true;
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.renamed {
            // Nothing can be done about a failure here; the next open sweeps.
            drop(fs::remove_file(&self.path));
        }
    }
}
