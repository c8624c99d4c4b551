//! Ids. Each is a type of its own, parsed once, and safe as a path segment, an object key and a DNS-1123 label
//! where it may become one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use ulid::Ulid;

/// A text that is not an id of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}: {rule}")]
pub struct InvalidId {
    /// Which id was expected.
    pub what: &'static str,
    /// What was given, cut after 200 characters.
    pub text: String,
    /// What such an id looks like.
    pub rule: &'static str,
}

impl InvalidId {
    fn new(what: &'static str, text: &str, rule: &'static str) -> Self {
        Self { what, text: text.chars().take(200).collect(), rule }
    }
}

/// Display, FromStr and serde by text for a type that has `Display` and `FromStr`.
macro_rules! serde_by_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// Lower-case letters, digits and inner hyphens.
fn is_dns_label(text: &str, longest: usize) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=longest).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A text id with one rule.
macro_rules! label_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Returns the id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok(Self(text.to_owned())) } else { Err(InvalidId::new($what, text, $rule)) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        serde_by_text!($name);
    };
}

label_type!(
    /// Names a volume (or a snapshot, template, bundle or orphan: each is a record of its own). Never used twice.
    VolumeId,
    "volume id",
    "1 to 63 characters of a-z, 0-9 and '-', no '-' at either end",
    |text| is_dns_label(text, 63)
);

label_type!(
    /// A dedup domain: packs never hold bytes of two.
    Domain,
    "dedup domain",
    "1 to 63 characters of a-z, 0-9 and '-', no '-' at either end",
    |text| is_dns_label(text, 63)
);

label_type!(
    /// A member of a volume: `data` is the volume itself, others are its service volumes.
    MemberName,
    "member name",
    "1 to 63 characters of a-z, 0-9 and '-', no '-' at either end",
    |text| is_dns_label(text, 63)
);

label_type!(
    /// A name that people give to a template, a bundle or a CSI volume; `name/<kind>/<name>` points from it to an id.
    ResourceName,
    "name",
    "1 to 128 characters of A-Z, a-z, 0-9, '-', '_' and '.', beginning with a letter or digit",
    |text| {
        (1..=128).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && text.as_bytes()[0].is_ascii_alphanumeric()
    }
);

label_type!(
    /// A node, by its Kubernetes name (DNS-1123 subdomain). A name is not an identity: that is the session.
    NodeName,
    "node name",
    "1 to 253 characters: labels of a-z, 0-9 and inner '-', joined by '.'",
    |text| text.len() <= 253 && text.split('.').all(|label| is_dns_label(label, 63))
);

label_type!(
    /// The caller's name for one request, so that its retry is known as the same.
    RequestId,
    "request id",
    "1 to 256 printable ASCII characters without spaces",
    |text| (1..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
);

impl VolumeId {
    /// Derives the id of what `request` creates, so that a retry finds the first attempt. `prefix` is 1 to 10
    /// characters and says what it is to a person (`vol`, `snap`, `tpl`).
    ///
    /// The id is the prefix, a hyphen and 32 characters of Crockford's base32 (160 bits) of
    /// BLAKE3(prefix, NUL, request).
    pub fn for_request(prefix: &'static str, request: &RequestId) -> Self {
        const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let mut hasher = blake3::Hasher::new();
        hasher.update(prefix.as_bytes()).update(b"\0").update(request.as_str().as_bytes());
        let digest = hasher.finalize();
        let mut text = format!("{prefix}-");
        for five_bytes in digest.as_bytes()[..20].chunks_exact(5) {
            let bits = five_bytes.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
            for shift in (0..8).rev() {
                let index = usize::try_from(bits >> (5 * shift) & 31).expect("five bits fit usize");
                text.push(char::from(ALPHABET[index]));
            }
        }
        Self(text)
    }
}

impl MemberName {
    /// The member that every volume has: the volume itself.
    pub fn data() -> Self {
        Self("data".to_owned())
    }
}

impl RequestId {
    /// Makes a request id that no other call has.
    pub fn random() -> Self {
        Self(Ulid::generate().to_string().to_ascii_lowercase())
    }
}

impl Domain {
    /// The domain of every volume that names none.
    pub fn default_domain() -> Self {
        Self("default".to_owned())
    }

    /// The domain that every other may name packs of: templates that an operator made for all. No tenant's volume is in it,
    /// so what is known there says nothing about anybody.
    pub fn public() -> Self {
        Self("public".to_owned())
    }

    /// Tells if versions of this domain may name packs of `other`.
    pub fn may_name(&self, other: &Self) -> bool {
        other == self || *other == Self::public()
    }
}

/// A 32-byte id that is a BLAKE3-256 value, shown as 64 hex digits.
macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// Returns the 32 bytes.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Returns the first twelve digits, enough for a person.
            pub fn short(&self) -> String {
                hex::encode(&self.0[..6])
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let mut bytes = [0; 32];
                let lower = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                if !lower || hex::decode_to_slice(text, &mut bytes).is_err() {
                    return Err(InvalidId::new($what, text, "64 lower-case hex digits"));
                }
                Ok(Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        serde_by_text!($name);
    };
}

hash_type!(
    /// Any BLAKE3-256 value: a frame's plain bytes, a stored node, a footer.
    Hash,
    "BLAKE3 hash"
);

hash_type!(
    /// A file's content: BLAKE3-256 of its plain bytes (what `b3sum` prints). Also its etag.
    ContentId,
    "content id"
);

hash_type!(
    /// A tree: BLAKE3-256 of its root node's canonical encoding. The same tree has the same id everywhere.
    VersionId,
    "version id"
);

hash_type!(
    /// A point on a volume's timeline. A version may stand on it more than once; an entry is there once.
    EntryId,
    "entry id"
);

/// A number that only grows.
macro_rules! counter_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Returns the next one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

counter_type!(
    /// Counts the owners of a volume: every change of owner raises it. A fencing token.
    Epoch
);

counter_type!(
    /// Counts the writes of one stored object.
    Rev
);

/// A ULID with lower-case letters, safe in keys and paths.
macro_rules! ulid_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Ulid);

        impl $name {
            /// Makes one that nobody else has.
            pub fn random() -> Self {
                Self(Ulid::generate())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let invalid = || InvalidId::new($what, text, "26 characters of Crockford's base32, lower case");
                let ulid = Ulid::from_string(&text.to_ascii_uppercase()).map_err(|_| invalid())?;
                // One spelling only, so that the text can be compared and used as a key.
                if Self(ulid).to_string() == text { Ok(Self(ulid)) } else { Err(invalid()) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0.to_string().to_ascii_lowercase())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        serde_by_text!($name);
    };
}

