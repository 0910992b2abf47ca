//! The database holds what a sender sent, or the sender is told the reason, series by series.

use prometheus_postgresql_adapter::model::sample::{STALE_NAN_BITS, Sample};

use crate::election::candidate;
use crate::reader::{both, query};
use crate::setup::{Body, Database, SOON, at, now_ms, skipped, start, store};

/// Name and value of a label. Need not be text.
type BytesPair<'a> = (&'a [u8], &'a [u8]);

/// Checks that an answer refuses a request and names what it refuses.
#[track_caller]
pub(crate) fn assert_named(answer: &rig::http::Response, named: &str) {
    assert_eq!(answer.status, 400, "{named}: {}", answer.text());
    assert!(answer.text().contains(named), "{named}: {}", answer.text());
}

/// Returns the numbers of samples, histograms and exemplars that an answer reports as written; `None` where a number is
/// missing.
pub(crate) fn written(answer: &rig::http::Response) -> [Option<&str>; 3] {
    ["samples", "histograms", "exemplars"]
        .map(|kind| answer.header(&format!("x-prometheus-remote-write-{kind}-written")))
}

#[tokio::test]
async fn one_bad_series_does_not_sink_its_request() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    let bad: [(&str, &[BytesPair<'_>]); 7] = [
        ("zero", &[(b"__name__", b"bad"), (b"zero", b"a\0b")]),
        ("latin", &[(b"__name__", b"bad"), (b"latin", b"caf\xe9")]),
        ("twice", &[(b"__name__", b"bad"), (b"twice", b"1"), (b"twice", b"2")]),
        ("empty name", &[(b"__name__", b"bad"), (b"", b"of no name")]),
        ("__name__", &[(b"nameless", b"1")]),
        ("not UTF-8", &[(b"__name__", b"bad"), (b"\xff", b"1")]),
        ("null", &[(b"__name__", b"bad"), (b"null\0", b"1")]),
    ];
    for (round, (named, labels)) in bad.iter().enumerate() {
        let (before, after) = (format!("before_{round}"), format!("after_{round}"));
        let body = Body::new().sample(&before, now, 1.0).series(labels, &[at(now, 1.0)]).sample(&after, now, 1.0);
        let answer = adapter.write(body.clone().compressed()).await;
        assert_named(&answer, named);
        assert_named(&adapter.write(body.compressed()).await, named);
    }
    assert_eq!(database.samples().await, 2 * 7);
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_labels WHERE metric_name = 'bad'").await, 0);
}

#[tokio::test]
async fn the_servers_clock_decides_what_is_too_old_or_ahead() {
    let Some(library) = rig::process::libfaketime() else { return skipped("libfaketime is not installed") };
    for skew in ["+40d", "+0", "-40d"] {
        let database = Database::new().await;
        let skewed = database
            .adapter()
            .arg("-pg-retention=30d")
            .env("LD_PRELOAD", &library)
            .env("FAKETIME", skew)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1");
        let adapter = start(&skewed).await;
        let (now, minute, day) = (now_ms(), 60_000, 24 * 3_600_000);
        store(&adapter, Body::new().sample("up", now, 1.0).sample("soon", now + 9 * minute, 1.0)).await;
        store(&adapter, Body::new().sample("old", now - 29 * day, 1.0).sample("expired", now - 31 * day, 1.0)).await;
        assert_eq!(adapter.metric("samples_expired_total").await, Some(1.0), "{skew}");
        for (n, ahead_ms) in (0..).zip([11 * minute, 365 * day, i64::MAX - now]) {
            let body = Body::new().sample("ahead", now + ahead_ms, 1.0).sample("beside", now + n, 1.0);
            assert_named(&adapter.write(body.compressed()).await, "ahead");
        }
        assert_eq!(database.samples().await, 3 + 3, "{skew}");
    }
}

#[tokio::test]
async fn a_label_of_one_letter_or_none_of_ascii_is_a_label() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let labels = [("__name__", "l"), ("l", "1"), ("größe", "ü\n\"\\☃"), ("with space", " "), ("a.b", "\u{1}")];
    store(&adapter, Body::new().series(&labels, &[at(now_ms(), 1.0)])).await;
    let stored = r#"SELECT labels @> '{"l":"1"}' AND labels->>'größe' = E'ü\n"\\☃' AND labels->>'with space' = ' '
                    AND labels->>'a.b' = E'\u0001' AND name = 'l' FROM metrics"#;
    assert!(database.one::<bool>(stored).await);
    let results = both(&adapter, &[query(0, i64::MAX, &[("größe", "=", "ü\n\"\\☃")])]).await;
    assert_eq!(results[0][0].0.len(), labels.len());
}

