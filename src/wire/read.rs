//! Remote read on the wire: the request of a client, and the two forms of an answer.
//!
//! `storage` finds the series, and `http` chooses the status of an error.

use bytes::BufMut;
use prost::Message;
use thiserror::Error;

use crate::model::labels::Labels;
use crate::model::matcher::{Matcher, MatcherError, Op};
use crate::model::sample::Sample;
use crate::wire::frame;
use crate::wire::read::messages::{
    Chunk, ChunkEncoding, ChunkedReadResponse, ChunkedSeries, Label, LabelMatcher, MatcherType, Query, ReadRequest,
    ResponseType, TimeSeries,
};
use crate::wire::xor;

pub mod messages;

/// Samples in one chunk: the number at which Prometheus cuts its own chunks.
pub const CHUNK_SAMPLES: usize = 120;

/// Maximum matchers of one query: a person writes a handful, and a compiled expression may take megabytes.
pub const MATCHERS_MAX: usize = 256;

/// Bytes of chunks after which a series should continue in a new frame. Prometheus refuses frames of more than 50 MB,
/// and takes the parts of a split series for two series, so a split is the last resort.
pub const FRAME_BYTES: usize = 40_000_000;

/// Error of a query that cannot be answered because of the query itself.
#[derive(Clone, Debug, Error)]
pub enum QueryError {
    /// A type of matcher that does not exist.
    #[error("the matcher of the label {name:?} has the unknown type {kind}")]
    MatcherType {
        /// The label's name.
        name: String,
        /// The number in the query.
        kind: i32,
    },
    /// An expression does not compile.
    #[error(transparent)]
    Matcher(#[from] MatcherError),
    /// More than [`MATCHERS_MAX`].
    #[error("the query has {0} matchers, more than the {MATCHERS_MAX} allowed")]
    TooManyMatchers(usize),
}

/// Decodes a request that is already decompressed.
///
/// # Errors
///
/// The decoder's error if the body is no such message, or a string in it is not UTF-8.
pub fn decode_request(body: &[u8]) -> Result<ReadRequest, prost::DecodeError> {
    ReadRequest::decode(body)
}

/// Chooses the type of the answer: the first accepted type that is known here, or `None` if none is known. Clients
/// older than this choice list no type; they get samples.
pub fn negotiate(accepted: &[i32]) -> Option<ResponseType> {
    if accepted.is_empty() {
        return Some(ResponseType::Samples);
    }
    accepted.iter().find_map(|&kind| ResponseType::try_from(kind).ok())
}

impl Query {
    /// Compiles the query's matchers.
    ///
    /// # Errors
    ///
    /// `QueryError` if a matcher is not valid, or there are too many matchers.
    pub fn compile_matchers(&self) -> Result<Vec<Matcher>, QueryError> {
        if self.matchers.len() > MATCHERS_MAX {
            return Err(QueryError::TooManyMatchers(self.matchers.len()));
        }
        self.matchers.iter().map(LabelMatcher::compile).collect()
    }

    /// Returns `true` if only the labels of series are asked for, so that samples need not be sent.
    pub fn wants_labels_only(&self) -> bool {
        self.hints.as_ref().is_some_and(|hints| hints.func == "series")
    }
}

impl LabelMatcher {
    fn compile(&self) -> Result<Matcher, QueryError> {
        let op = match MatcherType::try_from(self.kind) {
            Ok(MatcherType::Equal) => Op::Equal,
            Ok(MatcherType::NotEqual) => Op::NotEqual,
            Ok(MatcherType::Regex) => Op::Regex,
            Ok(MatcherType::NotRegex) => Op::NotRegex,
            Err(_) => {
                return Err(QueryError::MatcherType { name: self.name.clone(), kind: self.kind });
            }
        };
        Ok(Matcher::new(op, self.name.clone(), self.value.clone())?)
    }
}

/// Returns one series of an answer with samples, which must be sorted by time.
pub fn time_series(labels: &Labels, samples: impl IntoIterator<Item = Sample>) -> TimeSeries {
    let value = |value: f64| (value.to_bits() != 0).then_some(value);
    let sample = |sample: Sample| messages::Sample { value: value(sample.value), timestamp: sample.timestamp_ms };
    TimeSeries { labels: label_messages(labels), samples: samples.into_iter().map(sample).collect() }
}

/// Returns one series of a streamed answer with samples, which must be sorted by time.
pub fn chunked_series(labels: &Labels, samples: impl IntoIterator<Item = Sample>) -> ChunkedSeries {
    let mut encoder = SeriesEncoder::new(labels, 0);
    for sample in samples {
        encoder.push(sample);
    }
    encoder.cut_chunk();
    ChunkedSeries { labels: encoder.labels, chunks: encoder.chunks }
}

/// Encoder of one series of a streamed answer: it takes samples as they arrive and never stores all of them.
#[derive(Clone, Debug)]
pub struct SeriesEncoder {
    labels: Vec<Label>,
    query_index: i64,
    /// Complete chunks that are not yet in a frame.
    chunks: Vec<Chunk>,
    /// Bytes of those chunks.
    chunk_bytes: usize,
    /// The chunk that is being written, and the times of its first and last sample.
    encoder: xor::Encoder,
    min_time_ms: i64,
    max_time_ms: i64,
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
        }
    }

    /// Appends a sample that is later than those before.
    pub fn push(&mut self, sample: Sample) {
        if self.encoder.count() == 0 {
            self.min_time_ms = sample.timestamp_ms;
        }
        self.max_time_ms = sample.timestamp_ms;
        self.encoder.push(sample);
        if self.encoder.count() == CHUNK_SAMPLES {
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
        if self.encoder.count() == 0 {
            return;
        }
        let data = std::mem::take(&mut self.encoder).finish();
        self.chunk_bytes += data.len();
        let encoding = ChunkEncoding::Xor.into();
        self.chunks.push(Chunk { min_time_ms: self.min_time_ms, max_time_ms: self.max_time_ms, encoding, data });
    }
}

fn label_messages(labels: &Labels) -> Vec<Label> {
    labels.iter().map(|label| Label { name: label.name.clone(), value: label.value.clone() }).collect()
}

#[cfg(test)]
mod tests;
