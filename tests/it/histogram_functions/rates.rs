//! Rates of native histograms.

use prometheus_postgresql_adapter::model::histogram::{CUSTOM_BUCKETS, Histogram};
use prometheus_postgresql_adapter::model::sample::STALE_NAN_BITS;
use prometheus_postgresql_adapter::storage::SealedRows;
use rig::remote_write::V2;

use super::generator::{Counting, bounds};
use super::{Both, STEP_MS, assert_same, fields, numbers};
use crate::setup::{Database, now_ms, send_v2};
use crate::storage::library;

/// What happens to the counter of a series in the test of rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It counts, restarts, and has ever fewer buckets.
    Counter,
    /// It is none.
    Gauge,
    /// Its kind of buckets changes.
    Buckets,
    /// It was a float for a time.
    Float,
}

/// A series; its samples by ms after the start.
struct Series {
    name: String,
    histograms: Vec<(i64, Histogram)>,
    floats: Vec<(i64, f64)>,
}

fn series(seed: u64, steps: i64) -> Series {
    let mut counting = Counting::new(seed);
    let kind = match counting.random.below(10) {
        0 => Kind::Gauge,
        1 => Kind::Buckets,
        2 => Kind::Float,
        _ => Kind::Counter,
    };
    counting.now.reset_hint = if kind == Kind::Gauge { 3 } else { 0 };
    let (has_gaps, has_hints) = (counting.random.chance(30), counting.random.chance(30));
    let jitter = if counting.random.chance(50) { 1 } else { 2_000 };
    let (mut histograms, mut floats, mut last_count) = (Vec::new(), Vec::new(), 0.0);
    for step in 0..steps {
        let at_ms = step * STEP_MS + i64::try_from(counting.random.below(jitter)).unwrap();
        if counting.random.chance(if kind == Kind::Gauge { 50 } else { 6 }) {
            counting.restart();
        }
        let is_custom = counting.now.schema == CUSTOM_BUCKETS;
        if counting.random.chance(6) {
            if !is_custom {
                let times = counting.random.between(1, 2);
                counting.reduce(i8::try_from(times).unwrap());
            } else if !counting.now.bounds.is_empty() {
                let at = counting.random.index(counting.now.bounds.len());
                counting.leave_out(at);
            }
        }
        if counting.random.chance(5) && !is_custom {
            let threshold = counting.now.zero_threshold.max(0.03125) * 2.0;
            counting.widen(2_f64.powf(threshold.log2().ceil()));
        }
        if counting.random.chance(4) {
            // The target has another version.
            if is_custom {
                counting.now.bounds = bounds(&mut counting.random, 0.0);
            } else {
                counting.now.schema = i8::try_from(counting.random.between(0, 5)).unwrap();
            }
            counting.now.is_float = counting.random.chance(50);
            counting.restart();
        }
        if kind == Kind::Buckets && counting.random.chance(10) {
            let reset_hint = counting.now.reset_hint;
            let other = Counting::new(counting.random.bits());
            counting.now = Histogram { reset_hint, ..other.now };
            counting.signs = other.signs;
        }
        counting.observe_some();
        let mut shown = counting.now.clone();
        // A hint that is not what the counts say is lost in a Prometheus.
        if has_hints && kind != Kind::Gauge && shown.count < last_count {
            shown.reset_hint = 1;
        }
        if kind == Kind::Float && counting.random.chance(10) {
            floats.push((at_ms, if counting.random.chance(50) { f64::from_bits(STALE_NAN_BITS) } else { 0.5 }));
        } else if has_gaps && counting.random.chance(30) {
            if counting.random.chance(20) {
                shown.sum = f64::from_bits(STALE_NAN_BITS);
                histograms.push((at_ms, shown));
            }
        } else {
            last_count = shown.count;
            histograms.push((at_ms, shown));
        }
    }
    Series { name: format!("{kind:?} {seed}"), histograms, floats }
}

