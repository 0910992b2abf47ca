//! What holds of every decoded write request, whatever its version.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::LazyLock;

use prometheus_postgresql_adapter::model::histogram::{COUNT_MAX, CUSTOM_BUCKETS, Histogram, Numbers};
use prometheus_postgresql_adapter::model::labels::Labels;
use prometheus_postgresql_adapter::model::sample::{Kind, Point, STALE_NAN_BITS, Value};
use prometheus_postgresql_adapter::model::source::{NAME_BYTES_MAX, SourceLabels};
use prometheus_postgresql_adapter::storage::exemplars;
use prometheus_postgresql_adapter::storage::row::{TIME_MAX_MS, TIME_MIN_MS};
use prometheus_postgresql_adapter::storage::series::Cache;
use prometheus_postgresql_adapter::wire::read::messages;
use prometheus_postgresql_adapter::wire::read::series::time_series;
use prometheus_postgresql_adapter::wire::write::{
    EXEMPLARS_MAX, Exemplar, HISTOGRAM_BUCKETS_MAX, HISTOGRAM_NUMBERS_MAX, HISTOGRAMS_MAX, LABELS_MAX, METADATA_MAX,
    Pair, Request, SAMPLES_MAX, SERIES_MAX, Series,
};

use crate::seeds::Captures;
use crate::{answer, chunk_of_histograms};

/// Replica labels of the flag's default.
static REPLICA_LABELS: LazyLock<Vec<String>> = LazyLock::new(|| vec!["__replica__".to_owned()]);

static CACHE: LazyLock<Cache> = LazyLock::new(|| Cache::new(1000));

/// Checks a request, and does with it what the store does before it asks the database.
pub(crate) fn check(request: &Request<'_>) {
    assert!(request.series.len() <= SERIES_MAX && request.samples.len() <= SAMPLES_MAX);
    assert!(request.histograms.len() <= HISTOGRAMS_MAX && request.histogram_numbers <= HISTOGRAM_NUMBERS_MAX);
    assert!(request.exemplars.len() <= EXEMPLARS_MAX && request.metadata.len() <= METADATA_MAX);
    assert!(request.metadata.iter().all(|metadata| !metadata.name.is_empty()));
    check_ranges(request);
    check_hashes(request);
    for series in &request.series {
        check_labels(request, series);
        check_histograms(request, series);
    }
    for exemplar in &request.exemplars {
        let pairs = request.pairs(&exemplar.labels).take(LABELS_MAX).collect::<Result<Vec<_>, _>>();
        for is_ascii_only in [false, true] {
            let new = |pairs| {
                exemplars::Exemplar::new(1, exemplar.sample.timestamp_ms, exemplar.sample.value, pairs, is_ascii_only)
            };
            let _ = pairs.clone().map(new);
        }
    }
}

/// Every sample, histogram and exemplar belongs to one series, in the order of the series.
fn check_ranges(request: &Request<'_>) {
    let (mut samples, mut histograms, mut exemplars) = (0, 0, 0);
    for series in &request.series {
        let kind = if series.histograms.is_empty() { Kind::Float } else { Kind::Histogram };
        assert_eq!(series.kind, kind);
        for (range, end) in [(&series.samples, &mut samples), (&series.histograms, &mut histograms)] {
            if !range.is_empty() {
                assert_eq!(range.start, *end);
                *end = range.end;
            }
        }
        exemplars += series.exemplars as usize;
    }
    assert_eq!((samples as usize, histograms as usize), (request.samples.len(), request.histograms.len()));
    assert_eq!(exemplars, request.exemplars.len());
    for (place, series) in request.series.iter().enumerate() {
        let count = request.exemplars.iter().filter(|exemplar| exemplar.series as usize == place).count();
        assert_eq!(count, series.exemplars as usize);
    }
}

