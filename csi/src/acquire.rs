//! Acquire: a volume that nobody holds becomes this node's. The tree is in staging before the record says so, and in its
//! place only after the session was confirmed to live.

use std::sync::Arc;

use btrfs::GroupId;
use cas::lifecycle::{self, Acquired};
use cas::record::State;
use cas::{Record, VersionRef};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use types::{MemberName, VolumeId};

use crate::about::About;
use crate::account::Account;
use crate::basis::Basis;
use crate::error::Error;
use crate::local;
use crate::materialise::Staged;
use crate::node::Node;
use crate::quota_class::QuotaClass;
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
        // Without a limit while it is filled: what counts for the volume is set right when the charge is known.
        let account = self.account(record, &nearest).await?;
        let staged = match self.materialise_from(nearest, record, &head.tree, account.group()).await {
            Ok(staged) => staged,
            Err(error) => {
                self.close_account(account).await;
                return Err(error);
            }
        };
        let left = self.volumes().find(id).and_then(|volume| volume.facts().about.group);
        let taken = self.take_over(record, &head, &staged, account, force).await;
        let (acquired, about, base) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                self.unstage(&staged.name).await;
                self.leave(id).await;
                self.close_account(account).await;
                return Err(error);
            }
        };
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
        self.settle_locked(&volume).await?;
        Ok(self
            .volumes()
            .find(id)
            .filter(|volume| self.session_id().is_some_and(|me| volume.claim(me).is_ok())))
    }

    /// Undoes what an acquire that failed left in the volume's directory.
    async fn leave(&self, id: &VolumeId) {
        let (volume, about) = (id.clone(), self.volumes().find(id).map(|volume| volume.facts().about));
        let undone = self.pool().run(move |root| match about {
            // The snapshots of a relative stay.
            Some(about) => local::set_about(root, &volume, &about),
            None => local::drop_live(root, &volume),
        });
        if let Err(error) = undone.await {
            tracing::warn!(volume = %id, %error, "a volume's directory is left until the next start");
        }
    }

    /// Makes the record this session's, and puts the staged tree into its place.
    async fn take_over(
        self: &Arc<Self>,
        record: &Record,
        head: &Head,
        staged: &Staged,
        account: Account,
        force: bool,
    ) -> Result<(Acquired, About, Base), Error> {
        let id = &record.id;
        let session = self.session()?;
        let about = About {
            birth: record.birth,
            group: account.group().map(GroupId::number),
            limit_bytes: record.quota.limit_bytes,
            offset_bytes: account.offset_bytes(),
            unborn: false,
            class: QuotaClass::of(&record.attributes),
            releasing: false,
        };
        // Its commit also writes what was restored, so that the charge is known and the volume whole before it is ours.
        let taken = self.take_staged(id, &about, &staged.name).await?;
        let tips = record.head_tips();
        let acquired = match lifecycle::acquire(&session, id, &tips, force).await {
            Ok(acquired) => acquired.into_inner(),
            Err(error) => {
                let (id, name) = (id.clone(), taken.name.clone());
                self.pool().run(move |root| local::drop_taken(root, &id, &name)).await?;
                return Err(error.into());
            }
        };
        let about = match account {
            Account::Kept { .. } => self.keep_limit(id, about).await?,
            Account::New(_) => self.set_limit(id, about, record.quota.charge_bytes).await?,
        };
        let base = self.settle_in(id, &staged.name, taken, head.tree.clone()).await?;
        self.pool().commit().await?;
        Ok((acquired, about, base))
    }
}

/// The head of a record that is to be materialised.
pub(crate) fn head_of(record: &Record) -> Result<Head, Error> {
    let entry = record.head_entry().ok_or_else(|| Error::NoHead { volume: record.id.clone() })?;
    let tree: Option<&VersionRef> = entry.heads.get(&MemberName::data());
    let tree = tree.ok_or_else(|| Error::NoHead { volume: record.id.clone() })?.clone();
    Ok(Head { entry: entry.id, tree })
}
