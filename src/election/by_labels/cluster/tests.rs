use super::*;

#[test]
fn nothing_is_known_of_a_cluster_before_its_row_is_read() {
    let now = Instant::now();
    let mut cluster = Cluster::new(PrometheusTimeout::After(Duration::from_secs(15)));
    cluster.on_request("a", now);
    assert_eq!(cluster.role("a", now), Role::Unknown);
    assert_eq!(cluster.candidate(None, now), Some("a"));
}

const TIMEOUT: Duration = Duration::from_secs(2);

/// Returns a row of the term in which `replica` leads, and in which it has not been heard yet.
fn term(term: i64, replica: &str) -> Option<ClusterRow> {
    let token = Uuid::from_u128(u128::from(term.unsigned_abs()));
    let fence = Fence { group_no: 1, term, token };
    Some(ClusterRow {
        fence,
        replica: replica.to_owned(),
        heard_ago: None,
        patience: None,
        next: None,
        held_out: Vec::new(),
    })
}

/// Returns a cluster after one minute in which `a` led, and `b` and `c` were heard.
fn settled(start: Instant) -> (Cluster, Instant) {
    let mut cluster = Cluster::new(PrometheusTimeout::After(TIMEOUT));
    let mut now = start;
    while now < start + Duration::from_secs(60) {
        for replica in ["a", "b", "c"] {
            cluster.on_request(replica, now);
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
    cluster.on_request("c", now);
    cluster.on_read(term(2, "b"), now, now);
    assert_eq!(cluster.succession(now + Duration::from_millis(100)), None, "it has only just begun");
    assert!(!cluster.is_silent(now + Duration::from_millis(100)));
    let silent = now + TIMEOUT;
    for millis in [500, 1_000, 1_500, 2_000] {
        let now = now + Duration::from_millis(millis);
        cluster.on_request("c", now);
        cluster.on_read(term(2, "b"), now, now);
    }
    let succession = cluster.succession(silent).expect("it is silent");
    assert_eq!((succession.replica.as_str(), succession.told_within), ("c", None));
}

/// Lets a request of `replica` arrive and be answered.
fn send(cluster: &mut Cluster, replica: &str, now: Instant) {
    cluster.on_request(replica, now);
    cluster.on_answer(replica, false, now);
}

fn connections<'a>(cluster: &'a mut Cluster, replica: &str) -> &'a mut Liveness {
    cluster.heard(replica).expect("it was heard")
}

#[test]
fn a_connection_closed_before_the_term_tells_nothing() {
    let (mut cluster, now) = settled(Instant::now());
    let at = |millis| now + Duration::from_millis(millis);
    connections(&mut cluster, "b").connected();
    connections(&mut cluster, "b").closed(true, now);
    for millis in [50, 600, 1_200, 1_900] {
        cluster.on_read(term(2, "b"), at(millis), at(millis));
        send(&mut cluster, "c", at(millis));
        assert_eq!(cluster.succession(at(millis)), None, "{millis} ms");
    }
}

/// Returns a cluster in which `a` has led for a while, and in which `a` and `b` have sent once in `interval` to this
/// adapter. Also returns when they sent last.
fn steady(timeout: PrometheusTimeout, interval: Duration) -> (Cluster, Instant) {
    let mut cluster = Cluster::new(timeout);
    let mut now = Instant::now();
    for round in 0..30 {
        for replica in ["a", "b"] {
            send(&mut cluster, replica, now);
            if round == 0 {
                connections(&mut cluster, replica).connected();
            }
        }
        // Rounds go on meanwhile.
        for second in 0..interval.as_secs().max(1) {
            let now = now + Duration::from_secs(second);
            let seen = term(1, "a").map(|seen| ClusterRow { heard_ago: Some(Duration::from_secs(second)), ..seen });
            cluster.on_read(seen, now, now);
        }
        now += interval;
    }
    (cluster, now - interval)
}

const TIMEOUTS: [PrometheusTimeout; 2] =
    [PrometheusTimeout::Automatic, PrometheusTimeout::After(Duration::from_secs(180))];

/// Reads a row according to which `a` was last heard at `last`.
fn read(cluster: &mut Cluster, last: Instant, now: Instant) {
    let seen = term(1, "a").map(|seen| ClusterRow { heard_ago: Some(now - last), ..seen });
    cluster.on_read(seen, now, now);
}

