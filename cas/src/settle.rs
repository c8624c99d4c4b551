//! Conditional writes with a known outcome: the same bytes again until the store says yes or no.
//!
//! A write whose answer was lost may still happen, minutes later. It is over only when a request with the same
//! condition was answered, because then the object has moved on and the late one fails its condition. Every conditional
//! write of this crate goes through [`put`].

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::objects::{Condition, Etag, Key, ObjectError};
use crate::pauses::Pauses;
use crate::store::{Store, Stored, found};

/// How a conditional write ended. In each case none of its requests can land any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It happened, and this is the new state.
    Written(Etag),
    /// The condition does not hold (412). An earlier request of the same write may have happened: read to know.
    Refused,
    /// The object that it was to replace is not there (404).
    Absent,
}

/// Sends `bytes` until the outcome is known.
///
/// Ends with [`Error::Unsettled`] after the store's patience, or when the store refuses for another reason after an
/// attempt of unknown outcome; then the write may still happen. Any other error means that it did not and will not.
pub(crate) async fn put(
    store: &Store,
    key: &Key,
    bytes: &Bytes,
    condition: &Condition,
) -> Result<Settled, Error> {
    let mut pauses = Pauses::new(store.retry());
    let mut unknown = false;
    loop {
        match store.objects().put(key, bytes.clone(), condition).await {
            Ok(etag) => return Ok(Settled::Written(etag)),
            Err(ObjectError::Precondition { .. }) => return Ok(Settled::Refused),
            Err(ObjectError::NotFound { .. }) => return Ok(Settled::Absent),
            Err(error) => {
                unknown |= error.is_outcome_unknown();
                let again = error.is_outcome_unknown() || matches!(error, ObjectError::Conflict { .. });
                if !again || !pauses.pause().await {
                    return Err(if unknown {
                        Error::Unsettled { key: key.clone(), source: error }
                    } else {
                        error.into()
                    });
                }
            }
        }
    }
}

/// Reads an object to learn how a refused write ended, as patiently as it was written.
pub(crate) async fn read<T: DeserializeOwned>(store: &Store, key: &Key) -> Result<Option<Stored<T>>, Error> {
    let mut pauses = Pauses::new(store.retry());
    loop {
        match store.objects().get(key).await {
            Err(error) if error.is_outcome_unknown() => {
                if !pauses.pause().await {
                    return Err(Error::Unsettled { key: key.clone(), source: error });
                }
            }
            answer => return found(answer),
        }
    }
}
