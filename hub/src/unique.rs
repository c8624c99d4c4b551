//! Names that at most one living record has. The name in the store points to an id; the id belongs to a request that the
//! name and a count make, so a retry after any crash comes to the same volume, and after a deletion the next count gives
//! the next volume: ids are never used twice.

use cas::names::{self, Expected, NameKind};
use cas::record::{Record, RecordKind, State as Life};
use types::{RequestId, ResourceName, VolumeId};

use crate::core::Hub;
use crate::error::Error;

/// Somebody who made and deleted one name this often is not found any more; a bound, not a limit that anybody meets.
const MOST_GENERATIONS: u32 = 1 << 20;

/// How often another hub may get between a read of the pointer and its move.
const ROUNDS: usize = 16;

/// A unique name of one kind of records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueName {
    kind: RecordKind,
    hash: String,
}

impl UniqueName {
    /// Takes any text.
    pub fn new(kind: RecordKind, text: &str) -> Self {
        Self { kind, hash: blake3::hash(text.as_bytes()).to_hex()[..40].to_owned() }
    }

    fn names(&self) -> NameKind {
        match self.kind {
            RecordKind::Volume | RecordKind::Orphan => NameKind::Volume,
            RecordKind::Snapshot => NameKind::Snapshot,
            RecordKind::Template => NameKind::Template,
            RecordKind::Bundle => NameKind::Bundle,
        }
    }

    fn pointer(&self) -> ResourceName {
        format!("unique.{}", self.hash).parse().expect("hex digits make a name")
    }

    fn request(&self, generation: u32) -> RequestId {
        format!("unique:{}:{}:{generation}", self.kind, self.hash).parse().expect("printable and short")
    }

    fn id(&self, generation: u32) -> VolumeId {
        VolumeId::for_request(prefix(self.kind), &self.request(generation))
    }

    fn generation_of(&self, id: &VolumeId) -> Option<u32> {
        (0..MOST_GENERATIONS).find(|generation| self.id(*generation) == *id)
    }

    /// Reads the name back from the request that it made.
    fn of_request(request: &RequestId, kind: RecordKind) -> Option<(Self, u32)> {
        let (hash, generation) =
            request.as_str().strip_prefix(&format!("unique:{kind}:"))?.split_once(':')?;
        let name = Self { kind, hash: hash.to_owned() };
        let generation = generation.parse().ok()?;
        let hex = hash.len() == 40 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        (hex && name.request(generation) == *request).then_some((name, generation))
    }
}

/// How ids of this kind begin.
pub fn prefix(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Volume => "vol",
        RecordKind::Snapshot => "snap",
        RecordKind::Template => "tpl",
        RecordKind::Bundle => "bundle",
        RecordKind::Orphan => "orphan",
    }
}

/// Tells if a name is the pointer of a unique name, which people do not see.
pub fn is_unique(name: &ResourceName) -> bool {
    name.as_str().starts_with("unique.")
}

/// Returns the request that makes, or made, the record of this name.
pub async fn request(hub: &Hub, name: &UniqueName) -> Result<RequestId, Error> {
    for _ in 0..ROUNDS {
        let (generation, expected) = match names::resolve(&hub.store, name.names(), &name.pointer()).await? {
            None => (0, None),
            Some(id) => {
                let generation =
                    name.generation_of(&id).ok_or_else(|| Error::MadeAndDeleted { volume: id.clone() })?;
                match hub.catalog.read(&id).await?.map(|record| record.state) {
                    None | Some(Life::Creating | Life::Live) => return Ok(name.request(generation)),
                    Some(Life::Deleted | Life::Purged) => (generation + 1, Some(id)),
                }
            }
        };
        if advance(hub, name, expected.as_ref(), generation).await? {
            return Ok(name.request(generation));
        }
    }
    Err(Error::Busy { volume: name.id(0), operation: "being given its name" })
}

/// Returns the request that makes the first record of this name.
pub fn first(name: &UniqueName) -> RequestId {
    name.request(0)
}

/// Points a name to its [`first`] record, in one write where it is new. False where it points elsewhere; [`request`] tells.
pub async fn claim(hub: &Hub, name: &UniqueName) -> Result<bool, Error> {
    advance(hub, name, None, 0).await
}

/// Returns the living record of this name.
pub async fn living(hub: &Hub, name: &UniqueName) -> Result<Option<Record>, Error> {
    let Some(id) = names::resolve(&hub.store, name.names(), &name.pointer()).await? else { return Ok(None) };
    let record = hub.catalog.read(&id).await?;
    Ok(record.filter(|record| record.state == Life::Live && record.kind == name.kind))
}

/// Moves the name of a deleted record on, so that its id is not used again even when the tombstone is gone. A failure
/// costs nothing now: whoever uses the name next finds the tombstone.
pub async fn retire(hub: &Hub, record: &Record) {
    let Some((name, generation)) = UniqueName::of_request(&record.request, record.kind) else { return };
    if name.id(generation) != record.id {
        return;
    }
    if let Err(error) = advance(hub, &name, Some(&record.id), generation + 1).await {
        tracing::debug!(volume = %record.id, %error, "the unique name of a deleted record still points to it");
    }
}

/// Moves the pointer. False where somebody else did meanwhile.
async fn advance(
    hub: &Hub,
    name: &UniqueName,
    from: Option<&VolumeId>,
    generation: u32,
) -> Result<bool, Error> {
    let expected = from.map_or(Expected::Free, Expected::Id);
    match names::point(&hub.store, name.names(), &name.pointer(), &name.id(generation), expected).await {
        Ok(_) => Ok(true),
        Err(cas::Error::NameTaken { .. } | cas::Error::NoName { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_leads_back_to_its_name_and_no_other_does() {
        let name = UniqueName::new(RecordKind::Snapshot, "Ünïque / ../../x\0");
        let request = name.request(7);
        assert_eq!(UniqueName::of_request(&request, RecordKind::Snapshot), Some((name.clone(), 7)));
        assert_eq!(name.generation_of(&name.id(7)), Some(7));
        for other in ["unique:snapshot:xyz:1", "unique:snapshot:", "unique:volume:00:1", "mine"] {
            assert_eq!(
                UniqueName::of_request(&other.parse().unwrap(), RecordKind::Snapshot),
                None,
                "{other}"
            );
        }
        assert_ne!(name.id(0), name.id(1));
        assert_ne!(
            UniqueName::new(RecordKind::Volume, "a").id(0),
            UniqueName::new(RecordKind::Volume, "b").id(0)
        );
    }
}
