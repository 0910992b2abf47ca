//! Write requests of version 2.0, beside a decoder that `prost` derives.

use prometheus_postgresql_adapter::wire::read::messages::Histogram;
use prometheus_postgresql_adapter::wire::write::v2::{self, SYMBOLS_MAX};
use prost::Message;

use crate::seeds::Captures;
use crate::write;

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(bytes = "vec", repeated, tag = "4")]
    symbols: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "5")]
    series: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    #[prost(uint32, repeated, tag = "1")]
    labels: Vec<u32>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    histograms: Vec<Histogram>,
    #[prost(message, repeated, tag = "4")]
    exemplars: Vec<Exemplar>,
    #[prost(message, optional, tag = "5")]
    metadata: Option<Metadata>,
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
    #[prost(uint32, repeated, tag = "1")]
    labels: Vec<u32>,
    #[prost(double, tag = "2")]
    value: f64,
    #[prost(int64, tag = "3")]
    timestamp: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Metadata {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint32, tag = "3")]
    help: u32,
    #[prost(uint32, tag = "4")]
    unit: u32,
}

pub fn run(body: &[u8]) {
    let Ok(request) = v2::decode(body) else { return };
    let Some(symbols) = &request.symbols else { panic!("2.0 always has symbols") };
    assert!(symbols.len() <= SYMBOLS_MAX);
    write::check(&request);
    let _ = request.is_empty() && v2::is_version_1(body);
    let Ok(reference) = Request::decode(body) else { return };
    assert_eq!(*symbols, reference.symbols);
    // Labels that refer to no symbol are a fault of their series, so all of them have to be good to be compared.
    let hash = |labels: &[u32]| -> Option<u64> {
        let symbol = |at: &u32| symbols.get(*at as usize).copied();
        let pair = |pair: &[u32]| symbol(pair.first()?).zip(symbol(pair.get(1)?));
        Some(write::hash(&labels.chunks(2).map(pair).collect::<Option<Vec<_>>>()?))
    };
    let flat = || {
        let mut flat = write::Flat::default();
        for series in &reference.series {
            let labels = hash(&series.labels)?;
            flat.samples.extend(series.samples.iter().map(|one| (labels, one.timestamp, one.value.to_bits())));
            flat.histograms.extend(series.histograms.iter().map(|one| (labels, one.timestamp)));
            for one in &series.exemplars {
                flat.exemplars.push((hash(&one.labels)?, one.timestamp, one.value.to_bits()));
            }
        }
        Some(flat)
    };
    assert_eq!(write::flat(&request), flat());
}

pub fn seeds(captures: &Captures) -> Vec<Vec<u8>> {
    let directories = [
        "prometheus-3.14/write-2.0",
        "prometheus-3.14/write-2.0-utf8",
        "prometheus-3.14/write-2.0-metadata",
        "prometheus-3.14/write-2.0-type-unit",
    ];
    let mut seeds = write::seeds(captures, &directories, ".v2.bin");
    let symbols = ["", "__name__", "up", "__replica__", "a", "cluster", "eu", "help", "id", "7"].map(Vec::from);
    for histograms in [vec![], write::histograms()] {
        let series = TimeSeries {
            labels: vec![1, 2, 3, 4, 5, 6],
            samples: vec![Sample { value: 1.0, timestamp: 1_700_000_000_000 }],
            histograms,
            exemplars: vec![Exemplar { labels: vec![8, 9], value: 0.5, timestamp: 1_700_000_000_000 }],
            metadata: Some(Metadata { kind: 2, help: 7, unit: 0 }),
        };
        seeds.push(Request { symbols: symbols.to_vec(), series: vec![series; 2] }.encode_to_vec());
    }
    seeds
}
