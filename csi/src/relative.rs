//! Trees that are here without being owned: templates, and heads that a move will need soon.

use std::sync::Arc;

use btrfs::GroupId;
use cas::Record;
use cas::record::State;
use types::{VersionId, VolumeId};

use crate::about::About;
use crate::account::Account;
use crate::acquire::head_of;
use crate::deaths::{Point, pass};
use crate::error::Error;
use crate::layout::{DATA, Place, STAGING, TEMPLATES};
use crate::local::{self, Taken};
use crate::materialise::{Nearest, Staged};
use crate::node::Node;
use crate::volume::{Base, Facts, Head, Volume};

impl Node {
    /// Materialises the head of a record without owning anything, as the source of later creates.
    ///
    /// # Errors
    /// There is no such record, or pool or store failed.
    pub async fn ensure_template(self: &Arc<Self>, id: &VolumeId) -> Result<VersionId, Error> {
        let guard = self.locks().try_acquire(id, "ensure template")?;
        let (node, id) = (Arc::clone(self), id.clone());
        self.detached("ensure template", async move {
            let _guard = guard;
            node.ensure_template_locked(&id).await
        })
        .await
    }

    async fn ensure_template_locked(self: &Arc<Self>, id: &VolumeId) -> Result<VersionId, Error> {
        self.require_own_store()?;
        let record = cas::record::read(self.store(), id)
            .await?
            .ok_or_else(|| Error::NoRecord { volume: id.clone() })?;
        if record.value.state != State::Live {
            return Err(Error::NoRecord { volume: id.clone() });
        }
        let head = head_of(&record.value)?;
        let (version, place) = (head.tree.version, Place::template(id, &head.tree.version));
        if self.shelf().holds(&place) {
            return Ok(version);
        }
        self.pool().require_room().await?;
        let Staged { name, same } = self.materialise(&record.value, &head.tree, None).await?;
        drop(same);
        let (staged, target) = (name.clone(), place.clone());
        let placed = self
            .pool()
            .run(move |root| {
                // The directory is moved as a whole: a read-only subvolume cannot change its directory, and a writable one
                // under its final name would be half-made.
                let staging = root.open_dir(STAGING)?;
                let wrapper = format!("{staged}.t");
                let inside = staging.create_dir(&wrapper, 0o755)?;
                staging.rename(&staged, &inside, DATA)?;
                pass(Point::TemplateWrapped)?;
                btrfs::commit::sync_all(root)?;
                btrfs::subvolume::set_readonly(&inside.open_dir(DATA)?, true)?;
                pass(Point::TemplateSealed)?;
                let name = target.template_text();
                staging.rename(&wrapper, &root.open_dir(TEMPLATES)?, &name)?;
                pass(Point::TemplatePlaced)
            })
            .await;
        if let Err(error) = placed {
            self.unstage(&name).await;
            self.unstage(&format!("{name}.t")).await;
            return Err(error);
        }
        self.pool().commit().await?;
        self.shelf().keep(&place);
        tracing::info!(template = %id, version = %version.short(), "template is here");
        Ok(version)
    }

    /// Brings the head of a volume that another session owns near, so that acquiring it later moves only the difference.
    ///
    /// # Errors
    /// There is no such volume, or pool or store failed.
    pub async fn prefetch(self: &Arc<Self>, id: &VolumeId) -> Result<VersionId, Error> {
        let guard = self.locks().try_acquire(id, "prefetch")?;
        let (node, id) = (Arc::clone(self), id.clone());
        self.detached("prefetch", async move {
            let _guard = guard;
            node.prefetch_locked(&id).await
        })
        .await
    }

    async fn prefetch_locked(self: &Arc<Self>, id: &VolumeId) -> Result<VersionId, Error> {
        let session = self.session()?;
        let record = cas::record::read(self.store(), id)
            .await?
            .ok_or_else(|| Error::NoRecord { volume: id.clone() })?;
        let record = record.value;
        if record.state != State::Live {
            return Err(Error::NoRecord { volume: id.clone() });
        }
        let head = head_of(&record)?;
        let version = head.tree.version;
        let here = self.volumes().find(id);
        let owned = here.as_ref().is_some_and(|volume| volume.claim(session.id()).is_ok());
        let has =
            here.as_ref().and_then(|volume| volume.facts().base).is_some_and(|b| b.tree.version == version);
        if owned || has {
            return Ok(version);
        }
        self.pool().require_room().await?;
        let nearest = self.nearest(&record, &version).await?;
        let account = self.account(&record, &nearest).await?;
        let left = here.and_then(|volume| volume.facts().about.group);
        let mut about = About {
            birth: record.birth,
            group: account.group().map(GroupId::number),
            limit_bytes: record.quota.limit_bytes,
            offset_bytes: account.offset_bytes(),
            unborn: false,
            class: Default::default(),
            releasing: false,
        };
        let fetched = self.fetch(id, &mut about, nearest, &record, &head, account).await;
        let taken = match fetched {
            Ok(taken) => taken,
            Err(error) => {
                self.close_account(account).await;
                return Err(error);
            }
        };
        let (volume, name) = (id.clone(), taken.name.clone());
        let place = self
            .pool()
            .run(move |root| {
                let place = local::name_taken(root, &volume, &name, &version)?;
                local::set_base(root, &volume, &place)?;
                Ok(place)
            })
            .await?;
        let free = self.shelf().rebase(id, Some(&place));
        self.pool().run(move |root| local::delete_places(root, &free)).await?;
        self.pool().commit().await?;
        let base = Base { place, tree: head.tree.clone(), uuid: taken.marks.uuid, roots: taken.roots };
        let facts = Facts {
            head: Some(head),
            base: Some(base),
            origin: record.origin.clone(),
            ..Facts::new(about, record.domain.clone())
        };
        let group = facts.about.group;
        self.volumes().insert(Volume::new(id.clone(), facts));
        if left != group {
            self.drop_group(left.map(local::group)).await;
        }
        tracing::info!(volume = %id, version = %version.short(), "prefetched");
        Ok(version)
    }

    /// Makes the head's tree and takes a snapshot of it, charged to the volume.
    async fn fetch(
        self: &Arc<Self>,
        id: &VolumeId,
        about: &mut About,
        nearest: Nearest,
        record: &Record,
        head: &Head,
        account: Account,
    ) -> Result<Taken, Error> {
        let staged = self.materialise_from(nearest, record, &head.tree, account.group()).await?;
        let taken = self.take_staged(id, about, &staged.name).await;
        self.unstage(&staged.name).await;
        let taken = taken?;
        if matches!(account, Account::New(_)) {
            // The snapshot's commit has charged it all.
            *about = self.note_offset(id, about.clone(), record.quota.charge_bytes).await?;
        }
        Ok(taken)
    }
}
