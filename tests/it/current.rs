//! What a current Prometheus scrapes and sends is stored: every sample and exemplar, none refused.

use std::collections::BTreeMap;
use std::time::Duration;

use rig::prometheus::{self, Prometheus};
use rig::target::{self, Scrape, Target};
use serde_json::Value as Json;

use crate::setup::{Database, SOON, now_ms, skipped};

mod pair;

/// Number of scrapes that are compared.
const SCRAPES: usize = 8;

/// Deadline for [`SCRAPES`], of which there is one a second.
const SCRAPING: Duration = Duration::from_secs(60);

/// What the Prometheus counts that must not happen, of its sending and its scraping.
const MUST_BE_0: [&str; 13] = [
    "prometheus_remote_storage_samples_failed_total",
    "prometheus_remote_storage_samples_dropped_total",
    "prometheus_remote_storage_exemplars_failed_total",
    "prometheus_remote_storage_exemplars_dropped_total",
    "prometheus_remote_storage_histograms_failed_total",
    "prometheus_remote_storage_histograms_dropped_total",
    "prometheus_remote_storage_metadata_failed_total",
    "prometheus_remote_storage_samples_retried_total",
    "prometheus_remote_storage_exemplars_retried_total",
    "prometheus_remote_storage_histograms_retried_total",
    "prometheus_remote_storage_metadata_retried_total",
    "prometheus_target_scrapes_sample_out_of_order_total",
    "prometheus_tsdb_exemplar_out_of_order_exemplars_total",
];

/// The earliest of the times up to which the series are stored, ms since 1970.
const STORED_UNTIL: &str = "
SELECT (extract(epoch FROM min(last)) * 1000)::bigint FROM (
    SELECT CASE WHEN l.id < 0 THEN (SELECT max(n.time) FROM metrics_histogram_numbers n WHERE n.series_id = l.id)
        ELSE (SELECT max(v.time) FROM metrics_values v WHERE v.labels_id = l.id) END AS last FROM metrics_labels l) s";

/// Line of the configuration that chooses remote write 2.0.
const VERSION_2: &str = "protobuf_message: io.prometheus.write.v2.Request";

/// What a Prometheus needs beside its configuration.
const FEATURES: &str = "--enable-feature=exemplar-storage,metadata-wal-records";

type Labels = BTreeMap<String, String>;
/// Samples of each series: bits of the value by time, ms since 1970.
type Samples = BTreeMap<Labels, BTreeMap<i64, u64>>;
/// Native histograms of each series by time: their counts and sums, and the lower and upper bounds and counts of their
/// buckets.
type Histograms = BTreeMap<Labels, BTreeMap<i64, Vec<f64>>>;
/// Exemplars: the bits of the value and the time, by the labels of the series and those of the exemplar.
type Exemplars = BTreeMap<(Labels, Labels), (u64, i64)>;

/// Returns the text of prometheus.yml. `message` is a line of the queue's configuration, or empty.
fn config(target: &Target, replica: &str, adapter: &str, message: &str) -> String {
    let address = target.address();
    // Classic histograms are taken as ever, and once more as native ones with custom buckets, which 1.0 cannot send.
    let converts = !message.is_empty();
    format!(
        "
global:
  scrape_interval: 1s
  external_labels: {{cluster: current, __replica__: {replica}}}
scrape_configs:
  - job_name: target
    scrape_protocols: [PrometheusProto]
    static_configs: [{{targets: ['{address}']}}]
    scrape_native_histograms: true
    always_scrape_classic_histograms: true
    convert_classic_histograms_to_nhcb: {converts}
remote_write:
  - url: {adapter}
    send_exemplars: true
    send_native_histograms: true
    {message}
    metadata_config: {{send_interval: 1s}}
    queue_config: {{batch_send_deadline: 200ms}}
"
    )
}

/// Returns the labels of a series as they are stored, without the one that the Prometheus adds when it sends.
fn labels(json: &Json) -> Labels {
    let mut labels: Labels = serde_json::from_value(json.clone()).expect("labels are strings");
    labels.remove("cluster");
    labels
}

