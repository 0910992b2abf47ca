use super::*;

#[test]
fn nothing_is_known_of_a_cluster_before_its_row_is_read() {
    let now = Instant::now();
    let mut cluster = Cluster::new(PrometheusTimeout::After(Duration::from_secs(15)));
    cluster.on_request("a", 0, now);
    assert_eq!(cluster.role("a", now), Role::Unknown);
    assert_eq!(cluster.candidate(None, now), Some("a"));
}

const TIMEOUT: Duration = Duration::from_secs(2);

/// The term in which `replica` leads, not heard in it yet.
fn term(term: i64, replica: &str) -> Option<Seen> {
    let token = Uuid::from_u128(u128::from(term.unsigned_abs()));
    let fence = Fence { group_no: 1, term, token };
    Some(Seen {
        fence,
        replica: replica.to_owned(),
        heard_ago: None,
        doubted_ago: None,
        watermark_ms: None,
        holes: Vec::new(),
        next: None,
        held_out: Vec::new(),
    })
}

/// One that has gone on for a minute in which `a` led, and `b` and `c` were heard.
fn settled(start: Instant) -> (Cluster, Instant) {
    let mut cluster = Cluster::new(PrometheusTimeout::After(TIMEOUT));
    let mut now = start;
    while now < start + Duration::from_secs(60) {
        for replica in ["a", "b", "c"] {
            cluster.on_request(replica, 0, now);
            cluster.on_answer(replica, false, now);
        }
        cluster.on_read(term(1, "a"), now, now);
        now += Duration::from_secs(1);
    }
    (cluster, now)
}

#[test]
fn a_replica_that_leads_has_its_whole_timeout_to_be_heard() {
    let (mut cluster, now) = settled(Instant::now());
    cluster.on_request("c", 0, now);
    cluster.on_read(term(2, "b"), now, now);
    assert_eq!(cluster.succession(now + Duration::from_millis(100)), None, "it has only just begun");
    assert!(!cluster.is_silent(now + Duration::from_millis(100)));
    let silent = now + TIMEOUT;
    for millis in [500, 1_000, 1_500, 2_000] {
        let now = now + Duration::from_millis(millis);
        cluster.on_request("c", 0, now);
        cluster.on_read(term(2, "b"), now, now);
    }
    assert_eq!(cluster.succession(silent).map(|succession| succession.replica), Some("c".to_owned()));
}

#[test]
fn a_connection_that_a_replica_closed_before_it_led_tells_nothing() {
    let (mut cluster, now) = settled(Instant::now());
    cluster.on_connected("b");
    cluster.on_closed("b", true, now);
    let later = now + Duration::from_millis(50);
    cluster.on_read(term(2, "b"), later, later);
    let later = now + Duration::from_millis(500);
    cluster.on_request("c", 0, later);
    assert_eq!(cluster.succession(later), None);
    // One that it closes as a leader does.
    cluster.on_request("b", 0, later);
    cluster.on_answer("b", false, later);
    cluster.on_connected("b");
    cluster.on_closed("b", true, later);
    let later = later + RECONNECT_TIME;
    assert_eq!(cluster.succession(later).map(|succession| succession.replica), Some("c".to_owned()));
}

#[test]
fn one_that_was_silent_goes_on_only_once_nobody_wants_to_follow_and_a_hole_is_open() {
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let mut cluster = Cluster::new(PrometheusTimeout::After(Duration::from_secs(60)));
    cluster.on_read(term(1, "a"), start, start);
    let token = cluster.seen().expect("it was read").fence.token;
    cluster.on_ready(token);
    for second in 1..=20 {
        cluster.on_request("a", 0, at(second));
        cluster.on_answer("a", false, at(second));
    }
    assert!(matches!(cluster.role("a", at(20)), Role::Leader { .. }));
    cluster.on_request("a", 0, at(28));
    assert_eq!(cluster.role("a", at(28)), Role::TakingOver, "it may have restarted");
    assert_eq!(cluster.doubted_ago(at(28)), Some(Duration::from_secs(8)), "others are told");
    assert!(!cluster.is_undisputed(at(28)));
    assert!(!cluster.is_undisputed(at(29)));
    assert!(cluster.is_undisputed(at(31)));
    assert_eq!(cluster.role("a", at(31)), Role::TakingOver, "no hole is open yet");
    cluster.on_hole(at(31));
    assert!(matches!(cluster.role("a", at(31)), Role::Leader { .. }));
}

#[test]
fn what_another_adapter_doubts_lets_a_replica_lead_that_only_this_one_is_sent() {
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let mut cluster = Cluster::new(PrometheusTimeout::After(Duration::from_secs(60)));
    let read = |heard, doubted| {
        let ago = |seconds: Option<u64>| seconds.map(Duration::from_secs);
        term(1, "a").map(|seen| Seen { heard_ago: ago(heard), doubted_ago: ago(doubted), ..seen })
    };
    cluster.on_read(read(Some(0), None), at(1), at(1));
    cluster.on_request("b", 0, at(5));
    cluster.on_read(read(Some(4), None), at(5), at(5));
    assert_eq!(cluster.succession(at(5)), None);
    cluster.on_read(read(Some(5), Some(5)), at(6), at(6));
    assert_eq!(cluster.succession(at(6)).map(|succession| succession.replica), Some("b".to_owned()));
    cluster.on_read(read(Some(0), Some(6)), at(7), at(7));
    assert_eq!(cluster.succession(at(7)), None, "it was heard meanwhile");
}

