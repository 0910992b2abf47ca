//! The series of an answer, in both of its forms.
//!
//! What is known of a counter's reset is told as stored, but for "none": a sender says that of the sample that it sent
//! before, and what is stored before may be another sender's. "Unknown" stands for it, at which a client compares the
//! counts itself. In chunks only a gauge is told to the client; otherwise it takes the hint of the first sample for
//! unknown and those of the others for "none", so chunks end where a counter may have been reset.

use bytes::BufMut;
use prost::Message;

use crate::model::histogram::{self, Corrupt, Numbers};
use crate::model::labels::Labels;
use crate::model::sample::{Point, STALE_NAN_BITS, Sample, Value, is_stale};
use crate::wire::histogram_chunk::{self, NO_RESET, may_follow};
use crate::wire::read::messages::{
    self, BucketSpan, Chunk, ChunkEncoding, ChunkedReadResponse, ChunkedSeries, Histogram, Label, TimeSeries,
};
use crate::wire::spans::to_spans;
use crate::wire::{frame, xor};

/// Samples in one chunk: the number at which Prometheus cuts its own chunks.
pub const CHUNK_SAMPLES: usize = 120;

/// Bytes of chunks after which a series should continue in a new frame. Prometheus refuses frames of more than 50 MB,
/// and takes the parts of a split series for two series, so a split is the last resort.
pub const FRAME_BYTES: usize = 40_000_000;

/// Buckets of the histograms that wait for their chunk, after which it is cut: a megabyte of them.
const WAITING_BUCKETS: usize = 1 << 16;

/// Returns one series of an answer with points, which must be sorted by time.
///
/// # Errors
///
/// [`Corrupt`] if the numbers of a histogram are.
pub fn time_series(labels: &Labels, points: impl IntoIterator<Item = Point>) -> Result<TimeSeries, Corrupt> {
    let mut series = TimeSeries { labels: label_messages(labels), samples: Vec::new(), histograms: Vec::new() };
    // Whether the last point was a histogram, and its counts floats.
    let mut run = None;
    for Point { timestamp_ms, value } in points {
        match (value, run) {
            (Value::Float(value), Some(is_float)) if is_stale(value) => {
                series.histograms.push(stale_message(timestamp_ms, is_float));
            }
            (Value::Float(value), _) => {
                run = None;
                series.samples.push(messages::Sample { value: present(value), timestamp: timestamp_ms });
            }
            (Value::Histogram(numbers), _) => {
                let histogram = answered(&numbers)?;
                run = Some(histogram.is_float);
                series.histograms.push(histogram_message(timestamp_ms, &histogram));
            }
        }
    }
    Ok(series)
}

/// Returns the value of a field in which nothing stands for 0.
fn present(value: f64) -> Option<f64> {
    (value.to_bits() != 0).then_some(value)
}

/// Returns the histogram as a client is told it.
fn answered(numbers: &Numbers) -> Result<histogram::Histogram, Corrupt> {
    let mut histogram = numbers.to_histogram()?;
    if histogram.reset_hint == NO_RESET {
        histogram.reset_hint = 0;
    }
    Ok(histogram)
}

