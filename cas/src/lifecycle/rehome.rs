//! Rehome: a version that was stored once more keeps its id, and its record names the new place of its bytes. So damage
//! to a pack is repaired from a copy that somebody still has.

use types::{Change, VersionId, VolumeId};

use crate::VersionRef;
use crate::error::Error;
use crate::guard::{Claim, Known};
use crate::record::{Record, State};
use crate::references;
use crate::session::Operation;
use crate::store::Stored;
use crate::update::{Next, update};

/// Who may rehome.
#[derive(Debug, Clone, Copy)]
pub enum Right<'a> {
    /// The owner, under rule G.
    Owner(&'a Claim, &'a Known),
    /// Anybody, where nobody owns the record: what is sealed, or sleeps.
    Unowned,
}

/// Names the new place of a version in every entry of the record that is this version. `tree` was written, and its packs
/// acknowledged, under this operation; being the same version, it is the same tree.
///
/// Entries keep their ids: where bytes lie is no part of them. Those in pages stay as they are.
///
/// # Errors
/// The record is not as the right needs it, or holds no such version.
pub async fn rehome(
    operation: &Operation,
    id: &VolumeId,
    right: Right<'_>,
    tree: &VersionRef,
) -> Result<Change<Stored<Record>>, Error> {
    let session = operation.session();
    update(session.store(), Some(operation), id, |current| {
        let record = &current.value;
        match right {
            Right::Owner(claim, known) => super::guard(record, &session.id(), claim, known)?,
            Right::Unowned => {
                if let Some(owner) = record.owner {
                    return Err(Error::Owned { id: id.clone(), owner });
                }
                if !matches!(record.state, State::Live | State::Deleted) {
                    return Err(Error::WrongState { id: id.clone(), state: record.state });
                }
            }
        }
        let mut next = record.clone();
        let (mut found, mut changed) = (false, None);
        for head in next.entries.iter_mut().flat_map(|entry| entry.heads.values_mut()) {
            if head.version == tree.version {
                found = true;
                if head != tree {
                    *head = tree.clone();
                    changed = Some(());
                }
            }
        }
        if !found {
            return Err(no_version(id, tree.version));
        }
        if changed.is_none() {
            return Ok(Next::Already);
        }
        for entry in &next.entries {
            references::check(operation, record, &entry.heads)?;
        }
        Ok(Next::Write(next))
    })
    .await
}

fn no_version(id: &VolumeId, version: VersionId) -> Error {
    Error::NoVersion { id: id.clone(), version }
}
