//! Which packs stay, and why. Pure.
//!
//! A pack is known while its object or its `moved/` is there: both go together. It lives if a version names it, or if
//! frames of a living pack were moved into it. What does not live and is not young is garbage.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use types::{PackId, SessionId};

use super::moved::Moved;
use super::roots::Naming;

/// Why a pack lives.
#[derive(Debug, Clone)]
pub(super) enum Life {
    /// A version names it.
    Named(Naming),
    /// It has frames of this pack, which lives.
    Holds(PackId),
}

/// Returns every pack that lives.
pub(super) fn living(
    named: BTreeMap<PackId, Naming>,
    moved: &BTreeMap<PackId, Arc<Moved>>,
) -> BTreeMap<PackId, Life> {
    let mut todo: Vec<PackId> = named.keys().filter(|pack| moved.contains_key(pack)).cloned().collect();
    let mut living: BTreeMap<PackId, Life> =
        named.into_iter().map(|(pack, naming)| (pack, Life::Named(naming))).collect();
    while let Some(pack) = todo.pop() {
        let Some(moved) = moved.get(&pack) else { continue };
        for to in moved.to.keys() {
            if !living.contains_key(to) {
                living.insert(to.clone(), Life::Holds(pack.clone()));
                todo.push(to.clone());
            }
        }
    }
    living
}

/// Tells if a pack may be written and not yet named: its session lives and has not said that it is done with it.
pub(super) fn is_young(pack: &PackId, lows: &BTreeMap<SessionId, u64>) -> bool {
    lows.get(&pack.session).is_some_and(|low| pack.seq >= *low)
}

/// Returns the known packs that nothing keeps.
pub(super) fn garbage<'a>(
    known: impl Iterator<Item = &'a PackId>,
    living: &BTreeMap<PackId, Life>,
    lows: &BTreeMap<SessionId, u64>,
) -> BTreeSet<PackId> {
    known.filter(|pack| !living.contains_key(*pack) && !is_young(pack, lows)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gc::Move;
    use types::{Domain, EntryId, PoolId};

    fn pack(number: u64, seq: u64) -> PackId {
        let session = SessionId { pool: PoolId(ulid::Ulid::from_parts(1, 1)), number };
        PackId { domain: Domain::default_domain(), session, seq }
    }

    fn named(packs: &[PackId]) -> BTreeMap<PackId, Naming> {
        let naming = Naming { volume: "v".parse().unwrap(), entry: EntryId([0; 32]), entries: 1, bytes: 1 };
        packs.iter().map(|pack| (pack.clone(), naming.clone())).collect()
    }

    fn moved(from: &PackId, to: &[PackId]) -> (PackId, Arc<Moved>) {
        let to = to.iter().map(|to| (to.clone(), vec![Move { old: 8, new: 8, len: 60 }])).collect();
        (from.clone(), Arc::new(Moved { format: 1, pack: from.clone(), to }))
    }

    #[test]
    fn a_pack_stays_if_it_is_named_young_or_holds_frames_of_one_that_stays() {
        let [old, new, newer, gone, young, dead] =
            [pack(1, 1), pack(8, 1), pack(9, 1), pack(1, 2), pack(1, 3), pack(2, 3)];
        let moves = BTreeMap::from([
            moved(&old, std::slice::from_ref(&new)),
            moved(&new, std::slice::from_ref(&newer)),
        ]);
        let lows = BTreeMap::from([(pack(1, 0).session, 3)]);
        let known = [&old, &new, &newer, &gone, &young, &dead];

        let lives = living(named(std::slice::from_ref(&old)), &moves);
        assert_eq!(garbage(known.into_iter(), &lives, &lows), BTreeSet::from([gone.clone(), dead.clone()]));

        // When nobody names the old pack any more, all that was moved for it goes.
        let lives = living(BTreeMap::new(), &moves);
        let all = [&old, &new, &newer, &gone, &dead].into_iter().cloned().collect();
        assert_eq!(garbage(known.into_iter(), &lives, &lows), all);
    }

    #[test]
    fn moves_in_a_circle_end() {
        let (a, b) = (pack(1, 1), pack(1, 2));
        let moves =
            BTreeMap::from([moved(&a, std::slice::from_ref(&b)), moved(&b, std::slice::from_ref(&a))]);
        assert_eq!(living(named(&[a]), &moves).len(), 2);
    }
}
