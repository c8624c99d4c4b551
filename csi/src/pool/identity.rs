//! What a pool knows about itself, in `pool.json`: its id for ever, and the one store it belongs to.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use types::{PoolId, StoreId};

use crate::error::Error;
use crate::layout::POOL_JSON;

/// The layout of a pool that this build makes and reads.
const FORMAT: u32 = 1;

/// The contents of `pool.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The layout's number.
    pub format: u32,
    /// The pool, for ever.
    pub pool: PoolId,
    /// The store that the pool's volumes are in; none before the first start with a store.
    pub store: Option<StoreId>,
}

impl Identity {
    /// Reads the identity of the pool at `root`, or gives it one.
    ///
    /// # Errors
    /// The pool cannot be written, or a newer build made it.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let path = root.join(POOL_JSON);
        if path.exists() {
            let identity: Self = read_json(&path)?;
            if identity.format > FORMAT {
                return Err(Error::PoolTooNew { found: identity.format, known: FORMAT });
            }
            return Ok(identity);
        }
        let identity = Self { format: FORMAT, pool: PoolId::random(), store: None };
        identity.write(root)?;
        Ok(identity)
    }

    /// Writes the identity so that it is there after a power cut.
    ///
    /// # Errors
    /// The pool cannot be written.
    pub fn write(&self, root: &Path) -> Result<(), Error> {
        write_json(&root.join(POOL_JSON), self)?;
        File::open(root)
            .and_then(|directory| directory.sync_all())
            .map_err(|source| Error::PoolPath { path: root.to_owned(), source })
    }
}

/// Reads a small JSON file.
///
/// # Errors
/// It cannot be read, or does not hold what it should.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::PoolPath { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Damaged { path: path.to_owned(), source })
}

/// Replaces a small JSON file as a whole.
///
/// # Errors
/// The directory cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let unfinished = path.with_extension("json.new");
    let io = |source| Error::PoolPath { path: unfinished.clone(), source };
    let bytes = serde_json::to_vec(value).expect("our structures have string keys");
    let mut file = File::create(&unfinished).map_err(io)?;
    file.write_all(&bytes).map_err(io)?;
    // Otherwise a power cut can leave the name with nothing behind it.
    file.sync_all().map_err(io)?;
    std::fs::rename(&unfinished, path).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_keeps_its_id() {
        let directory = tempfile::tempdir().unwrap();
        let first = Identity::open(directory.path()).unwrap();
        assert_eq!(Identity::open(directory.path()).unwrap(), first);
    }

    #[test]
    fn a_pool_of_a_newer_build_and_a_damaged_one_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(POOL_JSON);
        write_json(&path, &Identity { format: FORMAT + 1, pool: PoolId::random(), store: None }).unwrap();
        assert!(matches!(Identity::open(directory.path()).unwrap_err(), Error::PoolTooNew { .. }));
        std::fs::write(&path, "{\"form").unwrap();
        assert!(matches!(Identity::open(directory.path()).unwrap_err(), Error::Damaged { .. }));
    }
}
