//! A version becomes a tree in staging: from the nearest thing that is here. The same version is cloned, a relative is
//! cloned and turned into it by the difference, and only without either everything comes from the store.

use std::sync::Arc;

use btrfs::GroupId;
use cas::tree::RestoreOptions;
use cas::{Record, VersionRef, timeline};
use types::{Domain, MemberName, VersionId};

use crate::error::Error;
use crate::layout::{Place, STAGING};
use crate::local;
use crate::node::Node;
use crate::shelf::Loan;

/// A tree in staging.
#[derive(Debug)]
pub(crate) struct Staged {
    /// Its name there.
    pub(crate) name: String,
    /// The snapshot on the shelf that holds the very same tree, if it was cloned from one.
    pub(crate) same: Option<Loan>,
}

/// What of a version is in the pool already.
#[derive(Debug)]
pub(crate) enum Nearest {
    /// The very same tree.
    Same(Loan),
    /// One that shares much with it, and where its bytes lie in the store.
    Relative(Loan, VersionRef),
    /// Nothing.
    Nothing,
}

impl Nearest {
    /// The snapshot.
    pub(crate) fn place(&self) -> Option<&Place> {
        match self {
            Self::Same(loan) | Self::Relative(loan, _) => Some(loan.place()),
            Self::Nothing => None,
        }
    }
}

impl Node {
    /// Makes the tree of `target` in staging, as a member of `group`, from the nearest thing that is here.
    ///
    /// # Errors
    /// Pool or store failed; nothing is left in staging.
    pub(crate) async fn materialise(
        self: &Arc<Self>,
        record: &Record,
        target: &VersionRef,
        group: Option<GroupId>,
    ) -> Result<Staged, Error> {
        let nearest = self.nearest(record, &target.version).await?;
        self.materialise_from(nearest, record, target, group).await
    }

    /// The same from what was found nearest.
    ///
    /// # Errors
    /// Pool or store failed; nothing is left in staging.
    pub(crate) async fn materialise_from(
        self: &Arc<Self>,
        nearest: Nearest,
        record: &Record,
        target: &VersionRef,
        group: Option<GroupId>,
    ) -> Result<Staged, Error> {
        let name = match nearest.place().cloned() {
            Some(place) => self.pool().run(move |root| local::stage_clone(root, &place, group)).await?,
            None => self.pool().run(move |root| local::stage_empty(root, group)).await?,
        };
        let (_loan, from) = match nearest {
            Nearest::Same(loan) => return Ok(Staged { name, same: Some(loan) }),
            Nearest::Relative(loan, from) => (Some(loan), Some(from)),
            Nearest::Nothing => (None, None),
        };
        match self.fill(&name, from.as_ref(), target, &record.domain).await {
            Ok(()) => Ok(Staged { name, same: None }),
            Err(error) => {
                self.unstage(&name).await;
                Err(error)
            }
        }
    }

    async fn fill(
        self: &Arc<Self>,
        name: &str,
        from: Option<&VersionRef>,
        target: &VersionRef,
        domain: &Domain,
    ) -> Result<(), Error> {
        let staged = name.to_owned();
        let dir = self.pool().run(move |root| Ok(root.open_dir(STAGING)?.open_dir(&staged)?)).await?;
        let reader = self.reader();
        let options = RestoreOptions::default();
        let restored = match from {
            Some(from) => reader.restore_difference(from, target, dir.into(), options).await?,
            None => reader.restore(target, dir.into(), options).await?,
        };
        tracing::info!(version = %target.version.short(), relative = from.is_some(), ?restored, "materialised");
        self.learn_restored(domain, target);
        Ok(())
    }

    /// Drops what was staged; what cannot be dropped goes at the next start.
    pub(crate) async fn unstage(&self, name: &str) {
        let staged = name.to_owned();
        if let Err(error) = self.pool().run(move |root| local::unstage(root, &staged)).await {
            tracing::warn!(staged = name, %error, "left in staging until the next start");
        }
    }

    /// Finds a snapshot that holds the version, or shares much with it: one of the same volume, or the one that it came
    /// from. The volume's own come first: what they hold is charged to it already.
    pub(crate) async fn nearest(&self, record: &Record, version: &VersionId) -> Result<Nearest, Error> {
        let lend = |version: &VersionId| {
            self.shelf().lend_of(&record.id, version).or_else(|| self.shelf().lend(version))
        };
        if let Some(loan) = lend(version) {
            return Ok(Nearest::Same(loan));
        }
        for entry in record.entries.iter().rev() {
            if let Some(head) = entry.heads.get(&MemberName::data())
                && head.version != *version
                && let Some(loan) = lend(&head.version)
            {
                return Ok(Nearest::Relative(loan, head.clone()));
            }
        }
        let Some(origin) = &record.origin else { return Ok(Nearest::Nothing) };
        let Some(from) = origin.versions.get(&MemberName::data()) else { return Ok(Nearest::Nothing) };
        let Some(loan) = self.shelf().lend(from) else { return Ok(Nearest::Nothing) };
        // Where its bytes lie stands in the origin's record. Without that one it is no help.
        let origin = cas::record::read(self.store(), &origin.volume).await?;
        let Some(origin) = origin else { return Ok(Nearest::Nothing) };
        let entry = timeline::find_version(self.store(), &origin.value, from).await?;
        let head = entry.and_then(|mut entry| entry.heads.remove(&MemberName::data()));
        Ok(head.map_or(Nearest::Nothing, |head| Nearest::Relative(loan, head)))
    }
}