#[tokio::test]
async fn labels_and_names_of_ten_kilobytes_are_stored() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    // A text that does not compress well. A text that compresses well might fit although it should not.
    let long: String =
        (0..10_240_u32).map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 24) as u8 % 26)).collect();
    let now = now_ms();
    let body = Body::new()
        .series(&[("__name__", "long_value"), ("v", &long)], &[at(now, 1.0)])
        .series(&[("__name__", &long)], &[at(now, 2.0)])
        .series(&[("__name__", "long_label"), (&long, "v")], &[at(now, 3.0)]);
    store(&adapter, body).await;
    let lengths = "SELECT sum(length(name) + length(labels::text)) > 30720 FROM metrics";
    assert!(database.one::<bool>(lengths).await);
    let asked = [query(0, now, &[("v", "=", &long)]), query(0, now, &[("__name__", "=", &long)])];
    let results = both(&adapter, &asked).await;
    assert_eq!(results.iter().map(|series| series[0].1[0].value).collect::<Vec<_>>(), [1.0, 2.0]);
}

#[tokio::test]
async fn the_order_of_labels_and_empty_labels_make_no_other_series() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    let forms: [&[(&str, &str)]; 4] = [
        &[("__name__", "up"), ("a", "1"), ("b", "2")],
        &[("b", "2"), ("a", "1"), ("__name__", "up")],
        &[("__name__", "up"), ("a", "1"), ("absent", ""), ("b", "2")],
        &[("__name__", "up"), ("__replica__", "a"), ("a", "1"), ("b", "2")],
    ];
    // All forms in one request, then each form in a separate request.
    let all = forms.iter().enumerate().fold(Body::new(), |body, (n, labels)| body.series(labels, &[at(now, n as f64)]));
    store(&adapter, all).await;
    for (n, labels) in forms.iter().enumerate() {
        store(&adapter, Body::new().series(labels, &[at(now + 1 + n as i64, 1.0)])).await;
    }
    assert_eq!(database.column::<i64>("SELECT id FROM metrics_labels").await.len(), 1);
    assert_eq!(database.samples().await, 1 + 4, "of four samples of one time the first is stored");
    assert_eq!(database.one::<f64>("SELECT value FROM metrics ORDER BY time LIMIT 1").await, 0.0);
}

#[tokio::test]
async fn ids_follow_the_order_of_the_request() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    let names: Vec<String> = (0..100).map(|n| format!("m{n:03}")).collect();
    store(&adapter, names[50..60].iter().fold(Body::new(), |body, name| body.sample(name, now, 1.0))).await;
    store(&adapter, names.iter().fold(Body::new(), |body, name| body.sample(name, now + 1, 2.0))).await;
    let by_id = database.column::<String>("SELECT metric_name FROM metrics_labels ORDER BY id").await;
    let known_first: Vec<String> = [&names[50..60], &names[..50], &names[60..]].concat();
    assert_eq!(by_id, known_first);
}

