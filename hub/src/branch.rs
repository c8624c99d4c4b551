//! Branches and pins: names for entries of a timeline, which are then never thinned. They need no ownership, wake nothing,
//! and reach entries in pages, too.

use cas::lifecycle::{self, Taken};
use cas::record::Record;
use proto::hub as api;
use types::VolumeId;

use crate::core::Hub;
use crate::create::Point;
use crate::error::Error;
use crate::order::find;
use crate::view;

/// Names a point of a volume's timeline. A branch that names another entry is moved only if `may_move`.
pub async fn set(
    hub: &Hub,
    volume: &VolumeId,
    branch: &str,
    point: Point,
    may_move: bool,
) -> Result<api::Entry, Error> {
    let (_, entry) = look(hub, volume, point).await?;
    let taken = if may_move { Taken::Move } else { Taken::Refuse };
    lifecycle::set_branch(&hub.store, volume, branch, entry.id, taken).await?;
    let mut told = described(hub, volume, &entry).await?;
    // An entry may be the tip of several.
    branch.clone_into(&mut told.branch);
    Ok(told)
}

/// Removes a branch. One that is not there is removed.
pub async fn delete(hub: &Hub, volume: &VolumeId, branch: &str) -> Result<(), Error> {
    hub.catalog.volume(volume).await?;
    lifecycle::remove_branch(&hub.store, volume, branch).await?;
    hub.catalog.read(volume).await.map(drop)
}

/// Holds a point of a volume's timeline for `owner`, in place of the one that it held before.
pub async fn pin(hub: &Hub, volume: &VolumeId, owner: &str, point: Point) -> Result<api::Entry, Error> {
    let (_, entry) = look(hub, volume, point).await?;
    lifecycle::set_pin(&hub.store, volume, owner, Some(entry.id)).await?;
    described(hub, volume, &entry).await
}

/// Lets go of what `owner` held, if it held anything.
pub async fn unpin(hub: &Hub, volume: &VolumeId, owner: &str) -> Result<(), Error> {
    hub.catalog.volume(volume).await?;
    lifecycle::set_pin(&hub.store, volume, owner, None).await?;
    hub.catalog.read(volume).await.map(drop)
}

/// Finds a point of a volume that is there.
async fn look(hub: &Hub, volume: &VolumeId, point: Point) -> Result<(Record, cas::Entry), Error> {
    let record = hub.catalog.volume(volume).await?;
    let entry = find(hub, &record, point).await?.ok_or_else(|| {
        let wanted = match point {
            Point::Entry(entry) => entry.to_string(),
            Point::Version(version) => version.to_string(),
            Point::Present => return Error::NoVersion { volume: volume.clone() },
        };
        Error::NoEntry { volume: volume.clone(), wanted }
    })?;
    Ok((record, entry))
}

async fn described(hub: &Hub, volume: &VolumeId, entry: &cas::Entry) -> Result<api::Entry, Error> {
    Ok(view::entry(&hub.catalog.volume(volume).await?, entry))
}
