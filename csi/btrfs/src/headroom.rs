//! Room to delete in a volume that is at its limit.
//!
//! Taking a nested subvolume's name out of a full volume needs a little metadata, which the kernel charges to the
//! volume and refuses (`EDQUOT`). So its group's limit is raised for the time of the deletion by an amount that does
//! not matter if a writer finds it, and set back. Dying in between leaves it raised by that much: whoever owns the
//! limits sets them again at start.

use nix::errno::Errno;

use crate::{Dir, Error, GroupId, Result, quota};

/// What a limit is raised by: a few transactions' reservations, each of up to a megabyte.
const HEADROOM_BYTES: u64 = 16 << 20;

/// Limits that are raised and must be set back.
#[derive(Debug, Default)]
pub(crate) struct Headroom {
    raised: Vec<(GroupId, u64)>,
}

impl Headroom {
    /// Raises the limits that hold for a subvolume. `false` if there is none that is not raised already.
    pub(crate) fn raise(&mut self, dir: &Dir, subvolume_id: u64) -> Result<bool> {
        let own = GroupId::subvolume(subvolume_id);
        let mut groups = quota::parents(dir, own)?;
        groups.push(own);
        let mut any = false;
        for group in groups {
            let Some(quota::Usage { referenced_bytes, limit_bytes: Some(limit_bytes), .. }) =
                quota::usage(dir, group)?
            else {
                continue;
            };
            if self.raised.iter().any(|(raised, _)| *raised == group) {
                continue;
            }
            quota::limit(dir, group, Some(limit_bytes.max(referenced_bytes).saturating_add(HEADROOM_BYTES)))?;
            self.raised.push((group, limit_bytes));
            any = true;
        }
        Ok(any)
    }

    /// Sets the limits back and answers `result`, or both errors.
    pub(crate) fn restore<T>(self, dir: &Dir, mut result: Result<T>) -> Result<T> {
        for (group, limit_bytes) in self.raised {
            match quota::limit(dir, group, Some(limit_bytes)) {
                Ok(()) => {}
                // Removed by somebody in the meantime.
                Err(error) if error.is(Errno::ENOENT) => {}
                Err(error) => {
                    let before = result.err().map(Box::new);
                    result =
                        Err(Error::LimitNotRestored { group, limit_bytes, source: Box::new(error), before });
                }
            }
        }
        result
    }
}
