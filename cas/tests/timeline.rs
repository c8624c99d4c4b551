//! The timeline: entries in the record and in pages, roles and what stays of them, labels, branches, pins, restores.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on says where"
)]

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cas::entry::{Heads, data_head};
use cas::lifecycle::{self, Publication, Taken, Target};
use cas::objects::{CallKind, Condition, Fault, Objects as _, crashes, list_all};
use cas::page;
use cas::timeline::{self, Point};
use cas::upkeep::{self, INLINE};
use cas::{Claim, Entry, Error, Known, Record, Role, thin};
use types::{Clock as _, EntryId, MemberName, PackId};
use world::*;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A volume whose versions all lie in one pack, so that thousands of them cost no packs.
struct Line {
    world: World,
    node: Node,
    claim: Claim,
    pack: PackId,
    head: String,
    operation: cas::Operation,
}

impl Line {
    async fn new() -> Self {
        let world = World::new();
        let node = world.node("a").await;
        let claim = node.create(&id("v"), "v0").await;
        let head = world.record(&id("v")).await.head_entry().unwrap().heads[&MemberName::data()].clone();
        let pack = PackId::clone(&head.manifest.pack);
        let operation = node.session.begin().unwrap();
        cas::references::confirm(&operation, &BTreeSet::from([pack.clone()])).await.unwrap();
        Self { world, node, claim, pack, head: "v0".to_owned(), operation }
    }

    fn heads(&self, text: &str) -> Heads {
        data_head(reference(&self.pack, text))
    }

    async fn publish(&mut self, text: &str, role: Role, label: &str) -> Record {
        // The store's time goes on as the clock does, and every beat tells it.
        let publication = Publication { role, label: label.to_owned(), ..publication(self.heads(text)) };
        let known = knows(&[&self.head]);
        let done = lifecycle::publish(&self.operation, &self.claim, &known, publication).await.unwrap();
        self.head = text.to_owned();
        done.into_inner().record.value
    }

    /// Lets time pass, in the store too.
    async fn pass(&self, time: Duration) {
        self.world.clock.advance(time);
        self.node.session.beat().await.unwrap();
        self.node.session.raise().await.unwrap();
    }

    async fn record(&self) -> Record {
        self.world.record(&id("v")).await
    }

    async fn entries(&self) -> Vec<Entry> {
        timeline::entries(&self.node.store, &self.record().await).await.unwrap()
    }
}

fn size(record: &Record) -> usize {
    serde_json::to_vec(record).unwrap().len()
}

/// Everything that must hold of a record at any time, whatever is in pages.
async fn check(line: &Line) {
    let record = line.record().await;
    let entries = line.entries().await;
    let ids: BTreeSet<EntryId> = entries.iter().map(|entry| entry.id).collect();
    assert_eq!(ids.len(), entries.len(), "an entry is on the timeline once");
    assert!(entries.windows(2).all(|two| two[0].time < two[1].time), "times put a timeline in order");
    assert!(record.kept_entries().iter().all(|named| record.entry(named).is_some()));
    let references = timeline::references(&line.node.store, &record).await.unwrap();
    assert_eq!(references.len(), entries.len());
}

