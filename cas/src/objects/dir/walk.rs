//! Listing a directory store: its tree walked in the order of the keys.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::file::{self, SUFFIX};
use super::lock::DirLock;
use super::{error_of, is_absent};
use crate::objects::{Key, Meta, ObjectError, Page};

/// Each page reads its directories again, so pages are large: a million objects in one directory are 100 reads of it.
const PAGE_ENTRIES: usize = 10_000;

/// Where in the tree a walk is, and what it wants.
struct Walk<'a> {
    prefix: &'a str,
    after: Option<&'a str>,
    found: Vec<Meta>,
    more: bool,
}

/// One entry of a directory, as a part of the keys below it.
struct Entry {
    /// `name` for an object, `name/` for a directory: sorts as the keys do.
    part: String,
    path: PathBuf,
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
        let mut entries = match read(path) {
            Err(error) if is_absent(&error) && !keys.is_empty() => return Ok(()),
            entries => entries.map_err(|error| error_of(&format!("list {}", self.prefix), error))?,
        };
        entries.retain(|entry| self.wants(keys, &entry.part));
        entries.sort_unstable_by(|a, b| a.part.cmp(&b.part));
        for entry in entries {
            let text = format!("{keys}{}", entry.part);
            if text.ends_with('/') {
                self.directory(&entry.path, &text)?;
            } else if self.found.len() == PAGE_ENTRIES {
                self.more = true;
            } else {
                let Ok(key) = text.parse::<Key>() else { continue };
                match file::meta(&entry.path, &key) {
                    Ok(meta) => self.found.push(meta),
                    // Deleted since the directory was read.
                    Err(ObjectError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
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

/// Reads the names in a directory, under its lock (see the module above for why).
fn read(path: &Path) -> io::Result<Vec<Entry>> {
    let lock = DirLock::take(path)?;
    let mut entries = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        // What cannot be a part of a key is not ours: `.tmp`, `lost+found`, a person's notes.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let kind = entry.file_type()?;
        if let Some(name) = name.strip_suffix(SUFFIX).filter(|name| name.parse::<Key>().is_ok()) {
            entries.push(Entry { part: name.to_owned(), path: entry.path() });
        } else if name.parse::<Key>().is_ok() {
            if kind.is_dir() {
                entries.push(Entry { part: format!("{name}/"), path: entry.path() });
            } else if kind.is_symlink() {
                let why =
                    format!("{} is a symbolic link, which a store does not follow", entry.path().display());
                return Err(io::Error::other(why));
            }
        }
    }
    drop(lock);
    Ok(entries)
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
