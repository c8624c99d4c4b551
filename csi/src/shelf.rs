//! Which read-only snapshots are in the pool, by the version that each holds, and who still needs them.
//!
//! A snapshot may be the base of several volumes: of the one that it was taken from, and of every fork of it. It goes
//! when the last of them has moved on. The shelf is read from the pool's names at start; nothing else remembers it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use types::{VersionId, VolumeId};

use crate::layout::Place;

/// The snapshots of a pool. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Shelf(Arc<Mutex<Snapshots>>);

/// The snapshots, and where to look for them: there may be one for each of ten thousand volumes.
#[derive(Debug, Default)]
struct Snapshots {
    places: BTreeMap<Place, Holders>,
    by_version: HashMap<VersionId, BTreeSet<Place>>,
    by_base_of: HashMap<VolumeId, BTreeSet<Place>>,
}

impl Snapshots {
    fn put(&mut self, place: &Place) -> &mut Holders {
        if !self.places.contains_key(place)
            && let Some(version) = place.version()
        {
            self.by_version.entry(version).or_default().insert(place.clone());
        }
        self.places.entry(place.clone()).or_default()
    }

    fn take_if_free(&mut self, place: &Place) -> bool {
        let free = self.places.get(place).is_some_and(|h| h.bases.is_empty() && h.loans == 0 && !h.kept);
        if free {
            self.places.remove(place);
            if let Some(version) = place.version()
                && let Some(places) = self.by_version.get_mut(&version)
            {
                places.remove(place);
                if places.is_empty() {
                    self.by_version.remove(&version);
                }
            }
        }
        free
    }

    fn lend(&mut self, place: &Place) -> bool {
        let Some(holders) = self.places.get_mut(place) else { return false };
        holders.loans += 1;
        holders.used = Some(Instant::now());
        true
    }
}

#[derive(Debug, Default)]
struct Holders {
    /// Volumes whose `base` leads here.
    bases: BTreeSet<VolumeId>,
    /// Operations that are reading it.
    loans: u32,
    /// Kept for its own sake: a template, or a snapshot that somebody asked for.
    kept: bool,
    /// When it was last kept or lent since this process began.
    used: Option<Instant>,
}

impl Holders {
    fn is_idle(&self) -> bool {
        self.kept && self.bases.is_empty() && self.loans == 0
    }
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
        let mut all = self.lock();
        let holders = all.put(place);
        holders.used = Some(Instant::now());
        std::mem::replace(&mut holders.kept, true)
    }

    /// Puts a snapshot on the shelf that a start found.
    pub fn keep_found(&self, place: &Place) {
        self.lock().put(place).kept = true;
    }

    /// Notes that `volume` grew from `place`, and no longer from where it did before. Returns the place that it left,
    /// if nobody needs that any more: the caller deletes it.
    pub fn rebase(&self, volume: &VolumeId, place: Option<&Place>) -> Vec<Place> {
        let mut all = self.lock();
        let mut left = all.by_base_of.remove(volume).unwrap_or_default();
        if let Some(place) = place {
            left.remove(place);
            all.put(place).bases.insert(volume.clone());
            all.by_base_of.insert(volume.clone(), BTreeSet::from([place.clone()]));
        }
        for old in &left {
            if let Some(holders) = all.places.get_mut(old) {
                holders.bases.remove(volume);
            }
        }
        left.into_iter().filter(|old| all.take_if_free(old)).collect()
    }

    /// Stops keeping a snapshot for its own sake. Returns true if the caller has to delete it now.
    pub fn release(&self, place: &Place) -> bool {
        let mut all = self.lock();
        if let Some(holders) = all.places.get_mut(place) {
            holders.kept = false;
        }
        all.take_if_free(place)
    }

    /// Lends the snapshot that holds `version`, wherever it is.
    pub fn lend(&self, version: &VersionId) -> Option<Loan> {
        let mut all = self.lock();
        let place = all.by_version.get(version)?.first()?.clone();
        self.loan(&mut all, place, *version)
    }

    /// Lends the newest snapshot of this volume, or what it grew from, that holds `version`.
    pub fn lend_of(&self, id: &VolumeId, version: &VersionId) -> Option<Loan> {
        let mut all = self.lock();
        let grew_from = |place: &Place| all.places.get(place).is_some_and(|h| h.bases.contains(id));
        let mut places = all.by_version.get(version)?.iter().rev();
        let place = places.find(|place| place.owner().as_ref() == Some(id) || grew_from(place))?.clone();
        self.loan(&mut all, place, *version)
    }

    /// Lends the snapshot at `place`.
    pub fn lend_place(&self, place: &Place) -> Option<Loan> {
        self.loan(&mut self.lock(), place.clone(), place.version()?)
    }

    fn loan(&self, all: &mut Snapshots, place: Place, version: VersionId) -> Option<Loan> {
        all.lend(&place).then(|| Loan { shelf: self.clone(), place, version })
    }

    /// Whether there is a snapshot at `place`.
    pub fn holds(&self, place: &Place) -> bool {
        self.lock().places.contains_key(place)
    }

    /// The snapshots that are only kept for their own sake, and when each was last used since this process began.
    pub fn idle(&self) -> Vec<(Place, Option<Instant>)> {
        let all = self.lock();
        let idle = all.places.iter().filter(|(_, holders)| holders.is_idle());
        idle.map(|(place, holders)| (place.clone(), holders.used)).collect()
    }

    /// Tells if a snapshot is only kept for its own sake.
    pub fn is_idle(&self, place: &Place) -> bool {
        self.lock().places.get(place).is_some_and(Holders::is_idle)
    }

    /// All of them.
    pub fn places(&self) -> Vec<Place> {
        self.lock().places.keys().cloned().collect()
    }

    /// The snapshots in the directory of one volume.
    pub fn of_volume(&self, id: &VolumeId) -> Vec<Place> {
        let all = self.lock();
        let first = Place::snapshot(id, "");
        let after = all.places.range((Bound::Included(&first), Bound::Unbounded)).map(|(place, _)| place);
        after.take_while(|place| place.path().starts_with(first.path())).cloned().collect()
    }

    /// The snapshots that nobody needs. They are off the shelf: the caller deletes them.
    pub fn take_free(&self) -> Vec<Place> {
        let mut all = self.lock();
        let free = |h: &Holders| h.bases.is_empty() && h.loans == 0 && !h.kept;
        let found: Vec<Place> =
            all.places.iter().filter(|(_, h)| free(h)).map(|(place, _)| place.clone()).collect();
        found.into_iter().filter(|place| all.take_if_free(place)).collect()
    }

    /// The versions of templates that are here, as `<volume id>@<version>`.
    pub fn templates(&self) -> Vec<String> {
        // They sort before what belongs to volumes.
        let all = self.lock();
        let templates = all.places.keys().take_while(|place| place.is_template());
        templates.map(Place::template_text).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Snapshots> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(holders) = self.shelf.lock().places.get_mut(&self.place) {
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
