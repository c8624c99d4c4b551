//! Small objects as JSON with a format number. What a newer program wrote is refused, never half understood.
//!
//! Unknown fields are refused within a format, because a program that drops a field it does not know and writes the
//! rest back has lost data: a new field is a new format number.
//!
//! The last field, `check`, is the hash of the rest: a flipped bit in a number is still JSON, and would be believed.

use std::borrow::Cow;

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

/// What stands before and behind the hash in the last field.
const CHECK: (&[u8], &[u8]) = (b",\"check\":\"", b"\"}");
const HASH_LEN: usize = 64;

/// What every object of this format begins with (the first field is its number), so that it need not be looked for.
const BEGIN: &[u8] = b"{\"format\":1,";

#[derive(Deserialize)]
struct Head {
    format: u64,
}

/// Encodes a small object.
///
/// # Errors
/// It is larger than one may be.
pub fn encode<T: Serialize>(key: &Key, value: &T) -> Result<Bytes, Error> {
    let mut bytes =
        serde_json::to_vec(value).map_err(|error| Error::corrupt(key, format!("cannot encode: {error}")))?;
    seal(&mut bytes);
    if bytes.len() > MAX_SMALL_OBJECT_BYTES {
        return Err(Error::TooLarge {
            key: key.clone(),
            size: bytes.len() as u64,
            limit: MAX_SMALL_OBJECT_BYTES as u64,
        });
    }
    Ok(bytes.into())
}

/// Appends the check to a JSON object that has a field.
fn seal(bytes: &mut Vec<u8>) {
    let hash = blake3::hash(bytes).to_hex();
    bytes.pop();
    bytes.extend_from_slice(CHECK.0);
    bytes.extend_from_slice(hash.as_bytes());
    bytes.extend_from_slice(CHECK.1);
}

/// Takes the check off and proves it. What has none was written before there was one.
fn open(bytes: &[u8]) -> Result<Cow<'_, [u8]>, &'static str> {
    let parts = || {
        let (rest, end) = bytes.split_at_checked(bytes.len().checked_sub(CHECK.1.len())?)?;
        let (rest, hash) = rest.split_at_checked(rest.len().checked_sub(HASH_LEN)?)?;
        (end == CHECK.1).then_some((rest.strip_suffix(CHECK.0)?, hash))
    };
    let Some((rest, hash)) = parts() else { return Ok(Cow::Borrowed(bytes)) };
    let plain = [rest, b"}"].concat();
    if blake3::hash(&plain).to_hex().as_bytes() == hash {
        Ok(Cow::Owned(plain))
    } else {
        Err("it does not hold what its check says: it was damaged or edited")
    }
}

/// Decodes a small object: a record, a session, a name, the state of the collection.
///
/// # Errors
/// It is damaged, not ours, or of a newer format.
pub fn decode<T: DeserializeOwned>(object: &Object) -> Result<T, Error> {
    decode_bytes(&object.meta.key, &object.bytes)
}

/// Decodes the bytes of a small object.
///
/// # Errors
/// It is damaged, not ours, or of a newer format.
pub fn decode_bytes<T: DeserializeOwned>(key: &Key, bytes: &[u8]) -> Result<T, Error> {
    let plain = proved(key, bytes)?;
    if !plain.starts_with(BEGIN) {
        check_format(key, &plain)?;
    }
    serde_json::from_slice(&plain).map_err(|error| Error::corrupt(key, error.to_string()))
}

/// Proves a small object of any kind, as far as that can be done without knowing its fields.
pub(crate) fn prove(object: &Object) -> Result<(), Error> {
    check_format(&object.meta.key, &proved(&object.meta.key, &object.bytes)?)
}

fn proved<'a>(key: &Key, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, Error> {
    if bytes.len() > MAX_SMALL_OBJECT_BYTES {
        return Err(Error::corrupt(key, format!("{} bytes are too many", bytes.len())));
    }
    open(bytes).map_err(|reason| Error::corrupt(key, reason))
}

fn check_format(key: &Key, plain: &[u8]) -> Result<(), Error> {
    let head: Head = serde_json::from_slice(plain).map_err(|error| Error::corrupt(key, error.to_string()))?;
    if head.format > u64::from(FORMAT) {
        return Err(Error::NewerFormat { key: key.clone(), found: head.format, supported: FORMAT });
    }
    if head.format == 0 {
        return Err(Error::corrupt(key, "format 0 was never written"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{Etag, Meta};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Small {
        format: u32,
        charge: u64,
        name: String,
    }

    fn object(bytes: Vec<u8>) -> Object {
        let meta = Meta {
            key: "vol/a".parse().unwrap(),
            size: bytes.len() as u64,
            etag: Etag::new("x"),
            modified: types::Timestamp(0),
        };
        Object { meta, bytes: bytes.into() }
    }

    fn small() -> (Small, Vec<u8>) {
        let value = Small { format: 1, charge: 4_096, name: "\"}".to_owned() };
        let bytes = encode(&"vol/a".parse().unwrap(), &value).unwrap().to_vec();
        (value, bytes)
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let (value, bytes) = small();
        assert_eq!(decode::<Small>(&object(bytes.clone())).unwrap(), value);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let error = decode::<Small>(&object(damaged)).unwrap_err();
                assert!(
                    matches!(error, Error::Corrupt { .. } | Error::NewerFormat { .. }),
                    "{at}.{bit}: {error}"
                );
            }
            decode::<Small>(&object(bytes[..at].to_vec())).unwrap_err();
        }
    }

    /// Never edited: the bytes are in stores. The check is of the object without it.
    #[test]
    fn the_check_is_the_last_field_and_objects_without_it_are_read() {
        let plain = br#"{"format":1,"charge":7,"name":"x"}"#.to_vec();
        let value = Small { format: 1, charge: 7, name: "x".to_owned() };
        assert_eq!(decode::<Small>(&object(plain.clone())).unwrap(), value);
        let sealed = encode(&"vol/a".parse().unwrap(), &value).unwrap();
        let hash = blake3::hash(&plain).to_hex();
        assert_eq!(sealed, format!(r#"{{"format":1,"charge":7,"name":"x","check":"{hash}"}}"#));
        assert!(serde_json::from_slice::<serde_json::Value>(&sealed).unwrap()["check"].is_string());
    }
}
