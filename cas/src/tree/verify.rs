//! Proving that a version is whole.

use std::sync::Arc;

use types::PackId;

use super::cache::Cache;
use super::error::TreeError;
use super::fetch::Fetch;
use super::location::VersionRef;
use super::manifest::Manifest;
use super::moved::MAX_HOPS;
use super::pack::{Footer, PACK_MAGIC};
use super::read::Reader;
use super::restore;
use super::stored::Uses;
use crate::keys;
use crate::objects::ObjectError;

/// Memory for the nodes of one verification.
const COLD_BYTES: usize = 32 << 20;

/// What a verification found.
#[derive(Debug, Default)]
pub struct VerifyReport {
    /// Files whose every byte was read and proved.
    pub files: u64,
    /// Directories that were read and proved.
    pub directories: u64,
    /// Bytes of files that were proved.
    pub bytes: u64,
    /// Packs that were looked at.
    pub packs: u64,
    /// What is damaged or missing, each with its place, at most [`VerifyReport::MOST_DAMAGES`].
    pub damages: Vec<TreeError>,
}

impl VerifyReport {
    /// How many damages are told; more are only counted as one line that says so.
    pub const MOST_DAMAGES: usize = 1_000;

    /// Tells if the version is whole.
    pub fn is_whole(&self) -> bool {
        self.damages.is_empty()
    }
}

impl Reader {
    /// Reads a version whole and proves every byte of it. Damage is collected, not an error: an error means that it
    /// could not be told (the store was away).
    pub async fn verify(&self, tree: &VersionRef) -> Result<VerifyReport, TreeError> {
        let mut report = VerifyReport::default();
        let manifest = match self.fetch.manifest(tree).await {
            Ok(manifest) => manifest,
            Err(error) if error.is_damage() => {
                report.damages.push(error);
                return Ok(report);
            }
            Err(error) => return Err(error),
        };
        for needed in &manifest.packs {
            report.packs += 1;
            match self.footers(&needed.pack).await {
                Ok(()) => {}
                Err(error) if error.is_damage() => report.damages.push(error),
                Err(error) => return Err(error),
            }
        }
        // Nodes from the store, not from memory: what is proved is what others would read.
        let cold = Self { fetch: Fetch::new(Arc::clone(&self.fetch.objects), Cache::new(COLD_BYTES)) };
        let (read, damages) = restore::check(&cold, tree, VerifyReport::MOST_DAMAGES).await?;
        report.files = read.files;
        report.directories = read.directories;
        report.bytes = read.bytes;
        report.damages.extend(damages);
        if report.is_whole() {
            self.recount(&manifest, &mut report).await?;
        }
        report.damages.truncate(VerifyReport::MOST_DAMAGES);
        Ok(report)
    }

    /// Compares a manifest with what its tree uses, counted anew.
    async fn recount(&self, manifest: &Manifest, report: &mut VerifyReport) -> Result<(), TreeError> {
        let (totals, uses) = self.fetch.usage(manifest).await?;
        let version = manifest.version;
        if totals != manifest.totals {
            let reason = format!("it counts {:?}, and the tree has {totals:?}", manifest.totals);
            report.damages.push(TreeError::WrongManifest { version, reason });
        }
        let told: Uses =
            manifest.packs.iter().map(|needed| (Arc::clone(&needed.pack), needed.used)).collect();
        for pack in told.keys().chain(uses.keys().filter(|pack| !told.contains_key(*pack))) {
            if told.get(pack) != uses.get(pack) {
                let reason =
                    format!("it says {:?} of pack {pack}, and it is {:?}", told.get(pack), uses.get(pack));
                report.damages.push(TreeError::WrongManifest { version, reason });
            }
        }
        Ok(())
    }

    /// Proves the beginning and the end of a pack, or of those that its frames were moved to.
    async fn footers(&self, pack: &PackId) -> Result<(), TreeError> {
        let mut todo = vec![(pack.clone(), 0)];
        while let Some((pack, hops)) = todo.pop() {
            match self.footer(&pack).await {
                Err(TreeError::MissingPack { .. }) if hops < MAX_HOPS => {
                    let Some(moved) = self.fetch.moved(&pack).await? else {
                        return Err(TreeError::MissingPack { pack });
                    };
                    todo.extend(moved.to.keys().map(|to| (to.clone(), hops + 1)));
                }
                footer => drop(footer?),
            }
        }
        Ok(())
    }

    /// Reads what frames a pack has, and proves its beginning and its end. Its frames are proved where they are used.
    pub async fn footer(&self, pack: &PackId) -> Result<Footer, TreeError> {
        let damaged = |reason: String| TreeError::DamagedPack { pack: pack.clone(), reason };
        let size = match self.fetch.objects.head(&keys::pack(pack)).await {
            Ok(meta) => meta.size,
            Err(ObjectError::NotFound { .. }) => return Err(TreeError::MissingPack { pack: pack.clone() }),
            Err(error) => return Err(error.into()),
        };
        let head = self.fetch.range(pack, 0..size.min(PACK_MAGIC.len() as u64)).await?;
        if head[..] != PACK_MAGIC[..] {
            return Err(damaged("it does not begin like a pack".to_owned()));
        }
        let footer = Fetch::footer(size, |range| self.fetch.range(pack, range)).await?;
        footer.map_err(|error| damaged(error.to_string()))
    }

    /// Reads a pack whole and proves every byte of it, also those that no version names: what a scrub does.
    pub async fn check_pack(&self, pack: &PackId) -> Result<Footer, TreeError> {
        let footer = self.footer(pack).await?;
        let bytes = self.fetch.range(pack, 0..footer.offset).await?;
        if blake3::hash(&bytes).as_bytes() != footer.body.as_bytes() {
            let reason = "its bytes are not those that its footer was made for".to_owned();
            return Err(TreeError::DamagedPack { pack: pack.clone(), reason });
        }
        Ok(footer)
    }
}
