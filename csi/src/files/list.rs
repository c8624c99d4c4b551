//! List: entries in the order of their names' bytes, a directory before what is in it, cut into pages.
//!
//! The order needs no state between pages: a page begins after the path at which the last one ended, whatever was made
//! or removed since. A directory is read whole for each page but only as many names are kept as the page can hold.

use std::collections::BinaryHeap;
use std::os::fd::AsFd as _;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fstat};
use proto::convert;
use proto::files::{Entry, ListRequest, ListResponse};
use tonic::Status;
use types::VolumePath;

use super::beneath::{Found, Root, open_beneath};
use super::entry::describe;
use super::error::Error;
use super::restore::is_staging;
use super::spool::is_leftover;
use super::{FilesService, LiveVolumes, Place};

const DEFAULT_LIMIT: usize = 1_000;
const MAX_LIMIT: usize = 10_000;

/// A page ends early here: names and symlink targets of 4 KiB each would make 10,000 entries a burden.
const PAGE_BYTES: usize = 8 << 20;

/// A message holds no more than about this; the limit on the wire is 4 MiB.
const MESSAGE_BYTES: usize = 1 << 20;

impl<V: LiveVolumes> FilesService<V> {
    pub(super) async fn list_directory(&self, request: ListRequest) -> Result<Vec<ListResponse>, Status> {
        let path = convert::path("path", &request.path)?;
        let after = convert::path("after", &request.after)?;
        let asked = usize::try_from(request.limit).unwrap_or(usize::MAX);
        if asked > MAX_LIMIT {
            return Err(Error::TooMany { what: "entries", asked, limit: MAX_LIMIT }.into());
        }
        let limit = if asked == 0 { DEFAULT_LIMIT } else { asked };
        let after = below(&path, &after).ok_or_else(|| convert::InvalidField::Malformed {
            field: "after",
            reason: "it is not a cursor of this directory's listing".to_owned(),
        })?;
        let recursive = request.recursive;
        let volume = match self.place(&request.volume_id).await? {
            Place::Live(volume) => volume,
            Place::Cold(cold) => {
                return Ok(messages(cold.list(&path, &after, recursive, limit, PAGE_BYTES).await?));
            }
        };
        let page = self
            .run(&volume, move |root| {
                let mut page = Page { root, recursive, limit, bytes: 0, entries: Vec::new(), cut: false };
                page.directory(&path, &after)?;
                Ok((page.entries, page.cut))
            })
            .await?;
        Ok(messages(page))
    }
}

/// Returns the cursor's names below `path`; nothing where it is not below it.
fn below(path: &VolumePath, after: &VolumePath) -> Option<Vec<Vec<u8>>> {
    if after.is_root() {
        return Some(Vec::new());
    }
    let mut rest = after.segments();
    for segment in path.segments() {
        if rest.next() != Some(segment) {
            return None;
        }
    }
    Some(rest.map(<[u8]>::to_vec).collect())
}

struct Page<'r> {
    root: &'r Root,
    recursive: bool,
    limit: usize,
    bytes: usize,
    entries: Vec<Entry>,
    cut: bool,
}

impl Page<'_> {
    /// Adds the entries of the directory at `path` that come after the cursor's names below it.
    fn directory(&mut self, path: &VolumePath, after: &[Vec<u8>]) -> Result<(), Error> {
        let directory = self.root.directory(path)?;
        let (resumed, deeper) = match after {
            [] => (None, &[][..]),
            [name, deeper @ ..] => (Some(name.as_slice()), deeper),
        };
        // One more than fits tells that there is more. The name at which the last page stood comes again where it may
        // be a directory whose entries are not all told.
        let keep = self.limit - self.entries.len() + 1;
        let names = first_names(directory.as_fd(), keep, resumed, self.recursive, path)?;
        let directory = directory.as_fd();
        for name in names {
            // A path that is too long to be named cannot be asked for either.
            let Ok(entry_path) = path.join(&name) else { continue };
            let is_resumed = resumed == Some(name.as_slice());
            let pin = match open_beneath(
                directory,
                name.as_slice(),
                OFlag::O_PATH | OFlag::O_NOFOLLOW,
                Mode::empty(),
            ) {
                Ok(pin) => pin,
                // Gone since it was read.
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(Error::os("open", &entry_path)(errno)),
            };
            let stat = fstat(&pin).map_err(Error::os("stat", &entry_path))?;
            let found = Found { pin, stat };
            if !is_resumed {
                if self.entries.len() == self.limit || self.bytes >= PAGE_BYTES {
                    self.cut = true;
                    return Ok(());
                }
                let entry = describe(&entry_path, &found)?;
                self.bytes += weight(&entry);
                self.entries.push(entry);
            }
            if self.recursive && found.kind() == SFlag::S_IFDIR {
                let deeper = if is_resumed { deeper } else { &[] };
                match self.directory(&entry_path, deeper) {
                    // Gone or replaced since; what stands there now is for the next listing.
                    Err(
                        Error::Os { source: Errno::ENOENT | Errno::ENOTDIR, .. } | Error::LeadsOut { .. },
                    ) => {}
                    answer => answer?,
                }
                if self.cut {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Reads a directory and keeps the first `keep` names after `resumed` (with it, where asked), in order.
fn first_names(
    directory: impl std::os::fd::AsFd,
    keep: usize,
    resumed: Option<&[u8]>,
    with_resumed: bool,
    path: &VolumePath,
) -> Result<Vec<Vec<u8>>, Error> {
    let failed = Error::os("list", path);
    // A descriptor of its own: reading moves the position.
    let own =
        open_beneath(directory, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).map_err(&failed)?;
    let mut names = BinaryHeap::new();
    for found in Dir::from_fd(own).map_err(&failed)?.iter() {
        let found = found.map_err(&failed)?;
        let name = found.file_name().to_bytes();
        let wanted = match resumed {
            Some(resumed) if with_resumed => name >= resumed,
            Some(resumed) => name > resumed,
            None => true,
        };
        if !wanted || name == b"." || name == b".." || is_leftover(name) || is_staging(name) {
            continue;
        }
        if names.len() <= keep {
            names.push(name.to_vec());
        } else if let Some(mut last) = names.peek_mut()
            && last.as_slice() > name
        {
            *last = name.to_vec();
        }
    }
    Ok(names.into_sorted_vec())
}

pub(super) fn weight(entry: &Entry) -> usize {
    // The fixed part is some forty bytes on the wire.
    64 + entry.path.len() + entry.target.len() + entry.etag.len()
}

fn messages((entries, cut): (Vec<Entry>, bool)) -> Vec<ListResponse> {
    let next = if cut { entries.last().map(|entry| entry.path.clone()) } else { None };
    let mut messages = vec![ListResponse::default()];
    let mut bytes = 0;
    for entry in entries {
        bytes += weight(&entry);
        if bytes > MESSAGE_BYTES {
            bytes = weight(&entry);
            messages.push(ListResponse::default());
        }
        if let Some(message) = messages.last_mut() {
            message.entries.push(entry);
        }
    }
    if let Some(message) = messages.last_mut() {
        message.next = next.unwrap_or_default();
    }
    messages
}
