//! Every case that the receiver suite of github.com/prometheus/compliance names (`remotewrite/receiver`, commit 67b8327),
//! and further ones. The suite takes a 400 for an answer to valid requests and reads nothing back; here each case has one
//! status, exact counts, and all that is stored at its times is read back.

use std::collections::BTreeSet;

use rig::http::Response;

use crate::election::candidate;
use crate::setup::{Body, Database, SOON, now_ms, store};
use crate::write::written;
use case::{Case, valid};
use message::Version;
use stored::Stored;

mod case;
mod further;
mod message;
mod sender;
mod stored;
mod suite;

/// Returns what is wrong with an answer to a case.
fn fault(case: &Case, version: Version, answer: &Response) -> Option<String> {
    let expected = case.written(version);
    let is_right = answer.status == case.status
        && written(answer) == expected.each_ref().map(|count| count.as_deref())
        && answer.body.is_empty() == (case.status == 204);
    let got = || format!("{} {:?} {:?}", answer.status, written(answer), answer.text());
    (!is_right).then(|| format!("not {} {expected:?}: {}", case.status, got()))
}

/// Sends each case as the suite does, again as a Prometheus that has got no answer, and again with the labels in another
/// order. The answer must be the same, and what is stored must be what the case says, once.
async fn check(version: Version) {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let cases: Vec<Case> = suite::all().into_iter().chain(further::all()).collect();
    let cases: Vec<&Case> = cases.iter().filter(|case| case.versions.contains(&version)).collect();
    // No two cases have a time in common.
    let (start, mut said, mut faults) = (now_ms() - 20_000, BTreeSet::new(), Vec::new());
    for (time_ms, case) in (start..).step_by(10).zip(&cases) {
        let body = case.body(version, time_ms, false);
        let mut answers = vec![
            ("first", sender::like_the_suite(&adapter, case, version, body.clone()).await),
            ("retried", sender::like_prometheus(&adapter, case, version, body).await),
        ];
        if case.may_be_reversed() {
            let body = case.body(version, time_ms, true);
            answers.push(("reversed", sender::like_prometheus(&adapter, case, version, body).await));
        }
        for (how, answer) in &answers {
            let fault = fault(case, version, answer);
            faults.extend(fault.map(|fault| format!("{}, {how}: {fault}\n{}", case.name, case.why)));
        }
        let expected = Stored::expected(&case.series, time_ms);
        let found = Stored::read(&database, &adapter, &case.series, time_ms, &mut said).await;
        if found != expected {
            faults.push(format!("{}: stored is {found:?}\nnot {expected:?}\n{}", case.name, case.why));
        }
    }
    println!("version {version:?}: {} cases", cases.len());
    assert!(faults.is_empty(), "{} faults in {} cases:\n{}", faults.len(), cases.len(), faults.join("\n"));
}

#[tokio::test]
async fn version_1_is_answered_and_stored_as_the_cases_say() {
    check(Version::One).await;
}

#[tokio::test]
async fn version_2_is_answered_and_stored_as_the_cases_say() {
    check(Version::Two).await;
}

#[test]
fn the_cases_of_the_suite_are_all_there() {
    let cases = suite::all();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    let tests: BTreeSet<&str> = names.iter().map(|name| name.split('/').next().unwrap_or(name)).collect();
    assert_eq!((tests.len(), names.len()), (39, 121), "{tests:?}");
    // The suite sends all but those of 1.0 by 2.0.
    let by_version_2 = cases.iter().filter(|case| case.versions.contains(&Version::Two));
    assert_eq!(by_version_2.count(), 119);
}

