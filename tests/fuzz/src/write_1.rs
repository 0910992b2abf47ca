//! Write requests of version 1.0, beside a decoder that `prost` derives.

use prometheus_postgresql_adapter::wire::read::messages::Histogram;
use prometheus_postgresql_adapter::wire::write::{v1, v2};
use prost::Message;

use crate::seeds::Captures;
use crate::write;

#[derive(Clone, PartialEq, Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    series: Vec<TimeSeries>,
    #[prost(message, repeated, tag = "3")]
    metadata: Vec<MetricMetadata>,
}

#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    exemplars: Vec<Exemplar>,
    #[prost(message, repeated, tag = "4")]
    histograms: Vec<Histogram>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Exemplar {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(double, tag = "2")]
    value: f64,
    #[prost(int64, tag = "3")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct MetricMetadata {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(bytes = "vec", tag = "2")]
    name: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    help: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    unit: Vec<u8>,
}

pub fn run(body: &[u8]) {
    let Ok(request) = v1::decode(body) else { return };
    assert!(request.symbols.is_none());
    write::check(&request);
    let _ = request.is_empty() && v2::is_version_2(body);
    let Ok(reference) = WriteRequest::decode(body) else { return };
    let mut flat = write::Flat::default();
    for series in &reference.series {
        let labels = hash(&series.labels);
        flat.samples.extend(series.samples.iter().map(|one| (labels, one.timestamp, one.value.to_bits())));
        flat.histograms.extend(series.histograms.iter().map(|one| (labels, one.timestamp)));
        flat.exemplars
            .extend(series.exemplars.iter().map(|one| (hash(&one.labels), one.timestamp, one.value.to_bits())));
    }
    // `prost` skips groups in a label; here they are a fault of its series.
    if let Some(found) = write::flat(&request) {
        assert_eq!(found, flat);
    }
    let says_something =
        |one: &&MetricMetadata| !one.name.is_empty() && (one.kind > 0 || !one.help.is_empty() || !one.unit.is_empty());
    let metadata = reference.metadata.iter().filter(says_something);
    let metadata: Vec<_> = metadata.map(|one| (&one.name[..], one.kind, &one.help[..], &one.unit[..])).collect();
    let found = request.metadata.iter().map(|one| (one.name, one.kind, one.help, one.unit));
    assert!(found.eq(metadata));
}

fn hash(labels: &[Label]) -> u64 {
    write::hash(&labels.iter().map(|label| (&label.name[..], &label.value[..])).collect::<Vec<_>>())
}

pub fn seeds(captures: &Captures) -> Vec<Vec<u8>> {
    let directories = [
        "prometheus-3.14/write-1.0",
        "prometheus-3.14/write-1.0-utf8",
        "prometheus-3.14/write-1.0-restart",
        "prometheus-2.42-pair/a",
    ];
    let mut seeds = write::seeds(captures, &directories, ".v1.bin");
    let label = |name: &str, value: &str| Label { name: name.into(), value: value.into() };
    let labels = vec![label("__name__", "up"), label("__replica__", "a"), label("cluster", "eu")];
    for histograms in [vec![], write::histograms()] {
        let sample = Sample { value: 1.0, timestamp: 1_700_000_000_000 };
        let exemplar = Exemplar { labels: vec![label("id", "7")], value: 0.5, timestamp: 1_700_000_000_000 };
        let series =
            TimeSeries { labels: labels.clone(), samples: vec![sample], exemplars: vec![exemplar], histograms };
        let metadata = MetricMetadata { kind: 2, name: "up".into(), help: "?".into(), unit: "s".into() };
        seeds.push(WriteRequest { series: vec![series; 2], metadata: vec![metadata] }.encode_to_vec());
    }
    seeds
}
