//! The name of an object.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of an object, such as `vol/01hx…` or `pack/main/01hx….3.17`.
///
/// - It is one or more segments joined by `/`; none is empty, `.` or `..`.
/// - A segment is made of `A-Z a-z 0-9 . _ -` and does not begin with `.` (a directory store keeps its own files there).
/// - A segment has at most 200 bytes, the whole at most 512.
///
/// So a key is a safe relative path, needs no quoting in a URL, and sorts by its bytes in every store.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

// Sound because `Key` compares and hashes as its text does.
impl std::borrow::Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Key {
    /// The most bytes in a key.
    pub const MAX_BYTES: usize = 512;
    /// The most bytes in a segment: room for a suffix within the 255 of a file name.
    pub const MAX_SEGMENT_BYTES: usize = 200;

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Tells if some key begins with `prefix`.
    pub fn is_prefix(prefix: &str) -> bool {
        // Whatever a key's beginning lacks at its end, one more letter makes up for.
        prefix.is_empty() || check(prefix).is_ok() || check(&format!("{prefix}a")).is_ok()
    }

    /// Makes the key `self/segment`.
    pub fn join(&self, segment: &str) -> Result<Self, InvalidKey> {
        format!("{}/{segment}", self.0).parse()
    }
}

/// A text that is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no object key: {rule}")]
pub struct InvalidKey {
    /// The text, cut to a bounded length.
    pub text: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

fn check(text: &str) -> Result<(), &'static str> {
    if text.len() > Key::MAX_BYTES {
        return Err("longer than 512 bytes");
    }
    for segment in text.split('/') {
        if segment.is_empty() {
            return Err("a segment is empty");
        }
        if segment.len() > Key::MAX_SEGMENT_BYTES {
            return Err("a segment is longer than 200 bytes");
        }
        if segment.starts_with('.') {
            return Err("a segment begins with '.'");
        }
        if !segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            return Err("a segment has a character outside A-Z a-z 0-9 . _ -");
        }
    }
    Ok(())
}

impl FromStr for Key {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        match check(text) {
            Ok(()) => Ok(Self(text.to_owned())),
            Err(rule) => Err(InvalidKey { text: text.chars().take(80).collect(), rule }),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.0)
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_the_protocol_uses_are_keys() {
        for text in
            ["store", "gc", "vol/v-01hx", "pack/main/01J.3.17", "name/template/Node_20.1-x", "a/b/c/d"]
        {
            assert_eq!(text.parse::<Key>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_could_leave_a_directory_or_confuse_a_url_is_no_key() {
        let long = "a".repeat(Key::MAX_SEGMENT_BYTES + 1);
        let longer = vec!["a".repeat(100); 6].join("/");
        for text in [
            "", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", ".tmp/a", "a/.b", "a b", "a\0b",
            "a\\b", "ä", "a%2e", "a?b", "a+b", "a\n", &long, &longer,
        ] {
            assert!(text.parse::<Key>().is_err(), "{text:?} was taken for a key");
        }
    }

    #[test]
    fn a_prefix_is_what_some_key_begins_with() {
        for text in ["", "a", "a/", "a/b", "a/b.", &"a".repeat(200)] {
            assert!(Key::is_prefix(text), "{text:?}");
        }
        for text in ["/", "../", "..", ".", "a//", "a/.", "a\0", "a/\n", "%", &"a".repeat(201)] {
            assert!(!Key::is_prefix(text), "{text:?}");
        }
    }

    #[test]
    fn the_error_does_not_repeat_a_hostile_text_whole() {
        let error = "\n".repeat(4096).parse::<Key>().unwrap_err();
        assert!(error.to_string().len() < 300);
    }
}
