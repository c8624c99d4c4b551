//! What a store holds, told by its packs alone: every pack lists its frames, and every version has a manifest in one of them.
//! No record, session or name is read, not even the store's own object; `moved/` where it is there.
//!
//! From what is found a version can be read, restored ([`Reader::rescue`]), and learned into a dedup index.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use types::{PackId, Timestamp, VersionId};

use super::error::TreeError;
use super::fetch::Fetch;
use super::frame::FrameKind;
use super::location::{Location, VersionRef};
use super::manifest::Manifest;
use super::pack::{Footer, PackedFrame};
use super::read::Reader;
use super::stored::Totals;
use crate::keys;
use crate::objects::{Meta, list_all};

/// How many packs are looked at at once.
const READ_AHEAD: usize = 8;

/// A version that was found by its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedVersion {
    /// How it is read.
    pub tree: VersionRef,
    /// What is in it.
    pub totals: Totals,
    /// When the pack of its manifest was written, by the store's clock.
    pub written: Timestamp,
    /// How many packs it needs beside that one.
    pub packs: u64,
    /// Those that are neither there nor moved.
    pub missing: Vec<PackId>,
}

/// What packs hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reindexed {
    /// Packs that were looked at.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames with contents of files.
    pub data_frames: u64,
    /// Frames with directories and maps.
    pub tree_frames: u64,
    /// Packs without a footer that could be read: their frames were listed from their headers.
    pub without_footer: u64,
    /// What could not be read: the object, and why.
    pub damages: Vec<(String, String)>,
    /// The versions, oldest first. One that was put twice is told once, where most of it is there.
    pub versions: Vec<IndexedVersion>,
}

/// A pack as it was listed.
struct Listed {
    pack: Arc<PackId>,
    written: Timestamp,
    frames: Vec<PackedFrame>,
    footer: bool,
}

impl Reader {
    /// Lists every frame and finds every version, from packs alone. `progress` is called after each pack.
    ///
    /// # Errors
    /// The store could not be read. What is damaged in it is told, and does not end this.
    pub async fn reindex(&self, mut progress: impl FnMut(&Reindexed)) -> Result<Reindexed, TreeError> {
        let mut done = Reindexed::default();
        let mut there: BTreeMap<PackId, Meta> = BTreeMap::new();
        for meta in list_all(&*self.fetch.objects, keys::PACKS).await? {
            match meta.key.as_str().strip_prefix(keys::PACKS).and_then(|name| name.parse().ok()) {
                Some(pack) => drop(there.insert(pack, meta)),
                None => done.damages.push((meta.key.to_string(), "it is no pack's name".to_owned())),
            }
        }
        let moved = list_all(&*self.fetch.objects, keys::MOVED).await?;
        let moved = moved.iter().filter_map(|meta| meta.key.as_str().strip_prefix(keys::MOVED)?.parse().ok());
        let known: std::collections::BTreeSet<PackId> = there.keys().cloned().chain(moved).collect();

        let mut found: BTreeMap<VersionId, IndexedVersion> = BTreeMap::new();
        let mut listing = futures::stream::iter(there)
            .map(|(pack, meta)| async move { Ok::<_, TreeError>((self.frames_of(pack, &meta).await, meta)) })
            .buffer_unordered(READ_AHEAD);
        while let Some((listed, meta)) = listing.try_next().await? {
            done.packs += 1;
            done.bytes += meta.size;
            let listed = match listed {
                Ok(listed) => listed,
                Err(error) if error.is_damage() => {
                    done.damages.push((meta.key.to_string(), error.to_string()));
                    continue;
                }
                Err(error) => return Err(error),
            };
            done.without_footer += u64::from(!listed.footer);
            for frame in &listed.frames {
                match frame.header.kind {
                    FrameKind::Data => done.data_frames += 1,
                    FrameKind::Tree => done.tree_frames += 1,
                    FrameKind::Manifest => match self.version_at(&listed, frame).await {
                        Ok(mut version) => {
                            version.missing.retain(|pack| !known.contains(pack));
                            keep_better(&mut found, version);
                        }
                        Err(error) if error.is_damage() => {
                            done.damages.push((meta.key.to_string(), error.to_string()));
                        }
                        Err(error) => return Err(error),
                    },
                }
            }
            progress(&done);
        }
        done.versions = found.into_values().collect();
        done.versions.sort_by_key(|version| (version.written, version.tree.version));
        Ok(done)
    }

    async fn frames_of(&self, pack: PackId, meta: &Meta) -> Result<Listed, TreeError> {
        let pack = Arc::new(pack);
        let footer = Fetch::footer(meta.size, |range| self.fetch.direct(&pack, range)).await?;
        let (frames, has_footer) = match footer {
            Ok(footer) => (footer.frames, true),
            // It was cut or damaged at its end: then every header has to be looked for.
            Err(_) => (Footer::reindex(&self.fetch.direct(&pack, 0..meta.size).await?), false),
        };
        Ok(Listed { pack, written: meta.modified, frames, footer: has_footer })
    }

    /// Reads the manifest in a frame. What it needs is told as missing; the caller knows what is there.
    async fn version_at(&self, listed: &Listed, frame: &PackedFrame) -> Result<IndexedVersion, TreeError> {
        let manifest = Location {
            pack: Arc::clone(&listed.pack),
            offset: frame.offset,
            stored_len: frame.header.stored_len(),
            raw_len: frame.header.raw_len,
        };
        let raw = self.fetch.frame(&manifest, FrameKind::Manifest).await?;
        let decoded = Manifest::decode(&raw)
            .map_err(|source| TreeError::Damaged { location: manifest.clone(), source })?;
        let missing: Vec<PackId> = decoded
            .packs
            .iter()
            .map(|needed| PackId::clone(&needed.pack))
            .filter(|p| *p != *listed.pack)
            .collect();
        Ok(IndexedVersion {
            tree: VersionRef { version: decoded.version, manifest },
            totals: decoded.totals,
            written: listed.written,
            packs: missing.len() as u64,
            missing,
        })
    }
}

/// The same version may have been put more than once: most of it is wanted, then the older one.
fn keep_better(found: &mut BTreeMap<VersionId, IndexedVersion>, version: IndexedVersion) {
    let rank =
        |version: &IndexedVersion| (version.missing.len(), version.written, version.tree.manifest.clone());
    match found.get(&version.tree.version) {
        Some(other) if rank(other) <= rank(&version) => {}
        Some(_) | None => drop(found.insert(version.tree.version, version)),
    }
}
