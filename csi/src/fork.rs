//! A fork of a version that is in this pool: one snapshot, one commit, and the two writes of its record.
//!
//! The kernel commits with a snapshot, and with it everything that was done before it. So the volume's directory, its
//! facts, its base and its quota group come first, and the snapshot is taken into its place. Its source is looked up and
//! the record begun meanwhile, which is why the copy is `unborn` until that is done: a start that finds no record of an
//! unborn copy drops it, as nobody was told of it.

use std::sync::Arc;

use btrfs::{Dir, Errno, GroupId, Uuid, quota};
use cas::record::State;
use cas::{Claim, Operation, Session};
use types::{Birth, Change, VolumeId};

use crate::about::{About, make_link};
use crate::clone::Roots;
use crate::create::{CreateRequest, Created};
use crate::deaths::{Point, pass};
use crate::error::Error;
use crate::layout::{BASE, Place, SNAP, VOLUMES};
use crate::local;
use crate::node::Node;
use crate::pool::remove_tree;
use crate::quota_class::QuotaClass;
use crate::shelf::Loan;
use crate::volume::Base;

/// A copy in its place, committed, of which no record knows yet.
#[derive(Debug)]
struct Planted {
    about: About,
    /// Of the snapshot that it grew from.
    base: Uuid,
    roots: Roots,
}

impl Node {
    /// Makes `request` a fork of the snapshot that is lent. Nothing where something of this id is here already: that has to
    /// be looked at first.
    pub(crate) async fn fork_here(
        self: &Arc<Self>,
        session: &Session,
        operation: &Operation,
        request: &CreateRequest,
        loan: Loan,
    ) -> Result<Option<Created>, Error> {
        if self.volumes().find(&request.id).is_some() {
            return Ok(None);
        }
        let birth = Birth::random();
        let place = loan.place().clone();
        self.shelf().rebase(&request.id, Some(&place));
        // All that the record's version needs but the copy itself; nothing where the record is live already.
        let confirmed = async {
            let Some(source) = self.source(request).await? else { return Ok(None) };
            let record = self.begin(session, request, Some(&source), birth).await?;
            if record.value.state == State::Live {
                return Ok(None);
            }
            let confirmed = self.confirm_record(operation, record, Some(&source)).await?;
            Ok(Some((confirmed, source)))
        };
        // The copy first: it takes longest.
        let (planted, confirmed) = tokio::join!(self.plant(request, birth, &place), confirmed);
        let planted = match planted {
            Ok(Some(planted)) => planted,
            nothing => {
                drop(self.shelf().rebase(&request.id, None));
                return nothing.map(|_| None);
            }
        };
        let group = planted.about.group.map(local::group);
        let (confirmed, source) = match confirmed {
            Ok(Some(confirmed)) => confirmed,
            Ok(None) => {
                // Made by an attempt whose answer was lost, and whose copy is gone.
                self.uproot(&request.id, group).await;
                return Ok(Some(Created::before(self.acquire_locked(&request.id, false).await?)));
            }
            Err(error) => {
                self.abandon(&request.id, group, &error).await;
                return Err(error);
            }
        };
        let claim = Claim::of(confirmed.record());
        // There is a record of it now. That need not reach the disk: where it does not, the start that finds the record
        // does it again.
        let about = About { birth: claim.birth, unborn: false, ..planted.about.clone() };
        let finished = async {
            if about.birth != planted.about.birth {
                // The record is an earlier attempt's, and what is on disk has to be its copy.
                self.set_about(&request.id, &about).await?;
                self.pool().commit().await?;
            }
            let finished = self.finish_record(operation, confirmed, Some(&source), source.tree.clone());
            let (record, noted) = tokio::join!(finished, self.set_about(&request.id, &about));
            Ok((record?, noted))
        };
        let (record, noted) = match finished.await {
            Ok(finished) => finished,
            Err(error) => {
                self.abandon(&request.id, group, &error).await;
                return Err(error);
            }
        };
        // It is made by now, and the copy stays.
        noted?;
        let base = Base { place, tree: source.tree.clone(), uuid: planted.base, roots: planted.roots };
        let change = Change::Made(self.born(session, &claim, &record.value, about, base));
        Ok(Some(Created { change, record: Some(record) }))
    }

