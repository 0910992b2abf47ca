//! Remote read returns what is stored as Prometheus would return it, in both response types.

use prometheus_postgresql_adapter::model::sample::Sample;
use prometheus_postgresql_adapter::wire::read::messages::{LabelMatcher, Query};
use prometheus_postgresql_adapter::wire::snappy;
use rig::adapter::Adapter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::reader::{ask, body, both, labels_only, query, streamed, values};
use crate::setup::{Body, Database, SOON, at, now_ms, one, start, store};

/// Stores series `up` with these additional labels, each with one sample at `time_ms`.
async fn store_series(adapter: &Adapter, time_ms: i64, series: &[&[(&str, &str)]]) {
    let body = series.iter().fold(Body::new(), |body, labels| {
        let labels = [&[("__name__", "up")], *labels].concat();
        body.series(&labels, &[at(time_ms, 1.0)])
    });
    store(adapter, body).await;
}

#[tokio::test]
async fn two_queries_are_answered_apart_and_in_order() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    store_series(&adapter, now, &[&[("job", "a")], &[("job", "b")], &[("job", "c")]]).await;
    let asked = |matchers| query(0, now, matchers);
    let queries = [
        asked(&[("job", "=", "b")]),
        asked(&[("__name__", "=", "up")]),
        asked(&[("job", "=", "nobody")]),
        asked(&[("job", "=~", "a|b")]),
        asked(&[("job", "=", "b")]),
    ];
    let results = both(&adapter, &queries).await;
    let jobs: Vec<_> = results.iter().map(|result| values(std::slice::from_ref(result), "job")).collect();
    assert_eq!(jobs, [vec!["b"], vec!["a", "b", "c"], vec![], vec!["a", "b"], vec!["b"]]);
}

#[tokio::test]
async fn matchers_mean_what_they_mean_to_prometheus() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    let series: [&[(&str, &str)]; 6] = [
        &[("id", "none")],
        &[("id", "a"), ("l", "a")],
        &[("id", "ab"), ("l", "ab")],
        &[("id", "b"), ("l", "b")],
        &[("id", "xb"), ("l", "xb")],
        &[("id", "newline"), ("l", "a\nb")],
    ];
    store_series(&adapter, now, &series).await;
    let check = async |op: &str, value: &str, expected: &[&str]| {
        let results = both(&adapter, &[query(0, now, &[("__name__", "=", "up"), ("l", op, value)])]).await;
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(values(&results, "id"), expected, "l{op}{value:?}");
    };
    check("=", "a", &["a"]).await;
    check("=", "", &["none"]).await;
    check("!=", "a", &["none", "ab", "b", "xb", "newline"]).await;
    check("!=", "", &["a", "ab", "b", "xb", "newline"]).await;
    check("=~", ".*", &["none", "a", "ab", "b", "xb", "newline"]).await;
    check("=~", "", &["none"]).await;
    check("=~", "a|", &["none", "a"]).await;
    check("!~", ".+", &["none"]).await;
    check("!~", "a.*", &["none", "b", "xb"]).await;
    check("=~", "a|b", &["a", "b"]).await;
    check("=~", "^a|b$", &["a", "b"]).await;
    check("!~", "^a|b$", &["none", "ab", "xb", "newline"]).await;
    check("=~", "a.b", &["newline"]).await;
    check("=~", "(?i:A)", &["a"]).await;
    check("=", "a\0", &[]).await;
    check("=~", "\0", &[]).await;
    check("=", "it's \\ \"odd\"", &[]).await;
    // Without a metric name, and with a name that only a regular expression or a negation matches.
    assert_eq!(values(&both(&adapter, &[query(0, now, &[("l", "=", "b")])]).await, "id"), ["b"]);
    assert_eq!(values(&both(&adapter, &[query(0, now, &[])]).await, "id").len(), 6);
    assert_eq!(values(&both(&adapter, &[query(0, now, &[("__name__", "=~", "u.")])]).await, "id").len(), 6);
    assert_eq!(values(&both(&adapter, &[query(0, now, &[("__name__", "!=", "up")])]).await, "id").len(), 0);
}

