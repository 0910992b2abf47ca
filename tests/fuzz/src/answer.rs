//! What is answered to a remote read: any stored points must survive in chunks.

use prometheus_postgresql_adapter::model::histogram::{COUNT_MAX, CUSTOM_BUCKETS, Histogram};
use prometheus_postgresql_adapter::model::labels::Labels;
use prometheus_postgresql_adapter::model::sample::{Point, STALE_NAN_BITS, Value};
use prometheus_postgresql_adapter::wire::read::messages::ChunkEncoding;
use prometheus_postgresql_adapter::wire::read::series::{chunked_series, time_series};
use prometheus_postgresql_adapter::wire::{histogram_chunk, xor};

/// Encodes points in both forms of an answer, and compares what the chunks have with the points.
pub(crate) fn check(points: &[Point]) {
    let labels = Labels::default();
    let series = time_series(&labels, points.iter().cloned());
    let chunked = chunked_series(&labels, points.iter().cloned());
    assert_eq!(series.is_ok(), chunked.is_ok());
    let (Ok(series), Ok(chunked)) = (series, chunked) else { return };
    assert_eq!(series.samples.len() + series.histograms.len(), points.len());
    if points.iter().any(is_odd) {
        return;
    }
    let mut decoded = Vec::new();
    for chunk in &chunked.chunks {
        match ChunkEncoding::try_from(chunk.encoding) {
            Ok(ChunkEncoding::Xor) => {
                let samples = xor::decode(&chunk.data).expect("it was just encoded").into_iter();
                decoded.extend(samples.map(|one| Point { timestamp_ms: one.timestamp_ms, value: one.value.into() }));
            }
            encoding => {
                let is_float = encoding == Ok(ChunkEncoding::FloatHistogram);
                decoded.extend(histogram_chunk::decode(is_float, &chunk.data).expect("it was just encoded").points);
            }
        }
    }
    assert_eq!(decoded.len(), points.len());
    for (found, point) in decoded.into_iter().zip(points) {
        assert_eq!(found.timestamp_ms, point.timestamp_ms);
        match (&found.value, &point.value) {
            (Value::Histogram(found), Value::Histogram(point)) => {
                let [found, point] = [found, point].map(|numbers| numbers.to_histogram().expect("it was just encoded"));
                if are_whole(&point) {
                    assert_eq!(in_chunk(found), in_chunk(point));
                }
            }
            (found, point) => assert_eq!(found, point),
        }
    }
}

/// Returns `true` for a histogram that is never stored, but whose numbers may be damaged so: a reader takes it for a
/// marker.
fn is_odd(point: &Point) -> bool {
    let Value::Histogram(numbers) = &point.value else { return false };
    numbers.to_histogram().is_ok_and(|histogram| histogram.sum.to_bits() == STALE_NAN_BITS)
}

/// Returns what a chunk tells of a histogram: no reset, no start, no empty bucket, no sign of a zero.
fn in_chunk(mut histogram: Histogram) -> Histogram {
    histogram.reset_hint = 0;
    histogram.start_ms = 0;
    histogram.zero_threshold += 0.0;
    if histogram.schema != CUSTOM_BUCKETS {
        histogram.bounds.clear();
    }
    histogram.bounds.iter_mut().filter(|bound| **bound == 0.0).for_each(|bound| *bound = 0.0);
    histogram.positive.retain(|(_, count)| *count != 0.0);
    histogram.negative.retain(|(_, count)| *count != 0.0);
    histogram
}

/// Returns `true` if counts that should be whole numbers are: others come from damaged numbers alone.
fn are_whole(histogram: &Histogram) -> bool {
    let is_whole = |count: f64| count < COUNT_MAX as f64 && (count as u64 as f64).to_bits() == count.to_bits();
    let buckets = histogram.positive.iter().chain(&histogram.negative).map(|(_, count)| *count);
    histogram.is_float || buckets.chain([histogram.count, histogram.zero_count]).all(is_whole)
}
