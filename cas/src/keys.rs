//! The names of all objects in a store. See FORMAT.md.

use types::{PackId, ResourceName, SessionId, VolumeId};

use crate::names::NameKind;
use crate::objects::Key;

/// Below it, one record a volume.
pub const VOLUMES: &str = "vol/";
/// Below it, one object a session.
pub const SESSIONS: &str = "session/";
/// Below it, the packs, by domain.
pub const PACKS: &str = "pack/";

fn key(text: &str) -> Key {
    text.parse().expect("ids hold only characters that a key may have, and are short")
}

pub(crate) fn store() -> Key {
    key("store")
}

pub(crate) fn gc() -> Key {
    key("gc")
}

/// The key of a volume's record.
pub fn volume(id: &VolumeId) -> Key {
    key(&format!("{VOLUMES}{id}"))
}

/// The key of a session.
pub fn session(id: &SessionId) -> Key {
    key(&format!("{SESSIONS}{id}"))
}

/// The key of a pack.
pub fn pack(id: &PackId) -> Key {
    key(&format!("{PACKS}{id}"))
}

/// The prefix of the names of one kind.
pub(crate) fn names(kind: NameKind) -> String {
    format!("name/{}/", kind.as_str())
}

pub(crate) fn name(kind: NameKind, name: &ResourceName) -> Key {
    key(&format!("{}{name}", names(kind)))
}
