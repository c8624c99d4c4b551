//! Reading many inodes with few calls: neighbours come with one search.

use btrfs::Dir;
use btrfs::search::{Item, Key, Search, kind};

use super::error::Error;

/// Inodes that are no further apart are read by one search: what lies between costs less than another.
const GAP: u64 = 8;

/// After so many items that nobody wants the search goes on at the next that somebody does.
const IGNORED: u32 = 64;

/// Items that an inode has, and more: a batch of the search is not much larger than what is wanted.
const ITEMS: u32 = 8;

/// Visits the items of inodes, `numbers` in order and each once. `take` answers `false` when it wants no more of the item's
/// inode; a few may still come.
pub(super) fn visit(
    dir: &Dir,
    tree: u64,
    numbers: &[u64],
    mut take: impl FnMut(&Item<'_>) -> Result<bool, Error>,
) -> Result<(), Error> {
    for run in numbers.chunk_by(|a, b| b - a <= GAP) {
        if let (Some(first), Some(last)) = (run.first(), run.last()) {
            read(dir, tree, (*first, *last), run, &mut take)?;
        }
    }
    Ok(())
}

fn read(
    dir: &Dir,
    tree: u64,
    (first, last): (u64, u64),
    run: &[u64],
    take: &mut impl FnMut(&Item<'_>) -> Result<bool, Error>,
) -> Result<(), Error> {
    let begin = |objectid| Key { objectid, kind: kind::INODE_ITEM, offset: 0 };
    let end = Key { objectid: last, kind: kind::EXTENT_DATA, offset: u64::MAX };
    let items = u32::try_from(run.len()).unwrap_or(u32::MAX).saturating_mul(ITEMS);
    let mut search = Search::new(dir, tree, begin(first)..=end).in_batches_of(items.saturating_add(IGNORED));
    let mut wanted = run.iter().copied().peekable();
    let mut ignored = 0;
    while let Some(item) = search.next_item()? {
        let number = item.key.objectid;
        while wanted.next_if(|wanted| *wanted < number).is_some() {}
        if wanted.peek() == Some(&number) && take(&item)? {
            ignored = 0;
            continue;
        }
        ignored += 1;
        if ignored > IGNORED {
            ignored = 0;
            wanted.next_if_eq(&number);
            match wanted.peek() {
                Some(next) => search.seek(begin(*next)),
                None => break,
            }
        }
    }
    Ok(())
}
