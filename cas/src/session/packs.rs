//! Pack names that are never used twice, and packs put under them.
//!
//! Numbers come out of blocks that are reserved in the session's object before the first of them is used. So a process
//! that takes the session up after a crash, with or without its memory, starts behind everything that any process of
//! this session may have named: also behind an upload that is still under way and that no listing shows.

use bytes::Bytes;
use types::{Change, Domain, PackId};

use super::Session;
use crate::error::Error;
use crate::keys;
use crate::objects::{Condition, ObjectError};
use crate::settle::{self, Settled};

/// How many pack numbers are reserved at once. A number lost to a crash costs nothing.
pub(super) const PACK_BLOCK: u64 = 4096;

/// How often a pack is sent again after a refusal that nobody's write explains.
const MAX_PUT_ROUNDS: u32 = 8;

impl Session {
    /// Names a new pack. Needs an open operation, which keeps the pack from garbage collection until it is referred to.
    pub async fn next_pack(&self, domain: &Domain) -> Result<PackId, Error> {
        loop {
            {
                let mut holds = self.holds();
                self.check_not_ended(&holds)?;
                if holds.operations.is_empty() {
                    return Err(Error::NoOperation { session: self.id() });
                }
                if holds.next_pack < holds.reserved {
                    let seq = holds.next_pack;
                    holds.next_pack += 1;
                    return Ok(PackId { domain: domain.clone(), session: self.id(), seq });
                }
            }
            self.reserve_packs().await?;
        }
    }

    /// Puts a pack under a name from [`Self::next_pack`]. When this returns, the store has acknowledged it, and the open
    /// operation may refer to it.
    pub async fn put_pack(&self, id: &PackId, bytes: Bytes) -> Result<Change, Error> {
        if id.session != self.id() {
            return Err(Error::ForeignPack { pack: id.clone() });
        }
        self.check_not_ended(&self.holds())?;
        let key = keys::pack(id);
        let mut rounds = 0;
        let change = loop {
            match settle::put(self.store(), &key, &bytes, &Condition::IfAbsent).await? {
                Settled::Written(_) => break Change::Made(()),
                Settled::Refused => {}
                Settled::Absent => return Err(ObjectError::NotFound { key }.into()),
            }
            // Only an earlier request of this very write can have made it, and then the bytes are the same.
            match self.store().objects().get(&key).await {
                Ok(found) if found.bytes == bytes => break Change::Already(()),
                Ok(_) => return Err(Error::ForeignPack { pack: id.clone() }),
                // Refused and not there: nobody's write explains it, so ask again.
                Err(error) if error.is_not_found() && rounds < MAX_PUT_ROUNDS => rounds += 1,
                Err(error) => return Err(error.into()),
            }
        };
        self.holds().acknowledged.insert(id.clone());
        Ok(change)
    }
}