#[test]
fn one_that_dies_is_followed_within_its_pace_and_a_second() {
    for timeout in TIMEOUTS {
        let (mut cluster, last) = steady(timeout, Duration::from_secs(1));
        let at = |millis| last + Duration::from_millis(millis);
        connections(&mut cluster, "a").closed(true, at(300));
        for millis in [300, 1_000, 1_990] {
            read(&mut cluster, last, at(millis));
            send(&mut cluster, "b", at(millis));
            assert_eq!(cluster.succession(at(millis)), None, "{timeout:?}, {millis} ms");
            assert_eq!(cluster.next_check_at(at(millis)), Some(at(2_000)), "{timeout:?}");
        }
        read(&mut cluster, last, at(2_000));
        let succession = cluster.succession(at(2_000)).expect("a is silent");
        assert_eq!(succession.replica, "b");
        assert_eq!(succession.silent_for, Duration::from_millis(1_500));
        assert_eq!(succession.told_within, Some(Duration::from_secs(1)), "others may have heard it since");
        assert!(!succession.is_ordered);
    }
}

#[test]
fn one_that_closes_idle_connections_leads_on() {
    for timeout in TIMEOUTS {
        // vmagent: after 60 s, where scrapes are 75 s apart.
        let (mut cluster, mut last) = steady(timeout, Duration::from_secs(75));
        for _ in 0..10 {
            for second in 1..75 {
                let now = last + Duration::from_secs(second);
                if second == 60 {
                    connections(&mut cluster, "a").closed(true, now);
                }
                read(&mut cluster, last, now);
                send(&mut cluster, "b", now);
                assert_eq!(cluster.succession(now), None, "{timeout:?}, {second} s");
            }
            last += Duration::from_secs(75);
            send(&mut cluster, "a", last);
            connections(&mut cluster, "a").connected();
        }
    }
}

#[test]
fn one_behind_a_proxy_that_renews_connections_leads_on() {
    for timeout in TIMEOUTS {
        for kept in [false, true] {
            let (mut cluster, mut last) = steady(timeout, Duration::from_secs(5));
            for _ in 0..10 {
                connections(&mut cluster, "a").closed(kept, last);
                for second in 1..5 {
                    let now = last + Duration::from_secs(second);
                    read(&mut cluster, last, now);
                    send(&mut cluster, "b", now);
                    assert_eq!(cluster.succession(now), None, "{timeout:?}, {kept}, {second} s");
                }
                last += Duration::from_secs(5);
                send(&mut cluster, "a", last);
                connections(&mut cluster, "a").connected();
            }
        }
    }
}

#[test]
fn one_that_has_gone_to_another_adapter_leads_on() {
    let (mut cluster, last) = steady(PrometheusTimeout::Automatic, Duration::from_secs(1));
    let at = |millis| last + Duration::from_millis(millis);
    connections(&mut cluster, "a").closed(true, at(100));
    for second in 1..60 {
        let now = at(second * 1_000);
        let seen = term(1, "a").map(|seen| ClusterRow {
            heard_ago: Some(Duration::from_millis(300)),
            patience: Some(Duration::from_secs(5)),
            ..seen
        });
        cluster.on_read(seen, now, now);
        send(&mut cluster, "b", now);
        assert_eq!(cluster.succession(now), None, "{second} s");
        assert_eq!(cluster.next_check_at(now), Some(now + Duration::from_millis(4_700)), "{second} s");
    }
}

#[test]
fn the_adapter_that_hears_a_replica_sets_its_patience() {
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    let mut cluster = Cluster::new(PrometheusTimeout::Automatic);
    let read = |heard, patience| {
        let millis = |millis: Option<u64>| millis.map(Duration::from_millis);
        term(1, "a").map(|seen| ClusterRow { heard_ago: millis(heard), patience: millis(patience), ..seen })
    };
    for second in 1..=5 {
        let now = at(second * 1_000);
        cluster.on_read(read(Some((second - 1) * 1_000), None), now, now);
    }
    send(&mut cluster, "b", at(5_000));
    assert_eq!(cluster.next_check_at(at(5_000)), Some(at(151_000)), "nobody has said");
    // Its connections to the adapter that hears it are closed.
    cluster.on_read(read(Some(5_000), Some(6_000)), at(6_000), at(6_000));
    assert_eq!(cluster.succession(at(6_999)), None);
    assert_eq!(cluster.succession(at(7_000)).map(|succession| succession.replica), Some("b".to_owned()));
    cluster.on_read(read(Some(0), Some(5_000)), at(7_000), at(7_000));
    assert_eq!(cluster.succession(at(7_000)), None, "it was heard meanwhile");
}

