//! Acquire: a volume that nobody holds becomes this node's. The tree is in its place and on disk before the record says so,
//! and nobody here is told of it before the session was confirmed to live.

use std::sync::Arc;

use btrfs::{Dir, GroupId};
use cas::lifecycle::{self, Acquired};
use cas::record::State;
use cas::{Record, VersionRef};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use types::{MemberName, VolumeId};

use crate::about::About;
use crate::account::{Account, enforce, measured};
use crate::basis::Basis;
use crate::error::Error;
use crate::layout::Place;
use crate::local;
use crate::materialise::Nearest;
use crate::node::Node;
use crate::quota_class::QuotaClass;
use crate::shelf::Loan;
use crate::volume::{Base, Facts, Head, Standing, Volume};

/// How often the head may move while it is being materialised before the caller is told.
const ATTEMPTS: u32 = 4;

impl Node {
    /// Takes a volume and materialises its head here.
    ///
    /// # Errors
    /// Somebody else holds it, or pool or store failed.
    pub async fn acquire(self: &Arc<Self>, id: &VolumeId, force: bool) -> Result<Arc<Volume>, Error> {
        self.acquire_if(id, force, Basis::default()).await
    }

    /// The same, if the record is still what the order was decided on, or this session's already.
    ///
    /// # Errors
    /// Those of [`Self::acquire`], and [`Error::Late`].
    pub async fn acquire_if(
        self: &Arc<Self>,
        id: &VolumeId,
        force: bool,
        basis: Basis,
    ) -> Result<Arc<Volume>, Error> {
        let guard = self.locks().try_acquire(id, "acquire")?;
        let (node, id) = (Arc::clone(self), id.clone());
        self.detached("acquire", async move {
            let _guard = guard;
            if let Some(record) = cas::record::read(node.store(), &id).await?
                && record.value.owner != node.session_id()
            {
                basis.check(&record.value)?;
            }
            node.acquire_locked(&id, force).await
        })
        .await
    }

