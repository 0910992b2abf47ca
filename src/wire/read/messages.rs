//! Messages of remote read, with the fields that are read or written here; `prost` skips the others. Source:
//! Prometheus, `prompb/remote.proto` and `prompb/types.proto`.

use prost::{Enumeration, Message};

/// Request of a remote read.
#[derive(Clone, PartialEq, Message)]
pub struct ReadRequest {
    /// Queries, answered in this order.
    #[prost(message, repeated, tag = "1")]
    pub queries: Vec<Query>,
    /// [`ResponseType`]s in the client's order of preference; unknown ones may be among them.
    #[prost(enumeration = "ResponseType", repeated, tag = "2")]
    pub accepted_response_types: Vec<i32>,
}

/// Type of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Enumeration)]
#[repr(i32)]
pub enum ResponseType {
    /// One [`ReadResponse`].
    Samples = 0,
    /// A stream of [`ChunkedReadResponse`]s in frames.
    StreamedXorChunks = 1,
}

/// Query for series within a span of time.
#[derive(Clone, PartialEq, Message)]
pub struct Query {
    /// First millisecond asked for.
    #[prost(int64, tag = "1")]
    pub start_timestamp_ms: i64,
    /// Last millisecond asked for, inclusive.
    #[prost(int64, tag = "2")]
    pub end_timestamp_ms: i64,
    /// Matchers, all of which must match a series.
    #[prost(message, repeated, tag = "3")]
    pub matchers: Vec<LabelMatcher>,
    /// Purpose of the query; advice, never a condition.
    #[prost(message, optional, tag = "4")]
    pub hints: Option<ReadHints>,
}

/// Condition on one label; an absent label counts as empty.
#[derive(Clone, PartialEq, Message)]
pub struct LabelMatcher {
    /// A [`MatcherType`], or an unknown number.
    #[prost(enumeration = "MatcherType", tag = "1")]
    pub kind: i32,
    /// The label's name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// A value or a regular expression.
    #[prost(string, tag = "3")]
    pub value: String,
}

/// Comparison of a matcher.
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

/// Use that the client will make of the answer.
#[derive(Clone, PartialEq, Message)]
pub struct ReadHints {
    /// Step of the query, in milliseconds.
    #[prost(int64, tag = "1")]
    pub step_ms: i64,
    /// Function around the selector; "series" asks for labels only.
    #[prost(string, tag = "2")]
    pub func: String,
    /// First millisecond that matters.
    #[prost(int64, tag = "3")]
    pub start_ms: i64,
    /// Last millisecond that matters.
    #[prost(int64, tag = "4")]
    pub end_ms: i64,
    /// Labels that the result is grouped by, or without.
    #[prost(string, repeated, tag = "5")]
    pub grouping: Vec<String>,
    /// `true` if grouped by these labels, `false` if without them.
    #[prost(bool, tag = "6")]
    pub by: bool,
    /// Range of the selector, in milliseconds.
    #[prost(int64, tag = "7")]
    pub range_ms: i64,
}

/// Answer of type [`ResponseType::Samples`].
#[derive(Clone, PartialEq, Message)]
pub struct ReadResponse {
    /// Results, one for each query, in the order of the queries.
    #[prost(message, repeated, tag = "1")]
    pub results: Vec<QueryResult>,
}

/// Answer to one query.
#[derive(Clone, PartialEq, Message)]
pub struct QueryResult {
    /// Series, in any order.
    #[prost(message, repeated, tag = "1")]
    pub timeseries: Vec<TimeSeries>,
}

/// A series with its samples.
#[derive(Clone, PartialEq, Message)]
pub struct TimeSeries {
    /// Labels, sorted by name.
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<Label>,
    /// Samples, sorted by time.
    #[prost(message, repeated, tag = "2")]
    pub samples: Vec<Sample>,
    /// Native histograms, sorted by time.
    #[prost(message, repeated, tag = "4")]
    pub histograms: Vec<Histogram>,
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
    /// Value, any float; absent means 0. Optional, because `prost` otherwise leaves out -0, which equals 0.
    #[prost(double, optional, tag = "1")]
    pub value: Option<f64>,
    /// Milliseconds since 1970-01-01 UTC.
    #[prost(int64, tag = "2")]
    pub timestamp: i64,
}