/// Returns the stale marker of a series of histograms.
fn stale_message(timestamp: i64, is_float: bool) -> Histogram {
    let stale = histogram::Histogram { is_float, sum: f64::from_bits(STALE_NAN_BITS), ..Default::default() };
    histogram_message(timestamp, &stale)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole numbers below 2^53")]
fn histogram_message(timestamp: i64, histogram: &histogram::Histogram) -> Histogram {
    let whole = |count: f64| (!histogram.is_float).then_some(count as u64);
    let float = |count: f64| histogram.is_float.then_some(count);
    let spans = |buckets: &[(i32, f64)]| {
        let spans = to_spans(buckets.iter().map(|(index, _)| *index));
        spans.into_iter().map(|span| BucketSpan { offset: span.offset, length: span.length }).collect()
    };
    let counts = |buckets: &[(i32, f64)]| {
        let buckets = if histogram.is_float { buckets } else { &[] };
        buckets.iter().map(|(_, count)| *count).collect()
    };
    let deltas = |buckets: &[(i32, f64)]| {
        let (buckets, mut before) = (if histogram.is_float { &[] } else { buckets }, 0);
        let delta = |(_, count): &(i32, f64)| {
            let delta = (*count as i64).wrapping_sub(before);
            before = *count as i64;
            delta
        };
        buckets.iter().map(delta).collect()
    };
    Histogram {
        count_int: whole(histogram.count),
        count_float: float(histogram.count),
        sum: present(histogram.sum),
        schema: histogram.schema.into(),
        zero_threshold: present(histogram.zero_threshold),
        zero_count_int: whole(histogram.zero_count),
        zero_count_float: float(histogram.zero_count),
        negative_spans: spans(&histogram.negative),
        negative_deltas: deltas(&histogram.negative),
        negative_counts: counts(&histogram.negative),
        positive_spans: spans(&histogram.positive),
        positive_deltas: deltas(&histogram.positive),
        positive_counts: counts(&histogram.positive),
        reset_hint: histogram.reset_hint.into(),
        timestamp,
        custom_values: histogram.bounds.clone(),
    }
}

/// Returns one series of a streamed answer with points, which must be sorted by time.
///
/// # Errors
///
/// [`Corrupt`] if the numbers of a histogram are.
pub fn chunked_series(labels: &Labels, points: impl IntoIterator<Item = Point>) -> Result<ChunkedSeries, Corrupt> {
    let mut encoder = SeriesEncoder::new(labels, 0);
    for point in points {
        encoder.push(point)?;
    }
    encoder.cut_chunk();
    Ok(ChunkedSeries { labels: encoder.labels, chunks: encoder.chunks })
}

/// Encoder of one series of a streamed answer: it takes points as they arrive and never stores all of them.
#[derive(Clone, Debug)]
pub struct SeriesEncoder {
    labels: Vec<Label>,
    query_index: i64,
    /// Complete chunks that are not yet in a frame.
    chunks: Vec<Chunk>,
    /// Bytes of those chunks.
    chunk_bytes: usize,
    /// The chunk of floats that is being written, and the times of its first and last sample.
    encoder: xor::Encoder,
    min_time_ms: i64,
    max_time_ms: i64,
    /// The histograms since the last float, of which a stale marker counts as one.
    run: Option<Run>,
}

/// Histograms that follow each other.
#[derive(Clone, Debug)]
struct Run {
    is_float: bool,
    /// Those that are not yet in a chunk: their layout is known when all are there.
    waiting: Vec<histogram_chunk::Sample>,
    /// Number of their buckets.
    buckets: usize,
}

impl SeriesEncoder {
    /// Begins a series that answers the query number `query_index` of the request, counted from 0.
    pub fn new(labels: &Labels, query_index: i64) -> Self {
        Self {
            labels: label_messages(labels),
            query_index,
            chunks: Vec::new(),
            chunk_bytes: 0,
            encoder: xor::Encoder::new(),
            min_time_ms: 0,
            max_time_ms: 0,
            run: None,
        }
    }

    /// Appends a point that is later than those before.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] if the numbers of a histogram are.
    pub fn push(&mut self, point: Point) -> Result<(), Corrupt> {
        match point.value {
            Value::Float(value) => self.push_float(Sample { timestamp_ms: point.timestamp_ms, value }),
            Value::Histogram(numbers) => self.push_histogram(point.timestamp_ms, answered(&numbers)?),
        }
        Ok(())
    }

    fn push_float(&mut self, sample: Sample) {
        if let Some(run) = &self.run {
            if is_stale(sample.value) {
                let is_float = run.is_float;
                let stale = histogram_chunk::Sample { timestamp_ms: sample.timestamp_ms, histogram: None };
                return self.push_to_run(is_float, stale);
            }
            self.cut_chunk();
            self.run = None;
        }
        if self.encoder.count() == 0 {
            self.min_time_ms = sample.timestamp_ms;
        }
        self.max_time_ms = sample.timestamp_ms;
        self.encoder.push(sample);
        if self.encoder.count() == CHUNK_SAMPLES {
            self.cut_chunk();
        }
    }

    fn push_histogram(&mut self, timestamp_ms: i64, histogram: histogram::Histogram) {
        let is_float = histogram.is_float;
        self.push_to_run(is_float, histogram_chunk::Sample { timestamp_ms, histogram: Some(histogram) });
    }

    /// Appends to a run of histograms with the same kind of counts, after a cut if they need a chunk of their own.
    fn push_to_run(&mut self, is_float: bool, sample: histogram_chunk::Sample) {
        let follows = self.run.as_ref().is_some_and(|run| {
            run.is_float == is_float && run.waiting.last().is_none_or(|last| may_follow(last, &sample))
        });
        if !follows {
            self.cut_chunk();
        }
        let run = self.run.get_or_insert_with(|| Run { is_float, waiting: Vec::new(), buckets: 0 });
        run.is_float = is_float;
        run.buckets += sample.histogram.as_ref().map_or(0, |one| one.positive.len() + one.negative.len());
        run.waiting.push(sample);
        if run.waiting.len() == CHUNK_SAMPLES || run.buckets >= WAITING_BUCKETS {
            self.cut_chunk();
        }
    }

    /// Returns `true` if the complete chunks fill a frame, so that [`SeriesEncoder::write_frame`] must not wait for the
    /// end of the series.
    pub fn is_full(&self) -> bool {
        self.chunk_bytes >= FRAME_BYTES
    }

    /// Appends one frame with all samples since the last frame to a growing buffer. The series may go on after it.
    /// Without samples the frame contains only the labels.
    pub fn write_frame(&mut self, out: &mut impl BufMut) {
        self.cut_chunk();
        self.chunk_bytes = 0;
        let series = ChunkedSeries { labels: self.labels.clone(), chunks: std::mem::take(&mut self.chunks) };
        let response = ChunkedReadResponse { chunked_series: vec![series], query_index: self.query_index };
        frame::write_frame(&response.encode_to_vec(), out);
    }

    fn cut_chunk(&mut self) {
        if self.encoder.count() > 0 {
            let data = std::mem::take(&mut self.encoder).finish();
            self.add_chunk(self.min_time_ms, self.max_time_ms, ChunkEncoding::Xor, data);
        }
        if let Some(Run { is_float, waiting, buckets }) = &mut self.run
            && let (Some(first), Some(last)) = (waiting.first(), waiting.last())
        {
            let data = histogram_chunk::encode(*is_float, waiting);
            let encoding = if *is_float { ChunkEncoding::FloatHistogram } else { ChunkEncoding::Histogram };
            let (min_time_ms, max_time_ms) = (first.timestamp_ms, last.timestamp_ms);
            waiting.clear();
            *buckets = 0;
            self.add_chunk(min_time_ms, max_time_ms, encoding, data);
        }
    }

    fn add_chunk(&mut self, min_time_ms: i64, max_time_ms: i64, encoding: ChunkEncoding, data: Vec<u8>) {
        self.chunk_bytes += data.len();
        self.chunks.push(Chunk { min_time_ms, max_time_ms, encoding: encoding.into(), data });
    }
}

fn label_messages(labels: &Labels) -> Vec<Label> {
    labels.iter().map(|label| Label { name: label.name.clone(), value: label.value.clone() }).collect()
}

#[cfg(test)]
mod tests;