#[tokio::test]
async fn a_record_of_ten_thousand_entries_is_small_and_a_sync_costs_what_it_cost_with_ten() {
    let mut line = Line::new().await;
    let label = "a label of a usual length";
    let cost = |calls: u64, from: &mut u64| {
        let spent = calls - *from;
        *from = calls;
        spent
    };
    let mut before = 0;
    let mut costs: Vec<(usize, u64, usize)> = Vec::new();
    const ROUNDS: usize = 320;
    for number in 0..10_000 {
        if [100, 10_000 - ROUNDS].contains(&number) {
            cost(line.node.faults.counts().calls(), &mut before);
        }
        line.pass_quickly();
        let record = line.publish(&format!("e{number}"), Role::Event, label).await;
        if [100 + ROUNDS - 1, 9_999].contains(&number) {
            costs.push((number + 2, cost(line.node.faults.counts().calls(), &mut before), size(&record)));
        }
    }
    let record = line.record().await;
    let entries = line.entries().await;
    println!(
        "{} entries: {} in the record, {} pages, {} bytes; (entries, calls of {ROUNDS} publishes, bytes): {costs:?}",
        entries.len(),
        record.entries.len(),
        record.older.len(),
        size(&record),
    );
    assert_eq!(entries.len(), 10_001, "events stay");
    assert!(size(&record) <= 64 << 10, "{} bytes", size(&record));
    let (few, many) = (costs[0].1, costs[1].1);
    assert!(many * 10 <= few * 11, "{few} calls with few entries, {many} with many");
    check(&line).await;

    // Every one is found, by id and by version, and the list has all of them in order.
    let store = &line.node.store;
    for entry in entries.iter().step_by(997) {
        for point in [Point::Entry(entry.id), Point::Version(entry.version().unwrap())] {
            assert_eq!(timeline::find(store, &record, &point).await.unwrap().unwrap().entry, *entry);
        }
    }
    let mut listed: Vec<Entry> = Vec::new();
    let mut last = None;
    loop {
        let (page, more) = timeline::list(store, &record, last, 700).await.unwrap();
        assert!(page.len() <= 700);
        last = page.last().map(|entry| (entry.time, entry.id));
        listed.extend(page);
        if !more {
            break;
        }
    }
    listed.reverse();
    assert!(listed == entries, "the list is the timeline");
    // The chain of `previous` is unbroken.
    let by_id: BTreeMap<EntryId, &Entry> = entries.iter().map(|entry| (entry.id, entry)).collect();
    let mut at = record.head.unwrap();
    let mut walked = 1;
    while let Some(previous) = by_id[&at].previous {
        at = previous;
        walked += 1;
    }
    assert_eq!(walked, 10_001);
}

impl Line {
    /// Time passes on this machine alone; the store's follows.
    fn pass_quickly(&self) {
        self.world.clock.advance(Duration::from_millis(1));
    }
}

/// Syncs every four minutes for nine days: what stays is what stays without pages.
#[tokio::test]
async fn thinning_goes_through_pages_two_at_a_time() {
    let mut line = Line::new().await;
    let mut most = 0;
    let mut last = line.entries().await.len();
    let mut most_gone = 0;
    for number in 0..9 * 24 * 15 {
        line.pass(Duration::from_secs(240)).await;
        let record = line.publish(&format!("s{number}"), Role::Sync, "").await;
        most = most.max(size(&record));
        let left = record.entries.len() + record.older.iter().map(page::OlderPage::left).sum::<usize>();
        most_gone = most_gone.max((last + 1).saturating_sub(left));
        last = left;
    }
    assert!(most_gone <= thin::MAX_REMOVED, "{most_gone} went with one write");
    check(&line).await;
    let now = line.node.session.store_time();
    let syncs: Vec<Entry> =
        line.entries().await.into_iter().filter(|entry| entry.role == Role::Sync).collect();
    let aged = |from: Duration, to: Duration| {
        syncs.iter().filter(|entry| (from..to).contains(&now.since(entry.time))).count()
    };
    let slack = Duration::from_secs(250);
    println!(
        "{} syncs: {} of an hour, {} of a day, {} of a week, {} older; record at most {most} bytes",
        syncs.len(),
        aged(Duration::ZERO, HOUR),
        aged(HOUR, DAY),
        aged(DAY, 7 * DAY),
        aged(7 * DAY, 99 * DAY)
    );
    assert!((14..=16).contains(&aged(Duration::ZERO, HOUR)));
    assert!((23..=26).contains(&aged(HOUR, DAY)), "hourly of a day: {}", aged(HOUR, DAY));
    assert!((6..=8).contains(&aged(DAY, 7 * DAY)), "daily of a week: {}", aged(DAY, 7 * DAY));
    assert_eq!(aged(7 * DAY + slack, 99 * DAY), 0, "none after a week");
    assert!(most < 64 << 10);
    let hours: BTreeSet<u64> = syncs
        .iter()
        .filter(|entry| (HOUR..DAY).contains(&now.since(entry.time)))
        .map(|entry| u64::try_from(entry.time.seconds_and_nanos().0).unwrap() / 3600)
        .collect();
    assert!(hours.len() >= 22, "every hour of the last day has its entry: {hours:?}");
}

