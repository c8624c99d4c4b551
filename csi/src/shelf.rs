//! Which read-only snapshots are in the pool, by the version that each holds, and who still needs them.
//!
//! A snapshot may be the base of several volumes: of the one that it was taken from, and of every fork of it. It goes
//! when the last of them has moved on. The shelf is read from the pool's names at start; nothing else remembers it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use types::{VersionId, VolumeId};

use crate::layout::Place;

/// The snapshots of a pool. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Shelf(Arc<Mutex<BTreeMap<Place, Holders>>>);

#[derive(Debug, Default)]
struct Holders {
    /// Volumes whose `base` leads here.
    bases: BTreeSet<VolumeId>,
    /// Operations that are reading it.
    loans: u32,
    /// Kept for its own sake: a template, or a snapshot that somebody asked for.
    kept: bool,
}

/// The promise that a snapshot stays while this lives.
#[derive(Debug)]
pub struct Loan {
    shelf: Shelf,
    place: Place,
    version: VersionId,
}

impl Loan {
    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What it holds.
    pub fn version(&self) -> VersionId {
        self.version
    }
}

impl Shelf {
    /// Puts a snapshot on the shelf, to be kept until [`Self::release`]. Returns true if it was kept already.
    pub fn keep(&self, place: &Place) -> bool {
        std::mem::replace(&mut self.lock().entry(place.clone()).or_default().kept, true)
    }

    /// Notes that `volume` grew from `place`, and no longer from where it did before. Returns the place that it left,
    /// if nobody needs that any more: the caller deletes it.
    pub fn rebase(&self, volume: &VolumeId, place: Option<&Place>) -> Vec<Place> {
        let mut places = self.lock();
        if let Some(place) = place {
            places.entry(place.clone()).or_default().bases.insert(volume.clone());
        }
        let mut left = Vec::new();
        for (old, holders) in places.iter_mut() {
            if Some(old) != place && holders.bases.remove(volume) {
                left.push(old.clone());
            }
        }
        left.retain(|old| Self::take_if_free(&mut places, old));
        left
    }

    /// Stops keeping a snapshot for its own sake. Returns true if the caller has to delete it now.
    pub fn release(&self, place: &Place) -> bool {
        let mut places = self.lock();
        if let Some(holders) = places.get_mut(place) {
            holders.kept = false;
        }
        Self::take_if_free(&mut places, place)
    }

    /// Lends the snapshot that holds `version`, wherever it is.
    pub fn lend(&self, version: &VersionId) -> Option<Loan> {
        let mut places = self.lock();
        let (place, holders) = places.iter_mut().find(|(place, _)| place.version() == Some(*version))?;
        holders.loans += 1;
        Some(Loan { shelf: self.clone(), place: place.clone(), version: *version })
    }

    /// Lends the newest snapshot of this volume, or what it grew from, that holds `version`.
    pub fn lend_of(&self, id: &VolumeId, version: &VersionId) -> Option<Loan> {
        let mut places = self.lock();
        let of_volume = |place: &Place, holders: &Holders| {
            place.version() == Some(*version)
                && (place.owner().as_ref() == Some(id) || holders.bases.contains(id))
        };
        let (place, holders) = places.iter_mut().rev().find(|(place, holders)| of_volume(place, holders))?;
        holders.loans += 1;
        Some(Loan { shelf: self.clone(), place: place.clone(), version: *version })
    }

    /// Lends the snapshot at `place`.
    pub fn lend_place(&self, place: &Place) -> Option<Loan> {
        let mut places = self.lock();
        places.get_mut(place)?.loans += 1;
        Some(Loan { shelf: self.clone(), place: place.clone(), version: place.version()? })
    }

    /// Whether there is a snapshot at `place`.
    pub fn holds(&self, place: &Place) -> bool {
        self.lock().contains_key(place)
    }

    /// All of them.
    pub fn places(&self) -> Vec<Place> {
        self.lock().keys().cloned().collect()
    }

    /// The snapshots in the directory of one volume.
    pub fn of_volume(&self, id: &VolumeId) -> Vec<Place> {
        self.lock().keys().filter(|place| place.owner().as_ref() == Some(id)).cloned().collect()
    }

    /// The snapshots that nobody needs. They are off the shelf: the caller deletes them.
    pub fn take_free(&self) -> Vec<Place> {
        let mut places = self.lock();
        let all: Vec<Place> = places.keys().cloned().collect();
        all.into_iter().filter(|place| Self::take_if_free(&mut places, place)).collect()
    }

    /// The versions of templates that are here, as `<volume id>@<version>`.
    pub fn templates(&self) -> Vec<String> {
        self.lock().keys().filter(|place| place.owner().is_none()).map(Place::template_text).collect()
    }

    fn take_if_free(places: &mut BTreeMap<Place, Holders>, place: &Place) -> bool {
        let free = places.get(place).is_some_and(|h| h.bases.is_empty() && h.loans == 0 && !h.kept);
        if free {
            places.remove(place);
        }
        free
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Place, Holders>> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(holders) = self.shelf.lock().get_mut(&self.place) {
            holders.loans = holders.loans.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(id: &str, n: u8) -> Place {
        Place::snapshot(&id.parse().unwrap(), &VersionId([n; 32]).to_string())
    }

    #[test]
    fn a_base_stays_until_the_last_volume_that_grew_from_it_has_moved_on() {
        let shelf = Shelf::default();
        let (a, b): (VolumeId, VolumeId) = ("vol-a".parse().unwrap(), "vol-b".parse().unwrap());
        let (first, second, third) = (place("vol-a", 1), place("vol-a", 2), place("vol-b", 3));
        assert!(shelf.rebase(&a, Some(&first)).is_empty());
        assert!(shelf.rebase(&b, Some(&first)).is_empty());
        assert!(shelf.rebase(&a, Some(&second)).is_empty(), "the fork still needs it");
        assert_eq!(shelf.rebase(&b, Some(&third)), std::slice::from_ref(&first));
        assert!(!shelf.holds(&first));
        assert_eq!(shelf.rebase(&a, None), [second]);
    }

    #[test]
    fn what_is_lent_or_kept_stays() {
        let shelf = Shelf::default();
        let one = place("vol-a", 1);
        shelf.keep(&one);
        assert!(shelf.take_free().is_empty());
        let loan = shelf.lend(&VersionId([1; 32])).unwrap();
        assert!(!shelf.release(&one), "it is lent");
        drop(loan);
        assert_eq!(shelf.take_free(), [one]);
        assert!(shelf.lend(&VersionId([1; 32])).is_none());
    }
}
