//! What a person points at: a volume, a version of it, a file in it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::str::FromStr;

use orchestrator::VolumeRef;
use types::{InvalidId, InvalidPath, VolumePath};

/// `VOL` or `VOL@VERSION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionTarget {
    /// The volume.
    pub volume: VolumeRef,
    /// An entry or version id, or its first digits; absent: the head.
    pub version: Option<String>,
}

impl FromStr for VersionTarget {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        Ok(match text.split_once('@') {
            Some((volume, version)) => {
                Self { volume: volume.parse()?, version: Some(digits(version)?.to_owned()) }
            }
            None => Self { volume: text.parse()?, version: None },
        })
    }
}

/// Checks the digits of an entry or version id, or the first of them.
///
/// # Errors
/// It is not 4 to 64 lower-case hex digits.
pub fn digits(text: &str) -> Result<&str, InvalidTarget> {
    let hex = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if hex && (4..=64).contains(&text.len()) {
        Ok(text)
    } else {
        Err(InvalidTarget::Version { text: clip(text) })
    }
}

/// `VOL:PATH` or `VOL@VERSION:PATH`; without a path it is the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTarget {
    /// The volume.
    pub volume: VolumeRef,
    /// An entry or version id, or its first digits; absent: what is there now.
    pub version: Option<String>,
    /// Below its root.
    pub path: VolumePath,
}

impl fmt::Display for FileTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{}@{version}:{}", self.volume, self.path),
            None => write!(f, "{}:{}", self.volume, self.path),
        }
    }
}

impl FromStr for FileTarget {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        Self::parse(text.as_bytes())
    }
}

impl FileTarget {
    fn parse(bytes: &[u8]) -> Result<Self, InvalidTarget> {
        let colon = bytes.iter().position(|byte| *byte == b':');
        let (volume, path) = match colon {
            Some(at) => (&bytes[..at], &bytes[at + 1..]),
            None => (bytes, &b""[..]),
        };
        let VersionTarget { volume, version } = String::from_utf8_lossy(volume).parse()?;
        Ok(Self { volume, version, path: VolumePath::parse(path)? })
    }
}

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    /// On this machine.
    Local(OsString),
    /// In a volume.
    Volume {
        /// Which file or directory.
        target: FileTarget,
        /// It was written with `/.` or `/` at its end: what is in it, or something to put into.
        contents: bool,
    },
}

impl Side {
    /// Reads an argument of `cp`: it names a volume when a colon comes before any slash.
    ///
    /// # Errors
    /// What stands before the colon is no volume, or behind it no path inside one.
    pub fn parse(argument: &OsStr) -> Result<Self, InvalidTarget> {
        let bytes = argument.as_bytes();
        let first = bytes.iter().position(|byte| matches!(byte, b':' | b'/'));
        if first.is_none_or(|at| bytes[at] == b'/') {
            return Ok(Self::Local(OsString::from_vec(bytes.to_vec())));
        }
        let contents = bytes.ends_with(b"/")
            || bytes.ends_with(b"/.")
            || bytes.ends_with(b":.")
            || bytes.ends_with(b":");
        let bytes = bytes.strip_suffix(b"/.").unwrap_or(bytes);
        Ok(Self::Volume { target: FileTarget::parse(bytes)?, contents })
    }
}

/// Words that point at nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTarget {
    /// Neither an id nor a name.
    #[error(transparent)]
    Volume(#[from] InvalidId),
    /// Not the digits of an entry or version.
    #[error("{text:?} is no entry or version: write 4 to 64 of its hex digits, as `sailctl log` shows them")]
    Version {
        /// What was given, cut.
        text: String,
    },
    /// Leads out of the volume, or nowhere.
    #[error(transparent)]
    Path(#[from] InvalidPath),
}

fn clip(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_a_volume_a_colon_and_a_path() {
        let target: FileTarget = "vol-1:/a/b:c".parse().unwrap();
        assert_eq!((target.volume.as_str(), target.path.as_bytes()), ("vol-1", &b"a/b:c"[..]));
        assert!("vol-1".parse::<FileTarget>().unwrap().path.is_root());
    }

    #[test]
    fn hostile_targets_are_refused_and_cut_short() {
        let long = "a".repeat(4096);
        for text in ["", "../../x", "/etc", "a\0b", "é", long.as_str()] {
            let error = text.parse::<VolumeRef>().unwrap_err();
            assert!(error.to_string().len() < 500, "{error}");
        }
        let long = format!("v:{long}");
        for text in ["v:../x", "v:a/../../b", "v:a\0b", "v:a//b", long.as_str()] {
            assert!(text.parse::<FileTarget>().is_err(), "{text:?}");
        }
        let target: FileTarget = "app@12ab:src/x".parse().unwrap();
        assert_eq!((target.version.as_deref(), target.path.as_bytes()), (Some("12ab"), &b"src/x"[..]));
        for text in ["v@", "v@xyz", "v@..", "v@12", "v@ABCD"] {
            assert!(text.parse::<VersionTarget>().is_err(), "{text:?}");
            assert!(format!("{text}:path").parse::<FileTarget>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_side_is_a_volume_when_the_colon_comes_before_any_slash() {
        for (text, volume) in
            [("v:a", true), ("./v:a", false), ("/tmp/x:y", false), ("plain", false), ("v:", true)]
        {
            let side = Side::parse(OsStr::new(text)).unwrap();
            assert_eq!(matches!(side, Side::Volume { .. }), volume, "{text}");
        }
        let Side::Volume { target, contents } = Side::parse(OsStr::new("v:a/.")).unwrap() else { panic!() };
        assert_eq!((target.path.as_bytes(), contents), (&b"a"[..], true));
    }
}
