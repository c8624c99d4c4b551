//! Points of any volume's timeline, for reading from the store: this node needs to hold nothing of them.

use cas::record::{Record, State};
use cas::timeline::{self, Point};
use types::{EntryId, Hash, MemberName, VersionId, VolumeId};

use crate::error::Error;
use crate::files::{At, ColdVolume};
use crate::node::Node;

/// How often a record may be replaced while its pages of older entries are read.
const ROUNDS: usize = 4;

impl Node {
    /// Finds what a volume was. Nothing, where it is not there, or live somewhere and no point was asked for.
    ///
    /// # Errors
    /// The volume has no such point, or the store failed.
    pub async fn cold(&self, id: &VolumeId, at: At) -> Result<Option<ColdVolume>, Error> {
        self.require_own_store()?;
        for round in 0.. {
            let record = cas::record::read(self.store(), id).await?.map(|stored| stored.value);
            let Some(record) = record.filter(|record| record.state == State::Live) else { return Ok(None) };
            match self.cold_in(&record, at).await {
                // Its pages were written anew meanwhile.
                Err(Error::Cas(cas::Error::NoPage { .. })) if round < ROUNDS => {}
                found => return found,
            }
        }
        Ok(None)
    }

    async fn cold_in(&self, record: &Record, at: At) -> Result<Option<ColdVolume>, Error> {
        let id = &record.id;
        let entry = match at {
            At::Asleep if record.owner.is_some() => return Ok(None),
            At::Asleep | At::Head => record.head_entry().cloned(),
            At::Point(Hash(hash)) => {
                let version = VersionId(hash);
                let missing = || Error::NoVersion { volume: id.clone(), version };
                let by_id = timeline::find(self.store(), record, &Point::Entry(EntryId(hash))).await?;
                let found = match by_id {
                    Some(found) => Some(found),
                    None => timeline::find(self.store(), record, &Point::Version(version)).await?,
                };
                Some(found.ok_or_else(missing)?.entry)
            }
        };
        let head = entry.and_then(|mut entry| entry.heads.remove(&MemberName::data()));
        let tree = head.ok_or_else(|| Error::NoHead { volume: id.clone() })?;
        Ok(Some(ColdVolume { reader: self.reader(), tree }))
    }
}