    async fn plant(
        &self,
        request: &CreateRequest,
        birth: Birth,
        from: &Place,
    ) -> Result<Option<Planted>, Error> {
        let about = About {
            birth,
            group: None,
            limit_bytes: request.limit_bytes,
            offset_bytes: 0,
            unborn: true,
            class: QuotaClass::of(&request.attributes),
            releasing: false,
        };
        let (id, from, quota) = (request.id.clone(), from.clone(), self.pool().has_quota());
        let planted = self.pool().run(move |root| plant(root, &id, about, &from, quota)).await?;
        if planted.as_ref().is_some_and(|planted| planted.roots.len() > 1) {
            // What was put into the snapshot after the kernel had taken it is not in its commit.
            self.pool().commit().await?;
        }
        Ok(planted)
    }

    pub(crate) async fn set_about(&self, id: &VolumeId, about: &About) -> Result<(), Error> {
        let (id, about) = (id.clone(), about.clone());
        self.pool().run(move |root| local::set_about(root, &id, &about)).await
    }
}

/// Puts a copy of `from` into its place as the live tree of a volume that has no directory yet.
fn plant(
    root: &Dir,
    id: &VolumeId,
    about: About,
    from: &Place,
    quota: bool,
) -> Result<Option<Planted>, Error> {
    crate::pool::room(&btrfs::space::space(root)?)?;
    let volumes = root.open_dir(VOLUMES)?;
    let directory = match volumes.create_dir(id.as_str(), 0o755) {
        Err(error) if error.is(Errno::EEXIST) => return Ok(None),
        directory => directory?,
    };
    let mut group = None;
    let grown = grow(root, &directory, about, from, quota, &mut group);
    if let Err(error) = grown {
        if matches!(error, Error::ShuttingDown) {
            return Err(error);
        }
        drop(directory);
        // The first failure is the one to tell; what cannot be undone here is swept by the next start.
        if let Err(undo) = remove_tree(&volumes, id.as_str().as_ref()) {
            tracing::warn!(volume = %id, error = %undo, "a half-made volume could not be dropped; the next start does it");
        }
        if let Some(group) = group
            && let Err(undo) = quota::remove_group(root, group)
        {
            tracing::debug!(%group, error = %undo, "the quota group stays until the next start");
        }
        return Err(error);
    }
    grown.map(Some)
}

fn grow(
    root: &Dir,
    directory: &Dir,
    mut about: About,
    from: &Place,
    quota: bool,
    group: &mut Option<GroupId>,
) -> Result<Planted, Error> {
    let source = root.open_beneath(from.path())?;
    if quota {
        // A fork is charged for what it writes from now on; the kernel charges the root of its tree at once.
        about.offset_bytes = btrfs::space::filesystem(root)?.node_bytes.into();
        let number = local::make_group(root, about.kernel_limit())?;
        about.group = Some(number);
        *group = Some(local::group(number));
    }
    pass(Point::DirectoryMade)?;
    drop(directory.create_dir(SNAP, 0o755)?);
    about.write_new(directory)?;
    pass(Point::AboutSet)?;
    make_link(directory, BASE, &from.link())?;
    pass(Point::BaseSet)?;
    let roots = local::plant(directory, &source, *group)?;
    if quota && roots.len() > 1 {
        about.offset_bytes *= i64::try_from(roots.len()).unwrap_or(i64::MAX);
        local::limit(root, &about, about.kernel_limit())?;
        about.write(directory)?;
    }
    Ok(Planted { about, base: local::marks(&source)?.uuid, roots })
}
