//! Following symbolic links inside a version, as the kernel would beneath the version's root.

use std::collections::VecDeque;

use types::VolumePath;

use super::error::TreeError;
use super::location::VersionRef;
use super::node::Item;
use super::read::{Reader, Spot};

/// How many links one path may go through: the kernel's number.
const MAX_LINKS: usize = 40;

impl Reader {
    /// Returns where a path leads when the links on its way are followed; its last segment only if `last`. What is not there
    /// is left as it is. A link that leads out of the version, or in a circle, is an error.
    pub async fn resolve(
        &self,
        tree: &VersionRef,
        path: &VolumePath,
        last: bool,
    ) -> Result<VolumePath, TreeError> {
        let out = || TreeError::LeadsOut { path: path.clone() };
        let mut rest: VecDeque<Vec<u8>> = path.segments().map(<[u8]>::to_vec).collect();
        let mut at = VolumePath::ROOT;
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at = at.split_last().ok_or_else(out)?.0;
                    continue;
                }
                _ => {}
            }
            let next = at.join(&name).map_err(|_| out())?;
            if rest.is_empty() && !last {
                return Ok(next);
            }
            let target = match self.find(tree, &next).await? {
                Some(Spot::Entry(node, number)) => {
                    let (node, number) = self.first_name(tree, node, number).await?;
                    if let Item::Symlink { target, .. } = &node.node.entries[number].item {
                        Some(target.clone())
                    } else {
                        None
                    }
                }
                Some(Spot::Root(_)) | None => None,
            };
            let Some(target) = target else {
                at = next;
                continue;
            };
            links += 1;
            if links > MAX_LINKS || target.starts_with(b"/") {
                return Err(out());
            }
            for segment in target.rsplit(|byte| *byte == b'/') {
                rest.push_front(segment.to_vec());
            }
        }
        Ok(at)
    }
}
