//! A whole group in virtual time, driven through random schedules of what users do and what befalls them: the real election,
//! and the real hand-over, of a few adapters, and models of everything around them.
//!
//! A broken promise prints its seed. `SIMULATION_SEED=<seed> cargo test --test simulation` runs that one alone and shows
//! its last steps (`SIMULATION_STEPS` of them); `SIMULATION_SCHEDULES` sets how many are run.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test that reports")]

mod adapter;
mod by_labels;
mod by_lock;
mod database;
mod handover;
mod judge;
mod kernel;
mod link;
mod random;
mod sender;
mod server;
mod settings;
mod store;
mod world;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::judge::Verdict;
use crate::world::World;

/// What is broken on purpose, to see that the simulation notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A standby lets go of what it has buffered, covered or not.
    DropUnobserved,
    /// A take-over appends what is buffered without comparing.
    DrainUncompared,
    /// A take-over does not wait for writers of the old term.
    SkipDrain,
    /// A write does not compare the counter of reconciliations.
    IgnoreReconciled,
    /// What is to be appended counts as stored only once it is committed.
    ReserveLate,
    /// What a sender was about to store counts as covering the same sample.
    ReservedCovers,
    /// What others have got in the way of is appended again as it is.
    SortAgainAll,
    /// What sealing removed unseen counts as seen.
    IgnoreSealed,
    /// All clocks are taken for the server's.
    IgnoreClocks,
    /// A stale heartbeat counts as fresh.
    StaleIsStandby,
    /// A heartbeat takes the lock again, and resigning gives it back once.
    LockTwice,
    /// What is late counts as stored.
    DropLate,
    /// A role is believed beyond its time, and transactions do not compare the token.
    WriteUnfenced,
}

/// Schedules of one run.
const SCHEDULES: u64 = 3_000;

/// Schedules in which a bug has to be found.
const BUG_SCHEDULES: u64 = 3_000;

/// So many of these may break rules until the one that a bug breaks is found.
const BROKEN_MAX: usize = 50;

/// Last steps shown of a failure.
const TRACE_STEPS: u64 = 150;

#[derive(Debug, Default)]
struct Totals {
    schedules: u64,
    events: u64,
    terms: i64,
    acknowledged: usize,
    stored: usize,
    reconciled: usize,
    died: usize,
    /// Schedules in which something died.
    with_died: u64,
    twice: usize,
    dense: usize,
    unsure: usize,
    orderless: usize,
    disordered: usize,
    skewed: usize,
    broken: Vec<(u64, String)>,
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn play(seed: u64, by_labels: bool, bug: Option<Bug>) -> (Verdict, u64) {
    let world = World::new(seed, by_labels, bug, false);
    world.run();
    (world.judge.verdict.take(), world.kernel.events.get())
}

impl Totals {
    fn add(&mut self, seed: u64, verdict: Verdict, events: u64) {
        self.schedules += 1;
        self.events += events;
        self.terms += verdict.terms;
        self.acknowledged += verdict.acknowledged;
        self.stored += verdict.stored;
        self.reconciled += verdict.reconciled;
        self.died += verdict.died;
        self.with_died += u64::from(verdict.died > 0);
        self.twice += verdict.twice;
        self.dense += verdict.dense;
        self.unsure += verdict.unsure;
        self.orderless += verdict.orderless;
        self.disordered += verdict.disordered;
        self.skewed += verdict.skewed;
        self.broken.extend(verdict.broken.map(|broken| (seed, broken)));
    }

