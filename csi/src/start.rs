//! Starting: the session is resumed or opened, and what is in the pool is compared with the records. A plain restart
//! keeps the session and moves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use btrfs::{Dir, GroupId, subvolume};
use cas::session::Resumed;
use cas::{Role, Session, Store, timeline};
use futures::StreamExt as _;
use types::{MemberName, SessionId, VolumeId};

use crate::about::About;
use crate::config::NodeConfig;
use crate::error::Error;
use crate::layout::{self, DATA, Place, SNAP, STATE_DB, TEMPLATES, VOLUMES};
use crate::local;
use crate::node::Node;
use crate::pool::{Pool, remove_tree};
use crate::state::{RememberedSession, State};
use crate::volume::{Base, Facts, Standing, Volume};

/// How many records are read at once.
const READ_AHEAD: usize = 16;

/// A volume's directory as a start finds it.
#[derive(Debug)]
pub(crate) struct Found {
    id: VolumeId,
    about: Option<About>,
    base: Option<Place>,
    snaps: Vec<Place>,
    live: bool,
}

impl Found {
    /// Whether there is a live tree.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }
}

impl Node {
    /// Brings a node to life on an open pool and store.
    ///
    /// # Errors
    /// The store cannot be reached, or the pool cannot be read.
    pub async fn start(
        config: NodeConfig,
        address: String,
        pool: Pool,
        store: Store,
    ) -> Result<Arc<Self>, Error> {
        let path = pool.path().join(STATE_DB);
        let state = pool.run(move |_| State::open(&path)).await?;
        let node = Arc::new(Self::new(config, address, pool, store, state));
        if node.pool().store().is_none() {
            node.pool().adopt_store(node.store().id()).await?;
        }
        let found = node.pool().run(scan).await?;
        if let Err(error) = node.require_own_store() {
            tracing::error!(%error, "the pool is read-only");
            node.quarantine(found);
            return Ok(node);
        }
        for place in node.pool().run(templates).await? {
            node.shelf().keep_found(&place);
        }
        node.open_session().await?;
        node.find_spare_groups(&found).await?;
        node.load(found).await?;
        Ok(node)
    }

    /// Finds the quota groups of volumes that are gone.
    async fn find_spare_groups(&self, found: &[Found]) -> Result<(), Error> {
        if !self.pool().has_quota() {
            return Ok(());
        }
        let used: BTreeSet<u64> = found.iter().filter_map(|found| found.about.as_ref()?.group).collect();
        let groups = self.pool().run(|root| Ok(btrfs::quota::groups(root)?)).await?;
        // Ours are random and large; small ones that somebody else made on this filesystem are left alone.
        let ours = |group: &GroupId| group.level() == 1 && group.number() >> 32 != 0;
        for group in groups.into_keys().filter(|group| ours(group) && !used.contains(&group.number())) {
            self.add_spare_group(group);
        }
        Ok(())
    }

    /// Resumes the session that this pool had, or opens the next one.
    pub(crate) async fn open_session(self: &Arc<Self>) -> Result<(), Error> {
        let session = match self.resume().await? {
            Some(session) => session,
            None => self.next_session().await?,
        };
        tracing::info!(session = %session.id(), "the session lives");
        self.set_session(Some(session));
        Ok(())
    }

    async fn resume(&self) -> Result<Option<Session>, Error> {
        let pool = self.pool().id();
        let remembered = match self.state().session().await? {
            Some(remembered) => remembered,
            // state.db is gone, or this is the first start. The store knows.
            None => match cas::session::list_pool(self.store(), pool).await?.last() {
                Some(last) => RememberedSession { number: last.value.id.number, nonce: None },
                None => return Ok(None),
            },
        };
        // A crash between the store's answer and our note must not look like another process in our session.
        self.state().remember_session(RememberedSession { nonce: None, ..remembered }).await?;
        let id = SessionId { pool, number: remembered.number };
        match Session::resume(self.store(), id, remembered.nonce).await? {
            Resumed::Live(session) => {
                self.remember(&session).await?;
                Ok(Some(session))
            }
            gone @ (Resumed::Fenced | Resumed::Stolen | Resumed::Gone) => {
                tracing::warn!(session = %id, ?gone, "the session is over");
                Ok(None)
            }
        }
    }

    /// Opens the next session. What the last one owned has to be taken again.
    pub(crate) async fn next_session(&self) -> Result<Session, Error> {
        let after = self.state().session().await?.map_or(0, |session| session.number);
        // For people only: identity is the pool.
        let host = sysinfo::System::host_name().unwrap_or_default();
        let session = Session::join_next(self.store(), self.pool().id(), after, self.name(), &host).await?;
        self.remember(&session).await?;
        Ok(session)
    }

