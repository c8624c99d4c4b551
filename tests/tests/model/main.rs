//! The protocol of records, sessions and garbage collection as a model that is searched whole (PROTOCOL.md).
//!
//! A state is everything that matters: objects in the store, writes under way, nodes with their pools and memories,
//! collectors, the hub. A step is what the code does between two moments at which others may act or it may die. The
//! invariants I1 to I8 hold in every state that can be reached; with any one rule of PROTOCOL.md §2 switched off, one of
//! them does not, and the table [`OFF`] says which.
//!
//! One world with everything in it would never be searched to its end, so there are several small ones
//! (`scenario.rs`), each with what one part of the protocol needs, and larger forms of them in the test that is ignored:
//!
//! ```text
//! cargo test -p tests --test model                              all small worlds, all rules off one by one
//! MODEL_TRACE=1 cargo test -p tests --test model off            ... and how each rule that is off ends
//! cargo test -p tests --test model -- --ignored larger          larger worlds; MODEL_STATES bounds each
//! ```
//!
//! | steps | in the code |
//! |---|---|
//! | `Snapshot`, `Upload`, `Uploaded`, `Send` | `csi::sync`, `cas::Session::{next_pack, put_pack}`, `cas::lifecycle::publish` |
//! | `Deliver`, `Settle` | `cas/src/settle.rs`, `cas/src/update.rs` |
//! | `First`, `SeeLive`, `CreateRecord` | `csi::create`, `cas::lifecycle::{begin_create, finish_create}`, `cas::references` |
//! | `Restore`, `Swap`, `Unmount` | `csi::restore`, `csi::settle` (`drop_old_trees`), `cas::lifecycle::restore_head` |
//! | `CloseGates`, `OpenGates`, `Release` | `csi::release`, `cas::lifecycle::release` |
//! | `Prepare`, `Take`, `Confirm` | `csi::acquire`, `cas::lifecycle::acquire`, `cas::Session::confirm_live` |
//! | `Judge`, `KeepAside`, `DropLost` | `csi::settle`: `judge`, `settle_locked`, `lose` |
//! | `Crash`, `Restart`, `SettleInherited` | `csi::start`, `cas::Session::{resume, raise}` |
//! | `ReadGc`, `RaisePin`, `BeginJoin`, `CreateSession`, `ReadGcAgain` | `cas::Session::{raise, join}` |
//! | `Fence` and the orders | `cas::session::fence`, `hub::{liveness, order}` |
//! | `Delete` … `Remove` | `cas::lifecycle::{delete, undelete, purge, forget_copy}` |
//! | `Begin` … `Rest`, `Thin` | `cas::gc`, `cas::thin` |
//!
//! Left out: time (a thing that may happen late may happen at any time), members (a volume's members move in one write),
//! pages of entries (part of their record), names, the cloning of pools (`story_23_*` in `cas`), and the epoch and state in
//! rule G, which say no more than the owner does wherever this model looks: a release or a deletion takes the owner too.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a model, in a test"
)]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a step that is not another's is nobody's: the searches say so"
)]

mod action;
mod collector;
mod hub;
mod invariants;
mod operation;
mod process;
mod rules;
mod scenario;
mod state;
mod store;
mod volume;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use invariants::Invariant::{
    self, Acknowledged, Collected, Doomed, Drained, Kept, NoWedge, OneOwner, PlannedAcquire, Whole,
};
use rules::{Rule, Rules};
use scenario::{LARGER, Protocol, SMALL, Scenario};
use stateright::{Checker as _, HasDiscoveries, Model as _};