/// Compares the functions of rates at times from `after_ms` after the start on. Returns the number of rates.
async fn rates_are_same(both: &Both, seconds: i64, after_ms: i64) -> usize {
    let mut count = 0;
    let functions = [
        ("histogram_count", "numbers[6]".to_owned()),
        ("histogram_sum", "numbers[7]".to_owned()),
        ("histogram_avg", "metrics_histogram_avg(numbers)".to_owned()),
        ("histogram_stddev", "metrics_histogram_stddev(numbers)".to_owned()),
    ];
    let mut functions: Vec<(String, String)> =
        functions.into_iter().map(|(promql, sql)| (format!("{promql}("), sql)).collect();
    for (promql, sql) in numbers(&[0.0, 0.2, 0.5, 0.9, 1.0]) {
        functions
            .push((format!("histogram_quantile({promql}, "), format!("metrics_histogram_quantile({sql}, numbers)")));
    }
    for (promql, sql) in numbers(&[-0.5, 0.05, 2.0, f64::INFINITY]) {
        functions.push((
            format!("histogram_fraction(-1, {promql}, "),
            format!("metrics_histogram_fraction(-1, {sql}, numbers)"),
        ));
    }
    let [start, end] = [both.start_ms, both.end_ms].map(|ms| format!("to_timestamp({} / 1000.0)", ms + after_ms));
    let rates = format!(
        "DROP TABLE IF EXISTS rates; CREATE TABLE rates AS SELECT * FROM metrics_histogram_rate(
            'h', jsonb_build_object(), {start}, {end}, interval '15 s', interval '{seconds} s')"
    );
    both.database.run(&rates).await;
    // Where only the count or the sum is wanted, a Prometheus reads no buckets, and misses resets that only these show. A
    // comparison needs them.
    let rate = format!("rate(h[{seconds}s])");
    for (promql, sql) in functions {
        let (promql, sql) =
            (format!("{promql}{rate} == {rate})"), format!("SELECT labels, \"time\", {sql} FROM rates"));
        let (found, expected) = (both.sql(&sql).await, both.promql(&promql, after_ms).await);
        assert_same(&format!("{promql} and {sql}"), &found, &expected, 1e-13);
        count = found.len();
    }
    count
}

#[tokio::test]
async fn rates_of_random_histograms_are_those_of_prometheus() {
    const STEPS: i64 = 60;
    let Some(both) = Both::start(STEPS).await else { return };
    for seed in 1_000..1_060 {
        let Series { name, histograms, floats } = series(seed, STEPS);
        both.send(&name, &histograms, &floats).await;
    }
    assert!(rates_are_same(&both, 300, 0).await > 2_500);
    assert!(rates_are_same(&both, 40, 0).await > 1_500);
    let store = library(&both.database, None).await;
    store.observe(None, None, &[], &[], |_| ()).await.unwrap();
    store.seal(SealedRows::All).await.unwrap().expect("nobody else seals");
    assert!(rates_are_same(&both, 100, 4_321).await > 2_500);
}

/// The hint of a sender counts, whatever the counts say.
#[tokio::test]
async fn hints_of_senders_count() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let start_ms = now_ms() / 1_000 * 1_000 - 60_000;
    let histogram = |count: f64, reset_hint| Histogram {
        reset_hint,
        count,
        sum: count,
        positive: vec![(0, count)],
        ..Histogram::default()
    };
    for (series, second, expected) in
        [("yes", histogram(12.0, 1), 12.0), ("no", histogram(4.0, 2), -6.0), ("unknown", histogram(4.0, 0), 4.0)]
    {
        let mut request = V2::default();
        let no_sample: [(i64, f64); 0] = [];
        let histograms = [(0, histogram(10.0, 0)), (20_000, second)];
        request.add([("__name__", "h"), ("series", series)], no_sample, &fields(&histograms, start_ms));
        assert_eq!(send_v2(&adapter, &request.message()).await.status, 204);
        // From the first sample to the last the window has half a second more on both sides.
        let rate = format!(
            "SELECT numbers[6] * 21 FROM metrics_histogram_rate('h', jsonb_build_object('series', '{series}'),
             to_timestamp({start_ms} / 1000.0 + 20.5), now(), '1 hour', '21 s')"
        );
        let found = database.column::<f64>(&rate).await;
        assert_eq!(found.len(), 1);
        assert!((found[0] - expected * 21.0 / 20.0).abs() < 1e-9, "{series}: {found:?}");
    }
    let refused = "SELECT * FROM metrics_histogram_rate('h', jsonb_build_object(), now(), now(), '0', '1 s')";
    let error = database.client.query(refused, &[]).await.expect_err("a step of 0");
    assert_eq!(error.code().map(|code| code.code()), Some("22023"), "{error}");
}
