//! Paths inside a volume, as bytes: names on disk need not be UTF-8.

use std::fmt;

/// A path below a volume's root: no leading `/`, no empty, `.` or `..` segments, no NUL; each segment at most
/// 255 bytes, the whole at most 4,095. The root itself is the empty path.
///
/// This keeps nonsense out early. What keeps a client inside its volume is the kernel (`openat2` with
/// `RESOLVE_BENEATH`), because a symlink on disk can lead anywhere.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VolumePath(Vec<u8>);

/// A path that does not name anything inside a volume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} is not a path inside a volume: {reason}")]
pub struct InvalidPath {
    /// What was given, lossily as text, cut after 200 characters.
    pub path: String,
    /// Which rule it breaks.
    pub reason: &'static str,
}

/// `PATH_MAX` without the closing NUL.
const PATH_MAX: usize = 4095;
const NAME_MAX: usize = 255;

impl VolumePath {
    /// The volume's root.
    pub const ROOT: Self = Self(Vec::new());

    /// Checks `bytes` and takes them as a path. A single leading `/` and a trailing `/` are dropped: people write both.
    pub fn parse(bytes: impl AsRef<[u8]>) -> Result<Self, InvalidPath> {
        let given = bytes.as_ref();
        let invalid = |reason| {
            Err(InvalidPath { path: String::from_utf8_lossy(given).chars().take(200).collect(), reason })
        };
        if given.len() > PATH_MAX {
            return invalid("it is longer than 4095 bytes");
        }
        if given.contains(&0) {
            return invalid("it contains a NUL byte");
        }
        let trimmed = given.strip_prefix(b"/").unwrap_or(given);
        let trimmed = trimmed.strip_suffix(b"/").unwrap_or(trimmed);
        if trimmed.is_empty() || trimmed == b"." {
            return Ok(Self::ROOT);
        }
        for segment in trimmed.split(|byte| *byte == b'/') {
            match segment {
                b"" => return invalid("it has an empty segment"),
                b"." | b".." => return invalid("it has a '.' or '..' segment"),
                long if long.len() > NAME_MAX => return invalid("a segment is longer than 255 bytes"),
                _ => {}
            }
        }
        Ok(Self(trimmed.to_vec()))
    }

    /// Returns the path of `name` in this directory.
    pub fn join(&self, name: &[u8]) -> Result<Self, InvalidPath> {
        let mut joined = self.0.clone();
        if !joined.is_empty() {
            joined.push(b'/');
        }
        joined.extend_from_slice(name);
        Self::parse(joined)
    }

    /// Returns the bytes, without a leading `/`; empty for the root.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Tells if this is the volume's root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the segments from the root down.
    pub fn segments(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|segment| !segment.is_empty())
    }

    /// Splits into the directory and the last segment; nothing for the root.
    pub fn split_last(&self) -> Option<(Self, &[u8])> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (Self(self.0[..slash].to_vec()), &self.0[slash + 1..]),
            None => (Self::ROOT, &self.0[..]),
        })
    }
}

impl fmt::Display for VolumePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for VolumePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumePath({:?})", String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_that_lead_out_or_nowhere_are_refused() {
        let long_name = vec![b'a'; 256];
        let long_path = vec![b'a'; 4096];
        for bad in [&b"../x"[..], b"a/../b", b"a//b", b"./a", b"a/.", b"a\0b", b"..", &long_name, &long_path]
        {
            assert!(VolumePath::parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn the_root_has_several_spellings_and_no_segments() {
        for root in ["", "/", "."] {
            let path = VolumePath::parse(root).unwrap();
            assert!(path.is_root());
            assert_eq!(path.segments().count(), 0);
            assert!(path.split_last().is_none());
        }
    }

    #[test]
    fn a_path_splits_into_directory_and_name() {
        let path = VolumePath::parse("/a/b/c").unwrap();
        let (directory, name) = path.split_last().unwrap();
        assert_eq!((directory.as_bytes(), name), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(directory.join(name).unwrap(), path);
    }

    proptest! {
        #[test]
        fn any_accepted_path_stays_below_the_root(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(path) = VolumePath::parse(&bytes) {
                prop_assert!(path.segments().all(|s| s != b".." && s != b"." && !s.is_empty() && !s.contains(&0)));
                prop_assert!(!path.as_bytes().starts_with(b"/"));
                prop_assert_eq!(VolumePath::parse(path.as_bytes()).unwrap(), path);
            }
        }
    }
}
