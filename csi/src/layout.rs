//! The names inside a pool. Everything that knows where something lies is here.
//!
//! ```text
//! pool.json                    the pool's id and the store it belongs to
//! lock                         held while a daemon works on the pool
//! volumes/<id>/about           symlink whose target is JSON: birth, quota group and limit of this copy
//! volumes/<id>/data            the live subvolume
//! volumes/<id>/base            symlink to the read-only snapshot that live grew from, here or with its source
//! volumes/<id>/snap/<version>  read-only snapshots; `<version>.<ulid>` where one was taken twice; `.<ulid>` while it
//!                              is not known yet which version it holds
//! volumes/<id>/old-<ulid>      a live tree that a restore replaced
//! templates/<id>@<version>/data   read-only
//! staging/<ulid>               half-made or half-deleted; swept at start
//! state.db
//! ```

use types::{VersionId, VolumeId};
use ulid::Ulid;

/// The directory of volumes.
pub const VOLUMES: &str = "volumes";
/// The directory of templates.
pub const TEMPLATES: &str = "templates";
/// Where things are made before they have a name.
pub const STAGING: &str = "staging";
/// The live subvolume of a volume, the read-only one of a template.
pub const DATA: &str = "data";
/// The symlink to the snapshot that live grew from.
pub const BASE: &str = "base";
/// The directory of a volume's snapshots.
pub const SNAP: &str = "snap";
/// What a copy knows about itself.
pub const ABOUT: &str = "about";
/// What a pool knows about itself.
pub const POOL_JSON: &str = "pool.json";
/// Locked by the daemon that works here.
pub const LOCK: &str = "lock";
/// What the node remembers.
pub const STATE_DB: &str = "state.db";
/// How the live trees begin that a restore replaced.
pub const OLD_PREFIX: &str = "old-";

/// Makes a name that nothing else in the pool has.
pub fn fresh() -> String {
    Ulid::generate().to_string().to_ascii_lowercase()
}

/// The path of a volume's directory from the pool's root.
pub fn volume(id: &VolumeId) -> String {
    format!("{VOLUMES}/{id}")
}

/// The path of a volume's live subvolume from the pool's root.
pub fn data(id: &VolumeId) -> String {
    format!("{VOLUMES}/{id}/{DATA}")
}

/// A read-only snapshot in the pool, by its path from the pool's root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(String);

impl Place {
    /// The place of a snapshot `name` of a volume.
    pub fn snapshot(id: &VolumeId, name: &str) -> Self {
        Self(format!("{VOLUMES}/{id}/{SNAP}/{name}"))
    }

    /// The place of a template.
    pub fn template(id: &VolumeId, version: &VersionId) -> Self {
        Self(format!("{TEMPLATES}/{id}@{version}/{DATA}"))
    }

    /// Reads the target of a `base` symlink. One that we did not write is nothing.
    pub fn from_link(target: &str) -> Option<Self> {
        let place = Self(target.strip_prefix("../../")?.to_owned());
        place.version().map(|_| place)
    }

    /// What a `base` symlink says to lead here.
    pub fn link(&self) -> String {
        format!("../../{}", self.0)
    }

    /// The path from the pool's root.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// The directory and the name in it.
    pub fn split(&self) -> (&str, &str) {
        self.0.rsplit_once('/').expect("every place lies in a directory")
    }

    /// The version that the snapshot holds, which is part of its name.
    pub fn version(&self) -> Option<VersionId> {
        let mut segments = self.0.split('/');
        match (segments.next()?, segments.next()?, segments.next()?, segments.next()) {
            (VOLUMES, id, SNAP, Some(name)) => {
                id.parse::<VolumeId>().ok()?;
                version_of_snapshot(name)
            }
            (TEMPLATES, name, DATA, None) => template_name(name).map(|(_, version)| version),
            _ => None,
        }
    }

    /// The volume whose snapshot this is; nothing for a template.
    pub fn owner(&self) -> Option<VolumeId> {
        self.0.strip_prefix(VOLUMES)?.split('/').nth(1)?.parse().ok()
    }

    /// Whether it is that of a template.
    pub fn is_template(&self) -> bool {
        self.0.starts_with(TEMPLATES)
    }

    /// A template as `<volume id>@<version>`.
    pub fn template_text(&self) -> String {
        self.0.split('/').nth(1).unwrap_or_default().to_owned()
    }
}

/// The version in the name of a snapshot.
pub fn version_of_snapshot(name: &str) -> Option<VersionId> {
    name.split('.').next()?.parse().ok()
}

/// The template and version in the name of a template's directory.
pub fn template_name(name: &str) -> Option<(VolumeId, VersionId)> {
    let (id, version) = name.split_once('@')?;
    Some((id.parse().ok()?, version.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_back_from_its_link() {
        let (id, version): (VolumeId, _) = ("vol-1".parse().unwrap(), VersionId([7; 32]));
        for place in [
            Place::snapshot(&id, &version.to_string()),
            Place::snapshot(&id, &format!("{version}.{}", fresh())),
            Place::template(&id, &version),
        ] {
            assert_eq!(Place::from_link(&place.link()), Some(place.clone()));
            assert_eq!(place.version(), Some(version));
        }
        assert_eq!(Place::snapshot(&id, &version.to_string()).owner(), Some(id.clone()));
        assert_eq!(Place::template(&id, &version).owner(), None);
    }

    #[test]
    fn a_link_that_leads_elsewhere_is_not_believed() {
        for target in [
            "/etc",
            "../../../etc/passwd",
            "../../volumes/../x/snap/y",
            "../../volumes/v/snap/.x",
            "snap/x",
            "",
        ] {
            assert_eq!(Place::from_link(target), None, "{target}");
        }
    }
}
