//! A version becomes a tree in staging: from the nearest thing that is here. The same version is cloned, a relative is
//! cloned and turned into it by the difference, and only without either everything comes from the store.

use std::sync::Arc;

use btrfs::GroupId;
use cas::tree::RestoreOptions;
use cas::{Record, VersionRef, timeline};
use types::{Domain, MemberName, VersionId};

use crate::error::Error;
use crate::layout::STAGING;
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

impl Node {
    /// Makes the tree of `target` in staging, as a member of `group`.
    ///
    /// # Errors
    /// Pool or store failed; nothing is left in staging.
    pub(crate) async fn materialise(
        self: &Arc<Self>,
        record: &Record,
        target: &VersionRef,
        group: Option<GroupId>,
    ) -> Result<Staged, Error> {
        if let Some(loan) = self.shelf().lend(&target.version) {
            let place = loan.place().clone();
            let name = self.pool().run(move |root| local::stage_clone(root, &place, group)).await?;
            return Ok(Staged { name, same: Some(loan) });
        }
        let (name, from) = match self.relative(record, &target.version).await? {
            Some((loan, from)) => {
                let place = loan.place().clone();
                let name = self.pool().run(move |root| local::stage_clone(root, &place, group)).await?;
                (name, Some(from))
            }
            None => (self.pool().run(move |root| local::stage_empty(root, group)).await?, None),
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

    /// Finds a snapshot that shares much with the version: one of the same volume, or the one that it came from.
    async fn relative(
        &self,
        record: &Record,
        version: &VersionId,
    ) -> Result<Option<(Loan, VersionRef)>, Error> {
        for entry in record.entries.iter().rev() {
            if let Some(head) = entry.heads.get(&MemberName::data())
                && head.version != *version
                && let Some(loan) = self.shelf().lend(&head.version)
            {
                return Ok(Some((loan, head.clone())));
            }
        }
        let Some(origin) = &record.origin else { return Ok(None) };
        let Some(from) = origin.versions.get(&MemberName::data()) else { return Ok(None) };
        let Some(loan) = self.shelf().lend(from) else { return Ok(None) };
        // Where its bytes lie stands in the origin's record. Without that one it is no help.
        let Some(record) = cas::record::read(self.store(), &origin.volume).await? else { return Ok(None) };
        let entry = timeline::find_version(self.store(), &record.value, from).await?;
        let head = entry.and_then(|mut entry| entry.heads.remove(&MemberName::data()));
        Ok(head.map(|head| (loan, head)))
    }
}
