//! Rules G and thinning by table, and the golden vector of an entry's id.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on says where"
)]

mod world;

use std::time::Duration;

use cas::entry::data_head;
use cas::guard::{self, Known};
use cas::record::State;
use cas::{Claim, Entry, LostReason, Record, Role, thin};
use types::{Birth, EntryId, Epoch, PackId, PoolId, SessionId, Timestamp};
use world::*;

fn entry(text: &str, at_seconds: i64, role: Role) -> Entry {
    let pack: PackId = format!("default/{}.1.1", PoolId::random()).parse().unwrap();
    let time = Timestamp(at_seconds * 1_000_000_000);
    Entry::new(&id("v"), data_head(reference(&pack, text)), None, time, role, "", Epoch(1)).unwrap()
}

#[tokio::test]
async fn rule_g_asks_birth_state_owner_epoch_and_head() {
    let world = World::new();
    let node = world.node("a").await;
    let claim = node.create(&id("v"), "v0").await;
    let good = world.record(&id("v")).await;
    let other = SessionId { pool: PoolId::random(), number: 1 };
    type Case = (&'static str, fn(&mut Record, SessionId), fn(&LostReason) -> bool);
    let cases: [Case; 8] = [
        ("birth", |r, _| r.birth = Birth::random(), |l| matches!(l, LostReason::Birth { .. })),
        ("creating", |r, _| r.state = State::Creating, |l| matches!(l, LostReason::State { .. })),
        ("deleted", |r, _| r.state = State::Deleted, |l| matches!(l, LostReason::State { .. })),
        ("purged", |r, _| r.state = State::Purged, |l| matches!(l, LostReason::State { .. })),
        ("nobody's", |r, _| r.owner = None, |l| *l == LostReason::Owner { found: None }),
        ("another's", |r, s| r.owner = Some(s), |l| matches!(l, LostReason::Owner { found: Some(_) })),
        ("taken and back", |r, _| r.epoch = r.epoch.next(), |l| matches!(l, LostReason::Epoch { .. })),
        (
            "another head",
            |r, _| {
                r.entries[0] = {
                    let e = entry("else", 0, Role::Event);
                    r.head = Some(e.id);
                    e
                }
            },
            |l| matches!(l, LostReason::Diverged { .. }),
        ),
    ];
    let me = node.session.id();
    assert_eq!(guard::check(&good, &me, &claim, &knows(&["v0"])), Ok(()));
    assert_eq!(guard::check(&good, &me, &claim, &knows(&["old", "v0"])), Ok(()));
    for (name, change, is_expected) in cases {
        let mut record = good.clone();
        change(&mut record, other);
        let lost = guard::check(&record, &me, &claim, &knows(&["v0"])).unwrap_err();
        assert!(is_expected(&lost), "{name}: {lost}");
    }
    let headless = Record { head: None, entries: Vec::new(), ..good };
    assert_eq!(guard::check(&headless, &me, &Claim::of(&headless), &Known::default()), Ok(()));
}

/// A record that holds these entries itself, and names those in `named`.
fn holding(base: &Record, entries: &[Entry], named: &[EntryId]) -> Record {
    let pins = named.iter().map(|id| (id.to_string(), *id)).collect();
    Record { head: None, entries: entries.to_vec(), pins, ..base.clone() }
}

#[tokio::test]
async fn thinning_is_by_role_and_age_and_two_at_a_time() {
    let world = World::new();
    world.node("a").await.create(&id("v"), "v0").await;
    let base = world.record(&id("v")).await;
    let plan = |entries: &[Entry], named: &[EntryId], now: Timestamp| {
        thin::plan(&holding(&base, entries, named), now).entries
    };
    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;
    // Name, (age in seconds, role) oldest first, which of them go.
    type Case = (&'static str, Vec<(i64, Role)>, Vec<usize>);
    let cases: [Case; 9] = [
        (
            "all of an hour",
            vec![(3600, Role::Sync), (1800, Role::Sync), (60, Role::Sync), (1, Role::Sync)],
            vec![],
        ),
        (
            "hourly of a day",
            vec![(3 * HOUR + 30, Role::Sync), (3 * HOUR + 20, Role::Sync), (3 * HOUR + 10, Role::Sync)],
            vec![0, 1],
        ),
        (
            "daily of a week",
            vec![(3 * DAY + 30, Role::Sync), (3 * DAY + 10, Role::Sync), (2 * DAY, Role::Sync)],
            vec![0],
        ),
        ("none after a week", vec![(8 * DAY, Role::Sync), (60, Role::Sync)], vec![0]),
        ("five manual", vec![(7 * DAY, Role::Manual); 7], vec![0, 1]),
        ("two at a time", vec![(30 * DAY, Role::Sync); 5], vec![0, 1]),
        ("events stay", vec![(1000 * DAY, Role::Event); 9], vec![]),
        ("steps of a week", vec![(8 * DAY, Role::Step), (6 * DAY, Role::Step)], vec![0]),
        ("ahead of the store's time", vec![(-DAY, Role::Sync), (-DAY, Role::Sync)], vec![]),
    ];
    // Half past an hour, so that seconds do not cross an hour by chance.
    let now = 1_800_001_800;
    for (name, ages, expected) in cases {
        let entries: Vec<Entry> = ages
            .iter()
            .enumerate()
            .map(|(n, (age, role))| entry(&format!("{n}"), now - age, *role))
            .collect();
        let gone = plan(&entries, &[], Timestamp(now * 1_000_000_000));
        let expected: Vec<_> = expected.iter().map(|n| entries[*n].id).collect();
        assert_eq!(gone, expected, "{name}");
        let kept: Vec<EntryId> = entries.iter().map(|entry| entry.id).collect();
        assert!(plan(&entries, &kept, Timestamp(now * 1_000_000_000)).is_empty(), "{name}: kept is kept");
    }
    let steps: Vec<Entry> = (0..1003).map(|n| entry(&n.to_string(), now - 60, Role::Step)).collect();
    let now = Timestamp(now * 1_000_000_000).plus(Duration::from_secs(1));
    assert_eq!(plan(&steps, &[], now), [steps[0].id, steps[1].id]);
}

/// Never edited: entry ids stand in records for ever. The bytes are in FORMAT.md.
#[test]
fn the_id_of_an_entry_is_what_it_was() {
    let pack: PackId = format!("default/{}.1.1", PoolId::random()).parse().unwrap();
    let first = Entry::new(
        &id("v"),
        data_head(reference(&pack, "x")),
        None,
        Timestamp(5),
        Role::Manual,
        "one",
        Epoch(1),
    );
    let first = first.unwrap();
    let mut bytes = b"opensail entry 1\n".to_vec();
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    text(&mut bytes, "v");
    bytes.extend(1u64.to_le_bytes());
    text(&mut bytes, "data");
    bytes.extend(version("x").as_bytes());
    bytes.push(0);
    bytes.extend(5i64.to_le_bytes());
    text(&mut bytes, "manual");
    text(&mut bytes, "one");
    assert_eq!(first.id.as_bytes(), blake3::hash(&bytes).as_bytes());
    assert_eq!(first.id.to_string(), "348a2c1e989ca356e9135d3c43134e5391f53312b4a0663a8810bcc948987a5e");
    let heads = first.heads.clone();
    let later =
        Entry::new(&id("v"), heads, Some(first.id), Timestamp(5), Role::Manual, "one", Epoch(9)).unwrap();
    assert_ne!(later.id, first.id, "the same tree twice is two entries");
}