#[tokio::test]
async fn the_replica_label_is_dropped_and_can_be_named() {
    let database = Database::new().await;
    let adapter = start(&database.adapter().arg("-replica-labels=replica,prometheus_replica")).await;
    let labels = [("__name__", "up"), ("__replica__", "kept"), ("prometheus_replica", "p-0"), ("replica", "a")];
    store(&adapter, Body::new().series(&labels, &[at(now_ms(), 1.0)])).await;
    assert!(database.one::<bool>(r#"SELECT labels = '{"__replica__":"kept"}' FROM metrics"#).await);
}

#[tokio::test]
async fn every_bit_of_a_value_survives() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    let bits = [
        STALE_NAN_BITS,
        0x7ff8_0000_0000_0001,
        0x7ff0_0000_0000_0001,
        0xfff8_dead_beef_cafe,
        f64::INFINITY.to_bits(),
        f64::NEG_INFINITY.to_bits(),
        (-0.0_f64).to_bits(),
        f64::MIN_POSITIVE.to_bits() >> 1,
        f64::MAX.to_bits(),
        0.1_f64.to_bits(),
    ];
    let times = (now - 1_000 * bits.len() as i64..).step_by(1000);
    let samples: Vec<Sample> = times.zip(bits).map(|(time, bits)| at(time, f64::from_bits(bits))).collect();
    store(&adapter, Body::new().series(&[("__name__", "bits")], &samples)).await;
    let stored = database.column::<String>("SELECT encode(float8send(value), 'hex') FROM metrics ORDER BY time").await;
    assert_eq!(stored, bits.map(|bits| format!("{bits:016x}")));
    let results = both(&adapter, &[query(0, now, &[("__name__", "=", "bits")])]).await;
    assert_eq!(results[0][0].1, samples);
}

#[tokio::test]
async fn only_impossible_timestamps_are_refused() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    for time in [i64::MAX, i64::MIN, i64::MIN + 1, now + 48 * 3600 * 1000, 9_224_318_016_000_000] {
        let samples = [at(time, 1.0), at(now, 2.0)];
        let answer =
            adapter.write(Body::new().series(&[("__name__", format!("t{time}"))], &samples).compressed()).await;
        assert_named(&answer, &time.to_string());
    }
    assert_eq!(database.samples().await, 5, "the other sample of each series is stored");
    // Out of order, long ago, before 1970 and before Christ.
    let times = [now, now - 60_000, 631_152_000_000, now - 40 * 86_400_000, 0, -1, -100_000_000_000_000];
    for time in times {
        store(&adapter, Body::new().sample("late", time, 1.0)).await;
    }
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let results = both(&adapter, &[query(i64::MIN, i64::MAX, &[("__name__", "=", "late")])]).await;
    assert_eq!(results[0][0].1.iter().map(|sample| sample.timestamp_ms).collect::<Vec<_>>(), sorted);
    let year = "SELECT count(*) FROM metrics WHERE time = '1990-01-01 00:00Z'";
    assert_eq!(database.one::<i64>(year).await, 1);
}

#[tokio::test]
async fn many_samples_of_a_series_in_one_message_or_in_many() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let start = now_ms() - 1_000_000;
    let samples: Vec<Sample> = (0..5000).map(|n| at(start + n * 100, n as f64)).collect();
    store(&adapter, Body::new().series(&[("__name__", "one_message")], &samples)).await;
    let many = samples.iter().fold(Body::new(), |body, sample| body.series(&[("__name__", "many")], &[*sample]));
    store(&adapter, many).await;
    let results = both(&adapter, &[query(0, now_ms(), &[("__name__", "=~", ".*m.*")])]).await;
    assert_eq!(results[0].len(), 2);
    assert!(results[0].iter().all(|(_, stored)| *stored == samples));
}

#[tokio::test]
async fn the_first_of_two_samples_at_one_time_wins() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    let body = Body::new()
        .sample("up", now, 1.0)
        .sample("up", now, 2.0)
        .series(&[("__name__", "other")], &[at(now, 3.0), at(now, 4.0)]);
    store(&adapter, body).await;
    assert_eq!(database.column::<f64>("SELECT value FROM metrics ORDER BY value").await, [1.0, 3.0]);
    assert_eq!(adapter.metric_with("samples_duplicate_total", "same_request").await, Some(2.0));
}