#[tokio::test]
async fn steps_are_the_newest_thousand_for_seven_days_across_pages() {
    let mut line = Line::new().await;
    for number in 0..1_300 {
        line.pass_quickly();
        line.publish(&format!("s{number}"), Role::Step, "").await;
    }
    check(&line).await;
    let steps: Vec<Entry> =
        line.entries().await.into_iter().filter(|entry| entry.role == Role::Step).collect();
    assert_eq!(steps.len(), thin::MAX_STEPS);
    assert_eq!(steps[0].version(), Some(version("s300")), "the oldest went first");
    line.pass(8 * DAY).await;
    for number in 0..600 {
        line.publish(&format!("t{number}"), Role::Event, "").await;
    }
    let left = line.entries().await.into_iter().filter(|entry| entry.role == Role::Step).count();
    assert_eq!(left, 0, "none after seven days, two with each write");
    check(&line).await;
}

#[tokio::test]
async fn w15_checkpoints_never_disappear_from_the_list() {
    let mut line = Line::new().await;
    let mut checkpoints: Vec<EntryId> = Vec::new();
    for number in 0..thin::MAX_MANUAL {
        // Far more in between than a record holds, for days.
        for sync in 0..200 {
            line.pass(Duration::from_secs(300)).await;
            line.publish(&format!("{number}.{sync}"), Role::Sync, "").await;
        }
        let record = line.publish(&format!("{number}"), Role::Manual, &format!("checkpoint {number}")).await;
        checkpoints.push(record.head.unwrap());
        let (listed, _) = timeline::list(&line.node.store, &record, None, usize::MAX).await.unwrap();
        let manual: Vec<EntryId> =
            listed.iter().rev().filter(|entry| entry.role == Role::Manual).map(|entry| entry.id).collect();
        assert_eq!(manual, checkpoints);
    }
    // A restore to the first of them hides none of the others.
    let known = knows(&[&line.head]);
    let done = lifecycle::restore_head(
        &line.operation,
        &line.claim,
        &known,
        Target::Entry(checkpoints[0]),
        "restored",
    );
    let record = done.await.unwrap().record.value;
    let (listed, _) = timeline::list(&line.node.store, &record, None, usize::MAX).await.unwrap();
    assert!(checkpoints.iter().all(|id| listed.iter().any(|entry| entry.id == *id)));
}

#[tokio::test]
async fn manual_entries_roll_at_what_the_record_says() {
    let mut line = Line::new().await;
    let manual =
        async |line: &Line| line.entries().await.iter().filter(|entry| entry.role == Role::Manual).count();
    for number in 0..8 {
        line.pass_quickly();
        line.publish(&format!("m{number}"), Role::Manual, &format!("{number}")).await;
    }
    assert_eq!(manual(&line).await, thin::MAX_MANUAL);
    for (said, expected) in [("7", 7), ("0", 5), ("many", 5), ("1", 1)] {
        lifecycle::set_attributes(&line.node.store, &id("v"), &set(thin::MAX_SNAPSHOTS, said)).await.unwrap();
        for number in 0..12 {
            line.pass_quickly();
            line.publish(&format!("{said}.{number}"), Role::Manual, "").await;
        }
        assert_eq!(manual(&line).await, expected, "max-snapshots={said}");
    }
}

