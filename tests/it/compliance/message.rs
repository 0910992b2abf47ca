//! A request as a case describes it, and its encoding in both versions. The messages are derived here, so that no code of
//! the adapter's encodes what the adapter decodes. Labels and symbols are bytes: a case may send what is no UTF-8.
//! Source: Prometheus, `prompb/types.proto`, `prompb/remote.proto` and `prompb/io/prometheus/write/v2/types.proto`.

use prometheus_postgresql_adapter::model::histogram::Histogram;
use prometheus_postgresql_adapter::model::sample::{STALE_NAN_BITS, Value};
use prometheus_postgresql_adapter::wire::read::messages;

/// Labels in the order in which they are sent.
pub(super) type Labels = Vec<(Vec<u8>, Vec<u8>)>;

/// Versions of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// What a request says of a series. Times are ms after the time of the case.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) labels: Labels,
    pub(super) samples: Vec<(i64, f64)>,
    pub(super) histograms: Vec<(i64, Native)>,
    pub(super) exemplars: Vec<Exemplar>,
    pub(super) metadata: Option<Metadata>,
    /// Time in `TimeSeries.created_timestamp`, which 2.0 had before its samples got start timestamps.
    created: Option<i64>,
    /// `false` if nothing of it must be stored, but for its metadata.
    pub(super) is_stored: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Exemplar {
    pub(super) time: i64,
    pub(super) value: f64,
    pub(super) labels: Labels,
}

#[derive(Clone, Debug)]
pub(super) struct Metadata {
    /// Number of the type.
    pub(super) kind: i32,
    pub(super) help: String,
    pub(super) unit: String,
}

/// A native histogram, as it is sent and as it must be read.
#[derive(Clone, Debug)]
pub(super) struct Native {
    sent: messages::Histogram,
    pub(super) stored: Value,
}

/// Returns labels.
pub(super) fn labels<N: AsRef<[u8]>, V: AsRef<[u8]>>(pairs: &[(N, V)]) -> Labels {
    pairs.iter().map(|(name, value)| (name.as_ref().to_vec(), value.as_ref().to_vec())).collect()
}

/// Returns a series that has nothing yet.
pub(super) fn series<N: AsRef<[u8]>, V: AsRef<[u8]>>(pairs: &[(N, V)]) -> Series {
    Series {
        labels: labels(pairs),
        samples: Vec::new(),
        histograms: Vec::new(),
        exemplars: Vec::new(),
        metadata: None,
        created: None,
        is_stored: true,
    }
}

/// Returns a series with only a name.
pub(super) fn named(name: &str) -> Series {
    series(&[("__name__", name)])
}

impl Series {
    pub(super) fn sample(mut self, time: i64, value: f64) -> Self {
        self.samples.push((time, value));
        self
    }

    pub(super) fn histogram(mut self, time: i64, histogram: Native) -> Self {
        self.histograms.push((time, histogram));
        self
    }

    pub(super) fn exemplar<V: AsRef<[u8]>>(mut self, time: i64, value: f64, pairs: &[(&str, V)]) -> Self {
        self.exemplars.push(Exemplar { time, value, labels: labels(pairs) });
        self
    }

    pub(super) fn metadata(mut self, kind: i32, help: &str, unit: &str) -> Self {
        self.metadata = Some(Metadata { kind, help: help.to_owned(), unit: unit.to_owned() });
        self
    }

    pub(super) fn created(mut self, time: i64) -> Self {
        self.created = Some(time);
        self
    }

    pub(super) fn not_stored(mut self) -> Self {
        self.is_stored = false;
        self
    }

    pub(super) fn without_exemplars(mut self) -> Self {
        self.exemplars.clear();
        self
    }

    /// Returns the value of the label `__name__`; `None` if there is none, or if it is empty.
    pub(super) fn name(&self) -> Option<&[u8]> {
        let name = self.labels.iter().find(|(name, _)| name == b"__name__");
        name.map(|(_, value)| &value[..]).filter(|value| !value.is_empty())
    }
}

/// Observations of a histogram with whole counts: 21 positive, 5 negative, 3 in the zero bucket.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Positive,
    Negative,
    Zero,
}

fn span(offset: i32, length: u32) -> messages::BucketSpan {
    messages::BucketSpan { offset, length }
}

/// Returns a histogram of schema 0 with these observations.
pub(super) fn native(sum: f64, parts: &[Part]) -> Native {
    let mut sent = messages::Histogram { sum: Some(sum), ..Default::default() };
    let mut stored = Histogram { sum, ..Histogram::default() };
    let mut count = 0;
    for part in parts {
        match part {
            Part::Positive => {
                sent.positive_spans = vec![span(-3, 2), span(1, 3)];
                sent.positive_deltas = vec![2, 3, -1, 4, -6];
                stored.positive = vec![(-3, 2.0), (-2, 5.0), (0, 4.0), (1, 8.0), (2, 2.0)];
                count += 21;
            }
            Part::Negative => {
                sent.negative_spans = vec![span(1, 2)];
                sent.negative_deltas = vec![4, -3];
                stored.negative = vec![(1, 4.0), (2, 1.0)];
                count += 5;
            }
            Part::Zero => {
                (sent.zero_count_int, stored.zero_count) = (Some(3), 3.0);
                count += 3;
            }
        }
    }
    sent.count_int = Some(count);
    stored.count = f64::from(u32::try_from(count).expect("it is small"));
    Native { sent, stored: Value::Histogram(stored.to_numbers()) }
}