#[tokio::test]
async fn metadata_and_exemplars_are_no_error_but_bad_histograms_are() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    // metadata { type: COUNTER, metric_family_name: "up" }
    store(&adapter, Body::new().raw(b"\x1a\x06\x08\x01\x12\x02up")).await;
    store(&adapter, Body::new()).await;
    // timeseries { labels { __name__ up } exemplars {} }, and the same with a histogram of one observation in no bucket
    let label = b"\x0a\x0e\x0a\x08__name__\x12\x02up";
    let series = |field: &[u8]| [b"\x0a", &[(label.len() + field.len()) as u8][..], label, field].concat();
    store(&adapter, Body::new().raw(&series(b"\x1a\x00"))).await;
    let now = now_ms();
    let answer = adapter.write(Body::new().sample("up", now, 1.0).raw(&series(b"\x22\x02\x08\x01")).compressed()).await;
    assert_named(&answer, "bucket");
    assert_eq!(database.samples().await, 1);
    let other = label.map(|byte| if byte == b'u' { b'x' } else { byte });
    let histogram = [b"\x0a", &[(other.len() + 4) as u8][..], &other, b"\x22\x02\x08\x01"].concat();
    assert_named(&adapter.write(Body::new().raw(&histogram).compressed()).await, "bucket");
    assert_eq!(
        database.column::<String>("SELECT metric_name FROM metrics_labels").await,
        ["up"],
        "no series without samples"
    );
}

#[tokio::test]
async fn a_400_has_counts_on_leader_and_standby() {
    let database = Database::new().await;
    let uri = database.server.uri(&database.name);
    let now = now_ms();
    // timeseries { labels { __name__ up } histograms { count_int: 1 } }, and one with an exemplar
    let histogram = b"\x0a\x14\x0a\x0e\x0a\x08__name__\x12\x02up\x22\x02\x08\x01";
    let exemplar = b"\x0a\x12\x0a\x0e\x0a\x08__name__\x12\x02up\x1a\x00";
    let good = Body::new().sample("up", now, 1.0).sample("good", now, 2.0);
    let cases: [(&str, Body, &str); 7] = [
        ("a histogram", good.clone().raw(histogram), "2"),
        ("an exemplar beside it", good.clone().raw(histogram).raw(exemplar), "2"),
        ("nothing else", Body::new().raw(histogram), "0"),
        ("a bad series", good.clone().series(&[("a", "1")], &[at(now, 1.0), at(now + 1, 1.0)]), "2"),
        ("a bad time", good.clone().series(&[("__name__", "up")], &[at(now + 1, 1.0), at(i64::MAX, 1.0)]), "3"),
        ("a time past the retention", good.clone().sample("up", now - 7_200_000, 1.0).raw(histogram), "2"),
        // A sample that is already stored counts as written.
        ("a time twice", good.clone().sample("up", now, 3.0).raw(histogram), "3"),
    ];
    let options = |name| candidate(&uri, name).arg("-pg-retention=1h").arg("-pg-prometheus-chunk-interval=1h");
    let leader = options("leader").start().await;
    let send = async |adapter: &rig::adapter::Adapter, role: &str| {
        let is_taken = async || (adapter.write(good.clone().compressed()).await.status == 204).then_some(());
        adapter.process().wait_until("it takes writes", SOON, is_taken).await;
        adapter.wait_role(role, SOON).await;
        for (what, body, samples) in &cases {
            let answer = adapter.write(body.clone().compressed()).await;
            let exemplars = if *what == "an exemplar beside it" { "1" } else { "0" };
            assert_eq!(
                (answer.status, written(&answer)),
                (400, [Some(*samples), Some("0"), Some(exemplars)]),
                "{what}"
            );
        }
        // If a sender of 1.0 gets these headers with a success, it assumes that samples that they omit are lost.
        for body in [&good, &Body::new(), &Body::new().raw(exemplar)] {
            let answer = adapter.write(body.clone().compressed()).await;
            assert_eq!((answer.status, written(&answer)), (204, [None; 3]));
        }
    };
    send(&leader, "leader").await;
    let standby = options("standby").start().await;
    send(&standby, "standby").await;
    assert_eq!(database.one::<i64>("SELECT count(DISTINCT (name, time)) FROM metrics").await, 3);
}

