//! The SQL functions of native histograms give what a current Prometheus gives for the same histograms.

mod generator;
mod rates;

use std::collections::BTreeMap;

use prometheus_postgresql_adapter::model::histogram::{CUSTOM_BUCKETS, Histogram};
use prost::Message;
use rig::adapter::Adapter;
use rig::http::{Client, WRITE_2_HEADERS};
use rig::prometheus::{self, Prometheus};
use rig::remote_write::{V2, compress};
use serde_json::Value as Json;

use crate::setup::{Database, now_ms, send_v2, skipped};
use generator::{Counting, Signs, message};

/// Between two samples.
const STEP_MS: i64 = 15_000;

/// Values by series and time in ms since 1970.
type Values = BTreeMap<(String, i64), f64>;

/// A Prometheus and an adapter that have been sent the same.
struct Both {
    prometheus: Prometheus,
    adapter: Adapter,
    database: Database,
    start_ms: i64,
    end_ms: i64,
}

impl Both {
    /// Starts both; `None` if there is no Prometheus. They are sent up to `count` samples of each series.
    async fn start(count: i64) -> Option<Self> {
        let Some(program) = prometheus::current() else {
            skipped("no current Prometheus is built: tests/prometheus/build");
            return None;
        };
        let options = prometheus::Options::new("global: {}").program(program);
        let prometheus = Prometheus::start(options.arg("--web.enable-remote-write-receiver")).await;
        let database = Database::new().await;
        let adapter = database.leader().await;
        let end_ms = now_ms() / STEP_MS * STEP_MS;
        Some(Self { prometheus, adapter, database, start_ms: end_ms - (count - 1) * STEP_MS, end_ms })
    }

    /// Sends both the samples of a series, each with the ms after the start at which it is.
    async fn send(&self, series: &str, histograms: &[(i64, Histogram)], floats: &[(i64, f64)]) {
        let mut rest = histograms;
        // In the order of time: a Prometheus refuses a histogram that is older than a float.
        for float in floats {
            let before = rest.partition_point(|(at_ms, _)| *at_ms < float.0);
            self.send_request(series, &rest[..before], &[]).await;
            self.send_request(series, &[], std::slice::from_ref(float)).await;
            rest = &rest[before..];
        }
        self.send_request(series, rest, &[]).await;
    }

    async fn send_request(&self, series: &str, histograms: &[(i64, Histogram)], floats: &[(i64, f64)]) {
        if histograms.is_empty() && floats.is_empty() {
            return;
        }
        let mut request = V2::default();
        let floats = floats.iter().map(|(at_ms, value)| (self.start_ms + at_ms, *value));
        request.add([("__name__", "h"), ("series", series)], floats, &fields(histograms, self.start_ms));
        let answer = send_v2(&self.adapter, &request.message()).await;
        assert_eq!(answer.status, 204, "{series}: {}", answer.text());
        let url = self.prometheus.url("/api/v1/write");
        let answer = Client::default().post(&url, &WRITE_2_HEADERS, compress(&request.message())).await.unwrap();
        assert_eq!(answer.status, 204, "{series}: {}", answer.text());
    }

    /// Returns what the Prometheus gives at each step, and so many ms after it.
    async fn promql(&self, expression: &str, after_ms: i64) -> Values {
        #[expect(clippy::cast_precision_loss, reason = "ms since 1970, which a double holds exactly")]
        let [start, end, step] =
            [self.start_ms + after_ms, self.end_ms + after_ms, STEP_MS].map(|ms| ms as f64 / 1_000.0);
        let answer = self.prometheus.query_range(expression, start, end, step).await;
        let json: Json = serde_json::from_str(&answer).unwrap_or_default();
        assert_eq!(json["status"], "success", "{expression}: {answer}");
        let mut values = Values::new();
        for series in json["data"]["result"].as_array().expect("a list of series") {
            let name = series["metric"]["series"].as_str().expect("a label");
            for pair in series["values"].as_array().into_iter().flatten() {
                #[expect(clippy::cast_possible_truncation, reason = "ms since 1970")]
                let time_ms = (pair[0].as_f64().expect("a time") * 1_000.0).round() as i64;
                let value = pair[1].as_str().and_then(|text| text.parse().ok()).expect("a number in a string");
                values.insert((name.to_owned(), time_ms), value);
            }
        }
        values
    }

    /// Returns what SQL gives: a query of the series' labels, the time and a value.
    async fn sql(&self, query: &str) -> Values {
        let statement = format!(
            "SELECT labels->>'series', (extract(epoch FROM \"time\") * 1000)::bigint, value FROM ({query}) AS q (labels, \"time\", value)"
        );
        let rows =
            self.database.client.query(&statement, &[]).await.unwrap_or_else(|error| panic!("{query}: {error:?}"));
        rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect()
    }

