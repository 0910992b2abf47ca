//! Chunks of native histograms. Only tests and clients decode them; the adapter encodes.

use prometheus_postgresql_adapter::model::histogram::Histogram;
use prometheus_postgresql_adapter::wire::histogram_chunk;

use crate::answer;
use crate::seeds::Captures;

/// The layout of a chunk, of a few bits for each bound, is in every decoded sample of a few bits: a longer input may
/// take any memory.
const BYTES_MAX: usize = 1024;

pub fn run(data: &[u8]) {
    let Some((kind, chunk)) = data.split_first() else { return };
    let chunk = &chunk[..chunk.len().min(BYTES_MAX)];
    if let Ok(decoded) = histogram_chunk::decode(kind & 1 == 1, chunk) {
        assert!(decoded.points.len() <= histogram_chunk::SAMPLES_MAX && decoded.reset_hint <= 3);
        answer::check(&decoded.points);
    }
}

pub fn seeds(_: &Captures) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for is_float in [false, true] {
        for histograms in crate::numbers::examples(is_float) {
            let sample = |(n, histogram): (i64, Histogram)| {
                let timestamp_ms = 1_700_000_000_000 + n * 15_000;
                histogram_chunk::Sample { timestamp_ms, histogram: Some(histogram) }
            };
            let mut samples: Vec<_> = (0..).zip(histograms).map(sample).collect();
            samples.push(histogram_chunk::Sample { timestamp_ms: 1_700_000_100_000, histogram: None });
            seeds.push([&[u8::from(is_float)][..], &histogram_chunk::encode(is_float, &samples)].concat());
        }
    }
    seeds
}
