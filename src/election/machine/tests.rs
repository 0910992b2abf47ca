//! The machine against a model of PostgreSQL: two or three adapters in virtual time, with faults at any moment.

use crate::election::role::LeaderRow;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use uuid::Uuid;

use super::{Action, Machine, Reason};
use crate::election::orders::{Order, Refusal};
use crate::election::role::{Leader, Role};
use crate::election::{Config, Failing, Method, PrometheusTimeout};
use crate::storage::fence::Fence;

mod driver;
mod server;
mod steps;
mod world;

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// The process is stopped. Messages to it wait.
    Freeze,
    /// No message passes between adapter and server, and neither of them learns of it.
    Cut,
    /// Its Prometheus sends nothing.
    Silence,
    /// Messages take up to two seconds.
    Slow,
    /// The adapter does not end its next transactions.
    StuckWrites,
    /// The adapter's transactions fail, while its lock session is healthy.
    FailingWrites,
    /// An administrator ends its lock session.
    Terminate,
    /// SIGTERM, and a new process when the fault is over.
    Stop,
    /// SIGKILL, and a new process when the fault is over.
    Kill,
    /// The server is down: every session ends.
    ServerDown,
    /// Another program takes the lock if it is free, and keeps it.
    Stranger,
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    at: u64,
    lasts: u64,
    adapter: usize,
    kind: Kind,
}

#[derive(Clone, Debug)]
struct Story {
    adapters: usize,
    lease: Duration,
    timeout: PrometheusTimeout,
    faults: Vec<Fault>,
    /// The adapters, except the last, whose Prometheus sends after the faults. The last adapter's always does.
    sends_at_last: [bool; 2],
    seed: u64,
}

fn stories() -> impl Strategy<Value = Story> {
    let kind = proptest::sample::select(vec![
        Kind::Freeze,
        Kind::Cut,
        Kind::Silence,
        Kind::Slow,
        Kind::StuckWrites,
        Kind::FailingWrites,
        Kind::Terminate,
        Kind::Stop,
        Kind::Kill,
        Kind::ServerDown,
        Kind::Stranger,
    ]);
    let fault = (0..20_000_u64, 10..15_000_u64, 0..3_usize, kind).prop_map(|(at, lasts, adapter, kind)| Fault {
        at,
        lasts,
        adapter,
        kind,
    });
    let timeout = proptest::sample::select(vec![
        PrometheusTimeout::Never,
        PrometheusTimeout::After(Duration::from_secs(2)),
        PrometheusTimeout::After(Duration::from_secs(6)),
        PrometheusTimeout::Automatic,
    ]);
    let lease = proptest::sample::select(vec![Duration::from_secs(3), Duration::from_secs(10)]);
    (2..=3_usize, lease, timeout, proptest::collection::vec(fault, 0..8), any::<[bool; 2]>(), any::<u64>()).prop_map(
        |(adapters, lease, timeout, mut faults, sends_at_last, seed)| {
            faults.iter_mut().for_each(|fault| fault.adapter %= adapters);
            faults.sort_by_key(|fault| fault.at);
            Story { adapters, lease, timeout, faults, sends_at_last, seed }
        },
    )
}

