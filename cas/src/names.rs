//! Names: pointers to ids, moved by If-Match. An id is never used twice, so whoever resolved a name keeps what it got.
//!
//! A removed name stays as an object that points nowhere, because a store's delete has no condition: a removal that was
//! slow could otherwise take away what somebody made after it.

use std::fmt;

use serde::{Deserialize, Serialize};
use types::{Change, Nonce, ResourceName, Rev, VolumeId};

use crate::codec;
use crate::error::Error;
use crate::keys;
use crate::objects::{Key, Object, list_all};
use crate::store::Store;
use crate::update::{Next, Versioned, create, swap};

/// What a name is of. Each kind has its own names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameKind {
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
    /// A template.
    Template,
    /// A bundle.
    Bundle,
}

impl NameKind {
    /// Returns the word used in keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Volume => "volume",
            Self::Snapshot => "snapshot",
            Self::Template => "template",
            Self::Bundle => "bundle",
        }
    }

    /// Reads the word used in keys.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Volume, Self::Snapshot, Self::Template, Self::Bundle]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

impl fmt::Display for NameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The object `name/<kind>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pointer {
    format: u32,
    rev: Rev,
    nonce: Nonce,
    kind: NameKind,
    name: ResourceName,
    /// `None`: the name was removed.
    id: Option<VolumeId>,
}

impl Versioned for Pointer {
    fn stamp(&mut self, nonce: Nonce) {
        self.rev = self.rev.next();
        self.nonce = nonce;
    }

    fn nonce(&self) -> Nonce {
        self.nonce
    }

    fn check(&self, key: &Key) -> Result<(), Error> {
        if keys::name(self.kind, &self.name) == *key {
            Ok(())
        } else {
            Err(Error::corrupt(key, format!("it is the {} {}", self.kind, self.name)))
        }
    }
}

/// What a name must point to for its pointer to be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected<'a> {
    /// Nothing: the name is free.
    Free,
    /// This id.
    Id(&'a VolumeId),
    /// Anything or nothing.
    Any,
}

/// Points a name to an id. `Already` when it does.
pub async fn point(
    store: &Store,
    kind: NameKind,
    name: &ResourceName,
    id: &VolumeId,
    expected: Expected<'_>,
) -> Result<Change, Error> {
    let key = keys::name(kind, name);
    // A name that nobody has used yet, as its caller believes, takes one write and no read.
    if expected == Expected::Free && put_new(store, kind, name, id).await? {
        return Ok(Change::Made(()));
    }
    loop {
        let moved = swap::<Pointer, _>(store, None, &key, |current| {
            let now = current.value.id.as_ref();
            if now == Some(id) {
                return Ok(Next::Already);
            }
            let fits = match (&expected, now) {
                (Expected::Any, _) | (Expected::Free, None) => true,
                (Expected::Id(wanted), Some(now)) => *wanted == now,
                (Expected::Free, Some(_)) | (Expected::Id(_), None) => false,
            };
            match now {
                _ if fits => Ok(Next::Write(Pointer { id: Some(id.clone()), ..current.value.clone() })),
                Some(now) => Err(Error::NameTaken { name: name.clone(), current: now.clone() }),
                None => Err(Error::NoName { kind: kind.as_str(), name: name.clone() }),
            }
        });
        match moved.await? {
            Some(Change::Made(_)) => return Ok(Change::Made(())),
            Some(Change::Already(_)) => return Ok(Change::Already(())),
            None if matches!(expected, Expected::Id(_)) => {
                return Err(Error::NoName { kind: kind.as_str(), name: name.clone() });
            }
            None => {}
        }
        // Somebody else's pointer appeared meanwhile: look at it. It never goes away, so this ends.
        if put_new(store, kind, name, id).await? {
            return Ok(Change::Made(()));
        }
    }
}

/// Puts the pointer of a name that has none. False where it has one.
async fn put_new(store: &Store, kind: NameKind, name: &ResourceName, id: &VolumeId) -> Result<bool, Error> {
    let pointer = Pointer {
        format: codec::FORMAT,
        rev: Rev(1),
        nonce: Nonce::random(),
        kind,
        name: name.clone(),
        id: Some(id.clone()),
    };
    Ok(create(store, &keys::name(kind, name), pointer).await?.is_ok())
}

/// Returns what a name points to.
pub async fn resolve(store: &Store, kind: NameKind, name: &ResourceName) -> Result<Option<VolumeId>, Error> {
    let key = keys::name(kind, name);
    match store.read::<Pointer>(&key).await? {
        None => Ok(None),
        Some(pointer) => {
            pointer.value.check(&key)?;
            Ok(pointer.value.id)
        }
    }
}

/// Lists the names of one kind and what they point to: complete, or an error.
pub async fn list(store: &Store, kind: NameKind) -> Result<Vec<(ResourceName, VolumeId)>, Error> {
    let mut names = Vec::new();
    for meta in list_all(&**store.objects(), &keys::names(kind)).await? {
        if let Some(pointer) = store.read::<Pointer>(&meta.key).await? {
            pointer.value.check(&meta.key)?;
            names.extend(pointer.value.id.map(|id| (pointer.value.name, id)));
        }
    }
    Ok(names)
}

/// Proves the bytes of a name.
pub(crate) fn prove(object: &Object) -> Result<(), Error> {
    codec::decode::<Pointer>(object)?.check(&object.meta.key)
}

/// Removes a name if it points to `id`. `Already` when it points nowhere.
pub async fn remove(
    store: &Store,
    kind: NameKind,
    name: &ResourceName,
    id: &VolumeId,
) -> Result<Change, Error> {
    let key = keys::name(kind, name);
    let removed = swap::<Pointer, _>(store, None, &key, |current| match &current.value.id {
        None => Ok(Next::Already),
        Some(now) if now == id => Ok(Next::Write(Pointer { id: None, ..current.value.clone() })),
        Some(now) => Err(Error::NameTaken { name: name.clone(), current: now.clone() }),
    });
    Ok(match removed.await? {
        Some(Change::Made(_)) => Change::Made(()),
        Some(Change::Already(_)) | None => Change::Already(()),
    })
}
