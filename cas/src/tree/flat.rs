//! A version made in memory: files in one directory, without a filesystem. For tools and simulations; what a node has on
//! disk goes through [`super::Writer`].

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use types::{ContentId, Domain, Hash, VersionId};

use super::frame::{Codec, Frame, FrameHeader, FrameKind};
use super::location::{Extent, Location, PackUse, VersionRef};
use super::manifest::{Manifest, PackNeeded};
use super::node::{Entry, Item, Metadata, Node};
use super::pack::PackBuilder;
use super::read::Reader;
use super::stored::{At, Data, Draft, Place, Totals, Uses};
use crate::error::Error;
use crate::session::Operation;

/// The bytes of files by name. A name has no `/`.
pub type Files = BTreeMap<String, Bytes>;

/// Puts a directory of `files` as one pack, and returns its version when the pack was acknowledged. Files that `parent`
/// has under the same name with the same bytes stay where they are; if nothing changed, the answer is the parent.
///
/// # Errors
/// A name is not one, a file does not fit a frame, or the store failed.
pub async fn put_flat(
    operation: &Operation,
    domain: &Domain,
    files: &Files,
    parent: Option<(&Reader, &VersionRef)>,
) -> Result<VersionRef, Error> {
    let old = match parent {
        Some((reader, tree)) => Some((reader.fetch.manifest(tree).await?, reader.fetch.root(tree).await?)),
        None => None,
    };
    let session = operation.session();
    let pack = Arc::new(session.next_pack(domain).await?);
    let mut builder = PackBuilder::new(4096);
    let mut place = |kind, raw: &[u8]| -> Result<Location, Error> {
        let frame = frame(kind, raw)?;
        let (stored_len, raw_len) = (frame.header.stored_len(), frame.header.raw_len);
        Ok(Location { pack: Arc::clone(&pack), offset: builder.push(&frame), stored_len, raw_len })
    };
    let mut node = Node { meta: Metadata { mode: 0o755, ..Metadata::default() }, entries: Vec::new() };
    let mut places = Vec::new();
    let mut totals = Totals::default();
    let mut uses = Uses::new();
    for (name, bytes) in files {
        if name.is_empty() || name.len() > 255 || name.contains(['/', '\0']) || matches!(&**name, "." | "..")
        {
            return Err(Error::Invalid { what: name.clone(), rule: "a name has 1 to 255 bytes and no /" });
        }
        let (size, content) = (bytes.len() as u64, ContentId(*blake3::hash(bytes).as_bytes()));
        let meta = Metadata { mode: 0o644, ..Metadata::default() };
        let item = Item::File { meta, size, content };
        let kept = old.as_ref().and_then(|(_, root)| {
            let number = root.node.position(name.as_bytes())?;
            let Data::Slice { frame, offset } = &root.places[number].data else { return None };
            (root.node.entries[number].item == item).then(|| (frame.clone(), *offset))
        });
        let data = match kept {
            _ if bytes.is_empty() => Data::Inline(Vec::new()),
            Some((frame, offset)) => Data::Slice { frame, offset },
            None => Data::Slice { frame: place(FrameKind::Data, bytes)?, offset: 0 },
        };
        if let Data::Slice { frame, .. } = &data {
            uses.entry(Arc::clone(&frame.pack)).or_default().add(PackUse { references: 1, bytes: size });
        }
        totals.add(Totals { files: 1, bytes: size, ..Totals::default() });
        node.entries.push(Entry { name: name.as_bytes().to_vec(), item });
        places.push(Place::<At> { linked: false, sparse: false, data });
    }
    let mut bytes = node.encode();
    let version = VersionId(*blake3::hash(&bytes).as_bytes());
    if let Some((_, tree)) = parent
        && tree.version == version
    {
        return Ok(tree.clone());
    }
    Draft { node: &node, places: &places, totals, uses: &uses, own: PackUse::default() }.put(&mut bytes);
    let root = Extent { frames: vec![place(FrameKind::Tree, &bytes)?], offset: 0, len: bytes.len() as u64 };
    for (pack, used) in root.uses() {
        uses.entry(pack).or_default().add(used);
    }
    let packs = uses.into_iter().map(|(pack, used)| {
        let object_bytes = old.as_ref().and_then(|(manifest, _)| {
            let found = manifest.packs.binary_search_by(|needed| needed.pack.cmp(&pack)).ok()?;
            manifest.packs[found].object_bytes
        });
        PackNeeded { pack, object_bytes, used }
    });
    let manifest = Manifest { version, root, totals, packs: packs.collect() };
    let manifest = place(FrameKind::Manifest, &manifest.encode())?;
    session.put_pack(&pack, builder.finish()).await?;
    let tree = VersionRef { version, manifest };
    if let Some((_, base)) = parent {
        session.note_built(&tree, base);
    }
    Ok(tree)
}

/// A frame as it is: what is put here is small.
fn frame(kind: FrameKind, raw: &[u8]) -> Result<Frame, Error> {
    let Some(raw_len) = u32::try_from(raw.len()).ok().filter(|len| *len <= super::location::FRAME_RAW_MAX)
    else {
        return Err(Error::Invalid {
            what: format!("{} bytes", raw.len()),
            rule: "a frame has at most 16 MiB",
        });
    };
    let hash = Hash(*blake3::hash(raw).as_bytes());
    let header = FrameHeader { kind, codec: Codec::Raw, raw_len, payload_len: raw_len, hash };
    Ok(Frame { header, payload: raw.to_vec() })
}