/// Returns a histogram with custom buckets. The last one has no bound, and one is empty.
pub(super) fn custom_buckets(sum: f64) -> Native {
    let bounds = vec![-1.0, 0.0, 0.25, 4.0];
    let sent = messages::Histogram {
        schema: -53,
        count_int: Some(13),
        sum: Some(sum),
        positive_spans: vec![span(0, 2), span(1, 2)],
        positive_deltas: vec![3, -1, 5, -6],
        custom_values: bounds.clone(),
        ..Default::default()
    };
    let positive = vec![(0, 3.0), (1, 2.0), (3, 7.0), (4, 1.0)];
    let stored = Histogram { schema: -53, count: 13.0, sum, bounds, positive, ..Histogram::default() };
    Native { sent, stored: Value::Histogram(stored.to_numbers()) }
}

/// Returns a gauge's histogram with counts that are no whole numbers.
pub(super) fn float_counts(sum: f64) -> Native {
    let sent = messages::Histogram {
        schema: 2,
        count_float: Some(4.75),
        sum: Some(sum),
        zero_threshold: Some(0.125),
        zero_count_float: Some(0.5),
        positive_spans: vec![span(7, 2)],
        positive_counts: vec![1.5, 2.0],
        negative_spans: vec![span(-2, 1)],
        negative_counts: vec![0.75],
        reset_hint: 3,
        ..Default::default()
    };
    let stored = Histogram {
        schema: 2,
        is_float: true,
        reset_hint: 3,
        zero_threshold: 0.125,
        zero_count: 0.5,
        count: 4.75,
        sum,
        positive: vec![(7, 1.5), (8, 2.0)],
        negative: vec![(-2, 0.75)],
        ..Histogram::default()
    };
    Native { sent, stored: Value::Histogram(stored.to_numbers()) }
}

/// Returns a histogram whose buckets do not add up to its count. It must not be stored.
pub(super) fn bad_count() -> Native {
    let mut histogram = native(1.0, &[Part::Positive]);
    histogram.sent.count_int = Some(99);
    histogram
}

/// Returns the histogram that ends a series of histograms.
pub(super) fn stale() -> Native {
    let value = f64::from_bits(STALE_NAN_BITS);
    let sent = messages::Histogram { count_int: Some(0), sum: Some(value), ..Default::default() };
    Native { sent, stored: Value::Float(value) }
}

impl Native {
    fn at(&self, timestamp: i64) -> messages::Histogram {
        messages::Histogram { timestamp, ..self.sent.clone() }
    }
}

/// A sample of both versions; `start` is of 2.0 only. The value is optional because `prost` leaves out -0 otherwise.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Sample {
    #[prost(double, optional, tag = "1")]
    value: Option<f64>,
    #[prost(int64, tag = "2")]
    timestamp: i64,
    #[prost(int64, tag = "3")]
    pub(super) start: i64,
}

fn samples(series: &Series, time_ms: i64) -> Vec<Sample> {
    let sample = |(time, value): &(i64, f64)| Sample { value: Some(*value), timestamp: time_ms + time, start: 0 };
    series.samples.iter().map(sample).collect()
}

fn histograms(series: &Series, time_ms: i64) -> Vec<messages::Histogram> {
    series.histograms.iter().map(|(time, histogram)| histogram.at(time_ms + time)).collect()
}

/// Messages of version 1.0.
pub(super) mod v1 {
    use super::{Sample, Series, histograms, messages, samples};