/// A standby answers as a leader does: its Prometheus would take any other answer for a loss. It stores exemplars and
/// metadata, which have no leader, and the samples when it leads.
#[tokio::test]
async fn a_standby_answers_the_same_and_stores_it_when_it_leads() {
    let database = Database::new().await;
    let uri = database.server.uri(&database.name);
    let member = async |name| {
        let patient = "-leader-election-pg-advisory-lock-prometheus-timeout=60s";
        let adapter = candidate(&uri, name).arg(patient).start().await;
        let is_taken = async || (adapter.write(Body::new().compressed()).await.status == 204).then_some(());
        adapter.process().wait_until("it takes writes", SOON, is_taken).await;
        adapter.wait_role(name, SOON).await;
        adapter
    };
    let (leader, standby) = (member("leader").await, member("standby").await);
    let cases = suite::all();
    let cases: Vec<&Case> = cases.iter().filter(|case| case.versions.contains(&Version::Two)).collect();
    let (start, mut said, mut faults) = (now_ms() - 20_000, BTreeSet::new(), Vec::new());
    for (time_ms, case) in (start..).step_by(10).zip(&cases) {
        for n in 0..2 {
            let body = case.body(Version::Two, time_ms, n == 1);
            let answer = sender::like_prometheus(&standby, case, Version::Two, body).await;
            faults.extend(fault(case, Version::Two, &answer).map(|fault| format!("{}: {fault}", case.name)));
        }
        let expected = Stored::expected(&case.series, time_ms).without_samples();
        let found = Stored::read(&database, &leader, &case.series, time_ms, &mut said).await;
        if found != expected {
            faults.push(format!("{}: stored is {found:?}\nnot {expected:?}", case.name));
        }
    }
    leader.process().kill9().await;
    standby.wait_role("leader", SOON).await;
    store(&standby, Body::new().sample("after", now_ms(), 1.0)).await;
    for (time_ms, case) in (start..).step_by(10).zip(&cases) {
        let expected = Stored::expected(&case.series, time_ms);
        let found = Stored::read(&database, &standby, &case.series, time_ms, &mut BTreeSet::new()).await;
        if !found.has_samples_of(&expected) {
            faults.push(format!("{}: after the take-over, stored is {found:?}\nnot {expected:?}", case.name));
        }
    }
    assert!(faults.is_empty(), "{} faults in {} cases:\n{}", faults.len(), cases.len(), faults.join("\n"));
}

/// The suite sends one request at a time; a Prometheus has many shards, and may send a request again while its first attempt
/// is still under way.
#[tokio::test]
async fn requests_at_the_same_time_are_stored_once() {
    use message::Part::{Positive, Zero};
    use message::{native, series};
    let database = Database::new().await;
    let adapter = database.leader().await;
    let (start, mut said) = (now_ms() - 20_000, BTreeSet::new());
    for (round, version) in (0..).zip([Version::Two, Version::One, Version::Two, Version::One]) {
        let time_ms = start + 1_000 * round;
        // All begin with the same new series.
        let shared = format!("shared_{round}");
        let cases: [Case; 8] = std::array::from_fn(|n| {
            let (own, at) = (format!("own_{round}_{n}"), n as i64);
            let all = [
                series(&[("a", "1"), ("__name__", &shared)]).sample(at, at as f64),
                series(&[("a", "1"), ("__name__", &own)])
                    .histogram(at, native(0.5, &[Positive, Zero]))
                    .exemplar(at, 0.5, &[("trace_id", &own)])
                    .metadata(3, &format!("Of {own}."), ""),
            ];
            valid(own, [1, 1, 1], all)
        });
        let each = cases.iter().flat_map(|case| [case, case, case]).map(async |case| {
            let body = case.body(version, time_ms, false);
            (case, sender::like_prometheus(&adapter, case, version, body).await)
        });
        for (case, answer) in futures_util::future::join_all(each).await {
            assert_eq!(fault(case, version, &answer), None, "{}", case.name);
        }
        let all: Vec<_> = cases.iter().flat_map(|case| case.series.clone()).collect();
        let found = Stored::read(&database, &adapter, &all, time_ms, &mut said).await;
        assert_eq!(found, Stored::expected(&all, time_ms), "{version:?}");
    }
}