#[test]
fn one_that_is_to_yield_does_though_it_sends() {
    let (mut cluster, now) = settled(Instant::now());
    let next = |cluster: &mut Cluster, next: Option<Next>, held_out: &[&str]| {
        let held_out = held_out.iter().map(|replica| (*replica).to_owned()).collect();
        cluster.on_read(term(1, "a").map(|seen| Seen { next, held_out, ..seen }), now, now);
        cluster.succession(now).map(|succession| (succession.replica, succession.silent_for, succession.is_ordered))
    };
    let named = |replica: &str| Some(Next::Named(replica.to_owned()));
    let to = |replica: &str| Some((replica.to_owned(), Duration::ZERO, true));
    assert_eq!(next(&mut cluster, None, &["b"]), None, "another one is held");
    assert_eq!(next(&mut cluster, named("b"), &[]), to("b"));
    assert_eq!(next(&mut cluster, named("c"), &[]), to("c"));
    assert_eq!(next(&mut cluster, Some(Next::AnyOther), &["c"]), to("b"));
    assert_eq!(next(&mut cluster, None, &["a", "b"]), to("c"));
    assert_eq!(next(&mut cluster, named("d"), &[]), None, "it is not sent here");
    assert_eq!(next(&mut cluster, Some(Next::AnyOther), &["b", "c"]), None, "nobody may");
}

/// How far behind the clock of `a`, which leads, counts when `b` follows it after so long; the samples of both are so far ahead
/// when they come.
fn behind_ms(seconds: u64, ahead_ms: impl Fn(u64) -> [i64; 2]) -> i64 {
    let start = Instant::now();
    let mut cluster = Cluster::new(PrometheusTimeout::After(TIMEOUT));
    let at = |second| start + Duration::from_secs(second);
    for second in 0..=seconds + TIMEOUT.as_secs() {
        let senders = if second < seconds { &["a", "b"][..] } else { &["b"] };
        for replica in senders {
            cluster.on_request(replica, ahead_ms(second)[usize::from(*replica == "b")], at(second));
            cluster.on_answer(replica, false, at(second));
        }
        cluster.on_read(term(1, "a"), at(second), at(second));
    }
    cluster.succession(at(seconds + TIMEOUT.as_secs())).expect("a is silent").behind_ms
}

#[test]
fn a_sender_that_lags_is_not_taken_for_one_whose_clock_is_behind() {
    assert_eq!(behind_ms(15, |_| [-7_000, -5]), 0, "it has just been started on a busy machine");
    assert_eq!(behind_ms(300, |second| [-40_000 + i64::try_from(second).unwrap() * 130, -5]), 0, "it catches up");
    assert_eq!(behind_ms(300, |_| [-30_000, -5]), 29_995, "no lag stays as it is for minutes");
}

#[test]
fn a_clock_that_is_ahead_is_known_at_once() {
    assert_eq!(behind_ms(3, |_| [-5, 30_000]), 30_000);
    assert_eq!(behind_ms(3, |_| [30_000, -5]), 0, "the next one is behind");
}

/// How often the leading one is in doubt, heard at these times.
fn doubts(seconds: impl Iterator<Item = u64>) -> usize {
    let start = Instant::now();
    let mut cluster = Cluster::new(PrometheusTimeout::After(Duration::from_secs(60)));
    cluster.on_read(term(1, "a"), start, start);
    let token = cluster.seen().expect("it was read").fence.token;
    cluster.on_ready(token);
    let mut doubts = 0;
    for now in seconds.map(|seconds| start + Duration::from_secs(seconds)) {
        cluster.on_request("a", 0, now);
        cluster.on_answer("a", false, now);
        if !matches!(cluster.role("a", now), Role::Leader { .. }) {
            doubts += 1;
            cluster.on_hole(now);
        }
    }
    doubts
}

#[test]
fn one_that_sends_rarely_is_not_doubted_for_it() {
    for step in [1, 3, 5] {
        assert_eq!(doubts((0..300).step_by(step)), 0, "every {step} s");
    }
    assert_eq!(doubts((0..300).step_by(20)), 1, "which is learned");
    // A scrape a minute, sent within the first 45 s.
    let scrapes = (0..1_200).filter(|second| second % 60 <= 45 && second % 5 == 0);
    assert_eq!(doubts(scrapes), 1);
    assert_eq!(doubts((0..60).chain(66..90)), 1, "one that sends often was away");
    assert_eq!(doubts((0..60).step_by(5).chain((75..90).step_by(5))), 1, "and one that does not");
    assert_eq!(doubts((0..60).chain(66..300).chain(306..320)), 2, "again");
}
