use std::sync::Arc;

use super::*;
use crate::election::liveness_monitor::LivenessMonitor;

fn at(start: Instant, ms: u64) -> Instant {
    start + Duration::from_millis(ms)
}

#[test]
fn silence_counts_from_the_last_sign_of_life() {
    let start = Instant::now();
    let mut liveness = Liveness::new(PrometheusTimeout::After(Duration::from_secs(6)));
    assert_eq!(liveness.silent_at(start), Some(start), "one that never sent is silent");
    liveness.begin(start);
    assert_eq!(liveness.silent_at(at(start, 9_000)), Some(at(start, 15_000)), "a request in flight is life");
    liveness.end(at(start, 10_000), false);
    assert_eq!(liveness.silent_at(at(start, 11_000)), Some(at(start, 16_000)));
}

#[test]
fn our_refusals_are_no_silence() {
    let start = Instant::now();
    let mut liveness = Liveness::new(PrometheusTimeout::After(Duration::from_secs(3)));
    liveness.begin(start);
    liveness.end(start, true);
    assert_eq!(liveness.silent_at(start), Some(at(start, 8_000)));
}

#[test]
fn an_accepted_request_ends_the_excuse() {
    let start = Instant::now();
    let mut liveness = Liveness::new(PrometheusTimeout::After(Duration::from_secs(3)));
    liveness.begin(start);
    liveness.end(start, true);
    liveness.begin(at(start, 100));
    liveness.end(at(start, 200), false);
    assert_eq!(liveness.silent_at(at(start, 200)), Some(at(start, 3_200)));
}

#[test]
fn a_sender_that_vanishes_is_not_excused() {
    let heard = Arc::new(LivenessMonitor::new(PrometheusTimeout::After(Duration::from_secs(3))));
    let silent_in = || heard.read().silent_at(Instant::now()).unwrap().saturating_duration_since(Instant::now());
    drop(heard.begin());
    assert!(silent_in() <= Duration::from_secs(3));
    heard.begin().refused();
    assert!(silent_in() > Duration::from_secs(3));
}

#[test]
fn the_gap_after_a_refusal_is_not_learned() {
    let start = Instant::now();
    let mut liveness = Liveness::new(PrometheusTimeout::Automatic);
    let beats = [(0, false), (3_000, true), (7_900, false), (10_900, false), (13_900, false), (16_900, false)];
    for (ms, refused) in beats {
        liveness.begin(at(start, ms));
        liveness.end(at(start, ms), refused);
    }
    assert_eq!(liveness.timeout(), Some(Duration::from_millis(7_500)));
}

#[test]
fn automatic_stays_within_its_bounds() {
    let check = |gap_ms: u64, expected| {
        let start = Instant::now();
        let mut liveness = Liveness::new(PrometheusTimeout::Automatic);
        for beat in 0..=15_000 / gap_ms.min(15_000) {
            liveness.begin(at(start, beat * gap_ms));
            liveness.end(at(start, beat * gap_ms), false);
        }
        assert_eq!(liveness.timeout(), Some(expected), "{gap_ms} ms");
    };
    check(100, AUTOMATIC_MIN);
    check(15_000, Duration::from_millis(37_500));
    check(3_600_000, AUTOMATIC_MAX);
}

#[test]
fn a_scrape_of_many_requests_is_one_beat() {
    let start = Instant::now();
    let mut liveness = Liveness::new(PrometheusTimeout::Automatic);
    for scrape in 0..20 {
        for request in 0..50 {
            let now = at(start, scrape * 30_000 + request * 5);
            assert!(liveness.silent_at(now).unwrap() >= now || scrape == 0, "scrape {scrape}, request {request}");
            liveness.begin(now);
            liveness.end(now, false);
            assert!(scrape < 2 || liveness.timeout() > Some(Duration::from_secs(60)));
        }
    }
}

#[test]
fn several_requests_at_once_are_life_until_the_last_ends() {
    let start = Instant::now();
    let mut liveness = Liveness::new(PrometheusTimeout::After(Duration::from_secs(3)));
    liveness.begin(start);
    liveness.begin(at(start, 100));
    liveness.end(at(start, 200), false);
    assert_eq!(liveness.silent_at(at(start, 60_000)), Some(at(start, 63_000)), "one is still under way");
    liveness.end(at(start, 61_000), false);
    assert_eq!(liveness.silent_at(at(start, 62_000)), Some(at(start, 64_000)));
}