#[tokio::test]
async fn both_bounds_are_included_to_the_millisecond() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let base = now_ms() - 10_000;
    let samples: Vec<Sample> = (0..2000).map(|n| at(base + n, n as f64)).collect();
    store(&adapter, Body::new().series(&[("__name__", "fine")], &samples)).await;
    let check = async |from: i64, to: i64| {
        let results = both(&adapter, &[query(base + from, base + to, &[("__name__", "=", "fine")])]).await;
        let stored = results[0].first().map(|(_, samples)| samples.clone()).unwrap_or_default();
        let expected = samples.iter().copied().filter(|s| (base + from..=base + to).contains(&s.timestamp_ms));
        assert_eq!(stored, expected.collect::<Vec<_>>(), "{from} to {to}");
    };
    for (from, to) in [(0, 0), (1, 1), (1, 998), (999, 1001), (0, 1999), (-5, 5), (1999, 2500), (2000, 3000), (5, 4)] {
        check(from, to).await;
    }
    let whole = both(&adapter, &[query(i64::MIN, i64::MAX, &[("__name__", "=", "fine")])]).await;
    assert_eq!(whole[0][0].1.len(), 2000);
}

#[tokio::test]
async fn matchers_on_the_replica_label_are_ignored() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    store_series(&adapter, now, &[&[("id", "1"), ("__replica__", "a")]]).await;
    let asked = [query(0, now, &[("id", "=", "1"), ("__replica__", "=", "b")])];
    let results = both(&adapter, &asked).await;
    assert_eq!(values(&results, "id"), ["1"]);
    assert_eq!(values(&results, "__replica__"), [""]);
}

#[tokio::test]
async fn series_alone_when_only_labels_are_wanted() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    store_series(&adapter, now, &[&[("id", "1")], &[("id", "2")]]).await;
    let results = both(&adapter, &[labels_only(query(0, now, &[("__name__", "=", "up")]))]).await;
    assert_eq!(values(&results, "id"), ["1", "2"]);
    assert!(results[0].iter().all(|(_, samples)| samples.is_empty()));
    // If samples are requested, a series without a sample in the range is not returned.
    assert!(both(&adapter, &[query(0, now - 1, &[("__name__", "=", "up")])]).await[0].is_empty());
}

#[tokio::test]
async fn a_stream_has_its_series_in_the_order_of_their_labels() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    let series: [&[(&str, &str)]; 7] = [
        &[("b", "1")],
        &[("a", "2")],
        &[],
        &[("a", "10")],
        &[("a", "2"), ("b", "1")],
        &[("Z", "ü")],
        &[("A_b", "1"), ("a", "z")],
    ];
    store_series(&adapter, now, &series).await;
    let results = streamed(&adapter, &[query(0, now, &[])]).await;
    let labels: Vec<_> = results[0].iter().map(|(labels, _)| labels.clone()).collect();
    let mut sorted = labels.clone();
    // Tuples of texts compare byte by byte, name before value, and a shorter list sorts first, as in Prometheus.
    sorted.sort();
    assert_eq!(labels, sorted);
    assert_eq!(labels.len(), series.len());
    assert!(labels.iter().all(|labels| labels.is_sorted()));
}

#[tokio::test]
async fn a_read_that_cannot_be_answered_is_the_readers_fault() {
    let database = Database::new().await;
    let adapter = start(&database.adapter().arg("-read-sample-limit=10")).await;
    let now = now_ms();
    let samples: Vec<Sample> = (0..6).map(|n| at(now - n, 1.0)).collect();
    store(&adapter, Body::new().series(&[("id", "1"), ("__name__", "up")], &samples)).await;
    store(&adapter, Body::new().series(&[("id", "2"), ("__name__", "up")], &samples)).await;
    let one_series = query(0, now, &[("id", "=", "1")]);
    let check = async |queries: &[Query], accepted: &[i32], status: u16, says: &str| {
        let answer = ask(&adapter, queries, accepted).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.text().contains(says), "{says:?} is not in {:?}", answer.text());
    };
    check(&[query(0, now, &[("id", "=~", "a(")])], &[], 400, "regular expression").await;
    check(&[query(0, now, &[("__name__", "=", "up")])], &[], 400, "exceeded sample limit (10)").await;
    check(std::slice::from_ref(&one_series), &[7, 8], 400, "accepted response types").await;
    let unknown = LabelMatcher { kind: 9, name: "a".into(), value: "b".into() };
    check(&[Query { matchers: vec![unknown], ..one_series.clone() }], &[], 400, "unknown type").await;
    // The limit is per query and does not apply to streams. An unknown type beside a known one is ignored.
    assert_eq!(ask(&adapter, &[one_series.clone(), one_series.clone()], &[]).await.status, 200);
    assert_eq!(ask(&adapter, &[query(0, now, &[])], &[7, 1, 0]).await.status, 200);
    assert_eq!(ask(&adapter, &[], &[]).await.status, 200);
    for not_a_request in [&b""[..], b"\xff\xff\xff\xff\x0f\0", b"nonsense"] {
        assert_eq!(adapter.read(not_a_request).await.status, 400);
    }
    assert_eq!(adapter.read(snappy::compress(b"\x0a\xff").unwrap()).await.status, 400);
    assert_eq!(adapter.get("/read").await.unwrap().status, 405);
}