    fn merge(mut self, part: Self) -> Self {
        self.schedules += part.schedules;
        self.events += part.events;
        self.terms += part.terms;
        self.acknowledged += part.acknowledged;
        self.stored += part.stored;
        self.reconciled += part.reconciled;
        self.died += part.died;
        self.with_died += part.with_died;
        self.twice += part.twice;
        self.dense += part.dense;
        self.unsure += part.unsure;
        self.orderless += part.orderless;
        self.disordered += part.disordered;
        self.skewed += part.skewed;
        self.broken.extend(part.broken);
        self.broken.sort();
        self
    }
}

/// Runs schedules on every core, up to `broken_max` failures.
fn run(by_labels: bool, schedules: u64, bug: Option<Bug>, broken_max: usize) -> Totals {
    let next = AtomicU64::new(variable("SIMULATION_FROM").unwrap_or(0));
    let until = next.load(Ordering::Relaxed) + schedules;
    let stop = AtomicBool::new(false);
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let work = || {
        let mut totals = Totals::default();
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= until {
                break;
            }
            let (verdict, events) = play(seed, by_labels, bug);
            totals.add(seed, verdict, events);
            stop.fetch_or(totals.broken.len() >= broken_max, Ordering::Relaxed);
        }
        totals
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let parts = threads.into_iter().map(|thread| thread.join().expect("a worker panicked"));
        parts.fold(Totals::default(), Totals::merge)
    })
}

fn show(seed: u64, by_labels: bool) -> Option<String> {
    let world = World::new(seed, by_labels, None, true);
    println!("seed {seed}: {:#?}", world.settings);
    world.run();
    let (steps, trace) = (variable("SIMULATION_STEPS").unwrap_or(TRACE_STEPS), world.trace());
    let skipped = trace.len().saturating_sub(usize::try_from(steps).unwrap_or(usize::MAX));
    trace[skipped..].iter().for_each(|line| println!("{line}"));
    world.judge.verdict.take().broken
}

/// Runs them all, and fails on the first broken promise, having shown its last steps.
fn check(by_labels: bool, schedules: u64) -> Option<Totals> {
    if let Some(seed) = variable("SIMULATION_SEED") {
        assert_eq!(show(seed, by_labels), None, "seed {seed}");
        return None;
    }
    let started = Instant::now();
    let schedules = variable("SIMULATION_SCHEDULES").unwrap_or(schedules);
    let broken_max = usize::try_from(variable("SIMULATION_BROKEN").unwrap_or(1)).unwrap_or(1);
    let totals = run(by_labels, schedules, None, broken_max);
    eprintln!("{:.1} s: {totals:#?}", started.elapsed().as_secs_f64());
    if let Some((seed, broken)) = totals.broken.first() {
        if broken_max == 1 {
            show(*seed, by_labels);
        }
        panic!("seed {seed}: {broken}; run it alone: SIMULATION_SEED={seed} cargo test --test simulation");
    }
    Some(totals)
}

#[test]
fn no_schedule_breaks_the_promise() {
    check(false, SCHEDULES);
}

#[test]
fn no_schedule_by_labels_breaks_the_promise() {
    check(true, SCHEDULES);
}

/// Each breaks its rule.
fn check_found(by_labels: bool, bugs: &[(Bug, &str)]) {
    if variable("SIMULATION_SEED").is_some() {
        return;
    }
    for (bug, rule) in bugs {
        // It may break another rule before.
        let is_found = [1, BROKEN_MAX].into_iter().any(|broken_max| {
            let totals = run(by_labels, BUG_SCHEDULES, Some(*bug), broken_max);
            eprintln!("{bug:?}: found after {} schedules: {:?}", totals.schedules, totals.broken);
            totals.broken.iter().any(|(_, broken)| broken.starts_with(rule))
        });
        assert!(is_found, "{bug:?} breaks the rule that begins {rule:?}");
    }
}

#[test]
fn every_injected_bug_is_found() {
    check_found(
        false,
        &[
            (Bug::DropUnobserved, "lost"),
            (Bug::DrainUncompared, "doubled"),
            (Bug::SkipDrain, "old term"),
            (Bug::IgnoreReconciled, "doubled"),
            (Bug::ReserveLate, "doubled"),
            (Bug::ReservedCovers, "lost"),
            (Bug::SortAgainAll, "doubled"),
            (Bug::IgnoreSealed, "doubled"),
            (Bug::IgnoreClocks, "backwards"),
            (Bug::StaleIsStandby, "stale"),
            (Bug::LockTwice, "unanswered"),
            (Bug::DropLate, "lost"),
            (Bug::WriteUnfenced, "old term"),
        ],
    );
}
