//! Remote read on the wire: the request of a client, and the two forms of an answer.
//!
//! `storage` finds the series, and `http` chooses the status of an error.

use bytes::BufMut;
use prost::Message;
use thiserror::Error;

use crate::model::labels::Labels;
use crate::model::matcher::{Matcher, MatcherError, Op, REGEX_BYTES_MAX};
use crate::model::sample::Sample;
use crate::wire::frame;
use crate::wire::protobuf::{DecodeError, Scanner};
use crate::wire::read::messages::{
    Chunk, ChunkEncoding, ChunkedReadResponse, ChunkedSeries, Label, LabelMatcher, MatcherType, Query, ReadRequest,
    ResponseType, TimeSeries,
};
use crate::wire::xor;

pub mod messages;

/// Samples in one chunk: the number at which Prometheus cuts its own chunks.
pub const CHUNK_SAMPLES: usize = 120;

/// Maximum bytes of a decompressed request.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Maximum queries of one request: Prometheus sends one.
pub const QUERIES_MAX: usize = 64;

/// Maximum matchers of one query: a person writes a handful.
pub const MATCHERS_MAX: usize = 64;

/// Maximum bytes of all regular expressions of one request.
pub const EXPRESSION_BYTES_MAX: usize = 64 << 10;

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
    /// More than [`EXPRESSION_BYTES_MAX`].
    #[error("the regular expressions of the request have {0} bytes, more than the {EXPRESSION_BYTES_MAX} allowed")]
    Expressions(usize),
}

/// Error of a body that is no request, or too large a one.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum RequestError {
    /// Bytes that are no such message.
    #[error(transparent)]
    Scan(#[from] DecodeError),
    /// Bytes that are no such message, or a string that is not UTF-8.
    #[error(transparent)]
    Message(#[from] prost::DecodeError),
    /// More than [`REQUEST_BYTES_MAX`].
    #[error("it has {0} bytes, more than the {REQUEST_BYTES_MAX} allowed")]
    TooLarge(usize),
    /// More than [`QUERIES_MAX`].
    #[error("it has more than the {QUERIES_MAX} queries allowed")]
    TooManyQueries,
    /// More than [`MATCHERS_MAX`].
    #[error("a query has more than the {MATCHERS_MAX} matchers allowed")]
    TooManyMatchers,
}

/// Decodes a request that is already decompressed. What exceeds a limit is refused before memory is allocated for it.
///
/// # Errors
///
/// `RequestError` if the body is no such message, or has more than is allowed.
pub fn decode_request(body: &[u8]) -> Result<ReadRequest, RequestError> {
    if body.len() > REQUEST_BYTES_MAX {
        return Err(RequestError::TooLarge(body.len()));
    }
    let (mut queries, mut fields) = (0, Scanner::new(body));
    while let Some(field) = fields.next_field()? {
        if field.number != 1 {
            continue;
        }
        queries += 1;
        if queries > QUERIES_MAX {
            return Err(RequestError::TooManyQueries);
        }
        let (mut matchers, mut query) = (0, fields.nested(field.bytes()?));
        while let Some(field) = query.next_field()? {
            matchers += usize::from(field.number == 3);
            if matchers > MATCHERS_MAX {
                return Err(RequestError::TooManyMatchers);
            }
        }
    }
    Ok(ReadRequest::decode(body)?)
}

/// Chooses the type of the answer: the first accepted type that is known here, or `None` if none is known. Clients
/// older than this choice list no type; they get samples.
pub fn negotiate(accepted: &[i32]) -> Option<ResponseType> {
    if accepted.is_empty() {
        return Some(ResponseType::Samples);
    }
    accepted.iter().find_map(|&kind| ResponseType::try_from(kind).ok())
}

impl ReadRequest {
    /// Compiles the matchers of each query. Takes up to [`REGEX_BYTES_MAX`], of which each regular expression has an
    /// equal part, and so long that a thread of its own should do it.
    ///
    /// # Errors
    ///
    /// `QueryError` if a matcher is not valid, or there are too many or too large regular expressions.
    pub fn compile_matchers(&self) -> Result<Vec<Vec<Matcher>>, QueryError> {
        let matchers = self.queries.iter().flat_map(|query| &query.matchers);
        let expressions = matchers.filter(|matcher| matcher.op().is_ok_and(Op::is_regex)).map(|one| one.value.len());
        let (count, bytes) = expressions.fold((0, 0), |(count, bytes), len| (count + 1, bytes + len));
        if bytes > EXPRESSION_BYTES_MAX {
            return Err(QueryError::Expressions(bytes));
        }
        let bytes_max = REGEX_BYTES_MAX / count.max(1);
        let compile = |query: &Query| query.matchers.iter().map(|matcher| matcher.compile(bytes_max)).collect();
        self.queries.iter().map(compile).collect()
    }
}

impl Query {
    /// Returns `true` if only the labels of series are asked for, so that samples need not be sent.
    pub fn wants_labels_only(&self) -> bool {
        self.hints.as_ref().is_some_and(|hints| hints.func == "series")
    }
}

impl LabelMatcher {
    fn op(&self) -> Result<Op, QueryError> {
        match MatcherType::try_from(self.kind) {
            Ok(MatcherType::Equal) => Ok(Op::Equal),
            Ok(MatcherType::NotEqual) => Ok(Op::NotEqual),
            Ok(MatcherType::Regex) => Ok(Op::Regex),
            Ok(MatcherType::NotRegex) => Ok(Op::NotRegex),
            Err(_) => Err(QueryError::MatcherType { name: self.name.clone(), kind: self.kind }),
        }
    }

    fn compile(&self, regex_bytes_max: usize) -> Result<Matcher, QueryError> {
        Ok(Matcher::new(self.op()?, self.name.clone(), self.value.clone(), regex_bytes_max)?)
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