/// What breaks where when a rule is switched off.
const OFF: &[(Rule, &str, Invariant)] = &[
    (Rule::SameBytes, "collection after a crash", Doomed),
    (Rule::OwnNonce, "lost answers and fences", PlannedAcquire),
    (Rule::Reapply, "labels and duplicates", PlannedAcquire),
    (Rule::GuardedEtag, "lost answers and fences", OneOwner),
    (Rule::GuardedEtag, "a pool that goes back in time", Acknowledged),
    (Rule::FreshRev, "labels and duplicates", Acknowledged),
    (Rule::FreshRev, "collection after a crash", Doomed),
    (Rule::Birth, "deletion of what a lost pool still holds", Kept),
    (Rule::Owner, "moves", OneOwner),
    (Rule::Head, "a pool that goes back in time", Acknowledged),
    (Rule::CreateEmpty, "collection beside forks", Whole),
    (Rule::PacksFirst, "collection beside publishing", Whole),
    (Rule::Confirm, "relocation beside forks", Doomed),
    (Rule::ConfirmMoved, "relocation beside forks", Whole),
    (Rule::HintRead, "collection beside joining", Doomed),
    (Rule::JoinAgain, "collection beside joining", Doomed),
    (Rule::EmptyIndex, "collection beside joining", Whole),
    (Rule::IndexOnAck, "collection beside deduplication", Whole),
    (Rule::RaiseWaits, "collection beside deduplication", Doomed),
    (Rule::RaiseDrops, "collection beside deduplication", Doomed),
    (Rule::SettleInherited, "collection after a crash", Doomed),
    (Rule::SettleRelease, "moves and crashes", PlannedAcquire),
    (Rule::SettleBeforeDrop, "crashes", PlannedAcquire),
    (Rule::SettleBeforeDrop, "restores and crashes", PlannedAcquire),
    (Rule::SnapFirst, "crashes", PlannedAcquire),
    (Rule::Ancestor, "restores", Whole),
    (Rule::JoinBeforeSnapshot, "crashes", Acknowledged),
    (Rule::AllRoots, "moves", PlannedAcquire),
    (Rule::OrphanFirst, "lost answers and fences", Kept),
    (Rule::CreateConfirms, "collection beside forks", Drained),
    (Rule::AnswerAfterHead, "creation", Acknowledged),
    (Rule::RecordBeforeSwap, "restores", Acknowledged),
    (Rule::RestoreSnapFirst, "restores", NoWedge),
    (Rule::KeepOldHead, "restores", Acknowledged),
    (Rule::KeepMounted, "restores under a mount", Kept),
    (Rule::ReleaseIsPublish, "moves", PlannedAcquire),
    (Rule::GatesClosed, "moves", Kept),
    (Rule::ReleaseClean, "moves", PlannedAcquire),
    (Rule::AcquireFree, "moves", PlannedAcquire),
    (Rule::AcquireHead, "moves", NoWedge),
    (Rule::AcquireConfirms, "collection beside moves", Drained),
    (Rule::OrdersAreRequests, "moves and fences", Kept),
    (Rule::FencedForEver, "collection beside joining", Doomed),
    (Rule::OwnerPublishesFirst, "deletion", PlannedAcquire),
    (Rule::EntriesStay, "deletion beside collection", Whole),
    (Rule::Quarantine, "deletion of what a lost pool still holds", Kept),
    (Rule::TombstoneKeeps, "deletion", Kept),
    (Rule::HoldersFirst, "deletion", Collected),
    (Rule::ThinKept, "restores", Acknowledged),
    (Rule::ThinBounded, "retention", Acknowledged),
    (Rule::Low, "collection beside publishing", Doomed),
    (Rule::WaitForPins, "collection beside deduplication", Doomed),
    (Rule::FenceLaggards, "collection after a crash", Collected),
    (Rule::Drain, "collection beside forks", Whole),
    (Rule::MarkAgain, "collection beside deduplication", Whole),
    (Rule::CompareAndSwap, "a stalled collector", Doomed),
    (Rule::DoomedStays, "a stalled collector", Whole),
    (Rule::ErrorEndsRound, "two collectors", Whole),
    (Rule::CopyMarkedAgain, "relocation of what a fork still reads", Whole),
    (Rule::MovedFirst, "relocation", Whole),
    (Rule::MovedIsRoot, "relocation", Whole),
    (Rule::FollowMoved, "relocation", Whole),
];