#[test]
fn lines_count_the_connections_that_are_open() {
    let heard = Arc::new(LivenessMonitor::new(PrometheusTimeout::After(Duration::from_secs(60))));
    let is_closed = || heard.read().closed_at().is_some();
    let (first, second) = (heard.line(), heard.line());
    for line in [&first, &first, &second] {
        drop(heard.begin());
        line.wrote();
    }
    drop(heard.line());
    drop(first);
    assert!(!is_closed(), "one is still open");
    let third = heard.line();
    drop(heard.begin());
    third.wrote();
    drop(second);
    assert!(!is_closed(), "one is still open");
    drop(third);
    assert!(is_closed(), "though the last of them carried only one");
    drop(heard.begin());
    assert!(!is_closed(), "it is back");
    heard.line().wrote();
    assert!(!is_closed(), "one request a connection is a habit, not an end");
}

#[test]
fn an_own_freeze_is_nobodys_silence() {
    let start = Instant::now();
    let mut liveness = Liveness::new(PrometheusTimeout::After(Duration::from_secs(3)));
    liveness.begin(start);
    liveness.end(start, false);
    liveness.discount_pause(at(start, 1_000), at(start, 10_000));
    assert_eq!(liveness.silent_at(at(start, 10_000)), Some(at(start, 13_000)));
    liveness.discount_pause(at(start, 14_000), at(start, 20_000));
    assert_eq!(liveness.silent_at(at(start, 20_000)), Some(at(start, 13_000)), "silent before, silent after");
}

#[test]
fn never_is_never() {
    assert_eq!(Liveness::new(PrometheusTimeout::Never).silent_at(Instant::now()), None);
}

/// Returns the liveness of a sender that makes `requests` requests, 5 ms apart, at each of these times, in ms. Also
/// returns the times at which the sender counted as silent. Its connection is closed after it was idle for `idle` ms,
/// if that is set.
fn sends(
    timeout: PrometheusTimeout,
    times: impl IntoIterator<Item = u64>,
    requests: u64,
    idle: Option<u64>,
) -> (Instant, Liveness, Vec<u64>) {
    let start = Instant::now();
    let mut liveness = Liveness::new(timeout);
    let (mut last, mut carried, mut silent) = (0, 0, Vec::new());
    for ms in times {
        if let Some(closed) = idle.map(|idle| last + idle).filter(|closed| carried > 0 && *closed <= ms) {
            liveness.closed(carried > 1, at(start, closed));
            carried = 0;
        }
        if liveness.last().is_some() && liveness.silent_at(at(start, ms)) <= Some(at(start, ms)) {
            silent.push(ms);
        }
        for request in 0..requests {
            last = ms + request * 5;
            liveness.begin(at(start, last));
            liveness.end(at(start, last), false);
            if carried == 0 {
                liveness.connected();
            }
            carried += 1;
        }
    }
    (start, liveness, silent)
}

const TIMEOUTS: [PrometheusTimeout; 2] =
    [PrometheusTimeout::Automatic, PrometheusTimeout::After(Duration::from_secs(180))];

#[test]
fn one_that_closes_idle_connections_is_not_silent() {
    for timeout in TIMEOUTS {
        // vmagent: after 60 s, where scrapes are 75 s apart; the OpenTelemetry Collector after 90 s.
        for (interval, idle) in [(75_000, 60_000), (120_000, 90_000)] {
            for requests in [1, 3] {
                let scrapes = (0..20).map(|scrape| scrape * interval);
                let (_, liveness, silent) = sends(timeout, scrapes, requests, Some(idle));
                assert_eq!(silent, [0; 0], "{timeout:?}, every {interval} ms, {requests} requests");
                assert!(liveness.timeout() > Some(Duration::from_secs(150)));
            }
        }
    }
}

#[test]
fn one_that_renews_its_connections_is_not_silent() {
    for timeout in TIMEOUTS {
        for interval in [1_000, 5_000, 15_000, 60_000] {
            // With 1 a connection for each request, as without keep-alive; else a connection for each scrape of several
            // requests.
            for requests in [1, 2, 50] {
                let scrapes = (0..100).map(|scrape| scrape * interval + scrape % 3 * interval / 10);
                let (_, _, silent) = sends(timeout, scrapes, requests, Some(0));
                assert_eq!(silent, [0; 0], "{timeout:?}, every {interval} ms, {requests} requests");
            }
        }
    }
}

