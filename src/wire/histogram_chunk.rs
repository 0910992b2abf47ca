//! The chunks of native histograms of streamed remote read: Prometheus' `HistogramChunk`, whose counts are whole
//! numbers, and `FloatHistogramChunk`, bit for bit.
//!
//! A chunk is a count of 16 bits, a byte of which the two highest bits tell what is known of a counter reset, and a
//! stream of bits. That begins with what all histograms of the chunk share, its layout: schema, zero threshold, custom
//! bounds, and which buckets there are. A sample is its time, count, count of the zero bucket, sum, and the counts of
//! all buckets of the layout: the first sample has them as they are, a later one how they have changed. Counts of
//! buckets that are whole numbers are written as differences to the bucket before. A stale marker has a sum, and no
//! buckets. Source: Prometheus, `tsdb/chunkenc/histogram.go`, `float_histogram.go` and `histogram_meta.go`.
//!
//! Of a counter's chunk a reader takes for granted that no counter was reset after the first sample, so
//! [`may_follow`] tells where a chunk has to end. Starts of counting are not in these chunks.

use thiserror::Error;

use crate::model::histogram::Histogram;

mod decode;
mod encode;
mod layout;

pub use self::decode::{Decoded, decode};
pub use self::encode::encode;

/// Maximum samples of one chunk: its count has 16 bits.
pub const SAMPLES_MAX: usize = u16::MAX as usize;

/// Reset hint of a histogram at which a counter was reset.
pub const RESET: u8 = 1;
/// Reset hint of a histogram before which no counter was reset.
pub const NO_RESET: u8 = 2;
/// Reset hint of a gauge.
pub const GAUGE: u8 = 3;

/// Error of bytes that are no chunk.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{what} in sample {sample} of the chunk of histograms")]
pub struct DecodeError {
    /// Number of the sample, from 0.
    pub sample: usize,
    /// The fault in it.
    pub what: &'static str,
}

/// A sample of a chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Milliseconds since 1970-01-01 UTC, any i64.
    pub timestamp_ms: i64,
    /// The histogram; `None` is a stale marker.
    pub histogram: Option<Histogram>,
}

/// Returns `true` if a sample may follow another one in a chunk. Both must have the same kind of counts.
pub fn may_follow(last: &Sample, next: &Sample) -> bool {
    let Some(next) = &next.histogram else { return true };
    // After a stale marker Prometheus begins a chunk.
    let Some(last) = &last.histogram else { return false };
    let alike = last.schema == next.schema
        && last.zero_threshold == next.zero_threshold
        && last.bounds == next.bounds
        && (last.reset_hint == GAUGE) == (next.reset_hint == GAUGE);
    alike && (next.reset_hint == GAUGE || next.reset_hint != RESET && !goes_down(last, next))
}

/// Returns `true` if any count of two histograms with the same layout is lower in the second one.
fn goes_down(last: &Histogram, next: &Histogram) -> bool {
    let buckets_go_down = |last: &[(i32, f64)], next: &[(i32, f64)]| {
        let mut next = next.iter().peekable();
        last.iter().any(|&(index, count)| {
            while next.next_if(|(other, _)| *other < index).is_some() {}
            next.next_if(|(other, _)| *other == index).map_or(0.0, |(_, count)| *count) < count
        })
    };
    next.count < last.count
        || next.zero_count < last.zero_count
        || buckets_go_down(&last.positive, &next.positive)
        || buckets_go_down(&last.negative, &next.negative)
}

#[cfg(test)]
mod tests;
