//! Finding bytes that are stored already, by what other versions of the same dedup domain are known to hold.
//!
//! What is known is a hint, never the truth: it is used only for packs that were looked at under the operation's pin
//! (PROTOCOL.md, R), and a location that lies is found out when it is read, because everything read is proved. Not to
//! know costs bytes. [`DedupIndex`] is what this process knows; `learn` fills it from a version; `lookup` asks it, and
//! whoever knows more (the hub's hooks), while a tree is put.

mod index;
mod learn;
mod lookup;

pub use index::DedupIndex;
pub use lookup::{AskHooks, Dedup};

pub(super) use index::{Known, KnownDir};
pub(super) use lookup::Lookup;

use types::Hash;

/// On average there is one hook in so many bytes: what the hub remembers of a version.
const BYTES_PER_HOOK: u64 = 512 << 10;

/// Tells if a content, or a cell of a large file, is a hook: the more likely, the longer it is.
pub(super) fn is_hook(hash: &[u8; 32], len: u64) -> bool {
    let first = hash.first_chunk::<4>().expect("a hash has 32 bytes");
    u64::from(u32::from_le_bytes(*first)) < (len << 32) / BYTES_PER_HOOK
}

/// A hook, as it is told.
pub(super) fn hook(hash: &[u8; 32]) -> Hash {
    Hash(*hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_hook_in_half_a_mebibyte_whatever_it_is_made_of() {
        for len in [2_000u64, 64 << 10, 128 << 10] {
            let pieces = (64 << 20) / len;
            let hooks =
                (0..pieces).filter(|n| is_hook(blake3::hash(&n.to_le_bytes()).as_bytes(), len)).count();
            assert!((90..170).contains(&hooks), "{hooks} hooks in 64 MiB of {len} bytes each");
        }
    }
}
