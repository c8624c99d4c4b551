//! Seal: a version of a volume becomes a record of its own (snapshot, template, bundle). No data moves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cas::entry::{data_head, tips};
use cas::lifecycle::{self, NewSealed};
use cas::record::{Origin, RecordKind};
use cas::{Role, references, timeline};
use types::{Change, MemberName, PackId, RequestId, VersionId, VolumeId};

use crate::error::Error;
use crate::node::Node;
use crate::sync::SyncRequest;

/// What is to be sealed.
#[derive(Debug, Clone)]
pub struct SealRequest {
    /// Of which volume.
    pub id: VolumeId,
    /// Which version; none: the present state, which is synced first.
    pub version: Option<VersionId>,
    /// The new record, whose id is made from the request.
    pub sealed: VolumeId,
    /// The request that makes it.
    pub request: RequestId,
    /// What it becomes.
    pub kind: RecordKind,
    /// What its maker attaches.
    pub attributes: BTreeMap<String, String>,
}

impl Node {
    /// Seals a version, and answers which.
    ///
    /// # Errors
    /// The version is not on the volume's timeline, the id is taken, or the store failed.
    pub async fn seal(self: &Arc<Self>, request: SealRequest) -> Result<Change<VersionId>, Error> {
        let node = Arc::clone(self);
        self.detached("seal", async move { node.seal_now(request).await }).await
    }

    async fn seal_now(self: &Arc<Self>, request: SealRequest) -> Result<Change<VersionId>, Error> {
        let session = self.session()?;
        if let Some(before) = cas::record::read(self.store(), &request.sealed).await? {
            // A retry without a version means the one that the first attempt sealed, not the state of now.
            let record = before.value;
            if record.request != request.request {
                let why = "another request made it".to_owned();
                return Err(Error::Exists { volume: request.sealed, why });
            }
            if let Some(version) = record.head_tips().get(&MemberName::data()) {
                return Ok(Change::Already(*version));
            }
        }
        let version = match request.version {
            Some(version) => version,
            None => {
                let wish = SyncRequest { role: Role::Sync, label: String::new() };
                self.sync(&request.id, wish).await?.version
            }
        };
        let operation = session.begin()?;
        let source = cas::record::read(self.store(), &request.id).await?;
        let source = source.ok_or_else(|| Error::NoRecord { volume: request.id.clone() })?.value;
        let missing = || Error::NoVersion { volume: request.id.clone(), version };
        let entry = timeline::find_version(self.store(), &source, &version).await?.ok_or_else(missing)?;
        let tree = entry.heads.get(&MemberName::data()).ok_or_else(missing)?.clone();
        let packs: BTreeSet<PackId> =
            self.reader().manifest(&tree).await?.packs.iter().map(|pack| (*pack.pack).clone()).collect();
        references::confirm_version(&operation, &request.id, &version, &packs).await?;
        let heads = data_head(tree);
        let sealed = NewSealed {
            id: request.sealed,
            kind: request.kind,
            domain: source.domain.clone(),
            origin: Some(Origin { volume: request.id, entry: Some(entry.id), versions: tips(&heads) }),
            heads,
            request: request.request,
            label: String::new(),
            quota: source.quota,
            attributes: request.attributes,
        };
        Ok(match lifecycle::seal(&operation, sealed).await? {
            Change::Made(_) => Change::Made(version),
            Change::Already(_) => Change::Already(version),
        })
    }
}