fn config(lease: Duration, timeout: PrometheusTimeout) -> Config {
    Config {
        method: Method::AdvisoryLock(1),
        is_held: false,
        prometheus_timeout: timeout,
        liveness_interval: Duration::from_secs(10),
        election_interval: Duration::from_millis(250),
        lease,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_leads_and_never_two(story in stories()) {
        world::World::new(&story).run(&story);
    }
}

#[test]
fn lease_bounds_what_is_derived_from_it() {
    for seconds in 3..=300 {
        for millis in [0, 1, 333, 999] {
            let config = config(Duration::from_millis(seconds * 1000 + millis), PrometheusTimeout::Never);
            let (deadline, timeout) = (config.leader_deadline(), config.session_timeout());
            assert!(deadline < timeout && timeout < config.lease, "{config:?}");
            // With a clock that runs 10 % slow.
            assert!(deadline * 11 / 10 < timeout, "{config:?}");
            // One heartbeat may be lost, and the next may take as long as its timeout, before the term is in danger.
            assert!(config.stale_after() + config.heartbeat_interval() > config.heartbeat_interval() * 2);
            assert!(config.stale_after() < deadline, "{config:?}");
            assert!(config.heartbeat_interval() * 2 < deadline, "{config:?}");
            // A silent standby reads the row often enough for the server to see it.
            assert!(config.heartbeat_interval() < timeout, "{config:?}");
        }
    }
}

#[test]
fn a_new_session_of_a_sender_is_not_resigned() {
    let start = Instant::now();
    let mut machine = Machine::new(config(Duration::from_secs(10), PrometheusTimeout::Never), start);
    machine.on_liveness(None, start);
    assert_eq!(machine.next(start), Action::Connect);
    machine.on_connected(start);
    assert_eq!(machine.role(start), Role::Unknown, "nobody was silent");
    machine.on_tried(false, None, start);
    assert_eq!(machine.reason(start), Reason::LeaderStale);
    let later = start + Duration::from_secs(1);
    machine.on_liveness(Some(later), later);
    assert_eq!((machine.next(later), machine.role(later)), (Action::Observe, Role::Resigned));
    assert_eq!(machine.reason(later), Reason::PrometheusTimeout);
    machine.on_observed(None, later);
    machine.on_liveness(None, later);
    assert_eq!(
        machine.role(later),
        Role::Resigned,
        "until it knows better: a write waits, and finds leader or standby"
    );
    assert_eq!(machine.next(later), Action::TryLock);
    machine.on_tried(false, None, later);
    assert_eq!(machine.role(later), Role::Unknown);
}

/// Makes the machine lead in term `term` since `now`.
fn leads(machine: &mut Machine, term: i64, now: Instant) {
    assert_eq!(machine.next(now), Action::TryLock);
    machine.on_tried(true, None, now);
    assert_eq!(machine.next(now), Action::RaiseTerm);
    machine.on_term(Fence { group_no: 1, term, token: Uuid::from_u128(term.unsigned_abs().into()) }, now);
    machine.on_prepared();
    assert_eq!(machine.role(now).word(), "leader");
}

#[test]
fn failing_writes_cost_the_lead_for_half_a_lease() {
    let start = Instant::now();
    let lease = Duration::from_secs(10);
    let mut machine = Machine::new(config(lease, PrometheusTimeout::Never), start);
    machine.on_liveness(None, start);
    machine.on_connected(start);
    leads(&mut machine, 1, start);
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let failing = |since, last| Some(Failing { since: at(since), last: at(last) });
    let next = |machine: &mut Machine, second| {
        machine.on_heartbeat(at(second));
        machine.next(at(second))
    };
    let is_up = |machine: &mut Machine, second| matches!(next(machine, second), Action::Wait(_));
    machine.on_writes(failing(3, 12));
    assert!(is_up(&mut machine, 14), "not for so long yet");
    machine.on_writes(None);
    assert!(is_up(&mut machine, 15), "one was committed");
    machine.on_writes(failing(15, 25));
    assert_eq!(next(&mut machine, 25), Action::Close(Reason::WritesFailing));
    machine.on_closed(at(25));
    assert_eq!(machine.next(at(25)), Action::Connect);
    machine.on_connected(at(25));
    let observed = |term, age| LeaderRow {
        leader: Leader { holder: "other".into(), term },
        heartbeat_age: Duration::from_secs(age),
        yields_for: None,
    };
    assert_eq!(machine.next(at(26)), Action::Observe, "another one may do better");
    machine.on_observed(Some(observed(1, 3)), at(26));
    assert_eq!(machine.reason(at(26)), Reason::NobodyLeads);
    assert_eq!(machine.next(at(29)), Action::Observe);
    machine.on_observed(Some(observed(1, 6)), at(29));
    // No other adapter took the lead: this one leads again, and has a whole lease again.
    leads(&mut machine, 2, at(30));
    assert!(is_up(&mut machine, 30));
    machine.on_writes(failing(15, 39));
    assert!(is_up(&mut machine, 39));
    machine.on_writes(failing(15, 40));
    assert_eq!(next(&mut machine, 40), Action::Close(Reason::WritesFailing));
    machine.on_closed(at(40));
    machine.on_connected(at(40));
    machine.on_observed(Some(observed(3, 0)), at(41));
    assert_eq!((machine.role(at(41)).word(), machine.reason(at(41))), ("standby", Reason::LeaderElsewhere));
    assert_eq!(machine.next(at(42)), Action::TryLock, "that one leads, and fails in turn: this one may try again");
}

#[test]
fn one_that_cannot_store_what_it_holds_lets_others_try() {
    let start = Instant::now();
    let mut machine = Machine::new(config(Duration::from_secs(10), PrometheusTimeout::Never), start);
    machine.on_liveness(None, start);
    machine.on_connected(start);
    assert_eq!(machine.next(start), Action::TryLock);
    machine.on_tried(true, None, start);
    machine.on_term(Fence { group_no: 1, term: 1, token: Uuid::from_u128(1) }, start);
    assert_eq!(machine.role(start), Role::TakingOver);
    machine.on_lost(Reason::TakeOverFailed, start);
    assert_eq!(machine.next(start), Action::Close(Reason::TakeOverFailed));
    machine.on_closed(start);
    let later = start + Duration::from_secs(1);
    assert_eq!(machine.next(start), Action::Wait(later), "longer than they take to notice");
    assert_eq!(machine.next(later), Action::Connect);
}

#[test]
fn one_that_is_told_to_lead_leads_on_though_its_writes_fail() {
    let start = Instant::now();
    let is_external =
        Config { method: Method::External("1".into()), ..config(Duration::from_secs(3), PrometheusTimeout::Never) };
    let mut machine = Machine::new(is_external, start);
    machine.on_liveness(None, start);
    machine.on_connected(start);
    machine.on_order(Order::Lead, start, start + Duration::from_secs(3));
    assert_eq!(machine.next(start), Action::RaiseTerm);
    machine.on_term(Fence { group_no: 1, term: 1, token: Uuid::from_u128(1) }, start);
    machine.on_prepared();
    let later = start + Duration::from_secs(60);
    machine.on_heartbeat(later);
    machine.on_writes(Some(Failing { since: start, last: later }));
    assert!(matches!(machine.next(later), Action::Wait(_)));
}

#[test]
fn one_that_resigns_closes_its_session() {
    let start = Instant::now();
    let mut machine = Machine::new(config(Duration::from_secs(10), PrometheusTimeout::Never), start);
    machine.on_liveness(None, start);
    machine.on_connected(start);
    leads(&mut machine, 1, start);
    machine.on_order(Order::HandOver { to: "nobody".into() }, start, start + Duration::from_secs(10));
    assert_eq!(machine.next(start), Action::HandOver);
    machine.on_no_such_peer(vec!["other".into()]);
    assert!(matches!(machine.outcome(start), Some(Err(Refusal::NoSuchPeer { .. }))));
    assert!(matches!(machine.next(start), Action::Wait(_)), "it leads on");
    machine.on_order(Order::Resign, start, start + Duration::from_secs(10));
    assert_eq!(machine.next(start), Action::Close(Reason::Requested));
    assert_eq!(machine.outcome(start), None, "it is not done yet");
    machine.on_closed(start);
    assert_eq!(machine.outcome(start), Some(Ok(())));
    machine.on_connected(start);
    assert_eq!(machine.next(start), Action::Observe, "it stands back");
}

#[test]
fn a_leader_that_goes_stale_is_the_reason_not_to_stand_by() {
    let start = Instant::now();
    let config = config(Duration::from_secs(10), PrometheusTimeout::Never);
    let mut machine = Machine::new(config.clone(), start);
    machine.on_liveness(None, start);
    machine.on_connected(start);
    let leader = Leader { holder: "other".into(), term: 7 };
    let observed = LeaderRow { leader, heartbeat_age: Duration::from_secs(1), yields_for: None };
    machine.on_tried(false, Some(observed), start);
    assert_eq!((machine.role(start).word(), machine.reason(start)), ("standby", Reason::LeaderElsewhere));
    let stale = start + config.stale_after() - Duration::from_secs(1);
    assert_eq!((machine.role(stale), machine.reason(stale)), (Role::Unknown, Reason::LeaderStale));
}
