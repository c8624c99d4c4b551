//! Restore: a file or directory becomes what it was, in one step.
//!
//! It is made beside the volume's tree, in a directory of its own below the root that no listing shows, proved on the way,
//! brought to disk, and then takes its place by one rename (an exchange, where something stands there). A restore that is
//! cut off leaves that directory; the next one on the volume removes it and begins again.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cas::tree::RestoreOptions;
use nix::errno::Errno;
use nix::fcntl::{RenameFlags, renameat2};
use nix::sys::stat::{Mode, SFlag, fchmod, mkdirat};
use nix::unistd::{fsync, syncfs};
use proto::convert;
use proto::files::{RestoreRequest, RestoreResponse};
use tonic::Status;
use types::VolumePath;

use super::beneath::{Last, Root, make_directory, open_directory, set_owner};
use super::cold::ColdVolume;
use super::delete::{delete, names};
use super::entry::describe;
use super::error::Error;
use super::{FilesService, LiveVolumes};

/// Names of this form below the root are restores in progress.
const STAGING_PREFIX: &str = ".opensail-restore.";

/// How often the rest of an earlier restore is removed again while its threads still write, and how long they are given.
const SWEEPS: u32 = 200;
const SWEEP_PAUSE: Duration = Duration::from_millis(10);

/// The name of the part in its staging directory.
const PART: &str = "part";

/// Tells if a name below the root is a restore in progress, or what one that was cut off has left.
pub(super) fn is_staging(name: &[u8]) -> bool {
    name.strip_prefix(STAGING_PREFIX.as_bytes())
        .is_some_and(|rest| rest.len() == 16 && rest.iter().all(u8::is_ascii_hexdigit))
}

/// A directory that is missing on the way, as it was.
#[derive(Debug)]
struct Parent {
    path: VolumePath,
    mode: u32,
    owner: Option<(u32, u32)>,
}

impl<V: LiveVolumes> FilesService<V> {
    pub(super) async fn restore_part(&self, request: RestoreRequest) -> Result<RestoreResponse, Status> {
        let path = convert::path("path", &request.path)?;
        let to = if request.to.is_empty() { path.clone() } else { convert::path("to", &request.to)? };
        if path.is_root() || to.is_root() {
            return Err(Error::AtRoot { doing: "restored alone: restore the volume" }.into());
        }
        let cold = self.durable("from", &request.from).await?;
        let found =
            cold.reader.stat(&cold.tree, &path).await.map_err(|error| proto::status::status(&error))?;
        if found.is_none() {
            let error = cas::TreeError::NotFound { path, version: cold.tree.version };
            return Err(proto::status::status(&error));
        }
        let parents = parents(&cold, &to).await?;
        let volume = self.open(&request.volume_id).await?;
        let staging = self.under_way.begin();
        let (name, under_way) = (staging.name.clone(), self.under_way.clone());
        let directory = self.run(&volume, move |root| stage(root, &name, &under_way)).await?;
        let made = cold.reader.restore_part(
            &cold.tree,
            &path,
            directory,
            PART.as_bytes(),
            RestoreOptions::default(),
        );
        let made = made.await;
        let (staged, name) = (staging.name.clone(), staging.name.clone());
        let answer = match made {
            Ok(made) => {
                self.run(&volume, move |root| {
                    let replaced = put_in_place(root, &staged, &to, &parents)?;
                    let found = root.find(&to, Last::Keep)?;
                    Ok(RestoreResponse {
                        entry: Some(describe(&to, &found)?),
                        replaced,
                        files: made.files,
                        bytes: made.bytes,
                    })
                })
                .await
            }
            Err(error) => Err(proto::status::status(&error)),
        };
        // What was there before, or what was not finished. If this fails the next restore does it.
        let swept = self.run(&volume, move |root| sweep(root, name.as_bytes())).await;
        if let Err(error) = swept {
            tracing::warn!(%error, "a restore left something behind");
        }
        answer
    }
}

/// The directories on the way to `to`, with what the version says of those that it has.
async fn parents(cold: &ColdVolume, to: &VolumePath) -> Result<Vec<Parent>, Status> {
    let mut parents = Vec::new();
    let mut at = to.split_last().map(|(parent, _)| parent);
    while let Some(path) = at.filter(|path| !path.is_root()) {
        let found =
            cold.reader.stat(&cold.tree, &path).await.map_err(|error| proto::status::status(&error))?;
        let (mode, owner) =
            found.map_or((0o755, None), |found| (found.meta.mode, Some((found.meta.uid, found.meta.gid))));
        at = path.split_last().map(|(parent, _)| parent);
        parents.push(Parent { path, mode, owner });
    }
    parents.reverse();
    Ok(parents)
}

