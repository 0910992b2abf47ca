//! Native histograms are stored once, whoever leads and in whichever version they come, and read as they were sent.

use prometheus_postgresql_adapter::model::histogram::Histogram;
use prometheus_postgresql_adapter::model::sample::{Point, STALE_NAN_BITS, Value};
use prometheus_postgresql_adapter::storage::SealedRows;
use prometheus_postgresql_adapter::wire::read::messages::{self, BucketSpan};
use prost::Message;
use rig::remote_write::{V2, labels};

use crate::exemplars::member;
use crate::reader::{points, query};
use crate::setup::{Body, Database, SOON, at, now_ms, send_v2, store};
use crate::storage::library;
use crate::write::written;

/// A counter's histogram that has seen `n` times 3 observations, as a sender sends it.
fn message(n: u64, timestamp: i64) -> messages::Histogram {
    messages::Histogram {
        count_int: Some(3 * n),
        sum: Some(0.1 * n as f64),
        schema: 3,
        zero_threshold: Some(1e-128),
        positive_spans: vec![BucketSpan { offset: -2, length: 1 }, BucketSpan { offset: 4, length: 2 }],
        positive_deltas: vec![n as i64, 0, 0],
        timestamp,
        ..Default::default()
    }
}

/// The same as it is stored.
fn stored(n: u64, timestamp_ms: i64) -> Point {
    let count = n as f64;
    let histogram = Histogram {
        schema: 3,
        zero_threshold: 1e-128,
        count: 3.0 * count,
        sum: 0.1 * count,
        positive: vec![(-2, count), (3, count), (4, count)],
        ..Histogram::default()
    };
    Point { timestamp_ms, value: Value::Histogram(histogram.to_numbers()) }
}

fn stale(timestamp_ms: i64) -> Point {
    Point { timestamp_ms, value: f64::from_bits(STALE_NAN_BITS).into() }
}

const LABELS: [(&str, &str); 2] = [("__name__", "seconds"), ("job", "a")];

fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    prost::encoding::encode_varint(content.len() as u64, &mut field);
    [field, content.to_vec()].concat()
}

/// A request of 1.0 with histograms of the series [`LABELS`].
fn body(histograms: &[messages::Histogram]) -> Body {
    let fields: Vec<u8> = histograms.iter().flat_map(|histogram| field(4, &histogram.encode_to_vec())).collect();
    Body::new().raw(&field(1, &[labels(LABELS), fields].concat()))
}

/// Reads the series of the metric in both forms of an answer.
async fn read(adapter: &rig::adapter::Adapter) -> Vec<Point> {
    let all = points(adapter, query(i64::MIN, i64::MAX, &[("__name__", "=", "seconds")])).await;
    assert!(all.len() <= 1, "{all:?}");
    all.into_iter().flat_map(|(_, points)| points).collect()
}

#[tokio::test]
async fn histograms_of_both_versions_are_read_as_they_were_sent_hot_and_sealed() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms() - 60_000;
    store(&adapter, body(&[message(1, now), message(2, now + 15_000)])).await;
    let mut request = V2::default();
    let no_sample: [(i64, f64); 0] = [];
    request.add(LABELS, no_sample, &field(3, &message(3, now + 30_000).encode_to_vec()));
    let answer = send_v2(&adapter, &request.message()).await;
    assert_eq!((answer.status, written(&answer)), (204, [Some("0"), Some("1"), Some("0")]), "{}", answer.text());
    let mut expected = vec![stored(1, now), stored(2, now + 15_000), stored(3, now + 30_000)];
    assert_eq!(read(&adapter).await, expected);
    let store_now = library(&database, None).await;
    let seal = async || {
        store_now.observe(None, None, &[], &[], |_| ()).await.unwrap();
        store_now.seal(SealedRows::All).await.unwrap().expect("nobody else seals")
    };
    assert_eq!(seal().await.samples, 3);
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_hot").await, 0);
    assert_eq!(read(&adapter).await, expected);
    // A late one, one that comes again, and the end of the series, which 1.0 sends as a float.
    store(&adapter, body(&[message(7, now + 20_000), message(9, now)])).await;
    store(&adapter, Body::new().series(&LABELS, &[at(now + 45_000, f64::from_bits(STALE_NAN_BITS))])).await;
    expected.insert(2, stored(7, now + 20_000));
    expected.push(stale(now + 45_000));
    assert_eq!(read(&adapter).await, expected);
    seal().await;
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_hot").await, 0);
    assert_eq!(read(&adapter).await, expected);
    // Sent again in another request, beside a stale marker that is sealed.
    store(&adapter, body(&[message(2, now + 15_000), message(3, now + 30_000)])).await;
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_hot").await, 0, "they are found stored");
    assert_eq!(database.samples().await, 0, "there is no series of floats");
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_labels").await, 1);
}

