//! Everything that is written comes back bit for bit: random data, and requests that a real pair sent.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;

use futures_util::{StreamExt, stream};
use prometheus_postgresql_adapter::model::sample::{STALE_NAN_BITS, Sample};
use proptest::collection::btree_map;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use prost::Message;

use crate::reader::{Series, query, samples, streamed};
use crate::setup::{Body, Database, now_ms, skipped, store};

/// Times in ms from half an hour ago, each with the bits of a value.
type Points = BTreeMap<i64, u64>;

fn series() -> impl Strategy<Value = BTreeMap<BTreeMap<String, String>, Points>> {
    let name = prop_oneof!["[a-c]{1,2}", "[a-z_][a-z0-9_]{0,8}", "\\PC{1,4}"];
    let value = prop_oneof!["[a-c]{1}", "[^\0]{1,12}"];
    let bits = prop_oneof![
        any::<u64>(),
        any::<u16>().prop_map(|n| f64::from(n).to_bits()),
        Just(STALE_NAN_BITS),
        Just((-0.0_f64).to_bits())
    ];
    let points = prop_oneof![
        btree_map(0..1_800_000_i64, bits.clone(), 0..20),
        btree_map((0..120_i64).prop_map(|n| n * 15_000), bits, 0..500),
    ];
    btree_map(btree_map(name, value, 0..6), points, 1..40)
}

/// Distributes all samples to requests, in random order.
fn batches(all: &[(Vec<(String, String)>, Sample)], shuffle: &mut TestRunner) -> Vec<Body> {
    let order = Just(all.to_vec()).prop_shuffle().new_tree(shuffle).unwrap().current();
    let mut rest = &order[..];
    let mut bodies = Vec::new();
    while !rest.is_empty() {
        let size = (1..rest.len().min(700) + 1).new_tree(shuffle).unwrap().current();
        let (batch, others) = rest.split_at(size);
        bodies.push(batch.iter().fold(Body::new(), |body, (labels, sample)| body.series(labels, &[*sample])));
        rest = others;
    }
    bodies
}

#[tokio::test]
async fn random_series_come_back_bit_for_bit() {
    let database = Database::new().await;
    let adapter = crate::setup::start(&database.adapter().arg("-pg-prometheus-chunk-interval=7m")).await;
    let mut runner = TestRunner::default();
    let start_ms = now_ms() - 1_800_000;
    for round in 0..12 {
        let metric = format!("round_{round}");
        let generated = series().new_tree(&mut runner).unwrap().current();
        let expected: Vec<Series> = generated
            .into_iter()
            .map(|(labels, points)| {
                let mut labels: Vec<_> = labels.into_iter().filter(|(name, _)| name != "__name__").collect();
                labels.push(("__name__".to_owned(), metric.clone()));
                labels.sort();
                let sample = |(ms, bits)| Sample { timestamp_ms: start_ms + ms, value: f64::from_bits(bits) };
                (labels, points.into_iter().map(sample).collect::<Vec<_>>())
            })
            .filter(|(_, points)| !points.is_empty())
            .collect();
        let mut expected: Vec<Series> = expected.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect();
        expected.sort_by(|a, b| a.0.cmp(&b.0));
        let each = expected.iter().flat_map(|(labels, points)| points.iter().map(|point| (labels.clone(), *point)));
        let bodies = batches(&each.collect::<Vec<_>>(), &mut runner);
        stream::iter(bodies).for_each_concurrent(8, |body| store(&adapter, body)).await;
        let asked = [query(start_ms, start_ms + 1_800_000, &[("__name__", "=", &metric)])];
        assert_eq!(streamed(&adapter, &asked).await, [expected.clone()], "streamed, round {round}");
        assert_eq!(samples(&adapter, &asked).await, [expected], "samples, round {round}");
    }
}

/// The messages of remote write as specified by their authors, decoded without code of this adapter.
#[derive(Clone, PartialEq, Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    /// Each a `Label`, decoded only once: a capture has 1,340 series and half a million samples.
    #[prost(bytes = "vec", repeated, tag = "1")]
    labels: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Point>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Point {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
}

/// Returns the captured requests of a folder, in order; `None` and a message if the folder is missing.
fn capture(name: &str) -> Option<Vec<Vec<u8>>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/captures/prometheus-2.42-pair").join(name);
    let Ok(entries) = std::fs::read_dir(&folder) else {
        skipped(&format!("there is no {}", folder.display()));
        return None;
    };
    let files: BTreeSet<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    Some(files.iter().map(|file| std::fs::read(file).unwrap()).collect())
}

#[tokio::test]
async fn what_a_real_prometheus_sent_is_stored_once() {
    let database = Database::new().await;
    let mut expected = HashSet::new();
    let (mut keys, mut identities) = (HashMap::new(), HashMap::new());
    for name in ["a", "b"] {
        let Some(bodies) = capture(name) else { return };
        // One adapter for each: an adapter without an election serves one replica.
        let adapter = database.leader().await;
        for body in &bodies {
            let plain = snap::raw::Decoder::new().decompress_vec(body).unwrap();
            for series in WriteRequest::decode(&plain[..]).unwrap().timeseries {
                let key = *keys.entry(series.labels).or_insert_with_key(|labels| {
                    let next = identities.len();
                    *identities.entry(identity(labels)).or_insert(next)
                });
                expected.extend(series.samples.iter().map(|point| (key, point.timestamp)));
            }
        }
        let send = async |body: Vec<u8>| {
            let answer = adapter.write(body).await;
            assert_eq!(answer.status, 204, "{}", answer.text());
        };
        stream::iter(bodies.clone()).for_each_concurrent(8, &send).await;
        // Every tenth request again, as if its answer was lost.
        stream::iter(bodies.into_iter().step_by(10)).for_each_concurrent(8, &send).await;
        if name == "a" {
            assert_eq!(database.samples().await, expected.len() as i64);
        }
    }
    let distinct = "SELECT count(*) FROM (SELECT DISTINCT labels_id, time FROM metrics_values) x";
    assert_eq!(database.one::<i64>(distinct).await, expected.len() as i64);
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_labels").await, identities.len() as i64);
}

/// Identity of a series: its labels without the replica's label, in order.
fn identity(labels: &[Vec<u8>]) -> BTreeSet<(String, String)> {
    let labels = labels.iter().map(|label| Label::decode(&label[..]).unwrap());
    labels.filter(|label| label.name != "__replica__").map(|label| (label.name, label.value)).collect()
}
