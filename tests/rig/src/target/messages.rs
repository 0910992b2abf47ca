//! Messages of the protobuf exposition format. Source: client_model, `io/prometheus/client/metrics.proto`. Only the fields
//! that the target sets are here. A field of value 0 is left out on the wire, and read as 0.

/// Content type of a body of [`MetricFamily`] messages, each after its length.
pub const CONTENT_TYPE: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// Type of a metric family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// [`Metric::counter`] is set.
    Counter = 0,
    /// [`Metric::gauge`] is set.
    Gauge = 1,
    /// [`Metric::histogram`] is set.
    Histogram = 4,
    /// [`Metric::histogram`] is set, and its counts may fall.
    GaugeHistogram = 5,
}

/// All metrics of a name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MetricFamily {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Help text.
    #[prost(string, tag = "2")]
    pub help: String,
    /// Type.
    #[prost(enumeration = "Kind", tag = "3")]
    pub kind: i32,
    /// Metrics, which differ in their labels.
    #[prost(message, repeated, tag = "4")]
    pub metrics: Vec<Metric>,
    /// Unit.
    #[prost(string, tag = "5")]
    pub unit: String,
}

/// A metric with its labels.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metric {
    /// Labels.
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<LabelPair>,
    /// Value of a gauge.
    #[prost(message, optional, tag = "2")]
    pub gauge: Option<Gauge>,
    /// Value of a counter.
    #[prost(message, optional, tag = "3")]
    pub counter: Option<Counter>,
    /// Value of a histogram, classic or native.
    #[prost(message, optional, tag = "7")]
    pub histogram: Option<Histogram>,
}

/// A label.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LabelPair {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Value of a gauge.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Gauge {
    /// Value.
    #[prost(double, tag = "1")]
    pub value: f64,
}

/// Value of a counter.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Counter {
    /// Value.
    #[prost(double, tag = "1")]
    pub value: f64,
    /// Exemplar.
    #[prost(message, optional, tag = "2")]
    pub exemplar: Option<Exemplar>,
    /// Time at which the counter was 0.
    #[prost(message, optional, tag = "3")]
    pub created: Option<Timestamp>,
}

/// A histogram: classic if it has buckets, native if it has spans.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Histogram {
    /// Number of observations, as an integer.
    #[prost(uint64, tag = "1")]
    pub count: u64,
    /// Sum of the observations.
    #[prost(double, tag = "2")]
    pub sum: f64,
    /// Buckets of a classic histogram.
    #[prost(message, repeated, tag = "3")]
    pub buckets: Vec<Bucket>,
    /// Number of observations, as a float.
    #[prost(double, tag = "4")]
    pub count_float: f64,
    /// Resolution: each power of two has 2^schema buckets.
    #[prost(sint32, tag = "5")]
    pub schema: i32,
    /// Observations between this and its negative are in the zero bucket.
    #[prost(double, tag = "6")]
    pub zero_threshold: f64,
    /// Count of the zero bucket, as an integer.
    #[prost(uint64, tag = "7")]
    pub zero_count: u64,
    /// Count of the zero bucket, as a float.
    #[prost(double, tag = "8")]
    pub zero_count_float: f64,
    /// Indices of the buckets of negative observations.
    #[prost(message, repeated, tag = "9")]
    pub negative_spans: Vec<BucketSpan>,
    /// Their counts, each as the difference from the one before.
    #[prost(sint64, repeated, tag = "10")]
    pub negative_deltas: Vec<i64>,
    /// Indices of the buckets of positive observations.
    #[prost(message, repeated, tag = "12")]
    pub positive_spans: Vec<BucketSpan>,
    /// Their counts, each as the difference from the one before.
    #[prost(sint64, repeated, tag = "13")]
    pub positive_deltas: Vec<i64>,
    /// Their counts as floats.
    #[prost(double, repeated, tag = "14")]
    pub positive_counts: Vec<f64>,
    /// Time at which all counts were 0.
    #[prost(message, optional, tag = "15")]
    pub created: Option<Timestamp>,
    /// Exemplars of a native histogram. Prometheus ignores those without a time.
    #[prost(message, repeated, tag = "16")]
    pub exemplars: Vec<Exemplar>,
}

/// A bucket of a classic histogram.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Bucket {
    /// Number of observations up to the bound.
    #[prost(uint64, tag = "1")]
    pub cumulative_count: u64,
    /// Upper bound, included.
    #[prost(double, tag = "2")]
    pub bound: f64,
    /// Exemplar.
    #[prost(message, optional, tag = "3")]
    pub exemplar: Option<Exemplar>,
}

/// Consecutive buckets of a native histogram.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct BucketSpan {
    /// Index of the first bucket, counted from the end of the span before.
    #[prost(sint32, tag = "1")]
    pub offset: i32,
    /// Number of buckets.
    #[prost(uint32, tag = "2")]
    pub length: u32,
}

/// An observation with the labels of its trace.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exemplar {
    /// Labels.
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<LabelPair>,
    /// Value that was observed.
    #[prost(double, tag = "2")]
    pub value: f64,
    /// Time of the observation. Without it, Prometheus takes that of the scrape.
    #[prost(message, optional, tag = "3")]
    pub time: Option<Timestamp>,
}

/// A time since 1970, `google.protobuf.Timestamp`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Timestamp {
    /// Seconds.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Rest in nanoseconds.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}