#[tokio::test]
async fn a_b_a_is_three_entries_and_two_labels_stand_on_one_tree() {
    let mut line = Line::new().await;
    for text in ["a", "b", "a"] {
        line.pass_quickly();
        line.publish(text, Role::Step, "").await;
    }
    line.publish("a", Role::Manual, "first label").await;
    let record = line.publish("a", Role::Manual, "second label").await;
    let told: Vec<_> =
        record.entries[1..].iter().map(|entry| (entry.version().unwrap(), entry.label.clone())).collect();
    let expected = [("a", ""), ("b", ""), ("a", ""), ("a", "first label"), ("a", "second label")];
    assert_eq!(told, expected.map(|(text, label)| (version(text), label.to_owned())));
    assert!(record.entries.windows(2).all(|two| two[1].previous == Some(two[0].id)));
    // A sync that changed nothing writes nothing, and nor does who asks for the same again because the answer was lost.
    let rev = line.record().await.rev;
    line.publish("a", Role::Sync, "").await;
    line.publish("a", Role::Manual, "second label").await;
    assert_eq!(line.record().await.rev, rev);
}

#[tokio::test]
async fn what_is_in_a_page_can_be_named_restored_and_forked() {
    let mut line = Line::new().await;
    for number in 0..300 {
        line.pass_quickly();
        line.publish(&format!("e{number}"), Role::Event, "").await;
    }
    let store = line.node.store.clone();
    let record = line.record().await;
    assert!(!record.older.is_empty() && record.entries.len() < 2 * INLINE + 1);
    let entries = line.entries().await;
    let old = &entries[7];
    assert!(record.entry(&old.id).is_none(), "it is in a page");

    // A branch brings it back into the record, once.
    lifecycle::set_branch(&store, &id("v"), "golden", old.id, Taken::Refuse).await.unwrap();
    lifecycle::set_pin(&store, &id("v"), "export", Some(old.id)).await.unwrap();
    check(&line).await;
    assert_eq!(line.record().await.branches["golden"], old.id);
    let missing = lifecycle::set_branch(&store, &id("v"), "none", EntryId([9; 32]), Taken::Refuse).await;
    assert!(matches!(missing, Err(Error::NoEntry { .. })), "{missing:?}");
    let other = &entries[8];
    let taken = lifecycle::set_branch(&store, &id("v"), "golden", other.id, Taken::Refuse).await;
    assert!(matches!(taken, Err(Error::BranchTaken { .. })), "{taken:?}");
    lifecycle::set_branch(&store, &id("v"), "golden", other.id, Taken::Move).await.unwrap();
    assert_eq!(line.record().await.branches["golden"], other.id);
    lifecycle::set_branch(&store, &id("v"), "golden", old.id, Taken::Move).await.unwrap();
    check(&line).await;
    // When it is not named any more, it goes back into a page.
    lifecycle::remove_branch(&store, &id("v"), "golden").await.unwrap();
    lifecycle::set_pin(&store, &id("v"), "export", None).await.unwrap();
    for number in 300..400 {
        line.pass_quickly();
        line.publish(&format!("e{number}"), Role::Event, "").await;
    }
    assert!(line.record().await.entry(&old.id).is_none());
    check(&line).await;

    // Restore-to an entry of a page: a new head with its tree, and the present state as a branch.
    let target = &entries[11];
    let present = line.record().await.head.unwrap();
    let known = Known::data([version(&line.head)]);
    let to = Target::Entry(target.id);
    let restored =
        lifecycle::restore_head(&line.operation, &line.claim, &known, to, "restored").await.unwrap();
    let record = restored.record.value;
    assert_eq!(record.head_entry().unwrap().heads, target.heads);
    assert_eq!(record.branches[&restored.branch.unwrap()], present);
    line.head = "e10".to_owned();
    line.publish("after", Role::Sync, "").await;

    // Another record may refer to what is in a page (rule R, c).
    let b = line.world.node("b").await;
    let operation = b.session.begin().unwrap();
    let found =
        cas::references::confirm_version(&operation, &id("v"), &version("e20"), &BTreeSet::new()).await;
    assert_eq!(found.unwrap().version(), Some(version("e20")));
    check(&line).await;
}

