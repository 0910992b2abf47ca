//! The machine step by step: details that the stories do not show, since they only check who leads, and not the reason.

use super::*;

const LEASE: Duration = Duration::from_secs(10);

/// Returns a machine that is connected and whose Prometheus sends.
fn connected(method: Method, start: Instant) -> Machine {
    let mut machine = Machine::new(Config { method, ..config(LEASE, PrometheusTimeout::Never) }, start);
    machine.on_liveness(None, start);
    assert_eq!(machine.next(start), Action::Connect);
    machine.on_connected(start);
    machine
}

/// Returns a machine that leads by its lock.
fn leading(start: Instant) -> Machine {
    let mut machine = connected(Method::AdvisoryLock(1), start);
    leads(&mut machine, 1, start);
    machine
}

fn observed(term: i64, yields_for: Option<Duration>) -> Option<LeaderRow> {
    Some(LeaderRow { leader: Leader { holder: "other".into(), term }, heartbeat_age: Duration::ZERO, yields_for })
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn every_reason_has_a_label_of_its_own() {
    let reasons = [
        Reason::Elected,
        Reason::LeaderElsewhere,
        Reason::PrometheusTimeout,
        Reason::SessionLost,
        Reason::HeartbeatOverdue,
        Reason::Fenced,
        Reason::WritesFailing,
        Reason::TakeOverFailed,
        Reason::LeaderStale,
        Reason::NobodyLeads,
        Reason::Shutdown,
        Reason::Requested,
    ];
    for reason in reasons {
        assert_eq!(reason.label().replace('_', ""), format!("{reason:?}").to_lowercase());
    }
}

#[test]
fn a_leader_looks_at_its_prometheus_between_heartbeats() {
    let start = Instant::now();
    let often = Config { liveness_interval: Duration::from_millis(300), ..config(LEASE, PrometheusTimeout::Never) };
    let mut machine = Machine::new(often, start);
    machine.on_liveness(None, start);
    machine.on_connected(start);
    leads(&mut machine, 1, start);
    let at = |millis| start + Duration::from_millis(millis);
    assert_eq!(machine.next(start), Action::Wait(at(300)));
    assert_eq!(machine.next(at(900)), Action::Wait(at(1_000)), "a heartbeat is due then");
    machine.on_liveness(Some(at(950)), at(900));
    assert_eq!(machine.next(at(900)), Action::Wait(at(950)), "it counts as silent then");
    machine.on_liveness(None, at(900));
    assert_eq!(machine.next(at(1_000)), Action::Heartbeat);
    machine.on_heartbeat(at(1_000));
    assert_eq!(machine.next(at(1_000)), Action::Wait(at(1_300)));
}

#[test]
fn a_term_ends_70_percent_of_the_lease_after_a_heartbeat() {
    let start = Instant::now();
    let mut machine = connected(Method::AdvisoryLock(1), start);
    assert_eq!(machine.deadline(), None);
    leads(&mut machine, 1, start);
    machine.on_heartbeat(start + seconds(2));
    machine.on_heartbeat(start + seconds(1));
    let end = start + seconds(9);
    assert_eq!(machine.deadline(), Some(end), "that of an earlier heartbeat does not end it sooner");
    let before = end - Duration::from_millis(1);
    assert_eq!((machine.reason(before), machine.role(before).word()), (Reason::Elected, "leader"));
    assert_eq!((machine.reason(end), machine.role(end).word()), (Reason::HeartbeatOverdue, "unknown"));
    assert_eq!(machine.next(end), Action::Close(Reason::HeartbeatOverdue));
    assert_eq!(machine.deadline(), None);
}

#[test]
fn a_session_that_cannot_be_opened_is_tried_again() {
    let start = Instant::now();
    let mut machine = Machine::new(config(LEASE, PrometheusTimeout::Never), start);
    for n in 1..3 {
        let now = start + seconds(n);
        assert_eq!(machine.next(now), Action::Connect);
        machine.on_lost(Reason::SessionLost, now);
        assert_eq!(machine.next(now), Action::Wait(now + super::super::RECONNECT));
        assert_eq!(machine.reason(now), Reason::SessionLost);
    }
}

#[test]
fn one_that_stops_gives_the_lead_up_and_takes_no_orders() {
    let start = Instant::now();
    let mut machine = leading(start);
    assert!(!machine.is_stopped());
    machine.on_shutdown();
    machine.on_order(Order::HandOver { to: "other".into() }, start, start + seconds(5));
    assert_eq!(machine.outcome(start), Some(Err(Refusal::Stopping)));
    assert_eq!(machine.next(start), Action::Close(Reason::Shutdown));
    machine.on_lost(Reason::SessionLost, start);
    machine.on_closed(start);
    assert!(machine.is_stopped());
    assert!(matches!(machine.next(start), Action::Wait(until) if until > start));
}

#[test]
fn whoever_is_named_has_half_of_the_lease_to_take_the_lead() {
    let start = Instant::now();
    let mut machine = connected(Method::AdvisoryLock(1), start);
    machine.on_observed(observed(3, Some(seconds(2))), start);
    let (before, then) = (start + seconds(1), start + seconds(2));
    assert_eq!((machine.next(before), machine.next(then)), (Action::Observe, Action::TryLock));
    machine.on_observed(None, before);
    assert_eq!(machine.reason(before), Reason::LeaderStale, "nobody is named any more");
    // An adapter that obtained the lock first releases it.
    let mut machine = connected(Method::AdvisoryLock(1), start);
    machine.on_tried(true, None, start);
    assert_eq!(machine.next(start), Action::RaiseTerm);
    machine.on_refused(start);
    assert_eq!(machine.next(start), Action::Close(Reason::Requested));
    machine.on_closed(start);
    machine.on_connected(start);
    let (before, then) = (start + seconds(4), start + seconds(5));
    assert_eq!((machine.next(before), machine.next(then)), (Action::Observe, Action::TryLock));
}

#[test]
fn one_that_has_handed_over_stands_back_until_another_leads() {
    let start = Instant::now();
    let handed_over = || {
        let mut machine = leading(start);
        machine.on_order(Order::HandOver { to: "other".into() }, start, start + seconds(8));
        assert_eq!(machine.next(start), Action::HandOver);
        assert_eq!(machine.successor(), Some("other"));
        machine.on_handed_over(start);
        assert_eq!(machine.next(start), Action::Close(Reason::Requested));
        assert_eq!(machine.outcome(start), None, "until the session is closed");
        machine.on_closed(start);
        assert_eq!(machine.outcome(start), Some(Ok(())));
        machine.on_connected(start);
        machine
    };
    let mut machine = handed_over();
    let (before, then) = (start + seconds(4), start + seconds(5));
    assert_eq!((machine.next(before), machine.next(then)), (Action::Observe, Action::TryLock));
    let mut machine = handed_over();
    machine.on_observed(observed(1, None), start);
    assert_eq!(machine.next(before), Action::Observe, "that is its own term still");
    machine.on_observed(observed(2, None), before - seconds(1));
    assert_eq!(machine.next(before), Action::TryLock, "another one has led");
}

#[test]
fn a_lead_that_is_lost_is_not_handed_over() {
    let start = Instant::now();
    let mut machine = leading(start);
    machine.on_order(Order::HandOver { to: "other".into() }, start, start + seconds(8));
    machine.on_lost(Reason::SessionLost, start);
    machine.on_closed(start);
    assert_eq!(machine.outcome(start), Some(Err(Refusal::Lost("session_lost"))));
    assert_eq!(machine.outcome(start), None, "once");
}

#[test]
fn who_does_not_lead_has_nothing_to_give_up() {
    let start = Instant::now();
    let mut machine = connected(Method::AdvisoryLock(1), start);
    let until = start + seconds(8);
    for order in [Order::Resign, Order::HandOver { to: "other".into() }] {
        machine.on_order(order, start, until);
        assert_eq!(machine.outcome(start), Some(Err(Refusal::NotLeader)));
    }
    machine.on_order(Order::Lead, start, until);
    assert_eq!(machine.outcome(start), Some(Err(Refusal::NotAppointable)));
    let mut told = connected(Method::External("1".into()), start);
    told.on_order(Order::Resign, start, until);
    assert_eq!(told.outcome(start), Some(Err(Refusal::NotLeader)));
    told.on_order(Order::HandOver { to: "other".into() }, start, until);
    assert_eq!(told.outcome(start), Some(Err(Refusal::Appointed)));
    told.on_order(Order::Lead, start, until);
    told.on_order(Order::Resign, start, until);
    assert_eq!(told.outcome(start), Some(Ok(())), "it was told, and did not lead yet");
    assert_eq!(told.next(start), Action::Observe);
}

#[test]
fn one_that_is_held_is_out_of_elections_until_released() {
    let start = Instant::now();
    let held = Config { is_held: true, ..config(LEASE, PrometheusTimeout::Never) };
    let mut machine = Machine::new(held.clone(), start);
    machine.on_liveness(None, start);
    machine.on_connected(start);
    assert_eq!((machine.is_held(), machine.next(start)), (true, Action::Observe));
    machine.on_observed(None, start);
    assert_eq!(machine.reason(start), Reason::NobodyLeads, "whoever leads, it is not for this one to try");
    machine.on_order(Order::Release, start, start + seconds(8));
    assert_eq!((machine.outcome(start), machine.is_held()), (Some(Ok(())), false));
    leads(&mut machine, 1, start);
    machine.on_order(Order::Hold, start, start + seconds(8));
    assert_eq!((machine.outcome(start), machine.next(start)), (None, Action::Close(Reason::Requested)));
    machine.on_closed(start);
    machine.on_connected(start);
    assert_eq!((machine.outcome(start), machine.is_held()), (Some(Ok(())), true));
    assert_eq!(machine.next(start + seconds(100)), Action::Observe);
    // An excluded adapter cannot be appointed.
    let mut machine = Machine::new(Config { method: Method::External("1".into()), ..held }, start);
    machine.on_order(Order::Lead, start, start + seconds(8));
    assert_eq!(machine.outcome(start), Some(Err(Refusal::Held)));
}

#[test]
fn an_order_that_takes_too_long_is_withdrawn() {
    let start = Instant::now();
    let mut machine = connected(Method::External("1".into()), start);
    let until = start + seconds(3);
    machine.on_order(Order::Lead, start, until);
    assert_eq!(machine.next(start), Action::RaiseTerm);
    assert_eq!(machine.outcome(until - Duration::from_millis(1)), None);
    machine.on_lost(Reason::SessionLost, until);
    let overdue = Refusal::Overdue { after: seconds(3), reason: "session_lost", trouble: None };
    assert_eq!(machine.outcome(until), Some(Err(overdue)));
    machine.on_closed(until);
    let later = until + seconds(1);
    machine.on_connected(later);
    assert_eq!((machine.next(later), machine.reason(later)), (Action::Observe, Reason::SessionLost));
}

#[test]
fn somebody_who_waits_for_an_order_is_told_in_time() {
    let start = Instant::now();
    let mut machine = leading(start);
    machine.on_order(Order::Hold, start, start + Duration::from_millis(10));
    let mut stopped = machine.clone();
    assert_eq!(machine.next(start), Action::Close(Reason::Requested));
    stopped.on_lost(Reason::SessionLost, start);
    stopped.on_closed(start);
    assert_eq!(stopped.next(start), Action::Wait(start + Duration::from_millis(10)));
}

#[test]
fn one_that_was_told_leads_on_unless_another_was_told_later() {
    let start = Instant::now();
    let mut machine = connected(Method::External("1".into()), start);
    let until = start + seconds(8);
    machine.on_order(Order::Lead, start, until);
    assert_eq!((machine.next(start), machine.follows()), (Action::RaiseTerm, None), "whoever leads");
    let token = Uuid::from_u128(7);
    machine.on_term(Fence { group_no: 1, term: 1, token }, start);
    assert_eq!(machine.outcome(start), None);
    machine.on_prepared();
    assert_eq!((machine.outcome(start), machine.follows()), (Some(Ok(())), Some(token)));
    // After a second appointment it must prove that its term is in force.
    machine.on_order(Order::Lead, start, until);
    assert_eq!((machine.outcome(start), machine.next(start)), (None, Action::Heartbeat));
    machine.on_heartbeat(start);
    assert_eq!((machine.outcome(start), machine.follows()), (Some(Ok(())), Some(token)));
    // A lost session is no order: the adapter leads again if its own term is still in force.
    machine.on_lost(Reason::SessionLost, start);
    machine.on_closed(start);
    let later = start + seconds(1);
    machine.on_connected(later);
    assert_eq!((machine.next(later), machine.follows()), (Action::RaiseTerm, Some(token)));
    machine.on_refused(later);
    assert_eq!(machine.next(later), Action::Close(Reason::Fenced));
    machine.on_closed(later);
    let last = later + seconds(1);
    machine.on_connected(last);
    assert_eq!((machine.next(last), machine.follows()), (Action::Observe, None));
    // An order that is not carried out yet stays in force.
    machine.on_order(Order::Lead, last, last + seconds(8));
    assert_eq!(machine.next(last), Action::RaiseTerm);
    machine.on_lost(Reason::Fenced, last);
    machine.on_closed(last);
    machine.on_connected(last + seconds(1));
    assert_eq!(machine.next(last + seconds(1)), Action::RaiseTerm);
}