/// Returns the result of a query of the Prometheus' API.
fn result(prometheus: &Prometheus, answer: &str) -> Json {
    let mut json: Json = serde_json::from_str(answer).unwrap_or_default();
    if json["status"] != "success" {
        prometheus.process().fail(&format!("a query was answered {answer}"));
    }
    json["data"].take()
}

fn list(json: &Json) -> &[Json] {
    json.as_array().map_or(&[], Vec::as_slice)
}

/// Parses a time in seconds to ms, and a value to its bits.
fn time_and_value(time: &Json, value: &Json) -> (i64, u64) {
    #[expect(clippy::cast_possible_truncation, reason = "ms since 1970, which a double holds exactly")]
    let time_ms = (time.as_f64().expect("a time is a number") * 1_000.0).round() as i64;
    let value: f64 = value.as_str().and_then(|value| value.parse().ok()).expect("a value is a number in a string");
    (time_ms, value.to_bits())
}

#[expect(clippy::cast_precision_loss, reason = "ms since 1970, which a double holds exactly")]
fn seconds(time_ms: i64) -> f64 {
    time_ms as f64 / 1_000.0
}

/// Returns all samples of the Prometheus up to a time.
async fn own_samples(prometheus: &Prometheus, until_ms: i64) -> Samples {
    let answer = prometheus.query_at("{__name__=~\".+\"}[1h]", seconds(until_ms)).await;
    let data = result(prometheus, &answer);
    // A series of native histograms has no values.
    let series = list(&data["result"]).iter().filter(|series| series["values"].is_array());
    let samples =
        |series: &Json| list(&series["values"]).iter().map(|pair| time_and_value(&pair[0], &pair[1])).collect();
    series.map(|series| (labels(&series["metric"]), samples(series))).collect()
}

/// Returns all native histograms of the Prometheus up to a time.
async fn own_histograms(prometheus: &Prometheus, until_ms: i64) -> Histograms {
    let answer = prometheus.query_at("{__name__=~\".+\"}[1h]", seconds(until_ms)).await;
    let data = result(prometheus, &answer);
    let number = |json: &Json| json.as_str().and_then(|text| text.parse().ok()).expect("a number in a string");
    let histogram = |pair: &Json| {
        let (time_ms, _) = time_and_value(&pair[0], &pair[1]["sum"]);
        let buckets = list(&pair[1]["buckets"]).iter().flat_map(|bucket| &list(bucket)[1..]);
        let numbers = [&pair[1]["count"], &pair[1]["sum"]].into_iter().chain(buckets).map(number);
        (time_ms, numbers.collect::<Vec<f64>>())
    };
    let series = list(&data["result"]).iter().filter(|series| series["histograms"].is_array());
    series
        .map(|series| (labels(&series["metric"]), list(&series["histograms"]).iter().map(histogram).collect()))
        .collect()
}

/// Returns all stored native histograms up to a time.
async fn stored_histograms(database: &Database, until_ms: i64) -> Histograms {
    let sql = "SELECT name, labels::text, (extract(epoch FROM time) * 1000)::bigint, count, sum,
               ARRAY(SELECT unnest(ARRAY[b.lower, b.upper, b.count]) FROM unnest(buckets) b) FROM metrics_histograms
               WHERE time <= to_timestamp($1::bigint / 1000.0)";
    let mut histograms = Histograms::new();
    for row in database.client.query(sql, &[&until_ms]).await.expect("histograms are selected") {
        let buckets: Vec<f64> = row.get(5);
        let numbers = [row.get(3), row.get(4)].into_iter().chain(buckets).collect();
        let twice = histograms.entry(stored_labels(&row)).or_default().insert(row.get(2), numbers);
        assert_eq!(twice, None, "stored twice: {row:?}");
    }
    histograms
}

/// Returns all exemplars of the Prometheus up to a time.
async fn own_exemplars(prometheus: &Prometheus, until_ms: i64) -> Exemplars {
    let answer = prometheus.exemplars("{__name__=~\".+\"}", seconds(until_ms) - 3_600.0, seconds(until_ms)).await;
    let data = result(prometheus, &answer);
    let mut exemplars = Exemplars::new();
    for series in list(&data) {
        for exemplar in list(&series["exemplars"]) {
            let (time_ms, bits) = time_and_value(&exemplar["timestamp"], &exemplar["value"]);
            exemplars.insert((labels(&series["seriesLabels"]), labels(&exemplar["labels"])), (bits, time_ms));
        }
    }
    exemplars
}

