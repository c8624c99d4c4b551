//! Listing a directory store: its tree walked in the order of the keys.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::thread;

use super::file::{self, SUFFIX};
use super::lock::DirLock;
use super::{error_of, is_absent};
use crate::blocking;
use crate::objects::{Key, Meta, ObjectError, Page};

/// Each page reads its directories again, so pages are large: a million objects in one directory are 50 reads of it.
pub(super) const PAGE_ENTRIES: usize = 20_000;

/// Fewer objects than this for each thread are not worth the thread.
const LOOKS_PER_THREAD: usize = 512;

/// Where in the tree a walk is, and what it wants.
struct Walk<'a> {
    prefix: &'a str,
    after: Option<&'a str>,
    found: Vec<Meta>,
    more: bool,
}

/// Returns the first objects whose keys begin with `prefix` and are greater than `after`.
pub(super) fn page(root: &Path, prefix: &str, after: Option<&Key>) -> Result<Page, ObjectError> {
    let mut walk = Walk { prefix, after: after.map(Key::as_str), found: Vec::new(), more: false };
    // Only directories below this one can hold such keys.
    let above = prefix.rfind('/').map_or("", |end| &prefix[..=end]);
    if !Key::is_prefix(prefix) {
        // Asking the filesystem might lead out of the store.
        return Ok(Page::default());
    }
    walk.directory(&root.join(above), above)?;
    let next = walk.found.last().filter(|_| walk.more).map(|meta| meta.key.clone());
    Ok(Page { entries: walk.found, next })
}

impl Walk<'_> {
    /// Walks the directory at `path`, which holds the keys that begin with `keys`.
    fn directory(&mut self, path: &Path, keys: &str) -> Result<(), ObjectError> {
        let mut parts = match read(path, |part| self.wants(keys, part)) {
            Err(error) if is_absent(&error) && !keys.is_empty() => return Ok(()),
            parts => parts.map_err(|error| error_of(&format!("list {}", self.prefix), error))?,
        };
        parts.sort_unstable();
        let mut rest = parts.as_slice();
        while let Some(first) = rest.first() {
            let room = PAGE_ENTRIES - self.found.len();
            if let Some(name) = first.strip_suffix('/') {
                self.directory(&path.join(name), &format!("{keys}{first}"))?;
                rest = &rest[1..];
            } else if room == 0 {
                self.more = true;
            } else {
                let objects = rest.iter().take(room).take_while(|part| !part.ends_with('/')).count();
                // Those deleted since the directory was read make room for more.
                self.found.extend(look(path, keys, &rest[..objects])?);
                rest = &rest[objects..];
            }
            if self.more {
                break;
            }
        }
        Ok(())
    }

    /// Tells if the key `keys` + `part`, or one below it, can be in the listing.
    fn wants(&self, keys: &str, part: &str) -> bool {
        let text = format!("{keys}{part}");
        let (begins, later) = if text.ends_with('/') {
            let begins = text.starts_with(self.prefix) || self.prefix.starts_with(&text);
            (begins, self.after.is_none_or(|after| *text > *after || after.starts_with(&text)))
        } else {
            (text.starts_with(self.prefix), self.after.is_none_or(|after| *text > *after))
        };
        begins && later
    }
}

/// Looks at the objects in the directory at `path` that are `parts` of the keys below `keys`: several at once, as most of
/// it is waiting for the kernel to open and close. Without those that are gone.
fn look(path: &Path, keys: &str, parts: &[String]) -> Result<Vec<Meta>, ObjectError> {
    let threads = (parts.len() / LOOKS_PER_THREAD).clamp(1, blocking::parallelism());
    let some = |parts: &[String]| {
        let mut found = Vec::with_capacity(parts.len());
        for part in parts {
            let Ok(key) = format!("{keys}{part}").parse::<Key>() else { continue };
            match file::meta(&path.join(format!("{part}{SUFFIX}")), &key) {
                Ok(meta) => found.push(meta),
                Err(ObjectError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    };
    if threads == 1 {
        return some(parts);
    }
    let looks = thread::scope(|scope| {
        let chunks = parts.chunks(parts.len().div_ceil(threads));
        let running: Vec<_> = chunks.map(|chunk| scope.spawn(move || some(chunk))).collect();
        let ended = running.into_iter().map(|look| look.join().expect("looking does not panic"));
        ended.collect::<Result<Vec<_>, _>>()
    });
    Ok(looks?.into_iter().flatten().collect())
}

/// Reads the names in a directory that are wanted, under its lock (see the module above for why). As parts of the keys
/// below it: `name` for an object, `name/` for a directory, which sorts as the keys do.
fn read(path: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<String>> {
    let lock = DirLock::take(path)?;
    let mut parts = Vec::new();
    let mut add = |part: String| {
        if wanted(&part) {
            parts.push(part);
        }
    };
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        // What cannot be a part of a key is not ours: `.tmp`, `lost+found`, a person's notes.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let kind = entry.file_type()?;
        if let Some(name) = name.strip_suffix(SUFFIX).filter(|name| name.parse::<Key>().is_ok()) {
            add(name.to_owned());
        } else if name.parse::<Key>().is_ok() {
            if kind.is_dir() {
                add(format!("{name}/"));
            } else if kind.is_symlink() {
                let why =
                    format!("{} is a symbolic link, which a store does not follow", entry.path().display());
                return Err(io::Error::other(why));
            }
        }
    }
    drop(lock);
    Ok(parts)
}

/// Makes the names in every directory of the store durable.
pub(super) fn sync_directories(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let named = entry.file_name().into_string().is_ok_and(|name| name.parse::<Key>().is_ok());
        if named && entry.file_type()?.is_dir() {
            sync_directories(&entry.path())?;
        }
    }
    File::open(root)?.sync_all()
}