/// The restores of this process that are under way, by the names of their staging directories. Others are what a process
/// before this one, or a caller that went away, has left.
#[derive(Debug, Clone, Default)]
pub(super) struct UnderWay(Arc<Mutex<BTreeSet<String>>>);

impl UnderWay {
    fn begin(&self) -> Staging {
        let name = format!("{STAGING_PREFIX}{:016x}", rand::random::<u64>());
        self.names().insert(name.clone());
        Staging { name, under_way: self.clone() }
    }

    fn names(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

/// One that is under way, until it is dropped.
#[derive(Debug)]
struct Staging {
    name: String,
    under_way: UnderWay,
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.under_way.names().remove(&self.name);
    }
}

/// Makes a staging directory, after removing those that were left.
fn stage(root: &Root, name: &str, under_way: &UnderWay) -> Result<OwnedFd, Error> {
    let path = VolumePath::ROOT;
    let failed = Error::os("stage a restore in", &path);
    let top = root.directory(&VolumePath::ROOT)?;
    for (name, _) in names(&top).map_err(&failed)? {
        let busy = under_way.names().iter().any(|busy| busy.as_bytes() == name);
        if is_staging(&name) && !busy {
            sweep(root, &name)?;
        }
    }
    mkdirat(&top, name, Mode::S_IRWXU).map_err(&failed)?;
    let staging = open_directory(&top, name.as_bytes()).map_err(&failed)?;
    // What the root passes on to its children is not the version's.
    fchmod(&staging, Mode::S_IRWXU).map_err(&failed)?;
    match rustix::fs::fremovexattr(&staging, "system.posix_acl_default") {
        Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => {}
        Err(error) => return Err(failed(Errno::from_raw(error.raw_os_error()))),
    }
    Ok(staging)
}

/// Gives the finished part its place. Tells if something stood there, which is in the staging directory now.
fn put_in_place(root: &Root, staged: &str, to: &VolumePath, parents: &[Parent]) -> Result<bool, Error> {
    let failed = Error::os("put in place", to);
    let top = root.directory(&VolumePath::ROOT)?;
    let staging = open_directory(&top, staged.as_bytes()).map_err(&failed)?;
    // Data before the name that shows it: a rename alone may be on disk before what it names.
    syncfs(staging.as_fd()).map_err(&failed)?;
    for parent in parents {
        make_parent(root, parent)?;
    }
    let (directory, name) = root.place(to, "replaced")?;
    let replaced = match renameat2(&staging, PART, &directory, name, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => true,
        Err(Errno::ENOENT) => {
            renameat2(&staging, PART, &directory, name, RenameFlags::RENAME_NOREPLACE).map_err(&failed)?;
            false
        }
        Err(error) => return Err(failed(error)),
    };
    fsync(&directory).map_err(&failed)?;
    Ok(replaced)
}

fn make_parent(root: &Root, parent: &Parent) -> Result<(), Error> {
    let failed = Error::os("make the directory", &parent.path);
    match root.find(&parent.path, Last::Follow) {
        Ok(found) if found.kind() == SFlag::S_IFDIR => return Ok(()),
        Ok(_) => return Err(failed(Errno::ENOTDIR)),
        Err(error) if error.is_absent() => {}
        Err(error) => return Err(error),
    }
    let (directory, name) = root.place(&parent.path, "made")?;
    let made = make_directory(&directory, name, parent.mode & 0o777).map_err(&failed)?;
    if let Some((uid, gid)) = parent.owner {
        set_owner(&made, uid, gid).map_err(&failed)?;
        // A change of owner takes bits away.
        fchmod(&made, Mode::from_bits_truncate(parent.mode)).map_err(&failed)?;
    }
    Ok(())
}

/// Removes a staging directory and all that is in it, without following anything. The threads of a restore whose caller
/// has gone may still be writing the file that they had in hand.
fn sweep(root: &Root, name: &[u8]) -> Result<(), Error> {
    let top = root.directory(&VolumePath::ROOT)?;
    let mut again = 1..SWEEPS;
    loop {
        match delete(&top, name, true) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::ENOTEMPTY) if again.next().is_some() => std::thread::sleep(SWEEP_PAUSE),
            Err(errno) => return Err(Error::os("remove the rest of a restore in", &VolumePath::ROOT)(errno)),
        }
    }
}
