//! Batch: several changes in order, up to the first that fails. Each may be asked for again: what stands as asked is
//! a success that changed nothing.

use nix::errno::Errno;
use nix::fcntl::{AtFlags, RenameFlags, readlinkat, renameat2};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};
use proto::convert;
use proto::files::change::Change as Asked;
use proto::files::{
    BatchRequest, BatchResponse, ChangeResult, Delete, MakeDirectory, MakeSymlink, Move, SetMode,
};
use std::os::unix::ffi::OsStrExt as _;
use tonic::{Code, Status};
use types::{Change, VolumePath};

use super::beneath::{Last, Root, kind, make_directories, make_directory, proc_path};
use super::delete::delete;
use super::error::Error;
use super::spool::refuse_leftover;
use super::write::check_mode;
use super::{FilesService, LiveVolumes};

/// One call's changes; more would hold its caller for long.
const MAX_CHANGES: usize = 256;

impl<V: LiveVolumes> FilesService<V> {
    pub(super) async fn batch_changes(&self, request: BatchRequest) -> Result<BatchResponse, Status> {
        if request.changes.len() > MAX_CHANGES {
            let asked = request.changes.len();
            return Err(Error::TooMany { what: "changes", asked, limit: MAX_CHANGES }.into());
        }
        let volume = self.open(&request.volume_id).await?;
        let mut results = Vec::with_capacity(request.changes.len());
        for change in request.changes {
            let outcome = match change.change {
                Some(asked) => self.apply(&volume, asked).await,
                None => Err(Error::EmptyChange.into()),
            };
            let failed = outcome.is_err();
            results.push(result(outcome));
            if failed {
                break;
            }
        }
        Ok(BatchResponse { results })
    }

    async fn apply(
        &self,
        volume: &std::sync::Arc<super::LiveVolume>,
        asked: Asked,
    ) -> Result<Change, Status> {
        match asked {
            Asked::MakeDirectory(MakeDirectory { path, parents, mode }) => {
                let path = convert::path("path", &path)?;
                let mode = mode.unwrap_or(0o755);
                self.run(volume, move |root| make(root, &path, parents, mode)).await
            }
            Asked::Move(Move { from, to, replace }) => {
                let (from, to) = (convert::path("from", &from)?, convert::path("to", &to)?);
                self.run(volume, move |root| move_path(root, &from, &to, replace)).await
            }
            Asked::Delete(Delete { path, recursive }) => {
                let path = convert::path("path", &path)?;
                self.run(volume, move |root| delete_path(root, &path, recursive)).await
            }
            Asked::MakeSymlink(MakeSymlink { path, target }) => {
                let path = convert::path("path", &path)?;
                self.run(volume, move |root| make_symlink(root, &path, &target)).await
            }
            Asked::SetMode(SetMode { path, mode }) => {
                let path = convert::path("path", &path)?;
                self.run(volume, move |root| set_mode(root, &path, mode)).await
            }
        }
    }
}

fn result(outcome: Result<Change, Status>) -> ChangeResult {
    match outcome {
        Ok(change) => {
            ChangeResult { ok: true, changed: change.is_made(), error: String::new(), code: Code::Ok.into() }
        }
        Err(status) => ChangeResult {
            ok: false,
            changed: false,
            error: status.message().to_owned(),
            code: status.code().into(),
        },
    }
}

fn make(root: &Root, path: &VolumePath, parents: bool, mode: u32) -> Result<Change, Error> {
    check_mode(mode)?;
    let Some((holder, name)) = path.split_last() else { return Ok(Change::Already(())) };
    refuse_leftover(name, path)?;
    let directory = if parents {
        let (directory, missing) = root.deepest(&holder)?;
        make_directories(directory, &missing, path)?
    } else {
        root.place(path, "made")?.0
    };
    match make_directory(&directory, name, mode) {
        Ok(_) => Ok(Change::Made(())),
        Err(Errno::EEXIST) => match root.find(path, Last::Follow) {
            Ok(found) if found.kind() == SFlag::S_IFDIR => Ok(Change::Already(())),
            _ => Err(Error::Exists { path: path.clone() }),
        },
        Err(errno) => Err(Error::os("make the directory", path)(errno)),
    }
}