    #[derive(Clone, PartialEq, prost::Message)]
    pub(in super::super) struct WriteRequest {
        #[prost(message, repeated, tag = "1")]
        timeseries: Vec<TimeSeries>,
        #[prost(message, repeated, tag = "3")]
        metadata: Vec<MetricMetadata>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct TimeSeries {
        #[prost(message, repeated, tag = "1")]
        labels: Vec<Label>,
        #[prost(message, repeated, tag = "2")]
        samples: Vec<Sample>,
        #[prost(message, repeated, tag = "3")]
        exemplars: Vec<Exemplar>,
        #[prost(message, repeated, tag = "4")]
        histograms: Vec<messages::Histogram>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct Label {
        #[prost(bytes = "vec", tag = "1")]
        name: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct Exemplar {
        #[prost(message, repeated, tag = "1")]
        labels: Vec<Label>,
        #[prost(double, optional, tag = "2")]
        value: Option<f64>,
        #[prost(int64, tag = "3")]
        timestamp: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct MetricMetadata {
        #[prost(int32, tag = "1")]
        kind: i32,
        #[prost(bytes = "vec", tag = "2")]
        name: Vec<u8>,
        #[prost(string, tag = "4")]
        help: String,
        #[prost(string, tag = "5")]
        unit: String,
    }

    /// Returns a request. Metadata stands apart from the series, and a series that has nothing else is left out.
    pub(in super::super) fn request(all: &[Series], time_ms: i64) -> WriteRequest {
        let labels = |pairs: &super::Labels| {
            pairs.iter().map(|(name, value)| Label { name: name.clone(), value: value.clone() }).collect()
        };
        let mut request = WriteRequest::default();
        for series in all {
            let exemplars = series.exemplars.iter().map(|exemplar| Exemplar {
                labels: labels(&exemplar.labels),
                value: Some(exemplar.value),
                timestamp: time_ms + exemplar.time,
            });
            let message = TimeSeries {
                labels: labels(&series.labels),
                samples: samples(series, time_ms),
                exemplars: exemplars.collect(),
                histograms: histograms(series, time_ms),
            };
            if let Some(said) = &series.metadata {
                let name = series.name().unwrap_or_default().to_vec();
                let (help, unit) = (said.help.clone(), said.unit.clone());
                request.metadata.push(MetricMetadata { kind: said.kind, name, help, unit });
            }
            if !(message.samples.is_empty() && message.exemplars.is_empty() && message.histograms.is_empty()) {
                request.timeseries.push(message);
            }
        }
        request
    }
}

/// Messages of version 2.0. Cases may change them, so that they refer to no symbol, for instance.
pub(super) mod v2 {
    use super::{Sample, Series, histograms, messages, samples};

    #[derive(Clone, PartialEq, prost::Message)]
    pub(in super::super) struct Request {
        #[prost(bytes = "vec", repeated, tag = "4")]
        pub(in super::super) symbols: Vec<Vec<u8>>,
        #[prost(message, repeated, tag = "5")]
        pub(in super::super) timeseries: Vec<TimeSeries>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(in super::super) struct TimeSeries {
        #[prost(uint32, repeated, tag = "1")]
        pub(in super::super) labels_refs: Vec<u32>,
        #[prost(message, repeated, tag = "2")]
        pub(in super::super) samples: Vec<Sample>,
        #[prost(message, repeated, tag = "3")]
        histograms: Vec<messages::Histogram>,
        #[prost(message, repeated, tag = "4")]
        pub(in super::super) exemplars: Vec<Exemplar>,
        #[prost(message, optional, tag = "5")]
        pub(in super::super) metadata: Option<Metadata>,
        #[prost(int64, tag = "6")]
        created: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(in super::super) struct Exemplar {
        #[prost(uint32, repeated, tag = "1")]
        pub(in super::super) labels_refs: Vec<u32>,
        #[prost(double, optional, tag = "2")]
        value: Option<f64>,
        #[prost(int64, tag = "3")]
        timestamp: i64,
    }

    impl Exemplar {
        /// Returns an exemplar whose label has this reference as name and as value.
        pub(in super::super) fn of(reference: u32) -> Self {
            Self { labels_refs: vec![reference; 2], value: Some(1.0), timestamp: 1 }
        }
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(in super::super) struct Metadata {
        #[prost(int32, tag = "1")]
        kind: i32,
        #[prost(uint32, tag = "3")]
        pub(in super::super) help_ref: u32,
        #[prost(uint32, tag = "4")]
        pub(in super::super) unit_ref: u32,
    }

    /// Returns a request. As in those of Go, each series has metadata, if only an empty message.
    pub(in super::super) fn request(all: &[Series], time_ms: i64) -> Request {
        let mut symbols: Vec<Vec<u8>> = vec![Vec::new()];
        let mut symbol = |text: &[u8]| {
            let place = symbols.iter().position(|known| known == text).unwrap_or_else(|| {
                symbols.push(text.to_vec());
                symbols.len() - 1
            });
            u32::try_from(place).expect("there are few symbols")
        };
        let mut refs = |pairs: &super::Labels| -> Vec<u32> {
            pairs.iter().flat_map(|(name, value)| [name, value]).map(|text| symbol(text)).collect()
        };
        let mut timeseries: Vec<TimeSeries> = Vec::new();
        for series in all {
            let labels_refs = refs(&series.labels);
            let mut exemplars = Vec::new();
            for exemplar in &series.exemplars {
                let (labels_refs, timestamp) = (refs(&exemplar.labels), time_ms + exemplar.time);
                exemplars.push(Exemplar { labels_refs, value: Some(exemplar.value), timestamp });
            }
            let metadata = series.metadata.as_ref().map_or_else(Metadata::default, |said| {
                let refs = refs(&vec![(said.help.clone().into_bytes(), said.unit.clone().into_bytes())]);
                Metadata { kind: said.kind, help_ref: refs[0], unit_ref: refs[1] }
            });
            timeseries.push(TimeSeries {
                labels_refs,
                samples: samples(series, time_ms),
                histograms: histograms(series, time_ms),
                exemplars,
                metadata: Some(metadata),
                created: series.created.map_or(0, |created| time_ms + created),
            });
        }
        Request { symbols, timeseries }
    }
}