/// Twenty series of a replica.
fn twenty(replica: &str, metric: &str, time_ms: i64) -> Vec<u8> {
    let series = |body: Body, n: usize| {
        let labels = [("__name__", metric), ("__replica__", replica), ("n", &n.to_string())];
        body.series(&labels, &[at(time_ms, 1.0)])
    };
    (0..20).fold(Body::new(), series).compressed()
}

#[tokio::test]
async fn of_two_replicas_that_send_to_one_adapter_one_is_refused() {
    let database = Database::new().await;
    let alone = database.leader().await;
    let elected = candidate(&database.server.uri(&database.name), "elected").start().await;
    for (adapter, metric) in [(&alone, "alone"), (&elected, "elected")] {
        let now = now_ms();
        let is_taken = async || (adapter.write(twenty("a", metric, now)).await.status == 204).then_some(());
        adapter.process().wait_until("it leads", SOON, is_taken).await;
        for _ in 0..2 {
            let refused = adapter.write(twenty("b", metric, now + 300)).await;
            assert_eq!(refused.status, 503);
            let text = refused.text();
            assert!(text.contains(r#"replicas "a" and "b""#) && text.contains(r#""b" is refused"#), "{text}");
        }
        assert_eq!(adapter.write(twenty("a", metric, now + 1_000)).await.status, 204);
        assert_eq!(adapter.write(twenty("c", &format!("{metric}_others"), now)).await.status, 204, "other series");
        adapter.process().wait_for_log(r#"msg="write requests are answered 503" err="the replicas"#, SOON).await;
    }
    assert_eq!(database.samples().await, 2 * 3 * 20);
}

#[tokio::test]
async fn an_adapter_without_election_stores_no_series_of_a_pair() {
    let database = Database::new().await;
    let elected = candidate(&database.server.uri(&database.name), "elected").start().await;
    let alone = database.leader().await;
    let start = now_ms();
    let is_taken = async || (elected.write(twenty("a", "shared", start)).await.status == 204).then_some(());
    elected.process().wait_until("it leads", SOON, is_taken).await;
    let mut scrapes = 1;
    // Samples that arrive before the adapter has observed the pair are stored.
    let refused = async || {
        scrapes += 1;
        let now = start + scrapes * 1_000;
        assert_eq!(elected.write(twenty("a", "shared", now)).await.status, 204);
        let answer = alone.write(twenty("b", "shared", now + 300)).await;
        (answer.status == 503).then(|| answer.text())
    };
    let text = alone.process().wait_until("it is refused", SOON, refused).await;
    assert!(text.contains("(lock 1)") && text.contains("-leader-election-pg-advisory-lock-id"), "{text}");
    let refused = r#"msg="write requests are answered 503" err="adapters that elect a leader (lock 1)"#;
    alone.process().wait_for_log(refused, SOON).await;
    let before = database.samples().await;
    for n in 1..20 {
        let now = start + (scrapes + n) * 1_000;
        assert_eq!(elected.write(twenty("a", "shared", now)).await.status, 204);
        assert_eq!(alone.write(twenty("b", "shared", now + 300)).await.status, 503);
    }
    assert_eq!(database.samples().await, before + 19 * 20);
    assert_eq!(alone.write(twenty("b", "shared", start)).await.status, 503);
    // Most of the series that the adapter gets now are its own.
    assert_eq!(alone.write(twenty("b", "more", start)).await.status, 204);
}