/// Begins a read and returns its connection when the server works on the query.
async fn begin_read(adapter: &Adapter, database: &Database, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", adapter.port())).await.unwrap();
    let head = format!(
        "POST /api/v1/read HTTP/1.1\r\nHost: it\r\nContent-Type: application/x-protobuf\r\nContent-Encoding: snappy\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    database.wait(&format!("SELECT EXISTS ({ACTIVE_READS} AND state = 'active')")).await;
    stream
}

/// The sessions that read.
const ACTIVE_READS: &str = "SELECT FROM pg_stat_activity WHERE datname = current_database() \
     AND (query LIKE '%AS wanted (id)%' OR query LIKE '%metrics_sealed_ c WHERE%') AND pid <> pg_backend_pid()";

#[tokio::test]
async fn a_reader_that_leaves_before_its_answer_cancels_its_query() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    store_series(&adapter, now, &[&[("id", "1")]]).await;
    for accepted in [0, 1] {
        let blocker = database.session().await;
        blocker.batch_execute("BEGIN; LOCK metrics_hot").await.unwrap();
        let body = body(&[query(0, now, &[])], &[accepted]);
        let stream = begin_read(&adapter, &database, &body).await;
        drop(stream);
        database.wait(&format!("SELECT NOT EXISTS ({ACTIVE_READS} AND state = 'active')")).await;
        blocker.batch_execute("ROLLBACK").await.unwrap();
    }
    // And the canceled query has broken nothing.
    assert_eq!(values(&both(&adapter, &[query(0, now, &[])]).await, "id"), ["1"]);
}

#[tokio::test]
async fn a_reader_that_leaves_mid_stream_cancels_its_query() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    store_series(&adapter, now, &[&[("id", "1")]]).await;
    // More than the buffers between server and client can take.
    let many = "WITH many AS (INSERT INTO metrics_series (key, name, labels) \
                SELECT gen_random_uuid(), 'many', jsonb_build_object('n', n::text) FROM generate_series(1, 20) n RETURNING id) \
                INSERT INTO metrics_hot (time, series, value) \
                SELECT now() - make_interval(secs => n / 100.0), array_agg(id), array_agg(random()) \
                FROM many, generate_series(1, 40000) n GROUP BY n";
    database.run(many).await;
    let mut stream = begin_read(&adapter, &database, &body(&[query(0, now, &[])], &[1])).await;
    let mut first = [0; 1024];
    tokio::time::timeout(SOON, stream.read_exact(&mut first)).await.unwrap().unwrap();
    assert!(first.starts_with(b"HTTP/1.1 200 OK\r\n"));
    assert!(database.one::<bool>(&format!("SELECT EXISTS ({ACTIVE_READS})")).await, "the answer was not too much");
    drop(stream);
    database.wait(&format!("SELECT NOT EXISTS ({ACTIVE_READS})")).await;
}

#[tokio::test]
async fn a_read_only_adapter_makes_no_schema_and_refuses_writes() {
    let database = Database::new().await;
    let options = database.adapter().arg("-pg-read-only").arg("-leader-election-pg-advisory-lock-id=1");
    let reader = options.start().await;
    let answer = reader.get("/-/ready").await.unwrap();
    assert_eq!(answer.status, 503, "there is nothing to read yet");
    reader.process().wait_for_log("no store", SOON).await;
    let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    assert_eq!(database.one::<i64>(tables).await, 0);
    let writer = database.leader().await;
    let now = now_ms();
    store_series(&writer, now, &[&[("id", "1")]]).await;
    crate::setup::wait_ready(&reader).await;
    assert_eq!(values(&both(&reader, &[query(0, now, &[])]).await, "id"), ["1"]);
    let answer = reader.write(Body::new().sample("up", now, 1.0).compressed()).await;
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some() && answer.text().contains("-pg-read-only"), "{}", answer.text());
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' \
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(one::<i64>(&database.client, locks).await, 0);
}