/// A native histogram, whose counts are whole numbers or floats. Floats are optional for the reason told at [`Sample`].
#[derive(Clone, PartialEq, Message)]
pub struct Histogram {
    /// Count of all observations, if counts are whole numbers.
    #[prost(uint64, optional, tag = "1")]
    pub count_int: Option<u64>,
    /// Count of all observations, if counts are floats.
    #[prost(double, optional, tag = "2")]
    pub count_float: Option<f64>,
    /// Sum of all observations; absent means 0.
    #[prost(double, optional, tag = "3")]
    pub sum: Option<f64>,
    /// Schema of the buckets.
    #[prost(sint32, tag = "4")]
    pub schema: i32,
    /// Width of the zero bucket; absent means 0.
    #[prost(double, optional, tag = "5")]
    pub zero_threshold: Option<f64>,
    /// Count of the zero bucket, if counts are whole numbers.
    #[prost(uint64, optional, tag = "6")]
    pub zero_count_int: Option<u64>,
    /// Count of the zero bucket, if counts are floats.
    #[prost(double, optional, tag = "7")]
    pub zero_count_float: Option<f64>,
    /// Which negative buckets there are.
    #[prost(message, repeated, tag = "8")]
    pub negative_spans: Vec<BucketSpan>,
    /// Differences of their counts, each to the bucket before.
    #[prost(sint64, repeated, tag = "9")]
    pub negative_deltas: Vec<i64>,
    /// Their counts, if these are floats.
    #[prost(double, repeated, tag = "10")]
    pub negative_counts: Vec<f64>,
    /// Which positive buckets there are.
    #[prost(message, repeated, tag = "11")]
    pub positive_spans: Vec<BucketSpan>,
    /// Differences of their counts, each to the bucket before.
    #[prost(sint64, repeated, tag = "12")]
    pub positive_deltas: Vec<i64>,
    /// Their counts, if these are floats.
    #[prost(double, repeated, tag = "13")]
    pub positive_counts: Vec<f64>,
    /// What is known of a counter's reset: 0 unknown, 1 yes, 2 no, 3 a gauge.
    #[prost(int32, tag = "14")]
    pub reset_hint: i32,
    /// Milliseconds since 1970-01-01 UTC.
    #[prost(int64, tag = "15")]
    pub timestamp: i64,
    /// Upper bounds of custom buckets.
    #[prost(double, repeated, tag = "16")]
    pub custom_values: Vec<f64>,
}

/// Neighbouring buckets.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct BucketSpan {
    /// Buckets between the end of the span before and this one; of the first span, its first index.
    #[prost(sint32, tag = "1")]
    pub offset: i32,
    /// Number of buckets.
    #[prost(uint32, tag = "2")]
    pub length: u32,
}

/// One frame of an answer of type [`ResponseType::StreamedXorChunks`].
#[derive(Clone, PartialEq, Message)]
pub struct ChunkedReadResponse {
    /// Exactly one series: clients read no further.
    #[prost(message, repeated, tag = "1")]
    pub chunked_series: Vec<ChunkedSeries>,
    /// Number of the query in the request that this answers, from 0.
    #[prost(int64, tag = "2")]
    pub query_index: i64,
}

/// A series with its chunks.
#[derive(Clone, PartialEq, Message)]
pub struct ChunkedSeries {
    /// Labels, sorted by name.
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<Label>,
    /// Chunks, sorted by time.
    #[prost(message, repeated, tag = "2")]
    pub chunks: Vec<Chunk>,
}

/// Some samples of a series.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Chunk {
    /// Time of the first sample.
    #[prost(int64, tag = "1")]
    pub min_time_ms: i64,
    /// Time of the last sample; clients seek by it.
    #[prost(int64, tag = "2")]
    pub max_time_ms: i64,
    /// `ChunkEncoding` of `data`.
    #[prost(enumeration = "ChunkEncoding", tag = "3")]
    pub encoding: i32,
    /// Bytes of the chunk, as `wire::xor` or `wire::histogram_chunk` encodes them.
    #[prost(bytes = "vec", tag = "4")]
    pub data: Vec<u8>,
}

/// Encoding of a chunk. Newer ones, which old clients do not know, are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Enumeration)]
#[repr(i32)]
pub enum ChunkEncoding {
    /// Not stated.
    Unknown = 0,
    /// The encoding of `wire::xor`.
    Xor = 1,
    /// Native histograms whose counts are whole numbers, as `wire::histogram_chunk` encodes them.
    Histogram = 2,
    /// Native histograms whose counts are floats.
    FloatHistogram = 3,
}