#[test]
fn what_was_not_read_is_no_silence() {
    let (mut cluster, last) = steady(PrometheusTimeout::After(Duration::from_secs(10)), Duration::from_secs(1));
    let at = |second| last + Duration::from_secs(second);
    connections(&mut cluster, "a").closed(true, last);
    // The database was out of reach, so the last reports of the other adapters are as old.
    read(&mut cluster, last, at(60));
    send(&mut cluster, "b", at(60));
    assert_eq!(cluster.succession(at(60)), None);
    for second in 61..70 {
        read(&mut cluster, last, at(second));
        send(&mut cluster, "b", at(second));
        assert_eq!(cluster.succession(at(second)), None, "{second} s");
    }
    read(&mut cluster, last, at(70));
    assert_eq!(cluster.succession(at(70)).map(|succession| succession.replica), Some("b".to_owned()));
}

#[test]
fn a_term_that_is_read_is_begun_before_its_replica_is_stored() {
    let (mut cluster, now) = settled(Instant::now());
    let token = cluster.seen().expect("it was read").fence.token;
    assert_eq!(cluster.role("a", now), Role::TakingOver);
    cluster.on_ready(token);
    assert!(matches!(cluster.role("a", now), Role::Leader { .. }));
    cluster.on_read(term(2, "b"), now, now);
    assert_eq!(cluster.role("b", now), Role::TakingOver);
    assert!(matches!(cluster.role("a", now), Role::Standby { .. }));
}

#[test]
fn others_are_told_of_what_was_heard_in_this_term() {
    let (mut cluster, last) = steady(PrometheusTimeout::After(TIMEOUT), Duration::from_secs(1));
    let at = |millis| last + Duration::from_millis(millis);
    assert_eq!(cluster.heard_ago(at(500)), Some(Duration::from_millis(500)));
    assert_eq!(cluster.patience(), Some(TIMEOUT));
    cluster.on_read(term(2, "b"), at(500), at(500));
    assert_eq!(cluster.heard_ago(at(500)), None, "it was heard before");
    send(&mut cluster, "b", at(600));
    assert_eq!(cluster.heard_ago(at(600)), Some(Duration::ZERO));
}

#[test]
fn one_that_is_to_yield_does_though_it_sends() {
    let (mut cluster, now) = settled(Instant::now());
    let next = |cluster: &mut Cluster, next: Option<Next>, held_out: &[&str]| {
        let held_out = held_out.iter().map(|replica| (*replica).to_owned()).collect();
        cluster.on_read(term(1, "a").map(|seen| ClusterRow { next, held_out, ..seen }), now, now);
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

#[test]
fn who_leads_is_known_as_long_as_its_row_is_read() {
    let (cluster, end) = settled(Instant::now());
    let read_at = end - Duration::from_secs(1);
    let before = read_at + STALE - Duration::from_millis(1);
    assert!(cluster.leads("a", before) && !cluster.leads("b", before));
    assert!(!cluster.leads("a", read_at + STALE));
    assert!(!Cluster::new(PrometheusTimeout::Never).leads("a", end));
}

#[test]
fn an_adapter_is_ready_under_one_token() {
    let mut cluster = Cluster::new(PrometheusTimeout::Never);
    let [one, other] = [1, 2].map(Uuid::from_u128);
    assert!(!cluster.is_ready(one));
    cluster.on_ready(one);
    assert!(cluster.is_ready(one) && !cluster.is_ready(other));
}

#[test]
fn a_replica_that_was_not_heard_for_an_hour_is_forgotten() {
    let start = Instant::now();
    let mut cluster = Cluster::new(PrometheusTimeout::Never);
    send(&mut cluster, "a", start);
    let later = start + FORGOTTEN;
    send(&mut cluster, "b", later);
    assert_eq!(cluster.forget(later), Vec::<String>::new());
    assert_eq!(cluster.replicas(later).collect::<Vec<_>>(), [("a", Some(FORGOTTEN)), ("b", Some(Duration::ZERO))]);
    assert_eq!(cluster.forget(later + Duration::from_millis(1)), ["a"]);
    assert_eq!(cluster.replicas(later).collect::<Vec<_>>(), [("b", Some(Duration::ZERO))]);
}
