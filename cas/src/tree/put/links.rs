//! Which of an inode's names is the first: the file itself is there, the others only point to it.

use std::collections::HashMap;

use crate::tree::error::TreeError;
use crate::tree::source::Facts;

/// What a name of an inode with several is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// The first in tree order.
    First,
    /// A later one; this is the first.
    Later(Vec<u8>),
}

/// See the module.
#[derive(Debug)]
pub(super) enum Links {
    /// Found out by walking everything in tree order: the first that is seen is the first.
    Seen(HashMap<(u64, u64), Vec<u8>>),
    /// Told, by path.
    Told(HashMap<Vec<u8>, Role>),
}

impl Links {
    /// Notes that a name which nobody told of is the first, as it was before.
    pub(super) fn keep_first(&mut self, path: &[u8]) {
        if let Self::Told(roles) = self {
            roles.entry(path.to_vec()).or_insert(Role::First);
        }
    }

    /// Returns the first name of the inode, if `path` is a later one.
    pub(super) fn first(&mut self, facts: &Facts, path: &[u8]) -> Result<Option<Vec<u8>>, TreeError> {
        if facts.links < 2 {
            return Ok(None);
        }
        match self {
            Self::Seen(seen) => match seen.entry((facts.device, facts.inode)) {
                std::collections::hash_map::Entry::Occupied(first) => Ok(Some(first.get().clone())),
                std::collections::hash_map::Entry::Vacant(vacant) => {
                    vacant.insert(path.to_vec());
                    Ok(None)
                }
            },
            Self::Told(roles) => match roles.get(path) {
                Some(Role::First) => Ok(None),
                Some(Role::Later(first)) => Ok(Some(first.clone())),
                None => Err(TreeError::ChangesDoNotFit {
                    path: path.to_vec(),
                    reason: "its inode has several names, and they were not told",
                }),
            },
        }
    }
}
