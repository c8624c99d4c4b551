//! Rule G: may this session publish to this record? A pure function over what was read.

use std::collections::{BTreeMap, BTreeSet};

use types::{Birth, Epoch, MemberName, SessionId, VersionId, VolumeId};

use crate::entry::Tips;
use crate::error::LostReason;
use crate::record::{Record, State};

/// What a session believes that it holds, from the record that it acquired or created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The volume.
    pub id: VolumeId,
    /// Its birth.
    pub birth: Birth,
    /// The epoch in which the session became its owner.
    pub epoch: Epoch,
}

impl Claim {
    /// Returns the claim of a record's present owner.
    pub fn of(record: &Record) -> Self {
        Self { id: record.id.clone(), birth: record.birth, epoch: record.epoch }
    }
}

/// The versions that this pool knows to be behind its live state: its base and its committed `snap/`, by member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known(BTreeMap<MemberName, BTreeSet<VersionId>>);

impl Known {
    /// Knows versions of a volume without service volumes.
    pub fn data(versions: impl IntoIterator<Item = VersionId>) -> Self {
        let mut known = Self::default();
        for version in versions {
            known.add(MemberName::data(), version);
        }
        known
    }

    /// Knows exactly these versions.
    pub fn tips(tips: &Tips) -> Self {
        let mut known = Self::default();
        for (member, version) in tips {
            known.add(member.clone(), *version);
        }
        known
    }

    /// Adds a version of a member.
    pub fn add(&mut self, member: MemberName, version: VersionId) {
        self.0.entry(member).or_default().insert(version);
    }

    /// Tells if every member of `tips` is at a known version.
    pub fn covers(&self, tips: &Tips) -> bool {
        tips.iter().all(|(member, version)| self.0.get(member).is_some_and(|known| known.contains(version)))
    }
}

/// Rule G. The order of the checks is the order in which the answers are useful.
pub fn check(record: &Record, session: &SessionId, claim: &Claim, known: &Known) -> Result<(), LostReason> {
    if record.birth != claim.birth {
        return Err(LostReason::Birth { found: record.birth });
    }
    if record.state != State::Live {
        return Err(LostReason::State { found: record.state });
    }
    check_owner(record, session, claim)?;
    match record.head {
        Some(head) if !known.covers(&record.head_tips()) => Err(LostReason::Diverged { head }),
        // Without a head there is nothing to go back over.
        Some(_) | None => Ok(()),
    }
}

/// The part of rule G that tells whether the session is the owner it became.
pub(crate) fn check_owner(record: &Record, session: &SessionId, claim: &Claim) -> Result<(), LostReason> {
    if record.owner != Some(*session) {
        return Err(LostReason::Owner { found: record.owner });
    }
    if record.epoch != claim.epoch {
        return Err(LostReason::Epoch { found: record.epoch });
    }
    Ok(())
}