    async fn remember(&self, session: &Session) -> Result<(), Error> {
        let remembered = RememberedSession { number: session.id().number, nonce: Some(session.nonce()) };
        self.state().remember_session(remembered).await
    }

    /// Puts what is in the pool into the tables, then makes each copy what its record says.
    async fn load(self: &Arc<Self>, found: Vec<Found>) -> Result<(), Error> {
        let with_base: BTreeMap<VolumeId, bool> = found.iter().map(|f| (f.id.clone(), f.live)).collect();
        for one in &found {
            self.put_on_shelf(one);
        }
        let mut loads = futures::stream::iter(found.into_iter().map(|one| {
            let node = Arc::clone(self);
            async move { node.load_one(one).await }
        }))
        .buffer_unordered(READ_AHEAD);
        while let Some(loaded) = loads.next().await {
            loaded?;
        }
        drop(loads);
        for volume in self.volumes().all() {
            let guard = self.locks().try_acquire(&volume.id, "start")?;
            let settled = if with_base.get(&volume.id).copied().unwrap_or(false) {
                self.settle_locked(&volume).await
            } else {
                self.settle_relative(&volume).await
            };
            let settled = match (settled, &volume.facts().standing) {
                // A restore's old tree: under a mount, it is looked at again; from a swap that was cut short, it goes.
                (Ok(()), Standing::Owned { .. }) => self.drop_old_trees(&volume).await,
                (settled, _) => settled,
            };
            if let Err(error) = settled {
                // One volume's trouble must not keep the others from being served.
                tracing::error!(volume = %volume.id, %error, "the volume could not be settled; it is tried again");
                volume.update(|facts| facts.trouble = proto::status::message(&error));
            }
            drop(guard);
        }
        self.drop_spare_snapshots().await
    }

    /// Notes the snapshots that were found. They are kept until it is known who needs them.
    pub(crate) fn put_on_shelf(&self, found: &Found) {
        for place in &found.snaps {
            self.shelf().keep_found(place);
        }
        if let Some(base) = &found.base {
            self.shelf().rebase(&found.id, Some(base));
        }
    }

    pub(crate) async fn load_one(self: &Arc<Self>, found: Found) -> Result<(), Error> {
        let record = cas::record::read(self.store(), &found.id).await?.map(|stored| stored.value);
        let Some(about) = found.about else {
            if found.live {
                tracing::warn!(volume = %found.id, "a live tree that says nothing about itself is left alone");
            }
            // Otherwise there are only snapshots that others grew from.
            return Ok(());
        };
        let base = match found.base {
            Some(place) => {
                let tree = match (&record, place.version()) {
                    (Some(record), Some(version)) => {
                        timeline::find_version(self.store(), record, &version).await?
                    }
                    (None, _) | (_, None) => None,
                };
                let tree = tree.and_then(|mut entry| entry.heads.remove(&MemberName::data()));
                let at = place.clone();
                let (uuid, roots) = self
                    .pool()
                    .run(move |root| {
                        let base = root.open_beneath(at.path())?;
                        Ok((local::marks(&base)?.uuid, local::roots(&base)?))
                    })
                    .await?;
                tree.map(|tree| Base { place, tree, uuid, roots })
            }
            None => None,
        };
        let domain =
            record.as_ref().map_or_else(types::Domain::default_domain, |record| record.domain.clone());
        let facts = Facts {
            // Whose it is, settling says; until then nothing is published.
            standing: if found.live {
                Standing::Fenced { epoch: types::Epoch(0) }
            } else {
                Standing::Relative
            },
            base,
            last_sync: record.as_ref().and_then(|record| record.head_entry()).map(|entry| entry.time),
            origin: record.and_then(|record| record.origin),
            ..Facts::new(about, domain)
        };
        self.volumes().insert(Volume::found(found.id, facts));
        Ok(())
    }

    /// A directory without a live tree: a relative, or a volume that a crash kept from its place.
    async fn settle_relative(self: &Arc<Self>, volume: &Arc<Volume>) -> Result<(), Error> {
        let record = cas::record::read(self.store(), &volume.id).await?.map(|stored| stored.value);
        let me = self.session()?.id();
        match record {
            Some(record) if record.birth == volume.facts().about.birth => {
                let live = record.state == cas::record::State::Live;
                if live && record.owner == Some(me) {
                    self.acquire_locked(&volume.id, false).await?;
                } else if !live || volume.facts().base.is_none() {
                    self.drop_copy(volume, false).await?;
                }
                Ok(())
            }
            // There is nothing in it that is not in the store, or was never told to anybody.
            Some(_) | None => self.drop_copy(volume, false).await,
        }
    }

