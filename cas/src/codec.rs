//! Small objects as JSON with a format number. What a newer program wrote is refused, never half understood.
//!
//! Unknown fields are refused within a format, because a program that drops a field it does not know and writes the
//! rest back has lost data: a new field is a new format number.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::objects::{Key, Object};

/// The newest format of every small object that this program writes and reads.
pub const FORMAT: u32 = 1;

/// The most bytes of a small object. Records are kept far below (PROTOCOL.md §1); this bounds what a broken or hostile
/// object can make us parse.
pub const MAX_SMALL_OBJECT_BYTES: usize = 1 << 20;

#[derive(Deserialize)]
struct Head {
    format: u64,
}

/// Encodes a small object.
pub(crate) fn encode<T: Serialize>(key: &Key, value: &T) -> Result<Bytes, Error> {
    let bytes =
        serde_json::to_vec(value).map_err(|error| Error::corrupt(key, format!("cannot encode: {error}")))?;
    if bytes.len() > MAX_SMALL_OBJECT_BYTES {
        return Err(Error::TooLarge {
            key: key.clone(),
            size: bytes.len() as u64,
            limit: MAX_SMALL_OBJECT_BYTES as u64,
        });
    }
    Ok(bytes.into())
}

/// Decodes a small object.
pub(crate) fn decode<T: DeserializeOwned>(object: &Object) -> Result<T, Error> {
    let key = &object.meta.key;
    if object.bytes.len() > MAX_SMALL_OBJECT_BYTES {
        return Err(Error::corrupt(key, format!("{} bytes are too many", object.bytes.len())));
    }
    let head: Head =
        serde_json::from_slice(&object.bytes).map_err(|error| Error::corrupt(key, error.to_string()))?;
    if head.format > u64::from(FORMAT) {
        return Err(Error::NewerFormat { key: key.clone(), found: head.format, supported: FORMAT });
    }
    if head.format == 0 {
        return Err(Error::corrupt(key, "format 0 was never written"));
    }
    serde_json::from_slice(&object.bytes).map_err(|error| Error::corrupt(key, error.to_string()))
}