    /// Compares a function of each histogram at the time of its sample. `near` is a difference that does not count.
    async fn same_of_each(&self, promql: &str, sql: &str, near: f64) -> usize {
        let mut expected = self.promql(promql, 0).await;
        let found = self.sql(&format!("SELECT labels, \"time\", {sql} FROM metrics_histograms")).await;
        // The Prometheus repeats a sample until the next one.
        expected.retain(|at, _| found.contains_key(at));
        assert_same(&format!("{promql} and {sql}"), &found, &expected, near);
        found.len()
    }
}

/// Returns the fields of histograms in a series of a request, each of so many ms after the start.
fn fields(histograms: &[(i64, Histogram)], start_ms: i64) -> Vec<u8> {
    let mut fields = Vec::new();
    for (at_ms, histogram) in histograms {
        let message = message(histogram, start_ms + at_ms).encode_to_vec();
        fields.push(3 << 3 | 2);
        prost::encoding::encode_varint(message.len() as u64, &mut fields);
        fields.extend(message);
    }
    fields
}

fn assert_same(what: &str, found: &Values, expected: &Values, near: f64) {
    let is_same = |one: f64, other: f64| {
        one == other
            || one.is_nan() && other.is_nan()
            || (one - other).abs() <= (1e-9 * one.abs().min(other.abs())).max(near)
    };
    let mut differences = Vec::new();
    for (at, expected) in expected {
        match found.get(at) {
            Some(found) if is_same(*found, *expected) => {}
            found => differences.push(format!("{at:?}: {found:?} and not {expected}")),
        }
    }
    let unexpected = found.iter().filter(|(at, _)| !expected.contains_key(at));
    differences.extend(unexpected.map(|(at, found)| format!("{at:?}: {found} where the Prometheus has nothing")));
    differences.truncate(20);
    assert!(differences.is_empty(), "{what}: of {} values\n{}", expected.len(), differences.join("\n"));
}

/// A PromQL number, and the same in SQL.
fn numbers(values: &[f64]) -> impl Iterator<Item = (String, String)> {
    values.iter().map(|value| match *value {
        f64::INFINITY => ("Inf".to_owned(), "'Infinity'".to_owned()),
        f64::NEG_INFINITY => ("-Inf".to_owned(), "'-Infinity'".to_owned()),
        value if value.is_nan() => ("NaN".to_owned(), "'NaN'".to_owned()),
        value => (format!("{value:e}"), format!("{value:e}")),
    })
}

/// Compares all functions of single histograms. Returns the number of histograms.
async fn all_same(both: &Both) -> usize {
    let mut count = 0;
    for (promql, sql) in numbers(&[-0.1, 0.0, 1e-9, 0.1, 0.3, 0.5, 0.77, 0.99, 1.0, 1.1, f64::NAN]) {
        let (promql, sql) =
            (format!("histogram_quantile({promql}, h)"), format!("metrics_histogram_quantile({sql}, numbers)"));
        count = both.same_of_each(&promql, &sql, 0.0).await;
    }
    let limits = [f64::NEG_INFINITY, -5.0, -0.4, 0.0, 0.003, 0.5, 1.0, 7.7, f64::INFINITY, f64::NAN];
    for (lower, sql_lower) in numbers(&limits) {
        for (upper, sql_upper) in numbers(&limits) {
            let promql = format!("histogram_fraction({lower}, {upper}, h)");
            let sql = format!("metrics_histogram_fraction({sql_lower}, {sql_upper}, numbers)");
            both.same_of_each(&promql, &sql, 1e-14).await;
        }
    }
    both.same_of_each("histogram_avg(h)", "metrics_histogram_avg(numbers)", 0.0).await;
    both.same_of_each("histogram_stddev(h)", "metrics_histogram_stddev(numbers)", 0.0).await;
    count
}

#[tokio::test]
async fn functions_of_random_histograms_are_those_of_prometheus() {
    const SAMPLES: i64 = 12;
    let Some(both) = Both::start(SAMPLES).await else { return };
    for seed in 0..60 {
        let mut counting = Counting::new(seed);
        let is_gauge = counting.random.chance(20);
        counting.now.reset_hint = if is_gauge { 3 } else { 0 };
        let mut histograms = Vec::new();
        for step in 0..SAMPLES {
            if is_gauge || counting.random.chance(10) {
                counting.restart();
            }
            counting.observe_some();
            histograms.push((step * STEP_MS, counting.now.clone()));
        }
        both.send(&format!("random {seed}"), &histograms, &[]).await;
    }
    assert_eq!(all_same(&both).await, 60 * 12);
}

