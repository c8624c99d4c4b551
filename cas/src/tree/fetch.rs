//! Reading frames, nodes and manifests from packs, through the cache, each proved before it is used.

use std::sync::Arc;

use bytes::Bytes;
use types::{PackId, VersionId};

use super::cache::Cache;
use super::codec::Malformed;
use super::error::TreeError;
use super::frame::{Decompressor, FrameKind};
use super::location::{Extent, Location, VersionRef};
use super::manifest::Manifest;
use super::stored::StoredNode;
use crate::keys;
use crate::objects::{ObjectError, Objects};

/// Reads from packs.
#[derive(Debug, Clone)]
pub(crate) struct Fetch {
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) cache: Arc<Cache>,
}

impl Fetch {
    /// Reads bytes of a pack. One that is gone or too short is damage, and named.
    pub(crate) async fn range(&self, pack: &PackId, range: std::ops::Range<u64>) -> Result<Bytes, TreeError> {
        match self.objects.get_range(&keys::pack(pack), range.clone()).await {
            Ok(bytes) => Ok(bytes),
            Err(ObjectError::NotFound { .. }) => Err(TreeError::MissingPack { pack: pack.clone() }),
            Err(ObjectError::Range { size, .. }) => Err(TreeError::DamagedPack {
                pack: pack.clone(),
                reason: format!("bytes {}..{} are not in it (it has {size:?})", range.start, range.end),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a frame and proves its hash. `kind` is what must be in it.
    pub(crate) async fn frame(&self, location: &Location, kind: FrameKind) -> Result<Bytes, TreeError> {
        if let Some(raw) = self.cache.frame(location) {
            return Ok(raw);
        }
        let stored = self.range(&location.pack, location.range()).await?;
        let raw = open(location, &stored, kind)?;
        self.cache.keep_frame(location, &raw);
        Ok(raw)
    }

    /// Reads the bytes of an extent.
    pub(crate) async fn extent(&self, extent: &Extent) -> Result<Bytes, TreeError> {
        let start = extent.offset as usize;
        if let [only] = extent.frames.as_slice() {
            let raw = self.frame(only, FrameKind::Tree).await?;
            let end = usize::try_from(extent.len).ok().and_then(|len| start.checked_add(len));
            return match end {
                Some(end) if end <= raw.len() => Ok(raw.slice(start..end)),
                _ => Err(damaged(only, "something in it goes past its end")),
            };
        }
        let mut bytes = Vec::new();
        for frame in &extent.frames {
            bytes.extend_from_slice(&self.frame(frame, FrameKind::Tree).await?);
        }
        let Some(bytes) = usize::try_from(extent.len)
            .ok()
            .and_then(|len| Some(bytes.get(start..start.checked_add(len)?)?.to_vec()))
        else {
            return Err(damaged(&extent.frames[0], "something in it goes past its end"));
        };
        Ok(Bytes::from(bytes))
    }

    /// Reads a directory node and proves that it is the one with this id.
    pub(crate) async fn node(&self, extent: &Extent, id: VersionId) -> Result<Arc<StoredNode>, TreeError> {
        let node = match self.cache.node(extent) {
            Some(node) => node,
            None => {
                let bytes = self.extent(extent).await?;
                let own = if let [only] = extent.frames.as_slice() { Some(only) } else { None };
                let node = StoredNode::decode(&bytes, own)
                    .map_err(|source| TreeError::Damaged { location: extent.frames[0].clone(), source })?;
                let node = Arc::new(node);
                self.cache.keep_node(extent, &node);
                node
            }
        };
        if node.id == id {
            Ok(node)
        } else {
            Err(TreeError::WrongTree { location: extent.frames[0].clone(), expected: id, found: node.id })
        }
    }

    /// Reads a version's manifest and proves that it is this version's.
    pub(crate) async fn manifest(&self, tree: &VersionRef) -> Result<Arc<Manifest>, TreeError> {
        let manifest = match self.cache.manifest(&tree.manifest) {
            Some(manifest) => manifest,
            None => {
                let stored = self.range(&tree.manifest.pack, tree.manifest.range()).await?;
                let raw = open(&tree.manifest, &stored, FrameKind::Manifest)?;
                let manifest = Manifest::decode(&raw)
                    .map_err(|source| TreeError::Damaged { location: tree.manifest.clone(), source })?;
                let manifest = Arc::new(manifest);
                self.cache.keep_manifest(&tree.manifest, &manifest);
                manifest
            }
        };
        if manifest.version == tree.version {
            Ok(manifest)
        } else {
            Err(TreeError::WrongTree {
                location: tree.manifest.clone(),
                expected: tree.version,
                found: manifest.version,
            })
        }
    }

    /// Reads a version's root node.
    pub(crate) async fn root(&self, tree: &VersionRef) -> Result<Arc<StoredNode>, TreeError> {
        let manifest = self.manifest(tree).await?;
        self.node(&manifest.root, tree.version).await
    }
}

/// Says that a frame is damaged.
pub(crate) fn damaged(location: &Location, reason: &'static str) -> TreeError {
    TreeError::Damaged { location: location.clone(), source: Malformed { at: 0, reason } }
}

fn open(location: &Location, stored: &[u8], kind: FrameKind) -> Result<Bytes, TreeError> {
    let mut decompressor =
        Decompressor::new().map_err(|source| TreeError::io("prepare to decompress", b"", source))?;
    let (found, raw) = decompressor
        .open(location, stored)
        .map_err(|source| TreeError::Damaged { location: location.clone(), source })?;
    if found == kind { Ok(Bytes::from(raw)) } else { Err(damaged(location, "a frame is of another kind")) }
}