ulid_type!(
    /// A node's pool, for ever: made with the pool, kept in it.
    PoolId,
    "pool id"
);

ulid_type!(
    /// A store, made once; a pool remembers the one it belongs to.
    StoreId,
    "store id"
);

ulid_type!(
    /// The birth of a record. Two records never share one, so a tombstone names exactly what died.
    Birth,
    "birth"
);

ulid_type!(
    /// Tells one write of an object from every other, so that a lost answer can be read back.
    Nonce,
    "nonce"
);

/// One life of a pool: `<pool>.<n>`. Once fenced it is dead for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    /// Whose life.
    pub pool: PoolId,
    /// Which one, from 1.
    pub number: u64,
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.pool, self.number)
    }
}

impl FromStr for SessionId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId::new("session id", text, "<pool id>.<number>");
        let (pool, number) = text.split_once('.').ok_or_else(invalid)?;
        let id = Self {
            pool: pool.parse().map_err(|_| invalid())?,
            number: number.parse().map_err(|_| invalid())?,
        };
        if id.to_string() == text { Ok(id) } else { Err(invalid()) }
    }
}

serde_by_text!(SessionId);

/// A pack: `<domain>/<pool>.<n>.<seq>`. Names are never reused, so a name means the same bytes for ever.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId {
    /// Whose bytes.
    pub domain: Domain,
    /// Who wrote it.
    pub session: SessionId,
    /// The writer's count, from 1.
    pub seq: u64,
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}.{}", self.domain, self.session, self.seq)
    }
}

impl FromStr for PackId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid =
            || InvalidId::new("pack id", text, "<domain>/<pool id>.<session number>.<sequence number>");
        let (domain, rest) = text.split_once('/').ok_or_else(invalid)?;
        let (session, seq) = rest.rsplit_once('.').ok_or_else(invalid)?;
        let id = Self {
            domain: domain.parse().map_err(|_| invalid())?,
            session: session.parse().map_err(|_| invalid())?,
            seq: seq.parse().map_err(|_| invalid())?,
        };
        if id.to_string() == text { Ok(id) } else { Err(invalid()) }
    }
}

serde_by_text!(PackId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_ids_are_refused_and_quoted() {
        let long = "a".repeat(4096);
        for hostile in
            ["", ".", "..", "../../x", "/etc", "a/b", "a\0b", "A", "-a", "a-", "a_b", "é", long.as_str()]
        {
            let error = hostile.parse::<VolumeId>().unwrap_err();
            assert!(error.text.chars().count() <= 200);
            assert!(error.to_string().contains("volume id"), "{error}");
        }
    }

    #[test]
    fn a_retry_of_a_request_names_the_same_volume() {
        let request: RequestId = "create-7".parse().unwrap();
        let id = VolumeId::for_request("vol", &request);
        assert_eq!(id, VolumeId::for_request("vol", &request));
        assert_eq!(id.as_str().len(), 4 + 32);
        assert_eq!(id.as_str().parse::<VolumeId>().unwrap(), id);
        assert_ne!(id, VolumeId::for_request("vol", &"create-8".parse().unwrap()));
    }

    #[test]
    fn composite_ids_have_one_spelling() {
        let pool = PoolId::random();
        let session = SessionId { pool, number: 3 };
        let pack = PackId { domain: Domain::default_domain(), session, seq: 17 };
        assert_eq!(session.to_string().parse::<SessionId>().unwrap(), session);
        assert_eq!(pack.to_string().parse::<PackId>().unwrap(), pack);
        for wrong in [format!("{pool}.03"), format!("{pool}"), format!("{pool}.+3"), "x.1".to_owned()] {
            assert!(wrong.parse::<SessionId>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn an_id_that_parses_is_a_single_safe_path_segment(text in "\\PC{0,80}") {
            if let Ok(id) = text.parse::<VolumeId>() {
                prop_assert!(!id.as_str().contains(['/', '.', '\0']) && !id.as_str().is_empty());
            }
        }

        #[test]
        fn hashes_round_trip_as_text(bytes in any::<[u8; 32]>()) {
            let id = VersionId(bytes);
            prop_assert_eq!(id.to_string().parse::<VersionId>().unwrap(), id);
        }
    }
}