/// What senders may send and hardly do.
#[tokio::test]
async fn functions_of_odd_histograms_are_those_of_prometheus() {
    let Some(both) = Both::start(1).await else { return };
    let mut count = 0;
    let mut send = async |name: &str, histogram: Histogram| {
        for is_float in [false, true] {
            let name = format!("{name}, float {is_float}");
            both.send(&name, &[(0, Histogram { is_float, ..histogram.clone() })], &[]).await;
            count += 1;
        }
    };
    let custom = Histogram { schema: CUSTOM_BUCKETS, bounds: vec![-1.0, 0.0, 0.5, 7.5], ..Histogram::default() };
    let zeros = Histogram { zero_threshold: 0.25, zero_count: 7.0, count: 7.0, sum: 0.3, ..Histogram::default() };
    send("empty", Histogram::default()).await;
    send("empty custom", custom.clone()).await;
    send("all in the zero bucket", zeros.clone()).await;
    send("all in a zero bucket of no width", Histogram { zero_threshold: 0.0, ..zeros.clone() }).await;
    send("zero and positive", Histogram { count: 9.0, positive: vec![(1, 2.0)], ..zeros.clone() }).await;
    send("zero and negative", Histogram { count: 9.0, negative: vec![(1, 2.0)], ..zeros.clone() }).await;
    let sides = Histogram { count: 12.0, positive: vec![(1, 2.0)], negative: vec![(1, 3.0)], ..zeros.clone() };
    send("zero and both", sides.clone()).await;
    // The first bucket reaches into the zero bucket.
    let wide =
        Histogram { schema: -2, zero_threshold: 0.7, positive: vec![(0, 2.0)], negative: vec![(0, 3.0)], ..sides };
    send("a wide zero bucket", wide).await;
    for schema in [-4, 0, 3, 8, CUSTOM_BUCKETS] {
        for (what, values) in [
            ("NaN", [f64::NAN; 3].as_slice()),
            ("Inf", &[f64::INFINITY]),
            ("-Inf", &[f64::NEG_INFINITY]),
            ("both Inf", &[f64::INFINITY, f64::NEG_INFINITY]),
            ("the greatest", &[f64::MAX, 1e300, f64::MAX]),
            ("tiny", &[1e-300, 1e-200, f64::MIN_POSITIVE, -1e-300]),
        ] {
            for only in [false, true] {
                let now = Histogram {
                    schema,
                    ..if schema == CUSTOM_BUCKETS { custom.clone() } else { Histogram::default() }
                };
                let mut counting = Counting { signs: Signs::Both, now, ..Counting::new(7) };
                if !only {
                    counting.restart();
                    counting.observe_some();
                }
                values.iter().for_each(|value| counting.observe(*value, 1.0));
                send(&format!("{what} in {schema}, only {only}"), counting.now).await;
            }
        }
    }
    for bounds in [vec![], vec![0.0], vec![-3.0], vec![2.0], vec![-1e308, 1e308], vec![f64::NEG_INFINITY, 1.0]] {
        let last = i32::try_from(bounds.len()).unwrap();
        let custom = Histogram { schema: CUSTOM_BUCKETS, sum: 1.5, ..Histogram::default() };
        for (what, buckets) in [
            ("first", vec![(0, 3.0)]),
            ("last", vec![(last, 3.0)]),
            ("all", (0..=last).map(|index| (index, f64::from(index + 1))).collect()),
        ] {
            let count = buckets.iter().map(|(_, count)| count).sum();
            let histogram = Histogram { bounds: bounds.clone(), count, positive: buckets, ..custom.clone() };
            send(&format!("{what} of {bounds:?}"), histogram).await;
        }
    }
    let huge =
        Histogram { is_float: true, count: 1.5e308, sum: -1e308, positive: vec![(0, 1.5e308)], ..Histogram::default() };
    both.send("huge", &[(0, huge.clone())], &[]).await;
    let over = Histogram { positive: vec![(0, 1.5e308), (1, 1.5e308)], negative: vec![(9, 1.5e308)], ..huge };
    both.send("over", &[(0, over)], &[]).await;
    let small =
        Histogram { is_float: true, count: 2e-300, sum: 1e300, positive: vec![(0, 2e-300)], ..Histogram::default() };
    both.send("small", &[(0, small)], &[]).await;
    assert_eq!(all_same(&both).await, count + 3);
}