/// What a search found.
struct Search {
    states: usize,
    steps: usize,
    whole: bool,
    took: Duration,
    broken: Vec<&'static str>,
    trace: Vec<String>,
}

/// Searches a world breadth first: to its end, to `most` steps, or until one of `wanted` is found broken.
fn search(model: Protocol, most: usize, wanted: Option<Invariant>) -> Search {
    let began = Instant::now();
    let until = match wanted {
        Some(wanted) => HasDiscoveries::AnyOf(BTreeSet::from([wanted.says()])),
        None => HasDiscoveries::AnyFailures,
    };
    let checker = model.checker().threads(2).target_state_count(most).finish_when(until).spawn_bfs().join();
    let says = Invariant::ALL.map(Invariant::says);
    let found = checker.discoveries();
    let broken: Vec<_> = says.into_iter().filter(|says| found.contains_key(says)).collect();
    let shown =
        wanted.map(Invariant::says).filter(|says| found.contains_key(says)).or(broken.first().copied());
    let trace = shown.and_then(|says| found.get(says).cloned()).map_or_else(Vec::new, |path| {
        path.into_actions().into_iter().map(|action| format!("{action:?}")).collect()
    });
    Search {
        states: checker.unique_state_count(),
        steps: checker.state_count(),
        whole: checker.is_done() && checker.state_count() < most,
        took: began.elapsed(),
        broken,
        trace,
    }
}

/// Nothing here comes near it; a world that grows to it is to be made smaller.
const MOST: usize = 20_000_000;

fn search_whole(scenarios: &[Scenario], most: usize, must_end: bool) {
    let (mut states, mut took) = (0, Duration::ZERO);
    for scenario in scenarios {
        let found = search(scenario.with(Rules::ALL), most, None);
        let end = if found.whole { "whole" } else { "cut" };
        println!(
            "{:>9} states {:>9} steps {:>6.1} s {end}: {}",
            found.states,
            found.steps,
            found.took.as_secs_f64(),
            scenario.name
        );
        assert!(
            found.broken.is_empty(),
            "{}: {:?}\n  {}",
            scenario.name,
            found.broken,
            found.trace.join("\n  ")
        );
        assert!(found.whole || !must_end, "{} was not searched whole", scenario.name);
        states += found.states;
        took += found.took;
    }
    println!("{states} states of {} worlds, in {:.1} s: I1 to I8 hold", scenarios.len(), took.as_secs_f64());
}

#[test]
fn with_every_rule_on_the_invariants_hold_in_every_state() {
    search_whole(SMALL, MOST, true);
}

#[test]
#[ignore = "minutes to hours; MODEL_STATES bounds each world"]
fn larger_worlds_keep_the_invariants_too() {
    let most = std::env::var("MODEL_STATES").map_or(30_000_000, |text| text.parse().unwrap());
    search_whole(LARGER, most, false);
}

#[test]
fn each_rule_that_is_off_breaks_an_invariant() {
    let tried: BTreeSet<Rule> = OFF.iter().map(|(rule, ..)| *rule).collect();
    let missing: Vec<&Rule> = Rule::ALL.iter().filter(|rule| !tried.contains(rule)).collect();
    assert!(missing.is_empty(), "never switched off: {missing:?}");
    let (mut states, mut failures) = (0, Vec::new());
    for (rule, name, invariant) in OFF {
        let found = search(Scenario::named(name).without(*rule), MOST, Some(*invariant));
        states += found.states;
        let says = invariant.says();
        let broken = found.broken.contains(&says);
        let steps = found.trace.len();
        println!("{:>8} states, {steps:>2} steps: without {rule:?}, {says} [{name}]", found.states);
        if std::env::var_os("MODEL_TRACE").is_some() {
            println!("           {}\n           {}", rule.says(), found.trace.join("\n           "));
        }
        if !broken {
            failures.push(format!("{rule:?} is off in {name}, and {says} holds ({:?} broken)", found.broken));
        }
    }
    println!("{} rules, {states} states", tried.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
