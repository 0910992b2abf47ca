//! Simulation of a whole group in virtual time. Random schedules of user actions and faults drive the real election and
//! the real hand-over of a few adapters. Everything around these is a model.
//!
//! A broken promise prints its seed. `SIMULATION_SEED=<seed> cargo test --test simulation` runs only that schedule and
//! shows its last steps (`SIMULATION_STEPS` sets their number). `SIMULATION_SCHEDULES` sets the number of schedules.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test that reports")]

mod adapter;
mod by_labels;
mod by_lock;
mod database;
mod handover;
mod judge;
mod kernel;
mod link;
mod sender;
mod server;
mod settings;
mod store;
mod world;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::judge::Verdict;
use crate::world::World;

/// A bug that is injected on purpose, to check that the simulation detects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A standby drops its buffered samples, covered or not.
    DropUnobserved,
    /// A take-over appends the buffered samples without a comparison.
    DrainUncompared,
    /// A take-over does not wait for writers of the old term.
    SkipDrain,
    /// A write does not compare the counter of reconciliations.
    IgnoreReconciled,
    /// Samples to append count as stored only after their COMMIT.
    ReserveLate,
    /// A sample that a sender was about to append covers the same sample when it is sent again.
    ReservedCovers,
    /// After `Overtaken`, rows are appended again as they are, without sorting them again.
    SortAgainAll,
    /// Rows that sealing removed before they were observed count as observed.
    IgnoreSealed,
    /// All clocks are assumed to equal the server's.
    IgnoreClocks,
    /// A stale heartbeat counts as fresh.
    StaleIsStandby,
    /// A heartbeat takes the lock again, and resigning releases it only once.
    LockTwice,
    /// Late samples count as stored.
    DropLate,
    /// A role is used after it has expired, and transactions do not compare the token.
    WriteUnfenced,
}

/// Number of schedules of one run.
const SCHEDULES: u64 = 3_000;

/// Number of schedules in which an injected bug must be found.
const BUG_SCHEDULES: u64 = 3_000;

/// Maximum number of schedules that may break any rule before the rule that the bug breaks is found.
const BROKEN_MAX: usize = 50;

/// Number of last steps that a failure shows.
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
    /// Schedules in which samples died with a process.
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

/// Runs schedules on every core until a worker has seen `broken_max` failures.
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

/// Runs all schedules. Fails on the first broken promise, after showing its last steps.
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

/// Checks that each bug breaks its rule.
fn check_found(by_labels: bool, bugs: &[(Bug, &str)]) {
    if variable("SIMULATION_SEED").is_some() {
        return;
    }
    for (bug, rule) in bugs {
        // A bug may break another rule first.
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