#[tokio::test]
async fn restores_keep_the_newest_states_from_before_them() {
    let mut line = Line::new().await;
    let first = line.record().await.head.unwrap();
    for number in 0..40 {
        line.pass_quickly();
        line.publish(&format!("e{number}"), Role::Sync, "").await;
        let known = knows(&[&line.head]);
        let restored =
            lifecycle::restore_head(&line.operation, &line.claim, &known, Target::Entry(first), "")
                .await
                .unwrap();
        assert_eq!(restored.branch.unwrap(), format!("pre-restore/{}", number + 1));
        line.head = "v0".to_owned();
    }
    let record = line.record().await;
    assert_eq!(record.branches.len(), 32);
    assert!(record.branches.contains_key("pre-restore/40") && !record.branches.contains_key("pre-restore/8"));
    check(&line).await;
}

#[tokio::test]
async fn a_page_goes_with_its_volume_and_comes_back_with_it() {
    let mut line = Line::new().await;
    for number in 0..200 {
        line.pass_quickly();
        line.publish(&format!("e{number}"), Role::Event, "").await;
    }
    let store = line.node.store.clone();
    let authority = lifecycle::Authority::Owner(line.node.session.id());
    let pages = line.record().await.older;
    assert!(!pages.is_empty());
    lifecycle::delete(&store, &id("v"), None, authority).await.unwrap();
    assert_eq!(line.record().await.older, pages, "a tombstone holds its bytes");
    lifecycle::undelete(&store, &id("v"), None).await.unwrap();
    assert_eq!(line.entries().await.len(), 201);
    lifecycle::delete(&store, &id("v"), None, lifecycle::Authority::Unowned).await.unwrap();
    line.world.clock.advance(DAY);
    let now = line.world.clock.now();
    lifecycle::purge(&store, &id("v"), line.claim.birth, HOUR, now).await.unwrap();
    assert!(line.record().await.older.is_empty() && line.entries().await.is_empty());
    // Nobody names them now; they are the collection's.
    assert!(!page::list(&store).await.unwrap().is_empty());
}

/// Dies before and after every call of publishes that write pages: the timeline is whole after each.
#[tokio::test]
async fn dying_at_any_call_of_the_upkeep_loses_no_entry() {
    let mut points = 0;
    for (at, fault) in crashes(1_000) {
        let mut line = Line::new().await;
        for number in 0..2 * INLINE - 2 {
            line.pass_quickly();
            line.publish(&format!("e{number}"), Role::Event, "").await;
        }
        let before = line.entries().await.len();
        line.node.faults.reset();
        line.node.faults.at_call(at, fault);
        let done = std::sync::Mutex::new(None);
        let publishes = async {
            let mut head = line.head.clone();
            for text in ["last", "last+1", "last+2"] {
                line.pass_quickly();
                let (heads, known) = (line.heads(text), knows(&[&head]));
                let published =
                    lifecycle::publish(&line.operation, &line.claim, &known, publication(heads)).await;
                *done.lock().unwrap() = Some(published.unwrap().into_inner().entry);
                head = text.to_owned();
            }
        };
        let dead = line.node.faults.until_death(publishes).await.is_none();
        let done = *done.lock().unwrap();
        let record = line.record().await;
        let entries = timeline::entries(&line.world.open().await.1, &record).await.unwrap();
        assert!(entries.len() >= before, "point {at}: {} entries of {before}", entries.len());
        if let Some(done) = done {
            assert!(entries.iter().any(|entry| entry.id == done), "point {at}: what was answered is there");
        }
        if !dead {
            assert!(!record.older.is_empty(), "the run wrote a page");
            break;
        }
        // Another process goes on where this one died.
        assert!(
            entries.windows(2).all(|two| two[1].previous == Some(two[0].id)),
            "point {at}: the line is broken"
        );
        points += 1;
    }
    println!("died at {points} points");
    assert!(points >= 8);
}