    /// Acquires a volume that the caller has the lock of. Boxed: settling what is in the way may acquire it.
    pub(crate) fn acquire_locked<'a>(
        self: &'a Arc<Self>,
        id: &'a VolumeId,
        force: bool,
    ) -> BoxFuture<'a, Result<Arc<Volume>, Error>> {
        self.acquire_now(id, force).boxed()
    }

    async fn acquire_now(self: &Arc<Self>, id: &VolumeId, force: bool) -> Result<Arc<Volume>, Error> {
        let session = self.session()?;
        for attempt in 1.. {
            let record = cas::record::read(self.store(), id).await?;
            let record = record.ok_or_else(|| Error::NoRecord { volume: id.clone() })?.value;
            self.may_take(&record, force).await?;
            if let Some(volume) = self.volumes().find(id) {
                match volume.claim(session.id()) {
                    Ok(claim) if record.owner == Some(session.id()) && record.epoch == claim.epoch => {
                        return Ok(volume);
                    }
                    _ => self.clear_the_way(&volume).await?,
                }
            }
            if let Some(volume) = self.volumes().find(id)
                && volume.claim(session.id()).is_ok()
            {
                return Ok(volume);
            }
            if let Some(volume) = self.adopt(id).await? {
                return Ok(volume);
            }
            let result = self.acquire_once(&record, force).await;
            match result {
                Err(Error::Cas(cas::Error::HeadMoved { .. })) if attempt < ATTEMPTS => {}
                result => return result,
            }
        }
        unreachable!("the last attempt returns")
    }

    /// A copy that lost its place is made safe before the head takes its directory.
    async fn clear_the_way(self: &Arc<Self>, volume: &Arc<Volume>) -> Result<(), Error> {
        match volume.facts().standing {
            Standing::Relative => Ok(()),
            Standing::Quarantined { .. } => Err(Error::Fenced { volume: volume.id.clone() }),
            Standing::Owned { .. } | Standing::Fenced { .. } => {
                self.settle_locked(volume).await?;
                match self.volumes().find(&volume.id).map(|volume| volume.facts().standing) {
                    None | Some(Standing::Relative | Standing::Owned { .. }) => Ok(()),
                    Some(Standing::Fenced { .. } | Standing::Quarantined { .. }) => {
                        Err(Error::Fenced { volume: volume.id.clone() })
                    }
                }
            }
        }
    }

    /// Refuses early what the conditional write would refuse after everything was copied here.
    async fn may_take(&self, record: &Record, force: bool) -> Result<(), Error> {
        let volume = record.id.clone();
        match record.state {
            State::Live => {}
            State::Creating | State::Deleted | State::Purged => return Err(Error::NoRecord { volume }),
        }
        let Some(owner) = record.owner else { return Ok(()) };
        let mine = self.session_id() == Some(owner);
        if mine || force || cas::session::is_fenced(self.store(), &owner).await? {
            return Ok(());
        }
        Err(Error::Owned { volume, owner })
    }

    async fn acquire_once(self: &Arc<Self>, record: &Record, force: bool) -> Result<Arc<Volume>, Error> {
        let id = &record.id;
        let session = self.session()?;
        self.pool().require_room().await?;
        let head = head_of(record)?;
        let nearest = self.nearest(record, &head.tree.version).await?;
        let account = self.account(record, &nearest).await?;
        let grown = match self.grow(record, &head, nearest, account).await {
            Ok(grown) => grown,
            Err(error) => {
                self.leave(id, None).await;
                self.close_account(account).await;
                return Err(error);
            }
        };
        let acquired = match self.own(record, &grown, force).await {
            Ok(acquired) => acquired,
            Err(error) => {
                self.leave(id, grown.taken()).await;
                self.close_account(account).await;
                return Err(error);
            }
        };
        let Grown { about, base, loan, .. } = grown;
        let free = self.shelf().rebase(id, Some(&base.place));
        drop(loan);
        self.pool().run(move |root| local::delete_places(root, &free)).await?;
        let left = self.volumes().find(id).and_then(|volume| volume.facts().about.group);
        if left != about.group {
            self.drop_group(left.map(local::group)).await;
        }
        let record = acquired.record.value;
        if let Some(takeover) = record.taken_over() {
            crate::metrics::taken_over(self, takeover);
            tracing::warn!(volume = %id, from = %takeover.from, window = ?takeover.window(),
                "taken over: what its owner had not made durable is not in it");
        }
        let facts = Facts {
            standing: Standing::Owned { session: session.id(), epoch: acquired.claim.epoch },
            head: Some(head),
            base: Some(base),
            origin: record.origin.clone(),
            last_sync: Some(self.store().clock().now()),
            ..Facts::new(about, record.domain.clone())
        };
        tracing::info!(volume = %id, epoch = %acquired.claim.epoch, from = ?acquired.from, "acquired");
        Ok(self.volumes().insert(Volume::new(id.clone(), facts)))
    }

    /// A live tree that nobody told us of: an operation's whose answer was lost. It is what its record says.
    async fn adopt(self: &Arc<Self>, id: &VolumeId) -> Result<Option<Arc<Volume>>, Error> {
        let volume = id.clone();
        let found = self.pool().run(move |root| crate::start::find(root, &volume)).await?;
        let Some(found) = found.filter(crate::start::Found::is_live) else { return Ok(None) };
        self.put_on_shelf(&found);
        self.load_one(found).await?;
        let Some(volume) = self.volumes().find(id) else { return Ok(None) };
        // What stays, because it is mounted or nobody can say what it is, is in the way of any other tree.
        self.clear_the_way(&volume).await?;
        Ok(self
            .volumes()
            .find(id)
            .filter(|volume| self.session_id().is_some_and(|me| volume.claim(me).is_ok())))
    }

    /// Undoes what an acquire that failed put into the volume's directory, the snapshot that it took as its base included.
    async fn leave(&self, id: &VolumeId, taken: Option<&Place>) {
        let (volume, taken) = (id.clone(), Vec::from_iter(taken.cloned()));
        let relative = self.volumes().find(id).map(|volume| volume.facts());
        let undone = self.pool().run(move |root| {
            local::drop_live(root, &volume)?;
            local::delete_places(root, &taken)?;
            // A relative is one again.
            let Some(relative) = relative else { return Ok(()) };
            drop(local::make_directory(root, &volume)?);
            local::set_about(root, &volume, &relative.about)?;
            relative.base.map_or(Ok(()), |base| local::set_base(root, &volume, &base.place))
        });
        if let Err(error) = undone.await {
            tracing::warn!(volume = %id, %error, "a volume's directory is left until the next start");
        }
    }

    /// Makes the head in its place, from the nearest thing that is here. Nobody is told of it before the record is this
    /// session's, and a start that finds it asks the record.
    async fn grow(
        self: &Arc<Self>,
        record: &Record,
        head: &Head,
        nearest: Nearest,
        account: Account,
    ) -> Result<Grown, Error> {
        let about = About {
            birth: record.birth,
            group: account.group().map(GroupId::number),
            limit_bytes: record.quota.limit_bytes,
            offset_bytes: account.offset_bytes(),
            unborn: false,
            class: QuotaClass::of(&record.attributes),
            releasing: false,
        };
        let charge = match account {
            Account::New(_) => Some(record.quota.charge_bytes),
            Account::Kept { .. } => None,
        };
        let (id, tree) = (record.id.clone(), head.tree.clone());
        let (from, loan) = match nearest {
            Nearest::Same(loan) => (Seed::Snapshot(loan.place().clone()), Some(loan)),
            nearest @ (Nearest::Relative(..) | Nearest::Nothing) => {
                // Without a limit while it is filled.
                let staged = self.materialise_from(nearest, record, &tree, account.group()).await?;
                (Seed::Staged(staged.name), None)
            }
        };
        let staged = match &from {
            Seed::Staged(name) => Some(name.clone()),
            Seed::Snapshot(_) => None,
        };
        let grown = self.pool().run(move |root| grow(root, &id, about, tree, &from, charge)).await;
        if let (Err(_), Some(staged)) = (&grown, &staged) {
            self.unstage(staged).await;
        }
        Ok(Grown { loan, ..grown? })
    }

    /// Makes the record this session's. What of the copy is not on disk yet goes there while the store answers.
    async fn own(&self, record: &Record, grown: &Grown, force: bool) -> Result<Acquired, Error> {
        let session = self.session()?;
        let tips = record.head_tips();
        let committed = async { if grown.is_committed { Ok(()) } else { self.pool().commit().await } };
        let (acquired, committed) =
            tokio::join!(lifecycle::acquire(&session, &record.id, &tips, force), committed);
        let acquired = acquired?.into_inner();
        committed.map(|()| acquired)
    }
}

