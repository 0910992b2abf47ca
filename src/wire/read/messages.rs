//! The messages of remote read, field for field.
//!
//! Only the fields that are read or written here; `prost` skips the others. Source: Prometheus,
//! `prompb/remote.proto` and `prompb/types.proto`.

use prost::{Enumeration, Message};

/// What is asked for.
#[derive(Clone, PartialEq, Message)]
pub struct ReadRequest {
    /// Answered in this order.
    #[prost(message, repeated, tag = "1")]
    pub queries: Vec<Query>,
    /// [`ResponseType`]s in the client's order of preference, unknown ones among them.
    #[prost(enumeration = "ResponseType", repeated, tag = "2")]
    pub accepted_response_types: Vec<i32>,
}

/// How a request may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Enumeration)]
#[repr(i32)]
pub enum ResponseType {
    /// One [`ReadResponse`].
    Samples = 0,
    /// A stream of [`ChunkedReadResponse`]s in frames.
    StreamedXorChunks = 1,
}

/// Series within a span of time.
#[derive(Clone, PartialEq, Message)]
pub struct Query {
    /// The first millisecond asked for.
    #[prost(int64, tag = "1")]
    pub start_timestamp_ms: i64,
    /// The last millisecond asked for, itself included.
    #[prost(int64, tag = "2")]
    pub end_timestamp_ms: i64,
    /// All of them must match a series.
    #[prost(message, repeated, tag = "3")]
    pub matchers: Vec<LabelMatcher>,
    /// What the query is for; advice, never a condition.
    #[prost(message, optional, tag = "4")]
    pub hints: Option<ReadHints>,
}

/// A condition on one label; an absent label is an empty one.
#[derive(Clone, PartialEq, Message)]
pub struct LabelMatcher {
    /// A [`MatcherType`], or a number that is none.
    #[prost(enumeration = "MatcherType", tag = "1")]
    pub kind: i32,
    /// The label's name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// A value or a regular expression.
    #[prost(string, tag = "3")]
    pub value: String,
}

/// How a matcher compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Enumeration)]
#[repr(i32)]
pub enum MatcherType {
    /// `=`
    Equal = 0,
    /// `!=`
    NotEqual = 1,
    /// `=~`
    Regex = 2,
    /// `!~`
    NotRegex = 3,
}

/// What the client will do with the answer.
#[derive(Clone, PartialEq, Message)]
pub struct ReadHints {
    /// The query's step, in milliseconds.
    #[prost(int64, tag = "1")]
    pub step_ms: i64,
    /// The function around the selector; "series" asks for labels only.
    #[prost(string, tag = "2")]
    pub func: String,
    /// The first millisecond that matters.
    #[prost(int64, tag = "3")]
    pub start_ms: i64,
    /// The last millisecond that matters.
    #[prost(int64, tag = "4")]
    pub end_ms: i64,
    /// Labels that the result is grouped by, or without.
    #[prost(string, repeated, tag = "5")]
    pub grouping: Vec<String>,
    /// Whether grouped by them.
    #[prost(bool, tag = "6")]
    pub by: bool,
    /// The selector's range, in milliseconds.
    #[prost(int64, tag = "7")]
    pub range_ms: i64,
}

/// The answer of type [`ResponseType::Samples`].
#[derive(Clone, PartialEq, Message)]
pub struct ReadResponse {
    /// One for each query, in the order of the queries.
    #[prost(message, repeated, tag = "1")]
    pub results: Vec<QueryResult>,
}

/// The answer to one query.
#[derive(Clone, PartialEq, Message)]
pub struct QueryResult {
    /// In any order.
    #[prost(message, repeated, tag = "1")]
    pub timeseries: Vec<TimeSeries>,
}

/// A series with its samples.
#[derive(Clone, PartialEq, Message)]
pub struct TimeSeries {
    /// Sorted by name.
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<Label>,
    /// Sorted by time.
    #[prost(message, repeated, tag = "2")]
    pub samples: Vec<Sample>,
}

/// A label.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Label {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A sample.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Sample {
    /// Any float; absent is 0. Optional because prost leaves out -0 otherwise, which equals 0.
    #[prost(double, optional, tag = "1")]
    pub value: Option<f64>,
    /// Milliseconds since 1970-01-01 UTC.
    #[prost(int64, tag = "2")]
    pub timestamp: i64,
}

/// One frame of an answer of type [`ResponseType::StreamedXorChunks`].
#[derive(Clone, PartialEq, Message)]
pub struct ChunkedReadResponse {
    /// Exactly one: clients read no further.
    #[prost(message, repeated, tag = "1")]
    pub chunked_series: Vec<ChunkedSeries>,
    /// Which of the request's queries this answers, from 0.
    #[prost(int64, tag = "2")]
    pub query_index: i64,
}

/// A series with its chunks.
#[derive(Clone, PartialEq, Message)]
pub struct ChunkedSeries {
    /// Sorted by name.
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<Label>,
    /// Sorted by time.
    #[prost(message, repeated, tag = "2")]
    pub chunks: Vec<Chunk>,
}

/// Some samples of a series.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Chunk {
    /// The time of the first sample.
    #[prost(int64, tag = "1")]
    pub min_time_ms: i64,
    /// The time of the last sample; clients seek by it.
    #[prost(int64, tag = "2")]
    pub max_time_ms: i64,
    /// What `data` is.
    #[prost(enumeration = "ChunkEncoding", tag = "3")]
    pub encoding: i32,
    /// The chunk itself, as `wire::xor` has it.
    #[prost(bytes = "vec", tag = "4")]
    pub data: Vec<u8>,
}

/// How a chunk is encoded; those for histograms are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Enumeration)]
#[repr(i32)]
pub enum ChunkEncoding {
    /// Not said.
    Unknown = 0,
    /// As `wire::xor` has it.
    Xor = 1,
}