fn move_path(root: &Root, from: &VolumePath, to: &VolumePath, replace: bool) -> Result<Change, Error> {
    let (to_directory, to_name) = root.place(to, "replaced")?;
    refuse_leftover(to_name, to)?;
    let target = standing(&to_directory, to_name, to)?;
    let source = match root.place(from, "moved") {
        Ok((directory, name)) => standing(&directory, name, from)?.map(|stat| (directory, name, stat)),
        Err(error) if error.is_absent() => None,
        Err(error) => return Err(error),
    };
    let Some((from_directory, from_name, stat)) = source else {
        // `from` is gone and `to` is there: what was asked for holds, from an earlier call whose answer was lost.
        return if target.is_some() {
            Ok(Change::Already(()))
        } else {
            Err(Error::os("move", from)(Errno::ENOENT))
        };
    };
    if from == to {
        return Ok(Change::Already(()));
    }
    if replace
        && let Some(target) = target
        && kind(&stat) != SFlag::S_IFDIR
        && (target.st_dev, target.st_ino) == (stat.st_dev, stat.st_ino)
    {
        // Two names of one file: a rename would leave both.
        return unlinkat(&from_directory, from_name, UnlinkatFlags::NoRemoveDir)
            .map(Change::Made)
            .map_err(Error::os("move", from));
    }
    let flags = if replace { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
    match renameat2(&from_directory, from_name, &to_directory, to_name, flags) {
        Ok(()) => Ok(Change::Made(())),
        Err(Errno::EEXIST) if !replace => Err(Error::Exists { path: to.clone() }),
        Err(errno) => Err(Error::os("move", from)(errno)),
    }
}

fn delete_path(root: &Root, path: &VolumePath, recursive: bool) -> Result<Change, Error> {
    let (directory, name) = match root.place(path, "deleted") {
        Err(error) if error.is_absent() => return Ok(Change::Already(())),
        answer => answer?,
    };
    match delete(&directory, name, recursive) {
        Ok(()) => Ok(Change::Made(())),
        Err(Errno::ENOENT) => Ok(Change::Already(())),
        Err(errno) => Err(Error::os("delete", path)(errno)),
    }
}

fn make_symlink(root: &Root, path: &VolumePath, target: &[u8]) -> Result<Change, Error> {
    let (directory, name) = root.place(path, "made")?;
    refuse_leftover(name, path)?;
    let failed = Error::os("make the symlink", path);
    match symlinkat(target, &directory, name) {
        Ok(()) => {}
        Err(Errno::EEXIST) => {
            return match readlinkat(&directory, name) {
                Ok(present) if present.as_bytes() == target => Ok(Change::Already(())),
                _ => Err(Error::Exists { path: path.clone() }),
            };
        }
        Err(errno) => return Err(failed(errno)),
    }
    let parent = fstat(&directory).map_err(&failed)?;
    let made = standing(&directory, name, path)?;
    if made.is_some_and(|made| (made.st_uid, made.st_gid) != (parent.st_uid, parent.st_gid)) {
        let (uid, gid) = (Uid::from_raw(parent.st_uid), Gid::from_raw(parent.st_gid));
        fchownat(&directory, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(&failed)?;
    }
    Ok(Change::Made(()))
}

fn set_mode(root: &Root, path: &VolumePath, mode: u32) -> Result<Change, Error> {
    check_mode(mode)?;
    let found = root.find(path, Last::Follow)?;
    if found.stat.st_mode & 0o7777 == mode {
        return Ok(Change::Already(()));
    }
    // The descriptor pins what was found; a symlink that is swapped in meanwhile changes nothing.
    let pinned = proc_path(&found.pin);
    let mode = Mode::from_bits_truncate(mode);
    fchmodat(nix::fcntl::AT_FDCWD, pinned.as_str(), mode, FchmodatFlags::FollowSymlink)
        .map(Change::Made)
        .map_err(Error::os("set the mode of", path))
}

fn standing(
    directory: &std::os::fd::OwnedFd,
    name: &[u8],
    path: &VolumePath,
) -> Result<Option<FileStat>, Error> {
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(Error::os("stat", path)(errno)),
    }
}