/// What a live tree is made of.
#[derive(Debug)]
enum Seed {
    /// A clone of the snapshot that holds the very same tree.
    Snapshot(Place),
    /// What is in staging under this name.
    Staged(String),
}

/// The head in its place.
#[derive(Debug)]
struct Grown {
    about: About,
    base: Base,
    /// Holds the base until the shelf knows that this volume grew from it.
    loan: Option<Loan>,
    is_committed: bool,
}

impl Grown {
    /// The snapshot that was taken for it.
    fn taken(&self) -> Option<&Place> {
        self.loan.is_none().then_some(&self.base.place)
    }
}

/// Puts the tree into its place and limits it so that as much is left as elsewhere, where `charge` bytes count for it
/// (nothing: the offset of its group is known). The kernel commits with a snapshot all that was done before it, so what
/// is known before is done before.
fn grow(
    root: &Dir,
    id: &VolumeId,
    mut about: About,
    tree: VersionRef,
    from: &Seed,
    charge: Option<u64>,
) -> Result<Grown, Error> {
    let mut is_committed = true;
    match (charge, from) {
        (Some(charge), Seed::Snapshot(_)) => {
            // The kernel charges the root of a clone at once, and nothing else.
            let node: i64 = btrfs::space::filesystem(root)?.node_bytes.into();
            about.offset_bytes = node.saturating_sub_unsigned(charge);
        }
        // What was written to staging is charged with the snapshot's commit.
        (Some(_), Seed::Staged(_)) => is_committed = false,
        (None, _) => {}
    }
    if is_committed {
        local::limit(root, &about, about.kernel_limit())?;
    }
    let local::Grown { place, uuid, roots } = match from {
        Seed::Snapshot(place) => local::grow_clone(root, id, &about, place)?,
        Seed::Staged(name) => local::grow_staged(root, id, &about, name, &tree.version)?,
    };
    // With nested subvolumes it was several snapshots, each charged, and the last change came after them.
    is_committed &= roots.len() == 1;
    if let Some(charge) = charge
        && !is_committed
    {
        about = enforce(root, id, measured(root, about, charge)?)?;
    }
    Ok(Grown { about, base: Base { place, tree, uuid, roots }, loan: None, is_committed })
}

/// The head of a record that is to be materialised.
pub(crate) fn head_of(record: &Record) -> Result<Head, Error> {
    let entry = record.head_entry().ok_or_else(|| Error::NoHead { volume: record.id.clone() })?;
    let tree: Option<&VersionRef> = entry.heads.get(&MemberName::data());
    let tree = tree.ok_or_else(|| Error::NoHead { volume: record.id.clone() })?.clone();
    Ok(Head { entry: entry.id, tree })
}
