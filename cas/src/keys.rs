//! The names of all objects in a store. See FORMAT.md.

use types::{Hash, PackId, ResourceName, SessionId, VolumeId};

use crate::names::NameKind;
use crate::objects::Key;

/// Below it, one record a volume.
pub const VOLUMES: &str = "vol/";
/// Below it, one object a session.
pub const SESSIONS: &str = "session/";
/// Below it, the packs, by domain.
pub const PACKS: &str = "pack/";
/// Below it, the pages of older entries, by volume.
pub const PAGES: &str = "page/";
/// Below it, where the frames of evacuated packs went, by domain.
pub const MOVED: &str = "moved/";
/// Below it, what a probe of the store left behind.
pub(crate) const PROBES: &str = "probe";

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

/// The key of a page of a volume's older entries.
pub fn page(id: &VolumeId, page: &Hash) -> Key {
    key(&format!("{PAGES}{id}/{page}"))
}

/// Where the pages of a volume are: not an object, but what errors name.
pub(crate) fn pages_of(id: &VolumeId) -> Key {
    key(&format!("{PAGES}{id}"))
}

/// The key of a session.
pub fn session(id: &SessionId) -> Key {
    key(&format!("{SESSIONS}{id}"))
}

/// The key of a pack.
pub fn pack(id: &PackId) -> Key {
    key(&format!("{PACKS}{id}"))
}

/// The key of what says where a pack's frames went.
pub fn moved(id: &PackId) -> Key {
    key(&format!("{MOVED}{id}"))
}

/// The prefix of the names of one kind.
pub(crate) fn names(kind: NameKind) -> String {
    format!("name/{}/", kind.as_str())
}

pub(crate) fn name(kind: NameKind, name: &ResourceName) -> Key {
    key(&format!("{}{name}", names(kind)))
}