#[tokio::test]
async fn a_series_may_change_its_kind() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms() - 60_000;
    let float = |after_ms| Point { timestamp_ms: now + after_ms, value: 0.5.into() };
    store(&adapter, Body::new().series(&LABELS, &[at(now, 0.5)])).await;
    store(&adapter, body(&[message(1, now + 1_000), message(1, now + 2_000)])).await;
    store(&adapter, Body::new().series(&LABELS, &[at(now + 2_000, 0.5), at(now + 3_000, 0.5)])).await;
    store(&adapter, body(&[message(2, now + 4_000)])).await;
    let expected = [float(0), stored(1, now + 1_000), float(2_000), float(3_000), stored(2, now + 4_000)];
    assert_eq!(read(&adapter).await, expected, "at one time the float counts");
    // Whichever has ended.
    store(&adapter, Body::new().series(&LABELS, &[at(now + 5_000, f64::from_bits(STALE_NAN_BITS))])).await;
    assert_eq!(read(&adapter).await[5..], [stale(now + 5_000)]);
    assert_eq!(database.samples().await, 4, "three floats and a stale marker");
}

#[tokio::test]
async fn a_refused_histogram_leaves_no_series() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    let bad = messages::Histogram { count_int: Some(1), ..message(1, now) };
    let ahead = message(1, now + 3_600_000);
    let answer = adapter.write(body(&[bad.clone(), ahead]).compressed()).await;
    assert_eq!((answer.status, written(&answer)), (400, [Some("0"); 3]), "{}", answer.text());
    let answer = adapter.write(body(&[bad, message(1, now)]).compressed()).await;
    assert_eq!((answer.status, written(&answer)), (400, [Some("0"), Some("1"), Some("0")]), "{}", answer.text());
    assert!(answer.text().contains("seconds"), "{}", answer.text());
    // Whatever else is wrong with its series, a histogram is refused once.
    let mut request = V2::default();
    let no_sample: [(i64, f64); 0] = [];
    let two = [message(1, now), messages::Histogram { count_int: Some(1), ..message(1, now) }];
    let fields: Vec<u8> = two.iter().flat_map(|histogram| field(3, &histogram.encode_to_vec())).collect();
    request.add([("job", "a")], no_sample, &fields);
    request.add(LABELS, [(now, 0.5)], b"");
    let answer = send_v2(&adapter, &request.message()).await;
    assert_eq!((answer.status, written(&answer)), (400, [Some("1"), Some("0"), Some("0")]), "{}", answer.text());
    assert_eq!(read(&adapter).await, [Point { timestamp_ms: now, value: 0.5.into() }], "at one time the float counts");
    assert_eq!(adapter.metric_with("samples_rejected_total", "kind=\"histogram\"").await, Some(5.0));
}

#[tokio::test]
async fn what_a_standby_acknowledged_is_stored_once_when_it_leads() {
    let database = Database::new().await;
    let uri = database.server.uri(&database.name);
    let leader = member(&uri, "leader", "leader").await;
    let standby = member(&uri, "standby", "standby").await;
    let now = now_ms() - 60_000;
    let times: Vec<i64> = (0..8).map(|n| now + 5_000 * n).collect();
    for (n, time_ms) in (1..).zip(&times) {
        store(&leader, body(&[message(n, *time_ms)])).await;
        // The standby's Prometheus scrapes at another time; from the sixth scrape on only it is sent anything.
        store(&standby, body(&[message(n, time_ms + 1_500)])).await;
    }
    for n in 9..12 {
        store(&standby, body(&[message(n, now + 5_000 * (n as i64 - 1) + 1_500)])).await;
    }
    leader.process().kill9().await;
    standby.wait_role("leader", SOON).await;
    store(&standby, body(&[message(12, now + 56_500)])).await;
    let mut expected: Vec<Point> = (1..).zip(&times).map(|(n, time_ms)| stored(n, *time_ms)).collect();
    expected.extend((9..13).map(|n| stored(n, now + 5_000 * (n as i64 - 1) + 1_500)));
    assert_eq!(read(&standby).await, expected);
}
