//! To which quota group a copy is charged that is made of a version: the volume's own, where it still has one here.
//!
//! The kernel charges an extent to the subvolume that wrote it until nothing refers to it any more. What a copy shares with
//! a snapshot that the volume left behind, or that was prefetched for it, is charged to the group of that one. So a
//! relative keeps its group, and the copy that grows from it joins that: then what it deletes makes room.
//!
//! The offset goes with the group. It says what the group is charged beyond (or below) what the record counts, which is
//! what the volume shares with others here; that is the same for every copy that grows from the one for which it was
//! measured. Measured anew beside a snapshot that is about to go it would be wrong by what that one alone holds.

use std::sync::Arc;

use btrfs::{Dir, GroupId};
use cas::Record;
use types::VolumeId;

use crate::about::About;
use crate::error::Error;
use crate::local;
use crate::materialise::Nearest;
use crate::node::Node;
use crate::volume::Standing;

/// The group of a copy that is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Account {
    /// One of its own; none without quotas.
    New(Option<GroupId>),
    /// That of the relative that it grows from.
    Kept {
        /// Which.
        group: GroupId,
        /// The relative's offset.
        offset_bytes: i64,
    },
}

impl Account {
    /// The group.
    pub(crate) fn group(self) -> Option<GroupId> {
        match self {
            Self::New(group) => group,
            Self::Kept { group, .. } => Some(group),
        }
    }

    /// What is known of the offset before the copy is charged.
    pub(crate) fn offset_bytes(self) -> i64 {
        match self {
            Self::New(_) => 0,
            Self::Kept { offset_bytes, .. } => offset_bytes,
        }
    }
}

/// Decides whether a copy joins the group that its volume has here.
fn choose(about: &About, record: &Record, grows_from_it: bool) -> Option<Account> {
    let group = about.group.filter(|_| grows_from_it && about.birth == record.birth)?;
    Some(Account::Kept { group: local::group(group), offset_bytes: about.offset_bytes })
}

/// Measures what a copy's group is charged here beyond the `charged` bytes that count for it.
pub(crate) fn measured(root: &Dir, about: About, charged: u64) -> Result<About, Error> {
    let used = local::used(root, &about)?;
    let offset_bytes = i64::try_from(used).unwrap_or(i64::MAX).saturating_sub_unsigned(charged);
    Ok(About { offset_bytes, ..about })
}

/// Sets the limit that the facts of a copy ask for, and keeps those.
pub(crate) fn enforce(root: &Dir, id: &VolumeId, about: About) -> Result<About, Error> {
    local::limit(root, &about, about.kernel_limit())?;
    local::set_about(root, id, &about)?;
    Ok(about)
}

impl Node {
    /// Opens the account of a copy that is to be made from what is `nearest`, without a limit.
    pub(crate) async fn account(
        self: &Arc<Self>,
        record: &Record,
        nearest: &Nearest,
    ) -> Result<Account, Error> {
        let relative = self.volumes().find(&record.id).map(|volume| volume.facts());
        let relative = relative.filter(|facts| facts.standing == Standing::Relative);
        let kept = relative.and_then(|facts| {
            let base = facts.base.as_ref().map(|base| &base.place);
            let place = nearest.place();
            let own = place.is_some()
                && (place == base || place.and_then(|p| p.owner()).as_ref() == Some(&record.id));
            choose(&facts.about, record, own)
        });
        let Some(account) = kept else { return Ok(Account::New(self.new_group(None).await?)) };
        if let Some(group) = account.group() {
            self.pool().run(move |root| Ok(btrfs::quota::limit(root, group, None)?)).await?;
        }
        Ok(account)
    }

    /// The copy was not made.
    pub(crate) async fn close_account(&self, account: Account) {
        match account {
            Account::New(group) => self.drop_group(group).await,
            // It is the relative's, which stays, and nobody writes to that.
            Account::Kept { .. } => {}
        }
    }
}
