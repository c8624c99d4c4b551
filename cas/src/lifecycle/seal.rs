//! Snapshots, templates, bundles and orphans: records of their own, one kind of root. They never roll with their source.

use std::collections::BTreeMap;

use types::{Change, Domain, RequestId, VolumeId};

use super::create::{begin_create, first_version};
use crate::entry::{Heads, tips};
use crate::error::Error;
use crate::guard::Claim;
use crate::record::{NewRecord, Origin, Quota, Record, RecordKind, State};
use crate::session::Operation;
use crate::store::Stored;

/// A sealed record to be made.
#[derive(Debug, Clone)]
pub struct NewSealed {
    /// Its id, made from the request.
    pub id: VolumeId,
    /// What it is.
    pub kind: RecordKind,
    /// Whose packs its bytes lie in.
    pub domain: Domain,
    /// What it holds, proven under the operation.
    pub heads: Heads,
    /// What it is of.
    pub origin: Option<Origin>,
    /// The request that makes it.
    pub request: RequestId,
    /// What is said about it.
    pub label: String,
    /// The limit and charge that a volume made from it begins with.
    pub quota: Quota,
    /// What its maker attaches.
    pub attributes: BTreeMap<String, String>,
}

/// Makes a sealed record: created without references, then live with its heads and without an owner.
pub async fn seal(operation: &Operation, new: NewSealed) -> Result<Change<Stored<Record>>, Error> {
    if !new.kind.is_sealed() {
        return Err(Error::Invalid {
            what: new.id.to_string(),
            rule: "only a sealed kind is made by sealing",
        });
    }
    let session = operation.session();
    let NewSealed { id, kind, domain, heads, origin, request, label, quota, attributes } = new;
    let (owner, node) = (session.id(), session.node().clone());
    let record = NewRecord { id: id.clone(), kind, domain, owner, node, origin, request, quota, attributes };
    let begun = begin_create(session.store(), record).await?.into_inner();
    if begun.value.state != State::Creating {
        let same = begun.value.state == State::Live && begun.value.head_tips() == tips(&heads);
        return if same { Ok(Change::Already(begun)) } else { Err(Error::OtherRequest { id }) };
    }
    match begun.value.owner {
        Some(owner) if owner == session.id() => {}
        // The same request is under way in a session that lives.
        Some(owner) => return Err(Error::Owned { id, owner }),
        None => return Err(Error::Contended { key: crate::keys::volume(&id) }),
    }
    session.confirm_live().await?;
    first_version(operation, &Claim::of(&begun.value), None, Some(heads), &label, true).await
}

/// Keeps what a session that lost its place still held, as an orphan record. Made by the session that holds it now: a
/// fenced one opens a new session first. The local copy goes only after this has answered.
///
/// The same loss gives the same record, however often this is called.
pub async fn make_orphan(
    operation: &Operation,
    lost: &Claim,
    domain: &Domain,
    heads: Heads,
    reason: &str,
) -> Result<Change<Stored<Record>>, Error> {
    let versions = tips(&heads);
    let mut hasher = blake3::Hasher::new();
    for (member, version) in &versions {
        hasher.update(member.as_str().as_bytes()).update(b"\0").update(version.as_bytes());
    }
    let Claim { id, birth, epoch } = lost;
    let request = format!("orphan:{id}:{birth}:{epoch}:{}", hasher.finalize().to_hex());
    let request: RequestId = request.parse().expect("ids and hex digits are printable, and shorter than 256");
    let new = NewSealed {
        id: VolumeId::for_request("orphan", &request),
        kind: RecordKind::Orphan,
        domain: domain.clone(),
        heads,
        origin: Some(Origin { volume: id.clone(), entry: None, versions }),
        request,
        label: reason.chars().take(60).collect(),
        quota: Quota::default(),
        attributes: BTreeMap::new(),
    };
    seal(operation, new).await
}