#[tokio::test]
async fn a_publish_succeeds_when_a_page_cannot_be_written_or_read() {
    let mut line = Line::new().await;
    line.node.faults.every(CallKind::Put, "page/", Fault::Unavailable);
    for number in 0..100 {
        line.pass_quickly();
        line.publish(&format!("e{number}"), Role::Event, "").await;
    }
    assert!(line.record().await.older.is_empty());
    line.node.faults.heal();
    line.pass_quickly();
    line.publish("healed", Role::Event, "").await;
    let record = line.record().await;
    assert_eq!((record.older.len(), record.entries.len()), (1, INLINE), "what was not done is done later");
    // A page that the store lost is told as what it is, and what is not in it stays readable.
    let key = record.page_keys().next().unwrap();
    line.world.disk.delete(&key).await.unwrap();
    let (_, store) = line.world.open().await;
    assert!(matches!(timeline::entries(&store, &record).await, Err(Error::NoPage { .. })));
    let head = Point::Entry(record.head.unwrap());
    assert!(timeline::find(&store, &record, &head).await.unwrap().is_some());
    for number in 100..200 {
        line.pass_quickly();
        line.publish(&format!("e{number}"), Role::Event, "").await;
    }
    let record = line.record().await;
    assert!(record.entries.len() <= 2 * INLINE && record.page_keys().any(|page| page == key));
}

#[tokio::test]
async fn a_hostile_summary_is_refused() {
    let mut line = Line::new().await;
    for number in 0..100 {
        line.pass_quickly();
        line.publish(&format!("e{number}"), Role::Event, "").await;
    }
    let key = cas::keys::volume(&id("v"));
    let mut good: serde_json::Value =
        serde_json::from_slice(&line.world.disk.get(&key).await.unwrap().bytes).unwrap();
    // What is changed below must be refused for what it says, not for its hash.
    good.as_object_mut().unwrap().remove("check");
    type Change = fn(&mut serde_json::Value);
    let cases: [(&str, Change); 6] = [
        ("no entries", |page| page["entries"] = 0.into()),
        ("too many entries", |page| page["entries"] = 4_000_000_000_u32.into()),
        ("all are gone", |page| page["gone"] = "ff".repeat(128).into()),
        ("more is gone than there is", |page| page["gone"] = "ff".repeat(4096).into()),
        ("a number that is not there", |page| page["due"] = serde_json::json!([[60_000, 0]])),
        ("a field of a newer program", |page| page["colour"] = "red".into()),
    ];
    for (name, change) in cases {
        let mut bad = good.clone();
        change(&mut bad["older"][0]);
        let etag = line.world.disk.head(&key).await.unwrap().etag;
        let bytes = serde_json::to_vec(&bad).unwrap();
        line.world.disk.put(&key, bytes.into(), &Condition::IfMatch(etag)).await.unwrap();
        let read = cas::record::read(&line.node.store, &id("v")).await;
        assert!(matches!(read, Err(Error::Corrupt { .. })), "{name}: {read:?}");
    }
}

#[tokio::test]
async fn what_nobody_owns_is_thinned_by_whoever_collects() {
    let mut line = Line::new().await;
    for number in 0..200 {
        line.pass(Duration::from_secs(30)).await;
        line.publish(&format!("s{number}"), Role::Sync, "").await;
    }
    let tips = BTreeMap::from([(MemberName::data(), version(&line.head))]);
    lifecycle::release(&line.operation, &line.claim, &knows(&[&line.head]), &tips).await.unwrap();
    line.pass(3 * DAY).await;
    let now = line.node.session.store_time();
    let mut rounds = 0;
    loop {
        let record = cas::record::get(&line.node.store, &id("v")).await.unwrap();
        if !upkeep::thin_unowned(&line.node.store, &record, now).await.unwrap() {
            break;
        }
        rounds += 1;
        assert!(rounds < 1_000);
    }
    let left = line.entries().await;
    println!("{} entries after {rounds} rounds", left.len());
    // The creation, and the newest of each day.
    assert!(left.len() <= 3, "{left:?}");
    assert_eq!(left.last().unwrap().version(), Some(version("s199")));
    assert_eq!(list_all(&line.world.disk, "vol/").await.unwrap().len(), 1);
}