/// Two series have the same key in the cache only if they have the same labels and kind.
fn check_hashes(request: &Request<'_>) {
    let hashes = CACHE.hash_all(request);
    assert_eq!(hashes.len(), request.series.len());
    let mut known: HashMap<String, (Vec<Pair<'_>>, Kind)> = HashMap::new();
    for (hash, series) in hashes.iter().zip(&request.series) {
        let Ok(pairs) = request.label_pairs(series).take(LABELS_MAX).collect::<Result<Vec<_>, _>>() else { continue };
        if pairs.len() < LABELS_MAX {
            let identity = (pairs, series.kind);
            let first = known.entry(format!("{hash:?}")).or_insert_with(|| identity.clone());
            assert_eq!(*first, identity);
        }
    }
}

fn check_labels(request: &Request<'_>, series: &Series<'_>) {
    let mut pairs = request.label_pairs(series);
    let read: Result<Vec<Pair<'_>>, _> = pairs.by_ref().collect();
    let Ok(read) = read else {
        assert!(pairs.next().is_none(), "labels after a fault");
        return;
    };
    let names = SourceLabels { cluster: "cluster".to_owned(), replica: REPLICA_LABELS.clone() };
    for encoding in [None, Some("LATIN1")] {
        if let Ok(source) = names.source(&read, encoding) {
            assert!((1..=NAME_BYTES_MAX).contains(&source.cluster.len()));
            assert!((1..=NAME_BYTES_MAX).contains(&source.replica.len()));
            assert!(encoding.is_none() || source.cluster.is_ascii() && source.replica.is_ascii());
        }
    }
    let Ok(labels) = Labels::new(read, &REPLICA_LABELS) else { return };
    assert!(!labels.metric_name().is_empty() && labels.get("__replica__").is_empty());
    assert!(labels.iter().is_sorted_by(|one, next| one.name < next.name));
    let texts = || labels.iter().flat_map(|label| [&label.name, &label.value]);
    assert!(texts().all(|text| !text.is_empty() && !text.contains('\0')));
    let stored = Labels::from_stored(labels.iter().rev().map(|label| (label.name.clone(), label.value.clone())));
    assert_eq!(stored, labels);
    assert_ne!(labels.identity(Kind::Float), labels.identity(Kind::Histogram));
}

/// What is accepted is stored, sealed and answered without a change.
fn check_histograms(request: &Request<'_>, series: &Series<'_>) {
    let mut points = Vec::new();
    for sample in request.histograms_of(series) {
        let Ok(value) = &sample.value else { continue };
        match value {
            Value::Float(value) => assert_eq!(value.to_bits(), STALE_NAN_BITS),
            Value::Histogram(numbers) => check_histogram(numbers),
        }
        points.push(Point { timestamp_ms: sample.timestamp_ms, value: value.clone() });
    }
    points.sort_by_key(|point| point.timestamp_ms);
    points.dedup_by_key(|point| point.timestamp_ms);
    answer::check(&points);
    points.retain(|point| (TIME_MIN_MS..=TIME_MAX_MS).contains(&point.timestamp_ms));
    let values: Vec<_> = points.into_iter().map(|point| (point.timestamp_ms, point.value)).collect();
    chunk_of_histograms::round_trip(-1, &values);
}

fn check_histogram(numbers: &Numbers) {
    let histogram = numbers.to_histogram().expect("what is decoded is in canonical form");
    assert_eq!(&histogram.to_numbers(), numbers);
    let Histogram { is_float, zero_count, count, sum, bounds, positive, negative, .. } = &histogram;
    assert!(positive.len() + negative.len() <= HISTOGRAM_BUCKETS_MAX && bounds.len() <= HISTOGRAM_BUCKETS_MAX);
    assert!(histogram.reset_hint <= 3 && sum.to_bits() != STALE_NAN_BITS);
    for buckets in [positive, negative] {
        assert!(buckets.is_sorted_by(|(one, _), (next, _)| one < next));
        assert!(buckets.iter().all(|(_, count)| *count != 0.0));
    }
    let counts = || positive.iter().chain(negative).map(|(_, count)| *count).chain([*zero_count]);
    assert!(!counts().chain([*count]).any(|count| count < 0.0));
    if !is_float {
        assert!(counts().all(|count| count.fract() == 0.0));
        assert!(counts().sum::<f64>() <= *count && *count < COUNT_MAX as f64);
    }
    if histogram.schema == CUSTOM_BUCKETS {
        let is_inside = |index: i32| usize::try_from(index).is_ok_and(|index| index <= bounds.len());
        assert!(negative.is_empty() && positive.iter().all(|(index, _)| is_inside(*index)));
        assert!(bounds.is_sorted_by(|one, next| one < next));
    } else {
        assert!(bounds.is_empty());
    }
}

/// Returns messages of one version: `end` is that of the names of cases.
pub(crate) fn seeds(captures: &Captures, directories: &[&str], end: &str) -> Vec<Vec<u8>> {
    let mut seeds = captures.messages(&["prometheus-3.14/cases/bodies"], end, usize::MAX);
    seeds.extend(captures.messages(directories, ".bin", 3));
    seeds
}

/// Returns histograms as messages.
pub(crate) fn histograms() -> Vec<messages::Histogram> {
    let examples = [false, true].into_iter().flat_map(crate::numbers::examples).flatten();
    let point = |(n, histogram): (i64, Histogram)| Point {
        timestamp_ms: 1_700_000_000_000 + n * 15_000,
        value: Value::Histogram(histogram.to_numbers()),
    };
    let series = time_series(&Labels::default(), (0..).zip(examples).map(point));
    series.expect("they are in canonical form").histograms
}

/// What a message says, in a form in which two decoders can be compared: with each item a hash of its labels, and floats
/// by their bits.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Flat {
    pub(crate) samples: Vec<(u64, i64, u64)>,
    pub(crate) histograms: Vec<(u64, i64)>,
    pub(crate) exemplars: Vec<(u64, i64, u64)>,
}

pub(crate) fn hash(pairs: &[Pair<'_>]) -> u64 {
    let mut hasher = DefaultHasher::new();
    pairs.hash(&mut hasher);
    hasher.finish()
}

/// Returns what was decoded; `None` if some labels are malformed.
pub(crate) fn flat(request: &Request<'_>) -> Option<Flat> {
    let labels = |labels: &[u8]| Some(hash(&request.pairs(labels).collect::<Result<Vec<_>, _>>().ok()?));
    let mut flat = Flat::default();
    for series in &request.series {
        let labels = labels(&series.labels)?;
        let samples = request.samples_of(series).iter();
        flat.samples.extend(samples.map(|one| (labels, one.timestamp_ms, one.value.to_bits())));
        flat.histograms.extend(request.histograms_of(series).iter().map(|one| (labels, one.timestamp_ms)));
    }
    for Exemplar { labels: of_exemplar, sample, .. } in &request.exemplars {
        flat.exemplars.push((labels(of_exemplar)?, sample.timestamp_ms, sample.value.to_bits()));
    }
    Some(flat)
}