    /// Deletes the snapshots that no volume grew from and nobody asked for.
    async fn drop_spare_snapshots(self: &Arc<Self>) -> Result<(), Error> {
        let mut by_owner = BTreeMap::<VolumeId, Vec<Place>>::new();
        for place in self.shelf().places() {
            if let Some(owner) = place.owner() {
                by_owner.entry(owner).or_default().push(place);
            }
        }
        for (id, places) in by_owner {
            let asked = match self.volumes().find(&id).map(|volume| volume.facts().standing) {
                Some(Standing::Owned { .. }) => match cas::record::read(self.store(), &id).await? {
                    Some(record) => record.value.entries,
                    None => continue,
                },
                Some(Standing::Relative) | None => Vec::new(),
                // Who knows what they are: they stay.
                Some(Standing::Fenced { .. } | Standing::Quarantined { .. }) => continue,
            };
            let base = self.volumes().find(&id).and_then(|volume| volume.facts().base).map(|base| base.place);
            let manual = |place: &Place| {
                asked.iter().any(|entry| entry.role == Role::Manual && entry.version() == place.version())
            };
            if places.iter().any(|place| Some(place) != base.as_ref() && !manual(place)) {
                // A publication or a restore was cut short. Sent by the process before this one, it may still arrive: not
                // any more, as it would make a version the head that is about to be dropped here.
                let me = self.session()?.id();
                cas::update::touch(self.store(), &me, &id).await?;
            }
            for place in places {
                if !manual(&place) {
                    self.put_away(&place).await?;
                }
            }
        }
        Ok(())
    }

    /// The pool belongs to another store: everything is shown and nothing is touched.
    fn quarantine(&self, found: Vec<Found>) {
        for one in found {
            let Some(about) = one.about else { continue };
            let reason = "the pool belongs to another store".to_owned();
            let standing = Standing::Quarantined { reason };
            let facts = Facts { standing, ..Facts::new(about, types::Domain::default_domain()) };
            self.volumes().insert(Volume::new(one.id, facts));
        }
    }
}

/// Reads the pool's names, and drops what a crash left half-made among them.
fn scan(root: &Dir) -> Result<Vec<Found>, Error> {
    let volumes = root.open_dir(VOLUMES)?;
    let mut found = Vec::new();
    for name in volumes.entries()? {
        let Some(id) = name.to_str().and_then(|name| name.parse::<VolumeId>().ok()) else {
            tracing::warn!(name = %name.display(), "not ours in the pool's volumes; left alone");
            continue;
        };
        found.extend(find(root, &id)?);
    }
    Ok(found)
}

/// Reads one volume's directory; nothing where there is none.
pub(crate) fn find(root: &Dir, id: &VolumeId) -> Result<Option<Found>, Error> {
    let directory = match local::directory(root, id) {
        Err(Error::NotHere { .. }) => return Ok(None),
        directory => directory?,
    };
    let mut snaps = Vec::new();
    if directory.exists(SNAP)? {
        let snap = directory.open_dir(SNAP)?;
        for name in snap.entries()? {
            match name.to_str().filter(|name| layout::version_of_snapshot(name).is_some()) {
                Some(name) => {
                    read_only(&snap.open_dir(name)?)?;
                    snaps.push(Place::snapshot(id, name));
                }
                // Its version was not known yet.
                None => remove_tree(&snap, &name)?,
            }
        }
    }
    for name in directory.entries()? {
        if name.to_str().is_some_and(|name| name.starts_with('.')) {
            remove_tree(&directory, &name)?;
        }
    }
    let (about, live) = (About::read(&directory)?, directory.exists(DATA)?);
    drop(directory);
    let base = local::base(root, id)?;
    if about.is_none() && base.is_none() && !live && snaps.is_empty() {
        // What held it open went, and then a crash came.
        local::drop_empty_directory(root, id)?;
        return Ok(None);
    }
    Ok(Some(Found { base, id: id.clone(), about, snaps, live }))
}

/// The pool's templates.
fn templates(root: &Dir) -> Result<Vec<Place>, Error> {
    let mut places = Vec::new();
    let templates = root.open_dir(TEMPLATES)?;
    for name in templates.entries()? {
        let named = name.to_str().and_then(layout::template_name);
        match named {
            Some((id, version)) if templates.open_dir(&name)?.exists(DATA)? => {
                places.push(Place::template(&id, &version));
            }
            Some(_) | None => remove_tree(&templates, &name)?,
        }
    }
    Ok(places)
}

/// A crash may have come between a snapshot's last nested subvolume and its mark.
fn read_only(snapshot: &Dir) -> Result<(), Error> {
    if subvolume::is_subvolume(snapshot)? && !subvolume::is_readonly(snapshot)? {
        subvolume::set_readonly(snapshot, true)?;
    }
    Ok(())
}
