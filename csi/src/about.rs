//! What a local copy knows about itself: its birth, its quota group and its limit.
//!
//! It is the target of a symlink (`volumes/<id>/about`), because a symlink is metadata: it goes to disk with the commit
//! that the subvolume goes with. A file's bytes would need an fsync of their own.

use btrfs::Dir;
use serde::{Deserialize, Serialize};
use types::Birth;

use crate::error::Error;
use crate::layout;
use crate::quota_class::QuotaClass;

/// The facts of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The birth of the record that this is a copy of. Only a tombstone of the same birth permits dropping it.
    pub birth: Birth,
    /// The number of its level-1 quota group; none with `--quota=off`.
    pub group: Option<u64>,
    /// The limit in the record's terms; none is unlimited.
    pub limit_bytes: Option<u64>,
    /// What the group's usage here has more (or less) than the record's charge, since the copy was materialised: a
    /// fork is charged only for what is its own, a restored copy for everything. Kept so that the same is left here
    /// as was left there.
    #[serde(default)]
    pub offset_bytes: i64,
    /// It was made while its record was begun, so nobody was told of it yet. Where there is no such record it goes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unborn: bool,
    /// What happens at the limit.
    #[serde(default)]
    pub class: QuotaClass,
    /// It is about to be given up: the record's write may be on its way. The next life of this node settles that before
    /// anybody writes here again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub releasing: bool,
}

impl About {
    /// Reads it from the volume's directory; nothing where there is none.
    ///
    /// # Errors
    /// It is there and cannot be understood.
    pub fn read(directory: &Dir) -> Result<Option<Self>, Error> {
        let path = directory.proc_path().join(layout::ABOUT);
        match std::fs::read_link(&path) {
            Ok(target) => {
                let text = target.to_string_lossy();
                serde_json::from_str(&text).map(Some).map_err(|source| Error::Damaged { path, source })
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::PoolPath { path, source }),
        }
    }

    /// Writes it, replacing what was there in one step.
    ///
    /// # Errors
    /// The pool cannot be written.
    pub fn write(&self, directory: &Dir) -> Result<(), Error> {
        replace_link(directory, layout::ABOUT, &self.text())
    }

    /// Writes it where there is none yet.
    ///
    /// # Errors
    /// The pool cannot be written, or there is one.
    pub fn write_new(&self, directory: &Dir) -> Result<(), Error> {
        make_link(directory, layout::ABOUT, &self.text())
    }

    fn text(&self) -> String {
        serde_json::to_string(self).expect("plain fields")
    }

    /// The limit that the kernel keeps.
    pub fn kernel_limit(&self) -> Option<u64> {
        let stop = self.limit_bytes.and_then(|limit| self.class.stop_bytes(limit));
        stop.map(|stop| stop.saturating_add_signed(self.offset_bytes))
    }

    /// What of the group's usage counts for the volume.
    pub fn charge(&self, used: u64) -> u64 {
        used.saturating_sub_signed(self.offset_bytes)
    }
}

/// Points a symlink somewhere else, in one step.
///
/// # Errors
/// The pool cannot be written.
pub fn replace_link(directory: &Dir, name: &str, target: &str) -> Result<(), Error> {
    let unfinished = format!(".{}", layout::fresh());
    let path = directory.proc_path();
    let io = |source| Error::PoolPath { path: path.join(name), source };
    make_link(directory, &unfinished, target)?;
    std::fs::rename(path.join(&unfinished), path.join(name)).map_err(|source| {
        // Best effort: what stays is swept at the next start.
        drop(std::fs::remove_file(path.join(&unfinished)));
        io(source)
    })
}

/// Makes a symlink where there is none.
///
/// # Errors
/// The pool cannot be written, or there is something of this name.
pub fn make_link(directory: &Dir, name: &str, target: &str) -> Result<(), Error> {
    let path = directory.proc_path().join(name);
    std::os::unix::fs::symlink(target, &path).map_err(|source| Error::PoolPath { path, source })
}

/// Reads where a symlink points; nothing where there is none.
///
/// # Errors
/// The pool cannot be read.
pub fn read_link(directory: &Dir, name: &str) -> Result<Option<String>, Error> {
    let path = directory.proc_path().join(name);
    match std::fs::read_link(&path) {
        Ok(target) => Ok(Some(target.to_string_lossy().into_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::PoolPath { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(limit_bytes: Option<u64>, offset_bytes: i64) -> About {
        About {
            birth: Birth::random(),
            group: Some(7),
            limit_bytes,
            offset_bytes,
            unborn: offset_bytes < 0,
            class: QuotaClass::Hard,
            releasing: offset_bytes < 0,
        }
    }

    #[test]
    fn a_copy_remembers_what_it_is_a_copy_of() {
        let directory = tempfile::tempdir().unwrap();
        let dir = Dir::open(directory.path()).unwrap();
        assert_eq!(About::read(&dir).unwrap(), None);
        for facts in [about(Some(5 << 30), 0), about(None, -12)] {
            facts.write(&dir).unwrap();
            assert_eq!(About::read(&dir).unwrap(), Some(facts));
        }
        assert_eq!(dir.entries().unwrap(), [layout::ABOUT], "nothing half-made is left");
    }

    #[test]
    fn the_same_is_left_wherever_a_copy_is_materialised() {
        // 100 bytes with 40 used; materialised, the same content is charged 70 here.
        let there = about(Some(100), 30);
        assert_eq!(there.kernel_limit().unwrap() - 70, 60);
        assert_eq!(there.charge(70), 40);
        assert_eq!(about(None, 30).kernel_limit(), None);
        let burst = About { class: QuotaClass::Burst, ..there.clone() };
        assert_eq!(burst.kernel_limit(), Some(125 + 30));
        assert_eq!(About { class: QuotaClass::Soft, ..there }.kernel_limit(), None);
    }
}