/// Returns the first two columns as the name and the labels of a series.
fn stored_labels(row: &tokio_postgres::Row) -> Labels {
    let mut labels = labels(&serde_json::from_str(row.get(1)).expect("labels are JSON"));
    labels.insert("__name__".to_owned(), row.get(0));
    labels
}

/// Returns all stored samples up to a time.
async fn stored_samples(database: &Database, until_ms: i64) -> Samples {
    let sql = "SELECT name, labels::text, (extract(epoch FROM time) * 1000)::bigint AS ms, value FROM metrics
               WHERE time <= to_timestamp($1::bigint / 1000.0)";
    let mut samples = Samples::new();
    for row in database.client.query(sql, &[&until_ms]).await.expect("samples are selected") {
        let (ms, value): (i64, f64) = (row.get(2), row.get(3));
        let twice = samples.entry(stored_labels(&row)).or_default().insert(ms, value.to_bits());
        assert_eq!(twice, None, "stored twice: {row:?}");
    }
    samples
}

/// Returns all stored exemplars up to a time.
async fn stored_exemplars(database: &Database, until_ms: i64) -> Exemplars {
    let sql = "SELECT name, labels::text, exemplar_labels::text, value, (extract(epoch FROM time) * 1000)::bigint
               FROM metrics_exemplars WHERE time <= to_timestamp($1::bigint / 1000.0)";
    let mut exemplars = Exemplars::new();
    for row in database.client.query(sql, &[&until_ms]).await.expect("exemplars are selected") {
        let own = labels(&serde_json::from_str(row.get(2)).expect("labels are JSON"));
        let (value, ms): (f64, i64) = (row.get(3), row.get(4));
        let twice = exemplars.insert((stored_labels(&row), own), (value.to_bits(), ms));
        assert_eq!(twice, None, "stored twice: {row:?}");
    }
    exemplars
}

/// Asserts that two sets of native histograms are the same, but for the last digits of bounds.
fn assert_same_histograms(stored: &Histograms, own: &Histograms) {
    let numbers = |histograms: &Histograms| -> Vec<(Labels, i64, Vec<f64>)> {
        let of = |(labels, times): (&Labels, &BTreeMap<i64, Vec<f64>>)| {
            times.iter().map(|(ms, numbers)| (labels.clone(), *ms, numbers.clone())).collect::<Vec<_>>()
        };
        histograms.iter().flat_map(of).collect()
    };
    let is_near = |one: f64, other: f64| one == other || (one - other).abs() <= 1e-14 * one.abs();
    let is_same = |(labels, ms, numbers): &(Labels, i64, Vec<f64>), other: &(Labels, i64, Vec<f64>)| {
        let are_near = numbers.iter().zip(&other.2).all(|(one, other)| is_near(*one, *other));
        (labels, ms, numbers.len()) == (&other.0, &other.1, other.2.len()) && are_near
    };
    let (stored, own) = (numbers(stored), numbers(own));
    for (stored, own) in stored.iter().zip(&own) {
        assert!(is_same(stored, own), "{stored:?} and not {own:?}");
    }
    assert_eq!(stored.len(), own.len());
}

/// Asserts that the samples of a time are those of a scrape.
fn assert_samples(samples: &Samples, time_ms: i64, served: &Scrape) {
    for float in served.floats(true) {
        let is =
            |labels: &&Labels| labels["__name__"] == float.name && labels.get("le").map(String::as_str) == float.le;
        let series: Vec<&Labels> = samples.keys().filter(is).collect();
        let [series] = series[..] else { panic!("{float:?} is of one series, not of {series:#?}") };
        let stored = samples[series].get(&time_ms).copied().map(f64::from_bits);
        assert_eq!(stored, Some(float.value), "{float:?} of {served:?} at {time_ms}");
    }
}

