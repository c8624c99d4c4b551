//! What nodes told of the contents that versions hold: a sample, one content in many, so that a node that stores
//! something can find a version that it shares most of it with.
//!
//! A hint, kept in memory alone and bounded: what is forgotten or lost costs bytes, and a node looks at everything in the
//! store before it relies on it. Domains are never mixed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use cas::VersionRef;
use types::{Domain, Hash};

/// Hooks that are remembered: with their versions about 100 MB, which stand for 128 million contents.
const HOOKS_MAX: usize = 1 << 20;

/// Versions in one answer. A node reads few of them.
const ANSWER_MAX: usize = 4;

/// A version as it was told.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    domain: Domain,
    tree: VersionRef,
}

/// Remembers the newest version for each hook. When the younger half is full, the older is forgotten.
#[derive(Debug)]
pub struct Hooks {
    halves: Mutex<Halves>,
    half: usize,
}

type Halves = (HashMap<Key, Arc<Told>>, HashMap<Key, Arc<Told>>);

/// A domain's number would save little: the hash of both is as long as the hook.
type Key = [u8; 16];

fn key(domain: &Domain, hook: &Hash) -> Key {
    let hash = blake3::Hasher::new().update(hook.as_bytes()).update(domain.as_str().as_bytes()).finalize();
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

impl Default for Hooks {
    fn default() -> Self {
        Self::new(HOOKS_MAX)
    }
}

impl Hooks {
    /// Remembers at most `max` hooks.
    pub fn new(max: usize) -> Self {
        Self { halves: Mutex::default(), half: (max / 2).max(1) }
    }

    /// Takes what a version holds.
    pub fn tell(&self, domain: Domain, tree: VersionRef, hooks: &[Hash]) {
        let told = Arc::new(Told { domain, tree });
        let (young, old) = &mut *self.halves.lock().expect("no holder of this lock panics");
        for hook in hooks {
            if young.len() >= self.half {
                *old = std::mem::take(young);
            }
            young.insert(key(&told.domain, hook), Arc::clone(&told));
        }
    }

    /// Says which versions hold these contents, those that hold the most first.
    pub fn find(&self, domain: &Domain, hooks: &[Hash]) -> Vec<VersionRef> {
        let (young, old) = &*self.halves.lock().expect("no holder of this lock panics");
        let mut found: Vec<(Arc<Told>, usize)> = Vec::new();
        for hook in hooks {
            let key = key(domain, hook);
            let Some(told) = young.get(&key).or_else(|| old.get(&key)) else { continue };
            // The key is shorter than what it stands for.
            if told.domain != *domain {
                continue;
            }
            match found.iter_mut().find(|(other, _)| Arc::ptr_eq(other, told)) {
                Some((_, hits)) => *hits += 1,
                None => found.push((Arc::clone(told), 1)),
            }
        }
        found.sort_by_key(|(_, hits)| std::cmp::Reverse(*hits));
        found.into_iter().take(ANSWER_MAX).map(|(told, _)| told.tree.clone()).collect()
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        let (young, old) = &*self.halves.lock().expect("no holder of this lock panics");
        young.len() + old.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(number: usize) -> Hash {
        Hash(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    fn tree(name: &str) -> VersionRef {
        VersionRef {
            version: types::VersionId(*blake3::hash(name.as_bytes()).as_bytes()),
            manifest: "a/01arz3ndektsv4rrffq69g5fav.3.17:8+301/420".parse().unwrap(),
        }
    }

    #[test]
    fn the_version_that_holds_most_is_told_first_and_other_domains_are_not() {
        let hooks = Hooks::default();
        let (a, b): (Domain, Domain) = ("a".parse().unwrap(), "b".parse().unwrap());
        hooks.tell(a.clone(), tree("one"), &[hook(1), hook(2), hook(3)]);
        hooks.tell(a.clone(), tree("two"), &[hook(3), hook(4), hook(5)]);
        assert_eq!(
            hooks.find(&a, &[hook(2), hook(3), hook(4), hook(9)]),
            [tree("two"), tree("one")],
            "two of them are in the second, which was told last"
        );
        assert!(hooks.find(&b, &[hook(1)]).is_empty());
    }

    #[test]
    fn memory_is_bounded_and_the_newest_stay() {
        let hooks = Hooks::new(1_000);
        let a: Domain = "a".parse().unwrap();
        for number in 0..100 {
            let some: Vec<_> = (0..100).map(|n| hook(number * 100 + n)).collect();
            hooks.tell(a.clone(), tree(&number.to_string()), &some);
            assert!(hooks.len() <= 1_000);
            assert_eq!(hooks.find(&a, &some), [tree(&number.to_string())]);
        }
        assert!(hooks.find(&a, &[hook(0)]).is_empty());
    }
}