#[test]
fn one_that_dies_is_followed_within_its_pace_and_a_second() {
    for timeout in TIMEOUTS {
        let (start, mut liveness, _) = sends(timeout, (0..=60).map(|second| second * 1_000), 2, None);
        let last = at(start, 60_005);
        liveness.closed(true, at(start, 60_400));
        let silent_at = liveness.silent_at(at(start, 60_400)).unwrap();
        assert!(silent_at > last + Duration::from_millis(1_900), "{timeout:?}");
        assert!(silent_at <= last + Duration::from_millis(2_000), "{timeout:?}");
        liveness.begin(at(start, 68_000));
        liveness.end(at(start, 68_000), false);
        liveness.connected();
        for second in 69..100 {
            liveness.begin(at(start, second * 1_000));
            liveness.end(at(start, second * 1_000), false);
        }
        liveness.closed(true, at(start, 99_100));
        assert_eq!(
            liveness.silent_at(at(start, 99_100)),
            Some(at(start, 101_000)),
            "the time it was down is no gap of one that runs"
        );
    }
}

#[test]
fn one_that_hangs_before_it_dies_is_followed_when_it_is_closed() {
    let timeout = PrometheusTimeout::After(Duration::from_secs(60));
    let (start, mut liveness, _) = sends(timeout, (0..=60).map(|second| second * 1_000), 1, None);
    liveness.closed(true, at(start, 70_000));
    assert_eq!(liveness.silent_at(at(start, 70_000)), Some(at(start, 70_000)));
}

#[test]
fn a_closed_connection_never_lengthens_the_timeout() {
    let timeout = PrometheusTimeout::After(Duration::from_secs(6));
    let (start, mut liveness, _) = sends(timeout, (0..=6).map(|time| time * 5_500), 1, None);
    liveness.closed(true, at(start, 33_100));
    assert_eq!(liveness.silent_at(at(start, 33_100)), Some(at(start, 39_000)));
    let mut never = Liveness::new(PrometheusTimeout::Never);
    never.begin(start);
    never.end(start, false);
    never.closed(true, start);
    assert_eq!(never.silent_at(start), None);
}

#[test]
fn before_the_pace_is_known_a_closed_connection_tells_nothing() {
    for timeout in TIMEOUTS {
        let (start, mut liveness, _) = sends(timeout, [0, 1_000, 2_000], 3, None);
        liveness.closed(true, at(start, 2_100));
        assert!(liveness.silent_at(at(start, 2_100)) >= Some(at(start, 150_000)), "{timeout:?}");
    }
}

#[test]
fn one_that_comes_to_send_less_often_is_mistaken_twice_at_most() {
    // With a connection per scrape, closed at once, the first pauses look like restarts.
    let scrapes = (0..60).map(|second| second * 1_000).chain((1..20).map(|scrape| 59_000 + scrape * 30_000));
    let (_, _, silent) = sends(PrometheusTimeout::After(Duration::from_secs(180)), scrapes, 2, Some(0));
    assert_eq!(silent, [89_000, 119_000]);
}

#[test]
fn a_refused_sender_that_closes_connections_is_not_silent() {
    let timeout = PrometheusTimeout::After(Duration::from_secs(60));
    let (start, mut liveness, _) = sends(timeout, (0..=60).map(|second| second * 1_000), 1, None);
    liveness.begin(at(start, 61_000));
    liveness.end(at(start, 61_000), true);
    liveness.closed(true, at(start, 61_000));
    assert_eq!(liveness.silent_at(at(start, 61_000)), Some(at(start, 61_000) + BACKOFF_MAX + Duration::from_secs(2)));
}

#[test]
fn automatic_follows_the_longest_recent_gap() {
    let start = Instant::now();
    let mut liveness = Liveness::new(PrometheusTimeout::Automatic);
    let mut beat = |ms| {
        liveness.begin(at(start, ms));
        liveness.end(at(start, ms), false);
        liveness.timeout().unwrap()
    };
    assert_eq!(beat(0), UNLEARNED);
    for second in 1..15 {
        assert_eq!(beat(second * 1_000), UNLEARNED, "too early to tell");
    }
    assert_eq!(beat(15_000), AUTOMATIC_MIN);
    assert_eq!(beat(18_000), Duration::from_millis(7_500));
    assert!(beat(18_010) > Duration::from_millis(7_400), "a short gap hardly changes it");
}