/// Asserts that the exemplars of a scrape are stored, as far as they are not later than a time.
fn assert_exemplars(exemplars: &Exemplars, time_ms: i64, served: &Scrape, until_ms: i64) {
    let all = served.exemplars(true);
    assert!(all.len() > 1, "{all:?}");
    for (family, exemplar) in all {
        let at = exemplar.time.map_or(time_ms, |time| time.seconds * 1_000 + i64::from(time.nanos) / 1_000_000);
        if at > until_ms {
            continue;
        }
        let is = |((series, own), _): &(&(Labels, Labels), &(u64, i64))| {
            own["trace_id"] == exemplar.labels[0].value && series["__name__"].starts_with(&family)
        };
        // A classic histogram that is also taken as a native one has its exemplars twice.
        let found: Vec<(u64, i64)> = exemplars.iter().filter(is).map(|(_, exemplar)| *exemplar).collect();
        assert!(!found.is_empty(), "{family}: {exemplar:?} of {served:?} is not stored: {exemplars:#?}");
        assert!(found.iter().all(|found| *found == (exemplar.value.to_bits(), at)), "{exemplar:?} at {at}: {found:?}");
    }
}

/// Runs a Prometheus that sends by a message of remote write, and compares what it has with what is stored.
async fn stores_all_that_is_sent(message: &str) {
    let Some(program) = prometheus::current() else {
        skipped("no current Prometheus is built: tests/prometheus/build");
        return;
    };
    let (database, target) = (Database::new().await, Target::start().await);
    let adapter = database.leader().await;
    let config = config(&target, "a", &adapter.url("/write"), message);
    let prometheus = Prometheus::start(prometheus::Options::new(config).program(program).arg(FEATURES)).await;

    target.wait_scrapes(SCRAPES, SCRAPING).await;
    let until = now_ms();
    // A series is sent in the order of its samples, and an exemplar before the samples of the next scrape.
    let stored = async || (database.one::<Option<i64>>(STORED_UNTIL).await? > until).then_some(());
    prometheus.process().wait_until("what was scraped is stored", SOON, stored).await;

    let (own, samples) = (own_samples(&prometheus, until).await, stored_samples(&database, until).await);
    let named = |name: &str| own.iter().find(|(labels, _)| labels["__name__"] == name).expect("it was scraped").1;
    let up = named("up");
    assert!(up.values().all(|up| *up == 1.0_f64.to_bits()), "a scrape has failed: {up:?}");
    assert_eq!(samples, own);
    let histograms = stored_histograms(&database, until).await;
    assert!(histograms.len() >= 2, "an integer and a float one: {:?}", histograms.keys());
    assert_same_histograms(&histograms, &own_histograms(&prometheus, until).await);
    let exemplars = stored_exemplars(&database, until).await;
    assert_eq!(exemplars, own_exemplars(&prometheus, until).await);
    let (scraped, served) = (named(target::SCRAPES), target.scrapes());
    assert!(scraped.len() >= SCRAPES - 1, "{scraped:?}");
    for (time_ms, number) in scraped {
        let number = f64::from_bits(*number);
        let scrape = served.iter().find(|scrape| f64::from(scrape.number) == number).expect("it was served");
        assert_samples(&samples, *time_ms, scrape);
        assert_exemplars(&exemplars, *time_ms, scrape, until);
    }

    for name in MUST_BE_0 {
        // Absent until they count: what is dropped, by its reason; and metadata by version 2.0, which is a part of samples.
        let absent = ["_dropped_", "_metadata_"].iter().any(|part| name.contains(part)).then_some(0.0);
        let count = prometheus.metric(name, "").await.or(absent);
        if count != Some(0.0) {
            prometheus.process().fail(&format!("{name} is {count:?}"));
        }
    }
    for family in served[0].families() {
        let sql = format!("SELECT EXISTS (SELECT FROM metrics_metadata WHERE help = '{}')", family.help);
        database.wait(&sql).await;
    }
}

#[tokio::test]
async fn all_that_a_current_prometheus_sends_by_version_1_is_stored() {
    stores_all_that_is_sent("").await;
}

#[tokio::test]
async fn all_that_a_current_prometheus_sends_by_version_2_is_stored() {
    stores_all_that_is_sent(VERSION_2).await;
}
