//! The machine against a model of PostgreSQL: two or three adapters in virtual time, and faults at any moment.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Action, Machine, Observed, Reason};
use crate::election::role::{Leader, Role};
use crate::election::{By, Config, PrometheusTimeout};

mod driver;
mod server;
mod world;

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// The process does nothing; what is sent to it waits.
    Freeze,
    /// Nothing passes between adapter and server, and neither learns of it.
    Cut,
    /// Its Prometheus sends nothing.
    Silence,
    /// Messages take up to two seconds.
    Slow,
    /// Its next transactions are not ended by it.
    StuckWrites,
    /// An administrator ends its lock session.
    Terminate,
    /// SIGTERM, and a new process when the fault is over.
    Stop,
    /// SIGKILL, and a new process when the fault is over.
    Kill,
    /// The server is down: every session ends.
    ServerDown,
    /// A stranger takes the lock if it is free, and keeps it.
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
    /// Whose Prometheus sends in the end; the last adapter's always does.
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
        by: By::Lock(1),
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
            // A clock that runs a tenth slow.
            assert!(deadline * 11 / 10 < timeout, "{config:?}");
            // One heartbeat may be lost, and the next may take as long as it is given, before the term is in danger.
            assert!(config.stale_after() + config.heartbeat_interval() > config.heartbeat_interval() * 2);
            assert!(config.stale_after() < deadline, "{config:?}");
            assert!(config.heartbeat_interval() * 2 < deadline, "{config:?}");
            // The server sees a standby that is silent look at the row often enough.
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

#[test]
fn a_leader_that_goes_stale_is_the_reason_not_to_stand_by() {
    let start = Instant::now();
    let config = config(Duration::from_secs(10), PrometheusTimeout::Never);
    let mut machine = Machine::new(config.clone(), start);
    machine.on_liveness(None, start);
    machine.on_connected(start);
    let leader = Leader { holder: "other".into(), term: 7 };
    let observed = Observed { leader, heartbeat_age: Duration::from_secs(1), yields_for: None };
    machine.on_tried(false, Some(observed), start);
    assert_eq!((machine.role(start).word(), machine.reason(start)), ("standby", Reason::LeaderElsewhere));
    let stale = start + config.stale_after() - Duration::from_secs(1);
    assert_eq!((machine.role(stale), machine.reason(stale)), (Role::Unknown, Reason::LeaderStale));
}
